"""Random programs of VTA instructions, and the accelerators that they are timed on."""

from __future__ import annotations

import dataclasses

import numpy as np

from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import COLUMNS, Flag, Memory, Opcode

PYNQ = Accelerator.load("pynq")

# The RTL's DE10 shell: bursts of 16 beats.
DE10 = dataclasses.replace(PYNQ, burst_len_bits=4)

# By module: the flags that it takes or gives a token with, and whose token it is.
POPS = {0: ((Flag.POP_NEXT, 1),), 1: ((Flag.POP_PREV, 0), (Flag.POP_NEXT, 3)), 2: ((Flag.POP_PREV, 2),)}
PUSHES = {0: ((Flag.PUSH_NEXT, 0),), 1: ((Flag.PUSH_PREV, 1), (Flag.PUSH_NEXT, 2)), 2: ((Flag.PUSH_PREV, 3),)}


def row(*values: int) -> list[int]:
    """An instruction in words."""
    return [*values, *[0] * (COLUMNS - len(values))]


def random_program(rng: np.random.Generator, accelerator: Accelerator, length: int) -> list[list[int]]:
    """Instructions whose tokens are pushed before they are popped in program order, ending in FINISH."""
    tokens = [0, 0, 0, 0]
    insns = []

    def flags(module: int) -> int:
        pops, pushes = POPS[module], PUSHES[module]
        value = 0
        for bit, token in pops:
            if tokens[token] > 0 and rng.random() < 0.6:
                tokens[token] -= 1
                value |= bit
        for bit, token in pushes:
            if rng.random() < 0.4:
                tokens[token] += 1
                value |= bit
        return value

    small = bool(rng.random() < 0.5)
    for _ in range(length):
        kind = rng.integers(0, 10)
        if kind < 6:
            memory = int(rng.choice([Memory.UOP, Memory.WGT, Memory.INP, Memory.ACC]))
            module = 0 if memory in (Memory.INP, Memory.WGT) else 1
            if rng.random() < 0.15:
                insns.append(row(Opcode.LOAD, flags(module), memory))
                continue
            y, x = int(rng.integers(1, 6 if small else 12)), int(rng.integers(1, 8 if small else 24))
            pads = [int(v) for v in rng.integers(0, 4, 4) * (rng.random(4) < 0.3)]
            dram = int(rng.integers(1024, 4096))
            insns.append(row(Opcode.LOAD, flags(module), memory, 0, dram, y, x, x + int(rng.integers(0, 9)), *pads))
        elif kind < 8:
            op = int(rng.choice([Opcode.GEMM, Opcode.ALU]))
            begin = int(rng.integers(0, 4))
            loops = (begin, begin + int(rng.integers(1, 5)), int(rng.integers(1, 9)), int(rng.integers(1, 5)))
            insns.append(row(op, flags(1), 0, *loops))
            insns[-1][12] = int(rng.integers(0, 2)) if op == Opcode.ALU else 0
        else:
            x = int(rng.integers(0, 12))
            insns.append(row(Opcode.STORE, flags(2), Memory.OUT, 0, int(rng.integers(1024, 4096)), 1 + x % 3, x, x + 3))
    return [*insns, row(Opcode.FINISH)]


ACCELERATORS = [
    PYNQ,
    DE10,
    *[dataclasses.replace(a, bus_bits=bits) for a in (PYNQ, DE10) for bits in (128, 256, 512)],
    dataclasses.replace(PYNQ, memory_latency=1),
    dataclasses.replace(DE10, memory_latency=1, bus_bits=128),
    dataclasses.replace(DE10, memory_latency=64),
    dataclasses.replace(PYNQ, burst_len_bits=2, instruction_queue=3),
    dataclasses.replace(PYNQ, burst_len_bits=1, instruction_queue=2, bus_bits=128),
    Accelerator(0, 5, 15, 16, 20, 18),
    Accelerator(1, 4, 15, 16, 18, 18, burst_len_bits=4),
    Accelerator(2, 4, 15, 17, 18, 19, bus_bits=256),
    Accelerator(2, 3, 15, 16, 16, 18),
    Accelerator(0, 3, 13, 14, 16, 16, burst_len_bits=4),
    # INP SRAMs of 16, 32 and 64 elements: loads that end early, and others that meet their data.
    dataclasses.replace(DE10, log_inp_buff_size=8, isa_inp_bits=11),
    dataclasses.replace(DE10, log_inp_buff_size=9, isa_inp_bits=11, memory_latency=64),
    dataclasses.replace(PYNQ, log_inp_buff_size=10, isa_inp_bits=11),
]
