"""Fields: how one value of a plan or of the command line is read; ValueError says what is expected, and mends."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from dstbench.suite.words import shown

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
LONGEST = 1000 * 86400.0  # seconds
COUNT, LARGEST = 1000, 2**32 - 1  # of the seeds that one number or one range stands for; of a seed itself
SEEDS = "seeds are a count (3: the seeds 0, 1 and 2), a list (0,4), a range (0-3), or all of them (0-2,7)"
DEVICES = "choose auto, cpu, mps, cuda or cuda:N"


def seconds(text: Any) -> Any:
    """ "2h", "1h30m", "90s" or a number of seconds, as seconds."""
    if text is None:
        return text
    text = str(text).strip().lower()
    number = r"\d+(?:\.\d*)?|\.\d+"
    if not re.fullmatch(rf"{number}|(?:(?:{number})\s*[smhd]\s*)+", text, flags=re.ASCII):
        raise ValueError("a time such as 90s, 15m, 2h or 1h30m is expected")
    parts = re.findall(rf"({number})\s*([smhd]?)", text, flags=re.ASCII)
    total = sum(float(amount) * UNITS[unit] for amount, unit in parts)
    if not 0 < total <= LONGEST:
        raise ValueError("a time above 0 and up to 1000d is expected")
    return total


def seeds(given: Any) -> Any:
    """Seeds from a count, a range "0-3", or a list of seeds and ranges, itself a list or separated by commas.

    A number alone is a count, in a plan as on the command line; only 0, which counts nothing, is the one seed 0.
    """
    if isinstance(given, str) and "," not in given and "-" not in given.strip().lstrip("-"):
        given = _whole(given)
    if isinstance(given, int | float):
        return _counted(given)
    parts = given.split(",") if isinstance(given, str) else given
    if not isinstance(parts, list | tuple):
        raise ValueError(SEEDS)
    if isinstance(given, str) and len(parts) > 1 and not parts[-1].strip():
        parts = parts[:-1]  # "3," is the one seed 3
    return [seed for part in parts for seed in _part(part)]


def _counted(given: int | float) -> list[int]:
    count = _whole(given)
    if count < 0:
        raise ValueError(SEEDS)
    if count > COUNT:
        raise ValueError(
            f"is it one seed? then write [{count}] in a plan, {count}, (with the comma) as an option; {SEEDS}"
        )
    return list(range(count)) or [0]


def _part(part: Any) -> Iterator[int]:
    ends = str(part).strip().split("-") if isinstance(part, str) else [part]
    low, high = _whole(ends[0]), _whole(ends[-1])
    if len(ends) > 2 or low < 0 or low > high:
        raise ValueError(f"{part!r} is no seed and no range; {SEEDS}")
    if high > LARGEST or high - low >= COUNT:
        raise ValueError(f"{part!r}: a seed is at most {LARGEST}, and a range has at most {COUNT}")
    yield from range(low, high + 1)


def _whole(given: Any) -> int:
    if isinstance(given, bool) or not re.fullmatch(r"-?\d{1,20}", str(given).strip(), flags=re.ASCII):
        raise ValueError(
            f"{shown(given)} is no whole number; {SEEDS}" if str(given).strip() else f"one is empty; {SEEDS}"
        )
    return int(str(given))


def sparsity(given: Any) -> float:
    """A share of zero weights from 0 up to 1, without 1."""
    text = str(given).strip()
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if isinstance(given, bool) or not 0 <= value < 1 or text.endswith("%"):
        share = value if text.endswith("%") else value / 100
        mend = f"; did you mean {share:g}?" if 1 < value < 100 or (text.endswith("%") and 0 <= share < 1) else ""
        raise ValueError(f"a share of zero weights from 0 up to 1 is expected, without 1 itself{mend}")
    return value + 0.0  # -0.0 is 0


def method(given: Any) -> Any:
    """A method of a plan's list: its name, or a mapping of names to hyper-parameters."""
    pairs = given.items() if isinstance(given, Mapping) and given else [(given, None)]
    for name, fields in pairs:
        if not isinstance(name, str) or not isinstance(fields, Mapping | None):
            raise ValueError("a method's name is expected, or NAME: {FIELD: VALUE}")
    return given


def device(given: Any) -> str:
    """A device's name; whether it is there is another question."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,4})?", str(given), flags=re.ASCII):
        raise ValueError(f"unknown device {shown(given)}; {DEVICES}")
    return str(given)
