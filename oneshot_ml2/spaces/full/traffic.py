"""What a schedule asks of memories, in closed form: its largest LOADs, shortest rows, and requests.

Boards limit such sizes, and charge for requests, in ways that no description tells. A request is one contiguous stretch
of DRAM; a row is a request of a LOAD or STORE of several that are apart. As `shapes` has them, without any
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.kernels import njit
from oneshot_ml2.common.parts import part
from oneshot_ml2.spaces.full.axes import cut_axes
from oneshot_ml2.spaces.full.geometry import spatial_tag
from oneshot_ml2.spaces.full.knobs import INP_MODE, PAD_LOAD, STREAM, WGT_MODE, ceil_div, schedules
from oneshot_ml2.spaces.full.shapes import input_shape, output_shape, weight_shape
from oneshot_ml2.spaces.full.tiles import channel_tiles, pieces
from oneshot_ml2.spaces.full.totals import column
from oneshot_ml2.vta.nest import Nest

# Columns of `traffic`: elements of the largest LOAD of each memory; elements of the shortest row of INP LOADs and of
# STOREs (`NO_ROW` without any); requests; output elements of a tile; micro-ops; GEMM cycles of an instruction.
TRAFFIC = (
    "largest input load",
    "largest weight load",
    "shortest input row",
    "shortest output row",
    "input requests",
    "weight requests",
    "output requests",
    "tile outputs",
    "micro-ops",
    "cycles of a GEMM",
)
NO_ROW = 1 << 15
# The same columns as compiled code names them.
_ROW = np.dtype(
    [
        (name, np.float64)
        for name in (
            "largest_inp", "largest_wgt", "short_inp", "short_out", "inp_requests", "wgt_requests", "out_requests",
            "outputs", "uops", "gemm",
        )
    ]
)  # fmt: skip
# Tiles of an axis that are as large: inputs in SRAM, pads, outputs, and how many there are.
_SIZE = np.dtype([(name, np.int64) for name in ("held", "pads", "outputs", "many")])


@part()
def _distinct(axis):  # type: ignore[no-untyped-def]
    """The different sizes of the tiles of an axis, `_SIZE` (m,)."""
    found, n = np.zeros(len(axis), dtype=_SIZE), 0
    for i in range(len(axis)):
        held, pads, outputs = axis[i].held, axis[i].before + axis[i].after, axis[i].outputs
        at = 0
        while at < n and (found[at].held != held or found[at].pads != pads or found[at].outputs != outputs):
            at += 1
        if at == n:
            found[n].held, found[n].pads, found[n].outputs = held, pads, outputs
            n += 1
        found[at].many += 1
    return found[:n]


@part()
def _row(nest, schedule, rows, cols, step, out):  # type: ignore[no-untyped-def]
    """`TRAFFIC` of one schedule but for what `totals.summaries` says, in place."""
    tco, tci, ci = min(schedule.tile_co, nest.co), schedule.tile_ci, nest.ci
    inp_mode, wgt_mode = INP_MODE[schedule.dataflow], WGT_MODE[schedule.dataflow]
    co_tiles = channel_tiles(nest, schedule)
    depthwise = nest.depthwise == 1
    chunk = tco if depthwise else tci
    chunks = 1 if depthwise else ceil_div(ci, tci)
    repeats = co_tiles if depthwise or inp_mode == STREAM else nest.groups
    out.largest_inp = out.inp_requests = out.out_requests = 0.0
    out.short_inp = out.short_out = NO_ROW
    tiles = np.int64(0)
    for i in range(len(rows)):
        for j in range(len(cols)):
            many = rows[i].many * cols[j].many * nest.nb
            tiles += many
            pads_h = rows[i].pads if schedule.pad == PAD_LOAD else 0
            pads_w = cols[j].pads if schedule.pad == PAD_LOAD else 0
            if rows[i].held > pads_h and cols[j].held > pads_w:
                count, y, x, _ = input_shape(nest, chunk, rows[i].held, cols[j].held, pads_h, pads_w, step)
                out.largest_inp = max(out.largest_inp, x * y)
                out.inp_requests += many * count * y * chunks * repeats
                if y > 1:
                    out.short_inp = min(out.short_inp, x)
            # Where every tile waits for its stores, each is cut into pieces.
            channels, height, width = tco, rows[i].outputs, cols[j].outputs
            if schedule.acc_buffers == 1:
                channels, height, width = pieces(nest, tco, rows[i].outputs, cols[j].outputs, schedule.drain)
            cuts = ceil_div(tco, channels) * ceil_div(rows[i].outputs, height) * ceil_div(cols[j].outputs, width)
            count, y, x, stride = output_shape(nest, channels, height, width)
            out.out_requests += many * count * y * co_tiles * cuts
            if y > 1 and x < stride:
                out.short_out = min(out.short_out, x)
            if nest.residual:
                count, y, x, stride = output_shape(nest, tco, rows[i].outputs, cols[j].outputs)
                out.largest_inp = max(out.largest_inp, x * y)
                out.inp_requests += many * count * y * co_tiles
    y, x, _ = weight_shape(nest, tci, tco)
    out.largest_wgt = x * y
    out.wgt_requests = y * chunks * co_tiles * (tiles if wgt_mode == STREAM else 1)
    out.outputs = tco * schedule.tile_h * schedule.tile_w


@njit(cache=True, nogil=True)
def _rows(nest, batch, order, out):  # type: ignore[no-untyped-def]
    """`_row` of canonical schedules, ``order`` (n,) such that rows of equal spatial tiles follow each other."""
    tag, step = np.int64(-1), np.int64(1)
    rows = cols = np.zeros(0, dtype=_SIZE)
    for at in range(len(order)):
        schedule = batch[order[at]]
        own = spatial_tag(nest, schedule)
        if own != tag:
            tag = own
            row_axis, _, col_axis, _, step = cut_axes(nest, schedule)
            rows, cols = _distinct(row_axis), _distinct(col_axis)
        _row(nest, schedule, rows, cols, step, out[order[at]])


def traffic(nest: Nest, values: NDArray[np.int64], summary: NDArray[np.float64]) -> NDArray[np.float64]:
    """`TRAFFIC` of canonical knob values (n, knobs) with their `totals.summaries`, float64 (n, len(TRAFFIC)).

    Chunks and channel tiles are taken at their full size, the last tile as a whole unless all are cut.
    """
    out, batch = np.empty((len(values), len(TRAFFIC))), schedules(values)
    rows = out.view(_ROW)[:, 0]
    tags = (batch["tile_h"] * (nest.ow + 1) + batch["tile_w"]) * 2 + batch["pad"]
    _rows(nest, batch, np.argsort(tags, kind="stable"), rows)
    rows["uops"] = column(summary, "uops")
    rows["gemm"] = column(summary, "compute") / np.maximum(column(summary, "gemms"), 1.0)
    return out
