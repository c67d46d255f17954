"""dstbench: dynamic sparse training methods, compared head to head.

The engine and the built-in plugins are sub-packages: `dstbench.suite`, `dstbench.methods`, `dstbench.tasks` and
`dstbench.reports`. A wheel holds them in this folder. In a checkout they stand beside it, and this file adds the
repository's root to the package's search path.

What an author of plugins needs is imported from here: `from dstbench import Method, Layer, Task, Recipe, register`.
Each name is loaded when it is first used, so that `import dstbench` alone imports no torch.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dstbench.methods.compose import Composer as Composer
    from dstbench.suite.check import check as check
    from dstbench.suite.layer import Layer as Layer
    from dstbench.suite.method import Gradients as Gradients
    from dstbench.suite.method import LayerOptimizer as LayerOptimizer
    from dstbench.suite.method import Method as Method
    from dstbench.suite.model import SparseModel as SparseModel
    from dstbench.suite.recipe import Recipe as Recipe
    from dstbench.suite.registry import register as register
    from dstbench.suite.task import Batch as Batch
    from dstbench.suite.task import DataError as DataError
    from dstbench.suite.task import Task as Task

PUBLIC = {
    "Batch": "suite.task",
    "Composer": "methods.compose",
    "DataError": "suite.task",
    "Gradients": "suite.method",
    "Layer": "suite.layer",
    "LayerOptimizer": "suite.method",
    "Method": "suite.method",
    "Recipe": "suite.recipe",
    "SparseModel": "suite.model",
    "Task": "suite.task",
    "check": "suite.check",
    "register": "suite.registry",
}
__all__ = [*PUBLIC]

ROOMS = ("suite", "methods", "tasks", "reports")
MOVED = "the modules of dstbench are imported as dstbench.{0}: write `from dstbench import Method, Layer, register`"

if not (Path(__file__).parent / "suite").is_dir():
    __path__.append(str(Path(__file__).resolve().parent.parent))


def by_full_name(module: str) -> None:
    """Refuse to be imported as plain `suite`, `methods`, …, as a checkout on the search path would allow.

    Args:
        module: the `__name__` of the module that calls.

    Raises:
        ImportError: if it is not below `dstbench`. A second copy of a module has classes of its own, so that a plugin's
            method would be no `Method` to the engine.
    """
    if not module.startswith("dstbench."):
        raise ImportError(MOVED.format(module), name=module)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from dstbench.help import version

        return version()
    if name not in PUBLIC:
        raise AttributeError(f"module 'dstbench' has no attribute {name!r}; there are: {', '.join(PUBLIC)}")
    return getattr(importlib.import_module(f"dstbench.{PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC, "__version__"})
