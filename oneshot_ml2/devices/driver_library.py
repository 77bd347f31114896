"""A VTA library in a process of its own: what it is asked, its time limit, and how it fails."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import IO, Any

import numpy as np

from oneshot_ml2.common.errors import DeviceError
from oneshot_ml2.devices import driver_process
from oneshot_ml2.devices.raw import CRASH, HANG, REFUSED, TIMED_OUT, Fault, Options, Ran, Read, Write, check_addresses

# Seconds that a library may take to load, and to end a run when it is told to.
_START, _GRACE = 60.0, 2.0
_TAIL = 4096


class LibraryProcess:
    """The process of a library, a `RawBoard`."""

    def __init__(self, path: str, options: Options) -> None:
        self.name, self.options = path, options
        self.configuration: str | None = None
        self.number = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._fds: list[int] = []
        self._output: IO[bytes] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # Where it is sent to it begins a process of its own.
        return LibraryProcess, (self.name, self.options)

    @property
    def running(self) -> bool:
        """Whether there is a process that can be asked."""
        return self._process is not None

    def start(self) -> None:
        """Begin the process, unless there is one.

        Raises:
            DeviceError: the library does not load, is none of VTA's, or has no device.
        """
        if self._process is not None:
            return
        theirs: list[int] = []
        ours: list[int] = []
        for mine in (1, 0, 1):
            pipe = os.pipe()
            ours.append(pipe[mine])
            theirs.append(pipe[1 - mine])
        self._fds, self._output = ours, tempfile.TemporaryFile()  # noqa: SIM115 - until the process has ended
        command = [sys.executable, "-I", driver_process.__file__, *map(str, theirs)]
        # A group of its own: Ctrl-C is ours, and ends the run first.
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output, pass_fds=theirs,
            start_new_session=True,
        )  # fmt: skip
        self.number += 1
        for fd in theirs:
            os.close(fd)
        opened = {"path": self.name, "bits": self.options.bits, "cached": self.options.cached}
        try:
            answer, _ = self._ask({**opened, "flush": self.options.flush, "limit": self.options.limit}, b"", _START)
        except Fault as fault:
            raise DeviceError(f"{self.name} does not open ({fault})") from fault
        if "failed" in answer:
            self.close()
            raise DeviceError(f"{self.name} is no VTA driver library that can be used: {answer['failed']}")
        self.configuration = answer["configuration"]

    def allocate(self, sizes: Sequence[int]) -> list[int] | None:
        """See `RawBoard.allocate`."""
        self.start()
        answer, _ = self._ask({"sizes": list(sizes)}, b"", self.options.limit)
        addresses: list[int] = answer["addresses"]
        if len(addresses) < len(sizes):
            return None
        check_addresses(self.name, addresses, sizes, self.options.bits)
        return addresses

    def run(self, address: int, count: int, writes: Sequence[Write], reads: Sequence[Read], repeats: int = 1) -> Ran:
        """See `RawBoard.run`."""
        if self._process is None:
            raise Fault(CRASH, "its process has ended")
        request = {
            "writes": [(number, offset, content.size) for number, offset, content in writes],
            "reads": list(reads),
            "address": address,
            "count": count,
            "wait": self.options.wait,
            "repeats": repeats,
        }
        answer, content = self._ask(request, b"".join(one.tobytes() for _, _, one in writes), self.options.limit)
        if "failed" in answer:
            raise Fault(REFUSED, answer["failed"])
        if answer.get("status"):
            # What it has left, tokens for one, is not to be trusted.
            self.close()
            kind = TIMED_OUT if answer["status"] == 1 else REFUSED
            raise Fault(kind, answer["error"] or f"VTADeviceRun returned {answer['status']}")
        cuts = np.cumsum([size for _, _, size in reads])[:-1]
        parts = np.split(np.frombuffer(content, np.uint8), cuts) if reads else []
        return Ran(answer.get("ns", 0) * 1e-9, answer.get("cycles", 0), tuple(parts))

    def _ask(self, request: dict[str, Any], payload: bytes, limit: float) -> tuple[dict[str, Any], bytes]:
        """A request's answer; Fault if none comes in time, or the process ends instead."""
        out, back = self._fds[0], self._fds[1]
        try:
            driver_process.send(out, request, payload)
            if not select.select([back], [], [], limit)[0]:
                self._end(signal.SIGTERM)
                raise Fault(HANG, f"no answer within {limit:g} s (limit=SECONDS sets it); its process was ended")
            return driver_process.receive(back)
        except (EOFError, OSError) as error:
            raise Fault(CRASH, self._last_words()) from error

    def _last_words(self) -> str:
        """How the process ended, and the last line that it printed; it is cleared away."""
        assert self._process is not None and self._output is not None
        try:
            code: int | None = self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            code = None
        self._output.seek(max(0, self._output.seek(0, os.SEEK_END) - _TAIL))
        lines = self._output.read().decode(errors="replace").strip().splitlines()
        self._end(signal.SIGKILL)
        how = "its process closed its pipe" if code is None else f"its process ended with {code}"
        if code is not None and code < 0:
            how = f"its process died of {signal.Signals(-code).name}"
        return f"{how}, saying {lines[-1].strip()!r}" if lines else how

    def _end(self, how: signal.Signals) -> None:
        """End the process: one that is told by SIGTERM may end its run first."""
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._clear()

    def close(self) -> None:
        """Let the process give everything back and end, if there is one."""
        if self._process is None:
            return
        os.close(self._fds.pop(0))
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE)
        self._end(signal.SIGTERM)

    def _clear(self) -> None:
        for fd in self._fds:
            os.close(fd)
        if self._output is not None:
            self._output.close()
        self._process, self._fds, self._output = None, [], None
