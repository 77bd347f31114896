"""Dependency tokens: every submission leaves its queues empty, and the simulators tell of one that does not."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from programs import ACCELERATORS, module
from random_programs import POPS, row

from oneshot_ml2.commands import inspect as inspect_command
from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.devices.registry import open_device
from oneshot_ml2.models.runtime import LayerProgram
from oneshot_ml2.spaces.autotvm import space as autotvm
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta import image, isa, packing, simulator, tokens
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import Flag, Memory, Opcode, Program, element_bytes, insns_of
from oneshot_ml2.vta.reasons import Reason
from oneshot_ml2.vta.timing import designs
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.drawn import random_workload
from oneshot_ml2.workload.epilogue import Epilogue, Tensors

PYNQ = Accelerator.load("pynq")
# A schedule of TVM's template without virtual threads, and of several output tiles.
LAYER = Conv2d(1, 32, 8, 8, 32, 3, 3, padding=1)
VALUES = np.array([1, 4, 8, 1, 1, 1, 1])


def template_workload(rng: np.random.Generator, chip: Accelerator) -> Conv2d:
    """A small convolution that TVM's template can express."""
    kernel, size = int(rng.choice([1, 3])), int(rng.integers(4, 9))
    channels = [chip.block * int(rng.integers(1, 4)) for _ in range(2)]
    return Conv2d(
        chip.batch * int(rng.integers(1, 3)), channels[0], size, size, channels[1], kernel, kernel,
        stride=int(rng.integers(1, 3)), padding=kernel // 2, epilogue=Epilogue(),
    )  # fmt: skip


def programs_of(kind: str, rng: np.random.Generator, count: int) -> list[tuple[Workload, Program]]:
    """Valid random programs of random tasks, each with its task."""
    found: list[tuple[Workload, Program]] = []
    while len(found) < count:
        chip = ACCELERATORS[int(rng.integers(len(ACCELERATORS)))]
        workload = random_workload(rng) if kind == "full" else template_workload(rng, chip)
        space = ScheduleSpace(workload, chip, kind)
        indices = rng.integers(0, len(space), 200)
        good = indices[space.validity(indices) == Reason.VALID][:3]
        found += [(workload, space.lower(int(index))) for index in good]
    return found[:count]


def as_tvm_ends() -> Program:
    """A program that leaves a token: FINISH without the pop that TVM's run time carries into its next submission."""
    program = autotvm.lower(LAYER, PYNQ, VALUES)
    insns = program.insns.copy()
    assert insns["op"][-1] == Opcode.FINISH and insns["flags"][-1] == Flag.POP_NEXT
    insns["flags"][-1] = 0
    return dataclasses.replace(program, insns=insns)


@pytest.mark.parametrize("kind", ["full", "autotvm"])
def test_no_program_leaves_a_token(kind: str) -> None:
    for workload, program in programs_of(kind, np.random.default_rng(4), 150):
        assert tokens.left(program.insns) == (0, 0, 0, 0), workload
        assert tokens.runs_in_order(program.insns), workload


def test_whole_spaces_of_the_template_leave_no_token() -> None:
    for workload in (LAYER, Conv2d(2, 32, 6, 6, 64, 1, 1), Conv2d(1, 16, 4, 4, 16, 1, 1, epilogue=Epilogue(shift=0))):
        space = ScheduleSpace(workload, PYNQ, "autotvm")
        indices = np.arange(len(space))
        outcome = space.measure(indices)
        valid = indices[outcome.reason == Reason.VALID]
        assert len(valid) > 2
        for insns in autotvm.programs(workload, PYNQ, space.values(valid)):
            assert tokens.runs_in_order(insns)


def test_taking_the_last_token_costs_nothing() -> None:
    """So the measured cycles are those of the program that is handed out, and TVM's."""
    rng, compared = np.random.default_rng(6), 0
    for workload, program in programs_of("autotvm", rng, 200):
        if not program.insns["flags"][-1]:
            continue
        insns = program.insns.copy()
        insns["flags"][-1] = 0
        before, after = designs.measure(dataclasses.replace(program, insns=insns)), designs.measure(program)
        assert dataclasses.replace(before, tokens_left=(0, 0, 0, 0)) == after, workload
        assert before.tokens_left == (0, 0, 0, 1)
        compared += 1
    assert compared > 50


def test_a_token_that_is_left_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program, sound = as_tvm_ends(), autotvm.lower(LAYER, PYNQ, VALUES)
    tensors = LAYER.random_inputs(np.random.default_rng(0))
    dram = image.dram_image(program, LAYER, tensors)
    before = dram.copy()
    with pytest.raises(OneShotError, match=r"queues empty \(1 store-to-compute\)") as caught:
        simulator.run(program, dram)
    assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(dram, before)
    with pytest.raises(OneShotError, match="store-to-compute"):
        LayerProgram("layer", program, (), (), {}).place(dram)
    timed = designs.measure(program)
    assert timed.tokens_left == (0, 0, 0, 1) and not timed.hang and not timed.ends_cleanly
    assert designs.measure(sound).ends_cleanly
    for spec in ("sim", "perturbed:slow-memory"):
        bad, good = open_device(spec).measure([program, sound])
        assert (bad.valid, bad.reason, bad.cycles) == (False, Reason.DEADLOCK, -1)
        assert good.valid and good.cycles > 0
    raw = tmp_path / "program.bin"
    raw.write_bytes(isa.to_bytes(isa.encode(program.insns, PYNQ)))
    parser = argparse.ArgumentParser()
    inspect_command.add_arguments(parser)
    words = [str(raw), "--accelerator", "pynq", "--timing"]
    assert inspect_command.run(parser.parse_args(words)) == 0
    assert capsys.readouterr().out.endswith("leaves tokens for the next program: 1 store-to-compute\n")
    assert inspect_command.run(parser.parse_args([*words, "--json"])) == 0
    assert json.loads(capsys.readouterr().out)["tokens_left"]["store-to-compute"] == 1


def test_what_is_left_is_counted_up_to_finish() -> None:
    end, everything = row(Opcode.FINISH), Flag.POP_PREV | Flag.POP_NEXT | Flag.PUSH_PREV | Flag.PUSH_NEXT
    for rows, left in (
        (
            [row(Opcode.LOAD, Flag.PUSH_NEXT, Memory.INP), row(Opcode.LOAD, Flag.PUSH_NEXT, Memory.WGT), end],
            (2, 0, 0, 0),
        ),
        (
            [
                row(Opcode.LOAD, Flag.PUSH_PREV, Memory.UOP),
                row(Opcode.GEMM, Flag.PUSH_PREV),
                row(Opcode.LOAD, Flag.POP_NEXT, Memory.WGT),
            ],
            (0, 1, 0, 0),
        ),
        ([row(Opcode.ALU, Flag.PUSH_NEXT), row(Opcode.FINISH, Flag.PUSH_NEXT)], (0, 0, 2, 0)),
        ([end, row(Opcode.STORE, Flag.PUSH_PREV)], (0, 0, 0, 0)),
        ([row(Opcode.LOAD, Flag.POP_NEXT, Memory.INP), row(Opcode.STORE, Flag.POP_PREV), end], (0, -1, -1, 0)),
        # The load module has no queue before it, the store module none after it.
        ([row(Opcode.LOAD, everything, Memory.INP), row(Opcode.STORE, everything), end], (1, -1, -1, 1)),
    ):
        assert tokens.left(insns_of(rows)) == left
    assert not tokens.runs_in_order(insns_of([row(Opcode.LOAD, Flag.PUSH_PREV, Memory.INP), end]))
    with pytest.raises(OneShotError, match="-1 compute-to-store"):
        tokens.check_submission(insns_of([row(Opcode.STORE, Flag.POP_PREV), end]))


# --- one program after the other, without a reset between -----------------------------------------------------------
def moved(program: Program, by: int) -> NDArray[np.int64]:
    """The instructions, with everything in DRAM ``by`` bytes further on."""
    insns = program.insns.copy()
    rows = np.flatnonzero(np.isin(insns["op"], (Opcode.LOAD, Opcode.STORE)) & (insns["x"] > 0))
    insns["dram"][rows] += by // np.array(element_bytes(program.accelerator))[insns["mem"][rows]]
    return insns


def order_of(submissions: list[NDArray[np.int64]], rng: np.random.Generator) -> NDArray[np.int64]:
    """All instructions in some order that the tokens allow, each submission begun when compute has done the FINISH of
    the one before; modules are chosen at random, tokens and waiting instructions carry over. FINISH is left out."""
    queues: list[list[NDArray[np.int64]]] = [[], [], []]
    held = np.zeros(4, dtype=np.int64)
    order: list[NDArray[np.int64]] = []
    weights = rng.random(3) ** 3 + 1e-3

    def ready(m: int) -> bool:
        return bool(queues[m]) and all(held[q] > 0 for flag, q in POPS[m] if queues[m][0]["flags"] & flag)

    for number, insns in enumerate(submissions):
        for insn in insns:
            queues[module(insn)].append(insn)
        finished = False
        while not finished or (number == len(submissions) - 1 and any(queues)):
            able = [m for m in range(3) if ready(m)]
            assert able, "deadlock"
            m = able[int(rng.choice(len(able), p=weights[able] / weights[able].sum()))]
            insn = queues[m].pop(0)
            tokens.flow(insn[None], held)
            if insn["op"] == Opcode.FINISH:
                finished = True
            else:
                order.append(insn)
    return np.array(order)


def right_results(pairs: list[tuple[Workload, Program]], rng: np.random.Generator) -> list[bool]:
    """Whether programs that run one after the other on one accelerator compute their references."""
    chip = pairs[0][1].accelerator
    parts: list[NDArray[np.uint8]] = []
    submissions, bases, inputs = [], [], []
    base = 0
    for workload, program in pairs:
        tensors: Tensors = workload.random_inputs(rng)
        part = image.dram_image(program, workload, tensors)
        words = isa.encode_uops(program.uops, chip).astype("<u4").view(np.uint8)
        part[program.uop_address : program.uop_address + len(words)] = words
        parts.append(part)
        bases.append(base)
        submissions.append(moved(program, base))
        inputs.append(tensors)
        base += len(part)
    dram = np.concatenate(parts)
    simulator.execute_checked(order_of(submissions, rng), chip, dram)
    results = []
    for (workload, program), begin, tensors in zip(pairs, bases, inputs):
        buffer = program.buffer("output")
        size = buffer.elements * element_bytes(chip)[buffer.memory]
        content = dram[begin + buffer.address : begin + buffer.address + size].view(np.int8)
        got = packing.activation_of_bytes(content, workload.output_shape, chip)
        results.append(bool(np.array_equal(got, workload.reference(tensors))))
    return results


def test_programs_follow_one_another_without_a_reset() -> None:
    rng = np.random.default_rng(8)
    by_chip: dict[Accelerator, list[tuple[Workload, Program]]] = {}
    for kind in ("full", "autotvm"):
        for workload, program in programs_of(kind, rng, 60):
            by_chip.setdefault(program.accelerator, []).append((workload, program))
    runs = 0
    for pairs in by_chip.values():
        for _ in range(8):
            chosen = [pairs[int(i)] for i in rng.integers(0, len(pairs), 3)]
            assert right_results(chosen, rng) == [True] * 3, chosen
            runs += 1
    assert runs >= 40


def test_a_token_that_is_left_spoils_the_next_program() -> None:
    """What this guards against: as TVM ends it, the program is right and the one after it is not."""
    rng = np.random.default_rng(9)
    sound = autotvm.lower(LAYER, PYNQ, VALUES)
    first, second = zip(*(right_results([(LAYER, as_tvm_ends()), (LAYER, sound)], rng) for _ in range(40)))
    assert all(first)
    assert not all(second)
