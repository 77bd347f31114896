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
from oneshot_ml2.common.parts import part
from oneshot_ml2.vta import tokens
from oneshot_ml2.vta.critical_path import PATH, critical_path, rows
from oneshot_ml2.vta.program import ITERATIONS, Flag, Insns, Memory, Opcode, element_bytes
from oneshot_ml2.vta.writing import fill

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

# Counters by memory id (UOP, WGT, INP, ACC and OUT), and by direction: of LOADs, of STOREs.
_TRAFFIC = np.dtype([(name, np.int64) for name in ("moves", "requests", "bytes", "high")])
_PORT = np.dtype([(name, np.int64) for name in ("beats", "bursts", "short", "strided", "largest")])
# The other counters, by their name in `TABLE`.
_COUNTED = (
    "noops", "gemms", "resets", "alus", "padded_loads", "pad_elements", "head_bytes", "tail_bytes",
    *(queue.replace("-", "_") for queue in tokens.QUEUES), "pops", "gemm_operations", "reset_operations",
    "alu_immediate_operations", "alu_tensor_operations", "longest_gemm", "shortest_gemm", "uop_span",
)  # fmt: skip
_COUNTS = np.dtype([(name, np.int64) for name in _COUNTED])


@part()
def _count_tokens(insn, counts):  # type: ignore[no-untyped-def]
    flags, module = insn.flags, tokens.module_of(insn)
    for bit in (Flag.POP_PREV, Flag.POP_NEXT):
        counts.pops += (flags & bit) != 0
    if flags & Flag.PUSH_NEXT:
        if module == tokens.LOADS:
            counts.load_to_compute += 1
        else:
            counts.compute_to_store += 1
    if flags & Flag.PUSH_PREV:
        if module == tokens.STORES:
            counts.store_to_compute += 1
        else:
            counts.compute_to_load += 1


@part()
def _count_move(insn, size, bus, burst, traffic, port):  # type: ignore[no-untyped-def]
    """Count what a LOAD or STORE moves; returns its bytes."""
    x_bytes, stride = insn.x * size, insn.stride * size
    moved = x_bytes * insn.y
    traffic.moves += 1
    traffic.requests += insn.y
    traffic.bytes += moved
    beats, bursts = rows(insn.dram * size, insn.y, x_bytes, stride, bus, burst)
    port.beats += beats
    port.bursts += bursts
    if x_bytes < burst * bus // 4:
        port.short += insn.y
    port.strided += insn.y > 1 and insn.stride != insn.x
    port.largest = max(port.largest, moved)
    return moved


@part()
def _count_pads(insn, traffic, counts):  # type: ignore[no-untyped-def]
    full = (insn.top + insn.y + insn.bottom) * (insn.left + insn.x + insn.right)
    counts.padded_loads += full > insn.x * insn.y
    counts.pad_elements += full - insn.x * insn.y
    traffic.high = max(traffic.high, insn.sram + full)


@part()
def _load_uops(insn, uops, uop_base, destinations):  # type: ignore[no-untyped-def]
    """Note where the micro-ops that a LOAD brings write to."""
    for k in range(insn.x * insn.y):
        row, column = k // insn.x, k % insn.x
        source = insn.dram + row * insn.stride + column - uop_base
        if 0 <= source < len(uops) and insn.sram + k < len(destinations):
            destinations[insn.sram + k] = uops[source].dst


@part()
def _touch(insn, low, touched):  # type: ignore[no-untyped-def]
    """Mark the elements from ``low`` on that a LOAD reads."""
    for row in range(insn.y):
        begin = insn.dram + row * insn.stride - low
        fill(touched[begin : begin + insn.x], True)


@part()
def _count_work(insn, destinations, acc, counts):  # type: ignore[no-untyped-def]
    """Count a GEMM or ALU instruction."""
    counts.tail_bytes = 0
    outer = insn.iter_out if insn.iter_out > 0 else ITERATIONS
    inner = insn.iter_in if insn.iter_in > 0 else ITERATIONS
    span = max(insn.uop_end - insn.uop_bgn, 0)
    operations = outer * inner * span
    counts.uop_span = max(counts.uop_span, span)
    highest = 0
    for k in range(insn.uop_bgn, min(insn.uop_end, len(destinations))):
        highest = max(highest, destinations[k])
    highest += (outer - 1) * insn.dst_out + (inner - 1) * insn.dst_in + 1
    acc.high = max(acc.high, highest)
    if insn.op == Opcode.ALU:
        counts.alus += 1
        if insn.use_imm:
            counts.alu_immediate_operations += operations
        else:
            counts.alu_tensor_operations += operations
    elif insn.reset:
        counts.resets += 1
        counts.reset_operations += operations
    else:
        counts.shortest_gemm = operations if counts.gemms == 0 else min(counts.shortest_gemm, operations)
        counts.longest_gemm = max(counts.longest_gemm, operations)
        counts.gemms += 1
        counts.gemm_operations += operations


@njit(cache=True, nogil=True)
def _count(insns, uops, uop_base, sizes, bus, burst, depth, traffic, ports, count, touched_inp, touched_wgt, low):  # type: ignore[no-untyped-def]
    """Fill ``traffic``, `_TRAFFIC` (5,) by memory id, ``ports``, `_PORT` (2,), and ``count``, `_COUNTS` (1,).

    ``touched_inp``, ``touched_wgt``: bool, marked at every element loaded from ``low`` (2,) on.
    """
    destinations = np.zeros(depth, dtype=np.int64)
    counts, started = count[0], False
    for i in range(len(insns)):
        insn = insns[i]
        _count_tokens(insn, counts)
        if insn.op == Opcode.GEMM or insn.op == Opcode.ALU:
            started = True
            _count_work(insn, destinations, traffic[Memory.ACC], counts)
        elif insn.op == Opcode.LOAD or insn.op == Opcode.STORE:
            if insn.x == 0 or insn.y == 0:
                counts.noops += 1
            elif insn.op == Opcode.STORE:
                counts.tail_bytes += _count_move(insn, sizes[Memory.OUT], bus, burst, traffic[Memory.OUT], ports[1])
            else:
                # An ACC load of 8-bit elements counts as one of ACC.
                place = Memory.ACC if insn.mem > Memory.ACC else insn.mem
                moved = _count_move(insn, sizes[insn.mem], bus, burst, traffic[place], ports[0])
                counts.head_bytes += 0 if started else moved
                _count_pads(insn, traffic[place], counts)
                if insn.mem == Memory.UOP:
                    _load_uops(insn, uops, uop_base, destinations)
                elif insn.mem == Memory.INP:
                    _touch(insn, low[0], touched_inp)
                elif insn.mem == Memory.WGT:
                    _touch(insn, low[1], touched_wgt)


def _extent(insns: Insns, memory: int) -> tuple[int, int]:
    """First DRAM element that LOADs into a memory read, and how many there are from it to the last one."""
    loads = insns[(insns["op"] == Opcode.LOAD) & (insns["mem"] == memory) & (insns["x"] > 0) & (insns["y"] > 0)]
    if not len(loads):
        return 0, 0
    ends = loads["dram"] + (loads["y"] - 1) * loads["stride"] + loads["x"]
    low = int(loads["dram"].min())
    return low, int(ends.max()) - low


def features(program: Program) -> NDArray[np.float64]:
    """The hidden features of a program, float64 (len(TABLE),), in `TABLE`'s order."""
    a = program.accelerator
    insns = np.ascontiguousarray(program.insns)
    (inp_low, inp_size), (wgt_low, wgt_size) = _extent(insns, Memory.INP), _extent(insns, Memory.WGT)
    touched_inp, touched_wgt = np.zeros(inp_size, dtype=bool), np.zeros(wgt_size, dtype=bool)
    traffic, ports, count = np.zeros(5, dtype=_TRAFFIC), np.zeros(2, dtype=_PORT), np.zeros(1, dtype=_COUNTS)
    sizes = np.array(element_bytes(a), dtype=np.int64)
    low = np.array([inp_low, wgt_low], dtype=np.int64)
    _count(
        insns, program.uops, program.uop_address // 4, sizes, a.bus_bytes, a.burst_beats, a.uop_depth, traffic, ports,
        count, touched_inp, touched_wgt, low,
    )  # fmt: skip
    values: dict[str, float] = dict(zip(_COUNTED, count[0].tolist()))
    for name, memory in (*zip(_MEMORIES, (Memory.UOP, Memory.WGT, Memory.INP, Memory.ACC)), ("out", Memory.OUT)):
        values |= {f"{name}_requests": traffic["requests"][memory], f"{name}_bytes": traffic["bytes"][memory]}
        values |= {f"{name}_loads": traffic["moves"][memory], f"{name}_high": traffic["high"][memory]}
    for port, beats, moves in zip(ports, ("read", "write"), ("load", "store")):
        values |= {f"{beats}_beats": port["beats"], f"{beats}_bursts": port["bursts"], f"short_{beats}s": port["short"]}
        values |= {f"strided_{moves}s": port["strided"], f"largest_{moves}": port["largest"]}
    values |= {
        "instructions": len(insns),
        "uops": len(program.uops),
        "stores": traffic["moves"][Memory.OUT],
        "inp_distinct_bytes": int(touched_inp.sum()) * a.inp_bytes,
        "wgt_distinct_bytes": int(touched_wgt.sum()) * a.wgt_bytes,
        "operations_per_gemm": values["gemm_operations"] / max(values["gemms"], 1),
    }
    values["inp_rereads"] = values["inp_bytes"] / max(values["inp_distinct_bytes"], 1)
    values["wgt_reloads"] = values["wgt_bytes"] / max(values["wgt_distinct_bytes"], 1)
    path = critical_path(insns, sizes, a.bus_bytes, a.burst_beats)
    values |= {f"path_{name}": value for name, value in zip(PATH, path.tolist(), strict=True)}
    return np.array([values[name] for name in NAMES], dtype=np.float64)
