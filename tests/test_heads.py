"""Heads and hidden neurons: which Layers hold them, in networks of torch and timm, stored densely or not."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from dstbench.suite import registry
from dstbench.suite.heads import Units, attention, heads, hidden
from dstbench.suite.model import SparseModel


class Apart(nn.Module):
    """Queries, keys and values in modules of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 3
        self.q, self.k, self.v, self.proj = (nn.Linear(12, 12) for _ in range(4))


def encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 40, batch_first=True), 2)


def vit() -> nn.Module:
    return registry.task("digits/vit").build(0)


def test_heads_of_a_vit_are_in_rows_of_qkv_and_columns_of_the_projection() -> None:
    assert {name: units.number for name, units in heads(vit()).items()} == {
        f"blocks.{b}.attn.{name}": 4 for b in (0, 1) for name in ("qkv", "proj")
    }
    assert attention(vit())[0] == Units(("blocks.0.attn.qkv",), "blocks.0.attn.proj", 4, 3)
    assert hidden(vit())[1] == Units(("blocks.1.mlp.fc1",), "blocks.1.mlp.fc2", 192)


def test_heads_of_torchs_encoder_and_of_separate_projections() -> None:
    assert {name: units.number for name, units in heads(encoder()).items()} == {
        f"layers.{b}.self_attn.{name}": 2 for b in (0, 1) for name in ("in_proj_weight", "out_proj")
    }
    assert [units.number for units in hidden(encoder())] == [40, 40]
    assert attention(Apart()) == [Units(("q", "k", "v"), "proj", 3)]
    other = nn.Sequential(nn.MultiheadAttention(8, 2, kdim=8, vdim=8), nn.MultiheadAttention(8, 2, kdim=6, vdim=10))
    assert [len(units.inputs) for units in attention(other)] == [1, 3]


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050"])
def test_networks_without_attention_have_none(name: str) -> None:
    net = timm.create_model(name)
    assert not attention(net) and not heads(net) and not hidden(net)


def test_attention_with_other_rows_or_with_mixed_heads_is_left_out() -> None:
    """Heads outermost in the rows of queries, keys and values; talking heads, but for those that only read a token."""
    assert not attention(timm.create_model("maxxvitv2_nano_rw_256"))
    assert {units.output.split(".")[0] for units in attention(timm.create_model("cait_xxs24_224"))} == {
        "blocks_token_only"
    }


def test_zeroed_rows_of_a_head_change_that_head_alone() -> None:
    net, x = vit().eval(), torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    seen: list[torch.Tensor] = []
    net.get_submodule("blocks.0.attn.proj").register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    net(x)
    part = attention(net)[0]
    weight = net.get_submodule("blocks.0.attn.qkv").weight
    with torch.no_grad():
        weight.view(part.axes("blocks.0.attn.qkv", weight.shape))[:, 2] = 0
    net(x)
    before, after = (handed.view(2, -1, 4, 12) for handed in seen)
    assert [bool((before[:, :, h] != after[:, :, h]).any()) for h in range(4)] == [False, False, True, False]


def test_heads_that_do_not_divide_are_left_out() -> None:
    odd = Apart()
    odd.num_heads = 5
    assert not attention(odd)
    gated = timm.layers.GluMlp(8, 16)
    assert not hidden(gated), "its first layer makes two rows a neuron"


@pytest.mark.parametrize("kernel", ["masked", "compact"])
def test_storage_does_not_matter(kernel: str) -> None:
    net = vit()
    before = attention(net), hidden(net)
    model = SparseModel(net, torch.zeros(2, 1, 8, 8), kernel=kernel)
    for layer in model.layers:
        layer.activate(torch.arange(layer.numel).view(layer.shape) % 3 == 0)
    assert (attention(model.net), hidden(model.net)) == before
    assert set(heads(net)) <= {layer.name for layer in model.layers}


def test_the_rows_of_a_head_are_those_that_its_output_depends_on() -> None:
    """Zero rows of a head and the columns of the projection beside it: nothing changes but by its biases."""
    net = vit().eval()
    units, x = attention(net)[0], torch.randn(2, 1, 8, 8)
    qkv, proj = net.get_submodule(units.inputs[0]), net.get_submodule(units.output)
    kept: list[torch.Tensor] = []
    proj.register_forward_pre_hook(lambda module, args: kept.append(args[0].detach().clone()))
    net(x)
    with torch.no_grad():
        size = qkv.weight.shape[0] // units.repeats // units.number
        for r in range(units.repeats):
            start = (r * units.number + 2) * size
            qkv.weight[start : start + size] = qkv.bias[start : start + size] = 0
    net(x)
    moved = (kept[0] - kept[1]).abs().amax((0, 1)).view(units.number, -1).amax(1)
    assert moved[2] > 0 and not moved[[0, 1, 3]].any()
    assert not kept[1].view(2, -1, units.number, size)[:, :, 2].any()
