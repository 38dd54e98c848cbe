"""All masks of a DAVIS sequence at once."""

from pathlib import Path

import numpy as np

from data.davis import VideoSequence, read_prediction


def all_masks(sequence: VideoSequence) -> np.ndarray:
    """Object ids uint8 [T, H, W] of all frames; void is background."""
    return np.stack([sequence.read_mask(index) for index in range(len(sequence))])


def all_predictions(folder: Path, sequence: VideoSequence) -> np.ndarray:
    """Predicted ids uint8 [T, H, W]; the first and the last frame, which are not scored, stay 0."""
    predicted = np.zeros((len(sequence), *sequence.size), np.uint8)
    for index in range(1, len(sequence) - 1):
        predicted[index] = read_prediction(folder, sequence, index)
    return predicted
