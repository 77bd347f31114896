"""Geometry of a `full` schedule: tiles, chunks, tap groups, SRAM layout and what follows in closed form.

Every formula about a schedule stands here once; `emit` only turns plans into instructions.
A schedule is an int64 row of knob values (the ``K_*`` columns).
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from oneshot_ml2.schedule import Reason
from oneshot_ml2.vta import nest as N

KNOBS = (
    "tile_co",
    "tile_h",
    "tile_w",
    "tile_ci",
    "dataflow",
    "inp_buffers",
    "wgt_buffers",
    "acc_buffers",
    "fold",
    "pad",
    "head",
    "drain",
    "bias",
)
K_CO, K_H, K_W, K_CI, K_FLOW, K_INP_BUF, K_WGT_BUF, K_ACC_BUF, K_FOLD, K_PAD, K_HEAD, K_DRAIN, K_BIAS = range(13)

# Dataflow: which loop is outer and which operand stays resident while it is reused.
FLOW_CO_STREAM, FLOW_CO_WGT, FLOW_CO_WGT_ALL_INP, FLOW_SP_INP, FLOW_SP_INP_ALL_WGT, FLOW_SP_ALL_WGT = range(6)
# How an operand is held: a ring of chunks, the set of the current outer tile, or everything.
STREAM, SET, ALL = 0, 1, 2
_INP_MODE = np.array([STREAM, STREAM, ALL, SET, SET, STREAM], dtype=np.int64)
_WGT_MODE = np.array([STREAM, SET, SET, STREAM, ALL, ALL], dtype=np.int64)

FOLD_SPACE, FOLD_CI_ROWS, FOLD_CI_CO = 0, 1, 2
PAD_SKIP, PAD_LOAD = 0, 1
HEAD_WHOLE, HEAD_SINGLE, HEAD_DOUBLING = 0, 1, 2
BIAS_ADD, BIAS_LOAD, BIAS_GEMM = 0, 1, 2
# Candidates of the drain knob: into how many pieces the exposed stores are cut.
DRAIN = (1, 4, 16)

# Columns of `tile_axis`: first output, outputs, first loaded input, inputs in SRAM, pads before and after,
# taps that touch real inputs, distinct tap counts (groups), class of equal geometry.
A_FIRST, A_COUNT, A_LOAD, A_SIZE, A_BEFORE, A_AFTER, A_TAPS, A_GROUPS, A_CLASS = range(9)

VALID = int(Reason.VALID)
SRAM_OVERFLOW = int(Reason.SRAM_OVERFLOW)
FIELD_OVERFLOW = int(Reason.FIELD_OVERFLOW)
DMA_PATTERN = int(Reason.DMA_PATTERN)

_MAX_SIZE = 65535
_MAX_PAD = 15


@njit(cache=True, nogil=True)
def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@njit(cache=True, nogil=True)
def outer_is_co(flow: int) -> bool:
    """Whether output channels are the outer tile loop (else the spatial tiles are)."""
    return flow <= FLOW_CO_WGT_ALL_INP


@njit(cache=True, nogil=True)
def load_step(kernel: int, stride: int, pad: int, rows: bool) -> int:
    """DRAM rows per loaded row: a one-row kernel reads only every stride-th row; columns are never skipped."""
    return stride if rows and kernel == 1 and pad == PAD_SKIP else 1


@njit(cache=True, nogil=True)
def tile_axis(out, size, kernel, stride, dilation, lead, step, tile, pad):  # type: ignore[no-untyped-def]
    """One spatial axis cut into tiles.

    Returns int64 (tiles, 9), columns ``A_*``, and int64 (tiles, kernel, 2): for every tap the first output
    of the tile whose input is real and how many such outputs there are (all of them when pads are loaded).
    """
    n = ceil_div(out, tile)
    axis = np.zeros((n, 9), dtype=np.int64)
    taps = np.zeros((n, kernel, 2), dtype=np.int64)
    for i in range(n):
        first = i * tile
        count = min(tile, out - first)
        axis[i, A_FIRST] = first
        axis[i, A_COUNT] = count
        low, high = size, -1
        for k in range(kernel):
            offset = k * dilation - lead
            begin, end = first, first + count
            if pad == PAD_SKIP:
                begin = max(begin, ceil_div(-offset, stride))
                end = min(end, (size - 1 - offset) // stride + 1)
            taps[i, k, 0] = begin
            taps[i, k, 1] = max(end - begin, 0)
            if end > begin:
                axis[i, A_TAPS] += end - begin
                low = min(low, begin * stride + offset)
                high = max(high, (end - 1) * stride + offset)
                fresh = 1
                for other in range(k):
                    if taps[i, other, 1] == end - begin:
                        fresh = 0
                axis[i, A_GROUPS] += fresh
        if high >= low:
            axis[i, A_LOAD] = max(low, 0)
            axis[i, A_SIZE] = (high - low) // step + 1
            axis[i, A_BEFORE] = max(-low, 0)
            axis[i, A_AFTER] = max(high - (size - 1), 0)
        axis[i, A_CLASS] = i
        for other in range(i):
            if axis[other, A_CLASS] != other or axis[other, A_COUNT] != count or axis[other, A_SIZE] != axis[i, A_SIZE]:
                continue
            same = True
            for k in range(kernel):
                count_k = taps[i, k, 1]
                if taps[other, k, 1] != count_k:
                    same = False
                elif count_k > 0:
                    here = tap_source(axis[i], taps[i, k, 0], k, stride, dilation, lead, step)
                    there = tap_source(axis[other], taps[other, k, 0], k, stride, dilation, lead, step)
                    if here != there or taps[i, k, 0] - first != taps[other, k, 0] - axis[other, A_FIRST]:
                        same = False
            if same:
                axis[i, A_CLASS] = other
                break
    return axis, taps


@njit(cache=True, nogil=True)
def tap_source(tile, output, tap, stride, dilation, lead, step):  # type: ignore[no-untyped-def]
    """Index within the loaded tile of the input that ``tap`` reads for ``output``."""
    return (output * stride + tap * dilation - lead - tile[A_LOAD] + tile[A_BEFORE]) // step


@njit(cache=True, nogil=True)
def chunk_starts(ci: int, chunk: int, head: int):  # type: ignore[no-untyped-def]
    """Input channels cut into reduction chunks: int64 (chunks + 1,) boundaries; ``head`` tapers the start."""
    starts = np.zeros(ci + 1, dtype=np.int64)
    n = 0
    size = chunk if head == HEAD_WHOLE else 1
    while starts[n] < ci:
        starts[n + 1] = min(starts[n] + size, ci)
        n += 1
        if head == HEAD_DOUBLING:
            size = min(2 * size, chunk)
    return starts[: n + 1]


@njit(cache=True, nogil=True)
def is_tapered(p, flow: int, head: int, co_tile: int, sp_tile: int) -> bool:  # type: ignore[no-untyped-def]
    """Whether an output tile uses the tapered chunks.

    Resident operands fix the chunks of every tile that shares them, because a chunk is compact in SRAM.
    """
    if head == HEAD_WHOLE:
        return False
    if p[N.MINOR] and _INP_MODE[flow] != STREAM:
        return True
    if _WGT_MODE[flow] != STREAM:
        return bool(co_tile == 0)
    return bool(co_tile == 0 and sp_tile == 0)


@njit(cache=True, nogil=True)
def pieces(p, co: int, rows: int, cols: int, drain: int):  # type: ignore[no-untyped-def]
    """(channel blocks, rows, columns) of a piece of an output tile whose last stages drain in about ``drain`` pieces."""
    if p[N.MINOR]:
        if cols > 1:
            return co, rows, ceil_div(cols, min(drain, cols))
        return ceil_div(co, min(drain, co)), rows, cols
    if drain <= co:
        return ceil_div(co, drain), rows, cols
    parts = ceil_div(drain, co)
    if rows > 1:
        return 1, ceil_div(rows, min(parts, rows)), cols
    return 1, rows, ceil_div(cols, min(parts, cols))


@njit(cache=True, nogil=True)
def drains(v, tile: int, tiles: int) -> int:  # type: ignore[no-untyped-def]
    """Drain pieces of a tile: only the last store is exposed, unless every tile waits for it."""
    return int(v[K_DRAIN]) if tile == tiles - 1 or v[K_ACC_BUF] == 1 else 1


@njit(cache=True, nogil=True)
def sram_layout(p, v, max_rows: int, max_cols: int, sp_tiles: int):  # type: ignore[no-untyped-def]
    """SRAM regions of a schedule in elements.

    Returns int64 (10,): input slot, input total, residual slot, residual base, constant, weight slot,
    identity, bias weights, ACC tile, ACC bias; and the totals of INP, WGT, ACC, int64 (3,).
    """
    ci, co, tco = p[N.CI], p[N.CO], v[K_CO]
    tci = v[K_CI]
    taps = p[N.KH] * p[N.KW]
    inp_mode, wgt_mode = _INP_MODE[v[K_FLOW]], _WGT_MODE[v[K_FLOW]]
    co_tiles = ceil_div(co, tco)
    at = np.zeros(10, dtype=np.int64)
    need = np.zeros(3, dtype=np.int64)
    plane = max_rows * max_cols
    if inp_mode == STREAM:
        at[0] = plane * tci
        need[0] = at[0] * v[K_INP_BUF]
    else:
        at[0] = plane * ci
        need[0] = at[0] * (v[K_INP_BUF] if inp_mode == SET else sp_tiles)
    at[1] = need[0]
    at[8] = tco * v[K_H] * v[K_W]
    if p[N.RES]:
        at[2] = at[8]
        at[3] = need[0]
        need[0] += at[2] * v[K_INP_BUF]
    if wgt_mode == STREAM:
        at[5] = tco * tci * taps
        need[1] = at[5] * v[K_WGT_BUF]
    else:
        at[5] = tco * ci * taps
        need[1] = at[5] * (v[K_WGT_BUF] if wgt_mode == SET else co_tiles)
    if p[N.RES]:
        at[6] = need[1]
        need[1] += 1
    need[2] = at[8] * v[K_ACC_BUF]
    if p[N.BIAS]:
        if v[K_BIAS] == BIAS_GEMM:
            at[4] = need[0]
            need[0] += 1
            at[7] = need[1]
            need[1] += co
        elif v[K_BIAS] == BIAS_ADD:
            at[9] = need[2]
            need[2] += co
    return at, need


@njit(cache=True, nogil=True)
def static_reason(p, v, rows, cols) -> int:  # type: ignore[no-untyped-def]
    """Why a schedule is invalid, as far as sizes alone decide: SRAM capacity, DMA patterns and instruction fields.

    ``rows``, ``cols``: `tile_axis` of its tiles.
    """
    sp_tiles = p[N.NB] * len(rows) * len(cols)
    max_rows, max_cols = rows[:, A_SIZE].max(), cols[:, A_SIZE].max()
    _, need = sram_layout(p, v, max_rows, max_cols, sp_tiles)
    if need[0] > p[N.INP_DEPTH] or need[1] > p[N.WGT_DEPTH] or need[2] > p[N.ACC_DEPTH]:
        return SRAM_OVERFLOW
    if p[N.BIAS] and v[K_BIAS] == BIAS_GEMM and not p[N.BIAS_GEMM_FITS]:
        return FIELD_OVERFLOW
    # One LOAD of a whole SRAM can be reported done before its data arrive (VTA reference, 6.3).
    chunk = v[K_CI]
    if max_rows * max_cols * chunk >= p[N.INP_DEPTH] or v[K_CO] * chunk * p[N.KH] * p[N.KW] >= p[N.WGT_DEPTH]:
        return SRAM_OVERFLOW
    if p[N.BIAS] and v[K_BIAS] == BIAS_LOAD and v[K_H] * v[K_W] * (v[K_CO] if p[N.MINOR] else 1) >= p[N.ACC_DEPTH]:
        return SRAM_OVERFLOW
    if v[K_PAD] == PAD_LOAD:
        for i in range(len(rows)):
            if rows[i, A_BEFORE] > _MAX_PAD or rows[i, A_AFTER] > _MAX_PAD:
                return FIELD_OVERFLOW
            if rows[i, A_SIZE] - rows[i, A_BEFORE] - rows[i, A_AFTER] <= 0:
                return DMA_PATTERN
        for i in range(len(cols)):
            if cols[i, A_BEFORE] > _MAX_PAD or cols[i, A_AFTER] > _MAX_PAD:
                return FIELD_OVERFLOW
            if cols[i, A_SIZE] - cols[i, A_BEFORE] - cols[i, A_AFTER] <= 0:
                return DMA_PATTERN
    taps = p[N.KH] * p[N.KW]
    if p[N.CI] * taps > _MAX_SIZE and chunk < p[N.CI]:
        return FIELD_OVERFLOW
    if p[N.IW] * p[N.SH] > _MAX_SIZE:
        return FIELD_OVERFLOW
    if not p[N.MINOR]:
        channels = max(chunk, 1)
        if p[N.IH] * p[N.IW] > _MAX_SIZE and channels > 1:
            return FIELD_OVERFLOW
        if p[N.OH] * p[N.OW] > _MAX_SIZE and v[K_CO] > 1:
            return FIELD_OVERFLOW
    return VALID


@njit(cache=True, nogil=True)
def axes(p, v):  # type: ignore[no-untyped-def]
    """`tile_axis` of the rows and of the columns of a schedule, and the row step of its loads."""
    step = load_step(p[N.KH], p[N.SH], v[K_PAD], True)
    rows, row_taps = tile_axis(p[N.OH], p[N.IH], p[N.KH], p[N.SH], p[N.DH], p[N.PT], step, v[K_H], v[K_PAD])
    cols, col_taps = tile_axis(p[N.OW], p[N.IW], p[N.KW], p[N.SW], p[N.DW], p[N.PL], 1, v[K_W], v[K_PAD])
    return rows, row_taps, cols, col_taps, step


@njit(cache=True, nogil=True)
def canonical_row(p, v):  # type: ignore[no-untyped-def]
    """Rewrite one row of knob values, in place, to the alias that stands for it; lowering starts here too."""
    co_tiles = ceil_div(p[N.CO], v[K_CO])
    rows, cols = ceil_div(p[N.OH], v[K_H]), ceil_div(p[N.OW], v[K_W])
    sp_tiles = p[N.NB] * rows * cols
    tiles = co_tiles * sp_tiles
    if p[N.BIAS] == 0:
        v[K_BIAS] = 0
    high_r = (p[N.OH] - 1) * p[N.SH] - p[N.PT] + (p[N.KH] - 1) * p[N.DH]
    high_c = (p[N.OW] - 1) * p[N.SW] - p[N.PL] + (p[N.KW] - 1) * p[N.DW]
    unpadded = p[N.PT] == 0 and p[N.PL] == 0 and high_r < p[N.IH] and high_c < p[N.IW]
    if unpadded and not (p[N.KH] == 1 and p[N.SH] > 1 and v[K_H] > 1):
        v[K_PAD] = PAD_SKIP
    if v[K_CI] == 1:
        v[K_HEAD] = HEAD_WHOLE
    elif v[K_HEAD] == HEAD_DOUBLING and p[N.CI] == 2:
        v[K_HEAD] = HEAD_SINGLE
    flow = v[K_FLOW]
    if v[K_HEAD] == HEAD_SINGLE:
        shared = co_tiles == 1 and (sp_tiles == 1 or _WGT_MODE[flow] != STREAM)
        if shared or (p[N.MINOR] and _INP_MODE[flow] != STREAM):
            # The taper is every tile's: the same as single channels throughout.
            v[K_CI] = 1
            v[K_HEAD] = HEAD_WHOLE
    one_chunk = v[K_CI] == p[N.CI] and v[K_HEAD] == HEAD_WHOLE
    if sp_tiles == 1 and one_chunk:
        if flow == FLOW_CO_WGT:
            flow = FLOW_CO_STREAM
        elif flow == FLOW_CO_WGT_ALL_INP:
            flow = FLOW_SP_INP
    if co_tiles == 1:
        if flow == FLOW_SP_ALL_WGT:
            flow = FLOW_CO_WGT
        if one_chunk and flow == FLOW_SP_INP:
            flow = FLOW_CO_STREAM
        if one_chunk and flow == FLOW_SP_INP_ALL_WGT:
            flow = FLOW_CO_WGT
        if sp_tiles == 1:
            if flow == FLOW_SP_INP_ALL_WGT:
                flow = FLOW_CO_WGT_ALL_INP
            if one_chunk:
                flow = FLOW_CO_STREAM
    v[K_FLOW] = flow
    v[K_ACC_BUF] = min(v[K_ACC_BUF], tiles)
    chunks = ceil_div(p[N.CI], v[K_CI])
    if v[K_HEAD] != HEAD_WHOLE:
        chunks = max(chunks, 2)
    used = _used_buffers(_INP_MODE[flow], sp_tiles, tiles, chunks)
    v[K_INP_BUF] = min(v[K_INP_BUF], max(used, tiles if p[N.RES] else 1))
    v[K_WGT_BUF] = min(v[K_WGT_BUF], _used_buffers(_WGT_MODE[flow], co_tiles, tiles, chunks))
    a, b = v[K_H], v[K_W]
    if a == 1:
        a, b = b, 1
    if a == 1 and b == 1 and v[K_FOLD] == FOLD_CI_CO and (v[K_CI] == 1 or v[K_CO] == 1):
        v[K_FOLD] = FOLD_CI_ROWS
    if v[K_FOLD] == FOLD_CI_ROWS and v[K_CI] == 1 and b == 1:
        v[K_FOLD] = FOLD_SPACE
    # Fewer drain pieces may cut every tile that drains into the same pieces.
    every = v[K_ACC_BUF] == 1 and tiles > 1
    drain = v[K_DRAIN]
    for candidate in DRAIN:
        if candidate >= drain:
            break
        same = True
        for i in range(8 if every else 1):
            co = v[K_CO] if i & 1 else p[N.CO] - (co_tiles - 1) * v[K_CO]
            h = v[K_H] if i & 2 else p[N.OH] - (rows - 1) * v[K_H]
            w = v[K_W] if i & 4 else p[N.OW] - (cols - 1) * v[K_W]
            same = same and pieces(p, co, h, w, candidate) == pieces(p, co, h, w, drain)
        if same:
            v[K_DRAIN] = candidate
            break


@njit(cache=True, nogil=True)
def _used_buffers(mode: int, sets: int, tiles: int, chunks: int) -> int:
    """How many buffers of an operand a schedule can fill: chunks of a stream, sets of its outer tiles, or one."""
    if mode == STREAM:
        return tiles * chunks
    return sets if mode == SET else 1


@njit(cache=True, nogil=True)
def canonical_rows(p, values):  # type: ignore[no-untyped-def]
    """`canonical_row` of every row, in place."""
    for i in range(len(values)):
        canonical_row(p, values[i])


def canonical(p: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Knob values (n, knobs) of the aliases that stand for each schedule; the input is left alone."""
    result = np.array(values, dtype=np.int64)
    canonical_rows(p, result)
    return result
