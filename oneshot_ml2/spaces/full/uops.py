"""Micro-ops of a program in closed form, nearly: every kernel once for every set of SRAM bases."""

from __future__ import annotations

import numpy as np
from numba import from_dtype

from oneshot_ml2.common.parts import part
from oneshot_ml2.spaces.full.geometry import GEOMETRY
from oneshot_ml2.spaces.full.knobs import (
    ALL,
    BIAS_LOAD,
    FOLD_CI_CO,
    FOLD_SPACE,
    HEAD_SINGLE,
    HEAD_WHOLE,
    INP_MODE,
    INT,
    NEST,
    ONE_SCHEDULE,
    SET,
    STREAM,
    WGT_MODE,
    ceil_div,
    outer_is_co,
)
from oneshot_ml2.spaces.full.tiles import head_parts, last_channels

_GEOMETRY = from_dtype(GEOMETRY)  # type: ignore[no-untyped-call]


@part(INT(ONE_SCHEDULE, INT, INT, INT, INT, INT, INT))
def _bases(schedule, sp_tiles: int, co_tiles: int, chunks: int, some_sp: int, some_co: int, some_chunks: int):  # type: ignore[no-untyped-def]
    """How many sets of SRAM bases the steps of some tiles have: what micro-ops, which hold indices, differ by.

    Of ``sp_tiles`` x ``co_tiles`` output tiles of ``chunks`` each: those of ``some_sp`` spatial and ``some_co`` channel
    tiles, in ``some_chunks`` of their chunks. Slots alternate, so that parities tell them apart; which of the tiles
    have which parity is not looked at.
    """
    flow = schedule.dataflow
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
                word = (t % schedule.acc_buffers) * 16 + (inp % schedule.inp_buffers) * 4 + wgt % schedule.wgt_buffers
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


@part(INT(ONE_SCHEDULE, _GEOMETRY, INT, INT, INT))
def _kernel_uops(schedule, geometry, k: int, nci: int, nco: int):  # type: ignore[no-untyped-def]
    """Micro-ops of the kernels of a step of ``nci`` input and ``nco`` output channels, of spatial class ``k``."""
    if schedule.fold == FOLD_SPACE:
        return geometry.space_uops[k] * nci * nco
    return geometry.column_uops[k] if schedule.fold == FOLD_CI_CO else geometry.row_uops[k] * nco


@part(INT(NEST, ONE_SCHEDULE, _GEOMETRY, INT, INT, INT, INT, INT, INT))
def _chunk_uops(nest, schedule, geometry, k: int, sp_tiles: int, co_tiles: int, some_co: int, nco: int, whole: int):  # type: ignore[no-untyped-def]
    """Micro-ops of ``some_co`` channel tiles of ``nco`` channels in spatial class ``k``, in whole chunks."""
    some_sp = geometry.class_tiles[k] * nest.nb
    last_ci = nest.ci - (whole - 1) * schedule.tile_ci
    even = whole if last_ci == schedule.tile_ci else whole - 1
    total = np.int64(0)
    if even > 0:
        bases = _bases(schedule, sp_tiles, co_tiles, whole, some_sp, some_co, even)
        total += bases * _kernel_uops(schedule, geometry, k, schedule.tile_ci, nco)
    if even < whole:
        total += _bases(schedule, sp_tiles, co_tiles, whole, some_sp, some_co, 1) * _kernel_uops(
            schedule, geometry, k, last_ci, nco
        )
    return total


@part(INT(NEST, ONE_SCHEDULE, _GEOMETRY, INT, INT, INT, INT, INT, INT))
def _taper_uops(nest, schedule, geometry, k: int, sp_tiles: int, co_tiles: int, some_sp: int, some_co: int, nco: int):  # type: ignore[no-untyped-def]
    """Micro-ops of tapered tiles: chunks of one channel, or such that double and then whole ones at other places."""
    ci, tci = nest.ci, schedule.tile_ci
    if schedule.head == HEAD_SINGLE:
        return _bases(schedule, sp_tiles, co_tiles, ci, some_sp, some_co, ci) * _kernel_uops(
            schedule, geometry, k, 1, nco
        )
    total, size, left = np.int64(0), np.int64(1), ci
    bases = _bases(schedule, sp_tiles, co_tiles, 1, some_sp, some_co, 1)
    while left > 0 and size < tci:
        total += bases * _kernel_uops(schedule, geometry, k, min(size, left), nco)
        left -= size
        size *= 2
    if left > 0 and (INP_MODE[schedule.dataflow] != STREAM or WGT_MODE[schedule.dataflow] != STREAM):
        chunks = ceil_div(left, tci)
        total += _bases(schedule, sp_tiles, co_tiles, chunks, some_sp, some_co, chunks) * _kernel_uops(
            schedule, geometry, k, tci, nco
        )
    return total


@part()
def _pool_uops(nest, schedule, geometry, sp_tiles: int, co_tiles: int, even_co: int, last_co: int, cuts: int):  # type: ignore[no-untyped-def]
    """Micro-ops of a pool's kernels, nearly: passes read no inputs, and GEMMs mostly have one for every channel."""
    total, most = (cuts - 1) * geometry.passes_last, np.int64(schedule.acc_buffers)
    for k in range(geometry.classes):
        some_sp = geometry.class_tiles[k] * nest.nb
        for half in range(2):
            some_co, nco = (even_co, schedule.tile_co) if half == 0 else (co_tiles - even_co, last_co)
            if some_co > 0:
                bases = _bases(schedule, sp_tiles, co_tiles, 1, some_sp, some_co, 1)
                total += bases * geometry.space_uops[k] * min(nco, geometry.row_uops[k])
                total += min(some_sp * some_co, most) * geometry.column_uops[k]
    return total


@part()
def all_uops(nest, schedule, geometry, sp_tiles: int, co_tiles: int, whole: int, cuts: int):  # type: ignore[no-untyped-def]
    """Micro-ops of a program, nearly: every kernel once for every set of SRAM bases."""
    tco, last_co = min(schedule.tile_co, nest.co), last_channels(nest, schedule)
    even_co = co_tiles if last_co == tco else co_tiles - nest.groups
    first_co = tco if even_co > 0 else last_co
    resident = WGT_MODE[schedule.dataflow] != STREAM
    tapers = schedule.head != HEAD_WHOLE
    all_taper = tapers and nest.minor == 1 and INP_MODE[schedule.dataflow] != STREAM
    total = np.int64(0)
    if nest.pool:
        total = _pool_uops(nest, schedule, geometry, sp_tiles, co_tiles, even_co, last_co, cuts)
    for k in range(0 if nest.pool else geometry.classes):
        some_sp = geometry.class_tiles[k] * nest.nb
        for half in range(2):
            some_co, nco = (even_co, tco) if half == 0 else (co_tiles - even_co, last_co)
            if all_taper and some_co > 0:
                total += _taper_uops(nest, schedule, geometry, k, sp_tiles, co_tiles, some_sp, some_co, nco)
                continue
            if tapers and resident and half == (even_co == 0):
                total += _taper_uops(nest, schedule, geometry, k, sp_tiles, co_tiles, some_sp, 1, nco)
                some_co -= 1
            if some_co > 0:
                total += _chunk_uops(nest, schedule, geometry, k, sp_tiles, co_tiles, some_co, nco, whole)
    if tapers and geometry.classes > 0:
        part_co, parts = head_parts(first_co, schedule.head)
        total += parts * _kernel_uops(schedule, geometry, 0, 1, part_co)
        if not resident and not all_taper:
            total += _taper_uops(nest, schedule, geometry, 0, sp_tiles, co_tiles, 1, 1, first_co)
    if nest.bias and schedule.bias != BIAS_LOAD:
        total += co_tiles * min(schedule.acc_buffers, sp_tiles)
    return total + 2 * schedule.acc_buffers + cuts
