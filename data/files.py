"""List the files of a folder: order, suffixes, ignored files, and search by name without suffix."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from PIL import Image

from data import DataError
from data.notices import say

IMAGE_SUFFIXES = frozenset(
    [
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".avif", ".avifs", ".qoi", ".tga", ".icb", ".vda", ".vst"),
        *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".ico", ".cur", ".icns", ".sgi", ".rgb", ".rgba", ".bw"),
        *(".psd", ".pcx", ".dcx", ".dds", ".blp", ".fit", ".fits", ".flc", ".fli", ".ftc", ".ftu", ".gbr", ".im"),
        *(".msp", ".pcd", ".pxr", ".ras", ".xbm", ".xpm"),
    ]
)
"""Image suffixes, in any case: all formats that Pillow reads without another program."""

COMMON_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif")
"""Examples for messages."""

UNSURE_SUFFIXES = frozenset({"", ".heic", ".heif", ".hif", ".jxl"})
"""Suffixes of files to test by content: formats that Pillow needs a plugin for, and missing suffixes."""

SYSTEM_FOLDERS = frozenset(
    [
        *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot"),  # Synology, QNAP
        *("__macosx", "$recycle.bin", "system volume information", "recycler", "lost+found"),
        *("__pycache__", "resource.frk"),
    ]
)
"""Names, in lower case, of folders that systems create."""

SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})
"""Names, in lower case, of files that systems create."""

THUMBNAIL_FOLDERS = frozenset({"thumbnails", "thumbnail", "thumbs", "thumb", "_thumbs"})
"""Names, in lower case, of folders that probably have thumbnails; they are reported, not skipped."""


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Sort key that puts frame9 before frame10, folder by folder."""
    key: list[tuple[int, int, str]] = []
    for name in path.parts:
        parts = [part for part in re.split(r"(\d+)", name) if part]
        key += [(1, int(part), part) if part.isdecimal() else (2, 0, part) for part in parts]
        key.append((0, 0, ""))  # a shorter name sorts before its continuations
    return key


def is_system(name: str) -> bool:
    """Whether a file or folder name belongs to an editor or a system: hidden files, resource forks, ..."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS or name.lower() in SYSTEM_FILES


def is_hidden(path: Path, root: Path) -> bool:
    """Whether `path` or a folder between it and `root` is a system file (`is_system`)."""
    return any(is_system(part) for part in path.relative_to(root).parts)


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, including links, in natural order, without system folders."""
    return sorted((path for path in folder.iterdir() if path.is_dir() and not is_system(path.name)), key=natural_key)


def list_files(root: Path | str, suffixes: Iterable[str]) -> list[Path]:
    """Files below `root`, at any depth, with one of these suffixes (in any case), in natural order.

    System files (`is_system`) are skipped. A notice counts other skipped files by suffix. Links to folders are
    followed, each folder once.

    Raises:
        FileNotFoundError: no such path.
        DataError: `root` is not a folder, a link leads to a folder above itself, or a name is not valid text.
    """
    root = check_folder(root)
    files, left_out = files_and_rest(root, suffixes)
    say_left_out(root, left_out)
    return files


def check_folder(root: Path | str) -> Path:
    """The path; FileNotFoundError if it does not exist, DataError if it is no folder."""
    root = Path(root)
    if not root.exists():
        raise FileNotFoundError(f"{root}: no such folder. Check the path.")
    if not root.is_dir():
        raise DataError(f"{root}: expected a folder, found a file.")
    return root


def files_and_rest(root: Path, suffixes: Iterable[str]) -> tuple[list[Path], Counter[str]]:
    """`list_files` without the notice: the files, and the number of files of each other suffix."""
    wanted = frozenset(suffixes)
    looks_inside = wanted >= IMAGE_SUFFIXES
    files, left_out = [], Counter[str]()
    for path in _walk(root):
        suffix = path.suffix.lower()
        if suffix in wanted or (looks_inside and suffix in UNSURE_SUFFIXES and _is_picture(path)):
            files.append(path)
        else:
            left_out[suffix or "no ending"] += 1
    for path in files:
        if not _is_text(path.name):
            shown = str(path).encode("utf-8", "backslashreplace").decode()
            raise DataError(f"{shown}: a name that is not UTF-8, which no report could hold. Rename the file.")
    _say_thumbnails(root, files)
    return sorted(files, key=natural_key), left_out


def say_left_out(root: Path, left_out: Mapping[str, int], most: int = 8) -> None:
    """Print a notice for skipped files, if there are any."""
    if not left_out:
        return
    endings = sorted(left_out, key=lambda ending: (-left_out[ending], ending))
    shown = ", ".join(f"{left_out[ending]} {ending}" for ending in endings[:most])
    shown += f" and {len(endings) - most} other endings" if len(endings) > most else ""
    total = sum(left_out.values())
    say(f"{root}: {total} {'files are' if total > 1 else 'file is'} skipped: unreadable here ({shown}).")


def _walk(root: Path) -> Iterator[Path]:
    """Files below a folder: real folders first, then linked folders that were not reached before."""
    seen: set[tuple[int, int]] = set()
    folders, links = [root], list[Path]()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:
            say(f"{folder}: a link to a folder that is read already; it is not read twice.")
            continue
        seen.add((status.st_dev, status.st_ino))
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: natural_key(Path(entry.name)))
        except PermissionError:
            raise DataError(
                f"{folder}: this folder may not be read. Change its permissions, or move it away."
            ) from None
        for entry in (entry for entry in entries if not is_system(entry.name)):
            path = folder / entry.name
            # A broken link is listed too: reading it is an error; skipping it would shrink the data set silently.
            if entry.is_dir(follow_symlinks=False):
                folders.append(path)
            elif entry.is_symlink() and path.is_dir():
                _check_loop(path)
                links.append(path)
            else:
                yield path


def _check_loop(link: Path) -> None:
    if link.parent.resolve().is_relative_to(link.resolve()):
        raise DataError(f"{link}: a link to a folder above itself, which has no end. Remove the link.")


def _is_picture(path: Path) -> bool:
    """Whether Pillow recognizes a file by its first bytes."""
    try:
        with Image.open(path):
            return True
    except (OSError, SyntaxError, ValueError):
        return False


def _is_text(name: str) -> bool:
    """Whether a file name is valid UTF-8; Python represents other bytes as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _say_thumbnails(root: Path, files: Iterable[Path]) -> None:
    within = [path for path in files if path.parent != root and path.parent.name.lower() in THUMBNAIL_FOLDERS]
    if within:
        say(
            f"{within[0].parent}: {len(within)} of the pictures are in folders of this name, and count. Move them away "
            "if they are small copies of others."
        )


# --- One file by its name ----------------------------------------------------------------------------------


class FilesByStem:
    """Files of one folder (not of its subfolders) by their name without suffix.

    Args:
        folder: may not exist; then there are no files.
        suffixes: suffixes, in any case, of the files to include.

    Attributes:
        paths: files by stem, in natural order; several if files differ in their suffix only.
    """

    def __init__(self, folder: Path, suffixes: Iterable[str] = IMAGE_SUFFIXES) -> None:
        self.folder, self.suffixes = folder, frozenset(suffixes)
        self.paths: dict[str, list[Path]] = {}
        entries = [path for path in folder.iterdir() if not is_system(path.name)] if folder.is_dir() else []
        for path in sorted(entries, key=natural_key):
            if path.suffix.lower() in self.suffixes and not path.is_dir():
                self.paths.setdefault(path.stem, []).append(path)

    def find(self, name: str) -> Path | None:
        """The file with this name, given with or without suffix (a file with another suffix matches too).

        Raises:
            DataError: several files match, and none has exactly this name.
        """
        candidates = self.paths.get(name)
        if candidates is None and Path(name).suffix.lower() in self.suffixes:
            candidates = self.paths.get(Path(name).stem)
        if not candidates:
            return None
        exact = [path for path in candidates if path.name == name]
        if len(candidates) > 1 and not exact:
            raise DataError(
                f"{candidates[0]} and {candidates[1].name}: two files of one name; the data set needs a single file. "
                "Remove or rename the other."
            )
        return (exact or candidates)[0]

    def only(self) -> list[Path]:
        """All files; DataError if two have the same stem."""
        return [path for stem in self.paths if (path := self.find(stem)) is not None]


def read_by_stem(folder: Path) -> Callable[[str], Path | None]:
    """`FilesByStem(folder).find` for names that may include folders below `folder`."""
    read: dict[Path, FilesByStem] = {}

    def find(name: str) -> Path | None:
        path = folder / name
        if path.parent not in read:
            read[path.parent] = FilesByStem(path.parent)
        return read[path.parent].find(path.name)

    return find
