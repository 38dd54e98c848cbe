"""J&F of a folder of masks, read from PNG: the official scorer's steps, a full frame at a time, against ours.

The data are a DAVIS-2016 tree (DINO_DENSE_DAVIS) or the embedded videos; the predictions are the true masks, shifted
and eroded. Seconds include all that `python -m tasks.davis --score` does: opening the tree, reading, J and F.

If other scorers are installed, whole processes are compared too, including imports and pictures. Set VOS_BENCHMARK to
the folder of github.com/hkchengrex/vos-benchmark, DAVIS_TOOLKIT to the folder of
github.com/davisvideochallenge/davis2017-evaluation, and SCORERS_PYTHON to a Python with their requirements.
"""

import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from PIL import Image

from benchmarks.bench import Row, in_turn, publish
from data.davis import load_davis
from data.masks import read_ids, write_mask
from data.sample import sample_data
from tasks.scores.jf import score_folder

SHIFT, EROSION = (3, 5), 5  # errors of the predictions, pixels
DAVIS_2016_VAL = 1376  # frames of the 20 sequences
TOOLKIT, FASTEST_TOOL = 26.6, 7.9  # s for those: the official toolkit, one process; the fastest public tool, two
EXACT = 1e-9


def tree() -> tuple[Path, int]:
    """The DAVIS tree to measure on and its year."""
    root = Path(os.environ.get("DINO_DENSE_DAVIS", Path(__file__).parents[2] / "shared/datasets/davis2016"))
    return (root, 2016) if root.is_dir() else (sample_data().davis, 2017)


def make_predictions(root: Path, year: int, folder: Path) -> None:
    kernel = np.ones((EROSION, EROSION), np.uint8)
    for sequence in load_davis(root, year):
        for index, frame in enumerate(sequence.frames):
            moved = np.roll(sequence.read_mask(index), SHIFT, axis=(0, 1))
            write_mask(folder / sequence.name / f"{frame.stem}.png", cv2.erode(moved, kernel).astype(np.uint8))


# --- The official scorer's steps (davis2017/metrics.py, evaluation.py) --------------------------------------


def plain(root: Path, year: int, folder: Path) -> pd.DataFrame:
    rows = []
    for sequence in sorted(path.name for path in folder.iterdir()):
        true = sorted((root / "Annotations" / "480p" / sequence).glob("*.png"))
        num_objects = int(plain_ids(true[0], year).max())
        for path in true[1:-1]:
            gt, pred = plain_ids(path, year), plain_ids(folder / sequence / path.name, year)
            for identity in range(1, num_objects + 1):
                masks = pred == identity, gt == identity
                rows.append((sequence, identity, path.stem, plain_j(*masks), plain_f(*masks)))
    return pd.DataFrame(rows, columns=["sequence", "object", "frame", "J", "F"])


def plain_ids(path: Path, year: int) -> np.ndarray:
    ids = np.array(Image.open(path))
    if year == 2016:
        return (ids > 0).astype(np.uint8)
    ids[ids == 255] = 0
    return ids


def plain_j(pred: np.ndarray, gt: np.ndarray) -> float:
    union = np.sum(pred | gt)
    return float(np.sum(pred & gt) / union) if union else 1.0


def plain_f(pred: np.ndarray, gt: np.ndarray) -> float:
    radius = math.ceil(0.008 * np.linalg.norm(pred.shape))
    pred_boundary, gt_boundary = plain_boundary(pred), plain_boundary(gt)
    num_pred, num_gt = np.sum(pred_boundary), np.sum(gt_boundary)
    if not num_pred or not num_gt:
        return float(num_pred == num_gt)
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    disk = (x**2 + y**2 <= radius**2).astype(np.uint8)
    near_pred = cv2.dilate(pred_boundary.astype(np.uint8), disk)
    near_gt = cv2.dilate(gt_boundary.astype(np.uint8), disk)
    precision = float(np.sum(pred_boundary & (near_gt > 0)) / num_pred)
    recall = float(np.sum(gt_boundary & (near_pred > 0)) / num_gt)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def plain_boundary(mask: np.ndarray) -> np.ndarray:
    right, below, diagonal = mask.copy(), mask.copy(), mask.copy()
    right[:, :-1], below[:-1] = mask[:, 1:], mask[1:]
    diagonal[:-1, :-1], diagonal[-1, :-1], diagonal[:-1, -1] = mask[1:, 1:], mask[-1, 1:], mask[1:, -1]
    return (mask ^ right) | (mask ^ below) | (mask ^ diagonal)


# --- Ours ---------------------------------------------------------------------------------------------------


def ours(root: Path, year: int, folder: Path, workers: int) -> pd.DataFrame:
    return pd.concat(score_folder(folder, load_davis(root, year), workers=workers), ignore_index=True)


def main() -> list[Row]:
    root, year = tree()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "masks"
        make_predictions(root, year, folder)
        frames = sum(len(sequence) for sequence in load_davis(root, year))
        rows = [_row(root, year, folder, frames, workers) for workers in (1, 2)]
        rows += whole_processes(root, year, folder, Path(name) / "processes")
    publish(rows)
    return rows


def whole_processes(root: Path, year: int, folder: Path, work: Path) -> list[Row]:
    """`tasks.davis --score` against each scorer in the environment, on one tree of ids."""
    python = os.environ.get("SCORERS_PYTHON", sys.executable)
    tools = {
        "vos-benchmark, two processes": ("VOS_BENCHMARK", "benchmark.py -g {truth} -m {masks} -n 2"),
        "the official toolkit": (
            "DAVIS_TOOLKIT",
            "evaluation_method.py --task semi-supervised --davis_path {tree} --results_path {masks}",
        ),
    }
    named = {name: (os.environ[variable], line) for name, (variable, line) in tools.items() if variable in os.environ}
    if not named:
        return []
    truth, masks, out = work / "tree/Annotations/480p", work / "masks", work / "out"
    frames = write_id_tree(root, year, folder, work)
    ours = [sys.executable, "-m", "tasks.davis", "--data", str(work / "tree"), "--score", str(masks), "--out", str(out)]
    rows = []
    for name, (scorer_folder, line) in named.items():
        words = [python, *line.format(truth=truth, masks=masks, tree=work / "tree").split()]
        plain_s, ours_s = in_turn(
            partial(_run, words, scorer_folder, masks), partial(_run, ours, Path(__file__).parents[1], out)
        )
        work_text = f"{frames} masks as a whole process, beside {name}"
        rows.append(Row("scoring", work_text, plain_s, ours_s, "s", target=2 if "vos" in name else None))
    return rows


def write_id_tree(root: Path, year: int, folder: Path, work: Path) -> int:
    """Write a DAVIS-2017 tree with the masks of `root` as ids, and the predictions as ids. Returns the mask count."""
    sequences = load_davis(root, year)
    lists = work / "tree/ImageSets/2017"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("".join(f"{sequence.name}\n" for sequence in sequences))
    for sequence in sequences:
        for index, frame in enumerate(sequence.frames):
            file = f"{sequence.name}/{frame.stem}.png"
            write_mask(work / "tree/Annotations/480p" / file, sequence.read_mask(index))
            write_mask(work / "masks" / file, read_ids(folder / file))
            link = work / "tree/JPEGImages/480p" / sequence.name / frame.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(frame.resolve())
    return sum(len(sequence) for sequence in sequences)


def _run(words: Sequence[str], folder: str | Path, results: Path) -> None:
    """Run a process from start to end, without results of an earlier process to reuse."""
    for file in [*results.glob("*.csv"), *results.glob("*.json")]:
        file.unlink()
    subprocess.run(words, cwd=folder, check=True, capture_output=True)


def _row(root: Path, year: int, folder: Path, frames: int, workers: int) -> Row:
    results: dict[str, pd.DataFrame] = {}

    def keep(name: str, call: Callable[..., pd.DataFrame], *arguments: int) -> Callable[[], None]:
        return lambda: results.update({name: call(root, year, folder, *arguments)})

    plain_s, ours_s = in_turn(keep("plain", plain), keep("ours", ours, workers))
    return Row(
        "scoring",
        f"J&F of {frames} frames from PNG, {workers} worker(s)",
        plain_s,
        ours_s,
        "s",
        target=8 if workers == 2 else None,
        check=f"J and F within {_largest_difference(results['plain'], results['ours']):.0e}",
        note=f"at this rate {DAVIS_2016_VAL} frames take {ours_s * DAVIS_2016_VAL / frames:.2f} s, plain "
        f"{plain_s * DAVIS_2016_VAL / frames:.2f} s. Elsewhere, on two cores: the official toolkit {TOOLKIT} s, the "
        f"fastest public tool with two processes {FASTEST_TOOL} s",
    )


def _largest_difference(one: pd.DataFrame, other: pd.DataFrame) -> float:
    index = ["sequence", "object", "frame"]
    difference = (one.set_index(index) - other.set_index(index)).abs().to_numpy().max()
    if not difference <= EXACT:  # also true for NaN, from a missing row
        raise AssertionError(f"J and F differ by {difference}: expected at most {EXACT}")
    return float(difference)


if __name__ == "__main__":
    main()
