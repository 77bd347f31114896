"""Records of the steps of a schedule."""

from __future__ import annotations

import numpy as np
import pytest

from oneshot_ml2.spaces.full import steps
from oneshot_ml2.spaces.full.axes import cut_axes
from oneshot_ml2.spaces.full.canonical import canonical
from oneshot_ml2.spaces.full.knobs import HEAD_WHOLE, schedules
from oneshot_ml2.spaces.full.legality import reasons
from oneshot_ml2.spaces.full.sram import LAYOUT, lay_out
from oneshot_ml2.spaces.full.tiles import channel_tiles, chunk_starts
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.nest import make_nest
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.dense import Dense
from oneshot_ml2.workload.epilogue import Epilogue

LAYERS: tuple[Workload, ...] = (
    Conv2d(1, 128, 28, 28, 128, 3, 3, padding=1),
    Dense(128, 768, 768, epilogue=Epilogue(bias=True, residual_shift=2)),
)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_records_of_steps_cover_every_tile_and_reduction(layer: Workload) -> None:
    space = ScheduleSpace(layer, Accelerator.load("pynq"))
    nest = make_nest(space.workload, space.accelerator)
    records, sram = steps.step_table(), np.zeros(1, dtype=LAYOUT)
    values = space.values(np.random.default_rng(26).integers(0, len(space), 4000))
    for schedule in schedules(canonical(nest, values)[reasons(nest, values) == 0][:50]):
        rows, _, cols, _, _ = cut_axes(nest, schedule)
        sp_tiles, co_tiles = len(rows) * len(cols), channel_tiles(nest, schedule)
        lay_out(nest, schedule, rows["held"].max() * cols["held"].max(), sp_tiles, sram[0])
        whole, tapered = (chunk_starts(nest.ci, schedule.tile_ci, head) for head in (HEAD_WHOLE, schedule.head))
        found = records[: steps.record_steps(nest, schedule, sram[0], rows, cols, whole, tapered, records)]
        assert len(found) == steps.step_count(nest, schedule, sp_tiles, co_tiles, whole, tapered)
        work = np.zeros(found[-1]["tile"] + 1, dtype=np.int64)
        np.add.at(work, found["tile"], found["ci"] * found["co"])
        widths = np.minimum(schedule.tile_co, nest.co - found[found["last"] == 1]["co_tile"] * schedule.tile_co)
        assert np.array_equal(work, widths * nest.ci)
        assert len(work) == sp_tiles * -(-nest.co // schedule.tile_co)
        assert (found["needs"] < np.arange(len(found))).all() and (np.diff(found["needs"]) >= 0).all()
        assert set(np.flatnonzero(found["pushes"])) == set(found["needs"]) - {-1}
