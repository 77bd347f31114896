"""Geometry of a `full` schedule: tiles, chunks, tap groups, SRAM layout, aliases, and totals in closed form.

Formulas of a schedule's cost stand here, those of its steps and its validity in `steps`; `emit` only turns them into
instructions.
A schedule is an int64 row of knob values (the ``K_*`` columns).
"""

from __future__ import annotations

import numpy as np
from numba import from_dtype, types
from numpy.typing import NDArray

from oneshot_ml2.common.kernels import njit
from oneshot_ml2.vta.nest import DTYPE, MAX_INSNS, MAX_SIZE, Nest

# Types of arguments, for functions that are called with constants: numba would compile them anew for each.
INT = types.int64
VECTOR, TABLE = INT[::1], INT[:, ::1]
NEST = from_dtype(DTYPE)  # type: ignore[no-untyped-call]

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
INP_MODE = np.array([STREAM, STREAM, ALL, SET, SET, STREAM], dtype=np.int64)
WGT_MODE = np.array([STREAM, SET, SET, STREAM, ALL, ALL], dtype=np.int64)
# The dataflow that stands for each where every channel tile has inputs of its own: these are streamed.
_OWN_INPUTS = np.array(
    [FLOW_CO_STREAM, FLOW_CO_WGT, FLOW_CO_WGT, FLOW_CO_STREAM, FLOW_SP_ALL_WGT, FLOW_SP_ALL_WGT], dtype=np.int64
)

# What the two loops of a GEMM iterate; the rest are micro-ops. With the last, every tap is a GEMM of its own, else all
# that touch as many outputs share one.
FOLD_SPACE, FOLD_CI_ROWS, FOLD_CI_CO, FOLD_TAPS = range(4)
_FOLDS = 4
PAD_SKIP, PAD_LOAD = 0, 1
# How the program starts: with whole chunks; with chunks of one channel block; with chunks that double. The last two
# also cut the very first step along the output channels.
HEAD_WHOLE, HEAD_SINGLE, HEAD_DOUBLING = 0, 1, 2
BIAS_ADD, BIAS_LOAD, BIAS_GEMM = 0, 1, 2
# Candidates of the drain knob: into how many pieces the exposed stores are cut.
DRAIN = (1, 4, 16)

# Columns of `tile_axis`: first output, outputs, first loaded input, inputs in SRAM, pads before and after,
# outputs that taps touch in all, distinct tap counts (groups), class of equal geometry, taps that touch real inputs.
A_FIRST, A_COUNT, A_LOAD, A_SIZE, A_BEFORE, A_AFTER, A_TAPS, A_GROUPS, A_CLASS, A_TOUCH = range(10)

# A portable GEMM must not write an accumulator again within so many executions (VTA reference, 5.3, 9); from `_FAR` on,
# more make no difference.
RECURRENCE, _FAR = 3, 64
# Taps of all tiles of an axis that are kept, if fewer tiles than `most_tiles` has at least do not have more.
_TAPS = 1 << 24
# Spatial tiles of an image beyond which a geometry is not looked at: no program can have as many.
_MOST_PLACES = 1 << 20


@njit(cache=True, nogil=True)
def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@njit(cache=True, nogil=True)
def outer_is_co(flow: int) -> bool:
    """Whether output channels are the outer tile loop (else the spatial tiles are)."""
    return flow <= FLOW_CO_WGT_ALL_INP


@njit(cache=True, nogil=True)
def moves_apart(nest) -> bool:  # type: ignore[no-untyped-def]
    """Whether every channel is moved by itself: of 1x1 kernels on images whose planes no 16-bit stride steps over.

    Such images could be one row (`nest.is_one_row`) but for their size. Those of other kernels that are as large have
    tiles of one channel only.
    """
    steps = nest.kh * nest.kw * nest.sh * nest.sw * nest.th * nest.tw
    return bool(nest.minor == 0 and steps == 1 and nest.ih * nest.iw > MAX_SIZE)


@njit(cache=True, nogil=True)
def load_step(kernel: int, stride: int, pad: int, rows: bool) -> int:
    """DRAM rows per loaded row: a one-row kernel reads only every stride-th row; columns are never skipped."""
    return stride if rows and kernel == 1 and pad == PAD_SKIP else 1


@njit(cache=True, nogil=True)
def leads_group(taps, tap: int) -> bool:  # type: ignore[no-untyped-def]
    """Whether ``tap`` touches real inputs and is the first of a tile's ``taps`` that has as many outputs."""
    for other in range(tap):
        if taps[other, 1] == taps[tap, 1]:
            return False
    return bool(taps[tap, 1] > 0)


@njit(cache=True, nogil=True)
def starts_gemm(fold: int, taps, tap: int) -> bool:  # type: ignore[no-untyped-def]
    """Whether ``tap`` is the first of a tile's ``taps`` that a GEMM (of this axis) multiplies."""
    return bool(taps[tap, 1] > 0) if fold == FOLD_TAPS else leads_group(taps, tap)


@njit(cache=True, nogil=True)
def shares_gemm(fold: int, taps, tap: int, first: int) -> bool:  # type: ignore[no-untyped-def]
    """Whether the GEMM that starts with the tap ``first`` multiplies ``tap``, too."""
    return bool(tap == first) if fold == FOLD_TAPS else bool(taps[tap, 1] == taps[first, 1])


@njit(cache=True, nogil=True)
def gemms_of(fold: int, row, col) -> int:  # type: ignore[no-untyped-def]
    """GEMMs of a step of the spatial tile of a ``row`` and a ``col`` of `tile_axis`."""
    return row[A_TOUCH] * col[A_TOUCH] if fold == FOLD_TAPS else row[A_GROUPS] * col[A_GROUPS]


@njit(cache=True, nogil=True)
def most_tiles(kernel: int) -> int:
    """Tiles of one axis beyond which a schedule is not looked at: no program can have more than `MAX_INSNS` of them.

    Of a large kernel, whose taps take memory, a third: a tile takes three instructions at least.
    """
    return max(MAX_INSNS // 3, min(MAX_INSNS, _TAPS // kernel))


@njit(cache=True, nogil=True)
def tile_axis(out, size, kernel, stride, spread, dilation, lead, step, tile, pad):  # type: ignore[no-untyped-def]
    """One spatial axis cut into tiles; ``spread``: outputs from one input to the next (a transposed convolution's).

    Of more tiles than any program can have (`most_tiles`) only the first ones are there: one too many.

    Returns int64 (tiles, 10), columns ``A_*``, and int64 (tiles, kernel, 2): for every tap the first output
    of the tile whose input is real and how many such outputs there are (all of them when pads are loaded).
    """
    n = min(ceil_div(out, tile), most_tiles(kernel) + 1)
    axis = np.zeros((n, 10), dtype=np.int64)
    taps = np.empty((n, kernel, 2), dtype=np.int64)
    # The tile in which as many outputs were last met by a tap.
    met_in = np.full(min(tile, out) + 1, -1, dtype=np.int64)
    # Tiles that stand for their class, and whether all their taps meet all their outputs.
    leaders, whole, classes = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.bool_), 0
    for i in range(n):
        first = i * tile
        count = min(tile, out - first)
        axis[i, A_FIRST] = first
        axis[i, A_COUNT] = count
        low, high = first * stride - lead, (first + count - 1) * stride + (kernel - 1) * dilation - lead
        whole[i] = spread == 1 and (pad == PAD_LOAD or (low >= 0 and high < size))
        if whole[i]:
            taps[i, :, 0] = first
            taps[i, :, 1] = count
            axis[i, A_TAPS] = kernel * count
            axis[i, A_GROUPS] = 1
            axis[i, A_TOUCH] = kernel
        else:
            low, high = size, -1
        for k in range(0 if whole[i] else kernel):
            offset = k * dilation - lead
            begin, end = first, first + count
            if spread > 1:
                begin = max(begin, -offset)
                begin += (-offset - begin) % spread
                end = min(end, (size - 1) * spread - offset + 1)
            elif pad == PAD_SKIP:
                begin = max(begin, ceil_div(-offset, stride))
                end = min(end, (size - 1 - offset) // stride + 1)
            met = max(ceil_div(end - begin, spread), 0)
            taps[i, k, 0] = begin
            taps[i, k, 1] = met
            if met > 0:
                axis[i, A_TAPS] += met
                axis[i, A_TOUCH] += 1
                low = min(low, (begin * stride + offset) // spread)
                high = max(high, ((begin + (met - 1) * spread) * stride + offset) // spread)
                axis[i, A_GROUPS] += met_in[met] != i
                met_in[met] = i
        if high >= low:
            axis[i, A_LOAD] = max(low, 0)
            axis[i, A_SIZE] = (high - low) // step + 1
            axis[i, A_BEFORE] = max(-low, 0)
            axis[i, A_AFTER] = max(high - (size - 1), 0)
        axis[i, A_CLASS] = i
        for other in leaders[:classes]:
            if axis[other, A_COUNT] != count or axis[other, A_SIZE] != axis[i, A_SIZE] or whole[other] != whole[i]:
                continue
            same = True
            for k in range(0 if whole[i] else kernel):
                count_k = taps[i, k, 1]
                if taps[other, k, 1] != count_k:
                    same = False
                elif count_k > 0:
                    here = tap_source(axis[i], taps[i, k, 0], k, stride, spread, dilation, lead, step)
                    there = tap_source(axis[other], taps[other, k, 0], k, stride, spread, dilation, lead, step)
                    if here != there or taps[i, k, 0] - first != taps[other, k, 0] - axis[other, A_FIRST]:
                        same = False
            if same:
                axis[i, A_CLASS] = other
                break
        if axis[i, A_CLASS] == i:
            leaders[classes] = i
            classes += 1
    return axis, taps


@njit(cache=True, nogil=True)
def tap_source(tile, output, tap, stride, spread, dilation, lead, step):  # type: ignore[no-untyped-def]
    """Index within the loaded tile of the input that ``tap`` reads for ``output``."""
    return ((output * stride + tap * dilation - lead) // spread - tile[A_LOAD] + tile[A_BEFORE]) // step


@njit(cache=True, nogil=True)
def tap_items(axis, taps):  # type: ignore[no-untyped-def]
    """What tells how soon accumulators recur on a cut axis, int64 (m, 3), all distinct.

    An item is (outputs, taps that touch as many, how far apart their first outputs lie) in some tile.
    """
    n, kernel = len(axis), taps.shape[1]
    leaders = 0
    for i in range(n):
        leaders += axis[i, A_CLASS] == i
    items = np.empty((leaders * kernel, 3), dtype=np.int64)
    # By outputs met: the tile that they are of (of the last one looked at), and its taps that meet as many.
    counts = axis[:, A_COUNT].max() + 1
    seen = np.full(counts, -1, dtype=np.int64)
    alike, low, high = np.empty(counts, np.int64), np.empty(counts, np.int64), np.empty(counts, np.int64)
    m = 0
    for i in range(n):
        if axis[i, A_CLASS] != i:
            continue
        for k in range(kernel):
            begin, count = taps[i, k, 0], taps[i, k, 1]
            if seen[count] != i:
                seen[count], alike[count], low[count], high[count] = i, 0, begin, begin
            alike[count] += 1
            low[count], high[count] = min(low[count], begin), max(high[count], begin)
        for k in range(kernel):
            count = taps[i, k, 1]
            if count == 0 or seen[count] != i:
                continue
            seen[count] = -1
            known = False
            for other in range(m):
                apart = items[other, 2]
                if items[other, 0] == count and items[other, 1] == alike[count] and apart == high[count] - low[count]:
                    known = True
                    break
            if not known:
                items[m, 0], items[m, 1], items[m, 2] = count, alike[count], high[count] - low[count]
                m += 1
    return items[:m].copy()


@njit(cache=True, nogil=True)
def narrowest(nest, v) -> int:  # type: ignore[no-untyped-def]
    """Output channel blocks of the narrowest step: with fewer, accumulators recur sooner."""
    first = min(v[K_CO], nest.co)
    return min(first, last_channels(nest, v), head_parts(first, v[K_HEAD])[0])


@njit(INT(INT, INT, INT, TABLE, TABLE), cache=True, nogil=True)
def recurrence(fold: int, co: int, chunk: int, row_items, col_items) -> int:  # type: ignore[no-untyped-def]
    """After how many executions a GEMM writes an accumulator again at least, 0 to `_FAR`.

    ``co``: `narrowest`; ``chunk``: input channels of a step; items: `tap_items` of both axes. Of different
    accumulators in between, those count less by which a tap's first output comes before another's.
    """
    least = np.int64(_FAR)
    for i in range(len(row_items)):
        high = row_items[i, 0]
        for j in range(len(col_items)):
            wide = col_items[j, 0]
            taps = row_items[i, 1] * col_items[j, 1]
            across = col_items[j, 2]
            shift = row_items[i, 2] * wide + across
            if fold == FOLD_TAPS:
                if chunk > 1:
                    least = min(least, high * wide * co)
                continue
            if fold == FOLD_SPACE:
                if taps * chunk > 1:
                    least = min(least, co)
                continue
            if chunk > 1:
                least = min(least, high * wide * co - shift)
            if taps > 1 and fold == FOLD_CI_ROWS:
                least = min(least, co if high == 1 else co * wide - across)
            elif taps > 1:
                least = min(least, high * wide - shift)
    return max(least, 0)


@njit(cache=True, nogil=True)
def chunk_starts(ci: int, chunk: int, head: int):  # type: ignore[no-untyped-def]
    """Input channels cut into reduction chunks: int64 (chunks + 1,) boundaries; ``head`` tapers the start."""
    # Chunks that double until they are whole: one more for each bit of a whole one, at most.
    extra = 0
    while head == HEAD_DOUBLING and 1 << extra < chunk:
        extra += 1
    starts = np.zeros((ci if head == HEAD_SINGLE else ceil_div(ci, chunk) + extra) + 1, dtype=np.int64)
    n = 0
    size = chunk if head == HEAD_WHOLE else 1
    while starts[n] < ci:
        starts[n + 1] = min(starts[n] + size, ci)
        n += 1
        if head == HEAD_DOUBLING:
            size = min(2 * size, chunk)
    return starts[: n + 1]


@njit(cache=True, nogil=True)
def channel_tiles(nest, v) -> int:  # type: ignore[no-untyped-def]
    """Tiles of the output channels of all groups; those of a group follow each other."""
    return nest.groups * ceil_div(nest.co, v[K_CO])


@njit(cache=True, nogil=True)
def input_channels(nest, v):  # type: ignore[no-untyped-def]
    """(input channel blocks of a chunk, of all chunks of a tile), at most."""
    return (v[K_CO], v[K_CO]) if nest.depthwise else (v[K_CI], nest.ci)


@njit(cache=True, nogil=True)
def scratch_size(nest, v, plane: int) -> int:  # type: ignore[no-untyped-def]
    """Accumulators beside the output tiles: pooled inputs of a tile (``plane`` a channel), or copies to round."""
    if nest.pool:
        return plane * v[K_CO]
    return v[K_CO] * v[K_H] * v[K_W] if nest.even else 0


@njit(cache=True, nogil=True)
def is_tapered(nest, flow: int, head: int, co_tile: int, sp_tile: int) -> bool:  # type: ignore[no-untyped-def]
    """Whether an output tile uses the tapered chunks; ``co_tile`` counts those of all groups.

    Resident operands fix the chunks of every tile that shares them, because a chunk is compact in SRAM.
    """
    if head == HEAD_WHOLE:
        return False
    if nest.minor and INP_MODE[flow] != STREAM:
        return True
    if WGT_MODE[flow] != STREAM:
        return bool(co_tile == 0)
    return bool(co_tile == 0 and sp_tile == 0)


@njit(cache=True, nogil=True)
def head_parts(co: int, head: int):  # type: ignore[no-untyped-def]
    """(channel blocks of a part, parts) that the first step of a program is cut into; the last part takes the rest.

    A part has at least three blocks, so that its accumulators do not recur too soon.
    """
    if head == HEAD_WHOLE:
        return co, 1
    size = min(max(3, ceil_div(co, 4)), co)
    return size, max(1, co // size)


@njit(cache=True, nogil=True)
def pieces(nest, co: int, rows: int, cols: int, drain: int):  # type: ignore[no-untyped-def]
    """(channel blocks, rows, columns) of a piece of an output tile whose last stages are cut into about ``drain``."""
    if nest.minor:
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
def sram_layout_into(nest, v, plane: int, sp_tiles: int, at, need):  # type: ignore[no-untyped-def]
    """`sram_layout` with the largest loaded ``plane`` of a tile, in place."""
    ci, tco = nest.ci, v[K_CO]
    tci = v[K_CI]
    taps = nest.kh * nest.kw
    inp_mode, wgt_mode = INP_MODE[v[K_FLOW]], WGT_MODE[v[K_FLOW]]
    chunk_channels, tile_channels = input_channels(nest, v)
    at[:] = 0
    if inp_mode == STREAM:
        at[0] = plane * chunk_channels
        need[0] = at[0] * v[K_INP_BUF]
    else:
        at[0] = plane * tile_channels
        need[0] = at[0] * (v[K_INP_BUF] if inp_mode == SET else sp_tiles * nest.groups)
    at[1] = need[0]
    at[8] = tco * v[K_H] * v[K_W]
    if nest.residual:
        at[2] = at[8]
        at[3] = need[0]
        need[0] += at[2] * v[K_INP_BUF]
    if nest.pool:
        need[1] = 1
    elif wgt_mode == STREAM:
        at[5] = tco * tci * taps
        need[1] = at[5] * v[K_WGT_BUF]
    else:
        at[5] = tco * ci * taps
        need[1] = at[5] * (v[K_WGT_BUF] if wgt_mode == SET else channel_tiles(nest, v))
    if nest.residual:
        at[6] = need[1]
        need[1] += 1
    need[2] = at[8] * v[K_ACC_BUF]
    at[10] = need[2]
    need[2] += scratch_size(nest, v, plane)
    if nest.bias:
        if v[K_BIAS] == BIAS_GEMM:
            at[4] = need[0]
            need[0] += 1
            at[7] = need[1]
            need[1] += nest.out_blocks
        elif v[K_BIAS] == BIAS_ADD:
            at[9] = need[2]
            need[2] += nest.out_blocks


@njit(cache=True, nogil=True)
def sram_layout(nest, v, max_rows: int, max_cols: int, sp_tiles: int):  # type: ignore[no-untyped-def]
    """SRAM regions of a schedule in elements.

    Returns int64 (11,): input slot, input total, residual slot, residual base, constant, weight slot,
    identity, bias weights, ACC tile, ACC bias, scratch; and the totals of INP, WGT, ACC, int64 (3,).
    """
    at = np.zeros(11, dtype=np.int64)
    need = np.zeros(3, dtype=np.int64)
    sram_layout_into(nest, v, max_rows * max_cols, sp_tiles, at, need)
    return at, need


@njit(cache=True, nogil=True)
def sram_needed(nest, v, plane: int, need):  # type: ignore[no-untyped-def]
    """Raise the totals of INP, WGT and ACC (int64 (3,)), in place, to what the largest LOAD of each needs.

    One LOAD of a whole SRAM can be reported done before its data arrive (VTA reference, 6.3): it needs one more.
    """
    need[0] = max(need[0], plane * input_channels(nest, v)[0] + 1)
    need[1] = max(need[1], 2 if nest.pool else v[K_CO] * v[K_CI] * nest.kh * nest.kw + 1)
    if nest.bias and v[K_BIAS] == BIAS_LOAD:
        need[2] = max(need[2], v[K_H] * v[K_W] * (v[K_CO] if nest.minor else 1) + 1)


@njit(cache=True, nogil=True)
def holds(nest, need):  # type: ignore[no-untyped-def]
    """Whether the SRAMs hold what `sram_needed` says."""
    return need[0] <= nest.inp_depth and need[1] <= nest.wgt_depth and need[2] <= nest.acc_depth


@njit(cache=True, nogil=True)
def axes(nest, v):  # type: ignore[no-untyped-def]
    """`tile_axis` of the rows and of the columns of a schedule, and the row step of its loads."""
    step = load_step(nest.kh, nest.sh, v[K_PAD], True)
    one, pad = np.int64(1), v[K_PAD]
    rows, row_taps = tile_axis(nest.oh, nest.ih, nest.kh, nest.sh, nest.th, nest.dh, nest.pt, step, v[K_H], pad)
    cols, col_taps = tile_axis(nest.ow, nest.iw, nest.kw, nest.sw, nest.tw, nest.dw, nest.pl, one, v[K_W], pad)
    return rows, row_taps, cols, col_taps, step


@njit(cache=True, nogil=True)
def last_channels(nest, v) -> int:  # type: ignore[no-untyped-def]
    """Channel blocks of the last channel tile of a group."""
    return nest.co - (ceil_div(nest.co, v[K_CO]) - 1) * v[K_CO]


@njit(cache=True, nogil=True)
def canonical_row(nest, v):  # type: ignore[no-untyped-def]
    """Rewrite one row of knob values, in place, to the alias that stands for it; lowering starts here too."""
    _canonical_choices(nest, v)
    _canonical_drain(nest, v)


@njit(cache=True, nogil=True)
def is_canonical(nest, v, work):  # type: ignore[no-untyped-def]
    """Whether a row stands for itself; ``work``: int64 (knobs,), overwritten."""
    work[:] = v
    _canonical_choices(nest, work)
    for knob in range(len(v)):
        if work[knob] != v[knob]:
            return False
    _canonical_drain(nest, work)
    return work[K_DRAIN] == v[K_DRAIN]


@njit(cache=True, nogil=True)
def _canonical_choices(nest, v):  # type: ignore[no-untyped-def]
    """`canonical_row` of all knobs but the drain, which it does not look at."""
    co_tiles = channel_tiles(nest, v)
    rows, cols = ceil_div(nest.oh, v[K_H]), ceil_div(nest.ow, v[K_W])
    sp_tiles = nest.nb * rows * cols
    tiles = co_tiles * sp_tiles
    if nest.bias == 0:
        v[K_BIAS] = 0
    if nest.pool:
        v[K_FLOW] = FLOW_CO_STREAM
    elif nest.depthwise:
        v[K_FLOW] = _OWN_INPUTS[v[K_FLOW]]
    if nest.pool:
        v[K_HEAD], v[K_WGT_BUF] = HEAD_WHOLE, 1
    high_r = (nest.oh - 1) * nest.sh - nest.pt + (nest.kh - 1) * nest.dh
    high_c = (nest.ow - 1) * nest.sw - nest.pl + (nest.kw - 1) * nest.dw
    unpadded = nest.pt == 0 and nest.pl == 0 and high_r < nest.ih and high_c < nest.iw
    if nest.pool or nest.th > 1 or nest.tw > 1:
        # Loaded zeros could be the largest, and would have to lie between the inputs.
        v[K_PAD] = PAD_SKIP
    elif unpadded and not (nest.kh == 1 and nest.sh > 1 and v[K_H] > 1):
        v[K_PAD] = PAD_SKIP
    if v[K_HEAD] == HEAD_DOUBLING and (v[K_CI] == 1 or nest.ci == 2):
        v[K_HEAD] = HEAD_SINGLE
    flow = v[K_FLOW]
    if v[K_HEAD] == HEAD_SINGLE:
        shared = co_tiles == 1 and (sp_tiles == 1 or WGT_MODE[flow] != STREAM)
        if shared or (nest.minor and INP_MODE[flow] != STREAM):
            # The taper is every tile's: the same as single channels throughout.
            v[K_CI] = 1
        if v[K_CI] == 1 and head_parts(min(v[K_CO], nest.co), HEAD_SINGLE)[1] == 1:
            v[K_HEAD] = HEAD_WHOLE
    one_chunk = v[K_CI] == nest.ci and (v[K_HEAD] == HEAD_WHOLE or v[K_CI] == 1)
    if sp_tiles == 1 and one_chunk:
        if flow == FLOW_CO_WGT:
            flow = FLOW_CO_STREAM
        elif flow == FLOW_CO_WGT_ALL_INP and nest.groups == 1:
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
    chunks = ceil_div(nest.ci, v[K_CI])
    if v[K_HEAD] != HEAD_WHOLE and v[K_CI] > 1:
        chunks = max(chunks, 2)
    used = _used_buffers(INP_MODE[flow], sp_tiles * nest.groups, tiles, chunks)
    v[K_INP_BUF] = min(v[K_INP_BUF], max(used, tiles if nest.residual else 1))
    v[K_WGT_BUF] = min(v[K_WGT_BUF], _used_buffers(WGT_MODE[flow], co_tiles, tiles, chunks))
    a, b = v[K_H], v[K_W]
    if a == 1:
        a, b = b, 1
    if a == 1 and b == 1 and v[K_FOLD] == FOLD_CI_CO and (v[K_CI] == 1 or v[K_CO] == 1):
        v[K_FOLD] = FOLD_CI_ROWS
    if v[K_FOLD] == FOLD_CI_ROWS and v[K_CI] == 1 and b == 1:
        v[K_FOLD] = FOLD_SPACE


@njit(cache=True, nogil=True)
def _canonical_drain(nest, v):  # type: ignore[no-untyped-def]
    """`canonical_row` of the drain: fewer pieces may cut every tile that drains into the same ones."""
    rows, cols = ceil_div(nest.oh, v[K_H]), ceil_div(nest.ow, v[K_W])
    tiles = channel_tiles(nest, v) * nest.nb * rows * cols
    every = v[K_ACC_BUF] == 1 and tiles > 1
    if nest.pool and nest.shift < 0 and nest.clip == 0:
        # The stages whose pieces a drain would be are not there.
        v[K_DRAIN] = DRAIN[0]
    drain = v[K_DRAIN]
    for candidate in DRAIN:
        if candidate >= drain:
            break
        same = True
        for i in range(8 if every else 1):
            co = v[K_CO] if i & 1 else last_channels(nest, v)
            h = v[K_H] if i & 2 else nest.oh - (rows - 1) * v[K_H]
            w = v[K_W] if i & 4 else nest.ow - (cols - 1) * v[K_W]
            same = same and pieces(nest, co, h, w, candidate) == pieces(nest, co, h, w, drain)
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
def canonical_rows(nest, values):  # type: ignore[no-untyped-def]
    """`canonical_row` of every row, in place."""
    for i in range(len(values)):
        canonical_row(nest, values[i])


def dataflows(nest: Nest) -> tuple[int, ...]:
    """Candidates of the dataflow knob: those that can differ."""
    if nest.pool:
        return (FLOW_CO_STREAM,)
    return tuple(np.unique(_OWN_INPUTS).tolist()) if nest.depthwise else tuple(range(len(INP_MODE)))


def bias_forms(nest: Nest) -> tuple[int, ...]:
    """Candidates of the bias knob: a GEMM with a constant only where every bias is one."""
    if not nest.bias:
        return (0,)
    return (BIAS_ADD, BIAS_LOAD, BIAS_GEMM) if nest.bias_gemm_fits else (BIAS_ADD, BIAS_LOAD)


def canonical(nest: Nest, values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Knob values (n, knobs) of the aliases that stand for each schedule; the input is left alone."""
    result = np.array(values, dtype=np.int64)
    canonical_rows(nest, result)
    return result


# Closed-form totals of a schedule, columns of `summaries`; cycles unless said otherwise. `bound` is a proven
# lower bound of the cycles, `estimate` a guess that proves nothing.
SUMMARY = (
    "bound",
    "estimate",
    "compute",
    "load",
    "store",
    "read_beats",
    "head",
    "first_load",
    "first_tile",
    "last_step",
    "tail",
    "serial_load",
    "exposed_store",
    "inp_beats",
    "wgt_beats",
    "loads",
    "gemms",
    "steps",
    "tiles",
    "instructions",
    "uops",
    "inp_use",
    "wgt_use",
    "acc_use",
    "recurrence",
)
(
    S_BOUND,
    S_ESTIMATE,
    S_COMPUTE,
    S_LOAD,
    S_STORE,
    S_READ_BEATS,
    S_HEAD,
    S_FIRST_LOAD,
    S_FIRST_TILE,
    S_LAST_STEP,
    S_TAIL,
    S_SERIAL_LOAD,
    S_EXPOSED_STORE,
    S_INP_BEATS,
    S_WGT_BEATS,
    S_LOADS,
    S_GEMMS,
    S_STEPS,
    S_TILES,
    S_INSTRUCTIONS,
    S_UOPS,
    S_INP_USE,
    S_WGT_USE,
    S_ACC_USE,
    S_RECURRENCE,
) = range(25)

# Columns of a geometry record: what `summaries` needs of the spatial tiles of one (tile_h, tile_w, pad).
(
    _R_TILES,
    _R_GROUPS,
    _R_GROUPS_FIRST,
    _R_GROUPS_LAST,
    _R_WORK,
    _R_WORK_FIRST,
    _R_WORK_LAST,
    _R_LOADED,
    _R_LOADED_FIRST,
    _R_COMPACT,
    _R_SPREAD,
    _R_COMPACT_FIRST,
    _R_MAX_PLANE,
    _R_LAST_H,
    _R_LAST_W,
    _R_REAL,
    _R_TOUCH,
    _R_TOUCH_FIRST,
    _R_TOUCH_LAST,
    _R_CLASSES,
) = range(20)
# Spatial tiles of equal geometry: how many, and their micro-ops a kernel for each fold but for the channels.
_CLASSES = 16
# `recurrence` for each fold, chunks of one or of more channels, and narrowest steps; the last stands for wider ones.
_NARROW = 16
_R_RECUR = _R_CLASSES + 1 + 4 * _CLASSES
_RECORD = _R_RECUR + _FOLDS * 2 * _NARROW
_RECORDS = 1024


@njit(cache=True, nogil=True)
def _geometry(nest, v, record):  # type: ignore[no-untyped-def]
    """Fill a geometry record (int64 (_RECORD,)) of the spatial tiles of schedule ``v``, for one batch block.

    Of more tiles than any program can have none is looked at: one that no SRAM holds stands for them.
    """
    record[:] = 0
    places = ceil_div(nest.oh, v[K_H]), ceil_div(nest.ow, v[K_W])
    if places[0] > most_tiles(nest.kh) or places[1] > most_tiles(nest.kw) or places[0] * places[1] > _MOST_PLACES:
        record[_R_TILES] = record[_R_LAST_H] = record[_R_LAST_W] = 1
        record[_R_MAX_PLANE] = nest.inp_depth + 1
        return
    rows, row_taps, cols, col_taps, step = axes(nest, v)
    n_h, n_w = len(rows), len(cols)
    record[_R_TILES] = n_h * n_w
    record[_R_GROUPS] = rows[:, A_GROUPS].sum() * cols[:, A_GROUPS].sum()
    record[_R_GROUPS_FIRST] = rows[0, A_GROUPS] * cols[0, A_GROUPS]
    record[_R_GROUPS_LAST] = rows[-1, A_GROUPS] * cols[-1, A_GROUPS]
    record[_R_TOUCH] = rows[:, A_TOUCH].sum() * cols[:, A_TOUCH].sum()
    record[_R_TOUCH_FIRST] = rows[0, A_TOUCH] * cols[0, A_TOUCH]
    record[_R_TOUCH_LAST] = rows[-1, A_TOUCH] * cols[-1, A_TOUCH]
    record[_R_WORK] = rows[:, A_TAPS].sum() * cols[:, A_TAPS].sum()
    record[_R_WORK_FIRST] = rows[0, A_TAPS] * cols[0, A_TAPS]
    record[_R_WORK_LAST] = rows[-1, A_TAPS] * cols[-1, A_TAPS]
    for i in range(n_h):
        for j in range(n_w):
            pads = 0
            height, width = rows[i, A_SIZE], cols[j, A_SIZE]
            if height == 0 or width == 0:
                continue
            if v[K_PAD] == PAD_LOAD:
                pads = rows[i, A_BEFORE] + rows[i, A_AFTER] + cols[j, A_BEFORE] + cols[j, A_AFTER]
                height -= rows[i, A_BEFORE] + rows[i, A_AFTER]
                width -= cols[j, A_BEFORE] + cols[j, A_AFTER]
            compact = nest.minor == 1
            if pads == 0 and ((width == nest.iw and (step == 1 or height == 1)) or height == 1):
                compact = not moves_apart(nest)
            record[_R_REAL] += 1
            elements = max(height, 0) * max(width, 0)
            record[_R_LOADED] += elements
            if compact:
                record[_R_COMPACT] += 1
            else:
                record[_R_SPREAD] += 1
            if i == 0 and j == 0:
                record[_R_LOADED_FIRST] = elements
                record[_R_COMPACT_FIRST] = compact
    record[_R_MAX_PLANE] = rows[:, A_SIZE].max() * cols[:, A_SIZE].max()
    record[_R_LAST_H] = rows[-1, A_COUNT]
    record[_R_LAST_W] = cols[-1, A_COUNT]
    row_uops, col_uops = _class_uops(rows, row_taps), _class_uops(cols, col_taps)
    for i in range(n_h):
        for j in range(n_w):
            if row_uops[i, 0] == 0 or col_uops[j, 0] == 0:
                continue
            # What does not fit into the table is counted with its last entry.
            k = min(record[_R_CLASSES], _CLASSES - 1)
            record[_R_CLASSES] = k + 1
            entry = record[_R_CLASSES + 1 + 4 * k :]
            entry[0] += row_uops[i, 0] * col_uops[j, 0]
            entry[1] += row_uops[i, 1] * col_uops[j, 1]
            entry[2] += row_uops[i, 3] * col_uops[j, 1] + (row_uops[i, 1] - row_uops[i, 3]) * col_uops[j, 2]
            entry[3] += row_uops[i, 2] * col_uops[j, 2]
    row_items, col_items = tap_items(rows, row_taps), tap_items(cols, col_taps)
    for i in range(_FOLDS * 2 * _NARROW):
        fold, several, co = i // (2 * _NARROW), (i // _NARROW) % 2, i % _NARROW
        record[_R_RECUR + i] = recurrence(fold, co + 1, 1 + several, row_items, col_items)


@njit(cache=True, nogil=True)
def _class_uops(axis, taps):  # type: ignore[no-untyped-def]
    """Of each tile that stands for its class on an axis, int64 (tiles, 4); else zeros.

    Tiles of the class, taps that touch real inputs, outputs that these touch in all, taps that touch a single one.
    """
    found = np.zeros((len(axis), 4), dtype=np.int64)
    for i in range(len(axis)):
        found[axis[i, A_CLASS], 0] += 1
        if axis[i, A_CLASS] == i:
            for k in range(taps.shape[1]):
                found[i, 1] += taps[i, k, 1] > 0
                found[i, 2] += taps[i, k, 1]
                found[i, 3] += taps[i, k, 1] == 1
    return found


@njit(INT(VECTOR, INT, INT, INT, INT, INT, INT), cache=True, nogil=True)
def _bases(v, sp_tiles: int, co_tiles: int, chunks: int, some_sp: int, some_co: int, some_chunks: int):  # type: ignore[no-untyped-def]
    """How many sets of SRAM bases the steps of some tiles have: what micro-ops, which hold indices, differ by.

    Of ``sp_tiles`` x ``co_tiles`` output tiles of ``chunks`` each: those of ``some_sp`` spatial and ``some_co`` channel
    tiles, in ``some_chunks`` of their chunks. Slots alternate, so that parities tell them apart; which of the tiles
    have which parity is not looked at.
    """
    flow = v[K_FLOW]
    inp_mode, wgt_mode = INP_MODE[flow], WGT_MODE[flow]
    streams = inp_mode == STREAM and wgt_mode == STREAM
    seen = np.int64(0)
    # Everything resident has a base of its own for every tile.
    for s in range(1 if inp_mode == ALL else min(some_sp, 2)):
        for c in range(1 if wgt_mode == ALL else min(some_co, 2)):
            t = c * sp_tiles + s if outer_is_co(flow) else s * co_tiles + c
            for j in range(min(some_chunks, 2) if streams else 1):
                ring = t * chunks + j
                inp = ring if inp_mode == STREAM else (s if inp_mode == SET else np.int64(0))
                wgt = ring if wgt_mode == STREAM else (c if wgt_mode == SET else np.int64(0))
                word = (t % v[K_ACC_BUF]) * 16 + (inp % v[K_INP_BUF]) * 4 + wgt % v[K_WGT_BUF]
                seen |= np.int64(1) << word
    count = np.int64(0)
    while seen:
        seen &= seen - 1
        count += 1
    if inp_mode == ALL:
        count *= some_sp
    if wgt_mode == ALL:
        count *= some_co
    return count if streams else count * some_chunks


@njit(INT(VECTOR, VECTOR, INT, INT, INT), cache=True, nogil=True)
def _kernel_uops(v, g, k: int, nci: int, nco: int):  # type: ignore[no-untyped-def]
    """Micro-ops of the kernels of a step of ``nci`` input and ``nco`` output channels, of spatial class ``k``."""
    entry = g[_R_CLASSES + 1 + 4 * k :]
    if v[K_FOLD] == FOLD_SPACE:
        return entry[1] * nci * nco
    return entry[3] if v[K_FOLD] == FOLD_CI_CO else entry[2] * nco


@njit(INT(NEST, VECTOR, VECTOR, INT, INT, INT, INT, INT, INT), cache=True, nogil=True)
def _chunk_uops(nest, v, g, k: int, sp_tiles: int, co_tiles: int, some_co: int, nco: int, whole: int):  # type: ignore[no-untyped-def]
    """Micro-ops of ``some_co`` channel tiles of ``nco`` channels in spatial class ``k``, in whole chunks."""
    some_sp = g[_R_CLASSES + 1 + 4 * k] * nest.nb
    last_ci = nest.ci - (whole - 1) * v[K_CI]
    even = whole if last_ci == v[K_CI] else whole - 1
    total = np.int64(0)
    if even > 0:
        bases = _bases(v, sp_tiles, co_tiles, whole, some_sp, some_co, even)
        total += bases * _kernel_uops(v, g, k, v[K_CI], nco)
    if even < whole:
        total += _bases(v, sp_tiles, co_tiles, whole, some_sp, some_co, 1) * _kernel_uops(v, g, k, last_ci, nco)
    return total


@njit(INT(NEST, VECTOR, VECTOR, INT, INT, INT, INT, INT, INT), cache=True, nogil=True)
def _taper_uops(nest, v, g, k: int, sp_tiles: int, co_tiles: int, some_sp: int, some_co: int, nco: int):  # type: ignore[no-untyped-def]
    """Micro-ops of tapered tiles: chunks of one channel, or such that double and then whole ones at other places."""
    ci, tci = nest.ci, v[K_CI]
    if v[K_HEAD] == HEAD_SINGLE:
        return _bases(v, sp_tiles, co_tiles, ci, some_sp, some_co, ci) * _kernel_uops(v, g, k, 1, nco)
    total, size, left = np.int64(0), np.int64(1), ci
    bases = _bases(v, sp_tiles, co_tiles, 1, some_sp, some_co, 1)
    while left > 0 and size < tci:
        total += bases * _kernel_uops(v, g, k, min(size, left), nco)
        left -= size
        size *= 2
    if left > 0 and (INP_MODE[v[K_FLOW]] != STREAM or WGT_MODE[v[K_FLOW]] != STREAM):
        chunks = ceil_div(left, tci)
        total += _bases(v, sp_tiles, co_tiles, chunks, some_sp, some_co, chunks) * _kernel_uops(v, g, k, tci, nco)
    return total


@njit(cache=True, nogil=True)
def _all_uops(nest, v, g, sp_tiles: int, co_tiles: int, whole: int, cuts: int):  # type: ignore[no-untyped-def]
    """Micro-ops of a program, nearly: every kernel once for every set of SRAM bases."""
    tco, last_co = min(v[K_CO], nest.co), last_channels(nest, v)
    even_co = co_tiles if last_co == tco else co_tiles - nest.groups
    first_co = tco if even_co > 0 else last_co
    resident = WGT_MODE[v[K_FLOW]] != STREAM
    tapers = v[K_HEAD] != HEAD_WHOLE
    all_taper = tapers and nest.minor == 1 and INP_MODE[v[K_FLOW]] != STREAM
    total = np.int64(0)
    for k in range(g[_R_CLASSES]):
        some_sp = g[_R_CLASSES + 1 + 4 * k] * nest.nb
        for part in range(2):
            some_co, nco = (even_co, tco) if part == 0 else (co_tiles - even_co, last_co)
            if all_taper and some_co > 0:
                total += _taper_uops(nest, v, g, k, sp_tiles, co_tiles, some_sp, some_co, nco)
                continue
            if tapers and resident and part == (even_co == 0):
                total += _taper_uops(nest, v, g, k, sp_tiles, co_tiles, some_sp, 1, nco)
                some_co -= 1
            if some_co > 0:
                total += _chunk_uops(nest, v, g, k, sp_tiles, co_tiles, some_co, nco, whole)
    if tapers and g[_R_CLASSES] > 0:
        part_co, parts = head_parts(first_co, v[K_HEAD])
        total += parts * _kernel_uops(v, g, 0, 1, part_co)
        if not resident and not all_taper:
            total += _taper_uops(nest, v, g, 0, sp_tiles, co_tiles, 1, 1, first_co)
    if nest.bias and v[K_BIAS] != BIAS_LOAD:
        total += co_tiles * min(v[K_ACC_BUF], sp_tiles)
    return total + 2 * v[K_ACC_BUF] + cuts


@njit(cache=True, nogil=True)
def _tile_gemms(v, g):  # type: ignore[no-untyped-def]
    """GEMMs that a step of every spatial tile of an image takes: (of all, of the first, of the last)."""
    if v[K_FOLD] == FOLD_TAPS:
        return g[_R_TOUCH], g[_R_TOUCH_FIRST], g[_R_TOUCH_LAST]
    return g[_R_GROUPS], g[_R_GROUPS_FIRST], g[_R_GROUPS_LAST]


@njit(cache=True, nogil=True)
def _beats(nest, elements: int, size: int) -> int:  # type: ignore[no-untyped-def]
    """Bus beats that carry ``elements`` of ``size`` bytes, at least."""
    return ceil_div(elements * size, nest.bus)


@njit(cache=True, nogil=True)
def stage_passes(nest):  # type: ignore[no-untyped-def]
    """(passes over a piece of an output tile before its store, cycles an element of all of them)."""
    stages = (nest.shift >= 0) + 2 * nest.clip
    if nest.even == 0:
        return stages, stages
    # A reset, a copy (2), one or two shifts left, two bounds, and the sum (2).
    passes = 6 + (left_shifts(nest)[1] > 0)
    return stages + passes, stages + passes + 2


@njit(cache=True, nogil=True)
def left_shifts(nest):  # type: ignore[no-untyped-def]
    """Two shifts left, the second perhaps 0, that bring the lowest bit of what a right shift leaves to the sign."""
    total = 31 - nest.shift
    return min(total, 16), max(total - 16, 0)


@njit(cache=True, nogil=True)
def _store_cycles(nest, elements: int, rows: int) -> int:  # type: ignore[no-untyped-def]
    """Cycles of storing ``elements`` in ``rows`` rows, at least (VTA reference, 6.4)."""
    beats = _beats(nest, elements, nest.inp_bytes)
    if nest.inp_bytes > nest.bus:
        per_row = max(nest.block // nest.bus, 1)
        beats += beats // per_row
        return beats + 3 * rows
    return beats + 4 * rows


@njit(cache=True, nogil=True)
def _record_of(nest, v, records, tags):  # type: ignore[no-untyped-def]
    """The geometry record of a schedule's spatial tiles, made where it is not in the hash table yet."""
    tag = (v[K_H] * (nest.ow + 1) + v[K_W]) * 2 + v[K_PAD]
    slot = (tag * 2654435761 >> 8) & (_RECORDS - 1)
    while tags[slot] >= 0 and tags[slot] != tag:
        slot = (slot + 1) & (_RECORDS - 1)
    if tags[slot] < 0:
        tags[slot] = tag
        _geometry(nest, v, records[slot])
    return records[slot]


def geometry_table() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Geometry records and their tags, none yet: for calls of `fits_into` and `summaries_into` on one nest, not at the
    same time."""
    return np.zeros((_RECORDS, _RECORD), dtype=np.int64), np.full(_RECORDS, -1, dtype=np.int64)


@njit(cache=True, nogil=True)
def fits_into(nest, values, out, records, tags):  # type: ignore[no-untyped-def]
    """Whether the SRAMs hold what canonical rows keep in them, into bool (n,); with a `geometry_table`."""
    at, need = np.empty(11, dtype=np.int64), np.empty(3, dtype=np.int64)
    for n in range(len(values)):
        v = values[n]
        g = _record_of(nest, v, records, tags)
        sram_layout_into(nest, v, g[_R_MAX_PLANE], nest.nb * g[_R_TILES], at, need)
        sram_needed(nest, v, g[_R_MAX_PLANE], need)
        out[n] = holds(nest, need)


@njit(cache=True, nogil=True)
def summaries_into(nest, values, out, records, tags):  # type: ignore[no-untyped-def]
    """`summaries` of canonical rows, into float64 (n, 25); with a `geometry_table`."""
    at, need = np.empty(11, dtype=np.int64), np.empty(3, dtype=np.int64)
    taps = nest.kh * nest.kw
    ci, co, nb, out_blocks = nest.ci, nest.co, nest.nb, nest.out_blocks
    latency = nest.latency
    outputs = nb * nest.oh * nest.ow * out_blocks
    stages, stage_cycles = stage_passes(nest)
    pool = nest.pool == 1
    inp_beat, wgt_beat = nest.inp_bytes / nest.bus, nest.wgt_bytes / nest.bus
    acc_beats = max(nest.acc_bytes // nest.bus, 1)
    wide_bus = nest.bus > 8
    chunk_insns = nest.burst if wide_bus else nest.burst // 2
    for n in range(len(values)):
        v = values[n]
        g = _record_of(nest, v, records, tags)
        flow, head_kind = v[K_FLOW], v[K_HEAD]
        inp_mode, wgt_mode = INP_MODE[flow], WGT_MODE[flow]
        tco, tci = v[K_CO], v[K_CI]
        co_tiles = channel_tiles(nest, v)
        sp_tiles = nb * g[_R_TILES]
        tiles = co_tiles * sp_tiles
        co_first, co_last = min(tco, co), last_channels(nest, v)
        gemms_all, gemms_first, gemms_last = _tile_gemms(v, g)
        groups = nb * gemms_all
        whole = ceil_div(ci, tci)
        tapered = whole
        first_chunk = tci
        if head_kind != HEAD_WHOLE:
            first_chunk = 1
            tapered = ci
            if head_kind == HEAD_DOUBLING:
                tapered, size, left = 0, 1, ci
                while left > 0 and size < tci:
                    left -= size
                    size = min(2 * size, tci)
                    tapered += 1
                tapered += ceil_div(max(left, 0), tci)
        if nest.minor and inp_mode != STREAM:
            steps = tiles * tapered
            gemms = co_tiles * groups * tapered
            last_chunks = tapered
        elif wgt_mode != STREAM:
            steps = sp_tiles * (tapered + (co_tiles - 1) * whole)
            gemms = groups * (tapered + (co_tiles - 1) * whole)
            last_chunks = tapered if co_tiles == 1 else whole
        else:
            steps = tapered + (tiles - 1) * whole
            gemms = gemms_first * tapered + (co_tiles * groups - gemms_first) * whole
            last_chunks = tapered if tiles == 1 else whole

        part, parts = head_parts(min(tco, co), head_kind)
        steps += parts - 1
        gemms += gemms_first * (parts - 1)

        # Loads: elements and instructions.
        if nest.depthwise:
            inp_elements = nb * g[_R_LOADED] * co
            inp_insns = nb * (g[_R_COMPACT] * co_tiles + g[_R_SPREAD] * co)
        else:
            repeats = co_tiles if inp_mode == STREAM else nest.groups
            inp_elements = nb * g[_R_LOADED] * ci * repeats
            inp_insns = nb * (g[_R_COMPACT] * whole + g[_R_SPREAD] * ci) * repeats
        if pool:
            wgt_elements = wgt_insns = 1
        else:
            wgt_elements = out_blocks * ci * taps * (sp_tiles if wgt_mode == STREAM else 1)
            wgt_insns = whole * co_tiles * (sp_tiles if wgt_mode == STREAM else 1)
        extra_elements = extra_insns = 0
        if nest.residual:
            extra_elements, extra_insns = outputs, tiles + 1
        inp_beats = int((inp_elements + extra_elements) * inp_beat)
        wgt_beats = int(wgt_elements * wgt_beat)
        loads = inp_insns + wgt_insns + extra_insns
        # A load that finds the memory busy does not pay its latency (VTA reference, 6.2 rule 4): 7, not 7 + latency.
        load = inp_beats + wgt_beats + 6 * loads
        first_channels = co_first if nest.depthwise else first_chunk
        first_elements = g[_R_LOADED_FIRST] * first_channels
        first_insns = (1 if g[_R_COMPACT_FIRST] else first_channels) + 1
        first_wgt = 1 if pool else part * first_chunk * taps
        first_load = int(first_elements * inp_beat) + int(first_wgt * wgt_beat) + 6 * first_insns

        # Compute: GEMM work, initialisation, epilogue.
        area_last = g[_R_LAST_H] * g[_R_LAST_W]
        last_outputs = co_last * area_last
        pc, ph, pw = pieces(nest, co_last, g[_R_LAST_H], g[_R_LAST_W], v[K_DRAIN])
        cuts = ceil_div(co_last, pc) * ceil_div(g[_R_LAST_H], ph) * ceil_div(g[_R_LAST_W], pw)
        every = v[K_ACC_BUF] == 1
        # Of a tile that drains before the next may start, only one piece is counted: it may be cut otherwise.
        all_cuts = tiles - 1 + cuts
        work = nb * g[_R_WORK] * ci * out_blocks
        gemm = work + 7 * gemms
        start = outputs + 7 * tiles
        extra = 0
        if pool:
            # Twice for two operands; the least number first, and the inputs' way into ACC.
            gemm = 2 * work + 7 * gemms + 2 * inp_elements + 14 * g[_R_REAL] * nb * co_tiles
            start += outputs + 7 * tiles
        if nest.pre_shift >= 0:
            extra += outputs + 7 * tiles
        if nest.bias:
            if v[K_BIAS] == BIAS_LOAD:
                # A bias that is repeated one by one is a row of its own, and takes two cycles.
                start = outputs * (acc_beats if nest.minor else max(acc_beats, 2)) + 6 * tiles
            elif v[K_BIAS] == BIAS_ADD:
                extra += 2 * outputs + 7 * tiles + out_blocks * acc_beats
            else:
                extra += outputs + 7 * tiles
        if nest.residual:
            extra += outputs + 7 * tiles
        finish = stage_cycles * outputs + 7 * stages * all_cuts
        compute = gemm + start + extra + finish + 8
        first_tile_start = start // tiles if nest.bias and v[K_BIAS] == BIAS_LOAD else co_first * v[K_H] * v[K_W] + 7
        if pool:
            first_tile_start *= 2

        # Head and tail.
        insns = gemms + tiles * 2 + all_cuts * stages + loads + all_cuts - tiles + 3
        insns += (tiles + 2 * g[_R_REAL] * nb * co_tiles) if pool else 0
        insns += tiles if nest.pre_shift >= 0 else 0
        fetched = min(chunk_insns, insns)
        if wide_bus:
            head = latency + 8 + ceil_div(fetched * 16, nest.bus)
        else:
            head = latency + 6 + 2 * fetched
        piece = min(pc, co_last) * min(ph, g[_R_LAST_H]) * min(pw, g[_R_LAST_W])
        last_c = co_last - (ceil_div(co_last, pc) - 1) * pc
        last_h = g[_R_LAST_H] - (ceil_div(g[_R_LAST_H], ph) - 1) * ph
        last_w = g[_R_LAST_W] - (ceil_div(g[_R_LAST_W], pw) - 1) * pw
        tail = _store_cycles(nest, last_c * last_h * last_w, 1) + 3
        last_extra = 0
        if nest.residual:
            last_extra += last_outputs + 7
        if nest.bias and v[K_BIAS] != BIAS_LOAD:
            last_extra += (2 if v[K_BIAS] == BIAS_ADD else 1) * last_outputs + 7
        last_finish = stage_cycles * last_outputs + 7 * stages * cuts
        last_ci = ci - (whole - 1) * tci if last_chunks == whole else 1
        last_co = part if steps == parts else co_last
        last_step = g[_R_WORK_LAST] * last_co * min(last_ci, tci) + 7 * gemms_last + last_extra + last_finish
        first_tile = g[_R_WORK_FIRST] * ci * co_first
        store = _store_cycles(nest, outputs, all_cuts)

        bound = head + compute + tail
        bound = max(bound, head + first_load + compute - first_tile_start - 8 + tail)
        bound = max(bound, head + load + last_step + tail)
        bound = max(bound, latency + 4 + inp_beats + wgt_beats + 2 + last_step + tail)
        bound = max(bound, head + first_load + store + (first_tile if tiles > 1 or cuts == 1 else 0))

        serial = 0
        per_load = latency
        if inp_mode == STREAM and v[K_INP_BUF] == 1:
            serial += inp_beats + (7 + per_load) * inp_insns
        if wgt_mode == STREAM and v[K_WGT_BUF] == 1 and not pool:
            serial += wgt_beats + (7 + per_load) * wgt_insns
        if inp_mode == SET and v[K_INP_BUF] == 1 and sp_tiles > 1:
            serial += (inp_beats + (7 + per_load) * inp_insns) // max(whole, 1)
        if wgt_mode == SET and v[K_WGT_BUF] == 1 and co_tiles > 1 and not pool:
            serial += (wgt_beats + (7 + per_load) * wgt_insns) // max(whole, 1)
        exposed = 0
        if every and tiles > 1:
            exposed = (tiles - 1) * (_store_cycles(nest, piece, 1) + 4)
        paid = load + per_load * loads
        port = inp_beats + wgt_beats + 2 * insns
        estimate = head + first_load + max(compute + serial + exposed, max(paid, port)) + tail

        cell = (2 * v[K_FOLD] + (tci > 1)) * _NARROW + min(narrowest(nest, v), _NARROW) - 1
        sram_layout_into(nest, v, g[_R_MAX_PLANE], sp_tiles, at, need)
        sram_needed(nest, v, g[_R_MAX_PLANE], need)
        row = out[n]
        row[S_BOUND] = bound
        row[S_ESTIMATE] = estimate
        row[S_COMPUTE] = compute
        row[S_LOAD] = paid
        row[S_STORE] = store
        row[S_READ_BEATS] = port
        row[S_HEAD] = head
        row[S_FIRST_LOAD] = first_load
        row[S_FIRST_TILE] = first_tile
        row[S_LAST_STEP] = last_step
        row[S_TAIL] = tail
        row[S_SERIAL_LOAD] = serial
        row[S_EXPOSED_STORE] = exposed
        row[S_INP_BEATS] = inp_beats
        row[S_WGT_BEATS] = wgt_beats
        row[S_LOADS] = loads
        row[S_GEMMS] = gemms
        row[S_STEPS] = steps
        row[S_TILES] = tiles
        row[S_INSTRUCTIONS] = insns
        # Most of the time goes into the micro-ops, so what no SRAM holds is not looked at.
        fits = holds(nest, need)
        row[S_UOPS] = _all_uops(nest, v, g, sp_tiles, co_tiles, whole, cuts) if fits else 0
        row[S_INP_USE] = need[0] / nest.inp_depth
        row[S_WGT_USE] = need[1] / nest.wgt_depth
        row[S_ACC_USE] = need[2] / nest.acc_depth
        row[S_RECURRENCE] = g[_R_RECUR + cell]


def summaries(nest: Nest, values: NDArray[np.int64]) -> NDArray[np.float64]:
    """Closed-form totals (n, len(SUMMARY)) of knob values (n, knobs), which are made canonical first.

    ``bound`` is proven for every schedule that lowers: no engine does its own operations faster, nor before the
    first fetch and loads, nor ends before the last store (VTA reference, 6.7).
    """
    rows = canonical(nest, values)
    out = np.zeros((len(rows), len(SUMMARY)))
    summaries_into(nest, rows, out, *geometry_table())
    return out
