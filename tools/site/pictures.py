"""Makes pictures of the documents: python -m tools.site.pictures

They show the photo that comes with the package, or what `sharpmask synth` draws.
"""

from __future__ import annotations

import io
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from playwright.sync_api import sync_playwright

from sharpmask import MaskPredictor, ProposalGenerator, load_model
from sharpmask.cli import main as sharpmask
from tools.site.browser import chromium

FOLDER = Path(__file__).parents[2] / "docs/images"
PHOTO = files("sharpmask") / "assets" / "coffee.jpg"
CLICK = (280, 110)
TILE = 160

Pixels = npt.NDArray[np.uint8]


def cutouts() -> Image.Image:
    """The six best objects that fill at least a hundredth of the photo, side by side on grey."""
    found = ProposalGenerator(load_model(), top_n=50).generate(str(PHOTO))
    height, width = found.size
    large = [cutout for cutout, area in zip(found.cutouts(), found.areas, strict=True) if area > height * width / 100]
    sheet = Image.new("RGB", (6 * TILE, TILE), (128, 128, 128))
    for number, cutout in enumerate(large[:6]):
        tile = Image.fromarray(cutout)
        tile.thumbnail((TILE - 8, TILE - 8))
        place = (number * TILE + (TILE - tile.width) // 2, (TILE - tile.height) // 2)
        sheet.paste(tile, place, tile)
    return sheet


def clicks() -> Image.Image:
    """The three masks of one click, each bright on the darkened photo."""
    photo = Image.open(str(PHOTO)).convert("RGB")
    predictor = MaskPredictor(load_model())
    predictor.set_image(photo)
    pixels: Pixels = np.asarray(photo)
    parts = []
    for mask in predictor.predict(points=[CLICK])[0]:
        part = Image.fromarray(np.where(mask[..., None], pixels, pixels // 4))
        x, y = CLICK
        ImageDraw.Draw(part).ellipse((x - 8, y - 8, x + 8, y + 8), fill=(0, 200, 80), outline="white", width=2)
        parts.append(np.asarray(part.resize((part.width // 2, part.height // 2))))
    return Image.fromarray(np.concatenate(parts, axis=1))


def gallery() -> Image.Image:
    """The top of the page that `sharpmask eval --gallery` makes of drawn pictures."""
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        data, out = f"{folder}/data", Path(folder, "out")
        sharpmask(["synth", data, "--images", "16", "--seed", "3", "--textures", "generated"])
        sharpmask(["eval", "--dataset", data, "--out", str(out), "--top-n", "100", "--gallery", "6"])
        browser = playwright.chromium.launch(executable_path=chromium())
        page = browser.new_page(viewport={"width": 860, "height": 1000}, color_scheme="light")
        page.goto((out / "gallery.html").as_uri())
        shot = page.screenshot()
        browser.close()
    return Image.open(io.BytesIO(shot)).convert("RGB")


def main() -> None:
    for draw in (cutouts, clicks, gallery):
        path = FOLDER / f"{draw.__name__}.jpg"
        draw().save(path, quality=85)
        print(f"{path.name}: {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
