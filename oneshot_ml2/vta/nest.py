"""A workload on an accelerator as one tiled GEMM loop nest: a flat int64 vector that numba code reads.

All operators are the same nest: output channels x output rows x output columns, reduced over input channels and
kernel taps, all channel counts in blocks. A 1x1 convolution whose steps are 1 is flattened to one row of pixels, as
long as 16 bits count them; dense is one row whose pixels are the batch blocks, with the channel blocks innermost in
memory (``MINOR``).

Groups (``GROUPS``) repeat the nest with inputs and weights of their own: groups of channels, or the pairs of a batched
matrix product. Groups so small that a block holds whole ones are one nest whose output block reads the input block
of its own number only (``DEPTHWISE``). Max pooling (``POOL``) is such a nest too: an identity weight copies the
inputs into ACC, and the ALU takes the maximum where others multiply. A transposed convolution has outputs that lie
``TH``, ``TW`` apart for neighbouring inputs, in place of inputs that lie ``SH``, ``SW`` apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.vta.packing import blocks
from oneshot_ml2.vta.program import ACC, ADDRESSES, INP, INSN_BYTES, OUT, PAGE, UOP, WGT, Buffer, element_bytes
from oneshot_ml2.vta.reasons import NoSchedule, Reason

if TYPE_CHECKING:
    from oneshot_ml2.vta.accelerator import Accelerator
    from oneshot_ml2.workload.base import Workload
    from oneshot_ml2.workload.loops import LoopNest

# Loop extents: batch blocks, channel blocks (of a group), spatial sizes, kernel, stride, dilation, leading pads.
NB, CO, CI, OH, OW, IH, IW, KH, KW, SH, SW, DH, DW, PT, PL, MINOR = range(16)
# Epilogue: bias (0/1), residual (0/1), immediate stages (shift amount or -1, clip or none).
BIAS, BIAS_GEMM_FITS, RES, SHIFT, CLIP, LO, HI = range(16, 23)
# Hardware limits: SRAM depths, micro-op limit, index widths.
INP_DEPTH, WGT_DEPTH, ACC_DEPTH, UOP_LIMIT, INP_BITS, WGT_BITS, ACC_BITS = range(23, 30)
# Element index of each DRAM buffer in its own unit.
D_INP, D_WGT, D_OUT, D_BIAS, D_BIAS_WGT, D_CONST, D_RES, D_IDENT, D_UOP = range(30, 39)
# Facts for bounds and features: bus bytes, beats of a burst, latency, element bytes, GEMM lanes.
BUS, BURST, LATENCY, INP_B, WGT_B, ACC_B, BATCH, BLOCK, QUEUE = range(39, 48)
# Groups, kinds of nest (0/1), output steps; input and output channel blocks of a whole image or of all pairs.
GROUPS, DEPTHWISE, POOL, TH, TW, INP_BLOCKS, OUT_BLOCKS = range(48, 55)
# More of the epilogue: shift before the residual (or -1), rounding half to even (0/1).
PRE, EVEN = range(55, 57)
SIZE = 57

# Sizes and strides of a LOAD or STORE have 16 bits.
MAX_SIZE = 65535
# `full` schedules keep to the micro-op SRAM of the unmodified RTL (VTA reference, 9).
PORTABLE_UOPS = 2048
# Instructions of a program: 1 MiB of them, a quarter of what VTA's runtime submits at once.
MAX_INSNS = 65536


def bias_gemm_fits(bias_bits: int, block: int) -> bool:
    """Whether every bias is a dot product of int8 weights with a constant input: 127 in all lanes but one."""
    return (1 << bias_bits) <= (block - 1) * 127 * 127


@dataclass(frozen=True)
class Blocks:
    """A workload's channels in blocks of an accelerator.

    ``groups`` of ``outputs`` blocks, each reduced over ``inputs``; ``depthwise``: every output block reads the input
    block of its number only (one group).
    """

    groups: int
    inputs: int
    outputs: int
    depthwise: bool = False


def channel_blocks(loops: LoopNest, block: int) -> Blocks:
    """How a workload's channels lie in blocks.

    Groups that do not fill blocks are merged until they do, their weights block-diagonal; where no number of them
    fills whole blocks and divides all, they become one dense group.
    """
    groups, c, k = loops.groups, loops.inputs, loops.outputs
    if loops.paired:
        return Blocks(groups, blocks(c, block), blocks(k, block))
    if loops.pool:
        return Blocks(1, 1, blocks(groups * c, block), depthwise=True)
    dense = Blocks(1, blocks(groups * c, block), blocks(groups * k, block))
    merged = math.lcm(block // math.gcd(block, c), block // math.gcd(block, k))
    if groups == 1 or merged >= groups:
        return dense
    inputs, outputs = merged * c // block, merged * k // block
    if inputs == outputs == 1:
        return Blocks(1, 1, dense.inputs, depthwise=True)
    if groups % merged:
        return dense
    return Blocks(groups // merged, inputs, outputs)


def buffers(workload: Workload, accelerator: Accelerator) -> tuple[tuple[Buffer, ...], int]:
    """DRAM buffers of a layer, each aligned to a page and to a whole burst, and the first free byte after them.

    Raises:
        NoSchedule: with the instructions they take more bytes than VTA addresses.
    """
    a = accelerator
    sizes = element_bytes(a)
    align = max(PAGE, a.burst_bytes)
    loops = workload.loops
    nb = blocks(loops.images, a.batch)
    channels = channel_blocks(loops, a.block)
    inputs = channels.outputs if channels.depthwise else channels.groups * channels.inputs
    outputs = channels.groups * channels.outputs
    weights = 1 if loops.pool else outputs * channels.inputs * loops.taps
    wanted = [
        ("data", INP, nb * inputs * loops.pixels),
        ("weight", WGT, weights),
        ("output", OUT, nb * outputs * loops.out_pixels),
    ]
    if workload.epilogue.bias:
        wanted += [("bias", ACC, outputs), ("bias_weight", WGT, outputs), ("constant", INP, 1)]
    if workload.epilogue.residual:
        wanted += [("residual", INP, nb * outputs * loops.out_pixels), ("identity", WGT, 1)]
    wanted.append(("uops", UOP, PORTABLE_UOPS))
    address = align
    placed = []
    for name, memory, elements in wanted:
        placed.append(Buffer(name, memory, address, elements))
        address = math.ceil((address + elements * sizes[memory]) / align) * align
    needed = address + MAX_INSNS * INSN_BYTES
    if needed > ADDRESSES:
        raise NoSchedule(
            workload,
            a,
            Reason.FIELD_OVERFLOW,
            f"its tensors and program take {needed:,} bytes of DRAM, and VTA's 32-bit addresses reach {ADDRESSES:,}; "
            "split it into layers of fewer images, pixels or channels",
        )
    return tuple(placed), address


def is_one_row(loops: LoopNest) -> bool:
    """Whether an image's pixels may be taken as one row: each output reads the input of its own place alone.

    Equal sizes do not tell: one column is as wide at any stride. A kernel of 1x1 has no pads. A longer row than 16 bits
    count is left as the image's rows, whose strides are smaller.
    """
    plain = all(axis.kernel == axis.stride == axis.spread == 1 for axis in (loops.height, loops.width))
    return plain and loops.pixels <= MAX_SIZE


def nest(workload: Workload, accelerator: Accelerator) -> NDArray[np.int64]:
    """The nest vector, int64 (SIZE,), of a workload on an accelerator."""
    a = accelerator
    p = np.zeros(SIZE, dtype=np.int64)
    loops = workload.loops
    channels = channel_blocks(loops, a.block)
    p[NB] = blocks(loops.images, a.batch)
    p[[GROUPS, CI, CO, DEPTHWISE]] = channels.groups, channels.inputs, channels.outputs, channels.depthwise
    p[OUT_BLOCKS] = channels.groups * channels.outputs
    p[INP_BLOCKS] = channels.outputs if channels.depthwise else channels.groups * channels.inputs
    p[POOL] = loops.pool
    p[MINOR] = loops.flat
    height, width = loops.height, loops.width
    p[[OH, IH, KH, SH, TH, DH, PT]] = (
        height.out, height.size, height.kernel, height.stride, height.spread, height.dilation, height.lead,
    )  # fmt: skip
    p[[OW, IW, KW, SW, TW, DW, PL]] = (
        width.out, width.size, width.kernel, width.stride, width.spread, width.dilation, width.lead,
    )  # fmt: skip
    if loops.flat:
        p[[OW, IW]] = p[NB]
        p[NB] = 1
    elif is_one_row(loops):
        p[[OW, IW]] = loops.pixels
        p[[OH, IH]] = 1
    epilogue = workload.epilogue
    fits = bias_gemm_fits(epilogue.bias_bits, a.block)
    p[[BIAS, BIAS_GEMM_FITS, RES, SHIFT]] = epilogue.bias, fits, epilogue.residual, epilogue.shift or -1
    p[[PRE, EVEN]] = epilogue.pre_shift or -1, epilogue.rounds_even
    if epilogue.clip is not None:
        p[[CLIP, LO, HI]] = 1, *epilogue.clip
    elif p[SHIFT] < 0 and not p[POOL]:
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
