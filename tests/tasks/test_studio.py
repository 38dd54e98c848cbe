"""The page of `tasks.studio` in a real browser: click, run, play, download; nobody else is asked for anything."""

import re
import threading
import zipfile
from collections.abc import Generator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data import DataError
from dino_dense import Backbone
from tasks.studio import HOST, StudioConfig, open_studio
from tasks.studio_page.keys import KEYS, SCRIPT
from tasks.studio_page.live import Live, StoppedError, follow
from tasks.studio_page.opened import MOST_UNDONE
from tasks.studio_page.scene import Studio
from tests.browser import chromium, needs_chromium
from tests.clip_files import moving_disc, moving_mask, write_clip
from tests.color_backbone import color_backbone

SIZE = (96, 128)
LONG = 600  # frames of a clip whose run is stopped


def backbone() -> Backbone:
    return color_backbone()


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    (tmp_path / "files").mkdir()
    return Studio([backbone()], tmp_path / "files", 96, 2**20)


def test_a_click_marks_an_object_and_a_run_follows_it(tmp_path: Path, studio: Studio):
    scene = studio.open(write_clip(tmp_path / "clip.mp4", size=SIZE))
    with pytest.raises(ValueError, match="nothing is marked yet"):
        studio.run(scene)
    studio.click(scene, (20, 48), 3)
    truth = moving_mask(0, SIZE)
    assert ((scene.ids == 3) & (truth > 0)).sum() / ((scene.ids == 3) | (truth > 0)).sum() > 0.6
    assert (scene.seen() != scene.frame).any()
    live = Live()
    film, zipped = studio.run(scene, 2, live)
    assert (live.done, live.total) == (4, 4)
    assert live.picture is not None
    assert live.picture.shape == (*SIZE, 3)
    assert film.is_file()
    with zipfile.ZipFile(zipped) as archive:
        assert sorted(archive.namelist()) == ["00000.png", "00002.png", "00004.png", "00006.png"]
    studio.run(scene)
    assert not film.exists()
    assert len(list(scene.folder.glob("run-*"))) == 1
    scene.close()
    assert list(studio.folder.iterdir()) == []


def result_of(running: Generator[Live, None, Any]) -> Any:
    """The result of followed work, at its end."""
    while True:
        try:
            next(running)
        except StopIteration as end:
            return end.value


@pytest.mark.parametrize("name", ["run", "track"])
def test_a_stopped_run_leaves_nothing_and_can_run_again(tmp_path: Path, studio: Studio, name: str):
    scene = studio.open(write_clip(tmp_path / "clip.mp4", size=SIZE))
    studio.click(scene, (20, 48), 3)
    scene.spot(20, 48)
    before = sorted(scene.folder.iterdir())

    def work(live: Live) -> tuple[Path, Path]:
        live.stop.set()  # as the visitor does in another thread, before the first frame is done
        return getattr(studio, name)(scene, 1, live)

    running = follow(work, scene.live)
    assert result_of(running) is None
    assert (scene.live.done, scene.live.total) == (1, 8)
    assert sorted(scene.folder.iterdir()) == before
    assert all(file.is_file() for file in getattr(studio, name)(scene))


def test_work_shows_its_state_and_a_closed_page_stops_it():
    go, seen, ended = threading.Event(), [], threading.Event()

    def work(live: Live) -> str:
        try:
            for number in range(1, 1000):
                live.tell(number, 1000)
                go.wait(0.01)
            return "done"
        finally:
            ended.set()

    running = follow(work, Live())
    seen.append(next(running).done)
    running.close()
    assert ended.is_set(), "close waits for the thread"
    assert 0 < seen[0] < 1000

    def failing(live: Live) -> None:
        raise ValueError("no frame")

    with pytest.raises(ValueError, match="no frame"):
        list(follow(failing, Live()))


def test_changes_are_taken_back_one_by_one(tmp_path: Path, studio: Studio):
    scene = studio.open(write_clip(tmp_path / "clip.mp4", size=SIZE))
    states = [scene.ids.copy()]
    for number in range(MOST_UNDONE + 5):
        strokes = np.zeros(SIZE, bool)
        strokes[number] = True
        studio.paint(scene, strokes, 1 + number % 9)
        states.append(scene.ids.copy())
    studio.click(scene, (20, 48), 3)
    states.append(scene.ids.copy())
    scene.mark(slice(None), 0)
    assert not scene.ids.any()
    for expected in states[: -MOST_UNDONE - 1 : -1]:
        scene.undo()
        assert (scene.ids == expected).all()
    scene.undo()
    assert (scene.ids == states[-MOST_UNDONE]).all(), "older changes are kept"


def test_marks_of_a_later_frame_go_both_ways(tmp_path: Path, studio: Studio):
    scene = studio.open(write_clip(tmp_path / "clip.mp4", size=SIZE))
    scene.go(4)
    assert np.abs(scene.frame.astype(int) - moving_disc(4, SIZE)).mean() < 8
    studio.paint(scene, moving_mask(4, SIZE) > 0, 3)
    assert scene.said() == "Frame 4, the last is 7. Marked frames: 4."
    live = Live()
    _, zipped = studio.run(scene, 1, live)
    assert (live.done, live.total) == (13, 13), "five frames backward, then all eight"
    with zipfile.ZipFile(zipped) as archive:
        for index, name in enumerate(sorted(archive.namelist())):
            with archive.open(name) as file:
                ids, truth = np.array(Image.open(file)) == 3, moving_mask(index, SIZE) > 0
            assert (ids & truth).sum() / (ids | truth).sum() > 0.6, name
            scene.go(index)
            assert ((scene.ids == 3) == ids).all(), "the result is on view"
    with pytest.raises(ValueError, match="frame 4 is marked, but not used with every n-th frame, n = 3"):
        studio.run(scene, 3)


def test_a_correction_keeps_what_is_on_view(tmp_path: Path, studio: Studio):
    scene = studio.open(write_clip(tmp_path / "clip.mp4", size=SIZE))
    studio.paint(scene, moving_mask(0, SIZE) > 0, 1)
    studio.run(scene)
    scene.go(6)
    before, corner = scene.ids.copy(), np.zeros(SIZE, bool)
    corner[:16, :16] = True
    studio.paint(scene, corner, 2)
    assert (scene.ids == np.where(corner, 2, before)).all()
    assert scene.marks[6].objects == {1, 2}
    studio.paint(scene, scene.ids == 1, 0)
    assert set(np.unique(scene.ids)) == {0, 2}
    assert scene.marks[6].objects == {1, 2}, "object 1 is known to be absent"
    with zipfile.ZipFile(studio.run(scene)[1]) as archive:
        masks = {}
        for name in archive.namelist():
            with archive.open(name) as file:
                masks[name] = np.array(Image.open(file))
    assert (masks["00006.png"] == scene.ids).all()
    assert [1 in masks[f"{index:05d}.png"] for index in range(8)] == 4 * [True] + 4 * [False]
    assert all(2 in ids for ids in masks.values())
    scene.clear()
    assert sorted(scene.marks) == [0]
    scene.go(0)
    scene.undo()
    assert (scene.index, sorted(scene.marks)) == (6, [0, 6]), "undo goes to the frame of the change"


def test_a_stopped_run_keeps_the_result_before_it(tmp_path: Path, studio: Studio):
    scene = studio.open(write_clip(tmp_path / "clip.mp4", size=SIZE))
    studio.paint(scene, moving_mask(0, SIZE) > 0, 1)
    film, _ = studio.run(scene)
    scene.go(5)
    before, live = scene.ids, Live()
    assert before.any()
    live.stop.set()
    with pytest.raises(StoppedError):
        studio.run(scene, 1, live)
    assert (scene.ids == before).all()
    assert film.is_file()


def test_frames_are_stepped_through(tmp_path: Path, studio: Studio):
    scene = studio.open(write_clip(tmp_path / "clip.mp4", size=SIZE))
    steps = []
    for every, by in ((1, 1), (3, 1), (3, 1), (3, 1), (3, -1), (1, -1), (4, 1), (4, 1), (4, -1), (4, -1), (4, -1)):
        scene.step(every, by)
        steps.append(scene.index)
    assert steps == [1, 3, 6, 6, 3, 2, 4, 4, 0, 0, 0]
    scene.go(99)
    assert scene.index == 7


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


def test_clicked_points_are_tracked(tmp_path: Path, studio: Studio):
    scene = studio.open(write_clip(tmp_path / "clip.mp4", size=SIZE))
    with pytest.raises(ValueError, match="there is no point yet"):
        studio.track(scene)
    scene.spot(20, 48)
    scene.spot(100, 10)
    assert (scene.seen_points() != scene.frame).any()
    film, table = studio.track(scene, 2)
    assert film.is_file()
    rows = pd.read_csv(table)
    assert rows["frame"].unique().tolist() == [0, 2, 4, 6]
    last = rows[(rows["point"] == 1) & (rows["frame"] == 6)].iloc[0]
    assert moving_mask(6, SIZE)[int(last["y"]), int(last["x"])] == 1
    studio.track(scene)
    assert not film.exists()


def test_points_of_any_frame_are_followed_to_all_frames(tmp_path: Path, studio: Studio):
    scene = studio.open(write_clip(tmp_path / "clip.mp4", size=SIZE))
    for index in (6, 3):
        scene.go(index)
        rows, columns = np.nonzero(moving_mask(index, SIZE))
        scene.spot(int(columns.mean()), int(rows.mean()))
    scene.spot(100, 10)
    assert scene.said() == "Frame 3, the last is 7. Marked frames: none. Frames with points: 3, 6."
    shown = (scene.seen_points() != scene.frame).any(axis=2)
    assert shown[10, 100]
    assert not shown[:, :5].any()
    scene.go(0)
    assert (scene.seen_points() == scene.frame).all()
    rows = pd.read_csv(studio.track(scene)[1])
    for point, own in ((1, 6), (2, 3)):
        track = rows[rows["point"] == point].reset_index()
        assert all(moving_mask(row.Index, SIZE)[int(row.y), int(row.x)] for row in track.itertuples())
        assert (track["x"][own], track["y"][own]) == scene.points[point - 1][2:]
    assert rows[rows["frame"] == 0]["frame"].size == 3
    assert pd.read_csv(studio.track(scene, 4)[1])["frame"].unique().tolist() == [0, 4], "no point's own frame is used"
    scene.undo_point()
    scene.undo_point()
    assert (scene.index, [index for _, index, *_ in scene.points]) == (3, [6])


def test_a_corrected_point_is_on_both_frames(tmp_path: Path, studio: Studio):
    scene = studio.open(write_clip(tmp_path / "clip.mp4", size=SIZE))
    scene.spot(100, 10)
    scene.go(7)
    scene.spot(20, 48, corrects=1)
    scene.spot(21, 48, corrects=1)
    assert scene.points == [(1, 0, 100, 10), (1, 7, 21, 48)], "a second click on a frame moves the point"
    rows = pd.read_csv(studio.track(scene)[1]).set_index("frame")
    assert rows["point"].tolist() == [1] * 8
    assert rows.loc[[0, 7], ["x", "y"]].values.tolist() == [[100, 10], [21, 48]]
    for number in (-1, 2):
        with pytest.raises(ValueError, match=rf"point {number}: expected 0 for a new point, or .* up to 1"):
            scene.spot(1, 1, corrects=number)


def test_a_click_shows_the_match_in_another_image(tmp_path: Path, studio: Studio):
    """The square of one frame is found in a later frame, where it is elsewhere; and back."""
    scenes = []
    for name, index in (("a", 0), ("b", 20)):
        Image.fromarray(moving_disc(index, SIZE)).save(tmp_path / f"{name}.png")
        scenes.append(studio.open(tmp_path / f"{name}.png"))
    for source, target, start, end in (
        (*scenes, moving_mask(0, SIZE), moving_mask(20, SIZE)),
        (*scenes[::-1], moving_mask(20, SIZE), moving_mask(0, SIZE)),
    ):
        rows, columns = np.nonzero(start)
        here, there, cosine = studio.match(source, target, (int(columns.mean()), int(rows.mean())))
        assert cosine > 0.99
        marked = np.argwhere((there != target.frame).any(axis=2)).mean(axis=0).round().astype(int)
        assert end[tuple(marked)] == 1
        assert (here != source.frame).any()
    with pytest.raises(ValueError, match="128"):
        studio.match(*scenes, (128, 3))


def test_large_files_are_refused(tmp_path: Path, studio: Studio):
    (tmp_path / "big.mp4").write_bytes(bytes(2**20 + 1))
    with pytest.raises(ValueError, match=r"big\.mp4 has 1\.0 MiB: expected at most 1"):
        studio.open(tmp_path / "big.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(DataError, match="text"):
        studio.open(tmp_path / "text.mp4")
    assert list(studio.folder.iterdir()) == []


def click_points_and_matches(page: Any, clip: Path, folder: Path) -> None:
    """Track a clicked point and download its table; then match the clip's first frame with another picture."""
    page.get_by_role("tab", name="Points").click()
    click_on(page, "#points-frame img", (90, 20))
    undo(page, "#undo-point", "#points-frame img")
    click_on(page, "#points-frame img", (20, 48))
    page.keyboard.press("ArrowRight")
    page.locator("#said-frame").get_by_text("Frame 2", exact=False).wait_for()
    click_on(page, "#points-frame img", (22, 48))
    page.locator("#said-frame").get_by_text("Frames with points: 1, 2.").wait_for()
    page.locator("#track").click()
    page.wait_for_function("() => (document.querySelector('#tracks-overlay video') || {}).duration > 0")
    page.wait_for_function("() => !document.querySelector('#tracks').disabled")
    with page.expect_download() as download:
        page.locator("#tracks").click()
    assert len(pd.read_csv(download.value.path())) == 16
    Image.fromarray(moving_disc(20, SIZE)).save(folder / "other.png")
    page.get_by_role("tab", name="Match").click()
    page.locator("#other input[type=file]").set_input_files(str(folder / "other.png"))
    page.locator("#match-right img").wait_for()
    click_on(page, "#match-left img", (20, 48))
    page.locator("#match-said").get_by_text("Cosine", exact=False).wait_for()


def choose_frames_by_keys(page: Any) -> None:
    """Mark another frame than the first, by keys; keys in a text box are text. The first frame is marked before."""
    said = page.locator("#said-frame")
    page.keyboard.press("ArrowRight")
    said.get_by_text("Frame 1, the last is 7. Marked frames: 0.").wait_for()
    click_on(page, "#frame img", (22, 48))
    said.get_by_text("Marked frames: 0, 1.").wait_for()
    page.keyboard.press("z")
    said.get_by_text("Marked frames: 0.").wait_for()


def check_keys(page: Any) -> None:
    """Each key clicks the button that is on view, and none while a text box has the keyboard."""
    buttons = "".join(
        f'<button class="{name}" onclick="pressed.push(\'{name}\')">{name}</button>' for name, _ in KEYS.values()
    )
    page.set_content(
        f"<div style='display: none'>{buttons}</div>{buttons}<input id='text'><input id='range' type='range'>"
        f"<button id='picture'><img></button><button id='other' onclick=\"pressed.push('other')\">other</button>"
        f"<script>const pressed = [];</script>{SCRIPT}"
    )

    def pressed(focused: str) -> list[str]:
        if focused:
            page.focus(focused)
        for key in KEYS:
            page.keyboard.press(key)
        page.keyboard.press("Control+z")
        return page.evaluate("pressed.splice(0)")

    names = [name for name, _ in KEYS.values()]
    assert pressed("") == names
    assert pressed("#text") == []
    assert pressed("#range") == ["key-undo", "key-run", "key-cancel"]
    assert pressed("#picture") == names
    assert pressed("#other") == ["other" if name == "key-run" else name for name in names]


def compare_and_find_classes(page: Any, folder: Path) -> None:
    """One click shows both checkpoints; a reference with a clicked class gives classes to the frame on view."""
    page.get_by_role("tab", name="Compare").click()
    page.locator("#compare-frame img").click(position={"x": 20, "y": 48})
    for name in ("regions", "components", "matches"):
        page.locator(f"#compare-{name} img").wait_for()
    page.locator("#compare-said").get_by_text("with cosine", exact=False).wait_for()
    page.get_by_role("tab", name="Labels").click()
    page.locator("#references input[type=file]").set_input_files(str(folder / "other.png"))
    click_on(page, "#reference-image img", (60, 48))
    page.locator("#label").click()
    page.locator("#classes img").wait_for()
    page.wait_for_function("() => !document.querySelector('#download-classes').disabled")


def cancel_a_run(page: Any, clip: Path) -> None:
    """Start a long run, see its frames while it runs, and stop it."""
    page.get_by_role("tab", name="Masks").click()
    page.locator("#source input[type=file]").set_input_files(str(clip))
    click_on(page, "#frame img", (20, 48))
    page.locator("#run").click()
    page.locator("#live-run img").wait_for()
    page.locator("#cancel-run").click()
    said = page.locator("#said-run").get_by_text("Canceled after", exact=False)
    said.wait_for()
    done, total = map(int, re.findall(r"\d+", said.inner_text()))
    assert 0 < done < total == LONG
    assert not page.locator("#live-run img").is_visible()
    assert page.locator("#masks").is_disabled()


def undo(page: Any, button: str, picture: str) -> None:
    """Take the last change back, and wait until the picture changes."""
    before = page.locator(picture).get_attribute("src")
    page.locator(button).click()
    page.wait_for_function(
        "([picture, before]) => document.querySelector(picture).src !== before", arg=[picture, before]
    )


def click_on(page: Any, selector: str, point: tuple[int, int]) -> None:
    """Click a pixel (x, y) of a picture of `SIZE`, and wait until the picture changes."""
    picture = page.locator(selector)
    picture.wait_for()
    page.wait_for_function("selector => document.querySelector(selector).naturalWidth > 0", arg=selector)
    before, box = picture.get_attribute("src"), picture.bounding_box()
    x, y = box["width"] * point[0] / SIZE[1], box["height"] * point[1] / SIZE[0]
    picture.click(position={"x": x, "y": y})  # scrolls to it, and waits until it stays where it is
    page.wait_for_function(
        "([selector, before]) => document.querySelector(selector).src !== before", arg=[selector, before]
    )


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
    with open_studio([backbone(), backbone()], config) as (address, folder), chromium() as browser:
        assert urlparse(address).hostname == HOST
        check_keys(browser.new_page())
        page = browser.new_page(viewport={"width": 1200, "height": 1600})
        page.set_default_timeout(60_000)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.locator("#source input[type=file]").set_input_files(str(big))
        page.get_by_text("exceed", exact=False).first.wait_for()
        page.reload()
        page.locator("#source input[type=file]").set_input_files(str(clip))
        click_on(page, "#frame img", (20, 48))
        choose_frames_by_keys(page)
        page.keyboard.press("Enter")
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
        click_points_and_matches(page, clip, tmp_path)
        compare_and_find_classes(page, tmp_path)
        page.screenshot(path=str(tmp_path / "classes.png"), full_page=True)
        page.get_by_role("tab", name="PCA").click()
        page.locator("#look-pca").click()
        page.locator("#pca img").wait_for()
        (left,) = (scene for scene in folder.glob("scene-*") if (scene / "clip.mp4").is_file())
        page.locator("#source button[aria-label='Clear']").click()
        page.locator("#frame img").wait_for(state="detached")
        assert not left.exists()
        cancel_a_run(page, write_clip(tmp_path / "long.mp4", LONG, size=SIZE))
        page.screenshot(path=str(tmp_path / "canceled.png"), full_page=True)
        page.set_viewport_size({"width": 390, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it fits a phone"
        page.screenshot(path=str(tmp_path / "phone.png"), full_page=True)
        assert folder.is_dir()
    assert not folder.exists()
    strangers = {urlparse(url).hostname for url in asked if urlparse(url).scheme not in ("data", "blob")} - {HOST}
    assert strangers == set()
