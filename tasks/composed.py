"""The task of a definition: images of a data set, or of a folder, and any network that takes them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dstbench.suite import values
from dstbench.suite.recipe import Recipe
from dstbench.suite.registry import RegistryError, nested
from dstbench.suite.task import Batch, DataError, Task
from dstbench.tasks import data as sets
from dstbench.tasks import fitting
from dstbench.tasks.compose import VERSION, source
from dstbench.tasks.facts import FACTS, Facts
from dstbench.tasks.seeded import Factory
from dstbench.tasks.vision import VisionTask

# Up to so many training images: steps and batch. Some 50 to 100 epochs, fewer where there are many images.
DEFAULTS = (
    (1_000, 1_500, 32),
    (5_000, 4_000, 64),
    (20_000, 10_000, 64),
    (200_000, 40_000, 128),
    (None, 450_000, 256),
)
USUAL = 45_000  # training images, where their number is not known before they are read
STREAMED = "imagenet"  # from disk
MIRRORED = ("cifar10", "cifar100", "tiny_imagenet")  # of which crops and mirror images are used to train on


@dataclass(frozen=True)
class Composed(VisionTask):
    """Images of a data set, or of a folder, classified by any network that takes them.

    Shape and number of classes are those of the data. `data` is a name, or `{"folder": path, "size": pixels}`. `size`
    is that of the images (0: their own; those of a data set are resized batch by batch, those of a folder once).
    `classes` is how many are expected (0: any).
    """

    data: Any = "digits"
    size: int = 0
    classes: int = 0

    @classmethod
    def of(cls, definition: Mapping[str, Any]) -> Task:
        """The task of a definition, see `dstbench.suite.definitions`; that of ImageNet is read from disk.

        Raises:
            RegistryError: If network, recipe and data do not go together; the text says how to mend it.
            DataError: If its folder cannot be read.
        """
        return _of(json.dumps(definition, sort_keys=True))

    @property
    def facts(self) -> Facts:
        """Shape, classes and training images, read from the data where it is not a known data set.

        Of a data set of which any number of classes may be there, they are the whole one's where it is missing.
        """
        if known := _known(self.data, self.size):
            return known
        try:
            return self._seen()
        except DataError:
            if not isinstance(self.data, str) or self.data not in FACTS:
                raise
            return _sized(FACTS[self.data], self.size)

    @property
    def outputs(self) -> int:
        """As many as the data has classes: the network is fitted to them."""
        return self.facts.classes

    def prepare(self) -> None:
        """Read and check the data; DataError if it is missing, RegistryError if the network does not take it."""
        _check(self, self._seen())
        super().prepare()

    def build(self, seed: int, width: float = 1.0) -> nn.Module:
        """A new network for the shape and the classes of the data, as in `VisionTask`."""
        return VisionTask.build(replace(self, arguments=_fitted(self, self.facts)), seed, width)

    def example(self) -> Tensor:
        """Two images of the training split, (2, C, H, W)."""
        return self._resized(super().example())

    def batches(self, split: str, seed: int, start: int = 0) -> Iterator[Batch]:
        """As in `VisionTask`, resized after augmentation where a data set has another size."""
        return ((self._resized(images), labels) for images, labels in super().batches(split, seed, start))

    def judged(self) -> dict[str, Any]:
        """As in `Task`; chance is one in the number of classes."""
        return super().judged() | {"chance": 1 / self.facts.classes}

    def describe(self) -> dict[str, Any]:
        """Everything but the recipe, for the record; of a folder its name alone."""
        data = self.data if isinstance(self.data, str) else Path(self.data["folder"]).name
        return super().describe() | {"data": data, "model": fitting.label(self.model), "size": self.size}

    def _seen(self) -> Facts:
        found = sets.load(self.data, self.root, self.download)
        if not (hasattr(found, "images") and hasattr(found, "splits")):
            raise RegistryError(f"{self.name}: {self.data} is no data set of images in memory, which it has to be")
        return _sized(_facts(found), self.size)

    def _resized(self, images: Tensor) -> Tensor:
        size = (self.size, self.size)
        if not self.size or images.shape[-2:] == size:
            return images
        return nn.functional.interpolate(images, size, mode="bilinear", antialias=True)


def look(folder: Path, size: int = 0) -> tuple[Facts, dict[str, int]]:
    """The facts of a folder of images, and the number of images in each split; DataError as its reader has it."""
    images: Any = sets.load(_folder(str(folder), size))
    return _facts(images), {name: len(images.splits[name]) for name in ("train", "valid", "test")}


def default(images: int) -> Recipe:
    """The recipe for so many training images where the user gives none: ours, tuned on none of them."""
    steps, batch = next((steps, batch) for most, steps, batch in DEFAULTS if most is None or images <= most)
    return Recipe(steps=steps, batch=max(1, min(batch, images)), lr={"sgd": 0.05, "adam": 1e-3}, warmup=0.05, clip=1.0)


@lru_cache(maxsize=64)
def _of(text: str) -> Task:
    given = json.loads(text)
    images, wanted = source(given), dict(given.get("recipe", {}))
    size, name = images.get("size", 0), images.get("name", "")
    own = {key: given[key] for key in ("pad", "flip", "target", "arguments") if key in given}
    if name in MIRRORED and not own.keys() & {"pad", "flip"}:
        own |= {"pad": 4, "flip": True}
    facts = _known(name, size) if name else look(Path(images["folder"]), size)[0]
    standard = default(facts.train if facts and facts.train else USUAL)
    made = Composed(
        name=given["name"],
        version=VERSION,
        recipe=standard,
        dense=tuple(given.get("dense", ())),
        model=fitting.maker(given["model"]),
        data=name or _folder(images["folder"], size),
        size=size,
        classes=images.get("classes", 0),
        source=_said(facts, wanted),
        **own,
    )
    arguments = _fitted(made, facts) if facts else made.arguments
    kind = fitting.kind(made.model, arguments)
    made = replace(made, recipe=_recipe(made.name, standard, kind, wanted, facts))
    if facts:
        _check(made, facts)
    return _streamed(made, arguments, given.get("flip", True)) if name == STREAMED else made


def _streamed(made: Composed, arguments: Mapping[str, Any], flip: bool) -> Task:
    """The same task on images that are read from disk, cropped and mirrored at random as is usual there."""
    from dstbench.tasks.streaming import StreamedImages

    if made.pad:
        raise RegistryError(f"{made.name}: pad is {made.pad}; images of {made.data} are cropped at random anyway")
    kept = {"name", "version", "recipe", "dense", "model", "data", "target", "source"} & {
        f.name for f in fields(StreamedImages)
    }
    side = made.facts.shape[1]
    return StreamedImages(
        **{key: getattr(made, key) for key in kept},
        arguments=dict(arguments),
        chance=1 / made.facts.classes,
        flip=flip,
        size=side,
        resize=round(side * 256 / 224),
    )


def _recipe(name: str, standard: Recipe, kind: str, wanted: dict[str, Any], facts: Facts | None) -> Recipe:
    """The standard recipe with what the definition has in its place, epochs as steps."""
    epochs = wanted.pop("epochs", None)
    try:
        wanted, wrong = values.check(f"{name}.recipe", standard, wanted)
        if wrong:
            raise ValueError("; ".join(wrong.values()))
        recipe = replace(standard, **{"optimizer": kind, **nested(standard, wanted)})
        if epochs is None:
            return recipe
        if not (facts and facts.train):
            raise ValueError("how many images an epoch has is not known before the data is read: give steps")
        return replace(recipe, steps=max(1, round(epochs * (facts.train // recipe.batch))))
    except ValueError as error:
        raise RegistryError(f"{name}: {error}") from None


def _said(facts: Facts | None, wanted: Mapping[str, Any]) -> str:
    images = f"{facts.train:,} training images" if facts and facts.train else "an unknown number of images"
    return f"ours for {images}, not published" + (f"; own: {', '.join(sorted(wanted))}" if wanted else "")


def _check(task: Composed, facts: Facts) -> None:
    """RegistryError where classes, batch or network do not fit the data."""
    if task.classes not in (0, facts.classes):
        raise RegistryError(
            f"{task.name}: {task.describe()['data']} has {facts.classes} classes where data.classes says "
            f"{task.classes}: mend the folder or the definition"
        )
    if facts.train and task.recipe.batch > facts.train:
        raise RegistryError(
            f"{task.name}: recipe.batch {task.recipe.batch} is larger than the {facts.train} training images"
        )
    _fitted(task, facts)


def _fitted(task: Composed, facts: Facts) -> dict[str, Any]:
    found, why = _fit(task.model, json.dumps(dict(task.arguments)), Facts(facts.shape, facts.classes))
    if why:
        raise RegistryError(f"{task.name}: {why}")
    return dict(found)


@lru_cache(maxsize=256)
def _fit(model: Factory, arguments: str, facts: Facts) -> tuple[dict[str, Any], str]:
    """Arguments, or why there are none: that too takes seconds to find."""
    try:
        return fitting.fitted(model, json.loads(arguments), facts), ""
    except ValueError as error:
        return {}, str(error)


def _folder(path: str, size: int) -> Any:
    """A folder as `sets.load` takes it."""
    return {"folder": path, "size": size} if size else {"folder": path}


def _known(data: Any, size: int) -> Facts | None:
    """The facts of a data set that is always the same."""
    known = FACTS.get(data) if isinstance(data, str) else None
    if known is None or not known.train:
        return None
    return _sized(known, size)


def _sized(facts: Facts, size: int) -> Facts:
    return replace(facts, shape=(facts.shape[0], size, size)) if size else facts


def _facts(images: Any) -> Facts:
    classes = len(getattr(images, "classes", ())) or 1 + int(images.labels.max())
    return Facts(tuple(images.images.shape[1:]), classes, len(images.splits["train"]))
