"""Machine: facts without a host name, a canonical hash, versions without imports, commits of scratch repositories."""

import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace

import psutil
import pytest
import torch

from dstbench.suite import machine


def test_facts_have_the_fields_of_the_record():
    facts = machine.facts()
    assert list(facts) == ["name", "cpu", "cores", "memory", "gpu", "os", "python"]
    assert facts["cores"] == os.cpu_count()
    assert facts["memory"] == psutil.virtual_memory().total
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert json.loads(json.dumps(facts)) == facts == machine.facts()


def test_name_is_the_hash_of_the_canonical_facts():
    facts = {"cpu": "Éclair 9", "cores": 2, "gpu": None}
    text = '{"cores":2,"cpu":"Éclair 9","gpu":null}'
    assert machine.fingerprint(facts) == hashlib.sha256(text.encode()).hexdigest()[:12]
    found = machine.facts()
    assert found.pop("name") == machine.fingerprint(found)
    assert machine.fingerprint({**found, "cores": found["cores"] + 1}) != machine.fingerprint(found)


def test_facts_do_not_depend_on_the_host_name(monkeypatch):
    before = machine.facts()
    monkeypatch.setattr(socket, "gethostname", lambda: "secret-host")
    monkeypatch.setattr(platform, "node", lambda: "secret-host")
    assert machine.facts() == before


def test_cpu_name_from_cpuinfo_or_the_platform(tmp_path, monkeypatch):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel\t\t: 1\nmodel name\t: Xeon: Gold 6\nmodel name\t: other\n")
    assert machine.cpu_name(cpuinfo) == "Xeon: Gold 6"
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    cpuinfo.write_text("processor\t: 0\nCPU part\t: 0xd0c\n")
    assert machine.cpu_name(cpuinfo) == "aarch64"
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(machine, "_output", lambda command: "Apple M3" if command[0] == "sysctl" else None)
    assert machine.cpu_name(tmp_path / "none") == "Apple M3"


def test_gpu_name_counts_several(monkeypatch):
    count = SimpleNamespace(gpus=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count.gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count.gpus)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "GPU X")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    names = []
    for count.gpus in (0, 1, 4):
        names.append(machine.gpu_name())
    assert names == [None, "GPU X", "4 x GPU X"]
    count.gpus = 0
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert machine.gpu_name().endswith("(MPS)")


def test_versions_are_those_installed(monkeypatch):
    versions = machine.versions()
    assert versions["torch"] == metadata.version("torch")
    assert set(versions) <= set(machine.PACKAGES)
    monkeypatch.setattr(machine, "PACKAGES", ("numpy", "no-such-package-anywhere"))
    assert list(machine.versions()) == ["numpy"]


def test_versions_import_nothing():
    code = "import sys, dstbench.suite.machine as m; m.versions(); print({'torch', 'numpy', 'timm'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


@pytest.fixture
def git(tmp_path):
    if shutil.which("git") is None:
        pytest.skip("needs git")
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    env |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}

    def run(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout.strip()

    run("init", "--quiet")
    return run


def test_commit_of_a_tracked_folder_says_if_it_is_dirty(tmp_path, git, monkeypatch):
    (tmp_path / "file").write_text("one")
    assert machine.commit(tmp_path) is None  # nothing tracked yet
    git("add", "file")
    git("commit", "--quiet", "-m", "one")
    git("tag", "v1")
    head = git("rev-parse", "HEAD")
    assert len(head) == 40
    assert machine.commit(tmp_path) == head
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as git sets it for a hook
    assert machine.commit(str(tmp_path)) == head
    (tmp_path / "file").write_text("two")
    assert machine.commit(tmp_path) == f"{head}-dirty"


def test_commit_is_not_that_of_a_repository_that_only_surrounds_the_folder(tmp_path, git):
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "--quiet", "-m", "one")
    installed = tmp_path / ".venv" / "site-packages"
    installed.mkdir(parents=True)
    (installed / "module.py").write_text("")
    assert machine.commit(installed) is None


def test_commit_is_none_without_folder_or_git(tmp_path, monkeypatch):
    assert machine.commit(tmp_path / "none") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.commit(tmp_path) is None
