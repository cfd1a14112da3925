"""All contenders on one model and number of threads: made ready, checked, then timed in turns."""

from __future__ import annotations

import contextlib
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..headline import HOPELESS
from . import before, outcome
from .contenders import BEFORE, CONTENDERS, EXPECTED, Contender
from .outcome import REDUCED, ROUNDED, Outcome
from .process import Failed, Process
from .results import Measured, Results, threads_of

MODELS = {
    "shipped": "shipped",
    "base": "base",
    "ResNet-50": "sharpmask resnet50",
    "original DeepMask": "deepmask-original vgg11",
    "SAM": "",
}
"""What is loaded, by the name in tables. "shipped" is the package's default model. All but it and "base" have random
weights."""

TOLERANCE = {True: ROUNDED, False: REDUCED}
"""By whether a contender is exact."""


def say(text: str) -> None:
    """Progress."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


class Ring:
    """The contenders on one model, each in a process of its own, and what they have to find."""

    def __init__(self, options: Namespace, results: Results, model: str, threads: int, folder: Path) -> None:
        self.options, self.results, self.model, self.threads, self.folder = options, results, model, threads, folder
        self.expected: dict[int, Outcome] = {}

    def measure(self, contenders: list[Contender], counts: list[int], rounds: int) -> None:
        """Adds everyone's times and memory to the results."""
        with contextlib.ExitStack() as stack:
            running: list[tuple[Process, dict[int, Measured]]] = []
            for contender in contenders:
                try:
                    process = stack.enter_context(self.start(contender, counts))
                    running.append((process, self.prepare(contender, process, counts)))
                except Failed as reason:
                    if contender.group == "ours" and not contender.search.get("engine"):
                        raise
                    self.leave_out(contender.name, reason)
            self.take_turns(running, counts, rounds)
        self.results.measured += [own for _, found in running for own in found.values()]

    def take_turns(self, running: list[tuple[Process, dict[int, Measured]]], counts: list[int], rounds: int) -> None:
        """Times all contenders but peers that are far behind the best one: of these, one photo is enough."""
        best = min((found[counts[-1]].median for _, found in running if found[counts[-1]].group == "peer"), default=0)
        close = []
        for process, found in running:
            if found[counts[-1]].group != "peer" or found[counts[-1]].median <= HOPELESS * best:
                close.append((process, found))
                process.ask(what="forget")
        for turn in range(rounds):
            say(f"{self.model}, {threads_of(self.threads)}: round {turn + 1} of {rounds}")
            for count in counts:
                for process, found in close:
                    own, answer = found[count], process.ask(what="time", count=count)
                    own.seconds = [*(own.seconds if turn else []), answer["seconds"]]
                    own.stages = answer["stages"]
        for process, found in close if rounds else []:
            most, peak = found[counts[-1]], process.ask(what="peak")["peak"]
            if most.peak is not None:
                most.peak = max(most.peak, peak)

    def start(self, contender: Contender, counts: list[int]) -> Process:
        """The process of a contender. Raises :class:`Failed` if it cannot take part."""
        checkout = None
        if contender.name == BEFORE:
            if self.options.before == "none":
                raise Failed("not asked for")
            checkout = str(before.checkout(self.options.before, self.options.cache))
        search = dict(contender.search)
        if search["kind"] in ("onnxruntime", "openvino"):
            search["onnx"] = str(self.exported())
        return Process(self.task(search, counts, checkout), self.folder / "log")

    def task(self, search: dict[str, Any], counts: list[int], checkout: str | None = None) -> dict[str, Any]:
        given = {"threads": self.threads, "size": self.options.size, "model": MODELS[self.model]}
        return given | {"search": search, "counts": counts, "checkout": checkout}

    def exported(self) -> Path:
        """The dense pass as ONNX, made by a process that no one else has, whose memory would count otherwise."""
        path = self.folder / f"{self.model}.onnx"
        if not path.exists():
            with Process(self.task({"kind": "export"}, []), self.folder / "log") as process:
                process.ask(what="export", path=str(path))
        return path

    def prepare(self, contender: Contender, process: Process, counts: list[int]) -> dict[int, Measured]:
        """Searches one photo with each number of windows, which also warms up, and checks what is found."""
        start, found, path = time.perf_counter(), {}, self.folder / "outcome.npz"
        for count in counts:  # few windows first: memory that was used once may stay
            own = Measured(self.model, self.threads, count, contender.name, contender.group)
            seen = process.ask(what="look", count=count, path=str(path))
            own.seconds, own.peak = [seen["seconds"]], seen["peak"]
            found[count] = own
            if contender.group != "other":
                self.check(contender, count, outcome.load(path))
        say(f"{self.model}, {threads_of(self.threads)}: {contender.name}, {time.perf_counter() - start:.0f} s")
        return found

    def check(self, contender: Contender, count: int, found: Outcome) -> None:
        if contender.name == EXPECTED:
            self.expected[count] = found
        # The best of many windows that a random model scores nearly alike are others in int8.
        elif contender.exact or self.model == "shipped":
            name = f"{contender.name} ({self.model}, {count} windows)"
            outcome.check(name, found, self.expected[count], TOLERANCE[contender.exact])

    def leave_out(self, name: str, reason: object) -> None:
        note = f"{name} left out ({self.model}, {threads_of(self.threads)}): {reason}"
        say(note)
        self.results.notes.append(note)


def contenders(options: Namespace, threads: int) -> Iterator[Contender]:
    """Plain PyTorch first: the others are compared with it."""
    for name, contender in CONTENDERS.items():
        asked_for = name == EXPECTED or name in options.contender
        if asked_for and (threads == max(options.threads) or not contender.slow_start):
            yield contender
