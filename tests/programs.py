"""Random (accelerator, workload) pairs and token-legal reorderings, shared by the property tests."""

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


def random_epilogue(rng: np.random.Generator) -> Epilogue:
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
        return BatchMatmul(*(int(rng.integers(1, high)) for high in (5, 24, 90, 90)), epilogue)
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
