"""Every setting of a pretraining run, in groups. Defaults are the published main_dino.py's, else the field says so.

"main_dino" below is main_dino.py of https://github.com/facebookresearch/dino; "paper" is arXiv 2104.14294.
"""

from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from dino_dense.distributed import check_device_name
from dino_dense.pretrain import objectives
from dino_dense.pretrain.bad_samples import BadSampleOptions
from dino_dense.pretrain.crops import CropOptions
from dino_dense.pretrain.network import NetworkOptions
from dino_dense.pretrain.objectives.dino import DinoOptions
from dino_dense.pretrain.objectives.gram import GramOptions
from dino_dense.pretrain.objectives.ibot import IbotOptions
from dino_dense.pretrain.objectives.koleo import KoleoOptions
from dino_dense.pretrain.objectives.paka import PakaOptions
from dino_dense.pretrain.optim import OptimizationOptions
from dino_dense.pretrain.options import COUNT, NOT_NEGATIVE, Ranges

FREE_ON_RESUME = frozenset(
    {
        # Where and how fast the same computation runs, what it prints and when it ends: none changes a step's
        # mathematics, but for accumulate where there is BatchNorm: its statistics are a micro-batch's.
        # The pictures are compared by number and names instead of by the path to them.
        *("data", "out", "resume", "device", "num_workers", "accumulate"),
        *("max_steps", "log_every", "save_every", "keep"),
        *("compile", "pack", "on_bad_sample", "max_bad_samples"),
    }
)
"""Fields that may differ between a run and its continuation."""


@dataclass(frozen=True)
class PretrainConfig(
    NetworkOptions,
    DinoOptions,
    IbotOptions,
    KoleoOptions,
    GramOptions,
    PakaOptions,
    CropOptions,
    OptimizationOptions,
    BadSampleOptions,
):
    """Data, output, machine"""

    data: str | None = None
    """Folder of images (nested or flat) and/or videos, or one video file. None: the embedded sample."""
    out: str = "runs/pretrain"
    """Run folder: checkpoints, config.yaml, log.csv, TensorBoard events, loss.png."""
    resume: bool | Literal["auto"] = False
    """Continue the run in `out` from its last checkpoint, exactly. auto: where there is one, else begin it."""
    frame_stride: int = 1
    """Of each video file, use every n-th frame (frames). Ours; 1 = all."""
    frames_per_video: int | None = None
    """Of each video file, use this many frames, evenly spaced, instead of every n-th. Ours."""
    objectives: tuple[str, ...] = ("dino",)
    """The losses to add up: names of files in dino_dense/pretrain/objectives. Ours."""
    seed: int = 0
    """Seed of weights, order, crops and drop path. (main_dino)"""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Autocast type. auto = fp16 with loss scaling on CUDA, as published (main_dino use_fp16), fp32 on the CPU."""
    num_workers: int | None = None
    """Loader processes per training process. None: 10 (main_dino), at most its share of the CPU cores."""
    log_every: int = 10
    """Optimizer steps between rows of log.csv. (main_dino prints every 10)"""
    save_every: int | None = None
    """Optimizer steps between checkpoints. None: one at the end of each epoch. (main_dino)"""
    keep: int = 2
    """Training states kept: the newest, and older ones for when it cannot be read. Ours."""

    RANGES: ClassVar[Ranges] = {
        **dict.fromkeys(("frame_stride", "frames_per_video", "log_every", "save_every", "keep"), COUNT),
        **dict.fromkeys(("num_workers", "seed"), NOT_NEGATIVE),
    }

    def check(self) -> None:
        """Each group's own rules, and the names of device and objectives."""
        super().check()
        check_device_name(self.device)
        for name in self.objectives:
            objectives.get(name)
        if not self.objectives or len(set(self.objectives)) < len(self.objectives):
            raise ValueError(f"objectives is {self.objectives}, expected one or more, each once")

    @property
    def unused(self) -> frozenset[str]:
        """Fields that steer an objective which is not among the chosen ones."""
        others = [objectives.get(name).Options for name in objectives.names() if name not in self.objectives]
        return frozenset(field.name for group in others if group for field in fields(group))
