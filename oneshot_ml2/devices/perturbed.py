"""A device that is not the simulator: seeded differences that real boards have, for studies of refinement.

It stands for hardware that the shipped network has never seen. Its rules are hidden from the tuners, which learn of
them only by trials. `KINDS` documents its kinds; a seed draws each one's figures. What it does to a program:

1. The program runs on the simulator with the board's own memory latency; on the HLS design with its own rates.
2. Cycles that the memory needs more: a beat takes 1 / ``bandwidth`` cycles, a request to a DRAM page that is not open
   costs ``page_miss``. They hide behind compute as far as the port has been idle:
   T' = T + E * (R + E) / (T + E) with R the port's busy cycles and E the additional ones. Those of a slow ALU hide
   likewise as far as the compute module has been idle, those of instructions do not.
3. Micro-ops beyond the board's smaller SRAM overwrite others, and a hidden rule (`faults.RULES`) makes some programs'
   results wrong: both end as ``wrong_result``. A share of the programs may always be told faster than they are.
4. A measurement fails at random (``device_error``, ``timeout``); trying again may help. One that does not has noise.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import DeviceError
from oneshot_ml2.common.names import unknown
from oneshot_ml2.devices.base import DeviceKind, Measurement, legal_schedule, measure_one_by_one
from oneshot_ml2.devices.boards import KINDS, draw, faults_of
from oneshot_ml2.spaces.base import BatchResult
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta import faults
from oneshot_ml2.vta.program import element_bytes
from oneshot_ml2.vta.reasons import Reason
from oneshot_ml2.vta.timing import designs

if TYPE_CHECKING:
    from oneshot_ml2.devices.boards import Differences
    from oneshot_ml2.vta.program import Program


class PerturbedDevice:
    """See the module. Measuring the same again gives other noise and other failures, in a fixed order."""

    def __init__(self, kind: str, seed: int = 0, differences: Differences | None = None) -> None:
        """Raises DeviceError: no such kind. ``differences``: instead of those of :func:`draw`."""
        self.name = f"perturbed:{kind}:{seed}"
        self.differences = differences or draw(kind, seed)
        if self.differences.rule not in faults.RULES:
            raise DeviceError(unknown("rule", self.differences.rule, faults.RULES))
        self._seed = seed
        # How often each schedule or program has been measured, by its digest.
        self._times: dict[bytes, int] = {}

    def warm_up(self, space: ScheduleSpace) -> None:
        """See `Device`; no measurement is counted."""
        self._schedules(space, legal_schedule(space), exact=True)

    def measure_schedules(self, space: ScheduleSpace, indices: NDArray[np.int64]) -> BatchResult:
        """See `Device.measure_schedules`."""
        return self._schedules(space, indices, exact=False)

    def true_cycles(self, space: ScheduleSpace, indices: NDArray[np.int64]) -> BatchResult:
        """What measurements would say without noise, failures and timeouts: for scoring, never for a tuner.

        In one batch where the space brings that, with the same results as one by one.
        """
        boards, chip = space.record.boards, space.accelerator
        if boards is not None and boards.measure_faulty is not None:
            values = space.values(indices)
            return boards.measure_faulty(space.workload, chip, values, faults_of(chip, self.differences))
        return self._schedules(space, indices, exact=True)

    def _schedules(self, space: ScheduleSpace, indices: NDArray[np.int64], exact: bool) -> BatchResult:
        return measure_one_by_one(space, indices, lambda program, index: self._measure(program, exact, index))

    def measure(self, programs: Sequence[Program]) -> list[Measurement]:
        """See `Device.measure`."""
        return [self._measure(program, exact=False) for program in programs]

    def _measure(self, program: Program, exact: bool, index: int = -1) -> Measurement:
        d = self.differences
        # With the index: schedules whose programs happen to be equal are measurements of their own.
        digest = hashlib.sha256(b"%d" % index + np.ascontiguousarray(program.insns).tobytes()).digest()
        normal, chance, factor = 0.0, 1.0, 1.0
        if not exact:
            times = self._times.get(digest, 0)
            self._times[digest] = times + 1
            rng = np.random.default_rng([self._seed, times, *np.frombuffer(digest[:16], np.uint32).tolist()])
            normal, chance = float(rng.standard_normal()), float(rng.random())
            factor = d.lie if float(rng.random()) < d.lies else 1.0
            # Of the program alone: it says the same every time.
            always = np.random.default_rng([self._seed, *np.frombuffer(digest[16:], np.uint32).tolist()])
            factor = d.lie if float(always.random()) < d.liars else factor
        if chance < d.failures:
            return _failed(Reason.DEVICE_ERROR)
        if chance < d.failures + d.timeouts:
            return _failed(Reason.TIMEOUT)
        chip, found = program.accelerator, faults_of(program.accelerator, d)
        if faults.is_wrong(program.insns, found.limits):
            return _failed(Reason.WRONG_RESULT)
        timed = designs.measure(dataclasses.replace(program, accelerator=found.board))
        if not timed.ends_cleanly:
            return _failed(Reason.DEADLOCK)
        port = timed.read_beats + timed.write_beats
        misses = page_misses(program, d.page_bytes, d.banks) if found.costs.miss else 0.0
        total = faults.slowed(
            timed.cycles, port, timed.compute_busy, timed.alu, misses, len(program.insns), found.costs
        )
        cycles = max(1, round(total * factor * math.exp(d.noise * normal)))
        seconds = cycles / (chip.clock_mhz * 1e6)
        return Measurement(True, Reason.VALID, cycles, seconds, (timed.load_busy, timed.compute_busy, timed.store_busy))


def _failed(reason: Reason) -> Measurement:
    return Measurement(False, reason, -1, float("nan"), (0, 0, 0))


def page_misses(program: Program, page_bytes: int, banks: int = 1) -> float:
    """See `faults.page_misses`, of a program."""
    sizes = np.array(element_bytes(program.accelerator), dtype=np.int64)
    return float(faults.page_misses(program.insns, sizes, page_bytes, banks))


def _open(argument: str) -> PerturbedDevice:
    """The device of ``KIND`` or ``KIND:SEED``."""
    kind, _, seed = argument.partition(":")
    if seed and not seed.isdecimal():
        raise DeviceError(f"device 'perturbed:{argument}': the seed is {seed!r}; allowed: a whole number, 0 or more")
    return PerturbedDevice(kind, int(seed or 0))


PERTURBED = DeviceKind(
    "perturbed:KIND:SEED", f"a board that differs from the simulator, for studies; kinds: {', '.join(KINDS)}", _open
)
