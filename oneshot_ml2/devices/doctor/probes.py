"""Probes of what programs may need: for each feature small programs that need it, and little else.

A probe names the features that its programs also need; where one of these is not right it is not tried, so that what is
wrong is what is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from oneshot_ml2.devices.doctor.stream import NO_PADS, ONCE, Loop, Pads, Stream, TooSmall
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import AluOp, Memory

# Elements that a probe moves, and micro-ops of a GEMM that keep its accumulators apart.
_MOVED, _APART = 24, 16
# ALU operations that copy an accumulator to OUT: one of them is enough to see something.
CARRIERS = ((AluOp.ADD, 0), (AluOp.MAX, -32768), (AluOp.MIN, 32767), (AluOp.SHR, 0))
# Immediates with which these operations change what they copy; and their features.
_CHANGES = (9, 100, -100, 3)
CARRIER_NAMES = ("add_imm", "max_imm", "min_imm", "shr_imm")
# ALU operations of two accumulators.
_TENSORS = {"add_tensor": AluOp.ADD, "max_tensor": AluOp.MAX, "min_tensor": AluOp.MIN, "shr_tensor": AluOp.SHR}


@dataclass(frozen=True)
class Probe:
    """How a feature is tried.

    Attributes:
        name: one of `board.FEATURES`.
        requires: features without which it tells nothing.
        cases: its programs, each with what it does, in words.
    """

    name: str
    requires: tuple[str, ...]
    cases: Callable[[Accelerator, int], Iterable[tuple[str, Stream]]]


def _room(chip: Accelerator, **needed: int) -> None:
    """Raise TooSmall unless the SRAMs hold so many elements, and one more."""
    for memory, count in needed.items():
        depth = getattr(chip, f"{memory}_depth")
        if depth <= count:
            raise TooSmall(f"the {memory.upper()} SRAM holds {depth}, and the probe needs {count + 1}")


def small_accumulators(stream: Stream, n: int, high: int = 1 << 20) -> np.ndarray:
    """Random accumulators, int32 (n, BATCH, BLOCK)."""
    shape = (n, stream.chip.batch, stream.chip.block)
    return stream.rng.integers(-high, high, shape).astype(np.int32)


def copy(chip: Accelerator, carrier: int, seed: int = 0, uops_first: bool = True, n: int = 4) -> Stream:
    """The least program that shows something: accumulators go through the ALU to OUT, and are stored."""
    stream = Stream(chip, seed, uops_first)
    n = min(n, chip.acc_depth - 1, chip.uop_depth)
    if not uops_first:
        # The run begins with an instruction of load, which nothing needs.
        stream.load(stream.buffer(Memory.INP, 1))
        stream.load_uops()
    out = stream.output(n)
    stream.load(stream.accumulators(small_accumulators(stream, n)))
    op, value = CARRIERS[carrier]
    stream.alu(op, stream.uops([(i, i, 0) for i in range(n)]), value)
    stream.store(out)
    return stream


def product(chip: Accelerator, seed: int = 0, n: int = 2) -> Stream:
    """Inputs times weights, which the carrier is not needed for: GEMM writes OUT itself."""
    stream = Stream(chip, seed)
    n = min(n, chip.inp_depth - 1, chip.wgt_depth - 1, chip.acc_depth - 1)
    out = stream.output(n)
    stream.load(stream.accumulators(small_accumulators(stream, n)))
    stream.load(stream.buffer(Memory.INP, n))
    stream.load(stream.buffer(Memory.WGT, n))
    stream.gemm(stream.uops([(i, i, i) for i in range(n)]))
    stream.store(out)
    return stream


def _show_inputs(chip: Accelerator, seed: int, n: int, load: Callable[[Stream], None]) -> Stream:
    """Store the first ``n`` inputs that are in SRAM after ``load``: products with one, a micro-op each."""
    _room(chip, inp=n, acc=n, wgt=1)
    stream = Stream(chip, seed)
    out = stream.output(n)
    stream.load(stream.zeros(n))
    stream.load(stream.identity())
    # Nothing that was there before looks like what is loaded.
    stream.load(stream.buffer(Memory.INP, n))
    load(stream)
    stream.gemm(stream.uops([(i, i, 0) for i in range(n)]))
    stream.store(out)
    return stream


def _load_inp(chip: Accelerator, seed: int) -> Iterable[tuple[str, Stream]]:
    n = _MOVED
    yield "one row", _show_inputs(chip, seed, n, lambda s: s.load(s.buffer(Memory.INP, n)))
    yield "rows without gaps", _show_inputs(chip, seed, n, lambda s: s.load(s.buffer(Memory.INP, n), 0, 4, n // 4))
    yield "not from 0 on", _show_inputs(chip, seed, n, lambda s: s.load(s.buffer(Memory.INP, n - 3), 2))


def _inputs(pads: Pads, stride: int, chip: Accelerator, seed: int) -> Stream:
    """A LOAD of three rows of three inputs."""
    return _show_inputs(
        chip, seed, _MOVED + 4, lambda s: s.load(s.buffer(Memory.INP, 3 * stride), 1, 3, 3, stride, pads)
    )


_PADS: tuple[tuple[str, Pads], ...] = (
    ("above", (1, 0, 0, 0)),
    ("below", (0, 1, 0, 0)),
    ("left", (0, 0, 2, 0)),
    ("right", (0, 0, 0, 1)),
    ("on all sides", (1, 1, 1, 1)),
)


def _load_inp_pads(chip: Accelerator, seed: int) -> Iterable[tuple[str, Stream]]:
    for side, pads in _PADS:
        yield f"pads {side}", _inputs(pads, 3, chip, seed)


def _load_inp_strides(chip: Accelerator, seed: int) -> Iterable[tuple[str, Stream]]:
    yield "rows apart", _inputs(NO_PADS, 7, chip, seed)


def _load_inp_both(chip: Accelerator, seed: int) -> Iterable[tuple[str, Stream]]:
    for side, pads in _PADS:
        yield f"rows apart, pads {side}", _inputs(pads, 5, chip, seed)


def _show_weights(chip: Accelerator, seed: int, load: Callable[[Stream], None]) -> Stream:
    """Store products of one input and the first eight weights that are in SRAM after ``load``."""
    _room(chip, inp=1, acc=8, wgt=8)
    stream = Stream(chip, seed)
    out = stream.output(8)
    stream.load(stream.zeros(8))
    stream.load(stream.buffer(Memory.INP, 1))
    stream.load(stream.buffer(Memory.WGT, 8))
    load(stream)
    stream.gemm(stream.uops([(i, 0, i) for i in range(8)]))
    stream.store(out)
    return stream


def _load_wgt(chip: Accelerator, seed: int) -> Iterable[tuple[str, Stream]]:
    yield "one row", _show_weights(chip, seed, lambda s: s.load(s.buffer(Memory.WGT, 8)))
    yield "not from 0 on", _show_weights(chip, seed, lambda s: s.load(s.buffer(Memory.WGT, 3), 3))


def _load_wgt_strides(chip: Accelerator, seed: int) -> Iterable[tuple[str, Stream]]:
    yield "rows apart", _show_weights(chip, seed, lambda s: s.load(s.buffer(Memory.WGT, 9), 1, 3, 2, 3))


def _show_accumulators(chip: Accelerator, seed: int, load: Callable[[Stream], None], carrier: int) -> Stream:
    _room(chip, acc=12)
    stream = Stream(chip, seed)
    out = stream.output(12)
    stream.load(stream.accumulators(small_accumulators(stream, 12)))
    load(stream)
    op, value = CARRIERS[carrier]
    stream.alu(op, stream.uops([(i, i, 0) for i in range(12)]), value)
    stream.store(out)
    return stream


def acc_probes(carrier: int) -> tuple[Probe, ...]:
    """Probes that need an ALU operation which shows accumulators: that of CARRIERS which works."""
    needs = (CARRIER_NAMES[carrier],)

    def load_acc(chip: Accelerator, seed: int) -> Iterable[tuple[str, Stream]]:
        def from_two(s: Stream) -> None:
            s.load(s.accumulators(small_accumulators(s, 9)), 2)

        yield "not from 0 on", _show_accumulators(chip, seed, from_two, carrier)

    def strides(chip: Accelerator, seed: int) -> Iterable[tuple[str, Stream]]:
        def apart(s: Stream) -> None:
            s.load(s.accumulators(small_accumulators(s, 15)), 1, 3, 3, 5)

        def repeated(s: Stream) -> None:
            s.load(s.accumulators(small_accumulators(s, 1)), 1, 9, 1, 0)

        yield "rows apart", _show_accumulators(chip, seed, apart, carrier)
        yield "one element repeated", _show_accumulators(chip, seed, repeated, carrier)

    def store(chip: Accelerator, seed: int) -> Iterable[tuple[str, Stream]]:
        yield "rows without gaps", _stores(chip, seed, carrier, 4)
        yield "one row, not from 0 on", _stores(chip, seed, carrier, 0)

    def store_strides(chip: Accelerator, seed: int) -> Iterable[tuple[str, Stream]]:
        yield "rows apart", _stores(chip, seed, carrier, 7)

    def both_ways(chip: Accelerator, seed: int) -> Iterable[tuple[str, Stream]]:
        yield "", _store_after_alu(chip, seed, carrier)

    def load_uop(chip: Accelerator, seed: int) -> Iterable[tuple[str, Stream]]:
        yield "not from 0 on, and over others", _moved_uops(chip, seed, carrier)

    return (
        Probe("load_acc", needs, load_acc),
        Probe("load_acc_strides", (*needs, "load_acc"), strides),
        Probe("load_uop", needs, load_uop),
        Probe("store", needs, store),
        Probe("store_strides", (*needs, "store"), store_strides),
        Probe("tokens_compute_store", needs, both_ways),
        Probe("tokens_store_compute", needs, both_ways),
    )


def _stores(chip: Accelerator, seed: int, carrier: int, stride: int) -> Stream:
    """Twelve accumulators to OUT, and three rows of four of them stored ``stride`` apart; 0: a row of nine of them."""
    _room(chip, acc=12)
    stream = Stream(chip, seed)
    out = stream.output(12 if stride == 0 else 3 * stride)
    stream.load(stream.accumulators(small_accumulators(stream, 12)))
    op, value = CARRIERS[carrier]
    stream.alu(op, stream.uops([(i, i, 0) for i in range(12)]), value)
    if stride == 0:
        stream.store(out, 3, 1, 9)
    else:
        stream.store(out, 0, 3, 4, stride)
    return stream


def _moved_uops(chip: Accelerator, seed: int, carrier: int) -> Stream:
    """Micro-ops that are loaded to where others were."""
    _room(chip, acc=8, uop=11)
    stream = Stream(chip, seed)
    out = stream.output(6)
    stream.load(stream.accumulators(small_accumulators(stream, 8)))
    op, value = CARRIERS[carrier]
    stream.uops([(i, i, 0) for i in range(8)])
    stream.load_uops(sram=3, first=2, count=4)
    stream.alu(op, (0, 3), value)
    # Those at 3 to 6 are the third to the sixth now; the seventh and the eighth are where they were.
    stream.alu(op, (3, 7), _CHANGES[carrier])
    stream.alu(op, (7, 8), value)
    stream.store(out)
    return stream


def _operation(
    op: AluOp, imm: int | None, chip: Accelerator, seed: int, outer: Loop = ONCE, inner: Loop = ONCE, n: int = 8
) -> Stream:
    """An ALU operation on ``n`` accumulators and, without an immediate, as many others."""
    total = n + (outer[0] - 1) * max(outer[1:3]) + (inner[0] - 1) * max(inner[1:3])
    _room(chip, acc=total + n + 8, uop=n)
    stream = Stream(chip, seed)
    out = stream.output(total)
    values = small_accumulators(stream, total + n + 8, 1 << 9)
    if op == AluOp.SHR and imm is None:
        values[total:] &= 7
    stream.load(stream.accumulators(values))
    source = 0 if imm is not None else total
    stream.alu(op, stream.uops([(i, i + source, 0) for i in range(n)]), imm, outer, inner)
    stream.store(out)
    return stream


_IMMEDIATES = {
    "min_imm": (AluOp.MIN, (5, -7, 300)),
    "max_imm": (AluOp.MAX, (-128, 11, 0)),
    "add_imm": (AluOp.ADD, (3, -300, 127)),
    "shr_imm": (AluOp.SHR, (0, 1, 8, 15)),
    "shl_imm": (AluOp.SHR, (-1, -5)),
}


def _alu_probes() -> Iterable[Probe]:
    for name, (op, values) in _IMMEDIATES.items():
        yield Probe(name, ("run",), lambda chip, seed, op=op, values=values: [  # type: ignore[misc]
            (f"by {value}", _operation(op, value, chip, seed)) for value in values
        ])  # fmt: skip
    for name, op in _TENSORS.items():
        yield Probe(name, ("run",), lambda chip, seed, op=op: [("", _operation(op, None, chip, seed))])  # type: ignore[misc]


def _alu_loops(carrier: int, tensor: str) -> Iterable[Probe]:
    op, value = CARRIERS[carrier][0], _CHANGES[carrier]
    for place, loop in (("outer", 0), ("inner", 1)):
        dst = [ONCE, ONCE]
        dst[loop] = (3, 8, 8, 0)
        yield Probe(
            f"alu_{place}_dst",
            (CARRIER_NAMES[carrier],),
            lambda chip, seed, dst=tuple(dst): [("", _operation(op, value, chip, seed, *dst))],  # type: ignore[misc]
        )
        src = [ONCE, ONCE]
        src[loop] = (3, 0, 2, 0)
        yield Probe(
            f"alu_{place}_src",
            (tensor,),
            lambda chip, seed, src=tuple(src): [("", _summed(chip, seed, _TENSORS[tensor], *src))],  # type: ignore[misc]
        )


def _summed(chip: Accelerator, seed: int, op: AluOp, outer: Loop, inner: Loop) -> Stream:
    """Sixteen accumulators, and others put to them in three iterations."""
    n = _APART
    _room(chip, acc=2 * n + 8, uop=n)
    stream = Stream(chip, seed)
    out = stream.output(n)
    stream.load(stream.accumulators(small_accumulators(stream, 2 * n + 8)))
    stream.alu(op, stream.uops([(i, n + i, 0) for i in range(n)]), None, outer, inner)
    stream.store(out)
    return stream


def _multiplied(chip: Accelerator, seed: int, outer: Loop, inner: Loop, reset: bool = False) -> Stream:
    """Sixteen micro-ops in loops; all accumulators that they reach."""
    n = _APART
    reach = [1 + (outer[0] - 1) * outer[i] + (inner[0] - 1) * inner[i] for i in (1, 2, 3)]
    total = n - 1 + reach[0]
    _room(chip, acc=total, inp=reach[1] + 3, wgt=reach[2] + 1, uop=2 * n)
    stream = Stream(chip, seed)
    out = stream.output(total)
    stream.load(stream.accumulators(small_accumulators(stream, total)))
    stream.load(stream.buffer(Memory.INP, reach[1] + 3))
    stream.load(stream.buffer(Memory.WGT, reach[2] + 1))
    span = stream.uops([(i, i % 4, i % 2) for i in range(n)])
    if reset:
        stream.gemm(span, reset=True)
    stream.gemm(span, outer, inner)
    stream.store(out)
    return stream


def _gemm_probes() -> Iterable[Probe]:
    yield Probe("gemm_reset", ("gemm",), lambda chip, seed: [("", _multiplied(chip, seed, ONCE, ONCE, True))])
    for place, loop in (("outer", 0), ("inner", 1)):
        for what, factors in (("acc", (4, _APART, 0, 0)), ("inp", (4, 0, 3, 0)), ("wgt", (4, 0, 0, 2))):
            loops = [ONCE, ONCE]
            loops[loop] = factors
            yield Probe(
                f"gemm_{place}_{what}",
                ("gemm",),
                lambda chip, seed, loops=tuple(loops): [("", _multiplied(chip, seed, *loops))],  # type: ignore[misc]
            )


def _read_before_written(chip: Accelerator, seed: int) -> Iterable[tuple[str, Stream]]:
    """A GEMM that takes its time, and a LOAD over its inputs."""
    n = min(_APART, chip.inp_depth - 1, chip.acc_depth - 1)
    stream = Stream(chip, seed)
    out = stream.output(n)
    stream.load(stream.zeros(n))
    stream.load(stream.identity())
    stream.load(stream.buffer(Memory.INP, n))
    span = stream.uops([(i, i, 0) for i in range(n)])
    stream.gemm(span, (64, 0, 0, 0))
    stream.load(stream.buffer(Memory.INP, n))
    stream.nop(1)
    stream.store(out)
    yield "", stream


def _waits_for_load(chip: Accelerator, seed: int) -> Iterable[tuple[str, Stream]]:
    """A LOAD of many rows, and a GEMM that reads the last ones."""
    n = min(256, chip.inp_depth - 1)
    stream = Stream(chip, seed)
    out = stream.output(1)
    stream.load(stream.zeros(1))
    stream.load(stream.identity())
    stream.load(stream.buffer(Memory.INP, n))
    stream.load(stream.buffer(Memory.INP, n), 0, n, 1, 1)
    stream.gemm(stream.uops([(0, n - 1, 0)]))
    stream.store(out)
    yield "", stream


def _store_after_alu(chip: Accelerator, seed: int, carrier: int) -> Stream:
    """Many ALU operations and a STORE of the last one's result; a STORE, and an operation on what it stores."""
    n = min(256, chip.acc_depth - 1, chip.uop_depth)
    stream = Stream(chip, seed)
    first, second = stream.output(n), stream.output(n)
    stream.load(stream.accumulators(small_accumulators(stream, n)))
    span = stream.uops([(i, i, 0) for i in range(n)])
    op, value = CARRIERS[carrier]
    for _ in range(4):
        stream.alu(op, span, value)
    stream.store(first)
    stream.alu(op, span, _CHANGES[carrier])
    stream.store(second)
    return stream


FUNCTIONAL: tuple[Probe, ...] = (
    Probe("load_inp", ("gemm",), _load_inp),
    Probe("load_inp_pads", ("load_inp",), _load_inp_pads),
    Probe("load_inp_strides", ("load_inp",), _load_inp_strides),
    Probe("load_inp_pads_strides", ("load_inp_pads", "load_inp_strides"), _load_inp_both),
    Probe("load_wgt", ("gemm",), _load_wgt),
    Probe("load_wgt_strides", ("load_wgt",), _load_wgt_strides),
    *_gemm_probes(),
    Probe("tokens_load_compute", ("gemm",), _waits_for_load),
    Probe("tokens_compute_load", ("gemm",), _read_before_written),
)


def operations() -> tuple[Probe, ...]:
    """Probes of the ALU's operations, which are tried first: the others take one that works."""
    return tuple(_alu_probes())


def others(carrier: int, tensor: str) -> tuple[Probe, ...]:
    """All others, in the order in which they are tried; ``carrier``, ``tensor``: operations that work."""
    return (*_alu_loops(carrier, tensor), *acc_probes(carrier), *FUNCTIONAL)


def working_tensor(right: Iterable[str]) -> str:
    """An ALU operation of two accumulators among features that are right; any, if none is."""
    there = set(right)
    return next((name for name in _TENSORS if name in there), next(iter(_TENSORS)))
