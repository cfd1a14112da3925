"""The command ``sharpmask train``: settings from a YAML file and flags, then the training loop."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import cast

import tyro

from ..errors import DataError
from ..plain import from_plain, read_yaml
from ..training import TrainConfig, stage_defaults
from ..training.stages import StageName
from .arguments import parse_arguments
from .interrupts import INTERRUPTED, TERMINATED, terminations
from .options import STAGES
from .output import ERR, say


def prepared(config: TrainConfig) -> Callable[[], int]:
    """Training as ``config`` says, with its modules imported. It returns the exit status."""
    # Here, because parsing the arguments does not need it, and it takes seconds.
    from ..training import Ended, train
    from ..training.loop import SETTINGS
    from ..training.resume import STATE

    words = ["sharpmask", "train", config.stage, "--config", str(config.out / SETTINGS), "--resume"]

    def run() -> int:
        with terminations() as asked:
            try:
                train(config, ERR, asked)
            except Ended as ended:
                say(f"sharpmask: {ended}", ERR)
                return TERMINATED
            except KeyboardInterrupt:
                how = f"; what was saved is kept, and this goes on: {shlex.join(words)}"
                say(f"sharpmask: interrupted{how if (config.out / STATE).exists() else ''}", ERR)
                return INTERRUPTED
        return 0

    return run


def parse(stage: str, argv: list[str]) -> TrainConfig:
    """Settings of a training run: the stage's defaults, replaced by the ``--config`` file's, then by the flags.

    With a checkpoint to start from, the defaults are those of fine-tuning. Prints help and usage errors and exits, as
    command lines do.
    """
    words = _with_values(argv)
    config, rest = read_config(_defaults(stage), words)
    if config.start_from is not None or any(word.partition("=")[0] == "--from" for word in rest):
        config, rest = read_config(_defaults(stage, fine_tuning=True), words)
    help_text = f"{STAGES[stage]} --config FILE reads settings from a YAML file; flags override them."
    return parse_arguments(TrainConfig, rest, prog=f"sharpmask train {stage}", description=help_text, default=config)


def _defaults(stage: str, *, fine_tuning: bool = False) -> TrainConfig:
    settings = stage_defaults(cast(StageName, stage), fine_tuning=fine_tuning)
    return TrainConfig(dataset=tyro.MISSING, out=tyro.MISSING, **settings)


def _with_values(argv: list[str]) -> list[str]:
    """The arguments with ``--resume`` alone written out, because it may also have a value: ``--resume auto``."""
    spelled: list[str] = []
    for word, following in zip(argv, [*argv[1:], ""], strict=False):  # of no arguments the second has one
        bare = word == "--resume" and following not in ("True", "False", "auto")
        spelled += ["--resume", "True"] if bare else ["--resume", "False"] if word == "--no-resume" else [word]
    return spelled


def read_config(base: TrainConfig, argv: list[str]) -> tuple[TrainConfig, list[str]]:
    """``base`` with the settings of the YAML file that ``--config`` names, and the remaining arguments.

    Raises ``DataError`` for a file that cannot be read, or that has unknown or wrong settings.
    """
    argv = [part for word in argv for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
    if "--config" not in argv:
        return base, argv
    at = argv.index("--config")
    if at + 1 == len(argv):
        raise DataError("--config must be followed by a YAML file")
    path = Path(argv[at + 1])
    config = from_plain(TrainConfig, read_yaml(path), str(path), base)
    if config.stage != base.stage:
        raise DataError(f"{path}: stage must be {base.stage!r} as the command says, got {config.stage!r}")
    return config, argv[:at] + argv[at + 2 :]
