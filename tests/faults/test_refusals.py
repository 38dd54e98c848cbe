"""Every malformed input, over all tasks: one paragraph, exit status 2, no traceback, nothing that looks finished."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from dino_dense.backbone.checkpoints import save_backbone
from dino_dense.backbone.dino_vit import DinoViT, describe
from dino_dense.checkpoint import write_tensors
from dino_dense.config import command_line
from tasks import main
from tests.faults import broken
from tests.faults.broken import IMAGE_FAULTS, SETS, Break, ground_truth, text, values

RANDOM = "random:vit_micro_patch8_64"
PROJECT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Case:
    """One file of a whole set broken, or one option wrong; and what the message must say."""

    task: str
    set: str
    file: str
    fault: Break | None
    says: str
    options: tuple[str, ...] = ()
    ckpt: str = RANDOM
    what: str = ""

    @property
    def id(self) -> str:
        name = self.what or getattr(self.fault, "__name__", "")
        return f"{self.task}-{self.file or 'options'}-{name}-{'-'.join(self.options)}"


SMALL = ("--resize", "64", "--crop", "64")
LINEAR = ("--features", "cached", "--epochs", "2", *SMALL)
SEGPROBE = ("--crop", "64", "--steps", "2", "--batch-size", "2", "--augment", "false")
FINETUNE = ("--crop", "32", "--epochs", "1", "--batch-size", "4", "--warmup-epochs", "0", "--workers", "0")
DAVIS = ("--short-side", "64")

# Each task with the set it reads and an image of it: every one must survive every way to break an image.
IMAGES = [
    ("knn", "classes", "val/dog/2.jpg", SMALL),
    ("linear", "classes", "train/cat/1.jpg", LINEAR),
    ("finetune", "classes", "train/dog/0.jpg", FINETUNE),
    ("finetune", "classes", "val/dog/0.jpg", FINETUNE),
    ("retrieval", "classes", "val/cat/3.jpg", SMALL),
    ("retrieval", "revisited", "jpg/b.jpg", ()),
    ("copydetect", "copydays", "original/200000.jpg", ("--image-size", "64")),
    ("copydetect", "photographs", "2.jpg", ("--image-size", "64", "--attacks", "crop10")),
    ("saliency", "pairs", "images/1.jpg", ()),
    ("discovery", "pairs", "images/0.jpg", ()),
    ("discovery", "voc", "JPEGImages/2.jpg", ()),
    ("segprobe", "voc", "JPEGImages/1.jpg", SEGPROBE),
    ("davis", "davis", "JPEGImages/480p/two/00002.jpg", DAVIS),
]
CASES = [
    Case(task, kind, file, fault, Path(file).stem, options, what=name)
    for task, kind, file, options in IMAGES
    for name, fault in IMAGE_FAULTS.items()
]

FIRST, LATER = "Annotations/480p/one/00000.png", "Annotations/480p/one/00002.png"
LIST = "ImageSets/2017/val.txt"
CASES += [
    Case("davis", "davis", file, fault, says, DAVIS, what=what)
    for file, fault, says, what in [
        ("ImageSets", broken.remove, "expected the folders ImageSets", "no lists"),
        ("JPEGImages/480p/two", broken.remove, "two", "no frames"),
        ("Annotations/480p/two", broken.remove, "two", "no masks"),
        ("JPEGImages/480p/one/00001.jpg", broken.remove, "00001", "a missing frame"),
        ("Annotations/480p/one/00000.png", broken.remove, "00000", "no first mask"),
        ("JPEGImages/480p/one/00001.jpg", broken.small_picture, "one size", "a smaller frame"),
        (LIST, text(""), "val.txt", "an empty list"),
        (LIST, text("one\nthree\n"), "three", "a sequence that is not there"),
        (LIST, text("../one\n"), "val.txt", "a path in the list"),
        (LIST, text(b"\xff\xfe\x00one\n"), "val.txt", "a list that is no text"),
        (FIRST, broken.small, "one size", "a smaller mask"),
        (FIRST, values(0), "no object", "an empty mask"),
        (FIRST, values(0, 1, 3), "have gaps", "ids with gaps"),
        (FIRST, values(0, 2), "have gaps", "ids from 2"),
        (FIRST, values(0, 255), "255", "foreground 255"),
        (FIRST, values(0, 1, 255), "void", "void"),
        (FIRST, values(*range(256)), "255", "every value"),
        (FIRST, broken.rgb_mask, "mode RGB", "colors"),
        (FIRST, broken.float_mask, "(F)", "floats"),
        (FIRST, broken.wide, "(I;16)", "more than 255 ids"),
        (FIRST, broken.cut, "unreadable mask", "truncated"),
        (FIRST, text(b""), "unreadable mask", "zero bytes"),
        (FIRST, broken.folder_instead, "00000.png", "a folder"),
        (LATER, broken.cut, "unreadable mask", "truncated later"),
        (LATER, broken.rgb_mask, "mode RGB", "colors later"),
        (LATER, broken.small, "one size", "smaller later"),
    ]
]
SCORE = ("--score", "{data}/found")
CASES += [
    Case("davis", "davis", file, fault, says, SCORE, what=f"score {what}")
    for file, fault, says, what in [
        ("found/one/00001.png", broken.remove, "00001.png: no such file", "a missing frame"),
        ("found/one/00001.png", broken.small, "one size", "another size"),
        ("found/one/00001.png", values(0, 1, 2, 3), "predicted id 3", "an id too many"),
        ("found/one/00001.png", values(0, 255), "predicted id 255", "255"),
        ("found/one/00001.png", broken.rgb_mask, "mode RGB", "colors"),
        ("found/one/00001.png", broken.cut, "unreadable mask", "truncated"),
        ("found", broken.remove, "no such folder of masks", "no folder"),
    ]
]
CASES += [
    Case(task, "classes", file, fault, says, options, what=what)
    for task, options in (("knn", SMALL), ("linear", LINEAR), ("finetune", FINETUNE))
    for file, fault, says, what in [
        ("train", broken.remove, "expected train/ and val or", "no train"),
        ("val", broken.remove, "expected train/ and val or", "no val"),
        ("val/dog", broken.rename("dogs"), "Did you mean dog?", "unequal classes"),
        ("train/dog", broken.remove, "only one class", "one class"),
        ("val/cat", lambda path: [file.unlink() for file in path.iterdir()], "cat: no images", "an empty class"),
    ]
]
CASES += [
    Case("saliency", "pairs", file, fault, says, what=what)
    for file, fault, says, what in [
        ("masks", broken.remove, "masks", "no masks"),
        ("masks/0.png", broken.remove, "have no mask", "a missing mask"),
        ("images/0.jpg", broken.remove, "no image", "a missing image"),
        ("masks/1.png", broken.small, "one size", "another size"),
        ("masks/1.png", broken.cut, "1.png", "truncated mask"),
        ("masks/1.png", text(b""), "1.png", "zero bytes mask"),
    ]
]
XML = "Annotations/1.xml"
CASES += [
    Case("discovery", "voc", file, fault, says, what=what)
    for file, fault, says, what in [
        (XML, broken.remove, "1.xml: no such file", "no annotation"),
        (XML, text(b""), "1.xml: not a readable XML", "an empty annotation"),
        (XML, text(broken.VOC_ENTRY[:50]), "1.xml: not a readable XML", "a cut annotation"),
        (XML, text(broken.VOC_ENTRY.replace("40", "x")), "expected four numbers", "corners that are no numbers"),
        (XML, text(broken.VOC_ENTRY.replace("40", "2")), "1.xml", "a box turned over"),
        (XML, text(broken.VOC_ENTRY.replace("40", "nan")), "1.xml", "NaN"),
        ("ImageSets/Main/trainval.txt", text(""), "trainval.txt", "an empty list"),
        ("ImageSets/Main/trainval.txt", text("../../etc/passwd\n"), "trainval.txt", "a path"),
        ("ImageSets/Main/trainval.txt", text("9\n"), "9.jpg", "an image that is not there"),
    ]
]
CLASS_MASK = "SegmentationClass/1.png"
CASES += [
    Case("segprobe", "voc", file, fault, says, SEGPROBE, what=what)
    for file, fault, says, what in [
        (CLASS_MASK, broken.remove, "1.png: no such file", "no mask"),
        (CLASS_MASK, broken.small, "1.png", "another size"),
        (CLASS_MASK, broken.cut, "1.png", "truncated"),
        (CLASS_MASK, broken.rgb_mask, "1.png", "colors"),
        (CLASS_MASK, broken.wide, "1.png", "16 bits"),
        ("ImageSets/Segmentation/train.txt", broken.remove, "train.txt", "no list"),
        ("ImageSets/Segmentation/val.txt", text(b"\xff\xfe1\n"), "val.txt", "a list that is no text"),
    ]
]
CASES += [
    Case("copydetect", "copydays", file, fault, says, ("--image-size", "64"), what=what)
    for file, fault, says, what in [
        ("strong/200001.jpg", broken.rename("999901.jpg"), "its original is missing", "a copy of nothing"),
        ("strong", broken.remove, "no copies", "no copies"),
        ("original", lambda path: [file.unlink() for file in path.iterdir()], "no images", "no photographs"),
    ]
]
GROUND_TRUTH = "gnd_roxford5k.pkl"
CASES += [
    Case("retrieval", "revisited", GROUND_TRUTH, text(content), says, what=what)
    for content, says, what in [
        (b"", "refused", "zero bytes"),
        (ground_truth()[:40], "refused", "truncated"),
        (ground_truth(imlist=[]), "imlist", "no images"),
        (ground_truth(imlist=["a", "b", "gone"]), "1 of 5 images are missing", "a missing image"),
        (ground_truth(imlist=["a", "b", "/etc/passwd"]), "expected the name of an image", "a path"),
        (ground_truth(qimlist=["q0"]), "for each of 1 queries", "a query too few"),
        (ground_truth(easy=[3]), "expected 0 to 2", "an index beyond the set"),
        (ground_truth(easy=[-1]), "expected 0 to 2", "a negative index"),
        (ground_truth(hard="none"), "expected a list of indices", "indices that are text"),
        (ground_truth(hard=[0.5]), "expected a list of indices", "half an index"),
        (ground_truth(bbx=[0.0, 0.0, float("nan"), 1.0]), "expected four numbers", "a box of NaN"),
        (ground_truth(bbx=[5.0, 5.0, 1.0, 1.0]), "left < right", "a box turned over"),
        (ground_truth(gnd=7), "expected a gnd entry", "no answers"),
    ]
]
CHECKPOINTS = {
    "absent.pth": "no such checkpoint",
    "empty.pth": "empty.pth",
    "empty.safetensors": "not a whole safetensors file",
    "text.pth": "text.pth",
    "cut.safetensors": "not a whole safetensors file",
    "other.safetensors": "do not fit",
    "nan.safetensors": "finite",
    "reshaped.safetensors": "reshaped",
    "patch.safetensors": "do not fit",
    "folder": "a run folder holds",
    "not-a-name:x": "no such checkpoint",
    "random:vit_smal_patch8_64": "vit_small",
    "timm:vit_that_is_not_there": "vit_that_is_not_there",
}
CASES += [
    Case(task, kind, "", None, says, options, name if ":" in name else f"{{ckpts}}/{name}", f"checkpoint {name}")
    for task, kind, options in (("knn", "classes", SMALL), ("davis", "davis", DAVIS))
    for name, says in CHECKPOINTS.items()
]
CASES += [
    Case(task, kind, "", None, says, options, what="option")
    for task, kind, options, says in [
        ("knn", "classes", ("--resize", "60", "--crop", "60"), "patch size 8"),
        ("knn", "classes", ("--crop", "99999"), "crop is 99999: expected 1 to resize, 256"),
        ("knn", "classes", ("--k", "0"), "must be positive"),
        ("knn", "classes", ("--k", "x"), "k"),
        ("knn", "classes", ("--reszie", "64"), "Did you mean --resize?"),
        ("knn", "classes", ("--device", "tpu"), "expected auto, cpu, cuda"),
        ("knn", "classes", ("--data", "/no/such/place"), "/no/such/place"),
        ("knn", "classes", ("--out", "{data}/val/dog/0.jpg", *SMALL), "results need a folder"),
        ("knn", "classes", ("--config", "/no/such/recipe.yaml"), "recipe.yaml"),
        ("finetune", "classes", ("--batch-size", "3", "--accumulate", "2"), "expected a multiple of 4"),
        ("linear", "classes", ("--select", "heldout", *LINEAR), "none can be held out"),
        ("davis", "davis", ("--max-frames", "1"), "expected 3 or more"),
        ("davis", "davis", ("--sequences", "won"), "one"),
        ("davis", "davis", ("--split", "vall"), "vall"),
        ("davis", "davis", ("--resolution", "4K"), "4K"),
        ("segprobe", "voc", ("--crop", "60"), "patch size 8"),
        ("copydetect", "photographs", ("--attacks", "crop"), "crop"),
        ("discovery", "pairs", ("--max-images", "0"), "expected 1 or more"),
        ("saliency", "pairs", ("--sequences", "one"), "no DAVIS tree"),
    ]
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every set, and checkpoints of every kind."""
    root = tmp_path_factory.mktemp("whole")
    for name, make in SETS.items():
        make(root / name)
    write_checkpoints(root / "checkpoints")
    return root


def write_checkpoints(folder: Path) -> None:
    (folder / "folder").mkdir(parents=True)
    torch.manual_seed(0)
    from tests.conftest import TINY_SHAPE

    body = DinoViT(TINY_SHAPE)
    weights, about = body.state_dict(), {"architecture": describe(body)}
    for name, content in (("empty.pth", b""), ("empty.safetensors", b""), ("text.pth", b"no checkpoint\n")):
        (folder / name).write_bytes(content)
    save_backbone(folder / "cut.safetensors", body)
    broken.cut(folder / "cut.safetensors")
    write_tensors(folder / "other.safetensors", {"cls_token": weights["cls_token"]}, about)
    write_tensors(folder / "nan.safetensors", {k: v * float("nan") for k, v in weights.items()}, about)
    write_tensors(folder / "reshaped.safetensors", weights | {"norm.weight": torch.ones(64)}, about)
    wrong = {"architecture": describe(body) | {"patch_size": 16}}
    write_tensors(folder / "patch.safetensors", weights, wrong)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No debugging, no network, one thread."""
    monkeypatch.setenv(command_line.DEBUG_VARIABLE, "")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def refuse(task: str, argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says on its way out with 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        command_line.run(lambda: main(task, argv))
    said = capsys.readouterr().err
    assert caught.value.code == 2, said
    return said


def assert_one_paragraph(said: str) -> None:
    message = said[said.index("error: ") :]
    assert "Traceback" not in message
    assert "\n\n" not in message
    assert len(message) < 2000


def assert_nothing_looks_finished(out: Path) -> None:
    for name in ("report.json", "results.csv", "report.md", "samples.csv"):
        assert not list(out.rglob(name)), name
    assert not [path for path in out.rglob(".*") if path.is_file()], "a half file is left"


def test_there_are_a_hundred():
    assert len(CASES) >= 100
    assert len({case.id for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_malformed_input_is_refused(case: Case, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = tmp_path / "data"
    shutil.copytree(whole / case.set, data)
    if case.fault is not None:
        case.fault(data / case.file)
    options = [word.format(data=data) for word in case.options]
    ckpt = case.ckpt.format(ckpts=whole / "checkpoints")
    common = ["--ckpt", ckpt, "--data", str(data), "--out", str(tmp_path / "out"), "--device", "cpu"]
    said = refuse(case.task, [*common, *options], capsys)
    assert case.says in said[said.index("error: ") :]
    assert_one_paragraph(said)
    assert_nothing_looks_finished(tmp_path / "out")


@pytest.mark.parametrize(("task", "kind", "options"), [("knn", "classes", SMALL), ("davis", "davis", DAVIS)])
@pytest.mark.parametrize("name", ["with spaces", "Übung été 日本", "a'b\"c;d $(touch owned) {x}", "-dash", "%s"])
def test_any_name_of_a_folder_is_fine(task: str, kind: str, options: tuple[str, ...], name: str, whole: Path, tmp_path):
    data = tmp_path / name
    shutil.copytree(whole / kind, data)
    argv = ["--ckpt", RANDOM, f"--data={data}", f"--out={tmp_path / 'out' / name}", "--device", "cpu", *options]
    assert main(task, argv) == 0
    assert (tmp_path / "out" / name / "report.json").is_file()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names themselves")
@pytest.mark.parametrize(
    ("task", "kind", "file", "options"),
    [("knn", "classes", "train/cat/1.jpg", SMALL), ("saliency", "pairs", "images/1.jpg", ())],
)
def test_a_name_that_is_no_text_is_read_or_named(
    task: str, kind: str, file: str, options: tuple[str, ...], whole: Path, tmp_path: Path, capsys
):
    """A file of another encoding, as old archives unpack to: one plain message, or a result."""
    data = tmp_path / "data"
    shutil.copytree(whole / kind, data)
    broken.rename(b"\xe9t\xe9.jpg")(data / file)
    argv = ["--ckpt", RANDOM, "--data", str(data), "--out", str(tmp_path / "out"), "--device", "cpu", *options]
    said = refuse(task, argv, capsys)
    assert_one_paragraph(said)
    assert_nothing_looks_finished(tmp_path / "out")


def test_a_real_process_says_it_too(whole: Path, tmp_path: Path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-m", "tasks.knn", "--ckpt", str(whole / "checkpoints" / "text.pth")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
