"""The board server's protocol, from the client's side: frames, the proof of the token, questions and answers.

[server.md](../../docs/server.md) describes it; ``c/server/frame.h`` has the other side.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import socket
import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum

from oneshot_ml2.common.errors import DeviceError

MAGIC, VERSION = 0x53415456, 1
# Magic, version, kind, nothing, id, length, CRC-32 of the body; and of all that.
_HEAD = struct.Struct("<IBBHIII")
_CRC = struct.Struct("<I")
HEAD_BYTES = _HEAD.size + _CRC.size
# Of an answer. A server of this version sends less.
_MOST_BYTES = 1 << 20
# Of a frame that came damaged.
_TRIES = 3
_NONCE = 32


class Kind(IntEnum):
    """What a frame is; an answer is of its request's kind + `ANSWER`."""

    HELLO = 1
    PROVE = 2
    ALLOCATE = 3
    PLACE = 4
    PUT = 5
    RUN = 6
    GET = 7
    RESET = 8
    LOG = 9
    QUEUED = 0xFE
    FAILED = 0xFF


ANSWER = 0x80


class Code(IntEnum):
    """Why a request failed."""

    DAMAGED = 1
    MALFORMED = 2
    NOT_ALLOWED = 3
    HANG = 4
    CRASH = 5
    TIMED_OUT = 6
    REFUSED = 7
    FULL = 8
    NO_DRIVER = 9


class ServerError(Exception):
    """A request that the server says has failed, ``code``, and why."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


@dataclass(frozen=True)
class Limits:
    """What a server says of itself; sizes in bytes.

    Attributes:
        name, configuration: its own, and what its driver is built for ("": it does not say).
        bits: of physical addresses.
        content: of one piece of contents at most; ``places``: in one request.
        started: another text means that it has been started anew.
    """

    name: str
    configuration: str
    bits: int
    content: int
    places: int
    started: str


def frame(kind: int, number: int, body: bytes) -> bytes:
    """A frame."""
    head = _HEAD.pack(MAGIC, VERSION, kind, 0, number, len(body), zlib.crc32(body))
    return head + _CRC.pack(zlib.crc32(head)) + body


def exactly(connection: socket.socket, size: int, who: str) -> bytes:
    """So many bytes of a connection to ``who``.

    Raises:
        OSError: they do not come in time, or the connection ends before.
    """
    parts = bytearray(size)
    view = memoryview(parts)
    while view:
        done = connection.recv_into(view)
        if done == 0:
            raise ConnectionError(f"{who} has closed the connection")
        view = view[done:]
    return bytes(parts)


class Connection:
    """A connection to a server, which has the board from the beginning to the end of it."""

    def __init__(self, host: str, port: int, token: bytes | None, timeout: float, queue: float) -> None:
        """Connect, prove the token, and wait for the board.

        ``timeout``: seconds for an answer; ``queue``: for others to leave.

        Raises:
            OSError: nobody answers in time.
            ServerError: the driver does not open.
            DeviceError: no server of ours, or another token.
        """
        self._number = 0
        self._socket = socket.create_connection((host, port), timeout)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self.limits = self._greet(f"{host}:{port}", token, timeout, queue)
        except BaseException:
            self.close()
            raise

    def _greet(self, where: str, token: bytes | None, timeout: float, queue: float) -> Limits:
        ours = os.urandom(_NONCE)
        try:
            answer = self.ask(Kind.HELLO, ours, timeout)
            theirs, (needed,) = answer[:_NONCE], struct.unpack("<I", answer[_NONCE:])
            if needed and token is None:
                raise DeviceError(f"{where} asks for a token; give it with ?token-file=FILE")
            proof = hmac.digest(token or b"", b"client" + theirs + ours, "sha256")
            answer = self.ask(Kind.PROVE, proof, timeout, queue)
        except ServerError as error:
            if error.code == Code.NOT_ALLOWED:
                raise DeviceError(f"{where}: {error}") from error
            raise
        except (ValueError, struct.error) as error:
            raise DeviceError(f"{where} is no server of oneshot-ml2 serve, or of another version ({error})") from error
        expected = hmac.digest(token or b"", b"server" + ours + theirs, "sha256")
        if token is not None and not hmac.compare_digest(answer[:32], expected):
            raise DeviceError(f"{where} does not know the token: it is not the server that it should be")
        facts = dict(line.partition("=")[::2] for line in answer[32:].decode(errors="replace").splitlines())
        try:
            return Limits(
                facts["name"], facts["configuration"], int(facts["address_bits"]), int(facts["content_bytes"]),
                int(facts["places"]), facts["started"],
            )  # fmt: skip
        except (KeyError, ValueError) as error:
            raise DeviceError(f"{where} does not say what it is ({error!r}); build it anew") from error

    def ask(self, kind: Kind, body: bytes, timeout: float, queue: float = 0.0) -> bytes:
        """The answer to a request; one that came damaged is sent again.

        Raises:
            OSError: none comes in time, or the connection ends.
            ServerError: it failed.
            ValueError: something that is no answer.
        """
        for _ in range(_TRIES):
            self._number = (self._number + 1) & 0xFFFFFFFF
            self._socket.settimeout(timeout)
            self._socket.sendall(frame(kind, self._number, body))
            while True:
                got, answer = self._receive()
                if got != Kind.QUEUED:
                    break
                self._socket.settimeout(timeout + queue)
            if got == kind + ANSWER:
                return answer
            if got != Kind.FAILED or len(answer) < 4:
                raise ValueError(f"an answer of kind {got}")
            error = ServerError(struct.unpack_from("<I", answer)[0], answer[4:].decode(errors="replace"))
            if error.code != Code.DAMAGED:
                raise error
        raise error

    def _receive(self) -> tuple[int, bytes]:
        head = exactly(self._socket, HEAD_BYTES, "the server")
        magic, version, kind, _, number, length, crc = _HEAD.unpack_from(head)
        if magic != MAGIC or _CRC.unpack_from(head, _HEAD.size)[0] != zlib.crc32(head[: _HEAD.size]):
            raise ValueError("a damaged answer")
        if version != VERSION or length > _MOST_BYTES:
            raise ValueError(f"an answer of version {version}, {length:,} bytes")
        body = exactly(self._socket, length, "the server")
        if zlib.crc32(body) != crc or (number != self._number and kind != Kind.FAILED):
            raise ValueError("a damaged answer")
        return kind, body

    def close(self) -> None:
        """End it, and with it all that the server holds for it."""
        with contextlib.suppress(OSError):
            self._socket.close()


def digest(content: bytes) -> bytes:
    """What contents are known by."""
    return hashlib.sha256(content).digest()
