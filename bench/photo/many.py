"""Many photos: ``sharpmask propose`` on a folder, beside a plain loop over ``generate``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from ..measure import WrongResult
from .process import ROOT, Failed
from .results import Many, Results
from .searches import PHOTO
from .turns import say

LOOP = """
import json, sys
from pathlib import Path
import sharpmask
from sharpmask.search import ProposalGenerator

photos, out, top_n = sorted(Path(sys.argv[1]).iterdir()), Path(sys.argv[2]), int(sys.argv[3])
generator = ProposalGenerator(sharpmask.load_model(), top_n=top_n)
out.mkdir()
entries = []
for i, photo in enumerate(photos):
    found = generator.generate(photo)
    found.save_overlay(out / f"{photo.stem}.png")
    entries += found.to_coco(i)
(out / "proposals.json").write_text(json.dumps(entries))
"""
"""What one writes who does not know the command line, with the same output."""


def measure(options: Namespace, results: Results) -> None:
    """Adds photos a second to the results. Both are whole commands, start and imports included."""
    threads = max(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.photos or vary(Path(temporary) / "photos", options.many, options.size)
        count = sum(1 for _ in folder.iterdir())
        photos, top_n = str(folder), str(options.counts[0])
        command = [sys.executable, "-m", "sharpmask.cli", "propose", photos, "--top-n", top_n, "--out"]
        ways = {"a loop over generate": [sys.executable, "-c", LOOP, photos], "sharpmask propose": command}
        rates: dict[str, list[float]] = {name: [] for name in ways}
        entries: dict[str, int] = {}
        for turn in range(options.many_rounds):
            for name, arguments in ways.items():
                say(f"{count} photos, {threads} threads: {name}, round {turn + 1} of {options.many_rounds}")
                out = Path(temporary) / "out"
                given = [*arguments, str(out)] if name != "a loop over generate" else [*arguments, str(out), top_n]
                rates[name].append(count / _seconds(given, threads))
                entries[name] = (out / "proposals.json").read_text().count('"segmentation"')
                shutil.rmtree(out)
        if len(set(entries.values())) > 1:
            raise WrongResult(f"numbers of proposals differ: {entries}")
        results.many += [Many(name, count, own) for name, own in rates.items()]


def _seconds(command: list[str], threads: int) -> float:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    taken = time.perf_counter() - start
    if done.returncode:
        raise Failed(f"{' '.join(command[1:4])} failed: {done.stderr.strip().splitlines()[-1]}")
    return taken


def vary(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """Writes JPEG files: the package's own photo, cropped, mirrored, brighter or darker. The same ones in every run."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    height, width = size
    with Image.open(PHOTO) as file:
        image = file.convert("RGB")
    for i in range(count):
        share, x, y, light = random.uniform((0.6, 0, 0, 0.7), (1, 1, 1, 1.3))
        crop = image.width * share, image.height * share
        left, top = (image.width - crop[0]) * x, (image.height - crop[1]) * y
        part = image.resize((width, height), box=(left, top, left + crop[0], top + crop[1]))
        if i % 2:
            part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        ImageEnhance.Brightness(part).enhance(light).save(folder / f"{i:04}.jpg", quality=90)
    return folder
