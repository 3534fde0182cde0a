"""Networks for images, small: two that make them and two that find what is in them."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Generator(nn.Sequential):
    """DCGAN's generator: noise to an image (Radford, Metz and Chintala, 2016)."""

    def __init__(self, noise: int = 64, width: int = 32, channels: int = 3) -> None:
        def up(inputs: int, outputs: int, stride: int, padding: int) -> list[nn.Module]:
            convolution = nn.ConvTranspose2d(inputs, outputs, 4, stride, padding, bias=False)
            return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(True)]

        super().__init__(
            *up(noise, width * 8, 1, 0),
            *up(width * 8, width * 4, 2, 1),
            *up(width * 4, width * 2, 2, 1),
            *up(width * 2, width, 2, 1),
            nn.ConvTranspose2d(width, channels, 4, 2, 1, bias=False),
            nn.Tanh(),
        )


class Discriminator(nn.Sequential):
    """DCGAN's discriminator: an image to one number."""

    def __init__(self, width: int = 32, channels: int = 3) -> None:
        def down(inputs: int, outputs: int) -> list[nn.Module]:
            convolution = nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False)
            return [convolution, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2, inplace=True)]

        super().__init__(
            nn.Conv2d(channels, width, 4, 2, 1, bias=False),
            nn.LeakyReLU(0.2, inplace=True),
            *down(width, width * 2),
            *down(width * 2, width * 4),
            *down(width * 4, width * 8),
            nn.Conv2d(width * 8, 1, 4, 1, 0, bias=False),
            nn.Flatten(),
        )


class ModulatedConv(nn.Module):
    """A convolution whose input channels a style scales, and whose kernels are then normalised (StyleGAN 2, section 2.2)."""

    def __init__(self, inputs: int, outputs: int, side: int, style: int, demodulate: bool = True) -> None:
        super().__init__()
        self.inputs, self.outputs, self.side, self.demodulate = inputs, outputs, side, demodulate
        self.weight = nn.Parameter(torch.randn(outputs, inputs, side, side))
        self.scale = 1 / math.sqrt(inputs * side * side)
        self.style = nn.Linear(style, inputs)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        weight = self.scale * self.weight[None] * self.style(style).reshape(batch, 1, self.inputs, 1, 1)
        if self.demodulate:
            weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)
        weight = weight.reshape(batch * self.outputs, self.inputs, self.side, self.side)
        x = F.conv2d(x.reshape(1, batch * self.inputs, height, width), weight, padding=self.side // 2, groups=batch)
        return x.reshape(batch, self.outputs, height, width)


class StyledBlock(nn.Module):
    """A modulated convolution with noise and a bias, at twice the side if asked for."""

    def __init__(self, inputs: int, outputs: int, style: int, up: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = ModulatedConv(inputs, outputs, 3, style)
        self.noise = nn.Parameter(torch.zeros(1))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        if self.up:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        x = self.conv(x, style)
        x = x + self.noise * torch.ones_like(x[:, :1])
        return F.leaky_relu(x + self.bias[:, None, None], 0.2) * math.sqrt(2)


class StyleGenerator(nn.Module):
    """StyleGAN 2's generator: a mapping network, styled blocks, and an image that grows by skips (Karras et al., 2020)."""

    def __init__(self, latent: int = 64, widths: tuple[int, ...] = (64, 64, 32)) -> None:
        super().__init__()
        self.mapping = nn.Sequential(
            *(layer for _ in range(4) for layer in (nn.Linear(latent, latent), nn.LeakyReLU(0.2)))
        )
        self.constant = nn.Parameter(torch.randn(1, widths[0], 4, 4))
        pairs = list(zip((widths[0], *widths), widths, strict=False))
        self.blocks = nn.ModuleList(StyledBlock(a, b, latent, up=i > 0) for i, (a, b) in enumerate(pairs))
        self.colours = nn.ModuleList(ModulatedConv(b, 3, 1, latent, demodulate=False) for _, b in pairs)

    def forward(self, noise: Tensor) -> Tensor:
        style = self.mapping(noise * torch.rsqrt(noise.square().mean(1, keepdim=True) + 1e-8))
        x = self.constant.expand(len(noise), -1, -1, -1)
        image = None
        for block, colour in zip(self.blocks, self.colours, strict=True):
            x = block(x, style)
            skip = colour(x, style)
            image = skip if image is None else F.interpolate(image, scale_factor=2, mode="bilinear") + skip
        return image


class Conv(nn.Module):
    """A convolution, batch norm and SiLU."""

    def __init__(self, inputs: int, outputs: int, side: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, side, stride, side // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(self.conv(x)))


class Bottleneck(nn.Module):
    def __init__(self, width: int, shortcut: bool) -> None:
        super().__init__()
        self.first, self.second, self.shortcut = Conv(width, width, 3), Conv(width, width, 3), shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x))
        return x + y if self.shortcut else y


class C2f(nn.Module):
    """YOLOv8's block: halves of a convolution, bottlenecks after one another on the second, all of them joined."""

    def __init__(self, inputs: int, outputs: int, blocks: int = 1, shortcut: bool = False) -> None:
        super().__init__()
        self.c = outputs // 2
        self.first = Conv(inputs, 2 * self.c)
        self.last = Conv((2 + blocks) * self.c, outputs)
        self.blocks = nn.ModuleList(Bottleneck(self.c, shortcut) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).chunk(2, 1))
        parts.extend(block(parts[-1]) for block in self.blocks)
        return self.last(torch.cat(parts, 1))


class Pyramid(nn.Module):
    """Fast spatial pyramid pooling."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first, self.last = Conv(inputs, inputs // 2), Conv(inputs * 2, outputs)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.first(x)]
        parts.extend(self.pool(parts[-1]) for _ in range(3))
        return self.last(torch.cat(parts, 1))


class Yolo(nn.Module):
    """YOLOv8 without its loss: C2f blocks, a path down and up again, and a head of distributions and classes at three scales."""

    def __init__(self, classes: int = 20, width: int = 16, bins: int = 16) -> None:
        super().__init__()
        a, b, c, d, e = (width * n for n in (1, 2, 4, 8, 16))
        self.classes, self.bins, self.no = classes, bins, classes + 4 * bins
        self.stem = nn.Sequential(
            Conv(3, a, 3, 2), Conv(a, b, 3, 2), C2f(b, b, 1, True), Conv(b, c, 3, 2), C2f(c, c, 2, True)
        )
        self.middle = nn.Sequential(Conv(c, d, 3, 2), C2f(d, d, 2, True))
        self.deep = nn.Sequential(Conv(d, e, 3, 2), C2f(e, e, 1, True), Pyramid(e, e))
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.up_middle, self.up_wide = C2f(e + d, d), C2f(d + c, c)
        self.down_wide, self.down_middle = Conv(c, c, 3, 2), Conv(d, d, 3, 2)
        self.out_middle, self.out_deep = C2f(c + d, d), C2f(d + e, e)
        self.boxes, self.labels = (
            nn.ModuleList(
                nn.Sequential(Conv(n, inner, 3), Conv(inner, inner, 3), nn.Conv2d(inner, outputs, 1)) for n in (c, d, e)
            )
            for inner, outputs in ((max(16, c // 4), 4 * bins), (c, classes))
        )
        self.register_buffer("project", torch.arange(bins, dtype=torch.float))

    def forward(self, x: Tensor) -> Tensor:
        wide = self.stem(x)
        middle = self.middle(wide)
        deep = self.deep(middle)
        joined = self.up_middle(torch.cat([self.up(deep), middle], 1))
        first = self.up_wide(torch.cat([self.up(joined), wide], 1))
        second = self.out_middle(torch.cat([self.down_wide(first), joined], 1))
        third = self.out_deep(torch.cat([self.down_middle(second), deep], 1))
        levels = [
            torch.cat([b(y), k(y)], 1) for b, k, y in zip(self.boxes, self.labels, (first, second, third), strict=True)
        ]
        joint = torch.cat([level.view(level.shape[0], self.no, -1) for level in levels], 2)
        box, label = joint.split((4 * self.bins, self.classes), 1)
        batch, _, places = box.shape
        sides = box.view(batch, 4, self.bins, places).softmax(2)
        return torch.cat([torch.einsum("bsnp,n->bsp", sides, self.project), label.sigmoid()], 1)


class Ssd(nn.Module):
    """SSD with a head of its own over a VGG: boxes and classes at several scales (Liu et al., 2016)."""

    def __init__(self, classes: int = 21, width: int = 16, anchors: tuple[int, ...] = (4, 6, 6)) -> None:
        super().__init__()
        self.classes = classes

        def stage(inputs: int, outputs: int, count: int) -> list[nn.Module]:
            layers: list[nn.Module] = []
            for i in range(count):
                layers += [nn.Conv2d(outputs if i else inputs, outputs, 3, padding=1), nn.ReLU(inplace=True)]
            return layers

        pool = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.first = nn.Sequential(
            *stage(3, width, 2), pool, *stage(width, 2 * width, 2), pool, *stage(2 * width, 4 * width, 3)
        )
        self.second = nn.Sequential(
            pool, *stage(4 * width, 8 * width, 3), nn.Conv2d(8 * width, 16 * width, 3, padding=6, dilation=6), nn.ReLU()
        )
        self.third = nn.Sequential(
            nn.Conv2d(16 * width, 4 * width, 1), nn.ReLU(), nn.Conv2d(4 * width, 8 * width, 3, 2, 1), nn.ReLU()
        )
        self.scale = nn.Parameter(torch.full((4 * width,), 20.0))
        widths = (4 * width, 16 * width, 8 * width)
        self.loc = nn.ModuleList(nn.Conv2d(n, a * 4, 3, padding=1) for n, a in zip(widths, anchors, strict=True))
        self.conf = nn.ModuleList(nn.Conv2d(n, a * classes, 3, padding=1) for n, a in zip(widths, anchors, strict=True))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = self.first(x)
        second = self.second(first)
        sources = [F.normalize(first, dim=1) * self.scale.view(1, -1, 1, 1), second, self.third(second)]
        boxes, classes = [], []
        for source, loc, conf in zip(sources, self.loc, self.conf, strict=True):
            boxes.append(loc(source).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 4))
            classes.append(conf(source).permute(0, 2, 3, 1).reshape(x.shape[0], -1, self.classes))
        return torch.cat(boxes, 1), torch.cat(classes, 1)
