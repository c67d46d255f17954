"""Composers: one that adds nothing is the method that it wraps, bit for bit; what cannot be wrapped says so."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from dstbench.methods import METHODS
from dstbench.methods.compose import Composer
from dstbench.suite import plan, planfile, record, registry, sources
from dstbench.suite.registry import Entry
from dstbench.suite.run import execute
from nets import backward, begin
from pruning import same_after_resume, trained


@dataclass
class Nothing(Composer):
    """Adds nothing."""

    name: ClassVar[str] = "nothing"


WRAPPED = ("static", "set", "rigl", "rigl:itop", "granet", "acdc", "snip", "mest", "dsr", "gse", "oneshot", "srigl")
WRAPPED += ("snfs", "imp", "ste", "str", "topkast", "linbreg", "adabreg", "ml_linbreg", "dense")


@pytest.mark.sampled(6)
@pytest.mark.parametrize("on", WRAPPED)
def test_what_adds_nothing_is_the_method_itself(images, on: str) -> None:
    one = trained(images, registry.method(on, sparsity=0.8))
    other = trained(images, Nothing(on=on, sparsity=0.8))
    assert one.book == other.book and one.curve == other.curve
    assert one.method.rng.get_state().equal(other.method.rng.get_state())
    for a, b in zip(one.model.layers, other.model.layers, strict=True):
        assert torch.equal(a.weight, b.weight) and a.nnz() == b.nnz()
        assert a.state.keys() == b.state.keys() and all(torch.equal(v, b.state[k]) for k, v in a.state.items())


@pytest.mark.sampled(2)
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


@pytest.mark.parametrize("on", ["ham", "sign_in:rigl", "sam", "spred"])
def test_a_composer_wraps_no_composer(on: str) -> None:
    with pytest.raises(ValueError, match=f"nothing: on is '{on}', which has a method that it wraps itself; wrap one"):
        Nothing(on=on)


def test_a_composer_that_names_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dstbench.methods.METHODS", (*METHODS, Entry("nothing", "test_compose:Nothing")))
    with pytest.raises(ValueError, match="nothing: on is 'nothing', which has a method that it wraps itself"):
        registry.method("nothing", on="nothing")


@pytest.mark.parametrize(
    ("name", "on", "hook"),
    [
        ("sam", "small_dense", "network"),
        ("sam", "ml_linbreg", "make_optimizer"),
        ("ham", "linbreg", "make_optimizer"),
        ("ham", "str", "make_optimizer"),
        ("sign_in", "ml_linbreg", "make_optimizer"),
        ("spred", "topkast", "make_optimizer"),
    ],
)
def test_what_cannot_be_wrapped_says_so(name: str, on: str, hook: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: on is '{on}', which has a `{hook}` of its own; wrap one .*static"):
        registry.method(name, on=on)


def test_an_optimiser_put_in_its_place_is_the_one_that_steps() -> None:
    method = Nothing(on="rigl", sparsity=0.7)
    model = begin(method)
    other = torch.optim.SGD(model.groups(), lr=0.0)
    method.optimizer = other
    before = [layer.weight.clone() for layer in model.layers]
    method.begin(1)
    backward(model, 1)
    method.step(1)
    assert method.inner.optimizer is other
    assert all(torch.equal(layer.weight, w) for layer, w in zip(model.layers, before, strict=True))


def test_an_unknown_name_gets_suggestions() -> None:
    with pytest.raises(ValueError, match=r"unknown method 'rigll'.*rigl"):
        Nothing(on="rigll")
    with pytest.raises(ValueError, match="unknown method 'rigll'"):
        registry.method("ham", on="rigll")


INNER = """
from dstbench.methods.static import Static


class Inner(Static):
    name = "inner"
"""


@pytest.fixture
def inner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a method that can be wrapped."""
    path = tmp_path / "wrapped_by_test.py"
    path.write_text(INNER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("dstbench.methods.METHODS", (*METHODS, Entry("inner", "wrapped_by_test:Inner")))
    return path


def test_records_go_stale_with_the_source_of_what_is_wrapped(inner: Path) -> None:
    ham = registry.find("method", "ham")
    made = [
        {
            "id": {"key": key, "method": "ham", "task": "digits/mlp", "hyperparameters": given},
            "code": {"method_source": sources.source_hash(ham, given)},
        }
        for key, given in (("preset", {}), ("other", {"on": "inner"}), ("alpha", {"alpha": 1.0}))
    ]
    assert record.stale(made, sources.hashes(made)) == set()
    inner.write_text(INNER + "    changed = True\n")
    assert record.stale(made, sources.hashes(made)) == {"other"}


def test_a_hash_covers_what_presets_and_values_wrap(inner: Path) -> None:
    known = registry.methods()
    ham = {name: sources.source_hash(known[name]) for name in ("ham", "ham:static", "ham:acdc")}
    assert len(set(ham.values())) == 3, "one class, three methods behind it"
    assert sources.source_hash(known["ham"], {"on": "static"}) == ham["ham:static"]
    assert sources.source_hash(known["ham"], {"on": "gone"}) not in ham.values(), "no error: the run will say so"


def test_a_run_records_the_hash_of_what_it_wraps(tmp_path: Path) -> None:
    known = registry.methods()
    run = plan.Run("ham", "digits/mlp", 0.9, budget=0.02, hyperparameters={"on": "static"})
    assert execute(run.to_json(), str(tmp_path)) == "ok"
    (made,), _ = record.load(tmp_path)
    assert made["code"]["method_source"] == sources.source_hash(known["ham:static"])
    assert record.stale([made], sources.hashes([made])) == set()
    made["code"]["method_source"] = sources.source_hash(known["ham"])
    assert record.stale([made], sources.hashes([made])) == {made["id"]["key"]}


def test_a_run_on_a_name_that_is_not_there_says_so(tmp_path: Path) -> None:
    run = plan.Run("ham", "digits/mlp", 0.9, budget=0.02, hyperparameters={"on": "rigll"})
    assert execute(run.to_json(), str(tmp_path)) == "error"
    (made,), _ = record.load(tmp_path)
    assert "unknown method 'rigll'; did you mean rigl" in str(made["status"])


def test_on_a_dense_method_one_run_serves_every_level() -> None:
    given = {"methods": ["sam:dense", "sam", "ham"], "tasks": ["digits/mlp"], "sparsity": [0.8, 0.9], "seeds": [0]}
    runs = plan.expand(planfile.read("quick", {**given, "set": {"ham.on": "dense"}}))
    assert [(r.method, r.sparsity) for r in runs if r.method != "sam"] == [("sam:dense", None), ("ham", None)]
    assert sorted(r.sparsity for r in runs if r.method == "sam") == [0.8, 0.9]
    assert registry.method("sam:dense").sparse is False
