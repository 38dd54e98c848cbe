"""The log file, the spectrum of the features, and the warnings of collapse."""

import math
from pathlib import Path

import pandas as pd
import pytest
import torch

from dino_dense.pretrain.collapse import CollapseWatch, diagnose
from dino_dense.pretrain.monitor import Monitor, feature_spectrum
from tests.waits import DEVICE, Waits

K = 4096
LN_K = math.log(K)
HEALTHY = (5.2, 3.1, 2.1)


@pytest.mark.parametrize(
    ("loss", "entropy", "sign"),
    [
        (8.3178, 8.3177, "uniform"),  # the constant of dinov2 issue 407
        (0.02, 0.01, "one prototype"),
        (LN_K, 2.0, "idle student"),
        (4.01, 4.0, "constant"),
        (5.2, 3.1, None),
        (7.9, 7.0, None),
    ],
)
def test_diagnosis(loss: float, entropy: float, sign: str | None):
    assert diagnose(loss, entropy, loss - entropy, K) == sign


def warnings(watch: CollapseWatch, rows: list[tuple[float, float, float]], every: int = 10) -> list[str]:
    names = ("loss", "teacher_entropy", "kl")
    told = [watch((i + 1) * every, dict(zip(names, row, strict=True))) for i, row in enumerate(rows)]
    return [text for text in told if text]


def test_a_collapse_that_stays_is_told_once_with_cause_and_remedy():
    stuck = (LN_K, LN_K - 1e-4, 1e-4)
    told = warnings(CollapseWatch(K, quiet_steps=0, window=100), [HEALTHY] * 5 + [stuck] * 40)
    assert len(told) == 1
    assert "since step 60" in told[0]
    assert "ln K" in told[0]
    assert "sharpening" in told[0]
    assert "Lower teacher_temp" in told[0]


def test_a_collapse_that_comes_back_is_told_again():
    gone = (0.01, 0.005, 0.005)
    told = warnings(CollapseWatch(K, 0, 50), [gone] * 10 + [HEALTHY] + [gone] * 10)
    assert len(told) == 2
    assert all("centering" in text for text in told)


def test_healthy_numbers_short_spells_and_the_first_steps_are_quiet():
    watch = CollapseWatch(K, quiet_steps=300, window=100)
    beginning = [(LN_K, LN_K, 0.0)] * 30
    spell = [(LN_K, LN_K, 0.0)] * 8
    assert not warnings(watch, beginning + [HEALTHY] * 20 + spell + [HEALTHY] * 20)


def test_a_network_without_centering_sets_off_the_alarm(tmp_path: Path, train, capsys: pytest.CaptureFixture[str]):
    """A real collapse: no centering (the center never moves) and a sharp teacher that follows closely."""
    log = train(
        tmp_path / "run",
        center_momentum=1.0,
        teacher_temp=0.01,
        warmup_teacher_temp=0.01,
        momentum_teacher=0.5,
        lr=0.05,
        epochs=40,
        save_every=1000,
        log_every=5,
        local_crops_number=0,
    )
    assert log["teacher_entropy"].iloc[-1] < 0.01 * math.log(48)
    assert "WARNING: collapse (one prototype)" in capsys.readouterr().out


def test_spectrum_of_even_and_of_constant_features():
    generator = torch.Generator().manual_seed(0)
    spread, share, rank = feature_spectrum(torch.randn(4000, 16, generator=generator))
    assert spread == pytest.approx(1, abs=0.02)
    assert share == pytest.approx(1 / 16, abs=0.02)
    assert rank == pytest.approx(16, abs=0.2)
    assert feature_spectrum(torch.ones(10, 16)) == (pytest.approx(0, abs=1e-6), 1.0, 1.0)


def test_spectrum_of_features_along_one_line():
    line = torch.linspace(-1, 1, 50)[:, None] * torch.tensor([[0.0, 1.0, 0.0]]) + torch.tensor([[1.0, 0.0, 0.0]])
    _, share, rank = feature_spectrum(line * 1.0)
    assert share > 0.9
    assert rank < 1.5


def test_the_spectrum_of_features_on_a_device_is_the_cpus_work(monkeypatch: pytest.MonkeyPatch):
    """A GPU takes several times longer for the singular values than the copy and the CPU together."""
    computed, svdvals = [], torch.linalg.svdvals
    monkeypatch.setattr(torch.linalg, "svdvals", lambda part: computed.append(part.device.type) or svdvals(part))
    with Waits() as waits:
        feature_spectrum(torch.empty(8, 4, device=DEVICE))
    assert computed == ["cpu"]
    assert waits.seen.count("copy to the host") == 1


def log_rows(run: Path, start: int, end: int) -> None:
    monitor = Monitor(run, start, end, 8, ["teacher_temp", "teacher_entropy", "kl"], [CollapseWatch(K, 0)])
    names = (
        "epoch loss lr wd momentum teacher_temp teacher_entropy kl grad_norm "
        "feature_std top_eigenvalue_share effective_rank"
    )
    for step in range(start + 1, end + 1):
        monitor.log(step, dict.fromkeys(names.split(), 0.1 + step))
    monitor.close()


def test_a_resumed_log_is_cut_at_the_checkpoint_and_goes_on(tmp_path: Path):
    log_rows(tmp_path, 0, 7)
    before = (tmp_path / "log.csv").read_text().splitlines()
    with (tmp_path / "log.csv").open("a") as file:
        file.write("8,0.1,0.2")  # a line that a crash cut short
    log_rows(tmp_path, 5, 9)
    after = (tmp_path / "log.csv").read_text().splitlines()
    assert after[:6] == before[:6]
    log = pd.read_csv(tmp_path / "log.csv")
    assert log["step"].tolist() == list(range(1, 10))
    assert log["seconds"].is_monotonic_increasing
