"""Revisited Oxford and Paris: the ground truth is read as data, never run, and must agree with itself."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data import DataError
from data.revisited import is_revisited, load_revisited

DATABASE, QUERIES = 6, 2


def ground_truth() -> dict[str, Any]:
    """As published: lists of names, arrays or lists of indices."""
    return {
        "imlist": [f"all_souls_{index}" for index in range(DATABASE)],
        "qimlist": [f"query_{index}" for index in range(QUERIES)],
        "gnd": [
            {"easy": np.array([0, 2]), "hard": [1], "junk": np.array([5]), "bbx": [1.5, 2.0, 9.0, 8.5]},
            {"easy": [], "hard": np.array([3, 4], np.int32), "junk": [], "bbx": np.array([0.0, 0.0, 4.0, 4.0])},
        ],
    }


def write(root: Path, record: Any, protocol: int = 2) -> Path:
    """A folder with this ground truth, and its images."""
    (root / "jpg").mkdir(parents=True, exist_ok=True)
    for name in (
        f"{kind}_{index}" for kind, count in (("all_souls", DATABASE), ("query", QUERIES)) for index in range(count)
    ):
        Image.new("RGB", (12, 10)).save(root / "jpg" / f"{name}.jpg")
    (root / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(record, protocol=protocol))
    return root


def test_images_may_have_other_endings(tmp_path: Path):
    root = write(tmp_path, ground_truth())
    for path in sorted((root / "jpg").iterdir())[::2]:
        Image.new("RGB", (12, 10)).save(path.with_suffix(".PNG"))
        path.unlink()
    oxford = load_revisited(root)
    assert [path.stem for path in oxford.database] == ground_truth()["imlist"]
    assert {path.suffix for path in oxford.database} == {".jpg", ".PNG"}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol_gives_the_same(protocol: int, tmp_path: Path):
    found = load_revisited(write(tmp_path, ground_truth(), protocol))
    assert found.name == "roxford5k"
    assert [path.name for path in found.queries] == ["query_0.jpg", "query_1.jpg"]
    assert [path.stem for path in found.database] == ground_truth()["imlist"]
    assert [{label: indices.tolist() for label, indices in labels.items()} for labels in found.labels] == [
        {"easy": [0, 2], "hard": [1], "junk": [5]},
        {"easy": [], "hard": [3, 4], "junk": []},
    ]
    assert all(indices.dtype == np.int64 for labels in found.labels for indices in labels.values())
    assert found.boxes == [(1.5, 2.0, 9.0, 8.5), (0.0, 0.0, 4.0, 4.0)]
    assert not found.is_complete


def test_files_of_python_2_can_be_read(tmp_path: Path):
    """There a text is bytes in latin1 (opcode U), and so is the content of an array."""
    text = b"U\x05query"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(K\x01t"
        b"cnumpy\ndtype\n(U\x02i8K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x08\x03" + bytes(7) + b"tb"
    )
    box = b"(lK\x00aK\x00aK\x04aK\x04a"
    entry = b"(dU\x04easy" + array + b"sU\x04hard(lsU\x04junk(lsU\x03bbx" + box + b"s"
    names = b"(l" + b"".join(b"U\x01%da" % index for index in range(DATABASE))
    content = b"\x80\x02(dU\x06imlist" + names + b"sU\x07qimlist(l" + text + b"asU\x03gnd(l" + entry + b"as."
    write(tmp_path, {})
    for name in ("query", *map(str, range(DATABASE))):
        Image.new("RGB", (4, 4)).save(tmp_path / "jpg" / f"{name}.jpg")
    (tmp_path / "gnd_roxford5k.pkl").write_bytes(content)
    found = load_revisited(tmp_path)
    assert found.labels[0]["easy"].tolist() == [3]
    assert found.boxes == [(0, 0, 4, 4)]


def test_numbers_of_numpy_are_numbers(tmp_path: Path):
    record = ground_truth()
    record["gnd"][0] |= {"easy": [np.int64(0), np.int32(2)], "bbx": [np.float32(1.5), 2, np.float64(9), 8.5]}
    found = load_revisited(write(tmp_path, record))
    assert found.labels[0]["easy"].tolist() == [0, 2]
    assert found.boxes[0] == (1.5, 2.0, 9.0, 8.5)


def test_arrays_keep_their_byte_order_and_layout(tmp_path: Path):
    record = ground_truth()
    record["gnd"][0]["easy"] = np.array([0, 2], ">i4")
    record["gnd"][0]["bbx"] = np.asfortranarray(np.array([[1.0, 2.0, 9.0, 8.0]]))[0]
    found = load_revisited(write(tmp_path, record))
    assert found.labels[0]["easy"].tolist() == [0, 2]
    assert found.boxes[0] == (1, 2, 9, 8)


class Attack:
    """What `pickle.load` would run."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_planted_program_does_not_run(protocol: int, tmp_path: Path):
    import os

    planted = tmp_path / "planted"
    record = ground_truth() | {"extra": Attack(os.system, f"touch {planted}")}
    root = write(tmp_path / "set", record, protocol)
    with pytest.raises(DataError, match=r"gnd_roxford5k\.pkl: refused, it asks for (posix|nt)\.system"):
        load_revisited(root)
    assert not planted.exists()
    pickle.loads((root / "gnd_roxford5k.pkl").read_bytes())
    assert planted.exists(), "the attack is real: pickle itself runs it"


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(Attack(eval, "1"), id="a builtin"),
        pytest.param(Attack(getattr, "text", "upper"), id="an attribute"),
        pytest.param(Attack(np.load, "file"), id="another function of numpy"),
        pytest.param(np.array([None, {}], dtype=object), id="an array of objects"),
        pytest.param(Path(), id="an instance"),
        pytest.param(np.random.default_rng, id="a function named"),
    ],
)
def test_nothing_but_plain_data_is_let_through(attack: object, tmp_path: Path):
    record = ground_truth() | {"extra": attack}
    with pytest.raises(DataError, match=r"refused, it (asks for|holds)"):
        load_revisited(write(tmp_path, record))


def changed(**entry: Any) -> dict[str, Any]:
    record = ground_truth()
    record["gnd"][1] |= entry
    return record


@pytest.mark.parametrize(
    ("record", "message"),
    [
        pytest.param([1, 2], "expected a dict with imlist", id="no dict"),
        pytest.param(ground_truth() | {"imlist": []}, "'imlist', found", id="no names"),
        pytest.param(ground_truth() | {"qimlist": [1, 2]}, "'qimlist', found", id="names that are numbers"),
        pytest.param(ground_truth() | {"imlist": ["../../secret"]}, "expected the name of an image in jpg", id="up"),
        pytest.param(ground_truth() | {"imlist": ["/etc/secret"]}, "expected the name of an image", id="root"),
        pytest.param(ground_truth() | {"gnd": ground_truth()["gnd"][:1]}, "each of 2 queries, found 1", id="too few"),
        pytest.param(ground_truth() | {"gnd": None}, "each of 2 queries, found NoneType", id="no answers"),
        pytest.param(changed(easy=[0, 6]), r"gnd\[1\]: easy goes from 0 to 6, expected 0 to 5", id="beyond"),
        pytest.param(changed(junk=[-1]), r"junk goes from -1", id="negative"),
        pytest.param(changed(hard=[0.5]), r"expected a list of indices under 'hard'", id="fractions"),
        pytest.param(changed(hard=np.zeros((2, 2), int)), r"list of indices under 'hard'", id="a matrix"),
        pytest.param(changed(hard=None), r"list of indices under 'hard', found NoneType", id="nothing"),
        pytest.param(changed(bbx=[1, 2, 3]), "four numbers under 'bbx'", id="three corners"),
        pytest.param(changed(bbx=[0, 0, float("nan"), 4]), "four numbers under 'bbx'", id="not a number"),
        pytest.param(changed(bbx=[5, 0, 4, 4]), "left < right", id="inside out"),
    ],
)
def test_contradictions_are_named(record: Any, message: str, tmp_path: Path):
    with pytest.raises(DataError, match=message):
        load_revisited(write(tmp_path, record))


def test_damaged_and_missing_files(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_revisited(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"expected one of gnd_roxford5k\.pkl .* found none"):
        load_revisited(tmp_path)
    assert not is_revisited(tmp_path)
    root = write(tmp_path, ground_truth())
    assert is_revisited(root)
    for name in ("all_souls_1", "all_souls_3", "query_1", "all_souls_4"):
        (root / "jpg" / f"{name}.jpg").unlink()
    with pytest.raises(DataError, match=r"4 of 8 images are missing \(jpg/all_souls_1\.jpg, .*, \.\.\.\)"):
        load_revisited(root)
    file = root / "gnd_roxford5k.pkl"
    whole = file.read_bytes()
    for content in (b"", b"not a pickle", whole[: len(whole) // 2], whole[:-1]):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"gnd_roxford5k\.pkl: refused"):
            load_revisited(root)
    (root / "gnd_rparis6k.pkl").write_bytes(whole)
    with pytest.raises(
        DataError, match=r"found gnd_roxford5k\.pkl, gnd_rparis6k\.pkl|found gnd_rparis6k\.pkl, gnd_rox"
    ):
        load_revisited(root)
