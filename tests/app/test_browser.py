"""The page in a browser, from a photo to a downloaded file: with a mouse, by keyboard alone, and on a phone.

Chromium is any that is installed, or the one that CHROMIUM names. Screenshots go to the folder that SCREENSHOTS names.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Download, Locator, Page, expect, sync_playwright
from pycocotools import mask as coco_mask

from sharpmask import MaskPredictor, ProposalGenerator, Proposals, load_model
from tests.app.serving import served
from tests.app.test_server import bomb
from tools.site.browser import chromium

pytestmark = pytest.mark.slow

COFFEE = Path(str(files("sharpmask") / "assets" / "coffee.jpg"))
CUP, SPOON = (280, 110), (365, 285)
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}

expect.set_options(timeout=30_000)  # a search takes long where others use the cores too


@pytest.fixture(scope="module")
def generator() -> ProposalGenerator:
    """A search of few pixels, for speed."""
    return ProposalGenerator(load_model(), top_n=30, max_side=300)


@pytest.fixture(scope="module")
def proposals(generator: ProposalGenerator) -> Proposals:
    return generator.generate(COFFEE)


@pytest.fixture(scope="module")
def predictor(generator: ProposalGenerator) -> MaskPredictor:
    predictor = MaskPredictor(generator.model, max_side=generator.max_side)
    predictor.set_image(COFFEE)
    return predictor


@pytest.fixture(scope="module")
def url(generator: ProposalGenerator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(generator, tmp_path_factory.mktemp("open")) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium())
        yield browser
        browser.close()


@pytest.fixture(params=[{"viewport": {"width": 1200, "height": 800}}], ids=["desktop"])
def page(browser: Browser, url: str, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page, which must ask nobody but its own server, and raise no error."""
    page = browser.new_page(**request.param)
    asked: list[str] = []
    errors: list[str] = []
    page.on("request", lambda asking: asked.append(asking.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: errors.append(said.text) if "Content Security" in said.text else None)
    page.goto(url)
    yield page
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{request.node.name}.png", full_page=True)
    page.close()
    assert asked and {urlsplit(address).netloc for address in asked if not address.startswith("blob:")} == {
        urlsplit(url).netloc
    }
    assert not errors


phone = pytest.mark.parametrize("page", [PHONE], ids=["phone"], indirect=True)


def choose(page: Page, photo: Path) -> None:
    page.get_by_label("Choose a photo").set_input_files(photo)
    expect(page.get_by_role("status")).to_contain_text("proposals.")


def at(page: Page, place: tuple[float, float]) -> dict[str, float]:
    """A place of the photo on the canvas."""
    shown = canvas(page).bounding_box()
    assert shown is not None
    return {"x": place[0] * shown["width"] / 600, "y": place[1] * shown["height"] / 400}


def canvas(page: Page) -> Locator:
    return page.get_by_role("application")


def rows(page: Page) -> Locator:
    return page.get_by_role("list", name="Masks with score and area").get_by_role("listitem")


def download(page: Page, kind: str) -> Download:
    with page.expect_download() as coming:
        page.get_by_role("button", name=kind).click()
    return coming.value


def masks_in(file: Download) -> list[np.ndarray]:
    assert file.suggested_filename == "coffee-coco.json"
    return [coco_mask.decode(entry["segmentation"]).astype(bool) for entry in json.loads(file.path().read_text())]


def wait_until_lit(page: Page, place: tuple[float, float], unlit: list[int], lit: bool = True) -> None:
    """Wait until a mask is drawn over a place, or is not."""
    differs = "(value, i) => Math.abs(value - unlit[i]) > 30"
    pixel = "[...pen.getImageData(x, y, 1, 1).data.slice(0, 3)]"
    page.wait_for_function(f"([[x, y], unlit, lit]) => {pixel}.some({differs}) === lit", arg=[[*place], unlit, lit])


def pixel(page: Page, place: tuple[float, float]) -> list[int]:
    """The colour that is drawn at a place."""
    found: list[int] = page.evaluate("([x, y]) => [...pen.getImageData(x, y, 1, 1).data.slice(0, 3)]", list(place))
    return found


def test_from_a_photo_to_files(page: Page, predictor: MaskPredictor, proposals: Proposals) -> None:
    """Click, shift-click, keep, discard, and download all three kinds."""
    choose(page, COFFEE)
    expect(rows(page)).to_have_count(10)
    canvas(page).click(position=at(page, CUP))
    expect(page.get_by_role("radio", name="px")).not_to_have_count(0)
    canvas(page).click(position=at(page, SPOON), modifiers=["Shift"])
    expect(page.get_by_role("status")).to_contain_text("px")
    page.get_by_role("button", name="Keep", exact=True).first.click()
    expect(page.get_by_role("status")).to_contain_text("Kept")
    expect(rows(page)).to_have_count(11)
    rows(page).nth(1).get_by_role("button", name="Discard").click()
    rows(page).nth(2).get_by_role("button", name="Keep").click()
    expect(page.get_by_role("group", name="Download 2 kept")).to_be_visible()

    masks = masks_in(download(page, "COCO JSON"))
    expected, scores, _ = predictor.predict([CUP, SPOON], [1, 0])
    assert len(masks) == 2
    assert overlap(masks[1], expected[scores.argmax()]) > 0.98  # the place on the screen is a whole pixel
    assert (masks[0] == proposals.masks()[2]).all()

    pictures = zipfile.ZipFile(download(page, "PNG masks").path())
    assert (np.asarray(Image.open(pictures.open("mask_00001.png"))).astype(bool) == masks[0]).all()
    cut = zipfile.ZipFile(download(page, "Cut-outs").path())
    assert (np.asarray(Image.open(cut.open("cutout_00002.png")))[..., 3] > 0).sum() == masks[1].sum()


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_slider_and_hover(page: Page, proposals: Proposals) -> None:
    choose(page, COFFEE)
    slider = page.get_by_role("slider")
    slider.fill("4")
    expect(rows(page)).to_have_count(4)
    smallest = int(proposals.areas[:4].argmin())
    place = middle(proposals.masks()[smallest])
    unlit = pixel(page, place)
    rows(page).nth(smallest).hover()
    wait_until_lit(page, place, unlit)
    page.get_by_role("heading").hover()
    wait_until_lit(page, place, unlit, lit=False)
    canvas(page).hover(position=at(page, place))
    wait_until_lit(page, place, unlit)
    expect(rows(page).nth(smallest)).to_have_class("hover")
    slider.fill("0")
    expect(rows(page)).to_have_count(0)


def middle(mask: np.ndarray) -> tuple[float, float]:
    """A place far from the mask's border."""
    while True:
        smaller = mask.copy()
        for axis in (0, 1):
            smaller &= np.roll(mask, 1, axis) & np.roll(mask, -1, axis)
        if not smaller.any():
            row, column = np.argwhere(mask)[0]
            return column + 0.5, row + 0.5
        mask = smaller


@pytest.mark.parametrize("shown", [(53, 37), (20, 16), (106, 74)], ids=["as it is", "reduced", "enlarged"])
def test_a_mask_is_read_as_it_is(page: Page, shown: tuple[int, int]) -> None:
    """The script's reading of COCO's RLE: at another size, a pixel has the value at its centre."""
    mask = np.random.default_rng(2).random((37, 53)).repeat(5, 0)[:37] > 0.5
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    columns = page.evaluate(
        "([rle, view]) => [...reduced(columnsOf(rle), view, {width: 53, height: 37})]",
        [{"size": rle["size"], "counts": rle["counts"].decode()}, {"width": shown[0], "height": shown[1]}],
    )
    found = np.zeros(shown[::-1], dtype=bool)
    for x, ends in columns:
        assert ends == sorted(set(ends)) and len(ends) % 2 == 0
        for start, end in zip(ends[::2], ends[1::2], strict=True):
            found[int(start) : int(end), x] = True  # 0 may come as -0.0
    x, y = (((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(shown, (53, 37), strict=True))
    assert (found == mask[np.ix_(y, x)]).all()


def test_box_by_mouse(page: Page, predictor: MaskPredictor) -> None:
    choose(page, COFFEE)
    start, end = at(page, (165, 15)), at(page, (405, 220))
    shown = canvas(page).bounding_box()
    assert shown is not None
    page.mouse.move(shown["x"] + start["x"], shown["y"] + start["y"])
    page.mouse.down()
    page.mouse.move(shown["x"] + end["x"], shown["y"] + end["y"], steps=3)
    page.mouse.up()
    expect(page.get_by_role("status")).to_contain_text("px")
    page.get_by_role("button", name="Keep", exact=True).first.click()
    expected, scores, _ = predictor.predict(boxes=(165, 15, 405, 220))
    assert overlap(masks_in(download(page, "COCO JSON"))[0], expected[scores.argmax()]) > 0.98


def test_keyboard_alone(page: Page) -> None:
    """From the photo, which the file dialog gives, to the file without a pointer."""
    # The first listener has the browser give dialogs to the test, which takes it a moment.
    page.on("filechooser", lambda chooser: None)
    page.keyboard.press("Tab")
    expect(page.get_by_label("Choose a photo")).to_be_focused()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(COFFEE)
    expect(page.get_by_role("status")).to_contain_text("proposals.")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(canvas(page)).to_be_focused()
    for key, count in (("ArrowUp", 7), ("ArrowLeft", 2)):  # from the middle, 12 pixels a step
        for _ in range(count):
            page.keyboard.press(key)
    page.keyboard.press("Enter")
    expect(page.get_by_role("radio", name="px")).not_to_have_count(0)
    page.keyboard.press("k")
    expect(page.get_by_role("status")).to_contain_text("Kept")
    page.keyboard.press("3")
    page.keyboard.press("Enter")
    for key in ["ArrowDown"] * 10 + ["ArrowRight"] * 12:
        page.keyboard.press(key)
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text(":")
    page.keyboard.press("m")
    page.keyboard.press("Escape")
    expect(page.get_by_role("group", name="Masks for your clicks")).to_be_hidden()
    page.keyboard.press("Tab")  # the help
    page.keyboard.press("Tab")  # the slider
    page.keyboard.press("Home")
    expect(rows(page)).to_have_count(1)
    for _ in range(4):  # Keep and Discard of the kept mask, Keep all, COCO JSON
        page.keyboard.press("Tab")
    with page.expect_download() as coming:
        page.keyboard.press("Enter")
    (mask,) = masks_in(coming.value)
    assert mask[200 - 7 * 12, 300 - 2 * 12]


@phone
def test_on_a_phone(page: Page) -> None:
    """Taps, the switch for what does not belong to it, and nothing wider than the screen."""
    choose(page, COFFEE)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for name in ("Choose a photo", "Not on it", "Box"):
        shown = page.get_by_text(name, exact=True).first.bounding_box()
        assert shown is not None and shown["height"] >= 38, "fingers are wide"
    place = at(page, CUP)
    canvas(page).tap(position=place)
    expect(page.get_by_role("radio", name="px")).not_to_have_count(0)
    page.get_by_text("Not on it", exact=True).tap()
    canvas(page).tap(position=at(page, SPOON))
    expect(page.get_by_role("status")).to_contain_text("px")
    page.get_by_role("button", name="Keep", exact=True).first.tap()
    (mask,) = masks_in(download(page, "COCO JSON"))
    assert mask[CUP[1], CUP[0]] and not mask[SPOON[1], SPOON[0]]
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_bad_photos(page: Page, tmp_path: Path) -> None:
    """Each gives a line that says what is wrong; the page and the photo before it go on."""
    choose(page, COFFEE)
    broken = COFFEE.read_bytes()[:5000]
    for name, content, words in (
        ("empty.jpg", b"", "empty.jpg: a photo must have 1 to"),
        ("broken.jpg", broken, "broken.jpg: cannot be read as an image"),
        ("text.jpg", b"hello", "text.jpg: not an image of a known format"),
        ("huge.bmp", bomb(), "huge.bmp: "),
    ):
        (tmp_path / name).write_bytes(content)
        page.get_by_label("Choose a photo").set_input_files(tmp_path / name)
        expect(page.get_by_role("alert")).to_contain_text(words)
    canvas(page).click(position=at(page, CUP))
    expect(page.get_by_role("radio", name="px")).not_to_have_count(0)
    expect(page.get_by_role("alert")).to_have_count(0)


def test_dropped_photo_and_dropped_text(page: Page) -> None:
    drop = """async ([name, bytes]) => {
        const data = new DataTransfer();
        if (bytes) data.items.add(new File([new Uint8Array(bytes)], name));
        document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
    }"""
    page.evaluate(drop, ["", None])
    expect(page.get_by_role("alert")).to_contain_text("drop a photo")
    page.evaluate(drop, ["coffee.jpg", list(COFFEE.read_bytes())])
    expect(page.get_by_role("status")).to_contain_text("coffee.jpg: 600 × 400 pixels")


def test_a_program_that_has_ended(browser: Browser, generator: ProposalGenerator, tmp_path: Path) -> None:
    """It is told, and what is on the page stays."""
    page = browser.new_page()
    with served(generator, tmp_path) as url:
        page.goto(url)
        choose(page, COFFEE)
    canvas(page).click(position=at(page, CUP))
    expect(page.get_by_role("alert")).to_contain_text("start sharpmask app again")
    expect(rows(page)).not_to_have_count(0)
    page.close()
