"""`python -m benchmarks.gpu`: a row for everything that happens, a file after every check, tiny checks on a CPU."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.bench import DEVICE_VARIABLE
from benchmarks.gpu import guarded, run_all
from benchmarks.gpu_checks import CHECKS
from benchmarks.gpu_machine import Check, Line, Machine, SkippedError


def fine(where: Machine) -> Iterator[Line]:
    """Finds what it expects."""
    yield Line("one", "1", "1", "yes")
    yield Line("a figure", found="2")


def differs(where: Machine) -> Iterator[Line]:
    """Finds another number, then fails."""
    yield Line("two", "2", "3", "no")
    raise ValueError("a cause\nmore of it")


def lacks(where: Machine) -> Iterator[Line]:
    """Needs what is not there."""
    raise SkippedError("needs a compiler")
    yield


def lacks_module(where: Machine) -> Iterator[Line]:
    """Imports what is not installed."""
    import a_module_that_nobody_has  # noqa: F401

    yield Line("never")


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command sets the variable of the device, which must not outlive a test."""
    monkeypatch.setenv(DEVICE_VARIABLE, "cpu")


@pytest.fixture
def here(tmp_path: Path) -> Machine:
    return Machine(torch.device("cpu"), tmp_path)


def test_errors_and_lacks_are_rows(here: Machine):
    assert [line.as_expected for line in guarded("fine", Check(fine, 1), here)] == ["yes", ""]
    wrong, failed = guarded("differs", Check(differs, 1), here)
    assert wrong.as_expected == "no"
    assert (failed.measures, failed.found) == ("Finds another number, then fails.", "ValueError: a cause")
    assert failed.as_expected == "no"
    for check in (lacks, lacks_module):
        (line,) = guarded("lacks", Check(check, 1), here)
        assert line.as_expected == "skipped"
    assert "a_module_that_nobody_has" in line.found


def test_the_table_is_written_after_every_check(here: Machine, tmp_path: Path):
    out, seen = tmp_path / "table.md", []

    def stops(where: Machine) -> Iterator[Line]:
        """The user stops it."""
        seen.append(out.read_text())
        raise KeyboardInterrupt
        yield

    assert run_all({"fine": Check(fine, 1), "lacks": Check(lacks, 1)}, here, out)
    assert not run_all({"differs": Check(differs, 1)}, here, out)
    with pytest.raises(KeyboardInterrupt):
        run_all({"fine": Check(fine, 1), "stops": Check(stops, 1)}, here, out)
    assert seen == [out.read_text()]
    assert "no figure means anything" in seen[0], "a trial on a CPU says so"
    assert "a figure" in seen[0]


def test_a_command_that_fails_is_named_with_its_last_line(here: Machine):
    with pytest.raises(RuntimeError, match=r"exit status 2 of benchmarks tpu: .*the names are"):
        here.run("benchmarks", "tpu")


def test_all_checks_take_less_than_twenty_minutes_and_say_what_they_do(capsys: pytest.CaptureFixture[str]):
    assert sum(check.minutes for check in CHECKS.values()) < 20
    assert gpu.main(["--list", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(CHECKS)
    assert all(line.endswith(".") or ":" in line for line in lines)


def test_a_device_or_a_check_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]):
    assert gpu.main(["--device", "tpu"]) == 2
    assert "expected auto, cpu, cuda or cuda:N" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu", "nonsense"])


@pytest.mark.parametrize("name", ["waits", "features", "decode", "neighbors"])
def test_a_check_runs_at_a_tiny_size_on_a_cpu(name: str, here: Machine):
    lines = list(CHECKS[name].measure(here))
    assert lines
    assert all(line.as_expected in ("yes", "") for line in lines)
