"""The training loop: batches in, checkpoints and a log out.

All randomness is a function of the seed, the step and the place of a batch in it. A run that was stopped and resumed
therefore sees the same batches and the same dropout as one that was not, and ends with the same bits; and it does not
matter which process takes which batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from ..checkpoint import save_model, save_tensors
from ..data.coco import CocoFolder
from ..data.mixture import Mixture
from ..errors import DataError, counted
from ..evaluation import Validator
from ..files import output_folder, write_text
from ..models.weights import load_tensors
from ..packages import check
from ..plain import as_yaml, to_plain
from ..tensor_files import StateDict, check_values
from .batches import Part, Waits, load_batches, make_batches, part_of
from .gradients import set_gradients
from .log import Log, make_progress
from .losses import loss_function
from .optimizer import freeze, learning_rate, make_optimizer
from .processes import (
    check_agreement,
    own_device,
    process_group,
    share_weights,
    sum_counts,
    world_size,
)
from .resume import (
    REFORMING,
    STATE,
    batches_in_step,
    check_record,
    digest,
    keep_processes,
    make_record,
    optimizer_slots,
    read_state,
    state_metadata,
)
from .stages import TrainConfig
from .start import initial_model, overruled

CHECKPOINT, BEST = "checkpoint.safetensors", "best.safetensors"
SETTINGS = "config.yaml"


class Ended(Exception):
    """A run has ended before its last step, because it was asked to, and has saved its state."""


def train(config: TrainConfig, console: Console | None = None, ending: Callable[[], bool] = lambda: False) -> Path:
    """Train as ``config`` says and return the path of the last checkpoint.

    Under torchrun every process takes its share of the batches. Progress goes to ``console``, by default stderr.
    ``ending`` is asked before every step; where it says so in one of the processes, all save and raise ``Ended``.
    Raises ``DataError`` for unusable data, for a folder that holds a run already or that another one writes to,
    for a run that cannot go on with these settings, and without the packages of the extra ``train``.
    """
    check("yaml", "training", "train")
    # The first process alone writes, so it alone keeps other runs out of the folder.
    with process_group() as rank, nullcontext() if rank else output_folder(config.out):
        run = Run(config, rank, Console(quiet=True) if rank else console or Console(stderr=True), ending)
        run.loop()
    return config.out / CHECKPOINT


class Run:
    """One training run and all that it carries from step to step."""

    def __init__(
        self, config: TrainConfig, rank: int, console: Console, ending: Callable[[], bool] = lambda: False
    ) -> None:
        self.rank, self.console, self.ending = rank, console, ending
        self.device = own_device(config.device)
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        resumed = is_resumed(config)
        # A resumed run has its weights from the state, and the file that it began with may be gone.
        start = replace(config, trunk_weights=None) if resumed else config
        self.model = initial_model(start).to(self.device).to(memory_format=torch.channels_last).train()
        # The checkpoint to start from decides the model's sizes, and batches must fit them.
        for line in overruled(config, self.model.config):
            self._say(line)
        self.config = config = replace(config, model=self.model.config)
        freeze(self.model, config)
        self.learning = [p for p in self.model.parameters() if p.requires_grad]
        self.average: list[Tensor] = [p.detach().clone() for p in self.learning] if config.ema else []
        self.optimizer = make_optimizer(self.model, config)
        self.step, self.best = 0, -1.0
        self.unread: list[dict[str, Tensor]] = []  # the losses of the last steps, on the device
        self.sums: dict[str, list[float]] = {}  # each term's losses before them, since the last line of the log
        self.losses = loss_function(config)
        self.record = make_record(config)
        if resumed:
            self._load_state()
        self.part = self._own_part()
        check_agreement(rank, {"step": self.step, "hash of settings and data": digest(self.record)})
        share_weights(self.model)
        self.data, held_out = self._read_data()
        self.batches = make_batches(self.data, config, self.part.whole)
        self.validator = self._make_validator(held_out)
        if rank == 0:
            settings = to_plain(replace(config, resume=False, change=()))
            write_text(config.out / SETTINGS, as_yaml(settings))
            self.log = Log(config.out, self.step)

    def _read_data(self) -> tuple[Mixture, Mixture | None]:
        """The data to train on, and the photos held out, if any."""
        config, sets = self.config, self.config.data_sets()
        folders = [self._read_folder(data.folder, data.annotations, partial=config.partial) for data in sets]
        known = {photo.path.name for folder in folders for photo in folder.photos}
        for name in config.held_out:
            if name not in known:
                raise DataError(
                    f"held_out must be file names of photos of the data sets, without folders, got {name!r}"
                )
        pairs = [folder.split(set(config.held_out)) for folder in folders]
        check_left(pairs)
        held_out = [held for _, held in pairs if held.photos]
        return Mixture([rest for rest, _ in pairs], [d.weight for d in sets]), Mixture(held_out) if held_out else None

    def _make_validator(self, held_out: Mixture | None) -> Validator | None:
        """What validates, in the first process: on a data set of its own, or on the photos held out, if any."""
        config = self.config
        if config.validation is not None:
            held_out = Mixture([self._read_folder(config.validation, config.validation_annotations)])
        if held_out is None or self.rank:
            return None
        return Validator(held_out, self.model.config, samples=config.validation_samples)

    def _read_folder(self, path: Path, annotations: Path | None, *, partial: bool = False) -> CocoFolder:
        config = self.config
        folder = CocoFolder(
            path,
            annotations=annotations,
            categories=list(config.categories) or None,
            skip_bad=config.skip_bad,
            exif=config.exif,
            links=config.links,
            partial=partial,
        )
        for note in folder.notes:
            self._say(note)
        self._say_skipped(folder.skipped)
        return folder

    def loop(self) -> None:
        """Train to the last step. Log, validate and save on the way. Raises ``Ended`` as :func:`train` does."""
        config, steps = self.config, range(self.step, self.config.steps)
        loaded = load_batches(
            self.data, self.batches, steps, workers=config.workers, device=self.device, part=self.part
        )
        with closing(loaded), make_progress(self.console) as progress:
            waits = Waits(loaded)
            task = progress.add_task(config.stage, total=config.steps, completed=self.step, loss="")
            for batches in waits:
                if sum_counts([self.ending()])[0]:
                    break
                self.unread.append(self._train_step(batches))
                self.step += 1
                if any(map(self._due, (config.log_every, config.validate_every, config.save_every))):
                    self._read_losses()
                row: dict[str, float] = {}
                if self._due(config.log_every):
                    row = self._mean_losses()
                    losses = " ".join(f"{k} {v:.3f}" for k, v in row.items())
                    progress.update(task, loss=f"{losses} waited for data {waits.share():.0%}")
                    row["lr"] = learning_rate(config, self.step - 1)
                if self.rank == 0:
                    self._record(row)
                progress.update(task, completed=self.step)
        self._finish()

    def _due(self, every: int) -> bool:
        """Whether something is due that happens every so many steps and after the last one."""
        return self.step % every == 0 or self.step == self.config.steps

    def _read_losses(self) -> None:
        """Add the unread losses to the sums. Of all that a step does, this alone waits for the device.

        Raises ``DataError`` for a loss that is not finite.
        """
        steps, self.unread = self.unread, []
        values = [value.float() for losses in steps for value in losses.values()]
        numbers = iter(torch.stack(values).tolist() if values else [])
        for step, losses in enumerate(steps, self.step - len(steps)):
            for name in losses:
                number = next(numbers)
                if not math.isfinite(number):
                    raise DataError(f"training: the {name} loss became {number} at step {step}; try a smaller lr")
                self.sums.setdefault(name, []).append(number)

    def _mean_losses(self) -> dict[str, float]:
        """The mean of each loss since the last call."""
        row = {f"loss_{k}": sum(v) / len(v) for k, v in self.sums.items()}
        self.sums.clear()
        return row

    def _record(self, row: dict[str, float]) -> None:
        """Validate and save if due; log ``row`` and what validation measured."""
        if self.validator is not None and self._due(self.config.validate_every):
            row |= self._validate(self.validator)
        if row:
            self.log.write(self.step, row)
        if self._due(self.config.save_every):
            self._save()

    def _train_step(self, batches: Sequence[Any]) -> dict[str, Tensor]:
        """One step on its batches. Returns the losses by term, on the device, which nothing here waits for."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step) * group["factor"]
        self.optimizer.zero_grad(set_to_none=True)
        seeds = [hash((config.seed, self.step, self.part.first + place)) for place in range(len(batches))]
        losses = set_gradients(self.model, self.losses, batches, seeds, config)
        if config.clip:
            torch.nn.utils.clip_grad_norm_(self.learning, config.clip)
        self.optimizer.step()
        if config.ema:
            # Early on the weights change fast, so the average follows them closely.
            decay = min(config.ema, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(self.average, [p.detach() for p in self.learning], 1 - decay)
        return losses

    def _validate(self, validator: Validator) -> dict[str, float]:
        """Measure the averaged model and keep it if it is the best so far."""
        with self._averaged():
            row = validator(self.model)
        self._say(f"step {self.step}: " + ", ".join(f"{k} {v:.3f}" for k, v in row.items()))
        found = row.get("refined_share_70", row.get("coarse_share_70", -1.0))
        if found > self.best:
            self.best = found
            self._save_averaged(BEST)
        return row

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The model in evaluation mode with its averaged weights, inside the block."""
        self._swap_average()
        self.model.eval()
        try:
            yield
        finally:
            self.model.train()
            self._swap_average()

    def _swap_average(self) -> None:
        if self.config.ema:
            for p, a in zip(self.learning, self.average, strict=True):
                p.data, a.data = a.data, p.data

    def _save_averaged(self, name: str) -> None:
        """Write a checkpoint of the averaged model, with a record of how it was made."""
        # Paths are left out: a checkpoint is passed on, and they concern this machine alone.
        paths = {"dataset", "annotations", "validation", "validation_annotations", "start_from", "trunk_weights", "out"}
        settings = {k: v for k, v in to_plain(self.config).items() if k not in paths | {"resume", "change"}}
        with self._averaged():
            save_model(self.model, self.config.out / name, training={"step": self.step, **settings})

    def _save(self) -> None:
        """Write the state that a resumed run needs, and the checkpoint. Where there is a checkpoint is a state."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        if self.config.ema:
            tensors |= {f"average.{i}": v for i, v in enumerate(self.average)}
        check_values(tensors, f"{self.config.out / STATE}: not written")
        for i, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{k}": v for k, v in slots.items() if isinstance(v, Tensor)}
        save_tensors(tensors, state_metadata(self.step, self.best, self.sums, self.record), self.config.out / STATE)
        self._save_averaged(CHECKPOINT)

    def _own_part(self) -> Part:
        """Which batches of a step this process takes."""
        whole, processes = batches_in_step(self.record, self.config), world_size()
        if self.record["processes"] != processes:
            self._say(f"of the {whole} batches in a step each of {processes} processes takes {whole // processes}")
        return part_of(self.rank, processes, whole)

    def _load_state(self) -> None:
        path = self.config.out / STATE
        if not path.is_file():
            raise DataError(f"out: no run to resume in {self.config.out} ({STATE} is missing)")
        state = read_state(path)
        changed: set[str] = set()
        if state.record is None:
            self._say(f"{path}: an older version wrote it without a record of the settings; they are not compared")
        else:
            keep_processes(state.record, self.record, self.config)
            changed = check_record(state.record, self.record, self.config)
        if state.step > self.config.steps:
            raise DataError(f"steps must be at least {state.step}, the steps of the run, got {self.config.steps}")
        self.step, self.sums = state.step, state.sums
        # Other validation data measure something else.
        self.best = -1.0 if "validation" in changed else state.best
        try:
            self._restore(state.tensors, fresh=bool(changed & REFORMING))
        except (RuntimeError, ValueError, LookupError) as error:
            raise DataError(f"{path}: does not fit these settings: {str(error).splitlines()[0]}") from error

    def _restore(self, tensors: StateDict, *, fresh: bool) -> None:
        """Set model, optimizer and average to the tensors that :meth:`_save` wrote. ``fresh``: the model alone."""
        model = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        load_tensors(self.model, model, "model")
        if not fresh:
            slots = optimizer_slots(tensors, [p for group in self.optimizer.param_groups for p in group["params"]])
            self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": slots})
        for number, (average, own) in enumerate(zip(self.average, self.learning, strict=bool(self.average))):
            saved = None if fresh else tensors.get(f"average.{number}")  # None: the average begins now
            if saved is not None and saved.shape != own.shape:
                raise ValueError(f"average.{number} must be of shape {tuple(own.shape)}, got {tuple(saved.shape)}")
            average.copy_(own.detach() if saved is None else saved)

    def _finish(self) -> None:
        """Close the log. Raises ``Ended``, with everything saved, if steps are left."""
        ended = self.step < self.config.steps
        if ended:
            self._read_losses()
        if self.rank == 0:
            if ended:
                self._save()
            self._say_skipped(self.data.skipped)
            self.log.close()
            self._say(f"checkpoint: {self.config.out / CHECKPOINT}")
        if ended:
            raise Ended(f"ended at step {self.step} of {self.config.steps}, which is saved; --resume goes on with it")

    def _say_skipped(self, lines: list[str]) -> None:
        if lines:
            broken = counted(len(lines), "broken image or annotation", "broken images or annotations")
            self._say(f"left out {broken}, first: {lines[0]}")

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def is_resumed(config: TrainConfig) -> bool:
    """Whether the run goes on from a state. Raises ``DataError`` for a folder of another run."""
    found = (config.out / STATE).exists()
    if found and not config.resume:
        raise DataError(f"out: {config.out} holds a run already; --resume goes on with it")
    if not found and (config.out / CHECKPOINT).exists():
        raise DataError(f"out: {config.out} holds a {CHECKPOINT} without its {STATE}; choose another folder")
    return found or config.resume is True


def check_left(pairs: Sequence[tuple[CocoFolder, CocoFolder]]) -> None:
    """Raise ``DataError`` where the photos held out leave a data set no photo, or all together no object.

    ``pairs``: each data set without the photos held out, and these.
    """
    objects_left = any(photo.instances for rest, _ in pairs for photo in rest.photos)
    for rest, held in pairs:
        with_objects = sum(bool(photo.instances) for photo in held.photos)
        if (held.photos and not rest.photos) or (with_objects and not objects_left):
            count, which = (with_objects, "photos with objects") if rest.photos else (len(held.photos), "photos")
            raise DataError(
                f"held_out: all {which} of {held.annotation_file} are held out ({count} of "
                f"{len(held.photos) + len(rest.photos)}), so none is left to train on; hold out fewer, or validate on "
                "a folder of its own (--validation)"
            )
