"""What a seed alone determines: the networks of a task, by factory or by timm's name, and what is drawn for it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

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
