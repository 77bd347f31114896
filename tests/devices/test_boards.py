"""The drivers for boards, by register: every sequence against a model of the designs' registers.

What the registers are, and what goes wrong with them, is in docs/boards.md.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from driver_programs import differs
from drivers import board_library, fake_xrt

from oneshot_ml2.common.errors import DeviceError
from oneshot_ml2.devices.driver import DriverDevice
from oneshot_ml2.devices.raw import TIMED_OUT, Fault, Options
from oneshot_ml2.spaces.drawn import random_layer
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import PAGE

PYNQ = Accelerator.load("pynq")
PHYSICAL = 0x1000_0000
SIZE = 8 << 20
# Windows of the HLS design.
FETCH, LOAD, COMPUTE, STORE = range(4)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A board's memory as u-dma-buf shows it, and where the model of its registers writes what is done to them."""
    (tmp_path / "udmabuf0").write_bytes(bytes(SIZE))
    sys_folder = tmp_path / "sys"
    sys_folder.mkdir()
    (sys_folder / "phys_addr").write_text(f"{PHYSICAL:#010x}\n")
    (sys_folder / "size").write_text(f"{SIZE}\n")
    for name in ("sync_for_device", "sync_for_cpu"):
        (sys_folder / name).write_text("")
    monkeypatch.setenv("VTA_UDMABUF", str(tmp_path / "udmabuf0"))
    monkeypatch.setenv("VTA_UDMABUF_SYS", str(sys_folder))
    monkeypatch.setenv("MODEL_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


def device(design: str = "hls", **options: object) -> DriverDevice:
    given = Options(**{"limit": 20.0, "retries": 0, **options})  # type: ignore[arg-type]
    return DriverDevice(board_library("udmabuf", PYNQ, design), given)


def accesses(log: Path) -> list[tuple[str, int, int, int]]:
    """What was done: (what, window, offset, value)."""
    rows = [line.split() for line in log.read_text().splitlines()]
    return [(what, int(window), int(offset, 16), int(value, 16)) for what, window, offset, value in rows]


def run_empty(one: DriverDevice) -> None:
    one._run_empty()


# Sequences -----------------------------------------------------------------------------------
def test_a_run_of_the_hls_design(log: Path) -> None:
    one = device()
    run_empty(one)
    done = accesses(log)
    assert [row[:3] for row in done[:4]] == [("open", window, 0x1000) for window in range(4)]
    assert [row[3] for row in done[:4]] == [0x43C0_0000 + 0x1000 * window for window in range(4)]
    assert done[4:17] == [
        ("read", FETCH, 0x00, 0x04),
        ("write", FETCH, 0x10, 2),
        ("write", FETCH, 0x18, PHYSICAL),
        ("write", LOAD, 0x10, 0),
        ("write", LOAD, 0x18, 0),
        ("write", COMPUTE, 0x20, 0),
        ("write", COMPUTE, 0x28, 0),
        ("write", STORE, 0x10, 0),
        ("write", COMPUTE, 0x10, 0),
        ("read", COMPUTE, 0x1C, 0),
        ("write", LOAD, 0x00, 0x81),
        ("write", COMPUTE, 0x00, 0x81),
        ("write", STORE, 0x00, 0x81),
    ]
    assert done[17] == ("write", FETCH, 0x00, 0x01)
    assert ("executed", 0, 0, 2) in done
    assert done[-1] == ("read", COMPUTE, 0x18, 1)
    assert {row[:3] for row in done[18:]} <= {("read", COMPUTE, 0x1C), ("read", COMPUTE, 0x18), ("executed", 0, 0)}
    one.close()


def test_a_done_of_the_run_before_is_not_taken(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_POLLS", "20")
    one = device()
    for _ in range(3):
        run_empty(one)
    done = accesses(log)
    ends = [i for i, row in enumerate(done) if row[0] == "executed"]
    starts = [i for i, row in enumerate(done) if row == ("write", FETCH, 0, 1)]
    assert len(starts) == len(ends) == 3
    # The old 1 was there to be read at every start but the first; nobody took it for this run's.
    assert all(start < end for start, end in zip(starts, ends))
    assert all(end < start for end, start in zip(ends, starts[1:]))
    one.close()
    # Without looking at the flag that it was written since, it is taken: that is what the flag is for.
    log.unlink()
    monkeypatch.setenv("VTA_DONE_VALID", "0")
    one = device()
    run_empty(one)
    run_empty(one)
    done = accesses(log)
    last = max(i for i, row in enumerate(done) if row == ("write", FETCH, 0, 1))
    assert not any(row[0] == "executed" for row in done[last:])
    one.close()


def test_a_run_of_the_chisel_design(log: Path) -> None:
    one = device("chisel")
    (address,) = one.process.allocate([PAGE]) or [0]
    ran = one.process.run(address, 2, [(0, 0, np.array([0, 0, 3, 0], "<u8").view(np.uint8))], ())
    assert accesses(log)[:11] == [
        ("open", 0, 0x1000, 0x43C0_0000),
        ("read", 0, 0x00, 0),
        ("write", 0, 0x04, 0),
        ("write", 0, 0x08, 2),
        ("write", 0, 0x0C, PHYSICAL),
        *[("write", 0, base, 0) for base in (0x10, 0x14, 0x18, 0x1C, 0x20)],
        ("write", 0, 0x00, 1),
    ]
    assert accesses(log)[-2:] == [("read", 0, 0x00, 2), ("read", 0, 0x04, 4321)]
    assert ran.cycles == 4321
    # Also where a run before has ended: its bit is gone with the launch.
    assert one.process.run(address, 2, (), ()).cycles == 4321
    one.close()


@pytest.mark.parametrize("design", ["hls", "chisel"])
def test_programs_on_the_model_of_a_board(log: Path, design: str) -> None:
    one = device(design, flush=True)
    for seed in range(8):
        rng = np.random.default_rng([9, seed])
        assert not differs(one, *random_layer(rng, PYNQ), rng)
    assert not one.faults
    one.close()


# Runs that do not end ------------------------------------------------------------------------
@pytest.mark.parametrize("design", ["hls", "chisel"])
def test_a_run_that_does_not_end_is_ended_by_the_limit_or_the_looks(
    log: Path, monkeypatch: pytest.MonkeyPatch, design: str
) -> None:
    monkeypatch.setenv("MODEL_HANG", "1")
    monkeypatch.setenv("VTA_LIMIT_MS", "300")
    one = device(design)
    begin = time.monotonic()
    why = {"hls": "compute has executed nothing", "chisel": "load the bitstream again"}[design]
    with pytest.raises(Fault, match=why) as found:
        run_empty(one)
    assert found.value.kind == TIMED_OUT
    assert 0.25 < time.monotonic() - begin < 5
    one.close()
    monkeypatch.setenv("VTA_LIMIT_MS", "100000")
    log.unlink()
    few = device(design, wait=50)
    with pytest.raises(Fault) as found:
        run_empty(few)
    assert found.value.kind == TIMED_OUT
    look = {"hls": ("read", COMPUTE, 0x1C), "chisel": ("read", 0, 0)}[design]
    looks = [row for row in accesses(log) if row[:3] == look]
    # One more before the start.
    assert len(looks) == 51
    few.close()


def test_a_design_that_is_busy_is_not_started(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_HANG", "1")
    monkeypatch.setenv("VTA_LIMIT_MS", "50")
    path = board_library("udmabuf", PYNQ)
    code = (
        "from oneshot_ml2.devices.driver_process import Library\n"
        f"one = Library({str(path)!r}, 32, 1, False)\n"
        "(a,) = one.allocate([4096]); one.write(0, 0, bytes(16) + b'\\x03' + bytes(15))\n"
        "print([one.run(a, 2, 1 << 30)['status'] for _ in range(2)])\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert run.stdout.strip() == "[1, 2]", run.stderr
    assert "still busy with an earlier run: load the bitstream again" in run.stderr
    assert [row for row in accesses(log) if row == ("write", FETCH, 0, 1)] == [("write", FETCH, 0, 1)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_run_first(log: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    monkeypatch.setenv("MODEL_MS", "1500")
    path = board_library("udmabuf", PYNQ)
    code = (
        "import signal\n"
        "from oneshot_ml2.devices.driver_process import Library\n"
        # As at a terminal: what starts tests in the background may have had them ignored.
        "signal.signal(signal.SIGINT, signal.SIG_DFL); signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        f"one = Library({str(path)!r}, 32, 1, False)\n"
        "(a,) = one.allocate([4096]); one.write(0, 0, bytes(16) + b'\\x03' + bytes(15))\n"
        "print('running', flush=True); one.run(a, 2, 1 << 30); print('after')\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "running\n"
    time.sleep(0.4)
    child.send_signal(number)
    out, err = child.communicate(timeout=30)
    assert child.returncode == -number
    assert "after" not in out
    assert f"signal {int(number)} came during a run, which ended first" in err
    assert ("executed", 0, 0, 2) in accesses(log)


# Memory --------------------------------------------------------------------------------------
def test_u_dma_buf_is_told_which_lines(log: Path) -> None:
    one = device(flush=True)
    one.process.allocate([PAGE, 3 * PAGE])
    one.process.run(0, 0, [(1, 40, np.zeros(100, np.uint8))], ())
    # Offset 0x1028 and 100 bytes: lines from 0x1020 on, towards the device, the bit that says "now".
    assert (log.parent / "sys" / "sync_for_device").read_text() == f"0x{0x1020:08X}{(112 | 1 << 2 | 1):08X}"
    ran = one.process.run(0, 0, (), [(1, 40, 100)])
    assert (log.parent / "sys" / "sync_for_cpu").read_text() == f"0x{0x1020:08X}{(112 | 2 << 2 | 1):08X}"
    assert not ran.contents[0].any()
    assert one.process.allocate([SIZE]) == [PHYSICAL]
    assert one.process.allocate([SIZE + PAGE]) is None
    one.close()


def test_u_dma_buf_that_is_not_there_is_told(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VTA_UDMABUF", "/dev/no_such_buffer")
    with pytest.raises(DeviceError, match="no memory for 4,096 bytes"):
        run_empty(device())


def test_memory_from_xrt(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = log.parent / "xrt"
    monkeypatch.setenv("VTA_XRT", str(fake_xrt()))
    monkeypatch.setenv("FAKE_XRT_LOG", str(calls))
    one = DriverDevice(board_library("xrt", PYNQ), Options(limit=20, flush=True, cached=1, retries=0))
    for seed in range(3):
        rng = np.random.default_rng([10, seed])
        assert not differs(one, *random_layer(rng, PYNQ), rng)
    one.close()
    made = [line.split() for line in calls.read_text().splitlines()]
    # Cacheable, of bank 0; all of them are given back; synchronised both ways.
    assert {tuple(row[2:]) for row in made if row[0] == "alloc"} == {("1", "0")}
    assert sum(row[0] == "alloc" for row in made) == sum(row[0] == "free" for row in made)
    assert {row[1] for row in made if row[0] == "sync"} == {"0", "1"}
    # Above 4 GiB.
    monkeypatch.setenv("FAKE_XRT_BASE", hex(0x1_0000_0000))
    with pytest.raises(DeviceError, match="no memory for"):
        run_empty(DriverDevice(board_library("xrt", PYNQ), Options(limit=20)))
    monkeypatch.setenv("VTA_XRT", "libno_such_xrt.so")
    with pytest.raises(DeviceError, match="no memory for"):
        run_empty(DriverDevice(board_library("xrt", PYNQ), Options(limit=20)))
