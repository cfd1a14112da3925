"""The checkpoint and the photo that come with the package."""

from __future__ import annotations

from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

import sharpmask
import sharpmask_kernels
from sharpmask.checkpoint import read_training
from sharpmask.errors import DataError
from sharpmask.family import FAMILY, checkpoint_path, shipped

ASSETS = Path(str(files("sharpmask"))) / "assets"
PHOTO = ASSETS / "coffee.jpg"


@pytest.fixture(scope="module", params=shipped())
def generator(request: pytest.FixtureRequest) -> sharpmask.ProposalGenerator:
    return sharpmask.ProposalGenerator(sharpmask.load_model(request.param), top_n=100)


def test_both_packages_have_the_version_of_their_distribution() -> None:
    assert sharpmask.__version__ == sharpmask_kernels.__version__ == version("sharpmask")


@pytest.mark.parametrize("name", shipped())
def test_it_is_small_and_keeps_no_path_of_the_machine_that_made_it(name: str) -> None:
    path = checkpoint_path(name)
    assert path.stat().st_size <= {"small": 9e6, "base": 16e6}[name]
    record = read_training(path)
    assert record["stage"] == "joint" and record["sampling"] == "dense"
    assert "/" not in str({k: v for k, v in record.items() if k != "step"})


def test_what_did_not_come_with_the_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shipped() == ["small", "base"] == [*FAMILY]
    monkeypatch.setitem(FAMILY, "base", "gone.safetensors")
    with pytest.raises(
        DataError, match=r"'base' does not come with this version; there is small\. To train it: .*base\.yaml"
    ):
        sharpmask.load_model("base")


def test_a_name_that_a_file_has_too_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert checkpoint_path(Path("./small")) == checkpoint_path("small") == checkpoint_path(None)
    (tmp_path / "small").mkdir()
    with pytest.raises(DataError, match=r"the working folder has small too; give .*/small for the one, .*safetensors"):
        checkpoint_path(Path("./small"))
    assert checkpoint_path("small") == checkpoint_path(None) == ASSETS / FAMILY["small"]
    assert [checkpoint_path(path) for path in ("./small", tmp_path / "small")] == [Path("small"), tmp_path / "small"]


def test_it_finds_the_cup(generator: sharpmask.ProposalGenerator) -> None:
    """The opening of the cup is an ellipse, drawn by hand; one proposal must fit it."""
    found = generator.generate(PHOTO)
    height, width = found.image.shape[:2]
    y, x = np.mgrid[:height, :width]
    disc = ((x - 289) / 116) ** 2 + ((y - 112) / 97) ** 2 <= 1
    masks = found.masks()
    overlap = (masks & disc).sum((1, 2)) / (masks | disc).sum((1, 2))
    assert overlap.max() > 0.7


def test_a_click_on_the_spoon_gives_the_spoon(generator: sharpmask.ProposalGenerator) -> None:
    mask = generator.at_points(PHOTO, [(365, 285)]).masks()[0]
    assert mask[285, 365]
    assert 1000 < mask.sum() < 20_000
    assert not mask[100, 287], "the cup is not part of it"
