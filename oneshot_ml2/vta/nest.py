"""A workload on an accelerator as one tiled GEMM loop nest: a record of integers that numba code reads.

All operators are the same nest: output channels x output rows x output columns, reduced over input channels and
kernel taps, all channel counts in blocks. A 1x1 convolution whose steps are 1 is flattened to one row of pixels, as
long as 16 bits count them; dense is one row whose pixels are the batch blocks, with the channel blocks innermost in
memory (``minor``).

Groups (``groups``) repeat the nest with inputs and weights of their own: groups of channels, or the pairs of a batched
matrix product. Groups so small that a block holds whole ones are one nest whose output block reads the input block
of its own number only (``depthwise``). Max pooling (``pool``) is such a nest too: an identity weight copies the
inputs into ACC, and the ALU takes the maximum where others multiply. A transposed convolution has outputs that lie
``th``, ``tw`` apart for neighbouring inputs, in place of inputs that lie ``sh``, ``sw`` apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from oneshot_ml2.vta.hls_keys import RATES
from oneshot_ml2.vta.packing import blocks
from oneshot_ml2.vta.program import ADDRESSES, INSN_BYTES, PAGE, Buffer, Memory, element_bytes
from oneshot_ml2.vta.reasons import NoSchedule, Reason

if TYPE_CHECKING:
    from oneshot_ml2.vta.accelerator import Accelerator
    from oneshot_ml2.workload.base import Workload
    from oneshot_ml2.workload.epilogue import Epilogue
    from oneshot_ml2.workload.loops import LoopNest

# The fields of a nest that are rates of the HLS design.
HLS_RATES = tuple(f"hls_{name}" for name in RATES)
# The fields of a nest, all int64.
FIELDS = (
    # Loop extents: batch blocks, channel blocks (of a group), spatial sizes, kernel, stride, dilation, leading pads.
    "nb", "co", "ci", "oh", "ow", "ih", "iw", "kh", "kw", "sh", "sw", "dh", "dw", "pt", "pl", "minor",
    # Epilogue: bias (0/1), residual (0/1), immediate stages (shift amount or -1, clip or none).
    "bias", "bias_gemm_fits", "residual", "shift", "clip", "low", "high",
    # Hardware limits: SRAM depths, micro-op limit, index widths.
    "inp_depth", "wgt_depth", "acc_depth", "uop_limit", "inp_bits", "wgt_bits", "acc_bits",
    # Element index of each DRAM buffer in its own unit.
    "dram_inp", "dram_wgt", "dram_out", "dram_bias", "dram_bias_wgt", "dram_const", "dram_res", "dram_ident",
    "dram_uop",
    # Facts for bounds and features: bus bytes, beats of a burst, latency, element bytes, GEMM lanes.
    "bus", "burst", "latency", "inp_bytes", "wgt_bytes", "acc_bytes", "batch", "block", "queue",
    # Operations from one update of an accumulator to the next one that the hardware asks for, 0: none.
    "acc_distance",
    # Whether the design is HLS, and its rates (`hls_keys`).
    "hls", *HLS_RATES,
    # Groups, kinds of nest (0/1), output steps; input and output channel blocks of a whole image or of all pairs.
    "groups", "depthwise", "pool", "th", "tw", "inp_blocks", "out_blocks",
    # More of the epilogue: shift before the residual (or -1), rounding half to even (0/1).
    "pre_shift", "even",
)  # fmt: skip
DTYPE = np.dtype((np.record, [(name, np.int64) for name in FIELDS]))

# One nest: a record of `FIELDS`. Compiled code gets a pointer to it, and reads fields by their names.
Nest: TypeAlias = np.record

# Sizes and strides of a LOAD or STORE have 16 bits.
MAX_SIZE = 65535
# `full` schedules keep to the micro-op SRAM of the unmodified RTL.
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
        ("data", Memory.INP, nb * inputs * loops.pixels),
        ("weight", Memory.WGT, weights),
        ("output", Memory.OUT, nb * outputs * loops.out_pixels),
    ]
    if workload.epilogue.bias:
        wanted += [("bias", Memory.ACC, outputs), ("bias_weight", Memory.WGT, outputs), ("constant", Memory.INP, 1)]
    if workload.epilogue.residual:
        wanted += [("residual", Memory.INP, nb * outputs * loops.out_pixels), ("identity", Memory.WGT, 1)]
    wanted.append(("uops", Memory.UOP, PORTABLE_UOPS))
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


# Fields that hold where a buffer lies, by its name.
_PLACES = {
    "data": "dram_inp",
    "weight": "dram_wgt",
    "output": "dram_out",
    "bias": "dram_bias",
    "bias_weight": "dram_bias_wgt",
    "constant": "dram_const",
    "residual": "dram_res",
    "identity": "dram_ident",
    "uops": "dram_uop",
}


def _spatial(loops: LoopNest, nb: int) -> dict[str, int]:
    """Fields of the spatial loops; ``nb``: batch blocks, which a flat nest has as its pixels."""
    fields: dict[str, int] = {"nb": nb, "minor": loops.flat}
    for letter, lead, axis in (("h", "pt", loops.height), ("w", "pl", loops.width)):
        fields |= {f"o{letter}": axis.out, f"i{letter}": axis.size, f"k{letter}": axis.kernel, lead: axis.lead}
        fields |= {f"s{letter}": axis.stride, f"t{letter}": axis.spread, f"d{letter}": axis.dilation}
    if loops.flat:
        return fields | {"ow": nb, "iw": nb, "nb": 1}
    if is_one_row(loops):
        return fields | {"ow": loops.pixels, "iw": loops.pixels, "oh": 1, "ih": 1}
    return fields


def _stages(epilogue: Epilogue, block: int, pool: bool) -> dict[str, int]:
    """Fields of the epilogue."""
    fields: dict[str, int] = {
        "bias": epilogue.bias,
        "bias_gemm_fits": bias_gemm_fits(epilogue.bias_bits, block),
        "residual": epilogue.residual,
        "shift": epilogue.shift or -1,
        "pre_shift": epilogue.pre_shift or -1,
        "even": epilogue.rounds_even,
    }
    if epilogue.clip is not None:
        low, high = epilogue.clip
        return fields | {"clip": 1, "low": low, "high": high}
    if fields["shift"] < 0 and not pool:
        # STORE reads OUT, which only GEMM and the ALU write: a shift by 0 copies where neither is sure to.
        fields["shift"] = 0
    return fields


def make_nest(workload: Workload, accelerator: Accelerator) -> Nest:
    """The nest of a workload on an accelerator, one record of `DTYPE`."""
    a = accelerator
    loops = workload.loops
    channels = channel_blocks(loops, a.block)
    sizes = element_bytes(a)
    fields: dict[str, int] = {
        "groups": channels.groups,
        "ci": channels.inputs,
        "co": channels.outputs,
        "depthwise": channels.depthwise,
        "pool": loops.pool,
        "inp_blocks": channels.outputs if channels.depthwise else channels.groups * channels.inputs,
        "out_blocks": channels.groups * channels.outputs,
        "inp_depth": a.inp_depth,
        "wgt_depth": a.wgt_depth,
        "acc_depth": a.acc_depth,
        "uop_limit": min(PORTABLE_UOPS, a.uop_depth),
        "inp_bits": a.isa_inp_bits,
        "wgt_bits": a.isa_wgt_bits,
        "acc_bits": a.isa_acc_bits,
        "bus": a.bus_bytes,
        "burst": a.burst_beats,
        "latency": a.memory_latency,
        "inp_bytes": a.inp_bytes,
        "wgt_bytes": a.wgt_bytes,
        "acc_bytes": a.acc_bytes,
        "batch": a.batch,
        "block": a.block,
        "queue": a.instruction_queue,
        "acc_distance": a.acc_distance,
    }
    if a.hls is not None:
        fields |= {"hls": 1} | {f"hls_{name}": getattr(a.hls, name) for name in RATES}
    fields |= _spatial(loops, blocks(loops.images, a.batch))
    fields |= _stages(workload.epilogue, a.block, loops.pool)
    fields |= {_PLACES[buffer.name]: buffer.address // sizes[buffer.memory] for buffer in buffers(workload, a)[0]}
    nest: Nest = np.zeros(1, dtype=DTYPE)[0]
    for name, value in fields.items():
        nest[name] = value
    return nest
