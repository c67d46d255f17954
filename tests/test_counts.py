"""Counts under zeros that come at any time, and a `grain` that excuses no more than a run does."""

from __future__ import annotations

from pathlib import Path

from broken import breach, wrong

AFTER_THE_STEP = """
    def step(self, t):
        super().step(t)
        if t % 8 == 7:
            for layer in self.layers:
                on, size = layer.forward_mask, layer.weight.abs()
                moved = int(on.sum()) // 5
                keep = on & (size > size[on].kthvalue(max(1, moved)).values)
                free = (~keep).flatten().nonzero().flatten()
                keep.view(-1)[free[torch.randperm(len(free), generator=self.rng)[:moved]]] = True
                layer.activate(keep)
"""
BY_NORM = """
    def begin(self, t):
        if t % 8 == 7:
            sizes = torch.stack([layer.weight.norm() for layer in self.layers])
            counts = [layer.nnz() for layer in self.layers]
            share = (sizes / sizes.sum()).tolist()
            for layer, part, (_, mask) in zip(self.layers, share, largest(self, lambda layer: layer.weight.abs())):
                layer.activate(mask if part > 0 else mask & False)
"""


def test_zeros_that_the_optimiser_leaves_are_counted(tmp_path: Path) -> None:
    text = wrong(breach(tmp_path, AFTER_THE_STEP), "counts are exact under zeros")
    assert "with half of the weights zero after the optimiser, from step 47 on" in text and "allocate.top" in text


def test_a_network_of_zeros_is_counted(tmp_path: Path) -> None:
    assert "with all" in wrong(breach(tmp_path, BY_NORM), "counts are exact under zeros")


def test_a_grain_excuses_no_more_than_a_run_does(tmp_path: Path) -> None:
    dense = "    grain = 10**6\n    def setup(self, gradients): ...\n"
    text = wrong(breach(tmp_path, dense), "density is on target")
    assert "a `grain` (1000000) excuses 5% of the target at most" in text
    assert "cut once more" in wrong(breach(tmp_path, "    def setup(self, gradients): ...\n"), "density is on target")
