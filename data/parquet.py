"""Images in Parquet files as Hugging Face's `datasets` writes them, under one index.

A row cannot be read without its row group, which has about 100 images. So the order of an epoch is not a permutation of
all images: row groups are shuffled, then the images of `window` successive groups (`ReadGroups`). It is a function of
seed and epoch only: a run resumes at the exact image, whatever the number of processes and workers.
"""

import bisect
import itertools
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from os.path import commonpath
from pathlib import Path
from typing import Any, NamedTuple

from data import DataError
from data.images import DecodedPicture, JpegPicture, names_fingerprint, picture_of

PARQUET_SUFFIX = ".parquet"
COLUMN = "image"
"""The usual name of the column (datasets, ImageFolder)."""
WINDOW_BYTES = 256 * 2**20
"""Bytes of the images that are shuffled together. Each loader process keeps as many in memory."""


class ReadGroups(NamedTuple):
    """How images lie together in files."""

    sizes: Sequence[int]
    """Images of each group, in the order of the index."""
    window: int
    """Groups to shuffle together."""


class RowGroup(NamedTuple):
    """Rows that are read at once."""

    file: int
    """Index of the file."""
    number: int
    """Index of the group in its file."""
    first_row: int
    """Index of its first row in the file."""
    rows: int
    bytes: int
    """Bytes of its images, not compressed."""


def is_parquet(root: Path | str) -> bool:
    """Whether `root` names Parquet files: `x.parquet`, or a pattern such as `data/train-*.parquet`."""
    return str(root).endswith(PARQUET_SUFFIX) and not Path(root).is_dir()


def image_column(path: Path, schema: Any) -> str:
    """The column of images of an Arrow schema: `image`, or else the only column with encoded images.

    Raises:
        DataError: there is no such column, or several.
    """
    fitting = [field.name for field in schema if _has_bytes(field.type)]
    if COLUMN in fitting:
        return COLUMN
    if len(fitting) != 1:
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise DataError(
            f"{path}: expected a column {COLUMN!r}, or a single column, of struct<bytes: binary, path: string> as "
            f"datasets writes it; found {columns or 'no column'}. Write the images with the feature Image()."
        )
    return fitting[0]


def _has_bytes(kind: Any) -> bool:
    from pyarrow import types

    if not types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        return False
    inside = kind.field("bytes").type
    return types.is_binary(inside) or types.is_large_binary(inside)


def index_file(path: Path, number: int) -> tuple[str, list[RowGroup]]:
    """The column of images and the row groups of file `number`, from its footer.

    Raises:
        DataError: the file is broken, has no rows, or no column of images.
    """
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            metadata, schema = file.metadata, file.schema_arrow
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: not a whole Parquet file ({error}). Fetch it again.") from None
    column = image_column(path, schema)
    if not metadata.num_rows:
        raise DataError(f"{path}: no rows in it. Take it out of the pattern.")
    groups, row = list[RowGroup](), 0
    for group in range(metadata.num_row_groups):
        about = metadata.row_group(group)
        parts = [about.column(leaf) for leaf in range(about.num_columns)]
        size = sum(part.total_uncompressed_size for part in parts if part.path_in_schema.startswith(f"{column}."))
        if about.num_rows:
            groups.append(RowGroup(number, group, row, about.num_rows, size))
        row += about.num_rows
    return column, groups


class ParquetImages(Sequence[JpegPicture | DecodedPicture]):
    """The images of Parquet files, opened when indexed. A process keeps the last row groups in memory.

    Args:
        files: Parquet files.

    Raises:
        DataError: see `index_file`. An index raises DataError, with file and row, for a damaged image, a row without
            content, or a damaged row group.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)
        self.root = Path(commonpath([file.parent for file in self.files]))
        self.columns: list[str] = []
        self.groups: list[RowGroup] = []
        for number, file in enumerate(self.files):
            column, groups = index_file(file, number)
            self.columns.append(column)
            self.groups += groups
        self.ends = list(itertools.accumulate(group.rows for group in self.groups))
        mean = max(1, sum(group.bytes for group in self.groups) // len(self.groups))
        self.read_groups = ReadGroups([group.rows for group in self.groups], max(1, WINDOW_BYTES // mean))
        self._read: OrderedDict[int, Any] = OrderedDict()

    @property
    def fingerprint(self) -> str:
        """Number of images, and a hash of the files' names and row groups."""
        return names_fingerprint(
            f"{self._place(group, row)} {group.rows} {group.bytes}"
            for group in self.groups
            for row in range(group.rows)
        )

    def __len__(self) -> int:
        return self.ends[-1]

    def __iter__(self) -> Iterator[JpegPicture | DecodedPicture]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> JpegPicture | DecodedPicture:  # type: ignore[override]
        number, row = self._find(index)
        group = self.groups[number]
        name = self.files[group.file] / str(group.first_row + row)
        value = self._rows(number)[row].as_py()
        encoded = value and value["bytes"]
        if not encoded:
            path = value and value.get("path")
            where = f"only the path {path}" if path else "nothing"
            raise DataError(f"{name}: the row has no bytes of an image, {where}. Write the data set with its images.")
        return picture_of(encoded, name)

    def name(self, index: int) -> str:
        """FILE.parquet/ROW, relative to the folder of the files; rows count from 0 in each file."""
        number, row = self._find(index)
        return self._place(self.groups[number], row)

    def _place(self, group: RowGroup, row: int) -> str:
        return f"{self.files[group.file].relative_to(self.root).as_posix()}/{group.first_row + row}"

    def _find(self, index: int) -> tuple[int, int]:
        """Image -> (group, row in the group)."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        number = bisect.bisect_right(self.ends, index)
        return number, index - (self.ends[number] - self.groups[number].rows)

    def _rows(self, number: int) -> Any:
        """The images of a group, an Arrow array; from memory if it was read lately."""
        if number not in self._read:
            while len(self._read) >= self.read_groups.window:
                self._read.popitem(last=False)
            self._read[number] = self._load(self.groups[number])
        self._read.move_to_end(number)
        return self._read[number]

    def _load(self, group: RowGroup) -> Any:
        import pyarrow.parquet

        path, column = self.files[group.file], self.columns[group.file]
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                # Threads of Arrow would be a second pool beside the loader's processes.
                table = file.read_row_group(group.number, columns=[column], use_threads=False)
        except FileNotFoundError:
            raise FileNotFoundError(f"{path}: removed since it was listed. Restore it.") from None
        except (ValueError, OSError, IndexError) as error:
            raise DataError(
                f"{path}: row group {group.number} (rows {group.first_row} to {group.first_row + group.rows - 1}) "
                f"cannot be read ({error}). Fetch the file again."
            ) from None
        if table.num_rows != group.rows:
            raise DataError(f"{path}: changed since the run began. Restore it.")
        return table.column(column)
