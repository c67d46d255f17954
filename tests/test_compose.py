"""Composers: one that adds nothing is the method that it wraps, bit for bit; what cannot be wrapped says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from methods.compose import Composer
from pruning import same_after_resume, trained
from suite import registry


@dataclass
class Nothing(Composer):
    """Adds nothing."""

    name: ClassVar[str] = "nothing"


WRAPPED = ("static", "set", "rigl", "rigl:itop", "granet", "acdc", "snip", "mest", "dsr", "gse", "oneshot", "srigl")


@pytest.mark.parametrize("on", WRAPPED)
def test_what_adds_nothing_is_the_method_itself(images, on: str) -> None:
    one = trained(images, registry.method(on, sparsity=0.8))
    other = trained(images, Nothing(on=on, sparsity=0.8))
    assert one.book == other.book and one.curve == other.curve
    assert one.method.rng.get_state().equal(other.method.rng.get_state())
    for a, b in zip(one.model.layers, other.model.layers, strict=True):
        assert torch.equal(a.weight, b.weight) and a.nnz() == b.nnz()
        assert a.state.keys() == b.state.keys() and all(torch.equal(v, b.state[k]) for k, v in a.state.items())


@pytest.mark.parametrize("kernel", ["masked", "compact"])
@pytest.mark.parametrize("on", ["rigl", "cht", "imp"])
def test_both_resume_together(images, on: str, kernel: str) -> None:
    same_after_resume(images, lambda: Nothing(on=on, sparsity=0.8), 5, kernel)


def test_what_the_wrapped_method_declares_and_charges_is_passed_on(images) -> None:
    srigl, inner = Nothing(on="srigl", sparsity=0.8), registry.method("srigl", sparsity=0.8)
    assert srigl.grown == inner.grown and srigl.keeps == inner.keeps
    assert trained(images, srigl).method.grain == trained(images, inner).method.grain > 1
    assert trained(images, Nothing(on="cht", sparsity=0.8)).book.charged > 0
    assert Nothing(on="nm", sparsity=0.9).skip(images) == registry.method("nm", sparsity=0.9).skip(images)


@pytest.mark.parametrize("on", ["small_dense", "linbreg", "ml_linbreg", "str", "topkast", "sam"])
def test_what_cannot_be_wrapped_says_so(on: str) -> None:
    with pytest.raises(ValueError, match=f"nothing: on is '{on}', which has a `.*` of its own; wrap a method"):
        Nothing(on=on)


def test_an_unknown_name_gets_suggestions() -> None:
    with pytest.raises(ValueError, match=r"unknown method 'rigll'.*rigl"):
        Nothing(on="rigll")
    with pytest.raises(ValueError, match="unknown method 'rigll'"):
        registry.method("ham", on="rigll")


def test_a_record_goes_stale_with_the_source_of_what_is_wrapped() -> None:
    known = registry.methods()
    hashes = {name: registry.source_hash(known[name]) for name in ("ham", "ham:static", "ham:acdc")}
    assert len(set(hashes.values())) == 3, "one class, three methods behind it"
