"""Makes the pictures of the tutorials from the photo that comes with the package: python -m tools.site.pictures"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from sharpmask import MaskPredictor, ProposalGenerator, load_model

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


def main() -> None:
    for draw in (cutouts, clicks):
        path = FOLDER / f"{draw.__name__}.jpg"
        draw().save(path, quality=85)
        print(f"{path.name}: {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
