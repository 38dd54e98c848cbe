"""Protocol files and the roles of fields: what a published number is compared with, and which folders move."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import tasks
from dino_dense import Report
from dino_dense.config import command_line, presets, schema
from dino_dense.config.schema import path, runtime, selects
from dino_dense.report import published_numbers
from tasks.harness.registry import get

OPEN = {
    # constants that the protocol leaves to whoever measures
    "finetune": {"accumulate", "amp", "eval_every"},
    "linear": {"lrs", "strengths"},
    "retrieval": {"resize", "crop", "fast_decode", "decode"},  # of images by class, which nobody published
}
FILES = [(name, preset) for name in tasks.names() for preset in presets.protocol_names(name)]


@pytest.mark.parametrize("name", tasks.names())
def test_every_task_has_a_protocol_file(name: str):
    assert presets.protocol_names(name)


@pytest.mark.parametrize(("name", "preset"), FILES)
def test_a_protocol_names_every_constant_and_nothing_else(name: str, preset: str):
    config_type = get(name).config
    values = presets.load_protocol(name, preset)
    constants = schema.fields_of(config_type, "protocol")
    assert constants - OPEN.get(name, set()) <= set(values) <= constants
    config = command_line.from_recipe(config_type, values)
    assert preset in presets.matching_protocols(name, config)


def test_every_published_number_has_its_protocol_file():
    for number in published_numbers():
        assert number.protocol in presets.protocol_names(number.task)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("saliency", {"tau": 0.3}),
        ("discovery", {"method": "lost", "lost_k": 50}),
        ("davis", {"top_k": 3}),
        ("knn", {"crop": 192}),
        ("linear", {"epochs": 10}),
        ("finetune", {}),
        ("retrieval", {"image_size": 300}),
        ("copydetect", {"top": None}),
        ("segprobe", {"steps": 10}),
        ("incontext", {"memory_size": 1000}),
        ("cluster", {"drop_last": False}),
        ("depth", {"flip": False}),
        ("correspondence", {"image_size": 512}),
        ("tracking", {"grid": 16}),
        ("inside", {"gap": 5}),
        ("tokens", {"views": 4}),
        ("jhmdb", {"radius": 5}),
        ("vip", {"top_k": 5}),
        ("vos", {"top_k": 3}),
    ],
)
def test_a_changed_constant_is_no_published_protocol(name: str, changes: dict[str, object]):
    assert presets.matching_protocols(name, replace(get(name).config(), **changes)) == ()


def test_other_roles_and_open_constants_leave_the_protocol_as_it_is():
    recipe = command_line.from_recipe(get("finetune").config, presets.load_protocol("finetune", "cifar10"))
    changed = replace(recipe, data="x", workers=4, amp="fp16", accumulate=2)
    assert presets.matching_protocols("finetune", changed) == ("cifar10",)
    saliency = get("saliency").config(refine="bilateral", save_masks=True, max_images=3)
    assert presets.matching_protocols("saliency", saliency) == ("tokencut_bs",)
    paris = get("retrieval").config(image_size=512, scales=(1, 0.70711, 0.5))
    assert presets.matching_protocols("retrieval", paris) == ("paris",), "the root of a half, as people write it"


@pytest.mark.parametrize(
    ("dataset", "protocols", "difference"),
    [("ECSSD", ("tokencut",), True), ("ECSSD", ("lost",), True), ("ECSSD", (), False), ("mine", ("tokencut",), False)],
)
def test_a_difference_needs_the_same_data_and_protocol(dataset: str, protocols: tuple[str, ...], difference: bool):
    entry = next(number for number in published_numbers() if number.task == "saliency")
    task = get("saliency")
    report = Report(
        task="saliency",
        status="ok",
        metrics=task.metrics,
        checkpoint={"official": True, "name": entry.checkpoints[0]},
        data={"dataset": dataset},
        presets=protocols,
    )
    known = report.published(entry.metric)
    assert (known is not None and report.is_on(known)) == difference


@dataclass(frozen=True)
class Elsewhere:
    """A third party's options"""

    photos: str | None = path()
    """Folder."""
    lists: tuple[str, ...] = path(())
    """Files."""
    split: str = selects("val")
    """Which."""
    batch_size: int = runtime(8)
    """At once."""
    k: int = 1
    """A constant."""


def test_paths_of_any_task_move_with_the_data_root_and_know_the_home_folder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    given = {"photos": "set", "lists": ["a", "/b"], "split": "x", "k": 2}
    assert schema.below_root(Elsewhere, given, "/sets") == {
        "photos": "/sets/set",
        "lists": ["/sets/a", "/b"],
        "split": "x",
        "k": 2,
    }
    assert schema.below_root(Elsewhere, {"photos": "~/set"}, "/sets") == {"photos": "/home/somebody/set"}
    parsed = command_line.parse(
        Elsewhere, prog="p", description="", argv=["--photos=~/a", "--lists=~/b,c", "--split=~"]
    )
    assert parsed == Elsewhere(photos="/home/somebody/a", lists=("/home/somebody/b", "c"), split="~")
    assert command_line.from_recipe(Elsewhere, {"photos": "~/a"}).photos == "/home/somebody/a"


def test_results_go_home_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    options = command_line.parse(
        tasks.RunOptions, prog="p", description="", argv=["--out=~/results", "--ckpt", "~/x.pth"]
    )
    assert (options.out, options.ckpt) == (str(tmp_path / "results"), str(tmp_path / "x.pth"))


def test_roles():
    roles = {role: schema.fields_of(Elsewhere, role) for role in ("path", "selects", "runtime", "protocol")}
    assert roles == {"path": {"photos", "lists"}, "selects": {"split"}, "runtime": {"batch_size"}, "protocol": {"k"}}


@pytest.mark.parametrize("name", tasks.names())
def test_every_command_reads_its_line(name: str):
    """A config may define a field of its base again, with another default: that is one option."""
    config_type = get(name).config
    _, config = command_line.parse(tasks.RunOptions, config_type, prog=name, description="", argv=["--ckpt", "x"])
    assert config == config_type()
