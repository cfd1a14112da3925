"""Full-image inference against slow but plain evaluations, on images of every kind."""

import copy
import math
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pycocotools import mask as coco_mask

from sharpmask.data.images import load_image
from sharpmask.errors import DataError
from sharpmask.models import SharpMask, from_config
from sharpmask.models.config import SearchConfig
from sharpmask.models.inference import InferenceForm, InferenceMaps
from sharpmask.search.generator import ProposalGenerator, best_channel
from sharpmask.search.looking import stability
from sharpmask.search.maps import ImageMaps, Stopwatch
from sharpmask.search.prompts import on_photo
from sharpmask_kernels import Windows, topk_windows

WINDOW = 48
OBJECT = 128 / 224 * WINDOW
"""Longest side, in pixels of the scaled image, of the object that a window is made for."""


@pytest.fixture(scope="module")
def photo(synth: Path) -> np.ndarray:
    return load_image(synth / "images" / "000002.png")


@pytest.fixture
def generator(tiny_sharpmask: SharpMask) -> ProposalGenerator:
    return ProposalGenerator(tiny_sharpmask, top_n=40)


def look(generator: ProposalGenerator, image: np.ndarray) -> ImageMaps:
    with torch.inference_mode():
        return generator.look(image, Stopwatch(torch.device("cpu")))


def segment(generator: ProposalGenerator, maps: ImageMaps, windows: Windows) -> list[dict[str, Any]]:
    with torch.inference_mode():
        return generator.segment(maps, windows, Stopwatch(torch.device("cpu")))


def sharpness(generator: ProposalGenerator, maps: ImageMaps, windows: Windows) -> list[float]:
    """The stability of the masks of some windows."""
    with torch.inference_mode():
        return stability(generator.window_logits(maps, windows, Stopwatch(torch.device("cpu")))).tolist()


def decode(rles: list[dict[str, Any]]) -> list[np.ndarray]:
    return [coco_mask.decode(rle).astype(bool) for rle in rles]


def paste(logits: np.ndarray, row: int, col: int, scale: float, size: tuple[int, int]) -> np.ndarray:
    """Logits (S, S) of a window at the pixels of the image, -inf outside; pixel by pixel."""
    side = len(logits)
    out = np.full(size, -np.inf)
    ratio = [max(1, round(length * scale)) / length for length in size]

    def position(pixel: int, axis: int) -> float:
        return (pixel + 0.5) * ratio[axis] - 0.5 + side / 2 - 16 * (row, col)[axis]

    for y in range(size[0]):
        v = position(y, 0)
        if not -0.5 <= v < side - 0.5:
            continue
        for x in range(size[1]):
            u = position(x, 1)
            if -0.5 <= u < side - 0.5:
                a, b = min(max(v, 0), side - 1), min(max(u, 0), side - 1)
                i, j = int(a), int(b)
                corners = logits[np.ix_([i, min(i + 1, side - 1)], [j, min(j + 1, side - 1)])]
                out[y, x] = np.array([1 - a + i, a - i]) @ corners @ np.array([1 - b + j, b - j])
    return out


def assert_mask(mask: np.ndarray, logits: np.ndarray, threshold: float = 0.2) -> None:
    """The mask is where the logits exceed the threshold; logits very close to it may count either way."""
    bound = math.log(threshold / (1 - threshold))
    clear = np.abs(logits - bound) > 1e-2
    assert np.array_equal(mask[clear], logits[clear] > bound)
    assert clear.mean() > 0.98


def test_dense_inference_equals_each_window_by_itself(tiny_sharpmask: SharpMask) -> None:
    """A window's mask and score equal those of its patch of the scaled image, given enough context."""
    context = 512
    alone = from_config(replace(tiny_sharpmask.config, context=context)).eval()
    alone.load_state_dict(tiny_sharpmask.state_dict())
    rng = np.random.default_rng(0)
    rough = Image.fromarray(rng.integers(0, 256, (40, 44, 3), np.uint8))
    photo = np.asarray(rough.resize((660, 600), Image.Resampling.BICUBIC))
    search = SearchConfig(scales=(1.0,))
    generator = ProposalGenerator(tiny_sharpmask, top_n=5000, search=search, max_side=None)
    maps = look(generator, photo)
    assert maps.score[0].shape[2:] == (39, 43), "every 16 pixels from border to border, and one beyond"
    # Windows are centred at multiples of 16 pixels, and half a window of grey surrounds the photo.
    padded = np.full((600 + WINDOW, 660 + WINDOW, 3), 127.5, np.float32)
    padded[24:624, 24:684] = photo
    border = context // 2
    windows = [(16, 16), (18, 21), (20, 24)]
    chosen = Windows(torch.zeros(3), *torch.zeros(2, 3, dtype=torch.int64), *torch.tensor(windows).T)
    refined = decode(segment(generator, maps, chosen))
    coarse = decode(segment(replace(generator, refine=False), maps, chosen))
    for i, (row, col) in enumerate(windows):
        y, x = 16 * row - border, 16 * col - border
        patch = padded[y : y + WINDOW + context, x : x + WINDOW + context]
        assert patch.shape == (WINDOW + context, WINDOW + context, 3)
        with torch.inference_mode():
            expected = alone(torch.tensor(patch).permute(2, 0, 1)[None] / 255)
        assert float(maps.score[0][0, 0, row, col]) == pytest.approx(float(expected.score), abs=1e-3)
        assert_mask(refined[i], paste(expected.refined[0].numpy(), row, col, 1.0, (600, 660)))
        resized = F.interpolate(expected.coarse[None], (WINDOW, WINDOW), mode="bilinear")[0, 0]
        assert_mask(coarse[i], paste(resized.numpy(), row, col, 1.0, (600, 660)))
        assert not np.array_equal(refined[i], coarse[i])


def test_masks_are_pasted_at_every_scale(generator: ProposalGenerator, photo: np.ndarray) -> None:
    found = generator.generate(photo)
    maps = look(generator, photo)
    windows = topk_windows(maps.score, 40)
    assert len(found) == 40 and set(windows.scale.tolist()) == {0, 1, 2}
    with torch.inference_mode():
        code = generator.model.for_inference().codes(maps.codes, windows)
        logits = generator.model.refine_codes(code, maps.horizontals, windows)  # type: ignore[operator]
    masks = found.masks()
    for scale in range(3):
        for i in [i for i in range(40) if windows.scale[i] == scale][:3]:
            place = int(windows.row[i]), int(windows.col[i])
            assert_mask(masks[i], paste(logits[i].numpy(), *place, maps.scales[scale], photo.shape[:2]))


@pytest.mark.parametrize("geometry", ["centres", "released-exact"])
@pytest.mark.parametrize("scales", [(0.25, 0.5, 1.0), (1.0, 0.25, 0.5)])
def test_windows_chosen_scale_by_scale_are_those_chosen_of_all(
    tiny_sharpmask: SharpMask,
    photo: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    scales: tuple[float, ...],
    geometry: Any,
) -> None:
    search = replace(tiny_sharpmask.search, scales=scales, geometry=geometry)
    generator = ProposalGenerator(tiny_sharpmask, top_n=25, search=search)
    points, boxes = [(80.0, 60.0), (5.0, 110.0), (0.0, 0.0)], [(10, 10, 40, 40), (60, 5, 90, 100), (0, 0, 5, 5)]

    def masks() -> list[list[dict[str, Any]]]:
        return [
            generator.generate(photo).rles,
            generator.at_points(photo, points, candidates=4).rles,
            generator.in_boxes(photo, boxes).rles,
        ]

    found, original = masks(), ProposalGenerator.look
    monkeypatch.setattr(ProposalGenerator, "look", lambda self, image, watch, choose: original(self, image, watch))
    assert found == masks()


def test_trunk_maps_are_dropped_before_the_next_scale(
    generator: ProposalGenerator, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    taps: list[weakref.ref[torch.Tensor]] = []
    original = InferenceForm.__call__

    def spy(self: InferenceForm, picture: torch.Tensor) -> InferenceMaps:
        assert not any(tap() is not None for tap in taps)
        maps = original(self, picture)
        taps.extend(map(weakref.ref, maps.taps))
        return maps

    monkeypatch.setattr(InferenceForm, "__call__", spy)
    generator.generate(photo)
    assert len(taps) == 4 * 3


def test_proposals_come_best_first_with_tight_boxes(generator: ProposalGenerator, photo: np.ndarray) -> None:
    found = generator.generate(photo)
    best = torch.cat([s.flatten() for s in look(generator, photo).score]).sigmoid().sort(descending=True).values
    assert found.scores.dtype == np.float32 and found.scores.tolist() == pytest.approx(best[:40].tolist())
    assert found.masks().shape == (40, *photo.shape[:2]) and found.masks().dtype == bool
    for mask, (x, y, w, h) in zip(found.iter_masks(), found.boxes, strict=True):
        rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert (x, y, x + w, y + h) == (cols[0], rows[0], cols[-1] + 1, rows[-1] + 1)


def test_coarse_masks_are_of_the_same_windows(generator: ProposalGenerator, photo: np.ndarray) -> None:
    refined, coarse = generator.generate(photo), replace(generator, refine=False).generate(photo)
    assert refined.scores.tolist() == coarse.scores.tolist()
    assert refined.rles != coarse.rles
    assert {"refine", "horizontal"} <= refined.timing.keys() and "coarse masks" in coarse.timing
    assert not {"refine", "horizontal"} & coarse.timing.keys()


def test_a_deepmask_gives_its_coarse_masks(tiny_sharpmask: SharpMask, photo: np.ndarray) -> None:
    model = from_config(replace(tiny_sharpmask.config, architecture="deepmask"))
    model.load_state_dict(tiny_sharpmask.state_dict(), strict=False)
    model.search = tiny_sharpmask.search
    found = ProposalGenerator(model, top_n=10).generate(photo)
    assert found.rles == ProposalGenerator(tiny_sharpmask, top_n=10, refine=False).generate(photo).rles
    with pytest.raises(ValueError, match="grow needs a SharpMask"):
        ProposalGenerator(model).grow(photo)


def test_the_same_photo_gives_the_same_proposals(generator: ProposalGenerator, photo: np.ndarray) -> None:
    one, two = generator.generate(photo), generator.generate(photo.copy())
    assert one.rles == two.rles and one.scores.tolist() == two.scores.tolist()
    few = replace(generator, top_n=7).generate(photo)
    assert few.rles == one.rles[:7]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_models_of_other_dtypes_search(tiny_sharpmask: SharpMask, photo: np.ndarray, dtype: torch.dtype) -> None:
    search = SearchConfig(scales=(0.5,))
    wanted = ProposalGenerator(tiny_sharpmask, top_n=5, search=search).generate(photo)
    generator = ProposalGenerator(copy.deepcopy(tiny_sharpmask).to(dtype), top_n=5, search=search)
    found = generator.generate(photo)
    np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-5 if dtype == torch.float64 else 0.05)
    assert len(generator.at_points(photo, [(5, 5)])) == len(generator.in_boxes(photo, [(5, 5, 20, 20)])) == 1
    assert len(generator.grow(photo)[1]) == 5


def test_max_side_bounds_the_search_not_the_masks(tiny_sharpmask: SharpMask, photo: np.ndarray) -> None:
    def rles(scales: tuple[float, ...], max_side: int | None) -> list[dict[str, Any]]:
        search = SearchConfig(scales=scales)
        return ProposalGenerator(tiny_sharpmask, 10, search=search, max_side=max_side).generate(photo).rles

    half = rles((1.0, 0.75), photo.shape[1] // 2)
    assert half[0]["size"] == list(photo.shape[:2])
    assert half == rles((0.5, 0.375), None)
    assert rles((1.0,), 10_000) == rles((1.0,), None) != rles((1.0,), 100)


def write_images(folder: Path) -> dict[str, Path]:
    """One file of every kind, by name; ``big`` enough for several windows where that is possible."""
    rng = np.random.default_rng(1)
    rgb = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((101, 67), Image.Resampling.BICUBIC)
    wide = np.asarray(rgb.convert("L")).astype(np.uint16) * 257
    turned = Image.Exif()
    turned[0x0112] = 6
    kinds: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "grey": (rgb.convert("L"), "png", {}),
        "grey alpha": (rgb.convert("LA"), "png", {}),
        "bits": (rgb.convert("1"), "png", {}),
        "palette": (rgb.quantize(16), "png", {}),
        "cmyk": (rgb.convert("CMYK"), "jpg", {}),
        "exif": (rgb, "jpg", {"exif": turned}),
        "sixteen bits": (Image.fromarray(wide), "png", {}),
        "one pixel": (rgb.crop((0, 0, 1, 1)), "png", {}),
        "line": (rgb.crop((0, 0, 101, 1)), "png", {}),
        "column": (rgb.crop((0, 0, 2, 67)), "png", {}),
        "webp": (rgb, "webp", {}),
    }
    rgba = rgb.convert("RGBA")
    rgba.putalpha(Image.linear_gradient("L").resize(rgb.size))
    kinds["rgba"] = (rgba, "png", {})
    paths = {}
    for name, (image, suffix, options) in kinds.items():
        paths[name] = folder / f"{name}.{suffix}"
        image.save(paths[name], **options)
    return paths


def test_images_of_every_kind(generator: ProposalGenerator, tmp_path: Path) -> None:
    for name, path in write_images(tmp_path).items():
        found = generator.generate(path)
        pixels = load_image(path)
        assert len(found) > 0, name
        assert found.masks().shape[1:] == pixels.shape[:2], name
        assert np.isfinite(found.scores).all(), name
        for other in (str(path), pixels, Image.open(path)):
            again = generator.generate(other)
            assert np.array_equal(again.image, pixels), f"{name} as {type(other).__name__}"
            assert again.rles == found.rles, f"{name} as {type(other).__name__}"
        found.save_overlay(tmp_path / "overlay.png")
        assert load_image(tmp_path / "overlay.png").shape == pixels.shape, name
    assert generator.generate(tmp_path / "exif.jpg").image.shape == (101, 67, 3)


def test_arrays_that_are_views(generator: ProposalGenerator, photo: np.ndarray) -> None:
    expected = generator.generate(photo).rles
    bgr = np.ascontiguousarray(photo[..., ::-1])
    locked = photo.copy()
    locked.setflags(write=False)
    padded = np.zeros((photo.shape[0] + 2, photo.shape[1] + 2, 3), np.uint8)
    padded[1:-1, 1:-1] = photo
    for view in (bgr[..., ::-1], locked, padded[1:-1, 1:-1], np.asfortranarray(photo)):
        assert generator.generate(view).rles == expected


def test_unusable_input_is_refused(generator: ProposalGenerator, tmp_path: Path) -> None:
    for shape, dtype in (((9, 9), np.uint8), ((9, 9, 4), np.uint8), ((9, 9, 3), np.float32), ((0, 9, 3), np.uint8)):
        bad: Any = np.zeros(shape, dtype)
        with pytest.raises(ValueError, match=r"image must be uint8 \(h, w, 3\), got"):
            generator.generate(bad)
    with pytest.raises(DataError, match="no such image file"):
        generator.generate(tmp_path / "missing.jpg")
    for options in ({"top_n": 0}, {"max_side": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be a whole number from 1"):
            replace(generator, **options)
    with pytest.raises(ValueError, match="model must be a DeepMask or SharpMask, as load_model gives, got"):
        ProposalGenerator("x.safetensors")  # type: ignore[arg-type]


@pytest.mark.parametrize("scales", [(16.0,), tuple(4 - i / 64 for i in range(64))])
def test_scales_that_would_never_end_are_refused(generator: ProposalGenerator, scales: tuple[float, ...]) -> None:
    endless = replace(generator, search=SearchConfig(scales=scales))
    with pytest.raises(DataError, match=r"scales must give at most 33554432 pixels each and .* of a photo of 800x600"):
        endless.generate(np.zeros((600, 800, 3), np.uint8))
    with pytest.raises(DataError, match="candidates must be a whole number from 1 to 100000, got 0"):
        generator.at_points(np.zeros((60, 80, 3), np.uint8), [(5, 5)], candidates=0)


def spoil(monkeypatch: pytest.MonkeyPatch, change: Callable[[list[torch.Tensor]], None]) -> None:
    """Change the score maps of every image."""
    original = ProposalGenerator.look

    def spoiled(self: ProposalGenerator, image: Any, watch: Stopwatch, choose: Any = None) -> ImageMaps:
        maps = original(self, image, watch, choose)
        change(maps.score)
        return maps

    monkeypatch.setattr(ProposalGenerator, "look", spoiled)


def test_windows_without_a_score_are_dropped(
    generator: ProposalGenerator, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = generator.generate(photo)
    maps = look(generator, photo)
    finest = topk_windows(maps.score[:2], 40)

    def no_finest(scores: list[torch.Tensor]) -> None:
        scores[2].fill_(math.nan)

    def none(scores: list[torch.Tensor]) -> None:
        for score in scores:
            score.fill_(math.nan)

    with monkeypatch.context() as patch:
        spoil(patch, no_finest)
        found = replace(generator, top_n=100_000).generate(photo)
        assert np.isfinite(found.scores).all()
        assert 0 < len(found) <= sum(s.numel() for s in maps.score[:2])
        assert found.scores[:5].tolist() == pytest.approx(finest.score[:5].sigmoid().tolist())
    with monkeypatch.context() as patch:
        spoil(patch, none)
        assert len(generator.generate(photo)) == 0
        # Every point and box still has an answer; a point, with a score of 0.
        assert len(generator.in_boxes(photo, [(10, 10, 40, 40)])) == 1
        assert generator.at_points(photo, [(10, 10)]).scores.tolist() == [0.0]
    assert generator.generate(photo).rles == expected.rles


def test_no_mask_is_an_empty_result(tiny_sharpmask: SharpMask, photo: np.ndarray, tmp_path: Path) -> None:
    search = replace(tiny_sharpmask.search, threshold=1 - 1e-9)
    generator = ProposalGenerator(tiny_sharpmask, 20, search=search)
    found = generator.generate(photo)
    assert len(found) == 0 and found.rles == [] and found.to_coco(1) == []
    assert found.masks().shape == (0, *photo.shape[:2]) and found.boxes.shape == (0, 4)
    assert list(found.iter_masks()) == []
    found.save_overlay(tmp_path / "overlay.png")
    assert np.array_equal(load_image(tmp_path / "overlay.png"), photo)
    for nothing in (generator.at_points(photo, []), generator.in_boxes(photo, [])):
        assert len(nothing) == 0 and nothing.masks().shape == (0, *photo.shape[:2])


def test_suppression_leaves_no_two_alike(tiny_sharpmask: SharpMask, photo: np.ndarray) -> None:
    every = ProposalGenerator(tiny_sharpmask, 60).generate(photo)
    search = replace(tiny_sharpmask.search, mask_nms=0.4)
    few = ProposalGenerator(tiny_sharpmask, 60, search=search).generate(photo)
    assert 0 < len(few) < len(every)
    assert few.rles[0] == every.rles[0]
    of_every = dict(zip((rle["counts"] for rle in every.rles), every.scores.tolist(), strict=True))
    assert few.scores.tolist() == [of_every[rle["counts"]] for rle in few.rles], "each keeps its own score"
    overlaps = coco_mask.iou(few.rles, few.rles, [0] * len(few)) - np.eye(len(few))
    assert overlaps.max() <= 0.4


def grid(maps: ImageMaps) -> list[tuple[int, int, int, float, float, float]]:
    """Scale, row, col, centre x and y in the photo and logit of all windows, in the order of the maps."""
    height, width = maps.size
    cells = []
    for i, (scale, score) in enumerate(zip(maps.scales, maps.score, strict=True)):
        ratio_y, ratio_x = round(height * scale) / height, round(width * scale) / width
        for row in range(score.shape[2]):
            for col in range(score.shape[3]):
                place = (16 * col / ratio_x, 16 * row / ratio_y)
                cells.append((i, row, col, *place, float(score[0, 0, row, col])))
    return cells


def as_windows(cells: list[tuple[int, int, int, float, float, float]]) -> Windows:
    scale, row, col = torch.tensor([c[:3] for c in cells]).T
    return Windows(torch.tensor([c[5] for c in cells]), torch.zeros_like(scale), scale, row, col)


def test_a_point_gets_the_best_mask_that_contains_it(generator: ProposalGenerator, photo: np.ndarray) -> None:
    maps = look(generator, photo)
    points = [(80.0, 60.0), (5.0, 110.0), (131.7, 22.4), (0.0, 0.0), (80.0, 60.0), (160.0, 120.0)]
    found = generator.at_points(photo, points)
    assert len(found) == len(points)
    assert found.rles[0] == found.rles[4], "the order is the points'"
    contained = 0
    for (px, py), rle, score in zip(points[:5], found.rles, found.scores, strict=False):
        reach = [OBJECT / 2 / scale for scale in maps.scales]

        def order(cell: tuple[Any, ...], px: float = px, py: float = py, reach: list[float] = reach) -> Any:
            """Windows whose object may cover the point by their score, then the nearest of the others."""
            return max(0.0, max(abs(cell[3] - px), abs(cell[4] - py)) / reach[cell[0]] - 1), -cell[5]

        best = [c for s in range(3) for c in sorted((c for c in grid(maps) if c[0] == s), key=order)[:6]]
        rles = segment(generator, maps, as_windows(best))
        sharp = sharpness(generator, maps, as_windows(best))
        scores = [
            mask[int(py), int(px)] * s / (1 + math.exp(-cell[5]))
            for mask, s, cell in zip(decode(rles), sharp, best, strict=True)
        ]
        likely = int(np.argmax(scores / np.sqrt([max(mask.sum(), 1) for mask in decode(rles)])))
        assert score == pytest.approx(scores[likely], rel=1e-5)
        assert score == 0 or rle == rles[likely]
        contained += score > 0
    assert contained >= 3


def test_a_click_passes_over_better_masks_beside_it(generator: ProposalGenerator, photo: np.ndarray) -> None:
    """For some point the best window's mask misses it, and a worse one that covers it is chosen."""
    points = [(float(x), float(y)) for x in range(8, 160, 16) for y in range(8, 120, 16)]
    found, one = generator.at_points(photo, points), generator.at_points(photo, points, candidates=1)
    covers = [mask[int(y), int(x)] for (x, y), mask in zip(points, found.iter_masks(), strict=True)]
    covers_one = [mask[int(y), int(x)] for (x, y), mask in zip(points, one.iter_masks(), strict=True)]
    assert sum(covers) > sum(covers_one)
    assert all(b for a, b in zip(covers_one, covers, strict=True) if a)
    assert all((score > 0) == covered for score, covered in zip(found.scores, covers, strict=True))


def test_a_box_gets_the_best_of_the_windows_that_fit_it(generator: ProposalGenerator, photo: np.ndarray) -> None:
    maps = look(generator, photo)
    cells = grid(maps)
    boxes = [(40.0, 30.0, 30.0, 20.0), (0.0, 0.0, 60.0, 60.0), (100.0, 70.0, 10.0, 44.0), (-20.0, 90.0, 25.0, 5.0)]
    found = generator.in_boxes(photo, boxes)
    for (x, y, w, h), rle, score in zip(boxes, found.rles, found.scores, strict=True):

        def misfit(cell: tuple[Any, ...], x: float = x, y: float = y, w: float = w, h: float = h) -> float:
            scale = maps.scales[cell[0]]
            distance = math.hypot(cell[3] - x - w / 2, cell[4] - y - h / 2) * scale
            return (distance / 11.5) ** 2 + (math.log2(max(w, h) * scale / OBJECT) / 0.45) ** 2

        best = sorted(cells, key=misfit)[:6]
        rles = segment(generator, maps, as_windows(best))
        seen = on_photo((x, y, w, h), photo.shape[:2])  # masks end where the photo does
        overlap = coco_mask.iou(coco_mask.toBbox(rles), np.array([seen]), [0])[:, 0]
        scores = overlap * sharpness(generator, maps, as_windows(best))
        assert score == pytest.approx(max(scores), rel=1e-5)
        assert score == 0 or rle == rles[int(np.argmax(scores))]


def test_points_and_boxes_must_be_numbers(generator: ProposalGenerator, photo: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"points\[1\] must be 2 finite numbers"):
        generator.at_points(photo, [(1, 2), (math.nan, 3)])
    with pytest.raises(ValueError, match=r"boxes\[0\] must be 4 finite numbers"):
        generator.in_boxes(photo, [(1, 2, 3)])


def test_a_mask_grows_to_the_refined_one(generator: ProposalGenerator, photo: np.ndarray) -> None:
    pixels, stages = generator.grow(photo, index=3)
    assert [s.shape for s in stages] == [(3, 3), (6, 6), (12, 12), (24, 24), (48, 48)]
    maps = look(generator, photo)
    window = topk_windows(maps.score, 4).select(slice(3, 4))
    with torch.inference_mode():
        code = generator.model.for_inference().codes(maps.codes, window)
        logits = generator.model.refine_codes(code, maps.horizontals, window)  # type: ignore[operator]
    np.testing.assert_allclose(stages[-1], logits[0].sigmoid().numpy(), atol=1e-5)
    assert pixels.shape == (WINDOW, WINDOW, 3) and pixels.dtype == np.uint8
    scale = maps.scales[int(window.scale)]
    height, width = (round(length * scale) for length in photo.shape[:2])
    small = Image.fromarray(photo).resize((width, height), Image.Resampling.BILINEAR)
    padded = np.full((height + WINDOW + 16, width + WINDOW + 16, 3), 128)
    padded[24 : 24 + height, 24 : 24 + width] = np.asarray(small)
    y, x = 16 * int(window.row), 16 * int(window.col)
    assert np.abs(padded[y : y + WINDOW, x : x + WINDOW] - pixels.astype(int)).max() <= 2


def test_the_channel_shown_agrees_with_the_mask() -> None:
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    encoding = torch.zeros(1, 3, 4, 4)
    encoding[0, 1, :, :2] = -5
    encoding[0, 2] = torch.arange(4.0)[:, None]
    assert torch.equal(best_channel(encoding, mask), -encoding[0, 1])


def test_timing_names_every_stage_once(generator: ProposalGenerator, photo: np.ndarray) -> None:
    timing = generator.generate(photo).timing
    stages = ["resize", "trunk and heads", "top-N", "horizontal", "codes", "refine", "encode", "suppress"]
    assert list(timing) == stages
    assert all(seconds >= 0 for seconds in timing.values())
