from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from sharpmask.data import crops
from sharpmask.data.augment import cut_mask, cut_square
from sharpmask.data.coco import CocoFolder
from sharpmask.data.crops import PaperWindows, ReleasedWindows, Rule
from sharpmask.data.sampling import MaskSample, PatchBatches, PatchSampler, ScoreSample
from sharpmask.errors import DataError

RULES: tuple[Rule, ...] = ("paper", "released")
Object = dict[str, Any]
Make = Callable[..., CocoFolder]


def rectangle(x: int, y: int, w: int, h: int, **more: object) -> Object:
    polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
    entry = {"category_id": 1, "segmentation": [polygon], "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
    return entry | more


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes a folder of black photos of 300 x 400 pixels; each object is a rectangle of (255, 128, 0)."""

    def make_folder(*photos: list[Object], **options: Any) -> CocoFolder:
        document: dict[str, list[Any]] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        }
        (tmp_path / "images").mkdir()
        for number, objects in enumerate(photos):
            pixels = np.zeros((300, 400, 3), np.uint8)
            for entry in objects:
                x, y, w, h = entry["bbox"]
                pixels[y : y + h, x : x + w] = (255, 128, 0)
                key = len(document["annotations"]) + 1
                document["annotations"].append({"id": key, "image_id": number, **entry})
            Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
            document["images"].append({"id": number, "file_name": f"{number}.png", "height": 300, "width": 400})
        (tmp_path / "instances.json").write_text(json.dumps(document))
        return CocoFolder(tmp_path, **options)

    return make_folder


def mask_sample(sampler: PatchSampler, index: int) -> MaskSample:
    sample = sampler.sample(index)
    assert isinstance(sample, MaskSample)
    return sample


def score_sample(sampler: PatchSampler, index: int) -> ScoreSample:
    sample = sampler.sample(index)
    assert isinstance(sample, ScoreSample)
    return sample


def extent(shown: np.ndarray) -> tuple[float, float, int]:
    """Centre (x, y) and longer side of the region that is set."""
    rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
    return (
        (columns[0] + columns[-1] + 1) / 2,
        (rows[0] + rows[-1] + 1) / 2,
        max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1,
    )


def test_shapes_and_values(make: Make) -> None:
    folder = make([rectangle(100, 100, 60, 40)])
    sample = mask_sample(PatchSampler(folder, head="mask"), 0)
    assert (sample.image.shape, sample.image.dtype) == ((3, 192, 192), torch.float32)
    assert (sample.mask.shape, sample.mask.dtype) == ((112, 112), torch.float32)
    assert set(sample.mask.unique().tolist()) == {0.0, 1.0}
    assert 0 <= sample.image.min() <= sample.image.max() == 1
    small = mask_sample(PatchSampler(folder, head="mask", window=80, context=0, mask_size=20), 0)
    assert (small.image.shape, small.mask.shape) == ((3, 80, 80), (20, 20))
    score = score_sample(PatchSampler(folder, head="score", window=96, context=32), 0)
    assert score.image.shape == (3, 128, 128)
    assert score.label in (-1, 1)


@pytest.mark.parametrize("rule", RULES)
def test_score_patches_bring_the_masks_of_their_objects(make: Make, rule: Rule) -> None:
    folder = make([rectangle(40, 30, 57, 28)])
    shape: dict[str, Any] = {"head": "score", "rule": rule}
    plain, sampler = PatchSampler(folder, **shape), PatchSampler(folder, **shape, score_masks=True, mask_size=160)
    labels = set()
    for index in range(12):
        sample = score_sample(sampler, index)
        assert torch.equal(sample.image, score_sample(plain, index).image)
        assert sample.mask is not None and sample.mask.shape == (160, 160)
        shown = (sample.image[0] - sample.image[2] > 0.5)[16:176, 16:176]
        assert not sample.mask.any() if sample.label == -1 else (sample.mask.bool() ^ shown).sum() < 0.1 * shown.sum()
        labels.add(sample.label)
    assert labels == {-1, 1} and score_sample(plain, 0).mask is None
    assert sampler.batch(range(12))["masks"].shape == (12, 160, 160) and "masks" not in plain.batch(range(2))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("side", [15, 57, 250])
def test_mask_lies_on_the_object_in_the_image(make: Make, rule: Rule, side: int) -> None:
    folder = make([rectangle(40, 30, side, side // 2)])
    sampler = PatchSampler(folder, head="mask", mask_size=160, rule=rule)
    for index in range(12):
        image, mask = mask_sample(sampler, index)
        shown = image[0, 16:176, 16:176] - image[2, 16:176, 16:176] > 0.5
        assert (shown != mask.bool()).float().mean() < 0.01


@pytest.mark.parametrize("window", [80, 160])
def test_paper_jitter(make: Make, window: int) -> None:
    """In a patch of 224 pixels: side 128 * 2^(+-1/4), centre off by up to 16, in every direction."""
    folder = make([rectangle(150, 120, 80, 60)])
    sampler = PatchSampler(folder, head="mask", window=window, mask_size=224)
    found = np.array([extent(mask_sample(sampler, i).mask.numpy()) for i in range(150)])
    for axis in (0, 1):
        offset = found[:, axis] - 112
        assert -17.5 <= offset.min() < -10
        assert 10 < offset.max() <= 17.5
    octaves = np.log2(found[:, 2] / 128)
    assert -0.27 < octaves.min() < -0.2
    assert 0.2 < octaves.max() < 0.27


def test_released_jitter_is_16_of_160_around_an_object_of_92(make: Make) -> None:
    folder = make([rectangle(150, 120, 80, 60)])
    sampler = PatchSampler(folder, head="mask", rule="released", mask_size=160)
    found = np.array([extent(mask_sample(sampler, i).mask.numpy()) for i in range(150)])
    offset = np.abs(found[:, :2] - 80)
    assert 13 < offset.max() <= 17
    octaves = np.log2(found[:, 2] / 92)
    assert -0.27 < octaves.min() < -0.2
    assert 0.2 < octaves.max() < 0.27


@pytest.mark.parametrize(("width", "shown"), [(92, (108, 110)), (93, (92, 94)), (80, (94, 96)), (20, (94, 96))])
def test_released_positives_are_centred_at_quarter_octaves(make: Make, width: int, shown: tuple[int, int]) -> None:
    """The scale is the next lower quarter octave, so that objects measure 92 to 92 * 2^(1/4) = 109.4."""
    sampler = PatchSampler(make([rectangle(150, 120, width, 10)]), head="score", rule="released")
    positives = [score_sample(sampler, i) for i in range(8)]
    for image, label, _ in positives:
        if label == 1:
            x, y, side = extent((image[0] - image[2] > 0.5).numpy())
            assert abs(x - 96) <= 1
            assert abs(y - 96) <= 1
            assert shown[0] <= side <= shown[1]
    assert {positive.label for positive in positives} == {-1, 1}


def test_paper_score_positives_are_jittered_objects(make: Make) -> None:
    sampler = PatchSampler(make([rectangle(150, 120, 80, 60)]), head="score", context=0)
    samples = [score_sample(sampler, i) for i in range(60)]
    labels = np.array([sample.label for sample in samples])
    assert 15 < (labels == 1).sum() < 45
    found = np.array([extent((s.image[0] - s.image[2] > 0.5).numpy()) for s in samples if s.label == 1])
    assert 6 < np.abs(found[:, :2] - 80).max() <= 13
    assert np.all((np.abs(np.log2(found[:, 2] / (160 * 128 / 224)))) < 0.28)


def crowded(make: Make) -> CocoFolder:
    return make(
        [
            rectangle(20, 20, 60, 40),
            rectangle(200, 100, 150, 120),
            rectangle(120, 200, 30, 30),
            rectangle(300, 20, 8, 60),
            rectangle(10, 200, 50, 50, iscrowd=1),
        ]
    )


@pytest.mark.parametrize("window", [80, 160])
def test_paper_negatives_keep_32_pixels_or_an_octave(make: Make, window: int) -> None:
    windows, photo = PaperWindows(window), crowded(make).photos[0]
    rng = np.random.default_rng(0)
    near = 0
    for _ in range(200):
        crop = windows.negative(rng, photo)
        assert 0 <= crop.x <= 400
        assert 0 <= crop.y <= 300
        assert 40 <= crop.scale * window <= 1280
        for instance in photo.instances:
            x, y, w, h = instance.box
            per_224 = crop.scale * window / 224  # photo pixels per pixel of a 224-pixel patch
            shift = max(abs(x + w / 2 - crop.x), abs(y + h / 2 - crop.y)) / per_224
            octave = abs(np.log2(max(w, h) / 128 / per_224))
            assert shift >= 31.99 or octave >= 0.999
            near += shift < 64 and octave < 1
    assert near > 5  # but not kept away further than needed


def test_released_negatives_keep_48_pixels_within_two_and_a_half_octaves(make: Make) -> None:
    windows, photo = ReleasedWindows(160, 192), crowded(make).photos[0]
    rng = np.random.default_rng(0)
    sides = set()
    for _ in range(100):
        crop = windows.negative(rng, photo)
        sides.add(round(crop.scale * 192))
        for instance in photo.instances:
            x, y, w, h = instance.box
            if abs(np.log2(max(w, h) / 92 / crop.scale)) < 2.25:
                assert np.hypot(x + w / 2 - crop.x, y + h / 2 - crop.y) / crop.scale >= 47.99
    assert min(sides) == 48
    assert sides <= {round(192 * 2 ** (e / 4)) for e in range(-8, 13)}


def test_negatives_come_from_photos_without_objects_too(make: Make) -> None:
    folder = make([rectangle(100, 100, 60, 40)], [])
    paper = PatchSampler(folder, head="score")
    assert [photo.id for photo in paper._negative.photos] == [0, 1]
    released = PatchSampler(folder, head="score", rule="released")
    assert [photo.id for photo in released._negative.photos] == [0]


def test_categories_are_drawn_alike(make: Make) -> None:
    many = [rectangle(10 + 30 * i, 10, 20, 10) for i in range(12)]
    folder = make([*many, rectangle(100, 100, 30, 60, category_id=2)])
    sampler = PatchSampler(folder, head="mask")
    upright = 0
    for index in range(100):
        mask = mask_sample(sampler, index).mask
        upright += bool(mask.any(1).sum() > mask.any(0).sum())
    assert 35 <= upright <= 65


@pytest.mark.parametrize(
    "left_out",
    [
        rectangle(10, 10, 100, 100, iscrowd=1),
        rectangle(10, 10, 9, 11),
        rectangle(10, 10, 4, 100),
        rectangle(10, 10, 100, 4),
        rectangle(10, 10, 100, 100, segmentation=[]),
    ],
)
def test_what_masks_are_not_learned_from(make: Make, left_out: Object) -> None:
    with pytest.raises(DataError, match=r"instances\.json: must hold an object to learn from"):
        PatchSampler(make([left_out]), head="mask")


def test_outside_of_the_photo_is_grey(make: Make) -> None:
    sampler = PatchSampler(make([rectangle(0, 0, 400, 300)]), head="mask", flip=False)
    image = mask_sample(sampler, 0).image
    assert image[:, :8].eq(0.5).all()
    assert image[:, -8:].eq(0.5).all()
    assert image[0, 96, 96] == 1


def test_flips_mirror_image_and_mask_together(make: Make) -> None:
    folder = make([rectangle(50, 60, 90, 30), rectangle(80, 30, 30, 60)])
    plain, flipping = (PatchSampler(folder, head="mask", flip=flip) for flip in (False, True))
    flipped = 0
    for index in range(40):
        a, b = mask_sample(plain, index), mask_sample(flipping, index)
        if torch.equal(a.image, b.image):
            assert torch.equal(a.mask, b.mask)
        else:
            flipped += 1
            assert torch.equal(a.image.flip(-1), b.image)
            assert torch.equal(a.mask.flip(-1), b.mask)
    assert 10 <= flipped <= 30


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("head", ["mask", "score"])
def test_a_sample_depends_on_seed_and_index_only(make: Make, rule: Rule, head: Any) -> None:
    folder = crowded(make)
    sampler = PatchSampler(folder, head=head, rule=rule, seed=5)
    first = [sampler.sample(index) for index in range(6)]
    again = pickle.loads(pickle.dumps(sampler))
    for index in (4, 0, 5):
        torch.testing.assert_close(again.sample(index), first[index], rtol=0, atol=0)
    other = PatchSampler(folder, head=head, rule=rule, seed=6)
    assert not torch.equal(other.sample(0)[0], first[0][0])
    assert not torch.equal(first[0][0], first[1][0])


def test_damaged_photos(make: Make) -> None:
    folder = make([rectangle(10, 10, 100, 100)], [rectangle(10, 10, 100, 100)], skip_bad=True)
    path = folder.photos[0].path
    path.write_bytes(path.read_bytes()[:100])
    sampler = PatchSampler(folder, head="mask")
    first = [mask_sample(sampler, index).image for index in range(20)]
    assert len(folder.skipped) == 1
    assert folder.skipped[0].startswith(f"{path}: ")
    fresh = PatchSampler(folder, head="mask")  # what was seen before changes nothing
    assert torch.equal(mask_sample(fresh, 13).image, first[13])

    folder.skip_bad = False
    with pytest.raises(DataError, match=path.name):
        for index in range(20):
            sampler.sample(index)


def test_only_damaged_photos(make: Make) -> None:
    folder = make([rectangle(10, 10, 100, 100)], skip_bad=True)
    folder.photos[0].path.unlink()
    with pytest.raises(DataError, match="no usable mask patch in 100 tries"):
        PatchSampler(folder, head="mask").sample(0)
    assert len(folder.skipped) == 1


def test_no_room_for_negatives(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = PatchSampler(make([rectangle(10, 10, 100, 100)]), head="score")
    monkeypatch.setattr(sampler.windows, "far", 1e9)
    monkeypatch.setattr(crops, "_NEGATIVE_OCTAVES", (0.1, 0.2))
    labels = []
    for index in range(8):
        try:
            labels.append(score_sample(sampler, index).label)
        except DataError as error:
            assert "no usable score patch" in str(error)
            labels.append(-1)
    assert set(labels) == {-1, 1}


def test_arguments(make: Make) -> None:
    folder = make([rectangle(10, 10, 100, 100)])
    for wrong in ({"head": "box"}, {"rule": "mine"}, {"window": 0}, {"context": -1}, {"mask_size": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            PatchSampler(folder, **({"head": "mask"} | wrong))  # type: ignore[arg-type]


def batches(folder: CocoFolder, **options: Any) -> PatchBatches:
    mask = PatchSampler(folder, head="mask", window=32, context=0, mask_size=16)
    score = PatchSampler(folder, head="score", window=32, context=0)
    return PatchBatches(mask, score, **({"batch_size": 3} | options))


def test_batches_are_of_one_kind(make: Make) -> None:
    dataset = batches(crowded(make))
    items = [dataset[step] for step in range(40)]
    kinds = [item["kind"] for item in items]
    assert 10 < kinds.count("mask") < 30
    for item in items:
        assert item["image"].shape == (3, 3, 32, 32)
        assert item["target"].dtype == torch.float32
        if item["kind"] == "mask":
            assert item["target"].shape == (3, 16, 16)
            assert set(item["target"].unique().tolist()) <= {0, 1}
        else:
            assert item["target"].shape == (3,)
            assert set(item["target"].tolist()) <= {-1, 1}


@pytest.mark.parametrize(("share", "kinds"), [(0.0, {"mask"}), (1.0, {"score"})])
def test_score_share(make: Make, share: float, kinds: set[str]) -> None:
    dataset = batches(crowded(make), score_share=share)
    assert {dataset[step]["kind"] for step in range(10)} == kinds


def test_the_batches_of_a_step_share_the_kind_and_split_the_samples(make: Make) -> None:
    folder = crowded(make)
    parts, whole = batches(folder, together=2), batches(folder, batch_size=6)
    for step in range(4):
        first, second, both = parts[2 * step], parts[2 * step + 1], whole[step]
        assert first["kind"] == second["kind"] == both["kind"]
        assert torch.equal(torch.cat([first["image"], second["image"]]), both["image"])
        assert torch.equal(torch.cat([first["target"], second["target"]]), both["target"])
        assert not torch.equal(first["image"], second["image"])


def test_a_loader_goes_on_where_it_stopped(make: Make) -> None:
    dataset = batches(crowded(make))
    through = list(DataLoader(dataset, sampler=range(0, 6), batch_size=None))
    resumed = list(DataLoader(dataset, sampler=range(4, 6), batch_size=None, num_workers=1))
    for a, b in zip(through[4:], resumed, strict=True):
        assert a["kind"] == b["kind"]
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["target"], b["target"])


def test_batch_arguments(make: Make) -> None:
    mask = PatchSampler(make([rectangle(10, 10, 100, 100)]), head="mask")
    PatchBatches(mask, None, score_share=0.0)
    with pytest.raises(ValueError, match="score must be a PatchSampler"):
        PatchBatches(mask, None)
    with pytest.raises(ValueError, match="score must be a PatchSampler"):
        PatchBatches(mask, mask)
    for wrong in ({"batch_size": 0}, {"score_share": 1.5}, {"together": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
            PatchBatches(mask, None, **({"score_share": 0.0} | wrong))  # type: ignore[arg-type]


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def test_cut_without_resizing_is_a_copy() -> None:
    image = noise(20, 30)
    np.testing.assert_allclose(cut_square(image, 13, 11, 8, 8, 0.5), image[7:15, 9:17] / 255, atol=1e-6)


def test_cut_over_the_border() -> None:
    image = noise(20, 30)
    cut = cut_square(image, 0, 20, 8, 8, 0.5)
    np.testing.assert_allclose(cut[:4, 4:], image[16:, :4] / 255, atol=1e-6)
    assert (cut[4:] == 0.5).all()
    assert (cut[:, :4] == 0.5).all()


@pytest.mark.parametrize(("side", "size"), [(16, 48), (48, 16), (30, 23)])
def test_cut_agrees_with_antialiased_interpolation(side: int, size: int) -> None:
    image = noise(200, 220)
    around = image[100 - side - side // 2 : 100 + side + side // 2, 90 - side - side // 2 : 90 + side + side // 2]
    scaled = torch.nn.functional.interpolate(
        torch.from_numpy(around).permute(2, 0, 1)[None].float() / 255,
        size=(3 * size, 3 * size),
        mode="bilinear",
        antialias=True,
    )
    expected = scaled[0, :, size : 2 * size, size : 2 * size].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(cut_square(image, 90, 100, side, size, 0.5), expected, atol=2 / 255)


@settings(deadline=None)
@given(
    x=st.floats(-100, 200),
    y=st.floats(-100, 200),
    side=st.floats(0.05, 3000),
    size=st.integers(1, 40),
)
def test_any_square_can_be_cut(x: float, y: float, side: float, size: int) -> None:
    cut = cut_square(np.full((50, 70, 3), 255, np.uint8), x, y, side, size, 0.5)
    assert cut.shape == (size, size, 3)
    assert set(np.unique(cut)) <= {0.5, 1.0}
    shown = (cut[..., 0] == 1).sum()
    step = side / size
    width = min(x + side / 2, 70) - max(x - side / 2, 0)
    height = min(y + side / 2, 50) - max(y - side / 2, 0)
    if min(width, height) > 2 * step:
        assert (width / step - 2) * (height / step - 2) - 1e-6 <= shown
    assert shown <= (max(width, 0) / step + 1e-6) * (max(height, 0) / step + 1e-6) + 1e-6


def test_cut_mask_is_binary_and_empty_outside() -> None:
    mask = np.zeros((20, 20), bool)
    mask[5:15, :10] = True
    cut = cut_mask(mask, 0, 10, 20, 40)
    assert set(np.unique(cut)) == {0.0, 1.0}
    assert cut.sum() == 20 * 20
    assert cut[10:30, 20:].all()
