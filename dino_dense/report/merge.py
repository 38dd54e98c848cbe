"""Read reports from files and folders, and give them unique names."""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from pathlib import Path

from dino_dense.report.folders import REPORT_FILE
from dino_dense.report.record import Report
from dino_dense.report.table import Entry

SHOWN_SETTINGS = 3  # differing settings that a label spells out


def read_entries(paths: Sequence[Path]) -> list[Entry]:
    """Read reports and name them by task, plus the differing settings if a task was measured in several ways.

    Args:
        paths: report files, folders of one report, or folders with reports at any depth.

    Raises:
        ValueError: a path is none of them, or a file is no report.
    """
    files = list(dict.fromkeys(file.resolve() for path in paths for file in _report_files(path)))
    reports = [read_report(file) for file in files]
    labels = _labels(reports)
    names = _checkpoint_names(reports, labels, [file.parent for file in files])
    return [
        Entry(label, name, report, file.parent)
        for label, name, report, file in zip(labels, names, reports, files, strict=True)
    ]


def read_report(file: Path) -> Report:
    """Read a `report.json`.

    Raises:
        ValueError: the file is no report.
    """
    try:
        return Report.from_json(file.read_text(encoding="utf-8"))
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}: expected a report, found something else ({error}). Run the task again.") from error
    except ValueError as error:
        raise ValueError(f"{file}: {error} Read it with a newer version.") from error


def _report_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"{path}: no such file or folder; expected {REPORT_FILE}, or a folder with one.")
    if (path / REPORT_FILE).is_file():
        return [path / REPORT_FILE]
    files = sorted(path.rglob(REPORT_FILE))
    if not files:
        raise ValueError(f"{path}: no {REPORT_FILE} in or below this folder; expected the results of a task or batch.")
    return files


def _labels(reports: Sequence[Report]) -> list[str]:
    """The task's name, plus the differing settings if it was measured in several ways."""
    ways: dict[str, dict[str, Report]] = {}  # the first report of each way to measure a task
    for report in reports:
        if report.status == "ok":
            ways.setdefault(report.task, {}).setdefault(report.protocol(), report)
    names = {key: name for task_ways in ways.values() for key, name in _way_names(task_ways).items()}
    return [
        names[report.protocol()] if report.status == "ok" else _label_of_failed(report, ways, names)
        for report in reports
    ]


def _way_names(ways: Mapping[str, Report]) -> dict[str, str]:
    """Key of a way to measure a task -> its name."""
    reports = list(ways.values())
    if len(reports) == 1:
        return {key: report.task for key, report in ways.items()}
    settings = [{"data": report.data.get("name"), **report.settings()} for report in reports]
    keys = [key for key in dict.fromkeys(chain(*settings)) if len({str(known.get(key)) for known in settings}) > 1]
    texts = [", ".join(f"{key} {known.get(key)}" for key in keys[:SHOWN_SETTINGS]) for known in settings]
    numbered = [text if texts.count(text) == 1 else f"{text} #{number}".strip() for number, text in enumerate(texts, 1)]
    return {key: f"{report.task} ({text})" for (key, report), text in zip(ways.items(), numbered, strict=True)}


def _label_of_failed(report: Report, ways: Mapping[str, Mapping[str, Report]], names: Mapping[str, str]) -> str:
    """The label of a report with the same settings, since a failed report may not know its data."""
    keys = [key for key, other in ways.get(report.task, {}).items() if other.settings() == report.settings()]
    return names[keys[0]] if keys else report.task


def _checkpoint_names(reports: Sequence[Report], labels: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """The checkpoint as given by the user; plus weights hash, precision, seed or folder if needed to be unique."""
    names = [str(report.checkpoint.get("spec") or folder.name) for report, folder in zip(reports, folders, strict=True)]
    weights = [str(report.checkpoint.get("weights_sha256") or "")[:8] for report in reports]
    names = _tell_apart(names, weights, set(names))
    for details in (
        [str(report.environment.get("dtype")) for report in reports],
        [f"seed {report.environment.get('seed')}" for report in reports],
        [str(folder) for folder in folders],
    ):
        pairs = Counter(zip(labels, names, strict=True))
        names = _tell_apart(names, details, {name for (_, name), count in pairs.items() if count > 1})
    return names


def _tell_apart(names: Sequence[str], details: Sequence[str], unclear: Collection[str]) -> list[str]:
    """Append the details to ambiguous names, if this makes them differ."""
    known: dict[str, set[str]] = {}
    for name, detail in zip(names, details, strict=True):
        known.setdefault(name, set()).update({detail} - {""})
    return [
        f"{name} ({detail})" if name in unclear and detail and len(known[name]) > 1 else name
        for name, detail in zip(names, details, strict=True)
    ]
