"""The HLS design's timing: its rules one by one, and random programs against a model that processes wait in."""

from __future__ import annotations

import dataclasses
from collections import deque

import numpy as np
import pytest
from random_programs import random_program, row

from oneshot_ml2.vta import tokens
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.hls_keys import RATES, TICKS, HlsTiming
from oneshot_ml2.vta.program import MICRO_OP, Flag, Memory, Opcode, Program, element_bytes, insns_of
from oneshot_ml2.vta.timing import designs, hls, records

# Each rate another prime number of cycles, so that no other sum gives the same.
TIMING = HlsTiming(
    read_row=5300, store_row=4100, wgt_beat=200, alu_op=300, load_start=700, compute_start=1900, store_start=1100,
    pad=500,
)  # fmt: skip
PYNQ = dataclasses.replace(Accelerator.load("pynq-hls"), hls=TIMING)
WIDE = dataclasses.replace(Accelerator.load("axu5evb-hls"), hls=TIMING)


def timed(chip: Accelerator, *rows: list[int]) -> designs.Timing:
    program = Program(chip, insns_of([*rows, row(Opcode.FINISH)]), np.empty(0, MICRO_OP), 0x1000, 0x8000, ())
    return designs.measure(program, trace=True, memory=True)


@pytest.mark.parametrize(
    ("chip", "insn", "cycles"),
    [
        # A start, and for each of 3 rows its latency and its beats, of 8 bytes, one row after the other.
        (PYNQ, row(Opcode.LOAD, 0, Memory.INP, 0, 0, 3, 5, 9), 7 + 3 * (53 + 10)),
        (WIDE, row(Opcode.LOAD, 0, Memory.INP, 0, 0, 3, 5, 9), 7 + 3 * (53 + 5)),
        # Weights take two cycles a beat, whatever the bus.
        (PYNQ, row(Opcode.LOAD, 0, Memory.WGT, 0, 0, 2, 4, 9), 7 + 2 * (53 + 2 * 4 * 32)),
        (WIDE, row(Opcode.LOAD, 0, Memory.WGT, 0, 0, 2, 4, 9), 7 + 2 * (53 + 2 * 4 * 16)),
        # Compute loads its own; a row of micro-ops ends within a beat.
        (PYNQ, row(Opcode.LOAD, 0, Memory.UOP, 0, 0, 1, 5, 5), 19 + 53 + 3),
        (PYNQ, row(Opcode.LOAD, 0, Memory.ACC, 0, 0, 2, 3, 3), 19 + 2 * (53 + 3 * 8)),
        # Pads: two rows of 1 + 4 + 2 above, one below, and 3 beside each of 2 rows.
        (PYNQ, row(Opcode.LOAD, 0, Memory.INP, 0, 0, 2, 4, 4, 2, 1, 1, 2), 7 + 2 * (53 + 8) + 5 * (3 * 7 + 2 * 3)),
        (PYNQ, row(Opcode.STORE, 0, Memory.OUT, 0, 0, 4, 3, 9), 11 + 4 * (41 + 6)),
        # A micro-op of a GEMM takes a cycle, one of the ALU three, with and without an immediate; loops nothing.
        (PYNQ, row(Opcode.GEMM, 0, 0, 2, 7, 3, 4), 19 + 5 * 3 * 4),
        (PYNQ, row(Opcode.GEMM, 0, 1, 2, 7, 3, 4), 19 + 5 * 3 * 4),
        (PYNQ, row(Opcode.ALU, 0, 0, 2, 7, 3, 4, 0, 0, 0, 0, 3, 1), 19 + 3 * 5 * 3 * 4),
        (PYNQ, row(Opcode.ALU, 0, 0, 2, 7, 3, 4, 0, 0, 0, 0, 2, 0), 19 + 3 * 5 * 3 * 4),
        # Nothing to do is a start; loops of 0 do nothing.
        (PYNQ, row(Opcode.LOAD, 0, Memory.INP), 7),
        (PYNQ, row(Opcode.STORE, 0, Memory.OUT), 11),
        (PYNQ, row(Opcode.GEMM, 0, 0, 0, 1, 0, 1), 19),
    ],
)
def test_an_instruction_takes(chip: Accelerator, insn: list[int], cycles: int) -> None:
    module = int(tokens.modules(insns_of([insn]))[0])
    # A NOP of compute waits for what another module does, as FINISH waits for compute alone.
    push, pop = ((Flag.PUSH_NEXT, Flag.POP_PREV), (0, 0), (Flag.PUSH_PREV, Flag.POP_NEXT))[module]
    result = timed(chip, [insn[0], push, *insn[2:]], row(Opcode.LOAD, pop, Memory.UOP))
    assert result.trace is not None
    assert result.trace[0].tolist() == [0, cycles]
    assert result.cycles == cycles + 2 * 19


def test_modules_run_side_by_side_and_wait_for_tokens() -> None:
    load = row(Opcode.LOAD, Flag.PUSH_NEXT, Memory.INP, 0, 0, 1, 1, 1)
    again = row(Opcode.LOAD, Flag.POP_NEXT | Flag.PUSH_NEXT, Memory.INP, 0, 0, 1, 1, 1)
    gemm = row(Opcode.GEMM, Flag.POP_PREV | Flag.PUSH_PREV, 0, 0, 1, 10, 10)
    last = row(Opcode.GEMM, Flag.POP_PREV | Flag.PUSH_NEXT, 0, 0, 1, 10, 10)
    store = row(Opcode.STORE, Flag.POP_PREV | Flag.PUSH_PREV, Memory.OUT, 0, 0, 1, 1, 1)
    result = timed(PYNQ, load, gemm, again, last, store, row(Opcode.LOAD, Flag.POP_NEXT, Memory.UOP))
    assert result.trace is not None and result.bursts is not None
    first = 7 + 53 + 2
    done = first + 19 + 100
    assert result.trace[:, 0].tolist() == [0, first, done, done + 62, done + 62 + 119, done + 181 + 54, done + 181 + 73]
    assert result.cycles == done + 181 + 54 + 2 * 19
    assert not result.hang and result.ends_cleanly
    assert (result.load_busy, result.compute_busy, result.store_busy) == (2 * 62, 2 * 119 + 38, 54)
    assert (result.gemm, result.alu, result.read_beats, result.write_beats) == (238, 0, 4, 2)
    # Rows in place of bursts.
    assert (result.read_bursts, result.write_bursts, len(result.bursts)) == (2, 1, 0)


def test_a_full_queue_holds_back_all_that_follows() -> None:
    chip = dataclasses.replace(PYNQ, instruction_queue=2)
    loads = [row(Opcode.LOAD, 0, Memory.INP, 0, 0, 1, 1, 1)] * 5
    result = timed(chip, *loads, row(Opcode.GEMM, 0, 0, 0, 1, 1, 1))
    assert result.trace is not None and result.queued is not None
    # An instruction leaves its queue as it starts: of the fifth that is 62 cycles after the second ended.
    assert result.queued.tolist() == [0, 0, 0, 62, 124, 124, 124]
    assert result.trace[5].tolist() == [124, 144]


def test_a_program_that_hangs() -> None:
    result = timed(PYNQ, row(Opcode.LOAD, 0, Memory.INP, 0, 0, 1, 1, 1), row(Opcode.GEMM, Flag.POP_PREV, 0, 0, 1, 1, 1))
    assert result.trace is not None
    assert (result.hang, result.cycles) == (True, 62)
    assert result.trace.tolist() == [[0, 62], [-1, -1], [-1, -1]]
    program = insns_of([row(Opcode.GEMM, Flag.POP_PREV, 0, 0, 1, 1, 1), row(Opcode.FINISH)])
    assert not hls.longest_path(program, records.params(PYNQ)).any()


def ticks(chip: Accelerator, insn: np.void, module: int) -> int:
    """What an instruction takes, written out once more."""
    t, op, mem = chip.hls, int(insn["op"]), int(insn["mem"])
    assert t is not None
    total = (t.load_start, t.compute_start, t.store_start)[module]
    if op in (Opcode.GEMM, Opcode.ALU):
        micro_ops = max(int(insn["uop_end"] - insn["uop_bgn"]), 0) * int(insn["iter_out"]) * int(insn["iter_in"])
        return total + micro_ops * (t.alu_op if op == Opcode.ALU else TICKS)
    if op == Opcode.FINISH or insn["x"] == 0:
        return total
    beats = -(-int(insn["x"]) * element_bytes(chip)[Memory.OUT if op == Opcode.STORE else mem] // chip.bus_bytes)
    latency = t.store_row if op == Opcode.STORE else t.read_row
    for _ in range(int(insn["y"])):
        total += latency + beats * (t.wgt_beat if op == Opcode.LOAD and mem == Memory.WGT else TICKS)
    if op == Opcode.LOAD and mem in (Memory.INP, Memory.ACC):
        wide = int(insn["left"] + insn["x"] + insn["right"])
        whole = wide * int(insn["top"] + insn["y"] + insn["bottom"])
        total += t.pad * (whole - int(insn["x"] * insn["y"]))
    return total


def waiting(chip: Accelerator, insns: np.ndarray) -> int | None:
    """Ticks of a program by a clock that goes from event to event; None if it hangs."""
    queues: list[deque[int]] = [deque(), deque(), deque()]
    busy: list[tuple[int, int] | None] = [None, None, None]
    counts = [0, 0, 0, 0]
    fetched, now, modules = 0, 0, tokens.modules(insns).tolist()
    while True:
        moved = True
        while moved:
            moved = False
            while fetched < len(insns):
                module = modules[fetched]
                if len(queues[module]) >= chip.instruction_queue:
                    break
                queues[module].append(fetched)
                fetched, moved = fetched + 1, True
            for module in range(3):
                if busy[module] is not None or not queues[module]:
                    continue
                i = queues[module][0]
                flags = insns[i]["flags"]
                pops = [tokens.POPS_PREV[module]] if flags & Flag.POP_PREV else []
                pops += [tokens.POPS_NEXT[module]] if flags & Flag.POP_NEXT else []
                pops = [queue for queue in pops if queue >= 0]
                if all(counts[queue] > 0 for queue in pops):
                    for queue in pops:
                        counts[queue] -= 1
                    queues[module].popleft()
                    busy[module] = (now + ticks(chip, insns[i], module), i)
                    moved = True
        ends = [entry for entry in busy if entry is not None]
        if not ends:
            return None
        now = min(ends)[0]
        for module in range(3):
            entry = busy[module]
            if entry is None or entry[0] != now:
                continue
            if insns[entry[1]]["op"] == Opcode.FINISH:
                return now
            flags = insns[entry[1]]["flags"]
            for flag, queue in (
                (Flag.PUSH_PREV, tokens.PUSHES_PREV[module]),
                (Flag.PUSH_NEXT, tokens.PUSHES_NEXT[module]),
            ):
                if flags & flag and queue >= 0:
                    counts[queue] += 1
            busy[module] = None


def random_timing(rng: np.random.Generator) -> HlsTiming:
    return HlsTiming(**{name: int(rng.integers(1, 6000)) for name in RATES})


def test_random_programs_against_waiting_processes() -> None:
    rng = np.random.default_rng(7)
    hung = 0
    for number in range(300):
        chip = dataclasses.replace((PYNQ, WIDE)[number % 2], hls=random_timing(rng))
        chip = dataclasses.replace(chip, instruction_queue=int(rng.choice([2, 3, 512])))
        insns = insns_of(random_program(rng, chip, int(rng.integers(1, 60))))
        if number % 3 == 0:
            # Out of order, so that some pops come before their pushes, or for ever.
            order = rng.permutation(len(insns) - 1)
            insns = insns[np.r_[order, len(insns) - 1]]
        params = records.params(chip)
        expected = waiting(chip, insns)
        cycles, hang, _ = designs.simulate(insns, 0, params, records.nothing())
        assert bool(hang) == (expected is None)
        hung += hang
        if expected is not None:
            assert cycles == expected // TICKS
            total = np.zeros(1, hls.WORK)
            total.view(np.int64)[:] = hls.longest_path(insns, params)
            assert hls.ticks_of(total[0], params) == expected
    assert 0 < hung < 150


def test_the_longest_path_is_the_derivative() -> None:
    """A parameter that grows by a little makes a run longer by as much as it counts on the longest path."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        chip = dataclasses.replace(PYNQ, hls=random_timing(rng))
        insns = insns_of(random_program(rng, chip, 40))
        counts = dict(zip(hls.WORK.names or (), hls.longest_path(insns, records.params(chip)).tolist(), strict=True))
        before = waiting(chip, insns)
        assert before is not None and chip.hls is not None
        for name in RATES:
            more = dataclasses.replace(chip, hls=dataclasses.replace(chip.hls, **{name: getattr(chip.hls, name) + 1}))
            after = waiting(more, insns)
            assert after is not None and after >= before + counts[name]
            less = dataclasses.replace(chip, hls=dataclasses.replace(chip.hls, **{name: getattr(chip.hls, name) - 1}))
            after = waiting(less, insns)
            assert after is not None and after >= before - counts[name]
