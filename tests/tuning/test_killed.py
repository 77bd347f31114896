"""Commands that are killed: nothing whole is lost, and no process is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from killing import WORKS, alive

HERE = Path(__file__).parent.parent


def start(*argv: str | Path) -> subprocess.Popen[str]:
    """`killing` in a session of its own, where Ctrl-C is heeded."""
    return subprocess.Popen(
        [sys.executable, str(HERE / "killing.py"), *map(str, argv)],
        env=os.environ | {"PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.slow
@pytest.mark.parametrize("work", WORKS)
def test_work_killed_at_30_moments_ends_as_if_it_had_not_been(work: str, tmp_path: Path) -> None:
    process = start(work, tmp_path, "30")
    out, err = process.communicate(timeout=1800)
    assert process.returncode == 0, err
    assert int(out) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["measure", "search"])
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_child_outlives_its_parent(kind: str, sign: signal.Signals, tmp_path: Path) -> None:
    process = start(f"hang-{kind}", tmp_path)
    deadline = time.monotonic() + 120
    while not (tmp_path / "hangs").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (tmp_path / "hangs").exists() and alive(process.pid)
    process.send_signal(sign)
    process.wait(timeout=30)
    deadline = time.monotonic() + 20
    while alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = alive(process.pid)
    if left:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not left
