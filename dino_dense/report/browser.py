"""Open a page in the user's browser."""

import os
import sys
import webbrowser
from collections.abc import Mapping
from pathlib import Path


def open_page(path: Path) -> bool:
    """Open a page in the user's browser; without a graphical display, print its path and the reason instead.

    A browser that the user named in the variable BROWSER is always tried.

    Returns:
        Whether a browser was started.

    Raises:
        ValueError: there is no such file.
    """
    page = path.resolve()
    if not page.is_file():
        raise ValueError(f"{path}: no such file, expected a page to open. Write it first.")
    reason = why_no_browser(os.environ, sys.platform)
    if not reason:
        if _started(page):
            return True
        reason = "no browser could be started"
    print(f"Open {page} in a browser: it was not opened here, because {reason}.")
    return False


def why_no_browser(variables: Mapping[str, str], platform: str) -> str:
    """The reason why this session cannot show a page; "" if it can.

    Args:
        variables: of the environment.
        platform: as `sys.platform`.
    """
    if variables.get("BROWSER"):
        return ""
    remote = any(variables.get(name) for name in ("SSH_CONNECTION", "SSH_TTY"))
    if platform in ("darwin", "win32"):
        return "this is a session over SSH" if remote else ""
    if any(variables.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")):
        return ""
    return "there is no graphical display (DISPLAY and WAYLAND_DISPLAY are not set)"


def _started(page: Path) -> bool:
    try:
        return webbrowser.open(page.as_uri())
    except (webbrowser.Error, OSError):
        return False
