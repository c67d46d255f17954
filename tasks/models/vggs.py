"""VGG with batch norm and one linear layer, as sparse training uses it on small images."""

from __future__ import annotations

from torch import nn

from dstbench.tasks.models.perceptrons import Size

Stages = tuple[int, int, int, int, int]
CHANNELS: Stages = (64, 128, 256, 512, 512)


def vgg16(in_chans: int = 3, num_classes: int = 10, img_size: Size = 32, channels: Stages = CHANNELS) -> nn.Module:
    """VGG-16 with batch norm: (N, in_chans, H, W) -> (N, num_classes), its width scaled by `channels` of five stages.

    Convolutions without bias, four max-poolings, a global average, one linear layer.

    Reference: Simonyan & Zisserman 2015, arXiv 1409.1556, configuration D; small images:
        github.com/alecwangcq/GraSP after Liu et al. 2019, arXiv 1810.05270.
    """
    return _vgg((2, 2, 3, 3, 3), channels, in_chans, num_classes, img_size)


def vgg19(in_chans: int = 3, num_classes: int = 10, img_size: Size = 32, channels: Stages = CHANNELS) -> nn.Module:
    """VGG-19 with batch norm, as `vgg16`.

    Reference: Simonyan & Zisserman 2015, arXiv 1409.1556, configuration E; small images:
        github.com/alecwangcq/GraSP after Liu et al. 2019, arXiv 1810.05270.
    """
    return _vgg((2, 2, 4, 4, 4), channels, in_chans, num_classes, img_size)


def _vgg(depths: Stages, channels: Stages, in_chans: int, num_classes: int, img_size: Size) -> nn.Module:
    smallest = img_size if isinstance(img_size, int) else min(img_size)
    if smallest < 16:
        raise ValueError(f"img_size is {img_size}: four poolings need at least 16 pixels a side")
    features, inputs = nn.Sequential(), in_chans
    for stage, (depth, outputs) in enumerate(zip(depths, channels, strict=True)):
        if stage:
            features.append(nn.MaxPool2d(2))
        for _ in range(depth):
            features.extend([nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()])
            inputs = outputs
    for module in features:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    net = nn.Sequential()
    net.add_module("features", features)
    net.add_module("pool", nn.AdaptiveAvgPool2d(1))
    net.add_module("flatten", nn.Flatten())
    net.add_module("fc", nn.Linear(inputs, num_classes))
    return net
