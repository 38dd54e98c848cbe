"""Every task on CUDA against the CPU, at its smallest size: seconds and scores. Needs a CUDA device.

Two scores may differ by rounding: by the order of sums (fp32), or by bf16. A failed task becomes a row with its error.
Written on a machine without CUDA: it has not run on a device yet.
"""

import tempfile
from pathlib import Path

from benchmarks.bench import Row, device, publish
from dino_dense import Report
from tasks import RunOptions, get, names, run_one

RANDOM = "random:vit_micro_patch8_64"
SAME = {"fp32": 1.0, "bf16": 5.0}
"""Allowed difference of the headline score of a random network on the small embedded data, points."""


def measured(task: str, where: str, dtype: str, folder: Path) -> Report:
    options = RunOptions(ckpt=RANDOM, device=where, dtype=dtype, out=str(folder / f"{task}-{where}-{dtype}"))  # type: ignore[arg-type]
    return run_one(get(task), options, get(task).smoke)


def row(task: str, dtype: str, reference: Report, folder: Path) -> Row:
    work = f"{task}, its smallest config, CUDA {dtype} (plain: CPU fp32)"
    try:
        report = measured(task, str(device()), dtype, folder)
    except Exception as error:
        failed = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        return Row("gpu", work, reference.seconds, float("nan"), "s", target=0.0, check=failed, agrees=False)
    difference = report.scores[0].value - reference.scores[0].value
    check = f"{reference.scores[0].metric} {difference:+.3f}"
    agrees = abs(difference) <= SAME[dtype]
    note = f"peak {report.peak_memory_mib:.0f} MiB on the device"
    return Row("gpu", work, reference.seconds, report.seconds, "s", target=0.0, check=check, agrees=agrees, note=note)


def main() -> list[Row]:
    if device().type != "cuda":
        print("gpu: the device is a CPU, so nothing was run")
        return []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        references = {task: measured(task, "cpu", "fp32", folder) for task in names()}
        rows = [row(task, dtype, references[task], folder) for task in references for dtype in SAME]
    publish(rows)
    return rows


if __name__ == "__main__":
    main()
