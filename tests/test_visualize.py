"""Pictures: what is drawn where, and files that are written whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from sharpmask.visualize import distinct_colours, film_strip, overlay, save_picture

GREY = np.full((120, 160, 3), 100, np.uint8)


def rectangle(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros(GREY.shape[:2], bool)
    mask[top:bottom, left:right] = True
    return mask


def oklab(colours: np.ndarray) -> np.ndarray:
    """OKLab (B. Ottosson, 2020): in it colours at equal distances look about equally different."""
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    to_cones = [[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]]
    to_lab = [[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]]
    return np.cbrt(linear @ np.transpose(to_cones)) @ np.transpose(to_lab)


def test_colours_differ_clearly() -> None:
    colours = distinct_colours(20)
    points = oklab(colours / 255)
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1) + 9 * np.eye(20)
    assert distances.min() > 0.06  # black to white is 1
    assert distances[:10, :10].min() > 0.15  # the first ones, drawn most often, are far apart
    assert (distinct_colours(5) == colours[:5]).all()  # a colour does not depend on how many follow
    assert distinct_colours(0).shape == (0, 3)


def test_overlay_tints_inside_and_leaves_outside() -> None:
    mask = rectangle(30, 40, 80, 110)
    picture = overlay(GREY, [mask])
    assert picture.dtype == np.uint8 and picture.shape == GREY.shape
    expected = (100 + distinct_colours(1)[0].astype(float)) / 2
    assert np.abs(picture[55, 75] - expected).max() <= 1
    outside = np.ones_like(mask)
    outside[26:84, 36:114] = False
    assert (picture[outside] == 100).all()
    assert (picture[29, 50:100] < 80).all()  # dark just outside the border,
    assert (picture[30, 50:100].mean(-1) > expected.mean() + 20).all()  # light just inside
    assert (GREY == 100).all()


def test_overlay_small_masks_lie_on_top_and_photo_shows_through() -> None:
    large, small = rectangle(10, 10, 110, 150), rectangle(50, 60, 75, 95)
    colours = distinct_colours(2).astype(float)
    for masks, order in (([large, small], (0, 1)), ([small, large], (1, 0))):
        picture = overlay(GREY, masks)
        assert np.abs(picture[20, 20] - (100 + colours[order[0]]) / 2).max() <= 1
        # Mixed with the photo alone: the large mask below does not shine through.
        assert np.abs(picture[62, 77] - (100 + colours[order[1]]) / 2).max() <= 1


def test_overlay_takes_rle_and_lazy_masks() -> None:
    masks = [rectangle(10, 10, 40, 40), rectangle(20, 60, 90, 150), np.zeros(GREY.shape[:2], bool)]
    rles = [coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]
    assert (overlay(GREY, masks) == overlay(GREY, rles)).all()
    taken = 0

    def lazily() -> Iterator[np.ndarray]:
        nonlocal taken
        for mask in masks:
            taken += 1
            yield mask

    assert (overlay(GREY, lazily(), limit=2) == overlay(GREY, masks[:2])).all()
    assert taken == 2


def test_overlay_no_contour_along_the_image_edge() -> None:
    picture = overlay(GREY, [np.ones(GREY.shape[:2], bool)])
    assert (picture == picture[60, 80]).all()


def test_overlay_scores_choose_and_label() -> None:
    masks = [rectangle(10, 10, 60, 70), rectangle(50, 90, 110, 150)]
    best_only = overlay(GREY, masks, scores=[0.1, 0.9], limit=1)
    assert (best_only[:40, :80] == 100).all()
    assert (best_only[80, 120] != 100).any()
    plain = overlay(GREY, masks)
    labelled = overlay(GREY, masks, scores=[0.9, 0.1])
    changed = (plain != labelled).any(-1)
    assert changed[10:60, 10:70].any() and changed[50:110, 90:150].any() and changed.mean() < 0.1
    tiny = overlay(GREY, [rectangle(60, 70, 63, 73)], scores=[0.5])
    assert (tiny[60:63, 70:73] == overlay(GREY, [rectangle(60, 70, 63, 73)])[60:63, 70:73]).all()
    assert overlay(GREY[:1, :1], [np.ones((1, 1), bool)], scores=[1.0], boxes=[[0, 0, 1, 1]]).shape == (
        1,
        1,
        3,
    )


def test_overlay_boxes() -> None:
    picture = overlay(GREY, [rectangle(50, 60, 70, 90)], boxes=[[20, 30, 100, 60]])
    colour = distinct_colours(1)[0]
    assert (picture[30, 20:120] == colour).all() and (picture[30:90, 119] == colour).all()
    assert (picture[31:40, 22:100] == 100).all()
    far = overlay(GREY, [rectangle(50, 60, 70, 90)], boxes=[[-1e9, -1e9, 1e12, 1e12]])
    assert far.shape == GREY.shape


def test_overlay_refuses_misfits() -> None:
    with pytest.raises(ValueError, match="image"):
        overlay(GREY[..., 0], [])
    with pytest.raises(ValueError, match="image"):
        overlay(GREY / 255, [])
    with pytest.raises(ValueError, match="masks"):
        overlay(GREY, [np.ones((5, 5), bool)])
    with pytest.raises(ValueError, match="scores"):
        overlay(GREY, [rectangle(0, 0, 5, 5)] * 2, scores=[1.0])


def test_film_strip_shows_cells_and_the_final_mask() -> None:
    rng = np.random.default_rng(0)
    final = np.zeros((40, 40))
    final[10:30, 10:30] = 0.9
    stages = [rng.normal(0, 30, (10, 10)), rng.random((20, 20)), final]
    window = np.full((40, 40, 3), 180, np.uint8)
    strip = film_strip(window, stages)
    side, gap = 200, 6
    assert strip.shape[1] == 5 * (side + gap) + gap and strip.shape[0] > side
    panels = [strip[gap : gap + side, gap + i * (side + gap) :][:, :side] for i in range(5)]
    assert (panels[0] == 180).all()
    for panel, stage in zip(panels[1:4], stages, strict=True):
        cells = panel.reshape(len(stage), side // len(stage), len(stage), side // len(stage), 3)
        assert (cells == cells[:, :1, :, :1]).all()  # every cell is one flat square
        lightness = cells[:, 0, :, 0].sum(-1).ravel()
        order = np.argsort(stage.ravel())
        assert (np.diff(lightness[order].astype(int)) >= -2).all()  # brighter means more
    assert panels[4][100, 100].max() > 150 and (panels[4][10, 10] == 90).all()
    assert (strip[side + gap :].min(axis=(0, 2)) < 200).any()  # captions
    assert film_strip(window, stages, panel=80).shape[1] < strip.shape[1] / 2


def test_film_strip_accepts_flat_and_non_finite_stages() -> None:
    window = np.zeros((8, 8, 3), np.uint8)
    stages = [np.full((4, 4), 7.0), np.array([[np.nan, np.inf], [-np.inf, 0.0]])]
    assert film_strip(window, stages, ["a", "b", "c", "d"]).dtype == np.uint8


def test_film_strip_refuses_misfits() -> None:
    window = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="stages"):
        film_strip(window, [])
    with pytest.raises(ValueError, match="stages"):
        film_strip(window, [np.zeros((1, 4, 4))])
    with pytest.raises(ValueError, match="labels"):
        film_strip(window, [np.zeros((4, 4))], ["one"])
    with pytest.raises(ValueError, match="image_crop"):
        film_strip(window / 1.0, [np.zeros((4, 4))])


def test_save_picture_is_exact_and_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "picture.png"
    first = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    save_picture(first, path)

    def broken_save(self: Image.Image, file: Path, **options: object) -> None:
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", broken_save)
    with pytest.raises(OSError, match="disk full"):
        save_picture(first[::-1], path)
    assert [entry.name for entry in path.parent.iterdir()] == ["picture.png"]
    assert (np.asarray(Image.open(path)) == first).all()
