"""DepGraph: which channels go together, how many go, what is cut where, and that the network is really smaller."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from dstbench.methods.channels import fault, removable
from dstbench.methods.coupling import Side, coupled, cuts
from dstbench.methods.depgraph import DepGraph
from dstbench.suite.resize import cut
from dstbench.suite.train import Training
from dstbench.tasks import models
from dstbench.tasks.digits import MLP, RESNET, VIT
from pruning import same_after_resume, with_recipe

SHORT = {"steps": 12}


def task(which):
    return with_recipe(which, **SHORT)


def trained(which, until: int | None = None, kernel: str = "masked", **fields) -> Training:
    training = Training(task(which), DepGraph(sparsity=0.9, **fields), kernel=kernel)
    training.setup()
    training.run(until=until)
    return training


def test_groups_of_a_chain_and_of_a_residual_block() -> None:
    chain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    (group,) = (found for found in coupled(chain, torch.zeros(1, 1, 4, 4)) if found.reads)
    every = [0, 1, 2, 3]
    assert group.channels == 4 and group.reads == {("4.weight", 1)}
    assert {side: owner.tolist() for side, owner in group.sides.items()} == {
        **{(f"{layer}.{name}", 0): every for layer in "01" for name in ("weight", "bias")},
        **{(f"1.running_{name}", 0): every for name in ("mean", "var")},
        ("4.weight", 1): sorted(4 * every),  # four pixels of each channel
    }
    groups = coupled(RESNET.build(0), RESNET.example())
    weights = {name for name, p in RESNET.build(0).named_parameters() if p.dim() > 1}
    assert {side.name for group in groups for side in group.reads} == weights - {"conv1.weight"}
    assert all(group.channels in (8, 16, 32, 64) for group in groups if group.reads)


def test_the_cut_of_the_mlp_by_hand() -> None:
    """Two hidden widths of 100 keep the same share; neurons are ranked by all weights that make and read them."""
    before = trained(MLP, until=6)
    w1, w2, w3 = (layer.weight.numpy().copy() for layer in before.model.layers)
    biases = [before.model.net.fc1.bias.detach().clone(), before.model.net.fc2.bias.detach().clone()]
    before.method.begin(6)
    h = min(range(1, 101), key=lambda h: abs(64 * h + h * h + 10 * h - 0.1 * (6400 + 10000 + 1000)))
    assert [tuple(layer.shape) for layer in before.model.layers] == [(h, 64), (h, h), (10, h)]
    first = np.sort(np.argsort(-((w1**2).sum(1) + (w2**2).sum(0)))[:h])
    second = np.sort(np.argsort(-((w2**2).sum(1) + (w3**2).sum(0)))[:h])
    found = [layer.weight.numpy() for layer in before.model.layers]
    for a, b in zip(found, (w1[first], w2[np.ix_(second, first)], w3[:, second]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert torch.equal(before.model.net.fc1.bias, biases[0][first]) and torch.equal(
        before.model.net.fc2.bias, biases[1][second]
    )


@pytest.mark.parametrize("kernel", ["masked", "compact"])
@pytest.mark.parametrize("which", [MLP, RESNET])
def test_the_network_is_smaller_and_trains_on(which, kernel: str) -> None:
    training = trained(which, kernel=kernel)
    target, numel = 0.1 * training.model.maskable, sum(layer.numel for layer in training.model.layers)
    assert abs(numel - target) <= training.method.grain and training.model.density == numel / training.model.maskable
    full = sum(p.numel() for p in which.build(0).parameters())
    assert sum(p.numel() for p in training.model.net.parameters() if p.dim() > 0) < 0.3 * full
    x = which.example()
    plain = training.model.net(x)
    assert plain.shape == (len(x), 10) and plain.isfinite().all()
    assert all(layer.forward_mask is None for layer in training.model.layers)
    for name, module in training.model.net.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            sizes = {len(t) for t in (module.weight, module.bias, module.running_mean, module.running_var)}
            assert sizes == {module.num_features}, name


def test_flops_fall_with_the_shapes() -> None:
    training = Training(task(MLP), DepGraph(sparsity=0.9))
    training.setup()
    before = training.model.cost().papers
    training.run()
    layers = training.model.layers
    assert training.model.cost().papers == pytest.approx(3 * 2 * sum(math.prod(y.shape) for y in layers), rel=1e-6)
    assert training.model.cost().papers < 0.12 * before
    spent = training.book.papers / training.recipe.batch
    assert spent == pytest.approx(6 * before + 6 * training.model.cost().papers, rel=1e-6)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("which", "kernel"), [(MLP, "masked"), (RESNET, "compact")])
def test_resuming_is_bit_exact(which, kernel: str) -> None:
    for stop in (6, 9):
        same_after_resume(task(which), lambda: DepGraph(sparsity=0.9), stop, kernel)


def test_attention_keeps_its_heads_and_loses_the_rest(images) -> None:
    training = trained(VIT)
    net = training.model.net
    width = net.pos_embed.shape[-1]
    assert width < 48 and net.norm.normalized_shape == (width,) and net.cls_token.shape == (1, 1, width)
    for block in net.blocks:
        assert block.attn.qkv.weight.shape == (144, width) and block.attn.proj.weight.shape == (width, 48)
    assert abs(training.model.density - 0.1) <= 0.001


def test_what_is_out_of_reach_or_cannot_be_cut_is_skipped_before_the_training() -> None:
    assert DepGraph(sparsity=0.99).skip(task(MLP)) is None
    most = 1 - (64 + 1 + 10) / 17400
    assert f"0.999 is out of reach, at most {math.floor(1000 * most) / 1000} is possible" in DepGraph(
        sparsity=0.999
    ).skip(task(MLP))
    lone = replace(task(MLP), model=models.mlp, arguments={"inputs": 64, "hidden": (), "outputs": 10})
    assert "no channels of this network may go" in DepGraph().skip(lone)
    rigid = replace(task(MLP), model=lambda hidden: Rigid(), arguments={"hidden": 1})
    assert re.search(
        r"no channels.*'a.weight': the network does not run without .*RuntimeError", DepGraph().skip(rigid)
    )


def test_what_the_task_keeps_dense_keeps_its_outputs() -> None:
    """Inputs go with the layer before; a residual stream that a dense layer writes to stays as wide as it was."""
    given = replace(task(MLP), dense=("fc2",))
    training = Training(given, DepGraph(sparsity=0.5))
    training.setup()
    training.run()
    width = min(range(1, 101), key=lambda h: abs(64 * h + 1000 - 0.5 * 7400))
    shapes = [tuple(p.shape) for p in training.model.net.parameters() if p.dim() > 1]
    assert shapes == [(width, 64), (100, width), (10, 100)]
    training = Training(replace(task(RESNET), dense=("layer3.0.conv2",)), DepGraph(sparsity=0.5))
    training.setup()
    training.run()
    net = training.model.net
    assert net.layer3[0].conv2.out_channels == net.layer3[0].downsample[0].out_channels == 32
    assert net.layer4[0].conv1.in_channels == 32 > net.layer3[0].conv2.in_channels


def test_without_the_package_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch_pruning", None)
    with pytest.raises(RuntimeError, match=r"pip install 'dstbench\[structured\]'"):
        DepGraph().skip(MLP)


class Rigid(nn.Module):
    """Knows the width of its hidden layer by heart."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, x):
        return self.b(self.a(x.flatten(1)).relu().view(-1, 32))


class Around(nn.Module):
    """Convolutions around a layer that makes `out` channels of `n`."""

    def __init__(self, n: int, middle: nn.Module, out: int = 0) -> None:
        super().__init__()
        self.a, self.middle, self.b, self.h = nn.Conv2d(1, n, 3), middle, nn.Conv2d(out or n, n, 1), nn.Linear(n, 10)

    def forward(self, x):
        return self.h(self.b(self.middle(self.a(x).relu()).relu()).mean((2, 3)))


class Line(nn.Module):
    """Linear layers around one that makes `out` channels of `n`."""

    def __init__(self, n: int, middle: nn.Module, out: int = 0) -> None:
        super().__init__()
        self.a, self.middle, self.b, self.h = nn.Linear(8, n), middle, nn.Linear(out or n, n), nn.Linear(n, 10)

    def forward(self, x):
        return self.h(self.b(self.middle(self.a(x[:, 0]))).relu()).mean(1)


class Scale(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full(shape, 1e-5))

    def forward(self, x):
        return x * self.gamma


class Chunk(nn.Module):
    def forward(self, x):
        a, b = x.chunk(2, -1)
        return a * b.sigmoid()


class Dense(nn.Module):
    """Each layer reads all that came before it, as in a DenseNet."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(n * i) for i in (1, 2, 3))
        self.layers = nn.ModuleList(nn.Conv2d(n * i, n, 3, padding=1) for i in (1, 2, 3))

    def forward(self, x):
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = torch.cat([layer(norm(x).relu()), x], 1)
        return x


class Squeeze(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(n, n // 4), nn.Linear(n // 4, n)

    def forward(self, x):
        return x * self.up(self.down(x.mean((2, 3))).relu()).sigmoid()[..., None, None]


class Tokens(nn.Module):
    """Convolutions over the eight rows."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.h = nn.Conv1d(8, n, 3), nn.BatchNorm1d(n), nn.Conv1d(n, n, 1), nn.Linear(n, 10)

    def forward(self, x):
        return self.h(self.b(self.norm(self.a(x[:, 0]))).relu().mean(-1))


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(n, n), nn.Linear(n, n)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.two(self.one(x).relu())


class Grouped(nn.Module):
    """Attention of four query heads over two of keys and values, in a residual block; the heads are 16 wide."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.norm, self.q, self.kv, self.o = nn.LayerNorm(n), nn.Linear(n, 16), nn.Linear(n, 16), nn.Linear(16, n)

    def forward(self, x):
        y = self.norm(x)
        q = self.q(y).unflatten(-1, (4, 4)).transpose(1, 2)
        k, v = self.kv(y).unflatten(-1, (2, 2, 4)).permute(2, 0, 3, 1, 4).repeat_interleave(2, 2)
        return x + self.o(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


# Networks as functions of their width.
CUT = {
    "batch norm": lambda n: Around(n, nn.BatchNorm2d(n)),
    "group norm": lambda n: Around(n, nn.GroupNorm(4, n)),
    "instance norm": lambda n: Around(n, nn.InstanceNorm2d(n, affine=True, track_running_stats=True)),
    "PReLU": lambda n: Around(n, nn.PReLU(n)),
    "scale": lambda n: Around(n, Scale(n, 1, 1)),
    "depth-wise": lambda n: Around(n, nn.Conv2d(n, n, 3, groups=n)),
    "in groups": lambda n: Around(n, nn.Conv2d(n, n, 3, groups=4)),
    "transposed": lambda n: Around(n, nn.ConvTranspose2d(n, n, 2, 2)),
    "transposed in groups": lambda n: Around(n, nn.ConvTranspose2d(n, n, 2, 2, groups=4)),
    "squeeze and excite": lambda n: Around(n, Squeeze(n)),
    "dense block": lambda n: Around(n, Dense(n), 4 * n),
    "one dimension": Tokens,
    "layer norm": lambda n: Line(n, nn.LayerNorm(n)),
    "RMS norm": lambda n: Line(n, nn.RMSNorm(n)),
    "PReLU of one": lambda n: Line(n, nn.PReLU()),
    "layer scale": lambda n: Line(n, Scale(n)),
    "tied": lambda n: Line(n, Tied(n)),
    "grouped queries": lambda n: Line(n, Grouped(n)),
    "chunk": lambda n: Line(n, Chunk(), n // 2),
    "GLU": lambda n: Line(n, nn.GLU(), n // 2),
}
HELD = {  # what reads the first layer's channels is more than weights, or of a shape that is fixed
    "softmax": Line(16, nn.Softmax(-1)),
    "pixel shuffle": Around(32, nn.PixelShuffle(2), 8),
    "layer norm without weights": Line(16, nn.LayerNorm(16, elementwise_affine=False)),
    "weight norm": Line(16, torch.nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))),
}
IMAGES = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def groups_of(net: nn.Module) -> tuple[list, list[str]]:
    return removable(net, IMAGES, {name for name, p in net.named_parameters() if p.dim() > 1})


@pytest.mark.parametrize("name", CUT)
def test_a_network_that_is_cut_to_half_is_the_one_of_half_the_width(name: str) -> None:
    net = CUT[name](16)
    groups, held = groups_of(net)
    assert [text.partition(":")[0] for text in held] == ["'middle.kv.weight'"] * (name == "grouped queries")
    for side, kept in cuts(groups, [torch.arange(0, g.channels, 2) for g in groups]).items():
        cut(net, *side, kept.nonzero().flatten())
    narrow = CUT[name](8)
    assert {k: v.shape for k, v in net.state_dict().items()} == {k: v.shape for k, v in narrow.state_dict().items()}
    net.load_state_dict(narrow.state_dict())
    assert torch.equal(net.eval()(IMAGES), narrow.eval()(IMAGES)) and repr(net) == repr(narrow)


@pytest.mark.parametrize("name", HELD)
def test_what_does_not_fit_or_is_not_exact_stays_whole(name: str) -> None:
    groups, held = groups_of(HELD[name])
    assert all(side.name[0] != "a" for group in groups for side in group.sides) and groups
    assert name == "weight norm" or (len(held) == 1 and held[0].startswith("'a.weight': ")), held


def test_a_cut_at_the_wrong_place_is_found() -> None:
    """The trial is a check of its own: it fails for owners that are shifted, and where a reader is forgotten."""
    net = CUT["dense block"](16)
    groups, _ = groups_of(net)
    assert not fault(net, IMAGES, groups) and not fault(CUT["dense block"](16).double(), IMAGES.double(), groups)
    group = next(g for g in groups if ("b.weight", 1) in g.reads)
    read = Side("b.weight", 1)
    for wrong in (group.sides[read].roll(1), group.sides[read].flip(0)):
        assert fault(net, IMAGES, [replace(group, sides={**group.sides, read: wrong})])
    assert fault(net, IMAGES, [replace(group, sides={s: o for s, o in group.sides.items() if s != read})])


@pytest.mark.parametrize("name", ["tied", "dense block", "grouped queries", "depth-wise", "chunk"])
def test_networks_train_on_after_the_cut_and_after_a_resume(name: str) -> None:
    given = with_recipe(replace(MLP, model=CUT[name], arguments={"n": 16}, widths={}), steps=4)
    assert DepGraph(sparsity=0.6).skip(given) is None
    same_after_resume(given, lambda: DepGraph(sparsity=0.6), 3, "masked")


def test_an_example_of_one_sample_does_for_batch_norm() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    groups, held = removable(net, torch.zeros(1, 6), {"0.weight", "3.weight"})
    assert [group.channels for group in groups] == [8] and not held
