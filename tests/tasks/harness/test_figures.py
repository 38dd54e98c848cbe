"""Pictures are files that are whole, or errors."""

from pathlib import Path

import numpy as np
import pytest

from data.images import read_upright
from dino_dense.files import WriteError
from tasks.harness import figures


def test_a_picture_that_cannot_be_written_is_an_error(tmp_path: Path):
    rgb = np.zeros((4, 6, 3), np.uint8)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(WriteError, match="cannot be written"):
        figures.save(tmp_path / "file" / "a.png", rgb)
    with pytest.raises(ValueError, match=r"a\.txt: \.txt is no format for pictures"):
        figures.save(tmp_path / "a.txt", rgb)
    with pytest.raises(ValueError, match=r"70000x1 pixels do not go into a \.jpg"):
        figures.save(tmp_path / "a.jpg", np.zeros((1, 70_000, 3), np.uint8))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("size", [(800, 2), (2, 800), (1, 1)])
def test_strips_of_any_shape(tmp_path: Path, size: tuple[int, int]):
    frame, ids = np.zeros((*size, 3), np.uint8), np.ones(size, np.uint8)
    figures.mask_strip(tmp_path / "a.jpg", [(frame, ids)] * 2)
    assert read_upright(tmp_path / "a.jpg").shape[0] == figures.STRIP_HEIGHT
