"""Several boards as one device: measurements are spread, one that dies is left out until it comes back."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import DeviceError, OneShotError
from oneshot_ml2.common.reading import read_toml
from oneshot_ml2.devices.base import Device, DeviceKind, Measurement, notes
from oneshot_ml2.devices.driver import DriverDevice, Session
from oneshot_ml2.devices.raw import GONE, Fault
from oneshot_ml2.devices.registry import open_device
from oneshot_ml2.devices.remote import RemoteBoard
from oneshot_ml2.spaces.base import BatchResult
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.reasons import Reason

if TYPE_CHECKING:
    from oneshot_ml2.vta.program import Program

# Seconds until a board that was lost is tried again, at first and at most; and without any board, until it is given up.
_FIRST_PAUSE, _LONGEST_PAUSE, _WITHOUT_ANY = 0.5, 15.0, 30.0
# Boards that one program may be lost with: it may be what ends them.
_MOST_LOST = 4


@dataclasses.dataclass
class Member:
    """A board: its device, its name in results, and whether it is left out, until when, and how often it was."""

    device: DriverDevice
    name: str
    lost: bool = False
    until: float = 0.0
    pause: float = _FIRST_PAUSE
    losses: int = 0
    measured: int = 0

    def lose(self) -> None:
        """Leave it out for a while, longer each time."""
        self.losses += not self.lost
        self.lost = True
        self.until = time.monotonic() + self.pause
        self.pause = min(2 * self.pause, _LONGEST_PAUSE)
        self.device.close()

    def back(self) -> bool:
        """Whether it is there, again if it was lost."""
        if self.lost and time.monotonic() >= self.until:
            try:
                self.device.process.start()
                self.device.last_fault = ""
                self.lost, self.pause = False, _FIRST_PAUSE
            except (Fault, OneShotError):
                self.lose()
        return not self.lost


class Boards:
    """See the module. A measurement that a board's end interrupts is made again on another one."""

    exclusive = True

    def __init__(self, name: str, devices: Sequence[DriverDevice], names: Sequence[str] = ()) -> None:
        """``names``: of the boards in results; without them what they call themselves, or their specification."""
        self.name = name
        self.members = [Member(one, names[i] if names else _name_of(one)) for i, one in enumerate(devices)]
        if len({member.name for member in self.members}) < len(self.members):
            for number, member in enumerate(self.members, 1):
                member.name = f"{member.name}#{number}"
        for member in self.members:
            # Whether it is there shows at once: the others go on meanwhile.
            if isinstance(member.device.process, RemoteBoard):
                member.device.process.patience = 0.0

    def __reduce__(self) -> tuple[Any, ...]:
        return Boards, (self.name, [one.device for one in self.members], [one.name for one in self.members])

    def close(self) -> None:
        """Close all."""
        for member in self.members:
            member.device.close()

    def notes(self) -> list[str]:
        """What each did, and what it says of itself."""
        lines = []
        for one in self.members:
            lost = f", lost {one.losses} times" if one.losses else ""
            lines.append(f"{one.name}: {one.measured:,} measurements{lost}")
            lines += notes(one.device)
        return lines

    def warm_up(self, space: ScheduleSpace) -> None:
        """See `Device`; all boards have to be for the space's accelerator."""
        for member in self._present():
            member.device.warm_up(space)

    def session(self, programs: Sequence[Program], dram: NDArray[np.uint8]) -> Session:
        """See `Device`: models run on the first board that is there."""
        return self._present()[0].device.session(programs, dram)

    def _present(self) -> list[Member]:
        """The boards that are there; raises DeviceError without any."""
        found = [member for member in self.members if member.back()]
        if not found:
            raise DeviceError(f"{self.name}: none of the {len(self.members)} boards answers; start their servers")
        return found

    def measure_schedules(self, space: ScheduleSpace, indices: NDArray[np.int64]) -> BatchResult:
        """See `Device.measure_schedules`; ``boards`` of the result says where each was measured."""
        asked = np.asarray(indices, dtype=np.int64)
        found = BatchResult.untimed(np.full(len(asked), Reason.DEVICE_ERROR, dtype=np.uint8))
        names = [""] * len(asked)

        def measure(member: Member, place: int) -> bool:
            result = member.device.measure_schedules(space, asked[place : place + 1])
            if self._was_lost(member, int(result.reason[0])):
                return False
            found.reason[place], found.cycles[place] = result.reason[0], result.cycles[0]
            found.busy[place], names[place] = result.busy[0], member.name
            return True

        self._spread(len(asked), measure)
        return dataclasses.replace(found, boards=tuple(names))

    def measure(self, programs: Sequence[Program]) -> list[Measurement]:
        """See `Device.measure`."""
        failed = Measurement(False, Reason.DEVICE_ERROR, -1, float("nan"), (0, 0, 0))
        found = [failed] * len(programs)

        def measure(member: Member, place: int) -> bool:
            (measured,) = member.device.measure([programs[place]])
            if self._was_lost(member, measured.reason):
                return False
            found[place] = measured
            return True

        self._spread(len(programs), measure)
        return found

    @staticmethod
    def _was_lost(member: Member, reason: int) -> bool:
        """Whether a failure is of a board that is not there any more."""
        return reason == Reason.DEVICE_ERROR and member.device.last_fault == GONE

    def _spread(self, count: int, measure: Callable[[Member, int], bool]) -> None:
        """Have ``measure`` called for the numbers below ``count``, on any board that is there, until all are done.

        It says whether the board was there until the end; if not, another one gets the number, a few times.

        Raises:
            OneShotError: what a board says that the user can mend.
        """
        waiting, errors = deque(range(count)), list[BaseException]()
        busy, lost, changed = Counter[int](), Counter[int](), threading.Condition()
        last_seen = time.monotonic()

        def serve(number: int, member: Member) -> None:
            nonlocal last_seen
            while not errors:
                with changed:
                    if not waiting and not sum(busy.values()):
                        return
                    place = waiting.popleft() if waiting and not member.lost else None
                    busy[number] = place is not None
                if place is None:
                    if not member.back() and time.monotonic() - last_seen > _WITHOUT_ANY:
                        return
                    with changed:
                        changed.wait(0.05)
                    continue
                try:
                    there = measure(member, place)
                except BaseException as error:
                    there = member.device.last_fault != GONE
                    if there:
                        errors.append(error)
                with changed:
                    if there:
                        member.measured += 1
                        last_seen = time.monotonic()
                    else:
                        lost[place] += 1
                        if lost[place] < _MOST_LOST:
                            waiting.appendleft(place)
                        member.lose()
                    busy[number] = 0
                    changed.notify_all()

        threads = [threading.Thread(target=serve, args=one, daemon=True) for one in enumerate(self.members)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]


def _name_of(device: DriverDevice) -> str:
    board = device.process
    return (board.board if isinstance(board, RemoteBoard) else "") or device.name


def _open(argument: str) -> Boards:
    """The device of ``A,B`` or of a TOML file."""
    names: list[str] = []
    if argument.endswith(".toml"):
        specs, names = _read(argument)
    else:
        specs = [spec for spec in argument.split(",") if spec]
    if not specs:
        raise DeviceError("device 'boards:': give boards, e.g. tcp:A:9090,tcp:B:9090, or a TOML list of them")
    opened = list[DriverDevice]()
    for spec in specs:
        device: Device = open_device(spec)
        if not isinstance(device, DriverDevice):
            raise DeviceError(f"{spec} is no board; several devices at once are driver:, tcp: or rpc:")
        opened.append(device)
    return Boards(argument, opened, names)


def _read(path: str) -> tuple[list[str], list[str]]:
    """Specifications and names of the boards that a TOML file lists.

    Raises:
        DeviceError: it cannot be read, or lists none.
    """
    tree = read_toml(path, DeviceError)
    boards = tree.get("board")
    if set(tree) != {"board"} or not isinstance(boards, list) or not boards:
        raise DeviceError(f'{path} lists no boards; each is [[board]], device = "tcp:HOST:PORT", name = "NAME"')
    specs, names = [], []
    for number, board in enumerate(boards, 1):
        if set(board) - {"device", "name"} or not isinstance(board.get("device"), str):
            raise DeviceError(f"{path}: board {number} has {', '.join(board) or 'nothing'}; allowed: device, name")
        specs.append(board["device"])
        names.append(str(board.get("name", board["device"])))
    return specs, names


SEVERAL = DeviceKind(
    "boards:FILE.toml", "several boards at once, a [[board]] each with its device and its name; also as A,B", _open
)
