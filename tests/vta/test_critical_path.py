"""The critical path of programs, by hand, by a slow second way, and against the timing model."""

from __future__ import annotations

import numpy as np
import pytest
from some_programs import TASKS, some_programs

from oneshot_ml2.vta import facts
from oneshot_ml2.vta.critical_path import PATH, critical_path
from oneshot_ml2.vta.program import Flag, Memory, Opcode, insns_of
from oneshot_ml2.vta.timing import designs
from oneshot_ml2.workload.base import Workload

# Bytes of an element of each memory in the programs that are written here; a beat is 8 bytes.
SIZES = np.array([4, 8, 8, 8, 8, 8])


def load(flags: int, beats: int, memory: int = Memory.INP) -> list[int]:
    return [Opcode.LOAD, flags, memory, 0, 0, 1, beats, beats, 0, 0, 0, 0, 0, 0]


def store(flags: int, rows: int, beats: int) -> list[int]:
    return [Opcode.STORE, flags, Memory.OUT, 0, 0, rows, beats, 64, 0, 0, 0, 0, 0, 0]


def gemm(flags: int, operations: int) -> list[int]:
    return [Opcode.GEMM, flags, 0, 0, 1, operations, 1, 0, 0, 0, 0, 0, 0, 0]


def alu(flags: int, operations: int, immediate: int) -> list[int]:
    return [Opcode.ALU, flags, 0, 0, 1, operations, 1, 0, 0, 0, 0, 0, immediate, 0]


def path(*insns: list[int]) -> dict[str, int]:
    return dict(zip(PATH, critical_path(insns_of(insns), SIZES, 8, 8).tolist(), strict=True))


def test_a_chain_adds_up() -> None:
    found = path(
        load(Flag.PUSH_NEXT, 20),
        gemm(Flag.POP_PREV, 7),
        alu(0, 5, 1),
        alu(Flag.PUSH_NEXT, 5, 0),
        store(Flag.POP_PREV, 3, 4),
    )
    assert found["cycles"] == 20 + 7 + 5 + 10 + 12
    assert (found["loads"], found["computes"], found["stores"], found["compute_loads"]) == (1, 3, 1, 0)
    # Words 0 to 19 are three bursts of eight; each row of the STORE is one.
    assert (found["requests"], found["bursts"]) == (4, 6)


def test_what_overlaps_counts_once() -> None:
    """Two loads before two GEMMs: the second load hides behind the first GEMM, or the other way round."""
    pushed = [load(Flag.PUSH_NEXT, 4), load(Flag.PUSH_NEXT, 6)]
    slow = path(*pushed, gemm(Flag.POP_PREV, 50), gemm(Flag.POP_PREV, 50))
    assert (slow["cycles"], slow["loads"], slow["computes"]) == (104, 1, 2)
    fast = path(*pushed, gemm(Flag.POP_PREV, 1), gemm(Flag.POP_PREV, 1))
    assert (fast["cycles"], fast["loads"], fast["computes"]) == (11, 2, 1)


def test_a_buffer_that_is_not_free_yet_delays_a_load() -> None:
    found = path(
        load(Flag.PUSH_NEXT, 4),
        gemm(Flag.POP_PREV | Flag.PUSH_PREV, 30),
        load(Flag.POP_NEXT | Flag.PUSH_NEXT, 4),
        gemm(Flag.POP_PREV, 30),
    )
    assert found["cycles"] == 68


def test_loads_of_the_compute_module_and_nops() -> None:
    found = path(load(0, 9, Memory.UOP), load(Flag.PUSH_NEXT, 0), gemm(Flag.POP_PREV, 3))
    assert found["cycles"] == 5 + 3
    assert (found["loads"], found["compute_loads"]) == (0, 1)


@pytest.mark.parametrize(("workload", "kind", "chip"), TASKS)
def test_no_program_is_faster_than_its_critical_path(workload: Workload, kind: str, chip: str) -> None:
    for program in some_programs(workload, kind, chip):
        found = dict(zip(facts.NAMES, facts.features(program).tolist(), strict=True))
        compute = found["gemm_operations"] + found["reset_operations"] + found["alu_immediate_operations"]
        compute += 2 * found["alu_tensor_operations"]
        assert compute <= found["path_cycles"] <= designs.measure(program).cycles
        assert found["write_beats"] <= found["path_cycles"]
        counted = found["gemms"] + found["resets"] + found["alus"]
        assert 0 < found["path_computes"] <= counted
        assert found["path_requests"] >= found["path_loads"] + found["path_stores"]
