"""A `full` program: its output tiles in their order, with those that repeat another's counted at once."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.parts import part
from oneshot_ml2.spaces.full.axes import load_step
from oneshot_ml2.spaces.full.knobs import (
    ALL,
    BIAS_LOAD,
    HEAD_WHOLE,
    INP_MODE,
    PAD_LOAD,
    STREAM,
    WGT_MODE,
    ceil_div,
    outer_is_co,
)
from oneshot_ml2.spaces.full.shapes import fields_surely_fit, input_is_compact
from oneshot_ml2.spaces.full.sink import INSTRUCTION_OVERFLOW, VALID, claim, flag, mix, move, nop
from oneshot_ml2.spaces.full.sram import lay_out
from oneshot_ml2.spaces.full.steps import (
    MAX_STEPS,
    STEP,
    record_steps,
    step_count,
    tile_steps,
    tokens_fit,
    tokens_surely_fit,
)
from oneshot_ml2.spaces.full.tiles import (
    channel_tile,
    channel_tiles,
    chunk_starts,
    head_parts,
    is_tapered,
    too_many_tiles,
)
from oneshot_ml2.spaces.full.walk import tile_at, walk_tile
from oneshot_ml2.vta.nest import MAX_INSNS
from oneshot_ml2.vta.program import Flag, Memory, Opcode
from oneshot_ml2.vta.reasons import Reason
from oneshot_ml2.vta.writing import clear

TOKEN_OVERFLOW = int(Reason.TOKEN_OVERFLOW)
# More than a schedule can have tiles (`tiles.too_many_tiles`), so that the hash table of tiles is never full.
_TABLE = MAX_INSNS
# A tile that has been counted: a word that tells it from those that do not repeat it, its instructions, and its program
# (`sink.STATE`).
REPEAT = np.dtype([("word", np.int64), ("insns", np.int64), ("stamp", np.int64)])


class _Radices(NamedTuple):
    """Of the digits of a word that tells apart all tiles but those that repeat another's kernels and instructions."""

    acc: int
    inp: int
    wgt: int
    res: int
    co: int
    places: int


class _Place(NamedTuple):
    """Where a program is: output tile, its channel and spatial tile, its row and column of tiles; and what the rings
    count, of chunks of inputs and of weights, of accumulators and of residuals."""

    tile: int
    co: int
    sp: int
    row: int
    col: int
    inp: int
    wgt: int
    acc: int
    res: int


def repeat_table() -> NDArray[Any]:
    """A hash table of tiles, `REPEAT` (n,); programs of which every tile is walked need none."""
    return np.zeros(_TABLE, dtype=REPEAT)


@part()
def walk_program(nest, schedule, rows, row_taps, cols, col_taps, row_cut, col_cut, records, repeats, layouts, sink):  # type: ignore[no-untyped-def]
    """A program that has no static reason against it, put into a sink; returns why it is invalid, or VALID.

    ``rows``, ``cols``: `axes.TILE` of both axes; ``row_taps``, ``col_taps``: their `axes.TAP` (only writing needs more
    than one row of anything); ``row_cut``, ``col_cut``: their `legality.CUT`; ``records``: `steps.step_table`;
    ``repeats``: `repeat_table`; ``layouts``: `sram.LAYOUT` (1,), overwritten.
    """
    n_h, n_w = len(rows), len(cols)
    sp_tiles, co_tiles = nest.nb * n_h * n_w, channel_tiles(nest, schedule)
    tiles = sp_tiles * co_tiles
    if too_many_tiles(tiles, ceil_div(nest.ci, schedule.tile_ci)):
        return INSTRUCTION_OVERFLOW
    whole = chunk_starts(nest.ci, schedule.tile_ci, HEAD_WHOLE)
    tapered = chunk_starts(nest.ci, schedule.tile_ci, schedule.head) if schedule.head != HEAD_WHOLE else whole
    count = step_count(nest, schedule, sp_tiles, co_tiles, whole, tapered)
    if count > MAX_STEPS:
        return INSTRUCTION_OVERFLOW
    sram = layouts[0]
    lay_out(nest, schedule, row_cut.largest * col_cut.largest, sp_tiles, sram)
    writes, empty = sink.writes != 0, row_cut.empty + col_cut.empty > 0
    fits = tokens_surely_fit(nest, schedule, sp_tiles, co_tiles, max(len(whole), len(tapered)) - 1, empty)
    # What waits for a step is written, and decides whether one without GEMMs needs a NOP.
    recorded = writes or empty or not fits
    if len(records) < count:
        records = np.empty(count, dtype=STEP)
    if recorded:
        record_steps(nest, schedule, sram, rows, cols, whole, tapered, records)
        if not fits and not tokens_fit(records[:count]):
            return TOKEN_OVERFLOW

    radices = _radices(nest, schedule, sp_tiles, co_tiles, n_h * n_w)
    repeating = not writes and not empty and _words(radices) < 2.0**62 and fields_surely_fit(nest)
    co_outer = outer_is_co(schedule.dataflow)
    opening = head_parts(min(schedule.tile_co, nest.co), schedule.head)[1] - 1
    zero = np.int64(0)
    at = _Place(zero, zero, zero, zero, zero, zero, zero, zero, zero)
    uop_load = sink.insns
    move(sink, Memory.UOP, 1, (1, 1, 1), 0, 0, nest.dram_uop, 0, (0, 0, 0, 0))
    k = zero
    for _ in range(tiles):
        taper = is_tapered(nest, schedule, at.co, at.sp)
        starts = tapered if taper else whole
        row, col = rows[at.row], cols[at.col]
        slot, word = np.int64(-1), zero
        if repeating and 0 < at.tile < tiles - 1:
            word = _word(nest, schedule, at, row, col, taper, radices) * (n_h * n_w) + row.alike * n_w + col.alike
            slot = _find(repeats, word, sink.stamp)
        steps = len(starts) - 1 + (opening if at.tile == 0 else 0)
        if slot >= 0 and repeats[slot].stamp == sink.stamp:
            claim(sink, repeats[slot].insns)
        else:
            first = k if recorded else zero
            tile = tile_at(nest, schedule, sram, at.tile, at.co, at.sp, n_h * n_w, row, col)
            if not recorded:
                tile_steps(
                    nest, schedule, sram, records, first, at.tile, at.co, at.sp, tile.plane, starts, at.inp, at.wgt
                )
            signature = row.alike * n_w + col.alike
            row_at, col_at = (at.row, at.col) if writes else (zero, zero)
            before = sink.insns
            walk_tile(
                nest, schedule, sram, tile, row, col, row_taps[row_at], col_taps[col_at], signature, tiles,
                records[first : first + steps], sink,
            )  # fmt: skip
            if slot >= 0:
                repeat = repeats[slot]
                repeat.word, repeat.insns, repeat.stamp = word, sink.insns - before, sink.stamp
        if sink.fail != VALID:
            return sink.fail
        k += steps
        at = _next(schedule, at, len(starts) - 1, co_outer, sp_tiles, co_tiles, n_h, n_w)
    _close(sink, uop_load)
    return sink.fail


@part()
def _next(schedule, at, chunks, co_outer, sp_tiles, co_tiles, n_h, n_w):  # type: ignore[no-untyped-def]
    """The place after the ``chunks`` of the tile at a place."""
    co, sp, row, col = at.co, at.sp, at.row, at.col
    if not co_outer:
        co += 1
        if co == co_tiles:
            co = np.int64(0)
    if co_outer or co == 0:
        sp += 1
        col += 1
        if col == n_w:
            col = np.int64(0)
            row = row + 1 if row + 1 < n_h else np.int64(0)
        if sp == sp_tiles:
            sp = np.int64(0)
            co += co_outer
    return _Place(
        at.tile + 1,
        co,
        sp,
        row,
        col,
        (at.inp + chunks) % schedule.inp_buffers,
        (at.wgt + chunks) % schedule.wgt_buffers,
        at.acc + 1 if at.acc + 1 < schedule.acc_buffers else np.int64(0),
        at.res + 1 if at.res + 1 < schedule.inp_buffers else np.int64(0),
    )


@part()
def _close(sink, uop_load):  # type: ignore[no-untyped-def]
    """The last wait for a store, FINISH, and how many micro-ops the first instruction loads."""
    last = sink.insns
    nop(sink)
    insn, writes = claim(sink, 1)
    if writes:
        flag(sink, last, Flag.POP_NEXT)
        clear(sink.rows[insn])
        sink.rows[insn].op = Opcode.FINISH
        sink.rows[uop_load].x = sink.rows[uop_load].stride = sink.uops


@part()
def _own_biases(nest, schedule) -> bool:  # type: ignore[no-untyped-def]
    """Whether every channel tile has micro-ops of its own, which add its biases."""
    return bool(nest.bias and schedule.bias != BIAS_LOAD)


@part()
def _radices(nest, schedule, sp_tiles, co_tiles, places):  # type: ignore[no-untyped-def]
    inp = sp_tiles * nest.groups if INP_MODE[schedule.dataflow] == ALL else schedule.inp_buffers
    wgt = co_tiles if WGT_MODE[schedule.dataflow] == ALL else schedule.wgt_buffers
    res = schedule.inp_buffers if nest.residual else 1
    co = co_tiles if _own_biases(nest, schedule) else 2
    return _Radices(schedule.acc_buffers, inp, wgt, res, co, places)


@part()
def _words(radices) -> float:  # type: ignore[no-untyped-def]
    """How many words there are."""
    return 16.0 * radices.acc * radices.inp * radices.wgt * radices.res * radices.co * radices.places


@part()
def _word(nest, schedule, at, row, col, taper, radices):  # type: ignore[no-untyped-def]
    """The word of the tile at a place."""
    inp_mode, wgt_mode = INP_MODE[schedule.dataflow], WGT_MODE[schedule.dataflow]
    _, width, group, within = channel_tile(nest, schedule, at.co)
    inputs = at.sp * nest.groups + group
    loads_inp = inp_mode == STREAM or within == 0
    loads_wgt = wgt_mode == STREAM or at.sp == 0
    step = load_step(nest.kh, nest.sh, schedule.pad)
    pads = row.before + row.after + col.before + col.after if schedule.pad == PAD_LOAD else np.int64(0)
    compact = input_is_compact(nest, row.held, col.held, pads, step)
    word = np.int64(taper) * 8 + loads_inp * 4 + loads_wgt * 2 + compact
    word = word * radices.acc + at.acc
    word = word * radices.inp + (at.inp if inp_mode == STREAM else inputs % radices.inp)
    word = word * radices.wgt + (at.wgt if wgt_mode == STREAM else at.co % radices.wgt)
    word = word * radices.res + (at.res if nest.residual else 0)
    # Biases make micro-ops of a channel tile's own; else tiles of as many channels have the same.
    word = word * radices.co + (at.co if _own_biases(nest, schedule) else np.int64(width < schedule.tile_co))
    return word


@part()
def _find(repeats, word, stamp):  # type: ignore[no-untyped-def]
    """Slot of a tile's word, or the free one where it belongs."""
    slot = mix(word) & (_TABLE - 1)
    while repeats[slot].stamp == stamp and repeats[slot].word != word:
        slot = (slot + 1) & (_TABLE - 1)
    return slot
