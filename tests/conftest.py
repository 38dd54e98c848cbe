"""One cache for the whole test session, and small checkpoints to load."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dino_dense.backbone.dino_vit import DinoViT, ViTShape
from tests.device import choose, chosen

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several test processes: each takes its share of the cores
    share = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ["OMP_NUM_THREADS"] = str(share)  # of the processes that tests start
    torch.set_num_threads(share)

TINY_SHAPE = ViTShape(embed_dim=128, depth=4, num_heads=2, patch_size=8, grid_size=8)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="compute on this device: cpu (default), cuda or cuda:N")


def pytest_configure(config: pytest.Config) -> None:
    try:
        choose(config.getoption("--device"))
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`-m gpu` selects the tests that compare the chosen device with known numbers."""
    for item in items:
        if "device" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device of `pytest --device`."""
    return chosen()


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The embedded data and the feature cache of this session, not the user's; all test processes share them."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DINO_DENSE_CACHE", str(folder))
        yield folder


@pytest.fixture
def tiny_vit() -> DinoViT:
    """Four blocks of 128 channels at patch 8, weights from seed 0."""
    torch.manual_seed(0)
    return DinoViT(TINY_SHAPE)
