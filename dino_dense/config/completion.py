"""The script with which a shell completes commands, options, and their words and files."""

import argparse
from collections.abc import Mapping
from typing import Any, get_type_hints

import shtab

from dino_dense.config.command_line import Options, words_of
from dino_dense.config.presets import protocol_names
from dino_dense.config.schema import field_docs, field_names, fields_of

SHELLS = ("bash", "zsh")


def completion_script(shell: str, program: str, commands: Mapping[str, tuple[str, Options | tuple[str, ...]]]) -> str:
    """The script of a shell.

    Args:
        shell: one of `SHELLS`.
        program: the program's name.
        commands: word -> its summary, and its options, or the words that may follow it.
    """
    parser = argparse.ArgumentParser(prog=program)  # it describes the commands, and parses nothing
    subparsers = parser.add_subparsers()
    for name, (summary, options) in commands.items():
        own = subparsers.add_parser(name, help=summary.replace("%", "%%"))
        if isinstance(options, Options):
            _add(own, options)
        else:
            own.add_argument("word", choices=options)
    return str(shtab.complete(parser, shell=shell))


def _add(parser: argparse.ArgumentParser, options: Options) -> None:
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
                choices=words_of(hints[name]) or None,
                help=_first_sentence(texts[name]),
            )
            if name in paths:
                _complete_files(option)


def _complete_files(action: Any) -> None:
    action.complete = shtab.FILE


def _first_sentence(text: str) -> str:
    return text.partition(". ")[0].replace("%", "%%")
