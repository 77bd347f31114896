"""The runner: logs and resuming, retries, devices that fail, crash, hang or answer garbage; and `history`."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import RunCommand

from oneshot_ml2.accelerator import Accelerator
from oneshot_ml2.device.perturbed import PerturbedDevice
from oneshot_ml2.device.simulated import SimulatorDevice
from oneshot_ml2.errors import DeviceError
from oneshot_ml2.schedule import BatchResult, Reason, ScheduleSpace
from oneshot_ml2.tuner import Domain, Outcomes, Tuner, make_tuner
from oneshot_ml2.tuner.runner import FORMAT, History, Limits, LogError, Run, read_log, run
from oneshot_ml2.workload import Conv2d

SPACE = ScheduleSpace(Conv2d(1, 16, 6, 6, 32, 3, 3, padding=1), Accelerator.load("pynq"))


def work(
    log: Path | None = None, seed: int = 0, device: object = None, tuner: str = "ml2-scratch", **limits: object
) -> Run:
    def make() -> Tuner:
        return make_tuner(tuner, Domain.of(SPACE), seed)

    device = SimulatorDevice() if device is None else device
    return Run(SPACE, make, device, tuner, seed, Limits(**limits), log)  # type: ignore[arg-type]


class Faulty:
    """Every fifth schedule (by index), or ``bad`` alone, does what ``fault`` says; the others are simulated."""

    name = "faulty"

    def __init__(self, fault: str, calls: Path | None = None, bad: int | None = None) -> None:
        self.fault, self.calls, self.bad = fault, calls, bad

    def measure_schedules(self, space: ScheduleSpace, indices: np.ndarray) -> object:
        if self.calls is not None:
            with self.calls.open("a") as file:
                file.writelines(f"{index}\n" for index in indices.tolist())
        result = space.measure(indices)
        odd = indices % 5 == 0 if self.bad is None else indices == self.bad
        if not odd.any():
            return result
        if self.fault == "hang":
            time.sleep(600)
        if self.fault == "crash":
            os._exit(3)
        if self.fault == "raise":
            raise RuntimeError("the board is gone")
        if self.fault == "nothing":
            return None
        reason, cycles = result.reason.copy(), result.cycles.astype(np.float64)
        cycles[odd] = {"nan": float("nan"), "negative": -7.0, "fast": 2.0, "huge": 1e30, "reason": 5.0}[self.fault]
        reason[odd] = 99 if self.fault == "reason" else Reason.VALID
        return BatchResult(reason, cycles, result.busy)  # type: ignore[arg-type]

    def measure(self, programs: object) -> list[object]:
        raise NotImplementedError


# Runs and logs -------------------------------------------------------------------------------
def test_a_run_and_its_log(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "layer.jsonl"
    history = run(work(log), 45)
    assert len(history) == 45
    lines = log.read_text().splitlines()
    header, first = json.loads(lines[0]), json.loads(lines[1])
    assert (header["format"], header["tuner"], header["seed"], header["space"]) == (FORMAT, "ml2-scratch", 0, "full")
    assert set(first) == {"trial", "index", "schedule", "reason", "cycles", "seconds", "attempts"}
    assert len(lines) == 46
    again = read_log(log)
    assert again.header == history.header
    assert np.array_equal(again.outcomes.indices, history.outcomes.indices)
    assert np.array_equal(again.outcomes.cycles, history.outcomes.cycles)
    index, cycles = history.best or (0, 0)
    assert SPACE.measure(np.array([index])).cycles[0] == cycles == history.best_so_far[-1]
    assert (np.diff(history.best_so_far[np.isfinite(history.best_so_far)]) <= 0).all()
    assert history.trials_to(cycles) == 1 + history.outcomes.indices.tolist().index(index)
    assert history.trials_to(cycles - 1) is None
    assert sum(history.reasons().values()) == 45
    assert history.invalid_rate == pytest.approx(1 - history.reasons()["valid"] / 45)


@pytest.mark.parametrize("tuner", ["random", "autotvm", "ml2-scratch", "ml2-warm", "rieber+ml2-scratch"])
@pytest.mark.parametrize("cut", [0, 1, 137, 2500, 6001])
def test_a_killed_run_goes_on_as_if_it_had_not_been(tuner: str, cut: int, tmp_path: Path) -> None:
    whole = tmp_path / "whole.jsonl"
    device = PerturbedDevice("noisy", 5)
    run(work(whole, tuner=tuner, device=device), 75)
    content = whole.read_bytes()
    part = tmp_path / "part.jsonl"
    # Wherever it was killed: between trials, within a line, within the header.
    part.write_bytes(content[: max(len(content) - cut * 3, 10)])
    run(work(part, tuner=tuner, device=PerturbedDevice("noisy", 5)), 75)
    assert part.read_bytes() == content


def test_what_is_logged_is_not_measured_again(tmp_path: Path) -> None:
    log, calls = tmp_path / "log.jsonl", tmp_path / "calls"
    run(work(log, device=Faulty("nan", calls), retries=0), 30)
    first = calls.read_text()
    history = run(work(log, device=Faulty("nan", calls), retries=0), 50)
    assert calls.read_text().startswith(first)
    measured = [int(line) for line in calls.read_text().split()]
    assert measured == history.outcomes.indices.tolist()


def test_a_longer_run_has_the_shorter_one_as_its_beginning(tmp_path: Path) -> None:
    run(work(tmp_path / "a.jsonl"), 33)
    run(work(tmp_path / "b.jsonl"), 61)
    run(work(tmp_path / "a.jsonl"), 61)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_logs_of_other_runs_are_refused(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    run(work(log), 20)
    for other in (work(log, seed=1), work(log, tuner="random"), work(log, device=PerturbedDevice("paged"))):
        with pytest.raises(LogError, match="another run"):
            run(other, 20)
    lines = log.read_text().splitlines(keepends=True)
    changed = json.loads(lines[3]) | {"index": json.loads(lines[4])["index"]}
    log.write_text("".join([*lines[:3], json.dumps(changed) + "\n", *lines[4:]]))
    with pytest.raises(LogError, match="does not fit"):
        run(work(log), 20)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}\n",
        "nonsense\n",
        '{"format": "oneshot-ml2 tuning", "schema": 2}\n',
        '{"format": "oneshot-ml2 tuning", "schema": 1}\n',
        "[1]\n",
        None,
    ],
)
def test_files_that_are_no_logs(content: str | None, tmp_path: Path, run_command: RunCommand) -> None:
    path = tmp_path / "log.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(LogError, match="log"):
        read_log(path)
    code, _, err = run_command("history", path)
    assert code == 2
    assert err.count("\n") == 1


def test_the_exact_check_costs_no_trials(tmp_path: Path) -> None:
    for tuner in ("random", "ml2-scratch", "autotvm"):
        history = run(work(tmp_path / f"{tuner}.jsonl", tuner=tuner, checked=True), 40)
        assert len(history) == 40
        assert history.invalid_rate == 0.0
    assert run(work(tuner="random"), 40).invalid_rate > 0.1


def test_the_end_of_a_space_ends_the_run() -> None:
    space = ScheduleSpace(Conv2d(1, 16, 4, 4, 32, 1, 1), Accelerator.load("pynq"), "autotvm")
    domain = Domain.of(space)
    found = Run(space, lambda: make_tuner("random", domain), SimulatorDevice(), "random", 0)
    assert len(run(found, 10_000)) == len(domain)


# Devices that fail ---------------------------------------------------------------------------
def expected_failures(history: History) -> np.ndarray:
    """Trials of the schedules that the device breaks at; those that do not lower never reach their fault's end."""
    return history.outcomes.indices % 5 == 0


@pytest.mark.parametrize("fault", ["raise", "nothing", "nan", "negative", "fast", "huge", "reason"])
def test_garbage_and_exceptions_cost_their_trials_only(fault: str) -> None:
    history = run(work(device=Faulty(fault), tuner="random", retries=1), 100)
    odd, done = expected_failures(history), history.outcomes
    if fault == "nothing":
        # The whole batch's answer is lost; each schedule then comes alone, as it is tried again.
        assert (done.reason[odd] == Reason.DEVICE_ERROR).all()
        assert np.array_equal(done.reason[~odd], SPACE.measure(done.indices[~odd]).reason)
        return
    assert (done.reason[odd] == Reason.DEVICE_ERROR).all()
    truth = SPACE.measure(done.indices[~odd])
    assert np.array_equal(done.reason[~odd], truth.reason)
    assert np.array_equal(done.cycles[~odd], truth.cycles)


def test_a_device_that_says_what_is_wrong_with_its_settings_stops_the_run() -> None:
    class Misconfigured(Faulty):
        def measure_schedules(self, space: ScheduleSpace, indices: np.ndarray) -> object:
            raise DeviceError("no such board")

    with pytest.raises(DeviceError, match="no such board"):
        run(work(device=Misconfigured("raise")), 10)


@pytest.mark.parametrize("fault", ["crash", "hang"])
def test_crashes_and_hangs_end_the_devices_process_only(fault: str) -> None:
    first = make_tuner("random", Domain.of(SPACE), 0).propose(5)
    device = Faulty(fault, bad=int(first[2]))
    # Compiled code is cached by now, but a busy machine takes its time.
    history = run(
        work(device=device, tuner="random", retries=0, timeout=15.0 if fault == "hang" else 120.0, batch=5), 5
    )
    done = history.outcomes
    assert np.array_equal(done.indices, first)
    odd = np.arange(5) == 2
    assert done.reason[2] == (Reason.DEVICE_ERROR if fault == "crash" else Reason.TIMEOUT)
    assert np.array_equal(done.cycles[~odd], SPACE.measure(done.indices[~odd]).cycles)


def test_transient_failures_are_tried_again() -> None:
    noisy = PerturbedDevice("noisy", 1)
    tries = {retries: run(work(device=noisy, tuner="random", retries=retries), 200) for retries in (0, 3)}
    lost = {
        n: history.reasons().get("device_error", 0) + history.reasons().get("timeout", 0)
        for n, history in tries.items()
    }
    assert lost[0] > 8
    assert lost[3] < lost[0] / 4
    assert (tries[0].attempts == 1).all()
    assert 1 < tries[3].attempts.max() <= 4


# history -------------------------------------------------------------------------------------
def test_history_prints_and_plots(tmp_path: Path, run_command: RunCommand) -> None:
    logs = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    histories = [run(work(logs[0]), 30), run(work(logs[1], tuner="random"), 120)]
    code, out, err = run_command("history", *logs, "--plot", tmp_path / "curve.png")
    assert (code, err) == (0, "")
    for history in histories:
        assert f"{(history.best or (0, 0))[1]:,}" in out
    assert "best: tile_co=" in out
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = run_command("history", *logs, "--json")
    data = json.loads(out)
    assert [row["trials"] for row in data] == [30, 120]
    assert data[1]["best_so_far"][-1] == data[1]["best_cycles"] == (histories[1].best or (0, 0))[1]
    assert data[0]["reasons"] == histories[0].reasons()


def test_history_of_a_run_without_a_valid_trial(tmp_path: Path, run_command: RunCommand) -> None:
    class Broken(Faulty):
        def measure_schedules(self, space: ScheduleSpace, indices: np.ndarray) -> BatchResult:
            n = len(indices)
            return BatchResult(np.full(n, Reason.WRONG_RESULT, np.uint8), np.full(n, -1), np.zeros((n, 3), np.int64))

    history = run(work(tmp_path / "log.jsonl", device=Broken("")), 12)
    assert history.best is None
    assert history.invalid_rate == 1.0
    code, out, _ = run_command("history", tmp_path / "log.jsonl")
    assert code == 0
    assert "12 wrong_result" in out
    code, _, err = run_command("history", tmp_path / "log.jsonl", "--plot", tmp_path / "x.png")
    assert code == 2
    assert "nothing to plot" in err


def test_outcomes_add_up() -> None:
    one = Outcomes(np.array([1]), np.zeros(1, np.uint8), np.array([5]))
    both = Outcomes.none() + one + one
    assert len(both) == 2
    assert both.take(slice(1, 2)).cycles.tolist() == [5]
