"""The kernels of a compilation, by what it does with them, so that others can compile them ahead (`common.ahead`).

Each call does one of these things on the smallest task: numba compiles for types, and those are the same for all tasks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.network import picking
from oneshot_ml2.spaces.protocols import Backend
from oneshot_ml2.spaces.registry import DEFAULT_KIND, space_kind
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta import isa, simulator, tokens
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import Opcode, Program
from oneshot_ml2.vta.reasons import InvalidSchedule
from oneshot_ml2.vta.timing import designs
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.conv2d import Conv2d


def candidates() -> None:
    """The candidates of a space's knobs."""
    backend, workload, chip, _ = _task()
    backend.knobs(workload, chip)


def scores() -> None:
    """The networks' scores of schedules."""
    _, workload, chip, _ = _task()
    picking.rank(ScheduleSpace(workload, chip), picking.predictor_of(None, design=chip.design))


def validity() -> None:
    """The closed-form validity of schedules."""
    backend, workload, chip, values = _task()
    backend.validity(workload, chip, values[None])


def lowering() -> None:
    """The program of a schedule."""
    backend, workload, chip, values = _task()
    try:
        backend.lower(workload, chip, values)
    except InvalidSchedule:
        # What says so is compiled, and that is all that is wanted.
        return


def timing() -> None:
    """The cycles of a program, and whether it may be joined to another."""
    program = _program()
    tokens.runs_in_order(program.insns)
    designs.measure(program, trace=True)


def execution() -> None:
    """The results of a program."""
    program = _program()
    simulator.execute_checked(program.insns, program.accelerator, np.zeros(program.dram_bytes, dtype=np.uint8))


# In the order in which a compilation needs them.
USES = tuple(f"{__name__}:{use.__name__}" for use in (candidates, scores, validity, lowering, timing, execution))


def _task() -> tuple[Backend, Workload, Accelerator, NDArray[np.int64]]:
    """The space that picks are of, a task, and the values of one of its schedules: a block in each tile."""
    backend = space_kind(DEFAULT_KIND).schedules
    chip = Accelerator.load("pynq")
    workload = Conv2d(chip.batch, chip.block, 4, 4, chip.block, 3, 3, padding=1)
    return backend, workload, chip, np.ones(len(backend.KNOBS), dtype=np.int64)


def _program() -> Program:
    """FINISH alone."""
    chip = Accelerator.load("pynq")
    insns = isa.decode(np.array([[Opcode.FINISH, 0]], dtype=np.uint64), chip)
    return Program(chip, insns, isa.decode_uops(np.zeros(0, dtype=np.uint32), chip), 0, 0, ())
