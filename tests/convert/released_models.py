"""The authors' networks as Torch 7 data with the structure that their code gives them, and what they compute.

``SharpMaskFile`` builds the modules as data for the writer; ``forward`` and the functions below it evaluate them in
numpy, fp64, from the definitions of the Torch modules alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .torch7_writer import Obj, Tensor

Array = np.ndarray
BLOCKS = {5: (64, 3, 1), 6: (128, 4, 2), 7: (256, 6, 2)}
"""Of the trunk's modules 5 to 7: inner width, blocks, stride."""


class Builder:
    """Modules with random weights. ``cuda``: tensors as saved from a GPU; ``flat``: convolutions' weights as
    matrices, as older modules keep them; ``plain``: scale and shift as vectors; ``biases``: also in the trunk's
    convolutions before a normalisation."""

    def __init__(
        self, seed: int = 0, cuda: bool = True, flat: bool = False, plain: bool = False, biases: bool = False
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.cuda, self.flat, self.plain, self.biases = cuda, flat, plain, biases

    def tensor(self, *shape: int, gain: float = 1.0) -> Tensor:
        return Tensor.of((self.rng.standard_normal(shape, dtype="<f4") * np.float32(gain)).astype("<f4"), self.cuda)

    def conv(self, channels: int, out: int, side: int, stride: int = 1, bias: bool = True) -> Obj:
        """A convolution, wrapped with symmetric padding if it has any extent."""
        shape = (out, channels * side * side) if self.flat else (out, channels, side, side)
        fields: dict[str, Any] = {"nInputPlane": channels, "nOutputPlane": out, "kW": side, "kH": side}
        fields |= {"dW": stride, "dH": stride, "padW": 0, "padH": 0, "groups": 1, "train": False}
        fields["weight"] = self.tensor(*shape, gain=(2 / (channels * side * side)) ** 0.5)
        fields["gradWeight"] = self.tensor(1)
        if bias:
            fields["bias"] = self.tensor(out, gain=0.1)
        conv = Obj("cudnn.SpatialConvolution", fields)
        return sequential(padding(side // 2), conv) if side > 1 else conv

    def affine(self, width: int, gain: float = 1.0) -> Obj:
        shape = (width,) if self.plain else (1, width, 1, 1)
        a = Tensor.of(np.full(shape, gain, "<f4") + self.rng.uniform(-0.1, 0.1, shape).astype("<f4"), self.cuda)
        return Obj("nn.SpatialConstDiagonal", {"a": a, "b": self.tensor(*shape, gain=0.1), "inplace": True})

    def linear(self, width: int, out: int) -> Obj:
        weight = self.tensor(out, width, gain=width**-0.5)
        return Obj("nn.Linear", {"weight": weight, "bias": self.tensor(out, gain=0.1), "output": self.tensor(2, 3)})

    def bottleneck(self, channels: int, width: int, stride: int) -> Obj:
        b = self.biases
        main = sequential(
            *(self.conv(channels, width, 1, bias=b), self.affine(width), relu()),
            *(self.conv(width, width, 3, stride, bias=b), self.affine(width), relu()),
            *(self.conv(width, 4 * width, 1, bias=b), self.affine(4 * width, gain=0.3)),
        )
        same = channels == 4 * width
        short = (
            Obj("nn.Identity")
            if same
            else sequential(self.conv(channels, 4 * width, 1, stride, bias=b), self.affine(4 * width, gain=0.7))
        )
        both = Obj("nn.ConcatTable", {"modules": [main, short]})
        return sequential(both, Obj("nn.CAddTable", {"inplace": True}), relu())

    def trunk(self, cells: int, features: int, code: int) -> Obj:
        modules = [self.conv(3, 64, 7, 2, bias=self.biases), self.affine(64), relu(), pool()]
        channels = 64
        for width, count, stride in BLOCKS.values():
            blocks = []
            for i in range(count):
                blocks.append(self.bottleneck(channels, width, stride if i == 0 else 1))
                channels = 4 * width
            modules.append(sequential(*blocks))
        flat = features * cells * cells
        modules += [crop(1), self.conv(1024, features, 1), relu(), Obj("nn.View", {"numElements": flat})]
        return sequential(*modules, self.linear(flat, code))

    def deepmask(self, cells: int = 3, features: int = 8, code: int = 16, side: int = 12, hidden: int = 16) -> Obj:
        upsample = sequential(Obj("nn.Copy"), Obj("nn.View"), Obj("nn.SpatialReSamplingEx", {"mode": "bilinear"}))
        score = sequential(
            *(Obj("nn.Dropout", {"p": 0.5}), self.linear(code, hidden)),
            Obj("nn.Threshold", {"threshold": 0, "val": 1e-6}),
            *(Obj("nn.Dropout", {"p": 0.5}), self.linear(hidden, 1)),
        )
        trunk = self.trunk(cells, features, code)
        mask = sequential(sequential(self.linear(code, side * side)), upsample)
        return Obj("nn.DeepMask", {"fSz": cells, "trunk": trunk, "maskBranch": mask, "scoreBranch": score})

    def sharpmask(self, width: int = 16, **sizes: int) -> Obj:
        f = self.deepmask(**sizes).fields
        cells, code = f["fSz"], f["trunk"].fields["modules"][-1].fields["weight"].size[0]
        first = sequential(self.linear(code, width * cells**2), Obj("nn.View", {"numElements": width * cells**2}))
        neths, netvs, refs = {}, {0: first}, {0: first}
        for i, channels in enumerate((1024, 512, 256, 64)):
            k, hidden = width >> i, 64 if i < 3 else 32
            steps = [self.conv(channels, hidden, 3), relu(), self.conv(hidden, k, 3), relu(), self.conv(k, k // 2, 3)]
            # The padding modules stand beside the convolutions here, not around them.
            flat = [m for step in steps for m in (step.fields["modules"] if step.name == "nn.Sequential" else [step])]
            neths[i + 1] = sequential(*([crop(1 << i)] if i else []), *flat)
            netvs[i + 1] = sequential(self.conv(k, k, 3), relu(), self.conv(k, k // 2, 3))
            both = Obj("nn.ParallelTable", {"modules": [neths[i + 1], netvs[i + 1]]})
            up = Obj("nn.SpatialUpSamplingNearest", {"scale_factor": 2})
            refs[i + 1] = sequential(both, Obj("nn.CAddTable"), relu(), up)
        refs[4].fields["modules"] += [self.conv(width // 16, 1, 3), Obj("nn.View")]
        fields = {"km": width, "ks": width, "fSz": cells, "skpos": [8, 6, 5, 3], "inps": [self.tensor(3)]}
        fields |= {"trunk": f["trunk"], "scoreBranch": f["scoreBranch"], "maskBranchDM": f["maskBranch"]}
        return Obj("nn.SharpMask", fields | {"neths": neths, "netvs": netvs, "refs": refs})


def sequential(*modules: Obj) -> Obj:
    return Obj("nn.Sequential", {"modules": list(modules), "train": False})


def padding(cells: int) -> Obj:
    return Obj("nn.SpatialSymmetricPadding", {f"pad_{side}": cells for side in "lrtb"})


def crop(cells: int) -> Obj:
    return Obj("nn.SpatialZeroPadding", {f"pad_{side}": -cells for side in "lrtb"})


def relu() -> Obj:
    return Obj("cudnn.ReLU", {"inplace": True})


def pool() -> Obj:
    return Obj("cudnn.SpatialMaxPooling", {"kW": 3, "kH": 3, "dW": 2, "dH": 2, "padW": 1, "padH": 1})


# What the modules compute, on maps (C, H, W) or vectors.


def values(tensor: Tensor) -> Array:
    return tensor.storage.values.reshape(tensor.size).astype(np.float64)


def forward(module: Obj, x: Any, taps: list[Array] | None = None) -> Any:
    """A module's output; ``taps`` receives what each part of a Sequential gives."""
    name, f = module.name.split(".")[1], module.fields
    if name == "Sequential":
        for part in f["modules"]:
            x = forward(part, x)
            if taps is not None:
                taps.append(x)
        return x
    if name == "ConcatTable":
        return [forward(part, x) for part in f["modules"]]
    if name == "ParallelTable":
        return [forward(part, y) for part, y in zip(f["modules"], x, strict=True)]
    if name == "CAddTable":
        return x[0] + x[1]
    if name in ("Identity", "Dropout"):
        return x
    if name == "View":
        return x.reshape(-1)
    if name == "ReLU":
        return np.maximum(x, 0)
    if name == "Threshold":
        return np.where(x > f["threshold"], x, f["val"])
    if name == "Linear":
        return values(f["weight"]) @ x + values(f["bias"])
    if name == "SpatialConstDiagonal":
        return x * values(f["a"]).reshape(-1, 1, 1) + values(f["b"]).reshape(-1, 1, 1)
    if name == "SpatialSymmetricPadding":
        return np.pad(x, ((0, 0), (f["pad_t"], f["pad_b"]), (f["pad_l"], f["pad_r"])), mode="symmetric")
    if name == "SpatialZeroPadding":
        c = -f["pad_l"]
        return x[:, c:-c, c:-c]
    if name == "SpatialUpSamplingNearest":
        return x.repeat(2, axis=1).repeat(2, axis=2)
    if name == "SpatialMaxPooling":
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
        return np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))[:, ::2, ::2].max((3, 4))
    assert name == "SpatialConvolution", name
    return convolve(x, f)


def convolve(x: Array, f: dict[str, Any]) -> Array:
    weight = values(f["weight"]).reshape(f["nOutputPlane"], f["nInputPlane"], f["kH"], f["kW"])
    windows = np.lib.stride_tricks.sliding_window_view(x, (f["kH"], f["kW"]), (1, 2))[:, :: f["dH"], :: f["dW"]]
    out = np.tensordot(weight, windows, axes=([1, 2, 3], [0, 3, 4]))
    return out + values(f["bias"]).reshape(-1, 1, 1) if "bias" in f else out


def normalise(image: Array) -> Array:
    """image (3, H, W) in [0, 1]."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return (image - mean[:, None, None]) / std[:, None, None]


def patch(model: Obj, image: Array) -> dict[str, Array]:
    """What the released model gives for a training patch (3, S + 32, S + 32): its logits."""
    f = model.fields
    taps: list[Array] = []
    code = forward(f["trunk"], normalise(image), taps)
    branch = f["maskBranchDM" if "refs" in f else "maskBranch"]
    coarse = forward(branch.fields["modules"][0], code)
    side = int(len(coarse) ** 0.5)
    out = {"score": forward(f["scoreBranch"], code)[0], "coarse": coarse.reshape(side, side)}
    if "refs" in f:
        cells, width = f["fSz"], f["km"]
        mask = forward(f["refs"][0], code).reshape(width, cells, cells)
        for k, position in enumerate(f["skpos"], 1):
            mask = forward(f["refs"][k], [taps[position - 1], mask])
        out["refined"] = mask.reshape(16 * cells, 16 * cells)
    return out
