"""What a backbone sees in an image, and an object followed through a clip: the first thing to read.

    python examples/look.py                                   # random weights, on the embedded data
    python examples/look.py dino_deitsmall16_pretrain.pth     # any checkpoint that --ckpt takes

Random weights follow colours and edges; trained ones follow objects. Pictures go to the folder `look`.
"""

import sys
from pathlib import Path

from data.davis import load_davis
from data.sample import sample_data
from dino_dense import load_backbone
from tasks import see


def look(checkpoint: str, out: Path) -> None:
    """Attention, components and likeness of one frame, and masks along its clip."""
    backbone = load_backbone(checkpoint)
    video = load_davis(sample_data().davis)[0]
    rgb = video.read_frame(0)  # [H, W, 3]
    size = video.size

    attention = see.attention_maps(backbone, rgb, resolution=192)  # [heads, h, w]
    heads = [(f"head {index}", see.heat_over(rgb, head, low=0)) for index, head in enumerate(attention.numpy())]
    see.save(out / "attention.png", see.grid([("image", rgb), *heads], columns=4))

    features = see.patch_maps(backbone, rgb, resolution=192)  # [C, h, w]
    colours = see.PcaColours.fit([features]).colours(features)  # [h, w, 3]
    see.save(out / "components.png", see.enlarge(colours, size))

    mask = video.first_mask()  # ids [H, W]
    rows, columns = (mask == 1).nonzero()
    middle = int(columns[len(columns) // 2]), int(rows[len(rows) // 2])  # x, y: a pixel of object 1
    alike = see.match_map(features, size, middle, features)  # cosine [h, w]
    see.save(out / "alike.png", see.heat_over(rgb, alike.numpy()))
    see.save(out / "clicked.png", see.overlay(rgb, see.grow(features, size, middle).astype("uint8")))

    clip = see.open_clip(video.frames[0].parent, max_frames=12)  # or a video file
    protocol = see.PropagationProtocol(short_side=192)
    carried = see.carry_masks(backbone, clip, {clip.frame_name(0): mask}, protocol)
    see.write_masks(carried, clip, out / "masks" / clip.name, out)
    print(f"Look into {out}: pictures, {clip.name}_masks.mp4, and its masks.")


if __name__ == "__main__":
    look(sys.argv[1] if len(sys.argv) > 1 else "random:vit_small_patch16_224", Path("look"))
