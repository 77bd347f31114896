"""What a schedule keeps in the SRAMs, and where."""

from __future__ import annotations

import numpy as np

from oneshot_ml2.common.kernels import njit
from oneshot_ml2.common.parts import part
from oneshot_ml2.spaces.full.knobs import BIAS_ADD, BIAS_GEMM, BIAS_LOAD, INP_MODE, SET, STREAM, WGT_MODE
from oneshot_ml2.spaces.full.pooling import scratch_of
from oneshot_ml2.spaces.full.tiles import channel_tiles, input_channels

# In elements: sizes of the slots of inputs, residuals, weights and output tiles; where residuals, the constant and the
# identity of GEMMs that add, bias weights, biases and the scratch start; and what INP, WGT and ACC hold in all.
LAYOUT = np.dtype(
    [
        (name, np.int64)
        for name in (
            "inp_slot", "res_slot", "wgt_slot", "acc_slot", "res_base", "constant", "identity", "bias_wgt", "bias",
            "scratch", "inp", "wgt", "acc",
        )
    ]
)  # fmt: skip


@part()
def scratch_size(nest, schedule) -> int:  # type: ignore[no-untyped-def]
    """Accumulators beside the output tiles: the rest of a pool's slots, or copies to round."""
    if nest.pool:
        return scratch_of(nest, schedule)
    return schedule.tile_co * schedule.tile_h * schedule.tile_w if nest.even else 0


@njit(cache=True, nogil=True)
def lay_out(nest, schedule, plane: int, sp_tiles: int, sram):  # type: ignore[no-untyped-def]
    """Fill a `LAYOUT` of a schedule; ``plane``: inputs of a channel of the largest tile that is loaded."""
    tco, taps = schedule.tile_co, nest.kh * nest.kw
    inp_mode, wgt_mode = INP_MODE[schedule.dataflow], WGT_MODE[schedule.dataflow]
    chunk_channels, tile_channels = input_channels(nest, schedule)
    if inp_mode == STREAM:
        sram.inp_slot = plane * chunk_channels
        sram.inp = sram.inp_slot * schedule.inp_buffers
    else:
        sram.inp_slot = plane * tile_channels
        sram.inp = sram.inp_slot * (schedule.inp_buffers if inp_mode == SET else sp_tiles * nest.groups)
    if nest.pool:
        sram.wgt_slot, sram.wgt = 0, 1
    elif wgt_mode == STREAM:
        sram.wgt_slot = tco * schedule.tile_ci * taps
        sram.wgt = sram.wgt_slot * schedule.wgt_buffers
    else:
        sram.wgt_slot = tco * nest.ci * taps
        sram.wgt = sram.wgt_slot * (schedule.wgt_buffers if wgt_mode == SET else channel_tiles(nest, schedule))
    sram.acc_slot = tco * schedule.tile_h * schedule.tile_w
    sram.res_slot = sram.res_base = sram.identity = 0
    if nest.residual:
        sram.res_slot, sram.res_base, sram.identity = sram.acc_slot, sram.inp, sram.wgt
        sram.inp += sram.res_slot * schedule.inp_buffers
        sram.wgt += 1
    sram.scratch = sram.acc_slot * schedule.acc_buffers
    sram.acc = sram.scratch + scratch_size(nest, schedule)
    sram.constant = sram.bias_wgt = sram.bias = 0
    if nest.bias and schedule.bias == BIAS_GEMM:
        sram.constant, sram.bias_wgt = sram.inp, sram.wgt
        sram.inp += 1
        sram.wgt += nest.out_blocks
    elif nest.bias and schedule.bias == BIAS_ADD:
        sram.bias = sram.acc
        sram.acc += nest.out_blocks


@part()
def holds(nest, schedule, plane: int, sram) -> bool:  # type: ignore[no-untyped-def]
    """Whether the SRAMs hold a `LAYOUT`, whose totals are raised to what the largest LOAD of each needs.

    One LOAD of a whole SRAM can be reported done before its data arrive: it needs one element more.
    """
    sram.inp = max(sram.inp, plane * input_channels(nest, schedule)[0] + 1)
    sram.wgt = max(sram.wgt, 2 if nest.pool else schedule.tile_co * schedule.tile_ci * nest.kh * nest.kw + 1)
    if nest.bias and schedule.bias == BIAS_LOAD:
        sram.acc = max(sram.acc, schedule.tile_h * schedule.tile_w * (schedule.tile_co if nest.minor else 1) + 1)
    return bool(sram.inp <= nest.inp_depth and sram.wgt <= nest.wgt_depth and sram.acc <= nest.acc_depth)
