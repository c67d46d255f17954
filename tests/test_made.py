"""Data made by code: every sample is what it says, no sample is in two splits, and streams never change."""

import numpy as np
import pytest
import torch

from dstbench.tasks import data as data_index
from dstbench.tasks.data.made import NOTHING, OPERATIONS, TOKENS, listops, modular_addition

# Fingerprints over content and splits: a change here is another data set, and a new version of its tasks.
FINGERPRINTS = {
    "modular_addition": "294aefafc8b8",
    "digit_addition": "4fda23c331c7",
    "listops": "225801dfdde4",
    "sparse_parity": "86aa37b46a02",
    "mnist1d": "28a247102d8b",
}
CLASSES = {"modular_addition": 97, "digit_addition": 10, "listops": 16, "sparse_parity": 2, "mnist1d": 10}


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_sets_are_synthetic_fixed_and_split(name):
    found = data_index.load(name)
    assert found.synthetic and found.classes == CLASSES[name] and found.fingerprint == FINGERPRINTS[name]
    whole = torch.cat([*found.splits.values()])
    assert sorted(whole.tolist()) == [*range(len(found.inputs))]
    assert len(np.unique(found.inputs.numpy(), axis=0)) == len(found.inputs)  # so none is in two splits
    asked = found.targets[found.targets != NOTHING]
    assert asked.min() >= 0 and asked.max() < found.classes


def test_sums_are_modulo_97():
    found = modular_addition()
    assert ((found.inputs.sum(1) - found.targets) % 97 == 0).all() and len(found.inputs) == 97 * 97


def test_sums_of_digits_are_reversed():
    found = data_index.load("digit_addition")
    digits = torch.cat([found.inputs, found.targets[:, -1:]], 1).numpy()
    a, b = digits[:, :3] @ [100, 10, 1], digits[:, 3:6] @ [100, 10, 1]
    assert (a + b == digits[:, 6:] @ [1, 10, 100, 1000]).all()
    assert (found.targets[:, :5] == NOTHING).all() and (found.targets[:, 5:8] == found.inputs[:, 6:]).all()


def value(words):
    """What a list comes to, by a stack instead of by the generator's recursion."""
    stack = []
    for word in words:
        if word == "]":
            terms = []
            while not isinstance(stack[-1], str):
                terms.append(stack.pop())
            stack.append(OPERATIONS[stack.pop()](terms))
        else:
            stack.append(word if word in OPERATIONS else int(word))
    (result,) = stack
    return result


def test_lists_come_to_what_is_asked_for():
    found = listops()
    for row, target in zip(found.inputs[:500].tolist(), found.targets[:500], strict=True):
        words = [TOKENS[i] for i in row if TOKENS[i] != "_"]
        assert value(words) == target[-1] and (target[:-1] == NOTHING).all() and row[-1] == TOKENS.index("]")
    assert [OPERATIONS[name]([7, 2, 9, 4]) for name in OPERATIONS] == [2, 9, 4, 2]


def test_parity_is_of_three_bits():
    found = data_index.load("sparse_parity")
    bits, parity = (found.inputs.numpy() + 1) / 2, found.targets.numpy()
    # By Fourier analysis over GF(2): exactly one product of three signs is the parity, of either sign.
    signs, wanted = 1 - 2 * bits[:400], 1 - 2 * parity[:400]
    triples = [(i, j, k) for i in range(30) for j in range(i) for k in range(j)]
    hits = [t for t in triples if abs((signs[:, list(t)].prod(1) * wanted).mean()) == 1]
    assert len(hits) == 1 and 0.45 < parity.mean() < 0.55


def test_mnist1d_is_the_authors():
    """First and last values of their make_dataset() of seed 42, mnist1d 0.0.2.post1, read once."""
    found = data_index.load("mnist1d")
    assert found.inputs.mean().abs() < 1e-6 and abs(float(found.inputs.std()) - 1) < 1e-4
    np.testing.assert_allclose(found.inputs[0, :4], [-0.3320057, -0.4719104, -0.7786971, -1.0097408], atol=1e-6)
    np.testing.assert_allclose(found.inputs[-1, -4:], [0.4472329, 0.6598756, 0.8777343, 1.1931518], atol=1e-6)
    assert found.targets[:8].tolist() == [2, 6, 4, 5, 6, 6, 6, 0] and found.targets.bincount().tolist() == [500] * 10
