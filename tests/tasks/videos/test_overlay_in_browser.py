"""The overlay is a video that a browser plays."""

import base64
from pathlib import Path

import pytest

from data.clips import open_clip
from tasks.videos.clip_masks import carry_masks, write_masks
from tests.browser import chromium, needs_chromium
from tests.clip_files import moving_mask, write_clip
from tests.color_backbone import PROTOCOL, color_backbone

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

DRAW = """async source => {
    const video = document.createElement("video");
    video.src = source;
    video.muted = true;
    await new Promise((done, fail) => { video.onloadeddata = done; video.onerror = () => fail(video.error.message); });
    video.currentTime = 0.45;
    await new Promise(done => video.onseeked = done);
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    const brush = canvas.getContext("2d");
    const at = (x, y) => Array.from(brush.getImageData(x, y, 1, 1).data.slice(0, 3));
    for (let tries = 0; tries < 200 && !at(60, 4)[0]; tries++) {  // a busy machine decodes after it says it has sought
        brush.drawImage(video, 0, 0);
        await new Promise(done => setTimeout(done, 20));
    }
    return {duration: video.duration, size: [video.videoHeight, video.videoWidth],
            object: at(20, 24), ground: at(60, 4)};
}"""


@needs_chromium
def test_the_overlay_plays(tmp_path: Path):
    clip = open_clip(write_clip(tmp_path / "clip.mp4"))
    carried = carry_masks(color_backbone(), clip, {"00000": moving_mask(0, clip.size)}, PROTOCOL)
    write_masks(carried, clip, tmp_path / "masks" / "clip", tmp_path / "out")
    encoded = base64.b64encode((tmp_path / "out" / "clip_masks.mp4").read_bytes()).decode()
    with chromium() as browser:
        shown = browser.new_page().evaluate(DRAW, f"data:video/mp4;base64,{encoded}")
    assert shown["duration"] == pytest.approx(0.8, abs=0.01)
    assert shown["size"] == [48, 64]
    red, green, blue = shown["object"]  # half the yellow square, half the palette's dark red, white outlines apart
    assert red > green + 40 > blue + 40
    assert max(shown["ground"]) - min(shown["ground"]) < 20
