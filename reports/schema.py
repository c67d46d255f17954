"""The record schema as reports read it: what must be there, and how older records become today's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

SCHEMA = 1
# Schema n -> a function from a record of schema n to one of schema n + 1.
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}

FAILED = ("diverged", "collapsed")  # A result: the method trained to nothing.
CRASHED = ("timeout", "oom", "error")  # No result: the program, the machine or its clock ended the run.
MISSING = ("off_target", "interrupted", "skipped")
STATUSES = ("ok", *FAILED, *CRASHED, *MISSING)

NULL = type(None)
NUMBER = (int, float)
LARGEST = 10**300
# Block -> field -> accepted types; blocks may be null where the run failed, fields where NULL is listed.
FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "id": {
        "key": (str,),
        "task": (str,),
        "task_version": (int,),
        "method": (str,),
        "method_version": (int,),
        "hyperparameters": (dict,),
        "recipe": (dict, NULL),
        "sparsity": (*NUMBER, NULL),
        "seed": (int,),
        "budget": NUMBER,
        "precision": (str, NULL),
        "kernel": (str,),
        "device": (str,),
        "threads": (int,),
        "allocator": (str, NULL),
        "data": (str, NULL),
    },
    "params": {"recipe": (dict, NULL)},
    "status": {"name": (str,), "reason": (str,), "traceback": (str, NULL)},
    "score": {
        "metric": (str,),
        "higher_is_better": (bool,),
        "chance": (*NUMBER, NULL),
        "target": (*NUMBER, NULL),
        "valid": (*NUMBER, NULL),
        "test": (*NUMBER, NULL),
    },
    "sparsity": {"target": (*NUMBER, NULL), "achieved": NUMBER, "on_target": (bool, NULL), "layers": (dict,)},
    "flops": {
        **dict.fromkeys(("total", "papers", "inference", "dense_total", "dense_inference"), NUMBER),
        **dict.fromkeys(("ratio", "papers_ratio"), (*NUMBER, NULL)),
        **dict.fromkeys(("setup", "charged", "dense_gradient_steps"), NUMBER),
        "source": (str,),
    },
    "time": {
        **dict.fromkeys(("wall", "train"), NUMBER),
        **dict.fromkeys(("overhead", "step_median", "steps"), (*NUMBER, NULL)),
        "simulated": (bool, NULL),
    },
    "memory": {
        **dict.fromkeys(("training_state", "model_dense", "model_sparse"), NUMBER),
        **dict.fromkeys(("peak_over_start", "peak_resident", "cuda_allocated"), (*NUMBER, NULL)),
    },
    "curve": dict.fromkeys(("step", "loss", "density", "valid"), (list,)),
    "machine": {
        "name": (str,),
        "memory": (*NUMBER, NULL),
        **dict.fromkeys(("cpu", "gpu", "os", "python"), (str, NULL)),
    },
    "code": {"versions": (dict,), **dict.fromkeys(("method_source", "task_source", "commit"), (str, NULL))},
    "stamps": {"started": (str, NULL), "finished": (str, NULL), "resumed": (int, NULL), "shared": (bool, NULL)},
}
ALWAYS = ("id", "status")
ENERGY: dict[str, tuple[type, ...]] = {
    "component": (str,),
    "joules": (*NUMBER, NULL),
    "source": (str,),
    "scope": (str, NULL),
    "shared": (bool, NULL),
    "note": (str, NULL),
}


def upgrade(record: dict[str, Any]) -> dict[str, Any]:
    """The record in today's schema; ValueError for one that is newer, or older without an entry in `UPGRADES`."""
    version = record.get("schema")
    if not isinstance(version, int) or isinstance(version, bool):
        raise ValueError(f"not a record: its schema is {version!r}, a whole number was expected")
    if version > SCHEMA:
        raise ValueError(f"schema {version} is newer than {SCHEMA}, the newest this dstbench reads: upgrade dstbench")
    while version < SCHEMA:
        if version not in UPGRADES:
            raise ValueError(f"schema {version} is too old: no upgrade to schema {version + 1} is known")
        record = {**UPGRADES[version](record), "schema": version + 1}
        version += 1
    return record


def validate(record: Mapping[str, Any]) -> None:
    """ValueError that names the first field whose type the report cannot read."""
    for block, fields in FIELDS.items():
        value = record.get(block)
        if value is None and block not in ALWAYS:
            continue
        _fields(block, value, fields)
    status = record["status"]["name"]
    if status not in STATUSES:
        raise ValueError(f"status.name is {status!r}; expected one of {', '.join(STATUSES)}")
    energy = record.get("energy") or []
    if not isinstance(energy, list):
        raise ValueError(f"energy is {type(energy).__name__}; expected a list")
    for position, entry in enumerate(energy):
        _fields(f"energy[{position}]", entry, ENERGY)
    needed = ("score",) if record["id"]["sparsity"] is None else ("score", "sparsity")
    absent = [block for block in needed if record.get(block) is None]
    if status == "ok" and absent:
        raise ValueError(f"status is ok but the block {absent[0]} is null")
    for name, layer in ((record.get("sparsity") or {}).get("layers") or {}).items():
        _fields(f"sparsity.layers[{name}]", layer, {})
    _curve(record.get("curve"))


def _fields(block: str, value: Any, fields: Mapping[str, tuple[type, ...]]) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{block} is {type(value).__name__}; expected an object")
    for field, types in fields.items():
        found = value.get(field)
        if not isinstance(found, types) or (isinstance(found, bool) and bool not in types):
            expected = " or ".join(t.__name__ for t in types)
            raise ValueError(f"{block}.{field} is {repr(found)[:60]}; expected {expected}")
        if isinstance(found, int) and abs(found) > LARGEST:
            raise ValueError(f"{block}.{field} is an integer beyond {LARGEST:.0e}; expected a number a float can hold")


def _curve(curve: Mapping[str, Any] | None) -> None:
    if curve is None:
        return
    columns = [curve[name] for name in FIELDS["curve"]]
    if len({len(column) for column in columns}) > 1:
        raise ValueError(f"curve has columns of lengths {[len(column) for column in columns]}; expected equal lengths")
    if not all(x is None or (type(x) in (int, float) and not abs(x) > LARGEST) for c in columns for x in c):
        raise ValueError("curve holds an entry that is neither a finite number nor null")
