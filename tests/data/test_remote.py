"""Tar shards on a web server: the same as files; every refusal and every broken answer names the URL."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data import DataError
from data.pretraining import open_pretraining_data
from data.remote import UnreachableError, is_url
from tests.data.test_shards import IMAGES, blocks, write_shard


class Server(ThreadingHTTPServer):
    """Serves `files`; each request takes the next of `faults`, if there is one."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: list[str] = []
        self.whole = 0
        """Requests for whole files."""
        self.sends_parts = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, content = self.server, self.server.files.get(self.path)
        fault = server.faults.pop(0) if server.faults else ""
        if content is None or fault.isdigit():
            self.send_error(404 if content is None else int(fault))
            return
        total, status, part = len(content), 200, self.headers.get("Range")
        if part and server.sends_parts:
            first, last = map(int, part.removeprefix("bytes=").split("-"))
            last, status = min(last, total - 1), 206
            content = content[first : last + 1]
        else:
            server.whole += 1
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{total}")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if fault == "cut" else content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setenv("DINO_DENSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("data.remote.PAUSES", (0.0, 0.0))
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def shards(server: Server, tmp_path: Path) -> Path:
    names = list(IMAGES)
    for number, part in enumerate((names[:5], names[5:])):
        path = write_shard(tmp_path / "s" / f"{number}.tar", part)
        server.files[f"/s/{number}.tar"] = path.read_bytes()
    return tmp_path / "s"


def test_shards_on_a_server_give_the_pictures_of_the_files(server: Server, shards: Path):
    files = open_pretraining_data(str(shards / "{0..1}.tar"))
    images = open_pretraining_data(f"{server.url}/s/{{0..1}}.tar")
    assert len(images) == len(files) == 8
    for i in range(8):
        assert images[i].decode().tobytes() == files[i].decode().tobytes()
        assert images.name(i) == files.name(i)
    assert images.fingerprint == files.fingerprint
    assert server.whole == 2
    assert len(open_pretraining_data(f"{server.url}/s/{{0..1}}.tar")) == 8
    assert server.whole == 2, "the index is read again"


def test_a_new_version_of_a_shard_is_indexed_again_and_refused_in_a_run(server: Server, shards: Path):
    images = open_pretraining_data(f"{server.url}/s/0.tar")
    server.files["/s/0.tar"] = server.files["/s/1.tar"]
    with pytest.raises(DataError, match=r"/s/0\.tar: changed on the server since the run began"):
        images[0]
    assert len(open_pretraining_data(f"{server.url}/s/0.tar")) == 3


def test_a_failure_that_passes_is_asked_again(server: Server, shards: Path):
    server.faults = ["503", "", "cut", "500"]  # of: size, size, whole, whole
    images = open_pretraining_data(f"{server.url}/s/0.tar")
    assert len(images) == 5
    server.faults = ["cut"]
    assert images[0].size == (9, 12)


def test_a_failure_that_stays_is_named_and_is_no_broken_picture(server: Server, shards: Path):
    images = open_pretraining_data(f"{server.url}/s/0.tar")
    server.faults = ["cut"] * 3
    with pytest.raises(
        UnreachableError, match=r"/s/0\.tar: no whole answer in 3 attempts .*Try again later, or resume"
    ):
        images[0]
    assert issubclass(UnreachableError, ConnectionError)
    server.faults = ["503"] * 3
    with pytest.raises(UnreachableError, match="503"):
        images[0]


def test_missing_refused_and_cut_shards_are_named(server: Server, shards: Path):
    with pytest.raises(FileNotFoundError, match=r"/s/2\.tar: the server has no such file \(404\)"):
        open_pretraining_data(f"{server.url}/s/{{0..2}}.tar")
    server.faults = ["403"]
    with pytest.raises(DataError, match=r"/s/0\.tar: the server refuses \(403"):
        open_pretraining_data(f"{server.url}/s/0.tar")
    whole, starts = server.files["/s/1.tar"], blocks(shards / "1.tar")
    for size in (starts[-1], starts[2] + 700, starts[2], starts[2] + 100):
        server.files["/s/1.tar"] = whole[:size]
        with pytest.raises(DataError, match=r"/s/1\.tar: ends early, at member"):
            open_pretraining_data(f"{server.url}/s/1.tar")
    server.sends_parts = False
    with pytest.raises(DataError, match=r"/s/0\.tar: the server sends whole files only"):
        open_pretraining_data(f"{server.url}/s/0.tar")


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("pipe:cat a.tar", "a command. Data may run no programs"),
        ("pipe:curl -s http://host/{0..1}.tar", "a command"),
        ("s3://bucket/{0..1}.tar", "URLs of s3 are not read"),
        ("file:///a.tar", "URLs of file are not read"),
        ("http://127.0.0.1/a.parquet", "expected the URL of tar shards"),
        ("http://127.0.0.1/*.tar", "expected the URL of tar shards"),
    ],
)
def test_commands_and_other_urls_are_refused(root: str, message: str):
    with pytest.raises(DataError, match=message):
        open_pretraining_data(root)


def test_paths_are_no_urls(tmp_path: Path):
    (tmp_path / "pipe:a").mkdir()
    assert not any(
        map(is_url, (tmp_path, str(tmp_path), str(tmp_path / "pipe:a"), "data/a.tar", r"C:\data", "a:b.tar"))
    )
    assert is_url("HTTPS://host/a.tar")
