"""SViTE and S2ViTE: which tensors are masked, whole heads and neurons, their scores by hooks, updates in NumPy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from dstbench.methods.dynamic import RigL
from dstbench.methods.svite import S2ViTE, parts, plan, taylor, units
from dstbench.suite import registry
from dstbench.suite.model import SparseModel
from dstbench.suite.train import Training
from pruning import same_after_resume

BLOCKS = ("blocks.0", "blocks.1")
MASKED = [f"{block}.{name}" for block in BLOCKS for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
HEADS, NEURONS, WIDTH = 4, 192, 48  # of each block
HEAD, NEURON = 4 * WIDTH * WIDTH // HEADS, 2 * WIDTH  # weights of one
DENSE = WIDTH * 16 + 10 * WIDTH  # patches and classifier
TOTAL = DENSE + 2 * (HEADS * HEAD + NEURONS * NEURON)
KERNELS = pytest.mark.parametrize("kernel", ["masked", "compact"])


def task(steps: int = 48, name: str = "digits/vit"):
    found = registry.task(name)
    return replace(found, recipe=replace(found.recipe, steps=steps))


def begun(sparsity: float = 0.5, kernel: str = "masked", seed: int = 0, **fields) -> Training:
    training = Training(task(), S2ViTE(sparsity=sparsity, **fields), seed=seed, kernel=kernel)
    training.setup()
    return training


def alive(training: Training, block: str) -> tuple[np.ndarray, np.ndarray]:
    """Heads and neurons that are on, after a check that all of each is or none."""
    masks = {y.name: y.forward_mask for y in training.model.layers}
    qkv = masks[f"{block}.attn.qkv"].numpy().reshape(3, HEADS, -1)
    proj = masks[f"{block}.attn.proj"].numpy().reshape(WIDTH, HEADS, -1)
    fc1, fc2 = masks[f"{block}.mlp.fc1"].numpy(), masks[f"{block}.mlp.fc2"].numpy()
    heads, neurons = qkv[0, :, 0], fc1[:, 0]
    assert (qkv == heads[None, :, None]).all() and (proj == heads[None, :, None]).all()
    assert (fc1 == neurons[:, None]).all() and (fc2 == neurons[None, :]).all()
    return heads, neurons


# ---- what is masked --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rigl:svite", "s2vite"])
def test_the_golden_list_of_masked_tensors(name: str) -> None:
    """The unstructured form masks every matrix, as the code does, the structured one those of the blocks alone."""
    training = Training(task(), registry.method(name, sparsity=0.5), seed=0)
    training.setup()
    everything = [y.name for y in training.model.layers]
    assert everything == ["patch_embed.proj", *MASKED, "head"]
    masked = [y.name for y in training.model.layers if y.forward_mask is not None]
    assert masked == (everything if name == "rigl:svite" else MASKED)
    others = {n for n, _ in training.model.net.named_parameters()} - {y.key for y in training.model.layers}
    assert {"cls_token", "pos_embed", "blocks.0.norm1.weight", "blocks.0.attn.qkv.bias"} <= others
    assert all("bias" in n or "norm" in n or n in ("cls_token", "pos_embed") for n in others)


def test_the_preset_is_itop_until_four_fifths_of_the_run() -> None:
    method = registry.method("rigl:svite", sparsity=0.5)
    assert isinstance(method, RigL) and method.allocation == "erk"
    assert (method.alpha, method.floor, method.stop, method.after_step) == (0.5, 0.005, 0.8, True)
    for made in (method, S2ViTE(sparsity=0.5)):
        Training(task(100), made, seed=0)
        assert [t + 1 for t in range(100) if made.due(t)] == list(range(4, 80, 4)), "steps taken before an update"
    assert method.fraction(39) == pytest.approx((0.5 + 0.005) / 2) and method.fraction(79) == 0.005


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.6, 0.75, 0.8])
def test_counts_are_whole_heads_and_as_many_neurons_as_the_target_leaves(sparsity: float) -> None:
    training = begun(sparsity)
    wanted = round((1 - sparsity) * TOTAL)
    assert training.model.maskable == TOTAL
    share = (wanted - DENSE) / (TOTAL - DENSE)
    found = [alive(training, block) for block in BLOCKS]
    assert [int(heads.sum()) for heads, _ in found] == [max(1, round(share * HEADS))] * 2
    number = [int(neurons.sum()) for _, neurons in found]
    assert max(number) - min(number) <= 1
    active = sum(y.nnz() for y in training.model.layers)
    assert active == DENSE + 2 * max(1, round(share * HEADS)) * HEAD + sum(number) * NEURON
    assert abs(active - wanted) <= NEURON / 2 and training.method.grain == NEURON


def test_units_are_drawn_by_the_seed() -> None:
    drawn = {begun(seed=seed).model["blocks.0.mlp.fc1"].forward_mask.numpy().tobytes() for seed in (0, 0, 1)}
    assert len(drawn) == 2


def test_it_skips_with_a_reason() -> None:
    assert "no attention heads" in S2ViTE(sparsity=0.5).skip(task(name="digits/mlp"))
    most = round(1 - (DENSE + 2 * (HEAD + NEURON)) / TOTAL, 4)
    assert f"0.95; the nearest found is {most:.4f}" in S2ViTE(sparsity=0.95).skip(task())
    assert S2ViTE(sparsity=most).skip(task()) is None
    with pytest.raises(ValueError, match="run at that"):
        begun(0.95)
    with pytest.raises(ValueError, match="regrow is 'rows'; choose one of output, columns"):
        S2ViTE(sparsity=0.5, regrow="rows")
    compiled = replace(task(), recipe=replace(task().recipe, compile=True))
    assert "hooks" in S2ViTE(sparsity=0.5).skip(compiled) and not S2ViTE(sparsity=0.5, regrow="columns").skip(compiled)
    with pytest.raises(TypeError, match="after_step"):
        S2ViTE(sparsity=0.5, after_step=True)
    for field, value in (("alpha", 1.5), ("floor", 0.9), ("stop", -1.0)):
        with pytest.raises(ValueError, match=f"s2vite: {field} is"):
            S2ViTE(sparsity=0.5, **{field: value})


def test_heads_make_up_for_neurons_that_are_too_few_and_what_cannot_be_met_is_refused() -> None:
    """An attention of four heads of 4096 weights before sixteen neurons of 128."""
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 16, dropout=0.0, batch_first=True), 1)
    model = SparseModel(encoder, torch.zeros(2, 5, 64))
    total, met = 4 * 4096 + 16 * 128, 0
    for sparsity in np.linspace(0.01, 0.99, 99):
        wanted = round((1 - sparsity) * total)
        reachable = [4096 * h + 128 * n for h in range(1, 5) for n in range(1, 17)]
        near = min(abs(r - wanted) for r in reachable)
        try:
            heads, neurons = plan(model, sparsity).values()
        except ValueError as why:
            assert near > 64 and "the nearest found is" in str(why)
        else:
            assert abs(4096 * heads + 128 * neurons - wanted) <= 128
            met += 1
    assert 30 < met < 80


def test_parts_that_the_task_keeps_dense_stay_whole() -> None:
    given = replace(task(), dense=("patch_embed.proj", "head", "blocks.0.attn.proj"))
    training = Training(given, S2ViTE(sparsity=0.5), seed=0)
    training.setup()
    assert [y.name for y in training.model.layers if y.forward_mask is None] == ["blocks.0.attn.qkv"]


# ---- scores and updates ----------------------------------------------------------------------------------------------


def test_the_taylor_score_of_heads_is_that_of_their_activations() -> None:
    training = begun()
    model, batch = training.model, next(training.task.batches("train", 0))
    attentions, _ = parts(model)
    kept: list[torch.Tensor] = []

    def keep(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        args[0].retain_grad()
        kept.append(args[0])

    for part in attentions:
        model.net.get_submodule(part.output).register_forward_pre_hook(keep)
    nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
    for part, handed in zip(attentions, kept, strict=True):
        product = (handed * handed.grad).sum((0, 1)).view(HEADS, -1).sum(1).abs()
        on = model[part.output].forward_mask[0].view(HEADS, -1)[:, 0]
        found = taylor(model[part.output], part)
        torch.testing.assert_close(found[on], product[on], rtol=1e-4, atol=1e-7)
        assert bool(on.any()) and float(found[on].min()) > 0


@KERNELS
@pytest.mark.parametrize("outer", ["timm", "torch"])
def test_heads_grow_by_the_gradient_of_what_they_hand_on_in_plain_torch(outer: str, kernel: str) -> None:
    """As `Attention._score` of the authors' code, a hook on A, in a network whose output matrices are whole.

    The rule has no branch on a head that is off: it hands on zero.
    """
    training, rng = begun(0.6, kernel, alpha=0.3), torch.Generator().manual_seed(0)
    net, width, path = training.model.net, WIDTH, "attn.proj"
    task_, method, model = training.task, training.method, training.model
    x, y = next(task_.batches("train", 0))
    if outer == "torch":  # which reads the matrix of its output without a call of the module
        width, path = 16, "self_attn.out_proj"
        layer = nn.TransformerEncoderLayer(width, 4, 40, dropout=0.0, batch_first=True)
        net, method = nn.TransformerEncoder(layer, 2), S2ViTE(sparsity=0.5)
        model = SparseModel(net, torch.zeros(2, 5, width), kernel=kernel)
        method.attach(model, task_.recipe, seed=0)
        method.setup(lambda batches=1, create_graph=False, temperature=1.0: [])
        x, y = torch.randn(6, 5, width, generator=rng), torch.randn(6, 5, width, generator=rng)
    net.train()
    whole = {part: model[part.output].weight.clone() for part in parts(model)[0]}
    method.begin(method.recipe.period - 1)
    outputs: dict[str, torch.Tensor] = {}

    def keep(name: str):
        def hook(module: nn.Module, args: object, result: object) -> None:
            outputs[name] = result[0] if isinstance(result, tuple) else result
            outputs[name].retain_grad()

        return hook

    for part in whole:
        name = part.output if outer == "timm" else part.output.removesuffix(".out_proj")
        net.get_submodule(name).register_forward_hook(keep(part.output))
    found = model(x)
    (nn.functional.cross_entropy(found, y) if outer == "timm" else (found - y).square().mean()).backward()
    for ear in method.ears:
        handed = torch.zeros(len(x), 5, 4, width // 4, requires_grad=True)  # (batch, tokens, heads, entries)
        weight, seen = whole[ear.part], []
        handed.register_hook(lambda grad, seen=seen: seen.append(grad.norm(dim=(1, 3), p=1).mean(dim=0)))
        nn.functional.linear(handed.flatten(2), weight).backward(outputs[ear.part.output].grad)
        torch.testing.assert_close(ear.close() / len(x), seen[0], rtol=1e-4, atol=1e-9)
        off = ~model[ear.part.output].forward_mask[0].view(4, -1)[:, 0]
        assert bool(off.any()) and float(seen[0][off].min()) > 0, "heads that are off do have a gradient"
    places = len(x) * 5 * width * width
    assert method.charged == 2 * places * len(whole) and path in next(iter(outputs))


def expected(weights, grads, masks, block: str, fraction: float, slope) -> tuple[np.ndarray, np.ndarray]:
    """Heads and neurons after an update, in NumPy, from the weights of the pass, before the optimiser's step.

    `slope` has the gradient of the attention's output, a row for each sample and token.
    """
    out_w, out_g = (x[f"{block}.attn.proj"].reshape(WIDTH, HEADS, -1) for x in (weights, grads))
    fc1, fc2, fc2_g = weights[f"{block}.mlp.fc1"], weights[f"{block}.mlp.fc2"], grads[f"{block}.mlp.fc2"]
    heads = masks[f"{block}.attn.proj"].reshape(WIDTH, HEADS, -1)[0, :, 0]
    neurons = masks[f"{block}.mlp.fc2"][0]
    cases = (
        (heads, np.abs((out_w * out_g).sum((0, 2))), np.abs(np.tensordot(slope, out_w, 1)).sum((0, 2))),
        (neurons, np.abs(fc1).sum(1) + np.abs(fc2).sum(0), np.abs(fc2_g).sum(0)),
    )
    found = []
    for on, death, growth in cases:
        moved = math.ceil(fraction * on.sum())
        order = sorted(np.flatnonzero(on), key=lambda u: death[u])
        kept = set(order[moved:])
        back = sorted(set(range(len(on))) - kept, key=lambda u: -growth[u])[:moved]
        found.append(np.isin(np.arange(len(on)), [*kept, *back]))
    return found[0], found[1]


@KERNELS
@pytest.mark.parametrize("sparsity", [0.3, 0.6])
def test_updates_against_numpy(sparsity: float, kernel: str) -> None:
    training = begun(sparsity, kernel)
    method, model, seen = training.method, training.model, 0
    update, step = method.update, method.optimizer.step
    stepped: dict[str, np.ndarray] = {}
    slopes: dict[str, np.ndarray] = {}

    def listen(block: str):
        def kept(grad: torch.Tensor) -> None:
            slopes[block] = grad.flatten(0, 1).numpy()

        return lambda module, args, result: result.requires_grad and result.register_hook(kept) and None

    for block in BLOCKS:
        model.net.get_submodule(f"{block}.attn.proj").register_forward_hook(listen(block))

    def watched() -> None:
        step()
        stepped.update({y.name: y.weight.numpy().copy() for y in model.layers})

    def compared(t: int) -> None:
        nonlocal seen
        names = {y.name: y for y in model.layers}
        weights = {n: y.weight.numpy().copy() for n, y in names.items()}
        grads = {n: y.grad.numpy().copy() for n, y in names.items()}
        masks = {n: names[n].forward_mask.numpy().copy() for n in MASKED if n.endswith(("proj", "fc2"))}
        fraction = 0.005 + 0.495 * (1 + math.cos(math.pi * (t + 1) / (0.8 * 48))) / 2
        wanted = {block: expected(weights, grads, masks, block, fraction, slopes[block]) for block in BLOCKS}
        update(t)
        for block in BLOCKS:
            for ours, theirs in zip(alive(training, block), wanted[block], strict=True):
                assert np.array_equal(ours, theirs), (t, block)
            seen += int((wanted[block][1] & ~masks[f"{block}.mlp.fc2"][0]).sum())
        for name, layer in names.items():
            on = layer.forward_mask if layer.forward_mask is not None else torch.ones(layer.shape, dtype=torch.bool)
            assert np.array_equal(layer.weight.numpy()[on.numpy()], stepped[name][on.numpy()]), "values stay"
            if name.endswith("fc2"):
                assert not layer.weight[~on].any(), "columns of neurons that are off are zero"
            if "attn" in name:
                assert np.array_equal(layer.weight.numpy()[~on.numpy()], stepped[name][~on.numpy()])
                off = ~on.numpy() & (masks[name] == 0 if name in masks else False)
                assert np.array_equal(layer.weight.numpy()[off], weights[name][off]), "heads that are off wait"

    method.optimizer.step, method.update = watched, compared
    training.run()
    assert seen > 50, "neurons do come and go"


def test_an_update_reads_all_rows_without_changing_what_is_computed() -> None:
    training = begun()
    model, batch = training.model, next(training.task.batches("train", 0))
    model.net.eval()
    with torch.no_grad():
        before = model(batch[0]).clone()
        training.method.begin(training.recipe.period - 1)
        assert all(model[name].forward_mask is None for part in parts(model)[1] for name in part.inputs)
        assert all(model[name].forward_mask is not None for part in parts(model)[0] for name in part.inputs)
        torch.testing.assert_close(model(batch[0]), before, rtol=1e-5, atol=1e-6)


def test_rows_come_back_as_they_were_and_columns_learn_at_once() -> None:
    training = begun(0.6, alpha=0.3)
    first = training.task.build(0).state_dict()["blocks.0.mlp.fc1.weight"]
    never = ~training.model["blocks.0.mlp.fc1"].forward_mask[:, 0]
    training.run(until=training.recipe.period - 1)
    torch.testing.assert_close(training.model["blocks.0.mlp.fc1"].weight[never], first[never])
    training.run(until=training.recipe.period)
    new = training.model["blocks.0.mlp.fc1"].forward_mask[:, 0] & never
    assert bool(new.any()) and training.model["blocks.0.mlp.fc2"].weight[:, new].abs().sum(0).min() > 0


# ---- the suite's side ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("regrow", ["output", "columns"])
def test_flops_of_a_pass_by_hand(regrow: str) -> None:
    training = begun(regrow=regrow)
    model, active = training.model, sum(y.nnz() for y in training.model.layers)
    patches = WIDTH * 16 * 4  # four patches, and then five tokens

    def cost(read: int, grad: int) -> float:
        """Of the weights but patches and classifier, which are used at 4 and 1 places, at 5."""
        return 2 * 5 * (2 * read + grad) + 3 * 2 * (patches + 10 * WIDTH)

    blocks = active - DENSE
    dense = TOTAL - DENSE
    rest = model.cost().papers - cost(blocks, blocks)
    assert rest == pytest.approx(0)
    training.method.begin(training.recipe.period - 1)
    looked = units(model) if regrow == "columns" else parts(model)[1]
    rows = sum(model[n].numel - model[n].nnz("grad") for part in looked for n in part.inputs)
    cols = sum(model[part.output].numel - model[part.output].nnz() for part in looked)
    assert (rows + cols == dense - blocks) == (regrow == "columns")
    assert model.cost().papers == pytest.approx(cost(blocks + rows, blocks + cols))


def test_nothing_is_left_of_units_that_are_off() -> None:
    training = begun()
    training.run()
    training.method.finish()
    for layer in training.model.layers:
        if layer.forward_mask is not None:
            assert not layer.weight[~layer.forward_mask].any() and layer.grad_mask is layer.forward_mask


@pytest.mark.sampled(1)
@KERNELS
@pytest.mark.parametrize("stop", [4, 9])
def test_resuming_is_bit_exact(kernel: str, stop: int) -> None:
    for regrow in ("output", "columns"):
        same_after_resume(task(24), lambda regrow=regrow: S2ViTE(sparsity=0.6, regrow=regrow), stop, kernel)


def test_torchs_encoder_has_heads_too() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 40, dropout=0.0, batch_first=True)
    model = SparseModel(nn.TransformerEncoder(layer, 2), torch.zeros(2, 5, 16))
    method = S2ViTE(sparsity=0.4)
    method.attach(model, task().recipe, seed=0)
    method.setup(lambda batches=1, create_graph=False, temperature=1.0: [])
    active = sum(y.nnz() for y in model.layers)
    assert abs(active - 0.6 * model.maskable) <= 16
