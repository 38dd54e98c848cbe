"""Folders of labelled images, as the classification tasks take them."""

from dataclasses import dataclass
from pathlib import Path

from data.images import LabelledImages, labelled_splits
from data.sample import sample_data
from tasks._task import DataFacts, file_list_hash

PUBLISHED_SIZES = {
    # classes, training and test images
    (1000, 1_281_167, 50_000): "ImageNet-1k",
    (10, 50_000, 10_000): "CIFAR-10",
    (100, 50_000, 10_000): "CIFAR-100",
    (102, 2_040, 6_149): "Flowers-102",
    (196, 8_144, 8_041): "Stanford Cars",
    (8142, 437_513, 24_426): "iNaturalist 2018",
    (1010, 265_213, 3_030): "iNaturalist 2019",
}


@dataclass(frozen=True)
class LabelledSet:
    """A folder with train/CLASS/* and val/CLASS/* (or test/)."""

    root: Path
    given: bool
    """Whether a user named it; else it is the embedded set."""
    train: LabelledImages
    test: LabelledImages

    @property
    def published_name(self) -> str | None:
        """The published data set with these numbers of classes and images; None for any other."""
        sizes = (len(self.train.class_names), len(self.train.paths), len(self.test.paths))
        return PUBLISHED_SIZES.get(sizes)

    @property
    def test_names(self) -> list[str]:
        """One name a test image, relative to the folder."""
        return [path.relative_to(self.root).as_posix() for path in self.test.paths]

    def facts(self, benchmark: str | None = None) -> DataFacts:
        """What the report says of the data. `benchmark` where protocol and data are a published one's."""
        return DataFacts(
            name=self.root.resolve().name if self.given else "embedded images",
            root=str(self.root),
            n=len(self.test.paths),
            unit="test images",
            sha256=file_list_hash(self.root, self.train.paths + self.test.paths),
            benchmark=benchmark,
        )


def open_labelled(data: str | None) -> LabelledSet:
    """The folder named, or the embedded images; raises what `data.images.labelled_splits` raises."""
    root = Path(data) if data else sample_data().images
    return LabelledSet(root, data is not None, *labelled_splits(root))
