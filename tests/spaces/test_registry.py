from __future__ import annotations

import fake_space
import numpy as np
import pytest

from oneshot_ml2.common.errors import CorpusError, OneShotError
from oneshot_ml2.common.names import unknown
from oneshot_ml2.corpus.plan import Plan
from oneshot_ml2.network.calibration import boards_of
from oneshot_ml2.network.predictor import Predictor
from oneshot_ml2.spaces.base import Schedule
from oneshot_ml2.spaces.registry import DEFAULT_KIND, TVM_KIND, kinds, listing, space_kind
from oneshot_ml2.spaces.space import ScheduleSpace, short_schedule
from oneshot_ml2.vta.accelerator import DESIGNS, Accelerator
from oneshot_ml2.vta.reasons import InvalidSchedule, Reason
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.lists import Layer

CONV = Conv2d(1, 16, 14, 14, 16, 3, 3, padding=1)
CHIP = Accelerator.load("pynq")


def test_every_kind_brings_what_its_record_says() -> None:
    assert kinds()[:2] == (DEFAULT_KIND, TVM_KIND)
    for kind in (DEFAULT_KIND, TVM_KIND):
        space = ScheduleSpace(CONV, CHIP, kind)
        assert tuple(knob.name for knob in space.knobs) == space.record.schedules.KNOBS
        given = space.record.features.candidates_at(space, space.table()[:50])
        for figures in (given.bound, given.estimate, given.reads, given.roofline):
            assert figures.shape == (50,) and (figures > 0).all()
        assert [space.record.shipped(design) for design in DESIGNS] == list(space.record.weights.values())
        assert f"{kind}: {space.record.about}" in listing()


def test_programs_are_those_of_lowering() -> None:
    for kind in (DEFAULT_KIND, TVM_KIND):
        space = ScheduleSpace(CONV, CHIP, kind)
        reasons = space.validity(space.table())
        indices = space.table()[reasons == Reason.VALID][::101][:20]
        for index, insns in zip(indices.tolist(), space.programs(indices), strict=True):
            assert np.array_equal(insns, space.lower(index).insns)
        with pytest.raises(InvalidSchedule):
            next(space.programs(space.table()[reasons != Reason.VALID][:1]))


def test_a_kind_without_networks_has_schedules_alone() -> None:
    space = ScheduleSpace(CONV, CHIP, "fake")
    assert space.record.schedules.SPACE_VERSION == fake_space.SPACE_VERSION
    assert short_schedule(space.schedule(3)) == str(space.schedule(3))
    with pytest.raises(OneShotError, match="no features of schedule space 'fake'; there are those of: full, autotvm"):
        _ = space.record.features
    with pytest.raises(OneShotError, match="no weights know the schedule space 'fake'"):
        space.record.shipped()
    with pytest.raises(OneShotError, match=r"know the schedule space 'full', not 'fake'$"):
        Predictor({}, {}).check_space(space)


def test_only_proven_bounds_are_given_as_such() -> None:
    full = ScheduleSpace(CONV, CHIP)
    indices = full.table()[:20]
    bound, cycles = full.bound(indices), full.measure(indices).cycles
    assert (bound[cycles > 0] <= cycles[cycles > 0]).all()
    with pytest.raises(OneShotError, match="not proven"):
        ScheduleSpace(CONV, CHIP, TVM_KIND).bound(np.arange(3))


def test_both_spaces_have_calibrations() -> None:
    for kind in (TVM_KIND, "full"):
        assert len(set(boards_of(kind).TRAFFIC)) == len(boards_of(kind).TRAFFIC)
    with pytest.raises(
        OneShotError, match="no calibrations of the schedule space 'fake', only of 'full' and 'autotvm'"
    ):
        boards_of("fake")


def test_unknown_kinds_are_told_what_there_is(run_command) -> None:
    with pytest.raises(OneShotError, match=r"no schedule space 'ful'; did you mean 'full'\? There are: full, autotvm"):
        space_kind("ful")
    with pytest.raises(OneShotError, match="no schedule space 'magic'"):
        short_schedule(Schedule("magic", (("a", 1),)))
    code, _, err = run_command("refine", "resnet18", "--space", "autotvn")
    assert code == 2 and unknown("schedule space", "autotvn", kinds()) in err
    with pytest.raises(CorpusError, match="plan: no schedule space 'ful'; did you mean 'full'"):
        Plan((Layer("conv", CONV),), (CHIP,), tasks=1, space="ful")
