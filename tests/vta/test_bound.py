"""The engine bound against the design's table and against counting by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from oneshot_ml2.common.errors import WorkloadError
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.bound import engine_bound
from oneshot_ml2.vta.hls_keys import TICKS, HlsTiming
from oneshot_ml2.vta.packing import pack_activation, pack_bias, pack_weight, unpack_activation
from oneshot_ml2.workload.batch_matmul import BatchMatmul
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.conv2d_transpose import Conv2dTranspose
from oneshot_ml2.workload.dense import Dense
from oneshot_ml2.workload.epilogue import Epilogue
from oneshot_ml2.workload.max_pool2d import MaxPool2d

PYNQ = Accelerator.load("pynq")
# (C, H, K, kernel, stride, padding) -> all taps, real taps, bound.
TABLE = {
    "C2": ((64, 56, 64, 3, 1, 1), 451_584, 440_896, 491_072),
    "C3": ((64, 56, 128, 3, 2, 1), 225_792, 220_448, 245_536),
    "C4": ((64, 56, 128, 1, 2, 0), 25_088, 25_088, 50_176),
    "C9": ((256, 14, 512, 3, 2, 1), 225_792, 204_800, 211_072),
    "C10": ((256, 14, 512, 1, 2, 0), 25_088, 25_088, 31_360),
}


def _conv(c: int, h: int, k: int, kernel: int, stride: int, padding: int, epilogue: Epilogue | None = None) -> Conv2d:
    return Conv2d(1, c, h, h, k, kernel, kernel, stride, padding, epilogue=epilogue or Epilogue())


@pytest.mark.parametrize("layer", TABLE)
def test_bounds_of_the_design_table(layer: str) -> None:
    shape, every, real, bound = TABLE[layer]
    result = engine_bound(_conv(*shape), PYNQ)
    assert (result.gemm_ops_all, result.gemm_ops_real, result.bound) == (every, real, bound)
    assert result.limiting == "compute"
    assert 0 < result.utilization() <= 1
    assert result.utilization(2 * bound) == pytest.approx(result.utilization() / 2)


def test_ports_count_used_elements_once() -> None:
    # A strided 1x1 reads every second row and column: 28 x 28 of the 56 x 56 pixels.
    result = engine_bound(_conv(64, 56, 128, 1, 2, 0), PYNQ)
    assert result.read_beats == (8 * 4 * 256 + 4 * 28 * 28 * 16) // 8
    assert result.store_cycles == 8 * 28 * 28 * 2 * 3 // 2
    # Of a 3x3 kernel on a 1x1 image only the centre tap reads data.
    centre = engine_bound(_conv(16, 1, 16, 3, 1, 1), PYNQ)
    assert (centre.gemm_ops_real, centre.gemm_ops_all, centre.read_beats) == (1, 9, (256 + 16) // 8)


def test_the_hls_design_has_rates_of_its_own() -> None:
    timing = HlsTiming(read_row=5000, store_row=4000, wgt_beat=200, alu_op=300)
    hls = dataclasses.replace(PYNQ, hls=timing)
    result = engine_bound(_conv(*TABLE["C2"][0]), hls)
    # 12,544 outputs: a reset, and three operations of the ALU of three cycles each.
    assert result.compute == 440_896 + 12_544 * (1 + 9)
    # Inputs of two beats, weights of 32 that take two cycles each; the SRAMs take 7 rows of inputs and one of weights.
    assert result.read_beats == 12_544 * 2 + 144 * 32 * 2 + 50 * (7 + 1)
    assert result.store_cycles == 12_544 * 2 + 40 * 7
    assert engine_bound(_conv(*TABLE["C2"][0]), PYNQ).bound == TABLE["C2"][3]
    # No program is faster.
    rng = np.random.default_rng(2)
    for workload in (_conv(*TABLE["C10"][0]), MaxPool2d(1, 32, 15, 15, 3, 3, 2, 1), Dense(1, 256, 256)):
        space = ScheduleSpace(workload, hls)
        cycles = space.measure(rng.integers(0, len(space), 2000)).cycles
        assert engine_bound(workload, hls).bound <= cycles[cycles > 0].min()


def test_large_dense_is_limited_by_its_weights() -> None:
    result = engine_bound(Dense(1, 512, 1000), PYNQ)
    assert result.limiting == "read"
    assert result.read_beats == (63 * 32 * 256 + 32 * 16) // 8
    assert result.real_macs == 512_000


def test_store_of_wide_elements_has_no_second_read() -> None:
    block8 = Accelerator.load("b8")
    assert engine_bound(_conv(8, 10, 8, 1, 1, 0), block8).store_cycles == 100
    bus512 = dataclasses.replace(PYNQ, bus_bits=512)
    assert engine_bound(_conv(16, 10, 16, 1, 1, 0), bus512).store_cycles == 25


def test_batch_is_padded_to_the_accelerators() -> None:
    batch4 = Accelerator.load("b4x8")
    one, four = (engine_bound(Conv2d(n, 16, 8, 8, 16, 1, 1), batch4) for n in (1, 4))
    assert one.bound == four.bound
    assert four.utilization() == pytest.approx(4 * one.utilization())


def test_epilogue_stages() -> None:
    elements = 4 * 56 * 56
    base = _conv(64, 56, 64, 3, 1, 1, Epilogue(shift=0, clip=None))
    plain = engine_bound(base, PYNQ)
    assert plain.compute == plain.gemm_ops_real + elements

    def extra(**options: object) -> int:
        epilogue = dataclasses.replace(base.epilogue, **options)  # type: ignore[arg-type]
        return engine_bound(dataclasses.replace(base, epilogue=epilogue), PYNQ).compute - plain.compute

    assert extra(shift=3) == elements
    assert extra(clip=(-128, 127)) == 2 * elements
    assert extra(bias=True) == elements
    assert extra(bias=True, bias_bits=19) == 2 * elements
    assert extra(bias=True, bias_bits=24) == 2 * elements
    assert extra(residual_shift=2) == elements


def test_residual_and_bias_are_read() -> None:
    base = _conv(64, 56, 64, 1, 1, 0)
    residual = dataclasses.replace(base, epilogue=Epilogue(residual_shift=0))
    bias = dataclasses.replace(base, epilogue=Epilogue(bias=True))
    plain = engine_bound(base, PYNQ).read_beats
    assert engine_bound(residual, PYNQ).read_beats - plain == (4 * 56 * 56 * 16 + 256) // 8
    assert engine_bound(bias, PYNQ).read_beats - plain == (4 * 256 + 16) // 8


def test_bias_by_load_acc_is_free_of_compute_on_a_wide_bus() -> None:
    bus512 = dataclasses.replace(PYNQ, bus_bits=512)
    plain = _conv(256, 14, 256, 3, 1, 1)
    bias = dataclasses.replace(plain, epilogue=Epilogue(bias=True))
    assert engine_bound(bias, bus512).bound == engine_bound(plain, bus512).bound


@pytest.mark.parametrize("name", ["pynq", "b8", "b32", "b2x16", "b4x8"])
@pytest.mark.parametrize("shape", [(1, 3, 5, 7), (5, 40, 2, 3), (3, 17), (4, 64)])
def test_activation_round_trip(name: str, shape: tuple[int, ...]) -> None:
    chip = Accelerator.load(name)
    tensor = np.random.default_rng(0).integers(-128, 128, shape, dtype=np.int8)
    packed = pack_activation(tensor, chip)
    nb, cb = -(-shape[0] // chip.batch), -(-shape[1] // chip.block)
    assert packed.shape == (nb, cb, *shape[2:], chip.batch, chip.block)
    assert packed.flags.c_contiguous
    assert packed.astype(int).sum() == tensor.astype(int).sum()
    n, c, *space = (size - 1 for size in shape)
    index = (n // chip.batch, c // chip.block, *space, n % chip.batch, c % chip.block)
    assert packed[index] == tensor[tuple(size - 1 for size in shape)]
    np.testing.assert_array_equal(unpack_activation(packed, shape), tensor)


@pytest.mark.parametrize("shape", [(20, 3, 3, 2), (16, 33)])
def test_weight_and_bias_layout(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    weight = rng.integers(-128, 128, shape, dtype=np.int8)
    packed = pack_weight(weight, PYNQ)
    assert packed.shape == (-(-shape[0] // 16), -(-shape[1] // 16), *shape[2:], 16, 16)
    for o, i in ((0, 0), (shape[0] - 1, shape[1] - 1), (7, 2)):
        tail = tuple(size - 1 for size in shape[2:])
        assert packed[(o // 16, i // 16, *tail, o % 16, i % 16)] == weight[(o, i, *tail)]
    assert packed.astype(int).sum() == weight.astype(int).sum()

    bias = rng.integers(-100, 100, 20, dtype=np.int32)
    folded = pack_bias(bias, Accelerator.load("b2x16"))
    assert folded.shape == (2, 2, 16)
    assert folded.dtype == np.int32
    for row in range(2):
        np.testing.assert_array_equal(folded[:, row].ravel()[:20], bias)
        assert not folded[:, row].ravel()[20:].any()


def test_layouts_refuse_other_shapes() -> None:
    with pytest.raises(WorkloadError, match="expected"):
        pack_activation(np.zeros(3, np.int8), PYNQ)
    with pytest.raises(WorkloadError, match="cannot hold"):
        unpack_activation(np.zeros((1, 1, 4, 4, 1, 16), np.int8), (1, 20, 4, 4))


def test_depthwise_layers_read_and_multiply_each_block_once() -> None:
    # Per block 40 x 40 real taps of 14 x 14 outputs; reset, shift and two clips an element.
    bound = engine_bound(Conv2d(1, 64, 14, 14, 64, 3, 3, 1, 1, groups=64), PYNQ)
    assert bound.gemm_ops_real == 4 * 40 * 40 and bound.compute == bound.gemm_ops_real + 4 * 196 * 4
    assert bound.read_beats == (4 * 9 * 256 + 4 * 196 * 16) // 8
    # Eight groups of 8 channels fill four blocks, too; groups of two blocks are reduced over both.
    assert engine_bound(Conv2d(1, 64, 14, 14, 64, 3, 3, 1, 1, groups=8), PYNQ).bound == bound.bound
    assert engine_bound(Conv2d(1, 64, 14, 14, 64, 3, 3, 1, 1, groups=2), PYNQ).gemm_ops_real == 8 * 40 * 40


def test_batched_products_are_as_many_dense_layers() -> None:
    single, pairs = engine_bound(Dense(128, 64, 128), PYNQ), engine_bound(BatchMatmul(12, 128, 64, 128), PYNQ)
    assert pairs.bound == 12 * single.bound and pairs.read_beats == 12 * single.read_beats


def test_transposed_convolution_multiplies_real_inputs_only() -> None:
    bound = engine_bound(Conv2dTranspose(1, 32, 7, 9, 48, 2, 2, 2), PYNQ)
    # Every input meets each of the four taps once.
    assert bound.gemm_ops_real == 2 * 3 * 4 * 7 * 9 and bound.compute == bound.gemm_ops_real + 3 * 14 * 18 * 4


def test_max_pooling_copies_and_compares() -> None:
    bound = engine_bound(MaxPool2d(1, 16, 8, 8, 2, 2), PYNQ)
    assert bound.compute == 2 * 64 + 2 * 3 * 16 and bound.read_beats == (64 * 16 + 256) // 8


def test_overlapping_windows_share_maxima() -> None:
    # An axis after the other: a window of five is two pairs of pairs that overlap.
    inner = engine_bound(MaxPool2d(1, 16, 104, 104, 5, 5, 1), PYNQ)
    assert inner.compute == 2 * 104**2 + 2 * 3 * (104 * 100 + 100**2)
    # Rows first: two maxima for 8 rows of 33 columns; columns first, they would be for 17 rows of 16 columns.
    wide = engine_bound(MaxPool2d(1, 16, 17, 33, 3, 3, 2), PYNQ)
    assert wide.compute == 2 * 17 * 33 + 2 * 2 * (8 * 33 + 8 * 16)
    # The passes of the ALU of the HLS design have its rate.
    slow = dataclasses.replace(PYNQ, hls=HlsTiming(alu_op=3 * TICKS))
    assert engine_bound(MaxPool2d(1, 16, 8, 8, 2, 2), slow).compute == 2 * 64 + 3 * 3 * 16


def test_rounding_half_to_even_costs_its_passes() -> None:
    def compute(half_even: bool) -> int:
        return engine_bound(Conv2d(1, 16, 8, 8, 16, 1, 1, epilogue=Epilogue(half_even=half_even)), PYNQ).compute

    assert compute(True) - compute(False) == 9 * 64
