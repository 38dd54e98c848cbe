"""Every tool's checkpoint opens to the network that the tool's authors evaluate; what is no such file is refused."""

import argparse
import collections
import datetime
import json
import pathlib
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dino_dense import load_backbone
from dino_dense.backbone.architectures import has_sine_positions
from dino_dense.backbone.checkpoints import load_file, save_backbone
from dino_dense.backbone.dino_vit import DinoViT, ViTShape, build_module
from dino_dense.backbone.dinov3 import DinoV3, RotaryShape
from dino_dense.backbone.names import without_heads
from dino_dense.checkpoint import CheckpointError
from tests.conftest import TINY_SHAPE

Tensors = dict[str, Tensor]


def drawn(module: nn.Module, seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
        for name, value in module.state_dict().items()
    }


VIT, OTHER = drawn(DinoViT(TINY_SHAPE), 1), drawn(DinoViT(TINY_SHAPE), 2)
JUNK = {"0.weight": torch.zeros(3), "mlp.0.weight": torch.zeros(3), "last_layer.weight_v": torch.zeros(3)}


def under(prefix: str, weights: Tensors) -> Tensors:
    return {prefix + name: value for name, value in weights.items()}


def lightning(state_dict: Tensors) -> dict[str, Any]:
    return {"state_dict": state_dict, "pytorch-lightning_version": "2.4.0", "hyper_parameters": {"lr": 0.1}}


def nested(path: str, value: Any) -> dict[str, Any]:
    for key in reversed(path.split("/")):
        value = {key: value}
    return value


def mmpretrain(weights: Tensors) -> Tensors:
    renames = [("patch_embed.proj.", "patch_embed.projection."), ("blocks.", "layers.")]
    renames += [(".norm1.", ".ln1."), (".norm2.", ".ln2."), (".mlp.fc1.", ".ffn.layers.0.0.")]
    renames += [(".mlp.fc2.", ".ffn.layers.1.")]
    result = {}
    for name, value in weights.items():
        for old, new in renames:
            name = name.replace(old, new)
        result[re.sub(r"^norm\.", "ln1.", name)] = value
    return result


LAYOUTS: dict[str, Any] = {
    "plain": VIT,
    "DDP": {"state_dict": under("module.", VIT)},
    "torch.compile": under("_orig_mod.", VIT),
    "compiled DDP": under("_orig_mod.module.", VIT),
    "DDP of compiled, under model": {"model": under("module._orig_mod.", VIT)},
    "compiled blocks": {re.sub(r"^(blocks\.\d+)\.", r"\1._orig_mod.", name): value for name, value in VIT.items()},
    "FSDP and checkpointing inside": {
        re.sub(r"^(blocks\.\d+)\.", r"\1._fsdp_wrapped_module._checkpoint_wrapped_module.", name): value
        for name, value in VIT.items()
    },
    "DINO": {
        "student": under("module.backbone.", OTHER) | under("module.head.", JUNK),
        "teacher": under("backbone.", VIT) | under("head.", JUNK),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}},
        "args": argparse.Namespace(arch="vit_tiny"),
        "dino_loss": {"center": torch.zeros(1, 3)},
    },
    "iBOT, teacher before student": {
        "teacher": under("backbone.", VIT | {"masked_embed": torch.zeros(1, 128)}) | under("head.", JUNK),
        "student": under("module.backbone.", OTHER),
    },
    "iBOT, published": {"state_dict": VIT | {"masked_embed": torch.zeros(1, 128)}},
    "MoCo v3": {
        "arch": "vit_small",
        "state_dict": under("module.momentum_encoder.", OTHER)
        | under("module.base_encoder.", VIT | under("head.", JUNK))
        | under("module.predictor.", JUNK),
    },
    "MAE": {
        "model": VIT
        | {"mask_token": torch.zeros(1, 1, 512), "decoder_pos_embed": torch.zeros(1, 5, 512)}
        | under("decoder_blocks.0.", {"norm1.weight": torch.zeros(512), "attn.qkv.weight": torch.zeros(6, 512)})
        | {"decoder_norm.weight": torch.zeros(3), "decoder_pred.weight": torch.zeros(3)},
    },
    "MAE, fine-tuned with mean pooling": {
        "model": {re.sub(r"^norm\.", "fc_norm.", name): value for name, value in VIT.items()} | under("head.", JUNK),
    },
    "DINOv2 in chunks": {
        "teacher": under(
            "backbone.", {re.sub(r"^blocks\.(\d)", r"blocks.0.\1", name): value for name, value in VIT.items()}
        )
        | under("dino_head.", JUNK) | under("ibot_head.", JUNK) | {"backbone.mask_token": torch.zeros(1, 128)},
    },
    "lightly, DINO benchmark": lightning(
        under("student_backbone.vit.", OTHER) | under("backbone.vit.", VIT) | under("projection_head.", JUNK)
    ),
    "lightly, iBOT": lightning(
        under("student_backbone.vit.", OTHER) | under("teacher_backbone.vit.", VIT)
        | {"teacher_backbone.mask_token": torch.zeros(1, 1, 128)}
    ),
    "lightly-train, exported": under("wrapped_model._model.", VIT) | under("embed_head.", JUNK),
    "lightly-train, DINO": lightning(
        under("student_embedding_model.wrapped_model._model.", OTHER)
        | under("teacher_embedding_model.wrapped_model._model.", VIT)
        | under("teacher_projection_head.", JUNK)
    ),
    "lightly-train, distillation": lightning(
        under("teacher_embedding_model.wrapped_model._model.", OTHER)
        | under("student_embedding_model.wrapped_model._model.", VIT)
        | under("student_projection_head.", JUNK)
    ),
    "lightly-train, SimCLR": lightning(under("embedding_model.wrapped_model._model.", VIT)),
    "solo-learn": lightning(
        under("momentum_backbone.", OTHER) | under("backbone.", VIT) | under("classifier.", JUNK)
    ),
    "solo-learn, old": lightning(under("encoder.", VIT) | under("projector.", JUNK)),
    "VISSL": nested("classy_state_dict/base_model/model/trunk", VIT)
    | {"phase_idx": 3},
    "VISSL, DINO": {
        "classy_state_dict": {
            "base_model": {"model": {"trunk": OTHER, "heads": JUNK}},
            "loss": under("momentum_teacher.module.trunk.", VIT),
        },
    },
    "MMPretrain": {
        "meta": {"epoch": 1},
        "state_dict": under("momentum_encoder.module.0.", mmpretrain(OTHER)) | under("backbone.", mmpretrain(VIT)),
    },
    "stable-pretraining, DINO": lightning(
        under("backbone.student.", OTHER) | under("backbone.teacher.", VIT)
        | {"backbone.ema_coefficient": torch.zeros(1)} | under("callbacks_modules.probe.", JUNK)
    ),
    "stable-pretraining, MAE": lightning(under("encoder.", VIT) | under("decoder.", JUNK)),
    "timm with EMA": {"state_dict": OTHER, "state_dict_ema": VIT, "arch": "vit_tiny", "version": 2},
    "I-JEPA": {"target_encoder": under("module.", VIT), "encoder": under("module.", OTHER), "predictor": JUNK},
    "distributed checkpoint, flattened": under("model.model_ema.backbone.", VIT)
    | under("model.student.backbone.", OTHER),
    "classifier": {"model": VIT | {"head.weight": torch.zeros(5, 128), "head.bias": torch.zeros(5)}},
    "a name nobody listed": {"my_net": under("inner.", VIT)},
}  # fmt: skip


def weights_of(path: Path, **options: Any) -> Tensors:
    return load_file(path, **options).module.state_dict()


def same(found: Tensors, expected: Tensors) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_evaluated_network_is_taken_whatever_the_order_of_the_keys(layout: str, tmp_path: Path):
    content = LAYOUTS[layout]
    for name, ordered in (("a", content), ("b", backwards(content))):
        torch.save(ordered, tmp_path / f"{name}.pth")
        assert same(weights_of(tmp_path / f"{name}.pth"), VIT)


def backwards(content: Any) -> Any:
    return {key: backwards(content[key]) for key in reversed(content)} if isinstance(content, dict) else content


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_that_lacks_a_weight_is_refused_with_the_table(layout: str, tmp_path: Path):
    def without(content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        lost = ("blocks.2.mlp.fc2.bias", "blocks.0.2.mlp.fc2.bias", "layers.2.ffn.layers.1.bias")
        parts = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
        return {
            key: without(value)
            for key, value in content.items()
            if not ".".join(part for part in str(key).split(".") if part not in parts).endswith(lost)
        }

    torch.save(without(LAYOUTS[layout]), tmp_path / "partial.pth")
    with pytest.raises(CheckpointError, match=r"(?s)do not fit.*missing +1 +blocks\.2\.mlp\.fc2\.bias"):
        load_file(tmp_path / "partial.pth")


@pytest.mark.parametrize(
    ("layout", "network"),
    [
        ("DINO", "student"),
        ("MoCo v3", "teacher"),
        ("lightly, DINO benchmark", "student"),
        ("lightly, iBOT", "student"),
        ("solo-learn", "teacher"),
        ("MMPretrain", "teacher"),
        ("stable-pretraining, DINO", "student"),
        ("VISSL, DINO", "student"),
        ("timm with EMA", "student"),
        ("I-JEPA", "student"),
        ("lightly-train, distillation", "state_dict.teacher_embedding_model.wrapped_model._model"),
        ("MoCo v3", "momentum_encoder"),
    ],
)
def test_the_other_network_is_there_for_the_asking(layout: str, network: str, tmp_path: Path):
    torch.save(LAYOUTS[layout], tmp_path / "file.pth")
    assert same(weights_of(tmp_path / "file.pth", network=network), OTHER)


def test_a_line_says_which_network_was_taken_and_how_to_take_another(tmp_path: Path):
    torch.save(LAYOUTS["MoCo v3"], tmp_path / "moco.pth")
    (note,) = [note for note in load_backbone(str(tmp_path / "moco.pth")).notes if "taken" in note]
    assert "'state_dict.base_encoder' was taken (MoCo v3)" in note
    assert "others: 'state_dict.momentum_encoder' (--network takes a prefix)" in note
    torch.save(VIT, tmp_path / "plain.pth")
    assert load_backbone(str(tmp_path / "plain.pth")).notes == ()
    with pytest.raises(CheckpointError, match=r"holds no nonsense\. Networks in it: state_dict\.base_encoder"):
        load_backbone(str(tmp_path / "moco.pth"), network="nonsense")


def test_two_networks_that_no_rule_tells_apart_are_named(tmp_path: Path):
    torch.save({"left": under("net.", VIT), "right": under("net.", OTHER)}, tmp_path / "two.pth")
    with pytest.raises(CheckpointError, match=r"holds several networks\. Networks in it: left\.net, right\.net"):
        load_file(tmp_path / "two.pth")
    assert same(weights_of(tmp_path / "two.pth", network="right.net"), OTHER)


# --- Files that hold more than tensors ---------------------------------------------------------------------


class Anything:
    """An object of a class that the reader has never heard of."""

    def __init__(self) -> None:
        self.ran = True

    def __reduce__(self):
        return print, ("code of the file ran",)


EXTRAS: dict[str, Callable[[], Any]] = {
    "NumPy scalar": lambda: np.float64(71.5),
    "NumPy array": lambda: np.arange(3.0),
    "path": lambda: pathlib.PurePosixPath("runs/a"),
    "date": lambda: datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
    "counter": lambda: collections.Counter(a=1),
    "defaultdict": lambda: collections.defaultdict(dict, {0: {"step": 3}}),
    "set": lambda: {1, 2},
    "frozenset": lambda: frozenset({1}),
    "range": lambda: range(3),
    "slice": lambda: slice(1, 2),
    "complex": lambda: 1j,
    "deque": lambda: collections.deque([1, 2], maxlen=3),
    "type": lambda: int,
    "bytes": lambda: b"abc",
    "large number": lambda: 2**80,
    "torch dtype, device and version": lambda: (torch.float16, torch.device("cpu"), torch.__version__),
    "unknown object": Anything,
}


@pytest.mark.parametrize("zipped", [True, False], ids=["today's format", "legacy format"])
@pytest.mark.parametrize("extra", EXTRAS)
def test_what_trainers_store_beside_tensors_is_no_hindrance_and_does_not_run(
    extra: str, zipped: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    content = {"best": EXTRAS[extra](), "model": VIT, "history": [EXTRAS[extra]()], "epoch": 3}
    torch.save(content, tmp_path / "file.pth", _use_new_zipfile_serialization=zipped)
    assert same(weights_of(tmp_path / "file.pth"), VIT)
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_newer_pickle_protocols_are_read(protocol: int, tmp_path: Path):
    torch.save({"model": VIT, "when": datetime.date(2026, 1, 2)}, tmp_path / "a.pth", pickle_protocol=protocol)
    assert same(weights_of(tmp_path / "a.pth"), VIT)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_and_shared_storage_survive_the_careful_reader(dtype: torch.dtype, tmp_path: Path):
    """Views of one storage, transposed and offset, beside an object that makes the careful reader read them."""
    whole = torch.arange(24.0).view(4, 6).to(dtype)
    vit = {name: value.to(dtype) for name, value in VIT.items()}
    vit["cls_token"] = torch.stack([vit["cls_token"], vit["cls_token"] + 1], dim=-1)[..., 1]  # strided
    torch.save({"model": vit, "view": whole.T[2:], "p": Anything()}, tmp_path / "a.pth")
    loaded = weights_of(tmp_path / "a.pth")
    assert torch.equal(loaded["cls_token"], vit["cls_token"].float())
    assert torch.equal(loaded["pos_embed"], vit["pos_embed"].float())


def test_a_whole_pickled_module_is_read_by_its_tensors(tmp_path: Path):
    module = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    torch.save(module, tmp_path / "whole.pth")
    loaded = weights_of(tmp_path / "whole.pth")
    assert same(loaded, module.state_dict())


def test_a_tensor_that_reaches_beyond_its_numbers_is_refused(tmp_path: Path):
    torch.save({"model": VIT, "p": Anything()}, tmp_path / "a.pth")
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.pth") as source, zipfile.ZipFile(tmp_path / "b.pth", "w") as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, data[:8] if re.search(r"data/\d+$", name) else data)
    with pytest.raises(CheckpointError, match=r"b\.pth"):
        load_file(tmp_path / "b.pth")


def test_a_pickle_of_something_else_is_no_checkpoint(tmp_path: Path):
    (tmp_path / "a.pth").write_bytes(pickle.dumps({"model": 3}))
    with pytest.raises(CheckpointError, match=r"a\.pth: not a PyTorch checkpoint"):
        load_file(tmp_path / "a.pth")


# --- Heads -------------------------------------------------------------------------------------------------


def sine_table(side: int, channels: int) -> Tensor:
    """MoCo v3's positions, in loops: sines and cosines of the column, then of the row."""
    table = torch.zeros(1, 1 + side**2, channels)
    quarter = channels // 4
    for row in range(side):
        for column in range(side):
            for k in range(quarter):
                omega = 10000 ** (-k / quarter)
                values = [np.sin(column * omega), np.cos(column * omega), np.sin(row * omega), np.cos(row * omega)]
                for part, value in enumerate(values):
                    table[0, 1 + row * side + column, part * quarter + k] = value
    return table


@pytest.fixture(scope="module")
def small() -> Tensors:
    return drawn(DinoViT(ViTShape(384, 12, 6, 16, 2)), 1)


def heads_of(path: Path, **options: Any) -> int:
    return load_backbone(str(path), **options).num_heads


def test_heads_come_from_the_tool_the_positions_or_the_user(small: Tensors, tmp_path: Path):
    torch.save({"model": small}, tmp_path / "plain.pth")
    backbone = load_backbone(str(tmp_path / "plain.pth"))
    assert backbone.num_heads == 6
    assert any("6 attention heads are assumed" in note and "--heads 12" in note for note in backbone.notes)
    asked = load_backbone(str(tmp_path / "plain.pth"), heads=12)
    assert (asked.num_heads, asked.notes) == (12, ())
    assert heads_of(tmp_path / "plain.pth", heads=12, arch="vit_small_patch16_32") == 12
    torch.save({"state_dict": under("module.base_encoder.", small)}, tmp_path / "moco.pth.tar")
    assert heads_of(tmp_path / "moco.pth.tar") == 12
    torch.save({"model": small | {"pos_embed": sine_table(2, 384)}}, tmp_path / "as_deit.pth")
    assert heads_of(tmp_path / "as_deit.pth") == 12
    with pytest.raises(CheckpointError, match="7 heads cannot share its 384 channels"):
        load_backbone(str(tmp_path / "plain.pth"), heads=7)


def test_heads_that_change_nothing_are_refused(tmp_path: Path):
    """A network of timm's has the heads of its name, whatever the user says; conv nets have none."""
    for name in ("deit_tiny_patch16_224", "resnet18", "vit_tiny_patch16_224"):
        save_backbone(tmp_path / f"{name}.safetensors", build_module(name))
    assert heads_of(tmp_path / "vit_tiny_patch16_224.safetensors", heads=6) == 6
    with pytest.raises(
        CheckpointError, match=r"--heads 6 for deit_tiny.*which has 3 by its architecture.*Leave --heads"
    ):
        load_backbone(str(tmp_path / "deit_tiny_patch16_224.safetensors"), heads=6)
    with pytest.raises(CheckpointError, match=r"--heads 6 for resnet18.*which has none"):
        load_backbone(str(tmp_path / "resnet18.safetensors"), heads=6)


def test_transformers_positions_of_a_network_of_ours(tmp_path: Path):
    save_backbone(tmp_path / "a.safetensors", DinoViT(TINY_SHAPE))
    own, other = (load_backbone(str(tmp_path / "a.safetensors"), positions=rule) for rule in ("official", "hf"))
    image = torch.rand(1, 3, 10 * own.patch_size, 12 * own.patch_size)
    assert own.weights_sha256 == other.weights_sha256
    assert own.name != other.name, "caches know features by name"
    assert (own.extract(image).patches - other.extract(image).patches).abs().max() > 1e-4
    drawn_at_random = load_backbone("random:vit_micro_patch8_64", positions="hf")
    assert drawn_at_random.name == "vit_micro_patch8_64_plainpos"
    foreign = load_backbone("random:deit_tiny_distilled_patch16_224", positions="hf")
    assert any("positions hf has no effect" in note for note in foreign.notes)


def test_features_of_twelve_heads_are_those_of_timms_network_of_twelve_heads(tmp_path: Path):
    module = timm.create_model("vit_small_patch16_224", num_heads=12, num_classes=0).eval()
    torch.save({"model": module.state_dict()}, tmp_path / "a.pth")
    backbone = load_backbone(str(tmp_path / "a.pth"), heads=12)
    image = torch.rand(1, 3, 224, 224)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (backbone.mean, backbone.std))
    with torch.no_grad():
        expected = module((image - mean) / std)
    torch.testing.assert_close(backbone.extract(image, {"cls"}).cls, expected, atol=1e-4, rtol=0)


def test_fixed_positions_are_told_from_learned_ones():
    assert has_sine_positions(sine_table(3, 16))
    assert has_sine_positions(sine_table(3, 16)[:, [0, *(1 + c * 3 + r for r in range(3) for c in range(3))]])
    assert not has_sine_positions(sine_table(3, 16) + 0.02)
    assert not has_sine_positions(torch.rand(1, 10, 16))


# --- Other names of the same weights -----------------------------------------------------------------------


def hugging_face(weights: Tensors, kind: str) -> Tensors:
    result = {"pooler.dense.weight": torch.zeros(3)}
    for name, value in weights.items():
        name = name.replace("cls_token", "embeddings.cls_token").replace("pos_embed", "embeddings.position_embeddings")
        name = name.replace("patch_embed.proj", "embeddings.patch_embeddings.projection")
        name = re.sub(r"^norm\.", "layernorm.", name).replace("blocks.", "encoder.layer.")
        if kind == "vit":
            name = name.replace("norm1", "layernorm_before").replace("norm2", "layernorm_after")
            name = name.replace("mlp.fc1", "intermediate.dense").replace("mlp.fc2", "output.dense")
        name = name.replace("attn.proj", "attention.output.dense")
        if "attn.qkv" in name:
            for part, own in zip(("query", "key", "value"), value.chunk(3), strict=True):
                result[name.replace("attn.qkv", f"attention.attention.{part}")] = own.clone()
        else:
            result[name] = value
    return result


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
@pytest.mark.parametrize("prefix", ["", "vit.", "dinov2."])
def test_folder_of_transformers_opens(kind: str, prefix: str, tmp_path: Path):
    save_file(under(prefix, hugging_face(VIT, kind)), tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "num_attention_heads": 4}))
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.2]})
    )
    backbone = load_backbone(str(tmp_path))
    assert same(backbone.module.state_dict(), VIT)
    assert backbone.num_heads == 4
    assert backbone.mean == (0.5, 0.4, 0.3)


def write_shards(folder: Path, weights: Tensors) -> None:
    """Three files and their index, as huggingface_hub splits large networks."""
    where = {}
    for index in range(3):
        name = f"model-0000{index + 1}-of-00003.safetensors"
        part = {key: weights[key].contiguous() for key in sorted(weights)[index::3]}
        save_file(part, folder / name, metadata={"format": "pt"})
        where |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def test_weights_in_several_files_open(tmp_path: Path):
    write_shards(tmp_path, VIT)
    backbone = load_backbone(str(tmp_path))
    assert same(backbone.module.state_dict(), VIT)
    assert load_backbone(str(tmp_path / "model.safetensors.index.json")).sha256 == backbone.sha256
    save_file({"x": torch.ones(1)}, tmp_path / "model-00002-of-00003.safetensors")
    with pytest.raises(CheckpointError, match=r"tensors are in none of its files"):
        load_backbone(str(tmp_path))
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"names 1 files that are not there \(model-00002"):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize(
    "text", ["{}", "no JSON", '{"weight_map": {}}', '{"weight_map": {"x": "../secret.safetensors"}}']
)
def test_an_index_that_is_damaged_or_leads_elsewhere_is_refused(text: str, tmp_path: Path):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json: expected a weight_map"):
        load_backbone(str(tmp_path))


def dinov3(weights: Tensors, bias_mask: bool) -> Tensors:
    """The names of DINOv3's published files."""
    result = {"mask_token": torch.zeros(1, 128), "local_cls_norm.weight": torch.zeros(128)}
    for name, value in weights.items():
        name = name.replace("reg_token", "storage_tokens").replace("rope.periods", "rope_embed.periods")
        name = re.sub(r"gamma_([12])", r"ls\1.gamma", name)
        name = name.replace("fc1_g", "w1").replace("fc1_x", "w2")
        if name.endswith("q_bias"):
            stem = name.removesuffix("q_bias")
            keys = torch.full_like(value, 3.0) if bias_mask else torch.zeros_like(value)
            result[f"{stem}qkv.bias"] = torch.cat([value, keys, weights[f"{stem}v_bias"]])
            if bias_mask:
                ones = torch.ones_like(value)
                result[f"{stem}qkv.bias_mask"] = torch.cat([ones, 0 * ones, ones])
        elif not name.endswith("v_bias"):
            result[name] = value
    return result


ROTARY = RotaryShape(128, 2, 4, 16, 4, "gelu", 512)


@pytest.mark.parametrize("bias_mask", [True, False])
@pytest.mark.parametrize("prefix", ["", "teacher/backbone."])
def test_dinov3_file_opens_with_its_own_periods(bias_mask: bool, prefix: str, tmp_path: Path):
    weights = drawn(DinoV3(ROTARY), 3)
    weights["rope.periods"] = torch.rand(8) + 1
    content: Any = dinov3(weights, bias_mask)
    if prefix:
        content = {"teacher": under("backbone.", content) | under("dino_head.", JUNK)}
    torch.save(content, tmp_path / "dinov3.pth")
    loaded = load_file(tmp_path / "dinov3.pth").module
    assert loaded.shape == ROTARY
    assert same(loaded.state_dict(), weights)


def test_a_key_bias_that_is_not_masked_is_used(tmp_path: Path):
    content = dinov3(drawn(DinoV3(ROTARY), 3), bias_mask=True)
    content = {name: value for name, value in content.items() if "bias_mask" not in name}
    torch.save(content, tmp_path / "dinov3.pth")
    loaded = load_file(tmp_path / "dinov3.pth").module
    assert loaded.shape.key_bias
    assert torch.equal(loaded.state_dict()["blocks.0.attn.k_bias"], torch.full((128,), 3.0))


@pytest.mark.parametrize(
    "name", ["vit_small_patch16_dinov3", "vit_small_patch16_dinov3_qkvb", "vit_small_plus_patch16_dinov3_qkvb"]
)
def test_timms_names_of_dinov3_give_timms_features(name: str, tmp_path: Path):
    module = build_module(name).eval()
    weights = {key: value + 0.02 * torch.randn_like(value) for key, value in module.state_dict().items()}
    module.load_state_dict(weights)
    torch.save(weights, tmp_path / "timm.pth")
    image = torch.rand(1, 3, 64, 96)
    for arch in (None, name):
        backbone = load_backbone(str(tmp_path / "timm.pth"), arch=arch)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (backbone.mean, backbone.std))
        with torch.no_grad():
            expected = module((image - mean) / std)
        torch.testing.assert_close(backbone.extract(image, {"cls"}).cls, expected)


def test_satellite_weights_have_their_own_pixels(tmp_path: Path):
    torch.save(dinov3(drawn(DinoV3(ROTARY), 3), True), tmp_path / "dinov3_vitl16_pretrain_sat493m-eadcf0ff.pth")
    backbone = load_backbone(str(tmp_path / "dinov3_vitl16_pretrain_sat493m-eadcf0ff.pth"))
    assert backbone.mean == (0.430, 0.411, 0.296)
    assert backbone.std == (0.213, 0.156, 0.143)


def test_a_dinov3_file_saved_as_ours_comes_back(tmp_path: Path):
    from dino_dense.backbone.checkpoints import save_backbone

    body = DinoV3(ROTARY)
    weights = drawn(body, 3)
    body.load_state_dict(weights)
    save_backbone(tmp_path / "a.safetensors", body)
    assert same(weights_of(tmp_path / "a.safetensors"), weights)


def test_distilled_deit_opens_as_timms(tmp_path: Path):
    module = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=0)
    heads = {"head_dist.weight": torch.zeros(3, 192), "head.weight": torch.zeros(3, 192)}
    torch.save({"model": module.state_dict() | heads}, tmp_path / "deit.pth")
    assert same(weights_of(tmp_path / "deit.pth"), module.state_dict())


def test_resnet_in_parts_in_vissl_and_in_dino(tmp_path: Path):
    module = build_module("resnet50")
    weights = drawn(module, 1)
    names = {"conv1": "0", "bn1": "1", **{f"layer{index}": str(index + 3) for index in (1, 2, 3, 4)}}
    parts = {".".join([names[(words := name.split("."))[0]], *words[1:]]): value for name, value in weights.items()}
    forms = {
        "lightly": lightning(under("backbone.", parts)),
        "vissl": nested("classy_state_dict/base_model/model/trunk", under("_feature_blocks.", weights)),
        "zoo": {"model_state_dict": under("_feature_blocks.", weights)},
        "dino": {"teacher": under("module.backbone.", weights) | under("module.head.", JUNK)},
        "torchvision": weights | {"fc.weight": torch.zeros(3)},
    }
    for form, content in forms.items():
        torch.save(content, tmp_path / f"{form}.pth")
        assert same(weights_of(tmp_path / f"{form}.pth"), weights), form


def test_a_resnet_for_small_images_is_refused(tmp_path: Path):
    weights = build_module("resnet18").state_dict() | {"conv1.weight": torch.zeros(64, 3, 3, 3)}
    torch.save(weights, tmp_path / "cifar.pth")
    with pytest.raises(CheckpointError, match="first convolution is 3x3"):
        load_file(tmp_path / "cifar.pth")


def test_xcit_and_convnext_of_their_authors_open(tmp_path: Path):
    body = build_module("xcit_nano_12_p16_224")
    weights = drawn(body, 1)
    authors = {name.replace("pos_embed.", "pos_embeder."): value for name, value in weights.items()}
    for index in range(2):
        for kind in ("weight", "bias"):
            own = [authors.pop(f"cls_attn_blocks.{index}.attn.{part}.{kind}") for part in "qkv"]
            authors[f"cls_attn_blocks.{index}.attn.qkv.{kind}"] = torch.cat(own)
    torch.save({"teacher": under("backbone.", authors)}, tmp_path / "xcit.pth")
    assert same(weights_of(tmp_path / "xcit.pth"), weights)
    weights = drawn(build_module("convnext_tiny"), 1)
    torch.save(convnext_of_dinov3(weights), tmp_path / "convnext.pth")
    assert same(weights_of(tmp_path / "convnext.pth"), weights)
    torch.save(convnext_of_transformers(convnext_of_dinov3(weights)), tmp_path / "hf.pth")
    assert same(weights_of(tmp_path / "hf.pth"), weights)


def convnext_of_dinov3(weights: Tensors) -> Tensors:
    result = {}
    for name, value in weights.items():
        name = re.sub(r"^stem\.", "downsample_layers.0.", name)
        name = re.sub(r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1.", name)
        name = re.sub(r"^stages\.(\d)\.blocks\.", r"stages.\1.", name)
        name = name.replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv").replace("head.norm", "norm")
        result[name] = value
    return result | {"norms.3.weight": result["norm.weight"], "norms.3.bias": result["norm.bias"]}


def convnext_of_transformers(weights: Tensors) -> Tensors:
    result = {}
    for name, value in weights.items():
        name = re.sub(r"^downsample_layers\.(\d)\.", r"stages.\1.downsample_layers.", name)
        name = re.sub(r"^stages\.(\d)\.(\d+)\.", r"stages.\1.layers.\2.", name)
        name = name.replace("dwconv", "depthwise_conv").replace("pwconv", "pointwise_conv")
        name = re.sub(r"^norm\.", "layer_norm.", name.replace(".norm.", ".layer_norm."))
        if not name.startswith("norms."):
            result[name] = value
    return result


def test_a_bodys_own_part_with_the_name_of_a_head_is_kept(tmp_path: Path):
    """SAM's image encoder has a neck."""
    body = timm.create_model("samvit_base_patch16_224", num_classes=0, depth=1, embed_dim=64, num_heads=1)
    weights = drawn(body, 1)
    assert any(name.startswith("neck.") for name in weights)
    chosen = without_heads(weights | under("projector.", JUNK), set(weights))
    assert chosen.keys() == weights.keys()


def test_parts_of_a_distributed_training_are_refused_by_name(tmp_path: Path):
    torch.save({"model": {"teacher.backbone.flat_param_0": torch.zeros(3)}}, tmp_path / "model.rank_0.pth")
    with pytest.raises(CheckpointError, match=r"teacher_checkpoint\.pth"):
        load_file(tmp_path / "model.rank_0.pth")
    (tmp_path / "dcp").mkdir()
    (tmp_path / "dcp" / ".metadata").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"distributed checkpoint.*teacher_checkpoint\.pth"):
        load_file(tmp_path / "dcp")
