"""Propagation of one frame and of a list of frames, by the parts that production uses."""

from collections.abc import Iterable

import torch
from torch import Tensor

from dino_dense.propagation.protocol import PropagationProtocol
from dino_dense.propagation.search import ContextFrames, Neighborhood, unit_features
from dino_dense.propagation.stream import DEFAULT_MAX_BYTES, LabelPropagator


@torch.no_grad()
def carry_to_frame(
    target: Tensor, sources: Tensor, labels: Tensor, neighborhood: Neighborhood, max_bytes: int = DEFAULT_MAX_BYTES
) -> Tensor:
    """Labels [C, h, w] of a frame: its features [h*w, D], those of its context [n, D, h*w], labels [n, C, h, w]."""
    n, channels, h, w = labels.shape
    context = ContextFrames((target.shape[1], h, w), channels, n, neighborhood, max_bytes, target.device)
    for features, label in zip(sources, labels, strict=True):
        context.add(unit_features(features.unflatten(1, (h, w)), (h, w)), label.float())
    return context.propagate(unit_features(target.T.unflatten(1, (h, w)), (h, w)))


def carry_through(features: Iterable[Tensor], first: Tensor, protocol: PropagationProtocol) -> list[Tensor]:
    """Labels of every frame, the first among them: features [D, h, w] of each, labels [C, h, w] of the first."""
    propagator = LabelPropagator(protocol)
    return [propagator.step(frame, None if index else first) for index, frame in enumerate(features)]
