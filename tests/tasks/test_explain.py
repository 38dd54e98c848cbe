"""Two protocols on one checkpoint: what is swapped, which pairs, and what cannot be."""

import dataclasses
from pathlib import Path

import pandas as pd
import pytest

from dino_dense.distributed import World
from tasks.explain import Study, Swap, explain, pairs_of, parse, table_text
from tasks.harness.options import RunOptions
from tasks.harness.registry import get
from tasks.incontext import IncontextConfig
from tests.device import chosen_name

RANDOM = "random:vit_micro_patch8_64"
COMMON = ["--ckpt", RANDOM, "--size=48", "--memory-size=0", "--device=cpu", "--augment=false", "--epochs=1"]


def test_words_of_the_command_line():
    study, pairs = parse(["hummingbird", "dip", "--task", "incontext", *COMMON, "--pairs=2"])
    assert study.names == ("hummingbird", "dip")
    assert study.differing() == ("temperature",)
    assert (study.first.temperature, study.second.temperature, pairs) == (0.02, 0.07, 2)
    assert study.first.size == study.second.size == 48
    study, _ = parse(["hummingbird", "capi", "--task=incontext", *COMMON])
    assert {"readout", "standardize", "neighbors", "matching"} <= set(study.differing())
    assert "size" not in study.differing()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hummingbird", "--task", "incontext"], "expected two of incontext's: capi, dip, hummingbird"),
        (["hummingbird", "none", "--task", "incontext"], "expected two of incontext's"),
        (["hummingbird", "dip", "--preset", "dip", "--task", "incontext"], "without --preset"),
        (["a", "b", "--task", "incontex"], "Did you mean incontext"),
    ],
)
def test_other_words_are_refused(words: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        parse(words)


def study_of(out: Path, **second: object) -> Study:
    first = IncontextConfig(
        size=32, mean=None, std=None, augment=False, epochs=1, memory_size=300, neighbors=(5,), matching="own"
    )
    options = RunOptions(ckpt=RANDOM, device=chosen_name())
    return Study(get("incontext"), ("a", "b"), first, dataclasses.replace(first, **second), options, out)


def test_every_constant_is_swapped_alone_and_refused_ones_with_a_partner(tmp_path: Path):
    study = study_of(tmp_path, readout="vote", distance=("l2",), absent="left out")
    measured = explain(study, 2, World())
    scores = {swap.fields: swap.score for swap in measured}
    assert set(scores) == {
        (),
        ("readout", "distance", "absent"),
        ("readout",),
        ("distance",),
        ("absent",),
        ("readout", "distance"),
        ("readout", "absent"),
        ("distance", "absent"),
    }
    assert scores[("distance",)] is None
    assert scores[("distance", "absent")] is None
    assert scores[("readout", "distance")] is not None
    table = pd.read_csv(tmp_path / "explain.csv")
    assert table["changed"][:2].tolist() == ["a", "b (all 3)"]
    row = table.set_index("changed").loc["readout and absent"]
    single = table.set_index("changed")["change"]
    assert row["beyond the sum"] == pytest.approx(row["change"] - single["readout"] - single["absent"], abs=1e-9)
    assert "needs --readout vote" in table.set_index("changed")["note"]["distance"]
    assert "alone matters most" in table_text(study, measured)


def test_a_finished_run_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    study = study_of(tmp_path, temperature=0.5)
    first = explain(study, 2, World())
    assert [swap.fields for swap in first] == [(), ("temperature",)]

    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("it ran again")

    monkeypatch.setattr("tasks.explain.run_one", never)
    assert explain(study, 2, World()) == first


def test_equal_protocols_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="the same constants"):
        explain(study_of(tmp_path), 2, World())


def test_pairs_of_most_effect():
    measured = [Swap((), 10.0), Swap(tuple("abcd"), 20.0)]
    measured += [Swap(("a",), 11.0), Swap(("b",), 4.0), Swap(("c",), 10.0), Swap(("d",), None, "no")]
    assert pairs_of(measured, "abcd", 2) == [("a", "d"), ("b", "d"), ("c", "d"), ("a", "b")]
