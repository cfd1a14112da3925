"""``python -m bench.decoders``: whole models and their decoders, as they are and after ``fuse``, eager and compiled.

The results of all contenders are compared with plain PyTorch's first; a wrong one is an error. Then all contenders of a
row take turns, A B C A B C ..., so that other work on the machine slows all of them alike. The table has the median
time of the fused model, eager, in its faster layout. Of the others it has the median, over the rounds, of their time
divided by that: 2.00 means that the fused model is twice as fast.
"""

from __future__ import annotations

import argparse
import copy
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sharpmask_kernels import env, fuse
from sharpmask_kernels.verdicts import version

from . import isa, machine
from .measure import WrongResult, error
from .memory import saved
from .models import Case, cases
from .pages import ROOT, fill, markdown
from .record import HISTORY, Recorder, Row, WrongHeader, append
from .timing import cell, interleaved, milliseconds

PAGE = ROOT / "docs" / "drop-in.md"
"""Where ``--docs`` writes the table."""

TOLERANCE = (1e-4, 5e-2)
"""The largest error of an output and of a gradient, as :func:`bench.measure.error` counts it.

Rounding decides whether ReLU lets an activation near 0 through, which in a small model changes the gradients of all
layers before by 2%, also between the two layouts of plain PyTorch. The tests compare gradients in double precision.
"""

HEADER = [
    "swapped",
    "fused",
    "times as fast as eager-nhwc",
    "as eager",
    "as compile-nhwc",
    "fused-compile-nhwc as compile-nhwc",
    "kept for backward, fused of eager",
]
"""After the cell that names the instruction set."""


class Contender(NamedTuple):
    fused: bool = False
    compiled: bool = False
    channels_last: bool = False


CONTENDERS = {
    "eager": Contender(),
    "eager-nhwc": Contender(channels_last=True),
    "fused": Contender(fused=True),
    "fused-nhwc": Contender(fused=True, channels_last=True),
    "compile-nhwc": Contender(compiled=True, channels_last=True),
    "fused-compile-nhwc": Contender(fused=True, compiled=True, channels_last=True),
}
OURS = ("fused", "fused-nhwc")


class Measured(NamedTuple):
    case: Case
    times: dict[str, np.ndarray]
    """Seconds of every contender, one for each round."""
    swapped: str
    kept: tuple[int, int]
    """Bytes kept for the backward pass, fused and eager."""

    @property
    def fastest(self) -> str:
        return min(OURS, key=lambda name: float(np.median(self.times[name])))

    def pairs(self) -> Iterator[tuple[str, str]]:
        """One of ours and the contender that it is compared with."""
        others = [name for name in self.times if not CONTENDERS[name].fused]
        yield from ((self.fastest, name) for name in others)
        if "fused-compile-nhwc" in self.times:
            yield "fused-compile-nhwc", "compile-nhwc"

    def ratios(self, ours: str, other: str) -> np.ndarray:
        return self.times[other] / self.times[ours]

    def cells(self) -> list[str]:
        """A row of the table."""
        compared = {pair: cell(self.ratios(*pair)) for pair in self.pairs()}
        columns = [(self.fastest, name) for name in ("eager-nhwc", "eager", "compile-nhwc")]
        columns.append(("fused-compile-nhwc", "compile-nhwc"))
        fused, eager = self.kept
        return [
            self.case.name,
            self.swapped,
            f"{milliseconds(self.times[self.fastest])} ({self.fastest})",
            *(compared.get(pair, "-") for pair in columns),
            f"{fused / 1e6:.1f} of {eager / 1e6:.1f} MB ({fused / eager:.2f})",
        ]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.isa and not isa.held():
        return isa.run_held("bench.decoders", sys.argv[1:] if arguments is None else arguments, options.isa)
    torch.set_num_threads(options.threads)
    device = torch.device("cpu")
    packages = ", ".join(f"{name} {version(name)}" for name in ("segmentation-models-pytorch", "monai"))
    told = f"{machine.summary(device)}; {packages}; {options.rounds} rounds."
    print(f"{env.table(machine.describe().items())}\n\n{told}\n", flush=True)
    rows = [[machine.conditions(device), *HEADER]]
    print(markdown(rows), flush=True)
    try:
        recorder = Recorder(options.record, options) if options.record else None
        for case in cases(options.small):
            if case.model in (options.model or [case.model]):
                found = measured(case, options)
                rows.append(found.cells())
                print(markdown(rows).splitlines()[-1], flush=True)
                if recorder:
                    append(options.record, history(found, recorder))
    except (WrongResult, WrongHeader) as problem:
        print(f"\nerror: {problem}", file=sys.stderr)
        return 1
    if options.docs:
        fill(PAGE, f"decoders:{machine.processor(device)[1]}", "\n\n".join(["", told, markdown(rows), ""]))
    return 0


def parse(arguments: Sequence[str] | None) -> Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.decoders",
        description=(__doc__ or "").partition("\n\n")[2],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    models = list(dict.fromkeys(case.model for case in cases(small=False)))
    add("--small", action="store_true", help="small models and images: to try the bench")
    add("--model", choices=models, action="append", help="only this model; may be repeated")
    add("--eager", action="store_true", help="without torch.compile")
    add("--isa", choices=isa.VARIABLES, help="hold everybody to this instruction set")
    add("--threads", type=int, default=2, help="CPU threads")
    add("--rounds", type=int, default=5, help="turns of each")
    add("--docs", action="store_true", help=f"write the table into {PAGE.name}")
    add("--record", type=Path, nargs="?", const=HISTORY, metavar="CSV", help=f"append to {HISTORY.name}, or to this")
    options = parser.parse_args(arguments)
    options.device, options.dtype = "cpu", "fp32"
    return options


def measured(case: Case, options: Namespace) -> Measured:
    torch.manual_seed(0)
    torch.compiler.reset()  # what was compiled for others counts towards a limit
    model, inputs = case.build(case.size, options.small)
    model.train(case.training)
    with torch.no_grad():  # a model may keep its outputs, and those with a graph cannot be copied
        gradients = [torch.randn_like(x) for x in outputs_of(model(*inputs))]
    expected = runner(case, CONTENDERS["eager"], model, inputs, gradients)()
    runs = {}
    for name, contender in CONTENDERS.items():
        if not contender.compiled or not (options.eager or case.training):  # compiling a backward takes long
            runs[name] = runner(case, contender, model, inputs, gradients)
            check(name, case, runs[name](), expected, len(gradients))
    times = dict(zip(runs, interleaved(list(runs.values()), options.rounds), strict=True))
    fused = copy.deepcopy(model)
    report = fuse(fused)
    swapped = f"{int(report)} of {int(report) + len(report.left)}"
    return Measured(case, times, swapped, (kept(fused, inputs), kept(model, inputs)))


def runner(
    case: Case, contender: Contender, model: nn.Module, inputs: tuple[Any, ...], gradients: list[Tensor]
) -> Callable[[], list[Tensor]]:
    """A function that runs the contender once. It returns the outputs and, in training, the parameters' gradients."""
    layout = torch.channels_last if contender.channels_last else torch.contiguous_format
    module = copy.deepcopy(model).to(memory_format=layout)
    if contender.fused:
        fuse(module)
    ready, grads = pytree.tree_map(lambda x: x.contiguous(memory_format=layout), (inputs, gradients))
    # Not as one graph: MONAI's UpCat asks for a type, which breaks the graph of the plain model.
    function = torch.compile(module, dynamic=False) if contender.compiled else module
    parameters = list(module.parameters())

    def run() -> list[Tensor]:
        with torch.set_grad_enabled(case.training):
            outputs = outputs_of(function(*ready))
        if not case.training:
            return outputs
        return [*outputs, *torch.autograd.grad(outputs, parameters, grads, materialize_grads=True)]

    return run


def outputs_of(result: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(result) if isinstance(x, Tensor)]


def check(name: str, case: Case, found: list[Tensor], expected: list[Tensor], outputs: int) -> None:
    for i, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        off, allowed = error(ours.detach(), theirs.detach()), TOLERANCE[i >= outputs]
        if not off <= allowed:
            what = f"output {i}" if i < outputs else f"gradient {i - outputs}"
            raise WrongResult(
                f"{name} differs from plain PyTorch on {case.name}, so it is not timed: "
                f"{what} off by {off:.1e}, allowed {allowed:.0e}"
            )


def kept(model: nn.Module, inputs: tuple[Any, ...]) -> int:
    """Bytes that a forward in training mode keeps for its backward, beyond inputs, parameters and buffers."""
    given = [*outputs_of(inputs), *model.parameters(), *model.buffers()]
    return saved(lambda: model.train()(*inputs), given)


def history(found: Measured, recorder: Recorder) -> Iterator[Row]:
    for ours, other in found.pairs():
        yield recorder.row(
            threads=str(torch.get_num_threads()),
            op="fuse",
            shape=found.case.name.replace(", training step", ""),
            mode="training-frozen" if found.case.training else "forward",
            backend=ours,
            seconds=f"{np.median(found.times[ours]):.4g}",
            peer=other,
            ratio=f"{np.median(found.ratios(ours, other)):.4g}",
        )


if __name__ == "__main__":
    sys.exit(main())
