"""A workload on an accelerator as one tiled GEMM loop nest: a flat int64 vector that numba code reads.

conv2d and dense are the same nest: output channels x output rows x output columns, reduced over input
channels and kernel taps, all channel counts in blocks. A 1x1 convolution with stride 1 and no padding is
flattened to one row of pixels; dense is one row whose pixels are the batch blocks, with the channel blocks
innermost in memory (``MINOR``).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.vta.program import ACC, INP, OUT, PAGE, UOP, WGT, Buffer, element_bytes
from oneshot_ml2.workload import Conv2d, Dense, Workload

if TYPE_CHECKING:
    from oneshot_ml2.accelerator import Accelerator

# Loop extents: batch blocks, channel blocks, spatial sizes, kernel, stride, dilation, leading pads.
NB, CO, CI, OH, OW, IH, IW, KH, KW, SH, SW, DH, DW, PT, PL, MINOR = range(16)
# Epilogue: bias (0/1), residual (0/1), immediate stages (shift amount or -1, clip or none).
BIAS, BIAS_GEMM_FITS, RES, SHIFT, CLIP, LO, HI = range(16, 23)
# Hardware limits: SRAM depths, micro-op limit, index widths.
INP_DEPTH, WGT_DEPTH, ACC_DEPTH, UOP_LIMIT, INP_BITS, WGT_BITS, ACC_BITS = range(23, 30)
# Element index of each DRAM buffer in its own unit.
D_INP, D_WGT, D_OUT, D_BIAS, D_BIAS_WGT, D_CONST, D_RES, D_IDENT, D_UOP = range(30, 39)
# Facts for bounds and features: bus bytes, beats of a burst, latency, element bytes, GEMM lanes.
BUS, BURST, LATENCY, INP_B, WGT_B, ACC_B, BATCH, BLOCK, QUEUE = range(39, 48)
SIZE = 48

# `full` schedules keep to the micro-op SRAM of the unmodified RTL (VTA reference, 9).
PORTABLE_UOPS = 2048


def bias_gemm_fits(bias_bits: int, block: int) -> bool:
    """Whether every bias is a dot product of int8 weights with a constant input: 127 in all lanes but one."""
    return (1 << bias_bits) <= (block - 1) * 127 * 127


def buffers(workload: Workload, accelerator: Accelerator) -> tuple[tuple[Buffer, ...], int]:
    """DRAM buffers of a layer, each aligned to a page and to a whole burst, and the first free byte after them."""
    a = accelerator
    sizes = element_bytes(a)
    align = max(PAGE, a.burst_bytes)
    nb, cb, kb = (-(-n // size) for n, size in ((workload.n, a.batch), (workload.c, a.block), (workload.k, a.block)))
    if isinstance(workload, Conv2d):
        pixels_in, pixels_out, taps = workload.h * workload.w, workload.out_h * workload.out_w, workload.r * workload.s
    else:
        pixels_in = pixels_out = taps = 1
    wanted = [
        ("data", INP, nb * cb * pixels_in),
        ("weight", WGT, kb * cb * taps),
        ("output", OUT, nb * kb * pixels_out),
    ]
    if workload.epilogue.bias:
        wanted += [("bias", ACC, kb), ("bias_weight", WGT, kb), ("constant", INP, 1)]
    if workload.epilogue.residual:
        wanted += [("residual", INP, nb * kb * pixels_out), ("identity", WGT, 1)]
    wanted.append(("uops", UOP, PORTABLE_UOPS))
    address = align
    placed = []
    for name, memory, elements in wanted:
        placed.append(Buffer(name, memory, address, elements))
        address = math.ceil((address + elements * sizes[memory]) / align) * align
    return tuple(placed), address


def nest(workload: Workload, accelerator: Accelerator) -> NDArray[np.int64]:
    """The nest vector, int64 (SIZE,), of a workload on an accelerator."""
    a = accelerator
    p = np.zeros(SIZE, dtype=np.int64)
    p[NB] = -(-workload.n // a.batch)
    p[CI] = -(-workload.c // a.block)
    p[CO] = -(-workload.k // a.block)
    if isinstance(workload, Dense):
        p[[OH, IH, KH, KW, SH, SW, DH, DW, MINOR]] = 1
        p[[OW, IW]] = p[NB]
        p[NB] = 1
    else:
        top, _, left, _ = workload.pads
        p[[OH, OW, IH, IW]] = workload.out_h, workload.out_w, workload.h, workload.w
        p[[KH, KW, SH, SW, DH, DW]] = workload.r, workload.s, *workload.strides, *workload.dilations
        p[[PT, PL]] = top, left
        if workload.r == workload.s == 1 and workload.strides == (1, 1) and not any(workload.pads):
            p[[OW, IW]] = workload.h * workload.w
            p[[OH, IH]] = 1
    epilogue = workload.epilogue
    fits = bias_gemm_fits(epilogue.bias_bits, a.block)
    p[[BIAS, BIAS_GEMM_FITS, RES, SHIFT]] = epilogue.bias, fits, epilogue.residual, epilogue.shift or -1
    if epilogue.clip is not None:
        p[[CLIP, LO, HI]] = 1, *epilogue.clip
    elif p[SHIFT] < 0:
        # A stored index must have been written by a GEMM or the ALU (VTA reference, 3.4): copy where neither is sure.
        p[SHIFT] = 0
    p[[INP_DEPTH, WGT_DEPTH, ACC_DEPTH]] = a.inp_depth, a.wgt_depth, a.acc_depth
    p[UOP_LIMIT] = min(PORTABLE_UOPS, a.uop_depth)
    p[[INP_BITS, WGT_BITS, ACC_BITS]] = a.isa_inp_bits, a.isa_wgt_bits, a.isa_acc_bits
    sizes = element_bytes(a)
    columns = {
        "data": D_INP,
        "weight": D_WGT,
        "output": D_OUT,
        "bias": D_BIAS,
        "bias_weight": D_BIAS_WGT,
        "constant": D_CONST,
        "residual": D_RES,
        "identity": D_IDENT,
        "uops": D_UOP,
    }
    for buffer in buffers(workload, a)[0]:
        p[columns[buffer.name]] = buffer.address // sizes[buffer.memory]
    p[[BUS, BURST, LATENCY]] = a.bus_bytes, a.burst_beats, a.memory_latency
    p[[INP_B, WGT_B, ACC_B]] = a.inp_bytes, a.wgt_bytes, a.acc_bytes
    p[[BATCH, BLOCK, QUEUE]] = a.batch, a.block, a.instruction_queue
    return p
