"""What is known of a board: its JSON, what programs need, and schedules that keep to it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from random_programs import row

from oneshot_ml2.common.errors import AcceleratorError
from oneshot_ml2.devices import build
from oneshot_ml2.devices.simulated import SimulatorDevice
from oneshot_ml2.spaces.drawn import random_layer
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta import needs
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.board import NEEDS, Board
from oneshot_ml2.vta.program import AluOp, Flag, Memory, Opcode, insns_of
from oneshot_ml2.vta.reasons import InvalidSchedule, Reason
from oneshot_ml2.workload.conv2d import Conv2d

PYNQ = Accelerator.load("pynq")
LAYER = Conv2d(1, 32, 10, 10, 48, 3, 3, padding=1)
FOUND = {
    "device": "driver:x.so",
    "date": "2026-11-28",
    "driver": "a driver",
    "features": {"load_inp_pads": "wrong", "load_inp_pads_strides": "not tried", "gemm": "right", "time_row": "slow"},
    "limits": {"tokens": 15, "acc_distance": 8, "largest_allocation": 4 << 20, "flush": True},
    "more": [1, 2],
}


def loaded(board: Any) -> Accelerator:
    return Accelerator.from_json(json.loads(PYNQ.to_json()) | {"BOARD": board})


def test_a_board_file_loses_nothing() -> None:
    chip = loaded(FOUND)
    assert chip.board == Board(("load_inp_pads", "load_inp_pads_strides"), 15, 8, 4 << 20, True, "a driver")
    assert json.loads(chip.to_json())["BOARD"] == FOUND
    again = Accelerator.from_json(chip.to_json())
    assert again == chip and hash(again) == hash(chip) and again != PYNQ
    assert dataclasses.replace(chip, board=None) == PYNQ
    assert chip.acc_distance == 8 and PYNQ.acc_distance == 0
    assert build.configuration(chip) == "a driver"


def test_what_says_nothing_of_a_board_is_as_it_was() -> None:
    for name in ("pynq", "pynq-hls", "b8"):
        assert "BOARD" not in Accelerator.load(name).to_json()
    assert loaded({}).board == Board()
    assert loaded({"driver": None, "features": dict.fromkeys(NEEDS, "right")}).board == Board()


@pytest.mark.parametrize(
    ("board", "message"),
    [
        ([], "BOARD is"),
        ({"features": []}, "features is"),
        ({"features": {"gemm_rest": "wrong"}}, "did you mean 'gemm_reset'"),
        ({"features": {"gemm": "broken"}}, "gemm is 'broken'; allowed: right, wrong, slow, not tried"),
        ({"features": {"gemm": ["wrong"]}}, "gemm is"),
        ({"limits": {"tokens": 0}}, "tokens is 0; allowed: a whole number 1 to 255"),
        ({"limits": {"tokens": True}}, "tokens is True"),
        ({"limits": {"acc_distance": 65}}, "1 to 64"),
        ({"limits": {"token": 3}}, "did you mean 'tokens'"),
        ({"limits": {"flush": 1}}, "flush is 1; allowed: true or false"),
        ({"limits": 3}, "limits is 3"),
        ({"driver": 3}, "driver is 3"),
    ],
)
def test_a_damaged_board_is_refused_in_one_line(board: Any, message: str) -> None:
    with pytest.raises(AcceleratorError, match=message) as caught:
        loaded(board)
    assert "\n" not in str(caught.value)


def load(memory: Memory, y: int, x: int, stride: int, *pads: int, flags: int = 0) -> list[int]:
    return row(Opcode.LOAD, flags, memory, 0, 0, y, x, stride, *pads)


FIRST = load(Memory.UOP, 1, 1, 1)


@pytest.mark.parametrize(
    ("insn", "needed"),
    [
        (load(Memory.INP, 1, 3, 9), {"load_inp"}),
        (load(Memory.INP, 2, 3, 3), {"load_inp"}),
        (load(Memory.INP, 2, 3, 4), {"load_inp", "load_inp_strides"}),
        (load(Memory.INP, 2, 3, 3, 0, 0, 1, 0), {"load_inp", "load_inp_pads"}),
        (
            load(Memory.INP, 2, 3, 4, 0, 1),
            {"load_inp", "load_inp_pads", "load_inp_strides", "load_inp_pads_strides"},
        ),
        (load(Memory.INP, 0, 0, 0), set()),
        (load(Memory.WGT, 2, 3, 7), {"load_wgt", "load_wgt_strides"}),
        (load(Memory.ACC, 2, 1, 0), {"load_acc", "load_acc_strides"}),
        (row(Opcode.STORE, 0, Memory.OUT, 0, 0, 2, 3, 7), {"store", "store_strides"}),
        (row(Opcode.GEMM, 0, 0, 0, 1, 1, 1, 5, 5, 5, 5, 5, 5), {"gemm"}),
        (row(Opcode.GEMM, 0, 0, 0, 1, 2, 1, 0, 5, 0, 5, 1, 5), {"gemm", "gemm_outer_wgt"}),
        (row(Opcode.GEMM, 0, 0, 0, 1, 1, 2, 5, 1, 5, 0, 5, 0), {"gemm", "gemm_inner_acc"}),
        (row(Opcode.GEMM, 0, 1, 0, 1, 2, 2, 1, 0, 3, 3, 3, 3), {"gemm_reset", "gemm_outer_acc"}),
        (row(Opcode.ALU, 0, 0, 0, 1, 1, 2, 5, 1, 5, 1, AluOp.SHR, 1, -3), {"alu_inner_dst", "shl_imm"}),
        (row(Opcode.ALU, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, AluOp.SHR, 1, 0), {"shr_imm"}),
        (row(Opcode.ALU, 0, 0, 0, 1, 2, 1, 0, 0, 4, 0, AluOp.ADD, 0, 0), {"add_tensor", "alu_outer_src"}),
    ],
)
def test_what_an_instruction_needs(insn: list[int], needed: set[str]) -> None:
    assert set(needs.names(insns_of([FIRST, insn]))) == needed | {"load_uop"}


def test_a_program_that_does_not_begin_with_compute() -> None:
    assert "done_any" in needs.names(insns_of([load(Memory.INP, 1, 1, 1), FIRST]))
    assert "done_any" not in needs.names(insns_of([FIRST, load(Memory.INP, 1, 1, 1)]))


def test_the_most_tokens_in_a_queue() -> None:
    gives, takes = load(Memory.INP, 0, 0, 0, flags=Flag.PUSH_NEXT), load(Memory.UOP, 0, 0, 0, flags=Flag.POP_PREV)
    # Load runs ahead, however the two stand in the program.
    assert needs.most_tokens(insns_of([gives, takes] * 20)) == 20
    assert needs.most_tokens(insns_of([gives] * 20 + [takes] * 20)) == 20
    # Unless it waits for compute after each.
    waits = load(Memory.INP, 0, 0, 0, flags=Flag.PUSH_NEXT | Flag.POP_NEXT)
    answers = load(Memory.UOP, 0, 0, 0, flags=Flag.POP_PREV | Flag.PUSH_PREV)
    assert needs.most_tokens(insns_of([gives, answers] + [waits, answers] * 20)) == 1
    # Compute gives to store what it got from load: the sum of what may be on its way counts by queue.
    passes = load(Memory.UOP, 0, 0, 0, flags=Flag.POP_PREV | Flag.PUSH_NEXT)
    stores = row(Opcode.STORE, Flag.POP_PREV, Memory.OUT)
    assert needs.most_tokens(insns_of([gives, passes, stores] * 7)) == 7


def test_the_most_tokens_of_programs_is_what_no_order_exceeds() -> None:
    """Against modules that are drawn at random, each order's most."""
    for seed in range(12):
        rng = np.random.default_rng([20, seed])
        _, program = random_layer(rng, PYNQ)
        least = max(_most_in_an_order(program.insns, rng) for _ in range(20))
        assert least <= needs.most_tokens(program.insns) <= 255


def _most_in_an_order(insns: Any, rng: np.random.Generator) -> int:
    from programs import module

    queues = [[i for i in range(len(insns)) if module(insns[i]) == m] for m in range(3)]
    tokens, most, weights = {(0, 1): 0, (1, 0): 0, (1, 2): 0, (2, 1): 0}, 0, rng.random(3) ** 4
    while any(queues):
        ready = []
        for m in range(3):
            if queues[m]:
                flags = insns["flags"][queues[m][0]]
                wants = [(m - 1, m)] * bool(flags & Flag.POP_PREV) + [(m + 1, m)] * bool(flags & Flag.POP_NEXT)
                ready += [(m, wants, flags)] if all(tokens[edge] > 0 for edge in wants) else []
        chance = np.array([weights[m] for m, _, _ in ready])
        m, wants, flags = ready[rng.choice(len(ready), p=chance / chance.sum())]
        for edge in wants:
            tokens[edge] -= 1
        for edge in [(m, m - 1)] * bool(flags & Flag.PUSH_PREV) + [(m, m + 1)] * bool(flags & Flag.PUSH_NEXT):
            tokens[edge] += 1
        most = max(most, *tokens.values())
        queues[m].pop(0)
    return most


@pytest.mark.parametrize(("kind", "layer"), [("full", LAYER), ("autotvm", Conv2d(1, 64, 8, 8, 64, 1, 1))])
def test_validity_lowering_and_measuring_agree_for_a_board(kind: str, layer: Conv2d) -> None:
    whole = ScheduleSpace(layer, PYNQ, kind)
    indices = whole.sample(np.random.default_rng(4), 400)
    legal = indices[whole.validity(indices) == Reason.VALID]
    for board in (Board(("load_inp_pads", "load_inp_strides")), Board(("gemm_outer_wgt",), tokens=4)):
        space = ScheduleSpace(layer, dataclasses.replace(PYNQ, board=board), kind)
        reasons, measured = space.validity(legal), space.measure(legal)
        assert np.array_equal(measured.reason, reasons) and np.array_equal(measured.cycles > 0, reasons == Reason.VALID)
        assert np.array_equal(SimulatorDevice().measure_schedules(space, legal).reason, reasons)
        assert set(reasons.tolist()) == {Reason.VALID, Reason.WRONG_RESULT}
        for index, reason in zip(legal[:60].tolist(), reasons.tolist()):
            if reason == Reason.VALID:
                assert not set(needs.names(space.lower(index).insns)) & set(board.avoided)
            else:
                with pytest.raises(InvalidSchedule, match="the board of pynq cannot do"):
                    space.lower(index)
