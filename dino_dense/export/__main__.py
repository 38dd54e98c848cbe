"""Carry a backbone out: as a folder for timm or transformers, a torch.export archive or an ONNX file, each checked."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dino_dense.config import command_line
from dino_dense.export.config import ExportConfig
from dino_dense.files import write_text

if TYPE_CHECKING:
    from torch import Tensor

    from dino_dense.backbone.backbone import Backbone

Size = tuple[int, int]


def main() -> int:
    """Parse, write, check, print."""
    config: ExportConfig = command_line.parse(
        ExportConfig, prog="python -m dino_dense.export", description=(__doc__ or "").splitlines()[0]
    )
    folder = Path(str(config.out))
    if folder.exists():
        raise ValueError(f"{folder}: is there already. Give a new --out.")
    differences = export(config, folder)
    for (height, width), value in differences.items():
        print(f"{height}x{width}: largest relative difference {value:.1e}")
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    if config.push is not None:
        push(folder, config.push)
        print(f"uploaded to {config.push}")
    return 0


def export(config: ExportConfig, folder: Path) -> dict[Size, float]:
    """Write a folder and check it; it is there only where the check passed.

    Returns:
        The largest relative difference of a feature at each image size that was compared.

    Raises:
        ValueError, OSError: the checkpoint, or the form asked for, cannot be used.
        ExportError: what was written computes something else.
    """
    from dino_dense.backbone import load_backbone
    from dino_dense.export.card import model_card
    from dino_dense.export.check import check_equal

    assert config.ckpt is not None
    backbone = load_backbone(config.ckpt, arch=config.arch, network=config.network, heads=config.heads)
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        run, sizes = _written(backbone, config.to, unfinished)
        differences = check_equal(backbone, run, sizes)
        report = Path(config.report) if config.report else None
        write_text(unfinished / "README.md", model_card(backbone, config.to, differences, report))
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return differences


def _written(
    backbone: Backbone, kind: str, folder: Path
) -> tuple[Callable[[Tensor], Mapping[str, Tensor]], list[Size]]:
    """Write the files; what they compute, and the sizes at which it can be compared."""
    from dino_dense.export import hugging_face, open_sizes, timm_folder

    if kind == "timm":
        timm_folder.write(backbone, folder)
        return timm_folder.run(backbone, folder), [timm_folder.native_size(backbone)]
    if kind == "hf":
        hugging_face.write(backbone, folder)
        return _as_ours(folder), [timm_folder.native_size(backbone), *open_size_examples(backbone.patch_size)]
    write, run = {
        "torch": (open_sizes.write_torch, open_sizes.run_torch),
        "onnx": (open_sizes.write_onnx, open_sizes.run_onnx),
    }[kind]
    write(backbone, folder)
    program = run(folder)
    return lambda images: program(images)._asdict(), open_size_examples(backbone.patch_size)


def _as_ours(folder: Path) -> Callable[[Tensor], Mapping[str, Tensor]]:
    """The folder read back by our own loader: every weight in its place."""
    from dino_dense.backbone import load_backbone

    again = load_backbone(str(folder))
    return lambda images: again.extract(images, {"patches", "cls", "attention"}).by_kind


def open_size_examples(patch: int) -> list[Size]:
    """Three sizes in pixels, one of them not square."""
    return [(side * patch, other * patch) for side, other in ((16, 16), (14, 14), (10, 17))]


def push(folder: Path, repository: str) -> None:
    """Upload a folder to the Hugging Face hub.

    Raises:
        OSError: the hub refused it (login, rights, network).
    """
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repository, exist_ok=True)
    api.upload_folder(folder_path=folder, repo_id=repository)


if __name__ == "__main__":
    command_line.run(main)
