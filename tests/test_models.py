"""Networks that are built here: shapes, parameter counts, what a small-image stem is."""

import itertools

import pytest
import torch
from torch import nn

from dstbench.tasks.models import mlp, resnet


def parameters(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("widths", [(64, 100, 100, 10), (4, 3), (784, 300, 100, 10)])
def test_mlp(widths):
    net = mlp(widths[0], widths[1:-1], widths[-1])
    pairs = list(itertools.pairwise(widths))
    assert parameters(net) == sum(a * b + b for a, b in pairs)
    assert [type(m) for m in net] == [nn.Flatten] + [nn.Linear, nn.ReLU] * (len(pairs) - 1) + [nn.Linear]
    assert net(torch.zeros(3, 1, widths[0])).shape == (3, widths[-1])
    assert [name for name, _ in net.named_children() if name.startswith("fc")] == [
        f"fc{i + 1}" for i in range(len(pairs))
    ]


def test_mlp_computes_what_it_says():
    net, x = mlp(5, (4,), 3), torch.randn(7, 5)
    hidden = (x @ net.fc1.weight.T + net.fc1.bias).clamp(min=0)
    torch.testing.assert_close(net(x), hidden @ net.fc2.weight.T + net.fc2.bias)


def by_hand(channels, layers, in_chans, classes):
    """Parameters of a ResNet of basic blocks with a 3x3 stem: weights alone, and with norms and the head's bias."""
    weights, norms, width = 9 * in_chans * channels[0], 2 * channels[0], channels[0]
    for out, blocks in zip(channels, layers, strict=True):
        for _ in range(blocks):
            weights += 9 * width * out + 9 * out * out
            norms += 4 * out
            if width != out:
                weights, norms, width = weights + width * out, norms + 2 * out, out
    return weights + width * classes, weights + width * classes + norms + classes


@pytest.mark.parametrize(
    "channels, layers, in_chans, published",
    [
        ((8, 16, 32, 64), (1, 1, 1, 1), 1, None),
        ((64, 128, 256, 512), (2, 2, 2, 2), 3, 11_173_962),  # the CIFAR-10 ResNet-18 of kuangliu/pytorch-cifar
    ],
)
def test_resnet_parameters(channels, layers, in_chans, published):
    net = resnet(channels, layers, in_chans)
    weights, everything = by_hand(channels, layers, in_chans, 10)
    assert sum(m.weight.numel() for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)) == weights
    assert parameters(net) == everything and published in (None, everything)


def test_resnet_has_a_small_image_stem():
    net = resnet((8, 16, 32, 64), (1, 1, 1, 1), 1)
    sizes = {}
    for name in ("act1", "maxpool", "layer1", "layer2", "layer3", "layer4"):
        getattr(net, name).register_forward_hook(lambda m, i, o, name=name: sizes.update({name: tuple(o.shape[1:])}))
    assert net(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert sizes == {
        "act1": (8, 8, 8), "maxpool": (8, 8, 8), "layer1": (8, 8, 8),
        "layer2": (16, 4, 4), "layer3": (32, 2, 2), "layer4": (64, 1, 1),
    }  # fmt: skip


def test_every_weight_of_a_fresh_resnet_has_a_gradient():
    torch.manual_seed(0)
    net = resnet((8, 16, 32, 64), (1, 1, 1, 1), 1)
    net(torch.randn(4, 1, 8, 8)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for n, p in net.named_parameters() if p.dim() > 1)
