"""The command `dino-dense`: one name for what `python -m` runs."""

import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from dino_dense.config import command_line

SUMMARIES = {
    "pretrain": "Train a DINO vision transformer.",
    "suite": "Measure checkpoints with every entry of a suite.",
    "report": "Compare results of checkpoints.",
    "export": "Export a backbone for timm, transformers, torch.export or ONNX.",
    "quickstart": "Render data, pretrain a small DINO, and measure it.",
    "completion": "Print the completion script of a shell.",
}
"""Words beside the tasks and the drawing commands."""
MODULES = {
    "pretrain": "dino_dense.pretrain.__main__",
    "report": "dino_dense.report.__main__",
    "export": "dino_dense.export.__main__",
}
"""Word -> the module whose `main` reads the words after it."""
USAGE = """usage: dino-dense pretrain [--help]                     python -m dino_dense.pretrain
       dino-dense TASK --ckpt CHECKPOINT [--help]       python -m tasks.TASK
       dino-dense suite SUITE --ckpt A --ckpt B [--help]  python -m tasks --suite SUITE
       dino-dense report FOLDERS [--help]               python -m dino_dense.report
       dino-dense export --ckpt CHECKPOINT [--help]     python -m dino_dense.export
       dino-dense quickstart [--help]                   python -m tasks quickstart
       dino-dense completion bash|zsh
"""


def main() -> NoReturn:
    """Run the command line of `dino-dense`."""
    command_line.run(lambda: run(sys.argv[1:]))


def run(words: Sequence[str]) -> int | None:
    """Run a command line of `dino-dense`, given as words. Returns the exit status."""
    first, rest = (words[0], list(words[1:])) if words else ("", [])
    if first == "completion":
        from tasks.harness import completion

        return completion.main(rest, run, SUMMARIES)
    sys.argv = [sys.argv[0], *words]
    if first in MODULES:
        sys.argv = [sys.argv[0], *rest]
        return importlib.import_module(MODULES[first]).main()
    if first == "suite":
        named = ["--suite", *rest] if rest and not rest[0].startswith("-") else ["--suite=", *rest]
        sys.argv = [sys.argv[0], *named]
    elif first in ("", "-h", "--help"):
        print(USAGE)
    return importlib.import_module("tasks.__main__").main()
