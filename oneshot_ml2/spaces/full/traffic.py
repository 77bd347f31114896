"""What a schedule asks of memories, in closed form: its largest LOADs, shortest rows, and requests.

Boards limit such sizes, and charge for requests, in ways that no description tells. A request is one contiguous stretch
of DRAM; a row is a request of a LOAD or STORE of several that are apart. As `steps` shapes them, without its steps.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.kernels import njit
from oneshot_ml2.spaces.full import plan, steps
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
_LARGEST_INP, _LARGEST_WGT, _SHORT_INP, _SHORT_OUT, _REQ_INP, _REQ_WGT, _REQ_OUT, _OUTPUTS, _UOPS, _GEMM = range(10)


@njit(cache=True, nogil=True)
def _distinct(axis):  # type: ignore[no-untyped-def]
    """Different (size, pads, outputs) of the tiles of an axis and how many there are of each, int64 (m, 4)."""
    found, n = np.zeros((len(axis), 4), dtype=np.int64), 0
    for i in range(len(axis)):
        size, pads, count = axis[i, plan.A_SIZE], axis[i, plan.A_BEFORE] + axis[i, plan.A_AFTER], axis[i, plan.A_COUNT]
        at = 0
        while at < n and (found[at, 0] != size or found[at, 1] != pads or found[at, 2] != count):
            at += 1
        if at == n:
            found[n, 0], found[n, 1], found[n, 2] = size, pads, count
            n += 1
        found[at, 3] += 1
    return found[:n]


@njit(cache=True, nogil=True)
def _row(nest, v, rows, cols, step, out):  # type: ignore[no-untyped-def]
    """`TRAFFIC` of one schedule but for what `plan.summaries` says, in place."""
    tco, tci, ci = min(v[plan.K_CO], nest.co), v[plan.K_CI], nest.ci
    inp_mode, wgt_mode = plan.INP_MODE[v[plan.K_FLOW]], plan.WGT_MODE[v[plan.K_FLOW]]
    co_tiles = plan.channel_tiles(nest, v)
    depthwise = nest.depthwise == 1
    chunk = tco if depthwise else tci
    chunks = 1 if depthwise else plan.ceil_div(ci, tci)
    repeats = co_tiles if depthwise or inp_mode == plan.STREAM else nest.groups
    out[:] = 0.0
    out[_SHORT_INP] = out[_SHORT_OUT] = NO_ROW
    tiles = np.int64(0)
    for i in range(len(rows)):
        for j in range(len(cols)):
            many = rows[i, 3] * cols[j, 3] * nest.nb
            tiles += many
            pads_h = rows[i, 1] if v[plan.K_PAD] == plan.PAD_LOAD else 0
            pads_w = cols[j, 1] if v[plan.K_PAD] == plan.PAD_LOAD else 0
            if rows[i, 0] > pads_h and cols[j, 0] > pads_w:
                count, y, x, _ = steps.input_shape(nest, chunk, rows[i, 0], cols[j, 0], pads_h, pads_w, step)
                out[_LARGEST_INP] = max(out[_LARGEST_INP], x * y)
                out[_REQ_INP] += many * count * y * chunks * repeats
                if y > 1:
                    out[_SHORT_INP] = min(out[_SHORT_INP], x)
            # Where every tile waits for its stores, each is cut into pieces.
            channels, height, width = tco, rows[i, 2], cols[j, 2]
            if v[plan.K_ACC_BUF] == 1:
                channels, height, width = plan.pieces(nest, tco, rows[i, 2], cols[j, 2], v[plan.K_DRAIN])
            cuts = plan.ceil_div(tco, channels) * plan.ceil_div(rows[i, 2], height) * plan.ceil_div(cols[j, 2], width)
            count, y, x, stride = steps.output_shape(nest, channels, height, width)
            out[_REQ_OUT] += many * count * y * co_tiles * cuts
            if y > 1 and x < stride:
                out[_SHORT_OUT] = min(out[_SHORT_OUT], x)
            if nest.residual:
                count, y, x, stride = steps.output_shape(nest, tco, rows[i, 2], cols[j, 2])
                out[_LARGEST_INP] = max(out[_LARGEST_INP], x * y)
                out[_REQ_INP] += many * count * y * co_tiles
    y, x, _ = steps.weight_shape(nest, tci, tco)
    out[_LARGEST_WGT] = x * y
    out[_REQ_WGT] = y * chunks * co_tiles * (tiles if wgt_mode == plan.STREAM else 1)
    out[_OUTPUTS] = tco * v[plan.K_H] * v[plan.K_W]


@njit(cache=True, nogil=True)
def _rows(nest, values, order, out):  # type: ignore[no-untyped-def]
    """`_row` of canonical rows, ``order`` (n,) such that rows of equal spatial tiles follow each other."""
    tag, step = np.int64(-1), np.int64(1)
    rows = cols = np.zeros((0, 4), dtype=np.int64)
    for at in range(len(order)):
        v = values[order[at]]
        own = (v[plan.K_H] * (nest.ow + 1) + v[plan.K_W]) * 2 + v[plan.K_PAD]
        if own != tag:
            tag = own
            row_axis, _, col_axis, _, step = plan.axes(nest, v)
            rows, cols = _distinct(row_axis), _distinct(col_axis)
        _row(nest, v, rows, cols, step, out[order[at]])


def traffic(nest: Nest, values: NDArray[np.int64], summary: NDArray[np.float64]) -> NDArray[np.float64]:
    """`TRAFFIC` of canonical knob values (n, knobs) with their `plan.summaries`, float64 (n, len(TRAFFIC)).

    Chunks and channel tiles are taken at their full size, the last tile as a whole unless all are cut.
    """
    out = np.empty((len(values), len(TRAFFIC)))
    keys = (values[:, plan.K_H] * (nest.ow + 1) + values[:, plan.K_W]) * 2 + values[:, plan.K_PAD]
    _rows(nest, np.ascontiguousarray(values), np.argsort(keys, kind="stable"), out)
    out[:, _UOPS] = summary[:, plan.S_UOPS]
    out[:, _GEMM] = summary[:, plan.S_COMPUTE] / np.maximum(summary[:, plan.S_GEMMS], 1.0)
    return out
