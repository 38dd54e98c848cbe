"""A pretraining loss as a part: heads, loss, running statistics, options and columns of the log in one class.

Shapes: V views of an image (2 global ones first), b images in a micro-batch, N patches of a global crop, C channels.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor, nn

Watch = Callable[[int, Mapping[str, float]], str | None]
"""(optimizer steps done, a row of the log) -> a warning in plain words, or None."""


class Views(NamedTuple):
    """Features that one network has of a micro-batch's crops."""

    cls: Tensor
    """[V*b, C] class tokens (pooled features of a conv net), view-major; the teacher has the global views alone."""
    patches: Tensor | None = None
    """[2*b, N, C] patch tokens of the global crops, normalized; None where no objective needs them."""
    masks: Tensor | None = None
    """bool [2*b, N] on the CPU: patches of the global crops that the student saw as the mask token; None: none."""
    crops: Tensor | None = None
    """[2*b, 3, G, G] the global crops, normalized; None where no objective needs patches."""

    def tokens(self) -> Tensor:
        """`patches`, where an objective that `needs_patches` asks for them."""
        if self.patches is None:
            raise ValueError("the network gave no patch tokens: the objective must say needs_patches")
        return self.patches


class Step(NamedTuple):
    """The moment of a run that a loss may depend on."""

    number: int
    """Optimizer steps done before it."""
    epoch: int
    """Passes over the data done before it."""


class Terms(NamedTuple):
    """A loss and its numbers, means over the images of one micro-batch."""

    loss: Tensor
    """Scalar, with gradient to the student."""
    logged: Mapping[str, Tensor]
    """Column -> scalar without gradient, for log.csv."""
    statistics: Mapping[str, Tensor]
    """For `Objective.after_step`, which gets their means over the step's micro-batches."""


class Objective(nn.Module):
    """One term of the training loss. A file of `objectives/` defines one, and its `OBJECTIVE` names it.

    Parameters, buffers and modules of an objective are saved with the run under its name. `student_head` learns by
    gradients; `teacher_head` begins as its copy and follows it as the teacher follows the student.

    Args:
        options: the run's settings, those of `Options` among them.
        width: C.
    """

    Options: ClassVar[type | None] = None
    """Frozen dataclass of its settings, which become options of the command line; the names begin with the
    objective's, so that no two objectives share one."""
    columns: ClassVar[tuple[str, ...]] = ()
    """Its columns of log.csv: the names that `logged` and `scheduled` give."""
    needs_patches: ClassVar[bool] = False
    couples: Literal["process", "all"] | None = None
    """Whether the loss of an image depends on the others of its micro-batch: those of its process, or of all. A run
    is then only continued with the same --accumulate, and with `process` in as many processes."""

    student_head: nn.Module | None
    teacher_head: nn.Module | None

    def __init__(self, options: Any, width: int) -> None:
        super().__init__()
        self.options, self.width = options, width
        self.student_head = self.teacher_head = None

    def connect(self, objectives: Mapping[str, "Objective"], teacher: nn.Module) -> None:
        """Called once, when all objectives and the teacher are built, with the seed's first weights.

        Raises ValueError where something that this objective needs is not there.
        """

    def masks(self, step: Step, slots: Sequence[int], grid: tuple[int, int]) -> Tensor | None:
        """The patches that the student is not to see: bool [2*b, N], view-major; None: it sees all.

        A function of the step and of each image's slot in the batch of all processes, so that no split changes it.
        """
        return None

    def forward(self, student: Views, teacher: Views, step: Step) -> Terms:
        """The loss of one micro-batch; gradients go to `student` and to `student_head` alone."""
        raise NotImplementedError

    def weight(self, step: Step) -> float:
        """Factor on the loss in the sum of all objectives."""
        return 1.0

    def hold_gradients(self, step: Step) -> None:
        """Called when a step's gradients are complete: may set some to None, and so keep those parameters still."""

    def after_step(self, statistics: Mapping[str, Tensor]) -> None:
        """Called once in each optimizer step, after the student has moved; not for a step that is skipped."""

    def scheduled(self, step: Step) -> dict[str, float]:
        """Columns whose value is a function of the step alone."""
        return {}

    def watch(self, quiet_steps: int) -> Watch | None:
        """A judge of the logged rows, which does not count the first `quiet_steps` steps."""
        return None

    def levels(self) -> dict[str, float]:
        """Label -> a value that the loss curve shows as a horizontal line."""
        return {}
