"""Every file form opens to the same weights; every wrong file is an error that says what to do."""

import argparse
import json
import os
import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dino_dense import load_backbone
from dino_dense.backbone.checkpoints import load_file, save_backbone
from dino_dense.backbone.dino_vit import DinoViT, ViTShape, build_module, describe, rebuild
from dino_dense.checkpoint import CheckpointError, read_tensors, write_tensors
from tests.conftest import TINY_SHAPE

IMAGE = torch.rand(1, 3, 72, 88, generator=torch.Generator().manual_seed(1))


def same_features(spec: Path, module: nn.Module) -> bool:
    from dino_dense.backbone import Backbone

    want = {"patches", "cls", "keys", "attention"}
    ours = load_backbone(str(spec)).extract(IMAGE, want)
    theirs = Backbone(module, name="expected", sha256="").extract(IMAGE, want)
    return all(torch.equal(getattr(ours, name), getattr(theirs, name)) for name in want)


def published(weights: dict[str, Tensor], form: str) -> dict:
    """The wrappings that DINO's files come in."""
    head = {f"head.{name}": torch.zeros(3) for name in ("mlp.0.weight", "last_layer.weight_v")}
    wrapped = {f"backbone.{name}": value for name, value in weights.items()} | head
    parallel = {f"module.{name}": value for name, value in wrapped.items()}
    options = argparse.Namespace(arch="vit_small", lr=0.0005, data_path="images")
    return {
        "backbone": weights,
        "full": {"teacher": wrapped, "student": parallel, "epoch": 3, "args": options, "optimizer": {"state": {}}},
        "parallel": {"teacher": parallel},
        "state_dict": {"state_dict": {f"module.{name}": value for name, value in weights.items()}},
        "classifier": {"model": weights | {"head.weight": torch.zeros(5, 128), "head.bias": torch.zeros(5)}},
    }[form]


@pytest.mark.parametrize("form", ["backbone", "full", "parallel", "state_dict", "classifier"])
def test_published_forms_open(tmp_path: Path, tiny_vit: DinoViT, form: str):
    path = tmp_path / "model.pth"
    torch.save(published(tiny_vit.state_dict(), form), path)
    assert same_features(path, tiny_vit)


def test_student_is_there_for_the_asking(tmp_path: Path, tiny_vit: DinoViT):
    teacher = {name: value + 1 for name, value in tiny_vit.state_dict().items()}
    torch.save({"teacher": teacher, "student": tiny_vit.state_dict()}, tmp_path / "full.pth")
    loaded = load_file(tmp_path / "full.pth", network="student").module.state_dict()
    assert torch.equal(loaded["cls_token"], tiny_vit.state_dict()["cls_token"])
    assert not torch.equal(load_file(tmp_path / "full.pth").module.state_dict()["cls_token"], loaded["cls_token"])


@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_file_opens(tmp_path: Path, registers: int):
    """Names as in the published files: register_tokens, ls1.gamma, mask_token; chunked blocks; patch 14."""
    shape = ViTShape(
        128, 4, 2, 14, 5, registers=registers, layer_scale=True,
        position_offset=0.0 if registers else 0.1, position_antialias=bool(registers),
    )  # fmt: skip
    module = DinoViT(shape)
    weights = {name.replace("reg_token", "register_tokens"): value for name, value in module.state_dict().items()}
    weights = {name.replace("blocks.1.", "blocks.1.1."): value for name, value in weights.items()}
    torch.save(weights | {"mask_token": torch.zeros(1, 128)}, tmp_path / "dinov2.pth")
    loaded = load_file(tmp_path / "dinov2.pth").module
    assert loaded.shape == shape
    expected = module.eval()(IMAGE[..., :70, :84])
    assert torch.equal(loaded.eval()(IMAGE[..., :70, :84]), expected)


def test_dinov2_with_registers_agrees_with_timm():
    """timm folds the class token's position into the token; the features must not change by that."""
    theirs = timm.create_model("vit_small_patch14_reg4_dinov2", pretrained=False, num_classes=0, img_size=70)
    weights = {k: v + 0.01 * torch.randn_like(v) for k, v in theirs.state_dict().items()}
    theirs.load_state_dict(weights)
    from dino_dense.backbone.load import with_dino_positions

    ours = with_dino_positions(theirs, "timm:...")
    image = torch.rand(1, 3, 70, 70)
    torch.testing.assert_close(ours.eval()(image), theirs.eval()(image))


def test_swiglu_names_of_dinov2_giant(tmp_path: Path):
    module = DinoViT(ViTShape(128, 4, 2, 14, 5, layer_scale=True, mlp="swiglu", mlp_hidden=256))
    weights = {
        name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): value
        for name, value in module.state_dict().items()
    }
    torch.save(weights, tmp_path / "giant.pth")
    image = IMAGE[..., :70, :84]
    assert torch.equal(load_file(tmp_path / "giant.pth").module.eval()(image), module.eval()(image))


def test_resnet50_file_opens_with_classifier_left_out(tmp_path: Path):
    module = build_module("resnet50")
    weights = module.state_dict() | {"fc.weight": torch.zeros(10, 2048), "fc.bias": torch.zeros(10)}
    torch.save(weights, tmp_path / "rn50.pth")
    backbone = load_backbone(str(tmp_path / "rn50.pth"))
    assert backbone.name == "resnet50"
    assert backbone.extract(torch.rand(1, 3, 64, 96)).patches.shape == (1, 2048, 2, 3)


def test_our_format_round_trip_and_run_folder(tmp_path: Path, tiny_vit: DinoViT):
    save_backbone(tmp_path / "teacher.safetensors", tiny_vit, extra={"step": 7})
    for spec in (tmp_path, tmp_path / "teacher.safetensors"):
        assert same_features(spec, tiny_vit)
    assert load_backbone(str(tmp_path)).metadata["step"] == 7


def test_convnext_keeps_the_norm_that_timm_calls_head(tmp_path: Path):
    module = build_module("convnext_atto")
    module.head.norm.weight.data += 1
    save_backbone(tmp_path / "net.safetensors", module)
    loaded = load_file(tmp_path / "net.safetensors").module
    assert torch.equal(loaded.state_dict()["head.norm.weight"], module.state_dict()["head.norm.weight"])


def test_training_state_opens_as_its_teacher_or_student(tmp_path: Path, tiny_vit: DinoViT):
    other = DinoViT(TINY_SHAPE)
    tensors = {f"teacher.backbone.{k}": v for k, v in tiny_vit.state_dict().items()}
    tensors |= {f"student.backbone.{k}": v for k, v in other.state_dict().items()}
    tensors |= {"teacher.head.mlp.0.weight": torch.ones(2), "loss.center": torch.ones(2)}
    write_tensors(tmp_path / "last.safetensors", tensors, {"architecture": describe(tiny_vit)})
    assert same_features(tmp_path / "last.safetensors", tiny_vit)
    student = load_file(tmp_path / "last.safetensors", network="student").module
    assert torch.equal(student.cls_token, other.cls_token)


def test_describe_is_enough_to_rebuild(tiny_vit: DinoViT):
    for module in (tiny_vit, build_module("resnet18")):
        shapes = {k: v.shape for k, v in module.state_dict().items()}
        assert {k: v.shape for k, v in rebuild(describe(module)).state_dict().items()} == shapes


class Malice:
    def __reduce__(self):
        return os.system, ("touch owned",)


def test_file_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"teacher": {}, "args": Malice()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"evil\.pth.*posix\.system.*run code"):
        load_backbone(str(tmp_path / "evil.pth"))
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Malice()))
    with pytest.raises(CheckpointError, match=r"plain\.pth"):
        load_backbone(str(tmp_path / "plain.pth"))
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("keep", [0, 10, 1000, -100])
@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors"])
def test_damaged_file_is_named(tmp_path: Path, tiny_vit: DinoViT, name: str, keep: int):
    path = tmp_path / name
    if path.suffix == ".pth":
        torch.save(tiny_vit.state_dict(), path)
    else:
        save_backbone(path, tiny_vit)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=name):
        load_backbone(str(path))


def test_wrong_architecture_is_a_table_not_a_guess(tmp_path: Path, tiny_vit: DinoViT):
    torch.save(tiny_vit.state_dict(), tmp_path / "tiny.pth")
    with pytest.raises(CheckpointError) as caught:
        load_backbone(str(tmp_path / "tiny.pth"), arch="vit_small_patch8_64")
    text = str(caught.value)
    assert "tiny.pth" in text
    assert "reshaped" in text
    assert "missing" in text
    assert "(128,)" in text
    assert "(384,)" in text


def test_partial_file_loads_nothing(tmp_path: Path, tiny_vit: DinoViT):
    weights = tiny_vit.state_dict()
    del weights["blocks.1.mlp.fc2.bias"]
    weights["blocks.1.extra.weight"] = torch.zeros(1)
    torch.save(weights, tmp_path / "partial.pth")
    with pytest.raises(CheckpointError, match=r"(?s)missing +1 +blocks\.1\.mlp\.fc2\.bias.*unexpected +1"):
        load_backbone(str(tmp_path / "partial.pth"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"epoch": 3}, "no backbone weights"),
        ([1, 2], "expected a state dict"),
        ({"weight": torch.zeros(2)}, "unknown architecture"),
        ({"storage_tokens": torch.zeros(2)}, "DINOv3"),
    ],
)
def test_content_that_is_no_backbone(tmp_path: Path, content: object, says: str):
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=says):
        load_backbone(str(tmp_path / "odd.pth"))


def test_no_such_path_and_empty_folder(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        load_backbone(str(tmp_path / "absent.pth"))
    with pytest.raises(FileNotFoundError, match=r"teacher\.safetensors \(for the teacher\); found nothing"):
        load_backbone(str(tmp_path))


def test_write_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"x": torch.ones(3)}, {"step": 1})
    with monkeypatch.context() as patch:
        patch.setattr("dino_dense.files.os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            write_tensors(path, {"x": torch.zeros(3)}, {"step": 2})
    tensors, metadata = read_tensors(path)
    assert tensors["x"].tolist() == [1, 1, 1]
    assert metadata["step"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_later_format_is_refused(tmp_path: Path):
    write_tensors(tmp_path / "a.safetensors", {"x": torch.ones(1)}, {"format": 99})
    with pytest.raises(CheckpointError, match="format 99"):
        read_tensors(tmp_path / "a.safetensors")


def test_student_of_a_run_folder_or_an_error(tmp_path: Path, tiny_vit: DinoViT):
    """Never the teacher under the student's name."""
    save_backbone(tmp_path / "teacher.safetensors", tiny_vit)
    with pytest.raises(FileNotFoundError, match=r"last\.safetensors \(for the student\)"):
        load_file(tmp_path, network="student")
    with pytest.raises(CheckpointError, match=r"teacher\.safetensors: holds no student"):
        load_file(tmp_path / "teacher.safetensors", network="student")
    student = DinoViT(TINY_SHAPE)
    tensors = {f"student.backbone.{k}": v for k, v in student.state_dict().items()}
    write_tensors(tmp_path / "last.safetensors", tensors, {"architecture": describe(student)})
    assert torch.equal(load_file(tmp_path, network="student").module.cls_token, student.cls_token)
    teacher, loaded = (load_backbone(str(tmp_path), network=network) for network in ("teacher", "student"))
    assert teacher.weights_sha256 != loaded.weights_sha256


def test_a_transformer_of_unknown_heads_is_not_guessed(tmp_path: Path):
    torch.save(DinoViT(ViTShape(128, 3, 2, 8, 4)).state_dict(), tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"128 channels and 3 blocks.*heads is unknown.*--arch"):
        load_backbone(str(tmp_path / "odd.pth"))


def test_a_transformer_without_its_patch_embedding(tmp_path: Path, tiny_vit: DinoViT):
    weights = {name: value for name, value in tiny_vit.state_dict().items() if "patch_embed" not in name}
    torch.save(weights, tmp_path / "headless.pth")
    with pytest.raises(CheckpointError, match=r"no patch_embed\.proj\.weight"):
        load_backbone(str(tmp_path / "headless.pth"))


def test_a_tag_names_no_weights_for_random_ones():
    assert load_backbone("random:vit_tiny_patch16_224.dino").name == "vit_tiny_patch16_224"


@pytest.mark.parametrize(
    "config",
    [
        {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.4, 0.5]}},
        {"architecture": "vit_tiny_patch16_224", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.4, 0.5]},
    ],
)
def test_pixel_statistics_of_a_folder_of_timm_are_its_own(tmp_path: Path, tiny_vit: DinoViT, config: dict):
    """`--ckpt FOLDER` and `--ckpt timm:NAME` of one network are one network."""
    from tasks.harness.runner import describe_checkpoint

    save_file(dict(tiny_vit.state_dict()), tmp_path / "model.safetensors", metadata={"format": "pt"})
    plain = load_backbone(str(tmp_path), arch="vit_micro_patch8_64")
    assert "ImageNet's, as nothing states others" in describe_checkpoint(plain)["pixels"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    backbone = load_backbone(str(tmp_path), arch="vit_micro_patch8_64")
    assert backbone.mean == (0.5, 0.5, 0.5)
    assert backbone.std == (0.5, 0.4, 0.5)
    assert describe_checkpoint(backbone)["pixels"] == "mean 0.5, 0.5, 0.5, std 0.5, 0.4, 0.5 (stated with the weights)"


@pytest.mark.parametrize("arch", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"])
def test_an_official_file_has_its_authors_positions_also_under_a_name_of_timms(tmp_path: Path, arch: str):
    registers = 4 if "reg4" in arch else 0
    shape = ViTShape(
        384, 12, 6, 14, 37, registers=registers, layer_scale=True,
        position_offset=0.0 if registers else 0.1, position_antialias=bool(registers),
    )  # fmt: skip
    torch.manual_seed(0)
    weights = {name.replace("reg_token", "register_tokens"): v for name, v in DinoViT(shape).state_dict().items()}
    torch.save(weights | {"mask_token": torch.zeros(1, 384)}, tmp_path / "dinov2.pth")
    images = torch.rand(1, 3, 70, 84)
    named, read = (load_backbone(str(tmp_path / "dinov2.pth"), arch=given).extract(images) for given in (arch, None))
    torch.testing.assert_close(named.patches, read.patches)


def test_positions_of_other_peoples_networks_are_resampled_as_timm_does(tmp_path: Path):
    """MoCo v3's and MAE's authors have no rule, and timm's names give timm's."""
    theirs = timm.create_model("vit_small_patch16_224", pretrained=False, num_classes=0, dynamic_img_size=True).eval()
    weights = {f"module.base_encoder.{name}": value for name, value in theirs.state_dict().items()}
    momentum = {name.replace("base_", "momentum_"): value for name, value in weights.items()}
    torch.save({"state_dict": weights | momentum, "arch": "vit_small"}, tmp_path / "moco.pth")
    ours = load_backbone(str(tmp_path / "moco.pth"), heads=6)
    image = torch.rand(1, 3, 96, 160)
    torch.testing.assert_close(ours.module(image), theirs(image), atol=1e-5, rtol=1e-5)
    assert ours.name == "vit_small_patch16_224_timmpos", "features of another rule are kept apart"
