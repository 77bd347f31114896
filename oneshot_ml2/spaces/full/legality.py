"""Which schedules are legal, and why not, without emitting anything: `reasons` gives what lowering says.

Sizes decide most; what is left is counted by walking the program with nowhere to put it (`order`).
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.kernels import njit
from oneshot_ml2.common.parallel import in_parallel
from oneshot_ml2.common.parts import part
from oneshot_ml2.spaces.full import order, steps
from oneshot_ml2.spaces.full.axes import (
    ITEM,
    RECURRENCE,
    TAP,
    TILE,
    col_loop,
    cut_axes,
    load_step,
    most_tiles,
    recurrence,
    row_loop,
    tap_items,
    tile_axis,
)
from oneshot_ml2.spaces.full.canonical import canonical_rows
from oneshot_ml2.spaces.full.knobs import BIAS_GEMM, PAD_LOAD, PAD_SKIP, Schedules, ceil_div, schedules
from oneshot_ml2.spaces.full.shapes import moves_apart
from oneshot_ml2.spaces.full.sink import FIELD_OVERFLOW, SINK, VALID, open_sink
from oneshot_ml2.spaces.full.sram import LAYOUT, holds, lay_out
from oneshot_ml2.spaces.full.tiles import input_channels, narrowest
from oneshot_ml2.vta.nest import MAX_SIZE, Nest
from oneshot_ml2.vta.reasons import Reason

DMA_PATTERN = int(Reason.DMA_PATTERN)
ACC_HAZARD = int(Reason.ACC_HAZARD)
SRAM_OVERFLOW = int(Reason.SRAM_OVERFLOW)

# Pads of a LOAD have 4 bits.
_MAX_PAD = 15
# Rows for which another thread is worth its start.
_PART = 2048

# A way to cut an axis: its tiles and tap items (first and number) where all cuts' are together; the largest extent in
# SRAM, why its pads cannot be loaded, and whether a tile meets no real input.
CUT = np.dtype(
    [(name, np.int64) for name in ("tile", "tiles", "item", "items", "largest", "pads", "empty")],
)


@part()
def measure_cut(tiles, pad, cut):  # type: ignore[no-untyped-def]
    """Fill in what static checks need of a `axes.tile_axis` beside its `axes.tap_items`."""
    cut.largest = cut.empty = 0
    cut.pads = VALID
    for i in range(len(tiles)):
        tile = tiles[i]
        cut.largest = max(cut.largest, tile.held)
        if tile.groups == 0:
            cut.empty = 1
        if pad == PAD_LOAD and cut.pads == VALID:
            if tile.before > _MAX_PAD or tile.after > _MAX_PAD:
                cut.pads = FIELD_OVERFLOW
            elif tile.held - tile.before - tile.after <= 0:
                cut.pads = DMA_PATTERN


@part()
def static_reason(nest, schedule, sp_tiles, row_cut, row_items, col_cut, col_items, layouts):  # type: ignore[no-untyped-def]
    """Why a schedule is invalid, as far as sizes decide: SRAM capacity, DMA patterns, instruction fields, hazards.

    ``row_cut`` ... ``col_items``: `CUT` and `axes.tap_items` of both axes; ``layouts``: work array
    `sram.LAYOUT` (1,).
    """
    plane = row_cut.largest * col_cut.largest
    lay_out(nest, schedule, plane, sp_tiles, layouts[0])
    if not holds(nest, schedule, plane, layouts[0]):
        return SRAM_OVERFLOW
    if nest.bias and schedule.bias == BIAS_GEMM and not nest.bias_gemm_fits:
        return FIELD_OVERFLOW
    if row_cut.pads != VALID:
        return row_cut.pads
    if col_cut.pads != VALID:
        return col_cut.pads
    channels = input_channels(nest, schedule)[0]
    if not nest.minor and not moves_apart(nest):
        if nest.ih * nest.iw > MAX_SIZE and channels > 1:
            return FIELD_OVERFLOW
        if nest.oh * nest.ow > MAX_SIZE and schedule.tile_co > 1:
            return FIELD_OVERFLOW
    if nest.pool:
        # No pass writes a slot twice.
        return VALID
    soon = recurrence(schedule.fold, narrowest(nest, schedule), schedule.tile_ci, row_items, col_items)
    return ACC_HAZARD if soon < max(RECURRENCE, nest.acc_distance) else VALID


@part()
def reason_by_sizes(nest, schedule, rows, row_taps, cols, col_taps, cuts, layouts):  # type: ignore[no-untyped-def]
    """`static_reason` of a schedule with both axes cut (`axes.cut_axes`); fills in ``cuts``, `CUT` (2,)."""
    measure_cut(rows, schedule.pad, cuts[0])
    measure_cut(cols, schedule.pad, cuts[1])
    row_items, col_items = tap_items(rows, row_taps), tap_items(cols, col_taps)
    sp_tiles = nest.nb * len(rows) * len(cols)
    return static_reason(nest, schedule, sp_tiles, cuts[0], row_items, cuts[1], col_items, layouts)


@njit(cache=True, nogil=True)
def recurs_always(nest, batch):  # type: ignore[no-untyped-def]
    """Whether `static_reason` refuses all of some canonical schedules, and some for their hazards."""
    recurs = False
    cuts, layouts = np.zeros(2, dtype=CUT), np.empty(1, dtype=LAYOUT)
    for i in range(len(batch)):
        rows, row_taps, cols, col_taps, _ = cut_axes(nest, batch[i])
        reason = reason_by_sizes(nest, batch[i], rows, row_taps, cols, col_taps, cuts, layouts)
        if reason == VALID:
            return False
        recurs = recurs or reason == ACC_HAZARD
    return recurs


@part()
def _cut_axis(loop, batch, of_rows):  # type: ignore[no-untyped-def]
    """All ways in which the schedules of a batch cut one axis, each once.

    Returns which cut each schedule has, int64 (n,); the `CUT` (cuts,); all their `TILE`, and all their `ITEM`.
    """
    which = np.empty(len(batch), dtype=np.int64)
    known = np.full(2 * (loop.out + 1), -1, dtype=np.int64)
    count = tiles = np.int64(0)
    for i in range(len(batch)):
        extent = min(batch[i].tile_h if of_rows else batch[i].tile_w, loop.out)
        key = 2 * extent + (batch[i].pad == PAD_LOAD)
        if known[key] < 0:
            known[key] = count
            count += 1
            tiles += min(ceil_div(loop.out, extent), most_tiles(loop.kernel) + 1)
        which[i] = known[key]
    cuts = np.zeros(count, dtype=CUT)
    all_tiles = np.empty(tiles, dtype=TILE)
    all_items = np.empty(tiles * loop.kernel, dtype=ITEM)
    tiles = items = np.int64(0)
    for key in range(len(known)):
        if known[key] < 0:
            continue
        pad = PAD_LOAD if key & 1 else PAD_SKIP
        step = load_step(loop.kernel, loop.stride, pad) if of_rows else np.int64(1)
        axis, taps = tile_axis(loop, step, key // 2, pad)
        own = tap_items(axis, taps)
        cut = cuts[known[key]]
        measure_cut(axis, pad, cut)
        cut.tile, cut.tiles, cut.item, cut.items = tiles, len(axis), items, len(own)
        # In loops: numba compiles what assigns slices anew for each type, with the texts of its errors.
        for i in range(cut.tiles):
            all_tiles[tiles + i] = axis[i]
        for i in range(cut.items):
            all_items[items + i] = own[i]
        tiles += cut.tiles
        items += cut.items
    return which, cuts, all_tiles, all_items


@njit(cache=True, nogil=True)
def _reasons(nest, batch, tables, reason, counts):  # type: ignore[no-untyped-def]
    """`reasons` and `counts` of a batch, which is made canonical in place; ``tables``: `_tables`."""
    sinks, records, repeats, layouts = tables
    into = sinks[0]
    canonical_rows(nest, batch)
    row_which, row_cuts, all_rows, row_items = _cut_axis(row_loop(nest), batch, np.int64(1))
    col_which, col_cuts, all_cols, col_items = _cut_axis(col_loop(nest), batch, np.int64(0))
    no_taps = np.empty((1, 0), dtype=TAP)
    for i in range(len(batch)):
        row_cut, col_cut = row_cuts[row_which[i]], col_cuts[col_which[i]]
        rows = all_rows[row_cut.tile : row_cut.tile + row_cut.tiles]
        cols = all_cols[col_cut.tile : col_cut.tile + col_cut.tiles]
        why = static_reason(
            nest, batch[i], nest.nb * len(rows) * len(cols),
            row_cut, row_items[row_cut.item : row_cut.item + row_cut.items],
            col_cut, col_items[col_cut.item : col_cut.item + col_cut.items], layouts,
        )  # fmt: skip
        if why == VALID:
            open_sink(nest, into, False)
            why = order.walk_program(
                nest, batch[i], rows, no_taps, cols, no_taps, row_cut, col_cut, records, repeats, layouts, into
            )
            counts[i, 0], counts[i, 1] = into.insns, into.uops
        reason[i] = why


def _tables() -> tuple[NDArray[Any], ...]:
    """Work arrays of counting, for one thread."""
    return (np.zeros(1, dtype=SINK), steps.step_table(), order.repeat_table(), np.empty(1, dtype=LAYOUT))


def _part(nest: Nest, batch: Schedules, reason: NDArray[np.uint8], counts: NDArray[np.int64]) -> None:
    _reasons(nest, batch, _tables(), reason, counts)


def counts(nest: Nest, values: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """`Reason` of each row of knob values (n, knobs), uint8 (n,), and of valid ones instructions and micro-ops (n, 2).

    On all cores; the input is left alone.
    """
    batch = schedules(np.array(values, dtype=np.int64, order="C"))
    reason, found = np.zeros(len(batch), dtype=np.uint8), np.zeros((len(batch), 2), dtype=np.int64)
    parts = min(os.cpu_count() or 1, -(-len(batch) // _PART))
    if parts <= 1:
        _part(nest, batch, reason, found)
        return reason, found

    def part(begin: int, end: int) -> None:
        _part(nest, batch[begin:end], reason[begin:end], found[begin:end])

    # Interleaved rows would make the parts' work equal, but not contiguous; many small parts do nearly as well.
    in_parallel(part, len(batch), 4 * parts)
    return reason, found


def reasons(nest: Nest, values: NDArray[np.int64]) -> NDArray[np.uint8]:
    """`Reason` of each row of knob values (n, knobs), uint8 (n,), on all cores; the input is left alone."""
    return counts(nest, values)[0]
