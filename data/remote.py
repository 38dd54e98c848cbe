"""Tar shards on a web server: read by parts, never stored. The index of each is kept in the cache folder.

The first run reads each shard once from end to end, for the offsets of its members. Later each image is a request of
its own, for its bytes only, so that the order of an epoch and an exact resume are the same as for files.
"""

import hashlib
import http.client
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

from data import DataError
from data.sample import cache_folder
from data.shards import TAR_SUFFIX, Member, expand_braces, index_archive

TIMEOUT = 30.0
"""Seconds without an answer."""
PAUSES = (1.0, 5.0, 20.0)
"""Seconds before each further attempt, after a failure that may pass."""
_SCHEME = re.compile(r"(pipe|[a-z][a-z0-9+.-]+(?=://)):", re.IGNORECASE)
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
Answer = TypeVar("Answer")


class UnreachableError(ConnectionError):
    """A server that gives no answer. A run stops and can be resumed: no other picture replaces the picture."""

    exit_status = 1


def is_url(root: Path | str) -> bool:
    """Whether `root` is a URL (http or https).

    Raises:
        DataError: a URL of another kind, or a command (`pipe:`).
    """
    match = None if isinstance(root, Path) else _SCHEME.match(root)
    if match is None or Path(root).exists():
        return False
    scheme = match[1].lower()
    if scheme in ("http", "https"):
        return True
    if scheme == "pipe":
        raise DataError(f"{root}: a command. Data may run no programs: name files, or URLs of http or https.")
    raise DataError(f"{root}: URLs of {scheme} are not read. Name files, or URLs of http or https.")


class RemoteShard:
    """A tar file on a web server.

    Args:
        url: http or https.

    Raises:
        FileNotFoundError: the server has no such file.
        UnreachableError: no answer.
        DataError: another refusal, or a server that does not send parts of files.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        parts = urlsplit(url)
        self.place = PurePosixPath(parts.netloc.rpartition("@")[2] + parts.path)
        """HOST/PATH, which names the shard."""
        self.size, self.version = self._about()

    def __str__(self) -> str:
        return self.url

    def _about(self) -> tuple[int, str]:
        """Bytes, and the server's mark of this version of the file."""
        with self._open((0, 1)) as answer:
            match = _RANGE.fullmatch(answer.headers.get("Content-Range") or "")
            if answer.status != http.HTTPStatus.PARTIAL_CONTENT or match is None:
                raise DataError(
                    f"{self.url}: the server sends whole files only (it ignores the header Range). Fetch the shards, "
                    "and name the files."
                )
            return int(match[3]), answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""

    def _open(self, part: tuple[int, int] | None = None) -> Any:
        """The answer for the whole file, or for bytes (offset, size)."""
        headers = {"Range": f"bytes={part[0]}-{part[0] + part[1] - 1}"} if part else {}
        request = urllib.request.Request(self.url, headers={"Accept-Encoding": "identity", **headers})
        return _asked(self.url, lambda: urllib.request.urlopen(request, timeout=TIMEOUT))

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the file; fewer at its end."""
        size = min(size, self.size - offset)
        if size <= 0:
            return b""

        def read() -> bytes:
            with self._open((offset, size)) as answer:
                match = _RANGE.fullmatch(answer.headers.get("Content-Range") or "")
                if match is None or int(match[1]) != offset or int(match[3]) != self.size:
                    raise DataError(f"{self.url}: changed on the server since the run began. Start a new run with it.")
                content: bytes = answer.read(size)
            if len(content) < size:
                raise http.client.IncompleteRead(content, size - len(content))
            return content

        return _asked(self.url, read)

    def members(self) -> list[Member]:
        """The images in it, with the errors of `index_archive`; read once for each version of the shard."""
        rows = self._kept(lambda: _asked(self.url, self._index))
        return [Member(name, offset, size) for name, offset, size in rows]

    def _index(self) -> list[Member]:
        with self._open() as answer:
            return index_archive(self, Whole(answer, self.size), goes_back=False)

    @contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        """Of several processes of a machine one makes the index, the others wait for it."""
        import fcntl  # not on Windows

        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _kept(self, make: Callable[[], Sequence[Sequence[Any]]]) -> Sequence[Sequence[Any]]:
        """The result of `make`, from the cache folder if it was made for this version of the file."""
        identity = json.dumps([self.url, self.size, self.version])
        name = hashlib.sha256(identity.encode()).hexdigest()[:32]
        path = cache_folder() / "shards" / f"{name}.json"
        with self._locked(path):
            try:
                rows: Sequence[Sequence[Any]] = json.loads(path.read_text())
            except (FileNotFoundError, ValueError):
                rows = make()
                partial = path.with_suffix(".partial")
                partial.write_text(json.dumps(rows))
                partial.replace(path)
        return rows


class Whole:
    """The content of an answer; IncompleteRead if the connection ends before `size` bytes."""

    def __init__(self, answer: Any, size: int) -> None:
        self.answer, self.left = answer, size

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end."""
        content: bytes = self.answer.read(size)
        self.left -= len(content)
        if not content and self.left > 0:
            raise http.client.IncompleteRead(content, self.left)
        return content


def list_urls(pattern: str) -> list[RemoteShard]:
    """The shards of a URL with braces, in its order. Nothing but their sizes is read.

    Raises:
        DataError: the URL does not end in .tar, or has wildcards, which no server lists. Also the errors of
            `RemoteShard`.
    """
    path = urlsplit(pattern).path
    if not path.endswith(TAR_SUFFIX) or set(path) & set("*["):
        raise DataError(f"{pattern}: expected the URL of tar shards, with a range: https://host/{{000..127}}.tar.")
    return [RemoteShard(url) for url in expand_braces(pattern)]


def _asked(url: str, ask: Callable[[], Answer]) -> Answer:
    """The answer of a server, after further attempts if it fails for now."""
    for pause in (*PAUSES, None):
        try:
            return ask()
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (http.HTTPStatus.NOT_FOUND, http.HTTPStatus.GONE):
                raise FileNotFoundError(f"{url}: the server has no such file ({error.code}). Check the URL.") from None
            if error.code < http.HTTPStatus.INTERNAL_SERVER_ERROR and error.code != http.HTTPStatus.TOO_MANY_REQUESTS:
                raise DataError(f"{url}: the server refuses ({error.code} {error.reason}). Check the URL.") from None
            reason = f"{error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, FileNotFoundError | UnreachableError):
                raise
            reason = str(error)
        if pause is not None:
            time.sleep(pause)
    raise UnreachableError(
        f"{url}: no whole answer in {len(PAUSES) + 1} attempts ({reason}). Try again later, or resume."
    )
