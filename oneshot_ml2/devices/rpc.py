"""Boards that a TVM RPC tracker hands out: servers of ours that registered with it.

The tracker's protocol is that of ``python/tvm/rpc/tracker.py`` in apache/tvm: a magic number from both sides, then
messages of an int32 length and JSON. What it hands out is asked by our own protocol (`wire`); a server of TVM's own
does not speak that, so ours need a key of their own.
"""

from __future__ import annotations

import json
import socket
import struct
from dataclasses import dataclass
from typing import Any

from oneshot_ml2.common.errors import DeviceError
from oneshot_ml2.devices.base import Device, DeviceKind
from oneshot_ml2.devices.several import Boards
from oneshot_ml2.devices.specification import NUMBERS, read_options, seconds
from oneshot_ml2.devices.tcp import OWN, board_at, host_and_port
from oneshot_ml2.devices.wire import exactly

_MAGIC = 0x2F271
_REQUEST, _SUCCESS = 4, 0
_MOST_BYTES = 1 << 20
_FORM = "rpc:HOST:PORT/KEY[?OPTION=N&...]"


def _ask(host: str, port: int, message: Any, timeout: float) -> Any:
    """A tracker's answer.

    Raises:
        OSError: none in time, or none that is one.
    """
    with socket.create_connection((host, port), timeout) as connection:
        connection.sendall(struct.pack("<i", _MAGIC))
        if struct.unpack("<i", exactly(connection, 4, "the tracker"))[0] != _MAGIC:
            raise ConnectionError(f"{host}:{port} is no TVM RPC tracker")
        text = json.dumps(message).encode()
        connection.sendall(struct.pack("<i", len(text)) + text)
        (size,) = struct.unpack("<i", exactly(connection, 4, "the tracker"))
        if not 0 < size <= _MOST_BYTES:
            raise ConnectionError(f"the tracker {host}:{port} answers with {size:,} bytes")
        try:
            return json.loads(exactly(connection, size, "the tracker"))
        except ValueError as error:
            raise ConnectionError(f"the tracker {host}:{port} answers with what is no JSON") from error


@dataclass(frozen=True)
class Tracked:
    """A `Place` that a tracker tells, another one each time: a server is handed out once."""

    host: str
    port: int
    key: str
    wait: float

    def find(self, timeout: float) -> tuple[str, int]:
        """See `Place.find`; the tracker answers when a server of the key is free."""
        try:
            answer = _ask(self.host, self.port, [_REQUEST, self.key, "", 1], max(timeout, self.wait))
        except TimeoutError as error:
            raise TimeoutError(f"the tracker has no free server with the key {self.key!r}") from error
        try:
            code, (host, port, _) = answer
            if code != _SUCCESS:
                raise ValueError(f"code {code}")
            return str(host), int(port)
        except (TypeError, ValueError) as error:
            raise ConnectionError(f"the tracker answers {answer!r:.80}") from error


def _open(argument: str) -> Device:
    """The device of a server that a tracker hands out, or of several."""
    spec = f"rpc:{argument}"
    options, own = read_options(spec, (*OWN, "queue", "boards"))
    where, _, key = argument.partition("?")[0].partition("/")
    if not key:
        raise DeviceError(f"device {spec!r}: give it as {_FORM}, e.g. rpc:127.0.0.1:9190/vta")
    count = own.get("boards", "1")
    if not count.isdecimal() or not 1 <= int(count) <= 1000:
        raise DeviceError(f"{spec}: boards is {count!r}; allowed: 1 to 1000")
    place = Tracked(*host_and_port(spec, where, _FORM), key, seconds(spec, "queue", own.get("queue", "60")))
    devices = [board_at(spec, place, options, own) for _ in range(int(count))]
    return devices[0] if len(devices) == 1 else Boards(spec, devices)


RPC = DeviceKind(
    _FORM,
    "servers of `oneshot-ml2 serve` that a TVM RPC tracker hands out; options: boards (how many), queue (seconds to "
    "wait for one), and those of tcp: ("
    + ", ".join([*OWN, "limit", *(name for name in NUMBERS if name != "address")])
    + ")",
    _open,
)
