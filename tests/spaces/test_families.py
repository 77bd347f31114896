"""Families of accelerators: what is computed once for all sizes equals what each of them gives by itself."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from oneshot_ml2.spaces.full import families, features
from oneshot_ml2.spaces.full.families import MEMORIES, OBJECTIVES, Family
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.nest import make_nest
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.epilogue import Epilogue

LAYER = Conv2d(1, 48, 10, 10, 64, 3, 3, 1, 1, 1, Epilogue(bias=True, shift=6, clip=(0, 127)))
SIZES = [(u, i, w, a) for u in (12, 15) for i in (11, 15) for w in (14, 18) for a in (13, 16)]


def some(preset: str) -> list[Accelerator]:
    base = Accelerator.load(preset)
    return [base.with_srams(*sizes) for sizes in SIZES]


@pytest.fixture(scope="module", params=["pynq", "pynq-hls"])
def members(request: pytest.FixtureRequest) -> list[Accelerator]:
    return some(request.param)


def test_closed_forms_are_those_of_each_member(members: list[Accelerator]) -> None:
    family = Family.of(LAYER, members)
    for number, member in enumerate(members):
        held = family.held_by(member)
        assert len(held)
        some_held = np.random.default_rng(number).choice(held, min(len(held), 200), replace=False)
        given = family.at(member, some_held)
        own = features.Encoder.of(ScheduleSpace(LAYER, member)).candidates(some_held, given.values)
        np.testing.assert_array_equal(given.summary, own.summary)


def test_the_best_of_each_member_is_the_least_that_it_holds(members: list[Accelerator]) -> None:
    family = Family.of(LAYER, members)
    best = family.best(members)
    assert best.shape == (len(members), len(OBJECTIVES))
    for member, places in zip(members, best):
        held = set(family.held_by(member).tolist())
        for name, place in zip(OBJECTIVES, places.tolist()):
            assert place in held
            assert family.objective(name)[place] == family.objective(name)[sorted(held)].min()
    # Larger memories hold whatever smaller ones do.
    guess = family.objective("guess")[best[:, 0]]
    for i, small in enumerate(SIZES):
        for j, large in enumerate(SIZES):
            if all(a <= b for a, b in zip(small, large)):
                assert guess[j] <= guess[i]


def test_closed_is_the_best_of_a_member_on_it(members: list[Accelerator]) -> None:
    family = Family.of(LAYER, members)
    best, closed = family.best(members), family.closed(members)
    for member, places, forms in zip(members, best, closed):
        np.testing.assert_array_equal(family.at(member, places).summary, forms)


def test_what_holds_nothing_has_no_closed_form() -> None:
    pynq = Accelerator.load("pynq")
    large, tiny = pynq, pynq.with_srams(4, 5, 9, 7)
    family = Family.of(LAYER, [large, tiny])
    assert not len(family.held_by(tiny))
    closed = family.closed([large, tiny])
    assert not np.isnan(closed[0]).any() and np.isnan(closed[1]).all()
    alone = Family.of(LAYER, [tiny])
    assert not len(alone.needs) and np.isnan(alone.closed([tiny])).all()


def test_families_of_one_shape_are_found_together() -> None:
    chips = [*some("pynq"), *some("pynq-hls"), dataclasses.replace(Accelerator.load("pynq"), bus_bits=128)]
    found = list(Family.all_of(LAYER, chips))
    assert sorted(place for places, _ in found for place in places) == list(range(len(chips)))
    assert len(found) == 3
    for places, family in found:
        own = Family.of(LAYER, [chips[place] for place in places])
        members = [chips[place] for place in places]
        np.testing.assert_array_equal(family.closed(members)[:, 0], own.closed(members)[:, 0])


def test_accelerators_of_several_shapes_are_refused() -> None:
    chips = [Accelerator.load("pynq"), Accelerator.load("b32")]
    with pytest.raises(ValueError, match="block and batch"):
        list(Family.all_of(LAYER, chips))
    with pytest.raises(ValueError, match="SRAMs alone"):
        Family.of(LAYER, [chips[0], dataclasses.replace(chips[0], bus_bits=128)])


def test_nests_are_those_of_each_member(members: list[Accelerator]) -> None:
    for member, nest in zip(members, families.nests(LAYER, members)):
        assert nest == make_nest(LAYER, member)


def test_sizes_are_those_that_a_program_may_use() -> None:
    pynq = Accelerator.load("pynq")
    assert families.sizes([pynq]).tolist() == [[2048, 1024, 2048, 2048]]
    assert len(MEMORIES) == families.sizes([pynq]).shape[1]


def test_the_guesses_are_no_less_than_the_bound(members: list[Accelerator]) -> None:
    summary = Family.of(LAYER, members).given.summary
    guess, cautious = families.guess_of(summary), families.cautious_of(summary)
    assert (guess >= features.column(summary, "bound")).all()
    assert (cautious >= guess).all()
    double = (features.column(summary, "serial_load") == 0) & (features.column(summary, "exposed_store") == 0)
    assert double.any() and (cautious[double] == guess[double]).all() and (cautious > guess).any()
