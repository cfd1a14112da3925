"""Turn clicks, or a detector's boxes, into masks.

Writes a picture of each answer into the current folder.
"""

from importlib.resources import files

import numpy as np

from sharpmask import MaskPredictor, load_model
from sharpmask.data.images import load_image
from sharpmask.visualize import overlay, save_picture

CUP, SPOON = (280, 110), (365, 285)  # x, y in pixels
BOXES = [(165, 15, 405, 220), (320, 235, 405, 330)]  # x0, y0, x1, y1: the same two


def main() -> None:
    photo = str(files("sharpmask") / "assets" / "coffee.jpg")
    predictor = MaskPredictor(load_model())
    predictor.set_image(photo)  # takes most of the time

    masks, scores, _ = predictor.predict(points=[CUP])
    for mask, score in zip(masks, scores, strict=True):
        print(f"click on the cup: {mask.sum()} pixels, score {score:.2f}")

    masks, scores, _ = predictor.predict(points=[CUP, SPOON], labels=[1, 0])
    best = masks[np.argmax(scores)]
    print(f"the cup without the spoon: {best.sum()} pixels, contains the spoon: {best[SPOON[1], SPOON[0]]}")

    masks, scores, _ = predictor.predict(boxes=BOXES, multimask=False)
    for box, mask in zip(BOXES, masks[:, 0], strict=True):
        rows, cols = np.nonzero(mask)
        own = [int(v) for v in (cols.min(), rows.min(), cols.max() + 1, rows.max() + 1)]
        print(f"box {box}: the mask's own box is {own}")
    save_picture(overlay(load_image(photo), masks[:, 0], scores[:, 0].tolist()), "boxes.png")
    print("boxes.png: the masks over the photo")


if __name__ == "__main__":
    main()
