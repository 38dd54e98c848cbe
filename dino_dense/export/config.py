"""Options of `python -m dino_dense.export`."""

from dataclasses import dataclass
from typing import Literal

from dino_dense.config.schema import path


@dataclass(frozen=True)
class ExportConfig:
    """Network and format"""

    ckpt: str | None = path()
    """Checkpoint, as a task's --ckpt takes it."""
    to: Literal["timm", "hf", "torch", "onnx"] = "timm"
    """timm: a folder for timm; hf: a folder for transformers, with processor; torch: a torch.export archive; onnx: an
    ONNX file. The last two take images of any size and give patches, class token and attention."""
    out: str | None = path()
    """New folder for the files and the model card."""
    report: str | None = path()
    """report.json of a task, whose table goes into the model card."""
    push: str | None = None
    """OWNER/NAME of a repository on the Hugging Face hub to upload the folder to. Nothing is uploaded without it."""
    arch: str | None = None
    """Architecture, if it cannot be read from the file."""
    network: str = "auto"
    """Network of a training file to export: auto, teacher, student, or the prefix of its names (see a task's help)."""
    heads: int | None = None
    """Attention heads, if the file does not state them."""

    def __post_init__(self) -> None:
        for name in ("ckpt", "out"):
            if getattr(self, name) is None:
                raise ValueError(f"{name} is not given. Give --{name}.")
