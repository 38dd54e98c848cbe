"""A bar on a terminal, few lines in a file."""

import os
import pty
import re
import subprocess
import sys
import termios

import pytest

from dino_dense.progress import LINE_SECONDS, progress, tracked

STAGE = """
import sys, time
from dino_dense import progress
progress.LINE_SECONDS = 0.3
with progress.progress(200, desc="rowing", unit="stroke") as bar:
    for number in range(200):
        time.sleep(0.005)
        if number == 100:
            bar.write("half way", file=sys.stderr)
        bar.update()
"""


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_log_gets_a_line_an_interval_with_rate_and_time_left(capsys: pytest.CaptureFixture[str]):
    clock = Clock()
    with progress(3600, desc="training", unit="step", clock=clock) as bar:
        for step in range(1200):  # 20 minutes, the first of them ten times as slow
            clock.now += 10 if step < 6 else 1
            bar.set_postfix_str(f"loss={step}")
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    seconds = 60 + 1194
    assert seconds / LINE_SECONDS - 2 <= len(lines) <= seconds / LINE_SECONDS + 1
    assert lines[0] == "training:   0% 3/3600 [00:30<9:59:30, 10.00s/step, loss=2]"
    assert "[01:30<59:24,  1.00step/s" in lines[2]  # the rate of the last interval
    assert lines[-1].startswith("training:  33% 1200/3600 [20:54<")
    assert not any("\r" in line for line in lines)


@pytest.mark.parametrize("seconds", [0.0, LINE_SECONDS - 1])
def test_a_short_stage_says_nothing_in_a_log(seconds: float, capsys: pytest.CaptureFixture[str]):
    clock = Clock()
    for _ in tracked(range(1000), desc="reading", unit="image", clock=clock):
        clock.now += seconds / 1000
    assert capsys.readouterr() == ("", "")


def test_the_items_pass_in_order_and_the_last_line_counts_them_all(capsys: pytest.CaptureFixture[str]):
    clock = Clock()
    seen = []
    for item in tracked((letter for letter in "abc"), desc="reading", unit="letter", total=3, clock=clock):
        clock.now += LINE_SECONDS - 1
        seen.append(item)
    assert seen == ["a", "b", "c"]
    assert [line.split()[2] for line in capsys.readouterr().err.splitlines()] == ["2/3", "3/3"]


def test_a_stage_of_unknown_length_counts(capsys: pytest.CaptureFixture[str]):
    clock = Clock()
    for _ in tracked(iter(range(2)), desc="reading", unit="frame", clock=clock):
        clock.now += LINE_SECONDS
    assert capsys.readouterr().err.splitlines()[-1].startswith("reading: 2frame [01:00")


def test_a_continued_stage_is_not_credited_with_what_was_done_before(capsys: pytest.CaptureFixture[str]):
    clock = Clock()
    with progress(1000, initial=900, desc="training", unit="step", clock=clock) as bar:
        clock.now += 30
        bar.update(30)
    assert capsys.readouterr().err == "training:  93% 930/1000 [00:30<01:10,  1.00step/s]\n"


def test_messages_of_a_silent_process_are_printed(capsys: pytest.CaptureFixture[str]):
    clock = Clock()
    with progress(2, desc="training", unit="step", disable=True, clock=clock) as bar:
        clock.now += 10 * LINE_SECONDS
        bar.update()
        bar.write("saved")
    assert capsys.readouterr() == ("saved\n", "")


def test_a_file_gets_lines_and_the_message():
    done = subprocess.run([sys.executable, "-c", STAGE], capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert "half way" in lines
    shown = [line for line in lines if line != "half way"]
    assert 1 <= len(shown) <= 200  # not a line a stroke: a second or more at one each 0.3 s
    assert all(re.fullmatch(r"rowing: +\d+% \d+/200 \[.*stroke/s\]", line) for line in shown)
    assert "200/200" in shown[-1]
    assert "\r" not in done.stderr


def test_a_terminal_gets_a_bar_that_redraws_itself():
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    with subprocess.Popen([sys.executable, "-c", STAGE], stderr=theirs, stdout=subprocess.PIPE) as process:
        os.close(theirs)
        text = ""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # Linux says so that the other end is closed
                break
            if not part:
                break
            text += part.decode(errors="replace")
    os.close(ours)
    assert process.returncode == 0
    assert text.count("\rrowing") > 3
    assert "half way\r\n" in text
