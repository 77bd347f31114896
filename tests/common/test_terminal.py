"""The process around a command: signals, and streams that are closed, full or left by their reader."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import RunCommand

from oneshot_ml2.common.errors import OneShotError, OneShotWarning

ROOT = Path(__file__).parent.parent.parent


def shell(command: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """A command line of bash in which `$CLI` is ours."""
    environment = os.environ | {"CLI": f"{sys.executable} -m oneshot_ml2", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=timeout, env=environment
    )


@pytest.mark.parametrize(
    ("redirected", "code", "says"),
    [
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        (">/dev/full", 2, "cannot write to standard output: No space left on device"),
        ("2>/dev/full", 0, ""),
        ("| head -n 1", 141, ""),
    ],
)
def test_closed_full_and_broken_streams(redirected: str, code: int, says: str) -> None:
    # More than a pipe holds, so that the reader has surely left.
    words = "weights --json" if "head" in redirected else "accelerators"
    done = shell(f"$CLI {words} {redirected}" if "head" not in redirected else f"$CLI {words} | (exec <&-; sleep 1)")
    assert done.returncode == code
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
    assert done.stderr.count("\n") == (1 if says else 0)
    assert says in done.stderr


@pytest.mark.parametrize("words", ["accelerators --jsn", "inspect nothing.bin"])
@pytest.mark.parametrize("redirected", ["2>&-", "2>/dev/full"])
def test_errors_that_nobody_reads_keep_their_code(words: str, redirected: str) -> None:
    done = shell(f"$CLI {words} {redirected}")
    assert (done.returncode, done.stdout) == (2, "")


def test_a_closed_stdout_is_no_file_of_ours(tmp_path: Path) -> None:
    """Its number would go to the next file that is opened, and what native code prints into that."""
    code = (
        "import os, sys; from types import SimpleNamespace as N; from oneshot_ml2.commands import main as cli\n"
        "def run(args):\n"
        f"    with open({str(tmp_path / 'log')!r}, 'w') as file:\n"
        "        os.write(1, b'native'); print('python'); file.write('mine')\n"
        "    return 0\n"
        "cli.importlib = N(import_module=lambda name: N(add_arguments=lambda parser: None, run=run))\n"
        "sys.exit(cli.main(['accelerators']))"
    )
    done = shell(f'{sys.executable} -c "{code}" >&-')
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "log").read_text() == "mine"


# Signals ---------------------------------------------------------------------------------------
def command(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every command do this instead."""
    module = SimpleNamespace(add_arguments=lambda parser: None, run=run)
    monkeypatch.setattr("importlib.import_module", lambda name: module)


@pytest.mark.parametrize(
    ("number", "code", "says"),
    [
        (signal.SIGTERM, 143, "ended by SIGTERM"),
        (signal.SIGHUP, 129, "ended by SIGHUP"),
        (signal.SIGINT, 130, "interrupted"),
    ],
)
def test_signals_unwind_once(
    number: signal.Signals, code: int, says: str, monkeypatch: pytest.MonkeyPatch, run_command: RunCommand
) -> None:
    events = []

    def run(args: object) -> int:
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
        finally:
            # Those who end a process tell its group, too: a second one breaks nothing off.
            os.kill(os.getpid(), number)
            time.sleep(0.01)
            events.append("unwound")
        return 0

    command(run, monkeypatch)
    # Tests in the background of a shell have inherited that some are ignored.
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    inherited = signal.signal(number, usual)
    try:
        found, out, err = run_command("accelerators")
        assert (found, out, events) == (code, "", ["unwound"])
        assert says in err and err.count("\n") == 1
        assert signal.getsignal(number) == usual
    finally:
        signal.signal(number, inherited)


def test_what_a_library_makes_of_a_signal_is_one_still(
    monkeypatch: pytest.MonkeyPatch, run_command: RunCommand
) -> None:
    def run(args: object) -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        except KeyboardInterrupt as error:
            raise OneShotError("a worker has died") from error
        return 0

    command(run, monkeypatch)
    code, _, err = run_command("accelerators")
    assert code == 143
    assert "ended by SIGTERM" in err and "worker" not in err


def test_an_interrupted_command_can_say_what_is_kept(monkeypatch: pytest.MonkeyPatch, run_command: RunCommand) -> None:
    def run(args: object) -> int:
        raise KeyboardInterrupt("what was finished is in here")

    command(run, monkeypatch)
    assert run_command("accelerators") == (130, "", "oneshot-ml2: interrupted; what was finished is in here\n")


def test_a_process_ended_by_a_signal(tmp_path: Path) -> None:
    """With its own exit code, though a KeyboardInterrupt that leaves `exec` makes Python end itself by SIGINT."""
    (tmp_path / "slow.py").write_text(
        "import sys, time\nfrom types import SimpleNamespace as N\nfrom oneshot_ml2.commands import main as cli\n"
        "def run(args):\n"
        "    print('begun', flush=True)\n"
        "    exec('time.sleep(60)')\n"
        "cli.importlib = N(import_module=lambda name: N(add_arguments=lambda parser: None, run=run))\n"
        "sys.argv = ['oneshot-ml2', 'accelerators']\nsys.exit(cli.main())\n"
    )
    process = subprocess.Popen(
        [sys.executable, tmp_path / "slow.py"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 143
    assert err == "oneshot-ml2: ended by SIGTERM; nothing is half-written, and finished work is kept\n"


def test_ignored_signals_stay_ignored(monkeypatch: pytest.MonkeyPatch, run_command: RunCommand) -> None:
    def run(args: object) -> int:
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.01)
        return 0

    command(run, monkeypatch)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run_command("accelerators") == (0, "", "")
    finally:
        signal.signal(signal.SIGHUP, before)


def test_our_warnings_are_one_line(monkeypatch: pytest.MonkeyPatch, run_command: RunCommand) -> None:
    def run(args: object) -> int:
        warnings.warn("set\nthat", OneShotWarning, stacklevel=1)
        return 0

    command(run, monkeypatch)
    assert run_command("accelerators") == (0, "", "oneshot-ml2: warning: set that\n")
