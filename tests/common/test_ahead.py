"""Processes that compile kernels ahead of need: what they do, and that nothing depends on them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from oneshot_ml2.common import ahead

ROOT = Path(__file__).parent.parent.parent
# What helpers are asked for, and beside it a program that has it compiled ahead and then calls it itself.
USES = """
import os, time
from pathlib import Path
from oneshot_ml2.common.kernels import njit
HERE = Path(__file__).parent

@njit(cache=True, nogil=True)
def double(x):
    return 2 * x

def call():
    double(4)

def die():
    (HERE / "dying").write_text("")
    os._exit(3)

def linger():
    (HERE / "writing").write_text(str(os.getpid()))
    (HERE / "writing").rename(HERE / "pid")
    time.sleep(600)
"""
PROGRAM = """
import signal, sys, time
from pathlib import Path
# What starts tests in the background may have had it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {folder!r})
from oneshot_ml2.common import ahead
ahead._cores = lambda: 2
with ahead.compiled({uses!r}):
    end = time.monotonic() + 100
    while time.monotonic() < end and not list(Path({folder!r}).rglob({until!r})):
        time.sleep(0.01)
    {body}
import uses
print(uses.double(4), sum(uses.double.stats.cache_misses.values()))
"""


def program(folder: Path, uses: tuple[str, ...], until: str, body: str = "pass") -> subprocess.Popen[str]:
    """A process that has ``uses`` compiled ahead, and waits for a file that a helper writes before it goes on."""
    (folder / "uses.py").write_text(USES)
    return subprocess.Popen(
        [sys.executable, "-B", "-c", PROGRAM.format(folder=str(folder), uses=uses, until=until, body=body)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(folder / "kernels")},
    )  # fmt: skip


def test_what_a_helper_has_compiled_is_there(tmp_path: Path) -> None:
    for misses in (0, 0):
        out, err = program(tmp_path, ("uses:call",), "uses.call.ahead").communicate(timeout=120)
        assert (out.split(), err) == (["8", str(misses)], "")


def test_a_helper_that_dies_costs_nothing_but_time(tmp_path: Path) -> None:
    out, err = program(tmp_path, ("uses:call", "uses:die"), "dying").communicate(timeout=120)
    assert (out.split(), err) == (["8", "1"], "")
    assert not list(tmp_path.rglob("*.ahead"))


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{process}/stat")
    # One that nobody has waited for is gone all the same.
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until_gone(process: int) -> None:
    end = time.monotonic() + 60
    while is_running(process) and time.monotonic() < end:
        time.sleep(0.01)
    assert not is_running(process)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_helpers_end_with_their_parent_however_that_ends(how: signal.Signals, tmp_path: Path) -> None:
    parent = program(tmp_path, ("uses:linger",), "pid", "time.sleep(600)")
    end = time.monotonic() + 60
    while not (tmp_path / "pid").exists() and time.monotonic() < end:
        time.sleep(0.01)
    helper = int((tmp_path / "pid").read_text())
    assert is_running(helper)
    parent.send_signal(how)
    parent.communicate(timeout=60)
    wait_until_gone(helper)


def test_helpers_end_with_the_block(tmp_path: Path) -> None:
    out, _ = program(tmp_path, ("uses:linger",), "pid").communicate(timeout=120)
    assert out.split() == ["8", "1"]
    wait_until_gone(int((tmp_path / "pid").read_text()))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """What helpers would be asked for, in their order; none is started."""
    orders: list[list[str]] = []

    def start(uses: list[str]) -> None:
        orders.append(list(uses))
        raise OSError("no more processes")

    monkeypatch.setattr(ahead, "_started", start)
    monkeypatch.setattr(ahead, "_is_done", lambda use: use == "done")
    yield orders


@pytest.mark.parametrize(
    ("cores", "orders"),
    [
        (1, []),
        (2, [["c", "b", "a"]]),
        (3, [["c", "b", "a"], ["a", "b", "c"]]),
        (64, [["c", "b", "a"], ["a", "b", "c"]]),
    ],
)
def test_helpers_are_fewer_than_cores_and_begin_at_both_ends(
    cores: int, orders: list[list[str]], started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "_cores", lambda: cores)
    # Nor does it matter that none of them can be started.
    with ahead.compiled(("a", "b", "done", "c")):
        pass
    assert started == orders


def test_no_helper_is_started_for_what_is_there(started: list[list[str]]) -> None:
    with ahead.compiled(("done",)):
        pass
    assert started == []


def test_where_nothing_can_be_kept_nothing_is_compiled_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead.kernels, "place_of", lambda function: None)
    assert ahead._is_done("uses:call")


def test_a_mark_of_other_kernels_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead.kernels, "place_of", lambda function: tmp_path)
    mark = ahead._mark("uses:call")
    assert mark is not None and not ahead._is_done("uses:call")
    mark.write_text(ahead.kernels.identity())
    assert ahead._is_done("uses:call")
    monkeypatch.setattr(ahead.kernels, "_sources", lambda: "other sources")
    assert not ahead._is_done("uses:call")
