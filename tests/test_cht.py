"""CHT against loops over the paths and nodes of a graph, and updates of runs against NumPy."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from dstbench.methods.bipartite import SCORES, chains, link_scores, unlink
from dstbench.methods.cht import CHT, draw, graphs, shuffled_top
from dstbench.suite import registry
from dstbench.suite.model import SparseModel
from dstbench.suite.train import Training
from nets import STEPS, begin, train
from pruning import cosine, read, same_after_resume
from updates import largest, same, steps, zeroed

ENTRIES = pytest.mark.parametrize("name", ["cht", "cht:s", "cht:ss"])


def by_path(links: np.ndarray, squared: bool) -> np.ndarray:
    """Sum over the simple paths u - a - b - v of the geometric mean of (1 + internal or 1) / (1 + external links).

    Internal links of a node lead to nodes of such paths between u and v, external ones to all others but u and v.
    """
    n, m = links.shape
    near = {("u", i): {("v", j) for j in range(m) if links[i, j]} for i in range(n)}
    near |= {("v", j): {("u", i) for i in range(n) if links[i, j]} for j in range(m)}
    score = np.zeros((n, m))
    for i, j in zip(*np.nonzero(~links), strict=True):
        u, v = ("u", i), ("v", j)
        paths = [(a, b) for a in near[u] for b in near[a] - {u} if v in near[b] and a != v]
        community = {node for path in paths for node in path}
        value = {}
        for node in community:
            internal = len(near[node] & community)
            external = len(near[node] - community - {u, v})
            value[node] = (1 + internal if squared else 1) / (1 + external)
        score[i, j] = sum(np.sqrt(value[a] * value[b]) for a, b in paths)
    return score


def by_node(links: np.ndarray, squared: bool) -> np.ndarray:
    """Every neighbour of one end that shares a neighbour with the other end, once, from either side."""
    n, m = links.shape
    score = np.zeros((n, m))

    def worth(common: int, degree: int) -> float:
        return (1 + common if squared else 1) / max(1, degree - common) if common else 0.0

    for i, j in zip(*np.nonzero(~links), strict=True):
        for b in range(n):
            if links[b, j]:
                score[i, j] += worth(sum(links[b, k] and links[i, k] for k in range(m)), sum(links[b]))
        for a in range(m):
            if links[i, a]:
                score[i, j] += worth(sum(links[k, a] and links[k, j] for k in range(n)), sum(links[:, a]))
    return score


def oracle(links: np.ndarray, kind: str) -> np.ndarray:
    return (by_path if kind.endswith("p") else by_node)(links, kind.startswith("ch2"))


@settings(max_examples=60)
@given(st.integers(1, 7), st.integers(1, 7), st.floats(0, 1), st.integers(0, 99), st.sampled_from(SCORES))
def test_scores_equal_loops_over_the_graph(n: int, m: int, density: float, seed: int, kind: str) -> None:
    links = np.random.default_rng(seed).random((n, m)) < density
    found, _ = link_scores(torch.from_numpy(links), kind)
    np.testing.assert_allclose(found.numpy()[~links], oracle(links, kind)[~links], rtol=1e-5)


def test_scores_of_a_path_of_three_links_by_hand() -> None:
    """u0 reads v0, u1 reads v0, v1 and v2: the pair (u0, v1) has one path, whose u1 has one external link, to v2."""
    links = torch.tensor([[1, 0, 0], [1, 1, 1]], dtype=torch.bool)
    wanted = {"ch3_l3p": np.sqrt(1 / 2), "ch2_l3p": np.sqrt(2 * 2 / 2), "ch3_l3n": 1 / 2 + 1, "ch2_l3n": 2 / 2 + 2}
    for kind, value in wanted.items():
        assert link_scores(links, kind)[0][0, 1] == pytest.approx(value), kind


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("shape", [(5, 12), (12, 5), (6, 6)])
def test_what_scores_charge_is_what_torch_counts(kind: str, shape: tuple[int, int]) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.4
    with FlopCounterMode(display=False) as counter:
        charged = link_scores(mask, kind)[1]
    (n, m), k = shape, int(mask.sum())
    assert charged == counter.get_total_flops()
    assert charged == 2 * n * m * (n + m) + (2 * n * m * (n + m) if kind.endswith("n") else 2 * n * m * k)


def test_queries_keys_and_values_are_a_graph_a_head() -> None:
    """Scores by loops over each of 3 x 4 slices of 12 rows; other Layers are one graph."""
    method = registry.method("cht", sparsity=0.5, score="ch2_l3n")
    model = SparseModel(registry.task("digits/vit").build(0), torch.zeros(1, 1, 8, 8))
    method.attach(model, registry.task("digits/vit").recipe, seed=0)
    parts = {name: graphs(model[f"blocks.0.{name}"]) for name in ("attn.qkv", "attn.proj", "mlp.fc1")}
    assert parts == {"attn.qkv": 12, "attn.proj": 1, "mlp.fc1": 1}
    kept = torch.zeros(12 * 2, 5, dtype=torch.bool)  # twelve small graphs in place of the Layer's
    kept[:, :3] = torch.rand(24, 3, generator=torch.Generator().manual_seed(2)) < 0.6
    score = np.concatenate([oracle(kept[i : i + 2].numpy(), "ch2_l3n") for i in range(0, 24, 2)])
    score[kept.numpy()] = 0
    best = np.sort(score.ravel())[-3:]
    grown = method.grow(kept, 3, 12)
    assert sorted(score[grown.numpy()]) == pytest.approx(best) and best[0] > 0
    assert method.charged == 12 * 2 * (2 * 2 * 5 * (2 + 5))


@ENTRIES
def test_what_a_run_charges_is_what_torch_counts_in_its_updates(name: str) -> None:
    model = begin(method := registry.method(name, sparsity=0.8))
    train(method, model, 0, 4)
    with FlopCounterMode(display=False) as counter:
        method.update(4)
    assert method.charged == counter.get_total_flops() > 0


def removed(kept: list[np.ndarray]) -> list[np.ndarray]:
    """Chain removal between the two Linears of `nets.network`, neuron by neuron."""
    conv, first, second = (mask.copy() for mask in kept)
    for neuron in range(20):
        if not second[:, neuron].any():
            first[neuron] = False
    for neuron in range(20):
        if not first[neuron].any():
            second[:, neuron] = False
    return [conv, first, second]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("kernel", ["masked", "compact"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("score", ["ch3_l3p", "ch2_l3n"])
def test_every_update_of_a_run_equals_the_simulation(kernel: str, optimizer: str, score: str) -> None:
    method = CHT(sparsity=0.9, score=score, overlap=1.0)
    model = begin(method, kernel, optimizer=optimizer)
    updates, lost, returned = [], 0, 0
    for t, before, after in steps(method, model):
        assert not any(y.grad[~y.mask].any() for y in before), "never a gradient off the mask"
        if after:
            continue
        updates.append(t)
        moved = [int(0.3 * cosine(t / (0.75 * STEPS)) * int(y.mask.sum())) for y in before]
        size = [np.where(y.mask, np.abs(y.weight), -1.0) for y in before]
        large = [largest(s, int(y.mask.sum()) - k) for s, y, k in zip(size, before, moved, strict=True)]
        kept = removed(large)
        lost += sum(int(a.sum() - b.sum()) for a, b in zip(large, kept, strict=True))
        for layer, y, stay in zip(model.layers, before, kept, strict=True):
            now = layer.forward_mask.numpy()
            grown = now & ~stay
            assert now[stay].all() and now.sum() == y.mask.sum()
            rank = oracle(stay.reshape(len(stay), -1), score).reshape(stay.shape)
            rest = ~now
            if grown.any() and rest.any():
                assert rank[grown].min() >= rank[rest].max() * (1 - 1e-5)
            returned += int((grown & y.mask).sum())
            lives = now & y.mask  # what was dropped and has grown again at once has lost nothing
            same(layer, now, np.where(lives, y.weight, 0.0), zeroed(y.state, lives))
    assert updates == [*range(4, 30, 4)] and lost and returned


def test_the_best_are_equal_in_chance_where_they_tie() -> None:
    score, rng = torch.tensor([1.0, 3.0, 2.0, 2.0, 2.0]), torch.Generator().manual_seed(0)
    drawn = sum(shuffled_top(score, 2, rng).double() for _ in range(3000)) / 3000
    np.testing.assert_allclose(drawn, [0, 1, 1 / 3, 1 / 3, 1 / 3], atol=0.03)


def test_what_grows_is_drawn_in_proportion_without_replacement() -> None:
    odds, rng = torch.tensor([0.0, 1.0, 2.0, 5.0]), torch.Generator().manual_seed(0)
    share = odds / odds.sum()
    one = sum(draw(odds.log(), 1, rng).double() for _ in range(4000)) / 4000
    np.testing.assert_allclose(one, share, atol=0.03)
    two = sum(draw(odds.log(), 2, rng).double() for _ in range(4000)) / 4000
    second = [sum(share[j] * share[i] / (1 - share[j]) for j in range(4) if j != i) for i in range(4)]
    np.testing.assert_allclose(two, share + torch.tensor(second), atol=0.03)


@pytest.mark.parametrize(("t", "heat"), [(0, 1.0), (15, 2.0), (30, 3.0)])
def test_what_stays_is_drawn_with_odds_that_sharpen(t: int, heat: float) -> None:
    """Two weights, 1 and 2, of which one stays: the larger with odds 2^T, T from 1 to `heat` at 0.75 of the run."""
    method = CHT(sparsity=0.9, soft=True, heat=3.0, alpha=0.5, floor=0.5)
    model = begin(method, steps=41)
    layer = model.layers[0]
    mask = torch.zeros(layer.shape, dtype=torch.bool)
    mask.view(-1)[[3, 8]] = True
    layer.activate(mask)
    weight = torch.zeros(layer.numel).double()
    weight[3], weight[8] = -1.0, 2.0
    layer.assign(weight.view(layer.shape))
    stays = sum(method.keep(layer, t).double() for _ in range(3000)).view(-1) / 3000
    assert float(stays[8]) == pytest.approx(2**heat / (1 + 2**heat), abs=0.03)
    assert float(stays[3] + stays[8]) == pytest.approx(1.0)


def test_relative_importance_decides_what_goes() -> None:
    method = CHT(sparsity=0.7, importance="ri")
    model = begin(method)
    layer = model.layers[1]
    size = layer.weight.abs().numpy()
    ri = [[x / (size[:, j].sum() + 1e-5) + x / (row.sum() + 1e-5) for j, x in enumerate(row)] for row in size]
    count = layer.nnz() - int(0.3 * layer.nnz())
    wanted = largest(np.where(layer.forward_mask.numpy(), np.array(ri), -1.0), count)
    assert np.array_equal(method.keep(layer, 0).numpy(), wanted)


def test_chain_removal_by_hand() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    first, second, third = (
        torch.tensor(m, dtype=torch.bool) for m in ([[1, 0], [0, 0], [1, 1]], [[1, 0, 1], [0, 1, 0]], [[1, 0]])
    )
    masks = {"a": first, "b": second, "c": third}
    unlink([("a", "b"), ("b", "c")], masks)  # type: ignore[list-item, arg-type]
    assert masks["c"].tolist() == [[True, False]]
    assert masks["b"].tolist() == [[True, False, True], [False, False, False]]  # nothing reads neuron 1 of the second
    assert masks["a"].tolist() == [[True, False], [False, False], [True, True]]
    model = begin(CHT())
    pairs = chains(model.net, model.layers)
    assert [(a.name, b.name) for a, b in pairs] == [("4", "6")] and not chains(net, [])


@pytest.mark.parametrize("period", [0, 3, 100])
def test_the_density_falls_along_the_codes_sigmoid(period: int) -> None:
    """In the code: k = 6 / mid, x = 1 / (1 + exp(-k (i - mid))), rescaled to (0, 1)."""
    method = registry.method("cht:ss", sparsity=0.9, allocation="uniform", period=period, stop=1.0)
    model = begin(method, steps=41)
    for t in range(41):
        train(method, model, t, t + 1)
        update = t - t % (period or 4) if t < 40 else 40
        a0, a1, x = (1 / (1 + np.exp(-6 / 20 * (i - 20))) for i in (0, 40, update))
        density = 0.5 - 0.4 * ((x - 0.5) / (a1 - a0) + 0.5)
        assert abs(sum(y.nnz() for y in model.layers) - density * 2108) <= 0.5 + 1e-6
    assert sum(y.nnz() for y in model.layers) == 211


@settings(max_examples=25)
@given(
    st.floats(0, 0.99),
    st.sampled_from(SCORES),
    st.booleans(),
    st.integers(1, 5),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from(["erk", "uniform"]),
)
def test_counts_are_exact(sparsity, score, soft, period, alpha, start, allocation) -> None:
    fields = {"score": score, "soft": soft, "period": period, "alpha": alpha, "start_density": start}
    method = CHT(sparsity=sparsity, allocation=allocation, **fields)
    model = begin(method, steps=14)
    total = max(3, round((1 - sparsity) * 2108))
    for t in range(14):
        train(method, model, t, t + 1)
        if start <= 1 - sparsity:
            assert sum(y.nnz() for y in model.layers) == total
        assert min(y.nnz() for y in model.layers) >= 1
    assert sum(y.nnz() for y in model.layers) == total


def test_a_layer_that_drops_what_it_grows_settles_and_costs_nothing_more() -> None:
    model = begin(method := CHT(sparsity=0.5, overlap=0.0))
    settled: dict[int, list] = {}
    for t in range(STEPS):
        masks, charged = [y.forward_mask for y in model.layers], method.charged
        before = method.memory["settled"].tolist()
        train(method, model, t, t + 1)
        for i, done in enumerate(before):
            assert not done or torch.equal(model.layers[i].forward_mask, masks[i])
        settled[t] = method.memory["settled"].tolist()
        assert not all(before) or method.charged == charged
    assert not any(settled[3]) and all(settled[STEPS - 1])
    model = begin(method := CHT(sparsity=0.9, overlap=1.0))
    train(method, model)
    assert not method.memory["settled"].any()


@ENTRIES
def test_the_papers_flops_are_three_sparse_passes(images, name: str) -> None:
    method = registry.method(name, sparsity=0.8, period=5)
    training, forward = Training(images, method), []
    training.setup()
    descend = method.descend
    method.descend = lambda batch: forward.append(read(training)) or descend(batch)
    training.run()
    assert training.book.papers / images.recipe.batch == pytest.approx(3 * sum(forward), rel=5e-3)
    assert training.book.dense_gradient_steps == 0 and training.book.charged == method.charged > 0


@pytest.mark.sampled(1)
@ENTRIES
@pytest.mark.parametrize("kernel", ["masked", "compact"])
def test_resuming_is_bit_exact(images, kernel: str, name: str) -> None:
    same_after_resume(images, lambda: registry.method(name, sparsity=0.8, period=2), 5, kernel)


def test_a_settled_layer_stays_so_after_a_resume(images) -> None:
    same_after_resume(images, lambda: CHT(sparsity=0.5, period=2, overlap=0.1), 9, "masked")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"score": "ch2_l3m"}, "did you mean 'ch2_l3"),
        ({"importance": "size"}, "cht: importance is 'size'"),
        ({"heat": 0.5}, "cht: heat is 0.5"),
        ({"overlap": 1.5}, "cht: overlap is 1.5; give a value from 0 to 1"),
        ({"start_density": 2.0}, "cht: start_density is 2"),
    ],
)
def test_bad_fields(fields, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        CHT(**fields)


def test_every_kind_of_score_and_importance_trains() -> None:
    for score, importance, soft in product(SCORES, ("magnitude", "ri"), (False, True)):
        model = begin(method := CHT(sparsity=0.9, score=score, importance=importance, soft=soft))
        losses = train(method, model)
        assert np.isfinite(losses).all()
