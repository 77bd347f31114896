"""Accelerators, the smallest operators and token-legal reorderings, shared by the property tests."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import Flag, Memory, Opcode
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.batch_matmul import BatchMatmul
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.conv2d_transpose import Conv2dTranspose
from oneshot_ml2.workload.dense import Dense
from oneshot_ml2.workload.drawn import random_epilogue
from oneshot_ml2.workload.epilogue import Epilogue
from oneshot_ml2.workload.max_pool2d import MaxPool2d


def _accelerator(batch: int, block: int, sizes: tuple[int, int, int, int], **timing: int) -> Accelerator:
    uop, inp, wgt, acc = sizes
    return Accelerator(batch, block, uop, inp, wgt, acc, **timing)


ACCELERATORS = (
    Accelerator.load("pynq"),
    _accelerator(0, 4, (14, 14, 17, 16)),
    _accelerator(0, 3, (15, 14, 16, 16), bus_bits=64),
    _accelerator(0, 5, (15, 16, 20, 18), bus_bits=128, burst_len_bits=4),
    _accelerator(1, 4, (15, 16, 18, 18), memory_latency=64),
    _accelerator(2, 3, (15, 16, 16, 18), bus_bits=256, memory_latency=1),
    _accelerator(0, 4, (12, 13, 16, 15)),
    _accelerator(0, 3, (14, 12, 17, 15), bus_bits=256, burst_len_bits=4, memory_latency=6),
)


def smallest_workload(rng: np.random.Generator, block: int = 16) -> Workload:
    """An operator of few pixels and blocks of channels: extents of 1, and strides larger than the extent."""
    kind = int(rng.integers(7))
    epilogue = random_epilogue(rng)
    c, k = (int(rng.integers(1, 3 * block)) for _ in range(2))
    n, h, w = (int(rng.choice([1, 1, 2, 3])) for _ in range(3))
    r, s = (int(x) for x in rng.choice([1, 1, 2, 3], 2))
    stride = tuple(int(x) for x in rng.choice([1, 1, 2, 5, 70_000], 2))
    plain = dataclasses.replace(epilogue, residual_shift=None, pre_shift=0)
    if kind == 0:
        return Dense(n, c, k, epilogue)
    if kind == 1:
        return BatchMatmul(int(rng.integers(1, 4)), n, c, k, plain)
    if kind == 2:
        steps = (min(stride[0], 5), min(stride[1], 5))
        return Conv2dTranspose(n, c, h, w, k, r, s, steps, epilogue=epilogue)
    padding = tuple(int(rng.integers(0, size)) for size in (r, r, s, s))
    h, w = max(h, r - padding[0] - padding[1]), max(w, s - padding[2] - padding[3])
    if kind == 3:
        clip = Epilogue(shift=0, clip=(-50, 100) if rng.integers(2) else None)
        return MaxPool2d(n, c, h, w, r, s, stride, padding, bool(rng.integers(2)), clip)
    groups = 1
    if kind == 4:
        c = k = groups = int(rng.integers(2, 3 * block))
    elif kind == 5:
        c, k, groups = 2 * block, 4 * block, 2
    return Conv2d(n, c, h, w, k, r, s, stride, padding, epilogue=epilogue, groups=groups)


def module(insn: NDArray[np.int64]) -> int:
    """0 load, 1 compute, 2 store: where fetch sends an instruction (docs/hardware.md, Tokens)."""
    if insn["op"] == Opcode.STORE:
        return 2
    return 0 if insn["op"] == Opcode.LOAD and insn["mem"] in (Memory.INP, Memory.WGT) else 1


def legal_order(insns: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Some order that the tokens allow, modules chosen at random; AssertionError on a deadlock or lost token."""
    queues = [[i for i in range(len(insns)) if module(insns[i]) == m] for m in range(3)]
    heads = [0, 0, 0]
    tokens = {(0, 1): 0, (1, 0): 0, (1, 2): 0, (2, 1): 0}
    order = []
    # A module is drawn with its own weight, so that some orders run far ahead in one module.
    weights = rng.random(3) ** 3 + 1e-3
    while len(order) < len(insns):
        ready = []
        for m in range(3):
            if heads[m] == len(queues[m]):
                continue
            flags = insns["flags"][queues[m][heads[m]]]
            wants = [(m - 1, m)] * bool(flags & Flag.POP_PREV) + [(m + 1, m)] * bool(flags & Flag.POP_NEXT)
            if all(tokens[edge] > 0 for edge in wants):
                ready.append((m, wants, flags))
        assert ready, "deadlock"
        chance = np.array([weights[m] for m, _, _ in ready])
        m, wants, flags = ready[rng.choice(len(ready), p=chance / chance.sum())]
        for edge in wants:
            tokens[edge] -= 1
        pushes = [(m, m - 1)] * bool(flags & Flag.PUSH_PREV) + [(m, m + 1)] * bool(flags & Flag.PUSH_NEXT)
        for edge in pushes:
            tokens[edge] += 1
            assert tokens[edge] <= 255
        order.append(queues[m][heads[m]])
        heads[m] += 1
    assert not any(tokens.values())
    return np.array(order)
