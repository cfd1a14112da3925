"""Documented import paths name the same things wherever the code lies."""

import importlib

import pytest

import sharpmask

PATHS = {
    "sharpmask.checkpoint": ("load_model", "save_model"),
    "sharpmask.convert": ("convert",),
    "sharpmask.data.coco": ("CocoFolder", "Instance"),
    "sharpmask.data.synthetic": ("synthesize",),
    "sharpmask.data.tiles": ("TileConfig",),
    "sharpmask.errors": ("DataError",),
    "sharpmask.evaluation": ("average_recall", "load_results", "recall_table"),
    "sharpmask.inference": ("ProposalGenerator",),
    "sharpmask.models": ("DeepMask", "ModelConfig", "SharpMask", "build_model"),
    "sharpmask.training": ("TrainConfig", "stage_defaults", "train"),
}


@pytest.mark.parametrize("path", PATHS)
def test_documented_import_paths(path: str) -> None:
    module = importlib.import_module(path)
    for name in PATHS[path]:
        value = getattr(module, name)
        assert name not in sharpmask.__all__ or value is getattr(sharpmask, name)
