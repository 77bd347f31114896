"""Families of accelerators: what is computed once for all sizes equals what each of them gives by itself."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from oneshot_ml2.network import picking
from oneshot_ml2.spaces.full import families, features
from oneshot_ml2.spaces.full.families import MEMORIES, OBJECTIVES, Family, Listing, floors
from oneshot_ml2.spaces.full.knobs import FOLD_TAPS, KNOBS
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.accelerator import DESIGNS, Accelerator
from oneshot_ml2.vta.drawn import random_accelerator, with_random_srams
from oneshot_ml2.vta.nest import make_nest
from oneshot_ml2.vta.reasons import InvalidSchedule, Reason
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.drawn import random_workload
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


def test_a_listing_gives_what_each_member_lists_by_itself(members: list[Accelerator]) -> None:
    listing = Listing.of(LAYER, members)
    for member in members:
        held = listing.held_by(member)
        assert held is not None
        own = features.all_candidates(ScheduleSpace(LAYER, member), fitting=True)
        np.testing.assert_array_equal(held.indices, own.indices)
        np.testing.assert_array_equal(held.values, own.values)
        np.testing.assert_array_equal(held.summary, own.summary)


def test_a_member_whose_tiles_are_others_is_not_in_the_listing() -> None:
    wide = Conv2d(1, 16, 6, 6, 512, 1, 1, 1, 0, 1, Epilogue(shift=6))
    large = Accelerator.load("pynq")
    # 32 blocks of channels, and as many accumulators as 16 of them.
    small = large.with_srams(15, 15, 18, 10)
    assert large.acc_depth >= 32 > small.acc_depth
    listing = Listing.of(wide, [large, small])
    assert listing.held_by(large) is not None and listing.held_by(small) is None
    both, alone = floors(wide, [large, small]), floors(wide, [small])
    assert np.isfinite(both).all() and both[1] == alone[0]


def test_a_floor_is_the_least_bound_of_the_legal_schedules(members: list[Accelerator]) -> None:
    for member, floor in zip(members, floors(LAYER, members).tolist()):
        space = ScheduleSpace(LAYER, member)
        own = features.all_candidates(space, fitting=True)
        legal = own.bound[space.validity(own.indices) == Reason.VALID]
        assert floor <= legal.min() <= floor * 1.02


def test_a_floor_knows_the_ways_to_fold_that_only_a_small_member_has() -> None:
    base = Accelerator.load("pynq")
    found = 0
    for layer in (LAYER, Conv2d(1, 16, 12, 12, 16, 3, 3, 1, 1, 1, Epilogue(shift=6))):
        chips = [base.with_srams(*sizes) for sizes in itertools.product((12, 15), (8, 15), (12, 18), (8, 9, 10, 16))]
        for chip, floor in zip(chips, floors(layer, chips).tolist()):
            try:
                legal = picking.legal_by_estimate(ScheduleSpace(layer, chip), 1)
            except InvalidSchedule:
                assert np.isinf(floor)
                continue
            assert floor <= ScheduleSpace(layer, chip).measure(legal).cycles[0]
            found += FOLD_TAPS in ScheduleSpace(layer, chip).knobs[KNOBS.index("fold")].values
    assert found


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_no_pick_is_below_its_floor(seed: int) -> None:
    rng, pairs = np.random.default_rng(seed), 0
    while pairs < 50:
        first = random_accelerator(rng, DESIGNS[seed % len(DESIGNS)])
        chips = [first, *(with_random_srams(rng, first) for _ in range(4))]
        workload = random_workload(rng)
        try:
            found = floors(workload, chips)
        except InvalidSchedule:
            continue
        for chip, floor in zip(chips, found.tolist()):
            try:
                pick = picking.pick(workload, chip)
            except InvalidSchedule:
                continue
            cycles = int(pick.space.measure(np.array([pick.index])).cycles[0])
            assert 0 < floor <= cycles
            pairs += 1
