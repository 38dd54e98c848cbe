"""Tokens without labels: each number on tokens whose answer is known, the command, refusals."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor

from dino_dense.tokens import high_norm_tokens
from tasks import RunOptions, Session, get, measured, run_one
from tasks.tokens import TokensConfig, open_images
from tests.device import chosen_name
from tests.oracles import NoiseReader, stub_backbone

CONFIG = TokensConfig(sizes=(64, 96), views=3, max_images=8)
CORNER_NORM = 40.0


class PositionReader(NoiseReader):
    """Patches that say where they are and nothing else; one in a corner is large before the final norm."""

    def read(self, x: Tensor, want: frozenset[str], layers, norm: bool = True) -> dict[str, Tensor]:
        h, w = (side // self.patch_size for side in x.shape[-2:])
        rows, columns = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")
        patches = torch.stack([rows, columns, torch.ones(h, w)]).expand(len(x), -1, -1, -1).clone()
        if not norm:
            patches = patches / patches.norm(dim=1, keepdim=True)
            patches *= 1 + 0.01 * torch.rand(1, 1, h, w, generator=torch.Generator().manual_seed(0))
            patches[:, :, 0, -1] *= CORNER_NORM
        cls = torch.stack([x.mean((1, 2, 3)), x[:, 0].std((1, 2)), torch.ones(len(x))], dim=1)
        return {kind: torch.cat([{"patches": patches, "cls": cls}[kind]] * len(layers), dim=1) for kind in want}


@pytest.fixture
def pictures(tmp_path: Path) -> str:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(8):
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8)).save(folder / f"{index}.png")
    return str(folder)


def test_tokens_that_are_positions(pictures: str, tmp_path: Path):
    config = TokensConfig(data=pictures, sizes=(64, 128), views=3)
    backbone = stub_backbone("positions", PositionReader())
    outcome = measured(
        get("tokens"), backbone, open_images(config), config, Session(out=tmp_path, device=torch.device("cpu"))
    )
    values = {score.metric: score.value for score in outcome.scores}
    assert values["position"] == values["position on noise"] == pytest.approx(100, abs=1e-3)
    assert values["stability"] > 99.9
    assert values["outliers"] == pytest.approx(100 / 64)
    assert values["RankMe"] < 3.1, "three numbers make a token"
    layers = outcome.tables["layers"]
    assert layers["layer"].tolist() == [0, 1, 2, 3]
    assert layers["outliers on the border %"].tolist() == [100] * 4
    assert layers["norm of outliers / median"].to_numpy() == pytest.approx(CORNER_NORM, rel=0.02)
    assert set(outcome.tables["definitions"]["metric"]) == set(values)
    where = outcome.to_draw.outliers.mean(0)
    assert (where[0, -1], where.sum()) == (1, 1)


class WidePooledReader(NoiseReader):
    """A pooled feature with more channels than the patches, as MobileNet V4 has."""

    def read(self, x: Tensor, want: frozenset[str], layers, norm: bool = True) -> dict[str, Tensor]:
        features = super().read(x, want, layers, norm)
        return features | ({"cls": torch.cat([features["cls"]] * 2, dim=1)} if "cls" in want else {})


def test_a_pooled_feature_of_another_width_is_not_compared_with_patches(pictures: str, tmp_path: Path):
    config = TokensConfig(data=pictures, sizes=(64, 96), views=3)
    session = Session(out=tmp_path, device=torch.device("cpu"))
    wide, alike = (stub_backbone("noise", reader()) for reader in (WidePooledReader, NoiseReader))
    outcome, other = (measured(get("tokens"), body, open_images(config), config, session) for body in (wide, alike))
    metrics = [[score.metric for score in each.scores] for each in (outcome, other)]
    assert set(metrics[1]) - set(metrics[0]) == {"CLS-patch cosine"}
    assert "No CLS-patch cosine: the pooled feature and the patches have different numbers" in outcome.note
    assert np.isfinite([score.value for score in outcome.scores]).all()


def test_noise_is_neither_stable_nor_tied_to_its_place(pictures: str, tmp_path: Path):
    config = TokensConfig(data=pictures, sizes=(64, 96), views=3)
    backbone = stub_backbone("noise", NoiseReader())
    outcome = measured(
        get("tokens"), backbone, open_images(config), config, Session(out=tmp_path, device=torch.device("cpu"))
    )
    values = {score.metric: score.value for score in outcome.scores}
    assert abs(values["stability"]) < 5
    assert values["position"] < 25, "an eighth of the variance of a mean over eight images is left"
    assert abs(values["CLS-patch cosine"]) < 5
    assert values["RankMe"] > 25, "32 channels, all in use"
    assert values["outliers"] < 1


def test_an_outlier_is_far_above_the_median_in_spreads():
    norms = torch.exp(torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 0.1)
    norms[17] = 3
    assert high_norm_tokens(norms).nonzero().flatten().tolist() == [17]


def test_the_command_writes_tables_and_pictures(tmp_path: Path):
    options = RunOptions(ckpt="random:vit_micro_patch8_64", out=str(tmp_path), device=chosen_name())
    report = run_one(get("tokens"), options, CONFIG)
    assert len(pd.read_csv(tmp_path / "layers.csv")) == 4
    assert pd.read_csv(tmp_path / "sizes.csv")["size"].tolist() == [96]
    assert {"norms.png", "where.png"} <= {picture.file for picture in report.pictures}
    assert all((tmp_path / picture.file).is_file() for picture in report.pictures)
    assert "Position and LiDAR want 100 images or more" in report.note


def test_refusals(tmp_path: Path):
    with pytest.raises(ValueError, match="expected two or more"):
        TokensConfig(sizes=(224,))
    with pytest.raises(ValueError, match="views is 1"):
        TokensConfig(views=1)
    with pytest.raises(ValueError, match="max_images is 1"):
        TokensConfig(max_images=1)
    Image.new("RGB", (9, 9)).save(tmp_path / "one.png")
    with pytest.raises(ValueError, match="1 image; expected 2 or more"):
        open_images(TokensConfig(data=str(tmp_path)))
