"""Find object masks in a photo with ONNX Runtime, NumPy and Pillow: no PyTorch.

`sharpmask export small exported` makes the folder with the graphs. With no arguments this script does it by itself and
takes the photo that comes with the package. Writes masks.png into the current folder.
"""

import json
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

TOP_N, SHOWN, COLOURS = 100, 8, [(230, 60, 60), (60, 160, 230), (80, 190, 90), (240, 180, 40)]


class Predictor:
    """The graphs in a folder, and how windows are searched."""

    def __init__(self, folder: Path) -> None:
        self.bottom_up, self.window_masks = (
            onnxruntime.InferenceSession(folder / name) for name in ("bottom_up.onnx", "window_masks.onnx")
        )
        about = json.loads((folder / "model.json").read_text())
        self.window, self.search = about["window"], about["search"]

    def __call__(self, photo: Image.Image) -> list[tuple[float, np.ndarray]]:
        """Score and mask (h, w) of the best windows, the best first."""
        scales, maps = self.search["scales"], []
        for scale in scales:
            size = [max(1, round(length * scale)) for length in photo.size]
            pixels = np.asarray(photo.resize(size, Image.Resampling.BILINEAR), np.float32) / 255
            maps.append(self.bottom_up.run(None, {"picture": pixels.transpose(2, 0, 1)[None]}))
        # Fine scales have more windows that may be wrong.
        weights = [(scale / scales[0]) ** -self.search["scale_prior"] for scale in scales]
        scores = [weight / (1 + np.exp(-m[1][0, 0])) for weight, m in zip(weights, maps, strict=True)]
        least = np.sort(np.concatenate([s.ravel() for s in scores]))[-TOP_N:][0]
        found = []
        for scale, score, (codes, _, *horizontals) in zip(scales, scores, maps, strict=True):
            row, col = np.nonzero(score >= least)
            names = [port.name for port in self.window_masks.get_inputs()]
            given = dict(zip(names, [codes, row, col, *horizontals], strict=True))
            for logits, r, c in zip(self.window_masks.run(None, given)[0], row, col, strict=True):
                found.append(
                    (float(score[r, c]) * sharpness(logits), self.pasted(logits, (int(r), int(c)), scale, photo.size))
                )
        return distinct(sorted(found, key=lambda item: -item[0]), self.search["mask_nms"] or 1)

    def pasted(self, logits: np.ndarray, cell: tuple[int, int], scale: float, size: tuple[int, int]) -> np.ndarray:
        """The logits (S, S) of the window at ``cell``, its row and column, as a mask of the photo."""
        ratio = [max(1, round(length * scale)) / length for length in size]
        # The photo's point (x, y) lies at (ratio * x + offset) in the window.
        offset = [self.window / 2 - 16 * place for place in cell[::-1]]
        threshold = np.log(self.search["threshold"] / (1 - self.search["threshold"]))
        affine = (ratio[0], 0, offset[0], 0, ratio[1], offset[1])
        picture = Image.fromarray(logits - threshold)  # beyond it is 0, which is below no threshold
        return np.asarray(picture.transform(size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)) > 0


def sharpness(logits: np.ndarray) -> float:
    """The share of a mask that stays when its threshold rises from a probability of 0.12 to 0.5."""
    return float((logits > 0).sum() / max(1, (logits > np.log(0.12 / 0.88)).sum()))


def distinct(found: list[tuple[float, np.ndarray]], most: float) -> list[tuple[float, np.ndarray]]:
    """The masks that have at most ``most`` IoU with each better one, without empty ones."""
    kept: list[tuple[float, np.ndarray]] = []
    for score, mask in found:
        ious = ((mask & other).sum() / (mask | other).sum() for _, other in kept)
        if mask.any() and all(iou <= most for iou in ious):
            kept.append((score, mask))
    return kept


def main() -> None:
    photo = sys.argv[2] if sys.argv[2:] else str(files("sharpmask") / "assets" / "coffee.jpg")
    with tempfile.TemporaryDirectory() as made:
        if not sys.argv[1:]:
            subprocess.run(["sharpmask", "export", "small", made], check=True)
        predict = Predictor(Path(sys.argv[1] if sys.argv[1:] else made))
    picture = Image.open(photo).convert("RGB")
    pixels = np.asarray(picture).copy()
    for i, (score, mask) in enumerate(predict(picture)[:SHOWN]):
        print(f"score {score:.2f}, {mask.sum()} pixels")
        pixels[mask] = pixels[mask] // 2 + np.array(COLOURS[i % len(COLOURS)], np.uint8) // 2
    Image.fromarray(pixels).save("masks.png")
    print("masks.png: the best masks over the photo")


if __name__ == "__main__":
    main()
