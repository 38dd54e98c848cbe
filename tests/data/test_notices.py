"""Lines that readers say: once to a person, and to each report that gathers them."""

import numpy as np
import pytest
from PIL import Image

from data import notices
from data.pretraining import open_pretraining_data


def test_a_line_is_said_once_and_gathered_by_every_report(caplog: pytest.LogCaptureFixture):
    notices.say("before anyone gathers, in this test alone")
    with notices.captured() as outer:
        notices.say("a line of this test alone")
        with notices.captured() as inner:
            notices.say("a line of this test alone")
            notices.say("a line of this test alone")
        notices.say("another line of this test alone")
    notices.say("after that, in this test alone")
    assert outer == ["a line of this test alone", "another line of this test alone"]
    assert inner == ["a line of this test alone"]
    assert caplog.messages.count("a line of this test alone") == 1
    assert len(caplog.messages) == 4


def test_pretraining_reads_every_picture_once_and_says_what_it_leaves_out(tmp_path, caplog: pytest.LogCaptureFixture):
    pixels = np.zeros((8, 8, 3), np.uint8)
    names = ["a/2.gif", "a/10.png", "a/9.webp", "b.tga", "linked/c.bmp"]
    left = ["a/@eaDir/2.gif/THUMB.jpg", "__MACOSX/b.jpg", "a/._2.gif"]
    for name in [*names, *left]:
        path = tmp_path / ("elsewhere" if name.startswith("linked") else "set") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "elsewhere" / "linked")
    (tmp_path / "set" / "notes.txt").write_text("no picture")
    images = open_pretraining_data(tmp_path / "set")
    assert [images.name(index) for index in range(len(images))] == [
        *("a/2.gif", "a/9.webp", "a/10.png", "b.tga", "linked/c.bmp"),
    ]
    assert all(images[index].size == (8, 8) for index in range(len(images)))
    assert "1 file is skipped: unreadable here (1 .txt)" in caplog.text
