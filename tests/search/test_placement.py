"""Every geometry of the search settings has a placement of windows."""

from typing import get_args

from sharpmask.models.config import Geometry
from sharpmask.search.placement import PLACEMENTS


def test_every_geometry_has_a_placement() -> None:
    assert set(PLACEMENTS) == set(get_args(Geometry))
