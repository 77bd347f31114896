"""The order of a `full` program, written once: `sink` makes instructions of it, or counts them.

Output tiles follow each other; each initialises its accumulators, takes its steps (a group of LOADs and the GEMMs that
read them), and after the last one goes through its epilogue and is stored. Every push stands before its pop in program
order, so that no queue length can make the program hang.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import from_dtype, types

from oneshot_ml2.common.parts import part
from oneshot_ml2.spaces.full.axes import (
    TILE,
    col_loop,
    gemms_of,
    load_step,
    row_loop,
    shared_taps,
    shares_gemm,
    starts_gemm,
    tap_source,
)
from oneshot_ml2.spaces.full.knobs import (
    BIAS_ADD,
    BIAS_GEMM,
    BIAS_LOAD,
    FOLD_CI_CO,
    FOLD_SPACE,
    INT,
    NEST,
    PAD_LOAD,
)
from oneshot_ml2.spaces.full.pooling import clear_slots, copy_inputs, take_maxima
from oneshot_ml2.spaces.full.shapes import bias_shape, input_shape, output_shape, weight_shape
from oneshot_ml2.spaces.full.sink import (
    INSTRUCTION_OVERFLOW,
    ONE_SINK,
    SPAN,
    VALID,
    claim,
    fail,
    find_kernel,
    flag,
    gemm,
    immediate,
    move,
    nop,
    single,
    tensor,
    write_gemm,
)
from oneshot_ml2.spaces.full.steps import LOADS_CONST, LOADS_INP, LOADS_RES, LOADS_WGT
from oneshot_ml2.spaces.full.tiles import channel_tile, drains, pieces
from oneshot_ml2.vta.program import AluOp, Flag, Memory


class Tile(NamedTuple):
    """An output tile: its number, and those of its image and channel group; its first channel block of all groups and
    how many it has; rows and columns; its accumulators, and the residual that is added to them; inputs of a channel."""

    number: int
    image: int
    group: int
    first_co: int
    co: int
    height: int
    width: int
    acc: int
    residual: int
    plane: int


_TILE = types.NamedUniTuple(INT, 10, Tile)  # type: ignore[no-untyped-call]
_AXIS = from_dtype(TILE)  # type: ignore[no-untyped-call]


@part()
def tile_at(nest, schedule, sram, t, c, s, places, row, col):  # type: ignore[no-untyped-def]
    """Output tile ``t`` of channel tile ``c`` and spatial tile ``s``; ``places``: spatial tiles of an image."""
    first_co, co, group, _ = channel_tile(nest, schedule, c)
    return Tile(
        t,
        s // places,
        group,
        first_co,
        co,
        row.outputs,
        col.outputs,
        (t % schedule.acc_buffers) * sram.acc_slot,
        sram.res_base + (t % schedule.inp_buffers) * sram.res_slot,
        row.held * col.held,
    )


@part()
def walk_tile(nest, schedule, sram, tile, row, col, row_taps, col_taps, signature, tiles, steps, sink):  # type: ignore[no-untyped-def]
    """An output tile of ``tiles``: its ``steps`` and what comes before and after them; stops at a failure.

    ``row``, ``col``: its `axes.TILE`; ``row_taps``, ``col_taps``: its `axes.TAP`, which only writing needs;
    ``signature``: tells its geometry from that of others.
    """
    _initialise(nest, schedule, sram, tile, row, col, sink)
    for i in range(len(steps)):
        step = steps[i]
        _load(nest, schedule, sram, tile, row, col, step, sink)
        # The kernels of a step whose GEMMs do not fit any more are not looked at.
        if nest.pool == 0 and sink.insns + gemms_of(schedule.fold, row, col) > sink.most_insns:
            fail(sink, INSTRUCTION_OVERFLOW)
        if sink.fail != VALID:
            return
        begin = sink.insns
        if nest.pool:
            copy_inputs(nest, sram, tile, row, col, step.inp_base, sink)
        else:
            _multiply(nest, schedule, tile, row, col, row_taps, col_taps, signature, step, sink)
            if step.last:
                _accumulate(nest, schedule, sram, tile, sink)
        if sink.insns == begin and (step.loads or step.pushes):
            nop(sink)
        if sink.fail != VALID:
            return
        if step.loads:
            flag(sink, begin, Flag.POP_PREV)
        if step.pushes:
            flag(sink, sink.insns - 1, Flag.PUSH_PREV)
    if nest.bias and schedule.bias == BIAS_ADD and nest.pre_shift < 0:
        _add_bias(nest, sram, tile, sink)
    _finish(nest, schedule, sram, tile, row, col, tiles, sink)


@part()
def _initialise(nest, schedule, sram, tile, row, col, sink):  # type: ignore[no-untyped-def]
    """Set a tile's accumulators to their biases, or to 0."""
    area = tile.height * tile.width
    first = sink.insns
    if nest.pool:
        first = clear_slots(nest, sram, tile, row, col, sink)
    elif nest.bias and schedule.bias == BIAS_LOAD:
        n, y, x = bias_shape(nest, tile.co, tile.height, tile.width)
        move(sink, Memory.ACC, n, (y, x, 0), tile.acc, area, nest.dram_bias + tile.first_co, 1, (0, 0, 0, 0))
    else:
        if nest.bias and schedule.bias == BIAS_ADD and tile.number == 0:
            move(sink, Memory.ACC, 1, (1, nest.out_blocks, 0), sram.bias, 0, nest.dram_bias, 0, (0, 0, 0, 0))
        uop = single(sink, tile.acc, 0, 0)
        first = gemm(sink, 1, uop, (tile.co * area, 1, 0, 0), (1, 0, 0, 0))
    if tile.number >= schedule.acc_buffers:
        flag(sink, first, Flag.POP_NEXT)


@part()
def _load(nest, schedule, sram, tile, row, col, step, sink):  # type: ignore[no-untyped-def]
    """What a step loads, after the steps that read what it overwrites."""
    begin = sink.insns
    if step.loads & LOADS_INP:
        _load_inputs(nest, schedule, tile, row, col, step, sink)
    if step.loads & LOADS_WGT:
        dram = nest.dram_wgt + ((tile.first_co + step.co_first) * nest.ci + step.ci_first) * nest.kh * nest.kw
        move(sink, Memory.WGT, 1, weight_shape(nest, step.ci, step.co), step.wgt_base, 0, dram, 0, (0, 0, 0, 0))
    if step.loads & LOADS_RES:
        size = (tile.co, tile.height, tile.width)
        _move_outputs(nest, tile, Memory.INP, tile.residual, nest.dram_res, row, col, (0, 0, 0), size, sink)
        if tile.number == 0:
            move(sink, Memory.WGT, 1, (1, 1, 0), sram.identity, 0, nest.dram_ident, 0, (0, 0, 0, 0))
    if step.loads & LOADS_CONST:
        move(sink, Memory.WGT, 1, (1, nest.out_blocks, 0), sram.bias_wgt, 0, nest.dram_bias_wgt, 0, (0, 0, 0, 0))
        move(sink, Memory.INP, 1, (1, 1, 0), sram.constant, 0, nest.dram_const, 0, (0, 0, 0, 0))
    if step.loads and sink.fail == VALID:
        if step.needs > sink.granted:
            sink.granted = step.needs
            flag(sink, begin, Flag.POP_NEXT)
        flag(sink, sink.insns - 1, Flag.PUSH_NEXT)


@part()
def _load_inputs(nest, schedule, tile, row, col, step, sink):  # type: ignore[no-untyped-def]
    """Input channels of a chunk of a spatial tile, compact in SRAM."""
    first, channels = step.ci_first, step.ci
    if nest.depthwise:
        first, channels = tile.first_co, tile.co
    top = bottom = left = right = np.int64(0)
    if schedule.pad == PAD_LOAD:
        top, bottom, left, right = row.before, row.after, col.before, col.after
    plane = nest.ih * nest.iw
    if nest.minor:
        dram = nest.dram_inp + (tile.group * nest.iw + col.load) * nest.ci + first
    else:
        channel = tile.image * nest.inp_blocks + tile.group * nest.ci + first
        dram = nest.dram_inp + channel * plane + row.load * nest.iw + col.load
    stride = load_step(nest.kh, nest.sh, schedule.pad)
    n, y, x, stride = input_shape(nest, channels, row.held, col.held, top + bottom, left + right, stride)
    pads = (top, bottom, left, right)
    move(sink, Memory.INP, n, (y, x, stride), step.inp_base, tile.plane, dram, plane, pads)


@part(types.void(NEST, _TILE, INT, INT, INT, _AXIS, _AXIS, SPAN, SPAN, ONE_SINK))
def _move_outputs(nest, tile, memory, sram, dram, row, col, first, size, sink):  # type: ignore[no-untyped-def]
    """A block of an output-shaped tensor that is compact in SRAM; ``first``, ``size``: (channels, rows, columns)."""
    co, h, w = tile.first_co + first[0], row.first + first[1], col.first + first[2]
    plane = nest.oh * nest.ow
    if nest.minor:
        # Groups lie one after the other.
        dram += (co // nest.co * nest.ow + w) * nest.co + co % nest.co
    else:
        dram += (tile.image * nest.out_blocks + co) * plane + h * nest.ow + w
    n, y, x, stride = output_shape(nest, size[0], size[1], size[2])
    move(sink, memory, n, (y, x, stride), sram, size[1] * size[2], dram, plane, (0, 0, 0, 0))


@part()
def _step_uops(schedule, row, col, ci, co):  # type: ignore[no-untyped-def]
    """Micro-ops of the GEMMs of a step of ``ci`` input and ``co`` output channels."""
    if schedule.fold == FOLD_SPACE:
        return row.touching * col.touching * ci * co
    if schedule.fold == FOLD_CI_CO:
        return row.met * col.met
    # Taps that meet one row iterate over its columns; the others have a micro-op a column.
    return co * (row.single * col.touching + (row.touching - row.single) * col.met)


@part()
def _multiply(nest, schedule, tile, row, col, row_taps, col_taps, signature, step, sink):  # type: ignore[no-untyped-def]
    """The GEMMs of a step; their micro-ops are all new, or all there already."""
    groups = gemms_of(schedule.fold, row, col)
    if groups == 0:
        return
    acc = tile.acc + step.co_first * (1 if nest.minor else tile.height * tile.width)
    # The output channels of a part are reduced over inputs of their own, or over those of all.
    source = step.inp_base + step.co_first * tile.plane if nest.depthwise else step.inp_base
    uops = _step_uops(schedule, row, col, step.ci, step.co)
    first, second = (acc << 32) | source, (step.wgt_base << 32) | step.ci
    begin, fresh = find_kernel(sink, first, second, (step.co << 32) | signature, uops)
    insn, writes = claim(sink, groups)
    if not writes:
        return
    for gh in range(nest.kh):
        if not starts_gemm(schedule.fold, row_taps, gh):
            continue
        for gw in range(nest.kw):
            if not starts_gemm(schedule.fold, col_taps, gw):
                continue
            loops = _loops(nest, schedule, tile, row, col, step, row_taps[gh].outputs, col_taps[gw].outputs)
            outer, inner, slow, fast = loops
            if fresh:
                end = _write_taps(
                    nest, schedule, tile, row, col, row_taps, col_taps, gh, gw,
                    (acc, source, step.wgt_base), step, slow, fast, begin, sink,
                )  # fmt: skip
            else:
                taps = shared_taps(schedule.fold, row_taps, gh) * shared_taps(schedule.fold, col_taps, gw)
                end = begin + taps * slow[0] * fast[0]
            write_gemm(sink, insn, 0, begin, end, outer, inner)
            insn += 1
            begin = end


@part()
def _loops(nest, schedule, tile, row, col, step, rows, cols):  # type: ignore[no-untyped-def]
    """Loops of the GEMMs of taps that meet ``rows`` x ``cols`` outputs: (extent, dst, src and wgt factors) each.

    The outer and the inner one of the instruction, and the slow and the fast one of its micro-ops.
    """
    taps = nest.kh * nest.kw
    acc_col = tile.co if nest.minor else 1
    dst_row, dst_col = tile.width * acc_col * nest.th, acc_col * nest.tw
    src_row = col.held * (nest.sh // load_step(nest.kh, nest.sh, schedule.pad))
    src_col = nest.sw * (step.ci if nest.minor else 1)
    none = np.int64(0)
    of_rows, of_cols = (rows, dst_row, src_row, none), (cols, dst_col, src_col, none)
    if rows == 1:
        of_rows, of_cols = of_cols, (np.int64(1), none, none, none)
    of_ci = (step.ci, none, 1 if nest.minor else tile.plane, taps)
    acc_co = 1 if nest.minor else tile.height * tile.width
    of_co = (step.co, acc_co, tile.plane if nest.depthwise else none, step.ci * taps)
    if schedule.fold == FOLD_SPACE:
        return of_rows, of_cols, of_ci, of_co
    if schedule.fold == FOLD_CI_CO:
        return of_ci, of_co, of_rows, of_cols
    return of_ci, of_rows, of_co, of_cols


@part()
def _write_taps(nest, schedule, tile, row, col, row_taps, col_taps, gh, gw, bases, step, slow, fast, at, sink):  # type: ignore[no-untyped-def]
    """Write the micro-ops of the GEMM that starts with tap (``gh``, ``gw``) from ``at`` on; returns where they end."""
    acc, source, wgt_base = bases
    stride = load_step(nest.kh, nest.sh, schedule.pad)
    for kh in range(gh, nest.kh):
        if not shares_gemm(schedule.fold, row_taps, kh, gh):
            continue
        out_h = row_taps[kh].first
        in_h = tap_source(row_loop(nest), row, out_h, kh, stride)
        for kw in range(gw, nest.kw):
            if not shares_gemm(schedule.fold, col_taps, kw, gw):
                continue
            out_w = col_taps[kw].first
            in_w = tap_source(col_loop(nest), col, out_w, kw, np.int64(1))
            dst = acc + ((out_h - row.first) * tile.width + out_w - col.first) * (tile.co if nest.minor else 1)
            src = source + (in_h * col.held + in_w) * (step.ci if nest.minor else 1)
            at = _write_uops(sink, at, dst, src, wgt_base + kh * nest.kw + kw, slow, fast)
    return at


@part()
def _write_uops(sink, at, dst, src, wgt, slow, fast):  # type: ignore[no-untyped-def]
    """Write the micro-ops of one tap from ``at`` on; returns where they end."""
    for i in range(slow[0]):
        for j in range(fast[0]):
            uop = sink.words[at]
            uop.dst = dst + i * slow[1] + j * fast[1]
            uop.src = src + i * slow[2] + j * fast[2]
            uop.wgt = wgt + i * slow[3] + j * fast[3]
            at += 1
    return at


@part()
def _accumulate(nest, schedule, sram, tile, sink):  # type: ignore[no-untyped-def]
    """What is added to a tile after its last step but for a bias, unless that stands before a shift."""
    area = tile.height * tile.width
    bias = schedule.bias if nest.bias else -1
    if bias == BIAS_ADD and nest.pre_shift >= 0:
        _add_bias(nest, sram, tile, sink)
    if bias == BIAS_GEMM:
        uop = single(sink, tile.acc, sram.constant, sram.bias_wgt + tile.first_co)
        if nest.minor:
            gemm(sink, 0, uop, (area, tile.co, 0, 0), (tile.co, 1, 0, 1))
        else:
            gemm(sink, 0, uop, (tile.co, area, 0, 1), (area, 1, 0, 0))
    if nest.pre_shift >= 0:
        immediate(sink, AluOp.SHR, nest.pre_shift, single(sink, tile.acc, tile.acc, 0), tile.co * area)
    if nest.residual:
        uop = single(sink, tile.acc, tile.residual, sram.identity)
        gemm(sink, 0, uop, (tile.co * area, 1, 1, 0), (1, 0, 0, 0))


@part()
def _add_bias(nest, sram, tile, sink):  # type: ignore[no-untyped-def]
    """Adds biases that lie in ACC to a tile's accumulators."""
    area = tile.height * tile.width
    uop = single(sink, tile.acc, sram.bias + tile.first_co, 0)
    if nest.minor:
        tensor(sink, AluOp.ADD, uop, (area, tile.co, 0, 0), (tile.co, 1, 1, 0))
    else:
        tensor(sink, AluOp.ADD, uop, (tile.co, area, 1, 0), (area, 1, 0, 0))


@part()
def _finish(nest, schedule, sram, tile, row, col, tiles, sink):  # type: ignore[no-untyped-def]
    """The last stages and the stores of a tile, piece by piece."""
    size = pieces(nest, tile.co, tile.height, tile.width, drains(schedule, tile.number, tiles))
    signals = tile.number + schedule.acc_buffers < tiles or tile.number == tiles - 1
    for b in range(0, tile.co, size[0]):
        for h in range(0, tile.height, size[1]):
            for w in range(0, tile.width, size[2]):
                piece = (min(size[0], tile.co - b), min(size[1], tile.height - h), min(size[2], tile.width - w))
                acc = tile.acc + (w * tile.co + b if nest.minor else (b * tile.height + h) * tile.width + w)
                begin = sink.insns
                if nest.pool:
                    take_maxima(nest, schedule, sram, tile, row, col, b, piece[0], sink)
                _stages(nest, sram, acc, piece[0] * piece[1] * piece[2], sink)
                if sink.insns == begin and b > 0:
                    nop(sink)
                begin = sink.insns
                flag(sink, begin - 1, Flag.PUSH_NEXT)
                _move_outputs(nest, tile, Memory.OUT, acc, nest.dram_out, row, col, (b, h, w), piece, sink)
                if sink.fail != VALID:
                    return
                flag(sink, begin, Flag.POP_PREV)
                last = b + piece[0] == tile.co and h + piece[1] == tile.height and w + piece[2] == tile.width
                if signals and last:
                    flag(sink, sink.insns - 1, Flag.PUSH_PREV)


@part()
def _stages(nest, sram, acc, n, sink):  # type: ignore[no-untyped-def]
    """Shift and clip of ``n`` accumulators; what is stored has gone through GEMM or ALU, as STORE reads OUT."""
    if nest.even:
        _round_even(nest, sram, acc, n, sink)
    uop = single(sink, acc, acc, 0)
    if nest.shift >= 0:
        immediate(sink, AluOp.SHR, nest.shift, uop, n)
    if nest.clip:
        immediate(sink, AluOp.MIN, nest.high, uop, n)
        immediate(sink, AluOp.MAX, nest.low, uop, n)


@part()
def left_shifts(nest):  # type: ignore[no-untyped-def]
    """Two shifts left, the second perhaps 0, that bring the lowest bit of what a right shift leaves to the sign."""
    total = 31 - nest.shift
    return min(total, 16), max(total - 16, 0)


@part()
def _round_even(nest, sram, acc, n, sink):  # type: ignore[no-untyped-def]
    """Takes one from accumulators that the shift leaves odd: ties, which half a step has rounded up, become even.

    A copy whose sign is the lowest bit that the shift leaves is -1 or 0 between these two bounds.
    """
    scratch = sram.scratch
    gemm(sink, 1, single(sink, scratch, 0, 0), (n, 1, 0, 0), (1, 0, 0, 0))
    tensor(sink, AluOp.ADD, single(sink, scratch, acc, 0), (n, 1, 1, 0), (1, 0, 0, 0))
    uop = single(sink, scratch, scratch, 0)
    first, second = left_shifts(nest)
    immediate(sink, AluOp.SHR, -first, uop, n)
    if second > 0:
        immediate(sink, AluOp.SHR, -second, uop, n)
    immediate(sink, AluOp.MAX, -1, uop, n)
    immediate(sink, AluOp.MIN, 0, uop, n)
    tensor(sink, AluOp.ADD, single(sink, acc, scratch, 0), (n, 1, 1, 0), (1, 0, 0, 0))
