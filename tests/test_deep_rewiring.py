"""DEEP R against NumPy, step by step: the walk, the signs, and what grows in place of what would change its sign."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dstbench.methods.deep_rewiring import DeepRewiring
from nets import begin, train
from pruning import same_after_resume, spent
from updates import largest, same, same_stream, steps, uniform, zeroed


@pytest.mark.sampled(8)
@pytest.mark.parametrize("kernel", ["masked", "compact"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize(("alpha", "temperature"), [(1e-4, 1e-11), (0.5, 0.0), (0.1, 1e-3)])
@pytest.mark.parametrize("signs", ["fixed", "drawn"])
def test_every_step_of_a_run_equals_the_simulation(
    kernel: str, optimizer: str, alpha: float, temperature: float, signs: str
) -> None:
    method = DeepRewiring(sparsity=0.8, alpha=alpha, temperature=temperature, signs=signs)
    model = begin(method, kernel, optimizer=optimizer)
    fixed = [tensor.numpy().copy() for tensor in method.memory.values()]
    assert len(fixed) == (3 if signs == "fixed" else 0)
    rng, moved = same_stream(method.rng), 0
    for t, before, after in steps(method, model):
        lr = method.lr(t)
        for i, (layer, old, y) in enumerate(zip(model.layers, before, after, strict=True)):
            noise = np.zeros(y.mask.shape)
            noise[y.mask] = torch.randn(int(y.mask.sum()), generator=rng, dtype=torch.float64).numpy()
            sign = np.where(np.signbit(old.weight), -1.0, 1.0)
            weight = np.where(y.mask, y.weight - lr * alpha * sign + np.sqrt(2 * lr * temperature) * noise, 0.0)
            kept = y.mask & (sign * weight >= 0)
            gone, new = int(y.mask.sum() - kept.sum()), kept
            if gone:
                new = kept | largest(np.where(kept, -1.0, uniform(rng, layer.shape)), gone)
                negative = fixed[i] if fixed else uniform(rng, layer.shape) < 0.5
                started = new & ~kept
                assert np.array_equal(np.signbit(layer.weight.numpy())[started], negative[started])
            same(layer, new, np.where(kept, weight, 0.0), zeroed(y.state, kept) if gone else None)
            assert layer.nnz() == int(y.mask.sum())
            moved += gone
    assert moved > 0


@pytest.mark.parametrize("signs", ["fixed", "drawn"])
def test_a_position_that_comes_back_has_the_sign_that_it_had(signs: str) -> None:
    """As in the authors' scripts: `sign` is a constant beside theta there, drawn anew where matrices are sparse."""
    method = DeepRewiring(sparsity=0.8, alpha=0.0, temperature=1e-2, signs=signs)
    model = begin(method)
    last = [y.forward_mask for y in model.layers]
    ever, sign = [mask.clone() for mask in last], [y.weight.signbit() for y in model.layers]
    same, other = 0, 0
    for _ in steps(method, model):
        for i, layer in enumerate(model.layers):
            mask, negative = layer.forward_mask, layer.weight.signbit()
            agree = (negative == sign[i])[mask & ~last[i] & ever[i]]
            same, other = same + int(agree.sum()), other + int((~agree).sum())
            sign[i], ever[i], last[i] = negative.where(mask, sign[i]), ever[i] | mask, mask
    assert same > 100 and (other == 0 if signs == "fixed" else 0.4 < other / (same + other) < 0.6)


def test_fixed_signs_are_those_of_the_first_weights_and_random_elsewhere() -> None:
    model = begin(method := DeepRewiring(sparsity=0.8))
    for layer in model.layers:
        negative, mask = method.memory[f"negative.{layer.name}"], layer.forward_mask
        assert torch.equal(negative[mask], layer.weight.signbit()[mask])
    assert 0.45 < negative_share(method) < 0.55


def negative_share(method: DeepRewiring) -> float:
    """Of the positions off the mask."""
    off = [method.memory[f"negative.{y.name}"][~y.forward_mask] for y in method.layers]
    return float(torch.cat(off).double().mean())


def test_a_weight_that_grew_keeps_the_sign_of_its_zero() -> None:
    """Down the gradient from zero: with the sign of the step it stays, with the other it goes at once."""
    model = begin(method := DeepRewiring(sparsity=0.5, alpha=0.0, temperature=0.0))
    layer = model.layers[1]
    for sign in (1.0, -1.0):
        layer.assign(torch.full(layer.shape, sign * 0.0, dtype=torch.float64))
        before, moved = layer.forward_mask.clone(), torch.full(layer.shape, -0.1, dtype=torch.float64)
        negative = layer.weight.signbit()
        layer.assign(moved)
        method.walk(layer, negative, 0.1)
        stayed = (layer.forward_mask & before & (layer.weight != 0)).sum()
        assert stayed == (0 if sign > 0 else before.sum())


@pytest.mark.parametrize(("lr", "alpha", "temperature"), [(0.1, 0.0, 0.0), (0.0, 1e-4, 1e-11)])
@pytest.mark.parametrize("kernel", ["masked", "compact"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_zero_that_does_not_move_keeps_place_and_sign(
    lr: float, alpha: float, temperature: float, kernel: str, sign: float
) -> None:
    """Whatever the sign of the zero that the optimiser leaves."""
    model = begin(method := DeepRewiring(sparsity=0.5, alpha=alpha, temperature=temperature), kernel)
    layer = model.layers[1]
    before, negative = layer.forward_mask.clone(), torch.full(layer.shape, sign < 0)
    for left in (0.0, -0.0):
        layer.assign(torch.full(layer.shape, left, dtype=torch.float64))
        method.walk(layer, negative, lr)
        assert torch.equal(layer.forward_mask, before)
        assert torch.equal(layer.weight.signbit()[before], negative[before])


def test_without_walk_and_noise_only_changes_of_sign_move_weights() -> None:
    method = DeepRewiring(sparsity=0.8, alpha=0.0, temperature=0.0)
    model = begin(method)
    for _, before, after in steps(method, model, 12):
        for layer, old, new in zip(model.layers, before, after, strict=True):
            flipped = old.mask & (np.signbit(old.weight) != np.signbit(new.weight))
            assert not (layer.weight.numpy()[flipped] != 0).any()
            assert layer.forward_mask.numpy()[old.mask & ~flipped].all()


def test_flops_are_three_sparse_passes(images) -> None:
    total, forward = spent(images, DeepRewiring(sparsity=0.8))
    assert total == pytest.approx(sum(3 * f for f in forward), rel=5e-3) and len(set(forward)) == 1


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kernel", ["masked", "compact"])
@pytest.mark.parametrize("signs", ["fixed", "drawn"])
def test_resuming_is_bit_exact(images, kernel: str, signs: str) -> None:
    same_after_resume(images, lambda: DeepRewiring(sparsity=0.8, alpha=0.05, signs=signs), 5, kernel)


@pytest.mark.parametrize("field", ["alpha", "temperature"])
def test_bad_values_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"deep_rewiring: {field} is -1"):
        DeepRewiring(**{field: -1.0})


def test_a_run_learns() -> None:
    method = DeepRewiring(sparsity=0.5)
    losses = train(method, begin(method))
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
