"""The page in a real browser: nothing is asked for, tables sort, it fits a phone, strangers' scripts do not run."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dino_dense.report import Entry, IntervalConfig, compare_all, render_page
from tests.browser import chromium, needs_chromium
from tests.report.builders import EVIL, RANDOM, VITS8, VITS16, failed_entry, make_batch, make_entry

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = needs_chromium


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A batch with names that try to run scripts, a pair that is missing and one that failed."""
    root = tmp_path_factory.mktemp("page")
    evil = make_entry(root, "knn", VITS16, (33.0, 60.0), config={EVIL: EVIL}, note=EVIL, pictures=2)
    entries = [
        *make_batch(root),
        Entry("knn", EVIL, evil.report, evil.folder),
        failed_entry(root, "depth", EVIL, EVIL),
    ]
    comparison = compare_all(entries, IntervalConfig(bootstrap=50))
    file = root / "index.html"
    file.write_text(render_page(entries, title=f"A long title of a batch {EVIL}", comparison=comparison), "utf-8")
    return file


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: "sync_api.Browser", html: Path) -> Iterator["sync_api.Page"]:
    """The page, opened; afterwards it must have run without errors and asked for nothing but itself."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    problems: list[str] = []
    page.on("console", lambda message: problems.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: problems.append(f"error: {error}"))
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(html.as_uri())
    yield page
    assert problems == []
    assert [url for url in requests if not url.startswith("data:")] == [html.as_uri()]
    page.close()


def column(page: "sync_api.Page", place: int) -> list[str]:
    """First words of the cells of a column of the summary."""
    cells = page.locator(f"#summary tbody tr > :nth-child({place})")
    return [text.split()[0] for text in cells.all_inner_texts()]


def test_a_click_sorts_by_number_and_failed_ones_stay_last(page: "sync_api.Page"):
    header = page.locator("#summary thead th").nth(1)
    assert column(page, 2) == ["74.4", "78.3", "9.1", "33.0"]
    assert header.get_attribute("aria-sort") is None
    header.click()
    assert header.get_attribute("aria-sort") == "descending"  # the best first
    assert column(page, 2) == ["78.3", "74.4", "33.0", "9.1"]
    header.click()
    assert header.get_attribute("aria-sort") == "ascending"
    assert column(page, 2) == ["9.1", "33.0", "74.4", "78.3"]
    davis = page.locator("#summary thead th").nth(2)
    for expected in (["69.8", "61.9"], ["61.9", "69.8"]):
        davis.click()
        assert column(page, 3)[:2] == expected
        assert set(column(page, 3)[2:]) == {"failed", "–"}
    assert header.get_attribute("aria-sort") is None


def test_lower_is_better_sorts_the_lowest_first(page: "sync_api.Page"):
    depth = page.locator("#summary thead th").nth(3)
    depth.click()
    assert depth.get_attribute("aria-sort") == "ascending"
    assert column(page, 4) == ["0.574", "0.612", "1.214", "failed"]


def test_the_keyboard_sorts_too(page: "sync_api.Page"):
    page.locator("#summary thead th button").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#summary thead th").first.get_attribute("aria-sort") == "ascending"
    names = page.locator("#summary tbody th").all_inner_texts()
    assert [name.replace("\n", "") for name in names if "script" not in name] == [RANDOM, VITS8, VITS16]
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert column(page, 2) == ["78.3", "74.4", "33.0", "9.1"]


def test_details_open(page: "sync_api.Page"):
    details = page.locator("details").first
    assert not details.locator("dl").first.is_visible()
    details.locator("summary").click()
    assert details.locator("dl").first.is_visible()
    assert "temperature" in details.inner_text()


def test_pictures_are_shown(page: "sync_api.Page"):
    widths = page.locator("img").evaluate_all("images => images.map(image => image.naturalWidth)")
    assert len(widths) == 26
    assert all(width == 320 for width in widths)


def test_strangers_scripts_do_not_run(page: "sync_api.Page"):
    assert page.evaluate("window.hacked") is None
    assert page.locator("script").count() == 1
    assert EVIL in page.locator("h1").inner_text()


def test_the_policy_is_in_force(browser: "sync_api.Browser", html: Path):
    """A script that did get in would not run."""
    blocked = html.with_name("blocked.html")
    blocked.write_text(html.read_text("utf-8").replace("</main>", "<script>window.hacked = 1</script></main>"), "utf-8")
    other = browser.new_page()
    other.goto(blocked.as_uri())
    assert other.evaluate("window.hacked") is None
    other.close()


@pytest.mark.parametrize("width", [360, 390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_the_screen(page: "sync_api.Page", width: int, scheme: str):
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    page.locator("details").evaluate_all("all => all.forEach(item => item.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    box = page.locator("#summary .box")
    if width < 400:
        assert box.evaluate("box => box.scrollWidth > box.clientWidth")  # the table scrolls inside its own box
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
