"""Released models, written by the tests themselves, against a numpy evaluation of the modules' definitions."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sharpmask.checkpoint import load_model, read_training, save_model
from sharpmask.cli import main
from sharpmask.convert import convert
from sharpmask.data.synthetic import synthesize
from sharpmask.errors import DataError
from sharpmask.models import DeepMask, Refined, SharpMask

from .released_models import Builder, patch, sequential
from .torch7_writer import Obj, Tensor, save

PATCH = np.random.default_rng(1).uniform(size=(3, 80, 80))


@pytest.fixture(scope="module")
def released() -> Obj:
    return Builder().sharpmask()


@pytest.fixture(scope="module")
def file(released: Obj, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("released") / "model.t7"
    return save({"model": released, "config": {"km": 16, "rundir": "x"}}, path)


def assert_patches_agree(model: DeepMask, released: Obj) -> None:
    """In fp64, so that nothing but the meaning of the weights can differ; and in fp32, as it is used, where rounding
    adds an error in proportion to the largest logit."""
    expected = patch(released, PATCH)
    assert expected["coarse"].std() > 0.1
    for dtype in (torch.float64, torch.float32):
        with torch.inference_mode():
            out = model.to(dtype)(torch.tensor(PATCH, dtype=dtype)[None])
        ours = out._asdict() if isinstance(out, Refined) else {"coarse": out[0], "score": out[1]}
        assert ours.keys() == expected.keys()
        for name, values in expected.items():
            tolerance = 1e-5 * (max(abs(values).max(), 1) if dtype == torch.float32 else 1)
            np.testing.assert_allclose(ours[name][0].numpy(), values, rtol=0, atol=tolerance)


def test_patches_of_sharpmask(released: Obj, file: Path, tmp_path: Path) -> None:
    found = convert(file)
    assert found.unused == []
    assert found.model.config.refinement == "released" and found.model.search.geometry == "released"
    assert found.model.config.mask_channels == (16, 8, 4, 2, 1)
    save_model(found.model, tmp_path / "out.safetensors")
    model = load_model(tmp_path / "out.safetensors")
    assert model.config == found.model.config and model.search == found.model.search
    assert isinstance(model, SharpMask)
    assert_patches_agree(model, released)


@pytest.mark.parametrize(
    "options", [{"cuda": False, "flat": True}, {"plain": True, "biases": True, "seed": 3}], ids=str
)
def test_patches_of_deepmask(options: dict[str, Any], tmp_path: Path) -> None:
    """From older files too, whose tensors have other shapes, and from a file without references."""
    model = Builder(**options).deepmask()
    # The model alone, as well as in a table.
    found = convert(save(model, tmp_path / "model.t7", referenced=False, versions=False))
    assert found.unused == [] and found.model.config.architecture == "deepmask"
    assert_patches_agree(found.model, model)


def test_shared_modules_count_once(released: Obj, tmp_path: Path) -> None:
    """Without references the lists of nets are copies of the refinement modules' parts, and are named as unused."""
    found = convert(save({"model": released}, tmp_path / "model.t7", referenced=False))
    assert len(found.unused) == 2 * (4 * 3 + 4 * 2 + 1)
    assert found.unused[0] == "file.model.neths.1.modules.2.bias"


def trunk(model: Obj, *at: int) -> dict[str, Any]:
    """Fields of a module inside the trunk; ``at``: its position at each level, from 1."""
    module = model.fields["trunk"]
    for i in at:
        module = module.fields["modules"][i - 1]
    return module.fields


def set_item(place: Callable[[Obj], dict[str, Any]], key: str, value: Any) -> Callable[[Obj], None]:
    return lambda model: place(model).__setitem__(key, value)


def repeat(model: Obj) -> None:
    """Thirty modules, each of which is twice in the next: a short file with a billion modules."""
    module = sequential()
    for _ in range(30):
        module = sequential(module, module)
    model.fields["trunk"] = module


def same_tensor(model: Obj) -> None:
    modules = model.fields["scoreBranch"].fields["modules"]
    modules[4].fields["bias"] = modules[1].fields["bias"] = Tensor.of(np.zeros(1, "<f4"))
    modules[1].fields["weight"] = Tensor.of(np.zeros((1, 16), "<f4"))
    modules[4].fields["weight"] = Tensor.of(np.zeros((1, 1), "<f4"))


FAULTS: dict[str, tuple[Callable[[Obj], object], str]] = {
    "no score": (lambda m: m.fields.pop("scoreBranch"), "'nn.DeepMask' has no field scoreBranch"),
    "another class": (
        lambda m: setattr(m, "name", "nn.Other\n"),
        "expected a model of class nn.DeepMask or nn.SharpMask",
    ),
    "size": (set_item(lambda m: m.fields, "fSz", 2.5), "fSz must be a whole number"),
    "larger size": (set_item(lambda m: m.fields, "fSz", 4), "trunk.12: weight must be \\(16, 128\\)"),
    "no modules": (set_item(lambda m: trunk(m), "modules", 1), "trunk: modules must be a table"),
    "other module": (
        lambda m: setattr(m.fields["trunk"].fields["modules"][2], "name", "nn.Tanh"),
        "trunk.3: .*nn.Tanh",
    ),
    "stride": (set_item(lambda m: trunk(m, 1, 2), "dW", 1), "trunk.1.2: dW must be 2, got 1"),
    "own padding": (set_item(lambda m: trunk(m, 1, 2), "padH", 3), "trunk.1.2: padH must be 0, got 3"),
    "padding": (
        lambda m: trunk(m, 1, 1).update({f"pad_{s}": 2 for s in "lrtb"}),
        "symmetric padding must be 3, got 2",
    ),
    "crop": (set_item(lambda m: trunk(m, 8), "pad_t", -2), "trunk.8: pad_t must be -1, got -2"),
    "one layer less": (lambda m: trunk(m)["modules"].pop(5), r"trunk\.[68].*: (expected|\w+ must be) "),
    "no weight": (lambda m: trunk(m, 9).pop("weight"), "has no field weight"),
    "text for a weight": (set_item(lambda m: trunk(m, 9), "weight", "x" * 99), "weight must be a tensor"),
    "shape": (
        set_item(lambda m: trunk(m, 2), "a", Tensor.of(np.zeros(63, "<f4"))),
        "trunk.2: a must be \\(64,\\), got \\(63,\\)",
    ),
    "a billion modules": (repeat, "this module occurs twice"),
    "one tensor twice": (same_tensor, "score.*bias is used twice"),
    "one layer more": (
        lambda m: m.fields["scoreBranch"].fields["modules"].append(Obj("nn.ReLU")),
        "score.6: expected no more layers, got 'nn.ReLU'",
    ),
}


@pytest.fixture(scope="module")
def pristine() -> Obj:
    return Builder().deepmask()


@pytest.mark.parametrize("name", FAULTS)
def test_what_does_not_fit_is_named(name: str, pristine: Obj, tmp_path: Path) -> None:
    model = copied(pristine)
    break_it, message = FAULTS[name]
    break_it(model)
    path = save({"model": model}, tmp_path / "model.t7")
    with pytest.raises(DataError, match=message) as raised:
        convert(path)
    assert len(str(raised.value).splitlines()) == 1 and str(raised.value).startswith(str(path))


def copied(value: Any) -> Any:
    """A copy that shares its tensors with the original."""
    if isinstance(value, Obj):
        return Obj(value.name, copied(value.fields))
    if isinstance(value, dict):
        return {k: copied(v) for k, v in value.items()}
    return [copied(v) for v in value] if isinstance(value, list) else value


def test_sharpmask_read_elsewhere(released: Obj, tmp_path: Path) -> None:
    for key, value, message in (
        ("skpos", [8, 6, 5, 4], "skpos must be"),
        ("refs", {0: released.fields["refs"][0]}, "refs must be a table of 0 to 4"),
    ):
        model = Obj(released.name, released.fields | {key: value})
        with pytest.raises(DataError, match=message):
            convert(save(model, tmp_path / "model.t7"))


def test_weights_that_the_model_has_no_place_for_are_named(pristine: Obj, tmp_path: Path) -> None:
    model = copied(pristine)
    model.fields["extra"] = {"a b": Tensor.of(np.ones(3, "<f4"))}
    assert convert(save(model, tmp_path / "model.t7")).unused == ["file.extra.'a b'"]


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file"):
        convert(tmp_path / "none.t7")


def test_the_command(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the authors' file to proposals and their recall, by the command line."""
    out = tmp_path / "released.safetensors"
    assert main(["convert", str(file), str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: SharpMask of 9.60 million parameters\n"
    assert read_training(out) == {"converted_from": "model.t7"}
    folder = synthesize(tmp_path / "data", images=1, seed=1, size=(64, 80), objects=(1, 2), textures="generated")
    photo = next((folder / "images").iterdir())
    shared = ["--checkpoint", str(out), "--top-n", "5", "--scales", "0.7", "1"]
    assert main(["propose", str(photo), *shared, "--out", str(tmp_path / "p")]) == 0
    exact = [*shared, "--geometry", "released-exact", "--out", str(tmp_path / "exact")]
    assert main(["propose", str(photo), *exact]) == 0
    written = [(tmp_path / name / "proposals.json").read_text() for name in ("p", "exact")]
    assert written[0] != written[1]
    assert main(["eval", "--dataset", str(folder), *shared, "--out", str(tmp_path / "e")]) == 0
    assert (tmp_path / "e" / "recall.json").is_file()


def test_a_checkpoint_needs_no_conversion(tiny_checkpoint: Path) -> None:
    with pytest.raises(DataError, match="got a safetensors file; a checkpoint of this package needs no conversion"):
        convert(tiny_checkpoint)


def test_the_command_fails_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.t7").write_text("4\n1\n3\nV 1\n")
    assert main(["convert", str(tmp_path / "x.t7"), str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1 and "not a Torch 7 file" in captured.err and captured.out == ""
    assert not (tmp_path / "out").exists()


MEASURE = """
import re, sys, time
from pathlib import Path
from sharpmask import commands
from sharpmask.cli import main
def peak():  # not getrusage, whose peak includes that of the parent process
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
before = peak()
start = time.perf_counter()
assert main(["convert", sys.argv[1], sys.argv[2]]) == 0
print(time.perf_counter() - start, peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_time_and_memory_of_a_file_of_the_real_size(tmp_path: Path) -> None:
    """80 MB within 30 s, with 400 MB beyond what Python has taken to import PyTorch."""
    model = Builder().sharpmask(width=32, cells=10, features=128, code=512, side=56, hidden=1024)
    path = save({"model": model}, tmp_path / "model.t7")
    assert path.stat().st_size > 75e6
    command = [sys.executable, "-c", MEASURE, str(path), str(tmp_path / "out.safetensors")]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "SharpMask of 20.0" in said
    seconds, megabytes = map(float, said.splitlines()[-1].split())
    print(f"{seconds:.1f} s, {megabytes:.0f} MB")
    assert seconds < 30 and 80 < megabytes < 400
