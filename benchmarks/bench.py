"""Shared tools of the benchmarks: time two implementations in turn, check that they agree, make a row for each claim.

Times are wall-clock seconds. Memory is the peak resident memory above the memory before the work, MiB; on a GPU, the
peak of its tensors.
"""

import csv
import datetime
import gc
import multiprocessing
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import pandas as pd
import torch

from dino_dense.distributed import resolve_device
from dino_dense.report import peak_memory_mib, reset_peak_memory

Result = TypeVar("Result")

RESULTS = Path(__file__).parent / "results.csv"
DEVICE_VARIABLE = "DINO_DENSE_BENCHMARK_DEVICE"
"""Of `--device`, for the processes that a benchmark starts."""
MATMUL_SIDE = 2048  # side of square matrices; their product measures the speed of the machine


@dataclass(frozen=True)
class Row:
    """A measured claim."""

    benchmark: str
    """Module: `python -m benchmarks.NAME`."""
    work: str
    """Description of the work, with its sizes."""
    plain: float
    """The plain implementation's figure, in `unit`."""
    ours: float
    unit: str
    """s, MiB, images/s, ..."""
    target: float | None = None
    """Ratio to reach; None for a row without target, or with a limit."""
    limit: float | None = None
    """Largest allowed value of ours, in `unit`."""
    check: str = ""
    """Difference of the two results, or their equal share."""
    agrees: bool = True
    """Whether the two results agree as claimed; if not, the target is not met."""
    better: Literal["lower", "higher"] = "lower"
    """lower: seconds and bytes; higher: rates."""
    note: str = ""

    @property
    def ratio(self) -> float:
        """The factor by which ours is better."""
        return self.plain / self.ours if self.better == "lower" else self.ours / self.plain

    @property
    def met(self) -> str:
        if self.target is None and self.limit is None:
            return ""
        reached = self.target is None or self.ratio >= self.target
        within = self.limit is None or self.ours <= self.limit
        return "yes" if reached and within and self.agrees else "no"

    @property
    def wanted(self) -> str:
        """Target and limit as text."""
        target = [] if self.target is None else [f"{self.target:.3g}x"]
        return ", ".join(target + ([] if self.limit is None else [f"<= {self.limit:g} {self.unit}"]))


@dataclass(frozen=True)
class Measured:
    """Time and memory of a call."""

    result: Any
    seconds: float
    mib: float
    """Peak memory during the call above the memory before it."""


def device() -> torch.device:
    """The device of `python -m benchmarks --device NAME`; without it, CUDA where there is one."""
    return resolve_device(os.environ.get(DEVICE_VARIABLE, "auto"))


def in_turn(
    plain: Callable[[], Any], ours: Callable[[], Any], repeats: int = 3, *, warm_up: bool = True
) -> tuple[float, float]:
    """Median seconds of two calls, run in turn, so that a drift of the machine's speed affects both.

    The ratio of a claim is the ratio of these two medians: never compare with a number from another run.
    """
    if warm_up:
        plain(), ours()
    seconds: tuple[list[float], list[float]] = [], []
    for _ in range(repeats):
        for call, kept in zip((plain, ours), seconds, strict=True):
            kept.append(seconds_of(call))
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def seconds_of(call: Callable[[], Any]) -> float:
    """Seconds of one call, including CUDA work."""
    gc.collect()
    synchronise()
    start = time.perf_counter()
    call()
    synchronise()
    return time.perf_counter() - start


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def in_new_process(call: Callable[..., Result], *arguments: Any, threads: int | None = None) -> Measured:
    """Run `call(*arguments)`, a function of a module, in a new process, to measure its memory separately."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (call, arguments, threads or torch.get_num_threads()))


def _measure(call: Callable[..., Any], arguments: Sequence[Any], threads: int) -> Measured:
    torch.set_num_threads(threads)
    torch.ones(64, 64) @ torch.ones(64, 64)  # the buffers of the libraries do not count
    where = device()
    torch.zeros(1, device=where)  # a device begins with its first tensor
    reset_peak_memory(where)
    before, start = peak_memory_mib(where), time.perf_counter()
    result = call(*arguments)
    synchronise()
    return Measured(result, time.perf_counter() - start, peak_memory_mib(where) - before)


def publish(rows: Sequence[Row]) -> None:
    """Print the rows as a table and add them to results.csv."""
    print(table(rows).to_string(index=False), flush=True)
    where = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": machine(),
        "threads": torch.get_num_threads(),
    }
    names = [*where, *(item.name for item in fields(Row)), "ratio", "met"]
    is_new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        if is_new:
            writer.writeheader()
        for row in rows:
            writer.writerow({**where, **_rounded(asdict(row)), "ratio": f"{row.ratio:.4g}", "met": row.met})


def table(rows: Sequence[Row]) -> pd.DataFrame:
    """A readable table with a row for each claim."""
    return pd.DataFrame(
        [
            {
                "benchmark": row.benchmark,
                "work": row.work,
                "plain": f"{row.plain:.4g}",
                "ours": f"{row.ours:.4g}",
                "unit": row.unit,
                "ratio": f"{row.ratio:.2f}",
                "target": row.wanted,
                "met": row.met,
                "check": row.check,
            }
            for row in rows
        ]
    )


def machine() -> str:
    """The processor, and the GPU if there is one."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{_processor()}, {torch.get_num_threads()} threads{gpu}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _commit() -> str:
    command = ["git", "-C", str(RESULTS.parent), "describe", "--always", "--dirty"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return result.stdout.strip()


def _rounded(record: dict[str, Any]) -> dict[str, Any]:
    return {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in record.items()}


def show_tables(tables: Mapping[str, str], document: Path | None) -> None:
    """Print tables by their names; with a document, write each between its marks too (`write_between`)."""
    for name, text in tables.items():
        print(f"{name}\n{text}\n")
        if document:
            write_between(document, name, text)


def write_between(document: Path, name: str, text: str) -> None:
    """Replace what stands between the marks `<!-- NAME -->` and `<!-- end of NAME -->` of a document.

    Raises:
        ValueError: the document lacks a mark.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    head, begun, rest = document.read_text().partition(begin)
    _, ended, tail = rest.partition(end)
    if not (begun and ended):
        raise ValueError(f"{document}: no marks {begin} and {end}. Write them where the table belongs.")
    document.write_text(f"{head}{begin}\n{text}\n{end}{tail}")
