"""Our own file format: tensors and JSON metadata in one safetensors file, whole and checked."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dino_dense.files import replacing

METADATA_KEY = "dino_dense"


CHECKSUM_KEY = "dino_dense.sha256"


FORMAT_VERSION = 1


TEACHER_FILE = "teacher.safetensors"


STATE_FILE = "last.safetensors"


Weights = dict[str, Tensor]


class CheckpointError(ValueError):
    """A checkpoint that cannot be used as it is. The message names the file and says what to do."""


# --- Our own format ------------------------------------------------------------------------------------------


def write_tensors(path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and JSON metadata as one safetensors file, whole or not at all (`files.replacing`).

    The file carries a SHA-256 of its tensors and metadata, which `read_tensors` verifies.

    Raises:
        WriteError: the disk is full or the folder cannot be written; what was at `path` before is kept.
    """
    text = json.dumps({"format": FORMAT_VERSION, **metadata})
    contiguous = _contiguous(tensors)
    _save(path, contiguous, {METADATA_KEY: text, CHECKSUM_KEY: _digest(contiguous, text)})


def write_plain_tensors(path: Path | str, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as one safetensors file for other programs, whole or not at all.

    Raises:
        WriteError: as `write_tensors`.
    """
    _save(path, _contiguous(tensors), {"format": "pt"})  # transformers opens no file that does not say so


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _save(path: Path | str, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=header)
        except SafetensorError as error:  # safetensors wraps the system's errors so
            raise OSError(str(error)) from error


def _digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """SHA-256 over names, shapes, types and values, after the text; hexadecimal."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_tensors(path: Path | str) -> tuple[Weights, dict[str, Any]]:
    """Read a safetensors file: its tensors, and our metadata ({} where another tool wrote it).

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: the file is not safetensors, is cut short, differs from its checksum, or has a later format
            than this code knows.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no iterator here
            header = file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}). Copy or save it again.") from None
    text = header.get(METADATA_KEY, "{}")
    if header.get(CHECKSUM_KEY, "") not in ("", _digest(tensors, text)):
        raise CheckpointError(
            f"{path}: damaged since it was written: the SHA-256 of its content is not the stored one. Copy it again."
        )
    return tensors, _parse_metadata(path, text)


INDEX_SUFFIX = ".index.json"
"""Suffix of the index of a sharded checkpoint (huggingface_hub)."""


def read_shards(path: Path) -> Weights:
    """The tensors of all files that an index names; they lie beside it.

    Raises:
        CheckpointError: the index is damaged, names a file that is missing or elsewhere, or a tensor that is not there.
    """
    names = shard_names(path)
    where = json.loads(path.read_text())["weight_map"]
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise CheckpointError(f"{path}: names {len(missing)} files that are not there ({missing[0]}). Copy them too.")
    tensors: Weights = {}
    for name in names:
        tensors |= read_tensors(path.parent / name)[0]
    lost = sorted(where.keys() - tensors.keys())
    if lost:
        raise CheckpointError(f"{path}: {len(lost)} tensors are in none of its files ({lost[0]}). Copy them again.")
    return {name: tensors[name] for name in where}


def shard_names(path: Path) -> list[str]:
    """Names of the files that an index names; CheckpointError for one that is damaged or names files elsewhere."""
    try:
        names = sorted(set(json.loads(path.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        names = []
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise CheckpointError(f"{path}: expected a weight_map of names of tensors to names of files beside it.")
    return names


def _parse_metadata(path: Path | str, text: str) -> dict[str, Any]:
    try:
        metadata = json.loads(text)
        version = metadata.get("format", FORMAT_VERSION)
        is_later = version > FORMAT_VERSION
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(
            f"{path}: its metadata {METADATA_KEY!r} is {text[:60]!r}, expected a JSON object with a whole number as "
            "format. Save it again."
        ) from None
    if is_later:
        raise CheckpointError(
            f"{path}: format {version}, this version reads up to {FORMAT_VERSION}. Update dino_dense."
        )
    return metadata


def sha256_of_file(path: Path | str) -> str:
    """SHA-256 of a file's bytes, hexadecimal; of an index with the files that it names."""
    if str(path).endswith(INDEX_SUFFIX):
        digests = "".join(sha256_of_file(Path(path).parent / name) for name in shard_names(Path(path)))
        return hashlib.sha256(digests.encode()).hexdigest()
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_weights(module: nn.Module) -> str:
    """SHA-256 over names, shapes and values, for weights that are in memory only."""
    return _digest(module.state_dict())


def first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:160] if str(error) else type(error).__name__
