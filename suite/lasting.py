"""Lasting: what of a network and of chance outlasts a process, and what no checkpoint can hold."""

from __future__ import annotations

import hashlib
import io
import pickle
import random
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from operator import methodcaller
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PLAIN = (bool, int, float, complex, str, bytes, bytearray, type(None), torch.dtype, torch.device, torch.Size)
OWN = frozenset(vars(nn.Module()))  # attributes that every module has: parameters, buffers, hooks


class Lasting:
    """The state of a network's modules beside its parameters: buffers, `get_extra_state`, plain attributes.

    It remembers the attributes that the network was built with: those that differ later belong into a checkpoint.
    Numbers, texts, tensors and torch's generators, and lists, tuples and dicts of them, can be held by one.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.built = {place: _print(value, self._known()) for place, value in self._attributes()}

    def state(self) -> dict[str, Any]:
        """Buffers by name, whatever their shape; the modules' own states; changed attributes as dicts.

        What `forgets` names is left out.
        """
        buffers = [(f"{path}.{name}".lstrip("."), b) for path, m in self._modules() for name, b in m._buffers.items()]
        attributes = []
        for (path, name), value in self._changed():
            held = value.get_state() if isinstance(value, torch.Generator) else value
            if not foreign(held):
                devices = {str(tensor.device) for tensor in _tensors(held)}
                attributes.append(
                    {"of": path, "name": name, "value": _map(_cut, held), "device": min(devices, default="")}
                )
        extra = {path: extra for path, extra in self._extra() if not foreign(extra)}
        return {"buffers": dict(buffers), "extra": extra, "attributes": attributes}

    def load(self, saved: Mapping[str, Any], device: torch.device) -> None:
        """Take back a `state` on a network built the same way."""
        with torch.no_grad():
            for name, value in saved["buffers"].items():
                path, _, attribute = name.rpartition(".")
                _put(self.net.get_submodule(path), attribute, value, device)
        for path, extra in saved["extra"].items():
            self.net.get_submodule(path).set_extra_state(extra)
        for attribute in saved["attributes"]:
            module, name = self.net.get_submodule(attribute["of"]), attribute["name"]
            if isinstance(there := getattr(module, name, None), torch.Generator):
                there.set_state(attribute["value"])
            else:
                setattr(module, name, _map(methodcaller("to", attribute["device"]), attribute["value"]))

    def forgets(self) -> list[str]:
        """What has changed in the modules and no checkpoint can hold, one text for each."""
        lost = []
        for (path, name), value in self._changed():
            if (why := foreign(value)) and not isinstance(value, torch.Generator):
                kind = type(self.net.get_submodule(path)).__name__
                lost.append(f"attribute {name!r} of module {path or 'net'!r} ({kind}) changes and holds a {why}")
        for path, extra in self._extra():
            if why := foreign(extra):
                lost.append(f"get_extra_state() of module {path or 'net'!r} holds a {why}")
        return lost

    def _modules(self) -> Iterator[tuple[str, nn.Module]]:
        yield from self.net.named_modules()

    def _extra(self) -> Iterator[tuple[str, Any]]:
        for path, module in self._modules():
            if type(module).get_extra_state is not nn.Module.get_extra_state:
                yield path, module.get_extra_state()

    def _attributes(self) -> Iterator[tuple[tuple[str, str], Any]]:
        for path, module in self._modules():
            for name in sorted(vars(module).keys() - OWN):
                yield (path, name), vars(module)[name]

    def _changed(self) -> Iterator[tuple[tuple[str, str], Any]]:
        known = self._known()
        for place, value in self._attributes():
            if (print_ := _print(value, known)) is not None and print_ != self.built.get(place):
                yield place, value

    def _known(self) -> _Known:
        return _Known(self.net)


class _Known:
    """What a network keeps in places of its own: an attribute may name it once more, but holds nothing by that."""

    def __init__(self, net: nn.Module) -> None:
        self.modules = {id(module): path for path, module in net.named_modules()}
        tensors = (*net.named_parameters(), *net.named_buffers())
        self.storages = {_storage(tensor): name for name, tensor in tensors}

    def name(self, thing: Any) -> str | None:
        """The name of a module, or of the tensor whose storage this one shares; also of what belongs to the suite."""
        if isinstance(thing, nn.Module):
            return self.modules.get(id(thing))
        if isinstance(thing, Tensor):
            return self.storages.get(_storage(thing)) if thing.numel() else None
        return type(thing).__qualname__ if type(thing).__module__.startswith("dstbench.suite.") else None


class _Printer(pickle.Pickler):
    """Pickles in order to compare: tensors by their content, what the network keeps elsewhere by its name."""

    def __init__(self, file: io.BytesIO, known: _Known) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.known = known

    def persistent_id(self, thing: Any) -> Any:
        if (name := self.known.name(thing)) is not None:
            return name
        if isinstance(thing, Tensor):
            return str(thing.dtype), tuple(thing.shape), hashlib.sha256(content(thing)).hexdigest()
        return thing.get_state().numpy().tobytes() if isinstance(thing, torch.Generator) else None


def _print(value: Any, known: _Known) -> Any:
    """What tells a value from another one; None for what cannot be looked into, such as a function."""
    if type(value) in PLAIN:
        return type(value).__name__, str(value)
    file = io.BytesIO()
    try:
        _Printer(file, known).dump(value)
    except Exception:  # a plugin's object may refuse in any way
        return None
    return file.getvalue()


def foreign(value: Any) -> str:
    """The type of the first part of a value that no checkpoint can hold, or ""."""
    kind = type(value)
    if kind in PLAIN or kind in (Tensor, nn.Parameter):
        return ""
    if isinstance(value, dict) and kind in (dict, OrderedDict, Counter):
        return next(filter(None, (foreign(part) for pair in value.items() for part in pair)), "")
    if kind in (list, tuple, set):
        return next(filter(None, map(foreign, value)), "")
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _map(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The value with each tensor in it replaced."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return type(value)({key: _map(function, part) for key, part in value.items()})
    return type(value)(_map(function, part) for part in value) if type(value) in (list, tuple) else value


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    _map(lambda tensor: found.append(tensor) or tensor, value)  # type: ignore[func-returns-value]
    return found


def _cut(tensor: Tensor) -> Tensor:
    """Without the graph of the pass that made it."""
    return tensor.detach().clone()


def _put(module: nn.Module, name: str, value: Tensor | None, device: torch.device) -> None:
    """Set a buffer: in place where its shape allows, since others may hold it, else a new one."""
    there = module._buffers.get(name)
    if value is not None and there is not None and (there.shape, there.dtype) == (value.shape, value.dtype):
        with suppress(RuntimeError):  # an expanded view has several entries at one place
            there.copy_(value)
            return
    module._buffers[name] = None if value is None else value.to(device if there is None else there.device)


def _storage(tensor: Tensor) -> int:
    with suppress(RuntimeError, NotImplementedError):
        return tensor.untyped_storage().data_ptr() or id(tensor)
    return id(tensor)


def content(tensor: Tensor) -> bytes:
    """The bytes of a tensor's values, of any type: numpy has no bfloat16 and no 8-bit numbers."""
    plain = tensor.detach().cpu()
    plain = plain.to_dense() if plain.layout != torch.strided else plain
    return plain.resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8).numpy().tobytes()


# ---- chance ----------------------------------------------------------------------------------------------------------


def seed(number: int) -> None:
    """Seed the generators of Python and numpy, which networks and data may draw from."""
    random.seed(number)
    np.random.seed(number % 2**32)


def chance() -> dict[str, Any]:
    """The state of both generators, as a checkpoint holds it."""
    state: Any = np.random.get_state()
    name, keys, *rest = state
    return {"python": random.getstate(), "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest)}


def take_chance(saved: Mapping[str, Any]) -> None:
    """Take back a state of `chance`."""
    name, keys, *rest = saved["numpy"]
    random.setstate(saved["python"])
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
