"""How the output channels and the reduction of a nest are cut: channel tiles, chunks, and the pieces of a drain."""

from __future__ import annotations

import numpy as np
from numba import types

from oneshot_ml2.common.kernels import njit
from oneshot_ml2.common.parts import part
from oneshot_ml2.spaces.full.knobs import (
    HEAD_DOUBLING,
    HEAD_SINGLE,
    HEAD_WHOLE,
    INP_MODE,
    INT,
    STREAM,
    WGT_MODE,
    ceil_div,
)
from oneshot_ml2.vta.nest import MAX_INSNS


@njit(cache=True, nogil=True)
def channel_tiles(nest, schedule) -> int:  # type: ignore[no-untyped-def]
    """Tiles of the output channels of all groups; those of a group follow each other."""
    return nest.groups * ceil_div(nest.co, schedule.tile_co)


@part()
def input_channels(nest, schedule):  # type: ignore[no-untyped-def]
    """(input channel blocks of a chunk, of all chunks of a tile), at most."""
    return (schedule.tile_co, schedule.tile_co) if nest.depthwise else (schedule.tile_ci, nest.ci)


@part()
def last_channels(nest, schedule) -> int:  # type: ignore[no-untyped-def]
    """Channel blocks of the last channel tile of a group."""
    return nest.co - (ceil_div(nest.co, schedule.tile_co) - 1) * schedule.tile_co


@part()
def narrowest(nest, schedule) -> int:  # type: ignore[no-untyped-def]
    """Output channel blocks of the narrowest step: with fewer, accumulators recur sooner."""
    first = min(schedule.tile_co, nest.co)
    return min(first, last_channels(nest, schedule), head_parts(first, schedule.head)[0])


@part()
def channel_tile(nest, schedule, c):  # type: ignore[no-untyped-def]
    """Channel tile ``c`` of all groups: (first output channel block, how many, its group, its number in the group)."""
    of_group = ceil_div(nest.co, schedule.tile_co)
    group, within = c // of_group, c % of_group
    first = within * schedule.tile_co
    return group * nest.co + first, min(schedule.tile_co, nest.co - first), group, within


@njit(INT[::1](INT, INT, INT), cache=True, nogil=True)
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


@part()
def is_tapered(nest, schedule, co_tile: int, sp_tile: int) -> bool:  # type: ignore[no-untyped-def]
    """Whether an output tile uses the tapered chunks; ``co_tile`` counts those of all groups.

    Resident operands fix the chunks of every tile that shares them, because a chunk is compact in SRAM.
    """
    if schedule.head == HEAD_WHOLE:
        return False
    if nest.minor and INP_MODE[schedule.dataflow] != STREAM:
        return True
    if WGT_MODE[schedule.dataflow] != STREAM:
        return bool(co_tile == 0)
    return bool(co_tile == 0 and sp_tile == 0)


@part(types.UniTuple(INT, 2)(INT, INT))  # type: ignore[no-untyped-call]
def head_parts(co: int, head: int):  # type: ignore[no-untyped-def]
    """(channel blocks of a part, parts) that the first step of a program is cut into; the last part takes the rest.

    A part has at least three blocks, so that its accumulators do not recur too soon.
    """
    if head == HEAD_WHOLE:
        return co, 1
    size = min(max(3, ceil_div(co, 4)), co)
    return size, max(1, co // size)


@part()
def pieces(nest, co: int, rows: int, cols: int, drain: int):  # type: ignore[no-untyped-def]
    """(channel blocks, rows, columns) of a piece of an output tile whose last stages are cut into about ``drain``.

    Of max pooling, whose outputs share inputs, channels are cut alone.
    """
    if nest.pool:
        return ceil_div(co, min(drain, co)), rows, cols
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


@part()
def drains(schedule, tile: int, tiles: int) -> int:  # type: ignore[no-untyped-def]
    """Drain pieces of a tile: only the last store is exposed, unless every tile waits for it."""
    return int(schedule.drain) if tile == tiles - 1 or schedule.acc_buffers == 1 else 1


@part()
def too_many_tiles(tiles, chunks):  # type: ignore[no-untyped-def]
    """Whether a GEMM or NOP a step and a reset and a store a tile are too many, at so many whole chunks a tile."""
    return tiles * (chunks + 2) > MAX_INSNS
