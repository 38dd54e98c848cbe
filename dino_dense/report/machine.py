"""Machine, software versions and memory of a run."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

try:
    import resource
except ImportError:  # Windows has no such module
    resource = None  # type: ignore[assignment]


def environment(*, device: torch.device | None, dtype: str, seed: int, commits: Collection[str] = ()) -> dict[str, Any]:
    """Versions and machine of a run. Without a device PyTorch was not used, and is not imported.

    Args:
        commits: of the program that computed parts of the results before this run; its own is added.
    """
    now = current_commit()
    record: dict[str, Any] = {
        "commit": " and ".join([*sorted(set(commits) - {now}), *([now] if now else [])]) or None,
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "device": f"{device.type if device else 'cpu'} ({_processor(device)})",
        "dtype": dtype,
        "seed": seed,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }
    if device is not None:
        import torch

        record |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
    return record


def _processor(device: torch.device | None) -> str:
    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def reset_peak_memory(device: torch.device | None = None) -> None:
    """Reset the peak of `peak_memory_mib`, if the system can (CUDA, Linux)."""
    if device is not None and device.type == "cuda":
        import torch

        if torch.cuda.is_initialized():  # else there is no peak yet, and PyTorch refuses
            torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak of resident memory


def peak_memory_mib(device: torch.device | None = None) -> float:
    """Largest memory, MiB, since the start or `reset_peak_memory`: of the device if CUDA, else resident memory."""
    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text()
        peak = next((line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")), None)
        if peak is not None:
            return int(peak) / 2**10
    if resource is None:
        return 0.0
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return usage / (2**20 if sys.platform == "darwin" else 2**10)


@functools.cache
def current_commit() -> str | None:
    """Commit of this package's source tree, with "+" if modified; None if it is no git checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", os.fspath(root)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if dirty.strip() else "")
