"""Validity in closed form against lowering, which counts by emitting."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from programs import ACCELERATORS, smallest_workload

from oneshot_ml2.spaces.full import emit, legality
from oneshot_ml2.spaces.full.axes import cut_axes, most_tiles
from oneshot_ml2.spaces.full.canonical import canonical
from oneshot_ml2.spaces.full.knobs import KNOBS, schedules
from oneshot_ml2.spaces.full.totals import column, summaries
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.nest import MAX_INSNS, Nest, make_nest
from oneshot_ml2.vta.reasons import Reason
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.dense import Dense
from oneshot_ml2.workload.drawn import random_workload
from oneshot_ml2.workload.epilogue import Epilogue

# Each leaves few schedules to the static checks alone, and together they meet every reason.
LAYERS: tuple[Workload, ...] = (
    Conv2d(1, 128, 28, 28, 128, 3, 3, padding=1),
    Conv2d(1, 128, 28, 28, 256, 3, 3, stride=2, padding=1, epilogue=Epilogue(bias=True, residual_shift=3)),
    Conv2d(1, 256, 14, 14, 1024, 1, 1, epilogue=Epilogue(residual_shift=1)),
    Conv2d(1, 3, 112, 112, 32, 3, 3, stride=2, padding=1, epilogue=Epilogue(bias=True)),
    Conv2d(1, 64, 56, 56, 128, 1, 1, stride=2),
    Conv2d(4, 64, 56, 56, 64, 3, 3, padding=2, dilation=2, epilogue=Epilogue(bias=True, residual_shift=1)),
    Conv2d(2, 40, 13, 9, 72, 5, 2, stride=(2, 3), padding=(4, 1, 1, 1), epilogue=Epilogue(bias=True)),
    Conv2d(1, 24, 3, 5, 40, 5, 5, padding=(8, 8, 7, 7), dilation=2, epilogue=Epilogue(bias=True, residual_shift=2)),
    Conv2d(1, 32, 260, 300, 16, 3, 3, padding=1),
    Dense(1, 512, 1000, epilogue=Epilogue(bias=True, clip=(-128, 127))),
    Dense(128, 768, 768, epilogue=Epilogue(bias=True, residual_shift=2)),
)


class Lowering:
    """`emit.lower_into` on work arrays that are kept."""

    def __init__(self) -> None:
        self.insns, _, self.tables = emit.work_arrays()

    def reasons(self, nest: Nest, values: NDArray[np.int64]) -> NDArray[np.uint8]:
        found = [emit.lower_into(nest, schedule, self.insns, self.tables)[0] for schedule in schedules(values)]
        return np.array(found, dtype=np.uint8)


def compare(space: ScheduleSpace, values: NDArray[np.int64], lowering: Lowering) -> NDArray[np.uint8]:
    nest = make_nest(space.workload, space.accelerator)
    before = values.copy()
    found, want = legality.reasons(nest, values), lowering.reasons(nest, values)
    assert np.array_equal(values, before)
    wrong = np.flatnonzero(found != want)
    assert not len(wrong), (space.workload, space.accelerator, values[wrong[0]], found[wrong[0]], want[wrong[0]])
    return found


def run_random(seed: int, tasks: int, each: int) -> None:
    rng = np.random.default_rng(seed)
    lowering = Lowering()
    for _ in range(tasks):
        space = ScheduleSpace(random_workload(rng), ACCELERATORS[int(rng.integers(len(ACCELERATORS)))])
        compare(space, space.values(rng.integers(0, len(space), each)), lowering)


def test_reasons_are_those_of_lowering() -> None:
    rng = np.random.default_rng(21)
    lowering = Lowering()
    seen: set[int] = set()
    for layer in LAYERS:
        for accelerator in ACCELERATORS:
            space = ScheduleSpace(layer, accelerator)
            reasons = compare(space, space.values(rng.integers(0, len(space), 200)), lowering)
            seen |= set(reasons.tolist())
    wanted = {
        Reason.VALID, Reason.SRAM_OVERFLOW, Reason.ACC_HAZARD, Reason.UOP_OVERFLOW, Reason.FIELD_OVERFLOW,
        Reason.INSTRUCTION_OVERFLOW, Reason.TOKEN_OVERFLOW,
    }  # fmt: skip
    assert wanted <= seen and Reason.DEADLOCK not in seen


def test_reasons_of_random_workloads_are_those_of_lowering() -> None:
    run_random(seed=22, tasks=100, each=120)


def test_reasons_of_smallest_workloads_are_those_of_lowering() -> None:
    rng = np.random.default_rng(27)
    lowering = Lowering()
    for _ in range(100):
        space = ScheduleSpace(smallest_workload(rng), ACCELERATORS[int(rng.integers(len(ACCELERATORS)))])
        compare(space, space.values(rng.integers(0, len(space), 120)), lowering)


@pytest.mark.slow
def test_reasons_of_random_workloads_are_those_of_lowering_long() -> None:
    run_random(seed=23, tasks=1500, each=400)


def test_reasons_of_knob_values_outside_of_the_candidates() -> None:
    rng = np.random.default_rng(24)
    lowering = Lowering()
    for layer in LAYERS:
        for accelerator in ACCELERATORS[:3]:
            space = ScheduleSpace(layer, accelerator)
            nest = make_nest(layer, accelerator)
            values = space.values(rng.integers(0, len(space), 60))
            for knob, extent in (("tile_co", "co"), ("tile_h", "oh"), ("tile_w", "ow"), ("tile_ci", "ci")):
                drawn = np.exp(rng.uniform(0, np.log(nest[extent] + 1), len(values))).astype(np.int64)
                schedules(values)[knob] = np.clip(drawn, 1, nest[extent])
            for knob in ("inp_buffers", "wgt_buffers", "acc_buffers"):
                schedules(values)[knob] = rng.integers(1, 6, len(values))
            compare(space, values, lowering)


def test_batches_on_threads_give_what_single_rows_give() -> None:
    space = ScheduleSpace(LAYERS[1], Accelerator.load("pynq"))
    values = space.values(np.random.default_rng(25).integers(0, len(space), 9000))
    nest = make_nest(space.workload, space.accelerator)
    whole = legality.reasons(nest, values)
    assert np.array_equal(whole[::50], [legality.reasons(nest, row[None])[0] for row in values[::50]])
    assert len(legality.reasons(nest, values[:0])) == 0


# Rows of which small tiles make more than any program has; and one of many taps, which takes memory.
@pytest.mark.parametrize(
    "layer",
    [
        Conv2d(1, 16, 1 << 20, 1, 16, 3, 1, padding=(1, 0)),
        Conv2d(1, 16, 1, 40000, 16, 1, 1001),
        Conv2d(1, 16, 2048, 2048, 16, 3, 3, padding=1),
    ],
    ids=str,
)
def test_more_tiles_than_a_program_has_are_illegal_and_not_looked_at(layer: Workload) -> None:
    space = ScheduleSpace(layer, Accelerator.load("pynq"))
    nest = make_nest(space.workload, space.accelerator)
    values = canonical(nest, space.values(np.random.default_rng(27).integers(0, len(space), 40)))
    values[:8, [KNOBS.index(name) for name in ("tile_co", "tile_h", "tile_w", "tile_ci")]] = 1
    compare(space, values, Lowering())
    cut = [-(-nest[extent] // schedules(values)[knob]) for knob, extent in (("tile_h", "oh"), ("tile_w", "ow"))]
    too_many = 3 * cut[0] * cut[1] > MAX_INSNS
    assert too_many.any() and (legality.reasons(nest, values)[too_many] != Reason.VALID).all()
    most = [most_tiles(nest[kernel]) for kernel in ("kh", "kw")]
    rows, _, cols, _, _ = cut_axes(nest, schedules(values)[0])
    assert [len(rows), len(cols)] == [min(int(n[0]), limit + 1) for n, limit in zip(cut, most, strict=True)]
    unseen = (cut[0] > most[0]) | (cut[1] > most[1]) | (cut[0] * cut[1] > 1 << 20)
    assert unseen.any() and (column(summaries(nest, values[unseen]), "inp_use") > 1).all()
