"""Totals of a `full` schedule on the HLS design in closed form: a proven bound of its cycles, and a guess of them.

What a program consists of is `totals`' to say; here stands what the design takes for it (`vta.timing.hls`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from oneshot_ml2.common.parts import part
from oneshot_ml2.spaces.full.knobs import BIAS_ADD, BIAS_LOAD, INP_MODE, SET, STREAM, WGT_MODE
from oneshot_ml2.spaces.full.shapes import beats_of_acc, output_shape
from oneshot_ml2.spaces.full.tiles import last_channels
from oneshot_ml2.vta.hls_keys import TICKS


class Costs(NamedTuple):
    """`hls_keys.RATES` of an accelerator in cycles; all float64."""

    read_row: float
    store_row: float
    wgt_beat: float
    alu_op: float
    load: float
    compute: float
    store: float
    pad: float


class Work(NamedTuple):
    """What a program consists of.

    ``tiles``, ``co_tiles``, ``sp_tiles``: output tiles, of channels and of space; ``cuts``: stores; ``outputs``:
    elements; ``whole``, ``gemms``: chunks of a tile, and GEMMs; ``stages``, ``resets``: passes over an output before
    its store, and those of them that reset; ``last_gemms``, ``last_work``: GEMMs of the last step, and their
    operations; ``last_cuts``, ``last_piece``: stores of the last tile, and elements of the last one; ``first_chunk``,
    ``first_part``: input and output channels of the first step; ``inp_elements``, ``pads``: loaded inputs, and the pads
    of their LOADs; ``inp_beats``, ``wgt_beats``, ``inp_insns``, ``wgt_insns``, ``insns``: of all loads.
    """

    tiles: int
    co_tiles: int
    sp_tiles: int
    cuts: int
    outputs: int
    whole: int
    gemms: int
    stages: int
    resets: int
    last_gemms: int
    last_work: int
    last_cuts: int
    last_piece: int
    first_chunk: int
    first_part: int
    inp_elements: int
    pads: int
    inp_beats: int
    wgt_beats: int
    inp_insns: int
    wgt_insns: int
    insns: int


class Times(NamedTuple):
    """Cycles: a proven bound and a guess of all; of compute, of loads and of stores; from the launch to the first
    operands; after the last ones; the last store and what follows it; waits for loads and stores that nothing hides;
    of these, latencies of rows of inputs, of weights and of outputs, pads, and passes over outputs before their stores;
    all float64."""

    bound: float
    estimate: float
    compute: float
    load: float
    store: float
    first_load: float
    last_step: float
    tail: float
    serial_load: float
    exposed_store: float
    inp_rows: float
    wgt_rows: float
    store_rows: float
    pads: float
    epilogue: float


@part()
def costs_of(nest):  # type: ignore[no-untyped-def]
    """The `Costs` of a nest's accelerator."""
    return Costs(
        nest.hls_read_row / TICKS, nest.hls_store_row / TICKS, nest.hls_wgt_beat / TICKS, nest.hls_alu_op / TICKS,
        nest.hls_load_start / TICKS, nest.hls_compute_start / TICKS, nest.hls_store_start / TICKS, nest.hls_pad / TICKS,
    )  # fmt: skip


@part()
def _input_rows(nest, geometry, work, repeats):  # type: ignore[no-untyped-def]
    """Rows of all LOADs of inputs, at least; ``repeats``: how often each is loaded."""
    if nest.minor:
        # A chunk of some channels is a row a pixel, all of them are one.
        rows = geometry.loaded * work.whole if work.whole > 1 else geometry.compact
        return nest.nb * rows * repeats
    if nest.depthwise:
        apart = nest.co * (geometry.spread_rows + geometry.compact_apart)
        return nest.nb * (apart + (geometry.compact - geometry.compact_apart) * work.co_tiles)
    apart = nest.ci * (geometry.spread_rows + geometry.compact_apart)
    return nest.nb * (apart + (geometry.compact - geometry.compact_apart) * work.whole) * repeats


@part()
def _loads(nest, schedule, geometry, work, cost):  # type: ignore[no-untyped-def]
    """Cycles of all LOADs of inputs, of weights and of others, at least, and of those of the first step; latencies of
    rows of inputs and of weights among them."""
    repeats = work.co_tiles if INP_MODE[schedule.dataflow] == STREAM else nest.groups
    rows = max(_input_rows(nest, geometry, work, repeats), work.inp_insns)
    inp_rows = cost.read_row * rows
    inp = work.inp_beats + inp_rows + cost.load * work.inp_insns + cost.pad * work.pads
    # A weight load of some input channels has a row an output channel.
    rows = work.wgt_insns
    if work.whole > 1 and not nest.pool:
        rows = work.whole * nest.out_blocks * (work.sp_tiles if WGT_MODE[schedule.dataflow] == STREAM else 1)
    wgt_rows = cost.read_row * rows
    wgt = cost.wgt_beat * work.wgt_beats + wgt_rows + cost.load * work.wgt_insns
    others = work.insns - work.inp_insns - work.wgt_insns
    channels = min(schedule.tile_co, nest.co) if nest.depthwise else work.first_chunk
    elements = geometry.loaded_first * channels
    insns = 1 if geometry.compact_first else channels
    weights = 1 if nest.pool else work.first_part * work.first_chunk * nest.kh * nest.kw
    first = elements * nest.inp_bytes // nest.bus + cost.wgt_beat * (weights * nest.wgt_bytes // nest.bus)
    first += (cost.load + cost.read_row) * (insns + 1)
    return inp, wgt, others * (cost.load + cost.read_row), first, inp_rows, wgt_rows


@part()
def _compute(nest, schedule, geometry, work, cost):  # type: ignore[no-untyped-def]
    """Cycles of compute from the launch to the last store's token, at least, and how many of them may lie before the
    first operands are there; those of passes over outputs before their stores."""
    outputs, tiles = work.outputs, work.tiles
    operations = nest.nb * geometry.work * nest.ci * nest.out_blocks
    acc_beats = beats_of_acc(nest)
    # The micro-ops come first.
    uops = cost.compute + cost.read_row + 1.0
    area = min(schedule.tile_co, nest.co) * schedule.tile_h * schedule.tile_w
    init, first = outputs + cost.compute * tiles, area + cost.compute
    cycles = operations + cost.compute * work.gemms
    if nest.pool:
        slots = nest.nb * geometry.slots * nest.out_blocks
        cycles = cost.alu_op * operations + cost.compute * work.gemms + slots
        init = slots + cost.compute * geometry.resets * nest.nb * work.co_tiles
        first = min(schedule.tile_co, nest.co) * geometry.slots_first + 2.0 * cost.compute
    if nest.pre_shift >= 0:
        cycles += cost.alu_op * outputs + cost.compute * tiles
    if nest.bias:
        if schedule.bias == BIAS_LOAD:
            # A bias that is repeated one by one is a row of its own.
            rows = work.co_tiles * nest.nb * nest.oh * nest.ow if nest.minor else outputs
            init = outputs * acc_beats + cost.read_row * rows + cost.compute * tiles
            first = area * (acc_beats + cost.read_row) + cost.compute * min(schedule.tile_co, nest.co)
        elif schedule.bias == BIAS_ADD:
            load = cost.compute + cost.read_row + nest.out_blocks * acc_beats
            cycles += cost.alu_op * outputs + cost.compute * tiles
            init += load
            first += load
        else:
            cycles += outputs + cost.compute * tiles
    if nest.residual:
        cycles += outputs + cost.compute * tiles
    finish = (
        cost.alu_op * (work.stages - work.resets) + work.resets
    ) * outputs + cost.compute * work.stages * work.cuts
    return uops + init + cycles + finish, uops + first, finish


@part()
def _last_step(nest, schedule, geometry, work, cost):  # type: ignore[no-untyped-def]
    """Cycles that compute takes after the last operands are there, at least."""
    outputs = last_channels(nest, schedule) * geometry.last_h * geometry.last_w
    per_output = cost.alu_op * (work.stages - work.resets) + work.resets
    cycles = work.last_work + cost.compute * work.last_gemms
    if nest.pool:
        cycles += last_channels(nest, schedule) * (cost.alu_op - 2.0) * geometry.work_last
    cycles += per_output * outputs + cost.compute * work.stages * work.last_cuts
    if nest.residual:
        cycles += outputs + cost.compute
    return cycles


@part()
def _waits(nest, schedule, work, inp, wgt, cost):  # type: ignore[no-untyped-def]
    """Cycles of loads, and of stores, that compute waits for, as there is no second buffer, and of all stores, with
    the latencies of their rows; a guess."""
    inp_mode, wgt_mode = INP_MODE[schedule.dataflow], WGT_MODE[schedule.dataflow]
    serial = 0.0
    if schedule.inp_buffers == 1:
        if inp_mode == STREAM:
            serial += inp
        elif inp_mode == SET and work.sp_tiles > 1:
            serial += inp / max(work.whole, 1)
    if schedule.wgt_buffers == 1 and not nest.pool:
        if wgt_mode == STREAM:
            serial += wgt
        elif wgt_mode == SET and work.co_tiles > 1:
            serial += wgt / max(work.whole, 1)
    count, y, _, _ = output_shape(nest, schedule.tile_co, schedule.tile_h, schedule.tile_w)
    rows = work.tiles * count * y + work.cuts - work.tiles
    store_rows = cost.store_row * rows
    stored = work.outputs * nest.inp_bytes / nest.bus + store_rows + cost.store * work.cuts
    exposed = stored * (work.tiles - 1) / work.tiles if schedule.acc_buffers == 1 else 0.0
    return serial, exposed, stored, store_rows


@part()
def times_of(nest, schedule, geometry, work):  # type: ignore[no-untyped-def]
    """The `Times` of a schedule whose program consists of a `Work`."""
    cost = costs_of(nest)
    inp, wgt, others, first, inp_rows, wgt_rows = _loads(nest, schedule, geometry, work, cost)
    load = inp + wgt + others
    compute, before, epilogue = _compute(nest, schedule, geometry, work, cost)
    last_step = _last_step(nest, schedule, geometry, work, cost)
    # The last store, the NOP that waits for it, and FINISH.
    tail = cost.store + cost.store_row + work.last_piece * nest.inp_bytes // nest.bus + 2.0 * cost.compute
    least_store = (cost.store + cost.store_row) * work.cuts + work.outputs * nest.inp_bytes // nest.bus
    bound = max(compute + tail, first + compute - before + tail)
    bound = max(bound, load + last_step + tail)
    bound = max(bound, first + least_store + 2.0 * cost.compute)
    serial, exposed, stored, store_rows = _waits(nest, schedule, work, inp, wgt, cost)
    estimate = first + max(max(compute - before + serial + exposed, load), stored) + tail
    return Times(
        np.floor(bound), max(estimate, np.floor(bound)), compute, load, stored, first, last_step, tail, serial, exposed,
        inp_rows, wgt_rows, store_rows, cost.pad * work.pads, epilogue,
    )  # fmt: skip
