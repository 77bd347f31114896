"""Simulated cycles per second of the timing model, one core.

    python benchmarks/bench_timing.py [RUNS.h5 ...]

Times tiled, double-buffered GEMM programs of about 1e5 instructions, each with other row lengths and tile
sizes, and the programs of files of measured runs, if given.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from oneshot_ml2.evaluation.replay import read_runs, replay
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import COLUMNS, Flag, Insns, Memory, Opcode, insns_of
from oneshot_ml2.vta.timing import chisel, records


def tiled_gemm(steps: int, rows: int, x: int, weights: int, operations: int) -> Insns:
    """A layer of ``steps`` load-load-GEMM steps, eight to an output tile, (n,).

    INP tiles of ``rows`` rows of ``x`` elements, padded above and on the left; ``weights`` WGT elements and
    ``operations`` tensor operations a step.
    """

    def row(*values: int) -> list[int]:
        return [*values, *[0] * (COLUMNS - len(values))]

    insns = [row(Opcode.LOAD, 0, Memory.UOP, 0, 0x2000, 1, 16, 16)]
    loops = (0, 16, operations // 16, 1, 16, 0)
    for tile in range(steps // 8):
        insns.append(row(Opcode.GEMM, Flag.POP_NEXT if tile else 0, 1, *loops))
        for step in range(8):
            half = step & 1
            free = Flag.POP_NEXT if tile or step > 1 else 0
            rectangle = (0x1000 + 64 * step + 8 * tile, rows, x, x + 42, 1, 0, 1, 0)
            insns.append(row(Opcode.LOAD, free, Memory.INP, half * 512, *rectangle))
            insns.append(row(Opcode.LOAD, Flag.PUSH_NEXT, Memory.WGT, half * 64, 0x400 + 8 * step, 1, weights, weights))
            insns.append(row(Opcode.GEMM, Flag.POP_PREV | Flag.PUSH_PREV, 0, *loops, 16))
        insns.append(row(Opcode.ALU, Flag.PUSH_NEXT, 0, 0, 1, 1, operations, 0, 1, 0, 1, 3, 1, 8))
        tokens = Flag.POP_PREV | Flag.PUSH_PREV
        insns.append(row(Opcode.STORE, tokens, Memory.OUT, 0, 0x8000 + 64 * tile, rows, x, x + 42))
    insns += [
        row(Opcode.LOAD, Flag.PUSH_NEXT, Memory.INP),
        row(Opcode.LOAD, Flag.POP_PREV | Flag.POP_NEXT, Memory.UOP),
        row(Opcode.FINISH),
    ]
    return insns_of(insns)


def main(files: list[str]) -> None:
    accelerator = Accelerator.load("pynq")
    p = records.params(accelerator)
    unrecorded = records.nothing()
    print("rows  x  wgt  operations  instructions      cycles  Mcycles/s  ns/instruction  ns/burst")
    for rows, x, weights, operations in (
        (1, 1, 1, 16),
        (5, 3, 9, 32),
        (7, 7, 9, 144),
        (4, 14, 9, 144),
        (14, 14, 36, 1764),
        (3, 56, 9, 1008),
    ):
        insns = tiled_gemm(30_000, rows, x, weights, operations)
        chisel.simulate(insns[:8], 0x1000, p, unrecorded)
        seconds = np.inf
        for _ in range(3):
            start = time.perf_counter()
            cycles, hang, counters = chisel.simulate(insns, 0x1000, p, unrecorded)
            seconds = min(seconds, time.perf_counter() - start)
        if hang:
            raise RuntimeError("the benchmark program hangs")
        bursts = counters.read_bursts + counters.write_bursts
        print(
            f"{rows:4d} {x:2d} {weights:4d} {operations:11d} {len(insns):13d} {cycles:11d}"
            f" {cycles / seconds / 1e6:10.0f} {seconds / len(insns) * 1e9:15.0f} {seconds / bursts * 1e9:9.1f}"
        )
    for path in files:
        report = replay(read_runs(path))
        print(f"{path}: {report.runs} runs, {report.cycles_per_second / 1e6:.0f} Mcycles/s")


if __name__ == "__main__":
    main(sys.argv[1:])
