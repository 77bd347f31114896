"""Property tests of the `full` space: what lowers computes the reference, whatever order the tokens allow."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from programs import ACCELERATORS, legal_order, random_workload

from oneshot_ml2.accelerator import Accelerator
from oneshot_ml2.schedule import InvalidSchedule, ScheduleSpace
from oneshot_ml2.vta import image, isa
from oneshot_ml2.vta import program as G
from oneshot_ml2.vta.program import Program, element_bytes
from oneshot_ml2.workload import Conv2d


def touched(program: Program, insn: np.ndarray, column: int, out: int, inn: int) -> np.ndarray:
    """The SRAM indices (steps,) of one operand of a GEMM or ALU, in order: micro-op ``column``, factors out and in."""
    outer, inner = np.arange(insn[G.C_ITER_OUT]), np.arange(insn[G.C_ITER_IN])
    uops = program.uops[insn[G.C_UOP_BGN] : insn[G.C_UOP_END], column]
    return (outer[:, None, None] * insn[out] + inner[None, :, None] * insn[inn] + uops).reshape(-1)


def check_portable(program: Program) -> None:
    """The portable subset of the VTA reference, section 9, as far as a static look tells; no access beside a buffer."""
    a, insns = program.accelerator, program.insns
    assert len(program.uops) <= 2048
    depth = {G.UOP: a.uop_depth, G.INP: a.inp_depth, G.WGT: a.wgt_depth, G.ACC: a.acc_depth, G.OUT: a.acc_depth}
    for insn in insns:
        op = insn[G.C_OP]
        if op in (G.LOAD, G.STORE) and insn[G.C_X]:
            size = element_bytes(a)[int(insn[G.C_MEM])]
            begin = int(insn[G.C_DRAM]) * size
            end = begin + int((insn[G.C_Y] - 1) * insn[G.C_STRIDE] + insn[G.C_X]) * size
            assert any(
                b.address <= begin and end <= b.address + b.elements * element_bytes(a)[b.memory]
                for b in program.buffers
            )
            height = insn[G.C_Y] + insn[G.C_TOP] + insn[G.C_BOTTOM]
            count = height * (insn[G.C_X] + insn[G.C_LEFT] + insn[G.C_RIGHT])
            assert insn[G.C_Y] > 0
            assert insn[G.C_SRAM] + count <= depth[int(insn[G.C_MEM])]
            if insn[G.C_MEM] in (G.INP, G.WGT):
                assert count < depth[int(insn[G.C_MEM])]
        elif op in (G.GEMM, G.ALU):
            assert insn[G.C_ITER_OUT] > 0 and insn[G.C_ITER_IN] > 0 and insn[G.C_UOP_END] > insn[G.C_UOP_BGN]
            dst = touched(program, insn, 0, G.C_DST_OUT, G.C_DST_IN)
            src = touched(program, insn, 1, G.C_SRC_OUT, G.C_SRC_IN)
            assert dst.max() < a.acc_depth
            for distance in (1, 2):
                assert (dst[distance:] != dst[:-distance]).all()
            if op == G.GEMM:
                assert src.max() < a.inp_depth
                assert touched(program, insn, 2, G.C_WGT_OUT, G.C_WGT_IN).max() < a.wgt_depth
            elif insn[G.C_USE_IMM]:
                assert (dst == src).all()
            else:
                assert (src[1:] != dst[:-1]).all()
                assert src.max() < a.acc_depth
    isa.encode(insns, a)


def run_triples(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    done = 0
    used = set()
    while done < count:
        accelerator = ACCELERATORS[int(rng.integers(len(ACCELERATORS)))]
        workload = random_workload(rng)
        space = ScheduleSpace(workload, accelerator)
        indices = rng.integers(0, len(space), 400)
        good = indices[space.validity(indices) == 0]
        if len(good) == 0:
            continue
        result = space.measure(good[:5])
        tensors = workload.random_inputs(rng)
        want = workload.reference(tensors)
        for index, cycles in zip(good[:5], result.cycles, strict=True):
            program = space.lower(int(index))
            check_portable(program)
            assert cycles > 0
            order = legal_order(program.insns, rng)
            shuffled = dataclasses.replace(program, insns=program.insns[order])
            got = image.execute(shuffled, workload, tensors)
            assert np.array_equal(got, want), (accelerator, workload, space.schedule(int(index)))
            done += 1
        used.add(accelerator)
    assert len(used) >= min(6, count)


def test_lowered_programs_compute_the_reference() -> None:
    run_triples(seed=1, count=200)


@pytest.mark.slow
def test_lowered_programs_compute_the_reference_long() -> None:
    run_triples(seed=2, count=2000)


def test_canonical_aliases_lower_to_the_same_program() -> None:
    rng = np.random.default_rng(3)
    compared = 0
    while compared < 300:
        space = ScheduleSpace(random_workload(rng), ACCELERATORS[int(rng.integers(len(ACCELERATORS)))])
        indices = rng.integers(0, len(space), 60)
        canonical = space.canonical(indices)
        assert np.array_equal(space.canonical(canonical), canonical)
        for index, other in zip(indices, canonical, strict=True):
            if index == other:
                continue
            try:
                program = space.lower(int(index))
            except InvalidSchedule as error:
                with pytest.raises(InvalidSchedule) as found:
                    space.lower(int(other))
                assert found.value.reason == error.reason
                continue
            same = space.lower(int(other))
            assert np.array_equal(program.insns, same.insns) and np.array_equal(program.uops, same.uops), (
                space.workload, space.schedule(int(index)), space.schedule(int(other)),
            )  # fmt: skip
            compared += 1


def test_space_of_a_resnet_layer_is_small_enough_to_score_whole() -> None:
    space = ScheduleSpace(Conv2d(1, 256, 14, 14, 512, 3, 3, stride=2, padding=1), Accelerator.load("pynq"))
    assert 1_000 < len(space.table()) <= 200_000
