"""The engine bound: cycles below which no schedule of a task can go, without any search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.hls_keys import TICKS
from oneshot_ml2.vta.nest import channel_blocks
from oneshot_ml2.vta.packing import blocks
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.epilogue import Epilogue
from oneshot_ml2.workload.loops import Axis, LoopNest


@dataclass(frozen=True)
class EngineBound:
    """Cycles that each engine needs at least, counted in blocks padded to the accelerator's.

    Attributes:
        gemm_ops_real: GEMM operations that touch at least one real input element.
        gemm_ops_all: those that only read zero padding included.
        compute: cycles of the compute engine: real GEMMs, initialising the output elements, the epilogue's stages.
        least_compute: the same with whichever form of bias takes compute least: whatever the memory does, no program
            is faster, in cycles of the core's clock.
        read_beats: cycles of the read port: each weight, second operand and used input element once.
        store_cycles: cycles of the store engine.
        alu: cycles of the ALU in the epilogue's stages and in pooling.
        bound: the largest of the three.
        limiting: ``compute``, ``read`` or ``store``: which one that is.
        real_macs: multiplications of unpadded channels and images with a real input element.
        macs_per_cycle: what the GEMM array does at its best, BATCH * BLOCK * BLOCK.
    """

    gemm_ops_real: int
    gemm_ops_all: int
    compute: int
    least_compute: int
    read_beats: int
    store_cycles: int
    alu: int
    bound: int
    limiting: str
    real_macs: int
    macs_per_cycle: int

    def utilization(self, cycles: float | None = None) -> float:
        """True multiplications per cycle as a share of the array's peak, at ``cycles`` (default: at the bound)."""
        return self.real_macs / (self.macs_per_cycle * (self.bound if cycles is None else cycles))


class _Rates(NamedTuple):
    """Cycles of an operation of the ALU with an immediate and with two operands, of a beat of weights, and the
    latencies of a row that is read and of one that is stored, where rows follow one another."""

    immediate: float
    tensor: float
    wgt_beat: float
    read_row: float
    store_row: float


def _rates(accelerator: Accelerator) -> _Rates:
    hls = accelerator.hls
    if hls is None:
        return _Rates(1, 2, 1, 0, 0)
    alu_op = hls.alu_op / TICKS
    return _Rates(alu_op, alu_op, hls.wgt_beat / TICKS, hls.read_row / TICKS, hls.store_row / TICKS)


def _stage_cycles(epilogue: Epilogue, rates: _Rates) -> float:
    """`Epilogue.stage_cycles` at other rates."""
    if not epilogue.rounds_even:
        return rates.immediate * epilogue.immediate_stages
    # A reset, a copy, one or two shifts left, two bounds, and the sum.
    shifts = 1 if epilogue.shift == 15 else 2
    return rates.immediate * (epilogue.immediate_stages + shifts + 2) + 1 + 2 * rates.tensor


def _line_comparisons(axis: Axis) -> int:
    """Maxima of two that the windows of one line of an axis take at least, taken in passes as `vta.windows` does.

    A pass at most doubles what a slot knows of, and none but its own passes reach an output's slot: a window of k
    inputs takes log2 k of them. A whole one also takes one for every phase that it joins, and windows that share no
    input take one for each but the first. One that begins in front of the image may find all the rest joined.
    """
    first = np.arange(axis.out, dtype=np.int64) * axis.stride - axis.lead
    inputs = np.minimum(first + axis.kernel, axis.size) - np.maximum(first, 0)
    if axis.out == 1 or axis.kernel <= axis.stride:
        return int((inputs - 1).sum())
    least = np.ceil(np.log2(inputs)).astype(np.int64)
    if axis.stride > 1:
        least = np.where(first < 0, np.minimum(least, 1), least)
    whole, rest = divmod(axis.kernel, axis.stride)
    joined = axis.stride - 1 + (whole - 1).bit_length() + (rest > 0)
    return int(np.where(inputs == axis.kernel, joined, least).sum())


def comparisons(loops: LoopNest) -> int:
    """Maxima of two of one channel of an image that max pooling takes at least, whatever its tiles.

    One axis after the other, each on the lines that the other one reads or, the second, has outputs on. Where windows
    overlap this is less than a maximum for every input beyond a window's first one.
    """
    rows, cols = _line_comparisons(loops.height), _line_comparisons(loops.width)
    by_rows = rows * loops.width.used + cols * loops.height.out
    return min(by_rows, cols * loops.height.used + rows * loops.width.out)


def engine_bound(workload: Workload, accelerator: Accelerator) -> EngineBound:
    """The engine bound of a task (rates: `vta.timing.chisel`, or the accelerator's own of the HLS design).

    A bias takes the cheapest of: a tensor ADD (2 cycles an element), a GEMM with a constant input tile (1 for as many
    as ``bias_bits`` needs), or a LOAD ACC at its beats in place of the reset. A residual takes one GEMM with an
    identity weight tile an element. Max pooling takes a reset and a GEMM for every input that comes into ACC, and an
    ALU operation (2 cycles) for each of its `comparisons`; outputs lie where such inputs lay. On the HLS design an
    operation of the ALU takes what its rate says in either form, and what no SRAM holds at once comes in as many rows
    at least, each with its latency.
    """
    epilogue, bus, rates = workload.epilogue, accelerator.bus_bytes, _rates(accelerator)
    loops = workload.loops
    nb = blocks(loops.images, accelerator.batch)
    channels = channel_blocks(loops, accelerator.block)
    ib, ob = channels.inputs, channels.groups * channels.outputs
    inputs = ob if channels.depthwise else channels.groups * ib
    out_pixels, taps, pixels = loops.out_pixels, loops.used_taps, loops.used_pixels
    pairs, all_pairs = loops.real_tap_pairs, out_pixels * loops.taps
    elements = nb * ob * out_pixels
    gemm_real, gemm_all, weights = nb * ob * ib * pairs, nb * ob * ib * all_pairs, ob * ib * taps
    compute: float = gemm_real
    if loops.pool:
        gemm_real = gemm_all = nb * inputs * pixels
        compute, weights = 2 * gemm_real + rates.tensor * nb * ob * comparisons(loops), 1

    compute += elements * _stage_cycles(epilogue, rates)
    alu = int(compute) - gemm_real
    input_bytes, weight_bytes = nb * inputs * pixels * accelerator.inp_bytes, weights * accelerator.wgt_bytes
    if epilogue.residual:
        compute += elements
        input_bytes += elements * accelerator.inp_bytes
        weight_bytes += accelerator.wgt_bytes

    # How an output element starts and gets its bias: (compute cycles, bytes read) of each form.
    forms: list[tuple[float, int, int]] = [(0 if loops.pool else elements, 0, 0)]
    if epilogue.bias:
        constant_gemms = -(-(1 << epilogue.bias_bits) // (accelerator.block << 14))
        acc_bytes = elements * accelerator.acc_bytes
        forms = [
            ((1 + rates.tensor) * elements, ob * accelerator.acc_bytes, 0),
            (
                elements * (1 + constant_gemms),
                constant_gemms * accelerator.inp_bytes,
                constant_gemms * ob * accelerator.wgt_bytes,
            ),
            (-(-acc_bytes // bus), acc_bytes, 0),
        ]
    out_beats = -(-elements * accelerator.inp_bytes // bus)
    # A narrow OUT element costs one more SRAM read for each batch row (docs/hardware.md, Time).
    narrow = accelerator.inp_bytes > bus and accelerator.hls is None
    store = out_beats + (out_beats // max(1, accelerator.block // bus) if narrow else 0)
    store += int(rates.store_row * -(-elements // accelerator.acc_depth))
    rows = -(-nb * inputs * pixels // accelerator.inp_depth) + -(-weights // accelerator.wgt_depth)

    def read(others: int, more_weights: int) -> int:
        """Cycles of reading, bytes beside inputs and weights included."""
        if accelerator.hls is None:
            return -(-(input_bytes + weight_bytes + others + more_weights) // bus)
        # The compute module has a port of its own, through which it reads ACC.
        return int(
            -(-input_bytes // bus) + rates.wgt_beat * (-(-(weight_bytes + more_weights) // bus)) + rates.read_row * rows
        )

    costs = [(int(compute + cycles), read(*extra)) for cycles, *extra in forms]
    total_compute, read_beats = min(costs, key=lambda cost: (max(*cost, store), cost))
    bound = max(total_compute, read_beats, store)
    limiting = {store: "store", read_beats: "read", total_compute: "compute"}[bound]
    return EngineBound(
        gemm_ops_real=gemm_real,
        gemm_ops_all=gemm_all,
        compute=total_compute,
        least_compute=min(cycles for cycles, _ in costs),
        read_beats=read_beats,
        store_cycles=store,
        alu=alu,
        bound=bound,
        limiting=limiting,
        real_macs=workload.real_macs,
        macs_per_cycle=accelerator.batch * accelerator.block**2,
    )
