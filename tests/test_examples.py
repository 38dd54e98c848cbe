"""What a newcomer reads first runs."""

import runpy
from pathlib import Path

import pytest

from data.clips import open_clip
from data.images import read_upright
from data.masks import read_ids

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_look(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for _ in range(2):  # people run it again
        runpy.run_path(str(EXAMPLES / "look.py"))["look"]("random:vit_micro_patch8_64", tmp_path)
    (film,) = tmp_path.glob("*.mp4")
    (masks,) = (tmp_path / "masks").iterdir()
    clip = open_clip(film)
    assert len(clip) == len(list(masks.iterdir())) == 12
    assert read_ids(masks / "00011.png").shape == clip.size
    for name in ("components", "alike", "clicked"):
        assert read_upright(tmp_path / f"{name}.png").shape[:2] == clip.size
    assert "Look into" in capsys.readouterr().out
