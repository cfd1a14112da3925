"""What the kernels of refinement and decoders have to do, what they do, and how fast a GPU could be at best.

- FLOPs count a multiply-add as two, and no padding.
- Least bytes: every map is read or written once.
- Moved bytes: what the programs read and write of maps. A program reads each of its pixels once, because its taps meet
  in the L1 cache. A border that several programs read counts several times, although most of it comes from L2. Weights
  stay in L2 and count once.
- Plain: what PyTorch's steps do, one after the other (upsampling, concatenation, convolution, ReLU): each reads and
  writes its maps. Only of the decoders' ops, which are the same steps with fewer operations.
- The floor is the larger of least bytes over bandwidth and FLOPs over peak, from datasheets. No kernel was timed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from bench.workloads import decoder, shapes

MOST_MOVED = 1.5
"""Gate: bytes that merge_upsample may move, as a multiple of the least."""


MOST_OF_PLAIN = 0.7
"""Gate: bytes that upsample_merge may move, as a share of what the plain steps read and write."""

LEVELS = dict(enumerate(shapes.LEVELS, 1))
"""By the numbers that the tables have."""

IMAGE = 512
"""Pixels on a side of the image that a decoder's maps are of."""

BATCHES = (32, 256)

# 16-bit tensor-core TFLOP/s (dense) and memory TB/s of the makers' datasheets (SXM and OAM forms).
GPUS = {"A100": (312, 2.039), "H100": (989, 3.35), "MI300X": (1307, 5.3), "B200": (2250, 8.0)}

PIXELS, COLS = 128, 16
"""The tile of upsample.forward where no table has another."""

FLAT, NARROW = 64, 64
"""Pixels of a program of the flat kernels, where no table has others, and columns of a weight gradient's."""

WIDE = 128
"""The most outputs of a program of upsample_merge, channels of an input gradient's, and columns of a weight gradient's
of one map, in 16 bit."""


def _span(first: int, last: int, side: int) -> int:
    """Cells of [first, last] on a side."""
    return max(0, min(last, side - 1) - max(first, 0) + 1)


def tiled_pixels(side: int, halo: int = 1) -> int:
    """Input pixels that the programs of upsample.forward read of one map, borders each time; ``halo``: bilinear."""
    rows = PIXELS // (COLS + halo) - halo

    def along(tile: int) -> int:
        starts = range(0, side + halo, tile)
        # Activations [start - halo, start + tile), cut to the map; their taps reach one further.
        return sum(_span(max(s - halo, 0) - 1, min(s + tile, side) - 1 + 1, side) for s in starts)

    return along(rows) * along(COLS)


def flat_pixels(side: int, pixels: int = FLAT, rows: int = 1) -> float:
    """Input pixels read per image where a program takes ``pixels`` in a row and ``rows`` rows around them."""
    return side * side * (1 + 2 * rows * min(side, pixels + 1) / pixels)


def weight_gradient_bytes(side: int, inputs: int, outputs: int, columns: int, taps: int = 9) -> float:
    """Read per image by conv3x3.weight_gradient in 16 bit: each block of columns, taps by channels, reads its share."""
    blocks = math.ceil(taps * inputs / columns)
    sweeps = min(taps, blocks) if inputs >= columns else taps * inputs / columns
    rows = math.ceil(outputs / FLAT)
    return 2 * (max(flat_pixels(side), side**2 * sweeps) * inputs * rows + blocks * side**2 * outputs)


@dataclass(frozen=True)
class Work:
    """One op on one image in 16 bit."""

    op: str
    level: int
    flops: float
    least: float  # bytes of maps
    moved: float
    weights: float = 0  # bytes, once for the whole batch
    plain_flops: float = 0
    plain: float = 0  # bytes of maps

    def floor(self, gpu: str, batch: int) -> float:
        """Microseconds."""
        peak, bandwidth = GPUS[gpu]
        return max(batch * self.flops / peak, (batch * self.least + self.weights) / bandwidth) / 1e6


def conv_flops(cells: int, inputs: int, outputs: int) -> float:
    return 2.0 * 9 * cells * inputs * outputs


def works() -> Iterator[Work]:
    for number, level in LEVELS.items():
        joined, out, feature = level.skip + level.mask, level.out, level.feature
        cells = level.side**2
        bits = out * level.side * math.ceil(level.side / 8)
        merge = conv_flops(cells, joined, out)
        horizontal = conv_flops(cells, level.mask, out)
        weights = 2 * 9 * joined * out
        least = 2 * cells * (joined + 4 * out) + bits
        moved = 2 * (tiled_pixels(level.side) * joined + cells * 4 * out) + bits
        yield Work("merge_upsample", number, merge, least, moved, weights)
        added = 2 * cells * (level.mask + 5 * out) + bits
        taken = 2 * (tiled_pixels(level.side) * level.mask + cells * 5 * out) + bits
        yield Work("add_upsample", number, horizontal, added, taken, weights / 2)

        # Backward: gradient before the ReLU (written, then read by two kernels), then inputs, then weights.
        back = 2 * cells * (4 * out + 2 * joined) + bits
        before = 2 * (flat_pixels(level.side, 1024 // out, 0) * 4 * out + cells * out) + bits
        inputs = 2 * (flat_pixels(level.side) * out + cells * joined)
        gradient = weight_gradient_bytes(level.side, joined, out, NARROW)
        yield Work("merge_upsample backward", number, 2 * merge, back, before + inputs + gradient, 2 * weights)

        skip = conv_flops(cells, feature, level.skip)
        first = 2 * 9 * feature * level.skip
        yield Work(
            "refine",
            number,
            merge + skip,
            2 * cells * (feature + level.mask + level.skip + 4 * out) + bits,
            2 * (flat_pixels(level.side) * feature + cells * level.skip) + moved,
            weights + first,
        )
        deep = 2 * (2 * flat_pixels(level.side) * level.skip + cells * feature)  # dF, and d(skip) for it
        deep += weight_gradient_bytes(level.side, feature, level.skip, 2 * NARROW)
        yield Work(
            "refine backward",
            number,
            2 * (merge + skip),
            2 * cells * (2 * feature + 2 * level.mask + level.skip + 4 * out) + bits,
            before + inputs + gradient + deep,
            2 * (weights + first),
        )


def decoder_works() -> Iterator[Work]:
    """The ops of decoders, with nearest upsampling and ReLU; their programs work on all four phases."""
    for number, (mask, skip, out, stride) in enumerate(decoder.UNET, 1):
        side = IMAGE // stride
        cells = side**2
        large, joined = 4 * cells, mask + skip
        flops = 2.0 * out * (16 * cells * mask + 9 * large * skip)
        plain_flops = conv_flops(large, joined, out)
        joining = 2 * large * joined if skip else 0
        plain = 2 * (cells * mask + large * mask + joining + large * joined + 3 * large * out)
        # Three rows of cells, and four of the skip for every two.
        moved = 2 * ((flat_pixels(side) * mask + 2 * large * skip) * math.ceil(out / WIDE) + large * out)
        weights = 2 * out * (9 * skip + 16 * mask)
        least = 2 * (cells * mask + large * (skip + out))
        yield Work("upsample_merge", number, flops, least, moved, weights, plain_flops, plain)

        # Gradient before ReLU, then of the mask (four rows of pixels for every two), of the skip, of the weights.
        back = 2.0 * 3 * large * out
        back += 2 * (2 * large * out * math.ceil(mask / WIDE) + cells * mask)
        back += 2 * (flat_pixels(2 * side) * out * math.ceil(skip / WIDE) + large * skip)
        back += 4 * weight_gradient_bytes(side, mask, out, WIDE, taps=4)
        back += weight_gradient_bytes(2 * side, skip, out, WIDE) if skip else 0
        plain = 2 * (5 * large * out + 2 * large * joined + (cells + large) * mask)
        least = 2 * (2 * cells * mask + 2 * large * (skip + out))
        yield Work("upsample_merge backward", number, 2 * flops, least, back, 2 * weights, 2 * plain_flops, plain)
    for number, stride in enumerate(decoder.PYRAMID_STRIDES, 1):
        one = 2 * (IMAGE // stride) ** 2 * decoder.PYRAMID_CHANNELS
        yield Work("upsample_add", number, 0, 9 * one, 9 * one, plain=17 * one)


def faults() -> list[str]:
    found = [w for w in works() if w.op == "merge_upsample" and w.moved > MOST_MOVED * w.least]
    texts = [f"{w.op} at level {w.level} moves {w.moved / w.least:.2f} times the least bytes" for w in found]
    found = [w for w in decoder_works() if w.op == "upsample_merge" and w.moved > MOST_OF_PLAIN * w.plain]
    return texts + [f"{w.op} at level {w.level} moves {w.moved / w.plain:.2f} of the plain steps' bytes" for w in found]


def report(console: Console) -> None:
    table = Table(title="Roofline, 16 bit")
    table.add_column("op")
    columns = ["level", "batch", "GFLOP", "plain", "least MB", "moved MB", "plain MB", "ratio"]
    for column in [*columns, *(f"{gpu} floor, µs" for gpu in GPUS)]:
        table.add_column(column, justify="right")
    for work in (*works(), *decoder_works()):
        for batch in BATCHES:
            flops = [_or_blank(batch * x / 1e9, 2) for x in (work.flops, work.plain_flops)]
            least, moved = (f"{(batch * x + work.weights) / 1e6:.1f}" for x in (work.least, work.moved))
            floors = [f"{work.floor(gpu, batch):.1f}" for gpu in GPUS]
            cells = [*flops, least, moved, _or_blank(batch * work.plain / 1e6, 1), f"{work.moved / work.least:.2f}"]
            table.add_row(work.op, str(work.level), str(batch), *cells, *floors)
    console.print(table)


def _or_blank(x: float, digits: int) -> str:
    return f"{x:.{digits}f}" if x else ""
