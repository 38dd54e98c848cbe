"""`python -m tasks.attention`, from files to files."""

import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tasks
from data.images import read_upright
from tasks import attention
from tasks.__main__ import main as tasks_main
from tasks.harness import registry
from tests.clip_files import facts, moving_disc, write_clip

RANDOM = "random:vit_micro_patch8_64"
SIZE = (48, 64)
HEADS = 2


def run(tmp_path: Path, source: Path, *options: str) -> list[str]:
    words = ["--ckpt", RANDOM, "--device", "cpu", "--resolution", "48", "--out", str(tmp_path / "out")]
    assert attention.main([*words, "--input", str(source), *options]) == 0
    return sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.fromarray(moving_disc(3, SIZE)).save(tmp_path / "cat.png")
    return tmp_path / "cat.png"


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.mp4", rate=Fraction(30000, 1001))


def test_every_picture_of_an_image(tmp_path: Path, image: Path):
    names = run(tmp_path, image)
    heads = [f"cat/head{head}_{kind}.png" for head in range(HEADS) for kind in ("heat", "mask", "over")]
    assert names == ["cat/attention_grid.png", *heads, "cat/mean.png"]
    assert {read_upright(tmp_path / "out" / name).shape for name in names if "grid" not in name} == {(*SIZE, 3)}


def test_components_and_match(tmp_path: Path, image: Path):
    assert run(tmp_path, image, "--kind", "pca") == ["cat/pca.png", "cat/pca_grid.png"]
    other = tmp_path / "dog.png"
    Image.fromarray(moving_disc(9, (64, 40))).save(other)
    names = run(tmp_path, image, "--kind", "match", "--query", "12,20", "--target", str(other))
    assert names[-3:] == ["dog/match_grid.png", "dog/match_heat.png", "dog/match_over.png"]
    assert read_upright(tmp_path / "out" / "dog" / "match_over.png").shape == (64, 40, 3)


def test_a_folder_is_looked_at_with_one_set_of_colors(tmp_path: Path):
    folder = tmp_path / "many"
    for index, name in enumerate(("a.png", "sub/b.png")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(moving_disc(index, SIZE)).save(folder / name)
    Image.fromarray(moving_disc(0, SIZE)).save(folder / "again.png")
    names = run(tmp_path, folder, "--kind", "pca")
    assert [name for name in names if "grid" not in name] == ["a/pca.png", "again/pca.png", "sub/b/pca.png"]
    pictures = [read_upright(tmp_path / "out" / f"{name}/pca.png") for name in ("a", "again")]
    assert (pictures[0] == pictures[1]).all()


def test_pictures_of_one_name_have_each_a_folder(tmp_path: Path):
    folder = tmp_path / "many"
    folder.mkdir()
    for index, name in enumerate(("a.png", "a.bmp", "b.png")):
        Image.fromarray(moving_disc(index, SIZE)).save(folder / name)
    names = run(tmp_path, folder, "--kind", "pca")
    assert [name for name in names if name.endswith("/pca.png")] == ["a.bmp/pca.png", "a.png/pca.png", "b/pca.png"]


@pytest.mark.parametrize("kind", ["attention", "pca", "match"])
def test_videos_have_the_frames_size_and_rate_of_their_source(tmp_path: Path, clip: Path, kind: str):
    options = ("--query", "10,20") if kind == "match" else ()
    names = run(tmp_path, clip, "--kind", kind, *options)
    first = {"attention": "mean", "pca": "pca", "match": "match_over"}[kind]
    assert names == sorted([f"clip_{first}.mp4", f"clip_{kind}_grid.mp4"])
    assert facts(tmp_path / "out" / f"clip_{first}.mp4") == (8, SIZE, Fraction(30000, 1001), "h264")
    assert facts(tmp_path / "out" / f"clip_{kind}_grid.mp4")[0] == 8


def test_a_rotated_photograph_is_shown_upright(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(moving_disc(3, SIZE))).save(tmp_path / "a.jpg", exif=exif)
    run(tmp_path, tmp_path / "a.jpg", "--kind", "pca")
    assert read_upright(tmp_path / "out" / "a" / "pca.png").shape == (*SIZE, 3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--kind", "match", "--query", "99,0"), "point 99,0 .x,y. is not in the image, 64 wide"),
        (("--input", "nowhere.png"), "nowhere.png: no such"),
        (("--ckpt", "random:resnet18"), "has no attention; it has cls, patches"),
    ],
)
def test_what_cannot_be_looked_at(tmp_path: Path, image: Path, options: tuple[str, ...], says: str):
    with pytest.raises((ValueError, OSError), match=says):
        run(tmp_path, image, *options)


@pytest.mark.parametrize(
    "options",
    [("--kind", "match"), ("--query", "1,1"), ("--target", "a"), ("--mass", "0"), ("--resolution", "0")],
)
def test_options_that_do_not_go_together(tmp_path: Path, image: Path, options: tuple[str, ...], capsys):
    with pytest.raises(SystemExit):
        run(tmp_path, image, *options)
    assert "error" in capsys.readouterr().err


def test_commands_are_no_tasks_but_are_run_as_tasks_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """A module of `tasks` is a task or a command, and each is listed."""
    root = Path(tasks.__file__).parent
    public = {path.stem for path in root.glob("[!_]*.py")}
    assert set(registry.commands()) >= {"attention", "studio"}
    assert public <= {*tasks.names(), *registry.commands()}
    assert not set(tasks.names()) & set(registry.commands())
    monkeypatch.setattr(sys, "argv", ["tasks", "attention", "--help"])
    with pytest.raises(SystemExit):
        tasks_main()
    text = capsys.readouterr().out
    assert "--mass X" in text
    assert "Input and pictures" in text
