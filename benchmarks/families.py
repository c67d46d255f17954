"""One small member of each of timm's families, untrained: what of it can be sparse, and whether it trains a step.

`python -m benchmarks.families` writes docs/timm-families.md, in half an hour; with `--keep FILE` a call that was
stopped goes on where it was. Names of families (`resnet vit_sam`) print those alone.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path

import timm
import torch
from timm.models import list_modules
from torch import Tensor, nn

from dstbench.suite import registry
from dstbench.suite.meters.crosscheck import counted
from dstbench.suite.model import SparseModel
from dstbench.suite.recipe import Recipe
from dstbench.suite.task import Batch, Task
from dstbench.suite.train import Training

OUT = Path(__file__).parents[1] / "docs" / "timm-families.md"
KERNELS = ("masked", "sparse")
VERSIONS = [str(torch.__version__), timm.__version__]
# What names of small members hold, smallest first.
SMALL = "test_ zepto atto femto pico nano xxxs xxs xxt xx_small 050 035 b0 a0 _t0 _m0 t8 _xs mini tiny _ti_ 18 small"
TRIED = 6  # of those that look smallest, the one of least work
SIDE = 64  # pixels, where a member is not made for one size
LARGE = 3e7  # parameters; and what is made for more than 256 pixels: these are built with what of LESS they take
LESS: tuple[dict[str, int], ...] = ({"depth": 2, "img_size": 256}, {"depth": 2}, {"img_size": 256})
MOST = 1.5e8  # parameters: what has more is not tried
CLASSES = 4


@dataclass(frozen=True)
class Pixels(Task):
    """Noise through a member of timm."""

    model: str = ""
    side: int = SIDE
    less: tuple[tuple[str, int], ...] = ()

    def fingerprint(self) -> str:
        """There is no data to change."""
        return "0" * 12

    def build(self, seed: int, width: float = 1.0) -> nn.Module:
        """The member, untrained."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return timm.create_model(self.model, num_classes=CLASSES, **dict(self.less))

    def example(self) -> Tensor:
        """Two images."""
        return torch.zeros(2, 3, self.side, self.side)

    def batches(self, split: str, seed: int, start: int = 0) -> Iterator[Batch]:
        """Noise, the same for ever."""
        rng = torch.Generator().manual_seed(0)
        while True:
            images = torch.randn(2, 3, self.side, self.side, generator=rng)
            yield images, torch.randint(CLASSES, (2,), generator=rng)


@dataclass
class Row:
    """A family: its member, and what became of it; a text that is no count is the reason of a refusal."""

    family: str
    member: str = ""
    less: str = ""
    side: int = 0
    layers: int = 0
    share: float = 0.0
    dense: str = ""
    flops: int = 0
    second: int | None = None
    uncounted: str = ""
    masked: str = ""
    sparse: str = ""
    seconds: float = 0.0

    @property
    def fine(self) -> bool:
        """Whether it trains under both kernels with all of its FLOPs counted."""
        return (self.masked, self.sparse.partition(",")[0], self.uncounted) == ("trains", "trains", "")


def member(family: str) -> tuple[str, dict[str, int]]:
    """A small member of a family, and the options that make it smaller."""
    names = timm.list_models(module=family)
    looks = {name: next((i for i, w in enumerate(SMALL.split()) if w in f"{name}_"), 99) for name in names}
    likely = sorted(names, key=lambda name: (looks[name], len(name), name))[:TRIED]
    work = {name: (size(name, {}) or 10**12) * pixels(name) ** 2 for name in likely}
    name = min(work, key=lambda name: work[name])
    whole = size(name, {})
    if whole is not None and whole < LARGE and pixels(name) <= 256:
        return name, {}
    return name, next((less for less in LESS if size(name, less) is not None), {})


def size(name: str, less: Mapping[str, int]) -> int | None:
    """The number of parameters of a member with these options, None where it cannot be built."""
    try:
        with torch.device("meta"):
            return sum(p.numel() for p in timm.create_model(name, **less).parameters())
    except Exception:  # as a member says that it has no such option
        return None


def pixels(name: str, less: Mapping[str, int] = {}) -> int:
    """The side of the images that a member takes, as small as it may be."""
    given = timm.get_pretrained_cfg(name)
    side = less.get("img_size", given.input_size[-1] if given else 224)
    return side if given is None or given.fixed_input_size else min(side, max(SIDE, (given.min_input_size or (0,))[-1]))


def row(family: str) -> Row:
    """Build, count and train a step under each kernel."""
    found, started = Row(family), time.monotonic()
    try:
        found.member, less = member(family)
        found.side, found.less = pixels(found.member, less), ", ".join(f"{k} {v}" for k, v in less.items())
        if (whole := size(found.member, less) or 0) > MOST:
            raise ValueError(f"not tried: {whole / 1e6:.0f} million parameters")
        recipe = Recipe(1, 2, {"sgd": 0.01, "adam": 1e-3})
        task = Pixels(family, recipe, model=found.member, side=found.side, less=tuple(less.items()))
        try:
            _fill(found, task)
        except Exception:
            if found.side == (usual := timm.get_pretrained_cfg(found.member).input_size[-1]):
                raise
            found.side = usual  # some run on images of their usual size alone, and do not say so
            _fill(found, replace(task, side=usual))
    except Exception as error:  # the reason is the result
        found.masked = found.masked or _reason(error)
    found.seconds = time.monotonic() - started
    return found


def _fill(found: Row, task: Pixels) -> None:
    net = task.build(0)
    model = SparseModel(net, task.example())
    everything = sum(p.numel() for p in net.parameters())
    found.layers, found.share = len(model.layers), model.maskable / everything
    # Of modules of their own kind the kinds are enough here: the record names each parameter.
    found.dense = "; ".join(sorted({re.sub(r"^\w+ of (\w+): .*", r"\1", why) for why in model.left_dense.values()}))
    found.flops = model.dense_passes.inference.ahead
    found.uncounted = ", ".join(model.dense_passes.uncounted)
    try:
        found.second = counted(task.build(0), task.example())
    except Exception:  # a second opinion that cannot be had
        found.second = None
    for kernel in KERNELS:
        setattr(found, kernel, _step(task, kernel))


def _step(task: Pixels, kernel: str) -> str:
    try:
        training = Training(task, registry.method("rigl"), kernel=kernel)
        training.setup()
        training.run()
    except Exception as error:  # the reason is the result
        return _reason(error)
    back = sum(layer.fallback is not None for layer in training.model.layers)
    return "trains" + (f", {back} of {len(training.model.layers)} layers masked" if back else "")


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".replace("\n", " ").replace("|", "/")[:200]


def table(rows: Sequence[Row]) -> str:
    """A Markdown table."""
    heads = ["family", "member", "side", "Layers", "maskable", "left dense", "forward MFLOPs", "second counter"]
    heads += ["not counted", *KERNELS]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for r in rows:
        second = "–" if not r.second or not r.flops else f"{r.second / r.flops - 1:+.1%}"
        cells = [
            r.family,
            r.member + f" ({r.less})" * bool(r.less),
            str(r.side),
            str(r.layers),
            f"{r.share:.1%}",
            r.dense or "–",
        ]
        cells += [f"{r.flops / 1e6:.1f}", second, r.uncounted or "–", r.masked, r.sparse or "–"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def page(rows: Sequence[Row]) -> str:
    """The page of all families."""
    fine = sum(r.fine for r in rows)
    return f"""# timm's families

One small member of each of the {len(rows)} families of timm {timm.__version__}, untrained, on {CLASSES} classes:
one step of `rigl` at 90 % sparsity under the kernels `masked` and `sparse`, batch 2. {fine} train under both with every
operation counted. Where a text stands in place of "trains", it is the reason that a user sees. "maskable" is the share
of all parameters that Layers hold, "forward MFLOPs" that of one image, "second counter" what counting by shapes says
beside it; "left dense" has reasons, and names modules of their own kind that hold matrices.

By `python -m benchmarks.families`, torch {torch.__version__}, {date.today()}.

{table(rows)}
"""


def kept(path: Path | None) -> dict[str, Row]:
    """Family -> row of a file that `keep` wrote; those of other versions of torch or timm are left out."""
    if path is None or not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [Row(**line["row"]) for line in lines if line["versions"] == VERSIONS]
    return {found.family: found for found in rows}


def keep(path: Path, found: Row) -> None:
    """Add a row to the file, with the versions that made it."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"versions": VERSIONS, "row": asdict(found)}) + "\n")


def main() -> None:
    """Print rows as they come; of all families, write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="keep rows there, and go on from those it has")
    given = parser.parse_args()
    logging.getLogger("timm").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    rows = kept(given.keep)
    names = given.families or sorted(list_modules())
    for family in names:
        if family in rows:
            continue
        rows[family] = row(family)
        print(f"{rows[family].seconds:5.1f} s", rows[family], flush=True)
        if given.keep:
            keep(given.keep, rows[family])
    if not given.families:
        OUT.write_text(page([rows[name] for name in names]), encoding="utf-8")


if __name__ == "__main__":
    main()
