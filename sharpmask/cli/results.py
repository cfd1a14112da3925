"""The command ``sharpmask results``: rows of proposals counted, filtered, merged and turned into other formats."""

from __future__ import annotations

from ..batch.reading import RowsFile, files_of, folder_with
from ..batch.results import Wanted, write_coco, write_labelme, write_parquet, write_yolo
from ..batch.survey import Survey
from ..errors import DataError, counted, one_line
from ..files import output_folder, remove_leftovers
from ..packages import needed
from .options import Results
from .output import ERR, say

WRITERS = {"coco": write_coco, "labelme": write_labelme, "yolo": write_yolo, "parquet": write_parquet}


def results(options: Results) -> int:
    """Count rows, and write what is asked for. Returns the exit status."""
    if options.to in ("labelme", "yolo"):
        needed("supervision", f"results to {options.to}")
    if options.out is not None and (folder := folder_with(options.out, options.rows)):
        raise DataError(
            f"out: {options.out} would count as rows of {folder} the next time; give a file elsewhere, or one "
            "whose name begins with _"
        )
    survey = Survey([RowsFile(path) for path in files_of(options.rows)], options.photos)
    survey.check_pattern()
    if options.to is None or options.out is None:
        print_counts(survey)
        return 0
    if not options.mixed:
        survey.check_mixed()
    wanted, write = Wanted(options.min_score, options.min_area, options.top), WRITERS[options.to]
    if options.writes:
        remove_leftovers(options.out.parent, options.out.name)
        count = write(survey, wanted, options.out)
    else:
        survey.check_stems()
        with output_folder(options.out):
            count = write(survey, wanted, options.out)
    print_doubled(survey)
    if survey.failed:
        say(f"{survey.failed} of {counted(survey.photos, 'photo')} had failed", ERR)
    say(f"{options.out}: {counted(int(survey.kept.sum()), 'photo')}, {counted(count, 'proposal')}")
    return 0


def print_counts(survey: Survey) -> None:
    """Print what the rows say."""
    rows, proposals = counted(survey.photos, "row"), counted(survey.proposals, "proposal")
    say(f"{rows}, {survey.failed} of them failed, {proposals}")
    for kind, count in survey.errors.most_common():
        say(f"failed: {count} {one_line(kind)}")
    for name, count in survey.fingerprints.most_common():
        say(f"fingerprint {one_line(name)}: {counted(count, 'row')}")
    if len(survey.fingerprints) > 1:
        say(f"the first two differ: {one_line(survey.told_differences())}")
    print_doubled(survey)


def print_doubled(survey: Survey) -> None:
    """Say how many rows do not count because another one has their id."""
    if survey.doubled:
        key, path = survey.a_doubled_row()
        one, many = "row is left out, as its id stands in another", "rows are left out, as their ids stand in others"
        say(one_line(f"{counted(survey.doubled, one, many)}: first {key} ({path})"), ERR)
