"""The page in a real browser: nothing is asked for, tables sort, it fits a phone, strangers' scripts do not run;
a search, an order and a pair of checkpoints are in the address."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dino_dense.report import Entry, IntervalConfig, compare_all, render_page
from dino_dense.report.drawing import Chart, Curves, Line
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
    lines = [
        Line(f"{EVIL} {place}", (0, 1, 2), (1.0, place, 3.0), (0.5, place, 2.0), (2.0, place, 4.0)) for place in (1, 2)
    ]
    curves = [
        Curves("Sweep", "Text", (Chart("top-1, %", "layer", tuple(lines)), Chart("top-5, %", "layer", tuple(lines))))
    ]
    title = f"A long title of a batch {EVIL}"
    file = root / "index.html"
    file.write_text(render_page(entries, title=title, comparison=comparison, curves=curves), "utf-8")
    return file


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    with chromium() as browser:
        yield browser


def new_page(browser: "sync_api.Browser") -> "sync_api.Page":
    """A page that moves to its links at once: smooth scrolling goes on while a test already looks."""
    return browser.new_page(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")


@pytest.fixture
def page(browser: "sync_api.Browser", html: Path) -> Iterator["sync_api.Page"]:
    """The page, opened; afterwards it must have run without errors and asked for nothing but itself."""
    page = new_page(browser)
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
    widths = page.locator(".pictures img").evaluate_all("images => images.map(image => image.naturalWidth)")
    assert len(widths) == 26
    assert all(width == 320 for width in widths)


def test_charts_are_drawn_and_searched(page: "sync_api.Page"):
    charts = page.locator("#curves-sweep figure.chart")
    assert charts.count() == 2
    strokes = charts.first.locator(".line").evaluate_all("lines => lines.map(line => getComputedStyle(line).stroke)")
    assert len(set(strokes)) == 2
    assert charts.first.locator("circle").count() == 6
    page.locator("#search").fill("sweep top-5")
    assert [chart.is_visible() for chart in charts.all()] == [False, True]


def shown_rows(page: "sync_api.Page", section: str) -> list[str]:
    """Headers of the rows that a search leaves in a section; none if it hides the section."""
    rows = page.locator(f"#{section} tbody tr:visible > th")
    return [text.replace("\n", "") for text in rows.all_inner_texts()]


def test_the_search_leaves_rows_columns_and_sections(page: "sync_api.Page"):
    box = page.locator("#search")
    page.keyboard.press("/")
    assert box.evaluate("box => box === document.activeElement")
    page.keyboard.type("PATCH8")
    assert shown_rows(page, "summary") == [VITS8]
    assert page.locator("#summary thead th:visible").count() == 5
    assert page.locator("#measure-davis").is_visible()
    box.fill("knn-64 random:")
    assert shown_rows(page, "summary") == shown_rows(page, "measure-knn-64") == [RANDOM]
    assert page.locator("#summary thead th:visible").all_inner_texts()[1].startswith("knn-64")
    assert page.locator("#summary thead th:visible").count() == 2
    assert not page.locator("#measure-davis").is_visible()
    box.fill("RMSE worse")
    assert not page.locator("#measure-depth").is_visible()
    assert {row.split()[0] for row in shown_rows(page, "comparison")} == {"depth"}
    box.fill("no such word")
    assert page.locator("main > section:visible").count() == 0
    assert page.locator("#search-count").inner_text() == "0 rows"
    page.keyboard.press("Escape")
    assert len(shown_rows(page, "summary")) == 4
    assert page.locator("#search-count").inner_text() == ""


def test_a_copied_link_opens_the_same_view(page: "sync_api.Page", browser: "sync_api.Browser"):
    page.locator("#search").fill("knn dino")
    page.locator("#summary thead th").nth(1).click()
    page.locator("#samples-order").select_option("better")
    page.locator("#measure-knn thead th").nth(2).click()
    page.locator("#measure-knn .link").nth(1).click()
    other = new_page(browser)
    other.goto(page.url)
    for one in (page, other):
        assert one.locator("#search").input_value() == "knn dino"
        assert one.locator("#summary thead th").nth(1).get_attribute("aria-sort") == "descending"
        assert one.locator("#measure-knn thead th").nth(2).get_attribute("aria-sort") == "descending"
        assert one.locator("#samples-order").input_value() == "better"
        assert one.locator("tr.here").count() == 1
        assert 0 <= one.locator("tr.here").bounding_box()["y"] < 900
    assert column(page, 2) == column(other, 2)
    assert page.locator("tr.here").get_attribute("id") == other.locator("tr.here").get_attribute("id")
    other.evaluate("location.hash = '#measure-davis'")
    other.wait_for_function("location.hash.includes('q=')")
    assert other.locator("#search").input_value() == "knn dino", "a plain anchor keeps the view"
    other.close()


@pytest.mark.parametrize(
    "fragment", ["#%E0%A4%A&q=%", "#&&==", "#summary&sort.summary-table=99a&first=x", "#<b>&q=<b>"]
)
def test_a_broken_link_opens_the_page(browser: "sync_api.Browser", html: Path, fragment: str):
    problems: list[str] = []
    other = new_page(browser)
    other.on("pageerror", lambda error: problems.append(str(error)))
    other.goto(html.as_uri() + fragment)
    assert other.locator("#samples tbody tr").count() == 20
    assert problems == []
    other.close()


def numbers(page: "sync_api.Page", place: int) -> list[float]:
    """The numbers of a column of the samples."""
    texts = page.locator(f"#samples tbody tr > :nth-child({place})").all_inner_texts()
    return [float(text.split()[0].replace("\N{MINUS SIGN}", "-")) for text in texts]


def test_two_checkpoints_sample_by_sample(page: "sync_api.Page"):
    page.locator("#samples-measure").select_option(label="depth RMSE")
    page.locator("#samples-second").select_option(label=RANDOM)
    first, second, difference = (numbers(page, place) for place in (2, 3, 4))
    assert len(difference) == 20
    assert all(abs(b - a - d) < 2e-3 for a, b, d in zip(first, second, difference, strict=True))
    assert [abs(d) for d in difference] == sorted(map(abs, difference), reverse=True)
    assert difference[0] > 0
    page.locator("#samples-more").click()
    assert len(numbers(page, 4)) == 60
    page.locator("#samples-order").select_option("better")
    assert numbers(page, 4) == sorted(numbers(page, 4)), "a lower error is better"
    page.locator("#samples-swap").click()
    assert numbers(page, 4)[0] == -max(map(abs, difference))
    for pair in page.locator("#samples .pair").all():
        assert pair.locator("img").count() == 2
        assert pair.locator("img").first.evaluate("image => image.naturalWidth") == 320
    assert page.locator("#samples .pair").count() > 0


def test_the_same_checkpoint_is_never_chosen_twice(page: "sync_api.Page"):
    for name in (VITS8, VITS16, RANDOM, VITS16):
        page.locator("#samples-first").select_option(label=name)
        assert page.locator("#samples-second option:checked").inner_text() != name


def test_strangers_scripts_do_not_run(page: "sync_api.Page"):
    assert page.evaluate("window.hacked") is None
    assert page.locator("script").count() == 1
    assert EVIL in page.locator("h1").inner_text()


def test_the_policy_is_in_force(browser: "sync_api.Browser", html: Path):
    """A script that did get in would not run."""
    blocked = html.with_name("blocked.html")
    blocked.write_text(html.read_text("utf-8").replace("</main>", "<script>window.hacked = 1</script></main>"), "utf-8")
    other = new_page(browser)
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
