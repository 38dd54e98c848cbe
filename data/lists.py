"""Text files with one name on each line."""

import codecs
from pathlib import Path

from data import DataError

BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16: its mark begins with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def encoding_of(encoded: bytes) -> str:
    """The encoding of a text by its byte order mark; UTF-8 without one."""
    return next((name for mark, name in BYTE_ORDER_MARKS if encoded.startswith(mark)), "utf-8")


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, or in the encoding of its byte order mark; DataError for other encodings."""
    encoded = path.read_bytes()
    try:
        return encoded.decode(encoding_of(encoded))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected a text file in UTF-8, found another encoding ({error.reason})") from None


def read_list(path: Path) -> list[str]:
    """The lines of a text file; raises the errors of `read_text`."""
    return read_text(path).splitlines()
