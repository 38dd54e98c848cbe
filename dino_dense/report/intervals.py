"""Options of the confidence intervals of a comparison."""

from dataclasses import dataclass


@dataclass(frozen=True)
class IntervalConfig:
    """Confidence intervals"""

    bootstrap: int = 10_000
    """Number of bootstrap resamples."""
    confidence: float = 0.95
    """Confidence level of the intervals."""
    seed: int = 0
    """Seed of the resamples."""

    def __post_init__(self) -> None:
        if self.bootstrap < 1:
            raise ValueError(f"bootstrap is {self.bootstrap}: expected 1 resample or more")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence is {self.confidence}: expected more than 0 and less than 1")
