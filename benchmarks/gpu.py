"""`python -m benchmarks.gpu` (`make gpu`): checks this project on a machine with CUDA, and writes one table.

    python -m benchmarks.gpu [--device cuda] [--out FILE.md] [CHECK ...]

About a quarter of an hour on an H100, by estimate: `--list` names the checks, their contents and their minutes. The
table is written after every check, so a run that is stopped keeps what it has. The exit status is 1 if a row says "no".

It needs a copy of this folder and a Python with PyTorch for CUDA, timm and the other dependencies. Nothing is
downloaded, and nothing outside the folder is needed. Used where the machine has them, else the row says what is
missing: pytest, and Triton with a C compiler. A DAVIS tree (`DINO_DENSE_DAVIS`) and ImageNet JPEGs
(`DINO_DENSE_IMAGENET_FULL`, a folder or a tar file) are measured if they are named; else the embedded set.

`--device cpu` runs every check at a tiny size: it tests the checks, and measures nothing.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import torch

from benchmarks.bench import DEVICE_VARIABLE, device, machine
from benchmarks.gpu_machine import Check, Line, Machine, SkippedError, message


def guarded(name: str, check: Check, where: Machine) -> Iterator[Line]:
    """The lines of a check; its error is a line too."""
    try:
        yield from check.measure(where)
    except (SkippedError, ModuleNotFoundError) as error:
        yield Line(check.text, found=message(error), as_expected="skipped")
    except Exception as error:
        yield Line(check.text, "no error", f"{type(error).__name__}: {message(error)}", "no")


def run_all(checks: dict[str, Check], where: Machine, out: Path) -> bool:
    """Run the checks and write the table after each. Returns whether no row says no."""
    rows: list[dict[str, object]] = []
    start = time.monotonic()
    for name, check in checks.items():
        print(f"--- {name}: {check.text}", flush=True)
        begun = time.monotonic()
        for line in guarded(name, check, where):
            seconds = round(time.monotonic() - begun, 1)
            begun = time.monotonic()
            rows.append({"check": name, **line._asdict(), "seconds": seconds})
            print(f"{line.as_expected or '-':8}{line.measures}: {line.found}", flush=True)
        minutes = (time.monotonic() - start) / 60
        write(out, rows, f"{machine()}, PyTorch {torch.__version__}; {len(rows)} rows in {minutes:.1f} minutes", where)
    return not any(row["as_expected"] == "no" for row in rows)


def write(out: Path, rows: Sequence[dict[str, object]], heading: str, where: Machine) -> None:
    """Write the table as Markdown."""
    trial = "\n\n**A trial of the checks at a tiny size on a CPU: no figure means anything.**" if where.is_trial else ""
    table = pd.DataFrame(rows).rename(columns={"as_expected": "as expected"})
    out.write_text(f"{heading}{trial}\n\n{table.to_markdown(index=False)}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu for a trial of the checks")
    parser.add_argument("--out", type=Path, default=Path("gpu.md"), help="file of the table")
    parser.add_argument("--list", action="store_true", help="name the checks and end")
    parser.add_argument("checks", nargs="*", help="run only these")
    options = parser.parse_args(arguments)
    os.environ[DEVICE_VARIABLE] = options.device  # before modules that ask for it
    from benchmarks.gpu_checks import CHECKS

    if options.list:
        print("\n".join(f"{name:12}{check.minutes:4.1f} min  {check.text}" for name, check in CHECKS.items()))
        return 0
    if unknown := sorted(set(options.checks) - set(CHECKS)):
        parser.error(f"no check {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    try:
        here = device()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    chosen = {name: check for name, check in CHECKS.items() if not options.checks or name in options.checks}
    with tempfile.TemporaryDirectory() as folder:
        fine = run_all(chosen, Machine(here, Path(folder)), options.out)
    print(f"\n{options.out}\n{options.out.read_text()}")
    return 0 if fine else 1


if __name__ == "__main__":
    raise SystemExit(main())
