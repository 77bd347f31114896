"""Turns a schedule into instructions and micro-ops, in numba, one schedule at a call."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.kernels import njit
from oneshot_ml2.spaces.full import steps
from oneshot_ml2.spaces.full.axes import cut_axes
from oneshot_ml2.spaces.full.canonical import canonical_row
from oneshot_ml2.spaces.full.knobs import SCHEDULE
from oneshot_ml2.spaces.full.legality import CUT, reason_by_sizes
from oneshot_ml2.spaces.full.order import REPEAT, walk_program
from oneshot_ml2.spaces.full.sink import SINK, VALID, open_sink
from oneshot_ml2.spaces.full.sram import LAYOUT
from oneshot_ml2.vta.program import Insns, Uops
from oneshot_ml2.vta.reasons import Reason
from oneshot_ml2.vta.tokens import runs_in_order

DEADLOCK = int(Reason.DEADLOCK)

Tables: TypeAlias = tuple[NDArray[Any], ...]


def work_arrays() -> tuple[Insns, Uops, Tables]:
    """What `lower_into` writes a program's instructions and micro-ops into, and the tables that it works with."""
    sinks, own, cuts = np.zeros(1, dtype=SINK), np.empty(1, dtype=SCHEDULE), np.zeros(2, dtype=CUT)
    tables = (sinks, steps.step_table(), np.empty(1, dtype=LAYOUT), own, cuts)
    return sinks["rows"][0], sinks["words"][0], tables


@njit(cache=True, nogil=True)
def lower_into(nest, schedule, insns, tables):  # type: ignore[no-untyped-def]
    """Lower a schedule, a record of `knobs.SCHEDULE`, of a nest into ``insns`` and ``tables``, all overwritten.

    Both are of `work_arrays`, which also has the micro-ops.
    Returns (`Reason`, instructions, micro-ops); the arrays hold the program where the reason is 0.
    """
    sinks, records, layouts, own, cuts = tables
    into = sinks[0]
    own[0] = schedule
    canonical_row(nest, own[0])
    rows, row_taps, cols, col_taps, _ = cut_axes(nest, own[0])
    reason = reason_by_sizes(nest, own[0], rows, row_taps, cols, col_taps, cuts, layouts)
    if reason != VALID:
        return reason, 0, 0
    open_sink(nest, into, True)
    every = np.empty(0, dtype=REPEAT)
    reason = walk_program(nest, own[0], rows, row_taps, cols, col_taps, cuts[0], cuts[1], records, every, layouts, into)
    if reason != VALID:
        return reason, 0, 0
    if not runs_in_order(insns[: into.insns]):
        return DEADLOCK, 0, 0
    return VALID, into.insns, into.uops
