"""Text files with one name a line."""

from pathlib import Path

from data import DataError


def read_list(path: Path) -> list[str]:
    """The lines of a text file; DataError where it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected a text file in UTF-8, found another encoding ({error.reason})") from None
