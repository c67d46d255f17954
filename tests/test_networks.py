"""Networks that real people bring: frozen, adapted, skipped, routed, recomputed, cached and odd ones."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import odd
from dstbench.reports import ledger
from dstbench.reports.load import frame
from dstbench.suite import record, registry
from dstbench.suite.kernels.fuse import Fused
from dstbench.suite.model import SparseModel
from dstbench.suite.plan import Run
from dstbench.suite.run import execute
from dstbench.suite.train import Training
from dstbench.tasks.digits import VIT
from odd import block, made, trained

# ---- frozen weights and adapters -------------------------------------------------------------------------------------


def test_frozen_weights_are_no_layers_and_cost_no_weight_gradient() -> None:
    model = made(odd.Frozen)
    assert [y.name for y in model.layers] == ["up", "head"]
    assert all("frozen" in model.left_dense[k] for k in ("below.weight", "base.weight"))
    forward = {"below": 2 * 6 * 8 * 3 * 8, "base": 2 * 8 * 12, "up": 2 * 8 * 12, "head": 2 * 12 * 4}
    assert model.cost().forward == sum(forward.values())
    assert model.cost().weights == forward["up"] + forward["head"]
    assert model.cost().inputs == forward["head"], "below the first weight that learns there is nothing to tell"
    assert {p for g in model.groups() for p in g["params"]} == {p for p in model.net.parameters() if p.requires_grad}
    kept = made(odd.Frozen, dense=("base", "below"))
    assert kept.left_dense["base.weight"] == "kept dense by the pattern 'base'"


def test_adapters_learn_beside_frozen_weights() -> None:
    before = {n: p.clone() for n, p in odd.task(odd.LoRA).build(0).named_parameters()}
    training = trained(odd.LoRA, "rigl")
    assert [y.name for y in training.model.layers] == ["head"]
    now = dict(training.model.net.named_parameters())
    assert all(torch.equal(before[n], now[n]) for n in ("first.weight", "second.weight"))
    assert not torch.equal(before["first.down"], now["first.down"])
    learning = 2 * (2 * 48 + 2 * 16 + 2 * 16 + 2 * 16 + 16 * 4)
    assert sum(training.model.dense_passes.weights.values()) == learning


def test_adapters_that_are_modules_are_layers_where_they_are_asked_for() -> None:
    model = made(odd.Bottleneck)
    adapters = ["block.body.lora_A.default", "block.body.lora_B.default", "block.my_adapter.0"]
    assert [y.name for y in model.layers] == ["up", "head.adapter"]
    assert all(f"the pattern '!{name}' asks for it" in model.left_dense[f"{name}.weight"] for name in adapters)
    training = trained(odd.Bottleneck, "rigl", dense=("!*lora*", "head*"))
    assert [y.name for y in training.model.layers] == [*adapters[:2], "up"]
    assert "frozen" in training.model.left_dense["block.body.base_layer.weight"]
    assert training.model.left_dense["head.adapter.weight"] == "kept dense by the pattern 'head*'"
    with pytest.raises(ValueError, match="dense pattern '!lore' matches no layer"):
        made(odd.Bottleneck, ("!lore",))


@pytest.mark.parametrize("net", [odd.Teacher, odd.Taught])
def test_a_branch_under_no_grad_stays_dense(net: type[nn.Module]) -> None:
    model = made(net)
    assert [y.name for y in model.layers] == ["pupil", "head"]
    assert model.left_dense["teacher.weight"] == "the pass computes no gradient of it"
    assert model.cost().weights == 2 * (48 * 16 + 16 * 4) and model.cost().forward == 2 * (2 * 48 * 16 + 16 * 4)


# ---- passes that differ ----------------------------------------------------------------------------------------------


class Tally:
    """What the modules of a network compute, by hooks: forward FLOPs of Linear layers, samples and tokens alike."""

    def __init__(self, net: nn.Module) -> None:
        self.total = 0
        for module in net.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(self.add)

    def add(self, module: nn.Linear, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        if module.training:
            self.total += 2 * out.numel() * module.in_features


@pytest.mark.parametrize("kernel", ["masked", "compact"])
@pytest.mark.parametrize("net", [odd.Experts, odd.Heads, odd.Frozen])
def test_a_run_books_what_its_passes_computed(net: type[nn.Module], kernel: str) -> None:
    training = Training(odd.task(net, 8), registry.method("dense"), kernel=kernel)
    tally = Tally(training.model.net)
    training.setup()
    training.run()
    convolved = 8 * 8 * 2 * 6 * 8 * 3 * 8 if net is odd.Frozen else 0
    assert training.book.forward == tally.total + convolved
    assert block(training)["ratio"] == pytest.approx(1)


def test_blocks_left_out_cost_nothing_with_their_attention() -> None:
    training = Training(odd.task(odd.Dropped, 10), registry.method("dense"))
    ran = []
    for layer in training.model.net.blocks:
        layer.register_forward_hook(lambda module, inputs, out: ran.append(1) if module.training else None)
    training.setup()
    training.run()
    one = 6 * 2 * (4 * 8 * 8 + 2 * 8 * 16) + 2 * 2 * 6 * 6 * 8
    assert 0 < len(ran) < 30 and training.book.forward == 8 * (len(ran) * one + 10 * 2 * 48 * 4)
    found = block(training)
    assert found["ratio"] == pytest.approx(1) and found["dense_inference"] == 3 * one + 2 * 48 * 4
    sparse = trained(odd.Dropped, "static", 10)
    assert block(sparse)["dense_total"] == found["dense_total"], "chance leaves out the same blocks"
    assert block(sparse)["ratio"] < 0.35


def test_heads_of_one_mode_count_in_that_mode() -> None:
    model = made(odd.Heads)
    body, head, judge = 2 * 48 * 16, 2 * 16 * 4, 2 * 4 * 4
    assert model.cost().inference == body + head + judge
    training = trained(odd.Heads, steps=2)
    assert training.book.forward == 2 * 8 * (body + 2 * head)
    assert block(training)["inference"] == body + head + judge
    assert not training.model["judge"].met and training.model["extra"].met


@pytest.mark.parametrize("net", [odd.Recomputed, odd.Reentrant])
def test_recomputation_is_part_of_the_pass(net: type[nn.Module]) -> None:
    model = made(net)
    stem = body = 2 * 6 * 8 * 8
    head = 2 * 48 * 4
    assert (model.cost().forward, model.cost().weights) == (stem + body + head,) * 2
    assert model.cost().inputs == body + head + body, "the block is computed again"
    book = trained(net, steps=2).book
    assert book.inputs == 2 * 8 * (2 * body + head) and book.forward == book.weights == 2 * 8 * (stem + body + head)


@pytest.mark.filterwarnings("ignore:None of the inputs")
@pytest.mark.parametrize("kernel", ["masked", "compact"])
@pytest.mark.parametrize("net", [odd.LoRA, odd.Recomputed, odd.Reentrant, odd.Query])
def test_a_view_without_a_graph_costs_its_forward_pass_alone(net: type[nn.Module], kernel: str) -> None:
    one = trained(net, "static", 3, kernel).book
    task = odd.Views(**vars(odd.task(net, 3)))
    training = Training(task, registry.method("static"), kernel=kernel)
    training.setup()
    training.run()
    both = training.book
    assert (both.forward, both.inputs, both.weights) == (2 * one.forward, one.inputs, one.weights)
    found = training.model.dense_passes
    assert both.reached / both.samples == pytest.approx(1 + found.ahead / found.dense)


@pytest.mark.parametrize("net", [odd.Dropped, odd.Experts, odd.Heads])
@pytest.mark.parametrize("kernel", ["masked", "compact"])
def test_a_layer_that_a_pass_did_not_reach_has_a_zero_gradient(net: type[nn.Module], kernel: str) -> None:
    training = Training(odd.task(net, 4), registry.method("static"), kernel=kernel)
    training.setup()
    idle = 0
    step = training.method.step

    def look(t: int) -> None:
        nonlocal idle
        idle += sum(not layer.grad.any() for layer in training.model.layers)
        step(t)

    training.method.step = look  # type: ignore[method-assign]
    training.run()
    assert idle


# One of each way to read gradients; the slow test below has all.
METHODS = ["dense", "rigl", "snfs", "grasp", "linbreg", "ml_linbreg", "str", "topkast", "wanda", "woodfisher", "sam"]
METHODS += ["sign_in", "srigl", "mest"]


@pytest.mark.parametrize("method", METHODS)
def test_methods_train_beside_what_is_frozen_and_what_a_pass_leaves_out(method: str) -> None:
    for net in (odd.Frozen, odd.Dropped) if method != "wanda" else (odd.Frozen, odd.Heads):
        training = Training(odd.task(net, 8), registry.method(method))
        training.setup()
        before = [layer.weight.clone() for layer in training.model.layers]
        training.run()
        training.method.finish()
        for layer, was in zip(training.model.layers, before, strict=True):
            now = layer.weight
            there = (was != 0) & (now != 0)  # a weight that came or went has not learned yet
            assert torch.isfinite(now).all() and layer.met == (layer.name != "judge")
            if layer.met:
                assert (now[there] != was[there]).any() if there.any() else not torch.equal(now, was), layer


@pytest.mark.slow
@pytest.mark.parametrize(
    "net", [odd.Frozen, odd.LoRA, odd.Dropped, odd.Experts, odd.Heads, odd.Convolutions, odd.Query]
)
def test_every_method_trains_on_every_odd_network(net: type[nn.Module]) -> None:
    for name in registry.methods():
        task = odd.task(net, 8)
        method = registry.method(name, **({"sparsity": 0.5} if name == "nm" else {}))
        if method.skip(task) is None:
            training = Training(task, method)
            training.setup()
            training.run()
            method.finish()


# ---- what is not sparse ----------------------------------------------------------------------------------------------


class Parametrised(nn.Sequential):
    def __init__(self) -> None:
        weight_norm, spectral = nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm
        super().__init__(nn.Flatten(), weight_norm(nn.Linear(48, 16)), nn.ReLU(), spectral(nn.Linear(16, 4)))


class Standardised(nn.Module):
    """A convolution whose weight is standardised in each pass, and an Embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head, self.table = nn.Conv1d(6, 8, 3), nn.Linear(8, 4), nn.Embedding(3, 8)

    def forward(self, x: Tensor) -> Tensor:
        w = self.conv.weight
        x = nn.functional.conv1d(x, (w - w.mean((1, 2), keepdim=True)) / w.std((1, 2), keepdim=True)).mean(2)
        return self.head(x + self.table.weight[0])


@pytest.mark.parametrize("method", ["static", "rigl", "snip", "ste", "linbreg", "wanda"])
def test_a_network_without_layers_is_refused_by_sparse_methods(method: str) -> None:
    for net, words in ((Parametrised, "parametrised"), (lambda: nn.Sequential(nn.Flatten(1), nn.PReLU()), "no matrix")):
        with pytest.raises(ValueError, match=f"{method}: nothing of this network can be sparse.*{words}"):
            Training(odd.task(net), registry.method(method))
    assert Training(odd.task(Parametrised), registry.method("dense")).model.maskable == 0


def test_what_stays_dense_is_named_with_its_reason() -> None:
    assert all("parametrised" in why for why in made(Parametrised).left_dense.values())
    assert made(Standardised).left_dense == {
        "conv.weight": "transformed: the pass does not multiply by it as it is",
        "table.weight": "weight of Embedding: a module of its own kind, whose product no mask reaches",
    }
    assert set(made(odd.Recurrent).left_dense) == {"rnn.weight_ih_l0", "rnn.weight_hh_l0"}
    with pytest.raises(ValueError, match=r"0.weight has no shape yet: run a batch"):
        SparseModel(nn.Sequential(nn.LazyLinear(4)), torch.zeros(2, 3))


def test_convolutions_of_all_kinds_are_layers_and_other_kernels_fall_back_by_name() -> None:
    for kernel in ("masked", "compact", "sparse"):
        model = made(odd.Convolutions, kernel=kernel)
        assert [y.name for y in model.layers] == ["one", "up", "deep", "back", "head"]
        x, oracle = torch.randn(3, 6, 8), copy.deepcopy(odd.Convolutions())
        oracle.load_state_dict({k: v.reshape(oracle.state_dict()[k].shape) for k, v in model.net.state_dict().items()})
        rng = torch.Generator().manual_seed(1)
        for layer in model.layers:
            layer.forward_mask = layer.grad_mask = torch.rand(layer.shape, generator=rng) < 0.4
            weight = oracle.get_submodule(layer.name).weight
            weight.data.mul_(layer.forward_mask)
        loss, wanted = model(x).square().sum(), oracle(x).square().sum()
        torch.testing.assert_close(loss, wanted)
        loss.backward(), wanted.backward()
        for layer in model.layers:
            exact = oracle.get_submodule(layer.name).weight.grad * layer.forward_mask
            torch.testing.assert_close(layer.grad, exact, rtol=1e-4, atol=1e-5)
            if kernel == "sparse" and layer.name != "head":
                assert layer.kernel.name == "masked" and "no sparse product for weight of Conv" in str(layer.fallback)
        assert model.passed(3) == model.cost()
    assert model.maskable == 6 * 8 * 3 + 8 * 2 * 2 + 4 * 8 + 4 * 2 * 8 + 96 * 4


PLUGIN = """
import sys
sys.path.append({here!r})
import odd
from dataclasses import replace
from dstbench.suite.registry import register
import torch
from torch import nn

class Mixing(nn.Linear):
    def __init__(self): super().__init__(48, 4)
    def forward(self, x): return super().forward(torch.fft.fft(x).real.flatten(1))

nets = dict(recurrent=odd.Recurrent, mixing=Mixing, causal=odd.Causal, none=lambda: nn.GRU(8, 4), heads=odd.Heads)
for name, net in nets.items():
    register(replace(odd.task(net), name="mine/" + name))
"""


def test_a_record_says_what_can_be_sparse_and_what_is_not_counted(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN.format(here=str(Path(__file__).parent)))
    names = ("recurrent", "mixing", "causal", "none", "heads")
    for name in names:
        run = Run("static", f"mine/{name}", 0.5, plugins=(str(plugin),), hyperparameters={"allocation": "uniform"})
        execute(run.to_json(), str(tmp_path))
    records = {r["id"]["task"]: r for r in record.load(tmp_path)[0]}
    recurrent, mixing, causal, none, _ = (records[f"mine/{name}"] for name in names)
    warning = recurrent["sparsity"]["warning"]
    assert recurrent["sparsity"]["maskable_share"] < 0.1 and "% of the parameters can be sparse" in warning
    assert "weight_hh_l0 of GRU" in warning and recurrent["flops"]["warning"] == ""
    assert "_fft_r2c (1 call)" in mixing["flops"]["warning"] and mixing["flops"]["uncounted"]["_fft_r2c"] == 1
    assert causal["status"]["name"] == "ok" and causal["sparsity"]["warning"] == "" and causal["hashes"]
    assert none["status"]["name"] == "error" and "nothing of this network can be sparse" in none["status"]["reason"]
    text = ledger.networks(frame(list(records.values())), list(records.values())).markdown()
    assert "weight_hh_l0 of GRU" in text and "_fft_r2c (1 call)" in text and "mine/none" not in text
    assert "no training pass reached judge" in records["mine/heads"]["sparsity"]["warning"]


class Choosy(nn.Module):
    """Asks what its input is, which a tracer cannot tell, and does something else where it is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(6), nn.Linear(48, 4)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(x))
        return self.head((2 * x.square() if isinstance(x, Tensor) else x).flatten(1))


@pytest.mark.parametrize("net", [odd.Dropped, odd.Cached, odd.Causal, Choosy])
def test_a_fused_graph_does_not_hold_the_way_of_one_pass(net: type[nn.Module]) -> None:
    torch.manual_seed(0)
    built, x = net(), torch.randn(4, 6, 8)
    oracle, fused = copy.deepcopy(built), Fused(built)
    for seed in range(6):
        torch.manual_seed(seed)
        expected = oracle(x)
        torch.manual_seed(seed)
        torch.testing.assert_close(fused(x), expected)
    assert [sorted(vars(m)) for m in built.modules()] == [sorted(vars(m)) for m in oracle.modules()]
    if isinstance(built, odd.Cached):
        assert built.calls == oracle.calls and all(isinstance(table, Tensor) for table in built.cache.values())


@pytest.mark.parametrize("place", ["leaf", "container", "root"])
def test_a_graph_calls_hooks_as_often_as_the_network_does(place: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), nn.Identity(), nn.Flatten())
    at = {"leaf": [net[0][1], net[1]], "container": [net[0]], "root": [net]}[place]
    seen: list[Any] = []
    for module in at:
        module.register_forward_hook(lambda module, inputs, out: seen.append(out))
    fused = Fused(net)
    for calls in (1, 2):
        out = fused(torch.randn(2, 3, 5, 5))
        assert len(seen) == calls * len(at) and all(isinstance(y, Tensor) for y in seen)
    assert out.shape == (2, 36)


def test_the_inputs_that_wanda_sees_are_those_of_the_layer_under_every_kernel() -> None:
    """Where GELU is part of a Linear's product, the hook of the Linear still sees what GELU gives; cut at step 1."""
    recipe = replace(VIT.recipe, steps=2)
    norms = {}
    for kernel in ("masked", "sparse"):
        method = registry.method("wanda")
        training = Training(replace(VIT, recipe=recipe), method, kernel=kernel)
        assert method.cut == 1
        training.setup()
        training.run(until=1)
        norms[kernel] = {k: v for k, v in method.memory.items() if k.startswith("input.")}
        training.run()
        assert bool(training.model.fused) == (kernel == "sparse")
    assert len(norms["masked"]) == len(training.model.layers)
    for name, found in norms["sparse"].items():
        torch.testing.assert_close(found, norms["masked"][name], rtol=1e-4, atol=1e-5)
