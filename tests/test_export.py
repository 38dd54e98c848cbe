"""What is carried out computes what the backbone does: in timm, transformers, torch.export and ONNX."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from dino_dense import Backbone, load_backbone
from dino_dense.backbone.checkpoints import save_backbone
from dino_dense.backbone.dino_vit import DinoViT, ViTShape
from dino_dense.backbone.dinov3 import DinoV3, RotaryShape
from dino_dense.config import command_line
from dino_dense.export.__main__ import export, main
from dino_dense.export.check import ExportError, check_equal
from dino_dense.export.config import ExportConfig
from dino_dense.export.program import Outputs, Program, resampling

PLAIN = ViTShape(embed_dim=48, depth=3, num_heads=3, patch_size=8, grid_size=6)
SHAPES = {
    "dino": PLAIN,
    "dinov2": replace(PLAIN, patch_size=14, grid_size=5, layer_scale=True),
    "dinov2 with registers": replace(
        PLAIN, registers=4, layer_scale=True, position_offset=0.0, position_antialias=True
    ),
    "dinov2 giant": replace(PLAIN, layer_scale=True, mlp="swiglu", mlp_hidden=256),
    "dinov3": RotaryShape(48, 3, 3, 8, registers=4, mlp="gelu", mlp_hidden=192),
    "dinov3 plus": RotaryShape(48, 3, 3, 8, registers=4, mlp="swiglu", mlp_hidden=96),
}


def spread(module: nn.Module) -> nn.Module:
    """Weights large enough that every part counts."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in module.named_parameters():
            if "norm" not in name:
                value.normal_(0, 0.1 if value.ndim > 1 else 0.5)
    return module.eval()


@pytest.fixture(params=SHAPES)
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    shape = SHAPES[request.param]
    body = DinoViT(shape) if isinstance(shape, ViTShape) else DinoV3(shape)
    path = tmp_path / "net.safetensors"
    save_backbone(path, spread(body), extra={"step": 7})
    return path


def carried_out(checkpoint: Path, to: str) -> Path:
    folder = checkpoint.with_name(to)
    export(ExportConfig(ckpt=str(checkpoint), to=to, out=str(folder)), folder)  # type: ignore[arg-type]
    return folder


@pytest.mark.parametrize(("offset", "antialias"), [(0.1, False), (0.0, False), (0.0, True)])
@pytest.mark.parametrize("n", [3, 5, 6, 7, 13])
def test_the_matrix_of_resampling_is_pytorchs(n: int, offset: float, antialias: bool):
    side = 6
    values = torch.randn(1, 1, side, side)
    matrix = resampling(torch.zeros(1, n, n, 1), 1, side, offset, antialias)
    target = {"scale_factor": ((n + offset) / side,) * 2} if offset else {"size": (n, n)}
    expected = F.interpolate(values, mode="bicubic", antialias=antialias, **target)[0, 0]
    assert torch.allclose(matrix @ values[0, 0] @ matrix.T, expected, atol=1e-5)


def test_a_program_gives_the_backbones_features_at_every_size(checkpoint: Path):
    backbone = load_backbone(str(checkpoint))
    program, patch = Program(backbone), backbone.patch_size
    side = getattr(backbone.module.shape, "grid_size", 5)
    sizes = [(side * patch, side * patch), (side * patch, 3 * patch), (2 * patch, 9 * patch), (11 * patch, 7 * patch)]
    assert max(check_equal(backbone, lambda images: Outputs(*program(images))._asdict(), sizes).values()) < 1e-4


def test_timm_opens_it(checkpoint: Path):
    folder, backbone = carried_out(checkpoint, "timm"), load_backbone(str(checkpoint))
    config = json.loads((folder / "config.json").read_text())
    module = timm.create_model(
        config["architecture"],
        checkpoint_path=str(folder / "model.safetensors"),
        num_classes=0,
        **config["model_args"],
    ).eval()
    side = config["pretrained_cfg"]["input_size"][1]
    images = torch.rand(2, 3, side, side)
    mean, std = (torch.tensor(config["pretrained_cfg"][name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        theirs = module((images - mean) / std)
    assert torch.allclose(theirs, backbone.extract(images, {"cls"}).cls, atol=1e-3, rtol=1e-3)


def test_our_loader_and_transformers_open_the_hugging_face_folder(checkpoint: Path):
    folder, backbone = carried_out(checkpoint, "hf"), load_backbone(str(checkpoint))
    images = torch.rand(2, 3, 6 * backbone.patch_size, 9 * backbone.patch_size)
    again = load_backbone(str(folder)).extract(images, {"patches", "cls", "attention"})
    ours = backbone.extract(images, {"patches", "cls", "attention"})
    for kind in ("patches", "cls", "attention"):
        assert torch.allclose(again[kind], ours[kind], atol=1e-4), kind
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    module = transformers.AutoModel.from_pretrained(folder).eval()
    native = backbone.module.patch_embed.img_size  # type: ignore[union-attr]
    images = torch.rand(2, 3, *native)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (backbone.mean, backbone.std))
    with torch.no_grad():
        theirs = module((images - mean) / std).last_hidden_state[:, 0]
    assert torch.allclose(theirs, backbone.extract(images, {"cls"}).cls, atol=1e-3)


@pytest.mark.parametrize("to", ["torch", "onnx"])
def test_open_sizes(to: str, tmp_path: Path):
    if to == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package, reason=f"{package} is not installed")
    for kind in ("dino", "dinov3"):
        shape = SHAPES[kind]
        checkpoint = tmp_path / f"{kind}.safetensors"
        save_backbone(checkpoint, spread(DinoViT(shape) if isinstance(shape, ViTShape) else DinoV3(shape)))
        folder = tmp_path / f"{kind}-{to}"
        differences = export(ExportConfig(ckpt=str(checkpoint), to=to, out=str(folder)), folder)  # type: ignore[arg-type]
        assert len(differences) == 3
        assert any(height != width for height, width in differences)
        assert max(differences.values()) < 1e-4
        assert (folder / "README.md").is_file()


def test_a_wrong_program_is_not_kept(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    from dino_dense.export import timm_folder

    wrong = timm_folder.timm_weights
    monkeypatch.setattr(
        timm_folder,
        "timm_weights",
        lambda backbone: {name: value * (1 + ("proj.weight" in name)) for name, value in wrong(backbone).items()},
    )
    with pytest.raises(ExportError, match=r"cls at \d+x\d+ pixels differs by .* Nothing was kept"):
        carried_out(checkpoint, "timm")
    assert not checkpoint.with_name("timm").exists()


def test_the_command(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    folder = checkpoint.with_name("out")
    words = ["export", "--ckpt", str(checkpoint), "--to", "hf", "--out", str(folder)]
    monkeypatch.setattr("sys.argv", words)
    assert main() == 0
    assert "model.safetensors" in capsys.readouterr().out
    card = (folder / "README.md").read_text()
    assert "AutoModel.from_pretrained" in card
    assert '"step": 7' in card
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(ValueError, match="is there already"):
        main()


def test_what_has_no_form_elsewhere_is_refused(tmp_path: Path):
    convolutional = load_backbone("random:resnet18")
    for to, advice in (("hf", "transformers has no network"), ("torch", "only vision transformers")):
        path = tmp_path / "resnet.safetensors"
        save_backbone(path, convolutional.module)
        with pytest.raises(ValueError, match=advice):
            carried_out(path, to)
        assert not (tmp_path / to).exists()


def test_a_checkpoint_and_a_folder_are_needed(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        command_line.parse(ExportConfig, prog="export", description="", argv=["--to", "hf"])
    assert "Give --ckpt" in capsys.readouterr().err


def test_resnet_goes_to_timm(tmp_path: Path):
    backbone: Backbone = load_backbone("random:resnet18")
    path = tmp_path / "resnet.safetensors"
    save_backbone(path, backbone.module)
    folder = carried_out(path, "timm")
    assert load_backbone(str(folder), arch="resnet18").name == "resnet18"
