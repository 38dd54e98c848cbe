"""Jobs of a batch, one for each checkpoint, by submitit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino_dense import distributed
from tasks.harness.options import BatchOptions
from tasks.harness.pairs import checkpoint_labels, failed_report, folder_name, open_suite, run_checkpoint, run_options
from tasks.harness.suites import SuiteEntry, load_suite

if TYPE_CHECKING:
    from dino_dense.report import Entry


def run_jobs(options: BatchOptions, suite: Sequence[SuiteEntry]) -> Iterator[Entry]:
    """Submit a job for each checkpoint and yield its entries; cancels the remaining jobs if it is stopped."""
    executor = _executor(options)
    labels = checkpoint_labels(options.ckpt)
    at_once = len(labels) if options.launcher == "slurm" else options.jobs
    pairs = list(zip(options.ckpt, labels, strict=True))
    for start in range(0, len(pairs), at_once):
        chosen = pairs[start : start + at_once]
        jobs = [executor.submit(_job, replace(options, launcher="none"), *pair) for pair in chosen]
        try:
            for job, (spec, label) in zip(jobs, chosen, strict=True):
                yield from collect_entries(job, spec, label, suite, options)
        finally:
            for job in jobs:
                if not job.done():
                    job.cancel()


def _executor(options: BatchOptions) -> Any:
    try:
        import submitit
    except ImportError:
        raise ValueError(
            f'--launcher {options.launcher} needs submitit: pip install "dino_dense[slurm]", or leave --launcher out.'
        ) from None
    import torch

    executor = submitit.AutoExecutor(folder=Path(options.out) / "jobs", cluster=options.launcher)
    here = torch.cuda.device_count()  # submitit's local jobs see only requested GPUs
    gpus = options.gpus if options.launcher == "slurm" else min(options.gpus, here)
    executor.update_parameters(name="dino_dense", timeout_min=round(60 * options.hours), gpus_per_node=gpus)
    if options.launcher == "slurm":
        executor.update_parameters(cpus_per_task=options.cpus, mem_gb=options.memory)
        if options.partition:
            executor.update_parameters(slurm_partition=options.partition)
    return executor


def _job(options: BatchOptions, spec: str, label: str) -> list[Entry]:
    """Run all entries on one checkpoint, in a job. Results are on disk; the main process writes the report."""
    suite = load_suite(options.suite, options.data_root)
    device = distributed.resolve_device(options.device)
    return list(run_checkpoint(spec, label, suite, open_suite(suite), options, device, distributed.World()))


def collect_entries(job: Any, spec: str, label: str, suite: Sequence[SuiteEntry], options: BatchOptions) -> list[Entry]:
    """A job's entries; failed entries if the job died."""
    from dino_dense.report import Entry

    try:
        return job.result()
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        died = ValueError(f"the job ended without a result ({reason[-1]}); its output is in {job.paths.stderr}.")
        run, folder = run_options(spec, options), Path(options.out) / folder_name(spec)
        return [Entry(entry.label, label, failed_report(entry, spec, died, None, run), folder) for entry in suite]
