"""All settings of a pretraining run, in groups. Defaults are from the published main_dino.py unless noted.

"main_dino" below is main_dino.py of https://github.com/facebookresearch/dino; "paper" is arXiv 2104.14294.
"""

from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from dino_dense.distributed import check_device_name
from dino_dense.pretrain import objectives
from dino_dense.pretrain.bad_samples import BadSampleOptions
from dino_dense.pretrain.crops import CropOptions, LargerCrops
from dino_dense.pretrain.network import NetworkOptions
from dino_dense.pretrain.objectives.dino import DinoOptions
from dino_dense.pretrain.objectives.gram import GramOptions
from dino_dense.pretrain.objectives.ibot import IbotOptions
from dino_dense.pretrain.objectives.koleo import KoleoOptions
from dino_dense.pretrain.objectives.paka import PakaOptions
from dino_dense.pretrain.optim import OptimizationOptions
from dino_dense.pretrain.options import COUNT, NOT_NEGATIVE, Ranges
from dino_dense.pretrain.start import StartOptions
from dino_dense.pretrain.watch import WatchOptions

FREE_ON_RESUME = frozenset(
    {
        # Device, speed, output and length of the run. None changes the mathematics of a step, except accumulate with
        # BatchNorm, whose statistics are over a micro-batch. Pictures are compared by number and names, not by path.
        *("data", "out", "resume", "device", "deterministic", "num_workers", "accumulate"),
        *("max_steps", "log_every", "save_every", "keep"),
        *("compile", "pack", "skip_dropped", "activation_checkpointing", "shard", "on_bad_sample", "max_bad_samples"),
        *("watch", "watch_every", "rollback", "allow_conflicts", "tracker"),
    }
)
"""Fields that may differ between a run and its continuation."""


@dataclass(frozen=True)
class PretrainConfig(
    NetworkOptions,
    StartOptions,
    DinoOptions,
    IbotOptions,
    KoleoOptions,
    GramOptions,
    PakaOptions,
    CropOptions,
    OptimizationOptions,
    WatchOptions,
    BadSampleOptions,
):
    """Data, output, machine"""

    data: str | None = None
    """Folder of images (nested or flat) and/or videos; one video file; tar shards of images, by a pattern such as
    'shards/{000..127}.tar' or 'https://host/{000..127}.tar'; or Parquet files of a Hugging Face data set, such as
    'data/train-*.parquet'. null: the embedded sample. From a server, each image is a request for a part of a shard; the
    first run reads each shard once for its index, which the cache folder keeps. Of Parquet files, the column is image,
    or the only column of images; row groups are shuffled, then images within 256 MiB of successive groups, which each
    loader process keeps in memory."""
    out: str = "runs/pretrain"
    """Run folder: checkpoints, config.yaml, log.csv, TensorBoard events, loss.png."""
    resume: bool | Literal["auto"] = False
    """Continue the run in `out` exactly from its last checkpoint. auto: continue if there is one, else begin."""
    frame_stride: int = 1
    """Use every n-th frame of each video file; 1: every frame. (not in main_dino)"""
    frames_per_video: int | None = None
    """Use this many evenly spaced frames of each video file, instead of every n-th. (not in main_dino)"""
    objectives: tuple[str, ...] = ("dino",)
    """Losses to sum: names of files in dino_dense/pretrain/objectives. (not in main_dino)"""
    allow_conflicts: bool = False
    """Begin although settings contradict each other or the data; each contradiction is then a warning. Ours."""
    seed: int = 0
    """Seed of weights, order, crops and drop path. (main_dino)"""
    device: str = "auto"
    """auto (CUDA if available), cpu, cuda or cuda:N."""
    dtype: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """Autocast type. auto = bf16 on CUDA, or fp16 with loss scaling where the device has no bf16 (main_dino use_fp16);
    fp32 on the CPU. tf32 (CUDA): fp32 with factors of products rounded to 10 bits."""
    deterministic: bool = False
    """On CUDA, use slower operations that give the same bits in every run, so that a resumed run is exact there too. On
    the CPU every run is. Ours."""
    num_workers: int | None = None
    """Loader processes per training process. null: 10 (main_dino), but no more than its share of the CPU cores."""
    log_every: int = 10
    """Optimizer steps between rows of log.csv. (main_dino prints every 10)"""
    save_every: int | None = None
    """Optimizer steps between checkpoints. null: a checkpoint at the end of each epoch. (main_dino)"""
    tracker: Literal["none", "wandb", "mlflow"] = "none"
    """Send the rows of log.csv, and the measurements of watch, also to Weights & Biases or MLflow: optional packages,
    set by their own environment variables. Ours."""
    keep: int = 2
    """Training states to keep: the newest, and older ones in case it is unreadable. (not in main_dino)"""

    RANGES: ClassVar[Ranges] = {
        **dict.fromkeys(("frame_stride", "frames_per_video", "log_every", "save_every", "keep"), COUNT),
        **dict.fromkeys(("num_workers", "seed"), NOT_NEGATIVE),
    }

    def check(self) -> None:
        """Check each group's rules, and the names of device and objectives."""
        super().check()
        check_device_name(self.device)
        for name in self.objectives:
            objectives.get(name)
        if not self.objectives or len(set(self.objectives)) < len(self.objectives):
            raise ValueError(f"objectives is {self.objectives}, expected one or more, each once")
        if self.shard and (self.optimizer != "adamw" or self.dtype == "fp16"):
            raise ValueError(
                f"shard is on with --optimizer {self.optimizer} and --dtype {self.dtype}: it works with adamw, and "
                "with any dtype except fp16, whose loss scaling needs whole gradients"
            )
        if self.larger_crops and self.larger_crops.size < self.global_crop_size:
            raise ValueError(
                f"gram_crop_size is {self.gram_crop_size}, smaller than global_crop_size {self.global_crop_size}: set "
                f"--gram-crop-size {2 * self.global_crop_size}, or leave it out"
            )

    @property
    def larger_crops(self) -> LargerCrops | None:
        """The larger global crops that an objective's frozen network sees; None without such an objective."""
        if "gram" not in self.objectives or self.gram_crop_size is None:
            return None
        return LargerCrops(self.gram_crop_size, self.gram_photometric, self.gram_begin, self.gram_shrink)

    @property
    def unused(self) -> frozenset[str]:
        """Fields of objectives that are not chosen."""
        others = [objectives.get(name).Options for name in objectives.names() if name not in self.objectives]
        return frozenset(field.name for group in others if group for field in fields(group))
