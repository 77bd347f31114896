"""Random operators: small ones with odd shapes, strides, pads and epilogues."""

from __future__ import annotations

import dataclasses

import numpy as np

from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.batch_matmul import BatchMatmul
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.conv2d_transpose import Conv2dTranspose
from oneshot_ml2.workload.dense import Dense
from oneshot_ml2.workload.epilogue import Epilogue
from oneshot_ml2.workload.max_pool2d import MaxPool2d


def random_epilogue(rng: np.random.Generator) -> Epilogue:
    """What follows an operator: any of its stages, or none."""
    clip = ((0, 127), (-128, 127), None)[rng.integers(3)]
    residual = int(rng.integers(0, 7)) if rng.integers(3) == 0 else None
    half_even = rng.integers(5) == 0
    return Epilogue(
        bias=bool(rng.integers(2)),
        bias_bits=int(rng.integers(4, 18)),
        residual_shift=residual,
        shift=int(rng.integers(0, 16 if half_even else 12)),
        clip=clip,
        pre_shift=int(rng.integers(1, 9)) if residual is not None and not half_even and rng.integers(2) else 0,
        half_even=bool(half_even),
    )


def random_workload(rng: np.random.Generator) -> Workload:
    """A small operator with odd shapes, strides, pads and epilogues; half of them convolutions of one group."""
    kind = int(rng.integers(16))
    if kind < 2:
        return Dense(
            n=int(rng.integers(1, 20)), c=int(rng.integers(1, 120)), k=int(rng.integers(1, 150)),
            epilogue=random_epilogue(rng),
        )  # fmt: skip
    if kind < 4:
        epilogue = dataclasses.replace(random_epilogue(rng), residual_shift=None, pre_shift=0)
        pairs, n, c, k = (int(rng.integers(1, high)) for high in (5, 24, 90, 90))
        return BatchMatmul(pairs, n, c, k, epilogue)
    if kind == 4:
        return _random_transpose(rng)
    if kind == 5:
        return _random_pool(rng)
    conv = _random_conv2d(rng)
    if kind < 9:
        groups = int(rng.choice([2, 3, 4, 16, 40]))
        each = (1, 1) if rng.integers(2) else (int(rng.integers(1, 20)), int(rng.integers(1, 20)))
        if rng.integers(4) == 0:
            # Whole blocks.
            groups, each = int(rng.integers(2, 4)), (int(rng.choice([16, 32])), int(rng.choice([16, 32, 48])))
        conv = dataclasses.replace(conv, c=groups * each[0], k=groups * each[1], groups=groups)
    return conv


def _random_transpose(rng: np.random.Generator) -> Conv2dTranspose:
    r, s = (int(x) for x in rng.integers(1, 5, 2))
    stride = (int(rng.integers(1, 4)), int(rng.integers(1, 4)))
    n, c, h, w, k = (int(rng.integers(1, high)) for high in (3, 60, 9, 9, 60))
    h, w = max(h, 2), max(w, 2)
    padding = tuple(int(rng.integers(0, (size + 1) // 2)) for size in (r, r, s, s))
    more = tuple(int(rng.integers(0, step)) for step in stride)
    return Conv2dTranspose(n, c, h, w, k, r, s, stride, padding, more, random_epilogue(rng))


def _random_pool(rng: np.random.Generator) -> MaxPool2d:
    r, s = (int(x) for x in rng.integers(1, 5, 2))
    stride = (int(rng.integers(1, 4)), int(rng.integers(1, 4)))
    n, c, h, w = (int(rng.integers(1, high)) for high in (3, 100, 20, 20))
    padding = tuple(int(rng.integers(0, size)) for size in (r, r, s, s))
    clip = (-50, 100) if rng.integers(2) else None
    epilogue = Epilogue(shift=0, clip=clip)
    return MaxPool2d(n, c, max(h, r), max(w, s), r, s, stride, padding, bool(rng.integers(2)), epilogue)


def _random_conv2d(rng: np.random.Generator) -> Conv2d:
    if rng.integers(2):
        r, s = (int(x) for x in rng.choice([1, 1, 2, 3, 3, 5], 2))
    else:
        r = s = int(rng.choice([1, 3, 3, 5]))
    stride = (int(rng.integers(1, 4)), int(rng.integers(1, 4)))
    dilation = (int(rng.integers(1, 3)), int(rng.integers(1, 3)))
    reach = ((r - 1) * dilation[0], (s - 1) * dilation[1])
    padding = tuple(int(rng.integers(0, reach[axis // 2] + 1)) for axis in range(4))
    h = max(int(rng.integers(1, 18)), reach[0] + 1 - padding[0] - padding[1], 1)
    w = max(int(rng.integers(1, 18)), reach[1] + 1 - padding[2] - padding[3], 1)
    return Conv2d(
        n=int(rng.integers(1, 4)), c=int(rng.integers(1, 80)), h=h, w=w, k=int(rng.integers(1, 100)), r=r, s=s,
        stride=stride, padding=padding, dilation=dilation, epilogue=random_epilogue(rng),
    )  # fmt: skip
