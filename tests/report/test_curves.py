"""Charts of sweeps and runs: the values are the tables' own, and a chart is where its numbers say."""

import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dino_dense.report import Entry, IntervalConfig, Metric, compare_all, read_curves, render_page
from dino_dense.report.__main__ import main
from dino_dense.report.curves import MOST_POINTS
from dino_dense.report.drawing import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart, Line, draw, ticks
from tests.report.builders import EVIL, VITS8, VITS16, edited, make_entry


def write_sweep(folder: Path, table: pd.DataFrame, checkpoint: str = VITS16) -> Path:
    """The folder of a sweep: a table, and the report of a point."""
    make_entry(folder, "knn", checkpoint)
    table.to_csv(folder / "sweep.csv", index=False)
    return folder


def write_run(folder: Path, steps: int = 20, watch: bool = False) -> Path:
    folder.mkdir(parents=True)
    step = np.arange(1, steps + 1)
    log = {"step": step, "loss": 5 - step / steps, "dino_loss": 4.0, "effective_rank": step * 1.0}
    pd.DataFrame(log).to_csv(folder / "log.csv", index=False)
    if watch:
        rows = [
            {"step": s, "task": "knn", "metric": "top-1", "difference": s * 1.0, "low": s - 2.0, "high": s + 2.0}
            for s in (0, 10, 20)
        ]
        pd.DataFrame(rows).to_csv(folder / "watch.csv", index=False)
    return folder


def test_a_sweep_has_a_chart_a_metric_and_a_line_a_size(tmp_path: Path):
    rows = [
        {"layer": layer, "size": size, "top-1": layer * 5.0 + size / 10, "top-1 stderr": 1.0, "top-5": 90.0}
        for size in (224, 448)
        for layer in range(4)
    ]
    (sweep,) = read_curves([write_sweep(tmp_path / "a", pd.DataFrame(rows))])
    assert sweep.title == "Sweep of knn"
    first, second = sweep.charts
    assert (first.title, first.x_label, second.title) == ("top-1, % ↑", "layer", "top-5, % ↑")
    assert [line.name for line in first.lines] == [f"{VITS16}, 224 px", f"{VITS16}, 448 px"]
    assert first.lines[1].x == (0, 1, 2, 3)
    assert first.lines[1].y == pytest.approx([44.8, 49.8, 54.8, 59.8])
    assert first.lines[1].high == pytest.approx([45.8, 50.8, 55.8, 60.8])
    assert second.lines[0].low == ()


def test_joined_layers_are_drawn_over_sizes(tmp_path: Path):
    table = pd.DataFrame({"layer": ["2+3"] * 2, "size": [224, 448], "top-1": [50.0, 60.0]})
    other = pd.DataFrame({"layer": ["2+3"] * 2, "size": [224, 448], "top-1": [40.0, 45.0]})
    paths = [write_sweep(tmp_path / "a", table), write_sweep(tmp_path / "b", other, VITS8)]
    ((chart,),) = [sweep.charts for sweep in read_curves(paths)]
    assert chart.x_label == "size, pixels"
    assert [line.name for line in chart.lines] == [f"{VITS16}, layer 2+3", f"{VITS8}, layer 2+3"]
    assert chart.lines[1].x == (224, 448)


def test_a_point_makes_no_line(tmp_path: Path):
    table = pd.DataFrame({"layer": [3], "size": [np.nan], "top-1": [50.0]})
    assert read_curves([write_sweep(tmp_path / "a", table)]) == []


def test_runs_share_their_charts_and_a_long_log_is_averaged(tmp_path: Path):
    long = write_run(tmp_path / "long", 10 * MOST_POINTS)
    (alone,) = read_curves([long])
    assert alone.charts[0].title == "Loss and its parts, nats"
    loss = alone.charts[0].lines[0]
    assert len(loss.y) == MOST_POINTS
    assert np.mean(loss.y) == pytest.approx(5 - np.arange(1, 10 * MOST_POINTS + 1).mean() / (10 * MOST_POINTS))
    (both,) = read_curves([long, write_run(tmp_path / "short", watch=True)])
    assert [line.name for line in both.charts[0].lines] == ["long", "short"]
    assert both.charts[-1].title.endswith("short")
    assert both.charts[-1].lines[0].low == (-2, 8, 18)


@pytest.mark.parametrize("inside", ["", "teacher.safetensors"])
def test_the_run_of_a_checkpoint_is_shown(tmp_path: Path, inside: str):
    run = write_run(tmp_path / "run")
    entry = make_entry(tmp_path, "knn")
    entry = edited(entry, checkpoint={**entry.report.checkpoint, "spec": str(run / inside)})
    (training,) = read_curves([], [entry])
    assert training.charts[0].lines[0].name == "loss"
    (run / "log.csv").write_text("no,table\n1,2\n")
    assert read_curves([], [entry]) == [], "a report of a stranger must not be refused for it"
    with pytest.raises(ValueError, match=r"log\.csv: expected a table with columns step, loss"):
        read_curves([run])


@pytest.mark.parametrize("spec", ["", ".", "timm:x", "a\0b", "x" * 5000])
def test_checkpoints_that_are_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str):
    monkeypatch.chdir(tmp_path)
    entry = make_entry(tmp_path, "knn")
    assert read_curves([], [edited(entry, checkpoint={"spec": spec})]) == []


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 97), (1e-7, 2e-7), (5, 1e6), (-1.5, -1.2), (0, 300)])
def test_ticks_are_round_inside_and_enough(low: float, high: float):
    values = ticks(low, high)
    assert 2 <= len(values) <= 6
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in values)
    steps = np.diff(values)
    assert np.allclose(steps, steps[0])


def test_a_drawing_is_to_scale():
    chart = Chart("t", "x", (Line("a", (0.0, 5.0, 10.0), (1.0, 2.0, 3.0)), Line("b", (0.0, 10.0), (3.0, float("nan")))))
    drawing = draw(chart)
    (x0, y0, _), (x1, y1, _), (x2, y2, said) = drawing.lines[0].dots
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
    assert y1 == pytest.approx((y0 + y2) / 2, abs=0.1)
    assert y2 < y0, "larger is above"
    assert LEFT < x0 < x2 < WIDTH - RIGHT
    assert TOP < y2 < y0 < HEIGHT - BOTTOM
    assert said == "a, 10: 3"
    assert len(drawing.lines[1].dots) == 1
    assert "a from 1 to 3" in drawing.said


def test_gaps_break_a_line_and_constants_are_drawn():
    nan = float("nan")
    line = draw(Chart("t", "x", (Line("a", (0, 1, 2, 3), (1.0, nan, 1.0, 1.0)),))).lines[0]
    assert re.sub(r"[^ML]", "", line.path) == "MML"
    assert draw(Chart("t", "x", (Line("a", (0,), (nan,)),))).lines == ()


def test_the_page_escapes_and_needs_no_entries(tmp_path: Path):
    run = write_run(tmp_path / "run", watch=True)
    (run / "watch.csv").write_text((run / "watch.csv").read_text().replace("knn", EVIL.replace("'", "")))
    page = render_page([], title="t", curves=read_curves([run]))
    assert page.count("<svg") > 3
    assert "<img src=x" not in page
    assert "knn" not in page
    entry: Entry = make_entry(tmp_path, "knn")
    full = render_page([entry], title="t", curves=read_curves([run]), comparison=compare_all([entry], IntervalConfig()))
    assert 'id="curves-training"' in full
    assert 'id="summary"' in full


def test_the_command_takes_runs_alone_and_beside_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = write_run(tmp_path / "run", watch=True)
    entries = [make_entry(tmp_path, "knn", name) for name in (VITS16, VITS8)]
    for folders in ([run], [run, *(entry.folder for entry in entries)]):
        out = tmp_path / f"out{len(folders)}"
        words = ["report", *map(str, folders), "--out", str(out), "--bootstrap", "20"]
        monkeypatch.setattr(sys, "argv", words)
        assert main() == 0
        page = (out / "comparison.html").read_text()
        assert "Measurements: difference from the start" in page
        assert ("Sample by sample" in page) == (len(folders) > 1)


def test_metrics_of_the_page_are_those_of_the_report(tmp_path: Path):
    """A column that is no metric of the task makes no chart."""
    table = pd.DataFrame({"layer": [0, 1], "size": [np.nan] * 2, "top-1": [1.0, 2.0], "seconds": [3.0, 4.0]})
    (sweep,) = read_curves([write_sweep(tmp_path / "a", table)])
    assert [chart.title.split(",")[0] for chart in sweep.charts] == [Metric("top-1").name]
