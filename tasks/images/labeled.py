"""Folders of labeled images, as the classification tasks take them."""

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
    """A config that says where the images are."""

    @property
    def data(self) -> str | None:
        """Folder with train/CLASS/* and val/CLASS/* (or test/); None: the embedded images."""


@dataclass(frozen=True)
class LabeledSet:
    """A folder with train/CLASS/* and val/CLASS/* (or test/)."""

    root: Path
    given: bool
    """Whether a user named it; else it is the embedded set."""
    train: LabeledImages
    test: LabeledImages
    dataset: str | None = None
    """The published data set that it is; None for any other."""

    @property
    def test_names(self) -> list[str]:
        """One name a test image, relative to the folder."""
        return [path.relative_to(self.root).as_posix() for path in self.test.paths]

    @cached_property
    def facts(self) -> DataFacts:
        """The record of these data in the report."""
        return DataFacts(
            name=self.root.resolve().name if self.given else "embedded images",
            root=str(self.root),
            n=len(self.test.paths),
            unit="test images",
            sha256=file_list_hash(self.root, self.train.paths + self.test.paths),
            dataset=self.dataset,
        )


def open_labeled(config: NamesFolder) -> LabeledSet:
    """The folder named, or the embedded images; raises what `data.images.labeled_splits` raises."""
    root = Path(config.data) if config.data else sample_data().images
    train, test = labeled_splits(root)
    dataset = classification_set(root, train.class_names, train.paths, test.paths)
    return LabeledSet(root, config.data is not None, train, test, dataset)
