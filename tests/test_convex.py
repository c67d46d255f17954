"""Convex problems: losses, optima and noise against NumPy and scikit-learn, and LinBreg against a loop in NumPy."""

import math
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from dstbench.methods.bregman import LinBreg, MLLinBreg
from dstbench.suite.method import Method
from dstbench.suite.train import Training
from dstbench.tasks.convex import KINDS, LEAST, ConvexTask, PowerLaw, Problem

ZERO = {"sgd": 0.0, "adam": 0.0}
RECIPE = PowerLaw(20, 60, {"sgd": 0.3, "adam": 0.1}, weight_decay=ZERO, momentum=0.0)
TASK = ConvexTask("test/convex", RECIPE, problem=Problem(rows=60, inputs=20, nonzero=4))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_differences_of_the_loss(kind):
    problem = Problem(kind, rows=60, inputs=8, outputs=2, nonzero=3, spread=0.5)
    w, h = np.random.default_rng(0).standard_normal((2, 8)), 1e-6
    for place in np.ndindex(2, 8):
        up, down = w.copy(), w.copy()
        up[place] += h
        down[place] -= h
        slope = (problem.losses(up).sum() - problem.losses(down).sum()) / (2 * h)
        assert problem.gradient(w)[place] == pytest.approx(slope, abs=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_the_optimum_has_no_slope_and_nothing_is_below_it(kind):
    problem = Problem(kind, rows=120, inputs=8, outputs=3, nonzero=3, spread=0.5)
    best, least = problem.optimum
    assert np.abs(problem.gradient(best)).max() < 1e-12
    np.testing.assert_array_equal(problem.gaps(best), LEAST)
    for step in np.random.default_rng(1).standard_normal((20, 3, 8)) * 0.1:
        assert (problem.losses(best + step) > least).all()


def test_the_logistic_optimum_is_scikit_learns():
    from sklearn.linear_model import LogisticRegression

    problem = Problem("logistic", rows=120, inputs=8, nonzero=3)
    a, y, _ = problem.data
    found = LogisticRegression(C=1e12, fit_intercept=False, tol=1e-10, max_iter=1000).fit(a, y[:, 0])
    np.testing.assert_allclose(problem.optimum[0], found.coef_, rtol=1e-4)


def test_without_spread_the_optimum_is_the_sparse_truth():
    problem = Problem(rows=60, inputs=20, outputs=2, nonzero=4)
    truth = problem.data[2]
    np.testing.assert_allclose(problem.optimum[0], truth, atol=1e-12)
    assert ((truth != 0).sum(1) == 4).all() and (np.abs(truth[truth != 0]) >= 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_as_smooth_as_it_says(kind):
    problem = Problem(kind, rows=60, inputs=8, nonzero=3)
    a = problem.data[0]
    h = a.T @ a / 60 if kind == "least_squares" else a.T @ a / 240  # at w = 0, where the logistic curve is steepest
    assert problem.smoothness == pytest.approx(np.linalg.eigvalsh(h)[-1])


def test_classes_that_can_be_separated_have_no_optimum():
    with pytest.raises(ValueError, match="can be separated, so there is no optimum; give more rows"):
        _ = Problem("logistic", rows=6, inputs=20, nonzero=3).optimum


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_metric_are_the_problems(kind):
    problem = Problem(kind, rows=60, inputs=8, outputs=2, nonzero=3, spread=0.5)
    task = replace(TASK, problem=problem)
    net = task.build(0)
    w = net[0].weight.detach().numpy()
    loss = task.loss(net, next(task.batches("train", 0)))
    assert float(loss.detach()) == pytest.approx(problem.losses(w).sum(), rel=1e-12)
    loss.backward()
    np.testing.assert_allclose(net[0].weight.grad, problem.gradient(w), atol=1e-12)
    expected = math.log10(problem.gaps(w).mean())
    assert task.evaluate(net, "valid", torch.device("cpu")) == pytest.approx(expected, rel=1e-9)
    net[0].weight.data = torch.from_numpy(problem.optimum[0])
    assert task.evaluate(net, "test", torch.device("cpu")) <= -15 and not task.higher_is_better


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("noise, batch", [(0.7, 60), (0.0, 15), (0.7, 15)])
def test_noisy_gradients_are_unbiased_and_of_the_covariance_that_is_said(kind, noise, batch):
    problem = Problem(kind, rows=60, inputs=4, nonzero=2, spread=0.5)
    task = replace(TASK, problem=problem, noise=noise, recipe=replace(RECIPE, batch=batch))
    net = task.build(0)
    w, found = net[0].weight, []
    for rows in islice(task.batches("train", 0), 600):
        net.zero_grad()
        task.loss(net, rows).backward()
        found.append(w.grad.numpy().copy()[0])
    found, a = np.array(found), problem.data[0]
    error = found.std(0) / math.sqrt(len(found))
    assert (np.abs(found.mean(0) - problem.gradient(w.detach().numpy())[0]) < 4.5 * error).all()
    if batch == 60:
        np.testing.assert_allclose(np.cov(found.T), noise**2 * a.T @ a / 60**2, atol=0.2 * noise**2 / 60)


def test_batches_are_of_seed_and_step():
    task = replace(TASK, noise=1.0, recipe=replace(RECIPE, batch=7))
    found = list(islice(task.batches("train", 0), 5))
    again = next(task.batches("train", 0, start=4))
    assert all(torch.equal(a, b) for a, b in zip(again, found[4], strict=True))
    assert not torch.equal(next(task.batches("train", 1))[1], found[0][1])


def numpy_linbreg(problem, w, lam, tau, steps, m):
    """Both rules, coarse steps first, written out."""
    v, support, seen = w + lam * np.sign(w), w != 0, []
    for t in range(steps):
        g = problem.gradient(w)
        fine = t % (m + 1) == m or t == steps - 1
        v = v - tau * (g if fine else g * support)
        w = np.sign(v) * np.maximum(np.abs(v) - lam, 0)
        support = w != 0 if fine else support
        seen.append(w)
    return seen


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m", [0, 3])
def test_the_suites_methods_follow_a_loop_in_numpy(kind, m):
    problem = Problem(kind, rows=60, inputs=20, outputs=2, nonzero=4)
    options = {"control": "fixed", "lam": 0.2, "start_density": 0.3}
    method = MLLinBreg(m=m, **options) if m else LinBreg(**options)
    run = Training(replace(TASK, problem=problem), method)
    run.setup()
    (layer,) = run.model.layers
    expected = numpy_linbreg(problem, layer.weight.numpy().copy(), 0.2, 0.3, 20, m)
    for t, w in enumerate(expected):
        run.run(until=t + 1)
        np.testing.assert_allclose(layer.weight, w, atol=1e-13)


def test_outputs_are_runs_of_their_own():
    """Under noise, too: an output's run is the one of a problem with that output alone and the same noise."""
    problem = Problem(rows=60, inputs=20, outputs=3, nonzero=4)
    run = Training(replace(TASK, problem=problem, noise=0.5, start=0.0), LinBreg(control="fixed", lam=0.5))
    run.setup()
    run.run()
    a, tau = problem.data[0], 0.3
    draws = [y.numpy() for _, y in islice(run.task.batches("train", 0), 20)]
    for output in range(3):
        v = w = np.zeros(20)
        for y in draws:
            v = v - tau * (a @ w - y[:, output]) @ a / 60
            w = np.sign(v) * np.maximum(np.abs(v) - 0.5, 0)
        np.testing.assert_allclose(run.model.layers[0].weight[output], w, atol=1e-13)


@pytest.mark.parametrize("decay, hold", [(0.0, 1), (0.5, 10), (1.0, 3)])
def test_rates_follow_the_power_law(decay, hold):
    recipe = replace(RECIPE, decay=decay, hold=hold)
    assert [recipe.factor(t) for t in (0, 1, 7)] == [(1 + t / hold) ** -decay for t in (0, 1, 7)]
    half = recipe.scaled(0.5)
    assert (half.steps, half.factor(7), half.schedule) == (10, recipe.factor(7), "power law")


def test_dense_descent_reaches_the_optimum_in_any_start():
    run = Training(replace(TASK, recipe=replace(RECIPE, steps=60, lr={"sgd": 0.5, "adam": 0.1})), Method(sparsity=0.0))
    run.run()
    assert run.evaluate("valid") < -3
    assert not replace(TASK, start=0.0).build(3)[0].weight.any()
    assert not torch.equal(TASK.build(0)[0].weight, TASK.build(1)[0].weight)
    state = torch.get_rng_state()
    assert torch.equal(TASK.build(0)[0].weight, TASK.build(0)[0].weight)
    assert torch.equal(torch.get_rng_state(), state)


def test_fingerprints_and_bad_values():
    assert len({replace(TASK, problem=replace(TASK.problem, number=n)).fingerprint() for n in range(3)}) == 3
    for wrong, message in (
        ({"kind": "lasso"}, "choose one of least_squares, logistic"),
        ({"nonzero": 21}, "nonzero is 21"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(TASK.problem, **wrong)
    for wrong, message in (({"decay": 2.0}, "decay is 2.0"), ({"hold": 0}, "hold is 0")):
        with pytest.raises(ValueError, match=message):
            replace(RECIPE, **wrong)
    with pytest.raises(ValueError, match="noise is -1"):
        replace(TASK, noise=-1.0)
    with pytest.raises(ValueError, match="one width"):
        TASK.build(0, width=2.0)
    with pytest.raises(ValueError, match=r"recipe\.batch 61 is larger than the problem's 60 rows"):
        replace(TASK, recipe=replace(RECIPE, batch=61)).batches("train", 0)
    with pytest.raises(ValueError, match="unknown split"):
        TASK.batches("dev", 0)
