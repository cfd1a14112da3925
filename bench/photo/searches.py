"""What a contender's process can be asked: how long a photo takes, how much memory, and what is found."""

from __future__ import annotations

import gc
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

import sharpmask
from sharpmask.models import DeepMask, SharpMask, build_model
from sharpmask.search import ProposalGenerator

from ..timing import seconds
from . import sam
from .outcome import Outcome, save

PHOTO = Path(sharpmask.__file__).parent / "assets" / "coffee.jpg"
STATUS = Path("/proc/self/status")


class Searches:
    """Of each number of windows, a function that searches the photo. ``task``: see :mod:`bench.photo.worker`."""

    def __init__(self, task: dict[str, Any]) -> None:
        torch.set_num_threads(task["threads"])
        photo, counts, search = demo_photo(*task["size"]), task["counts"], dict(task["search"])
        kind = search.pop("kind")
        self.photo, self.generators = photo, dict[int, ProposalGenerator]()
        if kind == "sam":
            find, self.loaded = sam.finder(photo, **search), resident("VmRSS")
            self.find: dict[int, Callable[[], object]] = dict.fromkeys(counts, find)
            return
        self.model = load(task["model"])
        gc.collect()
        self.loaded = resident("VmRSS")
        if kind == "export":
            return
        make = maker(self.model, photo, kind, **search)
        self.generators = {count: make(count) for count in counts}
        self.find = {count: lambda own=own: own.generate(photo) for count, own in self.generators.items()}  # type: ignore[misc]

    def time(self, count: int) -> dict[str, Any]:
        """Seconds of one photo and, of our searches, of each stage.

        Another photo goes before: while the others had their turns, the process's memory has become cold.
        """
        self.find[count]()
        found: list[Any] = []
        taken = seconds(lambda: found.append(self.find[count]()))
        return {"seconds": taken, "stages": getattr(found[0], "timing", {})}

    def look(self, count: int, path: str) -> dict[str, Any]:
        """Seconds and memory of a photo; writes what is found to ``path`` unless it is masks of another system."""
        own = self.generators.get(count)
        found: list[Outcome] = []
        self.forget()
        taken = seconds(self.find[count] if own is None else lambda: found.append(outcome(own, self.photo)))
        peak = self.peak()
        if found:
            save(found[0], Path(path))
        return peak | {"seconds": taken}

    def forget(self) -> dict[str, Any]:
        """Makes the system forget the process's peak of memory so far."""
        gc.collect()
        if STATUS.exists():
            Path("/proc/self/clear_refs").write_text("5")
        return {}

    def peak(self) -> dict[str, Any]:
        """The most bytes beyond the loaded model since ``forget``, None where the system does not tell."""
        most = resident("VmHWM")
        return {"peak": None if most is None or self.loaded is None else most - self.loaded}

    def export(self, path: str) -> dict[str, Any]:
        """Writes the dense pass as ONNX to ``path``."""
        from . import dense  # not in an earlier commit

        dense.export(cast(SharpMask, self.model), Path(path))
        return {}


def demo_photo(height: int, width: int) -> Any:
    """The package's own photo, resized: uint8 (height, width, 3)."""
    with Image.open(PHOTO) as image:
        return np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))


def load(name: str) -> DeepMask:
    """The shipped model, the larger "base", or one with random weights: "architecture trunk"."""
    torch.manual_seed(0)
    if name in ("shipped", "base"):
        # An earlier commit knows no names.
        return sharpmask.load_model() if name == "shipped" else sharpmask.load_model(name)
    architecture, trunk = name.split()
    return build_model(architecture, trunk=trunk).eval()  # type: ignore[arg-type]


def maker(model: DeepMask, photo: Any, kind: str, **options: Any) -> Callable[[int], ProposalGenerator]:
    """What makes the generator of a number of windows."""
    if kind in ("onnxruntime", "openvino") and importlib.util.find_spec(kind) is None:
        raise RuntimeError(f"{kind} is not installed: pip install -e '.[bench-peers]'")
    if kind == "generator":
        return lambda count: ProposalGenerator(model, top_n=count, **options)
    from . import dense  # not in an earlier commit, which has no forms for inference

    return dense.maker(model, photo, kind, **options)


def outcome(generator: ProposalGenerator, photo: Any) -> Outcome:
    """What ``generate`` finds, and the windows and logits on the way there."""
    seen: list[Any] = []
    method = generator.window_logits

    def listen(maps: Any, windows: Any, watch: Any) -> Any:
        logits = method(maps, windows, watch)
        seen[:] = windows, logits
        return logits

    generator.window_logits = listen  # type: ignore[method-assign]
    try:
        found = generator.generate(photo)
    finally:
        del generator.window_logits
    windows, logits = seen
    place = torch.stack([windows.scale, windows.row, windows.col], 1)
    return Outcome(array(place), array(windows.score.float()), array(logits.float()), found.rles, found.scores)


def array(x: torch.Tensor) -> npt.NDArray[Any]:
    return x.detach().cpu().numpy()


def resident(field: str) -> int | None:
    """Bytes of memory, now ("VmRSS") or at the peak ("VmHWM"); None where the system does not tell."""
    if not STATUS.exists():
        return None
    found = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else None
