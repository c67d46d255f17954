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
from types import BuiltinMethodType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PLAIN = (bool, int, float, complex, str, bytes, bytearray, type(None), torch.dtype, torch.device, torch.Size)
OWN = frozenset(vars(nn.Module()))  # attributes that every module has: parameters, buffers, hooks, mode
PARTS = tuple(sorted(name for name in OWN - {"_buffers"} if isinstance(vars(nn.Module())[name], dict)))
GRADIENTS = "requires_grad_"  # the place of those of a module's parameters, as no attribute is named
NAMED = (FunctionType, type, ModuleType)  # are what they are called
Place = tuple[str, str]  # path of a module, name of an attribute


class Lasting:
    """The state of a network's modules beside its parameters: buffers, `get_extra_state`, modes, plain attributes.

    It remembers the attributes that the network was built with: those that differ later belong into a checkpoint.
    Numbers, texts, tensors and torch's generators, and lists, tuples and dicts of them, can be held by one. Modules,
    parameters and hooks that have come, gone or changed places cannot.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        known = self._known = _Known(net)
        self.built = {place: _print(value, known) for place, value in self._attributes()}
        self.parts = dict(self._parts())  # and so none of them is freed, and its id another's

    def state(self) -> dict[str, Any]:
        """Buffers by name, whatever their shape; the modules' own states; changed attributes as dicts.

        What `forgets` names is left out.
        """
        buffers = [(f"{path}.{name}".lstrip("."), b) for path, m in self._modules() for name, b in m._buffers.items()]
        attributes = []
        for (path, name), value, why in self._changed():
            if not why:
                held = value.get_state() if isinstance(value, torch.Generator) else value
                devices = {str(tensor.device) for tensor in _tensors(held)}
                cut = _map(methodcaller("detach"), held)  # from the graph of its pass; what shares memory goes on to
                attributes.append({"of": path, "name": name, "value": cut, "device": min(devices, default="")})
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
            if name == GRADIENTS:
                for parameter, wanted in attribute["value"].items():
                    module._parameters[parameter].requires_grad_(wanted)  # type: ignore[union-attr]
            elif isinstance(there := getattr(module, name, None), torch.Generator):
                there.set_state(attribute["value"])
            else:
                setattr(module, name, _map(methodcaller("to", attribute["device"]), attribute["value"]))

    def forgets(self) -> list[str]:
        """What has changed in the modules and no checkpoint can hold, one text for each."""
        now, lost = dict(self._parts()), []
        for place in sorted(now.keys() | self.parts.keys()):
            before, parts = self.parts.get(place, {}), now.get(place, {})
            others = [name for name in {**before, **parts} if before.get(name) is not parts.get(name)]
            if others:
                what = f"{place[1].strip('_').replace('_', ' ')} {', '.join(map(str, others[:5]))}"
                lost.append(f"{what} of {self._called(place[0])}: they are not those that it was built with")
        for (path, name), _, why in self._changed():
            if why:
                lost.append(f"attribute {name!r} of {self._called(path)} changes and holds a {why}")
        for path, extra in self._extra():
            if why := foreign(extra):
                lost.append(f"get_extra_state() of module {path or 'net'!r} holds a {why}")
        return lost

    def _called(self, path: str) -> str:
        kind = type(dict(self._modules()).get(path)).__name__
        return f"module {path or 'net'!r} ({kind})"

    def _modules(self) -> Iterator[tuple[str, nn.Module]]:
        yield from self.net.named_modules()

    def _extra(self) -> Iterator[tuple[str, Any]]:
        for path, module in self._modules():
            if type(module).get_extra_state is not nn.Module.get_extra_state:
                yield path, module.get_extra_state()

    def _parts(self) -> Iterator[tuple[Place, dict[Any, Any]]]:
        """Parameters, modules and hooks of each module, by their names there."""
        for path, module in self._modules():
            for name in PARTS:
                if held := vars(module).get(name):
                    yield (path, name), dict(held)

    def _attributes(self) -> Iterator[tuple[Place, Any]]:
        for path, module in self._modules():
            yield (path, "training"), module.training
            yield (path, GRADIENTS), {name: p.requires_grad for name, p in module._parameters.items() if p is not None}
            for name in sorted(vars(module).keys() - OWN):
                yield (path, name), vars(module)[name]

    def _changed(self) -> Iterator[tuple[Place, Any, str]]:
        """Attributes that are not as they were built, and what of each no checkpoint can hold, or ""."""
        known = _Known(self.net, self._known.modules)
        for place, value in self._attributes():
            print_ = _print(value, known)
            if print_ is None and not isinstance(value, MethodType | BuiltinMethodType):
                yield place, value, foreign(value) or type(value).__qualname__  # nobody can tell whether it changes
            elif print_ != self.built.get(place):
                yield place, value, "" if isinstance(value, torch.Generator) else foreign(value) or known.shared(value)


class _Known:
    """What a network keeps in places of its own: an attribute may name it once more, but holds nothing by that."""

    def __init__(self, net: nn.Module, modules: Mapping[int, str] | None = None) -> None:
        self.modules = {id(module): path for path, module in net.named_modules()} if modules is None else modules
        tensors = (*net.named_parameters(), *net.named_buffers())
        self.storages = {_storage(tensor): name for name, tensor in tensors}

    def name(self, thing: Any) -> Any:
        """What tells a module, or a view of a tensor that is kept elsewhere, from others; None for all else.

        Also for functions and classes, and for what belongs to the suite.
        """
        if isinstance(thing, nn.Module):
            return self.modules.get(id(thing))
        if isinstance(thing, Tensor):
            owner = self.owner(thing)
            view = owner is not None and thing.layout == torch.strided
            return (owner, thing.storage_offset(), *thing.shape, *thing.stride()) if view else owner
        if isinstance(thing, NAMED):
            return getattr(thing, "__module__", ""), getattr(thing, "__qualname__", thing.__name__)
        return type(thing).__qualname__ if type(thing).__module__.startswith("dstbench.suite.") else None

    def owner(self, tensor: Tensor) -> str | None:
        """The name of the parameter or buffer whose storage this tensor shares."""
        return self.storages.get(_storage(tensor)) if tensor.numel() else None

    def shared(self, value: Any) -> str:
        """What a value shares memory with, or "": a checkpoint would hold a copy."""
        owners = [name for tensor in _tensors(value) if (name := self.owner(tensor)) is not None]
        return f"view of {owners[0]}" if owners else ""


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
    """What tells a value from another one; None for what cannot be looked into, such as a generator."""
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
    with suppress(RecursionError):  # it holds itself
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
