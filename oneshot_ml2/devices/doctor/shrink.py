"""Makes a program that a device gets wrong small: fewer instructions, smaller ones, as long as it is still wrong.

What is tried has to be a program that every device should get right: its tokens balance, it reads nothing that it has
not written, and it keeps to the HLS design's rules.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.devices.doctor.stream import NOPS, idle, in_order
from oneshot_ml2.vta import hls_rules, isa, simulator, tokens
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.hls_keys import HlsTiming
from oneshot_ml2.vta.link import aligned, alignment
from oneshot_ml2.vta.program import INSN, PAGE, AluOp, Insns, Memory, Opcode, Program, element_bytes, joined
from oneshot_ml2.vta.reasons import Reason

# Programs that are tried, at most.
_TRIES = 400
# Blocks of DRAM whose random bytes fill an SRAM, again and again.
_REPEATED = 37
# Fields that are made smaller, with their least values, by opcode.
_MOVES = (("y", 1), ("x", 1), ("top", 0), ("bottom", 0), ("left", 0), ("right", 0))
_LOOPS = (("iter_out", 1), ("iter_in", 1))


class _Spent(Exception):
    """No more programs are tried."""


def shrunk(program: Program, dram: NDArray[np.uint8], wrong: Callable[[Program], bool]) -> Program:
    """The smallest program that is found of which ``wrong`` is true, as it is of the given one.

    ``dram``: the image that it runs on.
    """
    best, tries = program, 0

    def keeps(insns: Insns) -> bool:
        """Whether a program of these instructions is sound and still wrong; then it is the best."""
        nonlocal best, tries
        candidate = dataclasses.replace(program, insns=insns)
        if not sound(candidate, dram):
            return False
        if tries == _TRIES:
            raise _Spent
        tries += 1
        if not wrong(candidate):
            return False
        best = candidate
        return True

    try:
        # Without concurrency the order is plain, and every instruction may go by itself.
        ordered = keeps(in_order(program.insns))
        _fewer(lambda: best.insns, lambda insns: keeps(in_order(insns) if ordered else insns))
        while any(keeps(insns) for insns in _smaller(best.insns)):
            pass
    except _Spent:
        pass
    return best


def _fewer(current: Callable[[], Insns], keeps: Callable[[Insns], bool]) -> None:
    """Leave out instructions, half of them at a time, then a quarter, and so on."""
    size = len(current())
    while size >= 1:
        begin = 0
        while begin < len(current()):
            insns = current()
            chunk = np.arange(begin, min(begin + size, len(insns)))
            chunk = chunk[~idle(insns[chunk])]
            if not (len(chunk) and keeps(_without(insns, chunk))) or len(current()) == len(insns):
                begin += size
        size //= 2


def _without(insns: Insns, chunk: NDArray[np.int64]) -> Insns:
    """Instructions with some of them doing nothing but what their flags say."""
    left = insns.copy()
    modules = tokens.modules(insns)
    for place in chunk.tolist():
        nop: Insns = np.zeros(1, INSN)
        for name, value in NOPS[int(modules[place])].items():
            nop[name] = value
        nop["flags"] = insns["flags"][place]
        left[place] = nop[0]
    return left


def _smaller(insns: Insns) -> Iterator[Insns]:
    """Programs with one number smaller: its least value, or half of what it is."""
    for place in np.flatnonzero(~idle(insns)).tolist():
        loops = insns["op"][place] in (Opcode.GEMM, Opcode.ALU)
        for name, least in _LOOPS if loops else _MOVES:
            value = int(insns[name][place])
            for smaller in dict.fromkeys((least, value // 2)):
                if least <= smaller < value:
                    made = insns.copy()
                    made[name][place] = smaller
                    yield made
        if loops and insns["uop_end"][place] - insns["uop_bgn"][place] > 1:
            begin, end = int(insns["uop_bgn"][place]), int(insns["uop_end"][place])
            for smaller in dict.fromkeys((begin + 1, (begin + end) // 2)):
                made = insns.copy()
                made["uop_end"][place] = smaller
                yield made


def sound(program: Program, dram: NDArray[np.uint8]) -> bool:
    """Whether a program is one that every device should get right."""
    if not tokens.runs_in_order(np.ascontiguousarray(program.insns)):
        return False
    chip = program.accelerator
    hls = chip.hls or HlsTiming(acc_distance=max(chip.acc_distance, 1))
    as_hls = dataclasses.replace(program, accelerator=dataclasses.replace(chip, hls=hls))
    if hls_rules.broken_rule(as_hls) != Reason.VALID:
        return False
    return np.array_equal(_left(program, dram, None), _left(program, dram, np.random.default_rng(0)))


def _left(program: Program, dram: NDArray[np.uint8], rng: np.random.Generator | None) -> NDArray[np.uint8]:
    """What a program leaves in DRAM, from SRAMs of zeros or of random bytes."""
    chip = program.accelerator
    begin = aligned(len(dram), alignment(chip))
    uops = isa.encode_uops(program.uops, chip).astype("<u4").view(np.uint8)
    random = np.zeros(0, np.uint8) if rng is None else rng.integers(0, 256, _REPEATED * alignment(chip), np.uint8)
    # Behind it zeros, for a micro-op.
    image = np.concatenate([dram, np.zeros(begin - len(dram), np.uint8), random, np.zeros(PAGE, np.uint8)])
    image[program.uop_address : program.uop_address + uops.size] = uops
    insns = program.insns if rng is None else joined([_fill(chip, begin, len(random)), program.insns])
    simulator.execute_checked(np.ascontiguousarray(insns), chip, image)
    return image[: len(dram)]


def _fill(chip: Accelerator, begin: int, size: int) -> Insns:
    """Instructions that fill all SRAMs with the ``size`` bytes at an address, again and again; zeros follow these."""
    depths = {Memory.ACC: chip.acc_depth, Memory.INP: chip.inp_depth, Memory.WGT: chip.wgt_depth}
    insns: Insns = np.zeros(len(depths) + 3, INSN)

    def load(place: int, memory: Memory, depth: int, address: int) -> None:
        element = element_bytes(chip)[memory]
        x = min(depth, size // element, 1 << 15)
        fields = {"op": Opcode.LOAD, "mem": memory, "dram": address // element, "y": depth // x, "x": x}
        for name, value in fields.items():
            insns[name][place] = value

    load(0, Memory.UOP, 1, begin + size)
    for place, (memory, depth) in enumerate(depths.items()):
        load(1 + place, memory, depth, begin)
    # OUT by way of the ALU, which copies all accumulators.
    copies = {"op": Opcode.ALU, "alu_op": AluOp.ADD, "use_imm": 1, "uop_end": 1, "iter_out": 1}
    for name, value in (copies | {"iter_in": chip.acc_depth, "dst_in": 1, "src_in": 1}).items():
        insns[name][len(depths) + 1] = value
    load(len(depths) + 2, Memory.UOP, chip.uop_depth, begin)
    return insns


def listing(program: Program) -> list[str]:
    """A program's instructions, and those of its micro-ops that it uses, a line each."""
    sram = np.zeros(program.accelerator.uop_depth, np.int64)
    used: set[int] = set()
    for insn in program.insns:
        if insn["op"] == Opcode.LOAD and insn["mem"] == Memory.UOP:
            count = int(insn["x"] * insn["y"])
            sram[insn["sram"] : insn["sram"] + count] = insn["dram"] - program.uop_address // 4 + np.arange(count)
        elif insn["op"] in (Opcode.GEMM, Opcode.ALU):
            used.update(sram[insn["uop_bgn"] : insn["uop_end"]].tolist())
    names = ("dst", "src", "wgt")
    uops = [" ".join(f"{name} {program.uops[name][at]}" for name in names) for at in sorted(used)]
    return isa.disassemble(program.insns) + [f"micro-op {at:6d}  {text}" for at, text in zip(sorted(used), uops)]
