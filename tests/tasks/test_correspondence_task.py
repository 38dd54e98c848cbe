"""Semantic correspondence: the references' numbers through trees and command, rules, own pairs, refusals."""

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor

from data import DataError
from dino_dense import Report
from dino_dense.matching.points import at_pixels, best_cells, best_pixels, features_at_pixels, pixel_features
from dino_dense.matching.protocol import ALPHAS, MatchProtocol
from dino_dense.matching.rules import as_square
from tasks import Outcome, RunOptions, Session, get, main, measured, run_one
from tasks.correspondence import CorrespondenceConfig, open_pairs
from tests.data.test_keypoints import spair
from tests.device import chosen_name
from tests.oracles import NoiseReader, oracle_backbone, stub_backbone
from tests.reference_files import reference

RANDOM = "random:vit_micro_patch8_64"
SHADE = 20  # gray levels between one image of a tree and the next


class StoredReader(NoiseReader):
    """Features of a file, for images that are told by their shade."""

    def __init__(self, maps: np.ndarray, patch: int) -> None:
        self.maps, self.patch_size, self.embed_dim = torch.from_numpy(maps), patch, maps.shape[1]

    def features(self, images: Tensor) -> dict[str, Tensor]:
        middle = images[:, 0, images.shape[2] // 2, images.shape[3] // 2]
        rows = (255 * middle / SHADE).round().long() - 1
        return {"patches": self.maps[rows]}


def reference_tree(root: Path, arrays) -> Path:
    """The arrays' annotations as the tree of SPair-71k that they describe, with images of one shade each."""
    for row, name in enumerate(arrays["image_names"].tolist()):
        note = json.loads(str(arrays[f"image.{name}.json"]))
        picture = root / "JPEGImages" / name
        picture.parent.mkdir(parents=True, exist_ok=True)
        shade = np.full((note["image_height"], note["image_width"], 3), SHADE * (row + 1), np.uint8)
        Image.fromarray(shade).save(picture, format="PNG")
        written = root / "ImageAnnotation" / name.replace(".jpg", ".json")
        written.parent.mkdir(parents=True, exist_ok=True)
        written.write_text(json.dumps(note))
    folder = root / "PairAnnotation" / "test"
    folder.mkdir(parents=True)
    for pair in range(int(arrays["num_pairs"])):
        text = str(arrays[f"pair{pair}.json"])
        (folder / f"{json.loads(text)['filename']}.json").write_text(text)
    return root


def run_stored(arrays, config: CorrespondenceConfig, kind: str, patch: int, out: Path) -> Outcome:
    backbone = stub_backbone(kind, StoredReader(arrays[f"{kind}_features"], patch))
    task = get("correspondence")
    return measured(task, backbone, task.open(config), config, Session(out=out, device=torch.device("cpu")))


@pytest.mark.parametrize(
    ("kind", "key", "soft"),
    [
        ("probe3d", "probe3d", False),
        ("dift", "dift", False),
        ("geoaware", "geoaware", False),
        ("geoaware", "geoaware_soft", True),
    ],
)
def test_the_tree_gives_the_reference_numbers(kind: str, key: str, soft: bool, tmp_path: Path):
    arrays = reference("correspondence")
    side, cells = ("anno_size", "num_patches") if kind == "geoaware" else ("size", "grid")
    tree = reference_tree(tmp_path / "SPair", arrays)
    config = CorrespondenceConfig(
        data=str(tree),
        rules=kind,
        image_size=int(arrays[side]),
        soft=soft,
        max_memory=1,  # type: ignore[arg-type]
    )
    outcome = run_stored(arrays, config, kind, int(arrays[side]) // int(arrays[cells]), tmp_path)
    table = outcome.tables["per_category"].set_index("category")
    scores = {score.metric: score.value for score in outcome.scores}
    for alpha in arrays["alphas"].tolist():
        for name in ("all", *arrays["categories"].tolist()):
            prefix = "all" if name == "all" else f"class.{name}"
            for column in ("per_image", "per_point"):
                stored = f"{prefix}.{key}.{column}@{alpha}"
                if stored in arrays.files:
                    assert table.loc[name, f"{column}@{alpha}"] == pytest.approx(float(arrays[stored]), abs=1e-4), (
                        stored
                    )
            if kind == "probe3d" and name != "all":
                expected = float(arrays[f"{prefix}.probe3d.recall@{alpha}"])
                assert table.loc[name, f"per_point@{alpha}"] == pytest.approx(expected, abs=1e-4)
    if kind == "probe3d":
        assert scores["class-PCK@0.1"] == pytest.approx(float(arrays["all.probe3d.recall@0.1"]), abs=1e-4)
        check_levels(outcome.tables["by_variation"], arrays)
    if kind == "dift":
        assert scores["PCK@0.1"] == pytest.approx(float(arrays["all.dift.per_image@0.1"]), abs=1e-6)
        assert scores["point-PCK@0.1"] == pytest.approx(float(arrays["all.dift.per_point@0.1"]), abs=1e-6)


def check_levels(table: pd.DataFrame, arrays) -> None:
    """Recall of each class by how much the view differs; -1 stands for no pair."""
    views = table[table["variation"] == "viewpoint"].set_index(["category", "level"])["per_point@0.1"]
    for name in arrays["categories"].tolist():
        for level, word in enumerate(("easy", "medium", "hard")):
            expected = float(arrays[f"class.{name}.probe3d.recall_view{level}@0.1"])
            assert views.get((name, word), -1) == pytest.approx(expected, abs=1e-4)


# --- Rules ---


def test_pixels_are_matched_as_if_all_features_were_upsampled():
    generator = torch.Generator().manual_seed(0)
    source, target = torch.randn(2, 70, 6, 7, generator=generator)
    whole = torch.tensor([[0, 0], [33, 20], [12, 41], [39, 44]])
    queries = features_at_pixels(source, whole, (45, 40))
    torch.testing.assert_close(queries, pixel_features(at_pixels(source, (45, 40)), whole))
    expected = best_cells(queries, at_pixels(target, (31, 52)))
    assert torch.equal(best_pixels(queries, target, (31, 52), channels=32), expected)


@pytest.mark.parametrize(("rules", "corner"), [("probe3d", 255), ("geoaware", 0)])
def test_an_image_keeps_its_shape_in_the_square(rules: str, corner: int):
    square = as_square(np.full((20, 60, 3), 100, np.uint8), 120, rules)  # type: ignore[arg-type]
    rows = np.flatnonzero(square[:, 60, 0] == 100)
    assert square[-1, -1].tolist() == [corner] * 3
    assert abs(len(rows) - 40) <= 4, "a third of the height; bicubic filters blur the edge"
    assert rows[0] == (0 if rules == "probe3d" else 40)
    assert as_square(np.full((20, 60, 3), 100, np.uint8), 120, "dift").mean() == 100


@pytest.mark.parametrize("rules", ["probe3d", "dift", "geoaware"])
def test_all_rules_find_true_features_and_a_small_memory_changes_nothing(rules: str, tmp_path: Path):
    task = get("correspondence")
    outcomes = []
    for name, memory in (("large", 1024), ("small", 1)):
        config = CorrespondenceConfig(rules=rules, image_size=192, max_pairs=3, max_memory=memory)  # type: ignore[arg-type]
        session = Session(out=tmp_path / name, device=torch.device("cpu"))
        outcomes.append(measured(task, oracle_backbone(), task.open(config), config, session))
    values = {score.metric: score.value for score in outcomes[0].scores}
    assert values["PCK@0.15"] > 90, "matches are whole cells"
    pd.testing.assert_frame_equal(outcomes[0].tables["matches"], outcomes[1].tables["matches"])
    assert len(outcomes[0].pictures) == 6


def test_the_command_writes_tables_and_pictures(tmp_path: Path):
    task = get("correspondence")
    options = RunOptions(ckpt=RANDOM, out=str(tmp_path), device=chosen_name())
    report = run_one(task, options, CorrespondenceConfig(image_size=192, max_pairs=1))
    assert [score.metric for score in report.scores][:2] == ["PCK@0.1", "PCK@0.05"]
    assert report.data["name"].startswith("embedded pairs (not SPair-71k) (part: 10 of 60)")
    for name in ("per_category", "by_variation", "matches", "samples"):
        assert len(pd.read_csv(tmp_path / f"{name}.csv"))
    values = {score.metric: score.value for score in report.scores}
    ordered = [values[f"PCK@{alpha}"] for alpha in ALPHAS]
    assert ordered == sorted(ordered)
    assert Report.from_json((tmp_path / "report.json").read_text()) == report


# --- A pair of one's own ---


def own_images(folder: Path) -> list[str]:
    rng = np.random.default_rng(0)
    paths = []
    for name, size in (("a.jpg", (48, 64, 3)), ("b.png", (80, 56, 3))):
        paths.append(str(folder / name))
        cv2.imwrite(paths[-1], rng.integers(0, 255, size, np.uint8))
    return paths


def test_two_images_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--pair", *own_images(tmp_path), "--points", "10,20", "--points=63,47"]
    common = ["--ckpt", RANDOM, "--device", "cpu", "--image-size", "64", "--out", str(tmp_path / "out")]
    assert main("correspondence", [*words, *common]) == 0
    matches = pd.read_csv(tmp_path / "out" / "matches.csv")
    assert matches[["x", "y"]].to_numpy().tolist() == [[10, 20], [63, 47]]
    assert (matches["predicted_x"] < 80).all()
    assert "right@0.1" not in matches
    assert (tmp_path / "out" / "matches" / "own_pair.jpg").is_file()
    assert "Not scored" in capsys.readouterr().out


def test_refusals(tmp_path: Path):
    paths = tuple(own_images(tmp_path))
    with pytest.raises(ValueError, match="pair and points belong together"):
        CorrespondenceConfig(pair=paths)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected x and y of each"):
        CorrespondenceConfig(pair=paths, points=(1.0, 2.0, 3.0))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"point \(64, 3\) is outside the image of 64x48"):
        open_pairs(CorrespondenceConfig(pair=paths, points=(64.0, 3.0)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="soft is an option of the rules geoaware"):
        MatchProtocol(rules="dift", soft=True)
    with pytest.raises(ValueError, match="max_pairs is 0"):
        CorrespondenceConfig(max_pairs=0)


def test_other_points_are_other_data_and_pairs_name_both_images(tmp_path: Path):
    tree = spair(tmp_path / "tree")
    before = open_pairs(CorrespondenceConfig(data=str(tree))).facts.sha256
    (note,) = (tree / "PairAnnotation" / "test").iterdir()
    note.write_text(note.read_text().replace("[5, 6]", "[6, 5]"))
    assert open_pairs(CorrespondenceConfig(data=str(tree))).facts.sha256 != before
    config = CorrespondenceConfig(data=str(tree), image_size=64)
    report = run_one(
        get("correspondence"), RunOptions(ckpt=RANDOM, out=str(tmp_path / "out"), device=chosen_name()), config
    )
    samples = pd.read_csv(tmp_path / "out" / report.samples)
    assert samples[["cluster", "second cluster"]].to_numpy().tolist() == [["cat/one", "cat/two"]]
