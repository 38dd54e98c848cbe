"""Completion in a real bash: the words that it offers are the commands' own."""

import contextlib
import io
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dino_dense.config import command_line
from tasks.harness import dispatch
from tasks.harness.registry import commands, names

OFFERED = (
    'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_dino_dense; printf "%s\\n" "${COMPREPLY[@]}"'
)


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["dino-dense"])
        text = printed_script("bash")
    path = tmp_path_factory.mktemp("completion") / "script"
    path.write_text(text)
    return path


def printed_script(shell: str) -> str:
    """The printed script."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert dispatch.run(["completion", shell]) == 0
    return printed.getvalue()


def offered(script: Path, *words: str, folder: Path | None = None) -> set[str]:
    result = subprocess.run(
        ["bash", "-c", OFFERED, "bash", str(script), "dino-dense", *words],
        capture_output=True,
        text=True,
        cwd=folder,
        check=True,
    )
    return set(result.stdout.split())


def test_every_command_is_offered(script: Path):
    assert {*names(), *commands(), *dispatch.SUMMARIES} <= offered(script, "")
    assert offered(script, "disco") == {"discovery"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("davis", "--short"), {"--short-side"}),
        (("davis", "--preset", ""), {"crw", "dino", "dinov3"}),
        (("knn", "--dtype", ""), {"fp32", "tf32", "bf16", "fp16"}),
        (("davis", "--save-"), set()),
        (("pretrain", "--activation-checkpointing", ""), {"true", "false"}),
        (("export", "--to", ""), {"timm", "hf", "torch", "onnx"}),
        (("completion", ""), {"bash", "zsh"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_options_and_their_words(script: Path, words: tuple[str, ...], expected: set[str]):
    assert offered(script, *words) == expected


def test_files_are_offered_where_a_path_belongs(script: Path, tmp_path: Path):
    (tmp_path / "network.pth").touch()
    assert offered(script, "knn", "--ckpt", "net", folder=tmp_path) == {"network.pth"}
    assert offered(script, "report", "net", folder=tmp_path) == {"network.pth"}


def test_a_script_for_zsh_names_the_commands(monkeypatch: pytest.MonkeyPatch, script: Path):
    monkeypatch.setattr(sys, "argv", ["dino-dense"])
    text = printed_script("zsh")
    assert text.startswith("#compdef dino-dense")
    assert "--short-side" in text


def test_another_shell_is_refused():
    with pytest.raises(ValueError, match="expected one of bash, zsh"):
        dispatch.run(["completion", "fish"])


def test_a_command_without_options_cannot_be_listed():
    with pytest.raises(ValueError, match="without parsing"):
        command_line.options_of(lambda: None)
