"""The runner: logs and resuming, retries, devices that fail, crash, hang or answer garbage; and `history`."""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import RunCommand

from oneshot_ml2.common.errors import DeviceError
from oneshot_ml2.devices.boards import Differences
from oneshot_ml2.devices.perturbed import PerturbedDevice
from oneshot_ml2.devices.simulated import SimulatorDevice
from oneshot_ml2.spaces.base import BatchResult
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.tuning.base import Domain, Outcomes, Tuner
from oneshot_ml2.tuning.log import FORMAT, History, LogError, read_log
from oneshot_ml2.tuning.measure import SURE, WARY, Health, Limits, Measurer, Trial
from oneshot_ml2.tuning.registry import make_tuner
from oneshot_ml2.tuning.run import Run, run
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.bound import engine_bound
from oneshot_ml2.vta.reasons import Reason
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.epilogue import Epilogue

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

    def warm_up(self, space: ScheduleSpace) -> None:
        # So that time limits are short: loading compiled code is no program's time.
        SimulatorDevice().warm_up(space)

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


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytes]:
    """The log of a run that nobody killed, by its tuner; each run is made once."""
    folder = tmp_path_factory.mktemp("undisturbed")

    @functools.cache
    def log(tuner: str) -> bytes:
        path = folder / f"{tuner}.jsonl"
        run(work(path, tuner=tuner, device=PerturbedDevice("noisy", 5)), 75)
        return path.read_bytes()

    return log


def slow(cut: int) -> object:
    """A parameter of the slow tests."""
    return pytest.param(cut, marks=pytest.mark.slow)


@pytest.mark.parametrize("tuner", ["random", "autotvm", "ml2-scratch", "ml2-warm", "rieber+ml2-scratch"])
@pytest.mark.parametrize("cut", [0, 1, slow(137), 2500, slow(6001)])
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    tuner: str, cut: int, undisturbed: Callable[[str], bytes], tmp_path: Path
) -> None:
    content = undisturbed(tuner)
    part = tmp_path / "part.jsonl"
    # Wherever it was killed: between trials, within a line, within the header.
    part.write_bytes(content[: max(len(content) - cut * 3, 10)])
    run(work(part, tuner=tuner, device=PerturbedDevice("noisy", 5)), 75)
    assert part.read_bytes() == content


def test_what_is_logged_is_not_measured_again(tmp_path: Path) -> None:
    log, calls = tmp_path / "log.jsonl", tmp_path / "calls"
    run(work(log, device=Faulty("nan", calls), retries=0, failures=0), 30)
    first = calls.read_text()
    history = run(work(log, device=Faulty("nan", calls), retries=0, failures=0), 50)
    assert calls.read_text().startswith(first)
    measured = [int(line) for line in calls.read_text().split()]
    assert len(measured) == history.programs
    assert list(dict.fromkeys(measured)) == history.outcomes.indices.tolist()


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


def test_a_damaged_log_is_read_and_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, log, calls = tmp_path / "whole.jsonl", tmp_path / "log.jsonl", tmp_path / "calls"
    run(work(whole, tuner="random", device=Faulty("none", bad=-1)), 40)
    lines = whole.read_text().splitlines(keepends=True)
    two = [line for line in lines[1:21] for _ in range(2)]
    for damaged, lost in (
        ([*lines[:9], lines[9][:50] + "\n", *lines[10:]], 1),
        ([*lines[:9], lines[9][:50], *lines[10:]], 1),
        ([*lines[:9], "hello\n", *lines[9:]], 0),
        ([lines[0], *two], 20),
        ([lines[0], *lines], 0),
    ):
        for copy in tmp_path.glob("log.jsonl*"):
            copy.unlink()
        calls.write_text("")
        log.write_text("".join(damaged))
        assert len(read_log(log)) == 40 - lost
        run(work(log, tuner="random", device=Faulty("none", calls, bad=-1)), 40)
        assert [json.loads(line) | {"repeats": 0} for line in log.read_text().splitlines()] == [
            json.loads(line) | {"repeats": 0} for line in lines
        ]
        assert (tmp_path / "log.jsonl.damaged").read_text() == "".join(damaged)
        # What was whole was not measured again.
        assert len(set(calls.read_text().split())) == lost
        assert capsys.readouterr().err.count("warning") >= 1


def test_impossible_figures_in_a_log_are_foreign_lines(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    run(work(log, tuner="random"), 12)
    lines = log.read_text().splitlines(keepends=True)
    entry = json.loads(lines[5])
    for change in (
        {"index": -1}, {"index": 10**30}, {"index": 1.5}, {"index": len(SPACE)}, {"cycles": 1e400}, {"cycles": "7"},
        {"reason": "magic"}, {"attempts": 0}, {"attempts": True}, {"trial": -4}, {"repeats": 7}, {"repeats": ["x"]},
        {"reason": "valid", "cycles": None}, {"reason": "timeout", "cycles": 7},
    ):  # fmt: skip
        log.write_text("".join([*lines[:5], json.dumps(entry | change) + "\n", *lines[6:]]))
        assert len(read_log(log)) == 11, change


def test_a_cut_log_is_not_called_empty(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    run(work(log, tuner="random"), 3)
    log.write_bytes(log.read_bytes()[:100])
    with pytest.raises(LogError, match="cut short"):
        read_log(log)
    log.write_bytes(b"")
    with pytest.raises(LogError, match="empty"):
        read_log(log)


def test_two_runs_on_one_log(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    with work(log) as first:
        first.step(5)
        with pytest.raises(LogError, match="another process is at work"):
            run(work(log), 20)
        first.step(5)
    assert len(read_log(log)) == len(first.history)


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


class Misconfigured(Faulty):
    """A device that cannot be used as it is set up."""

    def measure_schedules(self, space: ScheduleSpace, indices: np.ndarray) -> object:
        raise DeviceError("no such board")


def test_a_device_that_says_what_is_wrong_with_its_settings_stops_the_run() -> None:
    with pytest.raises(DeviceError, match="no such board"):
        run(work(device=Misconfigured("raise")), 10)


@pytest.mark.parametrize("fault", ["crash", "hang"])
def test_crashes_and_hangs_end_the_devices_process_only(fault: str) -> None:
    first = make_tuner("random", Domain.of(SPACE), 0).propose(5)
    device = Faulty(fault, bad=int(first[2]))
    # A program takes milliseconds, but a busy machine takes its time.
    limit = 5.0 if fault == "hang" else 120.0
    history = run(work(device=device, tuner="random", retries=0, timeout=limit, batch=5), 5)
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


# Devices that lie ----------------------------------------------------------------------------
class Scripted:
    """Says one thing after another of every schedule: cycles, or a reason; the last for ever."""

    name = "scripted"

    def __init__(self, *says: int | Reason, only: int | None = None) -> None:
        self.says, self.only = says, only
        self.calls: list[int] = []

    def measure_schedules(self, space: ScheduleSpace, indices: np.ndarray) -> BatchResult:
        given = []
        for index in indices.tolist():
            said = self.calls.count(index)
            given.append(self.says[min(said, len(self.says) - 1)])
            self.calls.append(index)
        reason = [said if isinstance(said, Reason) else Reason.VALID for said in given]
        cycles = [-1 if isinstance(said, Reason) else said for said in given]
        return BatchResult(np.array(reason, np.uint8), np.array(cycles), np.zeros((len(given), 3), np.int64))

    def measure(self, programs: object) -> list[object]:
        raise NotImplementedError


def measured(device: object, lead: int = SURE, n: int = 1, **limits: object) -> list[Trial]:
    measurer = Measurer(device, SPACE, Limits(**limits))  # type: ignore[arg-type]
    return list(measurer(np.arange(n), lambda index, cycles, health: lead))


def test_what_most_measurements_agree_on_is_believed() -> None:
    (trial,) = measured(Scripted(6000, 10_000, 10_100, 10_200, 9900))
    assert (trial.cycles, trial.repeats) == (10_050, (6000, 10_000, 10_100, 10_200, 9900))
    (trial,) = measured(Scripted(10_000, 10_300, 10_100))
    assert (trial.cycles, trial.repeats, trial.programs) == (10_100, (10_000, 10_300, 10_100), 3)
    (trial,) = measured(Scripted(10_000), lead=0)
    assert (trial.cycles, trial.repeats, trial.programs) == (10_000, (), 1)
    # Failures of the device in between do not count, a failure of the program does; and one that lasts.
    (trial,) = measured(Scripted(10_000, Reason.TIMEOUT, 10_000, 10_000))
    assert (trial.cycles, trial.repeats) == (10_000, (10_000, -1, 10_000, 10_000))
    (trial,) = measured(Scripted(10_000, 10_000, Reason.WRONG_RESULT))
    assert (trial.reason, trial.cycles) == (Reason.WRONG_RESULT, -1)
    (trial,) = measured(Scripted(10_000, Reason.DEVICE_ERROR))
    assert (trial.reason, trial.cycles, trial.programs) == (Reason.DEVICE_ERROR, -1, 4)
    # Where no part agrees, the median of all.
    (trial,) = measured(Scripted(*(10_000 * (1 + i % 3) for i in range(40))), lead=WARY)
    assert (trial.cycles, len(trial.repeats)) == (20_000, 25)


def test_a_time_below_the_proven_bound_is_not_believed() -> None:
    least = engine_bound(SPACE.workload, SPACE.accelerator).least_compute
    (trial,) = measured(Scripted(least - 1), lead=0)
    assert (trial.reason, trial.attempts) == (Reason.DEVICE_ERROR, 3)
    (trial,) = measured(Scripted(least - 1, least), lead=0)
    assert (trial.reason, trial.cycles, trial.attempts) == (Reason.VALID, least, 2)


@pytest.mark.parametrize("accelerator", ["pynq", "bus256"])
def test_nothing_computes_faster_than_the_proven_bound(accelerator: str) -> None:
    chip = Accelerator.load(accelerator)
    for layer in (SPACE.workload, Conv2d(1, 16, 5, 5, 16, 1, 1, epilogue=Epilogue(bias=True))):
        space = ScheduleSpace(layer, chip)
        bound = engine_bound(layer, chip)
        busy = space.measure(space.sample(np.random.default_rng(0), 300))
        assert 0 < bound.least_compute <= bound.compute
        assert busy.cycles[busy.cycles > 0].min() >= bound.least_compute


def liar(seed: int) -> PerturbedDevice:
    return PerturbedDevice("paged", seed, Differences(lies=0.2, lie=0.6, noise=0.01))


def test_a_device_that_lies_does_not_win() -> None:
    right = 0
    for seed in range(12):
        device = liar(seed)
        history = run(work(device=device, tuner="random", seed=seed, checked=True), 50)
        true = device.true_cycles(SPACE, history.outcomes.indices).cycles
        index, cycles = history.best or (0, 0)
        found = true[history.outcomes.indices == index][0]
        # The best that was tried, and what it takes, within the noise.
        right += bool(found <= 1.03 * true[true > 0].min() and abs(cycles / found - 1) < 0.04)
        assert history.programs > len(history)
    assert right >= 11


def test_programs_that_always_lie_do_not_win() -> None:
    for seed in range(6):
        device = PerturbedDevice("paged", seed, Differences(liars=0.2, lie=0.6, noise=0.005))
        started = work(device=device, tuner="random", seed=seed, checked=True)
        history = run(started, 60)
        index, cycles = history.best or (0, 0)
        true = device.true_cycles(SPACE, history.outcomes.indices).cycles
        told = history.outcomes.cycles
        # What is told is a lie here and there, and would have won; what wins is the best of what is none.
        fastest = history.outcomes.indices[told == told[told > 0].min()]
        assert told[told > 0].min() < 0.8 * true[true > 0].min()
        honest = true[(told > 0.8 * true) & (true > 0)]
        found = true[history.outcomes.indices == index][0]
        assert abs(cycles / found - 1) < 0.04 and found <= 1.02 * honest.min()
        assert set(fastest.tolist()) <= history.doubted and index not in history.doubted


def test_a_board_that_is_faster_than_described_is_believed() -> None:
    class Fast:
        name = "fast"

        def measure_schedules(self, space: ScheduleSpace, indices: np.ndarray) -> BatchResult:
            found = space.measure(indices)
            return BatchResult(found.reason, np.where(found.cycles > 0, found.cycles * 2 // 3, -1), found.busy)

        def measure(self, programs: object) -> list[object]:
            raise NotImplementedError

    started = work(device=Fast(), tuner="random", checked=True)
    history = run(started, 40)
    # Of what is below the bound of compute alone nothing is believed; of the rest all.
    assert history.best is not None and not history.doubted


def test_an_honest_device_is_asked_little_more_and_a_deterministic_one_nothing(tmp_path: Path) -> None:
    honest = PerturbedDevice("paged", 1, Differences(noise=0.01))
    history = run(work(device=honest, tuner="random", checked=True), 60)
    again = [trial for trial in history.trials if trial.repeats]
    assert history.trials[0].repeats and len(history.trials[0].repeats) == WARY
    assert {len(trial.repeats) for trial in again[1:]} <= {SURE, WARY}
    assert history.programs - len(history) < 40
    assert run(work(tuner="random", checked=True), 60).programs == 60
    log = tmp_path / "log.jsonl"
    assert run(work(log, device=honest, tuner="random", checked=True), 20).trials == read_log(log).trials


def test_a_liars_run_that_was_cut_anywhere_ends_with_the_same_log(tmp_path: Path) -> None:
    whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    run(work(whole, tuner="random", device=liar(3)), 40)
    content = whole.read_bytes()
    for cut in np.linspace(1, len(content), 8).astype(int).tolist():
        part.write_bytes(content[:cut])
        run(work(part, tuner="random", device=liar(3)), 40)
        assert part.read_bytes() == content


# Devices that are gone -----------------------------------------------------------------------
class Goes(PerturbedDevice):
    """A device that is gone after so many measurements."""

    def __init__(self, after: int) -> None:
        super().__init__("paged", 1, Differences(noise=0.01))
        self.left = after

    def measure_schedules(self, space: ScheduleSpace, indices: np.ndarray) -> BatchResult:
        if self.left < len(indices):
            raise ConnectionError("no route to host")
        self.left -= len(indices)
        return super().measure_schedules(space, indices)


def test_a_device_that_is_gone_stops_the_run_and_nothing_is_lost(tmp_path: Path) -> None:
    whole, log = tmp_path / "whole.jsonl", tmp_path / "log.jsonl"
    run(work(whole, tuner="random", device=Goes(10_000), batch=4), 40)
    with pytest.raises(DeviceError, match=r"5 schedules in a row \(5 device_error; .*no route.* CLOCK_MHZ .*kept"):
        run(work(log, tuner="random", device=Goes(35), batch=4, failures=5), 40)
    kept = log.read_bytes()
    assert whole.read_bytes().startswith(kept) and kept.count(b"\n") > 5
    assert "device_error" not in kept.decode()
    run(work(log, tuner="random", device=Goes(10_000), batch=4), 40)
    assert log.read_bytes() == whole.read_bytes()


def test_failures_of_programs_never_stop_a_run_and_those_of_the_device_may_be_let() -> None:
    history = run(work(device=Scripted(Reason.WRONG_RESULT), tuner="random", failures=3), 40)
    assert history.reasons() == {"wrong_result": 40}
    history = run(work(device=Scripted(Reason.TIMEOUT), tuner="random", failures=0, retries=0), 40)
    assert history.reasons() == {"timeout": 40}


def test_one_device_is_counted_over_all_that_measure_on_it() -> None:
    health = Health(4)
    gone = Scripted(Reason.DEVICE_ERROR)
    parts = [Measurer(gone, SPACE, Limits(), health)(np.arange(3)) for _ in range(2)]
    assert [trial.reason for trial in parts[0]] == [Reason.DEVICE_ERROR] * 3
    with pytest.raises(DeviceError, match="4 schedules in a row"):
        list(parts[1])
    health.saw(Trial(0, Reason.VALID, 5, 1))
    health.saw(Trial(0, Reason.TIMEOUT, -1, 1))


# Devices in a process of their own -----------------------------------------------------------
class SlowToBegin(SimulatorDevice):
    """A device that takes its time to open, in every process."""

    def __setstate__(self, state: object) -> None:
        time.sleep(2.5)

    def __getstate__(self) -> tuple[str]:
        return ("slow",)

    def warm_up(self, space: ScheduleSpace) -> None:
        super().warm_up(space)
        time.sleep(2.5)


def test_a_time_limit_is_a_programs_alone() -> None:
    # What a process takes to begin, to open the device and to load compiled code is no program's time.
    history = run(work(device=SlowToBegin(), tuner="random", retries=0, timeout=2.0, checked=True), 3)
    assert history.reasons() == {"valid": 3}


def test_what_a_device_says_of_its_settings_reaches_the_user_from_its_process() -> None:
    with pytest.raises(DeviceError, match="no such board"):
        run(work(device=Misconfigured("raise"), timeout=60.0), 10)


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
