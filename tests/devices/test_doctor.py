"""The doctor: what a broken device gets wrong is found, named, and avoided by the next pick."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from drivers import library
from numpy.typing import NDArray
from programs import ACCELERATORS

from oneshot_ml2.common.errors import DeviceError
from oneshot_ml2.devices.doctor.examine import Report, examine
from oneshot_ml2.devices.driver import DriverDevice
from oneshot_ml2.devices.raw import Options
from oneshot_ml2.network.picking import pick
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta import needs
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.board import FEATURES, RIGHT, WRONG
from oneshot_ml2.vta.reasons import InvalidSchedule, NoSchedule, Reason
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.epilogue import Epilogue

PYNQ = Accelerator.load("pynq")
# The same instructions as PYNQ's, of another block.
BLOCK_8 = Accelerator(0, 3, 15, 14, 16, 16)
HALF = dataclasses.replace(PYNQ, log_inp_buff_size=PYNQ.log_inp_buff_size - 1, isa_inp_bits=PYNQ.isa_inp_bits)
# A library that does not say what it is built for, as those of boards.
UNNAMED = "-DVTAConfiguration=VTAUnnamed"
BIASED = Epilogue(bias=True, shift=8, clip=(-128, 127))
LAYER = Conv2d(1, 64, 10, 10, 96, 3, 3, padding=1, epilogue=BIASED)
# Its tensors take 4.6 MiB, and none of them 4.
LARGE = Conv2d(1, 256, 96, 96, 256, 1, 1, epilogue=BIASED)


def device(path: Path) -> DriverDevice:
    return DriverDevice(path, Options(limit=20.0, retries=0, repeats=1))


def examined(path: Path, chip: Accelerator = PYNQ, guess: bool = False) -> Report:
    board = device(path).process
    try:
        return examine(board, "driver:test", chip, timed=False, guess=guess, shown=False)
    finally:
        board.close()


def wrong(report: Report) -> set[str]:
    return {name for name, one in report.findings.items() if one.verdict == WRONG}


def board_file(report: Report, folder: Path) -> Accelerator:
    """The accelerator by way of its file."""
    path = folder / "board.json"
    path.write_text(report.chip.to_json())
    loaded = Accelerator.load(path)
    assert loaded == report.chip and loaded.to_json() == report.chip.to_json()
    return loaded


def reason_on(path: Path, space: ScheduleSpace, index: int) -> Reason:
    """What a device says of a schedule, whose result is held against the operator's reference."""
    tried = device(path)
    try:
        return Reason(int(tried.measure_schedules(space, np.array([index])).reason[0]))
    finally:
        tried.close()


def needing(space: ScheduleSpace, wanted: Callable[[int], bool], n: int = 4000) -> int:
    """A schedule of a space that something is true of."""
    indices: NDArray[np.int64] = space.sample(np.random.default_rng(3), n)
    for index in indices[space.validity(indices) == Reason.VALID].tolist():
        if wanted(index):
            return int(index)
    raise AssertionError("no schedule needs it")


def picked(chip: Accelerator, path: Path, workload: Workload = LAYER) -> None:
    """The pick for a board computes what it should on it."""
    made = pick(workload, chip)
    assert reason_on(path, made.space, made.index) == Reason.VALID


def needs_feature(space: ScheduleSpace, name: str) -> Callable[[int], bool]:
    return lambda index: name in needs.names(space.lower(index).insns)


@pytest.mark.parametrize(
    "chip",
    [PYNQ, *ACCELERATORS[1::3], Accelerator.load("pynq-hls")],
    ids=lambda chip: f"{chip.design}-{chip.bitstream}",
)
def test_a_healthy_device_has_nothing_wrong(chip: Accelerator) -> None:
    report = examined(library(chip), chip)
    assert [one for one in report.findings.values() if one.verdict != RIGHT] == []
    assert set(report.findings) == {name for name in FEATURES if not name.startswith("time_")}
    assert dataclasses.replace(report.chip, board=None) == chip
    assert report.chip.board is not None and not report.chip.board.restricts


# What is broken -> what is wrong, and what of it cannot be told apart.
BROKEN = {
    "pads": {"load_inp_pads"},
    "strides": {"load_inp_strides", "load_wgt_strides", "load_acc_strides"},
    "outer-weight": {"gemm_outer_wgt"},
    "reset": {"gemm_reset"},
}


@pytest.mark.parametrize("broken", BROKEN)
def test_what_is_broken_is_named_and_avoided(broken: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VTA_BROKEN", broken)
    path, space = library(PYNQ), ScheduleSpace(LAYER, PYNQ)
    report = examined(path)
    assert wrong(report) == BROKEN[broken]
    chip = board_file(report, tmp_path)
    for name in BROKEN[broken]:
        index = needing(space, needs_feature(space, name))
        assert reason_on(path, space, index) == Reason.WRONG_RESULT
        kept = ScheduleSpace(LAYER, chip)
        assert kept.validity(np.array([index]))[0] == Reason.WRONG_RESULT
        with pytest.raises(InvalidSchedule, match=name):
            kept.lower(index)
    picked(chip, path)


def test_a_shift_by_an_accumulator_is_named_and_no_schedule_needs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VTA_BROKEN", "shift")
    report = examined(library(PYNQ))
    assert wrong(report) == {"shr_tensor"}
    picked(board_file(report, tmp_path), library(PYNQ))


def test_without_a_bias_nothing_does_without_resets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VTA_BROKEN", "reset")
    chip = board_file(examined(library(PYNQ)), tmp_path)
    with pytest.raises(NoSchedule, match="gemm_reset"):
        pick(Conv2d(1, 16, 4, 4, 16, 1, 1), chip)


def test_another_block_than_the_file_says(tmp_path: Path) -> None:
    path = library(BLOCK_8, UNNAMED)
    with pytest.raises(DeviceError, match="--guess"):
        examined(path)
    report = examined(path, guess=True)
    assert wrong(report) == {"block"}
    assert "block 8" in report.findings["block"].sentence
    chip = board_file(report, tmp_path)
    assert dataclasses.replace(chip, board=None) == BLOCK_8
    picked(chip, path)


def test_another_batch_of_as_large_elements(tmp_path: Path) -> None:
    # Of the same inputs and accumulators as PYNQ's: no guess is needed, as nothing is stored elsewhere.
    other = Accelerator(1, 3, 15, 15, 16, 17)
    report = examined(library(other, UNNAMED))
    assert wrong(report) == {"block"} and "batch 2, block 8" in report.findings["block"].sentence
    chip = board_file(report, tmp_path)
    assert dataclasses.replace(chip, board=None) == other
    picked(chip, library(other, UNNAMED))


def test_half_an_sram(tmp_path: Path) -> None:
    path = library(HALF, UNNAMED)
    report = examined(path)
    assert wrong(report) == {"inp_depth"}
    assert "1,024" in report.findings["inp_depth"].sentence
    chip = board_file(report, tmp_path)
    assert dataclasses.replace(chip, board=None) == HALF
    space = ScheduleSpace(LAYER, PYNQ)
    index = needing(space, lambda i: space.lower(i).features["inp_use"] > 0.6)
    assert reason_on(path, space, index) == Reason.WRONG_RESULT
    picked(chip, path)


def test_fifteen_tokens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VTA_BROKEN", "tokens")
    report, path, space = examined(library(PYNQ)), library(PYNQ), ScheduleSpace(LAYER, PYNQ)
    assert wrong(report) == {"tokens_255"}
    chip = board_file(report, tmp_path)
    assert chip.board is not None and chip.board.tokens == 15
    index = needing(space, lambda i: needs.most_tokens(space.lower(i).insns) > 15)
    assert ScheduleSpace(LAYER, chip).validity(np.array([index]))[0] == Reason.WRONG_RESULT
    picked(chip, path)


def test_accumulators_that_are_written_late(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VTA_BROKEN", "distance")
    report, path, space = examined(library(PYNQ)), library(PYNQ), ScheduleSpace(LAYER, PYNQ)
    assert wrong(report) == {"acc_distance"}
    chip = board_file(report, tmp_path)
    assert chip.acc_distance == 8
    index = needing(space, lambda i: 3 <= space.lower(i).features["recurrence"] < 8)
    assert reason_on(path, space, index) == Reason.WRONG_RESULT
    assert ScheduleSpace(LAYER, chip).validity(np.array([index]))[0] == Reason.ACC_HAZARD
    picked(chip, path)


def test_a_done_of_the_run_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VTA_BROKEN", "done")
    report, path = examined(library(PYNQ)), library(PYNQ)
    assert wrong(report) == {"done_any"}
    picked(board_file(report, tmp_path), path)


def test_memory_that_is_not_coherent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VTA_BROKEN", "cache")
    path = library(PYNQ)
    report = examined(path)
    assert wrong(report) == {"coherence"}
    made = pick(LAYER, PYNQ)
    assert reason_on(path, made.space, made.index) != Reason.VALID
    picked(board_file(report, tmp_path), path)


def test_a_limit_of_one_allocation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VTA_SIM_LARGEST", str(4 << 20))
    path = library(PYNQ)
    report = examined(path)
    assert wrong(report) == {"allocation"}
    chip = board_file(report, tmp_path)
    assert chip.board is not None and chip.board.largest_allocation == 4 << 20
    picked(chip, path, LARGE)


def test_the_file_of_a_board(tmp_path: Path) -> None:
    report = examined(library(PYNQ))
    data = json.loads(board_file(report, tmp_path).to_json())["BOARD"]
    assert data["features"]["gemm"] == RIGHT and data["device"] == "driver:test" and data["driver"].startswith("1x16")
