"""The process that a stage keeps: ``python -m bench.gpu.worker STAGE FOLDER [--rehearse]`` answers its questions."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from ..process import serve


def main() -> None:
    stage, folder, *rest = sys.argv[1:]

    def ready() -> object:
        if rest:
            from .rehearsal import prepare

            prepare()
        module = importlib.import_module(f"{__package__}.{stage}")
        return module.Answers(Path(folder), rehearse=bool(rest))

    serve(ready)


if __name__ == "__main__":
    main()
