"""Which schedules of a task are measured."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import DeviceError, OneShotError
from oneshot_ml2.corpus.format import SAMPLERS, TaskSamples, task_id
from oneshot_ml2.devices.base import Device, is_recorded, measurable
from oneshot_ml2.spaces.base import BatchResult
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.reasons import TRANSIENT, Reason

if TYPE_CHECKING:
    from oneshot_ml2.corpus.plan import Plan, Task

_RANDOM, _EXPLORE = (SAMPLERS.index(name) for name in ("random", "explore"))
# Spaces up to this size are listed whole; of larger ones schedules are drawn, those that are canonical are used. Where
# so many draws do not bring enough, as hardly one is legal, all that the SRAMs hold are listed.
_LISTED = 1 << 16
_DRAW = 1 << 13
_DRAWS = 4
# Draws whose best by the closed-form estimate seed the exploration.
_GUESSED = 8
# Spread (log) of the noise on closed-form estimates that seed the exploration.
_BLUR = 0.03
# A device that fails at so many schedules, and at no other of a batch, is taken to be gone.
_GONE = 5


class _Sampler:
    """Draws and measures the schedules of one task."""

    def __init__(self, space: ScheduleSpace, plan: Plan, device: Device, rng: np.random.Generator) -> None:
        self.space, self.plan, self.device, self.rng = space, plan, device, rng
        self.among = measurable(device, space)
        self.radix = np.array([len(knob.values) for knob in space.knobs], dtype=np.int64)
        self.weights = np.concatenate(([1], np.cumprod(self.radix)[:-1])).astype(np.int64)
        self.free_knobs = np.flatnonzero(self.radix > 1)
        self.indices = np.empty(0, dtype=np.int64)
        self.sampler = np.empty(0, dtype=np.uint8)
        self._scarce = False
        self.result = BatchResult(
            np.empty(0, dtype=np.uint8), np.empty(0, dtype=np.int64), np.empty((0, 3), dtype=np.int64)
        )

    def run(self) -> None:
        """Measure the plan's samples of the task."""
        explored = round(self.plan.samples * self.plan.explore)
        drawn = self._fill(self._uniform(), self.plan.samples - explored)
        self._measure(drawn, _RANDOM)
        if len(drawn) < self.plan.samples - explored and not (self.result.reason == Reason.VALID).any():
            return  # All that may be legal have been looked at.
        seeded = round(explored * self.plan.seeded)
        self._measure(self._fill(self._promising(), seeded), _EXPLORE)
        for chunk in np.array_split(np.arange(explored - seeded), self.plan.rounds):
            if len(chunk):
                self._measure(self._fill(self._children(), len(chunk)), _EXPLORE)

    def _fill(self, candidates: Iterator[NDArray[np.int64]], n: int) -> NDArray[np.int64]:
        """Up to ``n`` new canonical schedules from a stream of them, invalid ones only up to their share."""
        picked = np.empty(0, dtype=np.int64)
        invalid_left = int(n * self.plan.invalid_share)
        while len(picked) < n and (batch := next(candidates, None)) is not None:
            if self.among is not None:
                batch = batch[np.isin(batch, self.among)]
            _, first = np.unique(batch, return_index=True)
            batch = batch[np.sort(first)]
            batch = batch[~np.isin(batch, self.indices) & ~np.isin(batch, picked)]
            # Telling validity costs about as much as measuring: look at few more than are needed, but not for long.
            few = max(2 * (n - len(picked)), 64)
            while len(batch) and len(picked) < n:
                part, batch, few = batch[:few], batch[few:], 2 * few
                invalid = self.space.validity(part) != Reason.VALID
                keep = np.flatnonzero(~invalid | (np.cumsum(invalid) <= invalid_left))[: n - len(picked)]
                invalid_left -= int(invalid[keep].sum())
                picked = np.concatenate([picked, part[keep]])
        return picked

    def _drawn(self) -> Iterator[NDArray[np.int64]]:
        """Canonical schedules of a large space, uniformly, again and again."""
        while True:
            # A canonical schedule is its own alias, so that what remains is uniform over canonical ones.
            drawn = self.rng.integers(0, len(self.space), size=_DRAW)
            yield drawn[self.space.canonical(drawn) == drawn]

    @cached_property
    def _fitting(self) -> NDArray[np.int64]:
        """The canonical schedules that the SRAMs hold: all legal ones are among them."""
        self._scarce = True
        return self.space.record.features.all_candidates(self.space, fitting=True).indices

    def _uniform(self) -> Iterator[NDArray[np.int64]]:
        """Canonical schedules, uniformly; in the end all that may be legal."""
        if self.among is not None:
            yield self.rng.permutation(self.among)
            return
        if len(self.space) <= _LISTED:
            yield self.rng.permutation(self.space.table())
            return
        yield from itertools.islice(self._drawn(), _DRAWS)
        yield self.rng.permutation(self._fitting)

    def _promising(self) -> Iterator[NDArray[np.int64]]:
        """Canonical schedules in order of their closed-form estimate, blurred so that near ties mix."""
        if len(self.space) <= _LISTED:
            yield self._guessed(self.space.table())
            return
        if not self._scarce:
            yield self._guessed(np.concatenate(list(itertools.islice(self._drawn(), _GUESSED))))
        yield self._guessed(self._fitting)

    def _guessed(self, candidates: NDArray[np.int64]) -> NDArray[np.int64]:
        guess = self.space.estimate(candidates) * self.rng.lognormal(0.0, _BLUR, size=len(candidates))
        return candidates[np.argsort(guess, kind="stable")]

    def _children(self) -> Iterator[NDArray[np.int64]]:
        """Canonical schedules bred from the fastest measured ones."""
        valid = np.flatnonzero(self.result.reason == Reason.VALID)
        if not len(valid) or not len(self.free_knobs):
            return
        fastest = valid[np.argsort(self.result.cycles[valid], kind="stable")[: self.plan.parents]]
        parents = self.space.digits(self.indices[fastest])
        count = max(4 * -(-self.plan.samples // self.plan.rounds), 256)
        for attempt in range(16):
            # Longer walks when near the parents everything has been measured.
            digits = _mutate(self.rng, parents[_ranked(self.rng, len(parents), count)], self.radix, self.free_knobs)
            for _ in range(attempt // 2):
                digits = _mutate(self.rng, digits, self.radix, self.free_knobs)
            mixed = self.rng.random(count) < self.plan.crossover
            pairs = parents[_ranked(self.rng, len(parents), (2, count))]
            crossed = np.where(self.rng.random((count, len(self.radix))) < 0.5, pairs[0], pairs[1])
            yield self.space.canonical(np.where(mixed[:, None], crossed, digits) @ self.weights)

    def _measure(self, indices: NDArray[np.int64], sampler: int) -> None:
        if not len(indices):
            return
        result = self.device.measure_schedules(self.space, indices)
        # What the device failed at is not known, and so is no sample; unless it is a record of what happened.
        known = np.full(len(indices), is_recorded(self.device)) | ~np.isin(result.reason, TRANSIENT)
        if len(known) >= _GONE and not known.any():
            raise DeviceError(
                f"{self.device.name} failed at all of {len(known)} schedules: check that it is on and reachable, and "
                "that its time limit is long enough; what is finished is kept, and the same command goes on"
            )
        indices, result = (
            indices[known],
            BatchResult(result.reason[known], result.cycles[known], result.busy[known]),
        )
        self.indices = np.concatenate([self.indices, indices])
        self.sampler = np.concatenate([self.sampler, np.full(len(indices), sampler, dtype=np.uint8)])
        self.result = BatchResult(
            np.concatenate([self.result.reason, result.reason]),
            np.concatenate([self.result.cycles, result.cycles]),
            np.concatenate([self.result.busy, result.busy]),
        )


def _ranked(rng: np.random.Generator, n: int, size: int | tuple[int, ...]) -> NDArray[np.int64]:
    """Ranks 0..n-1, the first ones more often (density falls as 1/sqrt of the rank)."""
    return np.minimum((rng.random(size) ** 2 * n).astype(np.int64), n - 1)


def _mutate(
    rng: np.random.Generator, digits: NDArray[np.int64], radix: NDArray[np.int64], free: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Digits (n, knobs) with one or two knobs moved: by one step or, as often, to anywhere."""
    digits = digits.copy()
    rows = np.arange(len(digits))
    for share in (1.0, 0.5):
        knob = rng.choice(free, size=len(digits))
        step = digits[rows, knob] + rng.choice([-1, 1], size=len(digits))
        anywhere = rng.integers(0, radix[knob])
        target = np.clip(np.where(rng.random(len(digits)) < 0.5, step, anywhere), 0, radix[knob] - 1)
        digits[rows, knob] = np.where(rng.random(len(digits)) < share, target, digits[rows, knob])
    return digits


def collect_task(task: Task, plan: Plan, device: Device) -> TaskSamples:
    """Measure one task. Its randomness depends on the plan's seed and on the task alone.

    Raises:
        OneShotError: the space cannot be made for this pair.
    """
    workload, accelerator = task
    space = ScheduleSpace(workload, accelerator, plan.space)
    rng = np.random.default_rng([plan.seed, 1, int(task_id(workload, accelerator, plan.space), 16)])
    sampler = _Sampler(space, plan, device, rng)
    sampler.run()
    result = sampler.result
    return TaskSamples(
        workload=workload,
        accelerator=accelerator,
        kind=plan.space,
        space_version=plan.space_version,
        knobs=tuple(knob.name for knob in space.knobs),
        values=space.values(sampler.indices).astype(np.int32),
        reason=result.reason.astype(np.uint8),
        cycles=result.cycles.astype(np.int64),
        busy=result.busy.astype(np.int64),
        sampler=sampler.sampler,
        split=plan.split,
        provenance={},
    )


def attempt(task: Task, plan: Plan, device: Device) -> TaskSamples | OneShotError:
    """:func:`collect_task`, whose error is an outcome like any other, unless it is the device's."""
    try:
        return collect_task(task, plan, device)
    except DeviceError:
        raise
    except OneShotError as error:
        return error
