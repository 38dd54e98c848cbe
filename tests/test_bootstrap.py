"""The two commands of the README, but for what they install."""

import os
import sys
from pathlib import Path

import pytest

import bootstrap


def test_the_command_takes_the_place_of_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """So that Ctrl-C reaches it alone: a parent that waited would kill it before it has saved."""
    ran: list[object] = []
    monkeypatch.setattr(bootstrap, "set_up", lambda: None)
    monkeypatch.setattr(sys, "argv", ["bootstrap.py", "quickstart", "--seeds", "1,2"])
    monkeypatch.setattr(os, "execv", lambda program, words: ran.extend([program, words]))
    monkeypatch.chdir(tmp_path)
    bootstrap.main()
    assert ran == [bootstrap.PYTHON, [str(bootstrap.PYTHON), "-m", "tasks", "quickstart", "--seeds", "1,2"]]
    assert Path.cwd() == bootstrap.ROOT


def test_an_unknown_command_says_which_there_are(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", ["bootstrap.py", "quikstart"])
    assert bootstrap.main() == 2
    assert "quickstart,test,setup" in capsys.readouterr().out
