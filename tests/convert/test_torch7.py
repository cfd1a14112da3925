"""The reader of Torch 7 files: what it returns, and that damaged or hostile files raise one kind of error."""

import random
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharpmask.convert import torch7
from sharpmask.convert.torch7 import Array, Instance, Table, parse
from sharpmask.errors import DataError

from .torch7_writer import CODES, Function, Obj, Storage, Tensor, dump, save

SCALARS = st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(st.characters(max_codepoint=255))
KEYS = st.integers(-(2**53), 2**53) | st.text(st.characters(max_codepoint=255), max_size=5)
VALUES = st.recursive(SCALARS, lambda inner: st.dictionaries(KEYS, inner, max_size=4), max_leaves=20)


def plain(value: Any) -> Any:
    return {k: plain(v) for k, v in value.values.items()} if isinstance(value, Table) else value


@settings(max_examples=60, deadline=None)
@given(VALUES, st.booleans(), st.booleans())
def test_what_is_written_is_read(value: Any, referenced: bool, versions: bool) -> None:
    assert plain(parse(dump(value, referenced=referenced, versions=versions), "x")) == value


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("cuda", [False, True])
@pytest.mark.parametrize("versions", [False, True])
def test_tensors_of_every_type(code: str, cuda: bool, versions: bool, tmp_path: Path) -> None:
    values = np.arange(24).astype("<" + code).reshape(2, 3, 4)
    tensor = parse(dump(Tensor.of(values, cuda), versions=versions), "x")
    assert isinstance(tensor, Array) and tensor.values.dtype == values.dtype and tensor.stored == 24
    assert np.array_equal(tensor.values, values) and not tensor.values.flags.writeable
    storage = torch7.load(save(Storage(values.ravel(), cuda), tmp_path / "x.t7"))
    assert np.array_equal(storage.values, values.ravel())


def test_tensors_are_views_of_their_storage() -> None:
    storage = Storage(np.arange(12, dtype="<f4"))
    narrow = Tensor(storage, (2, 2), (4, 1), 5)
    turned, none, empty = Tensor(storage, (4, 3), (1, 4)), Tensor(None, (), ()), Tensor(storage, (2, 0), (0, 1))
    table = parse(dump([narrow, turned, none, empty, storage]), "x").values
    assert np.array_equal(table[1].values, [[5, 6], [9, 10]])
    assert np.array_equal(table[2].values, np.arange(12).reshape(3, 4).T)
    assert table[3].values.size == table[4].values.size == 0
    assert np.shares_memory(table[1].values, table[5].values)


def test_references_keep_their_identity_also_in_circles() -> None:
    shared = Obj("nn.Linear", {"bias": 1.0})
    circle: dict[str, Any] = {"a": shared, "b": shared}
    circle["self"] = circle
    table = parse(dump(circle), "x").values
    assert table["a"] is table["b"] and table["self"].values is table
    assert table["a"].name == "nn.Linear" and table["a"].data.values == {"bias": 1.0}
    apart = parse(dump([shared, shared], referenced=False), "x").values
    assert apart[1] is not apart[2] and apart[1].data.values == apart[2].data.values


def test_unknown_classes_and_functions_are_data() -> None:
    table = parse(dump([Obj("my.Class", "text"), *(Function(b"\x1bLua", [1.0], k) for k in (6, 7, 8)), "end"]), "x")
    assert table.values[1].name == "my.Class" and table.values[1].data == "text"
    assert [(table.values[i].name, table.values[i].data) for i in (2, 3, 4)] == [("function", None)] * 3
    assert table.values[5] == "end"


def test_instances_as_keys() -> None:
    # A table of one pair: the instance's key is its identity.
    body = struct.pack("<iii", 3, 1, 1) + dump(Obj("k", None)).replace(b"\1\0\0\0", b"\2\0\0\0", 1) + dump(True)
    ((key, value),) = parse(body, "x").values.items()
    assert isinstance(key, Instance) and key.name == "k" and value is True


TENSOR = {"dims": 2, "sizes": (2, 3), "strides": (3, 1), "first": 1, "count": 6, "data": 24}


def raw_tensor(**changes: Any) -> bytes:
    """A float tensor byte by byte."""
    v = TENSOR | changes
    head = struct.pack("<ii", 4, 1) + struct.pack("<i", 3) + b"V 1" + struct.pack("<i", 17) + b"torch.FloatTensor"
    sizes = struct.pack(f"<i{len(v['sizes'])}q{len(v['strides'])}q", v["dims"], *v["sizes"], *v["strides"])
    storage = struct.pack("<ii", 4, 2) + struct.pack("<i", 3) + b"V 1" + struct.pack("<i", 18) + b"torch.FloatStorage"
    return head + sizes + struct.pack("<q", v["first"]) + storage + struct.pack("<q", v["count"]) + bytes(v["data"])


def nested(depth: int) -> bytes:
    return b"".join(struct.pack("<iiiid", 3, i + 1, 1, 1, 1.0) for i in range(depth)) + struct.pack("<i", 0)


HOSTILE = {
    "empty": b"",
    "a text": b"4\n1\n3\nV 1\n",
    "unknown type": struct.pack("<i", 9),
    "negative type": struct.pack("<i", -1),
    "long string": struct.pack("<ii", 2, 2**31 - 1),
    "negative string": struct.pack("<ii", 2, -1),
    "long table": struct.pack("<iii", 3, 1, 2**31 - 1),
    "nil key": struct.pack("<iiiii", 3, 1, 1, 0, 0),
    "NaN key": struct.pack("<iiiidi", 3, 1, 1, 1, float("nan"), 0),
    "long class name": struct.pack("<iii", 4, 1, 1000) + bytes(1000),
    "deep": nested(5000),
    "huge storage": raw_tensor(count=2**62),
    "negative storage": raw_tensor(count=-1),
    "many dimensions": raw_tensor(dims=2**31 - 1),
    "negative dimensions": raw_tensor(dims=-1),
    "beyond the storage": raw_tensor(sizes=(3, 3)),
    "one beyond the storage": raw_tensor(strides=(4, 1)),
    "before the storage": raw_tensor(first=0),
    "far offset": raw_tensor(first=2**63 - 1),
    "negative stride": raw_tensor(strides=(-3, 1), first=4),
    "negative size": raw_tensor(sizes=(-2, 3)),
    "blown up by stride 0": raw_tensor(sizes=(2**40, 3), strides=(0, 1)),
    "huge stride": raw_tensor(strides=(2**63 - 1, 1)),
    "cut off": raw_tensor()[:-1],
    "a number as storage": raw_tensor()[: -24 - 8 - 22 - 7 - 8] + dump(1.0),
    "function cut off": struct.pack("<iii", 8, 1, 100) + bytes(10),
}


def test_the_plain_tensor_is_read() -> None:
    assert parse(raw_tensor(), "x").values.shape == (2, 3)
    # The stride of a dimension with a single element is ignored.
    assert parse(raw_tensor(sizes=(1, 3), strides=(2**63 - 1, 1)), "x").values.shape == (1, 3)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_give_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.t7"
    path.write_bytes(HOSTILE[name])
    tracemalloc.start()
    with pytest.raises(DataError) as raised:
        torch7.load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(str(raised.value).splitlines()) == 1 and str(path) in str(raised.value)
    assert peak < 1e6


def test_depth_and_count_have_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    parse(nested(torch7.MAX_DEPTH), "x")
    with pytest.raises(DataError, match="objects in one another"):
        parse(nested(torch7.MAX_DEPTH + 1), "x")
    monkeypatch.setattr(torch7, "MAX_VALUES", 21)
    parse(dump([True] * 10), "x")
    with pytest.raises(DataError, match="expected at most 21 values, got more"):
        parse(dump([True] * 11), "x")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file"):
        torch7.load(tmp_path / "none.t7")


def specimen() -> bytes:
    """One of everything."""
    rng = np.random.default_rng(0)
    linear = Obj("nn.Linear", {"weight": Tensor.of(rng.normal(size=(3, 4)).astype("<f4"), cuda=True), "train": False})
    shared = Storage(rng.integers(0, 9, 16, dtype="<i8"))
    views = [Tensor(shared, (2, 3), (4, 1), 2), Tensor(shared, (4,), (2,)), Tensor(None, (), ())]
    modules = [linear, Obj("nn.View", {"size": shared}), Function(b"\x1bLuaR" * 5, [linear]), linear]
    return dump({"model": Obj("nn.Sequential", {"modules": modules}), "views": views, 1.5: "text", True: None})


def mutate(data: bytes, rng: random.Random) -> bytes:
    """A file with bytes changed, cut off or repeated, or with integers replaced by extreme ones."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out))
        kind = rng.randrange(5)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at] = rng.randrange(256)
        elif kind == 2:
            value = rng.choice([-1, 0, 1, 2**31 - 1, -(2**31), rng.randrange(10)])
            out[at : at + 4] = struct.pack("<i", value)
        elif kind == 3:
            out[at : at + 8] = struct.pack("<q", rng.choice([-1, 0, 2**63 - 1, -(2**63), 2**40]))
        else:
            del out[at : at + rng.randint(1, 30)]
        if len(out) < 2:
            break
    return bytes(out)


def touch(value: Any, seen: set[int]) -> int:
    """Read every element of a loaded object; returns their number."""
    if isinstance(value, Array):
        return len(value.values.tobytes()) // value.values.itemsize
    if isinstance(value, Table | Instance):
        if id(value) in seen:
            return 0
        seen.add(id(value))
        parts = value.values.values() if isinstance(value, Table) else [value.data]
        return sum(touch(part, seen) for part in parts)
    return 0


def fuzz(count: int, seed: int) -> tuple[int, int]:
    """How many of ``count`` mutated files were refused, and the peak of memory in bytes."""
    rng, data, refused = random.Random(seed), specimen(), 0
    tracemalloc.start()
    for _ in range(count):
        mutated = mutate(data, rng)
        try:
            assert touch(parse(mutated, "x"), set()) <= 10 * len(mutated)
        except DataError as error:
            assert len(str(error).splitlines()) == 1
            refused += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return refused, peak


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_files_are_read_or_refused(count: int) -> None:
    refused, peak = fuzz(count, seed=count)
    assert 0.3 * count < refused < count, "both happen"
    assert peak < 2e6


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    try:
        parse(data, "x")
    except DataError as error:
        assert len(str(error).splitlines()) == 1
