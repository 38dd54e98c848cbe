"""`python -m benchmarks [NAME ...]`: run all benchmarks (or those named), print one table, add to results.csv.

With `--device cpu`, `cuda` or `cuda:N`, they compute there; without it, on CUDA where there is one. CPU_ONLY do not.
With `--docs`, run all benchmarks and replace the table in docs/performance.md by the results.
"""

import importlib
import os
import pkgutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import benchmarks
from benchmarks.bench import DEVICE_VARIABLE, Row, device, machine, table, write_between

DOCS = Path(__file__).parents[1] / "docs" / "performance.md"
SHARED = ("__main__", "bench", "gpu", "gpu_checks", "gpu_machine")
CPU_ONLY = ("clustering", "crops", "neighbor", "points", "published", "scoring", "shards")
"""Benchmarks of work that the CPU does; only the network beside `points` runs on the device."""
DOCUMENTS = ("ablation", "calibration", "families", "family_tasks", "pictures", "results", "sweeps")
"""Modules that fill tables of other documents; they claim no speed, and run by their own names."""


def names() -> list[str]:
    """Names of all benchmarks: all modules here except this command, `benchmarks.gpu`, shared modules and documents."""
    return [
        module.name for module in pkgutil.iter_modules(benchmarks.__path__) if module.name not in (*SHARED, *DOCUMENTS)
    ]


def main(arguments: list[str]) -> int:
    chosen = [argument for argument in arguments if argument != "--docs"]
    if "--device" in chosen[:-1]:
        place = chosen.index("--device")
        os.environ[DEVICE_VARIABLE] = chosen[place + 1]
        del chosen[place : place + 2]
    try:
        device()  # an error now, not after an hour
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    unknown = sorted(set(chosen) - set(names()))
    if unknown or (chosen and "--docs" in arguments):
        print(
            f"usage: python -m benchmarks [--device NAME] [--docs | NAME ...]; the names are {', '.join(names())}",
            file=sys.stderr,
        )
        return 2
    rows: list[Row] = []
    start = time.monotonic()
    for name in chosen or names():
        print(f"--- {name}{' (the CPU alone)' if name in CPU_ONLY else ''}", flush=True)
        rows += importlib.import_module(f"benchmarks.{name}").main()
    minutes = (time.monotonic() - start) / 60
    print(f"\n{machine()}; {minutes:.1f} min\n{table(rows).to_string(index=False)}")
    if "--docs" in arguments:
        write_docs(rows, minutes)
    return 0


def write_docs(rows: Sequence[Row], minutes: float) -> None:
    """Write the table between the two marks of docs/performance.md."""
    where = f"{machine()}; commit, date and notes of each row are in `benchmarks/results.csv`; {minutes:.0f} minutes."
    write_between(DOCS, "table", f"{where}\n\n{table(rows).to_markdown(index=False)}")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
