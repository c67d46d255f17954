"""ResNet-9, the network of fast CIFAR-10 recipes."""

from __future__ import annotations

from torch import Tensor, nn

from dstbench.tasks.models.perceptrons import Size


def resnet9(
    in_chans: int = 3,
    num_classes: int = 10,
    img_size: Size = 32,
    channels: tuple[int, int, int, int] = (64, 128, 256, 512),
    scale: float = 0.125,
) -> nn.Module:
    """ResNet-9: (N, in_chans, H, W) -> (N, num_classes).

    One 3x3 convolution, then three that halve the image by max-pooling, the first and the last with a residual block
    behind them; a global maximum, and a linear layer whose output is multiplied by `scale`. `channels` of the four
    scale the width: few in front, where images are large, make it cheap. Pooling comes right behind the convolution,
    as in airbench; Page pools behind the ReLU.

    Reference: Page 2018, How to train your ResNet, myrtle.ai, DAWNBench; github.com/davidcpage/cifar10-fast; Jordan
        2024, arXiv 2404.00498, github.com/KellerJordan/cifar10-airbench.
    """
    smallest = img_size if isinstance(img_size, int) else min(img_size)
    if smallest < 8:
        raise ValueError(f"img_size is {img_size}: three poolings need at least 8 pixels a side")
    first, second, third, fourth = channels
    net = nn.Sequential()
    net.add_module("prep", _convolution(in_chans, first))
    net.add_module("layer1", nn.Sequential(_convolution(first, second, pool=True), Residual(second)))
    net.add_module("layer2", _convolution(second, third, pool=True))
    net.add_module("layer3", nn.Sequential(_convolution(third, fourth, pool=True), Residual(fourth)))
    net.add_module("pool", nn.AdaptiveMaxPool2d(1))
    net.add_module("flatten", nn.Flatten())
    net.add_module("fc", nn.Linear(fourth, num_classes, bias=False))
    net.add_module("scale", Scale(scale))
    return net


class Residual(nn.Module):
    """Two convolutions of the same width, and the identity around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = _convolution(channels, channels), _convolution(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        return x + self.conv2(self.conv1(x))


class Scale(nn.Module):
    """The input times a constant: a smaller start of the logits, and a smaller step of the last layer."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same."""
        return x * self.factor


def _convolution(inputs: int, outputs: int, pool: bool = False) -> nn.Module:
    """A 3x3 convolution with norm and ReLU; pooled before them, where it leaves them a quarter of the pixels."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    pooled = [conv, nn.MaxPool2d(2)] if pool else [conv]
    return nn.Sequential(*pooled, nn.BatchNorm2d(outputs), nn.ReLU())
