"""What intervals cover and how often boards claim a difference that is none: python -m benchmarks.coverage

Simulates methods without a difference, six cells each, and prints three tables in Markdown: how often a single 95 %
interval of a paired difference holds 0; how many boards tell any two methods apart that are alike; and the same for
other procedures, with the difference that each would see with 80 % power.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import numpy as np
from scipy.special import stdtrit

from dstbench.reports.statistics import ALPHA, LEVEL, POWER, bonferroni

SPREADS = {
    "equal": (1, 1, 1, 1, 1, 1),
    "unequal": (0.1, 0.2, 0.3, 1, 2, 5),
    "dominated 10:1": (10, 1, 1, 1, 1, 1),
    "dominated 30:1": (30, 1, 1, 1, 1, 1),
}
TAILS = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "Student, 3 df": lambda rng, shape: rng.standard_t(3, shape),
    "1 of 20 runs collapsed": lambda rng, shape: rng.standard_normal(shape) - 20 * (rng.random(shape) < 0.05),
    "in steps of 2 sd": lambda rng, shape: np.round(rng.standard_normal(shape) / 2) * 2,
}
SCENARIOS = [(spread, "normal") for spread in SPREADS] + [
    (spread, tail) for tail in list(TAILS)[1:] for spread in ("equal", "unequal", "dominated 10:1")
]
SEEDS = (2, 3, 4, 5, 6)
METHODS = (2, 8, 64)
CLUSTERS = 1e6  # between clusters of methods, in spreads: told apart by every procedure


def draw(
    rng: np.random.Generator, boards: int, methods: int, seeds: int, spread: str, tail: str = "normal"
) -> np.ndarray:
    """Scores without a difference: boards × methods × cells × seeds."""
    spreads = np.array(SPREADS[spread], dtype=float)
    return TAILS[tail](rng, (boards, methods, len(spreads), seeds)) * spreads[:, None]


def errors(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every pair of methods, boards × methods × methods: standard error, Satterthwaite's df, n − 1."""
    cells, n = x.shape[2:]
    centred = x - x.mean(-1, keepdims=True)
    total, squares = 0.0, 0.0
    for c in range(cells):
        own = centred[:, :, c]
        norm = (own**2).sum(-1)
        part = np.maximum(norm[:, :, None] + norm[:, None] - 2 * own @ own.transpose(0, 2, 1), 0)
        total, squares = total + part, squares + part**2
    with np.errstate(invalid="ignore"):
        df = np.nan_to_num((n - 1) * total**2 / squares, nan=n - 1)
    return np.sqrt(total / (n - 1) / n) / cells, df, np.full_like(df, n - 1)


def intervals(x: np.ndarray, rule: str, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Half-widths and detectable differences of every pair of methods by a rule: boards × methods × methods."""
    cells, n = x.shape[2:]
    error, satterthwaite, smallest = errors(x)
    if rule == "chosen" and n == 2:
        means = (x[..., 0] - x[..., 1]).sum(-1) / 2 / cells
        error, df = np.abs(means[:, :, None] - means[:, None]), smallest
    elif rule == "chosen":
        df = np.sqrt(satterthwaite * smallest)
    else:
        df = {"pooled": cells * smallest, "Satterthwaite": satterthwaite, "smallest n − 1": smallest}[rule]
    if rule == "chosen":
        pairs = error[:, *np.triu_indices(x.shape[1], 1)]
        error = np.maximum(error, np.median(pairs, axis=1)[:, None, None])
    with np.errstate(invalid="ignore"):
        critical = stdtrit(df, 0.5 + level / 2)
        return np.where(error > 1e-9, critical * error, np.inf), (critical + stdtrit(df, POWER)) * error


def false_claims(x: np.ndarray, rule: str, truth: np.ndarray | float = 0.0) -> np.ndarray:
    """Whether each board tells methods apart that are alike; `truth`: the methods' means, which are added.

    "chosen" compares with the best of each group in turn, as `reports.boards.ties`; others compare every pair.
    """
    boards, methods = x.shape[:2]
    truth = np.broadcast_to(truth, methods)
    means = x.mean((2, 3)) + truth
    count = methods if rule == "chosen" else methods * (methods - 1) // 2
    told = means[:, :, None] - means[:, None] > intervals(x, rule, bonferroni(count))[0]
    wrong = told & (truth[:, None] <= truth)
    if rule != "chosen":
        return wrong.any((1, 2))
    found, rest, every = np.zeros(boards, bool), np.ones((boards, methods), bool), np.arange(boards)
    while rest.any():
        best = np.where(rest, means, -np.inf).argmax(1)
        found |= (wrong[every, best] & rest).any(1)
        rest &= told[every, best]
    return found


def batches(
    seed: int, boards: int, methods: int, seeds: int, spread: str, tail: str = "normal"
) -> Iterator[np.ndarray]:
    """`boards` draws in batches that fit into memory, the same for the same seed."""
    rng, size = np.random.default_rng([seed, methods, seeds]), max(1, 200_000 // methods**2)
    for start in range(0, boards, size):
        yield draw(rng, min(size, boards - start), methods, seeds, spread, tail)


def coverage(pairs: int, seeds: int, spread: str, tail: str, rule: str = "chosen") -> float:
    """The share of 95 % intervals that hold 0, of so many pairs of methods without a difference."""
    hits = 0
    for x in batches(0, pairs, 2, seeds, spread, tail):
        half, _ = intervals(x, rule, LEVEL)
        means = x.mean((2, 3))
        hits += int((np.abs(means[:, 0] - means[:, 1]) <= half[:, 0, 1]).sum())
    return hits / pairs


def family(
    boards: int, methods: int, seeds: int, spread: str, tail: str = "normal", rule: str = "chosen",
    noisy: float = 1.0, clusters: int = 1,
) -> float:  # fmt: skip
    """The share of boards that claim any false difference; `noisy`: multiplies the spread of one method in eight."""
    scale = np.where(np.arange(methods) < methods // 8, noisy, 1.0)[:, None, None]
    truth = np.arange(methods) % clusters * CLUSTERS
    return sum(
        int(false_claims(x * scale, rule, truth).sum()) for x in batches(1, boards, methods, seeds, spread, tail)
    ) / boards  # fmt: skip


def detectable(methods: int, seeds: int, spread: str, rule: str, boards: int = 200) -> float:
    """The median difference that a rule would see with 80 % power, in true standard errors."""
    count = methods if rule == "chosen" else methods * (methods - 1) // 2
    error = np.sqrt(2 * np.square(SPREADS[spread]).sum() / seeds) / len(SPREADS[spread])
    found = [intervals(x, rule, bonferroni(count))[1][:, 0, 1] for x in batches(2, boards, methods, seeds, spread)]
    return float(np.median(np.concatenate(found))) / error


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headers, ["---"] + ["---:"] * (len(headers) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def cover_table(pairs: int) -> str:
    rows = []
    for spread, tail in SCENARIOS:
        found = [f"{100 * coverage(pairs, n, spread, tail):.1f}" for n in SEEDS]
        rows.append([f"{spread}, {tail}", *found, f"{100 * coverage(pairs, 3, spread, tail, 'pooled'):.1f}"])
    return markdown(["cells, runs", *[f"{n} seeds" for n in SEEDS], "pooled, 3 seeds"], rows)


def family_table(boards: dict[int, int]) -> str:
    more = [(spread, "normal", {"noisy": 7.0}) for spread in ("equal", "dominated 10:1")]
    more += [("dominated 10:1", "normal", {"clusters": 4})]
    names = {"noisy": "1 method in 8 with 7 × the spread", "clusters": "4 clusters of methods"}
    rows = []
    for spread, tail, extra in [(*s, {}) for s in SCENARIOS] + more:
        cells = []
        for n in SEEDS:
            rates = [family(boards[m], m, n, spread, tail, **extra) for m in METHODS]
            cells.append(" · ".join(f"{100 * rate:.1f}" for rate in rates))
        rows.append([", ".join([spread, tail, *[names[e] for e in extra]]), *cells])
    return markdown(["cells, runs", *[f"{n} seeds" for n in SEEDS]], rows)


def rules_table(boards: dict[int, int]) -> str:
    rows = []
    for rule in ("pooled", "Satterthwaite", "smallest n − 1", "chosen"):
        worst = [max(family(boards[m], m, 3, s, rule=rule) for s in SPREADS) for m in (8, 64)]
        seen = [detectable(m, 3, s, rule) for m in (8, 64) for s in ("equal", "unequal")]
        name = f"{rule}, every pair" if rule != "chosen" else "chosen: from the best of the group"
        rows.append([name, *[f"{100 * w:.1f}" for w in worst], *[f"{d:.1f}" for d in seen]])
    headers = [f"false, {m} methods" for m in (8, 64)]
    return markdown(["procedure", *headers, *[f"seen, {m}, {s}" for m in (8, 64) for s in ("equal", "unequal")]], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100_000, help="intervals for each entry of the first table")
    parser.add_argument(
        "--boards", default="20000,4000,500", help=f"for each entry of the others, by {METHODS} methods"
    )
    options = parser.parse_args()
    boards = dict(zip(METHODS, map(int, options.boards.split(",")), strict=True))
    print(f"Single 95 % intervals that hold the truth, %, of {options.pairs}:\n\n{cover_table(options.pairs)}")
    sizes, numbers = (" · ".join(map(str, each)) for each in (METHODS, boards.values()))
    print(f"Boards of {sizes} methods with a false claim, %, of {numbers}; at most {100 * ALPHA:.0f} are aimed at:\n")
    print(family_table(boards))
    print(f"Three seeds, the worst of {len(SPREADS)} spreads; seen: in standard errors:\n\n{rules_table(boards)}")
    print(f"numpy {np.__version__}")


if __name__ == "__main__":
    main()
