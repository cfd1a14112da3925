"""Checkpoints: what loading returns, and what it refuses before it takes memory."""

from __future__ import annotations

import json
import os
import pickle
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sharpmask.checkpoint import load_model, read_training, save_model
from sharpmask.errors import DataError
from sharpmask.models import DeepMask, build_model, from_config
from sharpmask.models.config import SearchConfig
from sharpmask.plain import to_plain
from sharpmask.tensor_files import read_pytorch

SMALL: dict[str, Any] = {
    "trunk": "efficientnet_lite0", "window": 32, "features": 4, "code": 8, "mask_side": 8, "score_hidden": 6,
    "mask_channels": (4, 4, 3, 2, 2), "skip_channels": (4, 3, 2, 2), "skip_hidden": 5, "crop_first": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> DeepMask:
    torch.manual_seed(0)
    model = build_model("sharpmask", **SMALL)
    model.search = SearchConfig(scales=(0.5, 1.0), threshold=0.3, mask_nms=0.7)
    return model.train()


@pytest.fixture
def header(model: DeepMask) -> dict[str, str]:
    return {
        "format": "sharpmask-1",
        "model": json.dumps(to_plain(model.config)),
        "search": json.dumps(to_plain(model.search)),
        "training": "{}",
    }


def refused(path: Path, message: str = "") -> None:
    """Every reader of checkpoints raises an error of one line that names the file."""
    with pytest.raises(DataError) as error:
        load_model(path)
    text = str(error.value)
    assert str(path) in text and "\n" not in text and message in text, text


# What loading returns.


def test_round_trip(tmp_path: Path, model: DeepMask) -> None:
    path = tmp_path / "new folder" / "model.safetensors"
    save_model(model, path, training={"steps": 7, "of": ["a", None, 0.5]})
    again = load_model(path)
    state = model.state_dict()
    assert again.state_dict().keys() == state.keys()
    assert all(torch.equal(v, state[k]) for k, v in again.state_dict().items())
    assert type(again) is type(model)
    assert again.config == model.config
    assert again.search == model.search
    assert not again.training and model.training
    assert read_training(path) == {"steps": 7, "of": ["a", None, 0.5]}
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]
    patch = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(patch).refined, model.eval()(patch).refined)
    model.train()


@pytest.mark.parametrize("start", [b"\x80", b"\x80\x02", b"PK"])
def test_a_header_whose_length_looks_like_another_format(tmp_path: Path, model: DeepMask, start: bytes) -> None:
    path = tmp_path / "model.safetensors"
    note = ""
    for _ in range(2):
        save_model(model, path, training={"note": note})
        length = path.read_bytes()[:8]
        wanted, step = int.from_bytes(start, "little"), 1 << 8 * len(start)
        note = "x" * ((wanted - int.from_bytes(length, "little")) % step)
    assert length.startswith(start)
    assert load_model(path).config == model.config
    assert read_pytorch(path, "weights").keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    "options", [{"architecture": "deepmask"}, {"architecture": "sharpmask", "refinement": "released"}]
)
def test_other_models_round_trip(tmp_path: Path, options: dict[str, Any]) -> None:
    first = build_model(**options | SMALL)
    save_model(first, tmp_path / "m")
    again = load_model(tmp_path / "m")
    assert again.config == first.config and again.search == first.search
    assert all(torch.equal(v, first.state_dict()[k]) for k, v in again.state_dict().items())
    assert read_training(tmp_path / "m") == {}


def test_half_precision_halves_the_file(tmp_path: Path, model: DeepMask) -> None:
    save_model(model, tmp_path / "full")
    save_model(model, tmp_path / "half", dtype=torch.float16)
    sizes = [(tmp_path / name).stat().st_size for name in ("full", "half")]
    names = 20_000  # both files carry the same header
    assert abs(sizes[1] - sizes[0] / 2) < names
    again = load_model(tmp_path / "half").state_dict()
    for name, value in model.state_dict().items():
        assert again[name].dtype == torch.float32
        assert torch.equal(again[name], value.half().float())


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, model: DeepMask, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model"
    save_model(model, path)
    before = path.read_bytes()

    def fail(part: Path, data: bytes) -> None:
        with open(part, "wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model(model, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# What is refused.


@pytest.mark.parametrize("read", [load_model, read_training])
@pytest.mark.parametrize(
    "damage", ["missing", "folder", "empty", "header cut", "data cut", "random", "text", "foreign"]
)
def test_damaged_files(tmp_path: Path, model: DeepMask, read: Callable[[Path], object], damage: str) -> None:
    path = tmp_path / "model.safetensors"
    save_model(model, path)
    whole = path.read_bytes()
    path.unlink()
    content = {
        "empty": b"",
        "header cut": whole[:100],
        "data cut": whole[:-1000],
        "random": np.random.default_rng(0).bytes(10_000),
        "text": b'{"model": "sharpmask"}' * 50,
    }
    if damage == "folder":
        path.mkdir()
    elif damage == "foreign":
        save_file({"a": torch.zeros(2)}, path)
    elif damage != "missing":
        path.write_bytes(content[damage])
    with pytest.raises(DataError) as error:
        read(path)
    text = str(error.value)
    assert str(path) in text and "\n" not in text
    expected = {
        "missing": "no file",
        "folder": "must be a checkpoint of sharpmask, got a folder",
        "empty": "got an empty file",
        "header cut": "got a file that is cut off or damaged; fetch it again",
        "data cut": "got a file that is cut off or damaged; fetch it again",
        "foreign": "expected a checkpoint of format sharpmask-1, got None",
    }
    assert expected.get(damage, "must be a checkpoint of sharpmask, got a file of an unknown kind") in text


def test_another_format(tmp_path: Path, model: DeepMask, header: dict[str, str]) -> None:
    save_file(model.state_dict(), tmp_path / "m", header | {"format": "sharpmask-2"})
    refused(tmp_path / "m", "expected a checkpoint of format sharpmask-1, got 'sharpmask-2'")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", None, "the header's 'model' is missing or not JSON"),
        ("search", None, "the header's 'search' is missing or not JSON"),
        ("model", "{", "the header's 'model' is missing or not JSON"),
        ("model", "[" * 100_000, "the header's 'model' is missing or not JSON"),
        ("model", "9" * 10_000, "the header's 'model' is missing or not JSON"),
        ("model", "[]", "model: expected settings by name, got list"),
        ("model", "null", "model: expected settings by name, got NoneType"),
        ("search", '"x"', "search: expected settings by name, got str"),
        ("model", '{"colour": 1}', "model: unknown setting 'colour'"),
        ("model", '{"a\\nb": 1}', "model: unknown setting 'a\\nb'"),
        ("model", '{"window": "160"}', "model: window must be a multiple of 16 from 16 to 1024, got '160'"),
        ("model", '{"window": 160.0}', "model: window must be a multiple of 16 from 16 to 1024, got 160.0"),
        ("model", '{"window": true}', "model: window must be a multiple of 16 from 16 to 1024, got True"),
        ("model", '{"trunk": ["resnet50"]}', "model: trunk must be one of 'resnet50', "),
        ("model", '{"mask_channels": 3}', "model: mask_channels must be a list, got 3"),
        (
            "model",
            '{"mask_channels": [1, "2"]}',
            "mask_channels must be a whole number from 1 to 16384, got '2'",
        ),
        ("model", '{"window": 40}', "window must be a multiple of 16 from 16 to 1024, got 40"),
        ("search", '{"scales": []}', "scales"),
        ("search", '{"scales": [NaN]}', "scales"),
        ("search", '{"scales": [1e9]}', "scales"),
        (
            "search",
            '{"scales": [' + "1" * 400 + "]}",
            "search: scales must be a number from 0.015625 to 16, got an integer beyond",
        ),
        ("search", '{"threshold": "high"}', "search: threshold must be a number strictly between 0 and 1, got 'high'"),
        ("search", '{"threshold": 7}', "threshold must be a number strictly between 0 and 1, got 7"),
    ],
)
def test_headers(
    tmp_path: Path, model: DeepMask, header: dict[str, str], key: str, value: str | None, message: str
) -> None:
    changed = {k: v for k, v in header.items() if k != key} | ({key: value} if value is not None else {})
    save_file(model.state_dict(), tmp_path / "m", changed)
    refused(tmp_path / "m", message)


@pytest.mark.parametrize("value", [None, "{", "[]", "3"])
def test_training_headers(tmp_path: Path, header: dict[str, str], value: str | None) -> None:
    del header["training"]
    save_file({"a": torch.zeros(1)}, tmp_path / "m", header | ({"training": value} if value else {}))
    with pytest.raises(DataError, match="training"):
        read_training(tmp_path / "m")


def peak_memory() -> int:
    """Peak memory of this process in kilobytes; 0 on systems that do not report it so."""
    if sys.platform != "linux":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize(
    "settings",
    [
        {"mask_side": 40_000},  # 58 GB of mask head
        {"code": 60_000, "features": 60_000},
        {"window": 65_536},
        {"features": 10**12},
        {"code": 10**30},
        {"mask_channels": [60_000] * 5},
        {"mask_channels": [10**18] * 5},
        {"skip_hidden": 65_536},
        {"skip_channels": [1] * 100_000},
        {"score_hidden": 10**9},
        {"window": 16 * 10**9, "features": 0, "mask_channels": [0, 1, 1, 1, 1]},
        {"features": -4},
        {"trunk": "vgg11"},
        {"trunk": "resnet50", "window": 224},
    ],
    ids=str,
)
def test_hostile_settings_take_no_memory(
    tmp_path: Path, model: DeepMask, header: dict[str, str], settings: dict[str, Any]
) -> None:
    config = json.dumps(json.loads(header["model"]) | settings)
    save_file(model.state_dict(), tmp_path / "m", header | {"model": config})
    peak, start = peak_memory(), time.perf_counter()
    refused(tmp_path / "m")
    assert time.perf_counter() - start < 5
    assert peak_memory() - peak < 200_000


def test_a_header_that_lies_about_its_data(tmp_path: Path, header: dict[str, str]) -> None:
    claims: dict[str, Any] = {
        "__metadata__": header,
        "encode.weight": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]},
    }
    text = json.dumps(claims).encode()
    (tmp_path / "m").write_bytes(struct.pack("<Q", len(text)) + text + bytes(100))
    refused(tmp_path / "m", "got a file that is cut off")


def test_other_tensors(tmp_path: Path, model: DeepMask, header: dict[str, str]) -> None:
    state, path = model.state_dict(), tmp_path / "m"
    save_file({k: v for k, v in state.items() if k != "head.bias"}, path, header)
    refused(path, "tensor head.bias must be [1], got none")
    save_file(state | {"zzz": torch.zeros(3)}, path, header)
    refused(path, "tensor zzz must be absent, got [3]")
    save_file(state | {"head.bias": torch.zeros(2)}, path, header)
    refused(path, "tensor head.bias must be [1], got [2]")
    save_file(load_file(path) | {"head.bias": torch.zeros(1)}, path, header)
    load_model(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t * float("nan"), "tensor head.bias must be finite, got NaN or infinity in 1 of 1"),
        (lambda t: t + float("inf"), "tensor head.bias must be finite, got NaN or infinity in 1 of 1"),
        (lambda t: t.double() + 1e300, "tensor head.bias must be finite, got NaN or infinity in 1 of 1"),
        (lambda t: t.to(torch.int8), "tensor head.bias must be one of float16, bfloat16, float32, float64, got int8"),
        (lambda t: t.bool(), "tensor head.bias must be one of float16, bfloat16, float32, float64, got bool"),
        (lambda t: t.to(torch.complex64), "got complex64"),
        (lambda t: t.to(torch.float8_e4m3fn), "got float8_e4m3fn"),
    ],
    ids=["nan", "inf", "beyond fp32", "int8", "bool", "complex", "float8"],
)
def test_tensors_that_are_no_weights(
    tmp_path: Path,
    model: DeepMask,
    header: dict[str, str],
    change: Callable[[torch.Tensor], torch.Tensor],
    message: str,
) -> None:
    state = model.state_dict()
    save_file(state | {"head.bias": change(state["head.bias"])}, tmp_path / "m", header)
    refused(tmp_path / "m", message)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_read(tmp_path: Path, model: DeepMask, header: dict[str, str], dtype: torch.dtype) -> None:
    state = model.state_dict()
    save_file({k: v.to(dtype) for k, v in state.items()}, tmp_path / "m", header)
    assert all(torch.equal(v, state[k].to(dtype).float()) for k, v in load_model(tmp_path / "m").state_dict().items())


def test_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    model = build_model("sharpmask", **SMALL)
    torch.nn.init.constant_(model.head.bias, 1e6)  # type: ignore[union-attr,arg-type]
    save_model(model, tmp_path / "full")
    with pytest.raises(DataError, match=r"half: not written: tensor head\.bias must be finite"):
        save_model(model, tmp_path / "half", dtype=torch.float16)
    assert not (tmp_path / "half").exists()


def test_a_file_cut_off_while_it_is_loaded(tmp_path: Path, model: DeepMask, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m"
    save_model(model, path)

    def cut(config: Any) -> DeepMask:
        os.truncate(path, 0)  # A mapped file would end the process at the next read.
        return from_config(config)

    monkeypatch.setattr("sharpmask.checkpoint.from_config", cut)
    again = load_model(path)
    assert path.stat().st_size == 0
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in again.state_dict().items())


def test_an_lfs_pointer_and_a_web_page(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    refused(path, "got a Git LFS pointer; `git lfs pull` fetches the file itself")
    path.write_text("<!doctype html><title>Not found</title>")
    refused(path, "got a web page; download the file itself")


class Planted:
    """Unpickling this makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.mkdir, (self.folder,)


@pytest.mark.parametrize("how", ["zip", "legacy", "plain"])
def test_pickled_code_does_not_run(tmp_path: Path, how: str) -> None:
    pickle.loads(pickle.dumps(Planted(tmp_path / "armed")))
    assert (tmp_path / "armed").is_dir()  # unpickling does run the code
    path = tmp_path / "model.safetensors"
    state = {"head.bias": Planted(tmp_path / "ran")}
    if how == "plain":
        path.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=how == "zip")
    refused(path, "got a file of PyTorch")
    assert not (tmp_path / "ran").exists()
