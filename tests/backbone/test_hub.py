"""Pretrained names: the real loading code of timm and the hub, on files made here and no network."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from dino_dense import load_backbone
from dino_dense.backbone.dino_vit import DinoViT
from dino_dense.backbone.hub import why_out_of_reach
from dino_dense.checkpoint import CheckpointError
from dino_dense.report import Report, Score
from tasks import get
from tasks.harness.runner import describe_checkpoint
from tests.backbone.test_layouts import hugging_face
from tests.conftest import TINY_SHAPE


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, offline."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("timm.models._hub.HF_HUB_OFFLINE", True, raising=False)
    return tmp_path


def put(hub: Path, repository: str, architecture: str) -> dict[str, torch.Tensor]:
    """A repository in the cache, laid out as the hub's client lays it out; returns its weights."""
    folder = hub / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0123abcd")
    torch.manual_seed(1)
    module = timm.create_model(architecture, pretrained=False, num_classes=0)
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    save_file(weights, snapshot / "model.safetensors")
    config = {"architecture": architecture, "num_classes": 0, "num_features": module.num_features}
    pretrained = {"input_size": [3, 224, 224], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "num_classes": 0}
    (snapshot / "config.json").write_text(json.dumps({**config, "pretrained_cfg": pretrained}))
    return weights


def test_timm_name_of_a_published_dino(hub: Path):
    weights = put(hub, "timm/vit_small_patch16_224.dino", "vit_small_patch16_224")
    backbone = load_backbone("timm:vit_small_patch16_224.dino")
    assert isinstance(backbone.module, DinoViT), "DINO's own position interpolation"
    assert torch.equal(backbone.module.pos_embed, weights["pos_embed"])
    assert backbone.mean == (0.485, 0.456, 0.406)
    report = Report(
        task="davis",
        status="ok",
        metrics=get("davis").metrics,
        scores=(Score("J&F-Mean", 60.0, 61),),
        checkpoint=describe_checkpoint(backbone),
        data={"name": "DAVIS-2017 val", "dataset": "DAVIS-2017 val"},
    )
    assert report.to_frame().loc[0, "published"] == 61.8


def test_hub_name_with_its_own_pixel_statistics(hub: Path):
    put(hub, "someone/resnet", "resnet18")
    backbone = load_backbone("hf-hub:someone/resnet")
    assert backbone.mean == (0.5, 0.5, 0.5)
    assert not describe_checkpoint(backbone)["official"], "another owner may call anything DINO"
    assert backbone.extract(torch.rand(1, 3, 64, 64)).patches.shape == (1, 512, 2, 2)


def test_hub_name_of_a_model_of_transformers(hub: Path):
    """Its config says what it is, its preprocessor the pixels; transformers is not needed."""
    folder = hub / "models--someone--dino"
    snapshot = folder / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0123abcd")
    weights = DinoViT(TINY_SHAPE).state_dict()
    save_file(hugging_face(weights, "vit"), snapshot / "model.safetensors")
    (snapshot / "config.json").write_text(json.dumps({"model_type": "vit", "num_attention_heads": 2}))
    (snapshot / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    backbone = load_backbone("hf-hub:someone/dino")
    assert torch.equal(backbone.module.state_dict()["pos_embed"], weights["pos_embed"])
    assert (backbone.mean, backbone.std, backbone.num_heads) == ((0.5,) * 3, (0.25,) * 3, 2)


def test_weights_that_cannot_be_had_are_an_error_not_random(hub: Path):
    with pytest.raises(CheckpointError, match=r"timm:vit_base_patch16_224\.dino: its pretrained weights could not"):
        load_backbone("timm:vit_base_patch16_224.dino")
    with pytest.raises(ValueError, match="unknown architecture"):
        load_backbone("timm:vit_bse_patch16_224.dino")


def test_cached_weights_are_within_reach(hub: Path):
    put(hub, "timm/vit_small_patch16_224.dino", "vit_small_patch16_224")
    assert why_out_of_reach("timm:vit_small_patch16_224.dino") == ""
    assert "not in the cache" in why_out_of_reach("timm:vit_base_patch16_224.dino")
    assert why_out_of_reach("random:vit_small_patch16_224") == ""


def test_a_hub_that_cannot_be_reached_is_named(hub: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9 cannot be reached" in why_out_of_reach("hf-hub:someone/network")


def test_a_hub_that_answers_is_within_reach(hub: Path, monkeypatch: pytest.MonkeyPatch):
    class Refusing(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(404)

    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert why_out_of_reach("hf-hub:someone/network") == ""
        server.shutdown()


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("missing.pth", FileNotFoundError, "no such file or folder"),
        ("timm:vit_smal_patch16_224", ValueError, "unknown architecture"),
        ("timm:vit_small_patch16_18x2_224", ValueError, "no pretrained weights"),
    ],
)
def test_a_wrong_name_is_no_question_of_reach(hub: Path, spec: str, error: type[Exception], words: str):
    with pytest.raises(error, match=words):
        why_out_of_reach(spec)
