"""Tables: splits, scaling and fingerprints of scikit-learn's embedded sets, against NumPy."""

import builtins
import sys

import numpy as np
import pytest
import torch
from sklearn import datasets

from dstbench.suite.task import DataError
from dstbench.tasks import data as data_index
from dstbench.tasks.data.tabular import split

SETS = {"breast_cancer": (569, 30, 2), "wine": (178, 13, 3), "iris": (150, 4, 3), "diabetes": (442, 10, 0)}


@pytest.mark.parametrize("name", SETS)
def test_sets_are_scikit_learns(name):
    rows, columns, classes = SETS[name]
    found = data_index.load(name)
    raw = getattr(datasets, f"load_{name}")(**({} if classes else {"scaled": False}))
    train = found.splits["train"].numpy()
    expected = (raw.data - raw.data[train].mean(0)) / raw.data[train].std(0)
    np.testing.assert_allclose(found.inputs, expected, rtol=1e-5, atol=1e-5)
    assert found.inputs.shape == (rows, columns) and found.classes == classes and not found.synthetic
    if classes:
        assert found.targets.tolist() == raw.target.tolist()
    else:
        wanted = (raw.target - raw.target[train].mean()) / raw.target[train].std()
        np.testing.assert_allclose(found.targets[:, 0], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [10, 150, 569])
def test_splits_are_disjoint_whole_and_fixed(count):
    found = split(count)
    assert sorted(torch.cat([*found.values()]).tolist()) == [*range(count)]
    assert all(torch.equal(a, b) for a, b in zip(found.values(), split(count).values(), strict=True))
    assert len(found["train"]) == round(0.6 * count)


def test_fingerprints_tell_sets_apart():
    assert len({data_index.load(name).fingerprint for name in SETS}) == len(SETS)


def test_without_scikit_learn_there_is_one_clear_error(monkeypatch):
    from dstbench.tasks.data import tabular as data_tabular

    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError("no sklearn")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.delitem(sys.modules, "sklearn", raising=False)
    with pytest.raises(DataError, match=r"iris: .*no sklearn.*pip install --force-reinstall scikit-learn"):
        data_tabular.iris()
