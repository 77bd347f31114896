"""Fit the timing of the HLS design to measurements of a board.

A run's time is that of its longest path, a sum of counts times parameters (`hls.longest_path`). So for fixed paths all
predictions are linear in the parameters, and the paths are found anew with each estimate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.devices.board_files import BUSY, DEVICE, WALL, BoardLayer
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.hls_keys import KEYS, TICKS, HlsTiming, field_of
from oneshot_ml2.vta.reasons import Reason
from oneshot_ml2.vta.timing import hls, records

# Field of `HlsTiming` -> where it is expected before anything is measured, as a standard deviation around its default,
# in its unit; wide enough that a few measurements overrule it, and narrow enough to hold what they do not tell.
_PRIOR = {
    "read_row": 2000.0, "store_row": 2000.0, "wgt_beat": 50.0, "alu_op": 50.0, "load_start": 1000.0,
    "compute_start": 1000.0, "store_start": 1000.0, "pad": 200.0,
    "submission": 1000.0, "poll": 5000.0, "call": 15_000.0, "host_instruction": 1000.0,
}  # fmt: skip
FITTED = tuple(_PRIOR)
# Kind of time -> those of `FITTED` that stand around a run.
AROUND = {BUSY: ("submission",), DEVICE: ("submission", "poll"), WALL: ("submission", "poll", "call")}
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


def paths_of(layers: Sequence[BoardLayer], chip: Accelerator) -> Paths:
    """The longest paths of all that is timed in some layers, for an accelerator of the HLS design."""
    params, cycle = records.params(chip), 1e-6 / chip.clock_mhz
    names = hls.WORK.names or ()
    rates = [names.index(name) for name in FITTED if name in names]
    places = [FITTED.index(name) for name in FITTED if name in names]
    groups, fixed, counts, seconds = [], [], [], []
    for group, layer in enumerate(layers):
        timed = layer.timed
        indices = np.array(list(timed), dtype=np.int64)
        if layer.workload is not None:
            indices = indices[layer.space(chip).validity(indices) == Reason.VALID]
        for index, insns in zip(indices.tolist(), layer.programs(chip, indices), strict=True):
            work = hls.longest_path(np.ascontiguousarray(insns), params)
            for kind, measured in timed[index].items():
                row = np.zeros(len(FITTED))
                row[places] = work[rates] * (cycle / TICKS)
                for name in AROUND[kind]:
                    row[FITTED.index(name)] = 1e-9
                if kind == WALL:
                    row[FITTED.index("host_instruction")] = len(insns) * 1e-9
                groups.append(group)
                fixed.append(float(work[0]) * cycle)
                counts.append(row)
                seconds.append(measured)
    shape = (len(groups), len(FITTED))
    return Paths(np.array(groups), np.array(fixed), np.array(counts).reshape(shape), np.array(seconds))


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


def fit(layers: Sequence[BoardLayer], chip: Accelerator) -> tuple[Fit, Paths]:
    """Fit the timing of an accelerator of the HLS design to layers of its board, and the paths that it ended with.

    It starts from the defaults of `HlsTiming`, whatever the accelerator's own are.

    Raises:
        OneShotError: the layers have no time of a schedule that lowers.
    """
    assert chip.hls is not None
    base = dataclasses.replace(HlsTiming(), acc_distance=chip.hls.acc_distance)
    values = np.array([getattr(base, name) for name in FITTED], dtype=np.float64)
    errors = np.zeros(len(FITTED))
    timing, paths = base, None
    for _ in tqdm(range(_ROUNDS), desc="fit", unit="round", disable=None):
        paths = paths_of(layers, dataclasses.replace(chip, hls=timing))
        if not len(paths.seconds):
            raise OneShotError("nothing to fit to: the files have no time of a schedule that lowers; give others")
        values, errors = solve(paths, values)
        found = as_timing(values, base)
        if found == timing:
            break
        timing = found
    assert paths is not None
    return Fit(timing, dict(zip(FITTED, errors.tolist(), strict=True)), len(paths.seconds)), paths
