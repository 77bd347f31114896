"""What the LOADs of a chunk take, and the output tiles of a `full` schedule on the RTL, in closed form: means, of which
`waits` makes who waits for whom.

A LOAD pays the memory's latency unless another client's burst waits in the memory's queue. 16 bursts may be
outstanding, so rows of one beat drain that queue, and the latency is paid anew for every 16 of them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from oneshot_ml2.common.parts import part
from oneshot_ml2.spaces.full.knobs import BIAS_ADD, BIAS_GEMM, BIAS_LOAD, INP_MODE, STREAM, WGT_MODE, ceil_div
from oneshot_ml2.spaces.full.shapes import beats_of_acc, bias_shape, output_shape
from oneshot_ml2.spaces.full.tiles import pieces
from oneshot_ml2.spaces.full.totals import stage_passes, tapered_chunks
from oneshot_ml2.vta.timing.records import TAGS

# Cycles of a LOAD beside latency and beats.
LOAD = 7.0


class Loads(NamedTuple):
    """LOADs of a chunk: cycles of all, how many they are, rows, bursts, beats and cycles of the data of one, and
    latencies among these; float64."""

    cycles: float
    insns: float
    rows: float
    bursts: float
    beats: float
    data: float
    dry: float


class Tile(NamedTuple):
    """Means over the output tiles; float64.

    ``chunks``: steps; ``step``, ``gemms``: cycles and GEMMs of a step; ``end``, ``end_insns``: the same of what comes
    before and after the steps; ``held``: cycles of these before the last step's operands are free; ``stores``,
    ``store_insns``: of all its STOREs; ``exposed``: cycles that compute waits for them; ``biases``, ``bias_data``,
    ``bias_bursts``: LOADs of biases, cycles of the data of one, and its bursts if they are in the memory's queue when
    another LOAD begins, else 0; ``bias_beats``: beats of all of them; ``residual``, ``residual_insns``: of the LOADs of
    a residual.
    """

    chunks: float
    step: float
    gemms: float
    end: float
    end_insns: float
    held: float
    stores: float
    store_insns: float
    exposed: float
    biases: float
    bias_data: float
    bias_bursts: float
    bias_beats: float
    residual: float
    residual_insns: float


@part()
def _stream(nest, rows, beats, apart):  # type: ignore[no-untyped-def]
    """Cycles that the data of a LOAD take, a burst is sent every second cycle; and latencies among them; ``apart``: see
    `singles`."""
    share = singles(nest, beats / rows, apart)
    single = rows * share
    # Each burst of one beat leaves the queue one burst shorter, as nothing is sent beside a last beat.
    dry = np.floor(max(single - 1.0, 0.0) / TAGS) * max(nest.latency + 2.0 - TAGS, 0.0) * min(share, 1.0)
    return single + beats + dry, dry


@part()
def singles(nest, beats, apart):  # type: ignore[no-untyped-def]
    """How many bursts of one beat a row of so many beats has, on the average: none crosses a multiple of a burst's
    length, and rows start at any multiple of ``apart`` beats."""
    if nest.burst == 1 or beats <= 1.0:
        return beats
    last = 2.0 - beats
    if apart == 1:
        # Its first burst may be one, and its last.
        return max(last, 0.0) + (1.0 - max(last, 0.0)) * 2.0 / nest.burst
    if beats >= 2.0:
        last = (1.0 - abs(beats % apart - 1.0)) * apart / nest.burst
    return max(last, 0.0)


@part()
def _apart(nest, places, size):  # type: ignore[no-untyped-def]
    """Bytes of which rows start at any multiple, at most a burst's; ``places``: those that they may start at, as bits
    of one number, in elements of ``size`` bytes."""
    offsets = places * size | nest.burst * nest.bus
    return offsets & -offsets


@part()
def is_waiting(beats, bursts):  # type: ignore[no-untyped-def]
    """Whether some of the bursts of a LOAD are in the memory's queue when another LOAD begins, that asked before them:
    not what is short, nor bursts of one beat, beside which nothing is sent."""
    return beats >= 2.0 * bursts and beats * (1.0 - 1.0 / bursts) >= LOAD - 1.0


@part()
def links(beats, bursts):  # type: ignore[no-untyped-def]
    """How many LOADs find bursts of this one in the memory's queue: at most 15 are there when one of them ends, and
    what is left behind a LOAD must last until the next one asks."""
    if bursts == 0.0 or not is_waiting(beats, bursts):
        return 0.0
    return 1.0 + max(np.floor((bursts - 1.0 - (LOAD - 1.0) * bursts / beats) / (TAGS - 1.0)), 0.0)


@part()
def _loads_of_rows(nest, insns, rows, beats, apart):  # type: ignore[no-untyped-def]
    """`Loads` of so many instructions, rows and beats in all, whose rows start at any multiple of ``apart`` bytes."""
    rows = max(rows, insns)
    # Ends of a row may share their beats with others.
    beats = max(beats + rows * max(1.0 - apart / nest.bus, 0.0), rows)
    apart = max(apart // nest.bus, 1)
    data, dry = _stream(nest, rows / insns, beats / insns, apart)
    bursts = 1.0 + (np.ceil(beats / rows / apart) - 1.0) * apart / nest.burst
    cycles = insns * (nest.latency + LOAD + data)
    return Loads(cycles, insns, rows / insns, bursts * rows / insns, beats / insns, data, dry)


@part()
def smaller(nest, loads, share):  # type: ignore[no-untyped-def]
    """`Loads` of a chunk of a ``share`` of the channels."""
    insns = min(loads.insns, max(1.0, loads.insns * share))
    share *= loads.insns / max(insns, 1e-9)
    data = loads.data * share
    cycles = insns * (nest.latency + LOAD + data)
    return Loads(cycles, insns, loads.rows * share, loads.bursts * share, loads.beats * share, data, loads.dry)


@part()
def input_loads(nest, schedule, geometry, loads, whole, tiles, sp_tiles):  # type: ignore[no-untyped-def]
    """`Loads` of a chunk of inputs."""
    chunks = float(tiles)
    if not nest.depthwise:
        chunks = float(whole * (tiles if INP_MODE[schedule.dataflow] == STREAM else sp_tiles * nest.groups))
    channels = min(schedule.tile_co, nest.co) if nest.depthwise else schedule.tile_ci
    real = max(geometry.real, 1)
    if nest.minor:
        rows = 1.0 if schedule.tile_ci >= nest.ci else geometry.loaded / real
        places = nest.ci | schedule.tile_ci
    else:
        places = nest.iw
        if schedule.tile_w < nest.ow:
            places |= schedule.tile_w * nest.sw | nest.pl
        apart = geometry.compact - geometry.compact_apart
        rows = ((geometry.spread_rows + geometry.compact_apart) * channels + apart) / real
    beats = loads.inp_elements * nest.inp_bytes / nest.bus / chunks
    return _loads_of_rows(nest, max(loads.inp_insns / chunks, 1e-9), rows, beats, _apart(nest, places, nest.inp_bytes))


@part()
def weight_loads(nest, schedule, loads, whole, co_tiles, sp_tiles):  # type: ignore[no-untyped-def]
    """`Loads` of a chunk of weights; of a pool none."""
    if nest.pool:
        return Loads(0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0)
    chunks = float(whole * co_tiles * (sp_tiles if WGT_MODE[schedule.dataflow] == STREAM else 1))
    rows = 1.0 if whole == 1 else float(min(schedule.tile_co, nest.co))
    apart = _apart(nest, nest.ci | min(schedule.tile_ci, nest.ci), nest.kh * nest.kw * nest.wgt_bytes)
    return _loads_of_rows(nest, 1.0, rows, loads.wgt_beats / chunks, apart)


@part()
def _store_time(nest, insns, rows, elements):  # type: ignore[no-untyped-def]
    """Cycles of STOREs of so many rows and elements."""
    beats = max(np.ceil(elements * nest.inp_bytes / nest.bus / rows), 1.0)
    bursts = max(1.0, beats / nest.burst)
    row = beats + 4.0 * bursts
    if nest.inp_bytes > nest.bus:
        row = beats + beats / max(nest.block // nest.bus, 1) + 3.0 * bursts
    return rows * row + 2.0 * insns


@part()
def _biases(nest, schedule, area):  # type: ignore[no-untyped-def]
    """Of the biases of a tile of ``area`` outputs: (cycles beyond `totals`', LOADs, cycles of the data and bursts of
    one, beats of all)."""
    if nest.bias == 0 or schedule.bias != BIAS_LOAD:
        return 0.0, 0.0, 0.0, 0.0, 0.0
    tco = min(schedule.tile_co, nest.co)
    insns = bias_shape(nest, tco, schedule.tile_h, schedule.tile_w)[0]
    beats = beats_of_acc(nest)
    rows, data = area / insns / (tco if nest.minor else 1), area * beats / insns
    # What the rows take, which may be of one beat and drain the memory's queue, in place of what `totals` counts.
    own, dry = _stream(nest, rows, data, nest.burst)
    cycles = insns * (nest.latency + LOAD + own) - 6.0 - area * (beats if nest.minor else max(beats, 2))
    bursts = rows * np.ceil(data / rows / nest.burst)
    if dry > 0.0 or not is_waiting(data, bursts):
        bursts = 0.0
    return cycles, float(insns), own, bursts, area * beats


@part()
def tile_of(nest, schedule, reduction, compute, gemm, tiles, outputs):  # type: ignore[no-untyped-def]
    """The `Tile` of a schedule; ``gemm``: cycles of all its GEMMs."""
    tco, area = min(schedule.tile_co, nest.co), outputs / float(tiles)
    stages, stage_cycles = stage_passes(nest)
    chunks = float(reduction.steps)
    if tiles > 1:
        first = tapered_chunks(schedule, nest.ci, reduction.whole) + reduction.parts - 1
        chunks = (reduction.steps - first) / float(tiles - 1)
    steps = chunks * tiles
    # Where every tile waits for its stores, each is cut into pieces.
    pc, ph, pw = tco, schedule.tile_h, schedule.tile_w
    if schedule.acc_buffers == 1:
        pc, ph, pw = pieces(nest, tco, ph, pw, schedule.drain)
    cuts = ceil_div(tco, pc) * ceil_div(schedule.tile_h, ph) * ceil_div(schedule.tile_w, pw)
    insns, rows, _, _ = output_shape(nest, pc, ph, pw)
    bias, biases, bias_data, bias_bursts, bias_beats = _biases(nest, schedule, area)
    end = (compute - gemm - bias_add(nest, schedule) - 8.0) / tiles + 7.0 * stages * (cuts - 1) + bias
    end_insns = 1.0 + stages * cuts + (nest.pre_shift >= 0) + nest.residual + max(biases - 1.0, 0.0)
    end_insns += nest.bias and schedule.bias != BIAS_LOAD
    stores = _store_time(nest, insns * cuts, float(insns * rows * cuts), area)
    exposed = 0.0
    if schedule.acc_buffers == 1:
        exposed = max(stores / cuts, stores - stage_cycles * area * (1.0 - 1.0 / cuts)) + 4.0
    elif insns > nest.queue:
        exposed = (insns - nest.queue) * stores / insns
    # What is added within the last step, which then is read.
    adds = (nest.pre_shift >= 0) + nest.residual + (nest.bias and schedule.bias == BIAS_GEMM)
    twice = nest.bias and schedule.bias == BIAS_ADD and nest.pre_shift >= 0
    held = (adds + 2.0 * twice) * area + 7.0 * (adds + twice)
    residual, residual_insns = 0.0, 0.0
    if nest.residual:
        many, rows, _, _ = output_shape(nest, tco, schedule.tile_h, schedule.tile_w)
        residual_insns = float(many)
        apart = _apart(nest, nest.ow | min(schedule.tile_w, nest.ow), nest.inp_bytes)
        beats = area * nest.inp_bytes / nest.bus
        residual = _loads_of_rows(nest, residual_insns, float(many * rows), beats, apart).cycles
    return Tile(
        chunks, gemm / steps, reduction.gemms / steps, end, end_insns, held, stores, float(insns * cuts), exposed,
        biases, bias_data, bias_bursts, bias_beats, residual, residual_insns,
    )  # fmt: skip


@part()
def bias_add(nest, schedule):  # type: ignore[no-untyped-def]
    """Beats of the one LOAD of all biases that are added from ACC; 0 if there is none."""
    if nest.bias == 0 or schedule.bias != BIAS_ADD:
        return 0.0
    return float(nest.out_blocks * beats_of_acc(nest))


@part()
def bias_time(nest, tile):  # type: ignore[no-untyped-def]
    """Cycles of the LOADs of a tile's biases, each with a latency of its own."""
    return tile.biases * (nest.latency + LOAD + tile.bias_data)


@part()
def in_chunks(tile, chunks):  # type: ignore[no-untyped-def]
    """The tile in so many steps."""
    share = tile.chunks / chunks
    return Tile(
        chunks, tile.step * share, tile.gemms * share, tile.end, tile.end_insns, tile.held, tile.stores,
        tile.store_insns, tile.exposed, tile.biases, tile.bias_data, tile.bias_bursts, tile.bias_beats, tile.residual,
        tile.residual_insns,
    )  # fmt: skip
