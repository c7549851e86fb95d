"""The page in a real browser, at desktop and phone width, without any network."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from reporting import make_benchmark, make_results, make_run, make_targets

from mim3d.foundation.reporting import Silent
from mim3d.workflows.report.report import report

pytestmark = pytest.mark.browser
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DESKTOP, PHONE = (1280, 900), (375, 780)


@pytest.fixture(scope="module")
def page_file(tmp_path_factory) -> Path:
    """A page of everything."""
    folder = tmp_path_factory.mktemp("report")
    make_run(folder / "runs" / "pretrain", pretrain=True)
    for seed in range(2):
        make_run(folder / "runs" / f"tuned-{seed}", seed=seed)
    make_results(folder / "results.json", pictures=(0, 1))
    make_targets(folder / "targets.json")
    make_benchmark(folder / "bench")
    report([str(folder)], out=str(folder / "page.html"), reporter=Silent())
    return folder / "page.html"


@pytest.fixture(scope="module")
def chromium():
    """A browser without a network."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (Debian: `apt install chromium`)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def opened(request, chromium, page_file):
    """The page, with all that it asked for and complained of."""
    width, height = request.param
    context = chromium.new_context(viewport={"width": width, "height": height}, offline=True)
    page = context.new_page()
    page.asked, page.complaints = [], []
    page.on("request", lambda one: page.asked.append(one.url))
    page.on("console", lambda one: page.complaints.append(one.text))
    page.on("pageerror", lambda one: page.complaints.append(str(one)))
    page.goto(page_file.as_uri())
    yield page
    context.close()


def column(page, table: str, place: int) -> list[str]:
    rows = page.locator(f"{table} tbody tr")
    return [row.locator("th, td").nth(place).inner_text() for row in rows.all()]


def test_it_opens_without_network_asks_for_nothing_and_complains_of_nothing(opened, page_file):
    opened.wait_for_load_state("networkidle")

    outside = [url for url in opened.asked if not url.startswith("data:")]
    assert outside == [page_file.as_uri()]
    assert opened.complaints == []
    drawn = opened.evaluate("[...document.images].map(one => one.naturalWidth)")
    assert len(drawn) >= 12
    assert min(drawn) > 100


def test_it_is_never_wider_than_the_window(opened):
    wide = opened.evaluate("document.scrollingElement.scrollWidth - innerWidth")

    assert wide <= 0
    for section in opened.locator("main > section").all():
        box = section.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= opened.viewport_size["width"]


def test_a_click_on_a_head_sorts_numbers_as_numbers_and_back(opened):
    table = "#results table:has(caption:text('Dice of every case'))"
    before = column(opened, table, 0)
    head = opened.locator(f"{table} thead button").nth(3)

    head.click()
    rising = column(opened, table, 0)
    head.click()
    falling = column(opened, table, 0)

    assert before == [f"case_{n:02d}" for n in range(15)] + ["case_zz"]
    assert rising == before
    # What has no number stays last whichever way the others go.
    assert falling == [f"case_{n:02d}" for n in reversed(range(15))] + ["case_zz"]
    assert opened.locator(f"{table} th[aria-sort]").get_attribute("aria-sort") == "descending"
    opened.locator(f"{table} thead button").first.press("Enter")
    assert column(opened, table, 0) == sorted(before)


def test_a_word_finds_rows(opened):
    opened.locator("#results .find").first.fill("case_zz")

    table = "#results table:has(caption:text('Dice of every case'))"
    assert opened.locator(f"{table} tbody tr:visible").count() == 1


def test_a_case_leads_to_its_picture(opened):
    opened.locator("#results tbody a:text('case_01')").first.click()

    figure = opened.locator("figure[id$='case-case_01']")
    assert figure.evaluate("one => one.getBoundingClientRect().top < innerHeight")


def test_on_paper_everything_is_open_and_nothing_is_cut_off(opened):
    opened.emulate_media(media="print")
    opened.set_viewport_size({"width": 700, "height": 900})  # A4 less its margins
    shut = opened.locator("details:not([open])").count()
    opened.evaluate("dispatchEvent(new Event('beforeprint'))")

    assert shut > 0
    assert opened.locator("details:not([open])").count() == 0
    assert not opened.locator("nav").is_visible()
    cut = opened.evaluate(
        "[...document.querySelectorAll('.scroll')].filter("
        "one => getComputedStyle(one).overflowX !== 'visible').length"
    )
    assert cut == 0
    assert opened.evaluate("document.scrollingElement.scrollWidth") <= 700
    opened.evaluate("dispatchEvent(new Event('afterprint'))")
    assert opened.locator("details:not([open])").count() == shut
    assert len(opened.pdf()) > 50_000
