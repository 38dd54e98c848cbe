"""The page: one file that asks for nothing, and shows strangers' names without running them."""

import base64
import hashlib
import io
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino_dense.report import Entry, IntervalConfig, Picture, compare_all, render_page
from tests.report.builders import EVIL, RANDOM, VITS8, VITS16, edited, failed_entry, make_batch, make_entry

NOW = datetime(2026, 3, 9, 7, 5, tzinfo=UTC)


class Parsed(HTMLParser):
    """Tags with their attributes, the text of style and script, and all other text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, str] = {}
        self.text = ""
        self.open = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open = tag

    def handle_data(self, data: str) -> None:
        if self.open in ("style", "script"):
            self.inside[self.open] = self.inside.get(self.open, "") + data
        else:
            self.text += data

    def handle_endtag(self, tag: str) -> None:
        self.open = ""

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    return make_batch(tmp_path_factory.mktemp("batch"))


@pytest.fixture(scope="module")
def page(batch: list[Entry]) -> str:
    return render_page(batch, title="Three ViTs", now=NOW)


def test_says_what_was_measured_where_and_how(page: str):
    text = " ".join(Parsed(page).text.split())
    for words in (
        "Three ViTs",
        "9 March 2026, 07:05 UTC",
        "3 checkpoints",
        "4 measures",
        "1 failed",
        "74.5 published, −0.1",
        "± 0.9",
        "CUDA out of memory",
        "DAVIS-2017 val, preset dino",
        "arXiv 2104.14294",
        "temperature 0.07",
        "1 min 23 s, 912 MiB",
        "file list cccccccccccc",
    ):
        assert words in text


def test_tables_carry_numbers_to_sort_by_and_mark_the_best(page: str):
    cells = [cell for cell in Parsed(page).all("td") if "num" in str(cell.get("class"))]
    values = [float(str(cell["data-value"])) for cell in cells if "data-value" in cell]
    assert {74.4, 78.3, 9.1} <= {round(value, 6) for value in values}
    assert all("data-value" not in cell for cell in cells if "none" in str(cell["class"]))
    best = {round(float(str(cell["data-value"])), 6) for cell in cells if "best" in str(cell["class"]).split()}
    assert {78.3, 69.8, 0.574} <= best
    assert 1.214 not in best


def test_asks_for_nothing_and_allows_only_its_own_style_and_script(page: str):
    parsed = Parsed(page)
    policy = str(next(meta["content"] for meta in parsed.all("meta") if "http-equiv" in meta))
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    for name in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(parsed.inside[name].encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
        assert len(parsed.all(name)) == 1
    for tag, attributes in parsed.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag
        for name in ("src", "href"):
            assert str(attributes.get(name, "#")).startswith(("#", "data:")), tag
    assert "@import" not in page
    assert "url(" not in page


def test_is_accessible(page: str):
    parsed = Parsed(page)
    assert parsed.all("html")[0]["lang"] == "en"
    assert all(header.get("scope") in ("col", "row") for header in parsed.all("th"))
    assert all(image["alt"] for image in parsed.all("img"))
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in parsed.tags:
        for name in ("aria-labelledby", "href"):
            target = str(attributes.get(name) or "")
            if (name == "aria-labelledby" and target) or target.startswith("#"):
                assert target.removeprefix("#") in ids
    assert len(parsed.all("caption")) == len(parsed.all("table"))


def test_strangers_names_are_text(tmp_path: Path):
    entry = make_entry(
        tmp_path,
        checkpoint=VITS16,
        pictures=1,
        note=EVIL,
        config={EVIL: EVIL, "list": [EVIL]},
        environment={"commit": EVIL},
    )
    entry = Entry(EVIL, EVIL, entry.report, entry.folder)
    entry = edited(
        entry,
        pictures=(Picture(entry.report.pictures[0].file, f'" onerror="x" {EVIL}'), Picture(EVIL, EVIL)),
        data={**entry.report.data, "name": EVIL},
    )
    failed = failed_entry(tmp_path, "davis", VITS8, EVIL, label=f"davis{EVIL}")
    entries = [entry, failed]
    page = render_page(entries, title=EVIL, comparison=compare_all(entries, IntervalConfig(bootstrap=2)), now=NOW)
    parsed = Parsed(page)
    assert len(parsed.all("script")) == 1
    assert not any("onerror" in attributes for _, attributes in parsed.tags)
    assert [str(image["src"])[:5] for image in parsed.all("img")] == ["data:"]
    assert parsed.text.count(EVIL) > 8


def test_pictures_are_the_first_ones_and_small(tmp_path: Path):
    entry = make_entry(tmp_path, pictures=6)
    Image.fromarray(np.zeros((900, 3600, 4), np.uint8)).save(entry.folder / "overlays" / "0.jpg", "PNG")
    images = Parsed(render_page([entry], title="t")).all("img")
    assert [image["alt"] for image in images] == [picture.caption for picture in entry.report.pictures[:4]]
    first = Image.open(io.BytesIO(base64.b64decode(str(images[0]["src"]).removeprefix("data:image/jpeg;base64,"))))
    assert (first.format, first.mode, first.size) == ("JPEG", "RGB", (900, 225))
    assert (images[0]["width"], images[0]["height"]) == ("900", "225")
    assert images[1]["width"] == "320"


@pytest.mark.parametrize("damage", ["missing", "cut", "outside"])
def test_a_picture_that_cannot_be_read_is_said_so(tmp_path: Path, damage: str):
    entry = make_entry(tmp_path / "runs", pictures=2)
    file = entry.folder / entry.report.pictures[0].file
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:200])
    else:
        file.rename(tmp_path / "secret.jpg")
        outside = Picture("../../secret.jpg", "not yours")
        entry = edited(entry, pictures=(outside, entry.report.pictures[1]))
    parsed = Parsed(render_page([entry], title="t"))
    assert len(parsed.all("img")) == 1
    assert "cannot be read" in parsed.text


def test_dots_lie_on_their_columns_scale(tmp_path: Path):
    entries = [make_entry(tmp_path, "depth", name, (value, 70)) for name, value in (("a", 1.0), ("b", 2.0), ("c", 1.5))]
    stderr = [entry.report.scores[0].stderr or 0 for entry in entries]
    page = render_page(entries, title="t")
    dots = [float(x) for x in re.findall(r'class="dot" d="M([\d.]+) ', page)[:3]]
    low, high = 1.0 - stderr[0], 2.0 + stderr[1]
    assert dots == pytest.approx([4 + 92 * (value - low) / (high - low) for value in (1.0, 2.0, 1.5)], abs=0.02)


def test_a_published_number_has_a_tick_on_its_own_data_only(tmp_path: Path):
    entry = make_entry(tmp_path, means=(70, 90))
    assert render_page([entry], title="t").count('class="mark"') == 2  # the summary, and all metrics
    other = edited(entry, data={**entry.report.data, "dataset": None})
    page = render_page([other], title="t")
    assert 'class="mark"' not in page
    assert "74.5 published, other data" in page


def test_one_checkpoint_and_only_failures_make_a_page_too(tmp_path: Path):
    alone = render_page([make_entry(tmp_path)], title="t")
    assert 'class="num best"' not in alone
    failed = make_entry(tmp_path, "knn", RANDOM, status="failed", scores=(), metrics=(), error="no", pictures=0)
    assert [cell.get("class") for cell in Parsed(render_page([failed], title="t")).all("td")] == ["num none failed"]


def test_runs_that_differ_say_which_was_which(tmp_path: Path):
    first, second = make_entry(tmp_path, note="k = 20"), make_entry(tmp_path, checkpoint=VITS8, note="k = 10")
    second = edited(second, data={**second.report.data, "sha256": "d" * 64})
    text = " ".join(Parsed(render_page([first, second], title="t")).text.split())
    assert f"k = 10 ({VITS8})" in text
    assert "Measured on different data" in text


def test_the_comparison_has_a_section(batch: list[Entry]):
    comparison = compare_all(batch, IntervalConfig(bootstrap=200))
    text = " ".join(Parsed(render_page(batch, title="t", comparison=comparison)).text.split())
    assert "200 resamples" in text
    assert f"Against {VITS16}" in text
    assert f"{RANDOM} was not compared with {VITS16}" in text
    assert re.search(r"knn top-1 % timm:vit_small_patch8_224\.dino 74\.4 → 78\.3 \+3\.9 \+\d", text)
