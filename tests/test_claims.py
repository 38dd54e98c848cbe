"""Protocols that are called by a name have the constants of their named source, line by line.

`claims.csv` has a row a constant of every file in configs/protocols: the source's file (repository first) and line,
what that line states, and ours. Its `status`: same (the line states our value), read (its code means it, in other
words, or it is of a paper or an issue), open (no source settles it), ours, unused (of another method). The commits
that the lines are of: dino 7c446df, dinov2 b8931f7, dinov3 6876159; the others' newest of 2026.
"""

import ast
import csv
import os
import re
from pathlib import Path

import pytest
import yaml

TABLE = Path(__file__).with_name("claims.csv")
PROTOCOLS = Path(__file__).parents[1] / "configs" / "protocols"
NUMBER = re.compile(r"(?<![\w.])-?\d+\.?\d*(?:[eE][-+]?\d+)?")
FILES = sorted(path.stem for path in PROTOCOLS.glob("*.yaml"))


def claims() -> list[dict[str, str]]:
    with TABLE.open(newline="") as file:
        return list(csv.DictReader(file))


def value_of(text: str) -> object:
    """A number or a list as Python writes it; else a word."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


@pytest.mark.parametrize("protocol", FILES)
def test_every_constant_of_a_protocol_is_in_the_table_as_it_is(protocol: str):
    text = (PROTOCOLS / f"{protocol}.yaml").read_text()
    rows = [row for row in claims() if row["protocol"] == protocol]
    assert {row["field"]: row["ours"] for row in rows} == {k: str(v) for k, v in yaml.safe_load(text).items()}
    assert len(rows) == len({row["field"] for row in rows})
    for row in rows:
        sourced = row["status"] in ("same", "read", "open")
        assert sourced or row["status"] in ("ours", "unused"), row
        if row["status"] in ("ours", "unused"):
            assert not row["source"], row
        elif row["status"] == "same":
            assert row["line"], row
            assert row["stated"] == row["ours"], row
        elif row["status"] == "read":
            assert row["source"], row


@pytest.mark.parametrize("protocol", FILES)
def test_what_a_source_leaves_open_is_marked_in_the_file(protocol: str):
    text = (PROTOCOLS / f"{protocol}.yaml").read_text()
    marked = set(re.findall(r"^(\w+):.*\[\?\]", text, re.M))
    assert {row["field"] for row in claims() if row["protocol"] == protocol and row["status"] == "open"} == marked
    assert not marked or "not settled" in text or "not said" in text


@pytest.mark.parametrize("protocol", FILES)
def test_a_protocol_names_its_source_and_what_differs(protocol: str):
    header = (PROTOCOLS / f"{protocol}.yaml").read_text()
    assert "#   source: " in header
    own = [row for row in claims() if row["protocol"] == protocol]
    if all(row["status"] == "ours" for row in own):
        assert "#   source:   ours" in header
        assert "#   differs:" in header, "from the protocol whose name it could be taken for"


def test_the_lines_are_there_and_state_it():
    folder = os.environ.get("DINO_DENSE_SOURCES")
    if folder is None:
        pytest.skip("DINO_DENSE_SOURCES names no folder with the sources' repositories")
    for row in claims():
        if not row["line"]:
            continue
        lines = (Path(folder) / row["source"]).read_text().splitlines()[int(row["line"]) - 1 :]
        assert lines, row
        value = value_of(row["stated"]) if row["status"] == "same" else []
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, int | float):
                numbers = [float(number) for number in NUMBER.findall(lines[0])]
                assert any(number == pytest.approx(part, rel=1e-5) for number in numbers), row
            else:
                assert str(part) in "\n".join(lines[:5]), row


def test_the_documents_point_to_the_table():
    assert "tests/claims.csv" in (PROTOCOLS.parents[1] / "README.md").read_text()
