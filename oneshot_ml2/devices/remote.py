"""A board behind a server (`wire`), as a `RawBoard`: reconnection, and contents that are sent once."""

from __future__ import annotations

import dataclasses
import statistics
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import DeviceError
from oneshot_ml2.devices.raw import (
    CRASH,
    GONE,
    HANG,
    REFUSED,
    TIMED_OUT,
    Fault,
    Options,
    Ran,
    Read,
    Write,
    check_addresses,
)
from oneshot_ml2.devices.wire import Code, Connection, Kind, ServerError, digest

# Seconds for an answer beyond what a run may take; for others who have the board to leave; between tries to connect.
_ANSWER, _QUEUE, _PAUSE = 15.0, 3600.0, 0.25
# Contents of fewer bytes travel in a run's own frame; and what all of a frame may have of them.
_LEAST_HASHED, _INLINE = 4096, 128 << 10
_RUN = struct.Struct("<QIIIIII")
_PLACE = struct.Struct("<IIQ")
_FAULTS = {Code.HANG: HANG, Code.CRASH: CRASH, Code.TIMED_OUT: TIMED_OUT, Code.REFUSED: REFUSED}


class Place(Protocol):
    """Where a server is."""

    def find(self, timeout: float) -> tuple[str, int]:
        """Its host and port.

        Raises:
            OSError: nobody says where in time.
        """
        ...


def read_token(spec: str, path: str | None) -> bytes | None:
    """The token in a file; None without one.

    Raises:
        DeviceError: it cannot be read, or has none.
    """
    if path is None:
        return None
    try:
        token = Path(path).read_bytes().rstrip()
    except OSError as error:
        raise DeviceError(f"{spec}: the token in {path} cannot be read: {error.strerror or error}") from error
    if not 16 <= len(token) <= 256:
        raise DeviceError(f"{spec}: {path} has no token of 16 to 256 characters; it is the file that the server has")
    return token


class RemoteBoard:
    """See the module; a `RawBoard`.

    Attributes:
        patience: seconds for which it is tried to connect, once it has been reached.
        board: what the server calls itself, "" before it was reached.
    """

    def __init__(
        self, name: str, place: Place, options: Options, token: bytes | None = None, patience: float = 10.0
    ) -> None:
        self.name, self.options, self.patience = name, options, patience
        self.configuration: str | None = None
        self.board = ""
        self.number = 0
        self._place, self._token = place, token
        self._connection: Connection | None = None
        self._allocated = False

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteBoard, (self.name, self._place, self.options, self._token, self.patience)

    @property
    def running(self) -> bool:
        """Whether there is a connection whose allocations are there."""
        return self._connection is not None and self._allocated

    def start(self) -> None:
        """See `RawBoard.start`.

        Raises:
            Fault: a server that was there is gone, for longer than ``patience``.
        """
        end = time.monotonic() + self.patience
        while self._connection is None:
            try:
                self._connect()
            except (OSError, ServerError) as error:
                if self.number == 0:
                    raise DeviceError(f"{self.name} cannot be used: {error}; is the server started there?") from error
                if time.monotonic() > end:
                    raise Fault(GONE, f"{self.name} does not answer: {error}") from error
                time.sleep(_PAUSE)

    def _connect(self) -> None:
        host, port = self._place.find(_ANSWER)
        self._connection = Connection(host, port, self._token, _ANSWER, _QUEUE)
        limits = self._connection.limits
        self.board, self.configuration = limits.name, limits.configuration or None
        self.options = dataclasses.replace(self.options, bits=limits.bits)
        self.number += 1
        self._allocated = False

    def _ask(self, kind: Kind, body: bytes, limit: float = 60.0) -> bytes:
        """An answer; what goes wrong is a fault.

        Raises:
            Fault: the server says so, or is gone.
        """
        if self._connection is None:
            raise Fault(GONE, f"there is no connection to {self.name}")
        try:
            return self._connection.ask(kind, body, limit + _ANSWER)
        except ServerError as error:
            self._failed(error)
        except (OSError, ValueError) as error:
            self.close()
            raise Fault(GONE, f"{self.name}: {error}") from error

    def _failed(self, error: ServerError) -> NoReturn:
        if error.code in _FAULTS:
            # The server has begun the driver anew, and its allocations are gone.
            self._allocated = False
            self.number += 1
            raise Fault(_FAULTS[Code(error.code)], str(error)) from error
        if error.code == Code.NO_DRIVER:
            self.close()
            raise DeviceError(f"{self.name}: the server's driver does not open: {error}") from error
        raise Fault(REFUSED, str(error)) from error

    def allocate(self, sizes: Sequence[int]) -> list[int] | None:
        """See `RawBoard.allocate`."""
        self.start()
        flags = int(bool(self.options.cached)) | int(self.options.flush) << 1
        body = struct.pack(f"<II{len(sizes)}Q", flags, len(sizes), *sizes)
        addresses = np.frombuffer(self._ask(Kind.ALLOCATE, body, self.options.limit), "<u8").tolist()
        self._allocated = True
        if len(addresses) < len(sizes):
            return None
        check_addresses(self.name, addresses, sizes, self.options.bits)
        return addresses

    def run(self, address: int, count: int, writes: Sequence[Write], reads: Sequence[Read], repeats: int = 1) -> Ran:
        """See `RawBoard.run`; what is large goes by its hash before the run, and comes after it."""
        if not self.running:
            raise Fault(GONE if self._connection is None else CRASH, f"{self.name}: what was allocated is gone")
        assert self._connection is not None
        limits = self._connection.limits
        inline = self._send_large(writes, limits.content, limits.places)
        # Later frames of what does not fit beside the run.
        beside = [read for read in reads if read[2] <= _LEAST_HASHED]
        small = sum(size for _, _, size in beside)
        fits = small <= _INLINE and len(beside) <= limits.places
        ran = self._run(address, count, inline, beside if fits else [], repeats)
        found = dict(zip(beside, ran.contents)) if fits else {}
        contents = tuple(found[read] if read in found else self._get(read, limits.content) for read in reads)
        return dataclasses.replace(ran, contents=contents)

    def _send_large(self, writes: Sequence[Write], most: int, places: int) -> list[Write]:
        """Send what is to be written before a run, but for the last small ones, which are returned.

        The order is kept: a place may be written twice.
        """
        waiting: list[Write] = []
        room = _INLINE
        hashed: list[tuple[bytes, bytes]] = []
        for number, offset, content in writes:
            if content.size < _LEAST_HASHED:
                self._place_hashed(hashed, places)
                hashed = []
                if content.size > room or len(waiting) == places:
                    self._run(0, 0, waiting, (), 1)
                    waiting, room = [], _INLINE
                waiting.append((number, offset, content))
                room -= content.size
                continue
            if waiting:
                self._run(0, 0, waiting, (), 1)
                waiting, room = [], _INLINE
            for begin, piece in _pieces(content, most):
                hashed.append((_PLACE.pack(number, len(piece), offset + begin) + digest(piece), piece))
        self._place_hashed(hashed, places)
        return waiting

    def _place_hashed(self, pieces: Sequence[tuple[bytes, bytes]], places: int) -> None:
        """Have contents placed that the server knows, and send those that it does not."""
        for begin in range(0, len(pieces), places):
            part = pieces[begin : begin + places]
            body = struct.pack("<II", len(part), 0) + b"".join(place for place, _ in part)
            missing = self._ask(Kind.PLACE, body)
            if len(missing) != len(part):
                self.close()
                raise Fault(GONE, f"{self.name}: an answer of another length")
            for (place, content), lacks in zip(part, missing):
                if lacks:
                    self._ask(Kind.PUT, place + content)

    def _run(self, address: int, count: int, writes: Sequence[Write], reads: Sequence[Read], repeats: int) -> Ran:
        limit = self.options.limit
        head = _RUN.pack(
            address, count, self.options.wait, min(round(limit * 1000) or 1, 0xFFFFFFFF), repeats, len(writes),
            len(reads),
        )  # fmt: skip
        places = [_PLACE.pack(number, content.size, offset) for number, offset, content in writes]
        places += [_PLACE.pack(number, size, offset) for number, offset, size in reads]
        answer = self._ask(Kind.RUN, head + b"".join([*places, *(one.tobytes() for _, _, one in writes)]), limit)
        runs = repeats if count else 0
        times = np.frombuffer(answer, "<u8", 2 * runs, 8).reshape(runs, 2)
        content = np.frombuffer(answer, np.uint8, -1, 8 + 16 * runs)
        cuts = np.cumsum([size for _, _, size in reads], dtype=np.int64)
        parts = tuple(np.split(content, cuts[:-1])) if reads else ()
        if not runs:
            return Ran(0.0, 0, parts)
        return Ran(
            statistics.median(times[:, 0].tolist()) * 1e-9, round(statistics.median(times[:, 1].tolist())), parts
        )

    def _get(self, read: Read, most: int) -> NDArray[np.uint8]:
        number, offset, size = read
        parts = []
        for begin in range(0, size, most):
            piece = min(most, size - begin)
            answer = self._ask(Kind.GET, _PLACE.pack(number, piece, offset + begin) + bytes(32))
            parts.append(np.frombuffer(answer, np.uint8, -1, 4))
        return np.concatenate(parts) if parts else np.zeros(0, np.uint8)

    def log(self) -> str:
        """What the server and its driver said last.

        Raises:
            Fault: it is gone.
        """
        self.start()
        return self._ask(Kind.LOG, b"").decode(errors="replace")

    def close(self) -> None:
        """See `RawBoard.close`: the server gives everything back, and the next client may have the board."""
        if self._connection is not None:
            self._connection.close()
        self._connection, self._allocated = None, False


def _pieces(content: NDArray[np.uint8], most: int) -> Iterator[tuple[int, bytes]]:
    """Contents in pieces: where each begins, and its bytes."""
    for begin in range(0, content.size, most):
        yield begin, content[begin : begin + most].tobytes()
