"""Fit the timing of the HLS design to measurements of a board: `hls_fit` to the files of measurements there are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from oneshot_ml2.devices.board_files import BUSY, DEVICE, WALL, BoardLayer
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.reasons import Reason
from oneshot_ml2.vta.timing import hls_fit
from oneshot_ml2.vta.timing.hls_fit import FITTED, Fit, Paths

# Kind of time -> those of `FITTED` that stand around a run.
AROUND = {BUSY: ("submission",), DEVICE: ("submission", "poll"), WALL: ("submission", "poll", "call")}


def paths_of(layers: Sequence[BoardLayer], chip: Accelerator) -> Paths:
    """The longest paths of all that is timed in some layers, for an accelerator of the HLS design."""
    found = []
    for group, layer in enumerate(layers):
        timed = layer.timed
        indices = np.array(list(timed), dtype=np.int64)
        if layer.workload is not None:
            indices = indices[layer.space(chip).validity(indices) == Reason.VALID]
        for index, insns in zip(indices.tolist(), layer.programs(chip, indices), strict=True):
            longest = hls_fit.path_of(insns, chip)
            for kind, measured in timed[index].items():
                path = longest.around(AROUND[kind])
                if kind == WALL:
                    path.counts[FITTED.index("host_instruction")] = len(insns) * 1e-9
                found.append((group, path, measured))
    return hls_fit.as_paths(found)


def fit(layers: Sequence[BoardLayer], chip: Accelerator) -> tuple[Fit, Paths]:
    """Fit the timing of an accelerator of the HLS design to layers of its board, and the paths that it ended with.

    It starts from the defaults of `HlsTiming`, whatever the accelerator's own are.

    Raises:
        OneShotError: the layers have no time of a schedule that lowers.
    """
    assert chip.hls is not None
    return hls_fit.iterate(
        lambda timing: paths_of(layers, dataclasses.replace(chip, hls=timing)), chip.hls.acc_distance
    )
