"""PaKA: align the kernel of an image's patches with a teacher's (arXiv 2509.05606).

Shapes: B crops, N patches, D channels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from dino_dense.pretrain.anchor import Anchor
from dino_dense.pretrain.objective import Objective, Step, Terms, Views
from dino_dense.pretrain.options import COUNT, NOT_NEGATIVE, Options, Ranges

TEACHER = "teacher"
EPS = 1e-6
"""Smallest product of the kernels' norms (lightly, patch_kernel_alignment_loss.py)."""


@dataclass(frozen=True)
class PakaOptions(Options):
    """Objective paka: kernels of patches aligned with a teacher's"""

    paka_weight: float = 1.0
    """Factor on the loss. (lightly-train, dinov31)"""
    paka_teacher: str = "teacher"
    """The reference kernel: teacher = the run's teacher, which sees unmasked crops; start = the first weights of this
    run; or a checkpoint or run folder, as for the tasks' --ckpt, of any patch size."""
    paka_tokens: int = 512
    """Largest number of patches of a crop to compare, evenly spaced. (lightly-train: 512)"""

    RANGES: ClassVar[Ranges] = {"paka_weight": NOT_NEGATIVE, "paka_tokens": COUNT}


def kernel_alignment_loss(student: Tensor, teacher: Tensor, ignore: Tensor | None = None) -> Tensor:
    """1 - CKA of the centered linear kernels of each image's patches, mean over the images; float32, in [0, 1].

    CKA is the cosine of two centered kernel matrices (arXiv 1905.00414, eq. 3).

    Args:
        student: tokens [B, N, D].
        teacher: tokens [B, N, D'], without gradient.
        ignore: bool [B, N], tokens to ignore. Images with fewer than two other tokens do not count; 0 if none counts.
    """
    with torch.autocast(student.device.type, enabled=False):
        valid = torch.ones(student.shape[:2], device=student.device) if ignore is None else (~ignore).float()
        count = valid.sum(dim=1)
        centered = []
        for tokens in (student.float(), teacher.detach().float()):
            mean = (tokens * valid[..., None]).sum(dim=1, keepdim=True) / count.clamp(min=1)[:, None, None]
            centered.append((tokens - mean) * valid[..., None])
        ours, theirs = (part @ part.transpose(1, 2) for part in centered)  # [B, N, N]
        norms = ours.flatten(1).norm(dim=1) * theirs.flatten(1).norm(dim=1)
        alignment = (ours * theirs).sum(dim=(1, 2)) / norms.clamp(min=EPS)
        counts = count >= 2
        return ((1 - alignment) * counts).sum() / counts.sum().clamp(min=1)


class Paka(Objective):
    """Aligns each global crop with itself. The paper also aligns overlapping crops, which is not implemented."""

    Options: ClassVar[type | None] = PakaOptions
    needs_patches: ClassVar[bool] = True

    def connect(self, objectives: Mapping[str, Objective], teacher: nn.Module) -> None:
        """Build the frozen network, if one is used."""
        source = self.options.paka_teacher
        self.anchor = None if source == TEACHER else Anchor(source, teacher)

    def forward(self, student: Views, teacher: Views, step: Step) -> Terms:
        """1 - CKA, in [0, 1]."""
        theirs = teacher.tokens() if self.anchor is None else self.anchor(student)
        chosen = _evenly(theirs.shape[1], self.options.paka_tokens, theirs.device)
        return Terms(kernel_alignment_loss(student.tokens()[:, chosen], theirs[:, chosen]), {}, {})

    def weight(self, step: Step) -> float:
        """The option `paka_weight`."""
        return float(self.options.paka_weight)


def _evenly(n: int, most: int, device: torch.device) -> Tensor:
    """At most `most` indices from 0 to n - 1, evenly spaced."""
    return torch.linspace(0, n - 1, min(n, most), device=device).round().long()


OBJECTIVE = Paka
