"""Closed forms of the `full` space against lowering and timing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from programs import ACCELERATORS, smallest_workload

from oneshot_ml2.common.metrics import kendall_tau
from oneshot_ml2.spaces.full import traffic
from oneshot_ml2.spaces.full.axes import RECURRENCE
from oneshot_ml2.spaces.full.knobs import BIAS_GEMM, FOLD_TAPS, KNOBS, PAD_SKIP, schedules
from oneshot_ml2.spaces.full.totals import column, summaries, totals_of
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.hls_keys import RATES, HlsTiming
from oneshot_ml2.vta.nest import make_nest
from oneshot_ml2.vta.program import Opcode
from oneshot_ml2.vta.reasons import InvalidSchedule, Reason
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.dense import Dense
from oneshot_ml2.workload.drawn import random_workload
from oneshot_ml2.workload.epilogue import Epilogue


def test_bound_never_exceeds_the_cycles() -> None:
    rng = np.random.default_rng(11)
    timed = 0
    while timed < 100_000:
        space = ScheduleSpace(random_workload(rng), ACCELERATORS[int(rng.integers(len(ACCELERATORS)))])
        indices = rng.integers(0, len(space), 4000)
        result = space.measure(indices)
        valid = result.reason == Reason.VALID
        totals = summaries(make_nest(space.workload, space.accelerator), space.values(indices[valid]))
        wrong = np.flatnonzero(column(totals, "bound") > result.cycles[valid])
        assert not len(wrong), (space, space.schedule(int(indices[valid][wrong[0]])))
        timed += int(valid.sum())


def _random_hls(rng: np.random.Generator) -> HlsTiming:
    """Rates from none to many times those of boards."""
    rates = {name: int(rng.choice([1, 100, 2000, 9000]) * rng.random()) for name in RATES}
    return HlsTiming(**rates | {name: max(rates[name], 1) for name in ("wgt_beat", "alu_op")})


def test_bound_never_exceeds_the_cycles_of_the_hls_design() -> None:
    rng = np.random.default_rng(14)
    timed = 0
    while timed < 100_000:
        chip = ACCELERATORS[int(rng.integers(len(ACCELERATORS)))]
        space = ScheduleSpace(random_workload(rng), dataclasses.replace(chip, hls=_random_hls(rng)))
        indices = rng.integers(0, len(space), 4000)
        result = space.measure(indices)
        valid = result.reason == Reason.VALID
        wrong = np.flatnonzero(space.bound(indices[valid]) > result.cycles[valid])
        assert not len(wrong), (space, space.schedule(int(indices[valid][wrong[0]])))
        timed += int(valid.sum())


@pytest.mark.parametrize("board", ["pynq-hls", "axu5evb-hls"])
@pytest.mark.parametrize("layer", [Conv2d(1, 64, 28, 28, 64, 3, 3, padding=1), Conv2d(1, 128, 14, 14, 256, 1, 1)])
def test_closed_form_of_the_hls_design(board: str, layer: Conv2d) -> None:
    """Mostly it is within a few hundredths, and the fastest are among its first."""
    space = ScheduleSpace(layer, Accelerator.load(board))
    indices = space.sample(np.random.default_rng(15), 3000)
    cycles = space.measure(indices).cycles
    indices, cycles = indices[cycles > 0], cycles[cycles > 0]
    estimate = space.estimate(indices)
    assert abs(np.median(estimate / cycles) - 1) < 0.05
    assert kendall_tau(estimate, cycles) > 0.8
    assert cycles[np.argsort(estimate)[:10]].min() / cycles.min() < 1.1


def test_bound_holds_on_layers_of_usual_size() -> None:
    rng = np.random.default_rng(12)
    layers = (
        Conv2d(1, 128, 28, 28, 256, 3, 3, stride=2, padding=1, epilogue=Epilogue(bias=True, residual_shift=3)),
        Conv2d(1, 256, 14, 14, 1024, 1, 1),
        Conv2d(1, 3, 112, 112, 32, 3, 3, stride=2, padding=1, epilogue=Epilogue(bias=True)),
        Dense(1, 512, 1000, epilogue=Epilogue(bias=True, clip=(-128, 127))),
        Dense(128, 768, 768),
    )
    for layer in layers:
        for accelerator in ACCELERATORS:
            space = ScheduleSpace(layer, accelerator)
            indices = rng.integers(0, len(space), 300)
            result = space.measure(indices)
            valid = result.reason == Reason.VALID
            totals = summaries(make_nest(layer, accelerator), space.values(indices[valid]))
            assert (column(totals, "bound") <= result.cycles[valid]).all()


def test_validity_of_a_table_is_what_lowering_says() -> None:
    rng = np.random.default_rng(13)
    seen = set()
    for _ in range(60):
        space = ScheduleSpace(random_workload(rng), ACCELERATORS[int(rng.integers(len(ACCELERATORS)))])
        indices = rng.integers(0, len(space), 40)
        for index, reason in zip(indices, space.validity(indices), strict=True):
            seen.add(Reason(reason))
            try:
                space.lower(int(index))
                assert reason == Reason.VALID
            except InvalidSchedule as error:
                assert error.reason == reason
    assert {Reason.VALID, Reason.SRAM_OVERFLOW, Reason.ACC_HAZARD} <= seen


def test_summary_counts_the_real_work() -> None:
    layer = Conv2d(1, 64, 56, 56, 64, 3, 3, padding=1)
    space = ScheduleSpace(layer, ACCELERATORS[0])
    indices = space.sample(np.random.default_rng(1), 200)
    totals = summaries(make_nest(layer, ACCELERATORS[0]), space.values(indices))
    compute = column(totals, "compute")
    skipping = schedules(space.values(indices))["pad"] == PAD_SKIP
    # The engine bound of the same layer: 440,896 GEMMs on real taps, reset and three ALU passes of 12,544 elements.
    assert (compute[skipping] >= 440_896 + 4 * 12_544).all()
    assert (compute[~skipping] >= 451_584 + 4 * 12_544).all()


def test_micro_ops_in_closed_form_are_nearly_those_of_programs() -> None:
    rng = np.random.default_rng(14)
    ratios, sides = [], []
    for layer in (
        Conv2d(1, 128, 28, 28, 128, 3, 3, padding=1),
        Conv2d(1, 256, 14, 14, 512, 1, 1, 2, epilogue=Epilogue(bias=True)),
        Conv2d(1, 96, 14, 14, 96, 3, 3, padding=1, groups=96),
        Dense(1, 4096, 1000),
        Dense(64, 256, 256),
    ):
        for accelerator in ACCELERATORS:
            space = ScheduleSpace(layer, accelerator)
            indices = rng.integers(0, len(space), 400)
            nest = make_nest(layer, accelerator)
            uops = column(summaries(nest, space.values(indices)), "uops")
            reasons = space.validity(indices)
            known = (reasons == Reason.VALID) | (reasons == Reason.UOP_OVERFLOW)
            sides += ((uops > nest.uop_limit) == (reasons == Reason.UOP_OVERFLOW))[known].tolist()
            valid = np.flatnonzero(reasons == Reason.VALID)[:20]
            ratios += [uops[i] / len(space.lower(int(indices[i])).uops) for i in valid]
    low, middle, high = np.quantile(ratios, [0.05, 0.5, 0.95])
    assert 0.9 < low and 0.99 < middle < 1.05 and high < 1.6
    assert np.mean(sides) > 0.99


def test_a_gemm_a_tap_in_closed_form_is_that_of_programs() -> None:
    rng = np.random.default_rng(15)
    compared = 0
    while compared < 200:
        space = ScheduleSpace(smallest_workload(rng), ACCELERATORS[int(rng.integers(len(ACCELERATORS)))])
        indices = rng.integers(0, len(space), 60)
        nest, values = make_nest(space.workload, space.accelerator), space.values(indices)
        taps = (schedules(values)["fold"] == FOLD_TAPS) & (space.validity(indices) == Reason.VALID)
        totals = summaries(nest, values)
        assert (column(totals, "recurrence")[taps] >= RECURRENCE).all()
        for index, total in zip(indices[taps], totals_of(totals)[taps], strict=True):
            insns = space.lower(int(index)).insns
            gemms = (insns["op"] == Opcode.GEMM) & (insns["reset"] == 0)
            bias = nest.bias and schedules(space.values(np.array([index])))[0]["bias"] == BIAS_GEMM
            others = int(total["tiles"]) * (int(bias) + int(nest.residual))
            assert gemms.sum() - others == total["gemms"]
            compared += 1


def test_tiles_of_wide_images_are_told_apart() -> None:
    layer = Conv2d(1, 16, 3, 70_000, 16, 1, 1)
    nest = make_nest(layer, ACCELERATORS[0])
    values = np.repeat(ScheduleSpace(layer, ACCELERATORS[0]).values(np.array([0])), 2, axis=0)
    values[:, [KNOBS.index("tile_h"), KNOBS.index("tile_w")]] = (1, 70_000), (2, 70_000 - 65_536)
    both = summaries(nest, values)
    alone = [summaries(nest, row[None])[0] for row in values]
    assert np.array_equal(both, alone)
    moved = traffic.traffic(nest, values, both)
    assert np.array_equal(
        moved, [traffic.traffic(nest, row[None], total[None])[0] for row, total in zip(values, alone, strict=True)]
    )
