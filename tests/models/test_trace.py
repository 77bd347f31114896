"""Traces: every cycle of a row is told once, waits end with what they name, and the file keeps the format's rules."""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RunCommand
from random_programs import ACCELERATORS, PYNQ, random_program, row

from oneshot_ml2.models import trace
from oneshot_ml2.network import picking
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta import program as G
from oneshot_ml2.vta import timeline
from oneshot_ml2.vta import tokens as queues
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import MICRO_OP, Flag, Memory, Opcode, Program, insns_of
from oneshot_ml2.vta.timing import designs
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.epilogue import Epilogue

WORKLOAD = Conv2d(1, 32, 10, 10, 32, 3, 3, 1, 1, 1, Epilogue(bias=True, shift=8, clip=(0, 127)))
TOML = """[[workload]]
name = "first"
op = "dense"
n = 1
c = 32
k = 48

[[workload]]
name = "second"
op = "conv2d"
n = 1
c = 16
h = 6
w = 6
k = 16
r = 3
s = 3
padding = [1, 1, 1, 1]
"""


def program_of(accelerator: Accelerator, insns: list[list[int]], address: int = 0x1000) -> Program:
    return Program(accelerator, insns_of(insns), np.empty(0, MICRO_OP), address, 0x8000, ())


def legal(space: ScheduleSpace) -> int:
    index = int(picking.legal_by_estimate(space, 1)[0])
    assert index is not None
    return index


def conv_program() -> Program:
    space = ScheduleSpace(WORKLOAD, PYNQ)
    return space.lower(legal(space))


def check(program: Program) -> timeline.Timeline:
    """All that holds for the timeline of any program."""
    line = timeline.timeline(program)
    timed = designs.measure(program, trace=True, memory=True)
    assert timed.trace is not None and timed.queued is not None and timed.bursts is not None
    assert (line.cycles, line.hang) == (timed.cycles, timed.hang)
    outer: dict[int, list[timeline.Slice]] = defaultdict(list)
    inner: dict[int, list[timeline.Slice]] = defaultdict(list)
    for piece in line.slices:
        assert 0 <= piece.start < piece.end <= line.cycles
        (inner if piece.inner else outer)[piece.row].append(piece)
    for r, pieces in outer.items():
        assert all(a.end <= b.start for a, b in itertools.pairwise(pieces))
        if r <= timeline.Row.STORE:
            # Waits fill the gaps.
            assert sum(piece.end - piece.start for piece in pieces) == line.cycles, timeline.ROWS[r]
    for r, pieces in inner.items():
        assert all(a.end <= b.start for a, b in itertools.pairwise(pieces))
        for piece in pieces:
            assert sum(o.start <= piece.start and piece.end <= o.end for o in outer[r] if o.kind == timeline.WORK) == 1

    # Every instruction that is issued before the end is there once, with its cycles.
    modules = 1 + queues.modules(program.insns)
    there = {}
    for r in (timeline.Row.LOAD, timeline.Row.COMPUTE, timeline.Row.STORE):
        for piece in outer[r]:
            if piece.kind == timeline.WORK:
                assert piece.args["instruction"] not in there
                there[piece.args["instruction"]] = piece
    issued = np.flatnonzero((timed.trace[:, 0] >= 0) & (timed.trace[:, 0] <= line.cycles - line.hang))
    assert set(there) == set(issued.tolist())
    for i, piece in there.items():
        start, done = timed.trace[i].tolist()
        assert (piece.row, piece.start) == (modules[i], start - 1)
        assert piece.end == min(done if done >= 0 else line.cycles, line.cycles)

    # A wait ends when what it names is there, and that is what came last.
    for r in (timeline.Row.LOAD, timeline.Row.COMPUTE, timeline.Row.STORE):
        for before, piece in zip([None, *outer[r]], outer[r]):
            if piece.kind != timeline.WAIT:
                continue
            insn = piece.args["for"]
            tokens = [piece.args[k] for k in piece.args if k.startswith("token from")]
            if piece.end < line.cycles or insn in there:
                assert piece.end == there[insn].start
                came = max([int(timed.queued[insn]) + 1, *tokens])
                assert piece.end == max(came, before.end if before else 0)
            if piece.name == timeline.WAIT_INSTRUCTION:
                assert insn not in there or piece.end == timed.queued[insn] + 1
            else:
                giver = piece.name.removeprefix("waits for a token from ")
                came = piece.args[f"token from {giver}"]
                assert came == piece.end if insn in there else came == "never" or came >= line.cycles
    # Fetch waits for room only if there is none.
    for piece in outer[timeline.Row.FETCH]:
        if piece.name.startswith("waits for room"):
            module = modules[piece.args["for"]]
            mine = np.flatnonzero((modules == module) & (timed.queued >= 0) & (timed.queued < piece.start))
            done = timed.trace[mine, 1]
            waiting = int(np.count_nonzero((done < 0) | (done > piece.start)))
            assert waiting >= program.accelerator.instruction_queue - 1
        if piece.name == "DISPATCH":
            first, count = piece.args["first instruction"], piece.args["instructions"]
            times = timed.queued[first : first + count]
            assert piece.start == times[0] and times[-1] + 1 >= piece.end
    # What the port carries.
    carried = sum(piece.end - piece.start for piece in outer[timeline.Row.READ] if piece.kind == timeline.WORK)
    starts = timed.bursts["taken"] + 1
    ends = np.minimum(starts + timed.bursts["beats"], line.cycles)
    assert carried == np.maximum(ends - starts, 0).sum()
    totals = line.totals()
    assert all(sum(totals[name].values()) == line.cycles for name in timeline.ROWS[: timeline.Row.READ])
    return line


def test_every_cycle_of_the_hls_design_belongs_to_a_slice() -> None:
    program = dataclasses.replace(conv_program(), accelerator=Accelerator.load("pynq-hls"))
    line, timed = timeline.timeline(program), designs.measure(program, trace=True)
    assert (line.cycles, line.hang) == (timed.cycles, False)
    totals = line.totals()
    for name in ("fetch", "load", "compute", "store"):
        assert sum(totals[name].values()) == timed.cycles
    insns = program.insns
    assert timed.trace is not None
    rows = sum(p.args["rows"] for p in line.slices if timeline.ROWS[p.row] == "memory read")
    assert rows == insns["y"][(insns["op"] == Opcode.LOAD) & np.isin(insns["mem"], (1, 2))].sum()
    for piece in line.slices:
        if piece.kind == timeline.WORK and timeline.ROWS[piece.row] in ("load", "compute", "store"):
            start, end = timed.trace[piece.args["instruction"]].tolist()
            assert (piece.start, piece.end) == (start, end if end >= 0 else timed.cycles)


@pytest.mark.parametrize("accelerator", ACCELERATORS, ids=range(len(ACCELERATORS)))
def test_random_programs(accelerator: Accelerator) -> None:
    rng = np.random.default_rng(11)
    for length in (0, 5, 40, 120):
        check(program_of(accelerator, random_program(rng, accelerator, length), 0x1000 + 16 * (length % 3)))


def test_a_whole_layer() -> None:
    line = check(conv_program())
    totals = line.totals()
    assert {"GEMM", "GEMM reset", "ALU SHR", "ALU MIN", "ALU MAX", "FINISH"} <= set(totals["compute"])
    assert {"LOAD INP", "LOAD WGT"} <= set(totals["load"])
    assert "STORE OUT" in totals["store"]
    assert {"fetch", "UOP", "INP", "WGT"} <= set(totals["memory read"])
    (finish,) = (piece for piece in line.slices if piece.name == "FINISH")
    assert finish.end == line.cycles
    shift = next(piece for piece in line.slices if piece.name == "ALU SHR")
    assert shift.args["immediate"] == 8
    load = next(piece for piece in line.slices if piece.name == "LOAD INP")
    assert {"sram", "dram", "y", "x", "stride", "bytes"} <= set(load.args)


def test_a_program_that_hangs_says_what_it_waits_for() -> None:
    gemm = row(Opcode.GEMM, Flag.POP_PREV, 0, 0, 1, 1, 1)
    line = check(program_of(PYNQ, [row(Opcode.LOAD, 0, Memory.INP, 0, 64, 1, 8, 8), gemm, row(Opcode.FINISH)]))
    assert line.hang
    (wait,) = (piece for piece in line.slices if piece.row == timeline.Row.COMPUTE)
    assert (wait.name, wait.end, wait.args["token from load"]) == (
        "waits for a token from load", line.cycles, "never",
    )  # fmt: skip


def test_the_wait_for_the_memory_port_is_what_contention_costs() -> None:
    """A LOAD of biases behind one of weights takes so much longer than alone as it says it waits."""

    def biases(insns: list[list[int]]) -> timeline.Slice:
        line = check(program_of(PYNQ, [*insns, row(Opcode.LOAD, 0, Memory.ACC, 0, 4096, 3, 8, 8), row(Opcode.FINISH)]))
        return next(piece for piece in line.slices if piece.name == "LOAD ACC")

    alone = biases([row(Opcode.LOAD, 0, Memory.WGT)])
    assert timeline.WAIT_PORT not in alone.args
    behind = biases([row(Opcode.LOAD, 0, Memory.WGT, 0, 64, 1, 40, 40)])
    assert behind.args["execution cycles"] - alone.args["execution cycles"] == behind.args[timeline.WAIT_PORT] > 500


def test_layers_of_a_joined_program() -> None:
    """The first layer ends with its NOP, whatever else runs by then; a layer alone is cut out of the program."""
    insns = [
        row(Opcode.LOAD, 0, Memory.UOP, 0, 0x2000, 1, 4, 4),
        row(Opcode.LOAD, Flag.PUSH_NEXT, Memory.INP, 0, 64, 1, 30, 30),
        row(Opcode.GEMM, Flag.POP_PREV | Flag.PUSH_NEXT, 0, 0, 4, 5, 5),
        row(Opcode.STORE, Flag.POP_PREV | Flag.PUSH_PREV, Memory.OUT, 0, 512, 1, 8, 8),
        row(Opcode.LOAD, Flag.POP_NEXT | Flag.PUSH_PREV, Memory.UOP),
        row(Opcode.LOAD, 0, Memory.UOP, 0, 0x2400, 1, 4, 4),
        row(Opcode.LOAD, Flag.POP_NEXT | Flag.PUSH_NEXT, Memory.INP, 0, 64, 1, 30, 30),
        row(Opcode.GEMM, Flag.POP_PREV, 0, 0, 4, 5, 5),
        row(Opcode.FINISH),
    ]
    uops = np.zeros(0x1400 // 4, MICRO_OP)
    buffers = (G.Buffer("0.uops", Memory.UOP, 0x8000, 4), G.Buffer("1.uops", Memory.UOP, 0x9000, 4))
    program = Program(PYNQ, insns_of(insns), uops, 0x1000, 0x8000, buffers)
    line = check(program)
    entry = trace.part(line, program, ("a", "b"))
    timed = designs.measure(program, trace=True)
    assert timed.trace is not None
    middle = int(timed.trace[4, 1])
    assert entry.layers == (("a", 0, middle), ("b", middle, line.cycles))
    second = line.cut(middle, line.cycles)
    assert sum(second.totals()["compute"].values()) == second.cycles == line.cycles - middle
    events = trace.trace_events("x", 100, [trace.Part(second, (("b", middle, line.cycles),))])
    check_events(events, second.cycles * 10)
    check_events(trace.trace_events("x", 100, [entry]), line.cycles * 10)


@pytest.mark.parametrize("mhz", [1, 100, 142.8, 300, 333.3, 1500])
def test_time_stamps_survive_perfettos_conversion(mhz: float) -> None:
    cycles = np.arange(0, 3_000_000, 7)
    read = (trace.microseconds(cycles, mhz) * 1000.0).astype(np.int64)
    assert np.array_equal(read, np.rint(cycles * 1000 / mhz).astype(np.int64))


def check_events(events: list[dict[str, Any]], end_ns: int) -> None:
    """The rules of the Chrome trace event format for complete and metadata events, times read as Perfetto does."""
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert list(names.values()) == ["layer", *timeline.ROWS]
    rows: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for event in events:
        assert isinstance(event["name"], str) and event["ph"] in ("X", "M")
        assert type(event["pid"]) is int and type(event["tid"]) is int and isinstance(event["args"], dict)
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name", "thread_sort_index")
            continue
        assert event["tid"] in names and event["cat"] in ("layer", "instruction", "wait")
        assert type(event["ts"]) is float and type(event["dur"]) is float
        begin = int(event["ts"] * 1000.0)
        rows[event["tid"]].append((begin, begin + int(event["dur"] * 1000.0)))
    for tid, spans in rows.items():
        # On a thread, slices lie within one another or apart.
        ends = [1 << 62]
        for begin, end in sorted(spans, key=lambda span: (span[0], -span[1])):
            assert 0 <= begin <= end
            while ends[-1] <= begin:
                ends.pop()
            assert end <= ends[-1], names[tid]
            ends.append(end)
    for tid, name in names.items():
        if name in ("layer", *timeline.ROWS[: timeline.Row.READ]):
            assert max(end for _, end in rows[tid]) == end_ns


@pytest.mark.parametrize("mhz", [100, 333])
def test_the_file_keeps_the_rules_of_its_format(mhz: float) -> None:
    accelerator = dataclasses.replace(PYNQ, clock_mhz=mhz)
    first, second = timeline.timeline(conv_program()), timeline.timeline(program_of(PYNQ, [row(Opcode.FINISH)]))
    content = json.loads(
        trace.document(
            'a "model"',
            accelerator,
            [
                trace.Part(first, (("first", 0, first.cycles),)),
                trace.Part(second, (("second </layer>", 0, second.cycles),)),
            ],
        )
    )
    assert content["displayTimeUnit"] == "ns"
    assert content["otherData"]["cycles"] == first.cycles + second.cycles
    events = content["traceEvents"]
    check_events(events, round((first.cycles + second.cycles) * 1000 / mhz))
    layers = [event for event in events if event.get("cat") == "layer"]
    assert [event["name"] for event in layers] == ["first", "second </layer>"]
    assert layers[1]["ts"] == pytest.approx(first.cycles / mhz, abs=1e-3)
    assert len(events) == 1 + 2 * 7 + 2 + len(first.slices) + len(second.slices)


# The command -------------------------------------------------------------------------------------
@pytest.fixture
def workloads(tmp_path: Path) -> Path:
    (tmp_path / "w.toml").write_text(TOML)
    return tmp_path / "w.toml"


def knobs(workloads: Path) -> str:
    from oneshot_ml2.workload.lists import read_layers

    space = ScheduleSpace(read_layers(workloads)[1].workload, PYNQ)
    return str(space.schedule(legal(space)))


def test_a_workload_with_a_given_schedule(workloads: Path, tmp_path: Path, run_command: RunCommand) -> None:
    argv = ("trace", "--workload", workloads, "--layer", "second", "--schedule", knobs(workloads))
    code, out, err = run_command(*argv, "-o", tmp_path / "t.json")
    assert (code, err) == (0, "")
    assert "w on pynq:" in out and "second" in out
    content = json.loads((tmp_path / "t.json").read_text())
    check_events(content["traceEvents"], content["otherData"]["cycles"] * 10)
    code, out, _ = run_command(*argv, "-o", tmp_path / "t.json.gz", "--json")
    assert code == 0
    (layer,) = json.loads(out)["layers"]
    assert layer["cycles"] == content["otherData"]["cycles"] == sum(layer["rows"]["compute"].values())
    assert json.loads(gzip.decompress((tmp_path / "t.json.gz").read_bytes())) == content


def test_a_raw_program(tmp_path: Path, run_command: RunCommand) -> None:
    from oneshot_ml2.vta import isa

    program = conv_program()
    (tmp_path / "p.bin").write_bytes(isa.to_bytes(isa.encode(program.insns, PYNQ)))
    code, out, _ = run_command(
        "trace", tmp_path / "p.bin", "--accelerator", "pynq", "--address", str(program.insn_address),
        "-o", tmp_path / "t.json", "--json",
    )  # fmt: skip
    assert code == 0
    assert json.loads(out)["layers"][0]["cycles"] == designs.measure(program).cycles


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ((), "give the folder"),
        (("resnet18", "--workload", "W"), "one of them"),
        (("nonsense",), "nonsense"),
        (("--workload", "none.toml"), "none.toml"),
        (("--workload", "W", "--layer", "thrid"), "There are: first, second"),
        (("--workload", "W", "--schedule", "tile_co=1"), "for one layer"),
        (("--workload", "W", "--layer", "first", "--schedule", "tile_co"), "write it as"),
        (("--workload", "W", "--layer", "first", "--schedule", "tile_co=1"), "its knobs are"),
        (("--workload", "W", "-o", "trace.txt"), ".json.gz"),
        (("--workload", "W", "-o", "nowhere/trace.json"), "no folder nowhere"),
        ((".",), "no compiled model"),
    ],
)
def test_what_is_refused(
    argv: tuple[str, ...], says: str, workloads: Path, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workloads.parent)
    code, out, err = run_command("trace", *(str(workloads) if arg == "W" else arg for arg in argv))
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert says in err
    assert not list(workloads.parent.glob("*.json*"))
