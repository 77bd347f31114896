"""A device that answers from a file of what a real board did (`board_files`): its space is what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import DeviceError, OneShotError
from oneshot_ml2.common.reading import read_json
from oneshot_ml2.devices.base import DeviceKind, Measurement
from oneshot_ml2.devices.board_files import (
    CORRECT,
    DEVICE,
    LOWERING,
    RUN_TIME,
    TIMED,
    TIMEOUT,
    UNTRIED,
    WALL,
    WRONG,
    BoardFile,
    BoardLayer,
    board_file,
    is_board_file,
)
from oneshot_ml2.spaces.base import BatchResult
from oneshot_ml2.spaces.registry import TVM_KIND
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.reasons import Reason

if TYPE_CHECKING:
    from oneshot_ml2.vta.program import Program
    from oneshot_ml2.workload.base import Workload

# What a board said -> what a device says; of what did not lower, the space knows why.
_REASONS = {WRONG: Reason.WRONG_RESULT, TIMEOUT: Reason.TIMEOUT, RUN_TIME: Reason.DEVICE_ERROR}


class LogDevice:
    """See the module. Times are medians of repeats, of the device alone where all of a file's have that: of two kinds
    what is learnt of one workload would not hold of another."""

    deterministic = True

    def __init__(self, file: BoardFile) -> None:
        self.name = f"log:{file.path}"
        self._file = file
        self._layers = {layer.workload: layer for layer in file.layers if layer.workload is not None}
        every = [times for layer in self._layers.values() for times in layer.timed.values()]
        self._kind = DEVICE if all(DEVICE in times for times in every) else WALL
        self._outcomes: dict[ScheduleSpace, tuple[NDArray[np.int64], BatchResult]] = {}

    def warm_up(self, space: ScheduleSpace) -> None:
        """See `Device`; there is nothing to compile."""
        self._known(space)

    def measured(self, space: ScheduleSpace) -> NDArray[np.int64]:
        """Indices of all schedules of a space that the board tried, int64 (n,), ascending: no other can be asked for.

        Raises:
            DeviceError: nothing of this space was measured, or not on this accelerator.
        """
        return self._known(space)[0]

    def workloads(self) -> list[Workload]:
        """The workloads of which several schedules ran."""
        return [workload for workload, layer in self._layers.items() if len(layer.timed) > 1]

    def measure_schedules(self, space: ScheduleSpace, indices: NDArray[np.int64]) -> BatchResult:
        """See `Device.measure_schedules`; there are no busy cycles.

        Raises:
            DeviceError: a schedule that was not measured.
        """
        tried, found = self._known(space)
        asked = space.canonical(np.asarray(indices, dtype=np.int64))
        unknown = np.setdiff1d(asked, tried)
        if len(unknown):
            raise DeviceError(
                f"{self.name}: schedule {unknown[0]} of {self._layer(space).name} was not measured; of its space "
                f"{len(tried):,} were: ask for those"
            )
        places = np.searchsorted(tried, asked)
        return BatchResult(found.reason[places], found.cycles[places], found.busy[places])

    def _known(self, space: ScheduleSpace) -> tuple[NDArray[np.int64], BatchResult]:
        """The canonical indices (n,) of what was tried, ascending, and what became of each."""
        if space not in self._outcomes:
            self._outcomes[space] = self._look(space)
        return self._outcomes[space]

    def _look(self, space: ScheduleSpace) -> tuple[NDArray[np.int64], BatchResult]:
        layer = self._layer(space)
        try:
            self._file.accelerator(space.accelerator)
        except OneShotError as error:
            raise DeviceError(str(error)) from error
        records = [record for record in layer.records if record.outcome != UNTRIED]
        aliases = space.canonical(np.array([record.index for record in records], dtype=np.int64)).tolist()
        outcomes: dict[int, str] = {}
        times: dict[int, list[float]] = {}
        for record, index in zip(records, aliases):
            # One success among repeats is the schedule's own; of failures the first.
            if record.outcome in (CORRECT, TIMED) or index not in outcomes:
                outcomes[index] = record.outcome
            if record.outcome in (CORRECT, TIMED) and self._kind in record.seconds:
                times.setdefault(index, []).append(record.seconds[self._kind])
        indices = np.array(sorted(outcomes), dtype=np.int64)
        reason, cycles = np.zeros(len(indices), np.uint8), np.full(len(indices), -1, np.int64)
        for i, index in enumerate(indices.tolist()):
            outcome = outcomes[index]
            if outcome in (CORRECT, TIMED) and index in times:
                cycles[i] = max(1, round(float(np.median(times[index])) * space.accelerator.clock_mhz * 1e6))
            elif outcome == LOWERING:
                reason[i] = int(space.validity(np.array([index]))[0]) or Reason.DMA_PATTERN
            else:
                reason[i] = _REASONS.get(outcome, Reason.DEVICE_ERROR)
        return indices, BatchResult(reason, cycles, np.zeros((len(indices), 3), np.int64))

    def measure(self, programs: Sequence[Program]) -> list[Measurement]:
        """Raises DeviceError: it knows schedules by their index only."""
        raise DeviceError(f"{self.name}: it answers for schedules that were measured, and runs no programs; use 'sim'")

    def _layer(self, space: ScheduleSpace) -> BoardLayer:
        layer = self._layers.get(space.workload) if space.kind == TVM_KIND else None  # type: ignore[call-overload]
        if layer is None:
            known = ", ".join(str(workload) for workload in list(self._layers)[:3])
            raise DeviceError(
                f"{self.name}: {space.workload} was not measured in the space {space.kind!r}; "
                f"it has {len(self._layers)} workloads, all in {TVM_KIND!r} (refine --space {TVM_KIND}), as {known}"
            )
        return layer


def _open(argument: str) -> LogDevice:
    """The device of a file."""
    if not argument:
        raise DeviceError("device 'log:': give a file of measurements, log:FILE.json")
    tree = read_json(argument, DeviceError)
    if not is_board_file(tree):
        raise DeviceError(f"device 'log:{argument}': no measurements of a board of the HLS design; give such a file")
    return LogDevice(board_file(argument, tree))


LOG = DeviceKind("log:FILE", "answers from a file of a board's measurements, for what was measured there", _open)
