"""One walk, whatever is made of it: programs that are written, counted and summed up in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from programs import ACCELERATORS, smallest_workload

from oneshot_ml2.spaces.full import emit, legality
from oneshot_ml2.spaces.full.knobs import BIAS_GEMM, schedules
from oneshot_ml2.spaces.full.totals import summaries, totals_of
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.nest import Nest, make_nest
from oneshot_ml2.vta.program import AluOp, Opcode
from oneshot_ml2.vta.reasons import Reason
from oneshot_ml2.vta.tokens import runs_in_order
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.drawn import random_workload


def multiplications(nest: Nest, insns: NDArray[np.int64]) -> int:
    """GEMMs of a program but for resets, so with those that add biases and residuals; of a pool its maxima, too."""
    maxima = 0
    if nest.pool:
        tensors = (insns["op"] == Opcode.ALU) & (insns["use_imm"] == 0)
        maxima = int((tensors & (insns["alu_op"] == AluOp.MAX)).sum())
    return maxima + int(((insns["op"] == Opcode.GEMM) & (insns["reset"] == 0)).sum())


def compare(seed: int, tasks: int, each: int) -> set[str]:
    """Operators of random tasks whose programs are as they are counted and summed up."""
    rng, seen = np.random.default_rng(seed), set()
    written, _, tables = emit.work_arrays()
    for task in range(tasks):
        workload = (random_workload if task % 2 else smallest_workload)(rng)
        space = ScheduleSpace(workload, ACCELERATORS[int(rng.integers(len(ACCELERATORS)))])
        nest = make_nest(workload, space.accelerator)
        values = space.values(rng.integers(0, len(space), each))
        reasons, counted = legality.counts(nest, values)
        summed = totals_of(summaries(nest, values))
        for schedule, checked, count, total in zip(schedules(values), reasons, counted, summed, strict=True):
            reason, insns, uops = emit.lower_into(nest, schedule, written, tables)
            assert reason == checked
            if reason != Reason.VALID:
                continue
            assert (insns, uops) == tuple(count), (space, schedule)
            added = int(nest.residual) + int(nest.bias and schedule.bias == BIAS_GEMM)
            gemms = multiplications(nest, written[:insns]) - (0 if nest.pool else added * int(total["tiles"]))
            # Of tiles that all drain in pieces the closed form counts those of the last one.
            pieces = nest.pool and schedule.acc_buffers == 1 and schedule.drain > 1 and total["tiles"] > 1
            assert gemms == total["gemms"] or (pieces and gemms > total["gemms"]), (space, schedule)
            seen.add(workload.op)
    return seen


def test_programs_are_written_counted_and_summed_up_alike() -> None:
    assert compare(seed=31, tasks=120, each=60) >= {"conv2d", "dense", "max_pool2d", "batch_matmul", "conv2d_transpose"}


@pytest.mark.slow
def test_programs_are_written_counted_and_summed_up_alike_long() -> None:
    compare(seed=32, tasks=1500, each=200)


def test_token_order_check_sees_a_missing_push() -> None:
    layer = Conv2d(1, 32, 8, 8, 32, 3, 3, padding=1)
    space = ScheduleSpace(layer, ACCELERATORS[0])
    indices = np.arange(0, len(space), 97)
    program = space.lower(int(indices[space.validity(indices) == 0][0]))
    assert runs_in_order(program.insns)
    for row in np.flatnonzero(program.insns["flags"]):
        broken = program.insns.copy()
        broken["flags"][row] = 0
        assert not runs_in_order(broken)
