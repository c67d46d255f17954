"""What a seed alone determines: the networks of a task, by factory or by timm's name, and what is drawn for it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

Factory = str | Callable[..., nn.Module]


def build(
    name: str, model: Factory, arguments: Mapping[str, Any], widths: Mapping[str, int], seed: int, width: float = 1.0
) -> nn.Module:
    """A new network, initialised from `seed` alone; the global generator is as before.

    Args:
        name: The task's, for the message.
        model: A factory, or timm's name of a network.
        arguments: What it is called with.
        widths: The arguments that `width` scales, and what they must be multiples of.
        seed: Of the initial weights.
        width: A factor on those arguments.

    Raises:
        ValueError: For another width than 1 where nothing is named to scale.
    """
    if width != 1 and not widths:
        raise ValueError(f"{name}: the network has one width; name what to scale in the task's `widths`")
    arguments = {**arguments, **{k: scaled(arguments[k], width, multiple) for k, multiple in widths.items()}}
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        return made(model, arguments)
    finally:
        torch.set_rng_state(state)


def made(model: Factory, arguments: Mapping[str, Any]) -> nn.Module:
    """The network that a factory, or timm under that name, makes of the arguments, drawn from the global generator."""
    if callable(model):
        return model(**arguments)
    import timm

    return timm.create_model(model, pretrained=False, **arguments)


def scaled(value: Any, width: float, multiple: int) -> Any:
    """`width` times a number, or each of several: the nearest multiple of `multiple`, at least one of it."""
    if isinstance(value, tuple):
        return tuple(scaled(v, width, multiple) for v in value)
    return value if width == 1 else multiple * max(1, round(width * value / multiple))


def named(model: Factory) -> str:
    """A factory as "module:name", for the record."""
    return model if isinstance(model, str) else f"{model.__module__}:{model.__qualname__}"


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator that is a function of the key alone."""
    number = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big")
    return torch.Generator().manual_seed(number)


def epochs(name: str, pool: Tensor, batch: int, seed: int, split: str, start: int = 0) -> Iterator[tuple[int, Tensor]]:
    """(step, the indices of its batch) from step `start` on, without end.

    Every epoch is a new order of the pool, of (seed, split, epoch) alone; what does not fill its last batch is left
    out.

    Args:
        name: The task's, for the message.
        pool: Indices of the samples, (N,).
        batch: How many a step.
        seed: Of the run.
        split: "train" or "calibration".
        start: The first step.

    Raises:
        ValueError: For a batch larger than the pool.
    """
    if len(pool) < batch:
        raise ValueError(f"{name}: recipe.batch {batch} is larger than the {len(pool)} training samples")
    return _epochs(pool, batch, seed, split, start)


def _epochs(pool: Tensor, batch: int, seed: int, split: str, start: int) -> Iterator[tuple[int, Tensor]]:
    epoch, order = -1, pool
    for step in count(start):
        now, place = divmod(step, len(pool) // batch)
        if now != epoch:
            epoch, order = now, pool[torch.randperm(len(pool), generator=generator(seed, split, "epoch", now))]
        yield step, order[place * batch : (place + 1) * batch]
