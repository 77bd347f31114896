"""Hidden features: what only a schedule's program tells, for ML2Tuner's model A. All exact.

`TABLE` documents them; a *request* is one contiguous stretch of DRAM that a LOAD or STORE names (a row of its
rectangle), which the memory port serves in bursts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.kernels import njit
from oneshot_ml2.vta.critical_path import critical_path, rows
from oneshot_ml2.vta.program import (
    ACC,
    ALU,
    C_BOTTOM,
    C_DRAM,
    C_DST_IN,
    C_DST_OUT,
    C_FLAGS,
    C_ITER_IN,
    C_ITER_OUT,
    C_LEFT,
    C_MEM,
    C_OP,
    C_RESET,
    C_RIGHT,
    C_SRAM,
    C_STRIDE,
    C_TOP,
    C_UOP_BGN,
    C_UOP_END,
    C_USE_IMM,
    C_X,
    C_Y,
    GEMM,
    INP,
    LOAD,
    OUT,
    POP_NEXT,
    POP_PREV,
    PUSH_NEXT,
    PUSH_PREV,
    STORE,
    UOP,
    WGT,
    element_bytes,
)
from oneshot_ml2.vta.timing.chisel import ITERATIONS

if TYPE_CHECKING:
    from oneshot_ml2.vta.program import Program


@dataclass(frozen=True)
class Feature:
    """A hidden feature: its name, unit and meaning."""

    name: str
    unit: str
    meaning: str


_MEMORIES = ("uop", "wgt", "inp", "acc")
TABLE: tuple[Feature, ...] = (
    Feature("instructions", "instructions", "of the program, FINISH included"),
    Feature("noops", "instructions", "LOADs and STOREs that move tokens only"),
    *(Feature(f"{m}_loads", "instructions", f"LOADs into {m.upper()} SRAM that move data") for m in _MEMORIES),
    Feature("stores", "instructions", "STOREs that move data"),
    Feature("gemms", "instructions", "GEMMs that multiply"),
    Feature("resets", "instructions", "GEMMs that set accumulators to 0"),
    Feature("alus", "instructions", "ALU instructions"),
    *(Feature(f"{m}_requests", "requests", f"of LOADs into {m.upper()}") for m in _MEMORIES),
    Feature("out_requests", "requests", "of STOREs"),
    *(Feature(f"{m}_bytes", "bytes", f"read from DRAM into {m.upper()}, pads not counted") for m in _MEMORIES),
    Feature("out_bytes", "bytes", "written to DRAM"),
    Feature("read_beats", "bus beats", "that LOADs take of the read port (instruction fetch not counted)"),
    Feature("write_beats", "bus beats", "of the write port"),
    Feature("read_bursts", "bursts", "of LOADs: a request is cut where a burst's longest length ends"),
    Feature("write_bursts", "bursts", "of STOREs"),
    Feature("short_reads", "requests", "of LOADs, shorter than a quarter of the longest burst"),
    Feature("short_writes", "requests", "of STOREs, shorter than a quarter of the longest burst"),
    Feature("strided_loads", "instructions", "LOADs whose rows are apart in DRAM"),
    Feature("strided_stores", "instructions", "STOREs whose rows are apart in DRAM"),
    Feature("padded_loads", "instructions", "LOADs that write zeros around their data"),
    Feature("pad_elements", "elements", "zeros that padded LOADs write"),
    Feature("largest_load", "bytes", "of the largest LOAD"),
    Feature("largest_store", "bytes", "of the largest STORE"),
    Feature("head_bytes", "bytes", "that are loaded before the first GEMM or ALU instruction in program order"),
    Feature("tail_bytes", "bytes", "that are stored after the last GEMM or ALU instruction in program order"),
    Feature("inp_distinct_bytes", "bytes", "different ones among inp_bytes"),
    Feature("wgt_distinct_bytes", "bytes", "different ones among wgt_bytes"),
    Feature("inp_rereads", "ratio", "inp_bytes / inp_distinct_bytes: halos, and inputs loaded again"),
    Feature("wgt_reloads", "ratio", "wgt_bytes / wgt_distinct_bytes: kernels loaded again"),
    Feature("load_to_compute", "tokens", "pushed by load for compute"),
    Feature("compute_to_load", "tokens", "pushed by compute for load"),
    Feature("compute_to_store", "tokens", "pushed by compute for store"),
    Feature("store_to_compute", "tokens", "pushed by store for compute"),
    Feature("pops", "tokens", "taken by all modules"),
    Feature("gemm_operations", "operations", "of multiplying GEMMs, a cycle each"),
    Feature("reset_operations", "operations", "of resetting GEMMs, a cycle each"),
    Feature("alu_immediate_operations", "operations", "of ALU instructions with an immediate, a cycle each"),
    Feature("alu_tensor_operations", "operations", "of ALU instructions of two tensors, two cycles each"),
    Feature("longest_gemm", "operations", "of the longest multiplying GEMM"),
    Feature("shortest_gemm", "operations", "of the shortest multiplying GEMM"),
    Feature("operations_per_gemm", "operations", "gemm_operations / gemms"),
    Feature("uops", "micro-ops", "in DRAM"),
    Feature("uop_span", "micro-ops", "longest range that one instruction steps through"),
    Feature("uop_high", "elements", "high-water mark of the micro-op SRAM"),
    Feature("wgt_high", "elements", "high-water mark of WGT SRAM"),
    Feature("inp_high", "elements", "high-water mark of INP SRAM, pads included"),
    Feature("acc_high", "elements", "high-water mark of ACC SRAM, by loads, GEMMs and ALU instructions"),
    Feature("path_cycles", "cycles", "of the critical path, an operation or a beat a cycle and nothing else"),
    Feature("path_loads", "instructions", "LOADs into WGT and INP on the critical path"),
    Feature("path_computes", "instructions", "GEMM and ALU instructions on the critical path"),
    Feature("path_stores", "instructions", "STOREs on the critical path"),
    Feature("path_compute_loads", "instructions", "LOADs into UOP and ACC on the critical path"),
    Feature("path_requests", "requests", "of the LOADs and STOREs on the critical path"),
    Feature("path_bursts", "bursts", "of the LOADs and STOREs on the critical path"),
)
NAMES = tuple(feature.name for feature in TABLE)

# Rows of the counters by memory id: UOP, WGT, INP, ACC and OUT.
_LOADS, _REQUESTS, _BYTES, _HIGH = range(4)
# The other counters, in the order in which `features` names them.
(
    _NOOPS, _GEMMS, _RESETS, _ALUS, _READ_BEATS, _WRITE_BEATS, _READ_BURSTS, _WRITE_BURSTS, _SHORT_READS, _SHORT_WRITES,
    _STRIDED_LOADS, _STRIDED_STORES, _PADDED, _PAD_ELEMENTS, _LARGEST_LOAD, _LARGEST_STORE, _HEAD, _TAIL, _LD_CP,
    _CP_LD, _CP_ST, _ST_CP, _POPS, _GEMM_OPS, _RESET_OPS, _IMM_OPS, _TENSOR_OPS, _LONGEST, _SHORTEST, _SPAN,
) = range(30)  # fmt: skip


@njit(cache=True, nogil=True)
def _count(insns, uops, uop_base, sizes, bus, burst, depth, by_memory, other, touched_inp, touched_wgt, low):  # type: ignore[no-untyped-def]
    """Fill ``by_memory`` (4, 5) and ``other`` (30,), int64.

    ``touched_inp``, ``touched_wgt``: bool, marked at every element loaded from ``low`` (2,) on.
    """
    destinations = np.zeros(depth, dtype=np.int64)
    started = False
    other[_SHORTEST] = 1 << 60
    quarter = burst * bus // 4
    for i in range(len(insns)):
        insn = insns[i]
        op, flags = insn[C_OP], insn[C_FLAGS]
        memory = insn[C_MEM]
        store = op == STORE
        load = op == LOAD and (memory == INP or memory == WGT)
        for bit in (POP_PREV, POP_NEXT):
            other[_POPS] += (flags & bit) != 0
        if flags & PUSH_NEXT:
            other[_LD_CP if load else _CP_ST] += 1
        if flags & PUSH_PREV:
            other[_ST_CP if store else _CP_LD] += 1
        if op == LOAD or store:
            x, y = insn[C_X], insn[C_Y]
            if x == 0 or y == 0:
                other[_NOOPS] += 1
                continue
            # An ACC load of 8-bit elements counts as one of ACC.
            place = OUT if store else min(memory, ACC)
            size = sizes[OUT] if store else sizes[memory]
            moved = x * y * size
            by_memory[_LOADS, place] += 1
            by_memory[_REQUESTS, place] += y
            by_memory[_BYTES, place] += moved
            beats, bursts = rows(insn[C_DRAM] * size, y, x * size, insn[C_STRIDE] * size, bus, burst)
            other[_WRITE_BEATS if store else _READ_BEATS] += beats
            other[_WRITE_BURSTS if store else _READ_BURSTS] += bursts
            if x * size < quarter:
                other[_SHORT_WRITES if store else _SHORT_READS] += y
            if y > 1 and insn[C_STRIDE] != x:
                other[_STRIDED_STORES if store else _STRIDED_LOADS] += 1
            if store:
                other[_LARGEST_STORE] = max(other[_LARGEST_STORE], moved)
                other[_TAIL] += moved
                continue
            other[_LARGEST_LOAD] = max(other[_LARGEST_LOAD], moved)
            if not started:
                other[_HEAD] += moved
            full = (insn[C_TOP] + y + insn[C_BOTTOM]) * (insn[C_LEFT] + x + insn[C_RIGHT])
            if full > x * y:
                other[_PADDED] += 1
                other[_PAD_ELEMENTS] += full - x * y
            by_memory[_HIGH, place] = max(by_memory[_HIGH, place], insn[C_SRAM] + full)
            if memory == UOP:
                for k in range(x * y):
                    row, column = k // x, k % x
                    source = insn[C_DRAM] + row * insn[C_STRIDE] + column - uop_base
                    if 0 <= source < len(uops) and insn[C_SRAM] + k < depth:
                        destinations[insn[C_SRAM] + k] = uops[source, 0]
            elif memory == INP:
                for row in range(y):
                    begin = insn[C_DRAM] + row * insn[C_STRIDE] - low[0]
                    touched_inp[begin : begin + x] = True
            elif memory == WGT:
                for row in range(y):
                    begin = insn[C_DRAM] + row * insn[C_STRIDE] - low[1]
                    touched_wgt[begin : begin + x] = True
        elif op == GEMM or op == ALU:
            started = True
            other[_TAIL] = 0
            outer = insn[C_ITER_OUT] if insn[C_ITER_OUT] > 0 else ITERATIONS
            inner = insn[C_ITER_IN] if insn[C_ITER_IN] > 0 else ITERATIONS
            begin, end = insn[C_UOP_BGN], min(insn[C_UOP_END], depth)
            span = max(insn[C_UOP_END] - begin, 0)
            operations = outer * inner * span
            other[_SPAN] = max(other[_SPAN], span)
            highest = 0
            for k in range(begin, end):
                highest = max(highest, destinations[k])
            highest += (outer - 1) * insn[C_DST_OUT] + (inner - 1) * insn[C_DST_IN] + 1
            by_memory[_HIGH, ACC] = max(by_memory[_HIGH, ACC], highest)
            if op == ALU:
                other[_ALUS] += 1
                other[_IMM_OPS if insn[C_USE_IMM] else _TENSOR_OPS] += operations
            elif insn[C_RESET]:
                other[_RESETS] += 1
                other[_RESET_OPS] += operations
            else:
                other[_GEMMS] += 1
                other[_GEMM_OPS] += operations
                other[_LONGEST] = max(other[_LONGEST], operations)
                other[_SHORTEST] = min(other[_SHORTEST], operations)


def _extent(insns: NDArray[np.int64], memory: int) -> tuple[int, int]:
    """First DRAM element that LOADs into a memory read, and how many there are from it to the last one."""
    rows = insns[(insns[:, C_OP] == LOAD) & (insns[:, C_MEM] == memory) & (insns[:, C_X] > 0) & (insns[:, C_Y] > 0)]
    if not len(rows):
        return 0, 0
    ends = rows[:, C_DRAM] + (rows[:, C_Y] - 1) * rows[:, C_STRIDE] + rows[:, C_X]
    low = int(rows[:, C_DRAM].min())
    return low, int(ends.max()) - low


def features(program: Program) -> NDArray[np.float64]:
    """The hidden features of a program, float64 (len(TABLE),), in `TABLE`'s order."""
    a = program.accelerator
    insns = np.ascontiguousarray(program.insns, dtype=np.int64)
    uops = np.ascontiguousarray(program.uops, dtype=np.int64).reshape(-1, 3)
    (inp_low, inp_size), (wgt_low, wgt_size) = _extent(insns, INP), _extent(insns, WGT)
    touched_inp, touched_wgt = np.zeros(inp_size, dtype=bool), np.zeros(wgt_size, dtype=bool)
    by_memory, other = np.zeros((4, 5), dtype=np.int64), np.zeros(30, dtype=np.int64)
    sizes = np.array(element_bytes(a), dtype=np.int64)
    low = np.array([inp_low, wgt_low], dtype=np.int64)
    _count(
        insns, uops, program.uop_address // 4, sizes, a.bus_bytes, a.burst_beats, a.uop_depth, by_memory, other,
        touched_inp, touched_wgt, low,
    )  # fmt: skip
    c, m = other.tolist(), by_memory.tolist()
    inp_distinct = int(touched_inp.sum()) * a.inp_bytes
    wgt_distinct = int(touched_wgt.sum()) * a.wgt_bytes
    memories = (UOP, WGT, INP, ACC)
    row = [
        len(insns),
        c[_NOOPS],
        *(m[_LOADS][k] for k in memories),
        m[_LOADS][OUT],
        *c[_GEMMS : _ALUS + 1],
        *(m[_REQUESTS][k] for k in (*memories, OUT)),
        *(m[_BYTES][k] for k in (*memories, OUT)),
        *c[_READ_BEATS : _TAIL + 1],
        inp_distinct,
        wgt_distinct,
        m[_BYTES][INP] / max(inp_distinct, 1),
        m[_BYTES][WGT] / max(wgt_distinct, 1),
        *c[_LD_CP : _LONGEST + 1],
        c[_SHORTEST] if c[_GEMMS] else 0,
        c[_GEMM_OPS] / max(c[_GEMMS], 1),
        len(uops),
        c[_SPAN],
        m[_HIGH][UOP],
        m[_HIGH][WGT],
        m[_HIGH][INP],
        m[_HIGH][ACC],
        *critical_path(insns, sizes, a.bus_bytes, a.burst_beats),
    ]
    return np.array(row, dtype=np.float64)
