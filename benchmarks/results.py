"""The table of docs/results.md, from batches of the suite `results`: `python -m benchmarks.results OUT ... [--docs]`.

Each folder is the `--out` of `python -m tasks --suite results` with another `--seed`. With several, a value is the mean
over the seeds, and its range follows. With `--docs`, the table in docs/results.md is replaced, and the headlines in the
README.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import yaml

from benchmarks.bench import write_between
from dino_dense.report import PAIRS_FILE

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "results.md"
README = ROOT / "README.md"
SUITE = ROOT / "configs" / "suites" / "results.yaml"
SHOWN = {"inside": 2, "depth": 2, "tokens": 4, "saliency": 2}
"""`results_table`'s in docs/results.md."""


def read(folders: Sequence[Path]) -> pd.DataFrame:
    """The scores of all folders, long: columns of pairs.csv, and `seed` (the number of the folder).

    Raises:
        ValueError: a pair failed, so that a table would be incomplete.
    """
    frame = pd.concat(
        [pd.read_csv(folder / PAIRS_FILE).assign(seed=number) for number, folder in enumerate(folders)],
        ignore_index=True,
    )
    failed = frame[frame["status"] == "failed"]
    if len(failed):
        first = failed.iloc[0]
        raise ValueError(f"{first['entry']} of {first['checkpoint']} failed: {first['error']}. Run the suite again.")
    return frame


def results_table(frame: pd.DataFrame, shown_metrics: Mapping[str, int] = SHOWN) -> pd.DataFrame:
    """A row for each metric, a column for each checkpoint: the value and its standard error, or the mean over seeds.

    Args:
        frame: of `read`.
        shown_metrics: task -> metrics shown, the first of its list; other tasks show their headline.
    """
    place = frame.groupby(["seed", "entry", "checkpoint"], sort=False).cumcount()
    shown = frame[place < frame["task"].map(shown_metrics).fillna(1)]
    texts = [
        (*key, cell(group["value"], group["stderr"]))
        for key, group in shown.groupby(["entry", "task", "metric", "checkpoint"], sort=False)
    ]
    cells = pd.DataFrame(texts, columns=["entry", "task", "metric", "checkpoint", "text"])
    table = (
        cells.set_index(["entry", "task", "metric", "checkpoint"])["text"]
        .unstack("checkpoint", sort=False)
        .reset_index()
    )
    table["settings"] = table["entry"].map(_settings())
    return table.drop(columns="entry").rename_axis(columns=None)


def cell(values: pd.Series, errors: pd.Series | None = None) -> str:
    """The value of one seed, with its standard error if given; the mean and the range of several."""
    digits = 1 if values.abs().max() >= 10 else 2
    mean = f"{values.mean():.{digits}f}"
    if len(values) == 1:
        return mean if errors is None or errors.isna().all() else f"{mean} ± {errors.iloc[0]:.{digits}f}"
    low, high = f"{values.min():.{digits}f}", f"{values.max():.{digits}f}"
    return mean if low == high else f"{mean} ({low} to {high})"


def _settings() -> dict[str, str]:
    """Label of each entry -> its preset and config, as written in the suite."""
    settings = {}
    for entry in yaml.safe_load(SUITE.read_text()):
        preset = f"--preset {entry['preset']} " if "preset" in entry else ""
        values = [f"--{name.replace('_', '-')} {typed(value)}" for name, value in entry["config"].items()]
        settings[entry.get("label", entry["task"])] = f"`{preset}{' '.join(values)}`"
    return settings


def typed(value: object) -> str:
    """A value of a suite as it is typed on the command line."""
    if isinstance(value, list):
        return ",".join(map(typed, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def main(words: Sequence[str]) -> int:
    """Print or write the table. Returns the exit status."""
    folders = [Path(word) for word in words if word != "--docs"]
    if not folders:
        print(f"usage: {__doc__}", file=sys.stderr)
        return 2
    frame = read(folders)
    text = results_table(frame).to_markdown(index=False)
    print(text)
    if "--docs" in words:
        write_between(DOCUMENT, "results", text)
        headlines = results_table(frame, {}).drop(columns="settings")
        write_between(README, "results", headlines.to_markdown(index=False))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
