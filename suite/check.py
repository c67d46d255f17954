"""Check methods against the contract on short real runs; each verdict says what a plugin's author can act on."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from dstbench.suite import kernels, plan, registry
from dstbench.suite.plugins import FAILURES
from dstbench.suite.processes import Child, Ended, Failed
from dstbench.suite.words import told

RAISED = (*FAILURES, KeyboardInterrupt)  # by hooks: nobody presses Ctrl-C in a process of a check
TASKS = ("digits/mlp", "digits/vit")  # the second for methods of transformers
LIMIT = 300.0  # seconds, of a method whose checks never end
HOLDS = "holds"
RESUME = "resuming after any step is bit-exact"
ELSEWHERE = "defaults are the same in another process"


@dataclass(frozen=True)
class Verdict:
    """One check's outcome: its name, whether it held, and what was seen."""

    name: str
    ok: bool
    text: str


Result = tuple[str, list[Verdict], float]


@dataclass(frozen=True)
class Given:
    """What is checked: a method by name, on the first task that it does not skip, under a kernel.

    `file` takes its run from process to process.
    """

    method: str
    tasks: tuple[str, ...]
    kernel: str = "masked"
    plugins: tuple[str, ...] = ()
    data_root: str | None = None
    file: str = ""


def check(target: str, tasks: Sequence[str] = TASKS, kernel: str = "masked") -> list[Verdict]:
    """All verdicts on a method's name or on each method of a plugin FILE; RegistryError for an unknown name."""
    plugins = [str(Path(target).resolve())] if target.endswith(".py") else []
    names = [target]
    if plugins:
        own = {n: e for n, e in registry.methods(plugins).items() if e.origin == f"plugin {plugins[0]}"}
        for entry in own.values():
            entry.load()
        names = list(own)
    return [verdict for _, verdicts, _ in check_all(names, tasks, kernel, 1, plugins) for verdict in verdicts]


def check_all(
    names: Sequence[str],
    tasks: Sequence[str] = TASKS,
    kernel: str = "masked",
    jobs: int = 2,
    plugins: Sequence[str] = (),
    data_root: str | None = None,
) -> Iterator[Result]:
    """(name, verdicts, seconds) of each method, `jobs` at a time, in the order of `names`.

    Each method has two processes of one forkserver: one that checks it, and one that has never seen it and resumes
    its run after every step. Before any starts: RegistryError for an unknown name, DataError where data is missing.
    """
    for name in names:
        registry.find("method", name, plugins)
    try:
        kernels.known(kernel)
    except ValueError as why:
        raise registry.RegistryError(str(why)) from None
    for name in tasks:
        plan.own_data(registry.task(name, plugins), data_root, False).prepare()
    return _check_all(names, Given("", tuple(tasks), kernel, tuple(plugins), data_root), jobs)


def _check_all(names: Sequence[str], given: Given, jobs: int) -> Iterator[Result]:
    from dstbench.suite.executors import Local

    local = Local(jobs)
    with local.pinned(), tempfile.TemporaryDirectory() as folder:
        processes = Processes(local.context("cpu"))

        def one(name: str) -> Result:
            started = time.monotonic()
            own = replace(given, method=name, file=str(Path(folder) / f"{names.index(name)}.states"))
            verdicts = _ask(processes, examine, own)
            if os.path.exists(own.file):
                verdicts += _ask(processes, resume, own)
            return name, verdicts, time.monotonic() - started

        with ThreadPoolExecutor(jobs) as threads:
            try:
                yield from threads.map(one, names)
            finally:
                processes.close()


class Processes:
    """A process for each question: what breaks one harms no other."""

    def __init__(self, context: BaseContext) -> None:
        self.context = context
        self.open: list[Child] | None = []
        self.lock = threading.Lock()

    def ask(self, work: Callable[[Given], list[Verdict]], given: Given) -> list[Verdict]:
        """What `work` says in a fresh process; raises what `Child.answer` raises, and no verdicts once closed."""
        with self.lock:
            if self.open is None:
                return []
            child = Child(self.context, _work, work, given)
            self.open.append(child)
        try:
            return child.answer(LIMIT)
        finally:
            child.end()

    def close(self) -> None:
        """Stop what still runs."""
        with self.lock:
            left, self.open = self.open or [], None
        for child in left:
            child.end()


def _ask(processes: Processes, work: Callable[[Given], list[Verdict]], given: Given) -> list[Verdict]:
    """The verdicts of `work` in a process of its own; whatever happens to that process is a verdict too."""
    try:
        return processes.ask(work, given)
    except TimeoutError:
        text = f"no verdict after {LIMIT:g} s: the method hangs, or is far too slow"
    except Ended as error:
        text = f"{error}: the method killed it (os._exit, a signal, or out of memory)"
    except Failed as error:  # what a plugin raises where no check was looking
        text = f"the checks were cut off by {error}"
    except OSError as error:
        text = f"the checks were cut off by {told(error)}"
    return [Verdict(f"{given.method}: checks end", False, text)]


# ---- in the worker processes ----


def _work(work: Callable[[Given], list[Verdict]], given: Given) -> list[Verdict]:
    os.dup2(2, 1)  # what a plugin prints is no verdict
    return work(given)


def examine(given: Given) -> list[Verdict]:
    """Every check but that of resuming, for which the run's states are left in `given.file`."""
    from dstbench.suite.checks import CHECKS, REPORTS
    from dstbench.suite.checks.resume import write_states
    from dstbench.suite.checks.subject import Subject

    subject, name = Subject.of(given), given.method
    try:
        reason = subject.method().skip(subject.task)
    except RAISED as error:
        return [Verdict(f"{name}: can be made", False, explain(error, subject.files))]
    if reason:
        return [Verdict(f"{name}: skips {subject.task_name}", True, reason)]
    tests = {title: partial(test, subject) for title, test in CHECKS.items()}
    tests[RESUME] = partial(write_states, subject, Path(given.file))
    verdicts = judge(name, tests, subject.files)
    if verdicts[-1] == Verdict(f"{name}: {RESUME}", True, HOLDS):  # for the other process to say
        del verdicts[-1]
    for title, test in REPORTS.items():
        with suppress(*RAISED):
            verdicts.append(Verdict(f"{name}: {title}", True, test(subject)))
    return verdicts


def resume(given: Given) -> list[Verdict]:
    """What takes another process than the one that trained the method."""
    from dstbench.suite.checks.resume import defaults_are_those_of_another_process, resumes_after_any_step
    from dstbench.suite.checks.subject import Subject

    subject = Subject.of(given)
    tests = {RESUME: resumes_after_any_step, ELSEWHERE: defaults_are_those_of_another_process}
    path = Path(given.file)
    return judge(subject.name, {title: partial(test, subject, path) for title, test in tests.items()}, subject.files)


def judge(
    name: str,
    tests: Mapping[str, Callable[[], str]],
    files: Collection[str],
    caught: tuple[type[BaseException], ...] = RAISED,
) -> list[Verdict]:
    """A verdict for each test; an exception that several of them meet is told once, with their number."""
    from dstbench.suite.checks.subject import NotChecked

    found: list[Verdict] = []
    met: dict[tuple[Any, ...], list[int]] = {}  # what was raised where -> the place of its verdict, and how often more
    for title, test in tests.items():
        try:
            wrong = test()
        except NotChecked as reason:
            found.append(Verdict(f"{name}: {title}", True, f"not checked: {reason}"))
            continue
        except caught as error:  # a plugin may raise anything: that is the verdict
            wrong = explain(error, files)
            place = met.setdefault(_raised(error, files), [len(found), -1])
            place[1] += 1
            if place[1]:
                continue
        found.append(Verdict(f"{name}: {title}", not wrong, wrong or HOLDS))
    for at, more in met.values():
        if more:
            text = f"{found[at].text}; {more} more check{'s' * (more > 1)} ended there"
            found[at] = replace(found[at], text=text)
    return found


def _raised(error: BaseException, files: Collection[str]) -> tuple[Any, ...]:
    """The same for two errors of one statement: their kind, the last line of the plugin, and the line that raised."""
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    own = [frame for frame in frames if frame[0] in files] or frames
    return type(error), own[-1], frames[-1]


def explain(error: BaseException, files: Collection[str]) -> str:
    """The kind and text of an error, and `file.py:LINE` of the last frame in one of `files`, else of the last."""
    frames = traceback.extract_tb(error.__traceback__)
    last = ([frame for frame in frames if frame.filename in files] or frames)[-1]
    return f"{told(error)} ({Path(last.filename).name}:{last.lineno})"


def files_of(kind: type) -> set[str]:
    """The files that a class and its bases are written in, the suite's own apart."""
    modules = {k.__module__ for k in kind.__mro__ if not k.__module__.startswith("dstbench.suite.")}
    return {file for name in modules if (file := getattr(sys.modules.get(name), "__file__", None))}
