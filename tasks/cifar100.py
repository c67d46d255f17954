"""CIFAR-100: the tasks of CIFAR-10 with a hundred classes."""

from __future__ import annotations

from dataclasses import replace

from dstbench.tasks import cifar10
from dstbench.tasks.vision import VisionTask


def _hundred(task: VisionTask, target: float | None = None, **changes: object) -> VisionTask:
    """The CIFAR-10 task on CIFAR-100."""
    name = f"cifar100/{task.name.partition('/')[2]}"
    arguments = {**task.arguments, "num_classes": 100}
    return replace(task, name=name, data="cifar100", arguments=arguments, chance=0.01, target=target, **changes)  # type: ignore[arg-type]


def _ours(name: str) -> str:
    return f"ours: the recipe of cifar10/{name} on other data"


RESNET18 = _hundred(cifar10.RESNET18, 0.75, version=1, source="arXiv 2605.07892, image experiments")
RESNET20 = _hundred(cifar10.RESNET20, source=_ours("resnet20"))
RESNET32 = _hundred(cifar10.RESNET32, 0.73)
RESNET50 = _hundred(cifar10.RESNET50, 0.76)
RESNET56 = _hundred(cifar10.RESNET56, source=_ours("resnet56"))
VGG16 = _hundred(cifar10.VGG16, source=_ours("vgg16"))
VGG19 = _hundred(cifar10.VGG19, 0.72)
WRN28_10 = _hundred(cifar10.WRN28_10, 0.78)
WRN22_2 = _hundred(cifar10.WRN22_2, source=_ours("wrn22_2"))
MLP1024 = _hundred(cifar10.MLP1024, source=_ours("mlp1024"))
VIT_TINY = _hundred(cifar10.VIT_TINY)
MIXER = _hundred(cifar10.MIXER)
