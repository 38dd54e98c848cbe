"""Options of the intervals that a comparison gives."""

from dataclasses import dataclass


@dataclass(frozen=True)
class IntervalConfig:
    """How intervals are made"""

    bootstrap: int = 10_000
    """Resamples of the samples."""
    confidence: float = 0.95
    """Share of intervals that hold the true difference."""
    seed: int = 0
    """Of the resamples."""

    def __post_init__(self) -> None:
        if self.bootstrap < 1:
            raise ValueError(f"bootstrap is {self.bootstrap}: expected 1 resample or more")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence is {self.confidence}: expected more than 0 and less than 1")
