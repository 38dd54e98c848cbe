"""Options of every task, and of a batch."""

from dataclasses import dataclass
from typing import Literal

from dino_dense.config.schema import path


@dataclass(frozen=True)
class MeasuringOptions:
    """How networks are read and measured"""

    arch: str | None = None
    """Architecture, where it cannot or should not be read from a file (any timm name)."""
    network: str = "auto"
    """Which network of a training file to measure: auto (the one that the tool's authors evaluate, as DINO its
    teacher), teacher, student, or the prefix of its names in the file."""
    heads: int | None = None
    """Attention heads, where the file does not say them (MoCo v3's ViT-S has 12, DINO's 6)."""
    positions: Literal["official", "hf"] = "official"
    """Which rule resamples a file's position table to other sizes of images: of its authors, or of transformers."""
    layers: tuple[int, ...] = (-1,)
    """Layers whose features are measured, joined along the channels: --layers=-4,-1 (-1 is the last)."""
    norm: bool = True
    """Whether patches and class tokens go through the network's final norm."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the backbone; reduced ones run under autocast."""
    seed: int = 0
    """Of random weights and of every draw."""
    benchmark: Literal["auto", "none"] = "auto"
    """none: the data only look like the published set, as corrupted or edited copies of its images do, so that no
    difference to a published number is shown."""


@dataclass(frozen=True)
class OneCheckpoint:
    """Which backbone"""

    ckpt: str | None = path()
    """Checkpoint file or run folder, published .pth, timm:NAME, hf-hub:NAME (these download) or random:NAME."""
    out: str | None = path()
    """Folder for results; default runs/TASK/CHECKPOINT-HASH. The same command goes on where it stopped."""


@dataclass(frozen=True)
class RunOptions(OneCheckpoint, MeasuringOptions):
    """Which backbone, where, and how (every task)"""


@dataclass(frozen=True)
class ManyCheckpoints:
    """Which suite, which checkpoints"""

    suite: str = path("")
    """A suite of configs/suites by name (quickstart, dense, dense2026, dense-small, ...), or a YAML file like them."""
    ckpt: tuple[str, ...] = path(())
    """Checkpoints, as a task's --ckpt takes them: --ckpt A --ckpt B, or A,B."""
    out: str = path("runs/batch")
    """Folder for the results. The same command runs what is not finished and writes the report anew. A finished pair
    is known by its config and weights: delete its folder if its data changed."""
    data_root: str | None = path()
    """Folder that the suite's relative paths of data start from; default the current one."""


@dataclass(frozen=True)
class BatchOptions(ManyCheckpoints, MeasuringOptions):
    """Which suite, which checkpoints, and where"""

    launcher: Literal["none", "local", "slurm"] = "none"
    """none: one pair after another, here. local, slurm: a job a checkpoint, through submitit (pip install
    "dino_dense[slurm]")."""
    jobs: int = 1
    """Jobs that run at once with the local launcher; Slurm has its own queue."""
    partition: str | None = None
    """Slurm's partition."""
    hours: float = 24.0
    """Time limit of a job."""
    gpus: int = 1
    """GPUs of a job, where there are any."""
    cpus: int = 8
    """CPU cores of a Slurm job."""
    memory: int = 64
    """Memory of a Slurm job, GiB."""

    def __post_init__(self) -> None:
        if self.jobs < 1 or self.hours <= 0:
            raise ValueError(f"jobs is {self.jobs} and hours {self.hours}: expected 1 or more, and more than 0")
