"""Begin a run with a checkpoint's weights, and choose which parts of the network learn.

New heads send gradients without meaning through trained weights, and the usual learning rate destroys them within
thousands of steps (dinov2 issue 204). So heads may learn alone at first, and the backbone at a lower rate.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from dino_dense.backbone.backbone import Backbone
from dino_dense.backbone.checkpoints import find_weights
from dino_dense.backbone.dino_vit import IMAGENET_MEAN, IMAGENET_STD, DinoViT
from dino_dense.backbone.dinov3 import DinoV3
from dino_dense.backbone.layouts import tensors_of
from dino_dense.backbone.load import load_backbone
from dino_dense.backbone.unpickle import read_pickled
from dino_dense.checkpoint import INDEX_SUFFIX, STATE_FILE, TEACHER_FILE, Weights, read_tensors
from dino_dense.pretrain.objective import Objective
from dino_dense.pretrain.options import NOT_NEGATIVE, SHARE, Options, Ranges

FLAT = "flat"
"""Value of `heads_first`: until the loss no longer falls."""
WINDOW = 50
"""Steps of each of the two windows whose mean losses are compared. Ours."""
LEAST_FALL = 0.01
"""The loss is flat if its mean falls by less than this share from one window to the next. Ours."""
ALL, LAST = "all", re.compile(r"last:(\d+)")


@dataclass(frozen=True)
class StartOptions(Options):
    """Start"""

    start: str | None = None
    """Checkpoint whose weights student and teacher begin with: a file, run folder or name, as for the tasks' --ckpt.
    Its architecture takes the place of --arch. None: random weights. Ours."""
    start_network: str = "auto"
    """Network of a `start` file that holds several: auto, teacher, student, or the prefix of its names. Ours."""
    trainable: str = ALL
    """Which part of the backbone learns: all, or last:N for the last N blocks and the final norm (last:0: the norm
    alone). Heads always learn. Ours."""
    heads_first: int | Literal["flat"] = 0
    """Steps at the start in which the heads learn alone, for new heads on trained weights; flat: until the mean loss of
    50 steps is less than 1 % below that of the 50 steps before. Ours."""
    backbone_lr: float = 1.0
    """Factor on the learning rate of the backbone; heads have the whole rate. (NeCo: 0.1)"""

    RANGES: ClassVar[Ranges] = {"heads_first": NOT_NEGATIVE, "backbone_lr": SHARE}

    def check(self) -> None:
        """Refuse an unknown part of the backbone."""
        super().check()
        if self.trainable != ALL and not LAST.fullmatch(self.trainable):
            raise ValueError(f"trainable is {self.trainable!r}, expected all, or last:N, such as last:3")


# --- The network -------------------------------------------------------------------------------------------


def open_start(options: StartOptions) -> Backbone:
    """The network that a run begins with.

    Raises:
        FileNotFoundError, CheckpointError: see `load_backbone`.
        ValueError: its pixels are normalized in another way than the crops.
    """
    assert options.start is not None
    backbone = load_backbone(options.start, network=options.start_network)
    ours, theirs = (IMAGENET_MEAN, IMAGENET_STD), (backbone.mean, backbone.std)
    if any(abs(a - b) > 1e-3 for pair in zip(ours, theirs, strict=True) for a, b in zip(*pair, strict=True)):
        raise ValueError(
            f"start is {options.start}, whose pixels have mean {backbone.mean} and deviation {backbone.std}, but crops "
            f"are normalized with ImageNet's {IMAGENET_MEAN} and {IMAGENET_STD}: start from a network of these"
        )
    return backbone


def trainable_copy(module: nn.Module, drop_path_rate: float) -> nn.Module:
    """The network in training mode, with gradients, and with drop path where its class can be built with it.

    Raises:
        ValueError: a drop path rate for a network that cannot have one.
    """
    if isinstance(module, DinoViT):
        body: nn.Module = DinoViT(module.shape, drop_path_rate)
        body.load_state_dict(module.state_dict())
    elif isinstance(module, DinoV3):
        body = DinoV3(module.shape, drop_path_rate)
        body.load_state_dict(module.state_dict())
    elif drop_path_rate and hasattr(module, "cls_token"):
        raise ValueError(
            f"drop_path_rate is {drop_path_rate}, but a started {type(module).__name__} has no drop path: set 0"
        )
    else:
        body = module
    return body.train().requires_grad_(True)


def freeze(backbone: nn.Module, trainable: str) -> None:
    """Leave only the part of the backbone with gradient that `StartOptions.trainable` names.

    Raises:
        ValueError: the network has no blocks, or fewer than are to learn.
    """
    match = LAST.fullmatch(trainable)
    if match is None:
        return
    blocks: Any = getattr(backbone, "blocks", None)
    count = int(match[1])
    if blocks is None or count > len(blocks):
        has = "no blocks" if blocks is None else f"{len(blocks)} blocks"
        raise ValueError(f"trainable is {trainable}, but the backbone has {has}")
    backbone.requires_grad_(False)
    for name in ("norm", "fc_norm"):
        if isinstance(part := getattr(backbone, name, None), nn.Module):
            part.requires_grad_(True)
    for block in blocks[len(blocks) - count :]:
        block.requires_grad_(True)


# --- Its heads ---------------------------------------------------------------------------------------------

HEAD_PREFIXES = {
    "dino": (r"objectives\.dino\.teacher_head\.", r"(?:(?:model|state_dict)\.)?teacher\.(?:dino_)?head\."),
    "ibot": (r"objectives\.ibot\.teacher_head\.", r"(?:(?:model|state_dict)\.)?teacher\.ibot_head\."),
}
"""Objective -> prefixes of its teacher's head in our runs, and in files of DINO, iBOT, DINOv2 and DINOv3 training."""
NORMED = {"weight.original0": "weight_g", "weight.original1": "weight_v"}
"""Names of a normalized layer in newer versions of PyTorch -> its older names, which are ours."""


def load_heads(options: StartOptions, objectives: Mapping[str, Objective]) -> list[str]:
    """Give each objective the head of the `start` file, if the file has one of the same shape.

    Returns:
        A line for the user for each objective with a head: where its weights are from.
    """
    stored = _stored_tensors(options.start or "")
    lines = []
    for name, objective in objectives.items():
        student, teacher = objective.student_head, objective.teacher_head
        if student is None or teacher is None:
            continue
        head = _head_of(stored, name)
        own = {key: tuple(value.shape) for key, value in student.state_dict().items()}
        fits = {key: tuple(value.shape) for key, value in head.items()} == own
        if fits:
            student.load_state_dict(head)
            teacher.load_state_dict(head)
        reason = "from the checkpoint" if fits else "new: that of the checkpoint has other shapes" if head else "new"
        lines.append(f"head of {name}: {reason}")
    return lines


def _head_of(stored: Mapping[str, Tensor], objective: str) -> Weights:
    for prefix in HEAD_PREFIXES.get(objective, ()):
        head = {name[match.end() :]: value for name, value in stored.items() if (match := re.match(prefix, name))}
        if head:
            return dict(_renamed(head))
    return {}


def _renamed(head: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, value in head.items():
        for new, old in NORMED.items():
            name = name.replace(new, old)
        yield name, value


def _stored_tensors(start: str) -> Mapping[str, Tensor]:
    """All tensors of a file or run folder, by dotted names; {} for a network's name or a list of shards."""
    path = Path(start)
    if not path.exists():
        return {}
    if path.is_dir() and (path / STATE_FILE).is_file():
        path = path / STATE_FILE
    path = find_weights(path)
    if path.name == TEACHER_FILE or path.name.endswith(INDEX_SUFFIX):
        return {}
    if path.suffix == ".safetensors":
        return read_tensors(path)[0]
    return {name.replace("/", "."): value for name, value in tensors_of(read_pickled(path).content).items()}


# --- Heads first -------------------------------------------------------------------------------------------


class HeadsFirst(nn.Module):
    """Says in which steps the backbone rests. Its memory is saved with the run.

    Args:
        steps: number of steps, or `FLAT`.
    """

    losses: Tensor
    """[2 * WINDOW], the last losses in a ring."""
    seen: Tensor
    ended: Tensor

    def __init__(self, steps: int | Literal["flat"]) -> None:
        super().__init__()
        self.steps = steps
        self.over = steps == 0
        self.register_buffer("losses", torch.zeros(2 * WINDOW))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("ended", torch.zeros((), dtype=torch.bool))

    def rests(self, number: int) -> bool:
        """Whether the backbone rests in step `number` (0-based)."""
        if not self.over:  # once it is over, no step waits for the device
            self.over = number >= self.steps if isinstance(self.steps, int) else bool(self.ended)
        return not self.over

    @torch.no_grad()
    def record(self, loss: Tensor) -> None:
        """Keep the loss of a step, a mean over all processes, and decide whether the heads have learned."""
        seen = int(self.seen)
        self.losses[seen % len(self.losses)] = loss
        self.seen += 1
        if (seen + 1) % WINDOW == 0 and seen + 1 >= len(self.losses):
            first = (seen + 1) % len(self.losses)
            before, now = self.losses.roll(-first).unflatten(0, (2, WINDOW)).mean(dim=1)
            self.ended |= now > (1 - LEAST_FALL) * before
