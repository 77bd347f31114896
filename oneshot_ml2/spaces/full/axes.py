"""The spatial loops of a nest cut into tiles: what each computes, which inputs it loads, and which taps meet them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import from_dtype

from oneshot_ml2.common.kernels import njit
from oneshot_ml2.common.parts import part
from oneshot_ml2.spaces.full.knobs import FOLD_CI_ROWS, FOLD_SPACE, FOLD_TAPS, INT, PAD_LOAD, PAD_SKIP, ceil_div
from oneshot_ml2.vta.nest import MAX_INSNS

# A tile of one axis: first output, outputs, first loaded input, inputs in SRAM, pads before and after; outputs that its
# taps meet in all, distinct numbers of outputs that taps meet (groups), first tile of equal geometry, taps that meet
# real inputs, and those of them that meet one output.
TILE = np.dtype(
    [
        (name, np.int64)
        for name in (
            "first", "outputs", "load", "held", "before", "after", "met", "groups", "alike", "touching", "single",
        )
    ]
)  # fmt: skip
# A tap in a tile: the first output whose input is real, and how many such outputs there are.
TAP = np.dtype([("first", np.int64), ("outputs", np.int64)])
# What tells how soon accumulators recur: outputs, taps that meet as many, how far apart their first outputs lie.
ITEM = np.dtype([("outputs", np.int64), ("taps", np.int64), ("apart", np.int64)])
_ITEMS = from_dtype(ITEM)[::1]  # type: ignore[no-untyped-call]

# A portable GEMM must not write an accumulator again within so many executions, as the RTL's pipeline reads them that
# long before it writes (TensorGemm.scala); from `FAR` on, more make no difference.
RECURRENCE, FAR = 3, 64
# Taps of all tiles of an axis that are kept, if fewer tiles than `most_tiles` has at least do not have more.
_TAPS = 1 << 24


class Loop(NamedTuple):
    """One spatial loop; ``spread``: outputs from one input to the next (a transposed convolution's)."""

    out: int
    size: int
    kernel: int
    stride: int
    spread: int
    dilation: int
    lead: int


@part()
def row_loop(nest):  # type: ignore[no-untyped-def]
    return Loop(nest.oh, nest.ih, nest.kh, nest.sh, nest.th, nest.dh, nest.pt)


@part()
def col_loop(nest):  # type: ignore[no-untyped-def]
    return Loop(nest.ow, nest.iw, nest.kw, nest.sw, nest.tw, nest.dw, nest.pl)


@part()
def load_step(kernel: int, stride: int, pad: int) -> int:
    """DRAM rows per loaded row: a one-row kernel reads only every stride-th row; columns are never skipped."""
    return stride if kernel == 1 and pad == PAD_SKIP else 1


@part()
def starts_gemm(fold: int, taps, tap: int) -> bool:  # type: ignore[no-untyped-def]
    """Whether ``tap`` is the first of a tile's ``taps`` that a GEMM (of this axis) multiplies."""
    if fold != FOLD_TAPS:
        for other in range(tap):
            if taps[other].outputs == taps[tap].outputs:
                return False
    return bool(taps[tap].outputs > 0)


@part()
def shares_gemm(fold: int, taps, tap: int, first: int) -> bool:  # type: ignore[no-untyped-def]
    """Whether the GEMM that starts with the tap ``first`` multiplies ``tap``, too."""
    return bool(tap == first) if fold == FOLD_TAPS else bool(taps[tap].outputs == taps[first].outputs)


@part()
def shared_taps(fold: int, taps, first: int) -> int:  # type: ignore[no-untyped-def]
    """How many taps the GEMM that starts with the tap ``first`` multiplies."""
    if fold == FOLD_TAPS:
        return 1
    count = 0
    for tap in range(first, len(taps)):
        count += taps[tap].outputs == taps[first].outputs
    return count


@part()
def gemms_of(fold: int, row, col) -> int:  # type: ignore[no-untyped-def]
    """GEMMs of a step of the spatial tile of a ``row`` and a ``col``."""
    return row.touching * col.touching if fold == FOLD_TAPS else row.groups * col.groups


@njit(cache=True, nogil=True)
def most_tiles(kernel: int) -> int:
    """Tiles of one axis beyond which a schedule is not looked at: no program can have more than `MAX_INSNS` of them.

    Of a large kernel, whose taps take memory, a third: a tile takes three instructions at least.
    """
    return max(MAX_INSNS // 3, min(MAX_INSNS, _TAPS // kernel))


@part()
def tile_axis(loop, step, extent, pad):  # type: ignore[no-untyped-def]
    """A loop cut into tiles of ``extent`` outputs; ``step``: `load_step`.

    Of more tiles than any program can have (`most_tiles`) only the first ones are there: one too many.

    Returns `TILE` (tiles,), and `TAP` (tiles, kernel); all outputs of a tile meet real inputs when pads are loaded.
    """
    n = min(ceil_div(loop.out, extent), most_tiles(loop.kernel) + 1)
    tiles = np.zeros(n, dtype=TILE)
    taps = np.empty((n, loop.kernel), dtype=TAP)
    # The tile in which as many outputs were last met by a tap.
    met_in = np.full(min(extent, loop.out) + 1, -1, dtype=np.int64)
    # Tiles that stand for their class, and whether all their taps meet all their outputs.
    leaders, whole, classes = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.bool_), 0
    for i in range(n):
        tile = tiles[i]
        tile.first = i * extent
        tile.outputs = min(extent, loop.out - tile.first)
        whole[i] = _meet_taps(loop, step, pad, i, tile, taps[i], met_in)
        tile.alike = i
        for other in leaders[:classes]:
            if whole[other] == whole[i] and _alike(loop, step, whole[i], tile, tiles[other], taps[i], taps[other]):
                tile.alike = other
                break
        if tile.alike == i:
            leaders[classes] = i
            classes += 1
    return tiles, taps


@part()
def _meet_taps(loop, step, pad, i, tile, taps, met_in):  # type: ignore[no-untyped-def]
    """Fill the taps of tile ``i``, and what it loads for them; returns whether all taps meet all outputs."""
    first, count = tile.first, tile.outputs
    low = first * loop.stride - loop.lead
    high = (first + count - 1) * loop.stride + (loop.kernel - 1) * loop.dilation - loop.lead
    whole = loop.spread == 1 and (pad == PAD_LOAD or (low >= 0 and high < loop.size))
    if whole:
        for k in range(loop.kernel):
            taps[k].first, taps[k].outputs = first, count
        tile.met, tile.groups, tile.touching = loop.kernel * count, 1, loop.kernel
        tile.single = loop.kernel if count == 1 else 0
    else:
        low, high = loop.size, -1
    for k in range(0 if whole else loop.kernel):
        offset = k * loop.dilation - loop.lead
        begin, end = first, first + count
        if loop.spread > 1:
            begin = max(begin, -offset)
            begin += (-offset - begin) % loop.spread
            end = min(end, (loop.size - 1) * loop.spread - offset + 1)
        elif pad == PAD_SKIP:
            begin = max(begin, ceil_div(-offset, loop.stride))
            end = min(end, (loop.size - 1 - offset) // loop.stride + 1)
        met = max(ceil_div(end - begin, loop.spread), 0)
        taps[k].first, taps[k].outputs = begin, met
        if met > 0:
            tile.met += met
            tile.touching += 1
            tile.single += met == 1
            low = min(low, (begin * loop.stride + offset) // loop.spread)
            high = max(high, ((begin + (met - 1) * loop.spread) * loop.stride + offset) // loop.spread)
            tile.groups += met_in[met] != i
            met_in[met] = i
    if high >= low:
        tile.load = max(low, 0)
        tile.held = (high - low) // step + 1
        tile.before = max(-low, 0)
        tile.after = max(high - (loop.size - 1), 0)
    return whole


@part()
def _alike(loop, step, whole, tile, other, taps, other_taps):  # type: ignore[no-untyped-def]
    """Whether two tiles have the same geometry: the same GEMMs with the same indices. ``whole``: of both tiles."""
    if other.outputs != tile.outputs or other.held != tile.held:
        return False
    for k in range(0 if whole else loop.kernel):
        if other_taps[k].outputs != taps[k].outputs:
            return False
        if taps[k].outputs > 0:
            here = tap_source(loop, tile, taps[k].first, k, step)
            there = tap_source(loop, other, other_taps[k].first, k, step)
            if here != there or taps[k].first - tile.first != other_taps[k].first - other.first:
                return False
    return True


@part()
def tap_source(loop, tile, output, tap, step):  # type: ignore[no-untyped-def]
    """Index within the loaded tile of the input that ``tap`` reads for ``output``."""
    source = (output * loop.stride + tap * loop.dilation - loop.lead) // loop.spread
    return (source - tile.load + tile.before) // step


@part()
def tap_items(tiles, taps):  # type: ignore[no-untyped-def]
    """What tells how soon accumulators recur on a cut axis, `ITEM` (m,), all distinct."""
    kernel = taps.shape[1]
    leaders, most = 0, 0
    for i in range(len(tiles)):
        leaders += tiles[i].alike == i
        most = max(most, tiles[i].outputs)
    items = np.empty(leaders * kernel, dtype=ITEM)
    # By outputs met: the tile that they are of (of the last one looked at), and its taps that meet as many.
    seen = np.full(most + 1, -1, dtype=np.int64)
    alike, low, high = np.empty(most + 1, np.int64), np.empty(most + 1, np.int64), np.empty(most + 1, np.int64)
    m = np.int64(0)
    for i in range(len(tiles)):
        if tiles[i].alike != i:
            continue
        for k in range(kernel):
            begin, count = taps[i, k].first, taps[i, k].outputs
            if seen[count] != i:
                seen[count], alike[count], low[count], high[count] = i, 0, begin, begin
            alike[count] += 1
            low[count], high[count] = min(low[count], begin), max(high[count], begin)
        for k in range(kernel):
            count = taps[i, k].outputs
            if count > 0 and seen[count] == i:
                seen[count] = -1
                m = _add_item(items, m, count, alike[count], high[count] - low[count])
    return items[:m].copy()


@part()
def _add_item(items, m, outputs, taps, apart):  # type: ignore[no-untyped-def]
    """One more of the first ``m`` items unless it is there already; returns how many there are."""
    for other in range(m):
        item = items[other]
        if item.outputs == outputs and item.taps == taps and item.apart == apart:
            return m
    items[m].outputs, items[m].taps, items[m].apart = outputs, taps, apart
    return m + 1


@part(INT(INT, INT, INT, _ITEMS, _ITEMS))
def recurrence(fold: int, co: int, chunk: int, row_items, col_items) -> int:  # type: ignore[no-untyped-def]
    """After how many executions a GEMM writes an accumulator again at least, 0 to `FAR`.

    ``co``: `tiles.narrowest`; ``chunk``: input channels of a step; items: `tap_items` of both axes. Of different
    accumulators in between, those count less by which a tap's first output comes before another's.
    """
    least = np.int64(FAR)
    for i in range(len(row_items)):
        high = row_items[i].outputs
        for j in range(len(col_items)):
            wide = col_items[j].outputs
            taps = row_items[i].taps * col_items[j].taps
            across = col_items[j].apart
            shift = row_items[i].apart * wide + across
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
def cut_axes(nest, schedule):  # type: ignore[no-untyped-def]
    """`tile_axis` of the rows and of the columns of a schedule, and the row step of its loads."""
    step = load_step(nest.kh, nest.sh, schedule.pad)
    rows, row_taps = tile_axis(row_loop(nest), step, schedule.tile_h, schedule.pad)
    cols, col_taps = tile_axis(col_loop(nest), np.int64(1), schedule.tile_w, schedule.pad)
    return rows, row_taps, cols, col_taps, step
