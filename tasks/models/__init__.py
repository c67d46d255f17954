"""Networks by name: factories that timm's model names do not give, each loaded when it is first used.

Every factory of images takes `in_chans` and `num_classes`, and `img_size` where the network's shape depends on it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

MODELS = {
    "mlp": "perceptrons",
    "lenet300": "perceptrons",
    "mlp2022": "perceptrons",
    "mlp1024": "perceptrons",
    "set_mlp": "perceptrons",
    "autoencoder2022": "perceptrons",
    "token_mlp": "perceptrons",
    "lenet5": "lenets",
    "cnn2022": "lenets",
    "resnet": "resnets",
    "resnet18_small": "resnets",
    "resnet50_small": "resnets",
    "resnet20": "cifar_resnets",
    "resnet32": "cifar_resnets",
    "resnet56": "cifar_resnets",
    "vgg16": "vggs",
    "vgg19": "vggs",
    "wrn16_4": "wide_resnets",
    "wrn22_2": "wide_resnets",
    "wrn28_10": "wide_resnets",
    "resnet9": "fast",
    "mixer": "patches",
    "gpt": "sequences",
    "transformer_classifier": "sequences",
}


def names() -> list[str]:
    """The names of all factories; imports none of them."""
    return list(MODELS)


def get(name: str) -> Callable[..., nn.Module]:
    """The factory of that name.

    Args:
        name: One of `names()`.

    Returns:
        What makes a new network of keyword arguments, initialised from torch's global generator.

    Raises:
        ValueError: For an unknown name, with near ones.
    """
    if name not in MODELS:
        from dstbench.suite.values import near

        raise ValueError(f"unknown model {name!r}; {near(name, names())}, or timm:NAME")
    return getattr(importlib.import_module(f"{__name__}.{MODELS[name]}"), name)


def __getattr__(name: str) -> Any:
    if name in MODELS:
        return get(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
