"""Timing model against measured runs, and against a model that steps through the cycles."""

from __future__ import annotations

import dataclasses
from collections import deque
from pathlib import Path

import numpy as np
import pytest
from random_programs import ACCELERATORS, DE10, POPS, PUSHES, PYNQ, random_program, row

from oneshot_ml2.evaluation.replay import read_runs
from oneshot_ml2.vta import isa
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import MICRO_OP, Flag, Memory, Opcode, Program, element_bytes, insns_of
from oneshot_ml2.vta.timing import designs, records

DATA = Path(__file__).parent.parent / "data"


def words(*texts: str) -> np.ndarray:
    """Instructions written as w1_w0, as words, uint64 (n, 2)."""
    return np.array([[int(t.split("_")[1], 16), int(t.split("_")[0], 16)] for t in texts], np.uint64)


def timed(accelerator: Accelerator, insns: np.ndarray, address: int = 0x1000) -> designs.Timing:
    program = Program(accelerator, insns, np.empty(0, MICRO_OP), address, 0x8000, ())
    return designs.measure(program, trace=True, memory=True)


def intervals(result: designs.Timing, rows: list[int]) -> list[tuple[int, int]]:
    assert result.trace is not None
    return [(int(result.trace[i, 0]), int(result.trace[i, 1])) for i in rows]


NOP = "0000000000000000_0000000000000000"
END = "0000000000000000_0000000000000003"
T1 = words("1111000e000e000e_0000004000000140", "0000000000000000_0000000000000008", END)
T2 = words(
    "0000000900090001_0000000800000080",
    "1100000e000e0009_0000004000000140",
    "0000002a002a0001_0000008000000000",
    "0000001c000e0007_0000004000000180",
    "0040000200400001_000600700540000a",
    "0008b0020380080e_001c003800200004",
    "0005a00000000000_0002000805400044",
    "0000001c000e0007_0000040000000229",
    "0000000000000000_0000000000000010",
    END,
)


def t3() -> np.ndarray:
    program = [
        (0x0000000800080001, 0x0000008000000000),
        (0, 0x00020008010000A2),
        (0, 0x20),
    ]
    for it in range(6):
        b = it % 2
        program += [
            (0x0000004000400001, 0x0000004000000110 + it * 0x100000000 + b * 0x10000),
            (0x0000000800080001, 0x00000008000000C0 + it * 0x20000000 + b * 0x2000),
            (0x0040000202000008, 0x001000200100002A),
        ]
    program += [
        (0, 0x110),
        (0, 0x110),
        (0x0000900002000008, 0x0002002001000044),
        (0x0000002000200001, 0x0000040000000229),
        (0, 0x140),
        (0, 0x18),
        (0, 3),
    ]
    return np.array([[w0, w1] for w1, w0 in program], np.uint64)


@pytest.mark.parametrize("accelerator", [DE10, PYNQ])
def test_padded_load_vector(accelerator: Accelerator) -> None:
    result = timed(accelerator, isa.decode(T1, accelerator))
    assert result.cycles == 486
    assert intervals(result, [0, 2]) == [(29, 483), (486, 487)]


def test_mixed_vector() -> None:
    result = timed(DE10, isa.decode(T2, DE10))
    assert result.cycles == 3684
    assert intervals(result, [0, 1, 2, 3, 4, 5, 6, 7, 9]) == [
        (39, 374),
        (375, 882),
        (41, 113),
        (114, 1410),
        (1411, 3181),
        (3182, 3286),
        (3287, 3335),
        (3336, 3681),
        (3684, 3685),
    ]
    result = timed(PYNQ, isa.decode(T2, PYNQ))
    assert result.cycles == 3654
    assert intervals(result, [0, 1, 2, 3, 4, 5, 6, 7, 9]) == [
        (43, 374),
        (375, 1410),
        (45, 341),
        (342, 1158),
        (1411, 3181),
        (3182, 3286),
        (3287, 3335),
        (3336, 3651),
        (3654, 3655),
    ]


def test_double_buffering_vector() -> None:
    insns = isa.decode(t3(), DE10)
    assert len(insns) == 28
    assert timed(PYNQ, insns).cycles == 3104
    result = timed(DE10, insns)
    assert result.cycles == 3089
    gemms = [i for i in range(len(insns)) if insns["op"][i] == Opcode.GEMM]
    assert intervals(result, [0, *gemms, 23, 27, 24]) == [
        (39, 64),
        (65, 79),
        *[(526 + 430 * i, 788 + 430 * i) for i in range(6)],
        (2939, 2977),
        (3089, 3090),
        (2978, 3086),
    ]


@pytest.mark.parametrize(
    ("accelerator", "expected"),
    [
        (DE10, {0: 25, 1: 29, 2: 33, 7: 53, 8: 70, 9: 74, 16: 115, 17: 119, 50: 303, 200: 1150}),
        (PYNQ, {0: 25, 1: 29, 2: 33, 7: 53, 8: 57, 9: 61, 16: 89, 17: 93, 50: 225, 200: 718}),
        (dataclasses.replace(PYNQ, bus_bits=128), {0: 27, 1: 30, 8: 51, 50: 177, 200: 627, 256: 794}),
    ],
)
def test_finish_after_nops(accelerator: Accelerator, expected: dict[int, int]) -> None:
    for k, cycles in expected.items():
        insns = isa.decode(words(*[NOP] * k, END), accelerator)
        assert timed(accelerator, insns).cycles == cycles


def load(memory: int, y: int, x: int, stride: int, pads: tuple[int, int, int, int]) -> np.ndarray:
    return insns_of([row(Opcode.LOAD, 0, memory, 0, 0x400, y, x, stride, *pads), row(Opcode.FINISH)])


@pytest.mark.parametrize(
    ("shape", "pads", "cycles"),
    [
        ((14, 14, 14), (1, 1, 1, 1), 454),
        ((14, 14, 14), (1, 1, 0, 0), 429),
        ((28, 8, 28), (3, 3, 3, 3), 702),
        ((2, 2, 9), (15, 0, 0, 0), 45),
        ((1, 64, 64), (1, 1, 1, 1), 264),
        ((7, 7, 7), (1, 1, 1, 1), 132),
    ],
)
def test_isolated_padded_loads(shape: tuple[int, int, int], pads: tuple[int, int, int, int], cycles: int) -> None:
    insns = load(Memory.INP, *shape, pads)
    insns["flags"][:2] = Flag.PUSH_NEXT, Flag.POP_PREV
    ((start, end),) = intervals(timed(PYNQ, insns), [0])
    assert end - start == cycles


def test_whole_small_sram_load_ends_early() -> None:
    small = dataclasses.replace(PYNQ, log_inp_buff_size=14, isa_inp_bits=11)
    for elements, cycles in ((1024, 16), (1023, 2046 + 22)):
        insns = load(Memory.INP, 1, elements, elements, (0, 0, 0, 0))
        insns["flags"][:2] = Flag.PUSH_NEXT, Flag.POP_PREV
        ((start, end),) = intervals(timed(small, insns), [0])
        assert end - start == cycles


def test_tokens_saturate() -> None:
    """Of 300 pushes only 255 arrive while nobody pops: the 256th pop waits for ever."""

    def program(pops: int) -> np.ndarray:
        pushes = [row(Opcode.LOAD, Flag.PUSH_NEXT, Memory.INP)] * 300 + [
            row(Opcode.LOAD, Flag.PUSH_NEXT | Flag.POP_NEXT, Memory.INP)
        ]
        wait = [row(Opcode.LOAD, 0, Memory.UOP)] * 500 + [row(Opcode.LOAD, 0, Memory.UOP, 0, 0x400, 1, 4000, 4000)]
        return insns_of(
            [*pushes[:300], *wait, *[row(Opcode.LOAD, Flag.POP_PREV, Memory.UOP)] * pops, row(Opcode.FINISH)]
        )

    assert not timed(PYNQ, program(255)).hang
    assert timed(PYNQ, program(256)).hang


@pytest.mark.parametrize(("followers", "hang"), [(511, False), (512, True)])
def test_head_of_line_blocking(followers: int, hang: bool) -> None:
    insns = [
        row(Opcode.LOAD, Flag.POP_NEXT, Memory.INP),
        *[row(Opcode.LOAD, 0, Memory.INP)] * followers,
        row(Opcode.LOAD, Flag.PUSH_PREV, Memory.UOP),
        row(Opcode.FINISH),
    ]
    assert timed(PYNQ, insns_of(insns)).hang == hang


@pytest.mark.parametrize(
    "insns",
    [
        [row(Opcode.LOAD, Flag.POP_NEXT, Memory.INP), row(Opcode.LOAD, Flag.POP_PREV, Memory.UOP), row(Opcode.FINISH)],
        [row(Opcode.LOAD, 0, Memory.UOP, 0, 0x400, 0, 4, 4), row(Opcode.FINISH)],
        [row(Opcode.ALU, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 4, 1, 3), row(Opcode.FINISH)],
        [row(Opcode.LOAD, 0, 5, 0, 0x400, 1, 4, 4), row(Opcode.FINISH)],
        [row(7), row(Opcode.FINISH)],
        [row(Opcode.GEMM, 0, 0, 0, 1, 1, 1)],
    ],
)
def test_hangs_are_reported(insns: list[list[int]]) -> None:
    assert timed(PYNQ, insns_of(insns)).hang
    assert timed(dataclasses.replace(PYNQ, bus_bits=128), insns_of(insns)).hang


def test_zero_extent_runs_the_counter_around() -> None:
    insns = insns_of([row(Opcode.GEMM, 0, 0, 0, 1, 0, 1), row(Opcode.GEMM, 0, 0, 3, 3, 1, 1), row(Opcode.FINISH)])
    assert timed(PYNQ, insns).cycles == 25 + 3 * 2 + 2 * (16384 + 7) - 2


@pytest.mark.parametrize("name", sorted(path.name for path in DATA.glob("rtl_*.h5")))
def test_measured_runs(name: str) -> None:
    runs = read_runs(DATA / name)
    p = records.params(runs.accelerator)
    for run in range(len(runs)):
        trace = np.empty((len(runs.program(run)), 2), np.int64)
        cycles, hang, _ = designs.simulate(
            runs.program(run), runs.insn_address[run], p, records.nothing()._replace(trace=trace)
        )
        assert (cycles, hang) == (runs.cycles[run], runs.hang[run])
        np.testing.assert_array_equal(trace, runs.expected_trace(run))


class Loader:
    """A read client's instruction in flight in the stepping model."""

    def __init__(self, model: Stepper, insn: list[int], start: int) -> None:
        a = model.accelerator
        _, _, memory, _, dram, y, x, stride, top, bottom, left, right = insn[:12]
        size = element_bytes(a)[memory]
        self.narrow = size > a.bus_bytes
        depth = (a.uop_depth, a.wgt_depth, a.inp_depth, a.acc_depth)[memory]
        self.modulo = depth * size // a.bus_bytes if self.narrow else 1 << 40
        self.commands: deque[int] = deque()
        for r in range(y):
            word = (dram + r * stride) * size // a.bus_bytes
            end = -(-((dram + r * stride + x) * size) // a.bus_bytes)
            while word < end:
                n = min(end - word, a.burst_beats - word % a.burst_beats)
                self.commands.append(n)
                word += n
        self.first = start + 1 + top
        self.outstanding = 0
        self.pad_from = start + (2 if self.narrow else 1)
        width = left + x + right
        self.pads = ["z"] * (top * width)
        for _ in range(y):
            self.pads += ["z"] * (left + right) if left + right else ["s"] * (bottom > 0)
        self.pads += ["z"] * (bottom * width)
        self.pads.reverse()


class Stepper:
    """The rules of docs/hardware.md, Time, cycle by cycle, for small programs."""

    def __init__(self, accelerator: Accelerator, insns: list[list[int]], address: int) -> None:
        self.accelerator = accelerator
        self.insns = insns
        self.address = address
        # Instruction -> cycle of entering its queue; cycle -> client whose beat is on the read channel.
        self.queued: dict[int, int] = {}
        self.channel: dict[int, int] = {}

    def store_cycles(self, insn: list[int]) -> int:
        a = self.accelerator
        size, x = a.inp_bytes, insn[6]
        total = 0
        for r in range(insn[5]):
            word = (insn[4] + r * insn[7]) * size // a.bus_bytes
            end = -(-((insn[4] + r * insn[7] + x) * size) // a.bus_bytes)
            while word < end:
                n = min(end - word, a.burst_beats - word % a.burst_beats)
                total += n + (-(-n // max(1, a.block // a.bus_bytes)) + 3 if size > a.bus_bytes else 4)
                word += n
        return total

    def run(self, limit: int = 300_000) -> tuple[int, list[list[int]]]:
        a = self.accelerator
        n = len(self.insns)
        trace = [[-1, -1] for _ in range(n)]
        queues: list[deque[tuple[int, int]]] = [deque(), deque(), deque()]
        tokens = [0, 0, 0, 0]
        running: list[list[int] | None] = [None, None, None]  # [instruction, last cycle or -1]
        loaders: dict[int, tuple[Loader, int]] = {}
        slots: dict[int, tuple[int, int]] = {}  # client -> (beats, cycle of filling)
        fifo: deque[tuple[int, int, int]] = deque()  # (client, beats, cycle of sending)
        tags = 16
        counter = 0
        burst: tuple[int, int, int] | None = None  # (client, taken, beats)
        seen: deque[tuple[int, int, bool]] = deque()  # beats on the channel: (cycle, client, last)
        wide = a.bus_bits > 64
        fetched = 0
        chunk_words: deque[int] = deque()
        chunk_end = 0
        beats_left = 0
        command_at = 1
        requested = False
        ready_from = 1 << 60
        piped = 0
        pipe: deque[tuple[int, int]] = deque()
        for k in range(limit):
            # State at the start of the cycle decides everything; changes are applied after.
            on_channel = burst is not None and burst[1] < k <= burst[1] + burst[2]
            last_beat = on_channel and burst is not None and k == burst[1] + burst[2]
            free_tags = tags
            if on_channel and burst is not None:
                seen.append((k, burst[0], last_beat))
                self.channel[k] = burst[0]
            if last_beat:
                tags += 1
            visible = bool(fifo) and fifo[0][2] < k
            if visible and counter == a.memory_latency and (burst is None or k >= burst[1] + burst[2]):
                client, beats, _ = fifo.popleft()
                burst = (client, k, beats)
            counter = min(counter + 1, a.memory_latency) if visible else 0
            filled = set(slots)
            if free_tags > 0 and not last_beat:
                for client in sorted(slots):
                    if slots[client][1] < k:
                        fifo.append((client, slots[client][0], k))
                        del slots[client]
                        tags -= 1
                        break
            written = {client for cycle, client, _ in seen if cycle == k - (2 if self.is_narrow(client) else 1)}
            seen = deque(item for item in seen if item[0] >= k - 1)
            # Tokens and queues as they are at the start of the cycle.
            start_tokens = list(tokens)
            room = [len(queue) < a.instruction_queue for queue in queues]
            gained = [0, 0, 0, 0]
            for client, (loader, module) in list(loaders.items()):
                state = running[module]
                assert state is not None
                if not loader.commands and loader.outstanding % loader.modulo == 0 and not loader.pads:
                    state[1] = k
                    del loaders[client]
                    continue
                if client in written:
                    loader.outstanding -= 1
                if k >= loader.first and loader.commands and client not in filled:
                    beats = loader.commands.popleft()
                    slots[client] = (beats, k)
                    loader.outstanding += beats
                if loader.pads and k >= loader.pad_from and (loader.pads[-1] == "s" or client not in written):
                    loader.pads.pop()
            for m in range(3):
                state = running[m]
                if state is not None:
                    if state[1] == k:
                        flags = self.insns[state[0]][1]
                        trace[state[0]][1] = k + 1
                        for bit, token in PUSHES[m]:
                            gained[token] += bool(flags & bit)
                        queues[m].popleft()
                        running[m] = None
                        if self.insns[state[0]][0] == Opcode.FINISH:
                            return k, trace
                    continue
                if not queues[m] or queues[m][0][1] >= k:
                    continue
                index = queues[m][0][0]
                insn = self.insns[index]
                needed = [token for bit, token in POPS[m] if insn[1] & bit]
                if all(start_tokens[token] > 0 for token in needed):
                    for token in needed:
                        gained[token] -= 1
                    trace[index][0] = k + 1
                    running[m] = [index, self.start(insn, k, m, loaders)]
            for token in range(4):
                tokens[token] = min(tokens[token] + gained[token], 255)
            # Fetch.
            if not requested and fetched < n and k >= command_at:
                count = min(a.burst_beats if wide else a.burst_beats // 2, n - fetched)
                if wide:
                    word = (self.address + 16 * fetched) // a.bus_bytes
                    end = -(-(self.address + 16 * (fetched + count)) // a.bus_bytes)
                    chunk_words = deque()
                    while word < end:
                        beats = min(end - word, a.burst_beats - word % a.burst_beats)
                        chunk_words.append(beats)
                        word += beats
                else:
                    chunk_words = deque([2 * count])
                beats_left = sum(chunk_words)
                chunk_end = fetched + count
                requested = True
            if requested and chunk_words and 0 not in filled:
                slots[0] = (chunk_words.popleft(), k)
            if requested and any(cycle == k - 1 and client == 0 for cycle, client, _ in seen):
                beats_left -= 1
                if beats_left == 0:
                    ready_from = k + (3 if wide else 1)
            if wide:
                space = len(pipe) < 2
                if pipe and pipe[0][1] < k and room[self.module(pipe[0][0])]:
                    index = pipe.popleft()[0]
                    queues[self.module(index)].append((index, k))
                    self.queued[index] = k
                if k >= ready_from and piped < chunk_end and space:
                    pipe.append((piped, k))
                    piped += 1
                    if piped == chunk_end:
                        fetched, requested, command_at, ready_from = chunk_end, False, k + 3, 1 << 60
            elif k >= ready_from and room[self.module(piped)]:
                queues[self.module(piped)].append((piped, k))
                self.queued[piped] = k
                piped += 1
                if piped == chunk_end:
                    fetched, requested, command_at, ready_from = chunk_end, False, k + 2, 1 << 60
        return -1, trace

    def is_narrow(self, client: int) -> bool:
        a = self.accelerator
        sizes = element_bytes(a)
        return client > 0 and sizes[{1: Memory.UOP, 2: Memory.INP, 3: Memory.WGT, 4: Memory.ACC}[client]] > a.bus_bytes

    def module(self, index: int) -> int:
        op, _, memory = self.insns[index][:3]
        return 2 if op == Opcode.STORE else 0 if op == Opcode.LOAD and memory in (Memory.INP, Memory.WGT) else 1

    def start(self, insn: list[int], k: int, m: int, loaders: dict[int, tuple[Loader, int]]) -> int:
        op = insn[0]
        if op in (Opcode.GEMM, Opcode.ALU):
            operations = insn[5] * insn[6] * (insn[4] - insn[3])
            return k + operations * (2 if op == Opcode.ALU and not insn[12] else 1) + 6
        if op == Opcode.FINISH or insn[6] == 0:
            return k + 1
        if op == Opcode.STORE:
            return k + self.store_cycles(insn)
        loaders[{Memory.UOP: 1, Memory.INP: 2, Memory.WGT: 3, Memory.ACC: 4}[insn[2]]] = (Loader(self, insn, k), m)
        return -1


@pytest.mark.parametrize("accelerator", ACCELERATORS, ids=range(len(ACCELERATORS)))
def test_random_programs_against_stepping(accelerator: Accelerator) -> None:
    rng = np.random.default_rng(7)
    for _ in range(6):
        insns = random_program(rng, accelerator, int(rng.integers(5, 40)))
        address = 0x1000 + 16 * int(rng.integers(0, 3))
        stepper = Stepper(accelerator, insns, address)
        cycles, trace = stepper.run()
        result = timed(accelerator, insns_of(insns), address)
        assert result.hang == (cycles < 0)
        if result.hang:
            continue
        assert result.cycles == cycles
        expected = np.array(trace)
        assert result.trace is not None
        # Which half of an instruction that FINISH overtakes is still seen does not matter.
        over = (expected < 0) | (expected > cycles)
        np.testing.assert_array_equal(np.where(over, 0, result.trace), np.where(over, 0, expected))
        # Without a recording, and what is recorded.
        assert designs.simulate(insns_of(insns), address, records.params(accelerator), records.nothing())[0] == cycles
        assert result.queued is not None and result.bursts is not None
        queued = {i: int(at) for i, at in enumerate(result.queued) if 0 <= at < cycles}
        assert queued == {i: at for i, at in stepper.queued.items() if at < cycles}
        channel = {
            cycle: int(burst["client"])
            for burst in result.bursts
            for cycle in range(burst["taken"] + 1, burst["taken"] + 1 + burst["beats"])
            if cycle < cycles
        }
        assert channel == {at: client for at, client in stepper.channel.items() if at < cycles}
