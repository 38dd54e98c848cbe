"""Reports: published numbers beside ours, lossless JSON, tables."""

import json
import math
from pathlib import Path

import pytest
import torch

from dino_dense.config import presets
from dino_dense.report import Metric, Report, Score, peak_memory_mib, published_numbers, reset_peak_memory
from tasks import get

PROTOCOLS = Path(__file__).parents[2] / "configs" / "protocols"


def report(**changes: object) -> Report:
    facts: dict = {
        "task": "davis",
        "status": "ok",
        "metrics": (Metric("J&F-Mean"), Metric("J-Mean")),
        "scores": (Score("J&F-Mean", 60.0, 61, 1.5), Score("J-Mean", 58.0, 61)),
        "checkpoint": {
            "spec": "timm:vit_small_patch16_224.dino",
            "name": "vit_small_patch16_224.dino",
            "sha256": "00",
            "official": True,
        },
        "data": {
            "name": "DAVIS-2017 val, preset dino",
            "n": 30,
            "unit": "sequences",
            "dataset": "DAVIS-2017 val",
        },
        "presets": ("dino",),
        "config": {"radius": 12},
    }
    return Report(**{**facts, **changes})


def test_published_number_and_difference_on_the_same_benchmark():
    rows = report().to_frame().set_index("metric")
    assert rows.loc["J&F-Mean", "published"] == 61.8
    assert rows.loc["J&F-Mean", "difference"] == pytest.approx(-1.8)
    assert "2104.14294" in rows.loc["J&F-Mean", "source"]


def test_other_data_shows_the_number_but_no_difference():
    data = {"name": "mine", "n": 2, "unit": "sequences", "dataset": None}
    row = report(data=data).to_frame().iloc[0]
    assert row["published"] == 61.8
    assert row["published_on"] == "DAVIS-2017 val, preset dino"
    assert row["difference"] is None


def test_unknown_checkpoint_has_no_published_number():
    checkpoint = {"spec": "x.pth", "name": "vit_small_patch16_224", "sha256": "11"}
    assert report(checkpoint=checkpoint).to_frame()["published"].isna().all()


@pytest.mark.parametrize("key", ["sha256", "weights_sha256"])
def test_a_digest_identifies_a_file_and_its_weights(key: str):
    entry = next(entry for entry in published_numbers() if entry.protocol == "dinov3")
    digest = entry.checkpoints[1]
    for known, value in ((entry, digest + 56 * "0"), (None, digest[:7] + "x" + 56 * "0"), (None, "")):
        checkpoint = {"spec": "x.pth", "name": "renamed", key: value}
        assert report(task=entry.task, checkpoint=checkpoint).published(entry.metric) == known


@pytest.mark.parametrize(
    ("spec", "origin", "known"),
    [
        ("timm:vit_small_patch16_224.dino", {"official": True}, True),
        ("hf-hub:me/net", {"official": False}, False),
        ("runs/fine-tuned/teacher.safetensors", {}, False),
    ],
)
def test_a_name_is_believed_only_where_timms_own_entry_was_loaded(spec: str, origin: dict[str, bool], known: bool):
    """timm's save_config_for_hf keeps the tag `dino` of the network that a fine-tuning started from."""
    checkpoint = {"spec": spec, "name": "vit_small_patch16_224.dino", "sha256": "00", **origin}
    assert (report(checkpoint=checkpoint).published("J&F-Mean") is not None) == known


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"presets": (), "config": {**presets.load_protocol("davis", "dino"), "radius": 15}}, "radius"),
        ({"presets": (), "config": {}}, "and 14 more"),
        ({"presets": ()}, "and 13 more"),
        ({"data": {"name": "mine", "dataset": None}}, "data"),
        (
            {"checkpoint": {"official": True, "name": "vit_small_patch16_224.dino", "features": "layer 3"}},
            "features",
        ),
    ],
)
def test_the_field_that_differs_stands_in_place_of_a_difference(changes: dict, differs: str):
    row = report(**changes).to_frame().iloc[0]
    assert row["published"] == 61.8
    assert row["difference"] is None
    assert differs in row["differs"]
    assert (differs == "data") == ("data" in row["differs"])


def test_what_a_protocol_could_not_settle_is_said_and_nothing_is_subtracted():
    entry = next(entry for entry in published_numbers() if entry.protocol == "flowers")
    row = report(
        task="finetune",
        metrics=(Metric("top-1"),),
        scores=(Score("top-1", 98.0, 6149),),
        data={"name": "flowers", "dataset": entry.dataset},
        checkpoint={"official": True, "name": entry.checkpoints[0]},
        presets=("flowers",),
    ).to_frame()
    assert row.loc[0, "published"] == entry.value
    assert row.loc[0, "differs"] == "recipe (none was published)"
    assert row.loc[0, "difference"] is None


def test_a_protocol_file_that_leaves_something_open_has_no_difference():
    """A source may also have measured its checkpoints otherwise than the protocol, where the file is settled."""
    for entry in published_numbers():
        text = (PROTOCOLS / f"{entry.task}_{entry.protocol}.yaml").read_text()
        leaves_open = any(word in text for word in ("#   not settled", "#   not said", "#   differs:", "# not settled"))
        assert entry.differs or not leaves_open, entry


def test_registry_is_sound():
    numbers = published_numbers()
    keys = [(entry.task, entry.metric, entry.dataset, entry.protocol, entry.checkpoints) for entry in numbers]
    assert len(set(keys)) == len(keys), "the second of two numbers would never be shown"
    for entry in numbers:
        assert entry.metric in {metric.name for metric in get(entry.task).metrics}
        assert 0 < entry.value < 100
        assert entry.source
        assert entry.checkpoints


def test_json_round_trip_and_not_a_number():
    odd = report(scores=(Score("J&F-Mean", math.nan, 3), Score("J-Mean", 1.0, 3)))
    text = odd.to_json()
    assert json.loads(text)["scores"][0]["value"] is None
    assert math.isnan(Report.from_json(text).scores[0].value)
    assert Report.from_json(report().to_json()) == report()
    with pytest.raises(ValueError, match="schema 99"):
        Report.from_json(json.dumps({**json.loads(text), "schema": 99}))


def test_failure_is_a_row():
    failed = report(status="failed", scores=(), error="x.pth: cut short")
    frame = failed.to_frame()
    assert len(frame) == 1
    assert frame.loc[0, "error"] == "x.pth: cut short"
    assert "**Failed:** x.pth: cut short" in failed.to_markdown()


def test_markdown_has_the_number_and_what_repeats_it():
    page = report().to_markdown()
    for text in ("60.00", "61.80", "-1.80", "| radius | 12 |", "timm:vit_small_patch16_224.dino"):
        assert text in page


def test_peak_memory_counts_from_the_reset():
    device = torch.device("cpu")
    block = torch.ones(2**26)  # 256 MiB
    high = peak_memory_mib(device)
    del block
    reset_peak_memory(device)
    assert peak_memory_mib(device) <= high - 200 or not Path("/proc/self/clear_refs").exists()


def test_a_device_that_nothing_used_yet_has_no_peak_to_reset():
    """As `davis --score` meets it: PyTorch's own call fails before anything has used the device."""
    if torch.cuda.is_initialized():
        pytest.skip("this process has used CUDA")
    reset_peak_memory(torch.device("cuda"))
