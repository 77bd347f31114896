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
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import DeviceError
from oneshot_ml2.devices import driver_process
from oneshot_ml2.vta.program import PAGE

# How a run can fail. The first two cost the process; of the third the library says so itself.
HANG, CRASH, TIMED_OUT, REFUSED = "hang", "crash", "timed out", "error"
# It ran, and said that it was done: nothing has been written; something wrong has been; it said so late.
NO_RESULT, WRONG, LATE = "no result", "wrong result", "late"
# Seconds that a library may take to load, and to end a run when it is told to.
_START, _GRACE = 60.0, 2.0
_TAIL = 4096


@dataclass(frozen=True)
class Options:
    """What is asked of a library.

    Attributes:
        bits: of physical addresses, 32 or 64.
        wait: how often VTADeviceRun may look for the end.
        limit: seconds of wall time for a run.
        cached: what VTAMemAlloc is asked for.
        flush: write caches back before a run, and drop them after it.
        largest: bytes of an allocation at most; 0: one for all where the library gives it.
        repeats: runs of which the median time counts.
        retries: further tries after a fault.
        check: hold every result of a model against the functional simulator.
    """

    bits: int = 32
    wait: int = (1 << 31) - 1
    limit: float = 60.0
    cached: int = 1
    flush: bool = False
    largest: int = 0
    repeats: int = 3
    retries: int = 2
    check: bool = False


class Fault(Exception):
    """A run that failed: ``kind``, see above, and what is known of why."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(f"{kind}: {why}" if why else kind)
        self.kind = kind


@dataclass(frozen=True)
class Ran:
    """A run: seconds of wall time, cycles (0 where nothing counts them), and what was read, uint8 each."""

    seconds: float
    cycles: int
    contents: tuple[NDArray[np.uint8], ...]


# An allocation, an offset in it, and bytes.
Write = tuple[int, int, NDArray[np.uint8]]
Read = tuple[int, int, int]


class LibraryProcess:
    """The process of a library; begun by the first request, and anew after a fault that ended it."""

    def __init__(self, path: str, options: Options) -> None:
        self._path, self.options = path, options
        self.configuration: str | None = None
        # Counts the processes: allocations of another one are gone.
        self.number = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._fds: list[int] = []
        self._output: IO[bytes] | None = None

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
        opened = {"path": self._path, "bits": self.options.bits, "cached": self.options.cached}
        try:
            answer, _ = self._ask({**opened, "flush": self.options.flush, "limit": self.options.limit}, b"", _START)
        except Fault as fault:
            raise DeviceError(f"{self._path} does not open ({fault})") from fault
        if "failed" in answer:
            self.close()
            raise DeviceError(f"{self._path} is no VTA driver library that can be used: {answer['failed']}")
        self.configuration = answer["configuration"]

    def allocate(self, sizes: Sequence[int]) -> list[int] | None:
        """Physical addresses of new allocations, those before being given back; None if there is no room for them.

        Raises:
            Fault: the library hangs or crashes.
            DeviceError: an address that no program can have; or see `start`.
        """
        self.start()
        answer, _ = self._ask({"sizes": list(sizes)}, b"", self.options.limit)
        addresses: list[int] = answer["addresses"]
        if len(addresses) < len(sizes):
            return None
        for address, size in zip(addresses, sizes):
            if address == 0 or address % PAGE:
                raise DeviceError(f"{self._path} gives memory at {address:#x}, which is not aligned to pages of 4,096")
            if self.options.bits == 32 and address + size > 1 << 32:
                raise DeviceError(
                    f"{self._path} gives memory up to {address + size:#x}, out of reach of 32-bit addresses; reserve "
                    "memory below 4 GiB for it, or give address=64 if library and design are built for that"
                )
        return addresses

    def run(self, address: int, count: int, writes: Sequence[Write], reads: Sequence[Read]) -> Ran:
        """Write, run ``count`` instructions at a physical address (none: 0), and read.

        Raises:
            Fault: it fails.
        """
        if self._process is None:
            raise Fault(CRASH, "its process has ended")
        request = {
            "writes": [(number, offset, content.size) for number, offset, content in writes],
            "reads": list(reads),
            "address": address,
            "count": count,
            "wait": self.options.wait,
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
