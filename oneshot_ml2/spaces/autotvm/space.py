"""The space ``autotvm``: TVM's ``conv2d_packed.vta`` template, its validity and its very programs.

The programs equal TVM's instruction for instruction, up to where its buffers lie in DRAM and to one flag: without
virtual threads TVM's run time leaves a token that its next submission takes. A program of ours stands alone, so its own
FINISH takes it, which costs no cycle.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.kernels import njit
from oneshot_ml2.spaces.autotvm.emit import emit, write_uops
from oneshot_ml2.spaces.autotvm.queue import KERNEL, KERNELS
from oneshot_ml2.spaces.autotvm.template import KNOBS, check_task, knobs, make_task, page, schedules
from oneshot_ml2.spaces.autotvm.validity import DEADLOCK, VALID, instruction_bound, reasons_into
from oneshot_ml2.spaces.autotvm.validity import reason as reason_of
from oneshot_ml2.spaces.base import BatchResult, Schedule
from oneshot_ml2.spaces.space import ScheduleSpace, scan
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import INSN, MICRO_OP, Insns, Program
from oneshot_ml2.vta.reasons import InvalidSchedule, Reason
from oneshot_ml2.vta.timing import designs, records
from oneshot_ml2.workload.base import Workload

__all__ = [
    "KNOBS",
    "SPACE_VERSION",
    "canonical",
    "knobs",
    "lower",
    "measure_batch",
    "programs",
    "validity",
    "version_of",
]

SPACE_VERSION = 1


def version_of(workload: Workload) -> int:
    """The version that last changed schedules of such a workload."""
    return SPACE_VERSION


def canonical(workload: Workload, accelerator: Accelerator, values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Values (n, 7) with ``tile_b``, which the template ignores, at its first candidate."""
    result = np.array(values, dtype=np.int64)
    result[:, KNOBS.index("tile_b")] = 1
    return result


def validity(workload: Workload, accelerator: Accelerator, values: NDArray[np.int64]) -> NDArray[np.uint8]:
    """`Reason` of each schedule, uint8 (n,): what TVM's lowering and run time say.

    Raises:
        WorkloadError: a workload that the template cannot express.
    """
    task, _, _ = make_task(workload, accelerator)
    out = np.zeros(len(values), dtype=np.uint8)
    reasons_into(task, schedules(values), out)
    return out


def estimate(workload: Workload, accelerator: Accelerator, values: NDArray[np.int64]) -> NDArray[np.float64]:
    """Closed-form guess of the cycles of each schedule, float64 (n,): the larger of computing and reading.

    Every output tile loads its input rectangle (pads included) and its weights anew.
    """
    conv = check_task(workload, accelerator)
    a = accelerator
    given = schedules(values)
    rows, cols = -(-conv.out_h // given["tile_h"]), -(-conv.out_w // given["tile_w"])
    co = -(-(conv.k // a.block) // given["tile_co"])
    tiles = conv.n // a.batch * rows * cols * co
    channels = conv.c // a.block
    window = ((given["tile_h"] - 1) * conv.strides[0] + conv.r) * ((given["tile_w"] - 1) * conv.strides[1] + conv.s)
    read = channels * (window * a.inp_bytes + given["tile_co"] * conv.r * conv.s * a.wgt_bytes) / a.bus_bytes
    outputs = given["tile_h"] * given["tile_w"] * given["tile_co"]
    work = outputs * (channels * conv.r * conv.s + 1 + conv.epilogue.immediate_stages)
    return tiles * np.maximum(read, work).astype(np.float64)


def short(schedule: Schedule) -> str:
    """All of its knobs."""
    return str(schedule)


def table(space: ScheduleSpace) -> NDArray[np.int64]:
    """Indices of all canonical schedules of a space, int64 (m,), ascending."""
    return scan(space)


def lower(workload: Workload, accelerator: Accelerator, values: NDArray[np.int64]) -> Program:
    """TVM's program of a schedule (7,), with no token left at its end.

    Its buffers ``data``, ``weight``, ``output`` are packed.

    Raises:
        InvalidSchedule: TVM could not lower or run it.
        WorkloadError: a workload that the template cannot express.
    """
    task, buffers, uop_address = make_task(workload, accelerator)
    value = schedules(values[None])[0]
    reason = Reason(reason_of(task, value))
    if reason:
        raise InvalidSchedule(reason)
    rows = np.empty(instruction_bound(task, value), dtype=INSN)
    kernels = np.empty(2 * KERNELS, dtype=KERNEL)
    count, n_uops = emit(task, value, rows, kernels)
    uops = np.zeros(n_uops, dtype=MICRO_OP)
    write_uops(task, value, kernels, uops)
    insn_address = page(uop_address + 4 * n_uops)
    return Program(accelerator, rows[:count].copy(), uops, insn_address, uop_address, buffers)


def programs(workload: Workload, accelerator: Accelerator, values: NDArray[np.int64]) -> Iterator[Insns]:
    """The instructions (m,) of valid schedules (n, 7), each a view that the next one overwrites."""
    task, _, _ = make_task(workload, accelerator)
    batch = schedules(values)
    kernels = np.empty(2 * KERNELS, dtype=KERNEL)
    rows = np.empty(_largest(task, batch), dtype=INSN)
    for value in batch:
        reason = Reason(reason_of(task, value))
        if reason:
            raise InvalidSchedule(reason)
        count, _ = emit(task, value, rows, kernels)
        yield rows[:count]


@njit(cache=True, nogil=True)
def _largest(task, batch):  # type: ignore[no-untyped-def]
    """Rows that hold any of the valid schedules' programs."""
    most = 1
    for i in range(len(batch)):
        if reason_of(task, batch[i]) == VALID:
            most = max(most, instruction_bound(task, batch[i]))
    return most


def measure_batch(workload: Workload, accelerator: Accelerator, values: NDArray[np.int64]) -> BatchResult:
    """Lower and time schedules (n, 7).

    Raises:
        WorkloadError: a workload that the template cannot express.
    """
    task, _, uop_address = make_task(workload, accelerator)
    batch = schedules(values)
    found = BatchResult.untimed(np.zeros(len(values), dtype=np.uint8))
    reasons_into(task, batch, found.reason)
    params = records.params(accelerator)
    rows = np.empty(_largest(task, batch), dtype=INSN)
    kernels = np.empty(2 * KERNELS, dtype=KERNEL)
    unrecorded = records.nothing()
    # Not one compiled loop: numba's disk cache would not notice a change of the timing model that it contains.
    for i in np.flatnonzero(found.reason == VALID):
        count, n_uops = emit(task, batch[i], rows, kernels)
        total, hang, counters = designs.simulate(rows[:count], page(uop_address + 4 * n_uops), params, unrecorded)
        if hang:
            found.reason[i] = DEADLOCK
            continue
        found.cycles[i] = total
        found.busy[i] = counters.load, counters.compute, counters.store
    return found
