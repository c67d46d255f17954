"""Fitting: the arguments with which a network takes images of a shape, found on `meta`, where nothing is computed."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from dstbench.tasks.compose import TIMM
from dstbench.tasks.facts import Facts
from dstbench.tasks.seeded import Factory, made

SIZES = (32, 64, 96, 128, 224, 299, 384)  # that are tried for an advice
ADVICE = 3  # of them


def maker(name: str) -> Factory:
    """A model by name: a factory of `dstbench.tasks.models`, or timm's name behind "timm:"; both are known to be."""
    from dstbench.tasks import models

    if name.startswith(TIMM):
        return name.removeprefix(TIMM)
    return models.get(name)


def fitted(model: Factory, given: Mapping[str, Any], facts: Facts) -> dict[str, Any]:
    """All arguments with which the network takes such images and tells so many classes; those `given` stay.

    Args:
        model: A factory, or timm's name.
        given: Arguments that the user chose.
        facts: Of the data.

    Raises:
        ValueError: If it does not; the text names image sizes that it takes.
    """
    found, why = _try(model, given, facts)
    if found is not None:
        return found
    channels, height, width = facts.shape
    sizes: list[str] = []
    for size in SIZES:
        if len(sizes) < ADVICE and _try(model, given, Facts((channels, size, size), facts.classes))[0] is not None:
            sizes.append(f"{size}x{size}")
    mend = f"it takes {', '.join(sizes)}: write data: {{…, size: {sizes[0].partition('x')[0]}}}" if sizes else ""
    text = f"{label(model)} does not take images of {channels}x{height}x{width} ({why})"
    raise ValueError("; ".join(filter(None, [text, mend])))


def label(model: Factory) -> str:
    """How texts call a model."""
    return f"{TIMM}{model}" if isinstance(model, str) else getattr(model, "__name__", repr(model))


def _try(model: Factory, given: Mapping[str, Any], facts: Facts) -> tuple[dict[str, Any] | None, str]:
    """The arguments that work, or None and why none do."""
    why = ""
    for arguments in _choices(model, given, facts):
        try:
            with torch.device("meta"), torch.no_grad():
                net = made(model, arguments).eval()
                out = net(torch.zeros(2, *facts.shape))
            _whole_patches(net, facts)
            if not isinstance(out, Tensor) or out.shape != (2, facts.classes):
                shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
                raise ValueError(f"two images give {shape}, where (2, {facts.classes}) is expected")
            return arguments, ""
        except Exception as error:  # a network may raise anything against what it does not take
            why = why or (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return None, why


def _choices(model: Factory, given: Mapping[str, Any], facts: Facts) -> list[dict[str, Any]]:
    channels, height, width = facts.shape
    size = height if height == width else (height, width)
    known: dict[str, Any] = {"in_chans": channels, "num_classes": facts.classes}
    if isinstance(model, str):
        return [{**known, **given}, {**known, "img_size": size, **given}]
    known |= {"img_size": size, "inputs": channels * height * width, "outputs": facts.classes}
    parameters = inspect.signature(model).parameters
    return [{**{name: value for name, value in known.items() if name in parameters}, **given}]


def _whole_patches(net: nn.Module, facts: Facts) -> None:
    """ValueError where patches would leave a border of the images out."""
    for module in net.modules():
        patch = getattr(module, "patch_size", None)
        if isinstance(patch, tuple) and len(patch) == 2 and hasattr(module, "proj"):
            rest = [length % side for length, side in zip(facts.shape[1:], patch, strict=True)]
            if any(rest) and not getattr(module, "dynamic_img_pad", False):
                raise ValueError(f"patches of {patch[0]}x{patch[1]} do not fill the image")


def kind(model: Factory, arguments: Mapping[str, Any]) -> str:
    """The kind of optimiser that such networks are trained by: "adam" with layer norm and no batch norm, else "sgd"."""
    with suppress(Exception), torch.device("meta"):
        names = " ".join(type(module).__name__ for module in made(model, arguments).modules())
        return "adam" if "LayerNorm" in names and "BatchNorm" not in names else "sgd"
    return "sgd"
