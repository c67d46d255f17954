import json
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from dstbench.suite import lock as locks
from dstbench.suite.lock import Busy, lock


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with lock(tmp_path):
        held = locks.holder(tmp_path)
        assert held is not None and held["pid"] == psutil.Process().pid
        with pytest.raises(Busy, match=f"in use by process {held['pid']}.*--results"), lock(tmp_path):
            pass
        assert locks.holder(tmp_path) == held, "the refused one removes nothing"
    assert locks.holder(tmp_path) is None and not list(tmp_path.iterdir())


def test_the_lock_is_given_back_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), lock(tmp_path):
        raise KeyError
    with lock(tmp_path):
        pass


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    code = "import os\nfrom dstbench.suite.lock import lock\n"
    code += f"with lock({str(tmp_path)!r}):\n    os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert (tmp_path / ".lock").exists() and locks.holder(tmp_path) is None
    with lock(tmp_path):
        assert locks.holder(tmp_path)
    assert not list(tmp_path.iterdir())


def stale(tmp_path: Path, **changes: object) -> None:
    with lock(tmp_path):
        text = (tmp_path / ".lock").read_text()
    (tmp_path / ".lock").write_text(json.dumps({**json.loads(text), **changes}))


def test_a_number_used_again_by_another_process_is_stale(tmp_path: Path) -> None:
    stale(tmp_path, created=1.0)
    with lock(tmp_path):
        pass


def test_another_host_is_believed(tmp_path: Path) -> None:
    stale(tmp_path, host="elsewhere", created=1.0)
    with pytest.raises(Busy, match="on elsewhere"), lock(tmp_path):
        pass


def test_a_torn_lock_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("{")
    with lock(tmp_path):
        pass


def test_a_lock_that_changed_hands_is_not_removed(tmp_path: Path) -> None:
    first, second = ({"host": "h", "pid": pid, "created": 1.0} for pid in (1, 2))
    (tmp_path / ".lock").write_text(json.dumps(second))
    locks._remove(tmp_path / ".lock", first, 3)
    assert json.loads((tmp_path / ".lock").read_text()) == second
    locks._remove(tmp_path / ".lock", second, 3)
    assert not list(tmp_path.iterdir())


def test_of_many_only_one_creates(tmp_path: Path) -> None:
    won: list[int] = []

    def take(number: int) -> None:
        if locks._create(tmp_path / ".lock", {"pid": number}):
            won.append(number)

    threads = [threading.Thread(target=take, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and json.loads((tmp_path / ".lock").read_text()) == {"pid": won[0]}
