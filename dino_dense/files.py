"""Atomic files: written to a temporary folder beside the target, flushed to the disk, then renamed."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial"
"""Suffix of the hidden temporary folder that a file is written in."""


class WriteError(OSError):
    """A file that cannot be written. The message names it, says why and what to do."""

    exit_status = 1


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A temporary path to write to. It replaces `path` when the block ends without an error.

    No reader sees half a file, even after a kill or a power cut: the bytes are on the disk before the name points to
    them, and the name is on the disk when this returns. After an error the temporary file is removed and the earlier
    file at `path` remains.

    Raises:
        WriteError: the folder or the file cannot be written (full disk, read-only folder).
    """
    path = Path(path)
    folder: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A folder, since libraries (safetensors) may write beside the given path, and die there.
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL))
        temporary = folder / "content"
        yield temporary
        _sync(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        before = "What was there before is kept. " if path.exists() else ""
        raise WriteError(
            f"{path}: cannot be written ({error.strerror or error}). {before}"
            "Free or unlock the disk, or name another folder with --out; then run the same command again."
        ) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)  # the first error says more


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; raises what `replacing` raises."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole or not at all; raises what `replacing` raises."""
    write_bytes(path, text.encode())


def clear_unfinished(folder: Path, *, older_than: float = 0.0) -> None:
    """Remove temporary folders that killed processes left.

    Args:
        folder: no other process may write to it now, unless `older_than` is set.
        older_than: seconds; a younger temporary folder stays, since another process may still write to it.
    """
    for path in folder.glob(f".*{PARTIAL}"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime >= older_than:
                shutil.rmtree(path, ignore_errors=True)


def _sync(path: Path) -> None:
    """Flush a file's bytes, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
