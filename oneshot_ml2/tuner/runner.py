"""Runs a tuner on a device: batches, retries, timeouts, errors by class, and a log from which a killed run goes on.

The log is JSON Lines: a header that says what is tuned by what, then a line for each trial in order. A run with the
log of an earlier one asks a tuner of the same seed again, gives it the logged outcomes instead of measuring, and goes
on behind them, so that it ends with the same log as if it had never stopped.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing import connection
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.accelerator import Accelerator
from oneshot_ml2.corpus import task_id
from oneshot_ml2.device import Device
from oneshot_ml2.errors import OneShotError
from oneshot_ml2.files import parse_json, whole_number
from oneshot_ml2.schedule import TRANSIENT, BatchResult, Reason, ScheduleSpace, backend
from oneshot_ml2.tuner import Outcomes, Tuner
from oneshot_ml2.workload import Workload, workload_from_dict

FORMAT = "oneshot-ml2 tuning"
SCHEMA = 1
# No program computes faster than this share of its compute engine's own operations: the device answers garbage.
_LEAST_SHARE = 0.5
_REASONS = {reason.label: reason for reason in Reason}


class LogError(OneShotError, ValueError):
    """A log that is unreadable, foreign, or of another run."""


@dataclass(frozen=True)
class Limits:
    """How a run measures.

    ``batch``: trials between two observations; ``retries``: further tries after a transient failure; ``timeout``:
    seconds for one program, after which the process that measures is ended, None: measured in this process, without;
    ``start``: seconds that such a process may take to begin; ``checked``: what the exact closed form says does not
    lower is told to the tuner and costs no trial.
    """

    batch: int = 10
    retries: int = 2
    timeout: float | None = None
    start: float = 120.0
    checked: bool = False


@dataclass(frozen=True)
class Header:
    """What a log is about; two runs with equal headers make the same trials."""

    workload: Workload
    accelerator: Accelerator
    space: str
    tuner: str
    seed: int
    device: str
    batch: int
    settings: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "format": FORMAT,
            "schema": SCHEMA,
            "task": task_id(self.workload, self.accelerator, self.space),
            "workload": self.workload.to_dict(),
            "accelerator": json.loads(self.accelerator.to_json()) | {"name": self.accelerator.name},
            "space": self.space,
            "space_version": backend(self.space).SPACE_VERSION,
            "tuner": self.tuner,
            "seed": self.seed,
            "device": self.device,
            "batch": self.batch,
            "settings": self.settings,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Header:
        """The inverse of :meth:`to_dict`.

        Raises:
            KeyError, OneShotError: a part is missing or wrong.
        """
        chip = dict(data["accelerator"])
        name = str(chip.pop("name"))
        return cls(
            workload_from_dict(data["workload"]),
            Accelerator.from_json(chip, name),
            str(data["space"]),
            str(data["tuner"]),
            whole_number(data["seed"], "seed"),
            str(data["device"]),
            whole_number(data["batch"], "batch", 1),
            dict(data["settings"]),
        )


@dataclass(frozen=True)
class History:
    """The trials of a run in order; ``attempts``: int64 (n,), how often each was tried."""

    header: Header
    outcomes: Outcomes
    attempts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.outcomes)

    @cached_property
    def best_so_far(self) -> NDArray[np.float64]:
        """Least valid cycles up to each trial, float64 (n,); infinite before the first valid one."""
        cycles = np.where(self.outcomes.valid, self.outcomes.cycles, np.inf)
        return np.asarray(np.minimum.accumulate(cycles) if len(cycles) else cycles, dtype=np.float64)

    @property
    def best(self) -> tuple[int, int] | None:
        """(index, cycles) of the fastest valid trial, the first of equals; None without one."""
        valid = np.flatnonzero(self.outcomes.valid)
        if not len(valid):
            return None
        first = valid[self.outcomes.cycles[valid].argmin()]
        return int(self.outcomes.indices[first]), int(self.outcomes.cycles[first])

    @property
    def invalid_rate(self) -> float:
        """Invalid trials over trials; NaN without trials."""
        return float((~self.outcomes.valid).mean()) if len(self) else float("nan")

    def trials_to(self, cycles: float) -> int | None:
        """Trials until one takes at most so many cycles; None if none does."""
        return trials_to(self.outcomes, cycles)

    def reasons(self) -> dict[str, int]:
        """How many trials ended in which way, by label, in the order of `Reason`."""
        counts = np.bincount(self.outcomes.reason, minlength=len(Reason))
        return {reason.label: int(counts[reason]) for reason in Reason if counts[reason]}


def trials_to(outcomes: Outcomes, cycles: float) -> int | None:
    """Trials until one is valid and takes at most so many cycles; None if none does."""
    met = np.flatnonzero(outcomes.valid & (outcomes.cycles <= cycles))
    return int(met[0]) + 1 if len(met) else None


# The log ---------------------------------------------------------------------------------------
def read_log(path: str | Path) -> History:
    """The trials of a log. A last line that was cut short, as a killed run leaves it, is no trial.

    Raises:
        LogError: an unreadable or foreign file.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        lines = _whole_lines(content)
        if content and not lines:
            raise ValueError("its first line is cut short")
        header = _parse_header(lines)
        size = len(ScheduleSpace(header.workload, header.accelerator, header.space))
        trials = [_parse_trial(line, size) for line in lines[1:]]
        columns = np.array(trials, dtype=np.int64).reshape(len(trials), 5)
        outcomes = Outcomes(columns[:, 1], columns[:, 2].astype(np.uint8), columns[:, 3])
        attempts = columns[:, 4]
        if (columns[:, 0] != np.arange(len(trials))).any():
            raise ValueError("trials out of order")
    except OSError as error:
        raise LogError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, IndexError, OneShotError) as error:
        if isinstance(error, LogError):
            raise
        raise LogError(f"{path} is no tuning log ({error!r}); `oneshot-ml2 refine --log` writes one") from error
    return History(header, outcomes, attempts)


def _whole_lines(content: bytes) -> list[str]:
    """Lines that end with a newline."""
    return content[: content.rfind(b"\n") + 1].decode("utf-8").splitlines()


def _parse_header(lines: Sequence[str]) -> Header:
    if not lines:
        raise ValueError("it is empty")
    data = parse_json(lines[0], "its first line")
    if not isinstance(data, dict) or data.get("format") != FORMAT or data.get("schema") != SCHEMA:
        raise ValueError("another format or schema")
    return Header.from_dict(data)


def _parse_trial(line: str, size: int) -> tuple[int, int, int, int, int]:
    """(trial, index, reason, cycles or -1, attempts) of a line of a space of ``size`` schedules.

    Raises:
        ValueError, KeyError, TypeError, OneShotError: it is no trial.
    """
    data = parse_json(line, "a trial")
    reason = _REASONS[data["reason"]]
    cycles = -1 if data["cycles"] is None else whole_number(data["cycles"], "cycles", 1, 1 << 62)
    if (cycles > 0) != (reason == Reason.VALID):
        raise ValueError(f"cycles {cycles} of a trial that is {reason.label}")
    return (
        whole_number(data["trial"], "trial", 0),
        whole_number(data["index"], "index", 0, size - 1),
        int(reason),
        cycles,
        whole_number(data["attempts"], "attempts", 0, 1 << 31),
    )


def _line(trial: int, space: ScheduleSpace, index: int, reason: int, cycles: int, attempts: int) -> str:
    seconds = None if cycles < 0 else cycles / (space.accelerator.clock_mhz * 1e6)
    data = {
        "trial": trial,
        "index": index,
        "schedule": dict(space.schedule(index).knobs),
        "reason": Reason(reason).label,
        "cycles": None if cycles < 0 else cycles,
        "seconds": seconds,
        "attempts": attempts,
    }
    return json.dumps(data, separators=(",", ":")) + "\n"


@contextmanager
def _open_log(path: Path | None, header: Header) -> Iterator[tuple[History | None, Callable[[str], None]]]:
    """What a log holds already, and a function that appends whole lines; a cut line at its end is taken off."""
    if path is None:
        yield None, lambda text: None
        return
    earlier = None
    if path.exists() and _whole_lines(path.read_bytes()):
        earlier = read_log(path)
        if earlier.header.to_dict() != header.to_dict():
            raise LogError(f"{path} is the log of another run; give another file, or remove it to begin anew")
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab" if earlier is not None else "wb") as file:

        def write(text: str) -> None:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())

        if earlier is None:
            write(json.dumps(header.to_dict(), separators=(",", ":")) + "\n")
        yield earlier, write


# Measuring -------------------------------------------------------------------------------------
def _serve(device: Device, pipe: connection.Connection) -> None:
    """A process that measures one schedule after another until the pipe closes."""
    pipe.send("ready")
    while True:
        try:
            space, index = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(device.measure_schedules(space, np.array([index], dtype=np.int64)))
        except Exception as error:
            pipe.send(repr(error))


class _Isolated:
    """A device in a process of its own, which is ended when it takes too long, and begun anew after a crash."""

    def __init__(self, device: Device, limits: Limits) -> None:
        self._device, self._limits = device, limits
        self._process: Any = None
        self._pipe: connection.Connection | None = None

    def _started(self) -> connection.Connection:
        if self._pipe is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(self._device, theirs), daemon=True)
            self._process.start()
            theirs.close()
            if not self._pipe.poll(self._limits.start):
                self.close()
                raise OneShotError(f"the device's process did not begin within {self._limits.start:.0f} s")
            try:
                self._pipe.recv()
            except EOFError as error:
                self.close()
                raise OneShotError("the device's process ended before it began; does the device open?") from error
        return self._pipe

    def measure(self, space: ScheduleSpace, index: int) -> BatchResult | Reason:
        """One schedule's result, or how the device failed."""
        pipe = self._started()
        try:
            pipe.send((space, index))
            if not pipe.poll(self._limits.timeout):
                self.close()
                return Reason.TIMEOUT
            answer = pipe.recv()
        except (EOFError, OSError):
            self.close()
            return Reason.DEVICE_ERROR
        return answer if isinstance(answer, BatchResult) else Reason.DEVICE_ERROR

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None


def _checked(result: Any, n: int, least: float) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """A device's answer for n schedules as reasons and cycles; what cannot be is ``device_error``.

    ``least``: cycles that no program can be faster than.
    """
    reason, cycles = np.full(n, Reason.DEVICE_ERROR, np.uint8), np.full(n, -1, np.int64)
    try:
        given = np.asarray(result.reason).astype(np.int64).reshape(n)
        numbers = np.asarray(result.cycles, dtype=np.float64).reshape(n)
    except (AttributeError, TypeError, ValueError):
        return reason, cycles
    for i in range(n):
        if given[i] == Reason.VALID and np.isfinite(numbers[i]) and least <= numbers[i] < 1 << 62:
            reason[i], cycles[i] = Reason.VALID, int(numbers[i])
        elif Reason.VALID < given[i] < len(Reason):
            reason[i] = given[i]
    return reason, cycles


class Measurer:
    """Measures schedules of one space with retries; `close` it at the end."""

    def __init__(self, device: Device, space: ScheduleSpace, limits: Limits) -> None:
        from oneshot_ml2.vta.bound import engine_bound

        self._device, self._space, self._limits = device, space, limits
        self._least = max(1.0, _LEAST_SHARE * engine_bound(space.workload, space.accelerator).compute)
        self._isolated = _Isolated(device, limits) if limits.timeout is not None else None

    def __call__(self, indices: NDArray[np.int64]) -> tuple[Outcomes, NDArray[np.int64]]:
        """Outcomes of schedules (n,), and how often each was tried, int64 (n,)."""
        reason, cycles = self._try(indices)
        attempts = np.ones(len(indices), dtype=np.int64)
        for _ in range(self._limits.retries):
            again = np.flatnonzero(np.isin(reason, TRANSIENT))
            for i in again.tolist():
                reason[i : i + 1], cycles[i : i + 1] = self._try(indices[i : i + 1])
                attempts[i] += 1
        return Outcomes(indices, reason, cycles), attempts

    def _try(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        if self._isolated is not None:
            answers = [self._alone(index) for index in indices.tolist()]
            return np.concatenate([a for a, _ in answers]), np.concatenate([b for _, b in answers])
        try:
            result = self._device.measure_schedules(self._space, indices)
        except OneShotError:
            raise
        except Exception:
            # One of them breaks the device: which one shows when they come alone.
            if len(indices) == 1:
                return np.array([Reason.DEVICE_ERROR], np.uint8), np.array([-1], np.int64)
            answers = [self._try(indices[i : i + 1]) for i in range(len(indices))]
            return np.concatenate([a for a, _ in answers]), np.concatenate([b for _, b in answers])
        return _checked(result, len(indices), self._least)

    def _alone(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        answer = cast(_Isolated, self._isolated).measure(self._space, index)
        if isinstance(answer, Reason):
            return np.array([answer], np.uint8), np.array([-1], np.int64)
        return _checked(answer, 1, self._least)

    def close(self) -> None:
        """End the device's process, if it has one."""
        if self._isolated is not None:
            self._isolated.close()


# The run ---------------------------------------------------------------------------------------
class Run:
    """A tuner at work on a space, batch by batch, with its log. Use as a context.

    Raises on entering:
        LogError: the log is foreign, or of another run.
    """

    def __init__(
        self,
        space: ScheduleSpace,
        make: Callable[[], Tuner],
        device: Device,
        name: str,
        seed: int,
        limits: Limits | None = None,
        log: str | Path | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        """``make``: the tuner, from the seed; ``name``, ``settings``: what the log calls it."""
        self.limits = limits or Limits()
        self.space = space
        settings = {"checked": self.limits.checked, "retries": self.limits.retries} | (settings or {})
        self.header = Header(
            space.workload, space.accelerator, space.kind, name, seed, device.name, self.limits.batch, settings
        )
        self._device, self._make = device, make
        self._path = None if log is None else Path(log)
        self._outcomes, self._attempts = Outcomes.none(), np.empty(0, dtype=np.int64)
        self.exhausted = False

    def __enter__(self) -> Run:
        # First what may fail: a log is begun only for a run that can begin.
        self._tuner = self._make()
        self._log = _open_log(self._path, self.header)
        self._earlier, self._write = self._log.__enter__()
        self._measurer = Measurer(self._device, self.space, self.limits)
        self._pending: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._batch = Outcomes.none()
        return self

    def __exit__(self, *error: object) -> None:
        self._measurer.close()
        self._log.__exit__(None, None, None)

    @property
    def history(self) -> History:
        """The trials so far."""
        return History(self.header, self._outcomes, self._attempts)

    def _next_batch(self) -> NDArray[np.int64]:
        """Let the tuner learn from the last batch and propose the next, int64 (n,); 0 at the end of the space."""
        while True:
            self.observe()
            proposed = self._tuner.propose(self.limits.batch)
            if not self.limits.checked or not len(proposed):
                return proposed
            reason = self.space.validity(proposed)
            bad = reason != Reason.VALID
            self._batch = Outcomes(proposed[bad], reason[bad], np.full(int(bad.sum()), -1, np.int64))
            if not bad.all():
                return proposed[~bad]

    def observe(self) -> None:
        """Let the tuner learn from a batch that is complete; without this it does before its next one."""
        if len(self._batch) and not len(self._pending):
            self._tuner.observe(self._batch)
            self._batch = Outcomes.none()

    def step(self, most: int) -> int:
        """Make up to ``most`` trials of the current batch, beginning one if need be; returns how many were made."""
        if not len(self._pending):
            self._pending = self._next_batch()
            if not len(self._pending):
                self.exhausted = True
                return 0
        now, self._pending = self._pending[:most], self._pending[most:]
        done = len(self._outcomes)
        logged = Outcomes.none() if self._earlier is None else self._earlier.outcomes
        replayed = logged.take(slice(done, done + len(now)))
        if (replayed.indices != now[: len(replayed)]).any():
            raise LogError(f"{self._path} does not fit this version's tuner; give another file, or remove it")
        attempts = np.empty(0, np.int64) if self._earlier is None else self._earlier.attempts[done : done + len(now)]
        if len(replayed) < len(now):
            measured, tries = self._measurer(now[len(replayed) :])
            rows = zip(measured.indices.tolist(), measured.reason.tolist(), measured.cycles.tolist(), tries.tolist())
            first = done + len(replayed)
            self._write("".join(_line(first + i, self.space, *row) for i, row in enumerate(rows)))
            replayed, attempts = replayed + measured, np.concatenate([attempts, tries])
        self._outcomes, self._attempts = self._outcomes + replayed, np.concatenate([self._attempts, attempts])
        self._batch = self._batch + replayed
        return len(now)


def run(work: Run, trials: int, progress: bool = False) -> History:
    """Make trials until there are ``trials`` in all (those in the log included), or the space is exhausted."""
    from tqdm import tqdm

    with (
        work,
        tqdm(total=trials, unit="trial", file=sys.stderr, leave=False, disable=None if progress else True) as bar,
    ):
        while len(work.history) < trials and not work.exhausted:
            bar.update(work.step(trials - len(work.history)))
            history = work.history
            if history.best is not None:
                bar.set_postfix(best=f"{history.best[1]:,}", invalid=f"{history.invalid_rate:.0%}")
        return work.history
