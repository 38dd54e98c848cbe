"""Draw what a backbone represents in an image, and track an object through a clip: the script to read first.

    python examples/look.py                                   # dino_dense:micro8, on the embedded data
    python examples/look.py dino_deitsmall16_pretrain.pth     # any checkpoint that --ckpt takes

dino_dense:micro8 is a small network that comes with the package. Pictures go to the folder `look`.
"""

import sys
from pathlib import Path

from data.clips import open_clip
from data.davis import load_davis
from data.sample import sample_data
from dino_dense import load_backbone
from dino_dense.maps import PcaColors, attention_maps, grow, match_map, patch_maps
from dino_dense.propagation.protocol import PropagationProtocol
from tasks.harness.figures import enlarge, grid, heat_over, overlay, save
from tasks.videos.clip_masks import carry_masks, write_masks


def look(checkpoint: str, out: Path) -> None:
    """Draw attention, components and similarity for one frame, and propagate masks along its clip."""
    backbone = load_backbone(checkpoint)
    video = load_davis(sample_data().davis)[0]
    rgb = video.read_frame(0)  # [H, W, 3]
    size = video.size

    attention = attention_maps(backbone, rgb, resolution=192)  # [heads, h, w]
    heads = [(f"head {index}", heat_over(rgb, head, low=0)) for index, head in enumerate(attention.numpy())]
    save(out / "attention.png", grid([("image", rgb), *heads], columns=4))

    features = patch_maps(backbone, rgb, resolution=192)  # [C, h, w]
    colors = PcaColors.fit([features]).colors(features)  # [h, w, 3]
    save(out / "components.png", enlarge(colors, size))

    mask = video.first_mask()  # ids [H, W]
    rows, columns = (mask == 1).nonzero()
    middle = int(columns[len(columns) // 2]), int(rows[len(rows) // 2])  # x, y: a pixel of object 1
    alike = match_map(features, size, middle, features)  # cosine [h, w]
    save(out / "alike.png", heat_over(rgb, alike.numpy()))
    save(out / "clicked.png", overlay(rgb, grow(features, size, middle).astype("uint8")))

    clip = open_clip(video.frames[0].parent, max_frames=12)  # or a video file
    protocol = PropagationProtocol(short_side=192)
    carried = carry_masks(backbone, clip, {clip.frame_name(0): mask}, protocol)
    write_masks(carried, clip, out / "masks" / clip.name, out)
    print(f"Look into {out}: pictures, {clip.name}_masks.mp4, and its masks.")


if __name__ == "__main__":
    look(sys.argv[1] if len(sys.argv) > 1 else "dino_dense:micro8", Path("look"))
