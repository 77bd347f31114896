"""What a device is, and how far it goes: block and batch, depths of SRAMs, tokens, distances, memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from oneshot_ml2.common.errors import AcceleratorError
from oneshot_ml2.devices.doctor.bench import Bench
from oneshot_ml2.devices.doctor.probes import CARRIERS, copy, product, small_accumulators
from oneshot_ml2.devices.doctor.stream import Stream, TooSmall
from oneshot_ml2.devices.raw import Fault
from oneshot_ml2.vta.accelerator import Accelerator, preset_names
from oneshot_ml2.vta.board import MOST_TOKENS
from oneshot_ml2.vta.program import PAGE, AluOp, Flag, Memory, Opcode
from oneshot_ml2.vta.tokens import COMPUTES, LOADS, QUEUES, STORES

# The largest piece of memory that is asked for, and what every VTA library grants (VTA_MAX_XFER of VTA's driver.h).
MOST_MEMORY, GRANTED = 1 << 26, 1 << 25
# Distances between updates of an accumulator that are tried, and how often each is updated.
FARTHEST, _UPDATES = 64, 8
# An ALU operation of so many iterations keeps compute busy while tokens pile up, and so many LOADs and STOREs of many
# rows keep load and store.
_BUSY, _SLOW = 1 << 13, 16


# What of an accelerator decides what its programs do.
_SIZES = (
    "log_batch", "log_block", "log_uop_buff_size", "log_inp_buff_size", "log_wgt_buff_size", "log_acc_buff_size",
    "uop_depth", "isa_uop_bits", "isa_inp_bits", "isa_wgt_bits", "isa_acc_bits",
)  # fmt: skip


# Block and batch -------------------------------------------------------------------------------
def other_shapes(chip: Accelerator) -> Iterator[Accelerator]:
    """Accelerators of other blocks and batches, with the depths and instructions of ``chip``; those of inputs as large
    come first, then those that differ least."""
    size = chip.log_batch + chip.log_block
    pairs = [(batch, block) for block in range(1, 7) for batch in range(7)]
    for batch, block in sorted(pairs, key=lambda pair: (abs(sum(pair) - size), pair[0], -pair[1])):
        if (batch, block) == (chip.log_batch, chip.log_block):
            continue
        try:
            yield dataclasses.replace(
                chip,
                log_batch=batch,
                log_block=block,
                log_inp_buff_size=chip.log_inp_depth + batch + block,
                log_wgt_buff_size=chip.log_wgt_depth + 2 * block,
                log_acc_buff_size=chip.log_acc_depth + batch + block + 2,
            )
        except AcceleratorError:
            continue


def guesses(chip: Accelerator) -> Iterator[Accelerator]:
    """All accelerators that a device may be in place of ``chip``: `other_shapes`, and the presets."""
    yield from other_shapes(chip)
    for name in preset_names():
        preset = Accelerator.load(name)
        yield dataclasses.replace(chip, **{field: getattr(preset, field) for field in _SIZES})


def shape_of(chip: Accelerator) -> str:
    """Batch and block in words."""
    return f"batch {chip.batch}, block {chip.block}"


def first_carrier(bench: Bench, chip: Accelerator) -> tuple[int, str]:
    """The first ALU operation with which the least program is right, -1 if there is none; what the last one gave."""
    seen = ""
    for carrier in range(len(CARRIERS)):
        seen = bench.check(copy(chip, carrier))
        if not seen:
            return carrier, ""
        if bench.hung:
            break
    return -1, seen


def is_shape(bench: Bench, chip: Accelerator) -> bool:
    """Whether products come out right on an accelerator."""
    return not bench.check(product(chip))


# SRAMs ------------------------------------------------------------------------------------------
def _written_apart(chip: Accelerator, memory: Memory, place: int, carrier: int, read: int) -> Stream:
    """Something is loaded to 0 and then something else to ``place``; what is at ``read`` then is stored."""
    stream = Stream(chip, place)
    out = stream.output(1)
    if memory == Memory.ACC:
        # Both are changed, the other one last: OUT is as deep.
        for at in (0, place):
            stream.load(stream.accumulators(small_accumulators(stream, 1)), at)
        op, value = CARRIERS[carrier]
        for at in (read, place - read):
            stream.alu(op, stream.uops([(at, at, 0)]), value)
        stream.store(out, read, 1, 1)
        return stream
    stream.load(stream.zeros(1))
    stream.load(stream.buffer(Memory.INP, 2 if memory != Memory.INP else 1))
    if memory == Memory.INP:
        stream.load(stream.buffer(Memory.INP, 1), place)
        stream.load(stream.identity())
        span = stream.uops([(0, read, 0)])
    elif memory == Memory.WGT:
        stream.load(stream.buffer(Memory.WGT, 1))
        stream.load(stream.buffer(Memory.WGT, 1), place)
        span = stream.uops([(0, 0, read)])
    else:
        stream.load(stream.identity())
        stream.uops([(0, 0, 0), (0, 1, 0)])
        stream.load_uops(0, 0, 1)
        stream.load_uops(place, 1, 1)
        span = (read, read + 1)
    stream.gemm(span)
    stream.store(out, 0, 1, 1)
    return stream


def depth(bench: Bench, chip: Accelerator, memory: Memory, carrier: int) -> tuple[int, str]:
    """Elements of an SRAM as far as an accelerator has them, and what was seen; 0: none of the programs is right."""
    most = int(getattr(chip, f"{memory.name.lower()}_depth"))
    half = 1 << ((most - 1).bit_length() - 1)

    def seen(place: int) -> str:
        return bench.check(_written_apart(chip, memory, place, carrier, 0)) or bench.check(
            _written_apart(chip, memory, place, carrier, place)
        )

    wrong = seen(half) or (seen(most - 1) if most - 1 > half else "")
    if not wrong:
        return most, ""
    place = 1
    while place <= half and not bench.hung:
        if seen(place):
            return (place if place > 1 else 0), wrong
        place *= 2
    return (half if not bench.hung else 0), wrong


def with_depth(chip: Accelerator, memory: Memory, found: int) -> Accelerator:
    """An accelerator with fewer elements in an SRAM, and the instructions that it has.

    Raises:
        AcceleratorError: so few that there is none such.
    """
    if memory == Memory.UOP:
        return dataclasses.replace(chip, uop_depth=found)
    name = f"log_{memory.name.lower()}"
    fewer = int(getattr(chip, f"{name}_depth")) - (found.bit_length() - 1)
    sizes = {f"{name}_buff_size": int(getattr(chip, f"{name}_buff_size")) - fewer}
    return dataclasses.replace(chip, **sizes)  # type: ignore[arg-type]


# Distances --------------------------------------------------------------------------------------
def _recurring(chip: Accelerator, distance: int, carrier: int | None) -> Stream:
    """``distance`` accumulators updated in turn, by products, or by an ALU operation that adds."""
    if chip.acc_depth <= distance or chip.uop_depth <= distance:
        raise TooSmall("an SRAM holds too few accumulators or micro-ops")
    stream = Stream(chip, distance)
    out = stream.output(distance)
    stream.load(stream.accumulators(small_accumulators(stream, distance)))
    span = stream.uops([(i, i if carrier is not None else 0, 0) for i in range(distance)])
    if carrier is None:
        stream.load(stream.buffer(Memory.INP, 1))
        stream.load(stream.buffer(Memory.WGT, 1))
        stream.gemm(span, (_UPDATES, 0, 0, 0))
    else:
        stream.alu(AluOp.ADD, span, 1, (_UPDATES, 0, 0, 0))
    stream.store(out)
    return stream


def acc_distance(bench: Bench, chip: Accelerator, with_gemm: bool, with_add: bool) -> int:
    """How far apart updates of an accumulator have to be; above 64 as `FARTHEST` + 1.

    An ALU operation's are two apart at least on any design, so that one apart is not tried.
    """
    found = 1
    for carrier in ([None] if with_gemm else []) + ([0] if with_add else []):
        least = 1 if carrier is None else 2
        distance = least
        while distance <= FARTHEST and not bench.hung and bench.check(_recurring(chip, distance, carrier)):
            distance += 1
        found = max(found, distance if distance > least else 1)
    return found


# Tokens -----------------------------------------------------------------------------------------
def _piled(chip: Accelerator, queue: int, count: int) -> Stream:
    """``count`` tokens in one queue before the first of them is taken, since who takes them is busy."""
    stream = Stream(chip, queue)
    giver, taker = ((LOADS, COMPUTES), (COMPUTES, LOADS), (COMPUTES, STORES), (STORES, COMPUTES))[queue]
    push = Flag.PUSH_NEXT if taker > giver else Flag.PUSH_PREV
    pop = Flag.POP_PREV if taker > giver else Flag.POP_NEXT
    span = stream.uops([(i, i, 0) for i in range(min(4, chip.acc_depth, chip.uop_depth))])
    n = min(16, chip.inp_depth - 1, chip.acc_depth - 1)
    if taker == COMPUTES:
        stream.insn(
            COMPUTES, 0, op=Opcode.ALU, uop_bgn=span[0], uop_end=span[1], iter_out=_BUSY, iter_in=1,
            alu_op=AluOp.MAX, use_imm=1, imm=0,
        )  # fmt: skip
    elif taker == LOADS:
        place = stream.place(stream.buffer(Memory.INP, n))
        for _ in range(_SLOW):
            stream.insn(LOADS, 0, op=Opcode.LOAD, mem=Memory.INP, dram=place, y=n, x=1, stride=1)
    else:
        place = stream.place(stream.output(n, looked_at=False))
        for _ in range(_SLOW):
            stream.insn(STORES, 0, op=Opcode.STORE, mem=Memory.OUT, dram=place, y=n, x=1, stride=1)
    for _ in range(count):
        stream.nop(giver, push)
    for _ in range(count):
        stream.nop(taker, pop)
    return stream


def most_tokens(bench: Bench, chip: Accelerator, queue: int) -> int:
    """Tokens that one of `tokens.QUEUES` holds, at most 255; 0 where it does not tell as the device hangs."""
    if not bench.check(_piled(chip, queue, MOST_TOKENS)):
        return MOST_TOKENS
    low, high = 1, MOST_TOKENS
    while low + 1 < high and not bench.hung:
        middle = (low + high) // 2
        if bench.check(_piled(chip, queue, middle)):
            high = middle
        else:
            low = middle
    return 0 if bench.hung else low


def queue_name(queue: int) -> str:
    """A queue in words."""
    return QUEUES[queue].replace("-", " ")


# Memory -----------------------------------------------------------------------------------------
def largest_allocation(bench: Bench) -> int:
    """Bytes of the largest piece of memory, at most `MOST_MEMORY`; in steps of 64 KiB.

    Raises:
        Fault: the board fails at less than what every library grants.
    """
    low, high, step = 0, MOST_MEMORY, 1 << 16

    def there(size: int) -> bool:
        try:
            return bench.board.allocate([size]) is not None
        except Fault:
            # Some libraries end when they are asked for too much.
            if size <= PAGE:
                raise
            return False

    if there(high):
        return high
    if there(GRANTED):
        low = GRANTED
    while high - low > step:
        middle = (low + high) // 2 // PAGE * PAGE
        if there(middle):
            low = middle
        else:
            high = middle
    return low
