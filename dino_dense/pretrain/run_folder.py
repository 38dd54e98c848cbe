"""The run folder: config, exact training state, and the rules for starting and resuming a run."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from dino_dense.backbone.dino_vit import describe
from dino_dense.checkpoint import STATE_FILE, TEACHER_FILE, CheckpointError, Weights, read_tensors, write_tensors
from dino_dense.config import schema
from dino_dense.files import clear_unfinished, write_text
from dino_dense.pretrain.config import FREE_ON_RESUME, PretrainConfig
from dino_dense.pretrain.step import Learner, TrainingState
from dino_dense.training.optimizer_state import load_optimizer_tensors, optimizer_tensors
from dino_dense.training.sharding import stored_as_in, whole

CONFIG_FILE = "config.yaml"
EARLIER_FILE = "earlier-{}.safetensors"
"""Training states before the last: 1 is the youngest."""
BEST_FILE = "best.safetensors"
"""With rollback: the training state with the best measurements."""
DAMAGED = ".damaged"
"""Suffix of a checkpoint that was unreadable and skipped."""
EARLIER_NAMES = {
    "student.head.": "objectives.dino.student_head.",
    "teacher.head.": "objectives.dino.teacher_head.",
    "loss.": "objectives.dino.loss.",
    "optimizer.backbone.": "optimizer.student.backbone.",
    "optimizer.head.": "optimizer.objectives.dino.student_head.",
}
"""Old prefixes of names (from when DINO was the only objective) -> present prefixes."""


class RunError(ValueError):
    """A run folder that cannot be used as asked. The message names it and says what to do."""


@dataclass(frozen=True)
class ResumePoint:
    """The state that a run resumes from."""

    step: int
    """Optimizer steps done."""
    file: Path
    damaged: tuple[CheckpointError, ...]
    """The errors of younger, unusable states."""
    changes: tuple[str, ...]
    """Changed settings, none of which changes the mathematics of a step."""


def check_folder(run: Path, resume: bool | str) -> bool:
    """Whether to resume from a state in the folder: as `resume` says, or if there is a state ("auto").

    A folder where a run stopped before its first checkpoint counts as unused.

    Raises:
        RunError: a run would be overwritten, or there is none to resume.
    """
    has_state = any(state_files(run))
    if resume is True and not has_state:
        raise RunError(f"{run}: no {STATE_FILE} to resume from. Start without --resume, or name the run's folder.")
    if not resume and has_state:
        raise RunError(f"{run}: already holds a run. Continue it with --resume, or name another folder with --out.")
    return has_state


def state_files(run: Path) -> list[Path]:
    """The training states in a run folder, the youngest first."""
    earlier = sorted(run.glob(EARLIER_FILE.format("*")), key=_age)
    return [path for path in (run / STATE_FILE, *earlier) if path.is_file()]


def _age(path: Path) -> int:
    number = path.stem.rpartition("-")[2]
    return int(number) if number.isdecimal() else 0


def open_folder(run: Path, config: PretrainConfig, damaged: tuple[CheckpointError, ...] = ()) -> None:
    """Prepare the folder: write RUN/config.yaml with every field, enough to repeat or resume the run.

    Removes partial files of a killed run, and renames unreadable states.
    """
    write_text(run / CONFIG_FILE, schema.to_yaml(replace(config, resume=False)))
    clear_unfinished(run)
    for path in state_files(run)[: len(damaged)]:
        path.replace(path.with_suffix(DAMAGED))


class Snapshot(NamedTuple):
    """A training state with whole weights, to be written."""

    state: TrainingState
    tensors: Weights
    """Of the main process; empty in others if the processes share out the weights."""


def snapshot(state: TrainingState) -> Snapshot:
    """The state as it is to be written. All processes call it together."""
    tensors = {
        **state.learner.state_dict(),  # student.backbone.*, objectives.NAME.*
        **{f"teacher.{name}": weight for name, weight in state.teacher.state_dict().items()},
        **{f"optimizer.{name}": value for name, value in optimizer_tensors(state.optimizer, state.learner).items()},
    }
    return Snapshot(state, whole(tensors))


def save_teacher(path: Path, taken: Snapshot, about: Mapping[str, Any]) -> None:
    """Write the teacher's backbone as one file for the tasks."""
    described = {"architecture": describe(taken.state.teacher.backbone), **about}
    write_tensors(path, _under(taken.tensors, "teacher.backbone."), described)


def save_state(
    run: Path, taken: Snapshot, step: int, config: PretrainConfig, fingerprint: str, world_size: int
) -> None:
    """Write RUN/teacher.safetensors (for tasks) and RUN/last.safetensors (the full state, for an exact resume).

    Each file is replaced atomically. The teacher comes first: after a crash in between, the run repeats the steps
    since the last state, and makes the same teacher again. Older states stay as RUN/earlier-N.safetensors.
    """
    about = _about(step, config, fingerprint)
    save_teacher(run / TEACHER_FILE, taken, about)
    fresh = run / EARLIER_FILE.format(0)
    _write_state(fresh, taken, about, config, world_size)
    _rotate(run, config.keep)
    fresh.replace(run / STATE_FILE)


def save_best(run: Path, taken: Snapshot, step: int, config: PretrainConfig, fingerprint: str, world_size: int) -> None:
    """Write RUN/best.safetensors, the full state, beside the states that `save_state` rotates."""
    _write_state(run / BEST_FILE, taken, _about(step, config, fingerprint), config, world_size)


def restore_best(run: Path, state: TrainingState, config: PretrainConfig, fingerprint: str, world_size: int) -> int:
    """Write the state of RUN/best.safetensors as `save_state` does. Returns its step.

    The weights in memory stay as they are; the scale of the losses becomes the file's.
    """
    tensors, metadata = read_tensors(run / BEST_FILE)
    state.scaler.load_state_dict(metadata["scaler"])
    save_state(run, Snapshot(state, tensors), int(metadata["step"]), config, fingerprint, world_size)
    return int(metadata["step"])


def _about(step: int, config: PretrainConfig, fingerprint: str) -> dict[str, Any]:
    return {"step": step, "config": schema.to_plain(config), "images": fingerprint}


def _write_state(
    path: Path, taken: Snapshot, about: Mapping[str, Any], config: PretrainConfig, world_size: int
) -> None:
    state = taken.state
    extra = {
        "architecture": describe(state.teacher.backbone),
        "scaler": state.scaler.state_dict(),
        "world_size": world_size,
        "statistics_over": _statistics_over(state.learner, config, world_size),
    }
    write_tensors(path, taken.tensors, {**about, **extra})


def dump_state(path: Path, taken: Snapshot, step: int) -> None:
    """Write all tensors of a state for inspection, not for a resume."""
    write_tensors(path, taken.tensors, {"step": step})


def _rotate(run: Path, keep: int) -> None:
    """Rename last -> earlier-1 -> earlier-2 and so on; `keep` counts the new last, too."""
    before = [path for path in state_files(run) if path != run / EARLIER_FILE.format(0)]
    for path in before[keep - 1 :]:
        path.unlink()
    for number, path in reversed(list(enumerate(before[: keep - 1], start=1))):
        path.replace(run / EARLIER_FILE.format(number))


def _statistics_over(learner: Learner, config: PretrainConfig, world_size: int) -> int | None:
    """Number of images that BatchNorm, or a loss that compares images, sees together; None without either."""
    norms = [module for module in learner.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    couples = {part.couples for part in learner.parts().values()} - {None}
    if not norms and not couples:
        return None
    alone = "process" in couples or (norms and not isinstance(norms[0], nn.SyncBatchNorm))
    return config.batch_size // config.accumulate // (world_size if alone else 1)


def load_state(
    run: Path, state: TrainingState, config: PretrainConfig, fingerprint: str, world_size: int
) -> ResumePoint:
    """Load the youngest readable state.

    Raises:
        RunError: settings or pictures differ from the run's, this number of processes would change its mathematics, or
            no state is readable.
    """
    (tensors, metadata), file, damaged = _read_youngest(run)
    changes = _check_same_run(run, metadata, config, fingerprint)
    changes += _check_same_world(run, metadata, _statistics_over(state.learner, config, world_size), world_size)
    try:
        _put_in_place(tensors, state)
    except (RuntimeError, KeyError) as error:
        raise RunError(
            f"{file}: its weights are not those of {config.arch} as this version builds it ({error}). "
            "Resume with the version that began the run, or start a new run with --out."
        ) from None
    state.scaler.load_state_dict(metadata["scaler"])
    return ResumePoint(int(metadata["step"]), file, tuple(damaged), tuple(changes))


def _read_youngest(run: Path) -> tuple[tuple[Weights, dict[str, Any]], Path, list[CheckpointError]]:
    damaged: list[CheckpointError] = []
    for path in state_files(run):
        try:
            return read_tensors(path), path, damaged
        except CheckpointError as error:
            damaged.append(error)
    reasons = " ".join(map(str, damaged))
    raise RunError(f"{run}: none of its states can be resumed from. {reasons} Or start a new run with --out.")


def _put_in_place(tensors: Weights, state: TrainingState) -> None:
    if "loss.center" in tensors:
        tensors = {_name_now(name): tensor for name, tensor in tensors.items()}
    others = ("teacher.", "optimizer.")
    learner = {name: value for name, value in tensors.items() if not name.startswith(others)}
    state.learner.load_state_dict(stored_as_in(state.learner, learner))
    state.teacher.load_state_dict(stored_as_in(state.teacher, _under(tensors, "teacher.")))
    load_optimizer_tensors(state.optimizer, state.learner, _under(tensors, "optimizer."))


def _name_now(name: str) -> str:
    for before, now in EARLIER_NAMES.items():
        if name.startswith(before):
            return now + name.removeprefix(before)
    return name


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _check_same_run(run: Path, metadata: dict[str, Any], config: PretrainConfig, fingerprint: str) -> list[str]:
    """The allowed changes of settings; RunError for others."""
    if not {"step", "config", "images", "scaler"} <= metadata.keys():
        raise RunError(f"{run / STATE_FILE}: not a training state. Start a new run with --out.")
    now = schema.to_plain(config)
    # A setting that is newer than the state had its default then.
    before = {**schema.to_plain(type(config)()), **metadata["config"]}
    differing = {
        field.name: f"{field.name} was {before[field.name]!r}, now {now[field.name]!r}"
        for field in fields(config)
        if before[field.name] != now[field.name]
    }
    free = FREE_ON_RESUME | config.unused
    changed = [text for name, text in differing.items() if name not in free]
    if changed:
        raise RunError(
            f"{run}: cannot resume exactly, the settings differ: {'; '.join(changed)}. "
            f"Resume with --config {run / CONFIG_FILE}, or start a new run with --out."
        )
    if metadata["images"] != fingerprint:
        raise RunError(
            f"{run}: cannot resume exactly, the images differ: {metadata['images']} then, {fingerprint} now. "
            "Name the same folder with --data, or start a new run with --out."
        )
    return [text for name, text in differing.items() if name not in {"data", "out", "resume"} | config.unused]


def _check_same_world(run: Path, metadata: dict[str, Any], statistics_over: int | None, world_size: int) -> list[str]:
    """The allowed changes of the processes; RunError if BatchNorm or a loss would see other batches."""
    before = metadata.get("statistics_over", statistics_over)
    if before != statistics_over:
        raise RunError(
            f"{run}: cannot resume exactly, batch normalization or a loss that compares images saw {before} images at "
            f"a time, now {statistics_over}: "
            "take the same number of processes and the same --accumulate, or start a new run with --out."
        )
    size = metadata.get("world_size", world_size)
    return [f"processes were {size}, now {world_size}"] if size != world_size else []
