"""What several commands share: the generator, how many photos it searches at once, and the table of times."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from ..data.orientation import Exif
from ..fingerprint import record_of
from ..models import DeepMask
from ..search import ProposalGenerator, Proposals
from ..search.pictures import Picture
from .output import show
from .search_options import EngineOptions, SearchOptions

MOST_AT_ONCE = 2
"""Most photos that are searched at once, because each takes memory."""


def make_generator(
    model: DeepMask, options: SearchOptions, compute: EngineOptions, *, top_n: int, refine: bool, exif: Exif = "turned"
) -> ProposalGenerator:
    """A generator with the model's search settings as changed on the command line.

    Raises ``DataError`` where its engine cannot be had, here and not at every photo.
    """
    generator = ProposalGenerator(
        model,
        top_n,
        refine=refine,
        search=options.over(model.search),
        max_side=options.max_side or None,
        exif=exif,
        engine=compute.engine,
        precision=compute.precision,
        calibration=compute.calibrate,
    )
    if compute.engine != "torch":
        _ = generator.form  # kept
    return generator


@contextmanager
def searching(generator: ProposalGenerator, photos: int) -> Iterator[tuple[int, Callable[[Picture], Proposals]]]:
    """How many of the photos to search at once, and the search of one in its own thread, with its share of cores.

    Small maps keep few cores busy, and much of a search is done by one. A GPU and OpenVINO take one photo at a time.
    """
    threads = torch.get_num_threads()
    alone = generator.engine == "openvino" or generator.device.type != "cpu"
    at_once = 1 if alone else max(1, min(MOST_AT_ONCE, threads, photos))

    def search(picture: Picture) -> Proposals:
        torch.set_num_threads(threads // at_once)
        return generator.generate(picture)

    _ = generator.form  # made once, not in every thread
    try:
        yield at_once, search
    finally:
        torch.set_num_threads(threads)


def settings_of(generator: ProposalGenerator, checkpoint: Path | None) -> dict[str, Any]:
    """All that decides the proposals of a photo, but for the photo itself, as JSON has it."""
    named = {f.name: getattr(generator, f.name) for f in fields(generator) if f.name not in ("model", "search")}
    return record_of(checkpoint, generator.search or generator.model.search, **named)


def print_timing(timing: Mapping[str, float], title: str) -> None:
    """Print the seconds by stage as milliseconds and shares."""
    table = Table("stage", title=title, title_justify="left")
    table.add_column("ms", justify="right")
    table.add_column("share", justify="right")
    total = sum(timing.values()) or 1.0
    for stage, seconds in timing.items():
        table.add_row(stage, f"{seconds * 1e3:.1f}", f"{seconds / total:.0%}")
    table.add_section()
    table.add_row("total", f"{total * 1e3:.1f}", "")
    show(table)
