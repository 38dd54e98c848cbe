"""Two sequences of a video task, each in a thread of its own, as on a GPU."""

import threading
from collections.abc import Iterable

import pytest

from dino_dense import Backbone
from dino_dense.propagation.video import Frame, VideoPropagator


def let_two_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the backbone's device for a GPU, and let two sequences wait for each other before they propagate.

    A task that runs one sequence after another ends with threading.BrokenBarrierError after a minute.
    """
    meeting, propagate = threading.Barrier(2), VideoPropagator.run

    def meet(self: VideoPropagator, frames: Iterable[Frame]) -> object:
        meeting.wait(60)
        return propagate(self, frames)

    monkeypatch.setattr(Backbone, "on_cpu", False)
    monkeypatch.setattr(VideoPropagator, "run", meet)
