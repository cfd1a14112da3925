"""Fuse the decoder of a U-Net of segmentation_models_pytorch: same results, same checkpoint, less work.

Needs segmentation-models-pytorch besides torch and sharpmask_kernels. The weights are random; nothing is downloaded.
"""

import copy
import time

import segmentation_models_pytorch as smp
import torch
from torch import Tensor

from sharpmask_kernels import fuse


def decode(model: smp.Unet, features: list[Tensor]) -> Tensor:
    return model.segmentation_head(model.decoder(features))


def milliseconds(model: smp.Unet, features: list[Tensor]) -> float:
    """The best of a few runs of the decoder."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        decode(model, features)
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


def main() -> None:
    torch.manual_seed(0)
    plain = smp.Unet("resnet34", encoder_weights=None).eval()
    model = copy.deepcopy(plain)
    report = fuse(model)
    print(report)
    assert int(report) >= 4

    model.load_state_dict(plain.state_dict())  # strict: the names are the same
    image = torch.rand(1, 3, 256, 256).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected, found = plain(image), model(image)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
        print(f"output {tuple(found.shape)}: largest difference {(found - expected).abs().max():.1e}")
        features = plain.encoder(image)
        print(f"decoder: {milliseconds(plain, features):.0f} ms, fused {milliseconds(model, features):.0f} ms")

    # Training: the convolutions are fused, the normalisation runs as written.
    for each in (plain.train(), model.train()):
        each(image.expand(2, -1, -1, -1)).square().mean().backward()
    largest = max(float(p.grad.abs().max()) for p in plain.decoder.parameters())
    for mine, theirs in zip(model.decoder.parameters(), plain.decoder.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=1e-3 * largest)
    print("gradients of the decoder's parameters are equal")


if __name__ == "__main__":
    main()
