"""A contender's process: ``python -m bench.photo.worker TASK`` makes it ready and answers questions until they end.

TASK is JSON: ``threads``, ``counts`` (windows to refine), ``size`` of the photo, ``model``, ``search``, and
``checkout``, a folder from which the package is taken instead of this one.
"""

from __future__ import annotations

import json
import os
import sys

from ..process import serve


def main() -> None:
    task = json.loads(sys.argv[1])
    if task["checkout"]:
        sys.path.insert(0, task["checkout"])
    if hasattr(os, "sched_setaffinity"):  # nobody has more cores than the others
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: task["threads"]])

    def ready() -> object:
        from .searches import Searches  # not before: it imports the package

        return Searches(task)

    serve(ready)


if __name__ == "__main__":
    main()
