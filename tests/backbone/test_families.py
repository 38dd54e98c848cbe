"""A family of networks is one file: a toy is trained, saved, opened and measured through the ordinary commands."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from dino_dense import load_backbone
from dino_dense.backbone import families
from dino_dense.checkpoint import read_tensors
from dino_dense.config import schema
from dino_dense.pretrain.__main__ import main as pretrain
from tasks.harness import command
from tests.pretrain.tiny_run import TINY, write_pictures

TOY = '''
"""A toy: one convolution for each cell of 8 x 8 pixels, and the mean of the cells."""

import torch
from torch import nn


class Toy(nn.Module):
    num_features = 12

    def __init__(self, drop_path_rate=0.0):
        super().__init__()
        self.cells = nn.Conv2d(3, 12, 8, stride=8)

    def forward(self, images):
        return self.cells(images).relu().mean((2, 3))


class ToyReader:
    version, last_resort = 1, False
    patch_size, embed_dim, depth, num_heads = 8, 12, 1, 0
    provides = frozenset({"patches", "cls"})
    uniform_width, nonnegative_maps = True, True

    def __init__(self, module):
        self.body = module

    @staticmethod
    def reads(module):
        return isinstance(module, Toy)

    def read(self, x, want, layers, norm):
        patches = self.body.cells(x).relu()
        features = {"patches": patches, "cls": patches.mean((2, 3))}
        return {kind: features[kind] for kind in want}


READER = ToyReader
ARCHITECTURES = {"toy_cells": Toy}
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the toy's architecture, while its file lies beside those of the other families."""
    (tmp_path / "families").mkdir()
    (tmp_path / "families" / "toy.py").write_text(TOY)
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path / "families")])
    forget()
    yield "toy_cells"
    forget()
    sys.modules.pop(f"{families.__name__}.toy")


def forget() -> None:
    families.readers.cache_clear()
    families.architectures.cache_clear()


def two_classes(root: Path) -> Path:
    """Dark and light pictures, 6 to train on and 6 to test of each."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for label, level in (("dark", 40), ("light", 190)):
            (root / split / label).mkdir(parents=True)
            for index in range(6):
                pixels = generator.integers(level, level + 40, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{index}.png")
    return root


def train(arch: str, pictures: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> Path:
    settings = replace(TINY, arch=arch, data=str(pictures), out=str(out), save_every=1)
    recipe = out.with_suffix(".yaml")
    recipe.write_text(schema.to_yaml(settings))
    monkeypatch.setattr("sys.argv", ["pretrain", "--config", str(recipe), *more])
    assert pretrain() == 0
    return out


def test_one_file_is_enough(toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_pictures(tmp_path / "pictures", 26)
    whole = train(toy, tmp_path / "pictures", tmp_path / "whole", monkeypatch, "--max-steps", "6")
    parts = train(toy, tmp_path / "pictures", tmp_path / "parts", monkeypatch, "--max-steps", "3")
    train(toy, tmp_path / "pictures", tmp_path / "parts", monkeypatch, "--max-steps", "6", "--resume", "auto")
    states = [read_tensors(run / "last.safetensors")[0] for run in (whole, parts)]
    assert states[0].keys() == states[1].keys()
    assert not [name for name in states[0] if not torch.equal(states[0][name], states[1][name])]

    backbone = load_backbone(str(whole))
    assert backbone.name == toy
    assert backbone.extract(torch.rand(2, 3, 32, 48), {"patches"}).patches.shape == (2, 12, 4, 6)
    data = two_classes(tmp_path / "data")
    words = ["--data", str(data), "--resize", "32", "--crop", "32", "--k", "3", "--device", "cpu"]
    for index, ckpt in enumerate((str(whole), f"random:{toy}")):
        assert command.main("knn", ["--ckpt", ckpt, "--out", str(tmp_path / f"knn{index}"), *words]) == 0
        assert pd.read_csv(tmp_path / f"knn{index}" / "results.csv")["value"].iloc[0] == 100


def test_without_its_file_the_name_is_unknown_and_its_checkpoints_are_refused(
    toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_pictures(tmp_path / "pictures", 26)
    run = train(toy, tmp_path / "pictures", tmp_path / "run", monkeypatch, "--max-steps", "1")
    monkeypatch.undo()
    forget()
    with pytest.raises(ValueError, match="unknown architecture 'toy_cells'"):
        load_backbone(f"random:{toy}")
    with pytest.raises(ValueError, match=r"architecture .*toy_cells.* is none of ours"):
        load_backbone(str(run))


def test_the_reader_of_last_resort_is_asked_last():
    resorts = [reader.last_resort for reader in families.readers()]
    assert resorts == sorted(resorts)
    assert resorts.count(True) == 1
