"""Check methods against the contract on short real runs; each verdict says what a plugin's author can act on."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pebble import ProcessExpired, ProcessPool

from suite import registry

LIMIT = 300.0  # seconds, of a method whose checks never end
RESUME = "resuming after any step is bit-exact"


@dataclass(frozen=True)
class Verdict:
    """One check's outcome: its name, whether it held, and what was seen."""

    name: str
    ok: bool
    text: str


Result = tuple[str, list[Verdict], float]


def check(target: str, task: str = "digits/mlp", kernel: str = "masked") -> list[Verdict]:
    """All verdicts on a method's name or on each method of a plugin FILE; RegistryError for an unknown name."""
    plugins = [str(Path(target).resolve())] if target.endswith(".py") else []
    names = [target]
    if plugins:
        own = {n: e for n, e in registry.methods(plugins).items() if e.origin == f"plugin {plugins[0]}"}
        for entry in own.values():
            entry.load()
        names = list(own)
    return [verdict for _, verdicts, _ in check_all(names, task, kernel, 1, plugins) for verdict in verdicts]


def check_all(
    names: Sequence[str],
    task: str = "digits/mlp",
    kernel: str = "masked",
    jobs: int = 2,
    plugins: Sequence[str] = (),
) -> Iterator[Result]:
    """(name, verdicts, seconds) of each method, `jobs` at a time, in the order of `names`.

    Each method has two processes of one forkserver: one that checks it, and one that has never seen it and resumes
    its run after every step. RegistryError for an unknown name.
    """
    from suite.executors import Local

    for name in names:
        registry.find("method", name, plugins)
    local = Local(jobs)
    with local.pinned(), tempfile.TemporaryDirectory() as folder:
        pool = ProcessPool(max_workers=jobs, max_tasks=1, context=local.context("cpu"))

        def one(name: str) -> Result:
            started = time.monotonic()
            given = (name, task, kernel, tuple(plugins), str(Path(folder) / f"{names.index(name)}.states"))
            verdicts = _ask(pool, examine, given)
            if os.path.exists(given[-1]):
                verdicts += _ask(pool, resume, given)
            return name, verdicts, time.monotonic() - started

        try:
            with ThreadPoolExecutor(jobs) as threads:
                yield from threads.map(one, names)
        finally:
            pool.stop()
            pool.join()


def _ask(pool: ProcessPool, work: Callable[..., list[Verdict]], given: tuple[Any, ...]) -> list[Verdict]:
    try:
        return pool.schedule(work, given, timeout=LIMIT).result()
    except TimeoutError:
        text = f"no verdict after {LIMIT:g} s: the method hangs, or is far too slow"
    except ProcessExpired as error:
        text = f"the process ended with exit code {error.exitcode}: the method killed it"
    return [Verdict(f"{given[0]}: checks end", False, text)]


# ---- in the worker processes ----


def examine(name: str, task: str, kernel: str, plugins: Sequence[str], states: str) -> list[Verdict]:
    """Every check but that of resuming, for which the run's states are left in the file `states`."""
    from suite.checks import CHECKS, REPORTS
    from suite.checks.resume import write_states
    from suite.checks.subject import Subject

    subject = Subject(name, task, kernel, plugins)
    try:
        reason = subject.method().skip(subject.task)
    except Exception as error:  # a plugin may raise anything: that is the verdict
        return [Verdict(f"{name}: can be made", False, f"{type(error).__name__}: {error}")]
    if reason:
        return [Verdict(f"{name}: skips {task}", True, reason)]
    verdicts = [_verdict(f"{name}: {title}", partial(test, subject)) for title, test in CHECKS.items()]
    for title, test in REPORTS.items():
        with suppress(Exception):
            verdicts.append(Verdict(f"{name}: {title}", True, test(subject)))
    with suppress(Exception):  # what is wrong has been said
        write_states(subject, Path(states))
    return verdicts


def resume(name: str, task: str, kernel: str, plugins: Sequence[str], states: str) -> list[Verdict]:
    """The check of resuming, in a process that has not trained the method."""
    from suite.checks.resume import resumes_after_any_step
    from suite.checks.subject import Subject

    subject = Subject(name, task, kernel, plugins)
    return [_verdict(f"{name}: {RESUME}", partial(resumes_after_any_step, subject, Path(states)))]


def _verdict(title: str, test: Callable[[], str]) -> Verdict:
    from suite.checks.subject import NotChecked

    try:
        wrong = test()
    except NotChecked as reason:
        return Verdict(title, True, f"not checked: {reason}")
    except Exception as error:  # a plugin may raise anything: that is the verdict
        wrong = f"{type(error).__name__}: {error}"
    return Verdict(title, not wrong, wrong or "holds")
