"""Services that follow a run from elsewhere, beside log.csv and TensorBoard: Weights & Biases, MLflow.

Each is an optional package, imported by its name when a run asks for it. Where it writes is set by its own environment
variables, such as WANDB_MODE=offline or MLFLOW_TRACKING_URI.
"""

import importlib
import importlib.util
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from dino_dense.files import write_text

NONE = "none"
ID_FILE = "{}_id.txt"
"""RUN/wandb_id.txt, RUN/mlflow_id.txt: the service's name of the run, so that a resumed run goes on in it."""


class Tracker(Protocol):
    """A service that keeps numbers of a run."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Keep values after a number of optimizer steps."""

    def close(self) -> None:
        """End the run, or this part of it."""


class Wandb:
    """Weights & Biases. The project is dino_dense, or WANDB_PROJECT.

    A resumed run goes on under its id. Weights & Biases keeps the first value of a step: steps that are repeated after
    a crash keep their earlier values.
    """

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        wandb: Any = importlib.import_module("wandb")
        file = run / ID_FILE.format("wandb")
        if not file.is_file():
            write_text(file, uuid.uuid4().hex[:12])
        project = {} if "WANDB_PROJECT" in os.environ else {"project": "dino_dense"}
        self.run = wandb.init(
            id=file.read_text(), name=run.name, dir=str(run), config=dict(config), resume="allow", **project
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        """See `Tracker`."""
        self.run.finish()


class Mlflow:
    """MLflow. The experiment is its default, or MLFLOW_EXPERIMENT_NAME; config.json has the settings."""

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        self.mlflow: Any = importlib.import_module("mlflow")
        file = run / ID_FILE.format("mlflow")
        known = file.read_text() if file.is_file() else None
        active = self.mlflow.start_run(run_id=known, run_name=run.name)
        if known is None:
            write_text(file, active.info.run_id)
            self.mlflow.log_dict(dict(config), "config.json")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self.mlflow.log_metrics({_metric(name): float(value) for name, value in values.items()}, step=step)

    def close(self) -> None:
        """See `Tracker`."""
        self.mlflow.end_run()


TRACKERS: Mapping[str, Any] = {"wandb": Wandb, "mlflow": Mlflow}
"""Option value -> class, which is also the name of its package and of the optional extra."""


def check_tracker(name: str) -> None:
    """Raise ValueError if the tracker's package is not installed."""
    if name != NONE and importlib.util.find_spec(name) is None:
        raise ValueError(f"tracker is {name}, which is not installed: pip install 'dino-dense[{name}]', or set none")


def open_tracker(name: str, run: Path, config: Mapping[str, Any]) -> Tracker | None:
    """The tracker of this name; None for `NONE`.

    Args:
        name: `NONE`, or a key of `TRACKERS`.
        run: the run folder.
        config: all settings, plain.

    Raises:
        ValueError: the service could not begin, such as without a login or an address.
    """
    if name == NONE:
        return None
    try:
        tracker: Tracker = TRACKERS[name](run, config)
    except Exception as error:  # each service has errors of its own
        raise ValueError(f"tracker is {name}, which could not begin: {error}\nMend that, or set none.") from error
    return tracker


def _metric(name: str) -> str:
    """MLflow's names have letters, digits, `_-. /` only."""
    return "".join(character if character.isalnum() or character in "_-. /" else "_" for character in name)
