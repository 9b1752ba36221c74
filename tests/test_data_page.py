"""The page of a data set, in a real browser: whole, offline, and deaf to what names would do."""

import base64
import csv as csv_files
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from conftest import SPEC, replace_index, silent

from melstream.shards.dataset import Dataset, open_dataset
from melstream.shards.index import COLUMNS
from melstream.shards.manifest import write_manifest
from melstream.shards.storage import open_storage
from melstream.tools.build import build
from melstream.tools.build_plan import PlanSettings, make_plan
from melstream.tools.build_workers import run_here
from melstream.tools.compare import inspect_against
from melstream.tools.corpora import csv
from melstream.tools.data_report import write_data_report
from melstream.tools.inspect import inspect_dataset
from melstream.tools.pages.gallery import make_gallery

if TYPE_CHECKING:
    from browser_page import WatchedPage
    from playwright.sync_api import Browser

HOSTILE_LABEL = "<img src=x onerror=hacked=1>"
HOSTILE_CLASS = "</script><script>hacked=1</script>"
HOSTILE_FILE = '"><svg onload=hacked=1> & <b>.flac'
HOSTILE_KEY = b"<img src=x onerror=hacked=1>"
HOSTILE_REASON = "<iframe srcdoc='<script>parent.hacked=1</script>'>"
HOSTILE_SPLIT = "<a href='javascript:hacked=1'>fold</a>"
MAX_PAGE_BYTES = 10_000_000


def build_hostile(recordings: Path, root: Path) -> Dataset:
    """A data set of recordings whose names all try to run a script."""
    root.mkdir()
    table = root / "clips.csv"
    with table.open("w", newline="") as file:
        writer = csv_files.writer(file)
        writer.writerow(["path", "labels", "fold"])
        for number, path in enumerate(sorted((recordings / "eval").glob("*/*.flac"))):
            name = HOSTILE_FILE if number == 0 else path.name
            shutil.copyfile(path, root / name)
            labels = (
                [path.parent.name] + [HOSTILE_LABEL] * (number % 2) + [HOSTILE_CLASS] * (number % 3)
            )
            writer.writerow(
                [name, "|".join(dict.fromkeys(labels)), HOSTILE_SPLIT if number % 4 else "b"]
            )
    listing = csv.scan(table, label_column="labels", label_separator="|", split_column="fold")
    settings = PlanSettings(corpus="csv", features=SPEC, keep_audio=True)
    storage = open_storage(root / "set")
    build(make_plan(listing, settings), storage, run_here, silent)
    manifest = open_dataset(root / "set").manifest
    write_manifest(storage, manifest.model_copy(update={"n_rejects": {HOSTILE_REASON: 3}}))
    built = open_dataset(root / "set")
    columns = {name: np.array(built.index.column(name)) for name in COLUMNS}
    width = columns["key"].shape[1]
    columns["key"][0] = np.frombuffer(HOSTILE_KEY.ljust(width, b"\0"), np.uint8)
    replace_index(built, columns, counts=built.logmel_counts)
    return open_dataset(root / "set")


@pytest.fixture(scope="module")
def hostile(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return build_hostile(recordings, tmp_path_factory.mktemp("hostile") / "corpus")


@pytest.fixture(scope="module")
def report(hostile: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    size_bytes = write_data_report(path, inspect_dataset(hostile), hostile)
    assert path.stat().st_size == size_bytes < MAX_PAGE_BYTES
    return path


@pytest.fixture(scope="module")
def opened(browser: "Browser", report: Path) -> Iterator["WatchedPage"]:
    from browser_page import WatchedPage

    found = WatchedPage(
        browser, report, color_scheme="dark", viewport={"width": 1400, "height": 900}
    )
    yield found
    found.close()


@pytest.mark.slow
def test_it_opens_without_a_network_and_nothing_complains(opened: "WatchedPage") -> None:
    drawn = opened.plots()
    assert opened.faults == []
    assert set(drawn) >= {
        "classes", "co-occurrence", "labels-per-clip", "duration-s", "rms-dbfs", "clipped-share",
        "bandwidth-hz", "bands", "band-values", "rejects", "splits",
    }  # fmt: skip
    assert len(drawn) == opened.ask("document.querySelectorAll('[data-plot]').length")
    policy = opened.ask("document.querySelector('meta[http-equiv]').content")
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy.split(";")[1]


def test_plots_hold_what_the_index_says(opened: "WatchedPage", hostile: Dataset) -> None:
    index, names = hostile.index, hostile.manifest.label_names
    counts = np.sort(np.bincount(index.label_ids, minlength=len(names)))[::-1]
    assert opened.values("classes", "x") == counts.tolist()
    assert opened.page.locator("[data-plot=classes] .bars .point").count() == len(names)
    n_labels = np.diff(index.label_indptr)
    assert opened.values("labels-per-clip") == [int((n_labels == n).sum()) for n in (1, 2, 3)]
    for name in ("duration_s", "rms_dbfs", "silence_share", "bandwidth_hz"):
        assert sum(opened.values(name.replace("_", "-"))) == np.isfinite(index.column(name)).sum()
    levels = opened.values("rms-dbfs")
    assert levels == np.histogram(index.rms_dbfs, np.arange(-100, 1, 2.5))[0].tolist()
    assert opened.values("bands", trace=1) == pytest.approx(hostile.manifest.band_mean)
    assert opened.values("rejects", "x") == [3]
    together = np.zeros((len(names), len(names)), int)
    for row in range(len(hostile)):
        together[np.ix_(index.labels(row), index.labels(row))] += 1
    shares = np.array(opened.values("co-occurrence", "z"), float)
    top = np.argsort(-np.diag(together), kind="stable")
    expected = (together / np.diag(together)[:, None])[np.ix_(top, top)]
    np.fill_diagonal(expected, np.nan)
    np.testing.assert_allclose(shares, expected)


def test_names_stay_text(opened: "WatchedPage") -> None:
    for element in ("img[src=x]", "svg[onload]", "iframe", "a[href^=javascript]", "main script"):
        assert opened.page.locator(element).count() == 0, element
    names = opened.values("classes", "customdata")
    opened.ask(
        "(place) => Plotly.Fx.hover(document.querySelector('[data-plot=classes]'),"
        " [{curveNumber: 0, pointNumber: place}])",
        next(place for place, name in enumerate(names) if "<img" in name or "&lt;img" in name),
    )
    told = opened.page.locator("[data-plot=classes] .hoverlayer .hovertext").text_content() or ""
    assert told.startswith(HOSTILE_LABEL)
    opened.page.locator(".clip .open").first.click()
    opened.page.keyboard.press("Escape")
    assert opened.ask("window.hacked") is None
    text = opened.ask("document.body.textContent")
    hostile = (HOSTILE_LABEL, HOSTILE_CLASS, HOSTILE_FILE, HOSTILE_KEY.decode(), HOSTILE_REASON)
    assert [name for name in hostile if name not in text] == []
    ticks = opened.page.locator("[data-plot=classes] .ytick").all_text_contents()
    assert HOSTILE_LABEL in ticks
    assert opened.page.locator("[data-plot=splits] .ytick a").count() == 0


def test_search_finds_labels_and_keys(opened: "WatchedPage", hostile: Dataset) -> None:
    page, index = opened.page, hostile.index
    tabla = hostile.manifest.label_names.index("tabla")
    n_tabla = int((index.label_ids == tabla).sum())
    search = page.get_by_label("Find a label or key")
    search.fill("TABLA")
    assert page.locator(".clip:visible").count() == n_tabla
    assert page.locator("#clip-search-note").text_content() == f"{n_tabla} of {len(hostile)} shown"
    search.fill(hostile.key(5))
    assert page.locator(".clip:visible").count() == 1
    search.press("Escape")
    assert page.locator(".clip:visible").count() == len(hostile)
    page.get_by_label("Find a class").fill("bass drum")  # each word on its own
    assert (
        page.locator("#class-table tbody tr:visible").all_text_contents()[0].startswith("bass_drum")
    )
    page.get_by_label("Find a class").fill("")


def test_the_theme_follows_the_system_until_it_is_chosen(opened: "WatchedPage") -> None:
    page = opened.page
    background = "getComputedStyle(document.body).backgroundColor"
    plot = "document.querySelector('[data-plot=classes]')._fullLayout.paper_bgcolor"
    dark = opened.ask(background), opened.ask(plot)
    page.emulate_media(color_scheme="light")
    page.locator("html[data-theme=light]").wait_for()
    light = opened.ask(background), opened.ask(plot)
    assert light[0] != dark[0]
    assert light[1] == "#ffffff" != dark[1]
    page.get_by_role("button", name="Dark theme").click()
    assert (opened.ask(background), opened.ask(plot)) == dark
    page.get_by_role("button", name="Light theme").click()
    assert opened.ask(background) == light[0]


def test_the_keyboard_is_enough(opened: "WatchedPage", hostile: Dataset) -> None:
    page = opened.page
    focused = "document.activeElement.textContent.trim()"
    page.locator("a, button, input, [tabindex]").first.focus()
    assert opened.ask(focused) == "Skip to the content"
    page.keyboard.press("Tab")
    assert opened.ask(focused) in ("Dark theme", "Light theme")
    assert opened.ask("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    card = page.locator(".clip").nth(3)
    card.locator(".open").focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    assert dialog.get_by_role("heading").text_content() == card.locator("h3").text_content()
    assert (card.locator(".key").text_content() or "") in (dialog.text_content() or "")
    page.keyboard.press("Escape")
    assert dialog.count() == 0
    assert opened.ask("document.activeElement.closest('.clip') !== null")


def test_audio_and_pictures_are_those_of_the_clips(opened: "WatchedPage", hostile: Dataset) -> None:
    row = 7
    card = opened.page.locator(".clip", has_text=hostile.key(row))
    audio = card.locator("audio").element_handle()
    duration_s = opened.ask(
        "(audio) => audio.duration || new Promise((resolve) => "
        "audio.addEventListener('loadedmetadata', () => resolve(audio.duration)))",
        audio,
    )
    assert duration_s == pytest.approx(float(hostile.index.duration_s[row]), abs=1e-3)
    image = card.locator("img").get_attribute("src") or ""
    assert base64.b64decode(image.removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")
    size = opened.ask(
        "(img) => [img.naturalWidth, img.naturalHeight]", card.locator("img").element_handle()
    )
    assert size == [min(320, int(hostile.index.n_frames[row])), SPEC.n_mels]


@pytest.mark.slow
def test_a_phone_shows_it_in_one_column(browser: "Browser", report: Path) -> None:
    from browser_page import WatchedPage

    phone = WatchedPage(
        browser, report, viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True
    )
    assert phone.ask("document.documentElement.scrollWidth") == 390
    lefts = phone.ask(
        "[...document.querySelectorAll('.plots .panel')].map((p) => p.getBoundingClientRect().left)"
    )
    assert len(set(lefts)) == 1
    assert phone.faults == []
    phone.close()


@pytest.mark.slow
def test_a_comparison_shows_both_sets(
    browser: "Browser", hostile: Dataset, built: Callable[[str], Dataset], tmp_path: Path
) -> None:
    from browser_page import WatchedPage

    other = built("train")
    found = inspect_against(hostile, other)
    write_data_report(tmp_path / "both.html", found, hostile)
    both = WatchedPage(browser, tmp_path / "both.html")
    assert found.comparison is not None
    verdicts = both.page.locator(".verdict").all_text_contents()
    assert sorted(verdicts) == sorted(drift.verdict for drift in found.comparison.drifts)
    for trace, index in enumerate((hostile.index, other.index)):
        shares = both.values("other-rms-dbfs", trace=trace)[:-1]
        counts = np.histogram(index.rms_dbfs, np.arange(-100, 1, 2.5))[0]
        np.testing.assert_allclose(shares, counts / counts.sum())
    assert both.faults == []
    both.close()


def test_clips_that_cannot_be_read_are_told(hostile: Dataset, tmp_path: Path) -> None:
    copy = shutil.copytree(hostile.folder, tmp_path / "copy")
    shard = next(copy.glob("*.tar"))
    shard.unlink()
    broken = open_dataset(copy)
    write_data_report(tmp_path / "report.html", inspect_dataset(broken), broken)
    page = (tmp_path / "report.html").read_text()
    assert f"{shard.name} is missing; copy it again, or build it again" in page


def test_audio_that_is_damaged_costs_its_player_alone(hostile: Dataset, tmp_path: Path) -> None:
    copy = shutil.copytree(hostile.folder, tmp_path / "copy")
    offset, size = hostile.member_span(1, "flac")
    with (copy / hostile.shard_of(1).name).open("r+b") as file:
        file.seek(offset + size // 2)
        file.write(b"damaged")
    gallery = make_gallery(open_dataset(copy))
    players = {card.clip.row: card.audio for card in gallery.cards}
    assert [row for row, audio in players.items() if audio is None] == [1]
    assert gallery.fault.startswith("1 of")
    assert hostile.key(1) in gallery.fault


def test_the_page_of_one_class_shows_its_clips_only(
    built: Callable[[str], Dataset], tmp_path: Path
) -> None:
    dataset = built("eval")
    write_data_report(tmp_path / "tabla.html", inspect_dataset(dataset, label="tabla"), dataset)
    page = (tmp_path / "tabla.html").read_text()
    assert page.count('<li class="clip"') == 5
    assert "<h3>tabla</h3>" in page
    assert "<h3>snare</h3>" not in page


def test_many_classes_and_shards_stay_small_and_whole(hostile: Dataset, tmp_path: Path) -> None:
    """AudioSet's 527 classes and a thousand shards add little to the page."""
    found = inspect_dataset(hostile)
    classes = tuple(
        found.classes[0].model_copy(update={"name": f"class {n} {HOSTILE_LABEL}", "n_samples": n})
        for n in range(527)
    )
    many = found.model_copy(update={"classes": classes, "shards": 1_000 * found.shards})
    size_bytes = write_data_report(tmp_path / "many.html", many, hostile)
    without = write_data_report(tmp_path / "few.html", found, hostile)
    assert size_bytes - without < 500_000
    page = (tmp_path / "many.html").read_text()
    data = page.split('<script type="application/json" id="plot-data">')[1].split("</script>")[0]
    plots = json.loads(data)["plots"]
    assert plots["classes"]["data"][0]["y"] == [*range(526, 0, -1), None]
    assert len(plots["classes-least"]["data"][0]["customdata"]) == 15
    assert page.count("<td>class 526 &lt;img src=x") == 1
