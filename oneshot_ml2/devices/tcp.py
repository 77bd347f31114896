"""A board behind a server of ours (`oneshot-ml2 serve`), by its address."""

from __future__ import annotations

from dataclasses import dataclass

from oneshot_ml2.common.errors import DeviceError
from oneshot_ml2.devices.base import DeviceKind
from oneshot_ml2.devices.driver import DriverDevice
from oneshot_ml2.devices.remote import RemoteBoard, read_token
from oneshot_ml2.devices.specification import NUMBERS, read_options, seconds

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


def _open(argument: str) -> DriverDevice:
    """The device of a server that is there."""
    spec = f"tcp:{argument}"
    options, own = read_options(spec, ("token-file", "reconnect"))
    place = Fixed(*host_and_port(spec, argument.partition("?")[0], _FORM))
    patience = seconds(spec, "reconnect", own.get("reconnect", "10"))
    board = RemoteBoard(spec, place, options, read_token(spec, own.get("token-file")), patience)
    board.start()
    return DriverDevice(board)


TCP = DeviceKind(
    _FORM,
    "a board behind `oneshot-ml2 serve`; several: tcp:A,tcp:B; options: token-file, reconnect (seconds), limit, "
    + ", ".join(name for name in NUMBERS if name != "address"),
    _open,
)
