"""What a perturbed board does to a program, compiled; and `PerturbedDevice.true_cycles` of many schedules at once.

Scoring a study takes a million programs, which one by one cost more in Python than in the simulator.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.kernels import njit
from oneshot_ml2.devices.boards import RULES, Differences, board_of
from oneshot_ml2.spaces.base import BatchResult
from oneshot_ml2.spaces.full import emit
from oneshot_ml2.spaces.full import space as full
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta import nest
from oneshot_ml2.vta import program as G
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.reasons import Reason
from oneshot_ml2.vta.timing import chisel

_WRONG = int(Reason.WRONG_RESULT)
_NONE, _SHORT_STORE, _LONG_GEMM, _WIDE_LOAD = range(4)
# Columns of `limits_of`.
_L_UOPS, _L_RULE, _L_LIMIT, _L_PAGE = range(4)


def limits_of(chip: Accelerator, d: Differences) -> NDArray[np.int64]:
    """What a board of such a description cannot exceed, int64 (4,), columns ``_L_*``."""
    rule = RULES.index(d.rule)
    limit = (0, 1 + round(4 * d.rule_share), round(16384 * d.rule_share), round(chip.inp_depth * d.rule_share))[rule]
    return np.array([round(chip.uop_depth * d.uop_share), rule, limit, d.page_bytes], dtype=np.int64)


@njit(cache=True, nogil=True)
def is_wrong(insns, limits):  # type: ignore[no-untyped-def]
    """Whether a program's micro-ops do not fit, or the hidden rule strikes; ``limits``: `limits_of`."""
    rule, limit = limits[_L_RULE], limits[_L_LIMIT]
    for i in range(len(insns)):
        row = insns[i]
        op, x, y = row[G.C_OP], row[G.C_X], row[G.C_Y]
        if op == G.LOAD and x > 0:
            if row[G.C_MEM] == G.UOP and row[G.C_SRAM] + x * y > limits[_L_UOPS]:
                return True
            if rule == _WIDE_LOAD and row[G.C_MEM] == G.INP and x * y > limit:
                return True
        elif rule == _SHORT_STORE and op == G.STORE and y > 1 and x < row[G.C_STRIDE] and x <= limit:
            return True
        elif rule == _LONG_GEMM and op == G.GEMM and row[G.C_RESET] == 0:
            span = max(row[G.C_UOP_END] - row[G.C_UOP_BGN], 0)
            if row[G.C_ITER_OUT] * row[G.C_ITER_IN] * span > limit:
                return True
    return False


@njit(cache=True, nogil=True)
def page_misses(insns, sizes, page):  # type: ignore[no-untyped-def]
    """See `perturbed.page_misses`; ``sizes``: bytes of an element of each memory."""
    misses, last = 0, -1
    for i in range(len(insns)):
        row = insns[i]
        if (row[G.C_OP] != G.LOAD and row[G.C_OP] != G.STORE) or row[G.C_X] * row[G.C_Y] <= 0:
            continue
        size = sizes[G.OUT] if row[G.C_OP] == G.STORE else sizes[row[G.C_MEM]]
        for y in range(row[G.C_Y]):
            begin = (row[G.C_DRAM] + y * row[G.C_STRIDE]) * size
            first, end = begin // page, (begin + row[G.C_X] * size - 1) // page
            misses += end - first
            if first != last:
                misses += 1
            last = end
    return misses


@njit(cache=True, nogil=True)
def _measure(p, values, insns, uops, tables, address, params, sizes, limits, slow, miss, reason, cycles, busy):  # type: ignore[no-untyped-def]
    """Lower and time the rows whose ``reason`` is 0 so far; ``slow``: additional cycles of a beat, ``miss``: of a
    page."""
    trace = np.empty((0, 2), dtype=np.int64)
    for i in range(len(values)):
        if reason[i] != 0:
            continue
        why, n, _ = emit.lower_into(p, values[i], insns, uops, tables)
        if why == 0 and is_wrong(insns[:n], limits):
            why = _WRONG
        reason[i] = why
        if why != 0:
            continue
        total, hang, counters = chisel.simulate(insns[:n], address, params, trace)
        if hang:
            reason[i] = emit.DEADLOCK
            continue
        port = counters[chisel.B_READ_BEATS] + counters[chisel.B_WRITE_BEATS]
        more = port * slow
        if miss > 0.0:
            more += page_misses(insns[:n], sizes, limits[_L_PAGE]) * miss
        cycles[i] = max(1, round(total + more * (port + more) / (total + more)))
        for m in range(3):
            busy[i, m] = counters[m]


def true_cycles(space: ScheduleSpace, indices: NDArray[np.int64], d: Differences) -> BatchResult:
    """What a device with some differences says of schedules (n,) of a ``full`` space, without noise and failures."""
    chip, values = space.accelerator, space.values(indices)
    reason = full.validity(space.workload, chip, values)
    cycles, busy = np.full(len(values), -1, dtype=np.int64), np.zeros((len(values), 3), dtype=np.int64)
    insns, uops, tables = full.work_arrays()
    _, end = nest.buffers(space.workload, chip)
    _measure(
        nest.nest(space.workload, chip),
        np.ascontiguousarray(values),
        insns,
        uops,
        tables,
        end,
        chisel.params(board_of(chip, d)),
        np.array(G.element_bytes(chip), dtype=np.int64),
        limits_of(chip, d),
        1.0 / d.bandwidth - 1.0,
        d.page_miss / d.clock_ratio,
        reason,
        cycles,
        busy,
    )
    return BatchResult(reason, cycles, busy)
