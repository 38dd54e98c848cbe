"""A page opens where there is a display; elsewhere its path and the reason are printed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dino_dense.report import open_page
from dino_dense.report.__main__ import main
from dino_dense.report.browser import why_no_browser
from tests.report.builders import VITS8, VITS16, make_entry


@pytest.fixture
def no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")


@pytest.mark.parametrize(
    ("variables", "platform", "reason"),
    [
        ({}, "linux", "DISPLAY"),
        ({"DISPLAY": ""}, "linux", "DISPLAY"),
        ({"DISPLAY": ":0"}, "linux", ""),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "linux", ""),
        ({"DISPLAY": "localhost:10.0", "SSH_CONNECTION": "a b"}, "linux", ""),  # X11 over SSH shows it
        ({"BROWSER": "some-browser"}, "linux", ""),
        ({}, "darwin", ""),
        ({"SSH_CONNECTION": "a b"}, "darwin", "SSH"),
        ({"SSH_TTY": "/dev/pts/1"}, "win32", "SSH"),
        ({"BROWSER": "some-browser", "SSH_TTY": "/dev/pts/1"}, "darwin", ""),
        ({}, "win32", ""),
    ],
)
def test_the_reason_is_of_the_session(variables: dict[str, str], platform: str, reason: str):
    said = why_no_browser(variables, platform)
    assert reason in said
    assert bool(said) == bool(reason)


def test_without_a_display_the_path_is_printed(tmp_path: Path, no_display: None, capsys: pytest.CaptureFixture[str]):
    page = tmp_path / "a page.html"
    page.write_text("<p>")
    assert not open_page(page)
    printed = capsys.readouterr().out
    assert str(page) in printed
    assert "no graphical display" in printed


@pytest.mark.skipif(os.name != "posix", reason="needs a shell script as browser")
def test_the_users_browser_gets_the_address(tmp_path: Path, no_display: None, monkeypatch: pytest.MonkeyPatch):
    """In a process of its own: Python looks for browsers once."""
    browser, said = tmp_path / "browser", tmp_path / "said"
    browser.write_text(f"#!/bin/sh\necho \"$1\" > '{said}'\n")
    browser.chmod(0o755)
    page = tmp_path / "page.html"
    page.write_text("<p>")
    monkeypatch.setenv("BROWSER", str(browser))
    code = f"from pathlib import Path; from dino_dense.report import open_page; print(open_page(Path({str(page)!r})))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.split() == ["True"]
    assert said.read_text().strip() == page.as_uri()


def test_a_missing_page_is_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match=r"none\.html: no such file"):
        open_page(tmp_path / "none.html")


def test_the_command_opens_its_page(
    tmp_path: Path, no_display: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    folders = [str(make_entry(tmp_path, checkpoint=name).folder) for name in (VITS16, VITS8)]
    command = ["report", *folders, "--bootstrap", "20", "--open"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "--out" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(tmp_path / "out")])
    assert main() == 0
    assert f"Open {tmp_path / 'out' / 'comparison.html'}" in capsys.readouterr().out
