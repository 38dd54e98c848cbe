"""The run folder: its config, its exact training state, and the rules for beginning and continuing a run."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from dino_dense import cli
from dino_dense.bodies import describe
from dino_dense.checkpoint import STATE_FILE, TEACHER_FILE, read_tensors, save_backbone, write_tensors
from dino_dense.pretrain.config import FREE_ON_RESUME, PretrainConfig
from dino_dense.pretrain.loss import DINOLoss
from dino_dense.pretrain.network import MultiCropNetwork
from dino_dense.report import write_text

CONFIG_FILE = "config.yaml"


class RunError(ValueError):
    """A run folder that cannot be used as asked. The message names it and says what to do."""


class TrainingState(NamedTuple):
    """Everything that changes during training, apart from the step."""

    student: MultiCropNetwork
    teacher: MultiCropNetwork
    loss: DINOLoss
    optimizer: Optimizer
    scaler: GradScaler


def check_folder(run: Path, resume: bool) -> None:
    """Refuse to overwrite a run, or to resume where there is none.

    A folder where a run stopped before its first checkpoint counts as unused.

    Raises RunError.
    """
    if resume and not (run / STATE_FILE).is_file():
        raise RunError(f"{run}: no {STATE_FILE} to resume from. Start without --resume, or name the run's folder.")
    if not resume and (run / STATE_FILE).exists():
        raise RunError(f"{run}: already holds a run. Continue it with --resume, or name another folder with --out.")


def write_config(run: Path, config: PretrainConfig) -> None:
    """RUN/config.yaml: every field, enough to repeat the run with `--config`, or to resume it."""
    run.mkdir(parents=True, exist_ok=True)
    write_text(run / CONFIG_FILE, cli.to_yaml(replace(config, resume=False)))


def save_state(run: Path, state: TrainingState, step: int, config: PretrainConfig, fingerprint: str) -> None:
    """RUN/last.safetensors (everything, for an exact resume) and RUN/teacher.safetensors (what tasks load).

    Each file is replaced whole or not at all.
    """
    tensors: dict[str, Tensor] = {"loss.center": state.loss.center}
    for network in ("student", "teacher"):
        weights = getattr(state, network).state_dict()
        tensors |= {f"{network}.{name}": weight for name, weight in weights.items()}
    for name, parameter in state.student.named_parameters():
        values = state.optimizer.state.get(parameter, {})
        tensors |= {f"optimizer.{name}.{key}": value for key, value in values.items()}
    about = {"step": step, "config": cli.to_plain(config), "images": fingerprint}
    body = describe(state.teacher.backbone)
    extra = {"architecture": body, "scaler": state.scaler.state_dict()}
    write_tensors(run / STATE_FILE, tensors, {**about, **extra})
    save_backbone(run / TEACHER_FILE, state.teacher.backbone, extra=about)


def load_state(run: Path, state: TrainingState, config: PretrainConfig, fingerprint: str) -> int:
    """Put RUN/last.safetensors in place; returns the optimizer steps done.

    Raises RunError when the run began with other settings or other pictures.
    """
    tensors, metadata = read_tensors(run / STATE_FILE)
    _check_same_run(run, metadata, config, fingerprint)
    for network in ("student", "teacher"):
        module: nn.Module = getattr(state, network)
        module.load_state_dict(_under(tensors, f"{network}."))
    state.loss.load_state_dict(_under(tensors, "loss."))
    parameters = dict(state.student.named_parameters())
    for name, value in _under(tensors, "optimizer.").items():
        parameter_name, _, key = name.rpartition(".")
        parameter = parameters[parameter_name]
        state.optimizer.state[parameter][key] = value.to(parameter.device)
    state.scaler.load_state_dict(metadata["scaler"])
    return int(metadata["step"])


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _check_same_run(run: Path, metadata: dict[str, Any], config: PretrainConfig, fingerprint: str) -> None:
    before, now = metadata["config"], cli.to_plain(config)
    changed = [
        f"{field.name} was {before.get(field.name)!r}, now {now[field.name]!r}"
        for field in fields(config)
        if field.name not in FREE_ON_RESUME and before.get(field.name) != now[field.name]
    ]
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
