"""Fits the timing of the HLS design to times of programs, whatever they are of.

A run's time is that of its longest path, a sum of counts times parameters (`hls.longest_path`). So for fixed paths all
predictions are linear in the parameters, and the paths are found anew with each estimate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.hls_keys import KEYS, TICKS, HlsTiming, field_of
from oneshot_ml2.vta.program import Insns
from oneshot_ml2.vta.timing import hls, records

# Field of `HlsTiming` -> where it is expected before anything is measured, as a standard deviation around its default,
# in its unit; wide enough that a few measurements overrule it, and narrow enough to hold what they do not tell.
_PRIOR = {
    "read_row": 2000.0, "store_row": 2000.0, "wgt_beat": 50.0, "alu_op": 50.0, "load_start": 1000.0,
    "compute_start": 1000.0, "store_start": 1000.0, "pad": 200.0,
    "submission": 1000.0, "poll": 5000.0, "call": 15_000.0, "host_instruction": 1000.0,
}  # fmt: skip
FITTED = tuple(_PRIOR)
# Relative deviations beyond this count less and less: outliers of a board are not of its design.
_SCALE = 0.01
_ROUNDS, _STEPS = 6, 60
# Estimates that differ by less, relative to their spread of `_PRIOR`, are the same.
_SAME = 1e-4


@dataclass(frozen=True)
class Fit:
    """Parameters found.

    ``timing``: rounded to their units; ``errors``: one standard error of each of `FITTED`, in its unit;
    ``measurements``: how many it is from.
    """

    timing: HlsTiming
    errors: dict[str, float]
    measurements: int


@dataclass(frozen=True)
class Paths:
    """Measurements with what their longest paths are made of.

    ``groups``: int64 (n,), position of its layer among those given; ``fixed``: float64 (n,), seconds that no parameter
    scales; ``counts``: float64 (n, len(FITTED)), seconds a unit of each parameter; ``seconds``: float64 (n,), measured.
    """

    groups: NDArray[np.int64]
    fixed: NDArray[np.float64]
    counts: NDArray[np.float64]
    seconds: NDArray[np.float64]

    def without(self, group: int) -> Paths:
        """Those of all other layers."""
        keep = self.groups != group
        return Paths(self.groups[keep], self.fixed[keep], self.counts[keep], self.seconds[keep])


def as_timing(values: NDArray[np.float64], base: HlsTiming) -> HlsTiming:
    """Values of `FITTED`, rounded, with what else ``base`` has."""
    return dataclasses.replace(base, **{name: round(float(v)) for name, v in zip(FITTED, values, strict=True)})


@dataclass(frozen=True)
class Path:
    """The longest path of a program: ``fixed``: seconds that no parameter scales; ``counts``: float64 (len(FITTED),),
    seconds a unit of each parameter."""

    fixed: float
    counts: NDArray[np.float64]

    def around(self, names: Sequence[str]) -> Path:
        """With what stands around a run: those of `FITTED`, whose unit is a nanosecond."""
        counts = self.counts.copy()
        counts[[FITTED.index(name) for name in names]] = 1e-9
        return Path(self.fixed, counts)


def path_of(insns: Insns, chip: Accelerator) -> Path:
    """The longest path of instructions (n,) on an accelerator of the HLS design."""
    cycle = 1e-6 / chip.clock_mhz
    work = hls.longest_path(np.ascontiguousarray(insns), records.params(chip))
    counts = np.zeros(len(FITTED))
    for place, name in enumerate(hls.WORK.names or ()):
        if name in FITTED:
            counts[FITTED.index(name)] = work[place] * (cycle / TICKS)
    return Path(float(work[0]) * cycle, counts)


def as_paths(found: Sequence[tuple[int, Path, float]]) -> Paths:
    """Measurements: the group, the path and the seconds of each."""
    groups, paths, seconds = zip(*found) if found else ((), (), ())
    counts = np.array([path.counts for path in paths]).reshape(len(paths), len(FITTED))
    return Paths(np.array(groups), np.array([path.fixed for path in paths]), counts, np.array(seconds))


def solve(paths: Paths, start: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The most likely values of `FITTED` for fixed paths, and the standard error of each, float64 (len(FITTED),).

    Least squares of log(predicted / measured), deviations beyond `_SCALE` counted less, and of `_PRIOR`.
    """
    centre = np.array([getattr(HlsTiming(), name) for name in FITTED], dtype=np.float64)
    spread = np.array([_PRIOR[name] for name in FITTED])
    low = np.array([KEYS[key].low for key in KEYS if field_of(key) in FITTED], dtype=np.float64)
    values, inverse = start.copy(), np.eye(len(FITTED))
    for _ in range(_STEPS):
        predicted = paths.fixed + paths.counts @ values
        deviation = np.log(predicted / paths.seconds)
        weight = 1.0 / (_SCALE * (1.0 + (deviation / _SCALE) ** 2) ** 0.25)
        slopes = paths.counts / predicted[:, None] * spread * weight[:, None]
        # In units of the prior's spread, whose rows are the identity.
        free = np.ones(len(FITTED), dtype=bool)
        offset = (values - centre) / spread
        while True:
            inverse = np.linalg.inv(slopes[:, free].T @ slopes[:, free] + np.eye(int(free.sum())))
            step = np.zeros(len(FITTED))
            step[free] = -inverse @ (slopes[:, free].T @ (deviation * weight) + offset[free])
            stuck = free & (values <= low) & (step < 0)
            if not stuck.any():
                break
            free &= ~stuck
        new = np.maximum(values + step * spread, low)
        moved = np.abs((new - values) / spread).max()
        values = new
        if moved < _SAME:
            break
    errors = np.zeros(len(FITTED))
    errors[free] = np.sqrt(np.diag(inverse)) * spread[free]
    return values, errors


def iterate(
    paths_of: Callable[[HlsTiming], Paths], acc_distance: int, start: HlsTiming | None = None, shown: bool = True
) -> tuple[Fit, Paths]:
    """Fit to measurements whose paths ``paths_of`` finds for some timing; and the paths that it ended with.

    ``start``: the first timing, in place of the defaults; ``shown``: with a bar.

    Raises:
        OneShotError: there is nothing to fit to.
    """
    base = dataclasses.replace(start or HlsTiming(), acc_distance=acc_distance)
    values = np.array([getattr(base, name) for name in FITTED], dtype=np.float64)
    errors = np.zeros(len(FITTED))
    timing, paths = base, None
    for _ in tqdm(range(_ROUNDS), desc="fit", unit="round", disable=None if shown else True):
        paths = paths_of(timing)
        if not len(paths.seconds):
            raise OneShotError("nothing to fit to: the files have no time of a schedule that lowers; give others")
        values, errors = solve(paths, values)
        found = as_timing(values, base)
        if found == timing:
            break
        timing = found
    assert paths is not None
    return Fit(timing, dict(zip(FITTED, errors.tolist(), strict=True)), len(paths.seconds)), paths
