"""Schema: what a record must hold, in which ranges, and how older records become today's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dstbench.suite.words import shown

FEW = 0.5  # of all parameters: where fewer can be sparse, record and page warn
SCHEMA = 1  # of the record; that of the identity, of which keys are made, is the plan's
# Schema n -> a function from a record of schema n to one of schema n + 1.
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}

FAILED = ("diverged", "collapsed")  # A result: the method trained to nothing.
CRASHED = ("timeout", "oom", "error")  # No result: the program, the machine or its clock ended the run.
MISSING = ("off_target", "interrupted", "skipped")
STATUSES = ("ok", *FAILED, *CRASHED, *MISSING)

NULL = type(None)
NUMBER = (int, float)
LARGEST = 1e300
WHOLE = 2**53  # the largest whole number that a float holds with all those below it
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
        "definition": (dict, NULL),
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
        "further": (dict, NULL),
    },
    "sparsity": {
        **{"target": (*NUMBER, NULL), "achieved": NUMBER, "on_target": (bool, NULL), "layers": (dict,)},
        **{"maskable_share": (*NUMBER, NULL), "left_dense": (dict, NULL), "never_reached": (list, NULL)},
        "warning": (str, NULL),
    },
    "flops": {
        **dict.fromkeys(("total", "papers", "inference", "dense_total", "dense_inference"), NUMBER),
        **dict.fromkeys(("ratio", "papers_ratio"), (*NUMBER, NULL)),
        **dict.fromkeys(("setup", "charged", "dense_gradient_steps"), NUMBER),
        **{"source": (str,), "uncounted": (dict, NULL), "warning": (str, NULL)},
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
    "curve": {**dict.fromkeys(("step", "loss", "density", "valid"), (list,)), "active_units": (dict, NULL)},
    "machine": {
        "name": (str,),
        "memory": (*NUMBER, NULL),
        **dict.fromkeys(("cpu", "gpu", "os", "python"), (str, NULL)),
    },
    "code": {"versions": (dict,), **dict.fromkeys(("method_source", "task_source", "commit"), (str, NULL))},
    "stamps": {
        "started": (str, NULL),
        "finished": (str, NULL),
        "resumed": (int, NULL),
        "shared": (bool, NULL),
        "checkpoint": (str, NULL),
        "unsaved": (list, NULL),
    },
}
ALWAYS = ("id", "status")
LISTS = ("energy",)
FREE: dict[str, dict[str, tuple[type, ...]]] = {"hashes": {}}  # mappings of anything
BLOCKS = tuple(name for name in (*FIELDS, *LISTS, *FREE) if name not in (*ALWAYS, "stamps"))
PRESENT = ("sparsity", "precision", "joules")  # of the identity and of energy: null says something, no field nothing
# Field -> the least and the largest value; numbers that are not named are finite and no larger than `LARGEST`.
RANGES: dict[str, tuple[float, float]] = {
    "id.seed": (0, WHOLE),
    "id.threads": (1, WHOLE),
    "id.budget": (1e-12, LARGEST),
    "id.sparsity": (0, 1),
    "stamps.resumed": (0, WHOLE),
    **{f"{block}.{name}": (0, LARGEST) for block in ("flops", "time") for name in FIELDS[block]},
}
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
    """ValueError that names the first field whose type or value no reader can take."""
    for block, fields in {**FIELDS, **FREE}.items():
        value = record.get(block)
        if value is None and block not in ALWAYS:
            continue
        _fields(block, value, fields)
    status = record["status"]["name"]
    if status not in STATUSES:
        raise ValueError(f"status.name is {shown(status)}; expected one of {', '.join(STATUSES)}")
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


def filled(record: Mapping[str, Any]) -> dict[str, Any]:
    """A valid record with null for every block and field that it may lack and does; its identity is left alone."""
    whole: dict[str, Any] = {**dict.fromkeys((*BLOCKS, "stamps")), **record}
    for block, fields in FIELDS.items():
        if block != "id" and whole[block] is not None:
            whole[block] = {**dict.fromkeys(fields), **whole[block]}
    whole["energy"] = (
        [{**dict.fromkeys(ENERGY), **entry} for entry in whole["energy"]] if whole["energy"] else whole["energy"]
    )
    return whole


def _fields(block: str, value: Any, fields: Mapping[str, tuple[type, ...]]) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{block} is {type(value).__name__}; expected an object")
    for field, types in fields.items():
        found = value.get(field)
        if not isinstance(found, types) or (isinstance(found, bool) and bool not in types):
            expected = " or ".join(t.__name__ for t in types)
            raise ValueError(f"{block}.{field} is {shown(found)}; expected {expected}")
        if field not in value and field in PRESENT:
            raise ValueError(f"{block}.{field} is missing; it may be null")
        if isinstance(found, int | float):
            low, high = RANGES.get(f"{block}.{field}", (-LARGEST, LARGEST))
            if not low <= found <= high:
                raise ValueError(f"{block}.{field} is {shown(found)}; expected a number from {low:g} to {high:g}")


def _curve(curve: Mapping[str, Any] | None) -> None:
    if curve is None:
        return
    columns = [curve[name] for name, types in FIELDS["curve"].items() if list in types]
    if len({len(column) for column in columns}) > 1:
        raise ValueError(f"curve has columns of lengths {[len(column) for column in columns]}; expected equal lengths")
    if not all(x is None or (type(x) in (int, float) and abs(x) <= LARGEST) for c in columns for x in c):
        raise ValueError("curve holds an entry that is neither a finite number nor null")
    _units(curve.get("active_units"))


def _units(units: Any) -> None:
    """ValueError for active units that are not {"step": [...], "of": {layer: n}, "layers": {layer: [...]}}."""
    if units is None:
        return
    steps, sizes, layers = (units.get(name) for name in ("step", "of", "layers"))
    whole = isinstance(steps, list) and isinstance(sizes, dict) and isinstance(layers, dict)
    columns = [steps, list(sizes.values()), *layers.values()] if whole else [None]
    if not all(isinstance(c, list) and all(type(x) is int and 0 <= x <= WHOLE for x in c) for c in columns):
        raise ValueError("curve.active_units is not step, of and layers of whole numbers")
    if sizes.keys() != layers.keys() or any(len(column) != len(steps) for column in layers.values()):
        raise ValueError("curve.active_units has layers of other names or lengths than of and step")
