"""A soak finds what a device gets wrong by random programs, and prints a small one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from drivers import library

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.devices.doctor import soak as soaking
from oneshot_ml2.devices.doctor.shrink import listing, sound
from oneshot_ml2.devices.doctor.soak import seconds_of, soak
from oneshot_ml2.devices.doctor.stream import Stream, in_order
from oneshot_ml2.devices.driver import DriverDevice
from oneshot_ml2.devices.raw import Options
from oneshot_ml2.spaces.drawn import random_layer
from oneshot_ml2.vta import image, simulator, tokens
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.board import Board
from oneshot_ml2.vta.program import Memory, Opcode

PYNQ = Accelerator.load("pynq")


def soaked(path: Path, chip: Accelerator, seconds: float) -> soaking.Soaked:
    board = DriverDevice(path, Options(limit=20.0)).process
    try:
        return soak(board, chip, seconds, seed=1, shown=False)
    finally:
        board.close()


def test_a_healthy_device_soaks() -> None:
    found = soaked(library(PYNQ), PYNQ, 5.0)
    assert found.difference is None and found.programs > 0


@pytest.mark.parametrize(("broken", "word"), [("outer-weight", "GEMM"), ("strides", "LOAD"), ("reset", "reset")])
def test_the_first_difference_is_made_small(broken: str, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VTA_BROKEN", broken)
    found = soaked(library(PYNQ), PYNQ, 60.0).difference
    assert found is not None and "differ" in found.seen
    assert len(found.program.insns) <= 16
    assert word in found.text() and tokens.runs_in_order(found.program.insns)
    # What the soak needs to find it again.
    assert listing(found.program)[-1].startswith("micro-op")


def test_a_board_that_is_known_is_not_asked_for_what_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VTA_BROKEN", "outer-weight")
    known = dataclasses.replace(PYNQ, board=Board(avoided=("gemm_outer_wgt",)))
    assert soaked(library(PYNQ), known, 8.0).difference is None


def test_programs_in_order_do_the_same() -> None:
    for seed in range(12):
        rng = np.random.default_rng([7, seed])
        workload, program = random_layer(rng, PYNQ)
        ordered = dataclasses.replace(program, insns=in_order(program.insns))
        dram = image.dram_image(program, workload, workload.random_inputs(rng))
        again = dram.copy()
        # In the same place: the instructions are others.
        simulator.run(program, dram)
        simulator.run(ordered, again)
        output = program.buffer("output").address
        size = program.buffer_bytes("output")
        assert np.array_equal(dram[output : output + size], again[output : output + size])
        assert tokens.runs_in_order(ordered.insns) and sound(ordered, np.resize(again, ordered.dram_bytes))


def test_what_reads_what_was_never_written_is_not_sound() -> None:
    for loads in (True, False):
        stream = Stream(PYNQ)
        out = stream.output(1)
        stream.load(stream.zeros(1))
        stream.load(stream.identity())
        inputs = stream.buffer(Memory.INP, 1)
        if loads:
            stream.load(inputs)
        stream.gemm(stream.uops([(0, 0, 0)]))
        stream.store(out)
        program = stream.program()
        assert sound(program, stream.image(program)) == loads
        assert program.insns["op"][-1] == Opcode.FINISH


def test_times_of_a_soak() -> None:
    assert [seconds_of(text) for text in ("90s", "10m", "1.5h")] == [90, 600, 5400]
    for text in ("", "10", "0s", "-1m", "1e9s", "10 m"):
        with pytest.raises(OneShotError, match="--soak is"):
            seconds_of(text)
