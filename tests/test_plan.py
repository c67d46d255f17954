import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstbench.suite import plan as plans
from dstbench.suite import planfile
from dstbench.suite.plan import Run
from dstbench.suite.planfile import PlanError

PLUGIN = """
from dataclasses import dataclass
from pathlib import Path

from dstbench.suite.method import Method
from dstbench.suite.recipe import Recipe
from dstbench.suite.registry import register
from dstbench.suite.task import DataError, Task


@register
class Thin(Method):
    alpha: float = 0.3


@register
class Full(Method):
    sparse = False


@dataclass(frozen=True)
class Random(Task):
    def prepare(self):
        if self.root == Path("/empty"):
            raise DataError(f"nothing in {self.root}")

    def fingerprint(self):
        return "f" * 12


register(Random(name="mine/task", version=2, recipe=Recipe(steps=10, batch=4, lr={"sgd": 0.1, "adam": 1e-3})))
"""
RUN = Run("rigl", "digits/mlp", 0.9, 0, {"alpha": 0.1}, data="0" * 12, precision="fp32")


@pytest.fixture
def plugin(tmp_path: Path) -> str:
    (tmp_path / "p.py").write_text(PLUGIN)
    return str(tmp_path / "p.py")


def expand(plugin: str, **options: object) -> list[Run]:
    given = {"methods": ["thin", "full"], "tasks": ["mine/task"], "sparsity": [0.9], "seeds": [0], "device": "cpu"}
    return plans.expand(planfile.read("quick", {**given, **options}, [plugin]), [plugin])


def test_the_key_is_the_hash_of_canonical_json() -> None:
    import hashlib

    text = (
        '{"budget":1.0,"data":"000000000000","device":"cpu","hyperparameters":{"alpha":0.1},"kernel":"masked",'
        '"method":"rigl","method_version":1,"precision":"fp32","schema":1,"seed":0,"sparsity":0.9,'
        '"task":"digits/mlp","task_version":1,"threads":1}'
    )
    assert RUN.key == hashlib.sha256(text.encode()).hexdigest()[:12]


IDENTITY = {
    "method": "set", "task": "digits/vit", "sparsity": 0.95, "seed": 1, "hyperparameters": {}, "recipe": {"steps": 3},
    "budget": 0.5, "precision": "bf16", "kernel": "compact", "device": "cuda", "threads": 2, "allocator": "tuned",
    "data": "1" * 12,
    "task_version": 2, "method_version": 2, "wrapped_versions": {"granet": 2},
    "definition": {"name": "mine/net", "data": "digits", "model": "mlp"},
}  # fmt: skip
HOW = {
    "plugins": ("a.py",), "data_root": "/d", "timeout": 3.0, "watts_per_core": 9.0,
    "download": True, "save_models": True,
}  # fmt: skip


@pytest.mark.parametrize("name", IDENTITY)
def test_what_the_result_depends_on_changes_the_key(name: str) -> None:
    assert replace(RUN, **{name: IDENTITY[name]}).key != RUN.key


@pytest.mark.parametrize("name", HOW)
def test_how_it_is_run_does_not_change_the_key(name: str) -> None:
    assert replace(RUN, **{name: HOW[name]}).key == RUN.key


def test_every_field_is_either_identity_or_not() -> None:
    assert IDENTITY.keys() | HOW.keys() == set(Run.__dataclass_fields__)


def test_the_number_of_the_gpu_is_no_identity() -> None:
    assert replace(RUN, device="cuda:1").key == replace(RUN, device="cuda").key != RUN.key


def test_the_default_allocator_is_in_no_key() -> None:
    assert "allocator" not in RUN.identity()
    assert replace(RUN, allocator="tuned").identity()["allocator"] == "tuned"


def test_the_version_of_what_is_wrapped_is_in_the_identity() -> None:
    def keys(*values: str) -> list[dict]:
        options = {"methods": ["ham"], "tasks": ["digits/mlp"], "sparsity": [0.9], "seeds": [0], "device": "cpu"}
        plan = [planfile.read("quick", {**options, "set": {"ham.on": value}}) for value in values]
        return [run.identity() for found in plan for run in plans.expand(found)]

    now, other = keys("granet", "rigl")
    assert now["wrapped_versions"] == {"granet": 2} and "wrapped_versions" not in other, "keys of old stay"


def test_recipe_is_in_the_identity_only_when_overridden() -> None:
    assert "recipe" not in RUN.identity()
    assert replace(RUN, recipe={"steps": 3}).identity()["recipe"] == {"steps": 3}


@given(
    st.builds(
        Run,
        method=st.text(min_size=1),
        task=st.text(min_size=1),
        sparsity=st.none() | st.floats(0, 1, exclude_max=True),
        seed=st.integers(0, 2**40),
        hyperparameters=st.dictionaries(st.text(), st.integers() | st.floats(allow_nan=False, allow_infinity=False)),
        plugins=st.lists(st.text()).map(tuple),
        timeout=st.none() | st.floats(1, 100),
    )
)
def test_json_carries_a_run_unchanged(run: Run) -> None:
    back = Run.from_json(json.loads(json.dumps(run.to_json())))
    assert back == run and back.key == run.key and len(run.key) == 12


def test_from_json_refuses_unknown_fields() -> None:
    with pytest.raises(TypeError, match="colour"):
        Run.from_json({**RUN.to_json(), "colour": "red"})


def test_expansion_runs_dense_once_per_seed(plugin: str) -> None:
    runs = expand(plugin, sparsity=[0.9, 0.95, 0.9], seeds=[0, 1])
    found = [(r.method, r.sparsity, r.seed) for r in runs]
    assert found == [
        ("thin", 0.9, 0), ("thin", 0.95, 0), ("full", None, 0),
        ("thin", 0.9, 1), ("thin", 0.95, 1), ("full", None, 1),
    ]  # fmt: skip
    assert len({r.key for r in runs}) == 6


def test_expansion_fills_in_what_the_task_says(plugin: str) -> None:
    run = expand(plugin)[0]
    assert (run.data, run.task_version, run.precision, run.device) == ("f" * 12, 2, "fp32", "cpu")
    assert run.plugins == (plugin,)


def test_only_what_is_not_default_reaches_the_run(plugin: str) -> None:
    plain = expand(plugin)[0]
    same = {"thin.alpha": "0.3", "mine/task.steps": "10", "mine/task.precision": "fp32"}
    assert expand(plugin, set=same)[0] == plain
    run = expand(plugin, set={"thin.alpha": "0.5", "mine/task.lr.sgd": "0.2"})[0]
    assert (run.hyperparameters, run.recipe) == ({"alpha": 0.5}, {"lr.sgd": 0.2})
    assert expand(plugin, set={"thin.alpha": "0.5"})[1] == expand(plugin)[1], "full takes nothing of thin's"


def test_precision_has_one_place(plugin: str) -> None:
    by_set = expand(plugin, set={"mine/task.precision": "bf16"})[0]
    assert by_set == expand(plugin, precision="bf16")[0] and by_set.precision == "bf16" and not by_set.recipe


def test_a_new_hyperparameter_with_a_default_keeps_the_keys(plugin: str, tmp_path: Path) -> None:
    later = tmp_path / "later.py"
    later.write_text(PLUGIN.replace("alpha: float = 0.3", "alpha: float = 0.3\n    beta: float = 1.0"))
    keys = [r.key for r in expand(plugin, set={"thin.alpha": 0.5})]
    assert [r.key for r in expand(str(later), set={"thin.alpha": 0.5})] == keys


def test_one_method_with_two_settings(plugin: str) -> None:
    runs = expand(plugin, methods=["thin", {"thin": {"alpha": 0.5}}, {"thin": {"alpha": 0.3}}])
    assert [r.hyperparameters for r in runs] == [{}, {"alpha": 0.5}]


def test_missing_data_is_said_before_anything_runs(plugin: str) -> None:
    from dstbench.suite.task import DataError

    plan = planfile.read("quick", {"methods": ["thin"], "tasks": ["mine/task"]}, [plugin])
    with pytest.raises(DataError, match="nothing in /empty"):
        plans.expand(plan, [plugin], data_root="/empty")


def test_a_method_that_cannot_be_loaded_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from dstbench.suite import registry

    known, tasks = registry.methods(), registry.tasks()
    known["dense"] = replace(known["dense"], target="dstbench.methods.lost:Dense")
    monkeypatch.setattr(registry, "_entries", lambda kind, *_: known if kind == "method" else tasks)
    with pytest.raises(registry.Broken, match="'dense' of built-in cannot be loaded: ModuleNotFoundError"):
        plans.expand(planfile.Plan(methods=["dense"], tasks=["digits/mlp"], device="cpu"))
    with pytest.raises(registry.Broken, match="'dense' of built-in cannot be loaded"):
        plans.expand(planfile.Plan(methods=[{"ham": {"on": "dense"}}], tasks=["digits/mlp"], device="cpu"))


def test_quick_is_135_runs() -> None:
    runs = plans.expand(planfile.read("quick", {"device": "cpu"}))
    assert len(runs) == 8 * 3 * 2 * 3 - 3 * 3 == 135
    assert sum(r.sparsity is None for r in runs) == 9


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert plans.resolve("auto") == plans.resolve("cpu") == "cpu"
    with pytest.raises(PlanError, match="device 'cuda:0': torch finds none"):
        plans.resolve("cuda:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(PlanError, match="device 'cuda:2': torch finds cuda:0 to cuda:1 alone"):
        plans.resolve("cuda:2")
    assert plans.resolve("auto") == "cuda" and plans.resolve("cuda:1") == "cuda:1"
