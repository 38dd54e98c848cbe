"""The page of `tasks.studio` in a real browser: click, run, play, download; nobody else is asked for anything."""

import zipfile
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest
from PIL import Image

from data import DataError
from dino_dense import Backbone
from tasks.studio import HOST, StudioConfig, open_studio
from tasks.studio_page.scene import Studio
from tests.browser import chromium, needs_chromium
from tests.clip_files import moving_disc, moving_mask, write_clip
from tests.color_backbone import color_backbone

SIZE = (96, 128)


def backbone() -> Backbone:
    return color_backbone()


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    (tmp_path / "files").mkdir()
    return Studio(backbone(), tmp_path / "files", 96, 2**20)


def test_a_click_marks_an_object_and_a_run_follows_it(tmp_path: Path, studio: Studio):
    scene = studio.open(write_clip(tmp_path / "clip.mp4", size=SIZE))
    with pytest.raises(ValueError, match="nothing is marked yet"):
        studio.run(scene)
    studio.click(scene, (20, 48), 3)
    truth = moving_mask(0, SIZE)
    assert ((scene.ids == 3) & (truth > 0)).sum() / ((scene.ids == 3) | (truth > 0)).sum() > 0.6
    assert (scene.seen() != scene.frame).any()
    done = []
    film, zipped = studio.run(scene, 2, lambda number, total: done.append((number, total)))
    assert done == [(number, 4) for number in (1, 2, 3, 4)]
    assert film.is_file()
    with zipfile.ZipFile(zipped) as archive:
        assert sorted(archive.namelist()) == ["00000.png", "00002.png", "00004.png", "00006.png"]
    studio.run(scene)
    assert not film.exists()
    assert len(list(scene.folder.glob("run-*"))) == 1
    scene.close()
    assert list(studio.folder.iterdir()) == []


def test_painting_and_images(tmp_path: Path, studio: Studio):
    Image.fromarray(moving_disc(0, SIZE)).save(tmp_path / "a.png")
    scene = studio.open(tmp_path / "a.png")
    studio.paint(scene, moving_mask(0, SIZE) > 0, 2)
    with zipfile.ZipFile(studio.run(scene)[1]) as archive:
        assert archive.namelist() == ["00000.png"]
        with archive.open("00000.png") as file:
            assert (np.array(Image.open(file)) == 2 * moving_mask(0, SIZE)).all()
    assert studio.pca(scene).shape == (*SIZE, 3)
    with pytest.raises(ValueError, match="expected"):
        studio.paint(scene, np.ones((3, 3), bool), 1)


def test_large_files_are_refused(tmp_path: Path, studio: Studio):
    (tmp_path / "big.mp4").write_bytes(bytes(2**20 + 1))
    with pytest.raises(ValueError, match=r"big\.mp4 has 1\.0 MiB: expected at most 1"):
        studio.open(tmp_path / "big.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(DataError, match="text"):
        studio.open(tmp_path / "text.mp4")
    assert list(studio.folder.iterdir()) == []


@needs_chromium
@pytest.mark.slow
def test_the_page(tmp_path: Path):
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    pytest.importorskip("gradio", reason="gradio is not installed")
    clip = write_clip(tmp_path / "clip.mp4", size=SIZE)
    big = tmp_path / "big.mp4"
    big.write_bytes(bytes(2 * 2**20))
    asked: list[str] = []
    config = StudioConfig(port=0, max_size=1, resolution=96)
    with open_studio(backbone(), config) as (address, folder), chromium() as browser:
        assert urlparse(address).hostname == HOST
        page = browser.new_page(viewport={"width": 1200, "height": 1600})
        page.set_default_timeout(60_000)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.locator("#source input[type=file]").set_input_files(str(big))
        page.get_by_text("exceed", exact=False).first.wait_for()
        page.reload()
        page.locator("#source input[type=file]").set_input_files(str(clip))
        frame = page.locator("#frame img")
        frame.wait_for()
        before = frame.get_attribute("src")
        box = frame.bounding_box()
        assert box is not None
        page.mouse.click(box["x"] + box["width"] * 20 / 128, box["y"] + box["height"] * 48 / 96)
        page.wait_for_function("before => document.querySelector('#frame img').src !== before", arg=before)
        page.locator("#run").click()
        page.wait_for_function("() => (document.querySelector('#overlay video') || {}).duration > 0")
        assert page.evaluate("document.querySelector('#overlay video').duration") == pytest.approx(0.8, abs=0.02)
        page.wait_for_function("() => !document.querySelector('#masks').disabled")
        with page.expect_download() as download:
            page.locator("#masks").click()
        with zipfile.ZipFile(download.value.path()) as archive:
            assert archive.testzip() is None
            assert len(archive.namelist()) == 8
            for name in archive.namelist():
                with archive.open(name) as file, Image.open(file) as mask:
                    assert (mask.mode, mask.size) == ("P", SIZE[::-1])
        page.screenshot(path=str(tmp_path / "page.png"), full_page=True)
        page.get_by_role("tab", name="PCA").click()
        page.locator("#look-pca").click()
        page.locator("#pca img").wait_for()
        (left,) = folder.glob("scene-*")
        page.locator("#source button[aria-label='Clear']").click()
        page.locator("#frame img").wait_for(state="detached")
        assert not left.exists()
        assert folder.is_dir()
    assert not folder.exists()
    strangers = {urlparse(url).hostname for url in asked if urlparse(url).scheme not in ("data", "blob")} - {HOST}
    assert strangers == set()
