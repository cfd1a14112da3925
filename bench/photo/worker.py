"""A contender's process: ``python -m bench.photo.worker TASK`` makes it ready and answers questions until they end.

TASK is JSON: ``threads``, ``counts`` (windows to refine), ``size`` of the photo, ``model``, ``search``, and
``checkout``, a folder from which the package is taken instead of this one.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

Answer = dict[str, Any]


def main() -> None:
    task = json.loads(sys.argv[1])
    # Libraries print; only answers go to the parent.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if task["checkout"]:
        sys.path.insert(0, task["checkout"])
    if hasattr(os, "sched_setaffinity"):  # nobody has more cores than the others
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: task["threads"]])
    from .searches import Searches  # not before: it imports the package

    searches = None

    def ready() -> Answer:
        nonlocal searches
        searches = Searches(task)
        return {}

    reply(answers, ready)
    for line in sys.stdin:
        question = json.loads(line)
        method = getattr(searches, question.pop("what"))
        reply(answers, lambda method=method, question=question: method(**question))  # type: ignore[misc]


def reply(answers: TextIO, work: Callable[[], Answer]) -> None:
    """The answer that ``work`` gives, or why it fails, as one line."""
    try:
        answer = work()
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        answer = {"failed": (str(error).strip() or type(error).__name__).splitlines()[0]}
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
