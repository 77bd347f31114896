"""Max pooling in a program: inputs go into ACC as products with one, and maxima are taken in place (`vta.windows`).

Outputs end up in the tile's accumulators, as compact as a STORE reads them; what else is loaded lies in the scratch,
by region: (output rows, other columns), (other rows, output columns), and the rest. One axis is finished before the
other begins, on as many lines as that one has slots.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import from_dtype, types

from oneshot_ml2.common.parts import part
from oneshot_ml2.spaces.full.axes import Loop, col_loop, load_step, row_loop
from oneshot_ml2.spaces.full.knobs import INT, PAD_SKIP
from oneshot_ml2.spaces.full.sink import ONE_SINK, claim, find_kernel, gemm, single, write_gemm, write_tensor
from oneshot_ml2.vta.program import AluOp
from oneshot_ml2.vta.windows import cut_windows

# A loop over accumulators: extent, and steps of destination and source.
_LOOP = np.dtype([(name, np.int64) for name in ("extent", "dst", "src")])
_LOOPS = from_dtype(_LOOP)[::1]  # type: ignore[no-untyped-call]
_GEMM = -1


class Lines(NamedTuple):
    """An axis of a tile, or the sum of several tiles': tiles, outputs, slots; slots that a first pass over the other
    axis looks at, and in how many pieces; parts and passes, and of how many slots the passes take the maximum; tiles
    without other slots than those of outputs."""

    tiles: int
    outputs: int
    slots: int
    seen: int
    pieces: int
    parts: int
    passes: int
    maxima: int
    alone: int


@part()
def windows_of(loop, tile, step):  # type: ignore[no-untyped-def]
    """`vta.windows.cut_windows` of a tile, `axes.TILE`, of an axis; ``step``: `axes.load_step`."""
    first = tile.first * loop.stride - loop.lead
    return cut_windows(tile.outputs, loop.kernel, loop.stride, max(-first, 0), loop.size - first, step)


@part()
def lines_of(outputs, cut):  # type: ignore[no-untyped-def]
    """The `Lines` of ``outputs`` whose windows are ``cut`` (`windows_of`)."""
    slots, outside, parts, passes = cut
    maxima = np.int64(0)
    for i in range(len(passes)):
        maxima += passes[i].count
    alone = np.int64(slots == outputs)
    pieces = np.int64(outside < outputs) + 1 - alone
    parts, passes = np.int64(len(parts)), np.int64(len(passes))
    return Lines(np.int64(1), outputs, slots, slots - outside, pieces, parts, passes, maxima, alone)


@part()
def tile_lines(loop, tile, step):  # type: ignore[no-untyped-def]
    """The `Lines` of a tile, `axes.TILE`, of an axis."""
    return lines_of(tile.outputs, windows_of(loop, tile, step))


@part()
def all_lines(loop, tiles, many, step):  # type: ignore[no-untyped-def]
    """The sum of the `Lines` of an axis; ``many``: how many tiles each stands for, int64 (n,)."""
    zero = np.int64(0)
    total = Lines(zero, zero, zero, zero, zero, zero, zero, zero, zero)
    for i in range(len(tiles)):
        n = many[i]
        if n > 0:
            one = tile_lines(loop, tiles[i], step)
            total = Lines(
                total.tiles + n, total.outputs + n * one.outputs, total.slots + n * one.slots,
                total.seen + n * one.seen, total.pieces + n * one.pieces, total.parts + n * one.parts,
                total.passes + n * one.passes, total.maxima + n * one.maxima, total.alone + n * one.alone,
            )  # fmt: skip
    return total


@part(INT(types.NamedUniTuple(INT, 7, Loop), INT, INT))  # type: ignore[no-untyped-call]
def _most_others(loop, extent, step):  # type: ignore[no-untyped-def]
    """Slots beside those of the outputs, at most, of the tiles of ``extent`` outputs."""
    inputs = loop.lead + loop.size + 1
    most = np.int64(0)
    for outputs in (min(extent, loop.out), (loop.out - 1) % extent + 1):
        reach = (outputs - 1) * min(loop.stride, loop.kernel) + loop.kernel
        most = max(most, min(reach, inputs) - outputs)
    return most


@part()
def scratch_of(nest, schedule):  # type: ignore[no-untyped-def]
    """Accumulators beside the outputs that any tile of a schedule needs."""
    height, width = min(schedule.tile_h, nest.oh), min(schedule.tile_w, nest.ow)
    rows = _most_others(row_loop(nest), height, np.int64(1))
    cols = _most_others(col_loop(nest), width, np.int64(1))
    return schedule.tile_co * (rows * width + height * cols + rows * cols)


@part()
def rows_first(nest, schedule) -> bool:  # type: ignore[no-untyped-def]
    """Whether the rows of a window come before its columns: what takes fewer maxima in a whole tile within the image.

    All tiles of a schedule do the same.
    """
    height, width = min(schedule.tile_h, nest.oh), min(schedule.tile_w, nest.ow)
    zero, one, far = np.int64(0), np.int64(1), nest.ih + nest.iw + (nest.oh + nest.ow) * (nest.sh + nest.sw)
    rows = lines_of(height, cut_windows(height, nest.kh, nest.sh, zero, far + nest.kh, one))
    cols = lines_of(width, cut_windows(width, nest.kw, nest.sw, zero, far + nest.kw, one))
    return rows.maxima * cols.slots + cols.maxima * height < cols.maxima * rows.slots + rows.maxima * width


class Pooled(NamedTuple):
    """What tiles take: of a channel slots, which are cleared and filled, and maxima; GEMMs, passes and resets."""

    slots: int
    maxima: int
    gemms: int
    passes: int
    resets: int


@part()
def pooled(rows, cols, by_rows):  # type: ignore[no-untyped-def]
    """What a tile of ``rows`` and ``cols`` takes, or all tiles of the sums of both."""
    first, second = (rows, cols) if by_rows else (cols, rows)
    maxima = first.maxima * second.seen + second.maxima * first.outputs
    passes = first.passes * second.pieces + second.passes * first.tiles
    resets = 2 * rows.tiles * cols.tiles - rows.alone * cols.alone
    return Pooled(rows.slots * cols.slots, maxima, rows.parts * cols.parts, passes, resets)


@part()
def clear_slots(nest, sram, tile, row, col, sink):  # type: ignore[no-untyped-def]
    """Sets the accumulators of a tile and of its scratch to 0; returns the first instruction."""
    step = load_step(nest.kh, nest.sh, PAD_SKIP)
    rows, cols = windows_of(row_loop(nest), row, step)[0], windows_of(col_loop(nest), col, np.int64(1))[0]
    outputs = tile.height * tile.width
    first = gemm(sink, 1, single(sink, tile.acc, 0, 0), (tile.co * outputs, 1, 0, 0), (1, 0, 0, 0))
    if rows * cols > outputs:
        uop = single(sink, sram.scratch, 0, 0)
        gemm(sink, 1, uop, (tile.co * (rows * cols - outputs), 1, 0, 0), (1, 0, 0, 0))
    return first


class _Place(NamedTuple):
    """Where slots lie: the first one of a region, and the steps to the next channel and the next row."""

    base: int
    channel: int
    row: int


@part()
def _place(sram, tile, rows, cols, row, col):  # type: ignore[no-untyped-def]
    """The `_Place` of the slots from (``row``, ``col``) on; ``rows``, ``cols``: slots of a tile."""
    height, width = tile.height, tile.width
    more_h, more_w = rows - height, cols - width
    if row < height and col < width:
        base, high, wide = tile.acc, height, width
    elif row < height:
        base, high, wide = sram.scratch, height, more_w
        col -= width
    else:
        base, high, wide = sram.scratch + tile.co * height * more_w, more_h, width
        row -= height
        if col >= width:
            base, wide = base + tile.co * more_h * width, more_w
            col -= width
    return _Place(base + row * wide + col, high * wide, wide)


@part()
def copy_inputs(nest, sram, tile, row, col, source, sink):  # type: ignore[no-untyped-def]
    """Inputs of a tile from ``source`` on into their slots."""
    step = load_step(nest.kh, nest.sh, PAD_SKIP)
    rows, _, row_parts, _ = windows_of(row_loop(nest), row, step)
    cols, _, col_parts, _ = windows_of(col_loop(nest), col, np.int64(1))
    loops = np.empty(5, dtype=_LOOP)
    for i in range(len(row_parts)):
        down = row_parts[i]
        for j in range(len(col_parts)):
            across = col_parts[j]
            place = _place(sram, tile, rows, cols, down.slot, across.slot)
            _set_loop(loops, 0, across.blocks, 1, across.block_step)
            _set_loop(loops, 1, across.phases, across.pitch, across.phase_step)
            _set_loop(loops, 2, down.blocks, place.row, down.block_step * col.held)
            _set_loop(loops, 3, down.phases, down.pitch * place.row, down.phase_step * col.held)
            _set_loop(loops, 4, tile.co, place.channel, tile.plane)
            _run(sink, _GEMM, place.base, source + down.source * col.held + across.source, loops)


@part()
def take_maxima(nest, schedule, sram, tile, row, col, first, channels, sink):  # type: ignore[no-untyped-def]
    """The maxima of ``channels`` of a tile from its ``first`` one on, from its slots into those of its outputs."""
    some = (first, channels)
    step = load_step(nest.kh, nest.sh, PAD_SKIP)
    rows, above, _, row_passes = windows_of(row_loop(nest), row, step)
    cols, left, _, col_passes = windows_of(col_loop(nest), col, np.int64(1))
    by_rows = rows_first(nest, schedule)
    if by_rows:
        _along_rows(sram, tile, rows, cols, some, row_passes, left, tile.width, sink)
        _along_rows(sram, tile, rows, cols, some, row_passes, tile.width, cols, sink)
    else:
        _along_cols(sram, tile, rows, cols, some, col_passes, above, tile.height, sink)
        _along_cols(sram, tile, rows, cols, some, col_passes, tile.height, rows, sink)
    if by_rows:
        _along_cols(sram, tile, rows, cols, some, col_passes, 0, tile.height, sink)
    else:
        _along_rows(sram, tile, rows, cols, some, row_passes, 0, tile.width, sink)


@part()
def _along_rows(sram, tile, rows, cols, some, passes, begin, end, sink):  # type: ignore[no-untyped-def]
    """Passes over the rows of the columns ``begin`` to ``end``, of one region; ``some``: first channel and channels."""
    loops = np.empty(3, dtype=_LOOP)
    for i in range(len(passes) if end > begin else 0):
        dst = _place(sram, tile, rows, cols, passes[i].dst, begin)
        src = _place(sram, tile, rows, cols, passes[i].src, begin)
        _set_loop(loops, 0, end - begin, 1, 1)
        _set_loop(loops, 1, passes[i].count, dst.row, src.row)
        _set_loop(loops, 2, some[1], dst.channel, src.channel)
        dst_base, src_base = dst.base + some[0] * dst.channel, src.base + some[0] * src.channel
        _run(sink, AluOp.MAX, dst_base, src_base, loops)


@part()
def _along_cols(sram, tile, rows, cols, some, passes, begin, end, sink):  # type: ignore[no-untyped-def]
    """Passes over the columns of the rows ``begin`` to ``end``, of one region; ``some``: first channel and channels."""
    loops = np.empty(3, dtype=_LOOP)
    for i in range(len(passes) if end > begin else 0):
        dst = _place(sram, tile, rows, cols, begin, passes[i].dst)
        src = _place(sram, tile, rows, cols, begin, passes[i].src)
        _set_loop(loops, 0, passes[i].count, 1, 1)
        _set_loop(loops, 1, end - begin, dst.row, src.row)
        _set_loop(loops, 2, some[1], dst.channel, src.channel)
        dst_base, src_base = dst.base + some[0] * dst.channel, src.base + some[0] * src.channel
        _run(sink, AluOp.MAX, dst_base, src_base, loops)


@part(types.void(_LOOPS, INT, INT, INT, INT))
def _set_loop(loops, i, extent, dst, src):  # type: ignore[no-untyped-def]
    loops[i].extent, loops[i].dst, loops[i].src = extent, dst, src


@part(INT(_LOOPS))
def _join(loops):  # type: ignore[no-untyped-def]
    """Nested ``loops``, the innermost first, without those of one iteration, and with what is one run as one; in place.

    Those of the most iterations come first then. Returns how many there are.
    """
    n = 0
    for i in range(len(loops)):
        loop = loops[i]
        if loop.extent == 1:
            continue
        if n > 0:
            last = loops[n - 1]
            if last.extent * last.dst == loop.dst and last.extent * last.src == loop.src:
                last.extent *= loop.extent
                continue
        _set_loop(loops, n, loop.extent, loop.dst, loop.src)
        n += 1
    for i in range(1, n):
        for j in range(i, 0, -1):
            if loops[j].extent > loops[j - 1].extent:
                extent, dst, src = loops[j].extent, loops[j].dst, loops[j].src
                _set_loop(loops, j, loops[j - 1].extent, loops[j - 1].dst, loops[j - 1].src)
                _set_loop(loops, j - 1, extent, dst, src)
    return n


@part(INT(_LOOPS, INT, INT))
def _word(loops, i, n):  # type: ignore[no-untyped-def]
    """The loop ``i`` of ``n`` as a number: extents and accumulators have 12 bits, inputs 16."""
    if i >= n:
        return np.int64(0)
    return (loops[i].extent << 28) | (loops[i].dst << 16) | loops[i].src


@part(types.void(ONE_SINK, INT, INT, INT, _LOOPS))
def _run(sink, opcode, dst, src, loops):  # type: ignore[no-untyped-def]
    """A GEMM, or an ALU pass of two operands: the two longest loops are the instruction's, the others micro-ops."""
    n = _join(loops)
    uops = np.int64(1)
    for i in range(2, n):
        uops *= loops[i].extent
    if uops == 1:
        begin, fresh = single(sink, dst, src, 0), False
    else:
        third = _word(loops, 3, n)
        second = (_word(loops, 2, n) << 20) | (third & 0xFFFFF)
        begin, fresh = find_kernel(sink, (dst << 32) | src, second, ((third >> 20) << 40) | _word(loops, 4, n), uops)
    insn, writes = claim(sink, 1)
    if not writes:
        return
    if fresh:
        for k in range(uops):
            rest, word = k, sink.words[begin + k]
            word.dst, word.src, word.wgt = dst, src, 0
            for i in range(2, n):
                at = rest % loops[i].extent
                rest //= loops[i].extent
                word.dst += at * loops[i].dst
                word.src += at * loops[i].src
    none = np.int64(0)
    outer = inner = (np.int64(1), none, none, none)
    if n > 0:
        inner = (loops[0].extent, loops[0].dst, loops[0].src, none)
    if n > 1:
        outer = (loops[1].extent, loops[1].dst, loops[1].src, none)
    if opcode == _GEMM:
        write_gemm(sink, insn, 0, begin, begin + uops, outer, inner)
    else:
        write_tensor(sink, insn, opcode, begin, begin + uops, outer, inner)
