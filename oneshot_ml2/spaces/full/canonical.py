"""Aliases: which of several settings of the knobs that lower to the same program stands for it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.kernels import njit
from oneshot_ml2.common.parts import part
from oneshot_ml2.spaces.full.knobs import (
    BIAS_ADD,
    BIAS_GEMM,
    BIAS_LOAD,
    DRAIN,
    FLOW_CO_STREAM,
    FLOW_CO_WGT,
    FLOW_CO_WGT_ALL_INP,
    FLOW_SP_ALL_WGT,
    FLOW_SP_INP,
    FLOW_SP_INP_ALL_WGT,
    FOLD_CI_CO,
    FOLD_CI_ROWS,
    FOLD_SPACE,
    HEAD_DOUBLING,
    HEAD_SINGLE,
    HEAD_WHOLE,
    INP_MODE,
    PAD_SKIP,
    SET,
    STREAM,
    WGT_MODE,
    ceil_div,
    schedules,
)
from oneshot_ml2.spaces.full.tiles import channel_tiles, head_parts, last_channels, pieces
from oneshot_ml2.vta.nest import Nest

# The dataflow that stands for each where every channel tile has inputs of its own: these are streamed.
_OWN_INPUTS = np.array(
    [FLOW_CO_STREAM, FLOW_CO_WGT, FLOW_CO_WGT, FLOW_CO_STREAM, FLOW_SP_ALL_WGT, FLOW_SP_ALL_WGT], dtype=np.int64
)


@part()
def canonical_row(nest, schedule):  # type: ignore[no-untyped-def]
    """Rewrite a schedule, in place, to the alias that stands for it; lowering starts here too."""
    _canonical_choices(nest, schedule)
    _canonical_drain(nest, schedule)


@part()
def is_canonical(nest, pair, values) -> bool:  # type: ignore[no-untyped-def]
    """Whether the first of a ``pair`` of schedules stands for itself; ``values``: int64 (2, knobs), the same memory.

    The second one is overwritten.
    """
    pair[1] = pair[0]
    _canonical_choices(nest, pair[1])
    for knob in range(values.shape[1]):
        if values[0, knob] != values[1, knob]:
            return False
    _canonical_drain(nest, pair[1])
    return bool(pair[0].drain == pair[1].drain)


@part()
def _canonical_choices(nest, schedule):  # type: ignore[no-untyped-def]
    """`canonical_row` of all knobs but the drain, which it does not look at."""
    co_tiles = channel_tiles(nest, schedule)
    sp_tiles = nest.nb * ceil_div(nest.oh, schedule.tile_h) * ceil_div(nest.ow, schedule.tile_w)
    tiles = co_tiles * sp_tiles
    if nest.bias == 0:
        schedule.bias = 0
    if nest.pool:
        schedule.dataflow, schedule.head, schedule.wgt_buffers = FLOW_CO_STREAM, HEAD_WHOLE, 1
        schedule.fold = FOLD_SPACE
    elif nest.depthwise:
        schedule.dataflow = _OWN_INPUTS[schedule.dataflow]
    _canonical_pad(nest, schedule)
    _canonical_head(nest, schedule, co_tiles, sp_tiles)
    one_chunk = schedule.tile_ci == nest.ci and (schedule.head == HEAD_WHOLE or schedule.tile_ci == 1)
    schedule.dataflow = _canonical_flow(schedule.dataflow, nest.groups, co_tiles, sp_tiles, one_chunk)
    schedule.acc_buffers = min(schedule.acc_buffers, tiles)
    chunks = ceil_div(nest.ci, schedule.tile_ci)
    if schedule.head != HEAD_WHOLE and schedule.tile_ci > 1:
        chunks = max(chunks, 2)
    used = _used_buffers(INP_MODE[schedule.dataflow], sp_tiles * nest.groups, tiles, chunks)
    schedule.inp_buffers = min(schedule.inp_buffers, max(used, tiles if nest.residual else 1))
    used = _used_buffers(WGT_MODE[schedule.dataflow], co_tiles, tiles, chunks)
    schedule.wgt_buffers = min(schedule.wgt_buffers, used)
    _canonical_fold(schedule)


@part()
def _canonical_pad(nest, schedule):  # type: ignore[no-untyped-def]
    """Pads that are not there, or cannot be loaded, are skipped."""
    high_r = (nest.oh - 1) * nest.sh - nest.pt + (nest.kh - 1) * nest.dh
    high_c = (nest.ow - 1) * nest.sw - nest.pl + (nest.kw - 1) * nest.dw
    unpadded = nest.pt == 0 and nest.pl == 0 and high_r < nest.ih and high_c < nest.iw
    # Loaded zeros could be the largest of a pool's inputs, and would have to lie between a transposed convolution's.
    never = nest.pool == 1 or nest.th > 1 or nest.tw > 1
    if never or (unpadded and not (nest.kh == 1 and nest.sh > 1 and schedule.tile_h > 1)):
        schedule.pad = PAD_SKIP


@part()
def _canonical_head(nest, schedule, co_tiles, sp_tiles):  # type: ignore[no-untyped-def]
    """The simplest opening that gives the same chunks, and the chunks of a program that consists of its opening."""
    if schedule.head == HEAD_DOUBLING and (schedule.tile_ci == 1 or nest.ci == 2):
        schedule.head = HEAD_SINGLE
    if schedule.head != HEAD_SINGLE:
        return
    shared = co_tiles == 1 and (sp_tiles == 1 or WGT_MODE[schedule.dataflow] != STREAM)
    if shared or (nest.minor and INP_MODE[schedule.dataflow] != STREAM):
        # The taper is every tile's: the same as single channels throughout.
        schedule.tile_ci = 1
    if schedule.tile_ci == 1 and head_parts(min(schedule.tile_co, nest.co), HEAD_SINGLE)[1] == 1:
        schedule.head = HEAD_WHOLE


@part()
def _canonical_flow(flow, groups, co_tiles, sp_tiles, one_chunk):  # type: ignore[no-untyped-def]
    """The dataflow that stands for one of as many tiles; ``one_chunk``: all tiles are reduced in one step."""
    if sp_tiles == 1 and one_chunk:
        if flow == FLOW_CO_WGT:
            flow = FLOW_CO_STREAM
        elif flow == FLOW_CO_WGT_ALL_INP and groups == 1:
            flow = FLOW_SP_INP
    if co_tiles > 1:
        return flow
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
    return flow


@part()
def _canonical_fold(schedule):  # type: ignore[no-untyped-def]
    """The fold that stands for those whose loops have the same extents."""
    a, b = schedule.tile_h, schedule.tile_w
    if a == 1:
        a, b = b, 1
    single = schedule.tile_ci == 1
    if a == 1 and b == 1 and schedule.fold == FOLD_CI_CO and (single or schedule.tile_co == 1):
        schedule.fold = FOLD_CI_ROWS
    if schedule.fold == FOLD_CI_ROWS and single and b == 1:
        schedule.fold = FOLD_SPACE


@part()
def _canonical_drain(nest, schedule):  # type: ignore[no-untyped-def]
    """`canonical_row` of the drain: fewer pieces may cut every tile that drains into the same ones."""
    rows, cols = ceil_div(nest.oh, schedule.tile_h), ceil_div(nest.ow, schedule.tile_w)
    tiles = channel_tiles(nest, schedule) * nest.nb * rows * cols
    every = schedule.acc_buffers == 1 and tiles > 1
    if nest.pool and nest.kh == 1 and nest.kw == 1 and nest.clip == 0:
        # The stages whose pieces a drain would be are not there.
        schedule.drain = DRAIN[0]
    drain = schedule.drain
    for candidate in DRAIN:
        if candidate >= drain:
            break
        same = True
        for i in range(8 if every else 1):
            co = schedule.tile_co if i & 1 else last_channels(nest, schedule)
            h = schedule.tile_h if i & 2 else nest.oh - (rows - 1) * schedule.tile_h
            w = schedule.tile_w if i & 4 else nest.ow - (cols - 1) * schedule.tile_w
            same = same and pieces(nest, co, h, w, candidate) == pieces(nest, co, h, w, drain)
        if same:
            schedule.drain = candidate
            break


@part()
def _used_buffers(mode: int, sets: int, tiles: int, chunks: int) -> int:
    """How many buffers of an operand a schedule can fill: chunks of a stream, sets of its outer tiles, or one."""
    if mode == STREAM:
        return tiles * chunks
    return sets if mode == SET else 1


@njit(cache=True, nogil=True)
def canonical_rows(nest, batch):  # type: ignore[no-untyped-def]
    """`canonical_row` of every schedule of a batch, in place."""
    for i in range(len(batch)):
        canonical_row(nest, batch[i])


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
    result = np.array(values, dtype=np.int64, order="C")
    canonical_rows(nest, schedules(result))
    return result
