"""SparseModel: which weights become Layers, that masks reach every operation, what a pass costs, shrinking."""

from __future__ import annotations

import copy
import gc

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dstbench.suite.model import SparseModel


def transformer() -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


def vit() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=2, num_classes=4
    )


CASES = {
    "conv": (None, (2, 3, 8, 8)),  # the ConvNet of conftest
    "resnet": (lambda: timm.create_model("resnet18", num_classes=4, zero_init_last=False), (2, 3, 32, 32)),
    "vit": (vit, (2, 3, 16, 16)),
    "transformer": (transformer, (2, 5, 16)),
}


@pytest.fixture(params=CASES)
def case(request, images) -> tuple[nn.Module, torch.Tensor]:
    build, shape = CASES[request.param]
    torch.manual_seed(0)
    return (images.build(0) if request.param == "conv" else build()), torch.randn(shape)


def masks(model: SparseModel, share: float, seed: int = 0) -> None:
    rng = torch.Generator().manual_seed(seed)
    for layer in model.layers:
        layer.forward_mask = torch.rand(layer.shape, generator=rng) < share


@pytest.mark.parametrize("kernel", ["masked", "compact"])
def test_masking_equals_a_network_with_zeroed_weights(case, kernel: str) -> None:
    net, x = case
    oracle = copy.deepcopy(net)
    model = SparseModel(net, x, kernel=kernel)
    masks(model, 0.4)
    weights = dict(oracle.named_parameters())
    with torch.no_grad():
        for layer in model.layers:
            weights[layer.key].mul_(layer.forward_mask)
    for training in (True, False):
        torch.testing.assert_close(model_output(model, training, x), module_output(oracle, training, x))


def model_output(model: SparseModel, training: bool, x: torch.Tensor) -> torch.Tensor:
    model.net.train(training)
    return model(x)


def module_output(net: nn.Module, training: bool, x: torch.Tensor) -> torch.Tensor:
    net.train(training)
    return net(x)


@pytest.mark.parametrize("name", ["resnet50", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("training", [True, False])
def test_whole_networks_of_timm_see_the_masks(name: str, training: bool) -> None:
    x = torch.randn(2, 3, 224, 224)
    model = SparseModel(timm.create_model(name), x)
    model.net.train(training)
    with torch.no_grad():
        before = model(x).clone()
        masks(model, 0.0)
        bias = model.net.get_classifier().bias
        assert torch.equal(model(x), bias.expand(2, -1)) and not torch.allclose(before, bias.expand(2, -1))


@pytest.mark.sampled(5)
@pytest.mark.parametrize("kernel", ["masked", "compact"])
@pytest.mark.parametrize("training", [True, False])
def test_masking_all_weights_to_nothing_changes_the_output(case, kernel: str, training: bool) -> None:
    net, x = case
    model = SparseModel(net, x, kernel=kernel)
    model.net.train(training)
    before = model(x).detach().clone()
    for layer in model.layers:
        layer.forward_mask = torch.zeros(layer.shape, dtype=torch.bool)
        assert not torch.equal(model(x), before), f"{layer.name} is read behind its mask's back"
        layer.forward_mask = None
    masks(model, 0.0)
    assert not torch.allclose(model(x), before)


@pytest.mark.parametrize("kernel", ["masked", "compact"])
def test_gradients_equal_autograd_inside_the_grad_mask_and_are_zero_outside(case, kernel: str) -> None:
    net, x = case
    oracle = copy.deepcopy(net)
    model = SparseModel(net, x, kernel=kernel)
    masks(model, 0.5)
    rng = torch.Generator().manual_seed(3)
    for layer in model.layers:
        layer.grad_mask = torch.rand(layer.shape, generator=rng) < 0.5
    weights = dict(oracle.named_parameters())
    with torch.no_grad():
        for layer in model.layers:
            weights[layer.key].mul_(layer.forward_mask)
    model.net.eval(), oracle.eval()
    model(x).square().mean().backward()
    oracle(x).square().mean().backward()
    for layer in model.layers:
        expected = weights[layer.key].grad * layer.grad_mask
        torch.testing.assert_close(layer.grad, expected, rtol=1e-4, atol=1e-6)
        assert not layer.grad[~layer.grad_mask].any(), layer.name


def test_double_backward_equals_that_of_a_network_with_zeroed_weights(images) -> None:
    net, x = images.build(0), torch.randn(4, 3, 8, 8)
    oracle = copy.deepcopy(net).eval()
    model = SparseModel(net, images.example())
    model.net.eval()
    masks(model, 0.5)
    weights = dict(oracle.named_parameters())
    with torch.no_grad():
        for layer in model.layers:
            layer.grad_mask = layer.forward_mask
            weights[layer.key].mul_(layer.forward_mask)

    def second(net, parameters) -> list[torch.Tensor]:
        grads = torch.autograd.grad(net(x).square().sum(), parameters, create_graph=True)
        seen = sum((g * y.forward_mask).square().sum() for g, y in zip(grads, model.layers, strict=True))
        return torch.autograd.grad(seen, parameters)

    ours = second(model, [layer.parameter for layer in model.layers])
    theirs = second(oracle, [weights[layer.key] for layer in model.layers])
    for layer, a, b in zip(model.layers, ours, theirs, strict=True):
        torch.testing.assert_close(a, b * layer.forward_mask, rtol=1e-4, atol=1e-5)


def test_masks_hold_under_autocast(images) -> None:
    model = SparseModel(images.build(0), images.example())
    masks(model, 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(torch.randn(2, 3, 8, 8))
    bias = model.net.head.bias
    assert torch.allclose(out.float(), bias.expand(2, -1), atol=1e-2), "only the bias of the head is left"


def test_reused_and_tied_weights_are_one_layer_with_the_sum_of_their_uses(images) -> None:
    model = SparseModel(images.build(0), images.example())
    names = [layer.name for layer in model.layers]
    assert names == ["stem", "grouped", "dilated", "twice", "head"]
    assert model["twice"].positions == 3 and model["stem"].positions == 64 and model["grouped"].positions == 16


def test_attention_weights_are_layers_and_norms_biases_tokens_are_not() -> None:
    model = SparseModel(transformer(), torch.zeros(1, 5, 16))
    assert [layer.name for layer in model.layers[:4]] == [
        "layers.0.self_attn.in_proj_weight",
        "layers.0.self_attn.out_proj",
        "layers.0.linear1",
        "layers.0.linear2",
    ]
    keys = {layer.key for layer in SparseModel(vit(), torch.zeros(1, 3, 16, 16)).layers}
    others = {n for n, _ in vit().named_parameters()} - keys
    assert all(part in name for name in keys for part in ("weight",))
    assert not any(word in name for name in keys for word in ("norm", "bias", "token", "pos_embed"))
    assert {"cls_token", "pos_embed", "blocks.0.norm1.weight"} <= others


def test_depthwise_convolutions_and_tied_embeddings_stay_dense() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(10, 8)
            self.body = nn.Linear(8, 8)
            self.head = nn.Linear(8, 10, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(self.embed(x)))

    assert [y.name for y in SparseModel(Tied(), torch.zeros(1, 3, dtype=torch.long)).layers] == ["body"]
    conv = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 1))
    assert [y.name for y in SparseModel(conv, torch.zeros(1, 4, 5, 5)).layers] == ["1"]


def test_dense_patterns_and_their_misses(images) -> None:
    model = SparseModel(images.build(0), images.example(), dense=("stem", "*d"))
    assert [layer.name for layer in model.layers] == ["twice"]
    with pytest.raises(ValueError, match=r"dense pattern 'stam' matches no layer; did you mean stem"):
        SparseModel(images.build(0), images.example(), dense=("stam",))
    with pytest.raises(KeyError, match="did you mean twice"):
        model["twcie"]


def test_a_weight_that_the_example_does_not_reach_is_a_layer_that_costs_nothing_until_a_pass_does() -> None:
    class Idle(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self[0](x)

    model = SparseModel(Idle(nn.Linear(3, 3), nn.Linear(3, 3)), torch.zeros(1, 3))
    assert [y.name for y in model.layers] == ["0", "1"] and model.cost().forward == 18 and not model["1"].positions
    model(torch.randn(4, 3)).sum().backward()
    assert model.passed(4) == model.cost() and not model["1"].grad.any() and not model["1"].met


def test_state_dict_keys_and_parameter_identity_stay(case) -> None:
    net, x = case
    keys, parameters = list(net.state_dict()), list(net.parameters())
    model = SparseModel(net, x)
    assert list(model.net.state_dict()) == keys
    assert all(a is b for a, b in zip(model.net.parameters(), parameters, strict=True))


def test_fused_attention_is_off_while_a_model_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    gc.collect()
    monkeypatch.setattr("dstbench.suite.model._living", [])  # models of other tests may live on
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(True)
    first, second = (SparseModel(transformer(), torch.zeros(1, 5, 16)) for _ in range(2))
    assert not torch.backends.mha.get_fastpath_enabled()
    del first
    assert not torch.backends.mha.get_fastpath_enabled()
    del second
    assert torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(before)


# ---- cost ------------------------------------------------------------------------------------------------------------


def counted(net: nn.Module, x: torch.Tensor) -> tuple[int, int]:
    """Forward and backward FLOPs of one sample by torch's own counter on `meta`."""
    net, x = copy.deepcopy(net).to("meta").eval(), x[:1].to("meta")
    torch.backends.mha.set_fastpath_enabled(False)
    with FlopCounterMode(display=False) as ahead:
        out = net(x)
    with FlopCounterMode(display=False) as back:
        out.sum().backward()
    torch.backends.mha.set_fastpath_enabled(True)
    return ahead.get_total_flops(), back.get_total_flops()


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: timm.create_model("resnet50"), (1, 3, 224, 224)),
        (lambda: timm.create_model("vit_tiny_patch16_224"), (1, 3, 224, 224)),
        (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 2), (1, 10, 64)),
    ],
    ids=["resnet50", "vit_tiny", "TransformerEncoder"],
)
def test_dense_cost_equals_torchs_counter(build, shape) -> None:
    with torch.device("meta"):
        net, x = build(), torch.empty(shape)
    ahead, back = counted(net, x)
    model = SparseModel(net, x)
    cost = model.cost()
    assert cost.forward == ahead
    assert cost.inputs + cost.weights == back
    assert model.dense_passes.dense == ahead + back == cost.total


def test_cost_of_masks_by_hand() -> None:
    model = SparseModel(nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5)), torch.zeros(1, 10))
    first, second = model.layers
    first.forward_mask = torch.arange(200).view(20, 10) < 50
    second.grad_mask = torch.arange(100).view(5, 20) < 30
    cost = model.cost()
    assert cost.forward == 2 * (50 + 100)
    assert cost.inputs == 2 * 100, "the first layer hands no gradient on"
    assert cost.weights == 2 * (200 + 30)
    assert cost.papers == 2 * (2 * 50 + 200) + 2 * (2 * 100 + 30)
    assert cost.dense_gradient
    first.grad_mask = first.forward_mask
    assert not model.cost().dense_gradient


def test_groups_hold_every_parameter_once_and_decay_weights_alone(case) -> None:
    net, x = case
    groups = SparseModel(net, x).groups()
    together = [p for g in groups for p in g["params"]]
    assert len(together) == len(set(together)) and set(together) == set(net.parameters())
    assert groups[1]["weight_decay"] == 0.0 and all(p.dim() > 1 for p in groups[0]["params"])


# ---- shrinking -------------------------------------------------------------------------------------------------------


def shrunk(kernel: str) -> tuple[SparseModel, torch.optim.Optimizer, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1))
    x = torch.randn(2, 3, 5, 5)
    model = SparseModel(net, x, kernel=kernel)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    model.attach(optimizer, {})
    masks(model, 0.7)
    model(x).square().sum().backward()
    optimizer.step()
    return model, optimizer, x


@pytest.mark.parametrize("kernel", ["masked", "compact"])
def test_shrinking_equals_zeroed_channels_and_slices_the_state(kernel: str) -> None:
    model, optimizer, x = shrunk(kernel)
    keep = torch.tensor([0, 2, 3, 5])
    momentum = model["0"].state["momentum_buffer"].clone()
    model.net.eval()
    before, cost = model.cost(), model.layers
    full = model["3"].weight.clone()
    oracle = copy.deepcopy(model.net)
    for name, dim in [("0.weight", 0), ("0.bias", 0), ("1.weight", 0), ("1.bias", 0), ("1.running_mean", 0)]:
        model.shrink(name, dim, keep)
    model.shrink("1.running_var", 0, keep)
    model.shrink("3.weight", 1, keep)
    assert torch.equal(model["0"].state["momentum_buffer"], momentum[keep])
    assert torch.equal(model["3"].weight, full[:, keep])
    features = nn.Sequential(oracle[0], oracle[1], oracle[2])(x)[:, keep]
    expected = nn.functional.conv2d(features, model["3"].weight * model["3"].forward_mask, model.net[3].bias, padding=1)
    torch.testing.assert_close(model(x), expected)
    assert model.cost().forward < before.forward and len(cost) == 2
    assert model.net[0].out_channels == 4 and model.net[3].in_channels == 4
    model(x).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("kernel", ["masked", "compact"])
def test_a_checkpoint_replays_the_edits_on_a_fresh_network(kernel: str) -> None:
    model, _, x = shrunk(kernel)
    keep = torch.tensor([1, 4])
    for name in ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"):
        model.shrink(name, 0, keep)
    model.shrink("3.weight", 1, keep)
    saved = model.state()
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1))
    other = SparseModel(net, x, kernel=kernel)
    other.attach(torch.optim.SGD(net.parameters(), lr=0.1), {})
    other.load(saved)
    model.net.eval(), other.net.eval()
    assert torch.equal(model(x), other(x))
    assert model.cost() == other.cost()
    with pytest.raises(KeyError, match=r"no parameter or buffer '0.gain'"):
        model.shrink("0.gain", 0, keep)


def test_the_cost_of_a_mask_that_was_edited_in_place_is_refused() -> None:
    model = SparseModel(nn.Sequential(nn.Linear(12, 4)), torch.zeros(2, 12))
    layer = model.layers[0]
    layer.forward_mask = layer.grad_mask = torch.ones(layer.shape, dtype=torch.bool)
    model.cost()
    layer.forward_mask.fill_(False)
    with pytest.raises(RuntimeError, match=r"layer .0.: forward_mask was edited in place"):
        model.cost()
