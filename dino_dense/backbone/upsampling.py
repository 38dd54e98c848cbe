"""A backbone whose patch tokens are upsampled: every measure on patch tokens then runs on a finer grid.

Shapes: B images, C channels, h x w patches, H x W pixels, f the factor. The contract is that of AnyUp, JAFAR and
others: `up(image, features, size)` with the normalized image [B, 3, H, W] and features [B, C, h, w] gives
[B, C, *size].
"""

import hashlib
import importlib.util
import inspect
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino_dense.backbone.backbone import Backbone, Features
from dino_dense.backbone.bytes import sent

BILINEAR = "bilinear"
UPSAMPLED = frozenset({"patches", "cls"})  # what a request may name; a class token has no grid
ARGUMENTS = 3  # image, features, size


class Upsampler(Protocol):
    """Features on a finer grid."""

    def __call__(self, image: Tensor, features: Tensor, size: tuple[int, int], /) -> Tensor:
        """Normalized image [B, 3, H, W] and features [B, C, h, w] -> [B, C, *size]."""


def bilinear(image: Tensor, features: Tensor, size: tuple[int, int], /) -> Tensor:
    """Features [B, C, h, w] interpolated to `size`, whatever the image shows."""
    return F.interpolate(features, size, mode="bilinear", align_corners=False)


def load_upsampler(spec: str, device: torch.device | str = "cpu") -> Upsampler:
    """The upsampler that a user names.

    Args:
        spec: bilinear, or FILE.py:NAME. NAME is `up(image, features, size)` itself, or a function without required
            arguments that returns it (an entry point of torch.hub's hubconf.py). The file is run: name only files that
            you trust.

    Raises:
        ValueError: the spec has another form, the file cannot be run, or NAME is neither.
    """
    if spec == BILINEAR:
        return bilinear
    file, _, name = spec.rpartition(":")
    if not file.endswith(".py") or not name.isidentifier():
        raise ValueError(f"upsampler {spec!r}: expected {BILINEAR}, or FILE.py:NAME")
    known = _run(Path(file))
    if not callable(entry := known.get(name)):
        names = sorted(key for key, value in known.items() if callable(value) and not key.startswith("_"))
        raise ValueError(f"{file} has no function {name!r}; it has {', '.join(names) or 'none'}.")
    upsampler = entry if _required(entry) == ARGUMENTS else _made_by(entry, spec)
    return upsampler.to(device).eval().requires_grad_(False) if isinstance(upsampler, nn.Module) else upsampler


def _run(file: Path) -> dict[str, Any]:
    """The names that a file of the user defines."""
    if not file.is_file():
        raise ValueError(f"{file}: no such file; an upsampler is FILE.py:NAME")
    spec = importlib.util.spec_from_file_location(f"upsampler_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{file}: cannot be run ({type(error).__name__}: {error}).") from error
    return vars(module)


def _required(function: Any) -> int:
    """Number of its positional arguments without a default."""
    parameters = inspect.signature(function).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(item.kind in positional and item.default is inspect.Parameter.empty for item in parameters)


def _made_by(entry: Any, spec: str) -> Any:
    made = entry() if _required(entry) == 0 else None
    if not callable(made):
        raise ValueError(
            f"upsampler {spec!r}: expected up(image, features, size), or a function without required arguments that "
            f"returns it; it takes {inspect.signature(entry)}"
        )
    return made


def describe_upsampling(spec: str, factor: int) -> str:
    """A sentence on how features are upsampled, with the first digits of the file's SHA-256; empty for factor 1."""
    if factor == 1:
        return ""
    file = Path(spec.rpartition(":")[0])
    code = f" (SHA-256 {hashlib.sha256(file.read_bytes()).hexdigest()[:12]})" if file.is_file() else ""
    return f"Patch tokens upsampled by {factor} with {spec}{code}."


class UpsampledBackbone(Backbone):
    """The same network with patch tokens on a grid that is `factor` times finer; `patch_size` is so much smaller.

    Images whose sides are multiples of this smaller patch alone are stretched to whole patches of the network.

    Raises:
        ValueError: the factor does not divide the patch size.
    """

    def __init__(self, backbone: Backbone, spec: str, factor: int) -> None:
        if factor < 1 or backbone.input_patch % factor:
            divisors = [n for n in range(2, backbone.input_patch + 1) if backbone.input_patch % n == 0]
            raise ValueError(
                f"upsampling is {factor}: expected a divisor of {backbone.name}'s patch size {backbone.input_patch}: "
                f"{', '.join(map(str, divisors))}"
            )
        self.__dict__.update(backbone.__dict__)
        self.patch_size = backbone.input_patch // factor
        self.upsampling, self.upsampler = (spec, factor), load_upsampler(spec, backbone.device)
        self.upsampled = describe_upsampling(spec, factor)

    @torch.no_grad()
    def extract(
        self,
        images: Tensor,
        want: Set[str] | Sequence[str] = frozenset({"patches"}),
        layers: Sequence[int] | None = None,
        *,
        norm: bool | None = None,
    ) -> Features:
        """As `Backbone.extract`, with patches [B, C, f h, f w].

        Raises:
            ValueError: as there; a map is wanted that is not upsampled; the upsampler gives another shape.
        """
        want = frozenset(want)
        if not want <= UPSAMPLED:
            raise ValueError(f"{', '.join(sorted(want - UPSAMPLED))}: only patch tokens are upsampled.")
        images = sent(images, self.device)
        size = images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size
        whole = [max(1, round(side / self.input_patch)) * self.input_patch for side in images.shape[-2:]]
        if list(images.shape[-2:]) != whole:
            images = F.interpolate(images, whole, mode="bilinear", align_corners=False, antialias=True)
        by_kind = dict(Backbone.extract(self, images, want, layers, norm=norm).by_kind)
        if "patches" in want:
            by_kind["patches"] = finer_patches(self, images, by_kind["patches"], size)
        return Features(by_kind)


def finer_patches(backbone: UpsampledBackbone, images: Tensor, patches: Tensor, size: tuple[int, int]) -> Tensor:
    """Patches [B, C, h, w] of images in [0, 1] -> [B, C, *size].

    Raises:
        ValueError: the upsampler gives another shape.
    """
    images = images.to(patches.device, torch.float32)
    pixels = (backbone.mean, backbone.std)
    mean, std = (torch.tensor(values, device=patches.device).view(1, 3, 1, 1) for values in pixels)
    finer = backbone.upsampler((images - mean) / std, patches, size)
    expected = (*patches.shape[:2], *size)
    if not isinstance(finer, Tensor) or finer.shape != expected:
        shape = tuple(finer.shape) if isinstance(finer, Tensor) else type(finer).__name__
        raise ValueError(f"upsampler {backbone.upsampling[0]}: gave {shape}, expected features of shape {expected}")
    return finer.float()
