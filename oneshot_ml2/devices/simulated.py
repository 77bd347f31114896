"""The embedded cycle-exact simulator as a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.devices.base import DeviceKind, Measurement, legal_schedule
from oneshot_ml2.spaces.base import BatchResult
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.hls_rules import broken_rule
from oneshot_ml2.vta.reasons import Reason
from oneshot_ml2.vta.timing import designs

if TYPE_CHECKING:
    from oneshot_ml2.vta.program import Program


class SimulatorDevice:
    """Times programs with `vta.timing`; deterministic, so one repetition is enough."""

    name = "sim"
    deterministic = True

    def warm_up(self, space: ScheduleSpace) -> None:
        """See `Device`."""
        space.measure(legal_schedule(space))

    def measure_schedules(self, space: ScheduleSpace, indices: NDArray[np.int64]) -> BatchResult:
        """See `Device.measure_schedules`; one batched call, which lowers and times in compiled code."""
        return space.measure(indices)

    def measure(self, programs: Sequence[Program]) -> list[Measurement]:
        """See `Device.measure`."""
        measurements = []
        for program in programs:
            timed, rule = designs.measure(program), broken_rule(program)
            reason = rule if timed.ends_cleanly else Reason.DEADLOCK
            valid = reason == Reason.VALID
            seconds = timed.cycles / (program.accelerator.clock_mhz * 1e6)
            measurements.append(
                Measurement(
                    valid=valid,
                    reason=reason,
                    cycles=timed.cycles if valid else -1,
                    seconds=seconds if valid else float("nan"),
                    busy=(timed.load_busy, timed.compute_busy, timed.store_busy),
                )
            )
        return measurements


SIMULATED = DeviceKind("sim", "the embedded simulator, cycle-exact with VTA's RTL", lambda _: SimulatorDevice())
