"""What the HLS design asks of programs: those of both spaces keep to it, in closed form and as they are."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from random_programs import row

from oneshot_ml2.devices.simulated import SimulatorDevice
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.hls_rules import broken_rule
from oneshot_ml2.vta.program import MICRO_OP, Memory, Opcode, Program, insns_of
from oneshot_ml2.vta.reasons import Reason
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.conv2d_transpose import Conv2dTranspose
from oneshot_ml2.workload.epilogue import Epilogue
from oneshot_ml2.workload.max_pool2d import MaxPool2d

PYNQ = Accelerator.load("pynq-hls")
assert PYNQ.hls is not None
LOAD_UOPS = row(Opcode.LOAD, 0, Memory.UOP, 0, 0, 1, 2, 2)


def asking(distance: int, chip: Accelerator = PYNQ) -> Accelerator:
    assert chip.hls is not None
    return dataclasses.replace(chip, hls=dataclasses.replace(chip.hls, acc_distance=distance))


def rule(*rows: list[int], distance: int = 2, chip: Accelerator | None = None) -> Reason:
    uops = np.zeros(2, MICRO_OP)
    uops["dst"] = (0, 1)
    program = Program(chip or asking(distance), insns_of([LOAD_UOPS, *rows, row(Opcode.FINISH)]), uops, 0x1000, 0, ())
    found = SimulatorDevice().measure([program])[0]
    assert found.reason == broken_rule(program) and found.valid == (found.reason == Reason.VALID)
    return found.reason


@pytest.mark.parametrize(
    ("op", "begin", "end", "outer", "inner", "factors", "apart"),
    [
        # A micro-op that goes round its taps updates one accumulator in every iteration.
        (Opcode.GEMM, 0, 1, 3, 3, (0, 0), 1),
        (Opcode.ALU, 0, 1, 3, 3, (0, 0), 1),
        # Two micro-ops of two accumulators.
        (Opcode.GEMM, 0, 2, 3, 3, (0, 0), 2),
        # Iterations over five accumulators, again and again.
        (Opcode.GEMM, 0, 1, 2, 5, (0, 1), 5),
        (Opcode.GEMM, 0, 1, 5, 2, (1, 0), 1),
        # Both do: what the second wrote the first writes in the next iteration.
        (Opcode.GEMM, 0, 2, 1, 5, (0, 1), 1),
    ],
)
def test_how_soon_an_accumulator_may_recur(
    op: int, begin: int, end: int, outer: int, inner: int, factors: tuple[int, int], apart: int
) -> None:
    insn = row(op, 0, 0, begin, end, outer, inner, *factors)
    assert rule(insn, distance=apart) == Reason.VALID
    assert rule(insn, distance=apart + 1) == Reason.ACC_HAZARD
    # A reset reads nothing; another instruction begins when the pipeline is empty.
    once = row(op, 0, 0, 0, 1, 1, 1)
    assert rule(once, once, once, distance=64) == Reason.VALID
    assert rule(row(Opcode.GEMM, 0, 1, *insn[3:]), distance=64) == Reason.VALID
    assert rule(insn, chip=Accelerator.load("pynq")) == Reason.VALID


def test_what_only_a_reset_wrote_must_not_be_stored() -> None:
    reset, gemm = row(Opcode.GEMM, 0, 1, 0, 1, 4, 1, 1), row(Opcode.GEMM, 0, 0, 0, 1, 4, 1, 1)
    store, load = row(Opcode.STORE, 0, Memory.OUT, 0, 0, 1, 4, 4), row(Opcode.LOAD, 0, Memory.ACC, 2, 0, 1, 1, 1)
    copy = row(Opcode.ALU, 0, 0, 0, 1, 4, 1, 1, 0, 1, 0, 3, 1)
    assert rule(reset, store) == Reason.WRONG_RESULT
    assert rule(gemm, reset, store) == Reason.WRONG_RESULT
    assert rule(reset, gemm, store) == Reason.VALID
    assert rule(reset, copy, store) == Reason.VALID
    assert rule(reset, gemm, load, store) == Reason.WRONG_RESULT
    assert rule(reset, row(Opcode.GEMM, 0, 0, 0, 1, 3, 1, 1), store) == Reason.WRONG_RESULT


@pytest.mark.parametrize("distance", [1, 2, 3, 8])
@pytest.mark.parametrize(
    "workload",
    [
        Conv2d(1, 64, 8, 8, 32, 3, 3, padding=1),
        Conv2d(1, 64, 6, 6, 32, 1, 1),
        Conv2d(1, 32, 9, 5, 32, 1, 3, stride=2, padding=(0, 0, 1, 1), epilogue=Epilogue(shift=0, clip=None)),
    ],
)
def test_tvms_schedules_in_closed_form(workload: Conv2d, distance: int) -> None:
    chip = asking(distance)
    rtl = ScheduleSpace(workload, dataclasses.replace(chip, hls=None), "autotvm")
    space = ScheduleSpace(workload, chip, "autotvm")
    indices = space.table()
    before, after = rtl.validity(indices), space.validity(indices)
    changed = before != after
    assert (after[changed] == Reason.ACC_HAZARD).all() and (before[changed] == Reason.VALID).all()
    for index in indices[before == Reason.VALID].tolist():
        program = dataclasses.replace(rtl.lower(index), accelerator=chip)
        assert broken_rule(program) == space.validity(np.array([index]))[0]
    assert changed.any() or distance == 1 or workload.s == 3 > workload.r


@pytest.mark.parametrize("distance", [1, 8])
@pytest.mark.parametrize(
    "workload",
    [
        Conv2d(1, 64, 8, 8, 32, 3, 3, padding=1),
        Conv2d(1, 32, 5, 5, 32, 3, 3, padding=2, dilation=2, epilogue=Epilogue(shift=0, clip=None, bias=True)),
        Conv2dTranspose(1, 32, 4, 4, 32, 2, 2, stride=3, epilogue=Epilogue(shift=0, clip=None)),
        MaxPool2d(1, 32, 9, 9, 3, 3, stride=2, padding=1),
    ],
    ids=lambda workload: workload.op,
)
def test_schedules_of_full_in_closed_form(workload: Conv2d, distance: int) -> None:
    chip = asking(distance)
    space = ScheduleSpace(workload, chip)
    indices = space.sample(np.random.default_rng(distance), 400)
    valid = space.validity(indices) == Reason.VALID
    for index in indices[valid][:60].tolist():
        assert broken_rule(space.lower(index)) == Reason.VALID
    # Three in a row it keeps apart on any design.
    rtl = ScheduleSpace(workload, dataclasses.replace(chip, hls=None))
    if distance <= 3:
        np.testing.assert_array_equal(valid, rtl.validity(indices) == Reason.VALID)
