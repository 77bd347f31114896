"""Maxima of windows in passes over slots, against the windows themselves."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from oneshot_ml2.vta.bound import comparisons
from oneshot_ml2.vta.windows import cut_windows
from oneshot_ml2.workload.max_pool2d import MaxPool2d

RNG = np.random.default_rng(3)
KERNELS = (1, 2, 3, 4, 5, 7, 9, 13)


def take(first: int, outputs: int, kernel: int, stride: int, lead: int, size: int) -> int:
    """Check the passes of the windows of some outputs of an axis; returns how many maxima they take."""
    begin, step = first * stride - lead, stride if kernel == 1 else 1
    slots, outside, parts, passes = cut_windows(outputs, kernel, stride, max(-begin, 0), size - begin, step)
    inputs = RNG.integers(-128, 128, size)
    loaded = inputs[max(begin, 0) : begin + (outputs - 1) * stride + kernel : step]
    held = np.full(slots, 999)
    for one in parts:
        for phase, block in itertools.product(range(one["phases"]), range(one["blocks"])):
            slot = one["slot"] + phase * one["pitch"] + block
            assert held[slot] == 999
            held[slot] = loaded[one["source"] + phase * one["phase_step"] + block * one["block_step"]]
        last = one["slot"] + (one["phases"] - 1) * one["pitch"] + one["blocks"]
        assert one["slot"] >= outputs or last <= outputs
    assert (held != 999).all() and 0 <= outside <= outputs
    for one in passes:
        assert 0 <= one["dst"] < one["src"] and one["count"] > 0
        for slot in (one["dst"], one["src"]):
            assert slot >= outputs or slot + one["count"] <= outputs
        for i in range(one["count"]):
            held[one["dst"] + i] = max(held[one["dst"] + i], held[one["src"] + i])
    for output in range(outputs):
        at = begin + output * stride
        assert held[output] == inputs[max(at, 0) : min(at + kernel, size)].max()
    return int(passes["count"].sum())


def axes(kernels: tuple[int, ...], sizes: tuple[int, ...]) -> list[MaxPool2d]:
    """Layers of one row, whose columns are windows of all kinds."""
    found = []
    for kernel, stride, size in itertools.product(kernels, (1, 2, 3, 5, 8), sizes):
        for lead, trail in {(0, 0), ((kernel - 1) // 2, kernel // 2), (kernel - 1, kernel - 1)}:
            for ceil_mode in (False, True):
                if size + lead + trail >= kernel:
                    found.append(MaxPool2d(1, 16, 1, size, 1, kernel, (1, stride), (0, 0, lead, trail), ceil_mode))
    return found


def test_passes_find_the_maxima_and_no_tiles_take_fewer_than_the_bound_counts() -> None:
    for layer in axes(KERNELS, (1, 2, 5, 8, 17)):
        axis, least = layer.loops.width, comparisons(layer.loops)
        for tile in {1, 2, 3, (axis.out + 1) // 2, axis.out - 1, axis.out} - {0}:
            taken = 0
            for first in range(0, axis.out, tile):
                outputs = min(tile, axis.out - first)
                taken += take(first, outputs, axis.kernel, axis.stride, axis.lead, axis.size)
            assert taken >= least, (layer, tile)


@pytest.mark.parametrize(
    ("kernel", "stride", "each"),
    [(2, 1, 1), (3, 1, 2), (5, 1, 3), (9, 1, 4), (13, 1, 4), (2, 2, 1), (3, 2, 2), (5, 2, 3), (3, 3, 2), (7, 7, 6)],
)
def test_maxima_of_a_whole_window(kernel: int, stride: int, each: int) -> None:
    outputs = 400
    size = (outputs - 1) * stride + kernel
    taken = take(0, outputs, kernel, stride, 0, size)
    assert outputs * each <= taken <= (outputs + kernel) * each
    assert comparisons(MaxPool2d(1, 16, 1, size, 1, kernel, (1, stride)).loops) == outputs * each
