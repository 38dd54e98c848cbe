"""The constants of probes on frozen features."""

from dataclasses import dataclass, replace
from typing import Any, Literal, Self


@dataclass(frozen=True)
class PixelProbe:
    """Training and use of the linear layer (defaults: DINOv3, arXiv 2508.10104, App. D)"""

    steps: int = 40_000
    """Optimizer steps (DINOv3's linear segmentation, arXiv 2508.10104, App. D)."""
    epochs: int | None = None
    """In place of steps: turns over the training images, each of whole batches (NeCo: 25)."""
    batch_size: int = 16
    """Crops per step, over all processes (DINOv3)."""
    lr: float = 1e-3
    """Highest learning rate (DINOv3 sweeps 1e-4, 3e-4, 1e-3)."""
    weight_decay: float = 1e-3
    """Weight decay (DINOv3 sweeps 1e-4, 1e-3)."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """sgd has a momentum of 0.9 (NeCo)."""
    schedule: Literal["cosine", "linear", "step"] = "cosine"
    """Of the learning rate over all steps: half a cosine to 0 (DINOv3); a line to 0 (DINOv2's poly of power 1); step: a
    tenth after four fifths of the steps (NeCo: after 20 of 25 epochs)."""
    warmup: int = 1500
    """Steps of warm-up, at most a tenth of all steps (config-ade20k-linear-training.yaml)."""
    dropout: float = 0.1
    """Share of the channels that are set to 0 in each training crop (dropout before the layer; dinov3,
    linear_head.py)."""
    batch_norm: bool = True
    """Whether a batch norm comes before the layer (DINOv2, DINOv3)."""
    init: Literal["normal", "uniform"] = "normal"
    """First weights of the layer: normal with a standard deviation of 0.01 and no bias (DINOv2, DINOv3), or uniform as
    PyTorch draws them (NeCo)."""
    blocks: int = 1
    """Last layers whose patch tokens are joined, each after the final norm (DINOv2's +ms: 4)."""
    void: Literal["counted", "left out"] = "counted"
    """Whether pixels without a class count in the mean of the loss, as 0 (DINOv2, DINOv3)."""
    side: int | None = None
    """Side of the square, pixels, at which logits (bilinear) and masks (nearest) are compared, in training and in the
    score (NeCo: 100); None: at the crop, and at the image's own size."""
    crop: int = 512
    """Side of training crops, windows and squares, and short side of whole images, pixels (DINOv3); must be a multiple
    of the patch size: 518 for patch 14."""
    crops: Literal["cut", "stretched"] = "cut"
    """Training crops. cut: of the image at a random scale (DINOv3); stretched: a part of the image of random area, and
    3:4 to 4:3, is stretched to the square (NeCo)."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Range of the short side of a training image before its crop, as a multiple of `crop` (DINOv3); of stretched crops
    the range of their share of the image's area (NeCo: 0.8 to 1)."""
    class_share: float = 0.75
    """Largest share of one class among the labeled pixels of a training crop that is cut. A crop that reaches it is
    drawn again, ten times at most (dinov3, transforms.py). 1: no crop is drawn again."""
    distort: bool = True
    """Change brightness, contrast, saturation and hue of training crops (dinov3, `PhotoMetricDistortion`)."""
    augment: bool = True
    """true: random crops, flips and colors (dinov3). false, for laptops: train on the middle square of each image, with
    its short side at `crop`, or, if crops are stretched, on the whole image. Tokens are then extracted once and kept in
    memory; scale, class_share and distort have no effect."""
    window: Literal["whole", "slide", "square"] = "slide"
    """How an image is predicted, after its short side is resized to `crop`. slide: in square windows of side `crop`;
    where windows overlap, their logits are averaged (DINOv3). whole: the image at once (not in DINOv3). square: the
    image is stretched to a square of side `crop` (NeCo)."""
    stride: int | None = None
    """Distance between two windows, pixels; null: two thirds of the crop, rounded down (DINOv3: 341 of 512)."""
    test_scales: tuple[float, ...] = (1.0,)
    """Sizes at which an image is predicted, as multiples of `crop`, from 1 up; the shares of the classes are averaged
    (DINOv2's +ms)."""
    test_flip: bool = False
    """Whether each size is predicted for the mirrored image too, and averaged (DINOv2's +ms)."""
    evaluations: int = 8
    """Number of evaluations on the images of --split during the training. The best is reported, as in dinov3 (train.py:
    every 5000 of 40,000 steps) and NeCo (25), so that the result is slightly too high. 1: only the final layer is
    evaluated."""
    absent: Literal["left out", "zero"] = "left out"
    """Whether a class that is neither there nor predicted counts not at all in the mean, or as IoU 0 (NeCo)."""

    def __post_init__(self) -> None:
        check_counts(self, "steps", "epochs", "batch_size", "blocks", "crop", "stride", "evaluations", "side")
        if not self.test_scales or min(self.test_scales) < 1:
            raise ValueError(f"test_scales is {self.test_scales}: expected multiples of the crop, 1 or more")
        if self.window == "square" and self.test_scales != (1.0,):
            raise ValueError(f"test_scales is {self.test_scales}, and window square: squares have one size")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale is {self.scale}: expected a range (low, high) with 0 < low <= high")
        if not 0 <= self.dropout < 1 or not 0 < self.class_share <= 1:
            raise ValueError(
                f"dropout is {self.dropout} and class_share {self.class_share}: expected 0 to below 1, and above 0 to 1"
            )
        if self.window == "slide" and self.stride is not None and self.stride > self.crop:
            raise ValueError(f"stride {self.stride} is larger than crop {self.crop}: pixels would be left out")

    @property
    def window_stride(self) -> int:
        """`stride`, decided, pixels."""
        return max(1, 2 * self.crop // 3) if self.stride is None else self.stride

    def with_steps(self, images: int) -> Self:
        """The same with the steps that `epochs` means for so many training images."""
        if self.epochs is None:
            return self
        return replace(self, steps=self.epochs * max(1, images // self.batch_size), epochs=None)


@dataclass(frozen=True)
class DepthProbe:
    """How the depth head is trained and applied (defaults: DINOv3, eval/depth/configs/config-nyu.yaml)"""

    head: Literal["linear", "neighbors"] = "linear"
    """linear: a linear layer is trained; neighbors: nothing is, a patch gets the depths of the nearest patches of the
    training images (in-context depth, Hummingbird), and steps to upsample, and bins, are unused."""
    steps: int = 38_400
    """Optimizer steps."""
    batch_size: int = 16
    """Images a step, over all processes (DINOv3: 2 on each of 8 GPUs)."""
    loss_images: int = 2
    """Images whose pixels one loss is computed from; a step takes the mean of these losses (a GPU has 2)."""
    lr: float = 3e-4
    """Of AdamW at its peak."""
    weight_decay: float = 1e-4
    """Of AdamW."""
    beta2: float = 0.99
    """Of AdamW."""
    schedule: Literal["dinov3", "dinov2"] = "dinov3"
    """Both: the learning rate is half a cosine over all steps, times a linear warm-up. dinov3: beta1 of AdamW is 0 in
    the warm-up, then rises from the lower to the higher momentum; dinov2: it falls from the higher to the lower in the
    first 30 % of the steps, then rises."""
    momentum: tuple[float, float] = (0.85, 0.95)
    """Lowest and highest beta1 of AdamW (see schedule)."""
    warmup: int = 12_800
    """Steps of linear warm-up, at most a third of all."""
    start: float = 1e-3
    """Share of the learning rate at which the warm-up begins."""
    final: float = 4e-5
    """Share of the learning rate at the last step (DINOv3: a thousandth of a 25th)."""
    clip: float = 35.0
    """Largest norm of the gradient."""
    blocks: int = 1
    """Layers whose patch tokens are joined, evenly spaced; of four: 3, 6, 9, 12 of 12; 5, 12, 18, 24 of 24; 10, 20,
    30, 40 of 40 (DINOv2)."""
    final_norm: bool = True
    """Whether the tokens go through the network's final norm."""
    class_token: bool = False
    """Whether the class token is joined to every patch (DINOv2)."""
    batch_norm: bool = True
    """Whether the head begins with a batch norm (DINOv3)."""
    init: Literal["normal", "uniform"] = "normal"
    """First weights of the linear layer: normal with a standard deviation of 0.01 and no bias (DINOv3), or uniform as
    PyTorch draws them (DINOv2)."""
    upsample: int = 1
    """Bilinear factor of the tokens before the head (DINOv2: 4)."""
    padding: Literal["kept", "cut"] = "kept"
    """Images are padded to whole patches. kept: the prediction of the padded image is stretched to the image's size, as
    the references do; cut: the padding is cut off it. Equal where the image consists of whole patches."""
    bins: int = 256
    """Depths whose weighted mean is predicted, uniform from min_depth to max_depth; 1: the output is the depth."""
    min_depth: float = 0.001
    """Meters; truth at or below it is not scored."""
    max_depth: float = 10.0
    """Meters; truth at or above it is not scored (KITTI: 80)."""
    frame: Literal["whole", "kb"] = "whole"
    """Part of every image that is used, in training and in the score. kb: its lowest 352 rows and middle 1216 columns
    (KITTI)."""
    crop: tuple[int, int] = (416, 544)
    """Height and width of training crops, pixels."""
    border: tuple[int, int, int, int] = (43, 45, 608, 472)
    """Of training images: the box x0, y0, x1, y1 of a 640 x 480 image that is used, scaled to the image (NYUv2 has a
    white border); 0,0,640,480 takes all."""
    rotation: float = 2.5
    """Half of the training images are turned by up to so many degrees."""
    gamma: tuple[float, float] = (0.9, 1.1)
    """Range of a random exponent of the colors (0 to 255) of half of the training images; larger results are 255."""
    brightness: tuple[float, float] = (0.75, 1.25)
    """Range of a random factor of the same images."""
    tint: tuple[float, float] = (0.9, 1.1)
    """Range of a random factor of each color of the same images."""
    augment: bool = True
    """False: the middle crop of every training image, its tokens extracted once and kept in memory (for laptops).
    Ours."""
    memory_size: int = 10_240_000
    """Of neighbors: patches that the memory may have, the same number of each image, at random; 0 keeps every patch."""
    neighbors: int = 30
    """Patches whose depths are averaged."""
    temperature: float = 0.02
    """The average weighs exp(cosine / temperature)."""
    flip: bool = True
    """Whether the prediction is the mean of the image's and its mirror image's."""
    region: Literal["all", "eigen", "garg"] = "eigen"
    """Which part is scored: all; eigen: rows 45 to 471, columns 41 to 601 of 480 x 640 (NYUv2); garg (KITTI);
    scaled to the image."""

    def __post_init__(self) -> None:
        check_counts(self, "steps", "batch_size", "loss_images", "blocks", "upsample", "bins", "neighbors")
        if not 0 < self.min_depth < self.max_depth:
            raise ValueError(f"min_depth {self.min_depth} and max_depth {self.max_depth}: expected 0 < min < max")
        if min(self.crop) < 1 or self.lr <= 0 or self.temperature <= 0:
            raise ValueError(
                f"crop {self.crop}, lr {self.lr}, temperature {self.temperature}: expected numbers above 0"
            )
        for name in ("gamma", "brightness", "tint"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} is {low}, {high}: expected a range (low, high) with 0 < low <= high")


def check_counts(config: Any, *names: str) -> None:
    """ValueError for the first of these fields that is set and below 1."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}: expected 1 or more")
