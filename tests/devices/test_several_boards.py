"""Several boards at once: work is spread, a board that dies is left out and comes back, results say whose they are."""

from __future__ import annotations

import json
import pickle
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import RunCommand
from servers import Running, running, server, start

from oneshot_ml2.common.errors import DeviceError
from oneshot_ml2.devices.base import notes
from oneshot_ml2.devices.raw import GONE, Fault
from oneshot_ml2.devices.registry import open_device
from oneshot_ml2.devices.remote import RemoteBoard
from oneshot_ml2.devices.several import Boards
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.tuning.log import read_log
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.reasons import Reason
from oneshot_ml2.workload.conv2d import Conv2d

PYNQ = Accelerator.load("pynq")
LAYER = Conv2d(1, 32, 10, 10, 48, 3, 3, padding=1)


def schedules(n: int) -> tuple[ScheduleSpace, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    space = ScheduleSpace(LAYER, PYNQ)
    drawn = space.canonical(np.random.default_rng(5).integers(0, len(space), 4000))
    return space, drawn[space.validity(drawn) == Reason.VALID][:n]


def farm(count: int) -> list[Running]:
    return [start([server(PYNQ)], "--name", f"board{number}") for number in range(count)]


def opened(boards: list[Running], query: str = "limit=5&repeats=1") -> Boards:
    device = open_device(",".join(one.spec(query) for one in boards))
    assert isinstance(device, Boards)
    return device


def test_measurements_are_spread_and_say_whose_they_are() -> None:
    space, indices = schedules(24)
    boards = farm(3)
    device = opened(boards)
    device.warm_up(space)
    result = device.measure_schedules(space, indices)
    assert (result.reason == Reason.VALID).all()
    assert set(result.boards) == {"board0", "board1", "board2"}
    assert min(Counter(result.boards).values()) >= 2
    assert [one.reason for one in device.measure([space.lower(int(i)) for i in indices[:4]])] == [Reason.VALID] * 4
    assert sum("measurements" in line for line in notes(device)) == 3
    copy = pickle.loads(pickle.dumps(device))
    assert [member.name for member in copy.members] == ["board0", "board1", "board2"]
    device.close()
    assert (copy.measure_schedules(space, indices[:3]).reason == Reason.VALID).all()
    copy.close()
    for one in boards:
        one.kill()


def test_a_board_that_dies_is_left_out_and_comes_back() -> None:
    space, indices = schedules(60)
    boards = farm(3)
    device = opened(boards)
    device.warm_up(space)
    kill = threading.Timer(0.3, boards[1].kill)
    kill.start()
    first = device.measure_schedules(space, indices)
    kill.join()
    # What it was at was measured on another one.
    assert (first.reason == Reason.VALID).all()
    second = device.measure_schedules(space, indices[:20])
    assert set(second.boards) == {"board0", "board2"}
    boards[1] = start([server(PYNQ)], "--name", "board1", port=boards[1].port)
    deadline = time.monotonic() + 40
    while "board1" not in device.measure_schedules(space, indices[:12]).boards:
        assert time.monotonic() < deadline, "it does not come back"
    assert "board1: " in "".join(notes(device))
    assert "lost" in "".join(notes(device))
    device.close()
    for one in boards:
        one.kill()


def test_boards_that_are_all_gone_are_failures_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    space, indices = schedules(4)
    boards = farm(2)
    device = opened(boards)
    device.warm_up(space)
    monkeypatch.setattr("oneshot_ml2.devices.several._WITHOUT_ANY", 1.0)
    for one in boards:
        one.kill()
    result = device.measure_schedules(space, indices)
    assert set(result.reason.tolist()) == {Reason.DEVICE_ERROR}
    assert set(result.boards) == {""}
    with pytest.raises(DeviceError, match="none of the 2 boards answers"):
        device.session([], np.zeros(0, np.uint8))


def test_a_program_that_ends_every_board_is_given_up() -> None:
    space, indices = schedules(2)
    boards = farm(2)
    device = opened(boards)
    device.warm_up(space)
    for member in device.members:
        # As if its server died of each run, and were started again.
        member.device.process.run = lambda *_, board=member.device.process: board._ask(99, b"")  # type: ignore
        member.device.process._failed = lambda _, board=member.device.process: _gone(board)  # type: ignore
    assert set(device.measure_schedules(space, indices).reason.tolist()) == {Reason.DEVICE_ERROR}
    for one in boards:
        one.kill()


def _gone(board: RemoteBoard) -> None:
    board.close()
    raise Fault(GONE, "it has died")


def test_a_hanging_board_costs_no_schedule() -> None:
    space, indices = schedules(12)
    boards = [start([server(PYNQ)], "--name", "good"), start([server(PYNQ)], "--name", "bad", VTA_FAULT="hang/7")]
    device = opened(boards, "limit=1&repeats=1")
    assert (device.measure_schedules(space, indices).reason == Reason.VALID).all()
    device.close()
    for one in boards:
        one.kill()


def test_refine_over_several_boards_logs_whose_trials_they_are(run_command: RunCommand, tmp_path: Path) -> None:
    layers = tmp_path / "layers.toml"
    layers.write_text(
        '[[workload]]\nname = "a"\nop = "conv2d"\nn = 1\nc = 16\nh = 8\nw = 8\nk = 16\nr = 3\ns = 3\npadding = [1, 1]\n'
    )
    boards = farm(2)
    listed = tmp_path / "farm.toml"
    listed.write_text(
        "".join(f'[[board]]\ndevice = "{one.spec("repeats=1")}"\nname = "b{i}"\n' for i, one in enumerate(boards))
    )
    command = ("refine", "--workload", layers, "--device", f"boards:{listed}", "--tuner", "random", "--trials", "12")
    code, _, err = run_command(*command, "--logs", tmp_path / "logs", "--batch", "6")
    assert code == 0, err
    assert "b0: " in err
    (log,) = (tmp_path / "logs").rglob("*.jsonl")
    trials = read_log(log).trials
    assert {trial.board for trial in trials} == {"b0", "b1"}
    assert {json.loads(line)["board"] for line in log.read_text().splitlines()[1:]} == {"b0", "b1"}
    # The same command goes on from there, and measures nothing again.
    before = log.read_text()
    code, _, err = run_command(*command, "--logs", tmp_path / "logs", "--batch", "6")
    assert code == 0, err
    assert log.read_text() == before
    for one in boards:
        one.kill()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "lists no boards"),
        ("[[boards]]\ndevice = 'sim'\n", "lists no boards"),
        ("[[board]]\ndevice = 'sim'\n", "sim is no board"),
        ("[[board]]\nname = 'a'\n", "allowed: device, name"),
        ("[[board]]\ndevice = 3\n", "allowed: device, name"),
        ("[[board]]\ndevice = 'tcp:127.0.0.1:1'\n", "is the server started there"),
    ],
)
def test_lists_that_are_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "farm.toml"
    path.write_text(text)
    with pytest.raises(DeviceError, match=says):
        open_device(f"boards:{path}")
    with pytest.raises(DeviceError, match="sim is no board"):
        open_device("sim,tcp:127.0.0.1:1")


def test_a_board_for_another_accelerator_is_told_before_anything_is_measured() -> None:
    space, indices = schedules(4)
    with running([server(PYNQ)]) as one, running([server(Accelerator.load("b8"))]) as other:
        device = opened([one, other])
        with pytest.raises(DeviceError, match="is built for"):
            device.warm_up(space)
        with pytest.raises(DeviceError, match="is built for"):
            device.measure_schedules(space, indices)
        device.close()
