"""Upsampled patch tokens: the plug-in contract, the finer grid, and bilinear upsampling beside."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from dino_dense import Report, load_backbone
from dino_dense.backbone.remembering import RememberingBackbone
from dino_dense.backbone.upsampling import UpsampledBackbone, describe_upsampling, load_upsampler
from tasks import RunOptions, get, run_one
from tasks.segprobe import SegprobeConfig
from tests.data.test_segmentation import make_tree
from tests.device import chosen_name

RANDOM = "random:vit_micro_patch8_64"
PLUG_IN = """
import torch
import torch.nn.functional as F

def nearest(image, features, size):
    return F.interpolate(features, size, mode="nearest")

class Colors(torch.nn.Module):
    def forward(self, image, features, size, chunk=None):
        colors = F.interpolate(image, size, mode="area")
        return colors.repeat(1, -(-features.shape[1] // 3), 1, 1)[:, : features.shape[1]]

def colors(pretrained=True):
    return Colors()

def wrong(image, features, size):
    return features

def two(image, features):
    return features

number = 3
"""


@pytest.fixture
def plug_in(tmp_path: Path) -> Path:
    file = tmp_path / "hubconf.py"
    file.write_text(PLUG_IN)
    return file


def test_bilinear_is_an_interpolation_of_the_tokens():
    backbone = load_backbone(RANDOM)
    finer = UpsampledBackbone(backbone, "bilinear", 4)
    assert (finer.patch_size, finer.input_patch, finer.embed_dim) == (2, 8, backbone.embed_dim)
    images = torch.rand(2, 3, 24, 32)
    features = finer.extract(images, {"patches", "cls"})
    plain = backbone.extract(images, {"patches", "cls"})
    expected = F.interpolate(plain.patches, (12, 16), mode="bilinear", align_corners=False)
    torch.testing.assert_close(features.patches, expected)
    torch.testing.assert_close(features.cls, plain.cls)
    assert backbone.patch_size == 8
    assert finer.weights_sha256 == backbone.weights_sha256


def test_images_of_whole_small_patches_are_stretched():
    finer = UpsampledBackbone(load_backbone(RANDOM), "bilinear", 2)
    assert finer.extract(torch.rand(1, 3, 20, 28)).patches.shape[-2:] == (5, 7)
    assert finer.extract(torch.rand(1, 3, 4, 8)).patches.shape[-2:] == (1, 2)


@pytest.mark.parametrize("name", ["nearest", "colors"])
def test_a_plug_in_is_a_function_or_makes_one(plug_in: Path, name: str):
    """It gets the image as the network gets it."""
    backbone = load_backbone(RANDOM).with_normalization((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    finer = UpsampledBackbone(backbone, f"{plug_in}:{name}", 2)
    images = torch.rand(1, 3, 16, 16)
    patches = finer.extract(images).patches
    if name == "nearest":
        torch.testing.assert_close(
            patches, backbone.extract(images).patches.repeat_interleave(2, 2).repeat_interleave(2, 3)
        )
    else:
        normalized = (images - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)) / 0.5
        torch.testing.assert_close(patches[:, :3], F.avg_pool2d(normalized, 4))
    other = finer.with_normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert not torch.allclose(other.extract(images).patches, patches)
    torch.testing.assert_close(RememberingBackbone(finer).extract(images).patches, patches)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("anyup", "expected bilinear, or FILE.py:NAME"),
        ("{file}:none", "has no function 'none'; it has Colors, colors, nearest, two, wrong"),
        ("{file}:number", "has no function 'number'"),
        ("{file}:two", r"returns it; it takes \(image, features\)"),
        ("{folder}/other.py:up", "no such file"),
        ("{folder}/broken.py:up", "cannot be run"),
    ],
)
def test_what_is_no_upsampler_is_refused(plug_in: Path, spec: str, message: str):
    (plug_in.parent / "broken.py").write_text("import no_such_module_at_all")
    with pytest.raises(ValueError, match=message):
        load_upsampler(spec.format(file=plug_in, folder=plug_in.parent))


def test_wrong_shapes_maps_and_factors_are_refused(plug_in: Path):
    backbone = load_backbone(RANDOM)
    images = torch.rand(1, 3, 16, 16)
    with pytest.raises(ValueError, match=r"gave \(1, 128, 2, 2\), expected features of shape \(1, 128, 4, 4\)"):
        UpsampledBackbone(backbone, f"{plug_in}:wrong", 2).extract(images)
    with pytest.raises(ValueError, match="keys: only patch tokens are upsampled"):
        UpsampledBackbone(backbone, "bilinear", 2).extract(images, {"keys"})
    with pytest.raises(ValueError, match=r"upsampling is 3: expected a divisor of .* 2, 4, 8"):
        UpsampledBackbone(backbone, "bilinear", 3)
    with pytest.raises(ValueError, match="expected --upsampling 2 or more"):
        RunOptions(upsampler=f"{plug_in}:nearest")
    assert describe_upsampling("bilinear", 1) == ""
    assert "SHA-256" in describe_upsampling(f"{plug_in}:nearest", 2)


def run(root: Path, out: Path, **options: object) -> Report:
    config = SegprobeConfig(
        data=str(root), steps=40, crop=64, batch_size=4, lr=0.01, stride=32, evaluations=1, augment=False
    )
    chosen = RunOptions(ckpt=RANDOM, out=str(out), device=chosen_name(), **options)  # type: ignore[arg-type]
    return run_one(get("segprobe"), chosen, config)


def test_a_task_measures_bilinear_beside_the_plug_in(plug_in: Path, tmp_path: Path):
    """Colors say the class of every cell; bilinear tokens say it less well at the border."""
    masks = {}
    for name, column in (("a", 21), ("b", 27), ("v", 33)):  # inside a patch
        masks[name] = np.zeros((40, 60), np.uint8)
        masks[name][:, column:] = 1
    root = make_tree(tmp_path / "voc", {"train": {"a": masks["a"], "b": masks["b"]}, "val": {"v": masks["v"]}})
    spec = f"{plug_in}:colors"
    report = run(root, tmp_path / "out", upsampling=4, upsampler=spec)
    plain = Report.from_json((tmp_path / "out-bilinear" / "report.json").read_text())
    assert report.scores[0].value > plain.scores[0].value
    assert f"Bilinear upsampling by 4 has mIoU {plain.scores[0].value:.2f}" in report.note
    assert f"upsampled by 4 with {spec}" in report.checkpoint["features"]
    assert "upsampled by 4 with bilinear" in plain.checkpoint["features"]
    assert pd.read_csv(tmp_path / "out" / "per_class.csv")["pixels"].sum() == 40 * 60


def test_a_task_on_vectors_refuses(tmp_path: Path):
    with pytest.raises(ValueError, match="knn does not measure patch tokens on a grid of any size"):
        run_one(get("knn"), RunOptions(ckpt=RANDOM, out=str(tmp_path), upsampling=2), get("knn").smoke)
