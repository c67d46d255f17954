"""CIFAR-10 and CIFAR-100 from the user's data root: torchvision's files, or an image folder."""

from __future__ import annotations

import os
import tarfile
import zlib
from pathlib import Path
from typing import Any

import torch

from dstbench.suite.task import DataError
from dstbench.tasks.data import folder
from dstbench.tasks.data.images import Images, digest, halves, problem

ADVICE = (
    "give the folder that holds {files} or {name}/{{train,test}}/<class>/ with --data-root DIR, "
    "or let `python run_all.py --tasks {name}/resnet18 --data-root DIR --download` get the data set"
)


def cifar10(root: Path, download: bool = False) -> Images:
    """CIFAR-10 under `root`: torchvision's `cifar-10-batches-py` or the image folder `cifar10/{train,test}/<class>/`.

    45,000 train, 5,000 valid (a fixed tenth of the published training images), 10,000 test. The fingerprint of
    torchvision's files is over their checksums, which are verified; that of a folder is said in `folder.py`.

    Reference: Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images.
    """
    from torchvision.datasets import CIFAR10

    return _read(CIFAR10, "cifar10", 10, root, download)


def cifar100(root: Path, download: bool = False) -> Images:
    """CIFAR-100 under `root`, its 100 fine classes, as in `cifar10`: `cifar-100-python` or `cifar100/{train,test}`."""
    from torchvision.datasets import CIFAR100

    return _read(CIFAR100, "cifar100", 100, root, download)


def _read(kind: Any, name: str, count: int, root: Path, download: bool) -> Images:
    if os.path.isdir(root / name) and not os.path.lexists(root / kind.base_folder):
        train, test, fingerprint = folder.read(root / name, size=32, classes=count)
        classes = folder.classes(root / name / "train")
    else:
        train, test, classes, fingerprint = _torchvision(kind, name, root, download)
    images, labels = torch.cat([train[0], test[0]]), torch.cat([train[1], test[1]])
    return halves(images, labels, len(test[1]), len(train[1]) // 10, classes, fingerprint)


def _torchvision(
    kind: Any, name: str, root: Path, download: bool
) -> tuple[folder.Split, folder.Split, tuple[str, ...], str]:
    title, advice = f"CIFAR-{name[5:]}", ADVICE.format(files=kind.base_folder, name=name)
    files = [*kind.train_list, *kind.test_list, [kind.meta["filename"], kind.meta["md5"]]]
    if download:
        try:
            kind(str(root), download=True)
        except (OSError, RuntimeError, EOFError, zlib.error, tarfile.TarError) as error:  # URLError is an OSError
            raise DataError(f"{title}: {kind.url} cannot be had into {root}: {error}; {advice}") from error
    for file, md5 in files:
        path = root / kind.base_folder / file
        if wrong := problem(path, md5):
            raise DataError(f"{title}: {path}: {wrong}, and {root / name} is no image folder; {advice}")
    parts = [kind(str(root), train=train) for train in (True, False)]
    train, test = ((torch.from_numpy(p.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(p.targets)) for p in parts)
    return train, test, tuple(parts[0].classes), digest(*(md5 for _, md5 in files))
