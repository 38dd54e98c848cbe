"""Files that are whole or not there: written beside their place, flushed to the disk, then renamed."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial"
"""How the names of folders end in which a file is being written; they begin with a dot."""


class WriteError(OSError):
    """A file that cannot be written. The message names it, says why and what to do."""

    exit_status = 1


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` when the block ends without an error.

    Neither a reader, a kill nor a power cut ever meets half a file: the bytes are on the disk before the name
    points to them, and the name is on the disk when this returns. After an error nothing is left, and what was
    at `path` before still is.

    Raises:
        WriteError: the folder or the file cannot be written (full disk, read-only folder).
    """
    path = Path(path)
    folder: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A folder, since libraries (safetensors) may write beside the path they are given, and die there.
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
    """Remove what a killed process was writing.

    Args:
        folder: only one process writes to it now, or
        older_than: what is younger (seconds) may be another's that still writes.
    """
    for path in folder.glob(f".*{PARTIAL}"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime >= older_than:
                shutil.rmtree(path, ignore_errors=True)


def _sync(path: Path) -> None:
    """Have the disk hold a file's bytes, or a folder's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
