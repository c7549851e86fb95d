"""The page itself, in headless Chromium with software rendering.

`MIM3D_PICTURES=docs/pictures pytest tests/workflows/view/test_page.py -n 0 -k picture` draws the
pictures of the documentation anew.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from mim3d.config.view import ViewConfig
from mim3d.data.phantom import PhantomRule, make_cohort
from mim3d.inference.label_files import write_label_files
from mim3d.workflows.view.server import serving
from mim3d.workflows.view.view import opened

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]
SOFTWARE = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
PATIENCE = 90_000
MIDDLE = """() => {
    const stage = window.mim3d.stage, nv = stage.nv, gl = nv.gl;
    nv.drawScene();
    const pixels = new Uint8Array(4 * gl.drawingBufferWidth * gl.drawingBufferHeight);
    gl.readPixels(0, 0, gl.drawingBufferWidth, gl.drawingBufferHeight, gl.RGBA, gl.UNSIGNED_BYTE,
        pixels);
    let grey = 0, coloured = 0;
    for (let n = 0; n < pixels.length; n += 4) {
        const [r, g, b] = pixels.subarray(n, n + 3);
        if (r === g && g === b && r > 40) grey++;
        if (Math.max(r, g, b) - Math.min(r, g, b) > 40) coloured++;
    }
    return {grey, coloured, all: pixels.length / 4};
}"""


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=SOFTWARE)
        yield browser
        browser.close()


class Page:
    """A page of the viewer, and whatever went wrong in it."""

    def __init__(self, browser, address, size=(1000, 420)):
        context = browser.new_context(viewport={"width": size[0], "height": size[1]})
        context.set_default_timeout(PATIENCE)
        self.page = context.new_page()
        self.address, self.wrong, self.asked = address, [], []
        self.page.on("console", lambda m: self.wrong.append(m.text) if m.type != "log" else None)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("requestfailed", lambda request: self.wrong.append(request.url))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(address)

    def ready(self, case):
        self.page.wait_for_selector(f'#stage[data-ready="{case}"]', state="attached")
        return self

    def until(self, expression):
        """Waits for it to hold; asked from here, as the page's policy lets it evaluate no text."""
        for _ in range(PATIENCE // 50):
            if self.page.evaluate(expression):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"never held: {expression}")

    def pixels(self):
        return self.page.evaluate(MIDDLE)

    def text(self, selector):
        return self.page.locator(selector).inner_text()


@pytest.fixture(scope="module")
def viewed(browser, study_once):
    with opened(str(study_once / "study"), ViewConfig()) as (server, _), serving(server) as address:
        yield Page(browser, address).ready("case_a")


def test_a_case_is_drawn_with_its_classes_and_scores(viewed):
    pixels = viewed.pixels()

    assert pixels["grey"] > 0.02 * pixels["all"]
    assert pixels["coloured"] > 0.01 * pixels["all"]
    assert "liver" in viewed.text("#classes")
    assert "left kidney" in viewed.text("#scores")
    assert "1.000" in viewed.text("#scores")
    assert viewed.text("#case-name") == "case_a"
    assert "mm (RAS)" in viewed.text("#point")
    assert "liver" in viewed.text("#point")
    assert viewed.wrong == []
    viewed.page.click("[data-view=planes]")  # the tests below need no rendering, which is slow here


def test_next_and_previous_show_another_case(viewed):
    viewed.page.click("#next")
    viewed.ready("case_b")
    score = viewed.text("#scores")
    viewed.page.keyboard.press("ArrowRight")
    viewed.ready("case_c")
    assert viewed.text("#scores") != score
    assert viewed.page.locator("[aria-current=true] .name").inner_text() == "case_c"
    viewed.page.click("#next")
    viewed.ready("case_a")
    viewed.page.click("#previous")
    viewed.ready("case_c")
    assert viewed.page.url.endswith("#case_c")
    assert viewed.wrong == []


def test_overlays_go_and_come_back(viewed):
    with_overlays = viewed.pixels()["coloured"]

    viewed.page.keyboard.press("h")
    without = viewed.pixels()["coloured"]
    viewed.page.keyboard.press("h")

    assert without < 0.5 * with_overlays
    assert viewed.pixels()["coloured"] == pytest.approx(with_overlays, rel=0.02)


def test_a_class_is_hidden_by_a_click_and_its_colour_goes(viewed):
    before = viewed.pixels()["coloured"]

    viewed.page.click("#classes tr:has-text('liver')")
    hidden = viewed.pixels()["coloured"]
    viewed.page.click("#all-classes")

    assert hidden < before
    assert viewed.pixels()["coloured"] == pytest.approx(before, rel=0.02)


def test_a_difference_is_drawn_where_label_and_prediction_disagree(viewed):
    viewed.page.locator(".overlay:has-text('difference') input[type=checkbox]").check()
    viewed.until("[...window.mim3d.stage.overlays.keys()].some(k => /compare/.test(k))")

    assert viewed.pixels()["coloured"] > 0
    viewed.page.locator(".overlay:has-text('difference') input[type=checkbox]").uncheck()
    assert viewed.wrong == []


def test_planes_and_rendering_are_chosen(viewed):
    pixels = {}
    for name in ("axial", "render", "planes"):
        viewed.page.click(f"[data-view={name}]")
        pixels[name] = viewed.pixels()
        assert pixels[name]["grey"] + pixels[name]["coloured"] > 0.01 * pixels[name]["all"]

    assert pixels["axial"] != pixels["render"]


def test_the_grey_window_changes_the_picture(viewed):
    before = viewed.pixels()["grey"]

    viewed.page.fill("#low", "5000")
    viewed.page.fill("#high", "9000")
    viewed.page.keyboard.press("Tab")
    dark = viewed.pixels()["grey"]
    viewed.page.click("#windows button:has-text('auto')")

    assert dark < 0.2 * before


def test_the_pictures_of_a_run_are_leafed_through(viewed):
    viewed.page.click("#tab-pictures")
    viewed.until("document.getElementById('picture').naturalWidth === 40")
    last = viewed.page.get_attribute("#picture", "src")
    assert viewed.text("#step-name") == "step 100"

    viewed.page.locator("#step").press("ArrowLeft")
    viewed.until("document.getElementById('picture').naturalWidth === 40")

    assert viewed.text("#step-name") == "step 0"
    assert viewed.page.get_attribute("#picture", "src") != last
    viewed.page.click("#tab-cases")
    assert viewed.wrong == []


def test_cases_are_found_and_sorted_by_their_worst_dice(viewed):
    viewed.page.select_option("#order", "worst")
    names = viewed.page.locator("#cases .name").all_text_contents()
    viewed.page.fill("#search", "_B")
    found = viewed.page.locator("#cases .name").all_text_contents()
    viewed.page.fill("#search", "")
    viewed.page.select_option("#order", "found")

    assert names == ["case_c", "case_b", "case_a"]
    assert found == ["case_b"]


def test_the_page_asks_this_server_alone(viewed):
    asked = [url for url in viewed.asked if not url.startswith(("data:", "blob:"))]

    assert asked
    assert all(url.startswith(viewed.address) for url in asked)


def test_the_page_cannot_reach_the_network_or_run_foreign_script(browser, study):
    with opened(str(study / "runs")) as (server, _), serving(server) as address:
        page = Page(browser, address).ready("pictures").page

        reached = page.evaluate("fetch('https://example.org/').then(() => true, () => false)")
        page.evaluate("""() => {
            const script = document.createElement('script');
            script.textContent = 'window.foreign = true';
            document.body.append(script);
        }""")

        assert reached is False
        assert page.evaluate("window.foreign") is None


def test_what_cannot_be_read_is_told_and_nothing_of_another_case_is_shown(browser, study):
    for path, size in ((study / "images/case_a.nii.gz", 120), (study / "labels/case_b.nii.gz", 90)):
        path.write_bytes(path.read_bytes()[:size])
    paths = [str(study / "images"), str(study / "labels")]
    with opened(paths) as (server, _), serving(server) as address:
        page = Page(browser, address)
        page.page.click("[data-view=planes]")
        page.page.wait_for_selector("#trouble:not([hidden])")
        assert "case_a.nii.gz" in page.text("#trouble")

        # A label map that is damaged does not hide its image.
        page.page.click("#next")
        page.ready("case_b")
        assert "case_b.nii.gz" in page.text("#trouble")
        assert page.pixels()["grey"] > 0

        page.page.click("#next")
        page.ready("case_c")
        assert not page.page.is_visible("#trouble")
        assert page.page.is_visible("#classes")

        page.page.click("#next")
        page.page.wait_for_selector("#trouble:not([hidden])")
        assert page.text("#case-name") == "case_a"
        assert page.page.evaluate("window.mim3d.stage.nv.volumes.length") == 0
        assert not page.page.is_visible("#classes")


def test_what_was_asked_for_in_one_case_is_not_drawn_over_the_next(viewed):
    page, late = viewed.page, []
    box = page.locator(".overlay:has-text('difference') input[type=checkbox]")
    page.click("#next")
    page.wait_for_selector("#stage[data-ready]", state="attached")
    page.route("**/compare/*/*.nii", lambda route: late.append(route))
    with page.expect_request("**/compare/*/*.nii"):
        box.check()
    box.uncheck()
    page.click("#next")
    page.wait_for_selector("#stage[data-ready]", state="attached")
    with page.expect_response("**/compare/*/*.nii"):
        late[0].continue_()
    half_opened = """async () => {
        const stage = window.mim3d.stage;
        const look = {opacity: 1, outline: false, shown: true, hidden: new Set()};
        const buffer = await (await fetch([...stage.overlays.keys()][0] + '.nii')).arrayBuffer();
        const late = stage.showLabels('labels/late', buffer, [], look);
        stage.begin();
        await late;
        return [...stage.overlays.keys()];
    }"""

    keys = page.evaluate(half_opened)
    page.unroute("**/compare/*/*.nii")

    assert len(keys) == 2
    assert not any(key.startswith("compare") or key == "labels/late" for key in keys)


def test_a_foreign_label_name_is_text_and_no_markup(browser, study):
    mark = "<img src=x onerror=window.foreign=1>"
    text = (study / "predictions/mae/labels.json").read_text()
    (study / "predictions/mae/labels.json").write_text(text.replace("liver", mark))
    (study / "results.json").unlink()
    with opened(str(study)) as (server, _), serving(server) as address:
        page = Page(browser, address).ready("case_a")

        assert mark in page.text("#classes")
        assert mark in page.text("#scores")  # computed here, for there are no results
        assert page.page.evaluate("window.foreign") is None
    assert page.wrong == []


def pretended(labels, spacing_mm):
    """A prediction as a fair segmenter makes it: each organ smoothed, grown or shrunk, shifted."""
    guess = np.zeros_like(labels)
    for value in np.unique(labels)[1:]:
        soft = ndimage.gaussian_filter((labels == value).astype(float), 2.5 / np.array(spacing_mm))
        guess[ndimage.shift(soft, (0.8, -0.6, 0.3), order=1) > 0.42 + 0.02 * value] = value
    return guess


@pytest.mark.skipif("MIM3D_PICTURES" not in os.environ, reason="MIM3D_PICTURES names no folder")
def test_a_picture_of_the_viewer_for_the_documentation(browser, tmp_path):
    rule = PhantomRule(shape=(96, 88, 56), spacing_mm=(1.5, 1.5, 2.5), modality="ct", noise=0.05)
    make_cohort(tmp_path / "scans", training=3, validation=5, rule=rule)
    with opened(str(tmp_path / "scans")) as (_, catalogue):
        layers = [layer for layer in catalogue.layers if layer.role == "label"]
    for layer in layers[3:]:
        image = nib.load(layer.path)
        guess = pretended(np.asarray(image.dataobj), rule.spacing_mm)
        target = tmp_path / "predictions/mae" / layer.path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(guess, image.affine), target)
    write_label_files(tmp_path / "predictions/mae", layers[0].classes)

    with opened(str(tmp_path)) as (server, _), serving(server) as address:
        page = Page(browser, address + "#phantom_004", (1440, 900)).ready("phantom_004")
        folder = Path(os.environ["MIM3D_PICTURES"])
        page.page.wait_for_timeout(500)
        page.page.screenshot(path=folder / "view.png")

    assert page.wrong == []
