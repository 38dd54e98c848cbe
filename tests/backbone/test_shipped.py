"""Networks that come with the package: whole, small, described, opened by their names."""

import hashlib
from pathlib import Path

import pytest
import torch

from dino_dense import load_backbone
from dino_dense.backbone.load import WEIGHTS, shipped_file, shipped_names, split_name

LARGEST = 12e6  # bytes


@pytest.fixture(params=shipped_names())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_there_is_a_network():
    assert "dino_dense:micro8" in shipped_names()


def test_a_network_is_a_small_file_with_a_card_that_names_its_digest(name: str):
    file = shipped_file(split_name(name)[1])
    assert file.stat().st_size < LARGEST
    card = file.with_suffix(".md").read_text("utf-8")
    assert hashlib.sha256(file.read_bytes()).hexdigest() in card
    for heading in ("## What it saw", "## Recipe", "## Measured", "## License"):
        assert heading in card


def test_a_network_opens_by_its_name_as_by_its_path(name: str):
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    by_name, by_path = (load_backbone(spec) for spec in (name, str(shipped_file(split_name(name)[1]))))
    assert by_name.sha256 == by_path.sha256
    ours, theirs = by_name.extract(image).patches, by_path.extract(image).patches
    assert ours is not None
    assert theirs is not None
    assert torch.equal(ours, theirs)
    assert ours.isfinite().all()


def test_each_card_has_its_network():
    assert {file.stem for file in WEIGHTS.glob("*.md")} == {split_name(name)[1] for name in shipped_names()}


@pytest.mark.parametrize("wrong", ["micro9", "../load", ".."])
def test_another_name_is_refused_with_the_names(wrong: str):
    with pytest.raises(ValueError, match=rf"dino_dense:{wrong}: no such network; this package has dino_dense:micro8"):
        load_backbone(f"dino_dense:{wrong}")


def test_the_package_carries_the_files():
    """A wheel takes all files of the package's folder."""
    assert Path(load_backbone.__code__.co_filename).parents[1] == WEIGHTS.parent
