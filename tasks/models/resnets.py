"""timm's ResNets with a stem for small images."""

from __future__ import annotations

from typing import Any

from torch import nn


def resnet(channels: tuple[int, ...], layers: tuple[int, ...], in_chans: int = 3, num_classes: int = 10) -> nn.Module:
    """timm's ResNet of basic blocks with a small-image stem: (N, in_chans, H, W) -> (N, num_classes).

    A 3x3 convolution of stride 1 as wide as the first stage, no max-pooling, as is usual on CIFAR-10. The last norm of
    a block starts at one, not zero: a branch that starts at zero gives its weights no calibration gradient.

    Reference: He et al. 2016, arXiv 1512.03385; stem: github.com/kuangliu/pytorch-cifar.
    """
    from timm.models.resnet import BasicBlock

    return _with_small_stem(BasicBlock, channels, layers, in_chans, num_classes)


def resnet18_small(
    in_chans: int = 3, num_classes: int = 10, channels: tuple[int, ...] = (64, 128, 256, 512)
) -> nn.Module:
    """ResNet-18 with a small-image stem, as `resnet`; its width is scaled by `channels`.

    Reference: He et al. 2016, arXiv 1512.03385; stem: github.com/kuangliu/pytorch-cifar.
    """
    return resnet(channels, (2, 2, 2, 2), in_chans, num_classes)


def resnet50_small(
    in_chans: int = 3, num_classes: int = 10, channels: tuple[int, ...] = (64, 128, 256, 512)
) -> nn.Module:
    """ResNet-50 with a small-image stem: (N, in_chans, H, W) -> (N, num_classes).

    Stem and start are those of `resnet`; `channels`, by which the width is scaled, are those within the bottlenecks.

    Reference: He et al. 2016, arXiv 1512.03385; stem: github.com/kuangliu/pytorch-cifar.
    """
    from timm.models.resnet import Bottleneck

    return _with_small_stem(Bottleneck, channels, (3, 4, 6, 3), in_chans, num_classes)


def _with_small_stem(
    kind: Any, channels: tuple[int, ...], layers: tuple[int, ...], in_chans: int, num_classes: int
) -> nn.Module:
    from timm.models.resnet import ResNet

    # timm fixes the width of its plain stem to 64; the deep one is as wide as asked, and is replaced.
    stem: dict[str, Any] = {"stem_type": "deep", "stem_width": channels[0] // 2}
    net: Any = ResNet(kind, layers, num_classes, in_chans, channels=channels, zero_init_last=False, **stem)
    net.conv1 = nn.Conv2d(in_chans, channels[0], 3, padding=1, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    net.maxpool = nn.Identity()
    return net
