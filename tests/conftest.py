"""Which tests run: slow ones, whole grids and GPU ones on request or where there is a GPU; what several files share."""

import contextlib
import os
import signal
import subprocess
import warnings
from pathlib import Path

import pytest

# Workers of pytest-xdist share the cores. PyTorch reads this when it is imported; tests that ask for threads get them.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

import torch

from . import emulator, grid, interpreter

# Without a GPU, Triton's kernels run in its interpreter, which it decides when it is imported, and those of csrc/cuda
# in the emulator: both come first.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
    with contextlib.suppress(ImportError):  # without triton nothing is interpreted
        interpreter.install()
    try:
        emulator.install()
    except (OSError, subprocess.CalledProcessError) as error:
        warnings.warn(f"the CUDA kernels cannot be emulated: {getattr(error, 'output', '') or error}", stacklevel=1)

from torch import nn

from sharpmask.checkpoint import save_model
from sharpmask.data.images import load_image
from sharpmask.data.synthetic import synthesize
from sharpmask.models import ModelConfig, SharpMask, from_config
from sharpmask.models.config import SearchConfig
from sharpmask_kernels import gather_windows, topk_windows

from .contract import faults

pytest_plugins = ["tests.contract.table"]


def pytest_configure() -> None:
    # A shell ignores Ctrl-C for what it starts in the background. Programs that tests start and interrupt would too.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="also run the tests marked slow (minutes)")
    parser.addoption("--full", action="store_true", help="run all combinations of parameters (see tests/grid.py)")
    parser.addoption("--fault", choices=sorted(faults.FAULTS), help="plant a fault of tests/contract/faults.py")


def pytest_report_header(config: pytest.Config) -> str:
    if config.getoption("--full"):
        return "grids: full, all combinations of parameters"
    return "grids: covering, every two values of parameters meet (all combinations: --full)"


@pytest.hookimpl(trylast=True)  # after -k and -m: what is left is covered
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = set(grid.left_out(items, full=config.getoption("--full")))
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]
    run_slow = config.getoption("--run-slow") or "slow" in config.option.markexpr
    for item in items:
        # Not item.keywords, which also has the names of folders.
        if item.get_closest_marker("slow") and not run_slow:
            item.add_marker(pytest.mark.skip(reason="slow: needs --run-slow"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="gpu: needs a CUDA device"))


@pytest.fixture(scope="session")
def synth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO-format folder of six small generated pictures."""
    out = tmp_path_factory.mktemp("data") / "synth"
    return synthesize(out, images=6, seed=5, size=(120, 160), objects=(2, 4), textures="generated")


@pytest.fixture(scope="session")
def tiny() -> ModelConfig:
    """A SharpMask as small as they come: windows of 48 pixels, few channels."""
    return ModelConfig(
        trunk="efficientnet_lite0",
        window=48,
        features=8,
        code=16,
        mask_side=12,
        score_hidden=16,
        mask_channels=(4, 4, 4, 4, 4),
        skip_channels=(4, 4, 4, 4),
        skip_hidden=8,
    )


@pytest.fixture(scope="session")
def tiny_sharpmask(tiny: ModelConfig, synth: Path) -> SharpMask:
    """The tiny model with weights that make masks and scores vary over an image. Not to be changed."""
    torch.manual_seed(3)
    model = from_config(tiny)
    assert isinstance(model, SharpMask)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    image = torch.tensor(load_image(synth / "images" / "000001.png")).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        standardize(model.encode, model.dense(image).code.movedim(1, 0).flatten(1).T)
        maps = model.dense(image)
        windows = topk_windows([maps.score], 20)
        code = gather_windows(maps.code, windows, 1).flatten(1)
        standardize(model.score[4], maps.score.flatten()[:, None])
        standardize(model.mask, model.coarse(code).flatten(1), spread=3)
        standardize(model.head, model.refine_dense(maps.taps, code, windows).flatten()[:, None], spread=3, shift=-1)
    model.search = SearchConfig(scales=(0.5, 0.75, 1.0))
    return model.eval()


def standardize(layer: nn.Linear | nn.Conv2d, outputs: torch.Tensor, spread: float = 1.0, shift: float = 0.0) -> None:
    """Change a last layer so that its ``outputs`` (n, channels) would have this mean and standard deviation."""
    gain = spread / outputs.std(0)
    layer.weight.mul_(gain.view(-1, *[1] * (layer.weight.ndim - 1)))
    layer.bias.sub_(outputs.mean(0)).mul_(gain).add_(shift)


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_sharpmask: SharpMask, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_model(tiny_sharpmask, path)
    return path
