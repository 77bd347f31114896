"""Boards as their drivers show them: memory, and runs, in a row."""

from __future__ import annotations

import numpy as np
import pytest
from drivers import device

from oneshot_ml2.common.errors import DeviceError
from oneshot_ml2.devices.raw import raw_board
from oneshot_ml2.devices.registry import open_device
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import PAGE

PYNQ = Accelerator.load("pynq")
# A compute instruction that does nothing, and FINISH.
EMPTY = np.array([[0, 0], [3, 0]], dtype="<u8").view(np.uint8).reshape(-1)


def test_memory_and_runs_of_a_board() -> None:
    opened = device(PYNQ)
    board = raw_board(opened)
    first, second = board.allocate([PAGE, 2 * PAGE]) or []
    assert first % PAGE == second % PAGE == 0
    content = np.random.default_rng(0).integers(0, 256, PAGE, dtype=np.uint8)
    assert np.array_equal(board.run(0, 0, [(1, 100, content)], [(1, 100, PAGE)]).contents[0], content)
    ran = board.run(first, 2, [(0, 0, EMPTY)], [], repeats=5)
    assert 0 < ran.seconds < 1
    number = board.number
    board.close()
    assert not board.running
    board.allocate([PAGE])
    assert board.number == number + 1
    opened.close()


def test_a_late_run_in_a_row_does_not_move_the_median(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VTA_FAULT", "late/5")
    monkeypatch.setenv("VTA_LATE_MS", "300")
    opened = device(PYNQ)
    (address,) = opened.process.allocate([PAGE]) or [0]
    assert opened.process.run(address, 2, [(0, 0, EMPTY)], [], repeats=5).seconds < 0.3
    opened.close()


def test_what_is_no_board_is_told() -> None:
    with pytest.raises(DeviceError, match="sim gives no access to its memory; take driver:PATH"):
        raw_board(open_device("sim"))
