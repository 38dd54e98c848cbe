"""Chromium for the tests that look at a page, where there is one."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright import sync_api

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
EXECUTABLE = next((path for path in map(shutil.which, BROWSERS) if path), None)
QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")
"""A browser that asks for nothing by itself."""

needs_chromium = pytest.mark.skipif(
    EXECUTABLE is None, reason=f"no Chromium here: none of {', '.join(BROWSERS)} in PATH"
)


@contextmanager
def chromium() -> Iterator["sync_api.Browser"]:
    """A headless Chromium."""
    from playwright import sync_api

    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=EXECUTABLE, args=["--no-sandbox", *QUIET])
        yield browser
        browser.close()
