"""The documents: their commands are read by the programs, their links lead somewhere, their tables are the code's."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import pytest

import benchmarks.__main__ as all_benchmarks
import tasks
from data.sample import sample_data
from dino_dense.config import command_line, presets
from dino_dense.config.completion import SHELLS
from docs import hooks
from tasks.harness import command, dispatch, quickstart, suites
from tasks.harness.options import BatchOptions
from tasks.harness.registry import commands
from tests.test_task_contract import LIGHTER

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = ("python", "python3", "dino-dense", "torchrun", "pip", "make", "source")
"""First words of commands."""
NAMES = tasks.names()
RANDOM = "random:vit_micro_patch8_64"
RUN = ("davis", "discovery")
"""Tasks whose command on embedded data runs as a whole: cheap ones, of videos and of images."""
NEED_FILES = ("--data", "--score", "--pair", "--truth", "--each-layer", "--sizes", "--layers")
"""Options of commands that are read only: they need files, or measure many times."""


class Printed(NamedTuple):
    """A command of a page."""

    page: str
    text: str

    @property
    def words(self) -> list[str]:
        words = [word for word in shlex.split(self.text, comments=True) if word != "..."]
        return [word.split("|")[0] if re.fullmatch(r"\w+(\|\w+)+", word) else word for word in words]


def page_texts() -> Iterator[tuple[str, str]]:
    """Every document, and the pages of data sets as they are generated."""
    for path in PAGES:
        yield path.relative_to(ROOT).as_posix(), path.read_text()
    for entry in hooks.data_sets():
        yield f"docs/data/{entry['name']}.md", hooks.data_page(entry)


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of the fenced blocks of a page."""
    return re.findall(r"^ *```(\w*)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)


def printed_commands() -> list[Printed]:
    """Commands in blocks, in running text, and in the headers of protocols; each once."""
    texts: list[Printed] = []
    for page, text in page_texts():
        for language, content in blocks(text):
            lines = [line.strip() for line in content.replace("\\\n", " ").splitlines() if line.strip()]
            if language in ("", "sh", "bash") and lines[0].split()[0] in PROGRAMS:
                texts += [Printed(page, line) for line in lines]
        inline = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
        texts += [
            Printed(page, " ".join(found.split())) for found in re.findall(r"`((?:python3?|dino-dense) [^`]+)`", inline)
        ]
    for path in sorted((ROOT / "configs" / "protocols").glob("*.yaml")):
        text = hooks.protocol_header(path.stem)[1].get("command", "")
        if text:
            texts.append(Printed(path.name, re.sub(r"\(.*|;.*", "", text)))
    return [item for item in {item.text: item for item in texts}.values() if not is_form(item)]


def is_form(item: Printed) -> bool:
    """Whether a command is a form with a part to fill in (`python -m tasks.NAME`)."""
    return item.text == "python -m" or bool(
        re.search(
            r"tasks[. ](NAME|TASK|mytask)\b|--suite SUITE|benchmarks NAME|dino-dense (TASK|suite SUITE)|mytask",
            item.text,
        )
    )


COMMANDS = printed_commands()


class Parsed(BaseException):
    """Ends a program after it has read its command line; no `except Exception` catches it."""

    def __init__(self, values: Any) -> None:
        self.values = values if isinstance(values, tuple) else (values,)


@pytest.fixture
def ends_when_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    parse = command_line.parse

    def parsed(*types: type, **options: Any) -> Any:
        raise Parsed(parse(*types, **options))

    monkeypatch.setattr(command_line, "parse", parsed)
    monkeypatch.chdir(ROOT)


# --- Every command is read ---------------------------------------------------------------------------------


def test_there_are_commands():
    assert len(COMMANDS) > 100
    assert {"README.md", "docs/tasks/davis.md", "docs/data/voc.md"} <= {item.page for item in COMMANDS}


@pytest.mark.parametrize("page", sorted({item.page for item in COMMANDS}))
def test_programs_take_the_commands_of_a_page(page: str, ends_when_parsed: None, monkeypatch: pytest.MonkeyPatch):
    for item in COMMANDS:
        if item.page == page:
            try:
                check(item.words, monkeypatch)
            except SystemExit as end:
                pytest.fail(f"{page}: {item.text}\nended with {end.code}")
            except (AssertionError, ValueError, OSError) as error:
                pytest.fail(f"{page}: {item.text}\n{error}")


def check(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the program read a command; an error for an option, a preset or a name that it lacks."""
    program, rest = words[0], words[1:]
    if program == "torchrun":
        check(["python", *rest[rest.index("-m") :]], monkeypatch)
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert re.fullmatch(r"dino_dense\[(.+)\]", rest[-1])[1] in extras, "no such extra"  # type: ignore[index]
    elif program == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(rest) <= set(targets), f"the Makefile has {targets}"
    elif program == "dino-dense" and rest[:1] == ["completion"]:  # it has no options, only a shell's name
        assert set(rest[1:]) <= set(SHELLS)
    elif program == "dino-dense":
        check_argv(dispatch.main, rest, monkeypatch)
    elif program != "source":
        check_python(rest, monkeypatch)


def check_python(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`python FILE ...` or `python -m MODULE ...`."""
    if words[0] == "bootstrap.py":
        assert words[1] in runpy.run_path(str(ROOT / "bootstrap.py"))["COMMANDS"]
        if words[1] == "quickstart":
            check_argv(lambda: quickstart.main(words[2:]), list(words[2:]), monkeypatch)
        return
    if words[0] != "-m":
        assert (ROOT / words[0]).is_file()
        return
    module, rest = words[1], list(words[2:])
    top, _, name = module.partition(".")
    if top == "tasks" and name in NAMES:
        check_argv(lambda: command.main(name, rest), rest, monkeypatch)
    elif top == "tasks" and name:
        check_argv(lambda: importlib.import_module(module).COMMAND.main(rest), rest, monkeypatch)
    elif module in ("tasks", "dino_dense.pretrain", "dino_dense.report", "dino_dense.export"):
        check_argv(importlib.import_module(f"{module}.__main__").main, rest, monkeypatch)
    elif module == "benchmarks":
        named = {word for word in rest if word not in ("--docs", "--device", "cpu", "cuda")}
        assert named <= set(all_benchmarks.names())
    else:
        assert importlib.util.find_spec(module), f"no module {module}"


def check_argv(program: Callable[[], Any], words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a program until it has read its command line; configs that a reader would have are a recipe."""
    for index, word in enumerate(words[:-1]):
        if word == "--config" and not Path(words[index + 1]).is_file():
            words[index + 1] = "configs/pretrain/quickstart.yaml"
    monkeypatch.setattr(sys, "argv", ["program", *words])
    try:
        program()
    except Parsed as end:
        for values in end.values:
            if isinstance(values, BatchOptions) and values.suite:
                suites.load_suite(values.suite)
    except SystemExit:
        if len(words) > 1 or any(word.startswith("-") for word in words):
            raise  # else only the program is named, without the files that it needs
    else:
        assert words in ([], ["--help"]), "it read no options"


# --- Commands on embedded data run -------------------------------------------------------------------------


def embedded_commands() -> dict[str, Printed]:
    """Task -> the first command of its page that needs no file."""
    chosen: dict[str, Printed] = {}
    for item in COMMANDS:
        words = item.words
        name = words[2].removeprefix("tasks.") if words[:2] == ["python", "-m"] else ""
        if name in NAMES and item.page == f"docs/tasks/{name}.md" and not set(words) & set(NEED_FILES):
            chosen.setdefault(name, item)
    return chosen


EMBEDDED = embedded_commands()


def test_the_page_of_a_task_has_a_command_on_embedded_data():
    assert set(EMBEDDED) == {name for name in tasks.names() if hooks.has_page(name)}


@pytest.mark.parametrize("name", sorted(EMBEDDED))
def test_a_command_on_embedded_data_opens_them(name: str, ends_when_parsed: None):
    """The contract's tests run each task on them; here the options of the printed command are the ones that open."""
    with pytest.raises(Parsed) as end:
        command.main(name, EMBEDDED[name].words[3:])
    task = tasks.get(name)
    (config,) = (values for values in end.value.values if isinstance(values, task.config))
    assert "embedded" in task.open(config).facts.name


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_a_command_on_embedded_data_runs(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """As printed, with a small network, and the task's own settings of a short run after its options."""
    words = EMBEDDED[name].words[3:]
    words[words.index("--ckpt") + 1] = RANDOM
    task = tasks.get(name)
    default = dataclasses.asdict(task.config())
    short = {field: value for field, value in dataclasses.asdict(task.smoke).items() if value != default[field]}
    short |= LIGHTER[name]
    given = {word.lstrip("-").replace("-", "_") for word in words if word.startswith("--")}
    options = [f"--{field}={hooks.spelled(value)}" for field, value in short.items() if field not in given]
    assert command.main(name, [*words, *options, "--device", "cpu", "--out", str(tmp_path)]) == 0
    assert task.metrics[0].name in capsys.readouterr().out
    assert (tmp_path / "results.csv").is_file()


@pytest.mark.slow
def test_commands_on_own_files_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Those of the pages on `track` and `attention`, with the embedded video and images under the names of the page."""
    monkeypatch.chdir(own_files(tmp_path))
    for name in ("track", "attention"):
        main = importlib.import_module(f"tasks.{name}").COMMAND.main
        size = ["--short-side=64", "--max-frames=3"] if name == "track" else ["--resolution=64"]
        for number, item in enumerate(item for item in COMMANDS if item.page == f"docs/tasks/{name}.md"):
            words = [RANDOM if word == "CHECKPOINT" else word for word in item.words[3:]]
            out = tmp_path / f"{name}{number}"
            assert main([*words, *size, "--device", "cpu", "--out", str(out)]) == 0, item.text
            assert any(out.iterdir())


def own_files(folder: Path) -> Path:
    """A folder with the files that pages name."""
    sample = sample_data()
    shutil.copy(sample.video, folder / "CLIP.mp4")
    first = sorted((sample.davis / "Annotations" / "480p").iterdir())
    names = (sample.davis / "ImageSets" / "2017" / "val.txt").read_text().split()
    mask = next(path for path in first if path.name == names[0])
    shutil.copy(sorted(mask.iterdir())[0], folder / "FIRST.png")
    for name in ("IMAGES", "MASKS"):
        (folder / name).mkdir()
    shutil.copy(sorted(mask.iterdir())[2], folder / "MASKS" / "00002.png")
    pictures = sorted((sample.saliency / "images").iterdir())[:2]
    for name, picture in zip(("A.jpg", "B.jpg"), pictures, strict=True):
        shutil.copy(picture, folder / "IMAGES" / name)
        shutil.copy(picture, folder / name)
    shutil.copy(pictures[0], folder / "IMAGE.jpg")
    return folder


# --- Links -------------------------------------------------------------------------------------------------

GENERATED = {f"docs/{page}" for page in (*hooks.PAGES_OF_THE_ROOT, "options.md")} | {
    f"docs/data/{entry['name']}.md" for entry in hooks.data_sets()
}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings(path: Path):
    text = re.sub(r"^ *```.*?^ *```$|`[^`\n]*`", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:|mailto:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        name = linked.relative_to(ROOT).as_posix()
        assert linked.exists() or name in GENERATED, target
        if anchor and linked.exists():
            assert anchor in headings(linked), f"{target}: no such heading"


def headings(page: Path) -> set[str]:
    """Anchors of a page's headings, as MkDocs and GitHub make them, and of the headings that the hook adds."""
    text = page.read_text()
    if page.parent.name == "tasks":
        text += hooks.OF_EVERY_TASK + hooks.OF_EVERY_COMMAND
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


# --- Generated parts ---------------------------------------------------------------------------------------


def test_each_task_and_command_has_a_page():
    pages = {path.stem for path in (ROOT / "docs" / "tasks").glob("*.md")} - {"index"}
    assert pages == {*tasks.names(), *commands()}


@pytest.mark.parametrize("name", NAMES)
def test_the_page_of_a_task_shows_its_protocols_and_options(name: str):
    page = f"tasks/{name}.md"
    text = hooks.filled((ROOT / "docs" / page).read_text(), page)
    assert "<!-- generated" not in text
    for field in dataclasses.fields(tasks.get(name).config):
        assert hooks.code(f"--{field.name.replace('_', '-')}") in text
    for preset in presets.protocol_names(name):
        assert f"### `{preset}`" in text
        for field, value in presets.load_protocol(name, preset).items():
            (row,) = (
                line
                for line in hooks.sources_table(f"{name}_{preset}").splitlines()
                if line.startswith(f"| {hooks.code(field)} |")
            )
            assert f"    {row}" in text
            assert hooks.code(hooks.spelled(value)) in text


def test_every_published_number_is_on_the_page_of_its_task_and_data_set():
    shown = {name for entry in hooks.data_sets() for name in entry.get("published", ())}
    numbers: list[dict[str, Any]] = []
    hooks.published(lambda entry: numbers.append(dict(entry)) is not None)
    assert {entry["dataset"] for entry in numbers} == shown
    table = hooks.published(lambda entry: entry["task"] == "davis")
    assert "| <code>timm:vit&#95;small&#95;patch16&#95;224.dino</code> | 61.8 | 60.2 | 63.4 |" in table


def test_every_data_set_names_tasks_that_exist_and_every_task_has_data():
    named = {task for entry in hooks.data_sets() for task in entry["tasks"]}
    assert named <= {*tasks.names(), *commands()}
    assert set(tasks.names()) <= named


def test_cells_of_tables_show_signs_of_markdown_as_they_are():
    assert hooks.plain("a|b * <c> [d]") == "a&#124;b &#42; &lt;c&gt; &#91;d&#93;"
    assert hooks.spelled((0.5, None, True)) == "0.5,null,true"


@pytest.mark.slow
@pytest.mark.parametrize("notebook", hooks.notebooks(), ids=lambda path: path.stem)
def test_the_cells_of_a_notebook_run(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In order, in one namespace, as Jupyter runs them; a figure is drawn."""
    monkeypatch.chdir(tmp_path)
    plt.switch_backend("Agg")
    names: dict[str, Any] = {}
    for number, (kind, text) in enumerate(hooks.cells_of(notebook)):
        if kind == "code":
            exec(compile(text, f"{notebook.name}, cell {number}", "exec"), names)
    assert plt.get_fignums()
    plt.close("all")


@pytest.mark.parametrize("notebook", hooks.notebooks(), ids=lambda path: path.stem)
def test_a_notebook_has_no_outputs(notebook: Path):
    cells = json.loads(notebook.read_text())["cells"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells if "outputs" in cell)


@pytest.mark.slow
def test_the_site_is_built_and_asks_no_other_host(tmp_path: Path):
    if not importlib.util.find_spec("material") or not importlib.util.find_spec("mkdocstrings"):
        pytest.skip('the site needs the extra "docs": pip install "dino_dense[docs]"')
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert {"index.html", "davis.html", "voc.html", "options.html", "matches.html"} <= {page.name for page in pages}
    for page in pages:
        loaded = r"<(?:script|img|iframe)[^>]+src=\"(?:https?:)?//[^>]+|<link[^>]+stylesheet[^>]+//[^>]+"
        assert not re.findall(loaded, page.read_text()), page
