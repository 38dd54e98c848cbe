"""The command `dino-dense` gives what the `python -m` forms give."""

import sys
from pathlib import Path

import pytest

from tasks.harness import dispatch


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int | str | None, str]:
    monkeypatch.setattr(sys, "argv", ["dino-dense", *words])
    with pytest.raises(SystemExit) as end:
        dispatch.main()
    captured = capsys.readouterr()
    return end.value.code, captured.out + captured.err


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (("pretrain", "--help"), "--objectives"),
        (("knn", "--help"), "--ckpt"),
        (("davis", "--help"), "--short-side"),
        (("suite", "quickstart", "--help"), "--launcher"),
        (("report", "--help"), "--baseline"),
        (("export", "--help"), "--to"),
        (("track", "--help"), "--video"),
        (("quickstart", "--help"), "--out"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_each_word_has_its_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], option: str
):
    code, text = run(monkeypatch, capsys, *words)
    assert code == 0
    assert option in text


def test_without_words_it_lists_the_tasks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    code, text = run(monkeypatch, capsys)
    assert code == 0
    assert "dino-dense pretrain" in text
    assert "  davis " in text


def test_a_typing_error_is_refused_with_the_nearest_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    code, text = run(monkeypatch, capsys, "davsi")
    assert code == 2
    assert "Did you mean davis?" in text


def test_a_suite_without_a_name_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    code, text = run(monkeypatch, capsys, "suite", "--ckpt", "x")
    assert code == 2
    assert "expected --suite" in text


def test_the_wheel_installs_it():
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    assert 'dino-dense = "tasks.harness.dispatch:main"' in text
