"""Files and folders that are written whole: locks, and what dead writers leave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from oneshot_ml2.common import files
from oneshot_ml2.common.errors import CorpusError, OneShotError

ROOT = Path(files.__file__).parents[1]


def child(code: str, *argv: Any) -> subprocess.Popen[str]:
    """A Python process with the package; it says ``ready`` where the test may go on."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *map(str, argv)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def killed(process: subprocess.Popen[str]) -> None:
    """Wait until it is ready, then kill it."""
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()


HOLD = """
import sys
from oneshot_ml2.common import files
with files.locked(sys.argv[1], "busy"):
    print("ready", flush=True)
    sys.stdin.read()
"""
HALF = """
import os, sys
from oneshot_ml2.common import files
with files.temporary(sys.argv[1], sys.argv[2] == "folder") as (path, handle):
    (path / "part" if path.is_dir() else path).write_bytes(b"half")
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    target = tmp_path / "log"
    other = child(HOLD, target)
    assert other.stdout is not None and other.stdout.readline() == "ready\n"
    with pytest.raises(CorpusError, match=r"^busy there$"), files.locked(target, "busy there", CorpusError):
        pass
    other.communicate("")
    with files.locked(target, "busy"), pytest.raises(OneShotError, match="busy"), files.locked(target, "busy"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_dead_process_is_free(tmp_path: Path) -> None:
    killed(child(HOLD, tmp_path / "log"))
    assert [path.name for path in tmp_path.iterdir()] == [".log.lock"]
    with files.locked(tmp_path / "log", "busy"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(OneShotError, match=r"cannot lock .*\.log\.lock: No such file"),
        files.locked(tmp_path / "none" / "log", "busy"),
    ):
        pass


def test_never_two_in_the_block(tmp_path: Path) -> None:
    """Locks are taken and removed all the time; whoever opened a removed file must not take that for the lock."""
    inside, most, entered = 0, 0, 0

    def work() -> None:
        nonlocal inside, most, entered
        for _ in range(300):
            try:
                with files.locked(tmp_path / "log", "busy"):
                    inside += 1
                    most, entered = max(most, inside), entered + 1
                    inside -= 1
            except OneShotError:
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and entered > 100
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_next_write_clears_what_a_dead_one_left(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "r1.checkpoint"
    strange = tmp_path / ".r1.checkpoint.mine"
    strange.write_text("not ours")
    (tmp_path / ".r1.checkpoint.txt.aaaaaaaa.oneshot-ml2").write_text("another target's")
    for _ in range(2):
        killed(child(HALF, target, kind))
    live = child(HALF, target, kind)
    assert live.stdout is not None and live.stdout.readline() == "ready\n"
    assert len(list(tmp_path.iterdir())) == 3
    files.write_whole(target, "whole")
    assert target.read_text() == "whole"
    left = {path.name for path in tmp_path.iterdir()} - {target.name, strange.name}
    assert len(left) == 2, "the dead writers', or the live one's too"
    live.communicate("")
    assert len(list(tmp_path.iterdir())) == 3


def test_a_link_is_no_leftover(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("text")
    (tmp_path / ".x.aaaaaaaa.oneshot-ml2").symlink_to(precious)
    files.write_whole(tmp_path / "x", "whole")
    assert (precious / "thesis.tex").read_text() == "text"


def test_writers_of_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Each clears before it writes; none may take another's half file for a leftover."""
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(50):
                files.write_whole(tmp_path / "x", str(number) * 1000)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert len(set((tmp_path / "x").read_text())) == 1


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_whole(tmp_path / "x", "first")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_whole(tmp_path / "x", "second")
    assert (tmp_path / "x").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "moments"), [("file", 60), ("weights", 60), ("training", 30)])
def test_kills_of_writers(kind: str, moments: int, tmp_path: Path) -> None:
    tests = Path(__file__).parent.parent
    command = [sys.executable, str(tests / "kills.py"), kind, str(tmp_path), str(moments)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tests}"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stderr
    # Most of the kills are to come within a write, which then leaves its half behind.
    assert int(done.stdout) >= moments // 2
