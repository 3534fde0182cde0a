"""Which axes do networks have that make pictures larger?"""

# mypy: disable-error-code="no-any-return"
# Calling a module gives Any; the models stay as their users would write them.

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.testing.zoo.entry import ZooEntry, axis, normal, randomised


class UNet(nn.Module):
    """A transposed convolution has its input channels first; the skip is concatenated after it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder1 = nn.Conv2d(1, 4, 3, padding=1)
        self.encoder2 = nn.Conv2d(4, 6, 3, padding=1)
        self.up = nn.ConvTranspose2d(6, 5, 2, stride=2)
        self.decoder = nn.Conv2d(9, 7, 3, padding=1)
        self.out = nn.Conv2d(7, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.encoder1(x))
        x = F.relu(self.encoder2(F.max_pool2d(skip, 2)))
        x = torch.cat([self.up(x), skip], dim=1)
        return self.out(F.relu(self.decoder(x)))


class PixelShuffle(nn.Module):
    """Each channel after the shuffle owns 2 x 2 neighbouring channels before it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 5, 3, padding=1)
        self.conv2 = nn.Conv2d(5, 6 * 2 * 2, 3, padding=1)
        self.conv3 = nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pixel_shuffle(self.conv2(F.relu(self.conv1(x))), 2)
        return self.conv3(F.relu(x))


ENTRIES = (
    ZooEntry(
        "unet",
        randomised(UNet),
        normal((2, 1, 6, 8)),
        (
            axis("channels", 4, "encoder1.{weight,bias}:0 encoder2.weight:1 decoder.weight:1"),
            axis("channels", 6, "encoder2.{weight,bias}:0 up.weight:0"),
            axis("channels", 5, "up.weight:1 up.bias:0 decoder.weight:1"),
            axis("channels", 7, "decoder.{weight,bias}:0 out.weight:1"),
        ),
    ),
    ZooEntry(
        "pixel_shuffle",
        randomised(PixelShuffle),
        normal((2, 3, 4, 5)),
        (
            axis("channels", 5, "conv1.{weight,bias}:0 conv2.weight:1"),
            axis("channels", 6, "conv2.{weight,bias}:0 conv3.weight:1"),
        ),
    ),
)
