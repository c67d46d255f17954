"""python -m benchmarks.steps: its candidates, rows and ceiling, tiny."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from benchmarks import amdahl, steps, timing
from dstbench.suite import registry
from dstbench.suite.train import Training

SMALL = steps.Noise(
    "mlp",
    steps.RECIPE,
    model=steps.models.mlp,
    arguments={"inputs": 48, "hidden": (40, 40), "outputs": 10},
    shape=(3, 4, 4),
    layouts=("",),
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch) -> None:
    monkeypatch.setattr(timing, "SAMPLE", 0.0)
    monkeypatch.setattr(amdahl, "SECONDS", 0.0)
    monkeypatch.setattr(amdahl, "PAIRS", 1)


def run(capsys, *arguments: str) -> dict:
    common = ("--threads", "1", "--batch", "2", "--rounds", "1", "--allocator", "system", "--json")
    assert steps.main([*arguments, *common]) == 0
    return json.loads(capsys.readouterr().out)


def test_models_have_the_names_of_the_command() -> None:
    assert list(steps.MODELS) == ["mlp", "vit_tiny", "resnet18", "vgg16"]
    assert all(task.name == name for name, task in steps.MODELS.items())


@pytest.mark.slow
def test_rows_of_the_mlp(capsys) -> None:
    found = run(capsys, "--only", "mlp", "--sparsity", "0.9", "0.99")
    assert found["machine"]["cpu"] and found["allocator"] == "system"
    got = [(row["model"], row["kernel"], row["sparsity"]) for row in found["rows"]]
    dense = [("mlp", "dense", None), ("mlp", "dense bf16", None)]
    assert got == [*dense, ("mlp", "masked", 0.9), ("mlp", "sparse", 0.9), ("mlp", "sparse", 0.99)]
    assert found["rows"][0]["speedup"] == 1
    for row in found["rows"]:
        assert row["speedup"] == pytest.approx(found["rows"][0]["seconds"] / row["seconds"])
        assert row["routes"] == {"sparse" if row["kernel"] == "sparse" else "masked": 3}
    size = {(row["kernel"], row["sparsity"]): row["training_state"] for row in found["rows"]}
    assert size["sparse", 0.99] < size["sparse", 0.9] < size["dense", None] < size["masked", 0.9]


@pytest.mark.slow
def test_other_methods_are_measured_under_the_same_kernel(capsys) -> None:
    rows = run(capsys, "--only", "mlp", "--sparsity", "0.9", "--methods", "static,block_rigl,nuclear_linbreg")["rows"]
    found = {row["kernel"]: row["routes"] for row in rows[3:]}
    assert [row["kernel"] for row in rows[:3]] == ["dense", "dense bf16", "masked"]
    assert found["sparse"] == {"sparse": 3} and found["sparse nuclear_linbreg"] == {"dense": 3}
    assert found["sparse block_rigl"] == {"sparse 8x1": 2, "sparse 2x1": 1}, "ten outputs are five pairs"
    with pytest.raises(SystemExit):
        run(capsys, "--only", "mlp", "--methods", "statik")
    assert "unknown method 'statik'" in capsys.readouterr().err


@pytest.mark.slow
def test_methods_are_set_and_left_out_where_they_cannot_run(capsys, monkeypatch) -> None:
    pytest.importorskip("torch_pruning")
    found = steps.settings(["depgraph.at=0", "rigl:itop.alpha=0.5", "depgraph.stop=0.1"])
    assert found == {"depgraph": {"at": "0", "stop": "0.1"}, "rigl:itop": {"alpha": "0.5"}}
    monkeypatch.setitem(steps.MODELS, "vit_tiny", SMALL)
    some = ("--only", "vit_tiny", "--sparsity", "0.5", "--methods")
    cut = run(capsys, *some, "depgraph", "--set", "depgraph.at=0")["rows"][-1]
    assert cut["kernel"] == "sparse depgraph" and cut["routes"] == {"dense": 3}
    monkeypatch.setattr("dstbench.methods.depgraph.DepGraph.skip", lambda self, task: "no channels")
    assert [row["kernel"] for row in run(capsys, *some, "depgraph")["rows"]] == ["dense", "dense bf16", "masked"]
    both = ("--set", "static.allocation=erk", "--set", "depgraph.at=0")
    assert run(capsys, *some, "static,depgraph", *both)["rows"]
    wrongs = {
        "depgraph.att=0": "no field 'att'",
        "at=0": "is no METHOD.FIELD=VALUE",
        "rigl.alpha=0.1": "is not measured",
    }
    for wrong, text in {**wrongs, "depgraph.sparsity=0.1": "give --sparsity instead"}.items():
        with pytest.raises(SystemExit):
            run(capsys, *some, "depgraph", "--set", wrong)
        assert text in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layers", "layouts"), [("resnet18", 21, 2), ("vgg16", 14, 2), ("vit_tiny", 48, 1)])
def test_every_network_takes_the_sparse_route(capsys, name: str, layers: int, layouts: int) -> None:
    rows = run(capsys, "--only", name, "--sparsity", "0.95")["rows"]
    assert len(rows) == 2 * layouts + 2
    assert rows[-1]["kernel"] == "sparse" and rows[-1]["routes"] == {"sparse": layers}
    fp32 = [row for row in rows if row["kernel"] in ("dense", "dense NCHW", "dense NHWC")]
    assert len(fp32) == layouts and max(row["speedup"] for row in fp32) == 1
    assert all(0 < row["layers_share"] <= 1 for row in rows)


@pytest.mark.slow
def test_candidates_are_what_their_names_say() -> None:
    net = steps.replace(SMALL, model=lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(32, 10)))
    net = steps.replace(net, arguments={}, layouts=("NCHW", "NHWC"))
    options = steps.argparse.Namespace(methods=["static"], compile=True, sparsity=[0.9], set={})
    runs = steps.trainings(net, options)
    names = ["dense", "dense bf16", "dense compiled"]
    listed = [f"{name} {layout}" for name in names for layout in ("NCHW", "NHWC")]
    assert [key[0] for key in runs] == [*listed, "masked", "sparse"]
    for (name, _), training in runs.items():
        (images, _), last = next(training.task.batches("train", 0)), "NHWC" in name
        assert images.is_contiguous(memory_format=torch.channels_last) == last
        weight = training.model.layers[0].parameter
        assert weight.dim() < 4 or weight.is_contiguous(memory_format=torch.channels_last) == last
        assert (training.recipe.precision == "bf16") == ("bf16" in name)
        assert training.recipe.compile == ("compiled" in name)
        assert training.model.density == pytest.approx(0.1 if name in ("masked", "sparse") else 1, abs=0.01)
        if name == "sparse":
            steps.step(training)
            assert all(layer.kernel.route(layer) == "sparse" for layer in training.model.layers)


def test_the_vgg_has_the_weights_of_the_cifar_variant() -> None:
    net = steps.vgg16()
    assert sum(p.numel() for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear)) for p in [m.weight]) == (
        14_710_464 + 5_120  # 13 convolutions of Simonyan & Zisserman's configuration D, and 512 x 10
    )
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


# ---- the ceiling -------------------------------------------------------------------------------------------------


class Ticking:
    """A clock that the operations move: every call of one is a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 0.5
        return self.now


def watched(monkeypatch, function) -> float:
    training = Training(SMALL, registry.method("dense"))
    training.run(until=2)
    monkeypatch.setattr(amdahl, "time", Ticking())
    with amdahl.Stopwatch(training) as watch:
        function(training)
    return watch.seconds


def test_products_with_weights_and_their_updates_count_and_nothing_else(monkeypatch) -> None:
    def products(training: Training) -> None:
        one, two, three = (layer.parameter.detach() for layer in training.model.layers)  # 3
        state = training.method.optimizer.state[training.model.layers[0].parameter]["momentum_buffer"]
        torch.mm(torch.ones(2, 48), one.t())  # t() and mm: 2
        torch.mm(torch.ones(40, 2), torch.ones(2, 48))  # the shape of a weight: 1
        two.add_(1), state.mul_(2)  # 2
        torch._foreach_add_([three, torch.ones(1200)], 1.0)  # 400 of 1600 numbers: a quarter
        torch.ones(3, 3) @ torch.ones(3, 3), torch.ones(40, 40).relu()

    assert watched(monkeypatch, products) == pytest.approx(0.5 * 8.25)


def test_a_step_of_a_perceptron_is_mostly_its_layers(monkeypatch) -> None:
    """Three forward products, three weight and two input gradients, and four operations of SGD on each weight."""

    class Counting(amdahl.Stopwatch):
        names: list[str]

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            before = self.seconds
            out = super().__torch_dispatch__(function, types, args, kwargs)
            if self.seconds > before:
                self.names.append(function._overloadpacket.__name__)
            return out

    training = Training(SMALL, registry.method("dense"))
    training.run(until=2)
    Counting.names = []
    with Counting(training):
        training.run(until=3)
    found = Counting.names
    assert [found.count(name) for name in ("addmm", "mm")] == [3, 5]
    assert [found.count(name) for name in ("add", "mul_", "add_")] == [3, 3, 6]  # decay, momentum, gradient, step


def test_amdahl() -> None:
    assert amdahl.ceiling(0.75) == 4 and amdahl.ceiling(0.0) == 1 and amdahl.ceiling(1.0) is None
