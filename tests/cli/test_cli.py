"""The command line as a user meets it: what it writes, what it says, how it fails."""

import csv
import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from safetensors.torch import load_file

from sharpmask.checkpoint import load_model
from sharpmask.cli import main
from sharpmask.cli.options import OPTIONS
from sharpmask.data.coco import CocoFolder
from sharpmask.data.images import load_image
from sharpmask.models import SharpMask
from sharpmask.search.generator import ProposalGenerator

Capture = pytest.CaptureFixture[str]
SHIPPED = Path(str(files("sharpmask"))) / "assets" / "sharpmask_lite0_112.safetensors"

MODEL = [
    *("--trunk", "efficientnet_lite0", "--window", "48", "--features", "8", "--code", "16", "--mask-side", "12"),
    *("--score-hidden", "16", "--mask-channels", "4", "4", "4", "4", "4"),
    *("--skip-channels", "4", "4", "4", "4", "--skip-hidden", "8"),
]
SHORT = ["--steps", "2", "--batch-size", "2", "--log-every", "1", "--save-every", "1", "--workers", "0"]
COMMANDS = ("demo", "propose", "eval", "synth", "pack", "convert", "train deepmask", "train sharpmask", "train joint")


def run(*arguments: object) -> int:
    return main([str(a) for a in arguments])


def fails(capsys: Capture, *arguments: object) -> str:
    """The one line that a command says when it cannot do what it was told."""
    capsys.readouterr()
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("sharpmask: "), captured.err
    assert captured.out == ""
    return lines[0]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["train"], ["train", "--help"]])
def test_help_lists_all_commands(arguments: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 0
    out = capsys.readouterr().out
    for name in COMMANDS:
        assert f"sharpmask {name} " in out


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("propose", "PHOTO..."),
        ("results", "ROWS..."),
        ("pack", "CHECKPOINT OUT"),
        ("export", "CHECKPOINT OUT"),
        ("convert", "WEIGHTS OUT"),
        ("synth", "FOLDER"),
        ("convert-dataset", "FOLDER"),
    ],
)
def test_help_names_what_a_command_is_given(name: str, arguments: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main([name, "--help"])
    usage = capsys.readouterr().out.partition("\n\n")[0]
    assert arguments in usage and "PATH" not in usage


def test_pack_takes_no_option_that_a_checkpoint_does_not_keep(tmp_path: Path, capsys: Capture) -> None:
    for option in ("--max-side", "--device"):
        with pytest.raises(SystemExit) as ended:
            main(["pack", "small", str(tmp_path / "out"), option, "1"])
        assert ended.value.code == 2 and option in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_tells_its_options(name: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as raised:
        main([*name.split(), "--help"])
    assert raised.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: sharpmask {name}" in out
    assert "MISSING" not in out and "--search." not in out and "--model." not in out
    assert "(default: )" not in out or name.startswith(("train", "eval"))  # of lists that may be empty
    assert ("{None" in out) == name.startswith("train")  # there it takes back what a file sets
    for line in (getattr(OPTIONS.get(name), "__doc__", None) or "").split("\n"):
        assert f"\n{line.strip()}\n" in out, "a description is not indented"


def test_as_a_module_and_without_the_training_loop() -> None:
    """``python -m sharpmask.cli`` is the command, and no command loads modules that only others need."""
    program = """
import runpy, sys
import sharpmask.cli.commands
sys.argv = ["sharpmask", "propose", "--help"]
try:
    runpy.run_module("sharpmask.cli", run_name="__main__", alter_sys=True)
finally:
    print([m for m in ("sharpmask.training", "sharpmask.evaluation") if m in sys.modules])
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert "usage: sharpmask propose" in ended.stdout and ended.stdout.endswith("[]\n")


def test_usage_errors_exit_with_2(capsys: Capture) -> None:
    joint = ["train", "joint", "--dataset", "x", "--out", "y"]
    for arguments, said in (
        (["propose", "--no-such-flag"], "--no-such-flag"),
        (["synth"], "Folder to write into"),
        (["train", "deepmask"], "--dataset"),
        ([*joint, "--steps", "many"], "many"),
    ):
        with pytest.raises(SystemExit) as raised:
            main(arguments)
        assert raised.value.code == 2
        assert said in capsys.readouterr().err
    assert "steps must be a whole number from 1 to 1000000000, got 0" in fails(capsys, *joint, "--steps", "0")
    assert "architecture must be 'sharpmask'" in fails(capsys, *joint, "--architecture", "deepmask")
    assert fails(capsys, "paint").endswith("got 'paint'")
    assert "train deepmask" in fails(capsys, "train", "everything")


def test_synth(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "a folder" / "set"
    assert run("synth", out, "--images", 2, "--seed", 4, "--size", 64, 80, "--textures", "generated") == 0
    assert capsys.readouterr().out == f"{out}: 2 pictures\n"
    folder = CocoFolder(out)
    assert [(p.height, p.width) for p in folder.photos] == [(64, 80)] * 2
    assert "exists already" in fails(capsys, "synth", out)
    assert run("synth", tmp_path / "one", "--images", 1, "--size", 64, 80, "--textures", "generated") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'one'}: 1 picture\n"


@pytest.fixture(scope="module")
def first_stage(synth: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "stage1"
    assert run("train", "deepmask", "--dataset", synth, "--out", out, *MODEL, *SHORT) == 0
    return out


def settings_of(run_folder: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((run_folder / "config.yaml").read_text()))


def test_train_deepmask(first_stage: Path, capsys: Capture) -> None:
    assert load_model(first_stage / "checkpoint.safetensors").config.architecture == "deepmask"
    settings = settings_of(first_stage)
    # The paper's recipe where nothing else was said.
    assert settings["stage"] == "deepmask" and settings["optimizer"] == "sgd" and settings["lr"] == 1e-3
    assert settings["milestones"] == [200_000, 480_000] and settings["weight_decay"] == 5e-5
    with open(first_stage / "log.csv", newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2"]


def test_train_sharpmask_from_a_deepmask(first_stage: Path, synth: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "stage2"
    start = first_stage / "checkpoint.safetensors"
    assert run("train", "sharpmask", "--from", start, "--dataset", synth, "--out", out, *SHORT) == 0
    captured = capsys.readouterr()
    assert f"checkpoint: {out}/checkpoint.safetensors" in captured.err.splitlines()
    model = load_model(out / "checkpoint.safetensors")
    assert isinstance(model, SharpMask) and model.window == 48 and model.config.mask_channels == (32, 16, 8, 4, 2)
    before, after = load_file(start), load_file(out / "checkpoint.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    settings = settings_of(out)
    assert (settings["momentum"], settings["weight_decay"], settings["milestones"]) == (0.0, 0.0, [])


def test_train_joint_and_go_on(synth: Path, tmp_path: Path, capsys: Capture) -> None:
    tiles = ("--tiles.side", 80, "--tiles.tiles", 1)
    base = ("train", "joint", "--dataset", synth, *MODEL, *SHORT, *tiles)
    assert run(*base, "--out", tmp_path / "whole", "--steps", 3) == 0
    assert run(*base, "--out", tmp_path / "parts") == 0
    assert "--resume goes on with it" in fails(capsys, *base, "--out", tmp_path / "parts")
    # The run's own settings file is enough to go on.
    again = ("train", "joint", "--config", tmp_path / "parts" / "config.yaml", "--resume", "--steps", 3)
    assert run(*again) == 0
    whole, parts = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    # The cosine looks ahead to the last step, so these two runs differ, but only by that.
    assert settings_of(tmp_path / "whole") | {"out": ""} == settings_of(tmp_path / "parts") | {"out": ""}


def test_flags_go_over_the_config_file(first_stage: Path, synth: Path, tmp_path: Path) -> None:
    config = tmp_path / "recipe.yaml"
    config.write_text(
        "model: {trunk: efficientnet_lite0, window: 48, features: 8, code: 16, mask_side: 12}\n"
        f"dataset: {synth}\nlr: 1e-4\nsteps: 2\nbatch_size: 2\nmilestones: [1]\nfactors: [5e-1]\nworkers: 0\n"
    )
    out = tmp_path / "out"
    assert run("train", "deepmask", f"--config={config}", "--out", out, "--batch-size", 3, "--code", 8) == 0
    settings = settings_of(out)
    assert settings["lr"] == 1e-4, "YAML takes 1e-4 for a text"
    assert settings["batch_size"] == 3 and settings["steps"] == 2 and settings["factors"] == [0.5]
    assert settings["model"]["code"] == 8 and settings["model"]["features"] == 8
    assert settings["model"]["score_hidden"] == 1024 and settings["model"]["architecture"] == "deepmask"
    # What a run saved can be given again, and gives the same run.
    again = tmp_path / "again"
    assert run("train", "deepmask", "--out", again, "--config", out / "config.yaml") == 0
    assert settings_of(again) == settings | {"out": str(again)}
    one, two = (load_file(folder / "checkpoint.safetensors") for folder in (out, again))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_resumed_run_s_settings_start_a_new_one(first_stage: Path, tmp_path: Path) -> None:
    config = first_stage / "config.yaml"
    assert run("train", "deepmask", "--config", config, "--out", tmp_path / "a") == 0
    assert run("train", "deepmask", "--config", config, "--out", tmp_path / "a", "--resume") == 0
    assert run("train", "deepmask", "--config", tmp_path / "a" / "config.yaml", "--out", tmp_path / "b") == 0


def test_bad_settings_get_one_line(first_stage: Path, synth: Path, tmp_path: Path, capsys: Capture) -> None:
    bad = tmp_path / "bad.yaml"

    def message(text: str, stage: str = "deepmask") -> str:
        bad.write_text(text)
        return fails(capsys, "train", stage, "--config", bad, "--dataset", synth, "--out", tmp_path / "x")

    assert "bad.yaml: unknown setting 'stepz'" in message("stepz: 3")
    assert "bad.yaml: steps must be a whole number from 1 to 1000000000, got 'many'" in message("steps: many")
    assert "bad.yaml: lr must be a number above 0 and at most 1000, got 'fast'" in message("lr: fast")
    assert "bad.yaml: optimizer must be one of 'sgd', 'adamw', got 'lion'" in message("optimizer: lion")
    assert "bad.yaml: model: unknown setting 'depth'" in message("model: {depth: 3}")
    assert "bad.yaml: cannot be read as YAML" in message("{")
    missing = fails(capsys, "train", "deepmask", "--config", tmp_path / "no.yaml", "--dataset", synth, "--out", bad)
    assert missing == f"sharpmask: {tmp_path}/no.yaml: must be a YAML file, but there is no such file"
    assert "bad.yaml: expected settings by name, got list" in message("[1, 2]")
    assert "cannot be read as YAML" in message("a: !!python/object/apply:os.system ['true']")
    assert "cannot be read as YAML: 'steps' is given twice" in message("steps: 3\nlr: 0.1\nsteps: 4")
    assert "cannot be read as YAML" in message("steps: " + "9" * 5000)
    assert "cannot be read as YAML" in message("steps: " + "[" * 5000)
    assert "unknown setting 'batchsize'; did you mean batch_size?" in message("batchsize: 3")
    assert "tiles: side must be a multiple of 16 from 16 to 4096, got 100000" in message("tiles: {side: 100000}")
    assert "lr must be a number above 0 and at most 1000, got nan" in message("lr: .nan")
    names = [
        "seed",
        "steps",
        "lr",
        "threads",
        "workers",
        "clip",
        "ema",
        "dice",
        "warmup",
    ]  # each holds the one before nine times
    bomb = "\n".join(
        f"{b}: &{b} [{', '.join([f'*{a}' if a else 'x'] * 9)}]" for a, b in zip(("", *names), names, strict=False)
    )
    assert len(message(bomb)) < 500
    assert "got a folder" in fails(capsys, "train", "deepmask", "--config", tmp_path)
    assert "steps must be a whole number from 1 to 1000000000, got 0" in message("steps: 0")
    assert "stage must be 'sharpmask' as the command says, got 'deepmask'" in message("stage: deepmask", "sharpmask")
    assert "no.yaml" in fails(capsys, "train", "deepmask", "--config", tmp_path / "no.yaml")
    assert "followed by a YAML file" in fails(capsys, "train", "deepmask", "--config")
    arguments = ("train", "deepmask", "--out", tmp_path / "x", *MODEL, *SHORT, "--dataset")
    assert "no such folder" in fails(capsys, *arguments, tmp_path / "nowhere")
    assert "no category 'dog'" in fails(capsys, *arguments, synth, "--categories", "dog")
    assert "device 'abacus' cannot be used" in fails(capsys, *arguments, synth, "--device", "abacus")
    assert "window must be a multiple of 16 from 16 to 1024, got 50" in fails(capsys, *arguments, synth, "--window", 50)
    assert "--from: no file" in fails(capsys, *arguments, synth, "--from", tmp_path / "none")
    assert "trunk_weights: no file" in fails(capsys, *arguments, synth, "--trunk-weights", tmp_path / "none")
    assert "lr must be a number above 0 and at most 1000, got -1.0" in fails(capsys, *arguments, synth, "--lr", -1)
    joint = ("train", "joint", *arguments[2:])
    assert "tiles must be a whole number from 1 to 1024, got 0" in fails(capsys, *joint, synth, "--tiles.tiles", 0)
    assert "side must be a multiple of 16 from 16 to 4096" in fails(capsys, *joint, synth, "--tiles.side", 100_000)
    assert "from must name a checkpoint" in fails(capsys, "train", "sharpmask", *arguments[2:], synth)
    assert "no run to resume" in fails(capsys, *arguments, synth, "--resume")
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    fails(capsys, *arguments, synth, "--out", in_the_way)
    assert not (tmp_path / "x").exists(), "nothing is written before the settings are known to be good"


@pytest.fixture(scope="module")
def photos(synth: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three photos to look at, one of them greyscale, and one that is broken."""
    folder = tmp_path_factory.mktemp("photos")
    for i in (1, 2):
        (folder / f"photo {i}.png").write_bytes((synth / "images" / f"00000{i}.png").read_bytes())
    Image.open(synth / "images" / "000003.png").convert("L").save(folder / "sub.jpg")
    (folder / "torn [b].png").write_bytes((synth / "images" / "000004.png").read_bytes()[:3000])
    return sorted(folder.iterdir())


def test_propose(photos: list[Path], tiny_checkpoint: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "a long folder name that would not fit on a line of the terminal" / "out [1]"
    status = run("propose", *photos, "--checkpoint", tiny_checkpoint, "--out", out, "--top-n", 5, "--timing")
    captured = capsys.readouterr()
    assert status == 1
    said = [line for line in captured.err.splitlines() if line.startswith("sharpmask: ")]
    assert len(said) == 1 and "torn [b].png: " in said[0]
    assert captured.err.splitlines()[-1] == f"1 of 4 photos failed, first: {photos[3]}"
    assert f"{out}/proposals.json: 3 of 4 photos" in captured.out.splitlines()
    for stage in ("resize", "trunk and heads", "horizontal", "top-N", "refine", "encode", "suppress", "total"):
        assert stage in captured.out
    merged = json.loads((out / "proposals.json").read_text())
    keys = list(dict.fromkeys(e["image_id"] for e in merged))
    assert [e["image_id"] for e in merged] == [key for key in keys for _ in range(5)] and len(keys) == 3
    names = [f"{photo.stem}-{key}" for photo, key in zip(photos[:3], keys, strict=True)]
    assert {p.name for p in out.iterdir()} == {"proposals.json"} | {f"{n}.{s}" for n in names for s in ("json", "png")}
    generator = ProposalGenerator(load_model(tiny_checkpoint), top_n=5)
    for photo, key in zip(photos[:3], keys, strict=True):
        expected = generator.generate(photo)
        entries = [e for e in merged if e["image_id"] == key]
        assert [e["segmentation"] for e in entries] == [e["segmentation"] for e in expected.to_coco(key)]
        assert [e["score"] for e in entries] == expected.scores.tolist()
        assert {e["file_name"] for e in entries} == {f"{photo.parent.name}/{photo.name}"}
        x, y, w, h = entries[0]["bbox"]
        assert np.array_equal(coco_mask.toBbox(entries[0]["segmentation"]), (x, y, w, h))
        overlay = load_image(out / f"{photo.stem}-{key}.png")
        assert overlay.shape == expected.image.shape and not np.array_equal(overlay, expected.image)


def test_propose_forgets_the_results_of_a_photo_that_broke(
    photos: list[Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(photos[0].read_bytes())
    base = ("propose", photo, "--checkpoint", tiny_checkpoint, "--out", tmp_path / "out", "--top-n", 3)
    assert run(*base) == 0
    photo.write_bytes(b"nothing")
    assert run(*base) == 1
    assert json.loads((tmp_path / "out" / "proposals.json").read_text()) == []


def test_propose_searches_as_told(photos: list[Path], tiny_checkpoint: Path, tmp_path: Path) -> None:
    def entries(*options: object) -> list[dict[str, Any]]:
        base = ("propose", photos[0], "--checkpoint", tiny_checkpoint, "--out", tmp_path, "--top-n", 30)
        assert run(*base, *options) == 0
        return list(json.loads((tmp_path / "proposals.json").read_text()))

    plain = entries()
    assert [e["score"] for e in entries("--no-refine")] == [e["score"] for e in plain]
    assert entries("--no-refine") != plain
    assert entries("--mask-nms", 1, "--box-nms", 1) == plain == entries("--scales", 0.5, 0.75, 1)
    assert 0 < len(entries("--mask-nms", 0.3)) < len(plain)
    assert 0 < len(entries("--box-nms", 0.3)) < len(plain)
    assert entries("--scales", 0.5, 0.375) == entries("--scales", 1, 0.75, "--max-side", 80) != plain
    assert entries("--threshold", 0.5) != plain


def test_propose_takes_folders(photos: list[Path], tiny_checkpoint: Path, tmp_path: Path, capsys: Capture) -> None:
    assert run("propose", photos[0].parent, "--checkpoint", tiny_checkpoint, "--out", tmp_path, "--top-n", 1) == 1
    assert "3 of 4 photos" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    base = ("propose", "--checkpoint", tiny_checkpoint)
    assert "no image file in this folder" in fails(capsys, *base, tmp_path / "empty")
    assert "images must be photos" in fails(capsys, *base)
    assert "checkpoint: no file" in fails(capsys, "propose", photos[0], "--checkpoint", tmp_path / "none")
    for option, value in (("--threshold", 2), ("--scales", 0), ("--max-side", -3), ("--mask-nms", -1)):
        assert f"{option[2:].replace('-', '_')} must be a" in fails(capsys, *base, photos[0], option, value)
    assert "top_n must be a whole number from 1 to 100000, got 0" in fails(capsys, *base, photos[0], "--top-n", 0)
    if not torch.cuda.is_available():
        assert "device 'cuda' cannot be used" in fails(capsys, *base, photos[0], "--device", "cuda")


def plain_recall(truth: Path, results: Path, kind: str) -> dict[str, dict[str, float]]:
    """AR by count and size as pycocotools computes it, class-agnostic."""
    coco = COCO(str(truth))
    entries = json.loads(results.read_text())
    # With masks alone pycocotools derives boxes and areas; with a bbox it would take sizes from that.
    keys = ("image_id", "category_id", "score", "segmentation" if kind == "segm" else "bbox")
    evaluation = COCOeval(coco, coco.loadRes([{k: e[k] for k in keys} for e in entries]), kind)
    evaluation.params.useCats = 0
    evaluation.params.maxDets = [10, 100, 1000]
    evaluation.evaluate()
    evaluation.accumulate()
    recall = evaluation.eval["recall"].mean(0)  # (category, size, count)
    sizes = ("all", "small", "medium", "large")
    return {
        count: {size: float(recall[0, a, c]) for a, size in enumerate(sizes)}
        for c, count in enumerate(("10", "100", "1000"))
    }


def assert_recall(found: dict[str, Any], expected: dict[str, dict[str, float]]) -> None:
    for count, sizes in expected.items():
        for size, value in sizes.items():
            # pycocotools says -1 where there is no object of a size.
            assert found["ar"][count][size] == (None if value == -1 else pytest.approx(value, abs=1e-9)), (count, size)


def test_eval_agrees_with_pycocotools(synth: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "model"
    options = ("--checkpoint", tiny_checkpoint, "--top-n", 200, "--coarse", "--patches", 3, "--mask-nms", 0.9)
    assert run("eval", "--dataset", synth, "--out", out, *options) == 0
    printed = capsys.readouterr().out
    report = json.loads((out / "recall.json").read_text())
    assert set(report) == {"patches"} | {f"{n}, {k}" for n in ("refined", "coarse") for k in ("masks", "boxes")}
    for name in ("refined", "coarse"):
        assert f"{name}, masks" in printed
        for kind, what in (("segm", "masks"), ("bbox", "boxes")):
            expected = plain_recall(synth / "instances.json", out / f"{name}.json", kind)
            assert expected["1000"]["all"] > 0
            assert_recall(report[f"{name}, {what}"], expected)
    assert report["refined, masks"] != report["coarse, masks"]
    assert 0 <= report["patches"]["refined_iou_mean"] <= 1 and "refined_iou_mean" in printed
    assert load_image(out / "recall.png").size

    # The same results as a file give the same numbers, whatever produced them.
    again = tmp_path / "file"
    assert run("eval", "--dataset", synth, "--results", out / "refined.json", "--out", again) == 0
    assert json.loads((again / "recall.json").read_text()) == {
        k: v for k, v in report.items() if k.startswith("refined")
    }


def test_eval_goes_on_where_it_stopped(synth: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    base = ("eval", "--dataset", synth, "--checkpoint", tiny_checkpoint, "--out", tmp_path, "--top-n", 20)
    assert run(*base) == 0
    report = (tmp_path / "recall.json").read_text()
    parts = sorted((tmp_path / "refined").iterdir())
    assert [p.name for p in parts] == [f"{i}.json" for i in range(1, 7)]
    parts[1].unlink()
    before = {p: p.stat().st_mtime_ns for p in parts if p.exists()}
    assert run(*base, "--resume") == 0
    assert (tmp_path / "recall.json").read_text() == report
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_eval_of_some_categories(synth: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: Capture) -> None:
    document = json.loads((synth / "instances.json").read_text())
    names = {c["id"]: c["name"] for c in document["categories"]}
    used = names[document["annotations"][0]["category_id"]]
    base = ("eval", "--dataset", synth, "--checkpoint", tiny_checkpoint, "--top-n", 50, "--out")
    assert run(*base, tmp_path / "all") == 0
    assert run(*base, tmp_path / "some", "--categories", used) == 0
    some = json.loads((tmp_path / "some" / "recall.json").read_text())
    document["annotations"] = [a for a in document["annotations"] if names[a["category_id"]] == used]
    (tmp_path / "some.json").write_text(json.dumps(document))
    assert_recall(
        some["refined, masks"], plain_recall(tmp_path / "some.json", tmp_path / "some" / "refined.json", "segm")
    )
    assert "no category 'cat'" in fails(capsys, *base, tmp_path / "none", "--categories", "cat")


def test_eval_leaves_out_a_broken_photo_on_request(
    synth: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    broken = tmp_path / "broken"
    (broken / "images").mkdir(parents=True)
    for image in (synth / "images").iterdir():
        (broken / "images" / image.name).write_bytes(image.read_bytes())
    torn = broken / "images" / "000002.png"
    torn.write_bytes(torn.read_bytes()[:3000])
    document = json.loads((synth / "instances.json").read_text())
    (broken / "instances.json").write_text(json.dumps(document))
    base = ("eval", "--dataset", broken, "--checkpoint", tiny_checkpoint, "--top-n", 20, "--out", tmp_path / "out")
    capsys.readouterr()
    assert run(*base) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sharpmask: ")]
    assert len(said) == 1 and "000002.png" in said[0]
    assert run(*base, "--skip-bad") == 0
    assert "left out 1 broken entry, first: " in capsys.readouterr().err
    # Its objects are not counted as missed.
    document["images"] = [i for i in document["images"] if i["id"] != 2]
    document["annotations"] = [a for a in document["annotations"] if a["image_id"] != 2]
    (tmp_path / "rest.json").write_text(json.dumps(document))
    report = json.loads((tmp_path / "out" / "recall.json").read_text())
    assert_recall(
        report["refined, masks"], plain_recall(tmp_path / "rest.json", tmp_path / "out" / "refined.json", "segm")
    )


def test_eval_errors(synth: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: Capture) -> None:
    results = tmp_path / "results.json"
    results.write_text('[{"image_id": 99, "score": 1, "bbox": [0, 0, 1, 1]}]')
    base = ("eval", "--dataset", synth, "--out", tmp_path)
    assert "results.json: entry 0: image_id 99" in fails(capsys, *base, "--results", results)
    results.write_text("[")
    assert "not a readable JSON file" in fails(capsys, *base, "--results", results)
    assert "give one of the two" in fails(capsys, *base, "--results", results, "--checkpoint", tiny_checkpoint)
    foreign = tmp_path / "foreign.safetensors"
    foreign.write_bytes(b"not a checkpoint at all")
    assert "foreign.safetensors must be a checkpoint" in fails(capsys, *base, "--checkpoint", foreign)


def test_pack_halves_a_checkpoint_and_sets_its_search(
    tiny_checkpoint: Path, photos: list[Path], tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "a folder whose name is so long that a line of the terminal ends" / "packed [x].safetensors"
    assert run("pack", tiny_checkpoint, out, "--scales", 0.5, 1, "--mask-nms", 0.7) == 0
    assert capsys.readouterr().out.splitlines() == [f"{out}: {out.stat().st_size / 1e6:.1f} MB"]
    assert out.stat().st_size < 0.52 * tiny_checkpoint.stat().st_size
    before, after = load_model(tiny_checkpoint), load_model(out)
    assert after.config == before.config
    assert (after.search.scales, after.search.mask_nms, after.search.threshold) == ((0.5, 1.0), 0.7, 0.2)
    for name, tensor in before.state_dict().items():
        torch.testing.assert_close(after.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)
    assert "no file" in fails(capsys, "pack", tmp_path / "none", out)


def test_an_interrupt_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sharpmask.cli.commands.synthesize", interrupted)
    assert run("synth", tmp_path / "x") == 130
    assert capsys.readouterr().err == "sharpmask: interrupted\n"


@pytest.mark.skipif(not SHIPPED.is_file(), reason="this copy comes without a checkpoint")
def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("demo") == 0
    out = capsys.readouterr().out
    assert "proposals on coffee.jpg" in out and "refine" in out and "total" in out
    folder = Path("sharpmask-demo")
    assert sorted(p.name for p in folder.iterdir()) == ["film_strip.png", "overlay.png", "proposals.json"]
    assert all(f"{folder}/{p.name}: " in out for p in folder.iterdir())
    entries = json.loads((folder / "proposals.json").read_text())
    photo = load_image(SHIPPED.parent / "coffee.jpg")
    assert len(entries) >= 10 and {tuple(e["segmentation"]["size"]) for e in entries} == {photo.shape[:2]}
    assert load_image(folder / "overlay.png").shape == photo.shape
    height, width, _ = load_image(folder / "film_strip.png").shape
    assert width > 5 * height, "a row of pictures"
