"""Checkpoint files to networks: published DINO and DINOv2 files, run folders, our own files.

Files from strangers are read without running code, and a file that does not fit entirely is an error.
"""

import argparse
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dino_dense.backbone.dino_vit import HEAD_DIM, VIT_NAME, VIT_SIZES, ViTShape, build_module, describe, rebuild
from dino_dense.checkpoint import (
    STATE_FILE,
    TEACHER_FILE,
    CheckpointError,
    Weights,
    first_line,
    read_tensors,
    sha256_of_file,
    write_tensors,
)


def save_backbone(path: Path | str, module: nn.Module, *, extra: Mapping[str, Any] | None = None) -> None:
    """Write a body as one file that `load_backbone` opens. `extra` is kept in the metadata (step, run, ...)."""
    metadata = {"architecture": describe(module), **(extra or {})}
    write_tensors(path, module.state_dict(), metadata)


# --- Any file -> a body --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoadedFile:
    """A body with its weights in place, and where they came from."""

    module: nn.Module
    path: Path
    sha256: str
    metadata: dict[str, Any]


def load_file(path: Path | str, *, arch: str | None = None, network: str = "teacher") -> LoadedFile:
    """Open any checkpoint we know and put every weight in its place.

    Args:
        path: our file or run folder, a published DINO / DINOv2 `.pth` (backbone alone, or the full training
            file), or another tool's safetensors with the same names.
        arch: overrides the architecture read from the file; any name that `build_module` takes.
        network: "teacher" or "student", for files that hold both.

    Raises:
        FileNotFoundError: no such file, or a folder without a checkpoint in it.
        CheckpointError: the file is unsafe or damaged, of unknown architecture, or does not fit: then the
            message holds a table of the matched, missing, unexpected and reshaped names.
    """
    path = find_weights(Path(path), network)
    if path.suffix == ".safetensors":
        tensors, metadata = read_tensors(path)
    else:
        tensors, metadata = _read_pickled(path), {}
    weights = _backbone_weights(tensors, path, network)
    module = _empty_body(weights, metadata, arch, path)
    if isinstance(getattr(module, "shape", None), ViTShape):
        weights = to_our_names(weights)
    check_fit(module, weights, path, arch)
    module.load_state_dict(weights, strict=True)
    broken = [name for name, weight in module.named_parameters() if not weight.isfinite().all()]
    if broken:
        raise CheckpointError(
            f"{path}: {len(broken)} of its weights are not finite numbers ({_some(broken)}). "
            "The training diverged: take an earlier checkpoint."
        )
    return LoadedFile(module, path, sha256_of_file(path), metadata)


def find_weights(path: Path, network: str = "teacher") -> Path:
    """The weights file that a path names: itself, or the one in a run folder that holds this network."""
    if path.is_file():
        return path
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such checkpoint. Give a file or run folder, or timm:NAME, hf-hub:NAME, random:NAME."
        )
    for name in (TEACHER_FILE, "model.safetensors") if network == "teacher" else (STATE_FILE,):
        if (path / name).is_file():
            return path / name
    found = ", ".join(sorted(child.name for child in path.iterdir())[:8]) or "nothing"
    expected = TEACHER_FILE if network == "teacher" else STATE_FILE
    raise FileNotFoundError(f"{path}: a run folder holds {expected} (for the {network}); found {found}.")


def _read_pickled(path: Path) -> Any:
    """A `.pth` file's content, read by torch's restricted unpickler.

    DINO's full files hold their `argparse.Namespace` of options, so that one harmless class is let through.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = re.search(r"GLOBAL ([\w.]+)", str(error))
        if reason is None:
            raise CheckpointError(f"{path}: not a PyTorch checkpoint, or damaged ({first_line(error)}).") from None
        raise CheckpointError(
            f"{path}: holds the Python object {reason[1]}, which could run code when read. Expected tensors only. "
            "If you trust its author, load it yourself, keep the state dict and save that."
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(f"{path}: cut short or not a checkpoint ({first_line(error)}). Copy it again.") from None


# Wrappers that training code puts around a backbone, outermost first (DistributedDataParallel, torch.compile,
# MultiCropWrapper, DINOv2's ModuleDict, ours).
PREFIXES = ("module.", "_orig_mod.", "backbone.", "encoder.")


# Parts of a training file that are not the backbone: projection heads, classifiers, DINOv2's masking token. But
# `head.norm` is the last norm of timm's ConvNeXt.
NOT_BACKBONE = re.compile(
    r"(head\.(?!norm\.)|(heads|fc|dino_head|ibot_head|projection_head|prototypes)\.).*|mask_token"
)


def _backbone_weights(content: Any, path: Path, network: str) -> Weights:
    """Only the backbone's tensors, under the body's own names."""
    start = f"{network}.backbone."
    has_network = isinstance(content, Mapping) and (
        network in content or any(str(n).startswith(start) for n in content)
    )
    if network != "teacher" and not has_network:
        raise CheckpointError(f"{path}: holds no {network}. Leave out --network, or name a whole training file.")
    content = _choose_network(content, network)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: expected a state dict, found a {type(content).__name__}.")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if any(name.startswith(start) for name in tensors):  # our training state
        tensors = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
    weights = {_strip(name): value for name, value in tensors.items()}
    weights = {name: value for name, value in weights.items() if not NOT_BACKBONE.fullmatch(name)}
    if not weights:
        keys = ", ".join(list(map(str, content))[:6])
        raise CheckpointError(f"{path}: no backbone weights in it; its entries are {keys or 'none'}.")
    return weights


def _choose_network(content: Any, network: str) -> Any:
    for key in (network, "model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            return _choose_network(content[key], network)
    return content


def _strip(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    # DINOv2 trains in chunks, "blocks.<chunk>.<block>."; block numbers are global. (MobileNet's "blocks.0.0.bn1" stay.)
    return re.sub(r"^blocks\.\d+\.(\d+)\.(?=(norm1|norm2|attn|mlp|ls1|ls2)\.)", r"blocks.\1.", name)


def _empty_body(weights: Weights, metadata: dict[str, Any], arch: str | None, path: Path) -> nn.Module:
    if arch is not None:
        return _named_body(arch, weights)
    if "architecture" in metadata:
        try:
            with torch.device("meta"):  # no memory before the weights are seen to fit
                check_fit(rebuild(metadata["architecture"]), weights, path)
            return rebuild(metadata["architecture"])
        except CheckpointError:
            raise
        except ValueError as error:
            raise CheckpointError(f"{path}: {error} Give its architecture with --arch.") from None
    if "blocks.0.attn.qkv.weight" in weights and "pos_embed" in weights:
        return rebuild({"body": "vit", **vars(infer_vit_shape(weights, path))})
    resnet = _resnet_name(weights)
    if resnet is not None:
        return build_module(resnet)
    hint = "Give its architecture with --arch (any timm name)."
    if any("storage_tokens" in name or "rope_embed" in name for name in weights):
        hint = "It looks like DINOv3, whose files timm converts: use timm:vit_small_patch16_dinov3 and its like."
    raise CheckpointError(f"{path}: unknown architecture; its names begin {_some(weights)}. {hint}")


def _named_body(arch: str, weights: Weights) -> nn.Module:
    """The architecture asked for, with the position grid the file has (a name says little about it)."""
    match = VIT_NAME.fullmatch(arch.partition(".")[0])
    if match and "pos_embed" in weights:
        side = round((weights["pos_embed"].shape[1] - 1) ** 0.5)
        return build_module(arch, img_size=side * int(match["patch"]))
    return build_module(arch)


def infer_vit_shape(weights: Mapping[str, Tensor], path: Path | str = "checkpoint") -> ViTShape:
    """Read a ViT's architecture off its weights (published or timm names).

    Raises:
        CheckpointError: a part is missing, the position table is not a square grid, or the size is none of
            DINO's, so that the number of heads is unknown.
    """
    needed = ("patch_embed.proj.weight", "cls_token", "norm.weight", "blocks.0.mlp.fc2.weight")
    absent = [name for name in needed if name not in weights and name.replace("fc2", "w3") not in weights]
    if absent:
        raise CheckpointError(f"{path}: no {', '.join(absent)} in it; expected a complete vision transformer.")
    embed_dim, _, patch, _ = weights["patch_embed.proj.weight"].shape
    depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    if (embed_dim, depth) not in VIT_SIZES.values():
        raise CheckpointError(
            f"{path}: a transformer of {embed_dim} channels and {depth} blocks is none of DINO's sizes "
            f"({', '.join(f'{size} {dims}' for size, dims in VIT_SIZES.items())}), so its number of heads is unknown. "
            "Give its architecture with --arch."
        )
    registers = weights.get("register_tokens", weights.get("reg_token"))
    count = 0 if registers is None else registers.shape[1]
    positions = weights["pos_embed"].shape[1]
    side = round(positions**0.5)  # timm leaves out the class token's position in some; both are square +0 or +1
    if side**2 not in (positions, positions - 1):
        raise CheckpointError(
            f"{path}: pos_embed has {positions} positions; expected a square grid, with or without the class token."
        )
    swiglu = "blocks.0.mlp.w12.weight" in weights
    hidden = weights["blocks.0.mlp.w12.weight" if swiglu else "blocks.0.mlp.fc1.weight"].shape[0]
    swiglu = swiglu or weights["blocks.0.mlp.fc2.weight"].shape[1] * 2 == hidden
    shape = ViTShape(
        embed_dim=embed_dim,
        depth=depth,
        num_heads=embed_dim // HEAD_DIM,
        patch_size=patch,
        grid_size=side,
        registers=count,
        layer_scale="blocks.0.ls1.gamma" in weights,
        mlp="swiglu" if swiglu else "gelu",
        mlp_hidden=None if hidden == 4 * embed_dim else hidden,
    )
    if count:  # DINOv2's register models drop the 0.1 and antialias (dinov2/hub/backbones.py)
        shape = replace(shape, position_offset=0.0, position_antialias=True)
    return shape


def to_our_names(weights: Weights) -> Weights:
    """Published and timm names -> the names of `DinoViT`."""
    renames = {"register_tokens": "reg_token"}
    ours = {
        re.sub(r"\.mlp\.w3\.", ".mlp.fc2.", re.sub(r"\.mlp\.w12\.", ".mlp.fc1.", renames.get(name, name))): value
        for name, value in weights.items()
    }
    table = ours.get("pos_embed")
    if table is not None and round(table.shape[1] ** 0.5) ** 2 == table.shape[1]:
        # timm adds the class token's position into the token itself; ours keeps a (now zero) position for it.
        ours["pos_embed"] = torch.cat([torch.zeros_like(table[:, :1]), table], dim=1)
    return ours


# Blocks in each stage, and whether they are bottlenecks -> the architecture (He et al. 2016, table 1).
RESNETS = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
}


def _resnet_name(weights: Mapping[str, Tensor]) -> str | None:
    stages: list[int] = []
    for stage in (1, 2, 3, 4):
        blocks = {name.split(".")[1] for name in weights if name.startswith(f"layer{stage}.")}
        stages.append(len(blocks))
    return RESNETS.get((tuple(stages), "layer1.0.conv3.weight" in weights))  # type: ignore[arg-type]


# --- Does it fit? --------------------------------------------------------------------------------------------


def check_fit(module: nn.Module, weights: Mapping[str, Tensor], path: Path | str, arch: str | None = None) -> None:
    """Raise with a table of names unless every weight of the body is in the file, and nothing else is."""
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
