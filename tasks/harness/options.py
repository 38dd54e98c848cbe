"""Options of every task, and of a batch."""

from dataclasses import dataclass
from typing import Literal

from dino_dense.config.schema import path


@dataclass(frozen=True)
class MeasuringOptions:
    """Networks and devices"""

    arch: str | None = None
    """Architecture (any timm name), if it cannot or should not be read from the file."""
    network: str = "auto"
    """Network of a training file to measure: auto (the network that the tool's authors evaluate; the teacher for DINO),
    teacher, student, or the prefix of its names in the file."""
    heads: int | None = None
    """Attention heads, if the file does not state them (MoCo v3's ViT-S has 12, DINO's 6)."""
    positions: Literal["official", "hf"] = "official"
    """Rule that resamples a file's position table to other image sizes: its authors', or transformers'."""
    layers: tuple[int, ...] | Literal["all"] = (-1,)
    """Layers to measure, joined along the channels: --layers=-4,-1 (-1 is the last; 0 is the first). all: a sweep over
    all layers, each on its own (of one task, not of a suite)."""
    norm: bool = True
    """Apply the network's final norm to patch and class tokens."""
    device: str = "auto"
    """auto (CUDA if available), cpu, cuda or cuda:N."""
    dtype: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """Precision of the backbone: bf16 and fp16 run under autocast; tf32 (CUDA) rounds the factors of products."""
    seed: int = 0
    """Seed of random weights and all other random numbers."""
    benchmark: Literal["auto", "none"] = "auto"
    """none: show no difference to published numbers. For data that only look like the published set, such as corrupted
    or edited copies of its images."""


@dataclass(frozen=True)
class OneCheckpoint:
    """Backbone"""

    ckpt: str | None = path()
    """Checkpoint file or run folder, published .pth, timm:NAME, hf-hub:NAME (these download),
    dino_dense:micro8 (small, in this package) or random:NAME."""
    out: str | None = path()
    """Folder for results; default runs/TASK/CHECKPOINT-HASH. Run the same command again to continue an interrupted
    run."""


@dataclass(frozen=True)
class UpsamplingOptions:
    """Finer patch tokens (tasks on patch tokens: segprobe, incontext, cluster, depth, correspondence)"""

    upsampling: int = 1
    """Factor of the grid of patch tokens; a divisor of the patch size."""
    upsampler: str = "bilinear"
    """bilinear, or FILE.py:NAME, whose NAME is up(image, features, size) or returns it (a torch.hub entry point). The
    file is run, and bilinear is measured beside it."""

    def __post_init__(self) -> None:
        if self.upsampling < 1 or (self.upsampling == 1 and self.upsampler != "bilinear"):
            raise ValueError(
                f"upsampling is {self.upsampling} with upsampler {self.upsampler}: expected --upsampling 2 or more; 1 "
                "takes the patch tokens as they are"
            )


@dataclass(frozen=True)
class RunOptions(OneCheckpoint, UpsamplingOptions, MeasuringOptions):
    """Backbone, results folder and device (every task)"""


@dataclass(frozen=True)
class LayerSweep:
    """Sweep: a row of one table, and a point of a plot, for each layer and size"""

    each_layer: bool = False
    """Measure each of --layers on its own instead of joining them; --layers all implies it."""
    sweep_memory: int = 2048
    """Memory for features of layers that a sweep measures later, MiB; what does not fit is extracted again."""

    def __post_init__(self) -> None:
        if self.sweep_memory < 0:
            raise ValueError(f"sweep_memory is {self.sweep_memory}: expected 0 or more")


@dataclass(frozen=True)
class Sweep(LayerSweep):
    """Sweep over sizes"""

    sizes: tuple[int, ...] = ()
    """Measure at each of these sides of the network's input, pixels, instead of the protocol's: --sizes 256,384,512."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(size < 1 for size in self.sizes) or len(set(self.sizes)) < len(self.sizes):
            raise ValueError(f"sizes are {self.sizes}: expected different sides, each 1 pixel or more")


@dataclass(frozen=True)
class ManyCheckpoints:
    """Suite and checkpoints"""

    suite: str = path("")
    """Name of a suite in configs/suites (quickstart, dense, dense2026, dense-small, ...), or a YAML file."""
    ckpt: tuple[str, ...] = path(())
    """Checkpoints, as for a task's --ckpt: --ckpt A --ckpt B, or A,B."""
    out: str = path("runs/batch")
    """Folder for the results. The same command runs unfinished pairs and rewrites the report. A finished pair runs
    again if its data, its pixel statistics or a version of the program changed."""
    data_root: str | None = path()
    """Base folder of the suite's relative data paths; default: the current folder."""


@dataclass(frozen=True)
class BatchOptions(ManyCheckpoints, MeasuringOptions):
    """Suite, checkpoints and jobs"""

    launcher: Literal["none", "local", "slurm"] = "none"
    """none: one pair after another, in this process. local, slurm: a job for each checkpoint, by submitit (pip install
    "dino_dense[slurm]")."""
    jobs: int = 1
    """Parallel jobs of the local launcher; Slurm has its own queue."""
    partition: str | None = None
    """Slurm's partition."""
    hours: float = 24.0
    """Time limit of a job."""
    gpus: int = 1
    """GPUs of a job, if available."""
    cpus: int = 8
    """CPU cores of a Slurm job."""
    memory: int = 64
    """Memory of a Slurm job, GiB."""
    open: bool = False
    """Open the report in the browser once all pairs are done, if there is a graphical display."""

    def __post_init__(self) -> None:
        if self.layers == "all":
            raise ValueError(
                "layers is all: a suite measures the same layers in every pair. Sweep by a task's command."
            )
        if self.jobs < 1 or self.hours <= 0:
            raise ValueError(f"jobs is {self.jobs} and hours {self.hours}: expected 1 or more, and more than 0")
