"""Programs without Python code of ours: torch.export's archive, and ONNX. Batch, height and width stay open."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dino_dense.backbone.backbone import Backbone
from dino_dense.export.program import Outputs, Program

TORCH_FILE, ONNX_FILE = "model.pt2", "model.onnx"
LARGEST = 256  # patches along a side
Run = Callable[[Tensor], Outputs]


def write_torch(backbone: Backbone, folder: Path) -> None:
    """A torch.export archive; `torch.export.load(FILE).module()(images)` gives patches, cls and attention."""
    torch.export.save(_exported(backbone), folder / TORCH_FILE)


def run_torch(folder: Path) -> Run:
    """The program of the archive."""
    module = torch.export.load(folder / TORCH_FILE).module()
    return lambda images: Outputs(*module(images))


def write_onnx(backbone: Backbone, folder: Path) -> None:
    """An ONNX file with the input `images` and the outputs patches, cls, attention.

    Raises:
        ValueError: the packages for ONNX are not installed.
    """
    _check_installed()
    program = torch.onnx.export(
        _exported(backbone), input_names=["images"], output_names=list(Outputs._fields), dynamo=True, verbose=False
    )
    assert program is not None
    program.save(folder / ONNX_FILE)


def run_onnx(folder: Path) -> Run:
    """The program of the file, run by ONNX Runtime."""
    _check_installed()
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / ONNX_FILE, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Outputs:
        return Outputs(*map(torch.from_numpy, session.run(None, {"images": images.numpy()})))

    return run


def _exported(backbone: Backbone) -> Any:
    patch = backbone.patch_size
    height, width = (patch * torch.export.Dim(name, min=2, max=LARGEST) for name in ("rows", "columns"))
    sizes = {0: torch.export.Dim("batch", min=1, max=4096), 2: height, 3: width}
    example = torch.rand(2, 3, 4 * patch, 6 * patch)
    return torch.export.export(Program(backbone).eval(), (example,), dynamic_shapes=(sizes,))


def _check_installed() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f'ONNX needs the package {error.name}: pip install "dino_dense[onnx]"') from None
