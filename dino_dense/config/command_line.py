"""The command line of all entry points; the only file that uses the argument parser.

A frozen dataclass defines the options: its fields are the options, with their defaults, and the docstring under each
field is its help.
"""

import dataclasses
import difflib
import errno
import inspect
import itertools
import os
import re
import sys
import traceback
import types
from argparse import SUPPRESS, Action
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple, NoReturn, Union, get_args, get_origin, get_type_hints

from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter

from dino_dense.config.presets import load_protocol, protocol_names
from dino_dense.config.schema import (
    RENAMED,
    field_docs,
    field_names,
    from_plain,
    frozen,
    with_home_expanded,
    with_new_names,
)
from dino_dense.threads import let_threads_sleep

DEBUG_VARIABLE = "DINO_DENSE_DEBUG"
UNIONS = (types.UnionType, Union)  # of A | B and of Literal["a"] | B


SHOWN_NAME = 200  # characters of a path in a message about it
DEBUG_OPTION = "--debug"
"""An option of every command, at any position: show tracebacks of errors."""
EPILOG = f"null as a value means: none. {DEBUG_OPTION}, at any position, shows the traceback of an error."


class Options(NamedTuple):
    """The options of a command, as it gives them to `parse`."""

    config_types: tuple[type, ...]
    presets: str
    positional: str


class _OptionsListed(BaseException):
    """Ends a command whose options alone are wanted."""

    def __init__(self, options: Options) -> None:
        self.options = options


_LISTS_OPTIONS: ContextVar[bool] = ContextVar("_LISTS_OPTIONS", default=False)


def options_of(command: Callable[[], object]) -> Options:
    """The options of a command: it runs as far as its call of `parse`, and no further.

    Raises:
        ValueError: the command ended without a call of `parse`.
    """
    token = _LISTS_OPTIONS.set(True)
    try:
        command()
    except _OptionsListed as listed:
        return listed.options
    finally:
        _LISTS_OPTIONS.reset(token)
    raise ValueError(f"{command} ended without parsing options")


def words_of(hint: Any) -> list[str]:
    """The words that an option of this type may have; empty if it takes other values too."""
    if hint is bool:
        return ["true", "false"]
    if get_origin(hint) is Literal:
        return [str(word) for word in get_args(hint)]
    parts = [words_of(option) for option in get_args(hint) if option is not type(None)]
    return [word for part in parts for word in part] if get_origin(hint) in UNIONS and all(parts) else []


class _HelpFormatter(DefaultHelpFormatter):
    """Formats each option in one or two lines: name, text, default. The placeholder shows the type."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=118)

    def _get_help_string(self, action: Action) -> str:
        if action.default in (None, SUPPRESS) or action.dest in ("help", "config"):
            return action.help or ""
        default = _spelt(action.default)
        return f"{action.help} [{default}]"


def _spelt(value: Any) -> str:
    """A value as typed on the command line."""
    if isinstance(value, tuple | list):
        return ",".join(map(_spelt, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _placeholder(hint: Any) -> str:
    """The placeholder of a type in the help: N, X, TEXT, a|b or A,B."""
    options = [option for option in get_args(hint) if option is not type(None)]
    if get_origin(hint) is Literal:
        return "{" + "|".join(map(str, options)) + "}"
    if bool in options:  # bool | Literal[...]
        words = [str(word) for option in options for word in get_args(option)]
        return "{" + "|".join(["true", "false", *words]) + "}"
    if get_origin(hint) in UNIONS:
        words = [str(word) for option in options[1:] if get_origin(option) is Literal for word in get_args(option)]
        return "|".join([_placeholder(options[0]), *words])
    if get_origin(hint) is tuple:
        return ",".join([_placeholder(options[0])] * (2 if options[-1] is Ellipsis else len(options)))
    return {int: "N", float: "X", bool: "{true|false}"}.get(hint, "TEXT")


class _Parser(ArgumentParser):
    """jsonargparse with hyphens in its help, and the nearest option name in its errors."""

    def format_help(self) -> str:
        """Show options --with-hyphens, as they are usually typed; underscores work too."""
        return re.sub(r"--[a-z]\w*", lambda option: option[0].replace("_", "-"), super().format_help())

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message, with the nearest name for an unknown option; exit with 2."""
        text = re.sub(r"^Parser key ", "", str(message))
        known = {action.dest for action in self._actions}
        for word in re.findall(r"[\w-]+", text):
            name = word.strip("-").replace("-", "_")
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
            if len(name) > 2 and near and name not in known:
                text += f"\nDid you mean --{near[0].replace('_', '-')}?"
                break
        print(f"{self.prog}: error: {text}\nSee: {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def parse(
    *config_types: type,
    prog: str,
    description: str,
    argv: Sequence[str] | None = None,
    presets: str = "",
    positional: str = "",
) -> Any:
    """Read the command line into frozen dataclasses.

    Args:
        config_types: dataclasses with defaults for all fields; their fields become flat options `--field value`.
        prog: the command as typed.
        description: the first lines of the help.
        argv: the arguments; default the process's.
        presets: `--preset NAME` reads `configs/protocols/{presets}_{NAME}.yaml` before the other options.
        positional: name of the field (a tuple of str) for words that are neither options nor values of options.

    Returns:
        A tuple of values, one for each type; for a single type, the value itself.

    Raises:
        SystemExit: with 2 after a message, for an unknown or ill-typed option; with 0 after `--help`.
    """
    if _LISTS_OPTIONS.get():
        raise _OptionsListed(Options(config_types, presets, positional))
    argv = list(sys.argv[1:] if argv is None else argv)
    words = f"{positional.upper()} ... " if positional else ""
    usage = f"{prog} {words}[--config FILE] [--print-config] [{DEBUG_OPTION}] [--FIELD VALUE ...]"
    parser = _Parser(
        prog=prog,
        usage=usage,
        description=description,
        epilog=EPILOG,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with any of the fields below.")
    kinds: dict[str, Any] = {}
    for config_type in config_types:
        kinds |= _add_fields(parser, config_type, positional)
    kinds.pop(positional, None)
    argv = _normalize(argv, kinds)
    if positional:
        argv = _words_first(argv)
    if presets and protocol_names(presets):
        _take_preset(parser, presets, argv)
    values = parser.parse_args(argv)
    _take_old_names(parser, values)
    try:
        built = tuple(
            config_type(
                **with_home_expanded(config_type, {name: frozen(values[name]) for name in field_names(config_type)})
            )
            for config_type in config_types
        )
    except ValueError as error:  # a config is checked on construction
        parser.error(str(error))
    return built[0] if len(built) == 1 else built


def _take_preset(parser: _Parser, presets: str, argv: Sequence[str]) -> None:
    """Add `--preset`, and make the constants of the named protocol the defaults."""
    text = f"Whose constants are the defaults: configs/protocols/{presets}_PRESET.yaml."
    hint: Any = Literal[*protocol_names(presets)]
    parser.add_argument("--preset", type=hint, default=None, help=text, metavar=_placeholder(hint))
    # They end the parsing at their position, and must show the preset's constants.
    endings = ("--help", "-h", "--print_config")
    preset = parser.parse_args([word for word in argv if not word.startswith(endings)]).preset
    if preset is not None:  # other options, here or in a recipe, override the preset
        parser.set_defaults(load_protocol(presets, preset))


def from_recipe(config_type: type, values: Mapping[str, Any]) -> Any:
    """A config from the values of a YAML file; types and names are checked as on the command line.

    Raises:
        ValueError: an unknown key (with the nearest name), a value of a wrong type, or a value that the config refuses.
    """
    from_plain(config_type, {name: None for name in with_new_names(values) if name not in field_names(config_type)})
    parser = _Checker()
    _add_fields(parser, config_type)
    checked = parser.parse_object(with_new_names(values))
    return config_type(
        **with_home_expanded(config_type, {name: frozen(checked[name]) for name in field_names(config_type)})
    )


class _Checker(_Parser):
    """A parser for values from a file: it raises errors instead of printing them."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise ValueError with the message."""
        raise ValueError(str(message).replace("Parser key ", "")) from ex


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run an entry point; print a plain message instead of a traceback for errors that the user can fix.

    Exit status: 0, or the result of `main`; 2 if the input cannot be used (nothing that looks finished is left); 1 if a
    run failed later (an error with this `exit_status`); 130 after Ctrl-C. `--debug` shows the traceback too.
    """
    if DEBUG_OPTION in sys.argv:
        sys.argv.remove(DEBUG_OPTION)
        os.environ[DEBUG_VARIABLE] = "1"  # also for child processes
    let_threads_sleep()
    try:
        code = main() or 0
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader of our output has ended, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except (ValueError, OSError) as error:
        if os.environ.get(DEBUG_VARIABLE):
            traceback.print_exc()
        message = _plain(error).encode("utf-8", "backslashreplace").decode()  # a file's name may be no text
        print(f"error: {message}\n({DEBUG_OPTION} shows where)", file=sys.stderr)
        code = getattr(error, "exit_status", 2)
    raise SystemExit(code)


_ADVICE = {
    errno.ENAMETOOLONG: "a name that is too long. Each name in a path may have 255 bytes: choose a shorter one.",
    errno.EACCES: "may not be read or written. Change its rights, or name another place.",
    errno.EROFS: "on a disk that may only be read. Name another place.",
    errno.ENOSPC: "no space is left on its disk. Free some, or name another place.",
    errno.ENOTDIR: "a part of this path is a file, not a folder. Name another place.",
}


def _plain(error: Exception) -> str:
    """The message of an error; for a known system error, its meaning and advice."""
    if isinstance(error, OSError) and error.errno in _ADVICE and error.filename is not None:
        name = os.fsdecode(error.filename)
        shown = name if len(name) <= SHOWN_NAME else f"{name[: SHOWN_NAME // 2]}...{name[-SHOWN_NAME // 4 :]}"
        return f"{shown}: {_ADVICE[error.errno]}"
    return str(error)


def _add_fields(parser: _Parser, config_type: type, positional: str = "") -> dict[str, Any]:
    """Add an option for each field, a class's own fields before inherited fields."""
    hints = get_type_hints(config_type)
    texts = field_docs(config_type)
    defaults = {item.name: item.default for item in dataclasses.fields(config_type)}
    added: set[str] = set()
    for owner in config_type.__mro__:
        # A field that a subclass defines again is the subclass's.
        own = [name for name in inspect.get_annotations(owner) if name in defaults and name not in added]
        added.update(own)
        group = parser.add_argument_group(_first_line(owner)) if own else None
        for name in own:
            assert group is not None
            help_text, hint = texts[name].replace("%", "%%"), hints[name]
            if name == positional:
                group.add_argument(name, nargs="*", type=str, help=help_text, metavar=name.upper())
            else:
                placeholder = _placeholder(hint)
                group.add_argument(f"--{name}", type=hint, default=defaults[name], help=help_text, metavar=placeholder)
    for old, new in RENAMED.items():
        if new in defaults:
            parser.add_argument(f"--{old}", type=hints[new], default=SUPPRESS, help=SUPPRESS)
    return hints


def _take_old_names(parser: _Parser, values: Any) -> None:
    """Move values under a field's old name to its new name, with a notice."""
    for old, new in RENAMED.items():
        if old not in values:
            continue
        if values[new] not in (parser.get_default(new), values[old]):
            parser.error(f"--{old} is the old name of --{new}; both are given. Leave --{old} out.")
        print(f"{parser.prog}: {old} is now called {new}; the old name is accepted until version 0.2.", file=sys.stderr)
        values[new] = values[old]


def _first_line(config_type: type) -> str:
    return (config_type.__doc__ or config_type.__name__).strip().splitlines()[0].rstrip(".")


def _options_of(hint: Any) -> tuple[Any, ...]:
    """The types of a union; any other type alone."""
    return get_args(hint) if get_origin(hint) in UNIONS else (hint,)


def _is_tuple(hint: Any) -> bool:
    return any(get_origin(option) is tuple for option in _options_of(hint))


def _normalize(argv: list[str], kinds: Mapping[str, Any]) -> list[str]:
    """Translate shell habits for the parser: --max-frames, a bare --resume, lists as a,b,c or repeated options."""
    result: list[str] = []
    argv = _join_repeats(argv, kinds)
    for position, word in enumerate(argv):
        if word.startswith("--"):
            option, equals, value = word.partition("=")
            name = option[2:].replace("-", "_")
            bare = position + 1 == len(argv) or argv[position + 1].startswith("--")
            if _may_stand_alone(kinds.get(name)) and not equals and bare:
                value, equals = "true", "="
            result.append(f"--{name}{equals}{_as_list(value, kinds.get(name)) if equals else ''}")
        else:
            option = result[-1] if result else ""
            result.append(_as_list(word, kinds.get(option[2:]) if option.startswith("--") else None))
    return result


def _may_stand_alone(hint: Any) -> bool:
    """Whether an option without a value means true."""
    return hint is bool or bool in get_args(hint)


def _words_first(argv: list[str]) -> list[str]:
    """Move positional words before the options: argparse requires them together."""
    words: list[str] = []
    options: list[str] = []
    for word in argv:
        before = options[-1] if options else ""
        is_value = before.startswith("--") and "=" not in before and before not in ("--help", "--print_config")
        (options if is_value or word.startswith("-") else words).append(word)
    return words + options


def _join_repeats(argv: list[str], kinds: Mapping[str, Any]) -> list[str]:
    """Join repeated list options: --ckpt A --ckpt B -> --ckpt A,B."""
    result: list[str] = []
    places: dict[str, int] = {}
    words = iter(argv)
    for word in words:
        option, equals, value = word.partition("=")
        if not (word.startswith("--") and _is_tuple(kinds.get(option[2:].replace("-", "_")))):
            result.append(word)
            continue
        value = value if equals else next(words, "")
        if not equals and "," not in value:  # --pair A B
            value = ",".join([value, *itertools.islice(words, _fixed_length(kinds[option[2:].replace("-", "_")]) - 1)])
        if option in places:
            result[places[option]] += f",{value}"
        else:
            result += [option, value]
            places[option] = len(result) - 1
    return result


def _fixed_length(hint: Any) -> int:
    """Number of words that an option of a fixed number of texts takes; 1 for other lists, which are typed a,b,c."""
    parts = next(get_args(option) for option in _options_of(hint) if get_origin(option) is tuple)
    return len(parts) if Ellipsis not in parts and set(parts) == {str} else 1


def _as_list(value: str, hint: Any) -> str:
    words = [word for option in _options_of(hint) if get_origin(option) is Literal for word in get_args(option)]
    if not _is_tuple(hint) or value.startswith("[") or value in ("null", *words):
        return value
    return f"[{', '.join(part.strip() for part in value.split(','))}]"
