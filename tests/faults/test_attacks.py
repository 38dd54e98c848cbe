"""What a stranger may put into a file, planted, and seen not to run, not to be followed, not to be fetched."""

import dataclasses
import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from data import DataError
from data.boxes import load_voc_boxes
from data.images import read_rgb
from data.revisited import load_revisited
from dino_dense import load_backbone
from dino_dense.backbone.dino_vit import DinoViT, describe
from dino_dense.checkpoint import METADATA_KEY, CheckpointError, read_tensors, write_tensors
from dino_dense.config import command_line
from dino_dense.pretrain.config import PretrainConfig
from dino_dense.report import Entry, Report, render_page
from dino_dense.report.compare import read_samples
from tasks.harness.suites import load_suite


class Malice:
    """Runs a command when unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch owned",)


@pytest.fixture(autouse=True)
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder in which `owned` would appear, and no way out to the network."""

    def no_network(*_args: object, **_options: object) -> None:
        raise AssertionError("it tried to reach the network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("socket.socket.connect", no_network)
    monkeypatch.setattr("socket.getaddrinfo", no_network)
    return tmp_path


def assert_refused(error: type[Exception], match: str, call: Callable[[], object]) -> None:
    with pytest.raises(error, match=match):
        call()
    assert not Path("owned").exists()


# --- Pickles ---


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("place", ["top", "options", "weights", "optimizer"])
def test_a_program_in_a_checkpoint(place: str, legacy: bool, scene: Path):
    content: object = {
        "top": Malice(),
        "options": {"teacher": {"x": torch.ones(1)}, "args": Malice()},
        "weights": {"teacher": {"x": Malice()}},
        "optimizer": {"teacher": {}, "optimizer": {"state": [Malice()]}},
    }[place]
    torch.save(content, scene / "net.pth", _use_new_zipfile_serialization=not legacy)
    assert_refused(CheckpointError, r"net\.pth: holds the Python object", lambda: load_backbone("net.pth"))


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors", ""])
def test_a_bare_pickle_under_any_ending(suffix: str, scene: Path):
    (scene / f"net{suffix}").write_bytes(pickle.dumps({"teacher": Malice()}))
    assert_refused(CheckpointError, f"net{suffix}", lambda: load_backbone(f"net{suffix}"))


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "builtins.exec", "builtins.getattr", "numpy.load"])
def test_a_program_in_a_ground_truth(name: str, scene: Path):
    module, _, function = name.rpartition(".")
    program = f"c{module}\n{function}\n(S'touch owned'\ntR."
    (scene / "gnd_roxford5k.pkl").write_bytes(program.encode())
    (scene / "jpg").mkdir()
    assert_refused(DataError, r"gnd_roxford5k\.pkl: refused, it asks for", lambda: load_revisited(scene))


def test_a_ground_truth_cannot_name_files_elsewhere(scene: Path):
    record = {"imlist": ["../../etc/passwd"], "qimlist": ["a"], "gnd": [{}]}
    (scene / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(record))
    assert_refused(DataError, r"imlist has '\.\./\.\./etc/passwd'", lambda: load_revisited(scene))


# --- safetensors ---


def header(length: int, text: bytes = b"") -> bytes:
    return struct.pack("<Q", length) + text


X = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def entries(**tensors: object) -> bytes:
    text = json.dumps(tensors).encode()
    return header(len(text), text) + bytes(4)


HEADERS = {
    "longer than the file": header(10_000, b"{}"),
    "of 2^63 bytes": header(2**63, b"{}"),
    "of 200 MB": header(200_000_000, b"{}"),
    "no JSON": header(4, b"%PDF"),
    "nested without end": header(100_000, b"[" * 100_000),
    "offsets beyond the data": entries(x={**X, "data_offsets": [0, 2**40]}),
    "overlapping": entries(x=X, y=X),
    "a shape of 2^60": entries(x={**X, "shape": [2**60]}),
}


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
def test_headers_that_lie(content: bytes, scene: Path):
    (scene / "net.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"net\.safetensors: not a whole safetensors file"):
        read_tensors("net.safetensors")


@pytest.mark.parametrize("text", ["not JSON", "[1]", "7", '{"format": "x"}', "[" * 50_000])
def test_metadata_that_is_not_ours(text: str, scene: Path):
    save_file({"x": torch.ones(1)}, scene / "net.safetensors", metadata={METADATA_KEY: text})
    assert_refused(CheckpointError, r"net\.safetensors: its metadata", lambda: load_backbone("net.safetensors"))


@pytest.mark.parametrize(
    "changes",
    [
        {"body": "timm", "name": "hf-hub:stranger/net"},
        {"body": "timm", "name": "local-dir:/tmp"},
        {"body": "os.system", "name": "touch owned"},
        {"depth": 10**9},
        {"embed_dim": 10**9},
        {"grid_size": 10**6},
        {"depth": "4"},
        {"patch_size": 0},
        {"num_heads": 3},
        {"unknown": 1},
        {"depth": 100},
    ],
    ids=str,
)
def test_an_architecture_that_fetches_or_fills_the_memory(changes: dict, tiny_vit: DinoViT, scene: Path):
    description = changes if "body" in changes else {**describe(tiny_vit), **changes}
    write_tensors(scene / "net.safetensors", tiny_vit.state_dict(), {"architecture": description})
    assert_refused(CheckpointError, r"net\.safetensors: ", lambda: load_backbone("net.safetensors"))


# --- YAML, JSON, XML ---

YAML_ATTACKS = [
    "data: !!python/object/apply:os.system ['touch owned']",
    "data: !!python/name:os.system",
    "seed: !!python/object/new:type {args: [], kwds: {}}",
]


@pytest.mark.parametrize("text", YAML_ATTACKS)
def test_a_program_in_a_recipe(text: str, scene: Path):
    (scene / "recipe.yaml").write_text(text)
    with pytest.raises((SystemExit, yaml.YAMLError)) as caught:
        command_line.parse(PretrainConfig, prog="p", description="", argv=["--config", "recipe.yaml"])
    assert getattr(caught.value, "code", 2) == 2
    assert not Path("owned").exists()


@pytest.mark.parametrize("text", YAML_ATTACKS)
def test_a_program_in_a_suite(text: str, scene: Path):
    (scene / "suite.yaml").write_text(f"- {{task: knn, config: {{{text.replace('{}', '[]')}}}}}")
    assert_refused(ValueError, r"suite\.yaml", lambda: load_suite("suite.yaml"))


def test_entities_that_grow_without_end(scene: Path):
    entities = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10 if i else "x"}">' for i in range(12))
    bomb = f"<!DOCTYPE a [{entities}]><annotation><object>&a11;</object></annotation>"
    stranger = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>'
    (scene / "JPEGImages").mkdir()
    (scene / "Annotations").mkdir()
    (scene / "ImageSets" / "Main").mkdir(parents=True)
    (scene / "ImageSets" / "Main" / "trainval.txt").write_text("a\n")
    Image.new("RGB", (8, 8)).save(scene / "JPEGImages" / "a.jpg")
    for text in (bomb, stranger):
        (scene / "Annotations" / "a.xml").write_text(text)
        assert_refused(DataError, r"a\.xml: has a document type declaration", lambda: load_voc_boxes(scene))


# --- Images, paths, pages ---


def test_a_decompression_bomb_is_not_unpacked(scene: Path):
    """20,000 x 20,000 pixels of one color: a small file of 1.2 GB."""
    Image.new("1", (20_000, 20_000)).save(scene / "bomb.png")
    assert (scene / "bomb.png").stat().st_size < 1_000_000
    assert_refused(DataError, r"bomb\.png: cannot be read whole", lambda: read_rgb("bomb.png"))


ATTACK = "<img src=x onerror=alert(1)>\"'</script><script>alert(2)</script>"


def test_a_page_shows_names_and_runs_none(scene: Path):
    report = dataclasses.replace(
        Report(task=ATTACK, status="failed", error=ATTACK),
        note=ATTACK,
        config={ATTACK: ATTACK},
        checkpoint={"spec": ATTACK, "sha256": ATTACK, "name": ATTACK},
        data={"name": ATTACK, "root": ATTACK},
        environment={"command": ATTACK},
    )
    page = render_page([Entry(ATTACK, ATTACK, report, scene)], title=ATTACK)
    assert "<img src=x" not in page
    assert "<script>alert" not in page
    assert "&lt;img src=x" in page


def test_a_report_cannot_show_files_of_other_folders(scene: Path):
    (scene / "secret.csv").write_text("sample,top-1\na,1\n")
    (scene / "run").mkdir()
    report = Report(task="knn", status="ok", samples="../secret.csv")
    (scene / "run" / "report.json").write_text(report.to_json())
    with pytest.raises(ValueError, match=r"names '\.\./secret\.csv', expected a file in its own folder"):
        read_samples(Entry("knn", "a", report, scene / "run"))


# --- Archives ---


def test_nothing_of_ours_opens_archives_or_evaluates_text():
    """What is not there cannot be led astray: data sets are unpacked by their owner."""
    import ast

    root = Path(__file__).parents[2]
    banned_modules = {"zipfile", "tarfile", "marshal", "shelve", "dill", "joblib", "cloudpickle"}
    banned_calls = {"eval", "exec", "compile", "os.system", "os.popen", "shutil.unpack_archive", "yaml.load"}
    for path in (file for room in ("data", "dino_dense", "tasks") for file in (root / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
                banned = {name.split(".")[0] for name in names} & banned_modules
                # One reads the entries of torch's own container, and unpacks none to disk; the other only writes.
                if path.name in ("unpickle.py", "vos.py"):
                    banned -= {"zipfile"}
                if path.name == "shards.py":  # reads the headers of tar shards, and unpacks none to disk
                    banned -= {"tarfile"}
                assert not banned, path
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in banned_calls, f"{path}:{node.lineno}"
                if path.name == "shards.py":
                    assert not ast.unparse(node.func).endswith((".extract", ".extractall")), f"{path}:{node.lineno}"
                if ast.unparse(node.func) == "zipfile.ZipFile" and path.name == "vos.py":
                    assert ast.unparse(node.args[1]) == "'w'", f"{path}:{node.lineno}"
                allowing = [word for word in node.keywords if word.arg == "allow_pickle"]
                assert all(ast.unparse(word.value) == "False" for word in allowing), f"{path}:{node.lineno}"
