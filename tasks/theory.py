"""Convex problems whose optimum is known: what a method does to the loss, apart from everything that a network adds.

Without decay and momentum, so that the learning rate is the step of theory, below 1 / smoothness.
"""

from __future__ import annotations

from dataclasses import replace

from dstbench.tasks.convex import ConvexTask, PowerLaw, Problem

RECIPE = PowerLaw(
    steps=1000, batch=200, lr={"sgd": 0.3, "adam": 0.03}, weight_decay={"sgd": 0.0, "adam": 0.0}, momentum=0.0
)

# The truth has as many entries as a sparsity of 0.9 leaves, and the data no noise: the optimum is sparse itself.
LEAST_SQUARES = ConvexTask(
    name="theory/least_squares",
    problem=Problem(rows=200, inputs=100, nonzero=10),
    recipe=RECIPE,
    source="ours; synthetic data, known optimum",
    chance=1.1,  # the weight zero
    target=-6.0,
)

LEAST_SQUARES_NOISY = replace(
    LEAST_SQUARES,
    name="theory/least_squares_noisy",
    noise=1.0,
    recipe=replace(RECIPE, steps=2000, decay=0.75, hold=100),
    target=-2.0,
)

LOGISTIC = ConvexTask(
    name="theory/logistic",
    problem=Problem("logistic", rows=400, inputs=50, nonzero=5),
    recipe=replace(RECIPE, batch=400, lr={"sgd": 2.0, "adam": 0.03}),
    source="ours; synthetic data, known optimum",
    chance=-0.35,
    target=-4.0,
)

LOGISTIC_MINIBATCH = replace(
    LOGISTIC,
    name="theory/logistic_minibatch",
    recipe=replace(RECIPE, steps=2000, batch=20, lr={"sgd": 2.0, "adam": 0.03}, decay=0.75, hold=100),
    target=-2.0,
)
