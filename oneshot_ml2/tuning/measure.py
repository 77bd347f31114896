"""Measures schedules on a device that may fail, hang, crash, lie, or be gone.

Failures are tried again. An answer that cannot be is a failure. An answer that matters is measured again before it is
believed: what most of the measurements agree on counts. A device that fails on many schedules in a row is taken to be
gone. What a device says from records is final.
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.children import end_with_parent
from oneshot_ml2.common.errors import DeviceError, OneShotError
from oneshot_ml2.devices.base import Device, is_deterministic, is_recorded, warm_up
from oneshot_ml2.spaces.base import BatchResult
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.bound import engine_bound
from oneshot_ml2.vta.reasons import TRANSIENT, Reason

# Answers agree whose logarithms differ by no more: a board's noise, not another result.
AGREE = 0.15
# By how many measurements those that agree outnumber the others where an answer matters: three that agree, say; and of
# a device that was caught contradicting itself, or not yet seen to agree with itself so often.
SURE, WARY = 3, 7
# Of so many measurements of a schedule of which no such part agrees, the median counts; so many failures in a row while
# an answer is measured again are the device's last word.
_MOST_TIMES, _LASTING = 25, 3
# Cycles above this are no cycles.
_MOST_CYCLES = 1 << 62


@dataclass(frozen=True)
class Limits:
    """How a run measures.

    ``batch``: trials between two observations; ``retries``: further tries after a transient failure; ``timeout``:
    seconds for one program, after which the process that measures is ended, None: measured in this process, without;
    ``start``: seconds that such a process may take to begin; ``checked``: what the exact closed form says does not
    lower is told to the tuner and costs no trial; ``failures``: schedules in a row that the device fails to measure
    until the run stops, 0: it never does.
    """

    batch: int = 10
    retries: int = 2
    timeout: float | None = None
    start: float = 120.0
    checked: bool = False
    failures: int = 10


@dataclass(frozen=True)
class Trial:
    """What became of a schedule.

    ``reason``: `Reason`; ``cycles``: those believed, -1 where invalid; ``attempts``: tries until the first answer;
    ``repeats``: cycles of every measurement of an answer that was measured again, the first one's included, -1 for
    those that failed; empty where once was enough; ``board``: which one of several gave the first answer.
    """

    index: int
    reason: int
    cycles: int
    attempts: int
    repeats: tuple[int, ...] = ()
    board: str = ""

    @property
    def programs(self) -> int:
        """How many programs were run for it."""
        return self.attempts + max(len(self.repeats) - 1, 0)

    @property
    def failed(self) -> bool:
        """The device failed, not the program."""
        return self.reason in TRANSIENT


class Answer(NamedTuple):
    """What a device says of a schedule once; ``why``: of a failure of its own; ``board``: of several."""

    reason: int
    cycles: int
    why: str = ""
    board: str = ""


@dataclass
class Health:
    """What a device has shown of itself, over all that is measured on it.

    Attributes:
        failures: see `Limits`.
        caught: measurements of one schedule contradicted each other; ``probed``: `WARY` of one were looked at.
    """

    failures: int
    caught: bool = False
    probed: bool = False
    _row: list[int] = field(default_factory=list)

    @property
    def enough(self) -> int:
        """`SURE` or `WARY`, as the device deserves."""
        return SURE if self.probed and not self.caught else WARY

    def look(self, repeats: Sequence[int]) -> None:
        """Learn from measurements of one schedule."""
        valid = [cycles for cycles in repeats if cycles > 0]
        self.caught = self.caught or (len(valid) > 1 and math.log(max(valid) / min(valid)) > AGREE)
        self.probed = self.probed or len(valid) >= WARY

    def recall(self, trial: Trial) -> None:
        """Learn from a trial of an earlier run: how often the device failed then says nothing of now."""
        self.look(trial.repeats)
        self._row = []

    def saw(self, trial: Trial, why: str = "") -> None:
        """Learn from a trial, in the order in which they are made.

        Raises:
            DeviceError: the last ``failures`` trials were all failures of the device.
        """
        self._row = [*self._row, trial.reason] if trial.failed else []
        if self.failures and len(self._row) >= self.failures:
            counts = {reason: self._row.count(reason) for reason in TRANSIENT}
            kinds = ", ".join(f"{count} {reason.label}" for reason, count in counts.items() if count)
            raise DeviceError(
                f"the device failed on {len(self._row)} schedules in a row ({kinds}; the last: {why or 'no answer'}): "
                "check that it is on and reachable, that --timeout is long enough and that CLOCK_MHZ is its clock; "
                "all that was measured before is kept, and the same command goes on (--failures 0 never stops)"
            )


def _support(values: Sequence[int]) -> list[int]:
    """Those of some cycles that most agree with, the slower ones of equally many."""
    groups = [[v for v in values if abs(math.log(v / one)) <= AGREE] for one in sorted(values)]
    return max(reversed(groups), key=len) if groups else []


# Devices in processes of their own -------------------------------------------------------------
def _serve(device: Device, space: ScheduleSpace, pipe: connection.Connection) -> None:
    """A process that measures one schedule after another until the pipe closes.

    It says None when it is ready, then a result each; a str: the device failed; an `OneShotError`: what the user can
    mend.
    """
    end_with_parent()
    try:
        warm_up(device, space)
        pipe.send(None)
        while True:
            index = pipe.recv()
            try:
                pipe.send(device.measure_schedules(space, np.array([index], dtype=np.int64)))
            except OneShotError:
                raise
            except Exception as error:
                pipe.send(repr(error))
    except OneShotError as error:
        pipe.send(DeviceError(str(error)))
    except EOFError:
        return


class _Isolated:
    """A device in a process of its own, which is ended when it takes too long, and begun anew after a crash."""

    def __init__(self, device: Device, space: ScheduleSpace, limits: Limits) -> None:
        self._device, self._space, self._limits = device, space, limits
        self._process: Any = None
        self._pipe: connection.Connection | None = None

    def _started(self) -> connection.Connection:
        """The pipe to a process that is ready: the time that it takes to become so is not a program's."""
        if self._pipe is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(self._device, self._space, theirs), daemon=True)
            self._process.start()
            theirs.close()
            if not self._pipe.poll(self._limits.start):
                self.close()
                raise DeviceError(f"the device's process did not begin within {self._limits.start:.0f} s")
            try:
                self._answer(self._pipe)
            except (EOFError, OSError) as error:
                self.close()
                raise DeviceError("the device's process ended before it began; does the device open?") from error
        return self._pipe

    def _answer(self, pipe: connection.Connection) -> Any:
        answer = pipe.recv()
        if isinstance(answer, OneShotError):
            self.close()
            raise answer
        return answer

    def measure(self, index: int) -> BatchResult | Answer:
        """One schedule's result, or how the device failed.

        Raises:
            OneShotError: the device says what the user can mend; or the process does not begin.
        """
        pipe = self._started()
        try:
            pipe.send(index)
            if not pipe.poll(self._limits.timeout):
                self.close()
                return Answer(Reason.TIMEOUT, -1, f"no answer within {self._limits.timeout:g} s")
            answer = self._answer(pipe)
        except (EOFError, OSError):
            self.close()
            return Answer(Reason.DEVICE_ERROR, -1, "its process died")
        return answer if isinstance(answer, BatchResult) else Answer(Reason.DEVICE_ERROR, -1, str(answer))

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None


# Measuring -------------------------------------------------------------------------------------
def _checked(result: Any, n: int, least: int) -> list[Answer]:
    """A device's answer for n schedules; what cannot be is ``device_error``.

    ``least``: cycles that no program can be faster than.
    """
    try:
        given = np.asarray(result.reason).astype(np.int64).reshape(n)
        numbers = np.asarray(result.cycles, dtype=np.float64).reshape(n)
        boards = getattr(result, "boards", ()) or ("",) * n
    except (AttributeError, TypeError, ValueError, OverflowError):
        return [Answer(Reason.DEVICE_ERROR, -1, "an answer that is none")] * n
    answers = []
    for reason, cycles, board in zip(given.tolist(), numbers.tolist(), boards):
        if Reason.VALID < reason < len(Reason):
            answers.append(Answer(reason, -1, Reason(reason).label, board))
        elif reason == Reason.VALID and math.isfinite(cycles) and least <= cycles < _MOST_CYCLES:
            answers.append(Answer(reason, int(cycles), board=board))
        else:
            why = f"reason {reason}, {cycles:g} cycles, of which compute alone needs {least:,} at the described clock"
            answers.append(Answer(Reason.DEVICE_ERROR, -1, why, board))
    return answers


# By how many measurements those that agree must outnumber the others: of an index, its cycles, and the device's health.
Doubt = Callable[[int, int, Health], int]


class Measurer:
    """Measures schedules of one space; `close` it at the end."""

    def __init__(self, device: Device, space: ScheduleSpace, limits: Limits, health: Health | None = None) -> None:
        """``health``: of the device, shared by all that measure on it."""
        self._device, self._space, self._limits = device, space, limits
        self._health = health or Health(limits.failures)
        self._recorded = is_recorded(device)
        self._least = max(1, engine_bound(space.workload, space.accelerator).least_compute)
        self._isolated = _Isolated(device, space, limits) if limits.timeout is not None else None

    def __call__(self, indices: NDArray[np.int64], doubt: Doubt | None = None) -> Iterator[Trial]:
        """Trials of schedules (n,) in order, as they are made: one by one if the device has its own process.

        ``doubt``: says of a valid answer by how many those measurements that agree must outnumber the others before
        it is believed; 0: it is believed at once. It is asked when all trials before have been given out. A
        deterministic device is not asked twice.

        Raises:
            DeviceError: see `Health.saw`.
        """
        if is_deterministic(self._device):
            doubt = None
        step = 1 if self._isolated is not None else max(len(indices), 1)
        for begin in range(0, len(indices), step):
            part = indices[begin : begin + step]
            for index, answer in zip(part.tolist(), self._try(part)):
                yield self._trial(index, answer, doubt)

    def _trial(self, index: int, answer: Answer, doubt: Doubt | None) -> Trial:
        attempts = 1
        while answer.reason in TRANSIENT and attempts <= self._limits.retries and not self._recorded:
            answer = self._again(index)
            attempts += 1
        trial = Trial(index, answer.reason, answer.cycles, attempts, board=answer.board)
        if doubt is not None and trial.reason == Reason.VALID:
            trial = self._confirmed(trial, doubt)
        if not self._recorded:
            self._health.saw(trial, answer.why)
        return trial

    def _confirmed(self, trial: Trial, doubt: Doubt) -> Trial:
        """A trial measured again until those measurements that agree outnumber the others as they must.

        Its cycles are the median of those that agree; of all, where none do even so. A failure of the program in any
        of the measurements is its outcome, and one of the device that lasts.
        """
        values, failures = [trial.cycles], 0
        while len(values) < _MOST_TIMES:
            valid = [cycles for cycles in values if cycles > 0]
            agreeing = _support(valid)
            self._health.look(values)
            if 2 * len(agreeing) - len(valid) >= doubt(trial.index, trial.cycles, self._health):
                break
            answer = self._again(trial.index)
            values.append(answer.cycles)
            failures = failures + 1 if answer.reason in TRANSIENT else 0
            if answer.reason not in (Reason.VALID, *TRANSIENT) or failures >= _LASTING:
                return Trial(trial.index, answer.reason, -1, trial.attempts, tuple(values), trial.board)
        else:
            agreeing = [cycles for cycles in values if cycles > 0]
        if len(values) == 1:
            return trial
        return Trial(
            trial.index, trial.reason, round(float(np.median(agreeing))), trial.attempts, tuple(values), trial.board
        )

    def _again(self, index: int) -> Answer:
        return self._try(np.array([index], dtype=np.int64))[0]

    def _try(self, indices: NDArray[np.int64]) -> list[Answer]:
        if self._isolated is not None:
            return [self._alone(self._isolated, index) for index in indices.tolist()]
        try:
            result = self._device.measure_schedules(self._space, indices)
        except OneShotError:
            raise
        except Exception as error:
            # One of them breaks the device: which one shows when they come alone.
            if len(indices) == 1:
                return [Answer(Reason.DEVICE_ERROR, -1, repr(error))]
            return [self._again(index) for index in indices.tolist()]
        return _checked(result, len(indices), self._least)

    def _alone(self, isolated: _Isolated, index: int) -> Answer:
        answer = isolated.measure(index)
        return answer if isinstance(answer, Answer) else _checked(answer, 1, self._least)[0]

    def close(self) -> None:
        """End the device's process, if it has one."""
        if self._isolated is not None:
            self._isolated.close()


class Kept:
    """Hands trials to a log. Failures of the device wait there until another trial follows or the run ends well.

    A device that is gone fails on schedules that have nothing to do with it: the run that goes on measures them.
    """

    def __init__(self, write: Callable[[Sequence[Any]], None]) -> None:
        self._write, self._waiting = write, list[Any]()

    def add(self, entries: Sequence[Any], failed: Sequence[bool]) -> None:
        """Entries of trials, and which of them are failures of the device."""
        self._waiting += entries
        last = max((place for place, bad in enumerate(failed) if not bad), default=-1)
        if last >= 0:
            sure = len(self._waiting) - len(entries) + last + 1
            ready, self._waiting = self._waiting[:sure], self._waiting[sure:]
            self._write(ready)

    def flush(self) -> None:
        """The run has ended well: failures are outcomes like others."""
        ready, self._waiting = self._waiting, []
        self._write(ready)
