"""ptflops against counts by hand, and its blind spot for attention."""

import copy

import pytest
import timm
import torch
from torch import nn

from dstbench.suite.meters import crosscheck
from dstbench.suite.meters.crosscheck import ptflops_macs
from dstbench.suite.meters.flops import measure


def ours(net, example):
    cost = measure(net, example)
    return (sum(cost.forward.values()) + cost.rest_forward) / 2


def test_linear_and_convolution_by_hand():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
                        nn.Linear(8 * 36, 5, bias=False))  # fmt: skip
    assert ptflops_macs(net, torch.zeros(4, 3, 6, 6)) == 3 * 8 * 9 * 36 + 8 * 36 * 5


def tiny_vit(**arguments):
    return timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=96, depth=3, num_heads=3,
                             num_classes=10, **arguments)  # fmt: skip


def test_attention_is_counted_with_its_projections():
    net, tokens, width = tiny_vit(), 17, 96
    block = tokens * (3 * width + width + 8 * width) * width + 2 * tokens * tokens * width
    biases = 3 * (tokens * 8 * width + width) + 10
    products = 3 * block + 16 * (8 * 8 * 3) * width + width * 10
    found = ptflops_macs(net, torch.zeros(2, 3, 32, 32))
    assert products <= found <= products + 2 * biases


def test_without_the_hook_the_projections_are_lost(monkeypatch):
    net, example = tiny_vit(), torch.zeros(1, 3, 32, 32)
    whole = ptflops_macs(net, example)
    monkeypatch.setattr(crosscheck, "_attention", lambda module, inputs, output: None)
    assert ptflops_macs(net, example) < 0.8 * whole


@pytest.mark.parametrize(
    "build, size",
    [
        (lambda: timm.create_model("resnet18"), (3, 64, 64)),
        (lambda: timm.create_model("mobilenetv2_100"), (3, 64, 64)),
        (tiny_vit, (3, 32, 32)),
        (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 2), (12, 64)),
    ],
)
def test_agrees_with_our_own_count(build, size):
    net, example = build(), torch.zeros(2, *size)
    assert ptflops_macs(net, example) == pytest.approx(ours(net, example), rel=0.03)


def test_the_network_stays_as_it_is():
    net = tiny_vit().train()
    before, functions = copy.deepcopy(net.state_dict()), (nn.functional.linear, torch.matmul)
    attributes = set(vars(net))
    ptflops_macs(net, torch.zeros(1, 3, 32, 32))
    assert net.training and set(vars(net)) == attributes and (nn.functional.linear, torch.matmul) == functions
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert not any(m._forward_hooks for m in net.modules())


def test_a_failing_pass_is_none_and_silent(capsys):
    assert ptflops_macs(nn.Linear(4, 4), torch.zeros(1, 5)) is None
    assert capsys.readouterr() == ("", "")
