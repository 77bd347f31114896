"""Runs a tuner on a device, with a log from which a killed run goes on.

A run with the log of an earlier one asks a tuner of the same seed again, gives it the logged outcomes instead of
measuring, and goes on behind them, so that it ends with the same log as if it had never stopped.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.json_lines import open_lines
from oneshot_ml2.devices.base import Device, is_deterministic
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.tuning.base import Outcomes, Tuner
from oneshot_ml2.tuning.log import LARGEST, Header, History, LogError, outcomes_of, parse_line, trial_line
from oneshot_ml2.tuning.measure import AGREE, WARY, Health, Kept, Limits, Measurer, Trial
from oneshot_ml2.tuning.plausible import doubted
from oneshot_ml2.vta.reasons import Reason


def _one_run(entries: Sequence[tuple[int, Trial]]) -> bool:
    """Whether numbered trials are those of one run, none missing."""
    return [number for number, _ in entries] == list(range(len(entries)))


class Run:
    """A tuner at work on a space, batch by batch, with its log. Use as a context.

    A trial that is better than all before it is measured again before it is believed, as `measurer` does it; and what
    `plausible` doubts even so is no best, and a failure of the device for the tuner.

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
        predict: Callable[[NDArray[np.int64]], NDArray[np.float64]] | None = None,
    ) -> None:
        """``make``: the tuner, from the seed; ``name``, ``settings``: what the log calls it; ``health``: of the
        device, shared by the runs on it; ``predict``: log cycles of schedules (n,) by all that is known of the board.
        """
        self.limits = limits or Limits()
        self.space = space
        settings = {"checked": self.limits.checked, "retries": self.limits.retries} | (settings or {})
        self.header = Header(
            space.workload, space.accelerator, space.kind, name, seed, device.name, self.limits.batch, settings
        )
        self._device, self._make, self._predict = device, make, predict
        # Schedules whose times are not believed.
        self._doubted: frozenset[int] = frozenset()
        self._health = health or Health(self.limits.failures)
        self._path = None if log is None else Path(log)
        self._trials: list[Trial] = []
        # How many of them were given to the log, and the least cycles among them.
        self._given, self._best = 0, LARGEST
        self.exhausted = False

    def __enter__(self) -> Run:
        # First what may fail: a log is begun only for a run that can begin.
        self._tuner = self._make()
        self._stack = ExitStack()
        self._earlier: list[Trial] = []
        self._known: dict[int, Trial] = {}
        self._log = None
        if self._path is not None:
            lines = open_lines(self._path, parse_line, self.header.to_dict(), LogError, _one_run)
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
        return History(self.header, tuple(self._trials), self._doubted)

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
            wrong = np.isin(done.indices, list(self._doubted))
            reason, cycles = np.where(wrong, int(Reason.DEVICE_ERROR), done.reason), np.where(wrong, -1, done.cycles)
            self._tuner.observe(Outcomes(done.indices, reason.astype(np.uint8), cycles))
            self._batch, self._refused = [], Outcomes.none()

    def _look(self) -> None:
        """Tell anew which times are not believed."""
        known = self.history.outcomes
        if is_deterministic(self._device) or not len(known):
            return
        predicted = None if self._predict is None else self._predict(known.indices)
        self._doubted = frozenset(known.indices[doubted(self.space, known, predicted)].tolist())
        best = self.history.best
        self._best = LARGEST if best is None else best[1]

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
        self._look()
        return len(now)

    def _doubt(self, index: int, cycles: int, health: Health) -> int:
        """See `measure.Doubt`: what would be the best so far is measured again, by a leap more often."""
        if cycles >= self._best:
            return 0
        leap = self._best < LARGEST and math.log(self._best / cycles) > AGREE
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
        lines = [trial_line(first + i, self.space, trial) for i, trial in enumerate(new)]
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
