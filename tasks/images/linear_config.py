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
    """sgd (eval_linear.py), or lbfgs: logistic regression by scikit-learn on cached features. By these defaults it is
    ours; dinov2's is the preset dinov2."""
    features: Literal["augmented", "cached"] = "augmented"
    """augmented: random resized crop and flip, a forward pass per image and epoch (eval_linear.py); cached: the center
    square, one forward pass per image (ours, for laptops)."""
    blocks: int | None = None
    """Class tokens of the last n blocks. None: 4 below 768 channels, else 1 (eval_linear.py: ViT-S 4, ViT-B 1)."""
    mean_patch: bool | None = None
    """Also use the last block's mean patch token. None: from 768 channels on (eval_linear.py: ViT-B)."""
    epochs: int = 100
    """Passes over the training images (eval_linear.py)."""
    batch_size: int = 1024
    """Images per step, over all processes (eval_linear.py)."""
    lrs: tuple[float, ...] = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
    """Learning rates for a batch of 256, all trained together (grid of dinov2's linear.py; the paper sweeps too)."""
    momentum: float = 0.9
    """Momentum of SGD (eval_linear.py); no weight decay."""
    strengths: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
    """Values of C for lbfgs, the inverse of the L2 penalty (range of dinov2's log_regression.py, which tries 45)."""
    standardize: bool = True
    """lbfgs: give each channel mean 0 and deviation 1, so that C means the same for every backbone. Ours; dinov2 does
    not."""
    tolerance: float = 1e-4
    """lbfgs stops where no gradient is larger (default of scikit-learn; dinov2 has 1e-12)."""
    double: bool = False
    """lbfgs: compute in float64 (dinov2), which takes twice the memory."""
    select: Literal["auto", "val", "heldout", "random"] = "auto"
    """Where the best candidate is chosen. val: on the test images (eval_linear.py). heldout: on a tenth of each class's
    training images (ours). random: on a tenth of all training images, drawn by seed 0 (log_regression.py). After the
    last two lbfgs is fitted again on all training images. auto: val for sgd, heldout for lbfgs."""
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
