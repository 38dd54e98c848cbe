"""Bodies with registers, LayerScale, SwiGLU and rotary positions: they train, resume, are measured."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from data.pretraining import open_pretraining_data
from dino_dense import load_backbone
from dino_dense.backbone.dino_vit import DinoViT, build_module
from dino_dense.backbone.dinov3 import DinoV3
from dino_dense.checkpoint import read_tensors
from dino_dense.distributed import World
from dino_dense.pretrain.bodies import BodyOptions, hidden_channels, new_body
from dino_dense.pretrain.network import build_network
from dino_dense.pretrain.rotary import RotaryJitter, draw_coordinates, rotary_embedding
from dino_dense.pretrain.trainer import Trainer
from tests.pretrain.tiny_run import TINY
from tests.reference_files import reference

Train = Callable[..., pd.DataFrame]
ROTARY = {"positions": "rotary", "registers": 2, "layer_scale": True}
JITTER = {"rope_rescale": 2.0, "rope_jitter": 1.2, "rope_shift": 0.1}
BODIES: dict[str, dict[str, Any]] = {
    "table": {"registers": 4, "layer_scale": True, "mlp": "swiglu", "mlp_ratio": 6.0},
    "rotary": {**ROTARY, **JITTER, "mlp": "swiglu"},
}
PATCHES = {"objectives": ("dino", "ibot", "gram"), "gram_teacher": "run", "gram_begin": 1, "ibot_out_dim": 24}


def test_a_seed_keeps_the_weights_that_it_gave_before_bodies_had_options():
    """The draws of `build_module`, then the class token's."""
    torch.manual_seed(0)
    body = new_body(BodyOptions(), "vit_micro_patch8_32", 0.1, 32)
    torch.manual_seed(0)
    expected = build_module("vit_micro_patch8_32", drop_path_rate=0.1, img_size=32)
    assert isinstance(expected, DinoViT)
    torch.nn.init.trunc_normal_(expected.cls_token, std=0.02)
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in body.state_dict().items())


@pytest.fixture(autouse=True)
def without_a_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dino_dense.pretrain.monitor.draw_curve", lambda run, levels: None)


def rotary_body() -> DinoV3:
    body = build_network(config := replace(TINY, **ROTARY), config).backbone
    assert isinstance(body, DinoV3)
    return body


@pytest.mark.parametrize("name", BODIES)
def test_a_body_trains_on_patches_resumes_exactly_and_is_measured(name: str, tmp_path: Path, train: Train):
    changes = {**BODIES[name], **PATCHES, "save_every": 2}
    train(tmp_path / "whole", **changes, max_steps=3)
    train(tmp_path / "parts", **changes, max_steps=2)
    train(tmp_path / "parts", **changes, max_steps=3, resume=True)
    whole, parts = (read_tensors(tmp_path / run / "last.safetensors")[0] for run in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert not [key for key in whole if not torch.equal(whole[key], parts[key])]

    backbone = load_backbone(tmp_path / "whole")
    images = torch.rand(2, 3, 24, 40, generator=torch.Generator().manual_seed(0))
    features = backbone.extract(images, {"cls", "patches"})
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (backbone.mean, backbone.std))
    tokens = backbone.module.forward_features((images - mean) / std)
    prefix = 1 + BODIES[name].get("registers", 0)
    torch.testing.assert_close(features.cls, tokens[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features.patches.flatten(2).mT, tokens[:, prefix:], rtol=1e-4, atol=1e-5)


def test_rotary_crops_do_not_depend_on_the_split(tmp_path: Path, train: Train):
    changes = {**BODIES["rotary"], **PATCHES, "max_steps": 3}
    one, two = (train(tmp_path / str(n), accumulate=n, **changes) for n in (1, 2))
    np.testing.assert_allclose(one["loss"], two["loss"], atol=1e-4)


def test_without_jitter_tokens_are_those_of_the_loaded_network_and_jitter_changes_them():
    config = replace(TINY, **ROTARY, drop_path_rate=0.0)
    student = build_network(config, config, needs_patches=True)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    crops = torch.randn(2, 3, 32, 32)
    tokens = student.backbone.forward_features(crops)
    views = student([crops, crops[..., :16, :16]])
    torch.testing.assert_close(views.tokens(), tokens[:, 3:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(views.cls[:2], tokens[:, 0], rtol=1e-4, atol=1e-5)
    student.rotary = RotaryJitter(BodyOptions(rope_rescale=2.0), blocks=4, groups=2, seed=0)
    student.rotary.set_step(0, torch.device("cpu"))
    assert (student([crops]).tokens() - tokens[:, 3:]).abs().max() > 1e-2


@pytest.mark.parametrize("case", ["a", "b"])
def test_angles_are_the_published(case: str):
    arrays = reference("rope")
    grid = tuple(map(int, arrays[f"separate.{case}.hw"]))
    sin, cos = rotary_embedding(rotary_body(), grid).chunk(2, dim=-1)  # type: ignore[arg-type]
    np.testing.assert_allclose(sin, arrays[f"separate.{case}.sin"], atol=5e-6)
    np.testing.assert_allclose(cos, arrays[f"separate.{case}.cos"], atol=5e-6)


def test_drawn_factors_are_the_published():
    """The logarithm is uniform, both axes have the same factor, and each group, block and step draws its own."""
    _, scale = draw_coordinates(BodyOptions(rope_rescale=2.0), (2000,), 0, 1)
    assert torch.equal(scale[:, 0], scale[:, 1])
    logarithms = scale[:, 0].log2().numpy()
    expected = np.linspace(-1, 1, 2000)
    assert np.abs(np.sort(logarithms) - expected).max() < 0.06  # the Kolmogorov-Smirnov distance is 0.03 at p = 0.05
    shift, scale = draw_coordinates(BodyOptions(rope_shift=0.2, rope_jitter=3.0), (2, 4), 0, 1)
    assert scale.unique().numel() == shift.unique().numel() == 16
    assert shift.abs().max() <= 0.2
    assert ((scale > 1 / 3) & (scale < 3)).all()
    assert not torch.equal(shift, draw_coordinates(BodyOptions(rope_shift=0.2), (2, 4), 0, 2).shift)


def test_a_changed_grid_is_the_grid_moved_and_stretched():
    """Coordinates of 4 patches, stretched by 1/2 and moved by 1/2 of the half, are those of the middle of 8 patches."""
    body = rotary_body()
    change = draw_coordinates(BodyOptions(), (), 0)._replace(scale=torch.tensor([0.5, 0.5]))
    inner = rotary_embedding(body, (4, 4), change).unflatten(0, (4, 4))
    outer = rotary_embedding(body, (8, 8)).unflatten(0, (8, 8))
    torch.testing.assert_close(inner, outer[2:6, 2:6], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("mlp", "ratio", "channels", "hidden"), [("gelu", 4, 384, 1536), ("swiglu", 6, 384, 1536)])
def test_hidden_channels_are_the_published(mlp: Any, ratio: float, channels: int, hidden: int):
    """DINOv3's ViT-S and ViT-S+; DINOv2's ViT-g has 4096."""
    assert hidden_channels(BodyOptions(mlp=mlp, mlp_ratio=ratio), channels) == hidden
    assert hidden_channels(BodyOptions(mlp="swiglu"), 1536) == 4096


def test_registers_follow_the_positions_of_dinov2():
    body = build_network(config := replace(TINY, registers=4), config).backbone
    assert isinstance(body, DinoViT)
    assert (body.shape.position_offset, body.shape.position_antialias) == (0.0, True)
    assert body.reg_token.std().item() == pytest.approx(0.02, rel=0.15)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "resnet18", "registers": 4}, "registers is set, but resnet18 is none of"),
        ({"rope_rescale": 2.0}, "has no rotary positions"),
        ({**ROTARY, "pack": True}, "with a table of positions"),
    ],
)
def test_a_body_that_cannot_be_built_is_refused(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        build_network(config := replace(TINY, **changes), config)


def test_a_started_rotary_network_learns_patches_with_jitter(tmp_path: Path, train: Train, pictures: Path):
    train(tmp_path / "first", **ROTARY, max_steps=1)
    started = replace(TINY, arch=type(TINY).arch, out=str(tmp_path / "next"), start=str(tmp_path / "first"), **JITTER)
    started = replace(started, **PATCHES, max_steps=1)
    images = open_pretraining_data(pictures)
    Trainer(started, images, World(), torch.device("cpu")).train()
    assert isinstance(load_backbone(tmp_path / "next").module, DinoV3)
    with pytest.raises(ValueError, match="registers is set, but start has a body of its own"):
        Trainer(replace(started, registers=4, out=str(tmp_path / "no")), images, World(), torch.device("cpu"))
