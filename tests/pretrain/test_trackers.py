"""Trackers get the rows of log.csv; a resumed run goes on in the same run; a service that fails ends nothing."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pandas as pd
import pytest

Train = Callable[..., pd.DataFrame]


class FakeService(ModuleType):
    """Stands for wandb and mlflow: keeps the calls, and fails from a step on."""

    def __init__(self, name: str, fails_from: int = 1000) -> None:
        super().__init__(name)
        self.__spec__ = SimpleNamespace(name=name)  # type: ignore[assignment]
        self.fails_from = fails_from
        self.opened: list[dict[str, Any]] = []
        self.rows: dict[int, dict[str, float]] = {}
        self.closed = 0

    def init(self, **options: Any) -> "FakeService":
        self.opened.append(options)
        return self

    def start_run(self, **options: Any) -> SimpleNamespace:
        self.opened.append(options)
        return SimpleNamespace(info=SimpleNamespace(run_id="abc"))

    def log(self, values: dict[str, float], step: int) -> None:
        if step >= self.fails_from:
            raise ConnectionError("the service is down")
        self.rows[step] = {**self.rows.get(step, {}), **values}

    log_metrics = log

    def log_dict(self, content: dict[str, Any], file: str) -> None:
        self.settings = (content["arch"], file)

    def finish(self) -> None:
        self.closed += 1

    end_run = finish


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeService]:
    def install(name: str, **options: Any) -> FakeService:
        fake = FakeService(name, **options)
        monkeypatch.setitem(sys.modules, name, fake)
        return fake

    return install


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_gets_the_log_and_a_resumed_run_goes_on_in_it(name: str, service, tmp_path: Path, train: Train):
    fake = service(name)
    train(tmp_path / "run", tracker=name, max_steps=1, save_every=1)
    log = train(tmp_path / "run", tracker=name, max_steps=2, resume=True)
    assert list(fake.rows) == log["step"].tolist() == [1, 2]
    assert fake.rows[2]["loss"] == pytest.approx(log["loss"][1])
    assert fake.closed == 2
    first, second = fake.opened
    if name == "wandb":
        assert first["id"] == second["id"] == (tmp_path / "run" / "wandb_id.txt").read_text()
        assert (first["project"], first["name"], first["resume"]) == ("dino_dense", "run", "allow")
        assert first["config"]["arch"] == "vit_micro_patch8_32"
    else:
        assert (first["run_id"], second["run_id"]) == (None, "abc")
        assert fake.settings == ("vit_micro_patch8_32", "config.json")


def test_a_service_that_fails_is_left_out_and_the_run_goes_on(service, tmp_path: Path, train: Train, capsys):
    fake = service("wandb", fails_from=2)
    assert len(train(tmp_path / "run", tracker="wandb", max_steps=3)) == 3
    assert list(fake.rows) == [1]
    assert (
        capsys.readouterr().out.count("WARNING: the tracker failed, and is left out from step 2 on: the service") == 1
    )


def test_a_service_that_cannot_begin_is_named(service, tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch):
    def init(**options: Any) -> None:
        raise RuntimeError("log in first")

    monkeypatch.setattr(service("wandb"), "init", init, raising=False)
    with pytest.raises(ValueError, match="tracker is wandb, which could not begin: log in first"):
        train(tmp_path / "run", tracker="wandb", max_steps=1)


def test_a_tracker_that_is_not_installed_is_refused_before_the_run(
    tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"tracker is wandb, which is not installed: pip install 'dino-dense\[wandb\]'"
    ):
        train(tmp_path / "run", tracker="wandb")
    assert not (tmp_path / "run").exists()


def test_mlflow_itself_keeps_the_rows(tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    log = train(tmp_path / "run", tracker="mlflow", max_steps=2)
    history = mlflow.MlflowClient().get_metric_history((tmp_path / "run" / "mlflow_id.txt").read_text(), "loss")
    assert [(point.step, point.value) for point in history] == [(1, log["loss"][0]), (2, log["loss"][1])]
