"""The house stays as CONTRIBUTING draws it: imports run one way, one file knows the parser."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tasks

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for room in ("data", "dino_dense", "tasks") for path in (ROOT / room).rglob("*.py"))
LOCAL = {"data", "dino_dense", "tasks", "tests", "benchmarks"}


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def is_entry_point(path: Path) -> bool:
    return path.name == "__main__.py"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path):
    modules = set(imported(path))
    rooms = {module.split(".")[0] for module in modules} & LOCAL
    allowed = {"data": {"data"}, "dino_dense": {"dino_dense"}, "tasks": {"data", "dino_dense", "tasks"}}[room(path)]
    if room(path) == "dino_dense" and is_entry_point(path):
        allowed = allowed | {"data"}
    assert rooms <= allowed
    public_tasks = {f"tasks.{name}" for name in tasks.names()}
    own = f"tasks.{path.stem}"
    assert not (modules & public_tasks) - {own}, "a task imports another task"
    assert not any(module.endswith("__main__") for module in modules), "an entry point is imported"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_cli_knows_the_parser(path: Path):
    if path.name == "checkpoint.py":
        return  # DINO's files hold an argparse.Namespace, which it lets through
    parsers = {"argparse", "jsonargparse", "docstring_parser"} & {name.split(".")[0] for name in imported(path)}
    assert not parsers or path == ROOT / "dino_dense" / "cli.py" or path == ROOT / "data" / "sample.py"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_unsafe_loading(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "pickle.load", "pickle.loads"):
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert keywords.get("weights_only") == "True", f"{path}:{node.lineno}"
