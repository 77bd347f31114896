from __future__ import annotations

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
from oneshot_ml2.vta.reasons import Reason
from oneshot_ml2.workload.conv2d import Conv2d

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
