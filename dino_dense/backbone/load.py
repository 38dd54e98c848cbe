"""Open a backbone by its name or file: the only file that knows `timm:`, `hf-hub:`, `random:` and `dino_dense:`."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from dino_dense.backbone.architectures import Positions, has_official_positions, infer_vit_shape, to_our_names
from dino_dense.backbone.backbone import Backbone, Features, Triple
from dino_dense.backbone.checkpoints import LoadedFile, check_fit, load_file
from dino_dense.backbone.dino_vit import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    DinoViT,
    ViTShape,
    build_module,
    check_timm_name,
    create_timm,
    describe,
    rebuild,
)
from dino_dense.checkpoint import INDEX_SUFFIX, CheckpointError, sha256_of_weights, shard_names

__all__ = ["Backbone", "Features", "build_module", "load_backbone"]


OFFICIAL = "timm/"
"""Owner of the repositories that timm itself distributes."""
HUBS = {"timm": "", "hf-hub": "hf-hub:", "hf_hub": "hf-hub:"}
"""Prefix of a name -> timm's prefix for the source of weights."""
HUB_NAMES = {"hf_hub": "hf-hub"}
"""Another spelling of a prefix -> its usual spelling."""
OURS = "dino_dense"
"""Prefix of the names of networks that this package ships."""
WEIGHTS = Path(__file__).parents[1] / "weights"
"""A folder of NAME.safetensors, each with a model card NAME.md."""


def split_name(spec: str) -> tuple[str, str]:
    """Split a network's name: ("random", "dino_dense", "timm" or "hf-hub", NAME); ("", "") for a path."""
    kind, _, name = str(spec).partition(":")
    if not name or kind not in ("random", OURS, *HUBS):
        return "", ""
    return (HUB_NAMES.get(kind, kind), name)


def shipped_names() -> list[str]:
    """The names of the networks that this package ships."""
    return [f"{OURS}:{file.stem}" for file in sorted(WEIGHTS.glob("*.safetensors"))]


def shipped_file(name: str) -> Path:
    """The file of a network that this package ships.

    Raises:
        ValueError: there is none of this name.
    """
    if f"{OURS}:{name}" not in shipped_names():
        raise ValueError(f"{OURS}:{name}: no such network; this package has {', '.join(shipped_names()) or 'none'}.")
    return WEIGHTS / f"{name}.safetensors"


def random_name(architecture: str) -> str:
    """The name of a network of random weights."""
    return f"random:{architecture}"


def load_backbone(
    spec: str,
    *,
    arch: str | None = None,
    seed: int = 0,
    network: str = "auto",
    heads: int | None = None,
    positions: Positions = "official",
) -> Backbone:
    """Open a backbone.

    Args:
        spec: a checkpoint file or run folder (see `checkpoint.load_file`); `dino_dense:NAME` for a network that this
            package ships (see `shipped_names`); `timm:NAME` or `hf-hub:NAME` for
            pretrained weights, the only case that downloads; `random:NAME` for random weights.
        arch: overrides the architecture inferred from a file.
        seed: of random weights; unused otherwise.
        network: for files with several networks: "auto" (the network that the tool's authors evaluate), "teacher",
            "student", or the prefix of its names.
        heads: attention heads, if a file does not state them.
        positions: rule that resamples a file's position table: "official" or "hf" (see `load_file`).

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: the file cannot be used (see `checkpoint.load_file`), or a download failed.
        ValueError: unknown architecture name.
    """
    kind, name = split_name(spec)
    weights: Path | None
    if kind == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = build_module(name, num_heads=heads)
        backbone = _in_memory(module, _with_heads(name.partition(".")[0], heads), spec)
        backbone.metadata["timm"] = timm.__version__  # another version may draw other weights from the same seed
        return _with_positions(backbone, positions)
    if kind == OURS:
        weights = shipped_file(name)
    elif kind:
        if kind == "timm":
            check_timm_name(name)
        weights = transformers_weights(name) if kind == "hf-hub" else None
        if weights is None:
            backbone = _pretrained(HUBS[kind] + name, spec)
            backbone.metadata |= {"hub": True, "official": kind == "timm" or name.startswith(OFFICIAL)}
            return _with_positions(backbone, positions)
    else:
        weights = Path(spec)
    loaded = load_file(weights, arch=arch, network=network, heads=heads, positions=positions)
    backbone = _from_file(loaded, spec, heads)
    if heads is not None and arch is None and backbone.num_heads != heads:
        own = f"has {backbone.num_heads} by its architecture" if backbone.num_heads else "has none"
        raise CheckpointError(f"{spec}: --heads {heads} for {backbone.name}, which {own}. Leave --heads out.")
    return _with_positions(backbone, positions)


def _from_file(loaded: LoadedFile, spec: str, heads: int | None) -> Backbone:
    shape = getattr(loaded.module, "shape", None)
    name = shape.name if shape is not None else describe(loaded.module)["name"]
    name = name if isinstance(shape, ViTShape) else _with_heads(name, heads)
    return Backbone(
        loaded.module,
        name=name,
        sha256=loaded.sha256,
        spec=spec,
        mean=_pixel_statistics(loaded.metadata, "mean", IMAGENET_MEAN, spec),
        std=_pixel_statistics(loaded.metadata, "std", IMAGENET_STD, spec),
        metadata=loaded.metadata,
        notes=loaded.notes,
    )


def _with_positions(backbone: Backbone, positions: Positions) -> Backbone:
    """The backbone with the wanted rule for positions, and a note where it has none that could be changed."""
    module = backbone.module
    if positions == "official" or getattr(module, "pos_embed", None) is None:
        return backbone
    if not isinstance(module, DinoViT):
        backbone.notes += (f"positions {positions} has no effect: {backbone.name} resamples positions as timm does",)
    elif module.shape.position_offset or (module.shape.position_antialias and not module.shape.registers):
        name = module.shape.name
        module.shape = replace(module.shape, position_offset=0.0, position_antialias=bool(module.shape.registers))
        is_named_by_shape = backbone.name == name
        backbone.name = module.shape.name if is_named_by_shape else f"{backbone.name}_plainpos"
    return backbone


def _pixel_statistics(metadata: dict[str, Any], key: str, default: Triple, spec: str) -> Triple:
    """Pixel statistics from a fine-tuned file's metadata; CheckpointError for impossible values."""
    values = metadata.get(key, default)
    numbers = isinstance(values, list | tuple) and all(isinstance(value, int | float) for value in values)
    if not numbers or len(values) != 3 or not all(abs(value) <= 1 and (key == "mean" or value > 0) for value in values):
        raise CheckpointError(f"{spec}: its metadata give {values!r} as the pixels' {key}, expected three numbers.")
    return tuple(map(float, values))  # type: ignore[return-value]


def _with_heads(name: str, heads: int | None) -> str:
    """The name with the user's heads: they change the features, and caches know features by name."""
    return name if heads is None else f"{name}_heads{heads}"


def transformers_weights(name: str) -> Path | None:
    """The weights file of a transformers model from the Hugging Face hub, next to its configs; None for timm's models.

    Args:
        name: OWNER/NAME, with @REVISION for another revision than the newest.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    repository, _, revision = name.partition("@")

    def fetched(file: str) -> Path:
        return Path(hf_hub_download(repository, file, revision=revision or None))

    try:
        config = json.loads(fetched("config.json").read_text())
        if "architecture" in config or "model_type" not in config:
            return None
        with contextlib.suppress(EntryNotFoundError):
            fetched("preprocessor_config.json")
        for file in ("model.safetensors", f"model.safetensors{INDEX_SUFFIX}"):
            with contextlib.suppress(EntryNotFoundError):
                weights = fetched(file)
                for shard in shard_names(weights) if file.endswith(INDEX_SUFFIX) else ():
                    fetched(shard)
                return weights
        return fetched("pytorch_model.bin")
    except (OSError, ValueError, HfHubHTTPError):
        return None  # timm's own attempt explains the error


def _pretrained(name: str, spec: str) -> Backbone:
    try:
        module = create_timm(name, pretrained=True)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{spec}: its pretrained weights could not be loaded ({reason}). Check the name and the network, "
            f"or write random:{name} if random weights are what you want."
        ) from error
    timm_config: Any = module.pretrained_cfg
    name = ".".join(part for part in (timm_config["architecture"], timm_config.get("tag")) if part)
    if has_official_positions(name) and isinstance(module, VisionTransformer):
        module = with_dino_positions(module, spec)
    return _in_memory(module, name, spec)


def with_dino_positions(module: VisionTransformer, spec: str) -> DinoViT:
    """The same weights as a `DinoViT`: DINO's and DINOv2's numbers need their position interpolation."""
    weights = module.state_dict()
    body = rebuild({"body": "vit", **vars(infer_vit_shape(weights, spec))})
    weights = to_our_names(weights)
    check_fit(body, weights, spec)
    body.load_state_dict(weights, strict=True)
    body.pretrained_cfg = module.pretrained_cfg
    return body  # type: ignore[return-value]


def _in_memory(module: nn.Module, name: str, spec: str) -> Backbone:
    timm_config = getattr(module, "pretrained_cfg", None) or {}
    return Backbone(
        module,
        name=name,
        sha256=sha256_of_weights(module),
        spec=spec,
        mean=tuple(timm_config.get("mean", IMAGENET_MEAN)),  # type: ignore[arg-type]
        std=tuple(timm_config.get("std", IMAGENET_STD)),  # type: ignore[arg-type]
    )
