"""Hidden features against the simulators, which count the same things on their own."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from some_programs import TASKS, some_programs

from oneshot_ml2.vta import facts, simulator
from oneshot_ml2.vta.program import Flag, Memory, Opcode, Program
from oneshot_ml2.vta.timing import designs
from oneshot_ml2.workload.base import Workload


def named(program: Program) -> dict[str, float]:
    return dict(zip(facts.NAMES, facts.features(program).tolist(), strict=True))


def test_the_table_is_complete() -> None:
    assert len(facts.TABLE) >= 30
    assert len(set(facts.NAMES)) == len(facts.NAMES)
    assert all(feature.unit and feature.meaning for feature in facts.TABLE)


def test_the_document_lists_every_feature() -> None:
    text = (Path(__file__).parent.parent.parent / "docs" / "refinement.md").read_text(encoding="utf-8")
    rows = re.findall(r"(?m)^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|$", text)
    wanted = [(feature.name, feature.unit, feature.meaning) for feature in facts.TABLE]
    assert [row for row in rows if row[0] in facts.NAMES] == wanted


@pytest.mark.parametrize(("workload", "kind", "chip"), TASKS)
def test_counts_are_those_of_the_simulators(workload: Workload, kind: str, chip: str) -> None:
    for program in some_programs(workload, kind, chip):
        found, timed = named(program), designs.measure(program)
        moved = simulator.traffic(program.insns, program.accelerator)
        for memory in ("inp", "wgt", "acc", "uop"):
            assert found[f"{memory}_bytes"] == moved[f"{memory}_load_nbytes"]
        assert found["out_bytes"] == moved["out_store_nbytes"]
        assert found["gemm_operations"] == moved["gemm_counter"]
        assert found["alu_immediate_operations"] + found["alu_tensor_operations"] == moved["alu_counter"]
        # The port also carries the instructions, 16 bytes each.
        fetched = -(-16 * len(program.insns) // program.accelerator.bus_bytes)
        assert found["read_beats"] == timed.read_beats - fetched
        assert found["write_beats"] == timed.write_beats
        assert found["write_bursts"] == timed.write_bursts
        assert 0 < found["read_bursts"] < timed.read_bursts


@pytest.mark.parametrize(("workload", "kind", "chip"), TASKS)
def test_counts_of_instructions_and_tokens(workload: Workload, kind: str, chip: str) -> None:
    for program in some_programs(workload, kind, chip, 3):
        found, insns = named(program), program.insns
        kinds = ("noops", "uop_loads", "wgt_loads", "inp_loads", "acc_loads", "stores", "gemms", "resets", "alus")
        assert sum(found[name] for name in kinds) + 1 == found["instructions"] == len(insns)
        pushed = sum(found[f"{a}_to_{b}"] for a, b in (("load", "compute"), ("compute", "load"), ("compute", "store")))
        pushed += found["store_to_compute"]
        flags = insns["flags"]
        assert pushed == sum(np.count_nonzero(flags & bit) for bit in (Flag.PUSH_PREV, Flag.PUSH_NEXT))
        # What is taken has been pushed; TVM's programs leave a token behind.
        assert pushed - 2 <= found["pops"] <= pushed


@pytest.mark.parametrize(("workload", "kind", "chip"), TASKS)
def test_distinct_bytes_and_high_water_marks(workload: Workload, kind: str, chip: str) -> None:
    for program in some_programs(workload, kind, chip, 3):
        found, a = named(program), program.accelerator
        for memory, size, depth in ((Memory.INP, a.inp_bytes, a.inp_depth), (Memory.WGT, a.wgt_bytes, a.wgt_depth)):
            name = "inp" if memory == Memory.INP else "wgt"
            touched: set[int] = set()
            high = 0
            for row in program.insns[(program.insns["op"] == Opcode.LOAD) & (program.insns["mem"] == memory)]:
                if row["x"] == 0:
                    continue
                for y in range(row["y"]):
                    begin = int(row["dram"] + y * row["stride"])
                    touched.update(range(begin, begin + int(row["x"])))
                height = row["top"] + row["y"] + row["bottom"]
                high = max(high, int(row["sram"] + height * (row["left"] + row["x"] + row["right"])))
            assert found[f"{name}_distinct_bytes"] == len(touched) * size
            assert found[f"{name}_high"] == high <= depth
        assert 0 < found["acc_high"] <= a.acc_depth
        assert 0 < found["uop_high"] <= a.uop_depth
        assert found["inp_rereads"] >= 1.0
