"""Damaged frames against the board server, under sanitizers: each is answered or left, none harms."""

from __future__ import annotations

import contextlib
import socket
import struct
from pathlib import Path

import numpy as np
import pytest
from drivers import needs_compiler
from servers import running, sanitized

from oneshot_ml2.devices import wire
from oneshot_ml2.devices.wire import Connection, Kind, ServerError
from oneshot_ml2.vta.accelerator import Accelerator

PYNQ = Accelerator.load("pynq")
TOKEN = b"0123456789abcdef"
# What numbers are replaced by.
EDGES = np.array(
    [0, 1, 2, 15, 255, 256, 257, 1000, 1001, 4095, 4096, 4097, 1 << 18, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]
)


def _requests() -> list[tuple[int, bytes]]:
    """Good ones, of every kind."""
    content = bytes(range(256)) * 8
    place = struct.pack("<IIQ", 0, len(content), 16)
    program = np.array([[0, 0], [3, 0]], "<u8").tobytes()
    head = struct.pack("<QIIIIII", 4096, 2, 1000, 200, 2, 1, 1)
    return [
        (Kind.HELLO, bytes(32)),
        (Kind.PROVE, bytes(32)),
        (Kind.ALLOCATE, struct.pack("<IIQQ", 3, 2, 8192, 4096)),
        (Kind.PLACE, struct.pack("<II", 2, 0) + (place + wire.digest(content)) * 2),
        (Kind.PUT, place + wire.digest(content) + content),
        (Kind.RUN, head + struct.pack("<IIQ", 0, 32, 0) + struct.pack("<IIQ", 1, 100, 8) + program),
        (Kind.RUN, struct.pack("<QIIIIII", 0, 0, 0, 0, 1, 0, 2) + struct.pack("<IIQ", 1, 4000, 8) * 2),
        (Kind.GET, place + wire.digest(content)),
        (Kind.LOG, b""),
        (Kind.RESET, b""),
    ]


def _damaged(rng: np.random.Generator, body: bytes) -> bytes:
    """A body with bits turned, numbers replaced, bytes left out, doubled or added."""
    data = bytearray(body)
    for _ in range(int(rng.integers(1, 4))):
        how = int(rng.integers(5))
        if how == 0 or not data:
            data += rng.bytes(int(rng.integers(1, 64)))
        elif how == 1:
            data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        elif how == 2:
            at = int(rng.integers(max(1, min(len(data), 96) // 4))) * 4
            data[at : at + 4] = struct.pack("<I", int(rng.choice(EDGES)))
        elif how == 3:
            del data[int(rng.integers(len(data))) :]
        else:
            at = int(rng.integers(len(data)))
            data[at:at] = data[at : at + int(rng.integers(1, 64))]
    return bytes(data[:4096])


def _sent(rng: np.random.Generator, requests: list[tuple[int, bytes]]) -> tuple[bytes, bool]:
    """Bytes to send, and whether an answer has to come."""
    kind, body = requests[int(rng.choice(len(requests), p=_WEIGHTS))]
    how = int(rng.integers(100))
    if how < 2:
        data = bytearray(wire.frame(kind, 7, body))
        data[int(rng.integers(24))] ^= 1 << int(rng.integers(8))
        return bytes(data), False
    if how < 3:
        return wire.frame(kind, 7, body)[: int(rng.integers(1, 24 + len(body)))], False
    if how < 4:
        return rng.bytes(int(rng.integers(1, 200))), False
    if how < 30 and body:
        data = bytearray(wire.frame(kind, 7, body))
        data[24 + int(rng.integers(len(body)))] ^= 1 << int(rng.integers(8))
        return bytes(data), True
    kind = int(rng.integers(256)) if how < 35 else kind
    return wire.frame(kind, int(rng.integers(1 << 32)), _damaged(rng, body)), True


_WEIGHTS = np.array([1, 1, 3, 4, 4, 6, 3, 4, 1, 0.2])
_WEIGHTS /= _WEIGHTS.sum()


def _answer(connection: Connection) -> bool:
    """Whether an answer comes that is a whole frame; ValueError: something else."""
    try:
        connection._number = 7
        kind, _ = connection._receive()
    except ValueError as error:
        # The number is another one where the frame's was.
        return "damaged" in str(error)
    except OSError:
        return False
    return kind == Kind.FAILED or bool(kind & wire.ANSWER)


def fuzz(folder: Path, count: int, seed: int) -> int:
    """Send ``count`` damaged frames; how many were answered. What sanitizers find is in ``folder``."""
    (folder / "token").write_bytes(TOKEN)
    options = f"log_path={folder / 'found'}:abort_on_error=1"
    rng, requests, answered, sent = np.random.default_rng(seed), _requests(), 0, 0
    with running(
        [sanitized(PYNQ)], "--token-file", folder / "token", "--pool", "1", "--limit", "1",
        ASAN_OPTIONS=options, UBSAN_OPTIONS=options, VTA_LIMIT_MS="20", VTA_SIM_LARGEST=str(1 << 20),
    ) as one:  # fmt: skip
        while sent < count:
            # A part of them comes from who has not proved anything.
            if rng.integers(4) == 0:
                with socket.create_connection(("127.0.0.1", one.port), 10) as raw, contextlib.suppress(OSError):
                    for _ in range(int(rng.integers(1, 4))):
                        raw.sendall(_sent(rng, requests)[0])
                        sent += 1
                    raw.shutdown(socket.SHUT_WR)
                    while raw.recv(65536):
                        pass
                continue
            connection = Connection("127.0.0.1", one.port, TOKEN, 20, 20)
            connection._socket.settimeout(20)
            # Something to damage, and to hit.
            connection.ask(Kind.ALLOCATE, requests[2][1], 20)
            while sent < count:
                data, certain = _sent(rng, requests)
                sent += 1
                try:
                    connection._socket.sendall(data)
                    if not certain:
                        connection._socket.shutdown(socket.SHUT_WR)
                    good = _answer(connection)
                except OSError:
                    good = False
                assert good or not certain, f"frame {sent} of seed {seed} is not answered: {data!r}"
                answered += good
                if not certain:
                    break
            connection.close()
        # It serves as before.
        connection = Connection("127.0.0.1", one.port, TOKEN, 20, 20)
        connection.ask(Kind.ALLOCATE, requests[2][1], 20)
        for kind, body in requests[4:]:
            with contextlib.suppress(ServerError):
                connection.ask(kind, body, 20)
        connection.close()
        one.process.terminate()
        assert one.process.wait(20) == 0
    found = [path.read_text(errors="replace")[:3000] for path in folder.glob("found*")]
    assert not found, found[0]
    return answered


def test_two_thousand_damaged_frames(tmp_path: Path) -> None:
    needs_compiler()
    assert fuzz(tmp_path, 2000, 1) > 1000


@pytest.mark.slow
def test_a_hundred_thousand_damaged_frames(tmp_path: Path) -> None:
    needs_compiler()
    answered = 0
    for seed in range(10):
        (tmp_path / str(seed)).mkdir()
        answered += fuzz(tmp_path / str(seed), 10_000, 100 + seed)
    assert answered > 60_000
