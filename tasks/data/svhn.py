"""SVHN, house numbers from street views, from the files that torchvision downloads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from dstbench.suite.task import DataError
from dstbench.tasks.data.images import Images, digest, halves, problem


def svhn(root: Path, download: bool = False) -> Images:
    """SVHN's cropped digits, 3x32x32, from `svhn/{train,test}_32x32.mat` under `root` or the same files in `root`.

    73,257 published training images, a fixed tenth of them valid; 26,032 test. Checksums are verified, and the
    fingerprint is over them.

    Raises:
        DataError: For a missing or corrupt file.

    Reference: Netzer et al. 2011, Reading Digits in Natural Images with Unsupervised Feature Learning.
    """
    from torchvision.datasets import SVHN

    files = {split: tuple(SVHN.split_list[split][1:]) for split in ("train", "test")}
    place = root if (root / files["train"][0]).exists() else root / "svhn"
    advice = "give the folder that holds svhn/train_32x32.mat and svhn/test_32x32.mat with --data-root DIR, or add "
    advice += "--download, and torchvision gets them"
    if download:
        try:
            for split in files:
                SVHN(str(place), split, download=True)
        except (OSError, RuntimeError) as error:
            raise DataError(f"SVHN: {SVHN.split_list['train'][0]} cannot be had into {place}: {error}; {advice}") from (
                error
            )
    for name, md5 in files.values():
        if wrong := problem(place / name, md5):
            raise DataError(f"SVHN: {place / name}: {wrong}; {advice}")
    parts = [SVHN(str(place), split) for split in files]
    images = torch.from_numpy(np.ascontiguousarray(np.concatenate([part.data for part in parts])))
    labels = torch.from_numpy(np.concatenate([part.labels for part in parts]).astype(np.int64))
    tests = len(parts[1].labels)
    fingerprint = digest(*(md5 for _, md5 in files.values()))
    return halves(images, labels, tests, (len(labels) - tests) // 10, tuple(map(str, range(10))), fingerprint)
