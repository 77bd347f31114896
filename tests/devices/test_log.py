"""`log:FILE` answers what the file says, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oneshot_ml2.common.errors import DeviceError
from oneshot_ml2.devices.board_files import BOARDS, chip_keys
from oneshot_ml2.devices.registry import open_device
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.reasons import Reason
from oneshot_ml2.workload.conv2d import Conv2d

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
