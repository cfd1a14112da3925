"""The training loop: batches in, checkpoints and a log out, resumable to the bit.

Everything random is a function of (seed, step, rank), so a run that was stopped and resumed sees the same
batches and the same dropout as one that was not.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..checkpoint import load_model, save_model, save_tensors
from ..data.coco import CocoFolder
from ..data.sampling import PatchBatches, PatchSampler
from ..data.tiles import TileBatch, TileBatches
from ..errors import DataError
from ..evaluation.validator import Validator
from ..files import write_text
from ..models import DeepMask, from_config
from ..plain import to_plain
from .stages import (
    TERMS,
    TrainConfig,
    freeze,
    learning_rate,
    parameter_groups,
    patch_losses,
    tile_losses,
    total_loss,
)

CHECKPOINT, BEST, STATE = "checkpoint.safetensors", "best.safetensors", "state.safetensors"
SETTINGS, LOG, CURVES = "config.yaml", "log.csv", "curves.png"


def train(config: TrainConfig, console: Console | None = None) -> Path:
    """Train as ``config`` says; gives the last checkpoint's path.

    Under torchrun every process takes its share. Raises ``DataError`` for unusable data or a run folder that
    is already in use.
    """
    with process_group() as rank:
        run = Run(config, rank, Console(quiet=True) if rank else console or Console(stderr=True))
        run.loop()
    return config.out / CHECKPOINT


class process_group:
    """The processes that torchrun started, if it did; gives this one's rank."""

    def __enter__(self) -> int:
        self.started = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
        if self.started:
            dist.init_process_group()
        return dist.get_rank() if dist.is_initialized() else 0

    def __exit__(self, *error: object) -> None:
        if self.started:
            dist.destroy_process_group()


class Run:
    """One training run and everything it carries from step to step."""

    def __init__(self, config: TrainConfig, rank: int, console: Console) -> None:
        self.rank, self.console = rank, console
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.device = own_device(config.device)
        self.model = initial_model(config).to(self.device).to(memory_format=torch.channels_last).train()
        # A checkpoint to start from decides the model, and batches must fit that one.
        self.config = config = replace(config, model=self.model.config)
        freeze(self.model, config)
        self.learning = [p for p in self.model.parameters() if p.requires_grad]
        self.average: list[Tensor] = [p.detach().clone() for p in self.learning] if config.ema else []
        self.optimizer = make_optimizer(self.model, config)
        self.step, self.best = 0, -1.0
        self.sums: dict[str, list[float]] = {}
        if config.resume:
            self._load_state()
        elif (config.out / STATE).exists():
            raise DataError(f"out: {config.out} holds a run already; --resume goes on with it")
        categories = list(config.categories) or None
        filters: dict[str, Any] = {"categories": categories, "skip_bad": config.skip_bad}
        self.folder = CocoFolder(config.dataset, annotations=config.annotations, **filters)
        self.batches = make_batches(self.folder, config, rank)
        self.validator = None
        if config.validation is not None and rank == 0:
            folder = CocoFolder(config.validation, annotations=config.validation_annotations, **filters)
            samples = config.validation_samples
            self.validator = Validator(folder, self.model.config, samples=samples)
        if rank == 0:
            config.out.mkdir(parents=True, exist_ok=True)
            write_text(config.out / SETTINGS, yaml.safe_dump(to_plain(replace(config, resume=False)), sort_keys=False))
            self.log = Log(config.out, self.step)

    def loop(self) -> None:
        """Train to the end, saving, measuring and logging on the way."""
        config, sums = self.config, self.sums
        with make_progress(self.console) as progress:
            task = progress.add_task(config.stage, total=config.steps, completed=self.step, loss="")
            for batch in self._batches():
                for name, value in self._train_step(batch).items():
                    sums.setdefault(name, []).append(value)
                self.step += 1
                last = self.step == config.steps
                row: dict[str, float] = {}
                if self.step % config.log_every == 0 or last:
                    row = {f"loss_{k}": sum(v) / len(v) for k, v in sums.items()}
                    row["lr"] = learning_rate(config, self.step - 1)
                    progress.update(task, loss=" ".join(f"{k} {v:.3f}" for k, v in row.items() if k != "lr"))
                    sums.clear()
                if self.rank == 0:
                    if self.validator is not None and (self.step % config.validate_every == 0 or last):
                        row |= self._validate()
                    if row:
                        self.log.write(self.step, row)
                    if self.step % config.save_every == 0 or last:
                        self._save()
                progress.update(task, completed=self.step)
        if self.rank == 0:
            self._finish()

    def _train_step(self, batch: Any) -> dict[str, float]:
        config = self.config
        torch.manual_seed(hash((config.seed, self.step, self.rank)))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step) * group["factor"]
        compute = tile_losses if isinstance(batch, TileBatch) else patch_losses
        losses = compute(self.model, batch, config)
        self.optimizer.zero_grad(set_to_none=True)
        if losses:
            total_loss(losses, config).backward()
        self._share_gradients()
        if config.clip:
            torch.nn.utils.clip_grad_norm_(self.learning, config.clip)
        self.optimizer.step()
        if config.ema:
            # Early on, when the weights still travel, the average follows closely.
            decay = min(config.ema, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(self.average, [p.detach() for p in self.learning], 1 - decay)
        values = {name: value.item() for name, value in losses.items()}
        for name, value in values.items():
            if not math.isfinite(value):
                raise DataError(f"training: the {name} loss became {value} at step {self.step}; try a smaller lr")
        return values

    def _share_gradients(self) -> None:
        """Average the gradients over all processes.

        What one process's batch did not touch counts as zero; what no batch touched has no gradient and rests,
        as it does in a single process.
        """
        if not dist.is_initialized():
            return
        touched = torch.tensor([float(p.grad is not None) for p in self.learning], device=self.device)
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.learning]
        flat = torch.cat([touched, *(g.flatten() for g in grads)])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        touched, *shared = flat.split([len(grads), *(g.numel() for g in grads)])
        for p, t, g in zip(self.learning, touched.tolist(), shared, strict=True):
            p.grad = g.view(p.shape) if t else None

    def _batches(self) -> Iterator[Any]:
        # Workers never touch the kernels, and each has one thread.
        loader = DataLoader(
            Fetching(self.folder, self.batches),
            batch_size=None,
            sampler=range(self.step, self.config.steps),
            num_workers=self.config.workers,
            pin_memory=self.device.type == "cuda",
        )
        skipped = self.folder.skipped
        for batch, lines in loader:
            skipped += [line for line in lines if line not in skipped]
            if isinstance(batch, DataError):
                raise batch
            yield to_device(batch, self.device)

    def _validate(self) -> dict[str, float]:
        assert self.validator is not None
        with Averaged(self):
            row = self.validator(self.model)
        self.console.print(f"step {self.step}: " + ", ".join(f"{k} {v:.3f}" for k, v in row.items()))
        found = row.get("refined_share_70", row.get("coarse_share_70", -1.0))
        if found > self.best:
            self.best = found
            with Averaged(self):
                save_model(self.model, self.config.out / BEST, training=self._record())
        return row

    def _record(self) -> dict[str, Any]:
        """How the model was made; without paths, which are nobody else's business."""
        inputs = ("dataset", "annotations", "validation", "validation_annotations", "start_from", "trunk_weights")
        settings = {k: v for k, v in to_plain(self.config).items() if k not in (*inputs, "out")}
        return {"step": self.step, **settings}

    def _save(self) -> None:
        with Averaged(self):
            save_model(self.model, self.config.out / CHECKPOINT, training=self._record())
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        if self.config.ema:
            tensors |= {f"average.{i}": v for i, v in enumerate(self.average)}
        for i, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{k}": v for k, v in slots.items() if isinstance(v, Tensor)}
        metadata = {"step": str(self.step), "best": repr(self.best), "sums": json.dumps(self.sums)}
        save_tensors(tensors, metadata, self.config.out / STATE)

    def _load_state(self) -> None:
        path = self.config.out / STATE
        if not path.is_file():
            raise DataError(f"out: no run to resume in {self.config.out} ({STATE} is missing)")
        try:
            with safe_open(path, "pt") as file:
                tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
                metadata = file.metadata() or {}
            self.step, self.best = int(metadata["step"]), float(metadata["best"])
            # Losses since the last line of the log.
            self.sums = json.loads(metadata["sums"])
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise DataError(f"{path}: not the state of a run: {str(error).splitlines()[0]}") from error
        model = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        try:
            self.model.load_state_dict(model)
            slots: dict[int, dict[str, Tensor]] = {}
            for name, value in tensors.items():
                if name.startswith("optimizer."):
                    _, i, slot = name.split(".")
                    slots.setdefault(int(i), {})[slot] = value
            self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": slots})
            if self.config.ema:
                for i, average in enumerate(self.average):
                    average.copy_(tensors[f"average.{i}"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise DataError(f"{path}: does not fit these settings: {str(error).splitlines()[0]}") from error

    def _finish(self) -> None:
        skipped = len(self.folder.skipped)
        if skipped:
            self._say(f"left out {skipped} broken images or annotations, first: {self.folder.skipped[0]}")
        self.log.close()
        self._say(f"checkpoint: {self.config.out / CHECKPOINT}")

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


class Averaged:
    """The model in evaluation mode with its averaged weights, for as long as the block lasts."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def _swap(self) -> None:
        if self.run.config.ema:
            for p, a in zip(self.run.learning, self.run.average, strict=True):
                p.data, a.data = a.data, p.data

    def __enter__(self) -> None:
        self._swap()
        self.run.model.eval()

    def __exit__(self, *error: object) -> None:
        self.run.model.train()
        self._swap()


class Log:
    """log.csv, TensorBoard events and a plot of the curves, kept up to date."""

    def __init__(self, folder: Path, step: int) -> None:
        self.folder = folder
        self.rows: list[dict[str, str]] = []
        if step and (folder / LOG).exists():
            with open(folder / LOG, newline="") as file:
                self.rows = [r for r in csv.DictReader(file) if int(r["step"]) <= step]
        self.board = self._board(step)

    def _board(self, step: int) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:  # an extra: pip install 'sharpmask[train]'
            return None
        return SummaryWriter(str(self.folder / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, row: dict[str, float]) -> None:
        self.rows.append({"step": str(step), **{k: repr(v) for k, v in row.items()}})
        names = list(dict.fromkeys(name for r in self.rows for name in r))
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.folder / LOG, text.getvalue())
        if self.board is not None:
            for name, value in row.items():
                self.board.add_scalar(name, value, step)

    def close(self) -> None:
        if self.board is not None:
            self.board.close()
        try:
            from ..visualize import plot_training

            plot_training(self.folder / LOG, self.folder / CURVES)
        except ImportError:  # matplotlib is an extra as well
            pass


class Fetched(NamedTuple):
    """A batch, or why there is none, and what its process has left out so far."""

    batch: Any
    skipped: list[str]


class Fetching(Dataset[Fetched]):
    """Batches in a form in which errors and counts survive the way out of a worker process."""

    def __init__(self, folder: CocoFolder, batches: Dataset[Any]) -> None:
        self.folder, self.batches = folder, batches

    def __getitem__(self, step: int) -> Fetched:
        try:
            return Fetched(self.batches[step], self.folder.skipped)
        except DataError as error:
            return Fetched(error, self.folder.skipped)


def initial_model(config: TrainConfig) -> DeepMask:
    """The model that training starts with: fresh, or from a checkpoint whose shared parts it takes over."""
    if config.start_from is None:
        if config.stage == "sharpmask" and config.trained == "stage":
            raise DataError(
                "from must name a checkpoint of stage 'deepmask' (or --trained all learns everything), got none"
            )
        model = from_config(config.model)
        if config.trunk_weights is not None:
            model.trunk.load_weights(config.trunk_weights)
        return model
    source = load_model(config.start_from)
    refinement = ("architecture", "refinement", "mask_channels", "skip_channels", "skip_hidden", "crop_first")
    if source.config.architecture == config.model.architecture:
        chosen = source.config
    else:
        chosen = replace(source.config, **{name: getattr(config.model, name) for name in refinement})
    model = from_config(chosen)
    model.search = source.search
    missing, unexpected = model.load_state_dict(source.state_dict(), strict=False)
    if unexpected:
        raise DataError(f"{config.start_from}: tensor {unexpected[0]} is not part of a {chosen.architecture}")
    if any(name.startswith(("trunk.", "encode.", "score.")) for name in missing):
        raise DataError(f"{config.start_from}: tensor {missing[0]} is missing")
    return model


def make_optimizer(model: DeepMask, config: TrainConfig) -> torch.optim.Optimizer:
    groups = parameter_groups(model, config)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)


def make_batches(folder: CocoFolder, config: TrainConfig, rank: int) -> Dataset[Any]:
    """The run's batches by step."""
    model = config.model
    if config.sampling == "dense":
        return TileBatches(folder, config.tiles, window=model.window, seed=config.seed, rank=rank)
    shape: dict[str, Any] = {
        "window": model.window,
        "context": model.context,
        "rule": config.rule,
        "seed": config.seed,
    }
    # The released code judges coarse masks at 112 of a window's 160 pixels, refined ones at all of them.
    side = model.window if "refined" in TERMS[config.stage] else round(model.window * 0.7)
    return PatchBatches(
        PatchSampler(folder, head="mask", mask_size=side, **shape),
        PatchSampler(folder, head="score", **shape),
        batch_size=config.batch_size,
        score_share=config.score_share if "score" in TERMS[config.stage] else 0.0,
        seed=config.seed,
        rank=rank,
        world_size=dist.get_world_size() if dist.is_initialized() else 1,
    )


def own_device(name: str) -> torch.device:
    """The device of this process: of several processes, each has the GPU of its own number."""
    device = torch.device(name)
    if device.type == "cuda" and device.index is None and dist.is_initialized():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device


def make_progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
        console=console,
    )


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch with all its tensors on ``device``."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {k: to_device(v, device) for k, v in batch.items()}
    if isinstance(batch, tuple):
        return type(batch)(*(to_device(v, device) for v in batch))
    return batch
