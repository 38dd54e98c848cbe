"""Write masks of a video in COCO's format, frame by frame."""

import json
from pathlib import Path
from types import TracebackType
from typing import TextIO

import numpy as np

from data.rle import encode_mask
from dino_dense.arrays import Pixels


class CocoWriter:
    """Writes COCO's JSON atomically, with an annotation for each object and frame; `category_id` is the object's id.

    Args:
        path: the file.
        size: (height, width) of the masks, pixels.
    """

    def __init__(self, path: Path, size: tuple[int, int]) -> None:
        self.path, self.size = path, size
        self._unfinished = path.with_name(f".{path.name}.unfinished")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: TextIO = self._unfinished.open("w")
        self._images: list[str] = []
        self._categories: set[int] = set()
        self._count = 0
        self._file.write('{"annotations": [')

    def add(self, name: str, ids: Pixels) -> None:
        """Add the masks of the next frame, ids [H, W]; `name` is the frame's file name."""
        self._images.append(name)
        for identity in np.unique(ids[ids > 0]).tolist():
            mask = ids == identity
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
            self._file.write(",\n" if self._count else "\n")
            self._count += 1
            self._categories.add(identity)
            record = {
                "id": self._count,
                "image_id": len(self._images),
                "category_id": identity,
                "segmentation": encode_mask(mask),
                "bbox": [int(value) for value in box],
                "area": int(mask.sum()),
                "iscrowd": 0,
            }
            self._file.write(json.dumps(record))

    def __enter__(self) -> "CocoWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the file; after an error, remove it."""
        height, width = self.size
        images = [
            {"id": number, "file_name": name, "height": height, "width": width}
            for number, name in enumerate(self._images, 1)
        ]
        categories = [{"id": identity, "name": f"object {identity}"} for identity in sorted(self._categories)]
        try:
            with self._file:
                self._file.write(f'],\n"images": {json.dumps(images)},\n"categories": {json.dumps(categories)}}}\n')
            if kind is None:
                self._unfinished.replace(self.path)
        finally:
            self._unfinished.unlink(missing_ok=True)
