"""The options of linear classification."""

from dataclasses import dataclass
from typing import Literal

from dino_dense.config.schema import path, runtime
from tasks.images.options import ImageFeatureOptions


@dataclass(frozen=True)
class LinearConfig(ImageFeatureOptions):
    """Images, features and training of the heads"""

    data: str | None = path()
    """Folder with train/CLASS/* and val/CLASS/* (or test/); without it, the embedded set."""
    solver: Literal["sgd", "lbfgs"] = "sgd"
    """sgd: one linear layer for each learning rate (eval_linear.py). lbfgs: logistic regression by scikit-learn on
    cached features, with settings of our own; --preset dinov2 has dinov2's."""
    features: Literal["augmented", "cached"] = "augmented"
    """augmented: random resized crop and flip, a forward pass per image and epoch (eval_linear.py); cached: the center
    square, one forward pass per image (ours, for laptops)."""
    blocks: int | None = None
    """Number of last blocks whose class tokens are joined; null: 4 below 768 channels, else 1 (eval_linear.py: ViT-S 4,
    ViT-B 1). For other layers than the last ones give --blocks 1 and --layers."""
    mean_patch: bool | None = None
    """Join the mean patch token of the last block too; null: from 768 channels on (eval_linear.py: ViT-B)."""
    epochs: int = 100
    """Passes over the training images (eval_linear.py)."""
    batch_size: int = 1024
    """Images per step, over all processes (eval_linear.py)."""
    lrs: tuple[float, ...] = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
    """Learning rates to try, one layer for each. Each rate is multiplied by batch_size / 256. (The values are those of
    dinov2's linear.py; DINO's paper tries several too, and does not name them.)"""
    momentum: float = 0.9
    """Momentum of SGD (eval_linear.py); no weight decay."""
    strengths: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
    """Values of C for lbfgs, the inverse of the L2 penalty (range of dinov2's log_regression.py, which tries 45)."""
    standardize: bool = True
    """lbfgs: give each channel mean 0 and deviation 1, so that C means the same for every backbone (dinov2 does
    not)."""
    tolerance: float = 1e-4
    """lbfgs: stop when no component of the gradient is larger (default of scikit-learn; dinov2 has 1e-12)."""
    double: bool = False
    """lbfgs: compute in float64 (dinov2), which takes twice the memory."""
    select: Literal["auto", "val", "heldout", "random"] = "auto"
    """Images on which candidates (learning rates, or values of C) are compared; the best gives the result.
    val: the test images themselves, as eval_linear.py does, so that the result is slightly too high.
    heldout: a tenth of each class's training images, kept out of training.
    random: a tenth of all training images, drawn by seed 0 (log_regression.py).
    With heldout and random, lbfgs is then fitted once more on all training images. auto: val for sgd, heldout for
    lbfgs."""
    extraction_batch: int = runtime(64)
    """Images extracted at once; does not change the result."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "batch_size", "extraction_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: expected 1 or more")
        for name in ("lrs", "strengths"):
            if not getattr(self, name) or min(getattr(self, name)) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: expected one or more positive numbers")
        if self.blocks is not None and self.blocks < 1:
            raise ValueError(f"blocks is {self.blocks}: expected 1 or more")
        if self.tolerance <= 0:
            raise ValueError(f"tolerance is {self.tolerance}: expected more than 0")

    @property
    def selection(self) -> Literal["val", "heldout", "random"]:
        """`select`, decided."""
        if self.select == "auto":
            return "val" if self.solver == "sgd" else "heldout"
        return self.select

    @property
    def is_cached(self) -> bool:
        """Whether training features are extracted once."""
        return self.features == "cached" or self.solver == "lbfgs"
