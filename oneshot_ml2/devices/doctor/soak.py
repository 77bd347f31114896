"""Random programs on a device for some time, each held against the functional simulator."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from oneshot_ml2.common.errors import DeviceError, OneShotError
from oneshot_ml2.devices.doctor.bench import Bench
from oneshot_ml2.devices.doctor.shrink import listing, shrunk
from oneshot_ml2.devices.raw import RawBoard
from oneshot_ml2.spaces.drawn import random_layer
from oneshot_ml2.vta import image
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import Program
from oneshot_ml2.workload.base import Workload

_UNITS = {"s": 1, "m": 60, "h": 3600}
# How often a program that was wrong once is run again before it is made smaller.
_AGAIN = 3


@dataclass(frozen=True)
class Difference:
    """The first program that a device got wrong.

    Attributes:
        number: which of the random programs.
        workload: the operator that it was drawn for.
        program: a smaller one that is wrong, too; itself where it is not wrong each time.
        seen: what was wrong.
    """

    number: int
    workload: Workload
    program: Program
    seen: str

    def text(self) -> str:
        """What there is to tell, lines."""
        return "\n".join([f"program {self.number}, of {self.workload}: {self.seen}", *listing(self.program)])


@dataclass(frozen=True)
class Soaked:
    """What a soak found: how many programs ran, and the first that was wrong, if one was."""

    programs: int
    difference: Difference | None


def seconds_of(text: str) -> float:
    """A time as ``90s``, ``10m`` or ``1.5h`` in seconds.

    Raises:
        OneShotError: it is none.
    """
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)([smh])", text)
    if match is None or float(match[1]) == 0:
        raise OneShotError(f"--soak is {text!r}; allowed: a time above 0, as 90s, 10m or 1.5h")
    return float(match[1]) * _UNITS[match[2]]


def soak(board: RawBoard, chip: Accelerator, seconds: float, seed: int = 0, shown: bool = True) -> Soaked:
    """Run random programs of an accelerator, as far as its board can do what they need, until one is wrong.

    Raises:
        OneShotError: no program can be made for it.
    """
    bench = Bench(board, chip)
    known = chip.board
    if known is not None:
        bench.largest = known.largest_allocation
        bench.set_flush(board.options.flush or known.flush)
    begun, number = time.monotonic(), 0
    with tqdm(total=round(seconds), desc="soak", unit="s", disable=None if shown else True) as bar:
        while (spent := time.monotonic() - begun) < seconds:
            bar.update(min(round(spent), bar.total) - bar.n)
            bar.set_postfix(programs=number, refresh=False)
            found = _one(bench, chip, number, seed)
            number += 1
            if found is not None:
                return Soaked(number, found)
    return Soaked(number, None)


def _one(bench: Bench, chip: Accelerator, number: int, seed: int) -> Difference | None:
    rng = np.random.default_rng([seed, number])
    workload, program = random_layer(rng, chip)
    dram = image.dram_image(program, workload, workload.random_inputs(rng))
    output = program.buffer("output")
    reads = [(output.address, program.buffer_bytes("output"))]
    try:
        seen = bench.compare(program, dram, reads)
    except DeviceError:
        # More memory than there is in one piece.
        return None
    if not seen:
        return None
    again = [bench.compare(program, dram, reads) for _ in range(_AGAIN) if not bench.hung]
    if bench.hung or not all(again):
        wrong = sum(map(bool, again))
        return Difference(number, workload, program, f"{seen} ({wrong} of {len(again)} further runs are wrong, too)")
    small = shrunk(program, dram, lambda one: bool(bench.compare(one, dram, reads)))
    return Difference(number, workload, small, bench.compare(small, dram, reads))
