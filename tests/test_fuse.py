"""Fusing: which parts of a network are computed in one, and that nothing else changes."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dstbench.suite.kernels.fuse import Fused
from dstbench.suite.model import SparseModel


class Block(nn.Module):
    """A residual block with a shortcut, and what must not be fused: a batch norm whose result two operations read."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.short = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)
        self.one, self.two, self.read_twice = (nn.BatchNorm2d(8) for _ in range(3))
        self.nothing, self.act = nn.Identity(), nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.nothing(self.one(self.conv(x)))
        y += self.two(self.short(x))
        z = self.read_twice(self.act(y))
        return self.head((F.relu(z) + z).mean((2, 3)))


class Branching(nn.Module):
    """Control flow that depends on values, around a part without it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.sum() > 0 else self.inner(-x)


class Around(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), Branching())


def agree(net: nn.Module, x: Tensor) -> Fused:
    """Values, gradients and buffers are those of the network called as it is, in both modes."""
    plain, fused = copy.deepcopy(net), Fused(net)
    for mode in (True, False):
        net.train(mode), plain.train(mode)
        net.zero_grad(), plain.zero_grad()
        y, wanted = fused(x), plain(x)
        torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-5)
        y.square().mean().backward(), wanted.square().mean().backward()
        for (name, p), q in zip(net.named_parameters(), plain.parameters(), strict=True):
            assert (p.grad - q.grad).norm() <= 1e-4 * q.grad.norm() + 1e-6, name
        for (name, b), c in zip(net.named_buffers(), plain.named_buffers(), strict=True):
            torch.testing.assert_close(b, c[1], rtol=1e-5, atol=1e-6, msg=name)
    return fused


def test_a_residual_block_is_fused_where_one_operation_alone_reads_the_result():
    torch.manual_seed(0)
    fused = agree(Block(), torch.randn(4, 3, 6, 6))
    assert fused.parts == ["one + addition + ReLU", "two", "read_twice"]


def test_a_module_that_cannot_be_traced_stays_one_call():
    torch.manual_seed(0)
    assert agree(Around(), torch.randn(4, 3, 6, 6)).parts == ["1 + ReLU"]
    fused = Fused(Branching())
    assert torch.equal(fused(torch.ones(2, 3, 4, 4)), fused.net(torch.ones(2, 3, 4, 4))) and fused.parts == []


def test_training_or_not_is_no_constant_of_the_graph():
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Dropout(0.5))
    fused, x = Fused(net), torch.randn(2, 3, 4, 4)
    assert not torch.equal(fused(x), fused(x))
    net.eval()
    assert torch.equal(fused(x), fused(x)) and (fused(x) != 0).all()


@pytest.mark.parametrize(
    ("name", "count", "part"),
    [("resnet18", 20, "layer1.0.bn2 + addition + ReLU"), ("vgg11_bn", 8, "features.1 + ReLU"),
     ("wide_resnet50_2", 53, "layer1.0.bn3 + addition + ReLU")],
)  # fmt: skip
def test_networks_of_timm_are_fused(name, count, part):
    fused = Fused(timm.create_model(name, num_classes=10).eval())
    with torch.no_grad():
        fused(torch.zeros(1, 3, 32, 32))
    assert len(fused.parts) == count and part in fused.parts


class Attending(nn.Module):
    """What is fused: attention of one tensor, GELU alone and with a Linear. What is not: GELU by tanh, two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.other = nn.Linear(16, 48), nn.Linear(16, 16)
        self.before, self.between, self.twice = nn.GELU(), nn.GELU(), nn.GELU()
        self.rough, self.none = nn.GELU(approximate="tanh"), nn.Dropout(0.0)
        self.head = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.rough(x)).reshape(-1, 5, 3, 1, 16).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        x = F.scaled_dot_product_attention(q, self.other(k), v) + self.before(x) * 2
        y = self.twice(self.head(self.none(self.between(x))))
        return self.other(y) + y


def test_attention_and_gelu_are_fused_where_they_are_what_the_kernel_computes():
    torch.manual_seed(0)
    fused = agree(Attending(), torch.randn(4, 5, 16))
    assert fused.parts == ["scaled_dot_product_attention", "before", "between + head", "twice"]


@pytest.mark.parametrize("density", [0.1, 0.9])
def test_a_vision_transformer_computes_gelu_as_a_sparse_layer_reads_it(density):
    """Or before a dense one; in either case values and gradients are those of `masked`."""
    results = []
    for kernel in ("masked", "sparse"):
        torch.manual_seed(0)
        net = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_classes=10)
        model = SparseModel(net, torch.zeros(1, 3, 32, 32), kernel=kernel)
        for layer in model.layers:
            layer.forward_mask = layer.grad_mask = torch.rand(layer.shape) < density
        y = model(torch.randn(4, 3, 32, 32))
        y.square().mean().backward()
        norms = [p.grad for name, p in net.named_parameters() if "norm" in name]
        results.append([y.detach(), *norms, *(layer.grad for layer in model.layers)])
    assert "blocks.1.mlp.act + blocks.1.mlp.fc2" in model.fused and len(model.fused) == 4
    for ours, wanted in zip(results[1], results[0], strict=True):
        assert (ours - wanted).norm() <= 1e-5 * wanted.norm()


def test_the_kernel_sparse_calls_the_fused_network_and_keeps_names(images):
    net = images.build(0)
    names = list(net.state_dict())
    model = SparseModel(net, images.example(), kernel="sparse")
    model(images.example())
    assert model.fused == ["norm + ReLU"] and list(net.state_dict()) == names
    masked = SparseModel(images.build(0), images.example())
    masked(images.example())
    assert masked.fused == []
