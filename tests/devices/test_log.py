"""`log:FILE` answers what the file says, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oneshot_ml2.common.errors import DeviceError
from oneshot_ml2.corpus.plan import Plan
from oneshot_ml2.corpus.sampling import collect_task
from oneshot_ml2.devices.board_files import BOARDS, chip_keys
from oneshot_ml2.devices.registry import open_device
from oneshot_ml2.network import picking
from oneshot_ml2.network.predictor import Predictor
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.tuning import finetune
from oneshot_ml2.tuning.base import Domain
from oneshot_ml2.tuning.calibrate import Board
from oneshot_ml2.tuning.measure import Limits, Measurer
from oneshot_ml2.tuning.registry import make_tuner, tuner_kinds
from oneshot_ml2.tuning.run import Run
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.reasons import Reason
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.lists import Layer

CHIP = Accelerator.load(BOARDS["pynq"])
SPACE = ScheduleSpace(Conv2d(1, 64, 14, 14, 64, 3, 3, padding=1), CHIP, "autotvm")
WORKLOAD = {"n": 1, "ci": 64, "h": 14, "w": 14, "co": 64, "kernel": [3, 3], "stride": [1, 1], "pad": [1, 1, 1, 1]}


def row(index: int, error: int, *ms: float) -> list[Any]:
    return [index, SPACE.values(np.array([index]))[0].tolist(), error, list(ms) or None]


def written(path: Path, *rows: list[Any]) -> str:
    tree = {"accelerator": dict(chip_keys(CHIP)), "tuning": {"net": [{"workload": WORKLOAD, "rows": rows}]}}
    path.write_text(json.dumps(tree), encoding="utf-8")
    return f"log:{path}"


def test_it_says_what_the_board_said(tmp_path: Path) -> None:
    invalid = np.flatnonzero(SPACE.validity(np.arange(len(SPACE))) == Reason.SRAM_OVERFLOW)[0]
    rows = (row(3, 0, 2.0), row(3, 0, 4.0), row(4, 5), row(5, 7), row(6, 4), row(6, 0, 1.0), row(7, 4))
    device: Any = open_device(written(tmp_path / "b.json", *rows, row(int(invalid), 2)))
    asked = np.array([3, 4, 5, 6, 7, invalid, 3])
    found = device.measure_schedules(SPACE, asked)
    valid = Reason.VALID
    assert found.reason.tolist() == [
        valid, Reason.WRONG_RESULT, Reason.TIMEOUT, valid, Reason.DEVICE_ERROR, Reason.SRAM_OVERFLOW, valid,
    ]  # fmt: skip
    # 100 MHz; the median of repeats.
    assert found.cycles.tolist() == [300_000, -1, -1, 100_000, -1, -1, 300_000]
    assert found.busy.shape == (7, 3) and not found.busy.any()
    assert device.measured(SPACE).tolist() == sorted({3, 4, 5, 6, 7, int(invalid)})
    assert device.deterministic


def test_what_was_not_measured_cannot_be_asked_for(tmp_path: Path) -> None:
    device = open_device(written(tmp_path / "b.json", row(3, 0, 2.0)))
    with pytest.raises(DeviceError, match="schedule 8 of net:0 was not measured; of its space 1 were"):
        device.measure_schedules(SPACE, np.array([3, 8]))
    other = ScheduleSpace(Conv2d(1, 64, 7, 7, 64, 1, 1), CHIP, "autotvm")
    for space in (other, ScheduleSpace(SPACE.workload, CHIP)):
        with pytest.raises(DeviceError, match="was not measured in the space"):
            device.measure_schedules(space, np.array([0]))
    with pytest.raises(DeviceError, match="runs no programs"):
        device.measure([])


def test_schedules_of_one_program_are_one(tmp_path: Path) -> None:
    batches = ScheduleSpace(Conv2d(4, 64, 14, 14, 64, 3, 3, padding=1), CHIP, "autotvm")
    every = np.arange(len(batches))
    # What the template ignores has several values where there are several images.
    other = int(np.flatnonzero(batches.canonical(every) != every)[0])
    own = int(batches.canonical(np.array([other]))[0])
    values = batches.values(np.array([other, own])).tolist()
    rows = [[index, knobs, 0, [ms]] for index, knobs, ms in zip((other, own), values, (2.0, 4.0))]
    tree = {"accelerator": {}, "tuning": {"net": [{"workload": WORKLOAD | {"n": 4}, "rows": rows}]}}
    path = tmp_path / "b.json"
    path.write_text(json.dumps(tree), encoding="utf-8")
    device: Any = open_device(f"log:{path}")
    assert device.measured(batches).tolist() == [own]
    assert device.measure_schedules(batches, np.array([other, own])).cycles.tolist() == [300_000, 300_000]


def test_what_the_board_said_is_final(tmp_path: Path) -> None:
    # Far more in a row than a device that is gone would be asked for.
    rows = [row(index, 4) for index in range(40)] + [row(index, 7) for index in range(40, 60)] + [row(70, 0, 1.0)]
    device = open_device(written(tmp_path / "b.json", *rows))
    measurer = Measurer(device, SPACE, Limits(retries=2, failures=3))
    trials = list(measurer(np.array([*range(60), 70])))
    assert [trial.attempts for trial in trials] == [1] * 61
    assert {trial.reason for trial in trials[:40]} == {Reason.DEVICE_ERROR}
    assert {trial.reason for trial in trials[40:60]} == {Reason.TIMEOUT}
    assert trials[60].reason == Reason.VALID


@pytest.fixture
def some(tmp_path: Path) -> tuple[Any, np.ndarray]:
    """A file of a few dozen trials of all outcomes, as a device, and the indices that have been tried."""
    rng = np.random.default_rng(0)
    every = np.arange(len(SPACE))
    valid = rng.permutation(every[SPACE.validity(every) == Reason.VALID])
    others = rng.permutation(np.setdiff1d(every, valid))[:30]
    ran, failed = valid[:24], valid[24:30]
    times = SPACE.measure(ran).cycles / 1e5
    rows = [row(int(index), 0, float(ms)) for index, ms in zip(ran, times)]
    rows += [row(int(index), error) for index, error in zip(failed, (4, 7, 5, 4, 7, 5))]
    # Boards run some of what is called invalid here.
    rows += [row(int(index), 0, 9.0) for index in others[:6]]
    rows += [row(int(index), 2) for index in others[6:]]
    return open_device(written(tmp_path / "some.json", *rows)), np.unique(np.concatenate([ran, failed, others]))


@pytest.mark.parametrize("name", [*tuner_kinds(), "rieber+autotvm", "validity+autotvm"])
def test_tuners_propose_what_was_measured_and_nothing_else(name: str, some: tuple[Any, np.ndarray]) -> None:
    device, tried = some
    domain = Domain.of(SPACE, device.measured(SPACE))
    with Run(SPACE, lambda: make_tuner(name, domain, 1), device, name, 1, Limits(batch=8)) as work:
        while not work.exhausted and len(work.history) < 60:
            work.step(60 - len(work.history))
        indices = work.history.outcomes.indices
    assert len(indices) == len(set(indices.tolist())) >= 24
    assert np.isin(indices, tried).all()
    said = device.measure_schedules(SPACE, indices)
    assert np.array_equal(work.history.outcomes.reason, said.reason)
    assert np.array_equal(work.history.outcomes.cycles, said.cycles)


def test_corpora_hold_what_was_measured_and_nothing_else(some: tuple[Any, np.ndarray]) -> None:
    device, tried = some
    plan = Plan((Layer("net:0", SPACE.workload),), (CHIP,), tasks=1, samples=100, space="autotvm", invalid_share=0.5)
    found = collect_task((SPACE.workload, CHIP), plan, device)
    indices = SPACE.index(found.values.astype(np.int64))
    assert np.isin(indices, tried).all() and len(set(indices.tolist())) == len(indices) > 24
    assert np.array_equal(found.reason, device.measure_schedules(SPACE, indices).reason)
    # What the board failed at is known, unlike what a device fails at now.
    assert {Reason.DEVICE_ERROR, Reason.TIMEOUT} <= set(found.reason.tolist())


def test_weights_are_finetuned_on_one_layer(some: tuple[Any, np.ndarray], tmp_path: Path) -> None:
    device, tried = some
    assert device.workloads() == [SPACE.workload]
    network = picking.predictor_of(None, SPACE.kind, "hls")
    board = Board([SPACE], network)
    measured = finetune.collect(board, device, 64)
    # All that is legal, and no more.
    legal = tried[SPACE.validity(tried) == Reason.VALID]
    assert sorted(measured.index.tolist()) == legal.tolist()
    found = finetune.adapt(board, measured, {})
    card = found.network.card["finetuned"]
    assert "by measurements" in card["validation"]
    assert found.after["choice"] >= 0.9
    found.network.save(tmp_path / "w.safetensors")
    assert Predictor.load(tmp_path / "w.safetensors").calibration is not None


def test_another_accelerator_is_refused(tmp_path: Path) -> None:
    device: Any = open_device(written(tmp_path / "b.json", row(3, 0, 2.0)))
    other = ScheduleSpace(SPACE.workload, Accelerator.load("b32"), "autotvm")
    with pytest.raises(DeviceError, match=r"measured with LOG_.*give the accelerator it was measured on"):
        device.measured(other)


@pytest.mark.parametrize(
    ("text", "says"), [(None, "cannot read"), ("{", "not JSON"), ('{"records": []}', "no measurements of a board")]
)
def test_bad_files(tmp_path: Path, text: str | None, says: str) -> None:
    path = tmp_path / "bad.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(DeviceError, match=says):
        open_device(f"log:{path}")
    with pytest.raises(DeviceError, match="give a file of measurements"):
        open_device("log:")
