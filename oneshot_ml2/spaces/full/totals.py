"""Totals of a `full` schedule in closed form: a proven bound of its cycles, a guess of them, and what they consist of.

Closed forms of the program that `walk` describes: a pick looks at hundreds of thousands of schedules, and walking them
would take ten times as long. Tests hold the two equal.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.kernels import njit
from oneshot_ml2.common.parts import part
from oneshot_ml2.spaces.full import hls_totals
from oneshot_ml2.spaces.full.canonical import canonical
from oneshot_ml2.spaces.full.geometry import NARROW, geometry_of, geometry_table
from oneshot_ml2.spaces.full.knobs import (
    BIAS_ADD,
    BIAS_LOAD,
    FOLD_TAPS,
    HEAD_DOUBLING,
    HEAD_WHOLE,
    INP_MODE,
    INT,
    NEST,
    SET,
    STREAM,
    WGT_MODE,
    ceil_div,
    schedules,
)
from oneshot_ml2.spaces.full.shapes import beats_of_acc
from oneshot_ml2.spaces.full.sram import LAYOUT, holds, lay_out
from oneshot_ml2.spaces.full.tiles import channel_tiles, head_parts, last_channels, narrowest, pieces
from oneshot_ml2.spaces.full.uops import all_uops
from oneshot_ml2.spaces.full.walk import left_shifts
from oneshot_ml2.vta.nest import Nest

# Columns of `summaries`; cycles unless said otherwise. `bound` is a proven lower bound of the cycles, `estimate` a
# guess that proves nothing.
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
    # Of the HLS design, else 0: latencies of rows, pads, and passes over outputs before their stores.
    "inp_rows",
    "wgt_rows",
    "store_rows",
    "pads",
    "epilogue",
)
_TOTALS = np.dtype([(name, np.float64) for name in SUMMARY])


class _Reduction(NamedTuple):
    """Steps and GEMMs of all tiles; whole chunks of a tile, channels of the first one of all, chunks of the last tile;
    channels of a part of the very first step, and how many parts it has."""

    steps: int
    gemms: int
    whole: int
    first_chunk: int
    last_chunks: int
    part: int
    parts: int


class _Loads(NamedTuple):
    """Input elements, and pads loaded with them; bus beats of inputs and of weights; instructions that load each, and
    all; cycles of all, and of those of the first step, when none waits for the memory."""

    inp_elements: int
    pads: int
    inp_beats: int
    wgt_beats: int
    inp_insns: int
    wgt_insns: int
    insns: int
    cycles: int
    first: int


class _Drain(NamedTuple):
    """Pieces of the last tile, elements of the largest one, and of the last one."""

    cuts: int
    largest: int
    last: int


def column(summary: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    """One of the columns `SUMMARY` of summaries (n, len(SUMMARY))."""
    return summary[:, SUMMARY.index(name)]


def totals_of(summary: NDArray[np.float64]) -> NDArray[Any]:
    """Summaries (n, len(SUMMARY)) as records (n,) of these fields: the same memory, which is contiguous."""
    return summary.view(_TOTALS)[:, 0]


@part()
def _beats(nest, elements: int, size: int) -> int:  # type: ignore[no-untyped-def]
    """Bus beats that carry ``elements`` of ``size`` bytes, at least."""
    return ceil_div(elements * size, nest.bus)


@part()
def stage_passes(nest):  # type: ignore[no-untyped-def]
    """(passes over a piece of an output tile before its store, cycles an element of all of them)."""
    stages = (nest.shift >= 0) + 2 * nest.clip
    if nest.even == 0:
        return stages, stages
    # A reset, a copy (2), one or two shifts left, two bounds, and the sum (2).
    passes = 6 + (left_shifts(nest)[1] > 0)
    return stages + passes, stages + passes + 2


@part(INT(NEST, INT, INT))
def store_cycles(nest, elements: int, rows: int) -> int:  # type: ignore[no-untyped-def]
    """Cycles of storing ``elements`` in ``rows`` rows, at least."""
    beats = _beats(nest, elements, nest.inp_bytes)
    if nest.inp_bytes > nest.bus:
        per_row = max(nest.block // nest.bus, 1)
        beats += beats // per_row
        return beats + 3 * rows
    return beats + 4 * rows


@part()
def _tile_gemms(schedule, geometry):  # type: ignore[no-untyped-def]
    """GEMMs that a step of every spatial tile of an image takes: (of all, of the first, of the last)."""
    if schedule.fold == FOLD_TAPS:
        return geometry.taps, geometry.taps_first, geometry.taps_last
    return geometry.groups, geometry.groups_first, geometry.groups_last


@part()
def tapered_chunks(schedule, ci, whole):  # type: ignore[no-untyped-def]
    """Chunks of a tile that is reduced as the head says; ``whole``: of one that is not."""
    if schedule.head == HEAD_WHOLE:
        return whole
    if schedule.head != HEAD_DOUBLING:
        return ci
    chunks, size, left = 0, 1, ci
    while left > 0 and size < schedule.tile_ci:
        left -= size
        size = min(2 * size, schedule.tile_ci)
        chunks += 1
    return chunks + ceil_div(max(left, 0), schedule.tile_ci)


@part()
def reduction_of(nest, schedule, geometry, co_tiles, sp_tiles, cuts):  # type: ignore[no-untyped-def]
    """``cuts``: pieces of the last tile; each has the passes of a pool."""
    all_gemms, first, _ = _tile_gemms(schedule, geometry)
    groups, tiles = nest.nb * all_gemms, co_tiles * sp_tiles
    whole = ceil_div(nest.ci, schedule.tile_ci)
    tapered = tapered_chunks(schedule, nest.ci, whole)
    if nest.minor and INP_MODE[schedule.dataflow] != STREAM:
        steps, gemms = tiles * tapered, co_tiles * groups * tapered
        last_chunks = tapered
    elif WGT_MODE[schedule.dataflow] != STREAM:
        chunks = tapered + (co_tiles - 1) * whole
        steps, gemms = sp_tiles * chunks, groups * chunks
        last_chunks = tapered if co_tiles == 1 else whole
    else:
        steps = tapered + (tiles - 1) * whole
        gemms = first * tapered + (co_tiles * groups - first) * whole
        last_chunks = tapered if tiles == 1 else whole
    if nest.pool:
        gemms += (cuts - 1) * geometry.passes_last
    part, parts = head_parts(min(schedule.tile_co, nest.co), schedule.head)
    first_chunk = schedule.tile_ci if schedule.head == HEAD_WHOLE else np.int64(1)
    return _Reduction(
        steps + parts - 1, gemms + first * (parts - 1), whole, first_chunk, last_chunks, part, np.int64(parts)
    )


@part()
def loads_of(nest, schedule, geometry, reduction, co_tiles, sp_tiles, outputs):  # type: ignore[no-untyped-def]
    inp_mode, wgt_mode = INP_MODE[schedule.dataflow], WGT_MODE[schedule.dataflow]
    inp_beat, wgt_beat = nest.inp_bytes / nest.bus, nest.wgt_bytes / nest.bus
    ci, taps = nest.ci, nest.kh * nest.kw
    if nest.depthwise:
        channels = nest.nb * nest.co
        inp_insns = nest.nb * (geometry.compact * co_tiles + geometry.spread * nest.co)
    else:
        repeats = co_tiles if inp_mode == STREAM else nest.groups
        channels = nest.nb * ci * repeats
        inp_insns = nest.nb * (geometry.compact * reduction.whole + geometry.spread * ci) * repeats
    inp_elements, pads = channels * geometry.loaded, channels * geometry.pads
    wgt_elements = wgt_insns = np.int64(1)
    if not nest.pool:
        repeats = sp_tiles if wgt_mode == STREAM else 1
        wgt_elements = nest.out_blocks * ci * taps * repeats
        wgt_insns = reduction.whole * co_tiles * repeats
    residuals, extra = (outputs, co_tiles * sp_tiles + 1) if nest.residual else (0, 0)
    inp_beats, wgt_beats = int((inp_elements + residuals) * inp_beat), int(wgt_elements * wgt_beat)
    insns = inp_insns + wgt_insns + extra
    channels = min(schedule.tile_co, nest.co) if nest.depthwise else reduction.first_chunk
    first_elements = geometry.loaded_first * channels
    first_insns = (1 if geometry.compact_first else channels) + 1
    first_wgt = 1 if nest.pool else reduction.part * reduction.first_chunk * taps
    # A load that finds the memory busy does not pay its latency: 7, not 7 + latency.
    cycles = inp_beats + wgt_beats + 6 * insns
    first = int(first_elements * inp_beat) + int(first_wgt * wgt_beat) + 6 * first_insns
    return _Loads(inp_elements, pads, inp_beats, wgt_beats, inp_insns, wgt_insns, insns, cycles, first)


@part()
def drain_of(nest, schedule, geometry):  # type: ignore[no-untyped-def]
    co, h, w = last_channels(nest, schedule), geometry.last_h, geometry.last_w
    pc, ph, pw = pieces(nest, co, h, w, schedule.drain)
    nc, nh, nw = ceil_div(co, pc), ceil_div(h, ph), ceil_div(w, pw)
    last = (co - (nc - 1) * pc) * (h - (nh - 1) * ph) * (w - (nw - 1) * pw)
    return _Drain(nc * nh * nw, min(pc, co) * min(ph, h) * min(pw, w), last)


@part()
def compute_of(nest, schedule, geometry, gemms, tiles, co_tiles, outputs, all_cuts):  # type: ignore[no-untyped-def]
    """Cycles of the compute module, and how many of them the first tile may take before its operands are there."""
    stages, stage_cycles = stage_passes(nest)
    work = nest.nb * geometry.work * nest.ci * nest.out_blocks
    gemm, start, extra = work + 7 * gemms, outputs + 7 * tiles, np.int64(0)
    first = min(schedule.tile_co, nest.co) * schedule.tile_h * schedule.tile_w + 7
    if nest.pool:
        # Twice for two operands; every slot is cleared and filled.
        slots = nest.nb * geometry.slots * nest.out_blocks
        gemm = 2 * work + 7 * gemms + slots
        start = slots + 7 * geometry.resets * nest.nb * co_tiles
        first = min(schedule.tile_co, nest.co) * geometry.slots_first + 14
    if nest.pre_shift >= 0:
        extra += outputs + 7 * tiles
    if nest.bias:
        acc_beats = beats_of_acc(nest)
        if schedule.bias == BIAS_LOAD:
            # A bias that is repeated one by one is a row of its own, and takes two cycles.
            start = outputs * (acc_beats if nest.minor else max(acc_beats, 2)) + 6 * tiles
            first = start // tiles
        elif schedule.bias == BIAS_ADD:
            extra += 2 * outputs + 7 * tiles + nest.out_blocks * acc_beats
        else:
            extra += outputs + 7 * tiles
    if nest.residual:
        extra += outputs + 7 * tiles
    finish = stage_cycles * outputs + 7 * stages * all_cuts
    return gemm + start + extra + finish + 8, first


@part()
def _instructions(nest, geometry, gemms, loads, tiles, co_tiles, all_cuts):  # type: ignore[no-untyped-def]
    """Instructions, nearly: NOPs and most loads of the opening are left out."""
    insns = gemms + tiles * 2 + all_cuts * stage_passes(nest)[0] + loads + all_cuts - tiles + 3
    if nest.pool:
        insns += geometry.resets * nest.nb * co_tiles - tiles
    return insns + tiles if nest.pre_shift >= 0 else insns


@part()
def _fetch(nest, insns):  # type: ignore[no-untyped-def]
    """Cycles before the first instruction can start."""
    if nest.bus > 8:
        return nest.latency + 8 + ceil_div(min(nest.burst, insns) * 16, nest.bus)
    return nest.latency + 6 + 2 * min(nest.burst // 2, insns)


@part()
def _last_gemms(nest, schedule, geometry, reduction, cuts):  # type: ignore[no-untyped-def]
    """(operations, GEMMs) of the last step; of max pooling maxima and slots count, and passes."""
    if nest.pool:
        work = last_channels(nest, schedule) * (2 * geometry.work_last + geometry.slots_last)
        return work, geometry.groups_last + (cuts - 1) * geometry.passes_last
    ci = nest.ci - (reduction.whole - 1) * schedule.tile_ci if reduction.last_chunks == reduction.whole else 1
    co = reduction.part if reduction.steps == reduction.parts else last_channels(nest, schedule)
    return geometry.work_last * co * min(ci, schedule.tile_ci), _tile_gemms(schedule, geometry)[2]


@part()
def _last_step(nest, schedule, geometry, reduction, cuts):  # type: ignore[no-untyped-def]
    """Cycles that compute takes after the last operands are there."""
    stages, stage_cycles = stage_passes(nest)
    co = last_channels(nest, schedule)
    outputs = co * geometry.last_h * geometry.last_w
    cycles = stage_cycles * outputs + 7 * stages * cuts
    if nest.residual:
        cycles += outputs + 7
    if nest.bias and schedule.bias != BIAS_LOAD:
        cycles += (2 if schedule.bias == BIAS_ADD else 1) * outputs + 7
    work, gemms = _last_gemms(nest, schedule, geometry, reduction, cuts)
    return work + 7 * gemms + cycles


@part()
def _serial_loads(nest, schedule, loads, whole, co_tiles, sp_tiles):  # type: ignore[no-untyped-def]
    """Cycles of loads that compute waits for, as their operand has no second buffer."""
    inp_mode, wgt_mode = INP_MODE[schedule.dataflow], WGT_MODE[schedule.dataflow]
    serial = np.int64(0)
    if schedule.inp_buffers == 1:
        cycles = loads.inp_beats + (7 + nest.latency) * loads.inp_insns
        if inp_mode == STREAM:
            serial += cycles
        elif inp_mode == SET and sp_tiles > 1:
            serial += cycles // max(whole, 1)
    if schedule.wgt_buffers == 1 and not nest.pool:
        cycles = loads.wgt_beats + (7 + nest.latency) * loads.wgt_insns
        if wgt_mode == STREAM:
            serial += cycles
        elif wgt_mode == SET and co_tiles > 1:
            serial += cycles // max(whole, 1)
    return serial


@part()
def _note(row, bound, estimate, compute, load, store, read_beats):  # type: ignore[no-untyped-def]
    row.bound, row.estimate, row.compute, row.load, row.store = bound, estimate, compute, load, store
    row.read_beats = read_beats


@part()
def _note_rest(nest, schedule, geometry, sram, reduction, loads, drain, co_tiles, sp_tiles, insns, row):  # type: ignore[no-untyped-def]
    """What no design changes: counts, and what the SRAMs hold."""
    row.inp_beats, row.wgt_beats, row.loads = loads.inp_beats, loads.wgt_beats, loads.insns
    row.gemms, row.steps, row.tiles, row.instructions = reduction.gemms, reduction.steps, co_tiles * sp_tiles, insns
    # Most of the time goes into the micro-ops, so what no SRAM holds is not looked at.
    lay_out(nest, schedule, geometry.max_plane, sp_tiles, sram)
    fits = holds(nest, schedule, geometry.max_plane, sram)
    row.uops = all_uops(nest, schedule, geometry, sp_tiles, co_tiles, reduction.whole, drain.cuts) if fits else 0
    row.inp_use = sram.inp / nest.inp_depth
    row.wgt_use = sram.wgt / nest.wgt_depth
    row.acc_use = sram.acc / nest.acc_depth
    several = 2 * schedule.fold + (schedule.tile_ci > 1)
    row.recurrence = geometry.recurrence[several * NARROW + min(narrowest(nest, schedule), NARROW) - 1]


@part()
def _work_of(nest, schedule, geometry, reduction, loads, drain, co_tiles, sp_tiles, outputs):  # type: ignore[no-untyped-def]
    """What the HLS design's totals need of a program."""
    tiles, stages = co_tiles * sp_tiles, stage_passes(nest)[0]
    operations, gemms = _last_gemms(nest, schedule, geometry, reduction, drain.cuts)
    return hls_totals.Work(
        tiles, co_tiles, sp_tiles, tiles - 1 + drain.cuts, outputs, reduction.whole, reduction.gemms,
        stages, np.int64(nest.even != 0), gemms, operations, drain.cuts, drain.last, reduction.first_chunk,
        reduction.part, loads.inp_elements, loads.pads, loads.inp_beats, loads.wgt_beats, loads.inp_insns,
        loads.wgt_insns, loads.insns,
    )  # fmt: skip


@part()
def _summary(nest, schedule, geometry, sram, row):  # type: ignore[no-untyped-def]
    """Fill in the totals of one schedule; ``sram``: a `sram.LAYOUT`, overwritten."""
    co_tiles, sp_tiles = channel_tiles(nest, schedule), nest.nb * geometry.tiles
    tiles = co_tiles * sp_tiles
    outputs = nest.nb * nest.oh * nest.ow * nest.out_blocks
    drain = drain_of(nest, schedule, geometry)
    reduction = reduction_of(nest, schedule, geometry, co_tiles, sp_tiles, drain.cuts)
    loads = loads_of(nest, schedule, geometry, reduction, co_tiles, sp_tiles, outputs)
    # Of a tile that drains before the next may start, only one piece is counted: it may be cut otherwise.
    all_cuts = tiles - 1 + drain.cuts
    gemms = reduction.gemms
    compute, start = compute_of(nest, schedule, geometry, gemms, tiles, co_tiles, outputs, all_cuts)
    insns = _instructions(nest, geometry, gemms, loads.insns, tiles, co_tiles, all_cuts)
    head, tail = _fetch(nest, insns), store_cycles(nest, drain.last, 1) + 3
    last_step = _last_step(nest, schedule, geometry, reduction, drain.cuts)
    first_tile = geometry.work_first * nest.ci * min(schedule.tile_co, nest.co)
    if nest.pool:
        # Where each tile drains in pieces, the first store waits for the maxima of its own alone.
        maxima = 2 * geometry.work_first if schedule.acc_buffers > 1 else np.int64(0)
        first_tile = min(schedule.tile_co, nest.co) * (maxima + geometry.slots_first)
    store = store_cycles(nest, outputs, all_cuts)
    beats = loads.inp_beats + loads.wgt_beats

    bound = max(head + compute + tail, head + loads.first + compute - start - 8 + tail)
    bound = max(bound, head + loads.cycles + last_step + tail)
    bound = max(bound, nest.latency + 4 + beats + 2 + last_step + tail)
    bound = max(bound, head + loads.first + store + (first_tile if tiles > 1 or drain.cuts == 1 else 0))

    if nest.hls:
        work = _work_of(nest, schedule, geometry, reduction, loads, drain, co_tiles, sp_tiles, outputs)
        times = hls_totals.times_of(nest, schedule, geometry, work)
        _note(row, times.bound, times.estimate, times.compute, times.load, times.store, beats)
        row.head, row.first_load, row.first_tile = 0.0, times.first_load, first_tile
        row.last_step, row.tail = times.last_step, times.tail
        row.serial_load, row.exposed_store = times.serial_load, times.exposed_store
        row.inp_rows, row.wgt_rows, row.store_rows = times.inp_rows, times.wgt_rows, times.store_rows
        row.pads, row.epilogue = times.pads, times.epilogue
        _note_rest(nest, schedule, geometry, sram, reduction, loads, drain, co_tiles, sp_tiles, insns, row)
        return
    serial = _serial_loads(nest, schedule, loads, reduction.whole, co_tiles, sp_tiles)
    exposed = np.int64(0)
    if schedule.acc_buffers == 1 and tiles > 1:
        exposed = (tiles - 1) * (store_cycles(nest, drain.largest, 1) + 4)
    paid, port = loads.cycles + nest.latency * loads.insns, beats + 2 * insns

    estimate = head + loads.first + max(compute + serial + exposed, max(paid, port)) + tail
    _note(row, bound, estimate, compute, paid, store, port)
    row.head, row.first_load, row.first_tile, row.last_step, row.tail = head, loads.first, first_tile, last_step, tail
    row.serial_load, row.exposed_store = serial, exposed
    row.inp_rows = row.wgt_rows = row.store_rows = row.pads = row.epilogue = 0.0
    _note_rest(nest, schedule, geometry, sram, reduction, loads, drain, co_tiles, sp_tiles, insns, row)


@njit(cache=True, nogil=True)
def fits_into(nest, batch, out, records, tags):  # type: ignore[no-untyped-def]
    """Whether the SRAMs hold what canonical schedules keep in them, into bool (n,); with a `geometry_table`."""
    layouts = np.empty(1, dtype=LAYOUT)
    for n in range(len(batch)):
        geometry = geometry_of(nest, batch[n], records, tags)
        lay_out(nest, batch[n], geometry.max_plane, nest.nb * geometry.tiles, layouts[0])
        out[n] = holds(nest, batch[n], geometry.max_plane, layouts[0])


@njit(cache=True, nogil=True)
def summaries_into(nest, batch, out, records, tags):  # type: ignore[no-untyped-def]
    """`summaries` of canonical schedules, into `totals_of` them; with a `geometry_table`."""
    layouts = np.empty(1, dtype=LAYOUT)
    for n in range(len(batch)):
        _summary(nest, batch[n], geometry_of(nest, batch[n], records, tags), layouts[0], out[n])


def summaries(nest: Nest, values: NDArray[np.int64]) -> NDArray[np.float64]:
    """Closed-form totals (n, len(SUMMARY)) of knob values (n, knobs), which are made canonical first.

    ``bound`` is proven for every schedule that lowers: no engine does its own operations faster, nor before the
    first fetch and loads, nor ends before the last store (rates: `vta.timing.chisel`, or those of `hls_totals`).
    """
    batch = schedules(canonical(nest, values))
    out = np.zeros((len(batch), len(SUMMARY)))
    summaries_into(nest, batch, totals_of(out), *geometry_table())
    return out
