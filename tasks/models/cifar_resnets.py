"""The ResNets of 6n + 2 layers that He et al. built for CIFAR-10."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SHORTCUTS = ("A", "B")


def resnet20(in_chans: int = 3, num_classes: int = 10, width: int = 16, shortcut: str = "A") -> nn.Module:
    """ResNet-20: (N, in_chans, H, W) -> (N, num_classes).

    `width` is that of the first stage, by which the network is scaled; the next two are two and four times as wide.
    Where a stage begins, shortcuts of option A, as published, take every other pixel and pad the new channels with
    zeros; those of option B are 1x1 convolutions with norm.

    Reference: He et al. 2016, arXiv 1512.03385, section 4.2.
    """
    return _resnet(3, in_chans, num_classes, width, shortcut)


def resnet32(in_chans: int = 3, num_classes: int = 10, width: int = 16, shortcut: str = "A") -> nn.Module:
    """ResNet-32, as `resnet20`; `width=32, shortcut="B"` is the one of GraSP, MEST and their followers.

    Reference: He et al. 2016, arXiv 1512.03385, section 4.2; Wang et al. 2020, GraSP, arXiv 2002.07376, and
        github.com/alecwangcq/GraSP.
    """
    return _resnet(5, in_chans, num_classes, width, shortcut)


def resnet56(in_chans: int = 3, num_classes: int = 10, width: int = 16, shortcut: str = "A") -> nn.Module:
    """ResNet-56, as `resnet20`.

    Reference: He et al. 2016, arXiv 1512.03385, section 4.2.
    """
    return _resnet(9, in_chans, num_classes, width, shortcut)


class Pad(nn.Module):
    """Shortcut of option A: every other pixel where the stage halves the image, zeros in the new channels."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels, self.stride = channels, stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, channels, H / stride, W / stride), rounded up."""
        x = x[:, :, :: self.stride, :: self.stride]
        return nn.functional.pad(x, (0, 0, 0, 0, 0, self.channels - x.shape[1]))


class Block(nn.Module):
    """Two 3x3 convolutions with norm, and a shortcut around them."""

    def __init__(self, inputs: int, outputs: int, stride: int, option: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            new = nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            self.shortcut = Pad(outputs, stride) if option == "A" else nn.Sequential(*new)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H / stride, W / stride), rounded up."""
        branch = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(branch + self.shortcut(x))


def _resnet(blocks: int, in_chans: int, num_classes: int, width: int, shortcut: str) -> nn.Module:
    if shortcut not in SHORTCUTS:
        raise ValueError(f"shortcut is {shortcut!r}; choose one of {', '.join(SHORTCUTS)}")
    net, inputs = nn.Sequential(), width
    net.add_module("conv1", nn.Conv2d(in_chans, width, 3, padding=1, bias=False))
    net.add_module("bn1", nn.BatchNorm2d(width))
    net.add_module("relu", nn.ReLU())
    for stage, outputs in enumerate((width, 2 * width, 4 * width), 1):
        layer = nn.Sequential()
        for place in range(blocks):
            layer.append(Block(inputs, outputs, 2 if stage > 1 and place == 0 else 1, shortcut))
            inputs = outputs
        net.add_module(f"layer{stage}", layer)
    net.add_module("pool", nn.AdaptiveAvgPool2d(1))
    net.add_module("flatten", nn.Flatten())
    net.add_module("fc", nn.Linear(inputs, num_classes))
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    nn.init.zeros_(net.fc.bias)  # type: ignore[union-attr, arg-type]
    return net
