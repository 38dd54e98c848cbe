"""What each family of timm's networks gives: `python -m benchmarks.families [--docs] [NAME ...]`.

A network of random weights of each family extracts features at two image sizes. With `--docs`, the table of
docs/backbones.md is replaced.
"""

import sys
import warnings
from pathlib import Path

import pandas as pd
import torch

from benchmarks.bench import write_between
from dino_dense import Backbone, load_backbone

DOCUMENT = Path(__file__).parents[1] / "docs" / "backbones.md"
SIZES = ((224, 224), (256, 192))
"""Height and width of the images, pixels."""
MOST = 100e6  # parameters
FAMILIES = {
    # family -> one network of fewer than 100 M parameters
    "ViT": "vit_small_patch16_224",
    "ViT, DINOv2 with registers": "vit_small_patch14_reg4_dinov2",
    "ViT, mean of patches": "vit_base_patch16_siglip_gap_224",
    "ViT, attention pooling (SigLIP)": "vit_base_patch16_siglip_224",
    "ViT, rotary positions": "vit_small_patch16_rope_224",
    "ViT, relative positions": "vit_relpos_small_patch16_224",
    "DeiT, distilled": "deit_small_distilled_patch16_224",
    "DeiT III": "deit3_small_patch16_224",
    "BEiT": "beit_base_patch16_224",
    "EVA-02": "eva02_small_patch14_224",
    "DINOv3": "vit_small_patch16_dinov3",
    "Perception Encoder": "vit_pe_core_small_patch16_384",
    "SAM": "samvit_base_patch16_224",
    "Hiera": "hiera_tiny_224",
    "CaiT": "cait_xxs24_224",
    "XCiT": "xcit_small_12_p16_224",
    "TNT": "tnt_s_patch16_224",
    "CrossViT": "crossvit_small_240",
    "PiT": "pit_s_224",
    "VOLO": "volo_d1_224",
    "ConViT": "convit_small",
    "Swin": "swin_tiny_patch4_window7_224",
    "Swin V2": "swinv2_cr_tiny_224",
    "Twins": "twins_svt_small",
    "NesT": "nest_tiny",
    "PVT v2": "pvt_v2_b1",
    "MViT v2": "mvitv2_tiny",
    "MaxViT": "maxvit_tiny_rw_224",
    "CoAtNet": "coatnet_0_rw_224",
    "GC ViT": "gcvit_tiny",
    "DaViT": "davit_tiny",
    "FocalNet": "focalnet_tiny_srf",
    "TinyViT": "tiny_vit_5m_224",
    "LeViT": "levit_192",
    "EfficientFormer": "efficientformer_l1",
    "EfficientViT": "efficientvit_b1",
    "FastViT": "fastvit_t8",
    "Next-ViT": "nextvit_small",
    "PoolFormer": "poolformer_s12",
    "MLP-Mixer": "mixer_s32_224",
    "ConvNeXt": "convnext_tiny",
    "ConvNeXt V2": "convnextv2_tiny",
    "InceptionNeXt": "inception_next_tiny",
    "MambaOut": "mambaout_tiny",
    "ResNet": "resnet50",
    "RegNet": "regnety_016",
    "EfficientNet": "efficientnet_b0",
    "MobileNet V4": "mobilenetv4_conv_small",
    "DenseNet": "densenet121",
    "HRNet": "hrnet_w18",
    "RepViT": "repvit_m1",
}


def features_of(backbone: Backbone, size: tuple[int, int]) -> str:
    """The grid of patches of an image of about this size, or the reason why there is none."""
    height, width = (max(1, side // backbone.patch_size) * backbone.patch_size for side in size)
    images = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    try:
        features = backbone.extract(images, backbone.provides)
    except ValueError as error:
        return f"refused: {one_line(error)}"
    broken = [kind for kind, value in features.by_kind.items() if not bool(value.isfinite().all())]
    if broken:
        return f"not finite: {', '.join(broken)}"
    grid = "x".join(map(str, features.patches.shape[-2:])) if "patches" in backbone.provides else "no patches"
    return f"{grid} at {height}x{width}"


def one_line(error: Exception, most: int = 120) -> str:
    """The start of a message, without what would end a cell of a table."""
    text = " ".join(str(error).split()).replace("|", "/")
    return text if len(text) <= most else f"{text[:most]}..."


def row(family: str, name: str) -> dict[str, str]:
    """The row of one family."""
    result = {"family": family, "network": f"`{name}`"}
    try:
        backbone = load_backbone(f"random:{name}")
    except ValueError as error:
        return {**result, "features": f"refused: {one_line(error)}"}
    parameters = sum(parameter.numel() for parameter in backbone.module.parameters())
    assert parameters < MOST, f"{name}: {parameters / 1e6:.0f} M parameters"
    return {
        **result,
        "cell": f"{backbone.patch_size} px",
        "layers": f"{backbone.depth}, {'of one width' if backbone.uniform_width else 'of several widths'}",
        "features": ", ".join(kind for kind in KINDS if kind in backbone.provides),
        "first size": features_of(backbone, SIZES[0]),
        "second size": features_of(backbone, SIZES[1]),
    }


KINDS = ("patches", "cls", "keys", "queries", "values", "attention")


def main() -> pd.DataFrame:
    """The table of all families, or of the families with the given networks."""
    warnings.simplefilter("ignore")
    wanted = [word for word in sys.argv[1:] if not word.startswith("--")]
    rows = []
    for family, name in FAMILIES.items():
        if not wanted or name in wanted:
            rows.append(row(family, name))
            print(" | ".join(rows[-1].values()), flush=True)
    table = pd.DataFrame(rows).fillna("")
    if "--docs" in sys.argv[1:] and not wanted:
        import timm

        text = f"timm {timm.__version__}, random weights.\n\n{table.to_markdown(index=False)}"
        write_between(DOCUMENT, "families", text)
    return table


if __name__ == "__main__":
    main()
