"""Networks that timm's model names do not give: the plain MLP and ResNets for small images."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import nn


def mlp(inputs: int, hidden: tuple[int, ...], outputs: int) -> nn.Module:
    """A perceptron with ReLU and without norm: (N, ...) flattened to (N, inputs) -> (N, outputs)."""
    net = nn.Sequential(nn.Flatten())
    for depth, (fan_in, fan_out) in enumerate(pairwise((inputs, *hidden, outputs)), 1):
        if depth > 1:
            net.add_module(f"relu{depth - 1}", nn.ReLU())
        net.add_module(f"fc{depth}", nn.Linear(fan_in, fan_out))
    return net


def resnet(channels: tuple[int, ...], layers: tuple[int, ...], in_chans: int = 3, num_classes: int = 10) -> nn.Module:
    """timm's ResNet of basic blocks with a small-image stem: (N, in_chans, H, W) -> (N, num_classes).

    A 3x3 convolution of stride 1 as wide as the first stage, no max-pooling, as is usual on CIFAR-10. The last norm of
    a block starts at one, not zero: a branch that starts at zero gives its weights no calibration gradient.

    Reference: He et al. 2016, arXiv 1512.03385; stem: github.com/kuangliu/pytorch-cifar.
    """
    from timm.models.resnet import BasicBlock, ResNet

    # timm fixes the width of its plain stem to 64; the deep one is as wide as asked, and is replaced.
    stem: dict[str, Any] = {"stem_type": "deep", "stem_width": channels[0] // 2}
    kind: Any = BasicBlock
    net: Any = ResNet(kind, layers, num_classes, in_chans, channels=channels, zero_init_last=False, **stem)
    net.conv1 = nn.Conv2d(in_chans, channels[0], 3, padding=1, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    net.maxpool = nn.Identity()
    return net
