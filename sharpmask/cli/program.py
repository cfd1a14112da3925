"""From the words of a command line to the command: its options, checked before PyTorch is imported."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any

from rich.table import Table

from ..app.address import listen
from ..data.photos import Found, find_photos
from ..data.video import is_video
from ..errors import DataError
from .arguments import WITHOUT_NONE, parse_arguments
from .checks import check_images, check_inputs, check_out
from .images import expanded
from .options import OPTIONS, STAGES, Propose
from .output import say, show
from .replacing import check_replaced
from .videos import check_videos

Command = Callable[[], int]
"""Carries a command out and returns the exit status."""


def prepare(argv: Sequence[str]) -> Command:
    """The command that a command line asks for, with its arguments checked and its modules imported.

    Prints help, the version and usage errors itself and exits, as command lines do. Raises ``DataError`` for an
    unknown command and for arguments that cannot be used.
    """
    name, rest = split_command(argv)
    # Each command's module is imported when the command is known to run: others need not wait for it.
    if name.startswith("train "):
        from . import train

        config = train.parse(name.removeprefix("train "), rest)
        check_inputs(config)
        check_out(config.out, is_file=False)
        return train.prepared(config)
    options = parse(name, rest)
    if name == "propose" and options.scale.cluster:
        from . import cluster

        return cluster.prepared(options)
    check_inputs(options)
    _check_output(options)
    if name == "propose":
        return _prepare_propose(options)
    if name == "results":
        from .results import results

        return partial(results, options)
    if name == "app":
        listening = listen(options.port)
        from .app import app

        return partial(app, options, listening)
    if name == "eval":
        from .evaluate import evaluate

        return partial(evaluate, options)
    from . import commands

    return partial(getattr(commands, name.replace("-", "_")), options)


def _check_output(options: Any) -> None:
    """Raise ``DataError`` where a command's output cannot be written, or would replace a file of another kind."""
    out, kind = getattr(options, "out", None), getattr(options, "writes", None)
    if out is None:
        return
    check_out(out, is_file=kind is not None)
    if kind is not None:
        check_replaced(out, kind, options.overwrite)


def _prepare_propose(options: Propose) -> Command:
    """The search of photos and videos, which are found and checked first."""
    images = expanded(options.images)
    check_images(images)
    videos = [path for path in images if is_video(path)]
    if videos:
        check_videos(videos, options)
    photos = [path for path in images if path not in videos]
    found = find_photos(photos, recursive=options.recursive) if photos or not videos else Found([], [])
    from .propose import propose

    return partial(propose, options, found, videos)


def split_command(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The command's name, of one or two words, and its arguments.

    Prints the list of commands, the version, or a script for a shell, and exits if that is asked for. Raises
    ``DataError`` for an unknown command.
    """
    known = [*OPTIONS, *(f"train {stage}" for stage in STAGES)]
    for words in (1, 2):
        name = " ".join(argv[:words])
        if name in known:
            return name, list(argv[words:])
    if argv[:1] == ["--version"]:
        from ..version import __version__

        say(f"sharpmask {__version__}")
        raise SystemExit(0)
    option, _, shell = " ".join(argv).replace("=", " ", 1).partition(" ")
    if option == "--print-completion":
        from .completion import completion_script

        print(completion_script(shell), end="")
        raise SystemExit(0)
    asked = not argv or argv[0] in ("-h", "--help") or (argv[:1] == ["train"] and argv[1:2] in ([], ["-h"], ["--help"]))
    if asked:
        print_commands()
        raise SystemExit(0)
    given = " ".join(argv[:2] if argv[0] == "train" else argv[:1])
    close = get_close_matches(" ".join(argv[:2]), known, n=1) or get_close_matches(given, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise DataError(f"command must be one of {', '.join(known)}, got {given!r}{hint}")


def print_commands() -> None:
    """List all commands with what each does."""
    table = Table("command", "what it does", box=None, pad_edge=False)
    for name in OPTIONS:
        table.add_row(f"sharpmask {name}", (OPTIONS[name].__doc__ or "").splitlines()[0])
    for stage, text in STAGES.items():
        table.add_row(f"sharpmask train {stage}", text)
    show(table, least=64)
    say("\nsharpmask COMMAND --help lists its options; sharpmask --version tells the version.")
    say("sharpmask --print-completion SHELL prints a script for bash, zsh or fish.")


def parse(name: str, argv: list[str]) -> Any:
    """The options of a command other than training."""
    told = inspect.getdoc(OPTIONS[name])
    return parse_arguments(OPTIONS[name], argv, prog=f"sharpmask {name}", description=told, registry=WITHOUT_NONE)
