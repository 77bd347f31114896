"""A board as its driver shows it: memory at physical addresses, and runs. What `driver:` and `tcp:` have in common.

A `RawBoard` is a library in a process of ours, or one behind a server; whoever runs programs asks either in the same
way, and both fail in the same ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import DeviceError
from oneshot_ml2.vta.program import PAGE

if TYPE_CHECKING:
    from oneshot_ml2.devices.base import Device

# How a run can fail. The first two cost the process; of the third the library says so itself.
HANG, CRASH, TIMED_OUT, REFUSED = "hang", "crash", "timed out", "error"
# It ran, and said that it was done: nothing has been written; something wrong has been; it said so late.
NO_RESULT, WRONG, LATE = "no result", "wrong result", "late"
# A board behind a network does not answer.
GONE = "gone"


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


# An allocation's number, an offset in it, and bytes, or how many.
Write = tuple[int, int, NDArray[np.uint8]]
Read = tuple[int, int, int]


class RawBoard(Protocol):
    """See the module. It begins with the first request, and anew after a fault that ended it.

    Attributes:
        name: what messages call it.
        options: with which it was opened.
        configuration: what the library says that it is built for; None: it does not, or has not begun.
        number: how often it has begun: allocations of an earlier time are gone.
    """

    name: str
    options: Options
    configuration: str | None
    number: int

    @property
    def running(self) -> bool:
        """Whether it has begun, and its allocations are there."""
        ...

    def start(self) -> None:
        """Begin, unless it has.

        Raises:
            DeviceError: there is no such device, or it cannot be used.
        """
        ...

    def allocate(self, sizes: Sequence[int]) -> list[int] | None:
        """Physical addresses of new allocations, those before being given back; None if there is no room for them.

        They are numbered from 0 on, in the order of ``sizes`` (bytes).

        Raises:
            Fault: it hangs or crashes.
            DeviceError: an address that no program can have; or see `start`.
        """
        ...

    def run(self, address: int, count: int, writes: Sequence[Write], reads: Sequence[Read], repeats: int = 1) -> Ran:
        """Write, run ``count`` instructions at a physical address, and read; ``count`` 0: write and read alone.

        ``repeats``: so often in a row; seconds and cycles are the medians.

        Raises:
            Fault: it fails; after some kinds it has to begin anew.
        """
        ...

    def close(self) -> None:
        """Give everything back and end, as a reset of the device; the next request begins anew."""
        ...


def raw_board(device: Device) -> RawBoard:
    """The board behind a device.

    Raises:
        DeviceError: a device that runs no programs of others, e.g. a simulator of times.
    """
    board: RawBoard | None = getattr(device, "process", None)
    if board is None:
        raise DeviceError(f"{device.name} gives no access to its memory; take driver:PATH or tcp:HOST:PORT")
    return board


def check_addresses(name: str, addresses: Sequence[int], sizes: Sequence[int], bits: int) -> None:
    """Raise DeviceError if memory of ``sizes`` bytes lies where no program can have it; ``name``: of the board."""
    for address, size in zip(addresses, sizes):
        if address == 0 or address % PAGE:
            raise DeviceError(f"{name} gives memory at {address:#x}, which is not aligned to pages of 4,096")
        if bits == 32 and address + size > 1 << 32:
            raise DeviceError(
                f"{name} gives memory up to {address + size:#x}, out of reach of 32-bit addresses; reserve "
                "memory below 4 GiB for it, or give address=64 if library and design are built for that"
            )
