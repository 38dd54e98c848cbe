"""The base class of pretraining losses: heads, loss, running statistics, options and log columns in one class.

Shapes: V views of an image (2 global ones first), b images in a micro-batch, N patches of a global crop, C channels.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor, nn

Watch = Callable[[int, Mapping[str, float]], str | None]
"""(optimizer steps done, a row of the log) -> a warning, or None."""


class Views(NamedTuple):
    """Features of a micro-batch's crops from one network."""

    cls: Tensor
    """[V*b, C] class tokens (pooled features of a conv net), view-major; only global views for the teacher."""
    patches: Tensor | None = None
    """[2*b, N, C] patch tokens of the global crops, normalized; None if no objective needs them."""
    masks: Tensor | None = None
    """bool [2*b, N] on the CPU: patches of the global crops that the mask token replaced for the student; or None."""
    crops: Tensor | None = None
    """[2*b, 3, G, G] the global crops, normalized; None if no objective needs patches."""
    larger: Tensor | None = None
    """Of the teacher: [2*b, 3, H, H] the global crops cut at a larger size, normalized; None if none were cut."""

    def tokens(self) -> Tensor:
        """`patches`, for an objective that `needs_patches`."""
        if self.patches is None:
            raise ValueError("the network gave no patch tokens: set needs_patches in the objective")
        return self.patches


class Step(NamedTuple):
    """The position in a run that a loss may depend on."""

    number: int
    """Optimizer steps done before it."""
    epoch: int
    """Passes over the data done before it."""


class Terms(NamedTuple):
    """A loss and its values, means over the images of one micro-batch."""

    loss: Tensor
    """Scalar, with gradient to the student."""
    logged: Mapping[str, Tensor]
    """Column -> scalar without gradient, for log.csv."""
    statistics: Mapping[str, Tensor]
    """Inputs of `Objective.after_step`, which receives their means over the step's micro-batches."""


class Objective(nn.Module):
    """One term of the training loss. Each file of `objectives/` defines a subclass and sets `OBJECTIVE` to it.

    Parameters, buffers and modules of an objective are saved with the run under its name. `student_head` is trained;
    `teacher_head` begins as its copy and is its moving average, as the teacher is the student's.

    Args:
        options: the run's settings, which include the fields of `Options`.
        width: C.
    """

    Options: ClassVar[type | None] = None
    """Frozen dataclass of its settings, which become command-line options. Field names begin with the objective's
    name, so that they are unique."""
    columns: ClassVar[tuple[str, ...]] = ()
    """Its columns of log.csv: the keys of `logged` and `scheduled`."""
    needs_patches: ClassVar[bool] = False
    couples: Literal["process", "all"] | None = None
    """If the loss of an image depends on other images of the micro-batch: of its process, or of all processes. A run
    then resumes only with the same --accumulate and, with `process`, the same number of processes."""

    student_head: nn.Module | None
    teacher_head: nn.Module | None

    def __init__(self, options: Any, width: int) -> None:
        super().__init__()
        self.options, self.width = options, width
        self.student_head = self.teacher_head = None

    def connect(self, objectives: Mapping[str, "Objective"], teacher: nn.Module) -> None:
        """Called once after all objectives and the teacher are built, with initial weights.

        Raises:
            ValueError: something that this objective needs is missing.
        """

    def masks(self, step: Step, slots: Sequence[int], grid: tuple[int, int]) -> Tensor | None:
        """The patches to mask for the student: bool [2*b, N], view-major; None for no mask.

        A function of the step and each image's slot in the global batch, so that no split changes it.
        """
        return None

    def forward(self, student: Views, teacher: Views, step: Step) -> Terms:
        """The loss of one micro-batch; gradients go to `student` and `student_head` only."""
        raise NotImplementedError

    def weight(self, step: Step) -> float:
        """Factor on the loss in the sum of all objectives."""
        return 1.0

    def hold_gradients(self, step: Step) -> None:
        """Called when a step's gradients are complete. It may set gradients to None to freeze parameters."""

    def after_step(self, statistics: Mapping[str, Tensor]) -> None:
        """Called once in each optimizer step, after the student's update; not for a skipped step."""

    def scheduled(self, step: Step) -> dict[str, float]:
        """Columns with a value that depends on the step only."""
        return {}

    def watch(self, quiet_steps: int) -> Watch | None:
        """A function that checks logged rows, except in the first `quiet_steps` steps."""
        return None

    def levels(self) -> dict[str, float]:
        """Label -> value of a horizontal line in the loss curve."""
        return {}
