"""Paired comparisons: the interval, and everything that must be alike before one is given."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dino_dense.config import command_line
from dino_dense.report import Entry, IntervalConfig, Metric, compare_all
from dino_dense.report.__main__ import main
from dino_dense.report.compare import compare, not_compared, readable
from dino_dense.report.samples import ratio_columns, score_samples
from tests.report.builders import CONFIG, RANDOM, VITS8, VITS16, edited, failed_entry, make_batch, make_entry

QUICK = IntervalConfig(bootstrap=300)


def pair(root: Path, **changes: Any) -> tuple[Entry, Entry]:
    """Two checkpoints on the same samples; the second is better by 2."""
    first = make_entry(root, "knn", VITS16, (70, 90), seed=1)
    return first, make_entry(root, "knn", VITS8, (72, 90), seed=2, **changes)


def rewrite(entry: Entry, change: Any) -> None:
    """Edit the entry's samples.csv."""
    file = entry.folder / "samples.csv"
    change(pd.read_csv(file)).to_csv(file, index=False)


def test_identical_reports_differ_by_nothing(tmp_path: Path):
    first = make_entry(tmp_path, seed=1)
    second = dataclasses.replace(make_entry(tmp_path / "again", seed=1), checkpoint="again")
    rows = compare(first, second, QUICK)
    assert list(rows["metric"]) == ["top-1", "top-5"]
    assert (rows[["difference", "low", "high", "stderr", "better", "worse"]] == 0).all(axis=None)
    assert (rows["equal"] == 100).all()
    assert (rows["verdict"] == "undecided").all()


def test_turned_round_every_sign_turns(tmp_path: Path):
    first, second = pair(tmp_path)
    there, back = compare(first, second, QUICK), compare(second, first, QUICK)
    for name, turned in (("difference", "difference"), ("low", "high"), ("high", "low")):
        np.testing.assert_allclose(there[name], -back[turned], rtol=1e-9, atol=1e-12)
    for name, turned in (("better", "worse"), ("equal", "equal"), ("baseline_value", "candidate_value")):
        np.testing.assert_allclose(there[name], back[turned])


def test_order_of_the_samples_does_not_matter(tmp_path: Path):
    first, second = pair(tmp_path)
    before = compare(first, second, QUICK)
    rewrite(second, lambda table: table.sample(frac=1, random_state=0))
    rewrite(first, lambda table: table.iloc[::-1])
    pd.testing.assert_frame_equal(compare(first, second, QUICK), before, rtol=1e-12)


def test_values_shares_and_direction(tmp_path: Path):
    names = [f"s{index}" for index in range(8)]
    first, second = (
        make_entry(
            tmp_path,
            "depth",
            name,
            samples=pd.DataFrame({"sample": names, "RMSE": rmse * 2, "δ < 1.25": accuracy * 2}),
        )
        for name, rmse, accuracy in (
            ("a", [1.0, 1.0, 1.0, 1.0], [50.0, 50.0, 50.0, 50.0]),
            ("b", [0.5, 0.5, 0.5, 0.6], [60.0, 40.0, 50.0, 50.0]),
        )
    )
    rmse, accuracy = compare(first, second, QUICK).to_dict("records")
    assert rmse["difference"] == pytest.approx(-0.475)
    assert (rmse["better"], rmse["worse"], rmse["equal"], rmse["n"]) == (100, 0, 0, 8)
    assert rmse["verdict"] == "better"  # lower is better
    assert rmse["stderr"] == pytest.approx(np.std([0.5, 0.5, 0.5, 0.4] * 2, ddof=1) / 8**0.5)
    assert (accuracy["better"], accuracy["worse"], accuracy["equal"]) == (25, 25, 50)
    assert accuracy["verdict"] == "undecided"


def frames_of(videos: int, gain: float, frames: int = 30) -> pd.DataFrame:
    """Frames whose video decides the value: nearly no spread within, much between."""
    names = [f"v{video:02d}/{frame:04d}" for video in range(videos) for frame in range(frames)]
    generator = np.random.default_rng(videos)
    levels = np.repeat(60 + generator.normal(gain, 8, videos), frames)
    values = levels + generator.normal(0, 0.1, len(names))
    return pd.DataFrame({"sample": names, "cluster": [name[:3] for name in names], "top-1": values, "top-5": 90.0})


def test_frames_of_a_video_are_one_draw(tmp_path: Path):
    """Thirty frames of each of five videos decide nothing; taken for independent they would."""
    tables = [frames_of(5, 0.0).assign(**{"top-1": 60.0}), frames_of(5, 6.0)]
    first, second = (make_entry(tmp_path, checkpoint=f"c{i}", samples=table) for i, table in enumerate(tables))
    rows = compare(first, second, QUICK)
    row = rows.iloc[0]
    assert (row["n"], row["clusters"], row["verdict"]) == (150, 5, "undecided")
    assert readable(rows)["n"][0] == "150 in 5 clusters, too few for a bootstrap"
    alone = [
        make_entry(tmp_path / "alone", checkpoint=f"c{i}", samples=table.drop(columns="cluster"))
        for i, table in enumerate(tables)
    ]
    assert compare(*alone, QUICK)["verdict"][0] != "undecided"
    assert row["stderr"] > 4 * compare(*alone, QUICK)["stderr"][0]


def test_samples_of_one_video_are_not_compared(tmp_path: Path):
    entries = [make_entry(tmp_path, checkpoint=name, samples=frames_of(1, 0)) for name in "ab"]
    assert compare(*entries, QUICK)["reason"][0] == "30 samples are of one cluster; expected 2 clusters or more"


def test_samples_whose_clusters_differ_are_not_compared(tmp_path: Path):
    tables = [frames_of(6, 0), frames_of(6, 0)]
    tables[1].loc[3, "cluster"] = "v05"
    entries = [make_entry(tmp_path, checkpoint=f"c{i}", samples=table) for i, table in enumerate(tables)]
    assert compare(*entries, QUICK)["reason"][0] == "1 samples are of another cluster, for example v00/0003"


def segmented(gain: float, classes: str = "abc") -> pd.DataFrame:
    """Images with hits and unions of each class."""
    generator = np.random.default_rng(3)
    unions = generator.integers(100, 900, (40, len(classes)))
    share = np.clip(np.linspace(0.2, 0.7, len(classes)) + gain + generator.normal(0, 0.03, unions.shape), 0, 1)
    hits = (share * unions).astype(int)
    columns = ratio_columns("mIoU", list(classes), hits, unions)
    return pd.DataFrame({"sample": [f"image {number}" for number in range(40)], **columns})


def segmentation_entry(root: Path, checkpoint: str, table: pd.DataFrame) -> Entry:
    entry = make_entry(root, checkpoint=checkpoint, samples=table)
    return edited(entry, metrics=(Metric("mIoU"),), scores=(score_samples(table, "mIoU"),))


def test_miou_draws_images_not_classes(tmp_path: Path):
    first, second = (segmentation_entry(tmp_path, str(gain), segmented(gain)) for gain in (0.0, 0.02))
    row = compare(first, second, QUICK).iloc[0]
    assert (row["metric"], row["n"], row["clusters"], row["verdict"]) == ("mIoU", 40, 40, "better")
    assert row["difference"] == pytest.approx(second.report.scores[0].value - first.report.scores[0].value)
    error = first.report.scores[0].stderr
    assert error is not None
    assert 0 < error < np.std([20, 45, 70], ddof=1) / 3**0.5 / 5  # the spread between classes


def test_miou_of_other_classes_is_not_compared(tmp_path: Path):
    first = segmentation_entry(tmp_path, "a", segmented(0.0))
    second = segmentation_entry(tmp_path, "b", segmented(0.0, "abcd"))
    assert compare(first, second, QUICK)["reason"][0] == "the values of single samples are of other classes"


def test_samples_may_be_called_like_missing_values_and_numbers(tmp_path: Path):
    names = ["NA", "null", "007", "7"]
    first, second = (
        make_entry(
            tmp_path,
            checkpoint=name,
            samples=pd.DataFrame({"sample": names, "top-1": values, "top-5": 100.0}),
        )
        for name, values in (("a", [0.0, 0, 0, 0]), ("b", [100.0, 0, 0, 0]))
    )
    rows = compare(first, second, QUICK)
    assert list(rows["n"]) == [4, 4]
    assert rows["better"][0] == 25


def without_values(table: pd.DataFrame) -> pd.DataFrame:
    table.loc[[3, 5], "top-1"] = np.nan
    return table


def test_samples_without_a_value_in_both_are_left_out(tmp_path: Path):
    entries = [make_entry(tmp_path / str(i), checkpoint=str(i), samples=None, seed=i) for i in range(2)]
    entries = [
        make_entry(
            tmp_path / str(i),
            checkpoint=str(i),
            samples=without_values(pd.read_csv(entry.folder / "samples.csv")),
        )
        for i, entry in enumerate(entries)
    ]
    assert list(compare(*entries, QUICK)["n"]) == [38, 40]


def test_a_value_in_one_only_is_not_compared_and_the_other_metrics_are(tmp_path: Path):
    first, second = pair(tmp_path)
    table = without_values(pd.read_csv(second.folder / "samples.csv"))
    second = make_entry(tmp_path, "knn", VITS8, samples=table)
    top1, top5 = compare(first, second, QUICK).to_dict("records")
    assert top1["verdict"] == "not compared"
    assert "2 samples have a value in one only, for example val/0003.jpg" in top1["reason"]
    assert np.isnan(top1["difference"])
    assert top5["n"] == 40


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"config": {**CONFIG, "k": [10]}}, r"config k: \[10, 20\] against \[10\]"),
        ({"data": {"name": "other", "sha256": "d" * 64}}, r"data knn data \(cccccccc\) against other \(dddddddd\)"),
        ({"data": {"name": "other"}}, "data knn data .* against other"),
        ({"samples": ""}, "names no values of single samples"),
        ({"samples": "elsewhere.csv"}, "elsewhere.csv: no such file"),
        ({"samples": "../../x.csv"}, "expected a file in its own folder"),
        ({"task": "davis"}, "task knn against davis"),
    ],
)
def test_what_differs_is_said(tmp_path: Path, changes: dict[str, Any], reason: str):
    first, second = pair(tmp_path)
    rows = compare(first, edited(second, **changes), QUICK)
    assert len(rows) == 1
    assert rows["verdict"].item() == "not compared"
    assert pd.Series([rows["reason"].item()]).str.contains(reason).all(), rows["reason"].item()


def test_what_changes_no_number_may_differ(tmp_path: Path):
    first, second = pair(tmp_path)
    config = {**second.report.config, "batch_size": 8, "data": "/mnt/elsewhere"}
    second = edited(second, config=config, environment={**second.report.environment, "dtype": "bf16"})
    rows = compare(first, second, QUICK)
    assert (rows["reason"] == "").all()
    assert (rows["note"] == "dtype fp32 against bf16").all()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda table: table.assign(sample=table["sample"] + "x"), "40 of 40 samples are in the baseline only"),
        (lambda table: pd.concat([table, table[:1]]), "'val/0000.jpg' is there twice"),
        (lambda table: table.drop(columns="sample"), "expected a column sample, found top-1, top-5"),
        (lambda table: table.assign(**{"top-1": "high"}), "column top-1 holds text"),
        (
            lambda table: table.assign(**{"top-1": table["top-1"] + 1}),
            "the samples give top-1 73, expected the report's 72",
        ),
        (lambda table: table.assign(sample=["", *table["sample"][1:]]), "expected a name for every sample"),
        (lambda table: table[["sample"]], "only the baseline has values"),
    ],
)
def test_broken_samples_are_said(tmp_path: Path, change: Any, reason: str):
    first, second = pair(tmp_path)
    rewrite(second, change)
    rows = compare(first, second, QUICK)
    assert (rows["verdict"] == "not compared").all()
    assert reason in rows["reason"].iloc[0]


def test_a_missing_sample_is_never_left_out_silently(tmp_path: Path):
    first, second = pair(tmp_path)
    table = pd.read_csv(second.folder / "samples.csv")
    second = make_entry(tmp_path, "knn", VITS8, samples=table[:-1])
    reason = compare(first, second, QUICK)["reason"].item()
    assert reason == "1 of 40 samples are in the baseline only, for example val/0039.jpg"


def test_one_sample_has_no_interval(tmp_path: Path):
    entries = [make_entry(tmp_path, checkpoint=name, n=1) for name in "ab"]
    # The builder's standard error of one sample is not a number; that is not what is looked at here.
    assert "1 samples have a value; expected 2 clusters or more" in compare(*entries, QUICK)["reason"].iloc[0]


def test_first_against_each_other_within_a_way_to_measure(tmp_path: Path):
    batch = make_batch(tmp_path)
    rows = compare_all(batch, QUICK)
    assert set(rows["baseline"]) == {VITS16}
    compared = rows[rows["reason"] == ""]
    assert set(zip(compared["entry"], compared["candidate"], strict=True)) == {
        (label, name) for label in ("knn", "knn-64", "depth") for name in (VITS8, RANDOM)
    } | {("davis", VITS8)}
    (line,) = not_compared(rows)
    assert line.startswith(f"davis: {RANDOM} was not compared with {VITS16}: {RANDOM} failed: CUDA out of memory")


def test_a_report_like_no_other_says_what_differs(tmp_path: Path):
    first, second = pair(tmp_path)
    third = make_entry(tmp_path, "knn", RANDOM, config={**CONFIG, "k": [5]})
    rows = compare_all([first, second, third], QUICK)
    assert list(rows["candidate"]) == [VITS8, VITS8, RANDOM]
    assert rows["reason"].iloc[2].startswith("config k: [10, 20] against [5]")
    alone = compare_all([first, failed_entry(tmp_path, "davis", VITS8, "no")], QUICK)
    assert alone.empty


@pytest.mark.parametrize(("field", "value"), [("bootstrap", 0), ("confidence", 0.0), ("confidence", 1.0)])
def test_bad_options_are_named(field: str, value: float):
    with pytest.raises(ValueError, match=f"{field} is {value}: expected"):
        IntervalConfig(**{field: value})


def command(monkeypatch: pytest.MonkeyPatch, *argv: object) -> int:
    """`python -m dino_dense.report`; its exit status."""
    monkeypatch.setattr(sys, "argv", ["report", *map(str, argv)])
    with pytest.raises(SystemExit) as caught:
        command_line.run(main)
    return int(caught.value.code or 0)


def test_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    first, second = pair(tmp_path / "runs")
    out = tmp_path / "out"
    status = command(monkeypatch, first.folder / "report.json", "--out", out, second.folder, "--bootstrap", 100)
    printed = capsys.readouterr().out
    assert status == 0
    assert "72.0 ± 1.1 (78.3 published, −6.3)" in printed
    assert "+2.0" in printed
    table = pd.read_csv(out / "comparison.csv", keep_default_na=False)
    assert list(table["metric"]) == ["top-1", "top-5"]
    assert list(table["bootstrap"]) == [100, 100]
    assert "+2.0" in (out / "comparison.md").read_text()
    assert "74.5 published" in (out / "comparison.html").read_text()
    assert (out / "results.csv").is_file()


def test_command_compares_with_the_baseline_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    pair(tmp_path)
    assert command(monkeypatch, tmp_path, "--bootstrap", 100, "--baseline", VITS8) == 0
    assert "−2.0" in capsys.readouterr().out
    assert command(monkeypatch, tmp_path, "--bootstrap", 100, "--baseline", VITS16) == 0
    assert "+2.0" in capsys.readouterr().out
    assert command(monkeypatch, tmp_path, "--baseline", "nobody") == 2
    assert f"baseline is nobody: expected one of {VITS16}, {VITS8}" in capsys.readouterr().err


def test_a_report_does_not_replace_a_tasks_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    first, _ = pair(tmp_path)
    (first.folder / "run.json").write_text("{}")
    before = sorted(first.folder.iterdir())
    assert command(monkeypatch, tmp_path, "--out", first.folder) == 2
    assert "holds the results of a task (run.json). Choose another --out" in capsys.readouterr().err
    assert sorted(first.folder.iterdir()) == before


def test_command_says_what_was_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    first, second = pair(tmp_path)
    (second.folder / "samples.csv").unlink()
    assert command(monkeypatch, tmp_path, "--bootstrap", 10) == 1
    assert f"{second.folder / 'samples.csv'}: no such file" in capsys.readouterr().out
    assert command(monkeypatch, first.folder) == 0
    assert command(monkeypatch, tmp_path / "nowhere") == 2
    assert "nowhere: no such file or folder" in capsys.readouterr().err
    assert command(monkeypatch) == 2
    assert "reports is empty" in capsys.readouterr().err


def test_pairs_of_images_are_compared_by_both_images(tmp_path: Path):
    images = [f"i{number:02d}" for number in range(21)]
    names = [(a, b) for a in images for b in images if a < b]
    noise = np.random.default_rng(0).normal(0, 1, len(names))
    tables = [
        pd.DataFrame(
            {
                "sample": [f"{a}-{b}" for a, b in names],
                "cluster": [a for a, _ in names],
                "second cluster": [b for _, b in names],
                "top-1": 60 + gain + noise * gain,
            }
        )
        for gain in (0.0, 2.0)
    ]
    first, second = (make_entry(tmp_path, "knn", f"c{k}", samples=table) for k, table in enumerate(tables))
    (row,) = compare(first, second, QUICK).to_dict("records")
    assert (row["n"], row["clusters"], row["verdict"]) == (210, 21, "better")
    score = score_samples(tables[1], "top-1")
    assert row["stderr"] == pytest.approx(score.stderr)
    few = (make_entry(tmp_path / "few", "knn", f"c{k}", samples=table[:100]) for k, table in enumerate(tables))
    assert score.stderr > tables[1]["top-1"].std() / 210**0.5 / 3
    assert compare(*few, QUICK)["n"].tolist() == [100]
    rewrite(second, lambda table: table.assign(**{"second cluster": "elsewhere"}))
    assert "of another cluster" in compare(first, second, QUICK)["reason"][0]
    rewrite(second, lambda table: table.drop(columns="second cluster"))
    assert "210 samples are of another cluster" in compare(first, second, QUICK)["reason"][0]


def test_few_images_of_many_pairs_decide_nothing(tmp_path: Path):
    images = [f"i{number:02d}" for number in range(12)]
    names = [(a, b) for a in images for b in images if a < b]
    entries = []
    for gain in (0.0, 20.0):
        table = pd.DataFrame(names, columns=["cluster", "second cluster"])
        table.insert(0, "sample", [f"{a}-{b}" for a, b in names])
        entries.append(make_entry(tmp_path, "knn", f"c{gain:g}", samples=table.assign(**{"top-1": 60 + gain})))
    (row,) = compare(*entries, QUICK).to_dict("records")
    assert (row["verdict"], row["n"], row["clusters"]) == ("undecided", 66, 12)
    assert "66 in 12 clusters, too few" in readable(compare(*entries, QUICK))["n"][0]
