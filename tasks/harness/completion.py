"""Shell completion of `dino-dense`: `dino-dense completion bash` prints a script that bash or zsh reads once."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_type_hints

import shtab

from dino_dense.config import command_line
from dino_dense.config.presets import protocol_names
from dino_dense.config.schema import field_docs, field_names, fields_of
from tasks.harness.registry import commands, names, summary

SHELLS = ("bash", "zsh")
USAGE = """usage: dino-dense completion bash|zsh

bash:  dino-dense completion bash > ~/.local/share/bash-completion/completions/dino-dense
zsh:   dino-dense completion zsh > FOLDER/_dino-dense    # a FOLDER of $fpath
Then open a new shell."""


def main(words: Sequence[str], run: Callable[[Sequence[str]], object], fixed: Mapping[str, str]) -> int:
    """Print the script of a shell. Returns the exit status.

    Args:
        words: after `completion`.
        run: runs a command line of `dino-dense`, given as words.
        fixed: commands beside the tasks, with their summaries.
    """
    if list(words) in ([], ["-h"], ["--help"]):
        print(USAGE)
        return 0
    if len(words) != 1 or words[0] not in SHELLS:
        raise ValueError(f"completion {' '.join(words)}: expected one of {', '.join(SHELLS)}")
    print(shtab.complete(whole_parser(run, fixed), shell=words[0]))
    return 0


def whole_parser(run: Callable[[Sequence[str]], object], fixed: Mapping[str, str]) -> argparse.ArgumentParser:
    """A parser with all commands and their options, which only describes them: see `main`."""
    parser = argparse.ArgumentParser(prog="dino-dense")
    subparsers = parser.add_subparsers()
    summaries = {**{name: summary(name) for name in [*names(), *commands()]}, **fixed}
    for name, text in summaries.items():
        own = subparsers.add_parser(name, help=text.replace("%", "%%"))
        if name == "completion":
            own.add_argument("shell", choices=SHELLS)
        else:
            _add(own, command_line.options_of(lambda name=name: run([name])))  # type: ignore[misc]
    return parser


def _add(parser: argparse.ArgumentParser, options: command_line.Options) -> None:
    """Add a command's options, with the words or files that each can have."""
    _complete_files(parser.add_argument("--config", help="YAML file with any of these options"))
    parser.add_argument("--print-config", action="store_true", help="print all options as YAML")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    if presets := protocol_names(options.presets):
        parser.add_argument("--preset", choices=presets, help="whose constants are the defaults")
    for config_type in options.config_types:
        hints, texts, paths = get_type_hints(config_type), field_docs(config_type), fields_of(config_type, "path")
        for name in field_names(config_type):
            if name == options.positional:
                _complete_files(parser.add_argument(name, nargs="*", help=_first_sentence(texts[name])))
                continue
            option = parser.add_argument(
                f"--{name.replace('_', '-')}",
                choices=command_line.words_of(hints[name]) or None,
                help=_first_sentence(texts[name]),
            )
            if name in paths:
                _complete_files(option)


def _complete_files(action: Any) -> None:
    action.complete = shtab.FILE


def _first_sentence(text: str) -> str:
    return text.partition(". ")[0].replace("%", "%%")
