"""The command line: dataclass in, dataclass out, and errors a person can act on."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from dino_dense.config import command_line, presets, schema
from dino_dense.files import WriteError


@dataclass(frozen=True)
class Protocol:
    """Constants"""

    radius: int = 12
    """Half-width of the window, patches."""
    window: Literal["square", "circle"] = "square"
    """Shape."""


@dataclass(frozen=True)
class Config(Protocol):
    """What to do"""

    k: tuple[int, ...] = (10, 20)
    """Neighbors."""
    sequences: tuple[str, ...] | None = None
    """Names."""
    max_frames: int | None = None
    """Frames."""
    resume: bool = False
    """Go on."""

    def __post_init__(self) -> None:
        if self.radius < 0:
            raise ValueError(f"radius {self.radius} is negative; expected 0 or more")


def parse(*argv: str) -> Config:
    return command_line.parse(Config, prog="prog", description="Does it.", argv=argv)


def test_defaults():
    assert parse() == Config()


def test_shell_habits():
    expected = Config(radius=3, k=(1, 5), sequences=("dog", "libby"), max_frames=7, resume=True)
    assert parse("--radius=3", "--k", "1,5", "--sequences", "dog,libby", "--max-frames", "7", "--resume") == expected
    assert parse("--radius", "3", "--k=1,5", "--sequences=dog,libby", "--max_frames=7", "--resume", "true") == expected


def test_yaml_and_overrides_and_back(tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("radius: 3\nk: [1, 2]\n")
    assert parse("--config", str(recipe), "--radius", "4") == Config(radius=4, k=(1, 2))
    recipe.write_text(schema.to_yaml(Config(k=(7,), sequences=("a",))))
    assert parse("--config", str(recipe)) == Config(k=(7,), sequences=("a",))


def failure(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as caught:
        parse(*argv)
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_unknown_option_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]):
    assert "Did you mean --radius?" in failure(capsys, "--radus", "3")
    assert "Did you mean --max-frames?" in failure(capsys, "--max-frame", "3")


def test_unknown_key_of_a_recipe_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    (tmp_path / "r.yaml").write_text("windw: circle\n")
    assert "Did you mean --window?" in failure(capsys, "--config", str(tmp_path / "r.yaml"))
    with pytest.raises(ValueError, match="Did you mean window"):
        schema.from_plain(Config, {"windw": "circle"})


@pytest.mark.parametrize("argv", [("--radius", "x"), ("--window", "triangle"), ("--k", "a,b"), ("--radius", "-1")])
def test_bad_values_name_the_option(capsys: pytest.CaptureFixture[str], argv: tuple[str, str]):
    assert argv[0].removeprefix("--") in failure(capsys, *argv)


def test_help_explains_every_field_once(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for option in ("--radius N", "--window {square|circle}", "--max-frames N", "--resume {true|false}"):
        assert text.count(option) == 1
    assert "Half-width of the window, patches. [12]" in text
    assert text.index("What to do") < text.index("Constants")


def test_a_field_without_text_is_refused():
    @dataclass(frozen=True)
    class Silent:
        """Silent"""

        x: int = 1

    with pytest.raises(TypeError, match=r"Silent\.x has no docstring"):
        command_line.parse(Silent, prog="prog", description="", argv=[])


def test_presets_lie_under_explicit_options():
    from tasks.davis import DavisConfig

    crw = command_line.parse(DavisConfig, prog="p", description="", argv=["--preset", "crw"], presets="davis")
    assert (crw.context_frames, crw.top_k, crw.window_on) == (20, 10, "recent")
    mixed = command_line.parse(
        DavisConfig, prog="p", description="", argv=["--top-k=3", "--preset=crw"], presets="davis"
    )
    assert (mixed.context_frames, mixed.top_k) == (20, 3)


def test_a_presets_constants_are_what_is_printed(capsys: pytest.CaptureFixture[str]):
    from tasks.davis import DavisConfig

    for option, shown in (("--print-config", "context_frames: 20"), ("--help", "CRW 20). [20]")):
        with pytest.raises(SystemExit):
            command_line.parse(DavisConfig, prog="p", description="", argv=["--preset", "crw", option], presets="davis")
        assert shown in capsys.readouterr().out


def test_a_preset_named_in_a_recipe_counts_too(tmp_path: Path):
    from tasks.davis import DavisConfig

    (tmp_path / "r.yaml").write_text("preset: crw\ntop_k: 4\n")
    argv = ["--config", str(tmp_path / "r.yaml"), "--radius", "3"]
    config = command_line.parse(DavisConfig, prog="p", description="", argv=argv, presets="davis")
    assert (config.context_frames, config.top_k, config.radius) == (20, 4, 3)


def test_unknown_preset_names_those_there_are():
    with pytest.raises(ValueError, match="there are: crw, dino, dinov3"):
        presets.load_protocol("davis", "dino2")


def test_errors_are_one_message_and_exit_2(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(command_line.DEBUG_VARIABLE, "")

    def broken() -> None:
        raise ValueError("masks/0.png: no object")

    with pytest.raises(SystemExit) as caught:
        command_line.run(broken)
    assert caught.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith("error: masks/0.png: no object\n")
    assert "Traceback" not in text
    monkeypatch.setattr("sys.argv", ["prog", "--debug", "--k", "1"])
    with pytest.raises(SystemExit):
        command_line.run(broken)
    assert "Traceback" in capsys.readouterr().err
    assert sys.argv == ["prog", "--k", "1"]


def test_errors_of_the_system_say_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Not "[Errno 36] File name too long" and all of the name."""
    file = tmp_path / "file"
    file.touch()
    for path, words in ((tmp_path / ("o" * 300), "a name that is too long"), (file / "out", "is a file, not a folder")):
        with pytest.raises(SystemExit):
            command_line.run(lambda path=path: path.mkdir())
        text = capsys.readouterr().err
        assert text.startswith(f"error: {tmp_path}/")
        assert words in text
        assert "Errno" not in text
        assert len(text.splitlines()[0]) < 400


def test_a_run_that_failed_on_its_way_exits_1(monkeypatch: pytest.MonkeyPatch):
    def full() -> None:
        raise WriteError("last.safetensors: cannot be written")

    with pytest.raises(SystemExit) as caught:
        command_line.run(full)
    assert caught.value.code == 1


@pytest.mark.parametrize(("words", "expected"), [([], False), (["--resume"], True), (["--resume", "auto"], "auto")])
def test_an_option_that_is_true_false_or_a_word(words: list[str], expected: object):
    @dataclass(frozen=True)
    class Going:
        """Going on"""

        resume: bool | Literal["auto"] = False
        """Whether."""

    assert command_line.parse(Going, prog="prog", description="", argv=words).resume == expected


@dataclass(frozen=True)
class Reading:
    """What to read"""

    files: tuple[str, ...] = ()
    """Files."""
    k: int = 1
    """Neighbors."""
    names: tuple[str, ...] = ()
    """Names."""


@pytest.mark.parametrize(
    "argv",
    [("a.json", "b", "--k", "3"), ("--k", "3", "a.json", "b"), ("a.json", "--k=3", "b"), ("a.json", "--k", "3", "b")],
)
def test_positional_words_may_stand_anywhere(argv: tuple[str, ...]):
    read = command_line.parse(Reading, prog="prog", description="Does it.", argv=argv, positional="files")
    assert read == Reading(files=("a.json", "b"), k=3)


def test_positional_words_are_taken_as_they_are():
    argv = ["--names", "x,y", "a,b", "names", "files", "7", "[z]"]
    read = command_line.parse(Reading, prog="prog", description="Does it.", argv=argv, positional="files")
    assert read == Reading(files=("a,b", "names", "files", "7", "[z]"), names=("x", "y"))


def test_help_shows_positional_words_without_hyphens(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        command_line.parse(Reading, prog="prog", description="Does it.", argv=["--help"], positional="files")
    text = capsys.readouterr().out
    assert text.startswith("usage: prog FILES ...")
    assert "--files" not in text


# --- Names of the version before -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Renamed:
    """Constants"""

    normalize: Literal["minmax", "none"] = "minmax"
    """Of each channel."""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "old.yaml"
    file.write_text("normalise: none\n")
    return file


def parse_renamed(*argv: str) -> Renamed:
    return command_line.parse(Renamed, prog="prog", description="Does it.", argv=argv)


def test_an_old_name_is_taken_and_said(recipe: Path, capsys: pytest.CaptureFixture[str]):
    for words in (("--normalise", "none"), ("--normalise=none",), ("--config", str(recipe))):
        assert parse_renamed(*words) == Renamed("none")
        assert "normalise is now called normalize" in capsys.readouterr().err
    assert parse_renamed("--normalize", "none") == Renamed("none")
    assert capsys.readouterr().err == ""
    assert schema.from_plain(Renamed, {"normalise": "none"}) == Renamed("none")
    assert command_line.from_recipe(Renamed, {"normalise": "none"}) == Renamed("none")


def test_an_old_and_a_new_name_that_differ_are_refused(recipe: Path, capsys: pytest.CaptureFixture[str]):
    @dataclass(frozen=True)
    class Three:
        """Constants"""

        normalize: Literal["minmax", "none", "sum"] = "minmax"
        """Of each channel."""

    with pytest.raises(SystemExit):
        command_line.parse(Three, prog="prog", description="", argv=("--config", str(recipe), "--normalize", "sum"))
    assert "Leave --normalise out" in capsys.readouterr().err


def test_an_old_name_is_not_shown(capsys: pytest.CaptureFixture[str]):
    for words in ("--help", "--print-config"):
        with pytest.raises(SystemExit):
            parse_renamed(words)
    assert "normalise" not in capsys.readouterr().out
