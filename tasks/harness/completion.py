"""Shell completion of `dino-dense`: `dino-dense completion bash` prints a script that bash or zsh reads once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from dino_dense.config import command_line
from dino_dense.config.completion import SHELLS, completion_script
from tasks.harness.registry import commands, names, summary

PROGRAM, WORD = "dino-dense", "completion"
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

    def options(name: str) -> command_line.Options | tuple[str, ...]:
        return SHELLS if name == WORD else command_line.options_of(lambda: run([name]))

    summaries = {**{name: summary(name) for name in [*names(), *commands()]}, **fixed}
    print(completion_script(words[0], PROGRAM, {name: (text, options(name)) for name, text in summaries.items()}))
    return 0
