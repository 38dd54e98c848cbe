"""Pictures of results folders, reduced for a page."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dino_dense.report.record import Picture, beside

SIZE = (900, 1200)  # largest width and height, pixels
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what Pillow raises for a broken file
QUALITY = 80  # of JPEG
WIDE = 2.2  # width / height from which a picture takes a row of its own


@dataclass(frozen=True)
class ShownPicture:
    """A picture in the page."""

    source: str
    """data: URI; "" if the file is unreadable."""
    caption: str
    width: int = 0
    height: int = 0

    @property
    def wide(self) -> bool:
        return self.width > WIDE * self.height


def read_pictures(
    folder: Path, pictures: Sequence[Picture], size: tuple[int, int] = SIZE, quality: int = QUALITY
) -> list[ShownPicture]:
    """Pictures of a results folder, reduced to at most this width and height."""
    shown = []
    for picture in pictures:
        try:
            with Image.open(beside(folder, picture.file)) as image:
                small = image.convert("RGB")
        except UNREADABLE:  # an unreadable picture must not prevent the page
            shown.append(ShownPicture("", f"{picture.file}: cannot be read. {picture.caption}"))
            continue
        small.thumbnail(size)
        file = io.BytesIO()
        small.save(file, "JPEG", quality=quality, optimize=True)
        source = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
        shown.append(ShownPicture(source, picture.caption, *small.size))
    return shown
