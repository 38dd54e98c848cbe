"""The house stays as CONTRIBUTING draws it: imports run one way, and rooms keep to their neighbors."""

import ast
import functools
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import tasks
from tasks.harness import registry

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for room in ("data", "dino_dense", "tasks") for path in (ROOT / room).rglob("*.py"))
USERS = sorted(path for room in ("tests", "benchmarks", "examples") for path in (ROOT / room).rglob("*.py"))
LOCAL = {"data", "dino_dense", "tasks", "tests", "benchmarks"}

MAY_IMPORT = {
    # a room of dino_dense -> the rooms and files of dino_dense that it may import; "." is the package's own face
    "arrays": set(),
    "files": set(),
    "lazy": set(),
    "pipeline": set(),
    "progress": set(),
    "threads": set(),
    "versions": set(),
    "distributed": {"files"},
    "loaders": {"threads", "training"},
    "checkpoint": {"files"},
    "config": {"files", "threads"},
    "report": {"arrays", "config", "files", "lazy", "progress"},
    "backbone": {"arrays", "checkpoint", "files", "lazy"},
    "propagation": {".", "arrays", "backbone", "pipeline"},
    "objects": {".", "arrays", "backbone", "distributed", "pipeline"},
    "neighbors": {"arrays"},
    "matching": {"arrays"},
    "clustering": set(),
    "tokens": set(),
    "training": {"distributed"},
    "probes": {
        ".",
        "arrays",
        "backbone",
        "checkpoint",
        "distributed",
        "loaders",
        "neighbors",
        "progress",
        "training",
    },
    "maps": {".", "arrays", "backbone", "objects"},
    "export": {"backbone", "checkpoint", "config", "files", "report"},
    "pretrain": {
        "arrays",
        "backbone",
        "checkpoint",
        "config",
        "distributed",
        "files",
        "loaders",
        "progress",
        "report",
        "threads",
        "training",
    },
    ".": {"backbone", "lazy", "report"},
}
TASK_ROOMS = {
    # a room of tasks -> the rooms of tasks that it may import; a public task or command may import them all
    "scores": set(),
    "harness": {"."},
    "images": {"harness", "scores"},
    "semantic": {"harness", "scores"},
    "videos": {"harness", "scores"},
    "finetuning": {"harness", "images", "scores"},
    "studio_page": {"harness", "videos"},
}


@functools.cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """Every node of a file; each file is parsed once."""
    return tuple(ast.walk(ast.parse(path.read_text())))


def imported(path: Path) -> Iterator[str]:
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def rooms_within(path: Path, package: str) -> set[str]:
    """Rooms and files of a package that a file imports; "." is its own face (`from dino_dense import Backbone`)."""
    rooms: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package:
            parts = (node.module or "").split(".")
            names = [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
            rooms |= {name if is_room(package, name) else "." for name in names}
    return rooms


def is_room(package: str, name: str) -> bool:
    return (ROOT / package / name).is_dir() or (ROOT / package / f"{name}.py").is_file()


def is_entry_point(path: Path) -> bool:
    return path.name == "__main__.py"


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_no_files_import_each_other_in_a_circle():
    """Imports inside functions count too: they only hide a circle."""
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in FILES}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}
    graph = {
        name: {part for part in imported(path) if part in modules and part != name}
        for name, path in modules.items()
        if path.name != "__init__.py"  # a package's face names what its files define
    }
    for name, targets in graph.items():
        graph[name] = {target for target in targets if modules[target].name != "__init__.py"}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the files of a circle
    assert len(order) == len(graph)


@pytest.mark.parametrize("path", FILES, ids=label)
def test_imports_run_one_way(path: Path):
    modules = set(imported(path))
    rooms = {module.split(".")[0] for module in modules} & LOCAL
    allowed = {"data": {"data"}, "dino_dense": {"dino_dense"}, "tasks": {"data", "dino_dense", "tasks"}}[room(path)]
    if room(path) == "dino_dense" and is_entry_point(path):
        allowed = allowed | {"data"}
    assert rooms <= allowed
    commands = {f"tasks.{name}" for name in (*tasks.names(), *registry.commands())}
    own = f"tasks.{path.stem}"
    assert not (modules & commands) - {own}, "a task imports another task"
    assert not any(module.endswith("__main__") for module in modules), "an entry point is imported"


@pytest.mark.parametrize("path", [path for path in FILES if room(path) == "dino_dense"], ids=label)
def test_rooms_of_the_library_keep_to_their_neighbors(path: Path):
    inside = path.relative_to(ROOT / "dino_dense")
    own = "." if inside.name == "__init__.py" and len(inside.parts) == 1 else inside.parts[0].removesuffix(".py")
    assert rooms_within(path, "dino_dense") <= MAY_IMPORT[own] | {own}


@pytest.mark.parametrize("path", [path for path in FILES if room(path) == "tasks"], ids=label)
def test_rooms_of_the_tasks_keep_to_their_neighbors(path: Path):
    inside = path.relative_to(ROOT / "tasks")
    if len(inside.parts) == 1:  # a task, a command, or the package's own face
        return
    own = inside.parts[0]
    assert rooms_within(path, "tasks") <= TASK_ROOMS[own] | {own}


def test_no_room_is_without_a_rule():
    for package, rules in (("dino_dense", MAY_IMPORT), ("tasks", TASK_ROOMS)):
        rooms = {path.name for path in (ROOT / package).iterdir() if (path / "__init__.py").is_file()}
        assert rooms <= set(rules)


@pytest.mark.parametrize("path", USERS, ids=label)
def test_tests_benchmarks_and_examples_use_public_names(path: Path):
    """No underscore in an imported name, nor behind the name of an imported module."""
    modules = set()
    for node in nodes(path):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LOCAL:
            words = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            private = [word for word in words if word.startswith("_") and not word.startswith("__")]
            assert not private, f"{path}:{node.lineno} imports {private}"
            modules |= {alias.asname or alias.name for alias in node.names}
    for node in nodes(path):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            private = node.attr.startswith("_") and not node.attr.startswith("__")
            assert not private, f"{path}:{node.lineno}: {node.value.id}.{node.attr}"


@pytest.mark.parametrize("path", FILES, ids=label)
def test_only_the_command_line_knows_the_parser(path: Path):
    if path == ROOT / "dino_dense" / "backbone" / "unpickle.py":
        return  # DINO's files hold an argparse.Namespace, which it lets through
    parsers = {"argparse", "jsonargparse", "docstring_parser"} & {name.split(".")[0] for name in imported(path)}
    allowed = (ROOT / "dino_dense" / "config", ROOT / "data" / "sample" / "__main__.py")
    assert not parsers or path.is_relative_to(allowed[0]) or path == allowed[1]


@pytest.mark.parametrize("path", FILES, ids=label)
def test_only_the_loader_knows_the_names_of_hubs(path: Path):
    """`timm:`, `hf-hub:` and `random:` are read in one file; others may only name them to a person."""
    if path == ROOT / "dino_dense" / "backbone" / "load.py":
        return
    for node in nodes(path):
        if isinstance(node, ast.Constant) and node.value in ("hf-hub", "hf_hub", "timm:", "hf-hub:", "random:"):
            pytest.fail(f"{path}:{node.lineno}: {node.value!r}")


@pytest.mark.parametrize("path", FILES, ids=label)
def test_no_unsafe_loading(path: Path):
    for node in nodes(path):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "pickle.load", "pickle.loads"):
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert keywords.get("weights_only") == "True", f"{path}:{node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=label)
def test_progress_is_shown_in_one_way(path: Path):
    """A bar of its own would fill logs again; `data` imports nothing local, and its one bar is for terminals alone."""
    if path in (ROOT / "dino_dense" / "progress.py", ROOT / "data" / "sample" / "__init__.py"):
        return
    assert "tqdm" not in {name.split(".")[0] for name in imported(path)}
