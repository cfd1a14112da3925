"""Apply fuse() to a model of your own. Names, checkpoint and results stay the same; a report lists the swapped parts.

Only torch and sharpmask_kernels are needed.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharpmask_kernels import fuse


class Up(nn.Module):
    """A decoder level with parts in another order: the mask first, ReLU and upsampling as layers."""

    def __init__(self, side: int, below: int, out: int) -> None:
        super().__init__()
        self.lateral = nn.Sequential(nn.Conv2d(side, 8, 3, padding=1), nn.ReLU(inplace=True))
        self.mix = nn.Conv2d(below + 8, out, 3, padding=1)
        self.up = nn.Sequential(nn.ReLU(inplace=True), nn.Upsample(scale_factor=2, mode="bilinear"))

    def forward(self, side: Tensor, below: Tensor) -> Tensor:
        return self.up(self.mix(torch.cat([below, self.lateral(side)], dim=1)))


class Net(nn.Module):
    """Downsamples to an eighth and upsamples again. The last level adds instead of concatenating."""

    def __init__(self) -> None:
        super().__init__()
        widths = [(3, 16), (16, 32), (32, 64)]
        self.down = nn.ModuleList(nn.Conv2d(i, o, 3, stride=2, padding=1) for i, o in widths)
        self.ups = nn.ModuleList([Up(64, 64, 32), Up(32, 32, 16)])
        self.side = nn.Conv2d(16, 8, 1)
        self.below = nn.Conv2d(16, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        maps = [image]
        for conv in self.down:
            maps.append(F.relu(conv(maps[-1])))
        x = maps[-1]
        for level, side in zip(self.ups, maps[:1:-1], strict=True):
            x = level(side, x)
        x = F.interpolate(torch.relu(self.side(maps[1]) + self.below(x)), scale_factor=2)
        return self.head(F.relu(self.norm(x)))


def main() -> None:
    torch.manual_seed(0)
    plain = Net()
    model = copy.deepcopy(plain)
    report = fuse(model)
    print(report)
    assert int(report) == 3

    model.load_state_dict(plain.state_dict())  # strict: the names are the same
    image = torch.rand(2, 3, 64, 96)
    expected, found = plain(image), model(image)
    torch.testing.assert_close(found, expected)
    print(f"output {tuple(found.shape)}: largest difference {(found - expected).abs().max():.1e}")

    expected.square().mean().backward()
    found.square().mean().backward()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    print("gradients of all parameters are equal")


if __name__ == "__main__":
    main()
