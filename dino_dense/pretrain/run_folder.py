"""The run folder: its config, its exact training state, and the rules for beginning and continuing a run."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dino_dense.backbone.checkpoints import save_backbone
from dino_dense.backbone.dino_vit import describe
from dino_dense.checkpoint import STATE_FILE, TEACHER_FILE, CheckpointError, Weights, read_tensors, write_tensors
from dino_dense.config import schema
from dino_dense.files import clear_unfinished, write_text
from dino_dense.pretrain.config import FREE_ON_RESUME, PretrainConfig
from dino_dense.pretrain.step import Learner, TrainingState
from dino_dense.training.optimizer_state import load_optimizer_tensors, optimizer_tensors

CONFIG_FILE = "config.yaml"
EARLIER_FILE = "earlier-{}.safetensors"
"""Training states before the last one: 1 is the youngest of them."""
DAMAGED = ".damaged"
"""Suffix of a checkpoint that was unreadable and skipped."""
EARLIER_NAMES = {
    "student.head.": "objectives.dino.student_head.",
    "teacher.head.": "objectives.dino.teacher_head.",
    "loss.": "objectives.dino.loss.",
    "optimizer.backbone.": "optimizer.student.backbone.",
    "optimizer.head.": "optimizer.objectives.dino.student_head.",
}
"""How names began in states of the time when DINO was the only objective -> how they begin now."""


class RunError(ValueError):
    """A run folder that cannot be used as asked. The message names it and says what to do."""


@dataclass(frozen=True)
class Origin:
    """What a resumed run goes on from."""

    step: int
    """Optimizer steps done."""
    file: Path
    damaged: tuple[CheckpointError, ...]
    """Why younger states could not be used."""
    changes: tuple[str, ...]
    """What differs from the run before, and changes no step's mathematics."""


def check_folder(run: Path, resume: bool | str) -> bool:
    """Whether to go on from a state in the folder, which is what `resume` says, or tells ("auto").

    A folder where a run stopped before its first checkpoint counts as unused.

    Raises RunError for a run that would be overwritten, or one to resume where there is none.
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
    """Make the folder fit to write to: RUN/config.yaml, every field, enough to repeat or to resume the run.

    What a killed run was writing is removed, and states that could not be read are set aside.
    """
    write_text(run / CONFIG_FILE, schema.to_yaml(replace(config, resume=False)))
    clear_unfinished(run)
    for path in state_files(run)[: len(damaged)]:
        path.replace(path.with_suffix(DAMAGED))


def save_state(
    run: Path, state: TrainingState, step: int, config: PretrainConfig, fingerprint: str, world_size: int
) -> None:
    """RUN/teacher.safetensors (what tasks load) and RUN/last.safetensors (everything, for an exact resume).

    Each file is replaced whole or not at all. The teacher comes first: a run that dies in between does the steps
    since the last state again, and with them this teacher. The states before stay as RUN/earlier-N.safetensors.
    """
    about = {"step": step, "config": schema.to_plain(config), "images": fingerprint}
    body = describe(state.teacher.backbone)
    extra = {
        "architecture": body,
        "scaler": state.scaler.state_dict(),
        "world_size": world_size,
        "statistics_over": _statistics_over(state.learner, config, world_size),
    }
    save_backbone(run / TEACHER_FILE, state.teacher.backbone, extra=about)
    fresh = run / EARLIER_FILE.format(0)
    write_tensors(fresh, _tensors(state), {**about, **extra})
    _rotate(run, config.keep)
    fresh.replace(run / STATE_FILE)


def dump_state(path: Path, state: TrainingState, step: int) -> None:
    """All tensors of a state that is not to be resumed from, for whoever looks into it."""
    write_tensors(path, _tensors(state), {"step": step})


def _tensors(state: TrainingState) -> Weights:
    return {
        **state.learner.state_dict(),  # student.backbone.*, objectives.NAME.*
        **{f"teacher.{name}": weight for name, weight in state.teacher.state_dict().items()},
        **{f"optimizer.{name}": value for name, value in optimizer_tensors(state.optimizer, state.learner).items()},
    }


def _rotate(run: Path, keep: int) -> None:
    """last -> earlier-1 -> earlier-2 and so on, up to `keep` states with the one that takes last's place."""
    before = [path for path in state_files(run) if path != run / EARLIER_FILE.format(0)]
    for path in before[keep - 1 :]:
        path.unlink()
    for number, path in reversed(list(enumerate(before[: keep - 1], start=1))):
        path.replace(run / EARLIER_FILE.format(number))


def _statistics_over(learner: Learner, config: PretrainConfig, world_size: int) -> int | None:
    """Images that batch normalization, or a loss that compares images, sees together; None where there is neither."""
    norms = [module for module in learner.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    couples = {part.couples for part in learner.parts().values()} - {None}
    if not norms and not couples:
        return None
    alone = "process" in couples or (norms and not isinstance(norms[0], nn.SyncBatchNorm))
    return config.batch_size // config.accumulate // (world_size if alone else 1)


def load_state(run: Path, state: TrainingState, config: PretrainConfig, fingerprint: str, world_size: int) -> Origin:
    """Put the youngest state that can be read in place.

    Raises:
        RunError: the run began with other settings or other pictures, or this number of processes would change its
            mathematics; or no state can be read.
    """
    (tensors, metadata), file, damaged = _read_youngest(run)
    changes = _check_same_run(run, metadata, config, fingerprint)
    changes += _check_same_world(run, metadata, _statistics_over(state.learner, config, world_size), world_size)
    try:
        _put_in_place(tensors, state)
    except (RuntimeError, KeyError) as error:
        raise RunError(
            f"{file}: its weights are not those of {config.arch} as this version builds it ({error}). "
            "Go on with the version that began the run, or start a new run with --out."
        ) from None
    state.scaler.load_state_dict(metadata["scaler"])
    return Origin(int(metadata["step"]), file, tuple(damaged), tuple(changes))


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
    state.learner.load_state_dict({name: value for name, value in tensors.items() if not name.startswith(others)})
    state.teacher.load_state_dict(_under(tensors, "teacher."))
    load_optimizer_tensors(state.optimizer, state.learner, _under(tensors, "optimizer."))


def _name_now(name: str) -> str:
    for before, now in EARLIER_NAMES.items():
        if name.startswith(before):
            return now + name.removeprefix(before)
    return name


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _check_same_run(run: Path, metadata: dict[str, Any], config: PretrainConfig, fingerprint: str) -> list[str]:
    """What differs and may; raises RunError for what may not."""
    if not {"step", "config", "images", "scaler"} <= metadata.keys():
        raise RunError(f"{run / STATE_FILE}: not a training state. Start a new run with --out.")
    now = schema.to_plain(config)
    # A setting of later than the state had its default then.
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
    """What differs and may; raises RunError where batch normalization, or a loss, would see other batches."""
    before = metadata.get("statistics_over", statistics_over)
    if before != statistics_over:
        raise RunError(
            f"{run}: cannot resume exactly, batch normalization or a loss that compares images saw {before} images at "
            f"a time, now {statistics_over}: "
            "take the same number of processes and the same --accumulate, or start a new run with --out."
        )
    size = metadata.get("world_size", world_size)
    return [f"processes were {size}, now {world_size}"] if size != world_size else []
