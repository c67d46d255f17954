"""Schedules: pure functions of the step t; begin and end are steps, fractional ones included."""

from __future__ import annotations

import math


def due(t: int, period: int, stop: float) -> bool:
    """Whether the topology changes at step t: every `period` steps, first at t = period, always before `stop`."""
    return 0 < t < stop and t % period == 0


def cosine(t: int, start: float, stop: float, floor: float = 0.0) -> float:
    """A drop fraction that falls from `start` at t = 0 to `floor` at t = `stop` along half a cosine, and stays there.

    Reference: RigL, arXiv 1911.11134, section 3(2); with a floor: code of ITOP, arXiv 2102.02887.
    """
    return floor + (start - floor) / 2 * (1 + math.cos(math.pi * t / stop)) if t < stop else floor


def cubic(t: int, begin: float, end: float) -> float:
    """The share of the way from initial to final sparsity at step t: 0 up to `begin`, 1 from `end` on, fast at first.

    Reference: Zhu & Gupta, arXiv 1710.01878, equation 1: s_t = s_i + (s_f - s_i) cubic(t).
    """
    if t <= begin or t >= end:
        return float(t >= end)
    return 1 - (1 - (t - begin) / (end - begin)) ** 3
