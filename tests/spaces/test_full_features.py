from __future__ import annotations

import dataclasses

import networks
import numpy as np
import pytest

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.parallel import in_parallel
from oneshot_ml2.spaces.full import features as full_features
from oneshot_ml2.spaces.full import totals
from oneshot_ml2.spaces.full.totals import column
from oneshot_ml2.spaces.space import ScheduleSpace, scan
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.hls_keys import TICKS, HlsTiming
from oneshot_ml2.vta.program import Memory, Opcode
from oneshot_ml2.vta.reasons import Reason
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.dense import Dense

LARGE = Conv2d(1, 128, 28, 28, 128, 3, 3, padding=1)
SPACES = [
    ScheduleSpace(workload, Accelerator.load(chip))
    for workload, chip in zip([*networks.workloads(), LARGE], ("pynq", "b8", "b32", "b2x16", "half"))
]


def drawn(space: ScheduleSpace, n: int = 500) -> np.ndarray:
    return np.random.default_rng(1).integers(0, len(space), size=n)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_the_table_is_the_space_s_own(space):
    assert np.array_equal(full_features.canonical_table(space), scan(space))
    assert np.array_equal(space.table(), scan(space))


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_summaries_are_the_plan_s(space):
    indices = drawn(space)
    expected = totals.summaries(full_features.nest_of(space), space.values(indices))
    assert np.array_equal(full_features.summaries(space, indices), expected)
    assert full_features.summaries(space, indices[:0]).shape == (0, len(totals.SUMMARY))


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_aliases_have_the_same_features_and_others_do_not(space):
    indices = drawn(space)
    features = full_features.encode(space, space.values(indices))
    assert features.shape == (len(indices), len(full_features.FEATURES))
    assert np.isfinite(features).all()
    canonical = space.canonical(indices)
    assert (canonical != indices).any()
    assert np.array_equal(features, full_features.encode(space, space.values(canonical)))
    different = np.unique(canonical)
    rows = full_features.encode(space, space.values(different))
    # Knobs all show, so two canonical schedules never look the same.
    assert len(np.unique(rows, axis=0)) == len(different)


def test_the_encoder_writes_what_encode_gives():
    space = SPACES[1]
    indices = drawn(space, 65)
    out = np.empty((65, len(full_features.SCHEDULE_FEATURES)), dtype=np.float32)
    given = full_features.candidates_at(space, indices)
    full_features.Encoder.of(space).encode(given, out)
    whole = full_features.encode(space, space.values(indices))
    assert np.array_equal(out, whole[:, len(full_features.TASK_FEATURES) :])
    assert np.array_equal(whole[0, : len(full_features.TASK_FEATURES)], full_features.task_features(space))
    assert np.array_equal(given.bound, column(full_features.summaries(space, indices), "bound"))
    assert np.array_equal(given.take(np.array([3, 5])).values, given.values[[3, 5]])


def test_sram_shares_tell_capacity_exactly():
    seen = 0
    for space in SPACES:
        indices = drawn(space, 2000)
        overflows = space.validity(indices) == Reason.SRAM_OVERFLOW
        summary = full_features.summaries(space, indices)
        totals = np.stack([column(summary, name) for name in ("inp_use", "wgt_use", "acc_use")], axis=1)
        assert np.array_equal((totals > 1).any(axis=1), overflows)
        seen += int(overflows.sum())
    assert seen


def test_names_are_unique_and_other_spaces_are_refused():
    assert len(set(full_features.FEATURES)) == len(full_features.FEATURES)
    template = ScheduleSpace(networks.SMALL, Accelerator.load("pynq"), "autotvm")
    with pytest.raises(OneShotError, match="'full', not 'autotvm'"):
        full_features.task_features(template)


def test_threads_cover_everything_once():
    hits = np.zeros(11, dtype=int)

    def part(begin, end):
        hits[begin:end] += 1

    for pieces in (None, 1, 5, 40):
        hits[:] = 0
        in_parallel(part, len(hits), pieces)
        assert (hits == 1).all()


HLS = HlsTiming(read_row=3100, store_row=4700, pad=370, load_start=0, store_start=0, acc_distance=6)
HLS_SPACES = [
    ScheduleSpace(space.workload, dataclasses.replace(space.accelerator, hls=HLS)) for space in (SPACES[1], SPACES[-1])
]


def encoded(space: ScheduleSpace, indices: np.ndarray, version: int) -> np.ndarray:
    """A version's features of schedules, float32 (n, features)."""
    seen = full_features.FEATURE_SETS[version]
    out = np.full((len(indices), len(seen.schedule)), np.nan, dtype=np.float32)
    full_features.Encoder.of(space, version).encode(full_features.candidates_at(space, indices), out)
    return out


def test_features_of_the_hls_design_come_after_the_others() -> None:
    versions = (full_features.FEATURE_VERSION, full_features.HLS_FEATURE_VERSION)
    for space in (*HLS_SPACES, SPACES[0]):
        indices = drawn(space)
        old, new = (encoded(space, indices, version) for version in versions)
        assert np.array_equal(new[:, : old.shape[1]], old) and np.isfinite(new).all()
        tasks = [full_features.task_features(space, version) for version in versions]
        names = full_features.FEATURE_SETS[full_features.HLS_FEATURE_VERSION].task
        named = dict(zip(names, tasks[1].tolist(), strict=True))
        rest = [i for i, name in enumerate(names[: len(tasks[0])]) if name not in ("burst beats", "memory latency")]
        assert np.array_equal(tasks[1][rest], tasks[0][rest])
        hls = space.accelerator.hls is not None
        assert named["HLS design"] == hls and (named["memory latency"] == 0) == hls
        rows = np.log2(1 + HLS.read_row / TICKS) if hls else 0.0
        assert named["read row cycles"] == pytest.approx(rows)
        shown = full_features.accelerator_and_workload(tasks[1], full_features.HLS_FEATURE_VERSION)
        assert "pad cycles" in shown and "HLS design" not in shown


def test_features_of_waiting_come_last() -> None:
    for space in (*HLS_SPACES, *SPACES):
        indices = drawn(space)
        old, new = (
            encoded(space, indices, version)
            for version in (full_features.HLS_FEATURE_VERSION, full_features.WAITS_FEATURE_VERSION)
        )
        seen = full_features.FEATURE_SETS[full_features.WAITS_FEATURE_VERSION]
        assert np.array_equal(new[:, : old.shape[1]], old) and np.isfinite(new).all()
        given = full_features.candidates_at(space, indices)
        guess = given.bound * np.exp2(new[:, seen.schedule.index(seen.beside)].astype(np.float64))
        assert np.allclose(guess, full_features.waiting(space, given), rtol=1e-5)
        assert (guess >= given.bound * 0.999).all()
        if space.accelerator.hls is not None:
            assert np.array_equal(full_features.waiting(space, given), given.estimate)


def test_rows_and_pads_of_the_closed_form_are_the_program_s() -> None:
    seen = 0
    for space in HLS_SPACES:
        indices = drawn(space, 3000)
        indices = indices[space.validity(indices) == Reason.VALID][:150]
        summary = full_features.summaries(space, indices)
        rows = encoded(space, indices, full_features.HLS_FEATURE_VERSION)
        names = full_features.FEATURE_SETS[full_features.HLS_FEATURE_VERSION].schedule
        assert not rows[:, names.index("recurs within the accumulator distance")].any()
        for index, row in zip(indices.tolist(), summary):
            totals_of = dict(zip(totals.SUMMARY, row, strict=True))
            insns = space.lower(index).insns
            loads = insns[(insns["op"] == Opcode.LOAD) & (insns["x"] > 0)]
            inputs, weights = loads[loads["mem"] == Memory.INP], loads[loads["mem"] == Memory.WGT]
            width = inputs["left"] + inputs["x"] + inputs["right"]
            pads = (inputs["top"] + inputs["bottom"]) * width + inputs["y"] * (inputs["left"] + inputs["right"])
            assert totals_of["pads"] == pytest.approx(pads.sum() * HLS.pad / TICKS)
            # What an opening cuts into parts has more.
            assert totals_of["inp_rows"] <= inputs["y"].sum() * HLS.read_row / TICKS * (1 + 1e-9)
            assert totals_of["wgt_rows"] <= weights["y"].sum() * HLS.read_row / TICKS * (1 + 1e-9)
            seen += pads.sum() > 0
    assert seen > 50


@pytest.mark.parametrize(("distance", "exact"), [(0, True), (12, True), (35, False)])
def test_what_has_a_hazard_is_left_out_and_nothing_legal(distance: int, exact: bool) -> None:
    """Of designs whose accumulators may be updated again after 3, 12 and 35 operations."""
    hls = HlsTiming(acc_distance=distance) if distance else None
    chip = Accelerator(6, 3, 8, 17, 17, 18, bus_bits=256, uop_depth=64, hls=hls, name="far")
    for workload in (Dense(1088, 64, 128), Conv2d(1, 16, 12, 12, 16, 3, 3, padding=1)):
        space = ScheduleSpace(workload, chip)
        given = full_features.all_candidates(space, fitting=True)
        reasons, sound = (
            space.validity(given.indices),
            full_features.no_hazard(full_features.nest_of(space), given.summary),
        )
        assert sound[reasons == Reason.VALID].all() and (reasons == Reason.ACC_HAZARD).any()
        if exact:
            assert not sound[reasons == Reason.ACC_HAZARD].any()
        assert np.array_equal(full_features.without_hazards(space, given).indices, given.indices[sound])
