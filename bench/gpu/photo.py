"""Stage photo: how long a whole photo takes, from pixels to masks on the host, with our kernels and with PyTorch's ops.

What is found is compared first with what PyTorch's ops find in fp32. A step where it differs has failed, but has times.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from sharpmask.models import DeepMask
from sharpmask.search import ProposalGenerator
from sharpmask_kernels import use_backend

from ..photo import outcome
from ..photo.searches import demo_photo, load
from ..photo.searches import outcome as outcome_of
from ..timing import seconds
from .steps import Plan, Row, Step

MODELS = {"ResNet-50": "sharpmask resnet50", "shipped": "shipped"}
COUNT = 1000
"""Windows that are refined."""
SIZE = (480, 640)
ROUNDS = 7
SECONDS = 120.0
"""Of a step at most. Its first search compiles, and cuDNN tries its ways for pictures of every scale."""

OURS = ("cuda", "triton")
"""Preferred to PyTorch's ops, without waiting for the self-check: that is a step of stage prove."""
PLAIN = ("reference",)


def steps(plan: Plan) -> list[Step]:
    if plan.rehearse:
        return [_step("shipped", "fp32", "torch")]
    kinds = [(precision, "torch") for precision in ("bf16", "fp16", "fp32")] + [("bf16", "compile")]
    return [_step(model, *kind) for kind in kinds for model in MODELS]


def _step(model: str, precision: str, engine: str) -> Step:
    question = {"what": "time", "model": model, "precision": precision, "engine": engine}
    return Step(f"{model} {precision} {engine}", SECONDS, question=question)


class Answers:
    """What the stage's process answers: the times of one model, in one precision, by one engine."""

    def __init__(self, folder: Path, rehearse: bool) -> None:
        self.device = torch.device("cpu" if rehearse else "cuda")
        self.count, self.rounds, size = (5, 1, (96, 128)) if rehearse else (COUNT, ROUNDS, SIZE)
        self.ours = ("cpu",) if rehearse else OURS
        self.photo, self.models = demo_photo(*size), dict[str, DeepMask]()
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False

    def time(self, model: str, precision: str, engine: str) -> dict[str, Any]:
        with use_backend(*PLAIN):
            expected = outcome_of(self.generator(model, "fp32", "torch"), self.photo)
        generator, kind = self.generator(model, precision, engine), {"model": model, "precision": precision}
        rows, problems = [], []
        for who, backends in (("ours", self.ours), ("PyTorch's ops", PLAIN)):
            with use_backend(*backends):
                problems += [f"{who} differ from fp32: {problem}" for problem in self.problems(generator, expected)]
                rows.append({**kind, "engine": engine, "who": who, **self.taken(generator)})
        ours, theirs = (row["seconds"] for row in rows)
        told = [f"{1e3 * ours:.1f} ms, {theirs / ours:.2f} times as fast as PyTorch's ops", *problems]
        return {"status": "failed" if problems else "ok", "said": "; ".join(told), "rows": rows}

    def generator(self, model: str, precision: Any, engine: Any) -> ProposalGenerator:
        if model not in self.models:
            self.models = {model: load(MODELS[model]).to(self.device)}  # one at a time
        return ProposalGenerator(self.models[model], top_n=self.count, precision=precision, engine=engine)

    def problems(self, generator: ProposalGenerator, expected: outcome.Outcome) -> list[str]:
        """How what is found differs from what is expected by more than rounding explains, in words."""
        found = outcome_of(generator, self.photo)
        if generator.precision == "fp32":
            return list(outcome.problems(found, expected, outcome.ROUNDED))
        if generator.model.config.trunk == "resnet50":  # random weights score many windows nearly alike
            return []
        return list(outcome.problems(found, expected, outcome.REDUCED))

    def taken(self, generator: ProposalGenerator) -> Row:
        """The median time of a photo, and its stages' times."""
        timings: list[dict[str, float]] = []
        times = [seconds(lambda: timings.append(generator.generate(self.photo).timing)) for _ in range(self.rounds)]
        stages = {name: float(np.median([timing[name] for timing in timings])) for name in timings[0]}
        return {"seconds": float(np.median(times)), "stages": stages}


def tables(rows: list[Row]) -> dict[str, list[list[str]]]:
    if not rows:
        return {}
    stages = list(dict.fromkeys(name for row in rows for name in row["stages"]))
    lines = [
        [
            f"{row['model']}, {row['precision']}, {row['engine']}",
            row["who"],
            *(f"{1e3 * row['stages'].get(name, 0):.1f}" for name in stages),
            f"{1e3 * row['seconds']:.1f}",
        ]
        for row in rows
    ]
    return {f"ms of a photo, {COUNT} windows": [["", "", *stages, "photo"], *lines]}
