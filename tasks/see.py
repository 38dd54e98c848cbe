"""What the pictures of this project are made with, for a notebook: read, extract, map, draw, write.

from dino_dense import load_backbone
from tasks import see

backbone = load_backbone("runs/my_run")
rgb = see.read_upright("cat.jpg")                        # [H, W, 3]
attention = see.attention_maps(backbone, rgb)            # [heads, h, w]
see.save("attention.png", see.heat_over(rgb, attention.mean(0).numpy(), low=0))
"""

from data.clips import Clip, VideoWriter, open_clip, read_painted_mask
from data.davis import write_mask
from data.images import read_upright
from tasks._figures import enlarge, grid, heat, heat_over, mask_strip, object_curves, overlay, save
from tasks._maps import PcaColours, attention_maps, grow, mass_masks, match_map, patch_maps, similarity
from tasks._own_video import MaskedFrame, carry_masks, write_masks
from tasks._propagation import PropagationProtocol

__all__ = [
    "Clip",
    "MaskedFrame",
    "PcaColours",
    "PropagationProtocol",
    "VideoWriter",
    "attention_maps",
    "carry_masks",
    "enlarge",
    "grid",
    "grow",
    "heat",
    "heat_over",
    "mask_strip",
    "mass_masks",
    "match_map",
    "object_curves",
    "open_clip",
    "overlay",
    "patch_maps",
    "read_painted_mask",
    "read_upright",
    "save",
    "similarity",
    "write_mask",
    "write_masks",
]
