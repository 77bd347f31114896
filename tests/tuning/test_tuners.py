"""The tuners: what they propose, that they learn, and that the same seed gives the same run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from networks import random_network

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.network import picking
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.tuning import trees
from oneshot_ml2.tuning.autotvm import Annealing, AutoTVM, average_recall, walk
from oneshot_ml2.tuning.base import Domain, Outcomes, Tuner, draw_unseen
from oneshot_ml2.tuning.ml2 import ML2Tuner, Options
from oneshot_ml2.tuning.prior import Evidence, Prior
from oneshot_ml2.tuning.random_search import RandomSearch
from oneshot_ml2.tuning.registry import find_tuner, initializations, make_tuner, tuner_kinds
from oneshot_ml2.tuning.validity_first import ValidityInit, doubted, far_apart, initial, presampled
from oneshot_ml2.vta import facts
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.reasons import Reason
from oneshot_ml2.workload.conv2d import Conv2d

CHIP = Accelerator.load("pynq")
# The paper's C4: 1,728 schedules, a fifth of them valid.
SPACE = ScheduleSpace(Conv2d(1, 64, 56, 56, 128, 1, 1, stride=2), CHIP, "autotvm")
FULL = ScheduleSpace(Conv2d(1, 16, 6, 6, 32, 3, 3, padding=1), CHIP, "full")


@pytest.fixture(scope="module")
def domain() -> Domain:
    return Domain.of(SPACE)


@pytest.fixture(scope="module")
def truth(domain: Domain) -> Outcomes:
    result = SPACE.measure(domain.indices)
    return Outcomes(domain.indices, result.reason, result.cycles)


def tune(tuner: Tuner, domain: Domain, truth: Outcomes, trials: int, batch: int = 10) -> Outcomes:
    done = Outcomes.none()
    while len(done) < trials:
        positions = domain.positions(tuner.propose(batch))
        if not len(positions):
            break
        outcomes = Outcomes(truth.indices[positions], truth.reason[positions], truth.cycles[positions])
        tuner.observe(outcomes)
        done = done + outcomes
    return done


# The domain ----------------------------------------------------------------------------------
def test_domain_is_the_canonical_table(domain: Domain) -> None:
    assert np.array_equal(domain.indices, SPACE.table())
    full = Domain.of(FULL)
    assert np.array_equal(full.indices, FULL.table())
    raw = np.random.default_rng(0).integers(len(FULL), size=500)
    assert np.array_equal(full.indices[full.positions_of_raw(raw)], FULL.canonical(raw))
    assert np.array_equal(full.position_of_raw[raw], full.positions_of_raw(raw))
    assert domain.positions(np.array([len(SPACE) + 5])).tolist() == [-1]


@pytest.mark.parametrize("space", [SPACE, FULL])
def test_neighbours_differ_in_one_knob(space: ScheduleSpace) -> None:
    domain = Domain.of(space)
    rng = np.random.default_rng(1)
    for position in rng.integers(len(domain), size=5).tolist():
        near, one = domain.neighbours(position), domain.one_knob_away(position)
        assert set(near.tolist()) <= set(one.tolist())
        assert position not in one
        raw = space.neighbours(int(domain.indices[position]))
        assert set(near.tolist()) | {position} >= set(domain.positions_of_raw(raw).tolist())


def test_draw_unseen() -> None:
    seen = np.array([True, False, True, False, False])
    assert sorted(draw_unseen(np.random.default_rng(0), seen, 9).tolist()) == [1, 3, 4]


# Every tuner ---------------------------------------------------------------------------------
def any_tuner(name: str, domain: Domain, seed: int = 0) -> Tuner:
    return make_tuner(name, domain, seed, random_network(trusting=2.0))


@pytest.mark.parametrize(
    "name", [*tuner_kinds(), "rieber+autotvm", "rieber+ml2-scratch", "rieber+random", "validity+autotvm"]
)
def test_proposals_are_new_and_follow_from_the_seed(name: str) -> None:
    domain = Domain.of(FULL)
    result = FULL.measure(domain.indices[:0])
    assert len(result.cycles) == 0

    def go(seed: int) -> list[int]:
        tuner, chosen = any_tuner(name, domain, seed), []
        while len(chosen) < 90:
            indices = tuner.propose(10)
            measured = FULL.measure(indices)
            tuner.observe(Outcomes(indices, measured.reason, measured.cycles))
            chosen += indices.tolist()
        return chosen

    first = go(1)
    assert len(set(first)) == len(first) >= 90
    assert set(first) <= set(domain.indices.tolist())
    assert go(1) == first
    if not find_tuner(name)[1].needs_network:
        assert go(2) != first


@pytest.mark.parametrize("name", ["random", "autotvm", "ml2-scratch", "rieber+random", "validity+random"])
def test_a_small_space_is_exhausted_once(name: str) -> None:
    space = ScheduleSpace(Conv2d(1, 16, 4, 4, 32, 1, 1), CHIP, "autotvm")
    domain = Domain.of(space)
    result = space.measure(domain.indices)
    truth = Outcomes(domain.indices, result.reason, result.cycles)
    done = tune(any_tuner(name, domain), domain, truth, 10_000)
    assert len(np.unique(done.indices)) == len(done)
    # What is known not to lower is not tried, unless as one of the first.
    if name.startswith(tuple(initializations())):
        assert set(done.indices[done.valid].tolist()) == set(truth.indices[truth.valid].tolist())
    else:
        assert len(done) == len(domain)


def test_unknown_tuners_and_spaces_are_refused(domain: Domain) -> None:
    for name in ("xgboost", "rieber+xgboost", "rieber+", "validity+xgboost", "rieber+validity+random"):
        with pytest.raises(OneShotError, match="ml2-scratch"):
            make_tuner(name, domain)
    for name, close in (("ml2-wram", "ml2-warm"), ("rieber+randon", r"rieber\+random")):
        with pytest.raises(OneShotError, match=rf"did you mean '{close}'\? There are: .*, each also behind rieber"):
            make_tuner(name, domain)
    with pytest.raises(OneShotError, match="know the schedule space 'full'"):
        make_tuner("ml2-warm", domain, network=random_network())
    with pytest.raises(OneShotError, match="takes a network"):
        ML2Tuner(domain, setting="warm")
    with pytest.raises(OneShotError, match="no setting"):
        ML2Tuner(domain, setting="cold")


# AutoTVM -------------------------------------------------------------------------------------
def test_the_first_plan_is_random_and_the_next_learns(domain: Domain, truth: Outcomes) -> None:
    shares, bests = [], []
    for seed in range(4):
        done = tune(AutoTVM(domain, seed), domain, truth, 320, batch=8)
        shares.append((done.valid[:64].mean(), done.valid[64:].mean()))
        bests.append(done.cycles[done.valid].min())
    first, later = np.mean(shares, axis=0)
    assert abs(first - truth.valid.mean()) < 0.12
    assert later > first + 0.2
    assert np.median(bests) < 1.1 * truth.cycles[truth.valid].min()


def test_a_plan_ends_with_random_trials(domain: Domain, truth: Outcomes) -> None:
    tuner = AutoTVM(domain, 0, annealing=Annealing(steps=40))
    tune(tuner, domain, truth, 64, batch=8)
    planned = tuner._planned.tolist()
    assert len(set(planned)) == len(planned) <= 64
    chosen = [int(domain.positions(tuner.propose(1))[0]) for _ in range(len(planned))]
    assert chosen[: len(planned) - 3] == planned[:-3]


def test_without_a_valid_trial_the_search_stays_random(domain: Domain) -> None:
    tuner = AutoTVM(domain, 0)
    for _ in range(10):
        indices = tuner.propose(16)
        tuner.observe(Outcomes(indices, np.full(16, Reason.SRAM_OVERFLOW, np.uint8), np.full(16, -1)))
    assert not len(tuner._planned)


def test_walks_change_one_knob(domain: Domain) -> None:
    points = np.random.default_rng(0).integers(len(SPACE), size=400)
    moved = walk(np.random.default_rng(1), domain, points)
    assert (np.count_nonzero(SPACE.digits(points) != SPACE.digits(moved), axis=1) == 1).all()
    single = Domain(ScheduleSpace(Conv2d(1, 16, 1, 1, 16, 1, 1), CHIP, "autotvm"), np.arange(4), np.zeros(4, np.int8))
    assert len(walk(np.random.default_rng(1), single, np.arange(4))) == 4


def test_average_recall() -> None:
    labels = np.array([0.9, 0.5, 0.7, 0.1])
    right = average_recall(labels, labels, 4)
    assert right == pytest.approx((0 / 1 + 1 / 2 + 2 / 3 + 3 / 4) / 4)
    assert average_recall(-labels, labels, 4) < right


# Validity first ------------------------------------------------------------------------------
def test_presampling_finds_more_valid_ones_than_chance(domain: Domain, truth: Outcomes) -> None:
    known = presampled(domain, np.random.default_rng(0), 300, 32)
    assert np.count_nonzero(known) == 300
    assert np.array_equal(known[known != 0] > 0, truth.valid[known != 0])
    assert (known > 0).sum() / 300 > 1.5 * truth.valid.mean()


def test_a_space_smaller_than_the_presample_is_known_whole() -> None:
    domain = Domain.of(ScheduleSpace(Conv2d(1, 16, 4, 4, 32, 1, 1), CHIP, "autotvm"))
    assert (presampled(domain, np.random.default_rng(0)) != 0).all()


def test_the_initial_trials_are_half_valid_and_far_apart(domain: Domain) -> None:
    rng = np.random.default_rng(0)
    tuner = ValidityInit(domain, lambda informed: RandomSearch(informed, 0), 0)
    assert tuner.presampled == 1000
    informed = tuner._domain
    chosen = initial(informed, rng, 50)
    assert (informed.known[chosen] > 0).sum() == 25
    assert (informed.known[chosen] < 0).sum() == 25

    def nearest(positions: np.ndarray) -> float:
        digits = informed.digits(positions)
        apart = np.abs(digits[:, None] - digits[None]).sum(axis=2) + 1000 * np.eye(len(digits))
        return float(apart.min(axis=1).mean())

    valid = np.flatnonzero(informed.known > 0)
    assert nearest(far_apart(informed, valid, 25, rng)) > nearest(rng.choice(valid, 25, replace=False)) + 1.0
    assert far_apart(informed, valid[:3], 25, rng).tolist() == valid[:3].tolist()


def test_what_is_known_invalid_is_not_tried_again(domain: Domain, truth: Outcomes) -> None:
    for name in ("rieber+random", "rieber+ml2-scratch"):
        tuner = make_tuner(name, domain, 3)
        assert isinstance(tuner, ValidityInit)
        done = tune(tuner, domain, truth, 120)
        later = domain.positions(done.indices[50:])
        assert (tuner._domain.known[later] >= 0).all()


def test_a_model_of_validity_doubts_what_does_not_lower(domain: Domain, truth: Outcomes) -> None:
    known = presampled(domain, np.random.default_rng(0), 300, 32)
    found = doubted(domain, known)
    assert not found[known != 0].any()
    rest = known == 0
    assert (~truth.valid[found]).mean() > 0.95
    assert found[rest & ~truth.valid].mean() > 0.7
    assert found[rest & truth.valid].mean() < 0.1
    assert not doubted(domain, np.where(truth.valid, 1, 0).astype(np.int8)).any()


def test_with_a_model_only_valid_ones_are_tried_first(domain: Domain, truth: Outcomes) -> None:
    tuner = make_tuner("validity+autotvm", domain, 2)
    assert isinstance(tuner, ValidityInit)
    done = tune(tuner, domain, truth, 150)
    assert done.valid[:25].all()
    assert done.valid.mean() > 0.9
    assert not tuner._domain.avoided[domain.positions(done.indices)].any()


# ML2Tuner ------------------------------------------------------------------------------------
def test_from_scratch_it_needs_fewer_trials_than_chance(domain: Domain, truth: Outcomes) -> None:
    goal = 1.02 * truth.cycles[truth.valid].min()
    needed = {"ml2-scratch": [], "random": []}
    for name, counts in needed.items():
        for seed in range(3):
            done = tune(make_tuner(name, domain, seed), domain, truth, 400)
            met = np.flatnonzero(done.valid & (done.cycles <= goal))
            counts.append(met[0] if len(met) else 400)
    assert np.median(needed["ml2-scratch"]) < 0.6 * np.median(needed["random"])


def test_candidates_that_do_not_lower_are_trials_and_the_others_have_no_label(domain: Domain, truth: Outcomes) -> None:
    tuner = ML2Tuner(domain, 0, "scratch", options=Options(lowered=20))
    for _ in range(40):
        indices = tuner.propose(10)
        positions = domain.positions(indices)
        outcomes = Outcomes(indices, truth.reason[positions], truth.cycles[positions])
        # At most N are measured; what does not lower comes first, and the rest of those lowered is not proposed.
        assert outcomes.valid.sum() <= 10
        assert len(indices) <= 20
        tuner.observe(outcomes)
    lowered = [position for position, row in tuner._hidden.items() if row is not None]
    tried = set(domain.positions(tuner._outcomes.indices).tolist())
    assert any(position not in tried for position in lowered)
    assert not tuner._seen[[position for position in lowered if position not in tried]].any()
    assert all(position in tried for position, row in tuner._hidden.items() if row is None)


def test_warm_begins_with_the_networks_best() -> None:
    domain, network = Domain.of(FULL), random_network(trusting=3.0)
    prior = Prior(domain, network)
    warm, frozen = ML2Tuner(domain, 0, "warm", prior), ML2Tuner(domain, 0, "frozen", Prior(domain, network))
    from oneshot_ml2.network import picking

    ranking = picking.rank(FULL, network, closed_form=False)
    best = np.log(ranking.scores.cycles[ranking.order[:10]])
    # By their cycles: those of a random network are often the bound, and then equal.
    for tuner in (warm, frozen):
        positions = domain.positions(tuner.propose(10))
        assert np.allclose(np.sort(prior.log_cycles(positions)), best)
        assert (prior.logits(positions) >= 0).all()


def test_warm_unlearns_what_the_trials_refute() -> None:
    """A network that trusts everything, on a device where every schedule with double input buffers fails."""
    domain = Domain.of(FULL)
    buffers = [knob.name for knob in FULL.knobs].index("inp_buffers")
    tuner = ML2Tuner(domain, 0, "warm", Prior(domain, random_network(trusting=4.0)))
    shares = []
    for _ in range(12):
        indices = tuner.propose(10)
        measured = FULL.measure(indices)
        failing = FULL.values(indices)[:, buffers] == 2
        reason = np.where(failing & (measured.reason == 0), Reason.WRONG_RESULT, measured.reason).astype(np.uint8)
        tuner.observe(Outcomes(indices, reason, np.where(reason == 0, measured.cycles, -1)))
        shares.append(failing.mean())
    assert np.mean(shares[-4:]) < 0.2


def test_frozen_learns_nothing() -> None:
    domain = Domain.of(FULL)
    orders = []
    for cycles in (100, 10_000):
        tuner, chosen = ML2Tuner(domain, 0, "frozen", Prior(domain, random_network(trusting=2.0))), []
        for _ in range(3):
            indices = tuner.propose(10)
            n = len(indices)
            tuner.observe(Outcomes(indices, np.zeros(n, np.uint8), np.full(n, cycles) + np.arange(n)))
            chosen += indices.tolist()
        orders.append(chosen)
    assert orders[0] == orders[1]


# Trees ---------------------------------------------------------------------------------------
def test_trees_fit_and_take_a_margin() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(300, 3)).astype(np.float32)
    labels = features[:, 0].astype(np.float64) * 2
    model = trees.fit(features, labels, "reg:squarederror")
    assert np.corrcoef(model.predict(features), labels)[0, 1] > 0.98
    corrected = trees.fit(features, labels, "reg:squarederror", margin=labels + 1.0, rounds=60)
    assert np.abs(corrected.predict(features, labels + 1.0) - labels).mean() < 0.1


def test_costs_find_what_a_count_costs() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(100, 10_000, size=(60, len(facts.NAMES))).astype(np.float64)
    beats, loads = (counts[:, facts.NAMES.index(name)] for name in ("write_bursts", "inp_loads"))
    log_cycles = np.log(3.0 * beats + 20.0 * loads)
    costs = trees.Costs.fit(counts[:40], log_cycles[:40])
    assert (costs.weights >= 0.0).all()
    assert np.abs(costs.log_cycles(counts[40:]) - log_cycles[40:]).max() < 1e-6


def test_rounds_from_scratch_grow_with_the_valid_trials(domain: Domain, truth: Outcomes) -> None:
    tuner = ML2Tuner(domain, 3, "scratch")
    done = Outcomes.none()
    for _ in range(30):
        positions = domain.positions(tuner.propose(10))
        outcomes = Outcomes(truth.indices[positions], truth.reason[positions], truth.cycles[positions])
        # Of those that A lowers some may fail; of those that lower no more than the round's are measured.
        assert 1 <= len(positions) and outcomes.valid.sum() <= max(1, done.valid.sum() // 6)
        tuner.observe(outcomes)
        done = done + outcomes
    assert done.valid.sum() > 10


def test_behind_the_initialization_the_model_is_fitted_to_its_trials(domain: Domain, truth: Outcomes) -> None:
    plain, informed = AutoTVM(domain, 0), make_tuner("rieber+autotvm", domain, 0)
    assert isinstance(informed, ValidityInit) and isinstance(informed._tuner, AutoTVM)
    for tuner in (plain, informed):
        tune(tuner, domain, truth, 50)
    assert len(informed._tuner._planned) and not len(plain._planned)


def test_visible_features_know_nothing_of_the_accelerator() -> None:
    positions = np.arange(50)
    other = ScheduleSpace(SPACE.workload, Accelerator.load("pynq"), "autotvm")
    first = trees.visible_features(Domain.of(SPACE), positions)
    assert np.array_equal(first, trees.visible_features(Domain.of(other), positions))
    assert first.shape[0] == 50
    assert np.isfinite(first).all()
    assert trees.knob_features(Domain.of(SPACE), positions).shape == (50, len(SPACE.knobs))


def test_rounds_with_the_network_grow_with_the_trials() -> None:
    domain = Domain.of(FULL)
    tuner, sizes = make_tuner("ml2-warm", domain, 0, random_network(trusting=3.0)), []
    for _ in range(9):
        indices = tuner.propose(10)
        measured = FULL.measure(indices)
        tuner.observe(Outcomes(indices, measured.reason, measured.cycles))
        sizes.append(len(indices))
    assert sizes[:3] == [1, 1, 1]
    assert sizes == sorted(sizes) and sizes[-1] > 5


def test_lowering_ends_where_too_many_are_expected_to_fail(domain: Domain) -> None:
    tuner = ML2Tuner(domain, 0, "scratch", options=Options(lowered=100, failures=1.0))
    sure = np.full(1000, 4.0)
    places = tuner._to_lower(5, sure, 1000)
    assert places[:5].tolist() == [0, 1, 2, 3, 4]
    assert len(np.unique(places)) == len(places)
    expected = 1.0 / (1.0 + np.exp(4.0))
    assert len(places) * expected <= 1.0 < (len(places) + 2) * expected
    # Half of them lie far down the ranking.
    assert 0.2 < (places > 60).mean() < 0.6
    # Where V doubts all, the round's own; where it is sure of everything, as many as are allowed.
    assert len(tuner._to_lower(5, np.full(1000, -1.0), 0)) == 5
    assert len(tuner._to_lower(5, np.full(1000, 9.0), 1000)) == 100
    assert tuner._to_lower(5, np.full(3, 9.0), 3).tolist() == [0, 1, 2]


def test_from_scratch_p_learns_from_what_a_says_of_lowered_ones(domain: Domain, truth: Outcomes) -> None:
    tuner = ML2Tuner(domain, 1, "scratch")
    tune(tuner, domain, truth, 40)
    tuner._a = tuner._fit_a()
    valid = np.flatnonzero(truth.valid)
    log_cycles = np.log(truth.cycles[valid])

    def error() -> float:
        p = tuner._fit_p()
        assert p is not None
        return float(np.sqrt(np.mean((p.predict(tuner._visible(valid)) - log_cycles) ** 2)))

    taught = error()
    tuner._a = None
    assert taught < 0.8 * error()


def slow_trials(domain: Domain, prior: Prior) -> tuple[Outcomes, Outcomes]:
    """Twelve valid trials of the best on a board whose memory answers five times as late, and others."""
    slow = replace(domain.space, accelerator=replace(CHIP, memory_latency=5 * CHIP.memory_latency))
    some = np.random.default_rng(0).permutation(prior.pool)[:80]
    result = slow.measure(domain.indices[some])
    outcomes = Outcomes(domain.indices[some], result.reason, result.cycles).take(result.reason == 0)
    return outcomes.take(slice(0, 12)), outcomes.take(slice(12, None))


def error_of(prior: Prior, domain: Domain, held: Outcomes) -> float:
    return float(np.abs(prior.log_cycles(domain.positions(held.indices)) - np.log(held.cycles)).mean())


def test_trials_on_a_board_calibrate_the_prior() -> None:
    domain = Domain.of(FULL)
    prior = Prior(domain, picking.predictor_of(None))
    tried, held = slow_trials(domain, prior)
    before = error_of(prior, domain, held)
    prior.observe(tried)
    prior.refresh()
    assert error_of(prior, domain, held) < 0.5 * before
    ranked, calibrated = prior.pool, prior._network
    prior.observe(tried)
    prior.refresh()
    assert prior._network is calibrated and prior.pool is ranked
    # Weights that were fine-tuned on the board keep what they know.
    tuned = Prior(domain, calibrated)
    tuned.observe(tried.take(slice(0, 6)))
    tuned.refresh()
    assert tuned._network is calibrated


def test_what_one_layer_says_of_a_board_holds_for_another() -> None:
    network = picking.predictor_of(None)
    evidence = Evidence(network)
    domain, other = Domain.of(FULL), Domain.of(ScheduleSpace(Conv2d(1, 32, 8, 8, 16, 1, 1), CHIP))
    first, second = Prior(domain, network, evidence=evidence), Prior(other, network, evidence=evidence)
    tried, _ = slow_trials(domain, first)
    _, held = slow_trials(other, second)
    before = error_of(second, other, held)
    first.observe(tried)
    second.refresh()
    assert error_of(second, other, held) < 0.5 * before


def test_the_space_autotvm_is_calibrated_too(domain: Domain, truth: Outcomes) -> None:
    prior = Prior(domain, picking.predictor_of(None, "autotvm"))
    assert prior._network.calibration is None
    prior.observe(truth.take(slice(0, 50)))
    prior.refresh()
    assert prior._network.calibration is not None
