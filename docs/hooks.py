"""Fill the documentation site from the code: protocols, options, published numbers, data sets.

MkDocs calls `on_config`, `on_files` and `on_page_markdown`. Pages name a generated part by a comment, for example
`<!-- generated: protocols -->`; the page docs/tasks/NAME.md is of the task or command NAME.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import html
import importlib
import importlib.resources
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from dino_dense.config import presets, schema
from tasks.harness.options import BatchOptions, RunOptions, Sweep
from tasks.harness.registry import commands, get, names, summary

ROOT = Path(__file__).resolve().parents[1]
CLAIMS = ROOT / "tests" / "claims.csv"
SETS = ROOT / "docs" / "data" / "sets.yaml"
PAGES_OF_THE_ROOT = {"readme.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
"""Page -> the file of the repository that it shows."""
COMMAND_CONFIGS = {
    "attention": ("tasks.attention:AttentionConfig",),
    "explain": ("tasks.explain:ExplainOptions",),
    "studio": ("tasks.studio:StudioConfig",),
    "track": ("tasks.track:TrackConfig",),
}
"""Command -> its own options."""
COMMAND_PRESETS = {"track": "davis"}
"""Command -> the task whose protocols its --preset names."""
STATUS = {
    "same": "the line states it",
    "read": "read from the source",
    "open": "not settled by the source",
    "ours": "ours",
    "unused": "unused",
}
TEXT_COLUMNS = ("meaning", "note", "what it has", "in one line")
"""Columns of text, which assets/site.css keeps wide enough."""
MARKER = re.compile(r"<!-- generated: (\w+) -->")
OF_EVERY_TASK = """
## Published numbers

<!-- generated: published -->

## Protocols

<!-- generated: protocols -->
"""
OF_EVERY_COMMAND = """
## Options

Options of every task are [on a page of their own](../options.md#every-task).

<!-- generated: options -->
"""


# --- Text ----------------------------------------------------------------------------------------------------


def plain(text: object) -> str:
    """Text that Markdown shows as it is, also in a cell of a table."""
    escaped = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"[|*_{}\[\]`\\]", lambda sign: f"&#{ord(sign[0])};", escaped)


def code(text: object) -> str:
    """Text in the type of code, in a cell of a table."""
    return f"<code>{plain(text)}</code>" if str(text) else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    named = [f'<span class="text">{name}</span>' if name in TEXT_COLUMNS else name for name in head]
    lines = [named, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def details(title: str, body: str) -> str:
    """A part that the reader opens."""
    inner = "\n".join(f"    {line}".rstrip() for line in body.splitlines())
    return f'??? note "{title}"\n\n{inner}\n'


def spelled(value: Any) -> str:
    """A value as a command line takes it."""
    if value is None:
        return "null"
    if isinstance(value, list | tuple):
        return ",".join(map(spelled, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


# --- Protocols -----------------------------------------------------------------------------------------------


def protocols(task: str) -> str:
    """The protocols of a task: what each is, all constants side by side, and the source of each constant."""
    kind = COMMAND_PRESETS.get(task, task)
    known = presets.protocol_names(kind)
    if not known:
        return "No preset: the defaults of the options below are the protocol.\n"
    default = set(presets.matching_protocols(kind, get(kind).config()))
    known.sort(key=lambda name: (name not in default, name))
    parts = []
    for name in known:
        title, entries = protocol_header(f"{kind}_{name}")
        mark = " (the default)" if name in default else ""
        lines = [f"- **{plain(key)}**: {plain(text)}" for key, text in entries.items() if key != "command"]
        parts.append("\n".join([f"### `{name}`{mark}\n", f"{plain(title)}\n", *lines]) + "\n")
    constants = {name: presets.load_protocol(kind, name) for name in known}
    parts += ["### Constants\n", constants_table(kind, constants)]
    parts += [details(f"{name}: the source of each constant", sources_table(f"{kind}_{name}")) for name in known]
    return "\n".join(parts)


def protocol_header(file: str) -> tuple[str, dict[str, str]]:
    """The first comment of `configs/protocols/FILE.yaml`: its title, and its entries (source, expected, ...)."""
    text = (importlib.resources.files("configs") / "protocols" / f"{file}.yaml").read_text()
    lines = [line[1:] for line in text.split("\n\n")[0].splitlines() if line.startswith("#")]
    title, entries, last = lines[0].strip(), {}, ""
    for line in lines[1:]:
        if start := re.match(r" {3}(\w[\w ]*?)(?: \[\?\])?:\s+(.*)", line):
            last = start[1]
            entries[last] = start[2]
        elif last:
            entries[last] += f" {line.strip()}"
    return title, entries


def constants_table(task: str, constants: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each constant, a column for each protocol; the meaning is the option's help."""
    meanings = schema.field_docs(get(task).config)
    fields = dict.fromkeys(field for values in constants.values() for field in values)
    rows = [
        [
            code(field),
            *(code(spelled(values[field])) if field in values else "" for values in constants.values()),
            plain(meanings[field]),
        ]
        for field in fields
    ]
    return table(["constant", *(code(name) for name in constants), "meaning"], rows)


@functools.cache
def claims() -> tuple[dict[str, str], ...]:
    """The rows of tests/claims.csv."""
    with CLAIMS.open(newline="") as file:
        return tuple(csv.DictReader(file))


def sources_table(protocol: str) -> str:
    """The line of the source for each constant of a protocol, and the comment beside the constant."""
    text = (importlib.resources.files("configs") / "protocols" / f"{protocol}.yaml").read_text()
    comments = dict(re.findall(r"^(\w+):[^#\n]*#\s*(.+)$", text, re.MULTILINE))
    rows = []
    for row in claims():
        if row["protocol"] == protocol:
            where = f"{row['source']}:{row['line']}" if row["line"] else row["source"]
            note = comments.get(row["field"], "")
            rows.append([code(row["field"]), code(row["ours"]), plain(where), STATUS[row["status"]], plain(note)])
    return table(["constant", "value", "source", "how", "note"], rows)


# --- Published numbers ---------------------------------------------------------------------------------------


@functools.cache
def published_registry() -> dict[str, Any]:
    """The content of dino_dense/published.yaml."""
    text = importlib.resources.files("dino_dense").joinpath("published.yaml").read_text()
    registry: dict[str, Any] = yaml.safe_load(text)
    return registry


def published(wanted: Callable[[Mapping[str, Any]], bool]) -> str:
    """A table for each data set and preset of dino_dense/published.yaml for which `wanted(entry)` is true."""
    registry, parts = published_registry(), []
    for entry in filter(wanted, registry["numbers"]):
        metrics = dict.fromkeys(metric for values in entry["values"].values() for metric in values)
        rows = [
            [
                code(loadable(registry["checkpoints"][name], name)),
                *(plain(values.get(metric, "")) for metric in metrics),
            ]
            for name, values in entry["values"].items()
        ]
        differs = f" What differs here: {plain(entry['differs'])}." if entry.get("differs") else ""
        parts.append(
            f"**{plain(entry['dataset'])}**, `{entry['task']} --preset {entry['protocol']}` "
            f"({plain(entry['source'])}).{differs}\n\n" + table(["checkpoint", *map(plain, metrics)], rows)
        )
    return "\n".join(parts) or "No number of a checkpoint that can be loaded here is published for this task.\n"


def loadable(identifiers: Sequence[str], name: str) -> str:
    """The `timm:` name of a published checkpoint; its own name if timm has none."""
    timm_names = [text for text in map(str, identifiers) if not re.fullmatch(r"[0-9a-f]{8,64}", text)]
    return f"timm:{timm_names[0]}" if timm_names else name


# --- Options -------------------------------------------------------------------------------------------------


def options(*config_types: type) -> str:
    """A table of options for each class that defines some: a config's own first, then the inherited."""
    parts = []
    for config_type in config_types:
        hints, texts = get_type_hints(config_type), schema.field_docs(config_type)
        defaults = {item.name: item.default for item in dataclasses.fields(config_type)}
        done: set[str] = set()
        for owner in config_type.__mro__:
            own = [name for name in inspect.get_annotations(owner) if name in defaults and name not in done]
            done.update(own)
            if own:
                title = (owner.__doc__ or owner.__name__).strip().splitlines()[0].rstrip(".")
                rows = [
                    [
                        code(f"--{name.replace('_', '-')}"),
                        code(spelled(defaults[name])),
                        plain(help_of(hints[name], texts[name])),
                    ]
                    for name in own
                ]
                parts.append(f"**{plain(title)}**\n\n" + table(["option", "default", "meaning"], rows))
    return "\n".join(parts)


def help_of(hint: Any, text: str) -> str:
    """The help of an option; first its words, where it takes a choice of words that the help does not name."""
    kinds = [hint, *get_args(hint)]
    words = [str(word) for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    return text if all(word in text for word in words) else f"{', '.join(words)}. {text}"


def command_options(name: str) -> str:
    """The options of a task or command itself; the options that all tasks share have a page."""
    if name in names():
        return options(get(name).config)
    return options(*map(resolved, COMMAND_CONFIGS[name]))


def resolved(reference: str) -> type:
    module, _, attribute = reference.partition(":")
    kind: type = getattr(importlib.import_module(module), attribute)
    return kind


def pretraining_options() -> str:
    from dino_dense.pretrain import objectives
    from dino_dense.pretrain.config import PretrainConfig

    return options(objectives.with_options(PretrainConfig))


def shared_options() -> str:
    """The page of the options that are not of one task."""
    tools = [
        ("A suite", "python -m tasks --suite SUITE", options(BatchOptions)),
        ("Pretraining", "python -m dino_dense.pretrain", pretraining_options()),
        ("Reports", "python -m dino_dense.report", options(resolved("dino_dense.report.__main__:ReportConfig"))),
        ("Export", "python -m dino_dense.export", options(resolved("dino_dense.export.config:ExportConfig"))),
    ]
    parts = [
        "# Options\n\nEvery option can also be in a YAML file: `--config FILE`. `--print-config` prints all options as "
        "such a file, and `--help` explains them. The options of one task are on its page.\n",
        "## Every task\n",
        options(RunOptions, Sweep),
        *(f"## {title}\n\n`{command}`\n\n{body}" for title, command, body in tools),
    ]
    return "\n".join(parts)


# --- Data sets -----------------------------------------------------------------------------------------------


@functools.cache
def data_sets() -> tuple[dict[str, Any], ...]:
    """The entries of docs/data/sets.yaml."""
    return tuple(yaml.safe_load(SETS.read_text()))


def data_page(entry: Mapping[str, Any]) -> str:
    """The page of a data set."""
    links = ", ".join(f"[`{task}`](../tasks/{task}.md)" for task in entry["tasks"])
    parts = [
        f"# {entry['title']}\n\n{entry['holds'].strip()}\n",
        f"Tasks: {links}.\n\n## Download\n\n{entry['get'].strip()}\n",
        f"## Layout\n\n```text\n{entry['tree'].rstrip()}\n```\n",
        f"## Run\n\n```\n{entry['run'].rstrip()}\n```\n",
        f"## Pitfalls\n\n{entry['pitfalls'].strip()}\n",
    ]
    if known := entry.get("published"):
        parts.append(f"## Published numbers\n\n{published(lambda number: number['dataset'] in known)}")
    return "\n".join(parts)


def data_of_task(task: str) -> str:
    """The data sets of a task, with their layouts."""
    own = [entry for entry in data_sets() if task in entry["tasks"]]
    rows = [[f"[{entry['title']}](../data/{entry['name']}.md)", " ".join(entry["holds"].split())] for entry in own]
    trees = [details(f"{entry['title']}: layout", f"```text\n{entry['tree'].rstrip()}\n```") for entry in own]
    return "\n".join([table(["data set", "what it has"], rows), *trees])


def data_list() -> str:
    """All data sets and their tasks."""
    rows = [
        [
            f"[{entry['title']}]({entry['name']}.md)",
            ", ".join(f"[`{task}`](../tasks/{task}.md)" for task in entry["tasks"]),
        ]
        for entry in data_sets()
    ]
    return table(["data set", "tasks"], rows)


def task_list() -> str:
    """All tasks and commands with their summaries."""
    parts = []
    for title, known in (("task", names()), ("command", commands())):
        rows = [[f"[`{name}`]({name}.md)", plain(summary(name))] for name in known if has_page(name)]
        parts.append(table([title, "in one line"], rows))
    return "\n".join(parts)


def has_page(name: str) -> bool:
    """Whether it is of this repository; tasks of other packages have no page here."""
    return (ROOT / "docs" / "tasks" / f"{name}.md").is_file()


# --- Notebooks -----------------------------------------------------------------------------------------------


def notebooks() -> list[Path]:
    """The notebooks of docs/notebooks."""
    return sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def cells_of(notebook: Path) -> list[tuple[str, str]]:
    """Kind (markdown or code) and text of the cells of a notebook."""
    cells = json.loads(notebook.read_text())["cells"]
    return [(cell["cell_type"], "".join(cell["source"])) for cell in cells]


def notebook_page(notebook: Path) -> str:
    """A notebook as a page: its text and code."""
    parts = [text if kind == "markdown" else f"```python\n{text}\n```" for kind, text in cells_of(notebook)]
    return "\n\n".join(parts) + f"\n\nThe file: `docs/notebooks/{notebook.name}`.\n"


def notebook_list() -> str:
    titles = {path.stem: cells_of(path)[0][1].splitlines()[0].lstrip("# ") for path in notebooks()}
    return "\n".join(f"- [{title}]({name}.md)" for name, title in titles.items()) + "\n"


# --- MkDocs --------------------------------------------------------------------------------------------------


def root_page(text: str) -> str:
    """A file of the repository's root as a page: its links lead to pages."""
    pages = {file: page for page, file in PAGES_OF_THE_ROOT.items()}

    def moved(link: re.Match[str]) -> str:
        target, anchor = link[1], link[2] or ""
        return f"]({pages.get(target, target.removeprefix('docs/'))}{anchor})"

    return re.sub(r"\]\((?!https?:)([^)#]+)(#[^)]*)?\)", moved, text)


def filled(text: str, page: str) -> str:
    """A page's text with its generated parts; `page` is its path below docs/."""
    name = Path(page).stem
    if page.startswith("tasks/") and name != "index":
        text += (OF_EVERY_TASK if name in names() else "") + OF_EVERY_COMMAND
    makers: dict[str, Callable[[], str]] = {
        "protocols": lambda: protocols(name),
        "published": lambda: published(lambda number: number["task"] == name),
        "options": lambda: command_options(name),
        "data": lambda: data_of_task(name),
        "data_list": data_list,
        "task_list": task_list,
        "notebook_list": notebook_list,
    }
    return MARKER.sub(lambda marker: makers[marker[1]](), text)


def generated_pages() -> dict[str, str]:
    """Page -> text of the pages that are no file below docs/."""
    pages = {page: root_page((ROOT / file).read_text()) for page, file in PAGES_OF_THE_ROOT.items()}
    pages["options.md"] = shared_options()
    pages |= {f"notebooks/{path.stem}.md": notebook_page(path) for path in notebooks()}
    return pages | {f"data/{entry['name']}.md": data_page(entry) for entry in data_sets()}


def on_config(config: Any) -> Any:
    """Add a page for each task, command, data set and notebook to the navigation."""
    further = {
        "Tasks": [{name: f"tasks/{name}.md"} for name in (*names(), *commands()) if has_page(name)],
        "Notebooks": [f"notebooks/{path.stem}.md" for path in notebooks()],
        "Data": [f"data/{entry['name']}.md" for entry in data_sets()],
    }
    for section in config["nav"]:
        for title, pages in further.items():
            if title in section:
                section[title] += pages
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are generated as a whole."""
    from mkdocs.structure.files import File

    for page, text in generated_pages().items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill the generated parts of a page."""
    return filled(markdown, page.file.src_uri)
