"""A board behind a server of ours (`oneshot-ml2 serve`), by its address."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from oneshot_ml2.common.errors import DeviceError
from oneshot_ml2.devices.base import DeviceKind
from oneshot_ml2.devices.driver import DriverDevice
from oneshot_ml2.devices.raw import Options
from oneshot_ml2.devices.remote import Place, RemoteBoard, read_token
from oneshot_ml2.devices.specification import NUMBERS, read_options, seconds

# Options that a server's devices have beside those of every board.
OWN = ("token-file", "reconnect")
_FORM = "tcp:HOST:PORT[?OPTION=N&...]"


@dataclass(frozen=True)
class Fixed:
    """A `Place` that does not change."""

    host: str
    port: int

    def find(self, timeout: float) -> tuple[str, int]:
        """See `Place.find`."""
        return self.host, self.port


def host_and_port(spec: str, text: str, form: str) -> tuple[str, int]:
    """``HOST:PORT`` or ``[ADDRESS]:PORT``.

    Raises:
        DeviceError: something else.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise DeviceError(f"{spec!r}: give it as {form}, HOST:PORT being e.g. 127.0.0.1:9090")
    return host.removeprefix("[").removesuffix("]"), int(port)


def board_at(spec: str, place: Place, options: Options, own: Mapping[str, str]) -> DriverDevice:
    """The device of a server that is there; ``own``: the values of `OWN` that are given.

    Raises:
        DeviceError: it does not answer, or a value is none.
    """
    patience = seconds(spec, "reconnect", own.get("reconnect", "10"))
    board = RemoteBoard(spec, place, options, read_token(spec, own.get("token-file")), patience)
    board.start()
    return DriverDevice(board)


def _open(argument: str) -> DriverDevice:
    spec = f"tcp:{argument}"
    options, own = read_options(spec, OWN)
    return board_at(spec, Fixed(*host_and_port(spec, argument.partition("?")[0], _FORM)), options, own)


TCP = DeviceKind(
    _FORM,
    "a board behind `oneshot-ml2 serve`; several: tcp:A,tcp:B; options: token-file, reconnect (seconds), limit, "
    + ", ".join(name for name in NUMBERS if name != "address"),
    _open,
)
