"""Wide ResNets for small images: WRN-16-4, WRN-22-2 and WRN-28-10."""

from __future__ import annotations

import torch
from torch import Tensor, nn

Channels = tuple[int, int, int, int]


def wrn16_4(
    in_chans: int = 3, num_classes: int = 10, channels: Channels = (16, 64, 128, 256), dropout: float = 0.0
) -> nn.Module:
    """WRN-16-4: (N, in_chans, H, W) -> (N, num_classes), its width scaled by `channels` of the stem and three stages.

    `dropout` is that between the convolutions of a block.

    Reference: Zagoruyko & Komodakis 2016, arXiv 1605.07146, table 1.
    """
    return _wide(2, in_chans, num_classes, channels, dropout)


def wrn22_2(
    in_chans: int = 3, num_classes: int = 10, channels: Channels = (16, 32, 64, 128), dropout: float = 0.0
) -> nn.Module:
    """WRN-22-2, as `wrn16_4`: the network of RigL on CIFAR-10.

    Reference: Zagoruyko & Komodakis 2016, arXiv 1605.07146, table 1; Evci et al. 2020, arXiv 1911.11134, section 4.3.
    """
    return _wide(3, in_chans, num_classes, channels, dropout)


def wrn28_10(
    in_chans: int = 3, num_classes: int = 10, channels: Channels = (16, 160, 320, 640), dropout: float = 0.0
) -> nn.Module:
    """WRN-28-10, as `wrn16_4`.

    Reference: Zagoruyko & Komodakis 2016, arXiv 1605.07146, table 1.
    """
    return _wide(4, in_chans, num_classes, channels, dropout)


class Block(nn.Module):
    """Norm and ReLU before each of two 3x3 convolutions; where the width changes, a 1x1 convolution as shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.drop = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H / stride, W / stride), rounded up."""
        active = torch.relu(self.bn1(x))
        branch = self.conv2(self.drop(torch.relu(self.bn2(self.conv1(active)))))
        return branch + (x if self.shortcut is None else self.shortcut(active))


def _wide(blocks: int, in_chans: int, num_classes: int, channels: Channels, dropout: float) -> nn.Module:
    net, inputs = nn.Sequential(), channels[0]
    net.add_module("conv1", nn.Conv2d(in_chans, inputs, 3, padding=1, bias=False))
    for stage, outputs in enumerate(channels[1:], 1):
        layer = nn.Sequential()
        for place in range(blocks):
            layer.append(Block(inputs, outputs, 2 if stage > 1 and place == 0 else 1, dropout))
            inputs = outputs
        net.add_module(f"block{stage}", layer)
    net.add_module("bn", nn.BatchNorm2d(inputs))
    net.add_module("relu", nn.ReLU())
    net.add_module("pool", nn.AdaptiveAvgPool2d(1))
    net.add_module("flatten", nn.Flatten())
    net.add_module("fc", nn.Linear(inputs, num_classes))
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(net.fc.bias)  # type: ignore[union-attr, arg-type]
    return net
