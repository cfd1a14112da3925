"""Which backend runs an op, and the self-check that guards the automatic choice of a GPU's kernels."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import sharpmask_kernels as kernels
from sharpmask_kernels import dispatch, preferences, registry, self_check, verdicts
from sharpmask_kernels.backends.reference import gather_windows, refinement

CPU = torch.device("cpu")
MAP = torch.ones(1, 2, 4, 4)


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Choices are remembered in the process: not from test to test."""
    dispatch._chosen.cache_clear()
    verdicts.verdict.cache_clear()
    yield
    dispatch._chosen.cache_clear()
    verdicts.verdict.cache_clear()


class MadeUp:
    """Backends made up for a test, besides the reference: what they declare, and their kernels."""

    def __init__(self) -> None:
        self.declared = {"reference": registry.backend("reference")}
        self.kernels = {"reference": types.SimpleNamespace(**REFERENCE)}
        self.declare("first", "merge_upsample")
        self.declare("second", "merge_upsample", "gather_windows")

    def declare(self, name: str, *ops: str, unavailable: str | None = None, **options: Any) -> None:
        """A backend that has the reference's kernels for the ops named."""
        self.declared[name] = registry.Backend(
            name, ops, **{"devices": ("cpu", "cuda"), "unavailable": lambda: unavailable, **options}
        )
        backward = [f"{op}_backward" for op in ops]
        self.kernels[name] = types.SimpleNamespace(**{op: REFERENCE[op] for op in (*ops, *backward) if op in REFERENCE})


REFERENCE = {**vars(refinement), **vars(gather_windows)}


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> MadeUp:
    """Backends to be chosen from, by name, besides the reference."""
    backends = MadeUp()
    monkeypatch.setattr(registry, "BACKENDS", ("reference", "first", "second"))
    monkeypatch.setattr(registry, "backend", lambda name: backends.declared[name])
    monkeypatch.setattr(registry, "room", lambda backend, name: backends.kernels[backend])
    return backends


def choose(op: str, backend: str | None = None) -> str:
    return dispatch.choose(op, MAP, backend)


def test_every_backend_is_ready_or_says_why_not() -> None:
    assert set(kernels.available_backends()) == set(registry.BACKENDS)
    assert kernels.available_backends()["reference"] == "ready"
    assert all(kernels.available_backends().values())


def test_the_reference_has_every_op() -> None:
    assert all(registry.backend("reference").has(op) for op in registry.OPS)


def test_automatic_takes_the_first_that_has_the_op(made_up: MadeUp) -> None:
    assert choose("merge_upsample") == "first"
    assert choose("gather_windows") == "second"
    assert choose("refine") == "reference"


def test_automatic_passes_over_what_cannot_run(made_up: MadeUp) -> None:
    made_up.declare("first", "merge_upsample", unavailable="no such chip")
    made_up.declare("second", "merge_upsample", dtypes=(torch.float16, torch.bfloat16))
    assert choose("merge_upsample") == "reference"


def test_a_backend_by_name_runs_or_says_why_not(made_up: MadeUp) -> None:
    assert choose("merge_upsample", "second") == "second"
    with pytest.raises(ValueError, match=r"one that has gather_windows \('reference', 'second'\), got 'first'"):
        choose("gather_windows", "first")
    with pytest.raises(ValueError, match="one of 'reference', 'first', 'second', got 'third'"):
        choose("merge_upsample", "third")
    made_up.declare("first", "refine", unavailable="no such chip")
    with pytest.raises(RuntimeError, match="backend 'first' is not available: no such chip"):
        choose("refine", "first")
    made_up.declare("second", "refine", dtypes=(torch.float16, torch.bfloat16))
    with pytest.raises(
        ValueError,
        match=r"maps must be of dtype torch.float16 or torch.bfloat16 on backend",
    ):
        choose("refine", "second")


def test_preferences_hold_in_order_and_op_by_op(made_up: MadeUp) -> None:
    with kernels.use_backend("second", "first"):
        assert choose("merge_upsample") == "second"
        with kernels.use_backend("first"):
            assert choose("merge_upsample") == "first"
            assert choose("gather_windows") == "reference"
            assert choose("gather_windows", "second") == "second"  # an argument is stronger
        assert choose("merge_upsample") == "second"
    assert choose("merge_upsample") == "first"


def test_use_backend_as_a_setter(made_up: MadeUp) -> None:
    kernels.use_backend("reference")
    try:
        assert choose("merge_upsample") == "reference"
    finally:
        kernels.use_backend()
    assert choose("merge_upsample") == "first"


def test_use_backend_refuses_unknown_names_and_stays_as_it_was() -> None:
    with pytest.raises(ValueError, match=r"use_backend must be one of 'reference', .* got 'fpga'"):
        kernels.use_backend("reference", "fpga")
    assert preferences.current() == ()


# Threads, generators and tasks end their with statements in any order.


@contextlib.contextmanager
def generator(name: str) -> Iterator[None]:
    with kernels.use_backend(name):
        yield


@pytest.mark.parametrize("prefer", [kernels.use_backend, generator])
def test_with_statements_may_end_in_any_order(prefer: Any) -> None:
    names = ["reference", "cpu", "triton"]
    for order in itertools.permutations(range(3)):
        entered = [prefer(name) for name in names]
        for one in entered:
            one.__enter__()
        left = names.copy()
        for i in order:
            entered[i].__exit__(None, None, None)
            left.remove(names[i])
            assert preferences.current() == tuple(left[-1:])


def test_threads_have_preferences_of_their_own() -> None:
    """Four threads enter and leave in turn; the first leaves last."""
    seen: list[tuple[str, ...]] = []
    all_in, turn = threading.Barrier(4, timeout=60), [threading.Event() for _ in range(5)]

    def work(i: int) -> None:
        name = registry.BACKENDS[i]
        assert turn[i].wait(60)
        with kernels.use_backend(name):
            turn[i + 1].set()
            all_in.wait()
            seen.append(preferences.current())
            kernels.use_backend("reference")
            seen.append(preferences.current())

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    turn[0].set()
    for thread in threads:
        thread.join()
    assert sorted(seen) == sorted([(name,) for name in registry.BACKENDS] + [("reference",)] * 4)
    assert preferences.current() == ()


def test_many_with_statements_in_many_threads() -> None:
    wrong = []

    def work(i: int) -> None:
        name = registry.BACKENDS[i % 4]
        for _ in range(200):
            with kernels.use_backend(name):
                with kernels.use_backend("cpu", "reference"):
                    wrong.extend([name] * (preferences.current() != ("cpu", "reference")))
                wrong.extend([name] * (preferences.current() != (name,)))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong
    assert preferences.current() == ()


def test_a_with_statement_holds_in_threads_without_one() -> None:
    seen = []
    with kernels.use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(preferences.current()))
        thread.start()
        thread.join()
    assert seen == [("reference",)]


def test_a_with_statement_that_ends_in_another_thread() -> None:
    entered = kernels.use_backend("reference")
    entered.__enter__()
    thread = threading.Thread(target=entered.__exit__, args=(None, None, None))
    thread.start()
    thread.join()
    assert preferences.current() == ()


def test_calls_inside_a_with_statement_end_with_it() -> None:
    prefer = kernels.use_backend("cpu")
    try:
        with prefer, prefer:
            kernels.use_backend("reference")
            kernels.use_backend("triton")
            assert preferences.current() == ("triton",)
    finally:
        assert preferences.current() == ()
        kernels.use_backend()
    for _ in range(1000):
        kernels.use_backend("cpu")
        kernels.use_backend()
    with kernels.use_backend("reference"):
        pass
    assert preferences.current() == ()


def test_tasks_that_take_turns() -> None:
    async def task(name: str) -> None:
        with kernels.use_backend(name):
            await asyncio.sleep(0)

    async def tasks() -> None:
        await asyncio.gather(*map(task, registry.BACKENDS))

    asyncio.run(tasks())
    assert preferences.current() == ()


def test_preferences_inside_a_compiled_function() -> None:
    def run(x: Tensor) -> Tensor:
        with kernels.use_backend("reference"):
            inside = kernels.merge_upsample(x, x, torch.ones(1, 4, 3, 3), None)
        return inside + kernels.merge_upsample(x, x, torch.ones(1, 4, 3, 3), None)

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(run, fullgraph=True, backend=counter)
    for _ in range(3):
        torch.testing.assert_close(compiled(MAP), run(MAP))
        assert preferences.current() == ()
        chosen = [node.args[-1] for node in counter.graphs[0].graph.nodes if "merge_upsample" in str(node.target)]
        assert chosen == ["reference", dispatch.choose("merge_upsample", MAP, None)]
    assert counter.frame_count == 1


def test_the_fall_back_to_the_reference_is_said_once(made_up: MadeUp, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sharpmask_kernels")
    with kernels.use_backend("first"):
        for _ in range(3):
            choose("gather_windows")
            choose("merge_upsample")
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "gather_windows runs on the reference: backend must be one that has gather_windows" in caplog.text


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True
    )


def test_the_environment_names_preferences() -> None:
    code = "import torch; from sharpmask_kernels import dispatch as d; m = torch.ones(1, 1, 1, 1)\n"
    code += "print(d.preferences.current(), d.choose('gather_windows', m, None))"
    done = run(code, SHARPMASK_BACKEND="reference, cpu")
    assert done.stdout.strip() == "('reference', 'cpu') reference"
    done = run(code, SHARPMASK_BACKEND="warp")
    assert "SHARPMASK_BACKEND must be one of 'reference'" in done.stderr.splitlines()[-1]


def test_the_backend_of_the_forward_runs_the_backward(made_up: MadeUp) -> None:
    ran = []

    def backward(*arguments: Any) -> list[Tensor]:
        ran.append(True)
        return refinement.merge_upsample_backward(*arguments)

    made_up.kernels["second"].merge_upsample_backward = backward
    skip = torch.ones(1, 1, 2, 2, requires_grad=True)
    with kernels.use_backend("second"):
        out = kernels.merge_upsample(skip, skip, torch.ones(1, 2, 3, 3), None)
    out.sum().backward()
    assert ran


# The self-check.


@pytest.mark.parametrize("backend", registry.BACKENDS)
def test_backends_pass(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU kernels for GPUs are interpreted or emulated, with an op's last case only, because they are slow."""
    if reason := registry.backend(backend).unavailable():
        pytest.skip(f"backend {backend}: {reason}")
    if registry.backend(backend).simulated():
        whole = self_check.cases
        monkeypatch.setattr(self_check, "TOLERANCE", {torch.float32: 1e-5})
        monkeypatch.setattr(self_check, "cases", lambda *given: list(whole(*given))[-1:])
    found = self_check.check(backend, CPU)
    assert set(found) == {op for op in registry.OPS if registry.backend(backend).has(op)}
    assert set(found.values()) == {"ok"}


def test_what_differs_is_found(made_up: MadeUp) -> None:
    def off(*arguments: Any) -> Any:
        out, active = refinement.merge_upsample(*arguments)
        return out * 1.01, active

    made_up.kernels["first"].merge_upsample = off
    made_up.kernels["first"].merge_upsample_backward = refinement.merge_upsample_backward
    found = self_check.check("first", CPU)
    assert found["merge_upsample"].startswith("bilinear, zeros, torch.contiguous_format, torch.float32: off by 1.0e-02")


def test_a_wrong_gradient_is_found(made_up: MadeUp) -> None:
    def flipped(*arguments: Any) -> list[Tensor]:
        return [-gradient for gradient in refinement.merge_upsample_backward(*arguments)]

    made_up.kernels["first"].merge_upsample_backward = flipped
    assert "off by 2.0e+00" in self_check.check("first", CPU)["merge_upsample"]


def test_not_a_number_is_no_agreement(made_up: MadeUp) -> None:
    made_up.kernels["second"].gather_windows = lambda *a: gather_windows.gather_windows(*a) * float("nan")
    made_up.kernels["second"].gather_windows_backward = gather_windows.gather_windows_backward
    assert "off by inf" in self_check.check("second", CPU)["gather_windows"]


def test_a_kernel_that_raises_is_found(made_up: MadeUp) -> None:
    def broken(*arguments: Any) -> Any:
        raise RuntimeError("illegal instruction")

    made_up.kernels["first"].merge_upsample = broken
    assert "RuntimeError: illegal instruction" in self_check.check("first", CPU)["merge_upsample"]


def test_a_gpu_kernel_is_taken_only_after_its_check(
    made_up: MadeUp, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of two backends the first fails for one op; automatic then takes the second, or the reference, and warns."""
    found = {"first": {"merge_upsample": "off by 1"}, "second": {"merge_upsample": "ok", "gather_windows": "off"}}
    monkeypatch.setattr(verdicts, "verdict", lambda name, device: found[name])
    for name in ("first", "second"):
        made_up.declare(name, *made_up.declared[name].ops, self_checked=True)
    gpu = torch.device("cuda", 0)
    for _ in range(2):
        assert dispatch._chosen("merge_upsample", gpu, torch.float32, None, ()) == "second"
        assert dispatch._chosen("gather_windows", gpu, torch.float32, None, ()) == "reference"
    # Who asks for it by name gets it.
    assert dispatch._chosen("gather_windows", gpu, torch.float32, "second", ()) == "second"
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "gather_windows runs on the reference on cuda:0: self-check of backend 'second': off" in caplog.text


def test_a_check_in_a_process_of_its_own() -> None:
    assert verdicts._check_apart("reference", CPU) == dict.fromkeys(registry.OPS, "ok")


def test_a_check_that_crashes_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "SELF_CHECK", "sharpmask_kernels.no_such_module")
    assert "the check ended early: " in verdicts._check_apart("reference", CPU)["refine"]


def test_verdicts_are_kept_for_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_up: MadeUp
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []

    def apart(backend: str, device: torch.device) -> dict[str, str]:
        calls.append(backend)
        return {"merge_upsample": "ok"}

    monkeypatch.setattr(verdicts, "_check_apart", apart)
    for _ in range(2):
        verdicts.verdict.cache_clear()  # as in a new process
        assert verdicts.verdict("first", CPU) == {"merge_upsample": "ok"}
    assert calls == ["first"]
    # Another version of the kernels is checked anew; a spoilt file is no verdict.
    monkeypatch.setattr(verdicts, "_sources", lambda: "changed")
    verdicts.verdict.cache_clear()
    verdicts.verdict("first", CPU)
    assert len(json.loads(verdicts._cache_file().read_text())) == 2
    for spoilt in ("{", "[1]", '{"a": 1}'):
        verdicts._cache_file().write_text(spoilt)
        verdicts.verdict.cache_clear()
        verdicts.verdict("first", CPU)
    assert len(calls) == 5


def test_a_home_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(verdicts, "_check_apart", lambda backend, device: {"refine": "ok"})
    assert verdicts.verdict("reference", CPU) == {"refine": "ok"}
