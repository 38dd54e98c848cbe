"""The batch in one table: for programs (CSV, Parquet), for people (Markdown) and for papers (LaTeX)."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dino_dense.report import Entry, Metric, Score, batch_frame, pairs_frame, write_batch
from dino_dense.report.cells import Cell, columns
from dino_dense.report.texts import escape_latex, escape_markdown, to_latex, to_markdown
from tests.report.builders import RANDOM, VITS8, VITS16, edited, failed_entry, make_batch, make_entry


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    return make_batch(tmp_path_factory.mktemp("batch"))


def test_one_row_a_checkpoint_one_column_a_field(batch: list[Entry]):
    frame = batch_frame(batch)
    assert list(frame.index) == [VITS16, VITS8, RANDOM]
    assert list(dict.fromkeys(frame.columns.get_level_values("entry"))) == ["knn", "davis", "depth", "knn-64"]
    row = frame.loc[VITS16]
    assert row["knn", "top-1", "value"] == pytest.approx(74.4)
    assert row["knn", "top-1", "n"] == 60
    assert row["knn", "top-1", "published"] == 74.5
    assert row["knn", "top-1", "difference"] == pytest.approx(-0.1)
    assert row["depth", "RMSE", "direction"] == "lower"
    assert pd.isna(row["depth", "RMSE", "published"])


def test_a_failed_pair_shows_its_error_in_its_row(batch: list[Entry]):
    row = batch_frame(batch).loc[RANDOM]
    assert row["davis", "", "status"] == "failed"
    assert "CUDA out of memory" in row["davis", "", "error"]
    assert np.isnan(row["davis", "J&F-Mean", "value"])
    assert row["knn", "", "status"] == "ok"


def test_a_pair_that_is_not_there_is_missing(tmp_path: Path):
    entries = [make_entry(tmp_path, "knn", VITS16), make_entry(tmp_path, "davis", VITS8)]
    frame = batch_frame(entries)
    assert frame.loc[VITS8, ("knn", "", "status")] == "missing"
    assert "| –" in to_markdown(entries, "t")


def test_long_form_has_a_row_a_score_and_one_a_failure(batch: list[Entry]):
    frame = pairs_frame(batch)
    scores = sum(max(1, len(entry.report.scores)) for entry in batch)
    assert len(frame) == scores
    failure = frame[(frame["entry"] == "davis") & (frame["checkpoint"] == RANDOM)]
    assert len(failure) == 1
    assert failure["status"].item() == "failed"
    assert np.isnan(failure["value"].item())


def test_entries_that_are_no_table_are_refused(tmp_path: Path):
    entry = make_entry(tmp_path)
    with pytest.raises(ValueError, match="no reports"):
        batch_frame([])
    with pytest.raises(ValueError, match="one report a pair"):
        batch_frame([entry, entry])
    other = dataclasses.replace(make_entry(tmp_path, "davis", VITS8), label="knn")
    with pytest.raises(ValueError, match="of task davis here and of knn"):
        write_batch([entry, other], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_give_back_the_same_numbers(batch: list[Entry], tmp_path: Path):
    write_batch(batch, tmp_path, title="Batch")
    names = {
        "results.csv",
        "results.parquet",
        "results.md",
        "results.tex",
        "pairs.csv",
        "index.html",
        "correlations.csv",
    }
    assert {path.name for path in tmp_path.iterdir()} == names  # and no temporary files
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}
    frame = batch_frame(batch)
    csv = pd.read_csv(tmp_path / "results.csv", index_col="checkpoint")
    parquet = pd.read_parquet(tmp_path / "results.parquet")
    for label, metric, field in frame.columns:
        name = f"{label}/{metric}" if metric else label
        column = name if field == "value" else f"{name} {field}"
        expected = frame[label, metric, field]
        if field == "differs":
            assert [text or None for text in csv[column].fillna("")] == list(expected)
        elif field in ("direction", "status"):
            assert list(csv[column]) == list(parquet[column]) == list(expected)
        elif field != "error":
            for found in (csv, parquet):
                numbers = [values.astype("Float64").to_numpy("float64", np.nan) for values in (found[column], expected)]
                np.testing.assert_allclose(*numbers, rtol=1e-14)
    assert list(parquet.index) == list(csv.index) == list(frame.index)
    long = pd.read_csv(tmp_path / "pairs.csv")
    np.testing.assert_allclose(long["value"], pairs_frame(batch)["value"], rtol=1e-14)


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (Cell("ok", 74.5, 0.2, 50, 74.5, 0.0), "74.5 ± 0.2 (74.5 published, +0.0)"),
        (Cell("ok", 60.0, 1.5, 61, 61.8, -1.8), "60.0 ± 1.5 (61.8 published, −1.8)"),
        (Cell("ok", 60.0, None, 61, 61.8, differs="radius"), "60.0 (61.8 published, other radius)"),
        (Cell("ok", 74.5, 0.03, 50), "74.5 ± 0.03"),
        (Cell("ok", -0.04), "0.0"),
        (Cell("ok", 61.8, published=61.8, difference=-1e-9), "61.8 (61.8 published, +0.0)"),
        (Cell("ok", 0.5741, 0.0071, percent=False), "0.574 ± 0.007"),
        (Cell("ok", 1234.5, percent=False), "1234.5"),
        (Cell("ok", None), "not scored"),
        (Cell("failed", None), "failed"),
        (Cell("missing", None), "–"),
    ],
)
def test_cells_as_printed(cell: Cell, text: str):
    assert cell.text == text


def test_the_best_of_a_column_follows_its_direction_and_ties_share_it(tmp_path: Path):
    entries = [
        make_entry(tmp_path, "depth", name, (rmse, accuracy))
        for name, rmse, accuracy in (("a", 0.5, 70.01), ("b", 0.9, 70.04), ("c", 0.7, 60.0))
    ]
    rmse, accuracy = columns(entries)["depth"]
    assert [cell.best for cell in rmse.cells] == [True, False, False]
    assert [cell.best for cell in accuracy.cells] == [True, True, False]
    assert not any(cell.best for cell in columns(entries[:1])["depth"][0].cells)


def test_numbers_on_different_data_have_no_best(tmp_path: Path):
    first, second = (make_entry(tmp_path, "knn", name, (value, 90)) for name, value in (("a", 50), ("b", 60)))
    second = edited(second, data={**second.report.data, "sha256": "d" * 64})
    assert not any(cell.best for cell in columns([first, second])["knn"][0].cells)
    assert "Measured on different data" in to_markdown([first, second], "t")


def test_markdown_shows_headlines_metrics_and_errors(batch: list[Entry]):
    page = to_markdown(batch, "Batch")
    assert "knn top-1 (%) ↑" in page
    assert "depth RMSE (m) ↓" in page
    assert "**78.3** ± " in page
    assert "| failed" in page
    assert f"- **davis** of {RANDOM}: CUDA out of memory." in page
    tables = re.findall(r"(?:^\|.*\n)+", page, re.M)
    assert len(tables) == 5  # the headlines, and four entries of more than one metric
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_names_do_not_break_markdown():
    assert escape_markdown("a|b\nc") == r"a\|b c"
    assert escape_markdown("<script>") == "&lt;script>"
    assert escape_markdown("[x](javascript:y)") == r"\[x\](javascript:y)"
    assert escape_markdown("J&F, δ < 1.25, vit_small") == "J&F, δ < 1.25, vit_small"


def latex_is_sound(text: str) -> bool:
    """Balanced braces, and no special character but in a command."""
    plain = re.sub(r"\\[a-zA-Z]+|\\[&%$#_{}\\]|\$[-\\a-z]*\$", "", text)
    depth = 0
    for mark in re.findall(r"[{}]", plain):
        depth += 1 if mark == "{" else -1
        if depth < 0:
            return False
    return depth == 0 and not re.search(r"[%$#_~^\\<>|\x00-\x08\n]", plain)


@given(st.text(alphabet=st.sampled_from("ab1 \\&%$#_{}~^<>|[]*±−↑–\n\t\x07\x00"), max_size=30))
def test_any_name_is_plain_text_in_latex(name: str):
    escaped = escape_latex(name)
    assert latex_is_sound(escaped)
    assert "&" not in escaped.replace(r"\&", "")


def test_the_check_of_latex_can_fail():
    assert not any(map(latex_is_sound, ("a_b", "50%", "{", "}{", "a^b", "\\", "a\nb", "x$y")))


def test_latex_tables_hold_any_names(tmp_path: Path):
    names = ["[3] 50% of $x_1$ & {more}\\", "*~^#<a|b>", VITS16]
    entries = [make_entry(tmp_path / str(index), "davis", name, pictures=0) for index, name in enumerate(names)]
    entries += [failed_entry(tmp_path / "f", "knn", names[0], "line 1\nC:\\dir_1 is 100% full & more")]
    text = to_latex(entries, "50% & more_")
    assert "booktabs" in text.splitlines()[0]
    bodies = re.findall(r"\\begin\{tabular\}\{(.*?)\}\n(.*?)\\end\{tabular\}", text, re.S)
    assert len(bodies) == text.count(r"\begin{table}") == 3
    for alignment, body in bodies:
        rows = [line for line in body.splitlines() if not line.endswith("rule")]
        for row in rows:
            assert row.endswith(r" \\")
            cells = row.removesuffix(r" \\").split(" & ")
            assert len(cells) == len(alignment)
            assert all(map(latex_is_sound, cells))
            assert not row.startswith(("[", "*"))
    for line in re.findall(r"\\caption.*|\\noindent.*", text):
        assert latex_is_sound(line)
    assert r"C:\textbackslash{}dir\_1 is 100\% full \& more" in text


def test_a_score_that_is_no_number_has_no_place_in_the_ranking(tmp_path: Path):
    entries = [make_entry(tmp_path, "knn", name, (value, 90)) for name, value in (("a", 50), ("b", 60), ("c", 70))]
    broken = edited(entries[2], metrics=(Metric("top-1"),), scores=(Score("top-1", float("nan"), 3),))
    cells = columns([*entries[:2], broken])["knn"][0].cells
    assert [cell.best for cell in cells] == [False, True, False]
    assert cells[2].text == "not scored"
