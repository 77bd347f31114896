"""Logs of tuning runs: JSON Lines, a header and then a line for each trial in order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.json_lines import FOREIGN, find, told
from oneshot_ml2.common.reading import whole_number
from oneshot_ml2.corpus.format import task_id
from oneshot_ml2.spaces.registry import backend
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.tuning.base import Outcomes
from oneshot_ml2.tuning.measure import Trial
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.reasons import Reason
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.registry import workload_from_dict

FORMAT = "oneshot-ml2 tuning"
SCHEMA = 1
_REASONS = {reason.label: reason for reason in Reason}
# The largest whole number in a log.
LARGEST = (1 << 62) - 1


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
            "space_version": backend(self.space).version_of(self.workload),
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
    """The trials of a run in order; ``doubted``: schedules whose times are not believed (`plausible`)."""

    header: Header
    trials: tuple[Trial, ...]
    doubted: frozenset[int] = frozenset()

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
        """(index, cycles) of the fastest valid trial that is believed, the first of equals; None without one."""
        valid = np.flatnonzero(self.outcomes.valid & ~np.isin(self.outcomes.indices, list(self.doubted)))
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


def read_log(path: str | Path) -> History:
    """The trials of a log. What is whole counts, whatever else is in the file: of a trial that is there twice, the
    first. A last line that was cut short, as a killed run leaves it, is no trial.

    Raises:
        LogError: an unreadable or foreign file.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        found = find(content, parse_line, headed=True)
        if found.header is None:
            raise ValueError(found.problem)
        header = _parse_header(found.header)
        size = len(ScheduleSpace(header.workload, header.accelerator, header.space))
        found = find(content, partial(parse_line, size=size), headed=True)
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


def parse_line(data: Any, size: int = LARGEST) -> tuple[int, Trial]:
    """A trial of a line, with its number, of a space of ``size`` schedules; raises one of `FOREIGN`."""
    reason, cycles = _REASONS[data["reason"]], data["cycles"]
    if (reason == Reason.VALID) != (cycles is not None):
        raise ValueError(f"{reason.label}, but {cycles!r:.40} cycles")
    repeats = tuple(whole_number(value, "a repeat", -1, LARGEST) for value in data.get("repeats", ()))
    attempts = whole_number(data["attempts"], "attempts", 1, LARGEST)
    index = whole_number(data["index"], "index", 0, size - 1)
    believed = -1 if cycles is None else whole_number(cycles, "cycles", 1, LARGEST)
    return whole_number(data["trial"], "trial", 0, LARGEST), Trial(
        index, int(reason), believed, attempts, repeats, str(data.get("board", ""))
    )


def trial_line(number: int, space: ScheduleSpace, trial: Trial) -> dict[str, Any]:
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
    data |= {"repeats": trial.repeats} if trial.repeats else {}
    return data | ({"board": trial.board} if trial.board else {})
