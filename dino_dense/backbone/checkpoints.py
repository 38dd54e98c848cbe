"""Open a checkpoint as a network: published files, run folders, training tools' checkpoints, our own files.

Unknown files are read without running code. A file with a missing or surplus weight is an error.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dino_dense.backbone.architectures import (
    Hints,
    Positions,
    Recognized,
    has_official_positions,
    infer_vit_shape,
    recognize,
    to_our_names,
)
from dino_dense.backbone.dino_vit import VIT_NAME, DinoViT, build_module, describe, rebuild
from dino_dense.backbone.layouts import Chosen, NoNetworkError, choose_network, tensors_of
from dino_dense.backbone.names import to_published_names, without_heads
from dino_dense.backbone.unpickle import StandIn, Unpickled, objects_named, read_pickled
from dino_dense.checkpoint import (
    INDEX_SUFFIX,
    STATE_FILE,
    TEACHER_FILE,
    CheckpointError,
    Weights,
    read_shards,
    read_tensors,
    sha256_of_file,
    write_tensors,
)


def save_backbone(path: Path | str, module: nn.Module, *, extra: Mapping[str, Any] | None = None) -> None:
    """Write a network as one file that `load_backbone` opens, with `extra` in its metadata (step, run, ...)."""
    metadata = {"architecture": describe(module), **(extra or {})}
    write_tensors(path, module.state_dict(), metadata)


# --- Any file -> a body --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoadedFile:
    """A network with its weights, and their origin."""

    module: nn.Module
    path: Path
    sha256: str
    metadata: dict[str, Any]
    notes: tuple[str, ...] = ()
    """Choices and assumptions, for the user."""


def load_file(
    path: Path | str,
    *,
    arch: str | None = None,
    network: str = "auto",
    heads: int | None = None,
    positions: Positions = "official",
) -> LoadedFile:
    """Open a checkpoint of any known form, with every weight assigned.

    Args:
        path: our file or run folder; a published `.pth` of DINO, DINOv2, DINOv3, iBOT, MAE, MoCo v3, XCiT, ConvNeXt or
            ResNet; a folder or file of transformers; a training tool's checkpoint (`layouts.RULES`).
        arch: overrides the architecture read from the file; any name that `build_module` takes.
        network: for files with several networks: "auto" (the network that the tool's authors evaluate), "teacher",
            "student", or the common prefix of a network's parameter names.
        heads: attention heads, if the file does not state them.
        positions: rule that resamples the position table to other image sizes: "official" (DINO's and DINOv2's
            authors), or "hf" (transformers).

    Raises:
        FileNotFoundError: no such file, or no checkpoint in the folder.
        CheckpointError: the file is damaged, of unknown architecture, or does not fit. If it does not fit, the message
            has a table of the matched, missing, unexpected and reshaped names.
    """
    path = find_weights(Path(path), network)
    metadata: dict[str, Any] = {}
    if path.name.endswith(INDEX_SUFFIX):
        read = Unpickled(read_shards(path))
    elif path.suffix == ".safetensors":
        weights, metadata = read_tensors(path)
        read = Unpickled(weights)
    else:
        read = read_pickled(path)
    expected = _expected_names(arch, metadata)
    with objects_named(path, read.objects):
        chosen = _choose(read.content, path, network, expected[:3])
        hints = replace(hints_of(path, read.content, chosen.tool), heads=heads, positions=positions)
        weights = without_heads(to_published_names(chosen.weights), set(expected))
        recognized = _body(weights, metadata, arch, hints, path)
        module, weights = recognized.module, recognized.weights
        check_fit(module, weights, path, arch)
    module.load_state_dict(weights, strict=True)
    broken = [name for name, weight in module.named_parameters() if not weight.isfinite().all()]
    if broken:
        raise CheckpointError(
            f"{path}: {len(broken)} of its weights are not finite numbers ({_some(broken)}). "
            "The training diverged: take an earlier checkpoint."
        )
    own = "architecture" in metadata
    notes = tuple(note for note in (chosen.note, recognized.note) if note and not own)
    return LoadedFile(module, path, sha256_of_file(path), metadata | pixels_of(path), notes)


def find_weights(path: Path, network: str = "teacher") -> Path:
    """The weights file of a path: the file itself, or the file of this network in a run folder."""
    if path.is_file():
        return path
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such checkpoint. Give a file or run folder, or timm:NAME, hf-hub:NAME, dino_dense:NAME, "
            "random:NAME."
        )
    for name in (STATE_FILE,) if network == "student" else (TEACHER_FILE, *WEIGHT_FILES):
        if (path / name).is_file():
            return path / name
    names = ", ".join(sorted(child.name for child in path.iterdir())[:8]) or "nothing"
    if (path / ".metadata").is_file():
        raise CheckpointError(
            f"{path}: a distributed checkpoint of PyTorch (one part a process). Give the teacher_checkpoint.pth that "
            "the training writes for its evaluations."
        )
    indices = sorted(path.glob(f"*.safetensors{INDEX_SUFFIX}"))
    if len(indices) == 1:
        return indices[0]
    expected = STATE_FILE if network == "student" else TEACHER_FILE
    kind = "student" if network == "student" else "teacher"
    raise FileNotFoundError(f"{path}: a run folder holds {expected} (for the {kind}); found {names}.")


WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of weights files in a folder of transformers or timm."""


def _choose(content: Any, path: Path, network: str, expected: Sequence[str]) -> Chosen:
    """One network of the file's content; CheckpointError without one."""
    if not isinstance(content, Mapping | StandIn):
        raise CheckpointError(f"{path}: expected a state dict, found a {type(content).__name__}.")
    if any("flat_param" in name or name.endswith("ShardedTensor") for name in map(str, tensors_of(content))):
        raise CheckpointError(
            f"{path}: one part of a network that FSDP has spread over several files. Give teacher_checkpoint.pth."
        )
    try:
        chosen = choose_network(content, network, expected)
    except NoNetworkError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if not without_heads(to_published_names(chosen.weights)):
        keys = ", ".join(list(map(str, content if isinstance(content, Mapping) else ()))[:6])
        raise CheckpointError(f"{path}: no backbone weights in it; its entries are {keys or 'none'}.")
    return chosen


def _expected_names(arch: str | None, metadata: Mapping[str, Any]) -> list[str]:
    """Names of the network's parameters, if `arch` or the metadata state its architecture."""
    try:
        with torch.device("meta"):
            if arch is not None:
                return list(build_module(arch).state_dict())
            return list(rebuild(metadata["architecture"]).state_dict()) if "architecture" in metadata else []
    except ValueError:
        return []


def _body(weights: Weights, metadata: dict[str, Any], arch: str | None, hints: Hints, path: Path) -> Recognized:
    """An empty network, and the weights under its names."""
    if arch is not None and "dinov3" not in arch:
        return _in_names_of(_named_body(arch, weights, hints.heads), weights)
    if arch is None and "architecture" in metadata:
        description = metadata["architecture"]
        if hints.heads is not None and isinstance(description, dict):
            description = description | {"num_heads": hints.heads}
        try:
            with torch.device("meta"):  # no memory before the weights are known to fit
                empty = _in_names_of(rebuild(description), weights)
                check_fit(empty.module, empty.weights, path)
            return Recognized(rebuild(description), empty.weights)
        except CheckpointError:
            raise
        except ValueError as error:
            raise CheckpointError(f"{path}: {error} Give its architecture with --arch.") from None
    recognized = recognize(weights, hints, path)
    if arch is not None:  # DINOv3's names are not timm's, so the network class is ours
        named = getattr(getattr(recognized.module, "shape", None), "name", None)
        if named != arch.partition(".")[0].removesuffix("_qkvb"):
            check_fit(build_module(arch), recognized.weights, path, arch)
    return recognized


def _in_names_of(module: nn.Module, weights: Weights) -> Recognized:
    return Recognized(module, to_our_names(weights) if isinstance(module, DinoViT) else weights)


def _named_body(arch: str, weights: Weights, heads: int | None) -> nn.Module:
    """The requested architecture with the position grid of the file (a name says little about it)."""
    match = VIT_NAME.fullmatch(arch.partition(".")[0])
    if match is None:
        module = build_module(arch, num_heads=heads)
        return _with_official_positions(module, arch, weights)
    side = None
    if "pos_embed" in weights:
        side = round((weights["pos_embed"].shape[1] - 1) ** 0.5) * int(match["patch"])
    return build_module(arch, img_size=side, num_heads=heads)


def _with_official_positions(module: nn.Module, arch: str, weights: Weights) -> nn.Module:
    """Our body in place of timm's for a network of DINO or DINOv2, whose authors have their own rule for positions.

    Its position grid is the file's. A file of no such grid gets timm's body, and the table of what does not fit.
    """
    if not (isinstance(module, VisionTransformer) and has_official_positions(arch) and "pos_embed" in weights):
        return module
    shape = infer_vit_shape(module.state_dict(), arch, module.blocks[0].attn.num_heads)
    side = round((weights["pos_embed"].shape[1] - 1) ** 0.5)
    return rebuild({"body": "vit", **vars(replace(shape, grid_size=side))})


# --- What stands beside the weights --------------------------------------------------------------------------


def hints_of(path: Path, content: Any, tool: str) -> Hints:
    """Hints from a folder's config.json, or from the options that a training tool keeps in its file."""
    config = _config_beside(path)
    stated = config.get("num_attention_heads", config.get("num_heads"))
    args = content.get("args") if isinstance(content, Mapping) else None
    options = args if isinstance(args, Mapping) else getattr(args, "state", None) or getattr(args, "__dict__", {})
    stated = stated or (options.get("num_heads") if isinstance(options, Mapping) else None)
    base = config.get("rope_theta")
    return Hints(
        stated_heads=stated if isinstance(stated, int) else None,
        tool=tool,
        rope_base=float(base) if isinstance(base, int | float) else None,
    )


def pixels_of(path: Path) -> dict[str, Any]:
    """Pixel mean and deviation from a folder's preprocessor_config.json (transformers) or config.json (timm), or for a
    published name; {} if none.

    DINOv3's satellite weights have their own (dinov3/README.md).
    """
    if "sat493m" in path.name:
        return {"mean": [0.430, 0.411, 0.296], "std": [0.213, 0.156, 0.143]}
    config = _json_beside(path, "preprocessor_config.json")
    stated = _config_beside(path)
    stated = stated.get("pretrained_cfg", stated)  # of timm, which writes its parts into one or the other
    for mean, std in (
        (config.get("image_mean"), config.get("image_std")),
        *((part.get("mean"), part.get("std")) for part in (stated,) if isinstance(part, dict)),
    ):
        if isinstance(mean, list) and isinstance(std, list):
            return {"mean": mean, "std": std}
    return {}


def _config_beside(path: Path) -> dict[str, Any]:
    known = path.name in WEIGHT_FILES or path.name.endswith(INDEX_SUFFIX)
    return _json_beside(path, "config.json") if known else {}


def _json_beside(path: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads((path.parent / name).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


# --- Does it fit? --------------------------------------------------------------------------------------------


def check_fit(module: nn.Module, weights: Mapping[str, Tensor], path: Path | str, arch: str | None = None) -> None:
    """Raise with a table of names unless the file has exactly the weights of the network."""
    want = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    have = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    missing = sorted(want.keys() - have.keys())
    unexpected = sorted(have.keys() - want.keys())
    reshaped = sorted(name for name in want.keys() & have.keys() if want[name] != have[name])
    if not (missing or unexpected or reshaped):
        return
    matched = len(want) - len(missing) - len(reshaped)
    rows = [
        ("matched", matched, ""),
        ("missing", len(missing), _some(missing)),
        ("unexpected", len(unexpected), _some(unexpected)),
        (
            "reshaped",
            len(reshaped),
            _some(f"{n} {have[n]} in the file, {want[n]} expected" for n in reshaped),
        ),
    ]
    table = "\n".join(f"  {kind:<11}{count:>5}  {names}".rstrip() for kind, count, names in rows)
    cause = f"--arch {arch}" if arch else "the architecture read from it"
    raise CheckpointError(
        f"{path}: its weights do not fit {cause}. Nothing was loaded.\n{table}\n"
        "  Leave out --arch, name the right one, or use a complete backbone file."
    )


def _some(names: Iterable[str], most: int = 4) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f", ... ({len(names) - most} more)" if len(names) > most else "")
