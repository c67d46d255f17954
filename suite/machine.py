"""Machine: what a run ran on and with, as plain facts for the record; no host name, on purpose."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "scipy",
    "scikit-learn",
    "ptflops",
    "psutil",
    "safetensors",
    "nvidia-ml-py",
)


def facts() -> dict[str, Any]:
    """The record's "machine"; `name` is the hash of the other facts, memory in bytes, gpu None without one."""
    found = {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "memory": psutil.virtual_memory().total,
        "gpu": gpu_name(),
        "os": platform.platform(),
        "python": platform.python_version(),
    }
    return {"name": fingerprint(found), **found}


def fingerprint(found: dict[str, Any]) -> str:
    """The first 12 hex digits of the sha256 of the canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(found, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's marketing name where the system tells it, else its architecture."""
    try:
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    except OSError:
        pass
    apple = _output(["sysctl", "-n", "machdep.cpu.brand_string"]) if platform.system() == "Darwin" else None
    return apple or platform.processor() or platform.machine()


def gpu_name() -> str | None:
    """The name of the first GPU, with the number of GPUs where there are several, or None."""
    import torch

    if torch.cuda.is_available():
        count, name = torch.cuda.device_count(), torch.cuda.get_device_name(0)
        return name if count == 1 else f"{count} x {name}"
    return f"{cpu_name()} (MPS)" if torch.backends.mps.is_available() else None


def versions() -> dict[str, str]:
    """Installed versions of the packages that a result depends on; nothing is imported."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def distribution() -> str:
    """This package and its version."""
    try:
        return f"dstbench {metadata.version('dstbench')}"
    except metadata.PackageNotFoundError:
        return "dstbench, not installed"


def commit(path: Path | str) -> str | None:
    """The git commit of the folder `path`, "-dirty" added if tracked files changed; None where nothing is tracked."""
    git = ["git", "-C", str(path)]
    # An installed copy may lie in a folder of somebody else's repository, which ignores it.
    if _output([*git, "ls-files", "--error-unmatch", "."]) is None:
        return None
    return _output([*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"])


def _output(command: list[str]) -> str | None:
    """What a command prints, or None if it is missing, fails or takes too long."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")} | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, env=env)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
