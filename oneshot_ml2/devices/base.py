"""What a device is, and what it says of a program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.spaces.base import BatchResult
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.reasons import InvalidSchedule, Reason

if TYPE_CHECKING:
    from oneshot_ml2.vta.program import Program
    from oneshot_ml2.workload.base import Workload


@dataclass(frozen=True)
class Measurement:
    """Outcome of one program.

    ``cycles``: clock cycles, -1 where invalid; ``seconds``: cycles at the accelerator's clock, NaN where
    invalid; ``busy``: busy cycles of load, compute and store.
    """

    valid: bool
    reason: Reason
    cycles: int
    seconds: float
    busy: tuple[int, int, int]


class Device(Protocol):
    """Something that runs programs and times them.

    A device may also have ``deterministic``, a bool: the same program always takes the same time, so that asking again
    tells nothing; ``exclusive``, a bool: only one process may have it; ``measured(space)``, see `measurable`, and
    ``workloads()``, see `recorded_workloads`, of one that answers from records;
    ``warm_up(space)``, which loads and compiles what measuring schedules of a space takes; ``session(programs, dram)``,
    a `Session` of programs that share a DRAM image, for devices that run models; ``notes()``, lines on what it did; and
    ``close()``.
    """

    @property
    def name(self) -> str:
        """What corpora record as the device, e.g. ``sim``."""

    def measure_schedules(self, space: ScheduleSpace, indices: NDArray[np.int64]) -> BatchResult:
        """Lower and time the schedules at ``indices`` (n,) of a space; invalid ones carry their reason."""

    def measure(self, programs: Sequence[Program]) -> list[Measurement]:
        """Time lowered programs, one `Measurement` each, in order."""


class Session(Protocol):
    """Programs that are placed on a device, with the constants of their DRAM image."""

    def run(
        self, number: int, writes: Sequence[tuple[int, NDArray[np.uint8]]], reads: Sequence[tuple[int, int]]
    ) -> list[NDArray[np.uint8]]:
        """Run a program by number: ``writes`` (address, bytes) before it, ``reads`` (address, size) after it.

        Addresses are the image's, in bytes. Gives what is read, uint8 each.

        Raises:
            DeviceError: the device fails.
        """
        ...

    def seconds(self) -> list[float | None]:
        """What each program took on the device, the median of its runs; None: it has not run."""
        ...


@dataclass(frozen=True)
class DeviceKind:
    """How devices of a kind are named; a module of this folder that holds one has registered it.

    Attributes:
        form: how a specification is written: a scheme, behind a colon its argument, e.g. ``perturbed:KIND:SEED``.
        help: what it is, for listings.
        open: the device of an argument, what stands behind the colon ("" without one); raises `DeviceError`.
    """

    form: str
    help: str
    open: Callable[[str], Device]

    @property
    def scheme(self) -> str:
        """What a specification begins with."""
        return self.form.partition(":")[0]

    @property
    def takes_argument(self) -> bool:
        """Whether more stands behind the scheme."""
        return ":" in self.form


def is_deterministic(device: Device) -> bool:
    """Whether a device says that measuring again tells nothing."""
    return bool(getattr(device, "deterministic", False))


def is_exclusive(device: Device) -> bool:
    """Whether a device says that only one process may have it."""
    return bool(getattr(device, "exclusive", False))


def notes(device: Device) -> list[str]:
    """What a device says of what it did, lines for whoever reads a command's output."""
    return list(device.notes()) if hasattr(device, "notes") else []


def measurable(device: Device, space: ScheduleSpace) -> NDArray[np.int64] | None:
    """What alone a device can be asked for of a space, int64 (n,), ascending canonical indices; None: everything.

    Raises:
        DeviceError: nothing of the space.
    """
    return np.asarray(device.measured(space)) if hasattr(device, "measured") else None


def is_recorded(device: Device) -> bool:
    """Whether a device answers from records: what it says is final, also where it says that a board failed."""
    return hasattr(device, "measured")


def recorded_workloads(device: Device) -> list[Workload]:
    """Of a device that answers from records the workloads of which several schedules have a time; else none."""
    return list(device.workloads()) if hasattr(device, "workloads") else []


def close(device: Device) -> None:
    """Give a device back, if it is one that somebody else may wait for; it begins anew when it is asked again."""
    if hasattr(device, "close"):
        device.close()


def legal_schedule(space: ScheduleSpace) -> NDArray[np.int64]:
    """A schedule that lowers, int64 (1,), always the same one of a space; (0,) if none of a few does."""
    drawn = space.canonical(np.random.default_rng(0).integers(0, len(space), size=256))
    return drawn[space.validity(drawn) == Reason.VALID][:1]


def measure_one_by_one(
    space: ScheduleSpace, indices: NDArray[np.int64], measure: Callable[[Program, int], Measurement]
) -> BatchResult:
    """What ``measure`` says of the programs of schedules (n,); it is given a program and its schedule's index.

    Schedules that do not lower carry their reason.
    """
    found = BatchResult.untimed(np.zeros(len(indices), dtype=np.uint8))
    for i, index in enumerate(np.asarray(indices).tolist()):
        try:
            program = space.lower(index)
        except InvalidSchedule as error:
            found.reason[i] = error.reason
            continue
        measured = measure(program, index)
        found.reason[i], found.cycles[i], found.busy[i] = measured.reason, measured.cycles, measured.busy
    return found


def warm_up(device: Device, space: ScheduleSpace) -> None:
    """Have a device load and compile what it needs for a space, so that no measurement's time goes there.

    Where the device does not say how, a schedule is lowered.
    """
    if hasattr(device, "warm_up"):
        device.warm_up(space)
        return
    for index in legal_schedule(space).tolist():
        space.lower(index)
