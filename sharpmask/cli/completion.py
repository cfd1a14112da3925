"""Scripts by which shells complete the command line, made by tyro from the options of all commands."""

from __future__ import annotations

import io
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Union

import tyro

from ..errors import DataError
from ..ranges import shown
from ..training.stages import TrainConfig
from .arguments import WITHOUT_NONE
from .options import OPTIONS, STAGES

SHELLS: Final = ("bash", "zsh", "fish")

# tyro completes files as values of options only. Here what is no option is a file as well.
BASH: Final = """
_sharpmask_or_files() {
  _tyro_sharpmask
  [[ -n "${COMPREPLY[*]}" ]] || COMPREPLY=()
}
complete -o default -F _sharpmask_or_files sharpmask
"""
EDITS: Final = {
    "bash": ("", ""),
    "zsh": ("in completions:\n        print", "in completions or ['__TYRO_COMPLETE_FILES__']:\n        print"),
    "fish": ("complete --no-files", "complete"),
}


@dataclass(frozen=True)
class TrainOptions(TrainConfig):
    config: Path | None = None
    """YAML file with settings."""


def completion_script(shell: str) -> str:
    """The script for a shell. Raises ``DataError`` for one that is not known."""
    if shell not in SHELLS:
        raise DataError(f"--print-completion must be {', '.join(SHELLS[:-1])} or {SHELLS[-1]}, got {shown(shell)}")
    text = io.StringIO()
    with redirect_stdout(text), suppress(SystemExit):
        tyro.cli(all_commands(), prog="sharpmask", args=["--tyro-print-completion", shell], registry=WITHOUT_NONE)
    script = text.getvalue().replace(*EDITS[shell])
    return script + BASH if shell == "bash" else script


def all_commands() -> Any:
    """The options of every command, as tyro's subcommands."""

    def union(kinds: dict[str, tuple[Any, str]]) -> Any:
        named = [
            Annotated[kind, tyro.conf.subcommand(name, description=text.partition("\n")[0])]
            for name, (kind, text) in kinds.items()
        ]
        return Union[tuple(named)]  # noqa: UP007

    stages = union({stage: (TrainOptions, text) for stage, text in STAGES.items()})
    without_prefix: Any = tyro.conf.OmitSubcommandPrefixes
    train = make_dataclass("Train", [("stage", without_prefix[stages])])
    commands = {name: (kind, kind.__doc__ or "") for name, kind in OPTIONS.items()}
    return union({**commands, "train": (train, "Train a model.")})
