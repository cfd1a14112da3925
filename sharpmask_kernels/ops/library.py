"""The ops as PyTorch knows them, ``torch.ops.sharpmask.*``: schema, fake, kernel, autograd.

An op has one signature, that of its function in ``backends/reference``. :func:`define` infers the schema from it; the
functions of the other backends have the same parameters (a test compares them). The schema has one argument more, which
comes last: the name of the backend. The public function chooses it, so that a backward runs where its forward ran.
Schemas hold flat tensors and numbers only.
"""

from __future__ import annotations

import collections
import inspect
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import registry
from ..windows import Windows
from . import direct
from .flops import count_as
from .transforms import Library

_library = Library("sharpmask", "DEF")
# The layout of an output follows from the layout of the maps: compilers must keep it.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)


@dataclass(frozen=True)
class Case:
    """A call of an op for the self-check: ``run(backend, *inputs)`` on float64 ``inputs``, rounded to a dtype first."""

    inputs: Sequence[Tensor]
    run: Callable[..., Tensor]


def scattered_windows(device: torch.device) -> Windows:
    """Windows for a self-check, of two images and two scales: inside, over each border, outside, overlapping."""
    cells = [(0, 0, 0, 0), (0, 0, 1, 1), (1, 1, -2, 3), (0, 1, 4, -1), (1, 0, 90, 0), (1, 1, 2, 2), (1, 1, 2, 3)]
    return Windows(torch.zeros(len(cells), device=device), *torch.tensor(cells, device=device).T.contiguous())


@dataclass
class Op:
    """An op that :func:`define` has registered. A call takes positional arguments, as in the schema."""

    name: str
    parameters: dict[str, Any]
    """The type of every argument, by name and in the schema's order."""
    arguments: Callable[..., Any]
    """Makes the named tuple of all arguments."""
    kernel: Callable[..., Any] | None
    """What the dispatcher calls in the end; None if only the dispatcher may call it."""
    function: type[torch.autograd.Function] | None = None
    """The kernel with its gradient; None if only the dispatcher has that."""

    def __call__(self, *arguments: Any) -> Any:
        # A compiler must see the op.
        if not torch.compiler.is_compiling() and self.kernel is not None and direct.possible(arguments):
            if not direct.has_gradient(arguments):
                return self.kernel(*arguments)
            if self.function is not None and direct.records_gradients():
                return self.function.apply(*arguments)
        return getattr(torch.ops.sharpmask, self.name)(*arguments)


def define(
    reference: Callable[..., Any],
    fake: Callable[[Any], Any],
    *,
    name: str | None = None,
    run: Callable[..., Any] | None = None,
    backends: bool = True,
    mutates: str | None = None,
    constants: Sequence[str] = (),
) -> Op:
    """Register an op that has the signature of ``reference`` and, with ``backends``, the argument ``backend`` after it.

    ``fake`` makes the uninitialised results from the named tuple of the arguments. ``name`` is by default the name of
    ``reference``. ``run(*arguments)`` computes the op in place of the chosen backend's function of the same name.
    ``mutates`` names the tensor that the op writes, ``constants`` the lists of integers that are the same in every
    call, which a compiler need not treat as symbols.
    """
    name = name or reference.__name__
    signature = inspect.signature(reference, eval_str=True)
    if backends:
        last = inspect.Parameter("backend", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=str)
        signature = signature.replace(parameters=[*signature.parameters.values(), last])
    parameters = {parameter.name: parameter.annotation for parameter in signature.parameters.values()}
    run = run or _runner(reference)
    # PyTorch counts the versions of a tensor that an op writes.
    op = Op(name, parameters, collections.namedtuple(name, parameters), run if mutates is None else None)
    _library.plain[name] = (lambda *arguments: reference(*arguments[:-1])) if backends else reference
    _library.define(name + _schema(signature, mutates, constants), tags=_TAGS)
    # One kernel for all devices, below autograd: the cheapest registration.
    _library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"sharpmask::{name}", lambda *given: fake(op.arguments(*given)), lib=_library)
    _library.batch(name)
    count_as(name, _library.plain[name])
    return op


def _runner(reference: Callable[..., Any]) -> Callable[..., Any]:
    """Calls the function of the name and room of ``reference`` of the backend that the last argument names."""
    name, room = reference.__name__, reference.__module__.rpartition(".")[2]

    def run(*arguments: Any) -> Any:
        return getattr(registry.room(arguments[-1], room), name)(*arguments[:-1])

    return run


def _schema(signature: inspect.Signature, mutates: str | None, constants: Sequence[str]) -> str:
    def prototype() -> None: ...

    prototype.__signature__ = signature  # type: ignore[attr-defined]
    schema = torch.library.infer_schema(prototype, mutates_args=() if mutates is None else (mutates,))
    for name in constants:
        schema = schema.replace(f"SymInt[] {name}", f"int[] {name}")
    return re.sub(r"\(a\d+!\)", "(a!)", schema)  # no op writes more than one tensor


def differentiable(
    op: Op,
    backward: Op,
    *,
    inputs: Sequence[str],
    results: Sequence[str],
    derived: Callable[[Any], dict[str, Any]] = lambda _: {},
    reads_result: Callable[[Any], bool] = lambda _: True,
    passed: Callable[[Any], Sequence[str]] = lambda _: (),
) -> None:
    """Give ``op`` the gradient that ``backward`` computes.

    ``inputs`` are the arguments with a gradient, tensors or lists of them. ``results`` names the op's results: the
    first has a gradient, the others, tensors or lists of them, are made for the backward. The arguments of
    ``backward`` are found by their names: ``grad``, ``needs`` (whether the gradient of each input is asked for),
    arguments and results of the op, and what ``derived`` makes of the op's arguments. It returns the gradients that
    ``needs`` asks for, in the order of ``inputs``.

    Two functions of the op's arguments: ``reads_result``, whether ``backward`` reads the first result (else it gets
    None, and the result may be overwritten), and ``passed``, the inputs whose gradient is that of the first result, as
    it is (``backward`` is not asked for them).
    """
    known = (*op.parameters, *results)
    kept = [name for name in backward.parameters if name in known]
    tensors = [name for name in kept if backward.parameters[name] in (Tensor, Tensor | None)]
    lists = [name for name in kept if backward.parameters[name] == Sequence[Tensor]]
    options = [name for name in kept if name not in (*tensors, *lists)]
    others = [name for name in backward.parameters if name not in (*known, "grad", "needs")]
    pick_tensors, pick_lists, pick_options = (_picker(known, names) for names in (tensors, lists, options))
    pick_arguments = _picker(("grad", "needs", *tensors, *lists, *options, *others), list(backward.parameters))
    places = [list(op.parameters).index(name) for name in inputs]

    # PyTorch passes the arguments by these names.
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        ctx.mark_non_differentiable(*_flat(outputs[1:]))
        ctx.set_materialize_grads(False)  # no zeros as gradients of the results that are made for the backward
        given = op.arguments(*inputs)
        values = (*inputs, outputs[0] if reads_result(given) else None, *outputs[1:])
        saved_lists = pick_lists(values)
        ctx.save_for_backward(*pick_tensors(values), *_flat(saved_lists))
        ctx.lengths = [len(saved) for saved in saved_lists]
        ctx.options = (*pick_options(values), *map(derived(given).__getitem__, others))
        ctx.passed = [list(op.parameters).index(name) for name in passed(given)]

    def run(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Any, ...]:
        needs = [place not in ctx.passed and ctx.needs_input_grad[place] for place in places]
        asked_for = _flat(needs)
        found: Iterator[Tensor | None] = itertools.repeat(None)
        if grad is not None and any(asked_for):
            saved = iter(ctx.saved_tensors)
            alone = itertools.islice(saved, len(tensors))
            listed = (list(itertools.islice(saved, length)) for length in ctx.lengths)
            found = iter(backward(*pick_arguments((grad, asked_for, *alone, *listed, *ctx.options))))
        gradients = {place: _next(found, need) for place, need in zip(places, needs, strict=True)}
        gradients |= dict.fromkeys(ctx.passed, grad)
        return tuple(gradients.get(place) for place in range(len(op.parameters)))

    _register(op, setup_context, run, any(op.parameters[name] == Sequence[Tensor] for name in inputs))
    _refuse_backward(backward, f"{op.name} has no second derivative")


def _register(op: Op, setup_context: Callable[..., None], run: Callable[..., Any], lists: bool) -> None:
    """The gradient ``run`` of an op, for the dispatcher and for calls that leave it out."""
    torch.library.register_autograd(f"sharpmask::{op.name}", run, setup_context=setup_context, lib=_library)
    kernel = op.kernel
    if kernel is None or lists:  # a torch.autograd.Function does not look into lists
        return

    def forward(ctx: Any, *arguments: Any) -> Any:
        result = kernel(*arguments)
        setup_context(ctx, arguments, result)
        return result

    methods = {"forward": staticmethod(forward), "backward": staticmethod(run)}
    op.function = type(op.name, (torch.autograd.Function,), methods)


def _next(found: Iterator[Tensor | None], need: Any) -> Any:
    """The next of the gradients found, or as many as ``need`` asks for; None where it does not ask."""
    if _is_list(need):
        return [_next(found, one) for one in need]
    return next(found) if need else None


def _is_list(need: Any) -> bool:
    """Whether ``need`` is, or stands for, a list of tensors, not one tensor."""
    return isinstance(need, (tuple, list))


def _flat(values: Sequence[Any]) -> list[Any]:
    """The values, with those of lists among them one by one."""
    return [x for value in values for x in (value if _is_list(value) else (value,))]


def _picker(names: Sequence[str], wanted: Sequence[str]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """Picks the ``wanted`` of values in the order of ``names``. Places are found once; a call then only indexes."""
    places = [names.index(name) for name in wanted]
    return lambda values: tuple([values[place] for place in places])


def refuse_derivatives(op: Op, reason: str) -> None:
    """Let ``op`` raise ``NotImplementedError`` where a derivative of any kind is asked for.

    One that writes an argument has no gradient in any case: it raises for the other kinds.
    """

    def refuse(*_: Any) -> Any:
        raise NotImplementedError(reason)

    _library.plain[op.name] = refuse
    overload = getattr(torch.ops.sharpmask, op.name).default
    if overload._schema.is_mutable:
        _library.impl(op.name, _below_autograd(overload), "Autograd", with_keyset=True)
    else:
        _refuse_backward(op, reason)


def _refuse_backward(op: Op, reason: str) -> None:
    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError(reason)

    torch.library.register_autograd(f"sharpmask::{op.name}", backward, lib=_library)


def _below_autograd(overload: Any) -> Callable[..., Any]:
    def kernel(keyset: Any, *arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return overload.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)

    return kernel
