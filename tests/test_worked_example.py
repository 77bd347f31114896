"""The worked example of docs/architecture.md, computed again."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import oneshot_ml2 as o2
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta import isa
from oneshot_ml2.vta.bound import engine_bound
from oneshot_ml2.vta.program import Program
from oneshot_ml2.vta.timing import designs

PAGE = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
SECTION = PAGE[PAGE.index("## One layer, followed through") :].split("\n## ")[0]
KNOBS, LISTING = re.findall(r"```text\n(.*?)\n```", SECTION, re.DOTALL)
LAYER = o2.Conv2d(n=1, c=32, h=8, w=8, k=32, r=3, s=3, padding=1)


@pytest.fixture(scope="module")
def space() -> ScheduleSpace:
    return ScheduleSpace(LAYER, o2.Accelerator.load("pynq"))


@pytest.fixture(scope="module")
def example(space: ScheduleSpace) -> tuple[int, Program]:
    """Index and program of the knobs that the page shows."""
    shown = dict(knob.split("=") for knob in KNOBS.split())
    values = np.array([[int(shown[knob.name]) for knob in space.knobs]])
    index = int(space.index(values)[0])
    assert str(space.schedule(index)) == KNOBS
    return index, space.lower(index)


def test_instructions_and_their_cycles(example: tuple[int, Program]) -> None:
    program = example[1]
    timed = designs.measure(program, trace=True)
    assert timed.trace is not None and not timed.hang
    cycles, trace = timed.cycles, timed.trace
    lines = isa.disassemble(program.insns)
    shown = [f"[{start:5d},{end:5d})  {line}" for (start, end), line in zip(trace.tolist(), lines, strict=True)]
    assert LISTING.splitlines() == shown
    assert f"All in all {cycles:,} cycles" in SECTION
    for instruction, duration in re.findall(r"^\| (\d+): .* \| (\d+) \|$", SECTION, re.MULTILINE):
        start, end = trace[int(instruction)]
        assert end - start == int(duration)


def test_sizes_of_the_space_and_bounds(space: ScheduleSpace, example: tuple[int, Program]) -> None:
    table = space.table()
    legal = table[space.validity(table) == 0]
    assert f"{len(space):,} points, which stand for {len(table):,} different programs; {len(legal):,} of" in SECTION
    engine = engine_bound(LAYER, space.accelerator)
    assert f"engine bound of {engine.bound:,}: {engine.gemm_ops_real:,} GEMM operations" in SECTION
    (bound,) = space.bound(np.array([example[0]]))
    assert f"than {bound:,.0f}, which is what `space.bound` proves" in SECTION.replace("\n", " ")
    pick = o2.pick(LAYER, space.accelerator)
    (cycles,) = space.measure(np.array([space.index_of(pick.schedule)])).cycles
    text = SECTION.replace("\n", " ")
    assert f"It predicts {pick.predicted_cycles:,.0f} cycles; the simulator says {cycles:,}" in text
    best = space.measure(legal).cycles.min()
    assert f"The best legal schedule takes {best:,} cycles: {cycles / best - 1:.0%} better".replace("%", " %") in text
