"""Steps of a `full` schedule: records of what each loads and reduces, and which earlier steps it must wait for.

A step is (output tile, reduction chunk, part of the opening) in program order: a group of LOADs and the GEMMs that
read them. `walk` makes instructions of the records.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.kernels import njit
from oneshot_ml2.common.parts import part
from oneshot_ml2.spaces.full.knobs import BIAS_GEMM, HEAD_WHOLE, INP_MODE, SET, STREAM, WGT_MODE, outer_is_co
from oneshot_ml2.spaces.full.tiles import channel_tile, channel_tiles, head_parts, is_tapered
from oneshot_ml2.vta.nest import MAX_INSNS

# Steps beyond which a schedule's records are not made: each takes an instruction, and memory.
MAX_STEPS = 32 * MAX_INSNS
# Tokens that the counter of a queue holds (Semaphore.scala).
MAX_TOKENS = 255

# A step: output tile, its channel and spatial tile; first input channel and how many; first output channel of the part
# within the tile and how many; SRAM bases of the input chunk and of the part's weights; ring or set slots of both; what
# the step loads (bits below); whether it is its tile's last; the last step whose reads its loads must wait for (running
# maximum, -1 none); whether a later step waits for this one.
STEP = np.dtype(
    [
        (name, np.int64)
        for name in (
            "tile", "co_tile", "sp_tile", "ci_first", "ci", "co_first", "co", "inp_base", "wgt_base", "inp_slot",
            "wgt_slot", "loads", "last", "needs", "pushes",
        )
    ]
)  # fmt: skip
LOADS_INP, LOADS_WGT, LOADS_RES, LOADS_CONST = 1, 2, 4, 8
# Records of `STEP`.
Steps: TypeAlias = NDArray[Any]


def step_table() -> Steps:
    """Work array of step records, `STEP` (n,)."""
    return np.empty(MAX_INSNS, dtype=STEP)


@part()
def tile_steps(nest, schedule, sram, records, k, t, c, s, plane, starts, inp_ring, wgt_ring):  # type: ignore[no-untyped-def]
    """Records of the steps of output tile ``t`` from row ``k`` on, but for needs and pushes.

    ``sram``: its `sram.LAYOUT`; ``plane``: inputs of a channel of the spatial tile; ``starts``: its
    chunks; the rings count the chunks streamed before. Returns (row after the last, rings after the tile).
    """
    flow = schedule.dataflow
    inp_mode, wgt_mode = INP_MODE[flow], WGT_MODE[flow]
    inp_buf, wgt_buf = schedule.inp_buffers, schedule.wgt_buffers
    taps = nest.kh * nest.kw
    _, nco, group, within = channel_tile(nest, schedule, c)
    part, parts = nco, 1
    chunks = len(starts) - 1
    inputs = s * nest.groups + group
    inp_slot = (inputs % inp_buf) if inp_mode == SET else inputs
    wgt_slot = (c % wgt_buf) if wgt_mode == SET else c
    loads_inp = plane > 0 and (inp_mode == STREAM or within == 0)
    loads_wgt = t == 0 if nest.pool else (wgt_mode == STREAM or s == 0)
    for j in range(chunks):
        ci0 = starts[j]
        nci = starts[j + 1] - ci0
        parts = 1
        if t == 0 and j == 0:
            part, parts = head_parts(nco, schedule.head)
        if inp_mode == STREAM:
            inp_slot = inp_ring % inp_buf
            inp_base = inp_slot * sram.inp_slot
            inp_ring += plane > 0
        else:
            inp_base = inp_slot * sram.inp_slot + ci0 * plane
        if nest.pool:
            wgt_base = np.int64(0)
        elif wgt_mode == STREAM:
            wgt_slot = wgt_ring % wgt_buf
            wgt_base = wgt_slot * sram.wgt_slot
            wgt_ring += 1
        else:
            wgt_base = wgt_slot * sram.wgt_slot + ci0 * nco * taps
        for index in range(parts):
            q0 = index * part if parts > 1 else 0
            last = j == chunks - 1 and index == parts - 1
            loads = 0
            if loads_inp and index == 0:
                loads |= LOADS_INP
            if loads_wgt:
                loads |= LOADS_WGT
            if last and nest.residual:
                loads |= LOADS_RES
            if last and t == 0 and nest.bias and schedule.bias == BIAS_GEMM:
                loads |= LOADS_CONST
            step = records[k]
            step.tile = t
            step.co_tile = c
            step.sp_tile = s
            step.ci_first = ci0
            step.ci = nci
            step.co_first = q0
            step.co = nco - q0 if index == parts - 1 else part
            step.inp_base = inp_base
            step.wgt_base = 0 if nest.pool else wgt_base + q0 * nci * taps
            step.inp_slot = inp_slot
            step.wgt_slot = wgt_slot
            step.loads = loads
            step.last = last
            step.needs = -1
            step.pushes = 0
            k += 1
    return k, inp_ring, wgt_ring


@njit(cache=True, nogil=True)
def step_count(nest, schedule, sp_tiles, co_tiles, whole, tapered):  # type: ignore[no-untyped-def]
    """How many step records a schedule has; ``whole``, ``tapered``: its `tiles.chunk_starts`."""
    flow, tiles = schedule.dataflow, sp_tiles * co_tiles
    # As `tiles.is_tapered` says of each tile.
    tapers = np.int64(0)
    if schedule.head != HEAD_WHOLE:
        tapers = np.int64(1)
        if nest.minor and INP_MODE[flow] != STREAM:
            tapers = tiles
        elif WGT_MODE[flow] != STREAM:
            tapers = sp_tiles
    parts = head_parts(min(schedule.tile_co, nest.co), schedule.head)[1]
    return tapers * (len(tapered) - 1) + (tiles - tapers) * (len(whole) - 1) + parts - 1


@njit(cache=True, nogil=True)
def record_steps(nest, schedule, sram, rows, cols, whole, tapered, records):  # type: ignore[no-untyped-def]
    """Records of all steps; ``rows``, ``cols``: `axes.TILE` of both axes; returns how many."""
    n_h, n_w = len(rows), len(cols)
    sp_tiles = nest.nb * n_h * n_w
    co_tiles = channel_tiles(nest, schedule)
    co_outer = outer_is_co(schedule.dataflow)
    inp_ring = wgt_ring = np.int64(0)
    k = np.int64(0)
    for t in range(sp_tiles * co_tiles):
        if co_outer:
            c, s = t // sp_tiles, t % sp_tiles
        else:
            s, c = t // co_tiles, t % co_tiles
        starts = tapered if is_tapered(nest, schedule, c, s) else whole
        plane = rows[(s // n_w) % n_h].held * cols[s % n_w].held
        k, inp_ring, wgt_ring = tile_steps(nest, schedule, sram, records, k, t, c, s, plane, starts, inp_ring, wgt_ring)
    _waits(nest, schedule, rows, cols, records[:k])
    return k


@part()
def _waits(nest, schedule, rows, cols, records):  # type: ignore[no-untyped-def]
    """Fill needs and pushes: the loads of a step overwrite what earlier steps read, and must wait for those."""
    n_h, n_w = len(rows), len(cols)
    inp_mode, wgt_mode = INP_MODE[schedule.dataflow], WGT_MODE[schedule.dataflow]
    # The last step that read each channel of each set (of a ring's slot: the first column).
    inp_read = np.full((schedule.inp_buffers, nest.ci), -1, dtype=np.int64)
    wgt_read = np.full((schedule.wgt_buffers, nest.ci), -1, dtype=np.int64)
    res_read = np.full(schedule.inp_buffers, -1, dtype=np.int64)
    # Extent a channel of each set last had, and what a set of another extent must wait for.
    inp_extent = np.zeros(schedule.inp_buffers, dtype=np.int64)
    wgt_extent = np.zeros(schedule.wgt_buffers, dtype=np.int64)
    inp_wait = wgt_wait = running = tile = np.int64(-1)
    plane = np.int64(0)
    # The parts of the opening read the same inputs; the last of them stands for all.
    opening = head_parts(min(schedule.tile_co, nest.co), schedule.head)[1] - 1
    for k in range(opening, len(records)):
        step = records[k]
        if step.tile != tile:
            tile = step.tile
            plane = rows[(step.sp_tile // n_w) % n_h].held * cols[step.sp_tile % n_w].held
            _, width, _, within = channel_tile(nest, schedule, step.co_tile)
            if inp_mode == SET and within == 0 and plane > 0:
                inp_wait = _set_wait(inp_read, inp_extent, step.inp_slot, plane)
            if wgt_mode == SET and step.sp_tile == 0:
                wgt_wait = _set_wait(wgt_read, wgt_extent, step.wgt_slot, width)
        wait = np.int64(-1)
        if plane > 0 or inp_mode == SET:
            wait = max(wait, _read_wait(inp_mode, inp_read, step.inp_slot, step, step.loads & LOADS_INP, inp_wait, k))
        if not nest.pool:
            wait = max(wait, _read_wait(wgt_mode, wgt_read, step.wgt_slot, step, step.loads & LOADS_WGT, wgt_wait, k))
        if step.loads & LOADS_RES:
            slot = tile % schedule.inp_buffers
            wait = max(wait, res_read[slot])
            res_read[slot] = k
        if wait > running:
            running = wait
            records[wait].pushes = 1
        step.needs = running


@part()
def _set_wait(read, extents, slot, extent):  # type: ignore[no-untyped-def]
    """The step that a set of another extent than the slot had must wait for, or -1; the slot now has this one."""
    if extents[slot] == extent:
        return np.int64(-1)
    extents[slot] = extent
    last = np.int64(-1)
    for i in range(read.shape[1]):
        last = max(last, read[slot, i])
    return last


@part()
def _read_wait(mode, read, slot, step, loads, set_wait, k):  # type: ignore[no-untyped-def]
    """Notes that step ``k`` reads its chunk of an operand; returns the step that its ``loads`` must wait for, or -1."""
    wait = np.int64(-1)
    if mode == STREAM:
        wait = read[slot, 0]
        read[slot, 0] = k
    elif mode == SET:
        for i in range(step.ci_first, step.ci_first + step.ci):
            if loads:
                wait = max(wait, set_wait, read[slot, i])
            read[slot, i] = k
    return wait


@part()
def tokens_fit(records):  # type: ignore[no-untyped-def]
    """Whether a counter holds the tokens outstanding, whatever the timing."""
    steps = len(records)
    loaded = np.zeros(steps + 1, dtype=np.int64)
    marked = np.zeros(steps + 1, dtype=np.int64)
    for i in range(steps):
        loaded[i + 1] = loaded[i] + (records[i].loads != 0)
        marked[i + 1] = marked[i] + records[i].pushes
    granted = np.int64(-1)
    for i in range(steps):
        if records[i].loads:
            granted = records[i].needs
            if loaded[i + 1] - loaded[granted + 1] > MAX_TOKENS:
                return False
        if marked[i + 1] - marked[granted + 1] > MAX_TOKENS:
            return False
    return True


@part()
def tokens_surely_fit(nest, schedule, sp_tiles, co_tiles, chunks, empty):  # type: ignore[no-untyped-def]
    """A cheap proof that `tokens_fit`: every step waits for one a few before it, or few steps load at all.

    ``chunks``: of a tile, at most; ``empty``: whether some tile reads no input.
    """
    flow = schedule.dataflow
    parts = head_parts(min(schedule.tile_co, nest.co), schedule.head)[1]
    if WGT_MODE[flow] == STREAM and not nest.pool:
        return schedule.wgt_buffers + parts <= MAX_TOKENS
    if INP_MODE[flow] == STREAM and not empty:
        return schedule.inp_buffers + parts <= MAX_TOKENS
    fresh = sp_tiles * co_tiles
    if INP_MODE[flow] != STREAM:
        fresh = sp_tiles * nest.groups + co_tiles
    return fresh * chunks + parts + (sp_tiles * co_tiles if nest.residual else 0) <= MAX_TOKENS
