"""Use a refinement op in a decoder of your own. Outputs and gradients equal those of the plain PyTorch code.

Only torch and sharpmask_kernels are needed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharpmask_kernels import merge_upsample


class PlainStage(nn.Module):
    """A decoder stage that many networks have: concatenate, convolve, ReLU, upsample."""

    def __init__(self, skip_channels: int, mask_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(skip_channels + mask_channels, out_channels, 3, padding=1)

    def forward(self, skip: Tensor, mask: Tensor) -> Tensor:
        merged = F.relu(self.conv(torch.cat([skip, mask], dim=1)))
        return F.interpolate(merged, scale_factor=2, mode="bilinear", align_corners=False)


class OpStage(PlainStage):
    """The same stage with the same parameters, computed by the op. The skip's channels come first in the weight."""

    def forward(self, skip: Tensor, mask: Tensor) -> Tensor:
        return merge_upsample(skip, mask, self.conv.weight, self.conv.bias)


class Decoder(nn.Module):
    """Three stages, 8x8 to 64x64."""

    def __init__(self, stage: type[PlainStage]) -> None:
        super().__init__()
        self.stages = nn.ModuleList([stage(64, 32, 16), stage(32, 16, 8), stage(16, 8, 4)])
        self.head = nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, skips: list[Tensor], mask: Tensor) -> Tensor:
        for stage, skip in zip(self.stages, skips, strict=True):
            mask = stage(skip, mask)
        return self.head(mask)


def main() -> None:
    torch.manual_seed(0)
    plain, ours = Decoder(PlainStage), Decoder(OpStage)
    ours.load_state_dict(plain.state_dict())  # strict: the names are the same

    skips = [torch.rand(2, channels, side, side) for channels, side in ((64, 8), (32, 16), (16, 32))]
    mask = torch.rand(2, 32, 8, 8, requires_grad=True)
    expected, found = plain(skips, mask), ours(skips, mask)
    torch.testing.assert_close(found, expected)
    print(f"output {tuple(found.shape)}: largest difference {(found - expected).abs().max():.1e}")

    (wanted,) = torch.autograd.grad(expected.square().mean(), mask)
    (gradient,) = torch.autograd.grad(found.square().mean(), mask)
    torch.testing.assert_close(gradient, wanted)
    plain(skips, mask).square().mean().backward()
    ours(skips, mask).square().mean().backward()
    for a, b in zip(plain.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad)
    print("gradients of the mask and of all parameters are equal")


if __name__ == "__main__":
    main()
