"""Every setting of a pretraining run. Defaults are the published main_dino.py's, else the field says so.

"main_dino" below is main_dino.py of https://github.com/facebookresearch/dino; "paper" is arXiv 2104.14294.
"""

import difflib
import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

from dino_dense.distributed import check_device_name
from dino_dense.pretrain.optim import OptimizerName
from dino_dense.training.gradients import ClipMode

OnBadSample = Literal["skip", "raise"]
OnNotFinite = Literal["stop", "skip"]
DtypeName = Literal["auto", "fp32", "bf16", "fp16"]
AugmentOn = Literal["auto", "loader", "device"]

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
class PretrainConfig:
    """Settings of one DINO pretraining run.

    Raises ValueError, naming the field and its value, for settings that cannot be meant.
    """

    # --- Data and output ---
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

    # --- Network ---
    arch: str = "vit_small_patch16_224"
    """Backbone: vit_{micro,tiny,small,base}_patch{P}_{SIZE}, resnet50, or any timm name. (main_dino:
    ViT-S/16)"""
    drop_path_rate: float = 0.1
    """Stochastic depth of the student's last block, rising linearly from 0 with depth; in [0, 1).
    (main_dino)"""
    out_dim: int = 65536
    """K, the head's output size (prototypes). Smaller data: smaller K. (main_dino; paper App. C)"""
    head_layers: int = 3
    """Linear layers in the head's MLP. (vision_transformer.py; paper App. C)"""
    head_hidden_dim: int = 2048
    """Width of the head's hidden layers. (vision_transformer.py)"""
    head_bottleneck_dim: int = 256
    """Size of the head's L2-normalised bottleneck. (vision_transformer.py)"""
    norm_last_layer: bool = True
    """Keep the last layer's rows at norm 1. False is better with ViT-S, true is safer with ViT-B.
    (main_dino)"""
    use_bn_in_head: bool = False
    """BatchNorm in the head. (main_dino)"""

    # --- Loss ---
    student_temp: float = 0.1
    """Temperature of the student's softmax. (main_dino; paper Sec. 3.1)"""
    warmup_teacher_temp: float = 0.04
    """Temperature of the teacher's softmax at the start; lower it when the loss does not fall. (main_dino)"""
    teacher_temp: float = 0.04
    """Temperature of the teacher's softmax after its warm-up; above 0.07 is unstable. (main_dino)"""
    warmup_teacher_temp_epochs: int = 0
    """Epochs of linear warm-up of the teacher's temperature. (main_dino)"""
    center_momentum: float = 0.9
    """Weight of the old center in its moving average; 0.999 collapses. (main_dino; paper App. D)"""
    momentum_teacher: float = 0.996
    """Weight of the old teacher at the start, to 1 by a cosine; try 0.9995 with batches of 256.
    (main_dino)"""

    # --- Crops ---
    global_crop_size: int = 224
    """Side of the two global crops (pixels). (main_dino)"""
    local_crop_size: int = 96
    """Side of the local crops (pixels). (main_dino)"""
    local_crops_number: int = 8
    """Local crops per image; 0 turns multi-crop off. (main_dino; the paper's best run has 10)"""
    global_crops_scale: tuple[float, float] = (0.4, 1.0)
    """Area of a global crop, as a share of the image; without local crops use (0.14, 1). (main_dino)"""
    local_crops_scale: tuple[float, float] = (0.05, 0.4)
    """Area of a local crop, as a share of the image. (main_dino)"""
    flip_prob: float = 0.5
    """Probability of a horizontal flip. (main_dino)"""
    jitter_prob: float = 0.8
    """Probability of color jitter. (main_dino)"""
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    """Strength of the jitter of brightness, contrast, saturation, hue. (main_dino)"""
    gray_prob: float = 0.2
    """Probability of dropping the color. (main_dino)"""
    blur_probs: tuple[float, float, float] = (1.0, 0.1, 0.5)
    """Probability of blur in global crop 1, global crop 2, and a local crop. (main_dino)"""
    blur_radius: tuple[float, float] = (0.1, 2.0)
    """Range of the blur's radius (pixels, PIL GaussianBlur), drawn uniformly. (utils.py)"""
    solarize_prob: float = 0.2
    """Probability of solarization, in global crop 2 only. (main_dino)"""
    augment_on: AugmentOn = "auto"
    """Where color jitter, grey, blur and solarization are applied: in the loader processes, one view at a time on
    8-bit pixels (as main_dino), or on the training device, a batch at a time. auto = device on CUDA, loader on the
    CPU. Ours."""

    # --- Optimization ---
    optimizer: OptimizerName = "adamw"
    """adamw (ViTs), sgd or lars (conv nets). (main_dino)"""
    batch_size: int = 512
    """Images per optimizer step, over all processes and micro-batches. (README: 8 GPUs x 64)"""
    accumulate: int = 1
    """Micro-batches per optimizer step in each process: the same step in less memory. Ours."""
    epochs: int = 100
    """Passes over the data; every schedule is laid out over them. (main_dino)"""
    max_steps: int | None = None
    """Stop after this many optimizer steps; the schedules still span `epochs`. Ours."""
    lr: float = 5e-4
    """Highest learning rate for a batch of 256; scaled by batch_size / 256. (main_dino)"""
    min_lr: float = 1e-6
    """Learning rate at the end of the cosine; not scaled. (main_dino)"""
    warmup_epochs: int = 10
    """Epochs of linear learning-rate warm-up from 0. (main_dino)"""
    weight_decay: float = 0.04
    """Weight decay at the start; none on biases and other vectors. (main_dino)"""
    weight_decay_end: float = 0.4
    """Weight decay at the end of its cosine. (main_dino)"""
    clip_grad: float = 3.0
    """Largest gradient L2 norm; 0 = no clipping. (main_dino)"""
    clip_mode: ClipMode = "tensor"
    """tensor: each tensor's own norm, as published (utils.py); global: the norm over all tensors."""
    freeze_last_layer: int = 1
    """Epochs during which the head's last layer stays as it is. (main_dino)"""

    # --- Machine ---
    seed: int = 0
    """Seed of weights, order, crops and drop path. (main_dino)"""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N."""
    dtype: DtypeName = "auto"
    """Autocast type. auto = fp16 with loss scaling on CUDA, as published (main_dino use_fp16), fp32 on the
    CPU."""
    compile: bool = False
    """Compile the networks' blocks (torch.compile): slower to begin, faster from then on. Ours."""
    pack: bool = False
    """ViTs: take global and local crops through each block together, attention apart from each other; fewer and
    larger products for a GPU. Not with compile. Ours."""
    on_bad_sample: OnBadSample = "skip"
    """A picture that cannot be read: skip = another takes its place in the batch, drawn from the seed, and
    bad_samples.csv lists it; raise = stop. Ours."""
    max_bad_samples: float = 0.01
    """Stop when more than this share of the images is bad. Ours."""
    on_not_finite: OnNotFinite = "stop"
    """A step whose loss or gradient is not finite: stop the run, or skip the step (which waits for the device in
    every step); after 10 in a row it stops. Both report the batch's files. Ours."""
    num_workers: int | None = None
    """Loader processes per training process. None: 10 (main_dino), at most its share of the CPU cores."""
    log_every: int = 10
    """Optimizer steps between rows of log.csv. (main_dino prints every 10)"""
    save_every: int | None = None
    """Optimizer steps between checkpoints. None: one at the end of each epoch. (main_dino)"""
    keep: int = 2
    """Training states kept: the newest, and older ones for when it cannot be read. Ours."""

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_numbers()
        self._check_relations()

    @property
    def n_views(self) -> int:
        """Crops per image: 2 global and the local ones."""
        return 2 + self.local_crops_number

    def _check_choices(self) -> None:
        check_device_name(self.device)
        for name, choices in (
            ("optimizer", get_args(OptimizerName)),
            ("clip_mode", get_args(ClipMode)),
            ("dtype", get_args(DtypeName)),
            ("augment_on", get_args(AugmentOn)),
            ("on_bad_sample", get_args(OnBadSample)),
            ("on_not_finite", get_args(OnNotFinite)),
        ):
            value = getattr(self, name)
            if value not in choices:
                near = difflib.get_close_matches(str(value), choices, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ValueError(f"{name} is {value!r}, expected one of {', '.join(choices)}{hint}")

    def _check_numbers(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            low, high = _RANGES.get(field.name, (-math.inf, math.inf))
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, int | float) and not low <= number <= high:
                    raise ValueError(f"{field.name} is {value}, expected from {low:g} to {high:g}")

    def _check_relations(self) -> None:
        for name in ("global_crops_scale", "local_crops_scale", "blur_radius"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} is {low, high}, expected a range (low, high) with 0 < low <= high")
        if self.compile and self.pack:
            raise ValueError("compile and pack are both on: packing cannot be compiled, choose one")
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs is {self.warmup_epochs}, more than epochs = {self.epochs}: lower it")


_POSITIVE_INTS = (
    *("frame_stride", "frames_per_video", "out_dim", "head_layers", "head_hidden_dim", "head_bottleneck_dim"),
    *("global_crop_size", "local_crop_size", "batch_size", "accumulate", "epochs", "max_steps"),
    *("log_every", "save_every", "keep"),
)
_POSITIVE = 1e-9
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(_POSITIVE_INTS, (1, math.inf)),
    **dict.fromkeys(("student_temp", "warmup_teacher_temp", "teacher_temp", "lr"), (_POSITIVE, math.inf)),
    **dict.fromkeys(("min_lr", "weight_decay", "weight_decay_end", "clip_grad"), (0, math.inf)),
    **dict.fromkeys(("warmup_epochs", "warmup_teacher_temp_epochs", "freeze_last_layer"), (0, math.inf)),
    **dict.fromkeys(("local_crops_number", "num_workers", "seed"), (0, math.inf)),
    **dict.fromkeys(("center_momentum", "momentum_teacher", "max_bad_samples"), (0, 1)),
    "drop_path_rate": (0, 0.99),
    **dict.fromkeys(("flip_prob", "jitter_prob", "gray_prob", "blur_probs", "solarize_prob"), (0, 1)),
    **dict.fromkeys(("global_crops_scale", "local_crops_scale"), (0, 1)),
}
"""Field -> smallest and largest allowed value, both included; for a tuple, of each element."""
