"""Folders of labeled images, for the classification tasks."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from data.images import LabeledImages, labeled_splits
from data.known_sets import classification_set
from data.sample import sample_data
from tasks.harness.session import DataFacts
from tasks.harness.task import file_list_hash


class NamesFolder(Protocol):
    """A config with a folder of images."""

    @property
    def data(self) -> str | None:
        """Folder with train/CLASS/* and val/CLASS/* (or test/); None: the embedded images."""


@dataclass(frozen=True)
class LabeledSet:
    """A folder with train/CLASS/* and val/CLASS/* (or test/)."""

    root: Path
    given: bool
    """Whether the user gave the folder; else it is the embedded set."""
    train: LabeledImages
    test: LabeledImages
    dataset: str | None = None
    """The published data set that it is; None for any other."""

    @property
    def test_names(self) -> list[str]:
        """A name for each test image, relative to the folder."""
        return [path.relative_to(self.root).as_posix() for path in self.test.paths]

    @cached_property
    def facts(self) -> DataFacts:
        """The description of the data for the report."""
        return DataFacts(
            name=self.root.resolve().name if self.given else "embedded images",
            root=str(self.root),
            n=len(self.test.paths),
            unit="test images",
            sha256=file_list_hash(self.root, self.train.paths + self.test.paths),
            dataset=self.dataset,
        )


def open_labeled(config: NamesFolder) -> LabeledSet:
    """Open the config's folder, or the embedded images; raises the errors of `data.images.labeled_splits`."""
    root = Path(config.data) if config.data else sample_data().images
    train, test = labeled_splits(root)
    dataset = classification_set(root, train.class_names, train.paths, test.paths)
    return LabeledSet(root, config.data is not None, train, test, dataset)
