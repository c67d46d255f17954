"""Products of two factors: against NumPy step by step, balancing, growth, and what weight decay amounts to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dstbench.methods.factors import Factored, SignIn, Spred, factors
from dstbench.suite import registry
from dstbench.suite.method import Method
from nets import STEPS, begin
from pruning import same_after_resume, spent, trained
from updates import steps

KERNELS = pytest.mark.parametrize("kernel", ["masked", "compact"])


@settings(deadline=None)
@given(
    st.lists(st.floats(-100, 100).filter(lambda x: x == 0 or abs(x) > 1e-60), min_size=1, max_size=9), st.floats(0, 10)
)
def test_factors_are_balanced(values: list[float], beta: float) -> None:
    weight = torch.tensor(values, dtype=torch.float64)
    m, v = factors(weight, beta)
    torch.testing.assert_close(m * v, weight, rtol=1e-9, atol=1e-150)
    torch.testing.assert_close(m**2 - v**2, torch.full_like(m, beta), rtol=1e-6, atol=1e-6)
    assert (m >= 0).all()


class Follower:
    """One Layer's factors in NumPy, by SGD with momentum 0.9 and weight decay."""

    def __init__(self, weight: np.ndarray, beta: float, decay: float) -> None:
        self.beta, self.decay = beta, decay
        self.balance(weight)
        self.momenta = [np.zeros_like(weight), np.zeros_like(weight)]
        self.started = False

    def balance(self, weight: np.ndarray, where: np.ndarray | bool = True) -> None:
        m = np.sqrt((np.sqrt(4 * weight**2 + self.beta**2) + self.beta) / 2)
        v = np.divide(weight, m, out=np.zeros_like(weight), where=m > 0)
        old = getattr(self, "pair", [m, v])
        self.pair = [np.where(where, new, before) for new, before in zip((m, v), old, strict=True)]

    def step(self, grad: np.ndarray, lr: float) -> np.ndarray:
        m, v = self.pair
        grads = [grad * v + self.decay * m, grad * m + self.decay * v]
        self.momenta = [0.9 * b + g for b, g in zip(self.momenta, grads, strict=True)]
        self.pair = [x - lr * b for x, b in zip(self.pair, self.momenta, strict=True)]
        return self.pair[0] * self.pair[1]

    def grow(self, grown: np.ndarray) -> None:
        self.balance(np.zeros(grown.shape), grown)
        self.momenta = [np.where(grown, 0.0, b) for b in self.momenta]


@KERNELS
@pytest.mark.parametrize("on", ["static", "set", "rigl"])
@pytest.mark.parametrize("beta", [1.0, 0.25])
def test_every_step_of_sign_in_equals_the_simulation(kernel: str, on: str, beta: float) -> None:
    method = SignIn(on=on, sparsity=0.7, beta=beta)
    model = begin(method, kernel, weight_decay={"sgd": 0.01, "adam": 0.0})
    ours = [Follower(layer.weight.numpy().copy(), beta, 0.01) for layer in model.layers]
    for t, before, after in steps(method, model):
        for layer, y, mine in zip(model.layers, before, ours, strict=True):
            mask = layer.forward_mask.numpy()
            if after:
                expected = np.where(mask, mine.step(y.grad, method.lr(t)), 0.0)
            else:
                mine.grow(mask & ~y.mask)
                expected = np.where(mask & y.mask, y.weight, 0.0)
            np.testing.assert_allclose(layer.weight.numpy(), expected, rtol=1e-9, atol=1e-14)
            if (t + 1) % 4 == 0 and t + 1 < 0.5 * STEPS:
                mine.balance(layer.weight.numpy())


def test_a_sign_flips_through_the_smaller_factor() -> None:
    """With m > 0 and balanced, v passes through zero; with equal factors the sign stays for good."""
    flipped = {}
    for beta in (1.0, 0.0):
        m, v = (float(x) for x in factors(torch.tensor(0.01, dtype=torch.float64), beta))
        for _ in range(2000):  # down the slope of (w + 1)^2 / 2
            grad = m * v + 1
            m, v = m - 0.01 * grad * v, v - 0.01 * grad * m
        flipped[beta] = m * v
    assert flipped[1.0] == pytest.approx(-1, abs=1e-3) and abs(flipped[0.0]) < 1e-6


def test_weight_decay_on_equal_factors_is_an_l1_penalty() -> None:
    """min (w - a)^2 / 2 + k (u^2 + v^2) / 2 is soft thresholding of a by k."""
    for a, k in ((1.0, 0.3), (-2.0, 0.5), (0.2, 0.3)):
        m, v = (float(x) for x in factors(torch.tensor(a, dtype=torch.float64), 0.0))
        for _ in range(4000):
            grad = m * v - a
            m, v = m - 0.02 * (grad * v + k * m), v - 0.02 * (grad * m + k * v)
        assert m * v == pytest.approx(np.sign(a) * max(abs(a) - k, 0), abs=1e-3)


def test_spred_has_a_decay_of_its_own(images) -> None:
    for decay, expected in ((-1.0, None), (0.05, 0.05)):
        method = Spred(sparsity=0.8, decay=decay)
        training = trained(images, method)
        found = method.optimizer.param_groups[0]["weight_decay"]
        assert found == (training.recipe.weight_decay["sgd"] if expected is None else expected)
        assert sum(y.nnz() for y in training.model.layers) == round(0.2 * sum(y.numel for y in training.model.layers))


@pytest.mark.parametrize("method", [SignIn(sparsity=0.8), Spred(sparsity=0.8)])
def test_flops_are_those_of_what_is_wrapped(images, method: Method) -> None:
    total, forward = spent(images, method)
    assert total == pytest.approx(sum(3 * f for f in forward), rel=5e-3)


@pytest.mark.sampled(1)
@KERNELS
@pytest.mark.parametrize("name", ["sign_in", "sign_in:rigl", "sign_in:acdc", "spred", "spred:gradual"])
def test_resuming_is_bit_exact(images, name: str, kernel: str) -> None:
    for stop in (3, 9):
        same_after_resume(images, lambda: registry.method(name, sparsity=0.8), stop, kernel)


@KERNELS
def test_a_rewind_of_what_is_wrapped_is_not_lost(kernel: str) -> None:
    """Factors follow where IMP sets the weights back, with m^2 - v^2 = beta again."""
    method = SignIn(on="imp", sparsity=0.7, beta=0.5, stop=0.0)
    model = begin(method, kernel, weight_decay={"sgd": 0.01, "adam": 0.0})
    rewinds = 0
    for t, before, _ in steps(method, model):
        if t in method.inner.starts[1:]:
            rewinds += 1
            for layer, y, m, v in zip(model.layers, before, method.m, method.v, strict=True):
                kept = y.mask
                rewound = method.memory[f"rewind.{layer.key}"].numpy()
                np.testing.assert_array_equal(y.weight[kept], rewound[kept])
                v0 = np.sign(rewound) * np.sqrt((np.sqrt(4 * rewound**2 + 0.25) - 0.5) / 2)
                stepped = y.grad * v0 + 0.01 * np.sqrt(v0**2 + 0.5), y.grad * np.sqrt(v0**2 + 0.5) + 0.01 * v0
                for factor, start, grad in ((m, np.sqrt(v0**2 + 0.5), stepped[0]), (v, v0, stepped[1])):
                    expected = start - method.lr(t) * grad
                    np.testing.assert_allclose(factor.numpy()[kept], expected[kept], rtol=1e-9, atol=1e-12)
    assert rewinds == method.inner.rounds


def test_factors_of_weights_that_learn_unread_go_on() -> None:
    """Under STE a weight comes back at its own value: its factors are what the optimiser made of them."""
    method = SignIn(on="ste", sparsity=0.7, stop=0.0)
    model = begin(method, weight_decay={"sgd": 0.01, "adam": 0.0})
    ours = [Follower(layer.weight.numpy().copy(), 1.0, 0.01) for layer in model.layers]
    back = 0
    for t, before, _ in steps(method, model):
        for layer, y, mine, m in zip(model.layers, before, ours, method.m, strict=True):
            expected = mine.step(y.grad, method.lr(t))
            np.testing.assert_allclose(layer.weight.numpy(), expected, rtol=1e-9, atol=1e-14)
            np.testing.assert_allclose(m.numpy(), mine.pair[0], rtol=1e-9)
            back += int((layer.forward_mask.numpy() & ~y.mask).sum())
    assert back > 0


@pytest.mark.parametrize("kind", [SignIn, Spred])
def test_what_reads_the_momentum_of_weights_is_refused(kind: type[Factored]) -> None:
    with pytest.raises(ValueError, match=f"{kind.name}: on is 'snfs', which reads the momentum of weights"):
        kind(on="snfs")


@pytest.mark.parametrize(("kind", "field"), [(SignIn, "beta"), (SignIn, "stop"), (Spred, "decay")])
def test_bad_values_are_refused(kind: type[Factored], field: str) -> None:
    with pytest.raises(ValueError, match=f"{kind.name}: {field} is -2"):
        kind(**{field: -2.0})
