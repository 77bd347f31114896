"""Runs a tuner on a device: batches, retries, timeouts, errors by class, and a log from which a killed run goes on.

The log is JSON Lines: a header that says what is tuned by what, then a line for each trial in order. A run with the
log of an earlier one asks a tuner of the same seed again, gives it the logged outcomes instead of measuring, and goes
on behind them, so that it ends with the same log as if it had never stopped.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.accelerator import Accelerator
from oneshot_ml2.corpus import task_id
from oneshot_ml2.device import Device
from oneshot_ml2.errors import OneShotError
from oneshot_ml2.json_lines import FOREIGN, find, open_lines, told
from oneshot_ml2.reading import whole_number
from oneshot_ml2.schedule import Reason, ScheduleSpace, backend
from oneshot_ml2.tuner import Outcomes, Tuner
from oneshot_ml2.tuner.measurer import AGREE, WARY, Health, Kept, Limits, Measurer, Trial
from oneshot_ml2.workload import Workload, workload_from_dict

FORMAT = "oneshot-ml2 tuning"
SCHEMA = 1
_REASONS = {reason.label: reason for reason in Reason}
# The largest whole number in a log.
_MOST = (1 << 62) - 1


class LogError(OneShotError, ValueError):
    """A log that is unreadable, foreign, or of another run."""


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
    """The trials of a run in order."""

    header: Header
    trials: tuple[Trial, ...]

    @cached_property
    def outcomes(self) -> Outcomes:
        """What became of the trials."""
        return outcomes_of(self.trials)

    @property
    def attempts(self) -> NDArray[np.int64]:
        """How often each was tried until the first answer, int64 (n,)."""
        return np.array([trial.attempts for trial in self.trials], dtype=np.int64)

    @property
    def programs(self) -> int:
        """How many programs were run in all: what was tried again, and measured again, included."""
        return sum(trial.programs for trial in self.trials)

    def __len__(self) -> int:
        return len(self.trials)

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


def outcomes_of(trials: Sequence[Trial]) -> Outcomes:
    """Trials as a tuner sees them."""
    table = np.array([(t.index, t.reason, t.cycles) for t in trials], dtype=np.int64).reshape(-1, 3).T
    return Outcomes(table[0], table[1].astype(np.uint8), table[2])


def trials_to(outcomes: Outcomes, cycles: float) -> int | None:
    """Trials until one is valid and takes at most so many cycles; None if none does."""
    met = np.flatnonzero(outcomes.valid & (outcomes.cycles <= cycles))
    return int(met[0]) + 1 if len(met) else None


# The log ---------------------------------------------------------------------------------------
def read_log(path: str | Path) -> History:
    """The trials of a log. What is whole counts, whatever else is in the file: of a trial that is there twice, the
    first. A last line that was cut short, as a killed run leaves it, is no trial.

    Raises:
        LogError: an unreadable or foreign file.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        found = find(content, _parse_line, headed=True)
        if found.header is None:
            raise ValueError(found.problem)
        header = _parse_header(found.header)
        size = len(ScheduleSpace(header.workload, header.accelerator, header.space))
        found = find(content, partial(_parse_line, size=size), headed=True)
    except OSError as error:
        raise LogError(f"cannot read {path}: {error.strerror or error}") from error
    except FOREIGN as error:
        why = str(error) if type(error) is ValueError else repr(error)
        raise LogError(f"{path} is no tuning log ({why}); `oneshot-ml2 refine --logs` writes one") from error
    told(path, found)
    trials: dict[int, Trial] = {}
    for number, trial in found.entries:
        trials.setdefault(number, trial)
    return History(header, tuple(trials[number] for number in sorted(trials)))


def _parse_header(data: dict[str, Any]) -> Header:
    if data.get("format") != FORMAT or data.get("schema") != SCHEMA:
        raise ValueError("another format or schema")
    return Header.from_dict(data)


def _parse_line(data: Any, size: int = _MOST) -> tuple[int, Trial]:
    """A trial of a line, with its number, of a space of ``size`` schedules; raises one of `FOREIGN`."""
    reason, cycles = _REASONS[data["reason"]], data["cycles"]
    if (reason == Reason.VALID) != (cycles is not None):
        raise ValueError(f"{reason.label}, but {cycles!r:.40} cycles")
    repeats = tuple(whole_number(value, "a repeat", -1, _MOST) for value in data.get("repeats", ()))
    attempts = whole_number(data["attempts"], "attempts", 1, _MOST)
    index = whole_number(data["index"], "index", 0, size - 1)
    believed = -1 if cycles is None else whole_number(cycles, "cycles", 1, _MOST)
    return whole_number(data["trial"], "trial", 0, _MOST), Trial(index, int(reason), believed, attempts, repeats)


def _line(number: int, space: ScheduleSpace, trial: Trial) -> dict[str, Any]:
    valid = trial.cycles > 0
    data = {
        "trial": number,
        "index": trial.index,
        "schedule": dict(space.schedule(trial.index).knobs),
        "reason": Reason(trial.reason).label,
        "cycles": trial.cycles if valid else None,
        "seconds": trial.cycles / (space.accelerator.clock_mhz * 1e6) if valid else None,
        "attempts": trial.attempts,
    }
    return data | ({"repeats": trial.repeats} if trial.repeats else {})


def _one_run(entries: Sequence[tuple[int, Trial]]) -> bool:
    """Whether numbered trials are those of one run, none missing."""
    return [number for number, _ in entries] == list(range(len(entries)))


# The run ---------------------------------------------------------------------------------------
class Run:
    """A tuner at work on a space, batch by batch, with its log. Use as a context.

    A trial that is better than all before it is measured again before it is believed, as `measurer` does it.

    Raises on entering:
        LogError: the log is foreign, or of another run, or another process writes it.
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
        health: Health | None = None,
    ) -> None:
        """``make``: the tuner, from the seed; ``name``, ``settings``: what the log calls it; ``health``: of the
        device, shared by the runs on it."""
        self.limits = limits or Limits()
        self.space = space
        settings = {"checked": self.limits.checked, "retries": self.limits.retries} | (settings or {})
        self.header = Header(
            space.workload, space.accelerator, space.kind, name, seed, device.name, self.limits.batch, settings
        )
        self._device, self._make = device, make
        self._health = health or Health(self.limits.failures)
        self._path = None if log is None else Path(log)
        self._trials: list[Trial] = []
        # How many of them were given to the log, and the least cycles among them.
        self._given, self._best = 0, _MOST
        self.exhausted = False

    def __enter__(self) -> Run:
        # First what may fail: a log is begun only for a run that can begin.
        self._tuner = self._make()
        self._stack = ExitStack()
        self._earlier: list[Trial] = []
        self._known: dict[int, Trial] = {}
        self._log = None
        if self._path is not None:
            lines = open_lines(self._path, _parse_line, self.header.to_dict(), LogError, _one_run)
            self._log = self._stack.enter_context(lines)
            self._earlier = [trial for _, trial in self._log.entries]
            for _, trial in self._log.known:
                self._known.setdefault(trial.index, trial)
        self._kept = Kept(lambda lines: None if self._log is None else self._log.append(lines))
        self._measurer = Measurer(self._device, self.space, self.limits, self._health)
        self._pending: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._batch: list[Trial] = []
        self._refused = Outcomes.none()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._measurer.close()
        with self._stack:
            if kind is None:
                self._kept.flush()

    @property
    def history(self) -> History:
        """The trials so far."""
        return History(self.header, tuple(self._trials))

    def _next_batch(self) -> NDArray[np.int64]:
        """Let the tuner learn from the last batch and propose the next, int64 (n,); 0 at the end of the space."""
        while True:
            self.observe()
            proposed = self._tuner.propose(self.limits.batch)
            if not self.limits.checked or not len(proposed):
                return proposed
            reason = self.space.validity(proposed)
            bad = reason != Reason.VALID
            self._refused = Outcomes(proposed[bad], reason[bad], np.full(int(bad.sum()), -1, np.int64))
            if not bad.all():
                return proposed[~bad]

    def observe(self) -> None:
        """Let the tuner learn from a batch that is complete; without this it does before its next one."""
        done = self._refused + outcomes_of(self._batch)
        if len(done) and not len(self._pending):
            self._tuner.observe(done)
            self._batch, self._refused = [], Outcomes.none()

    def step(self, most: int) -> int:
        """Make up to ``most`` trials of the current batch, beginning one if need be; returns how many were made.

        Raises:
            DeviceError: the device fails on one schedule after another, see `Limits.failures`.
        """
        if not len(self._pending):
            self._pending = self._next_batch()
            if not len(self._pending):
                self.exhausted = True
                return 0
        now, self._pending = self._pending[:most].tolist(), self._pending[most:]
        logged = self._earlier[len(self._trials) : len(self._trials) + len(now)]
        if [trial.index for trial in logged] != now[: len(logged)]:
            raise LogError(f"{self._path} does not fit this version's tuner; give another file, or remove it")
        self._recall(logged)
        try:
            for known, part in itertools.groupby(now[len(logged) :], lambda index: index in self._known):
                if known:
                    self._recall([self._known[index] for index in part])
                    continue
                for trial in self._measurer(np.array(list(part), dtype=np.int64), self._doubt):
                    self._add(trial)
                    if self.limits.timeout is not None:
                        # One by one they take their time, each worth being kept.
                        self._keep()
        finally:
            self._keep()
        return len(now)

    def _doubt(self, index: int, cycles: int, health: Health) -> int:
        """See `measurer.Doubt`: what would be the best so far is measured again, by a leap more often."""
        if cycles >= self._best:
            return 0
        leap = self._best < _MOST and math.log(self._best / cycles) > AGREE
        return WARY if leap else health.enough

    def _recall(self, trials: Sequence[Trial]) -> None:
        for trial in trials:
            self._health.recall(trial)
            self._add(trial)

    def _add(self, trial: Trial) -> None:
        self._trials.append(trial)
        self._batch.append(trial)
        if trial.reason == Reason.VALID:
            self._best = min(self._best, trial.cycles)

    def _keep(self) -> None:
        """Log the trials that are not in the log."""
        first = max(self._given, len(self._earlier))
        new = self._trials[first:]
        lines = [_line(first + i, self.space, trial) for i, trial in enumerate(new)]
        self._kept.add(lines, [trial.failed for trial in new])
        self._given = max(first, len(self._trials))


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
