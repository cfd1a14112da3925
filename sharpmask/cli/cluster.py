"""The command ``sharpmask propose --cluster ray``: very many photos."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ..batch import Propose
from ..distributed import Summary, propose
from ..errors import DataError, counted
from ..fingerprint import search_of
from ..places import is_url, place_of
from . import options as command
from .checks import check_images, check_inputs, check_out
from .images import expanded
from .output import ERR, say, show


def prepared(options: command.Propose) -> Callable[[], int]:
    """The command, with its arguments checked. Raises ``DataError`` for those that cannot be used."""
    urls = [is_url(str(path)) for path in options.images]
    images = [
        one
        for path, url in zip(options.images, urls, strict=True)
        for one in ([place_of(path)] if url else expanded([path]))
    ]
    check_images([image for image in images if isinstance(image, Path)])
    check_inputs(options)
    if not is_url(str(options.out)):
        check_out(options.out, is_file=False)
    if options.search.device not in ("cpu", "cuda"):
        raise DataError(f"device must be cpu or cuda with --cluster, got {options.search.device!r}")
    return partial(search, options, images, settings_of(options))


def settings_of(options: command.Propose) -> Propose:
    """The search of a photo, as the options say."""
    own, _ = search_of(options.checkpoint)
    return Propose(
        options.checkpoint,
        top_n=options.top_n,
        refine=options.refine,
        search=options.search.over(own),
        max_side=options.search.max_side or None,
        exif=options.exif,
        engine=options.compute.engine,
        precision=options.compute.precision,
        calibration=options.compute.calibrate,
        device=options.search.device,
        root=options.scale.root,
    )


def search(options: command.Propose, images: list[str | Path], settings: Propose) -> int:
    """Search the photos. Those that cannot be searched are shown and make the exit status 1."""
    scale = options.scale
    columns = TextColumn("Proposals"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    # A core less busy: workers may have all of this machine's.
    with Progress(*columns, console=ERR, disable=options.quiet, refresh_per_second=1) as bar:
        task = bar.add_task("", total=None)
        summary = propose(
            images,
            place_of(options.out),
            settings,
            workers=scale.workers,
            address=scale.address,
            rows_per_file=scale.rows_per_file,
            resume=options.resume,
            restart=scale.restart,
            retry_errors=scale.retry_errors,
            recursive=options.recursive,
            memory=scale.worker_memory,
            gpu_share=scale.gpu_share,
            photo_seconds=scale.photo_seconds,
            say=(lambda line: None) if options.quiet else partial(say, console=ERR),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    return told(summary, options.out, options.quiet)


def told(summary: Summary, out: Path, quiet: bool) -> int:
    """Say what the results have. Returns the exit status."""
    if summary.failed:
        table = Table("photos", "error", box=None, pad_edge=False)
        for error, count in summary.errors.most_common():
            table.add_row(str(count), error)
        show(table)
        for _, error in summary.shown:
            say(error, ERR)
        if summary.failed > len(summary.shown):
            say(f"and {summary.failed - len(summary.shown)} more: the column error of the rows has them all", ERR)
    missing = sum(summary.left.values())
    if missing:
        photos = counted(missing, "photo has no row", "photos have no row")
        say(f"{photos}, because files are gone or damaged; --resume searches again", ERR)
    if not quiet:
        failed = f", {summary.failed} of them with an error" * bool(summary.failed)
        say(f"{place_of(out) if is_url(str(out)) else out}: {counted(summary.rows, 'row')}{failed}")
    return 1 if summary.failed or missing else 0
