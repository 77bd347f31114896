from __future__ import annotations

import networks
import numpy as np
import pytest

from oneshot_ml2 import device, oneshot
from oneshot_ml2.accelerator import Accelerator
from oneshot_ml2.predictor import Scores
from oneshot_ml2.schedule import InvalidSchedule, Reason, ScheduleSpace
from oneshot_ml2.vta import full, image, simulator, timing

PYNQ = Accelerator.load("pynq")


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let everything that executes or times a program raise."""

    def raises(*args: object, **rest: object) -> None:
        raise AssertionError("a pick executed or timed a candidate")

    monkeypatch.setattr(timing, "simulate", raises)
    monkeypatch.setattr(timing, "measure", raises)
    monkeypatch.setattr(simulator, "run", raises)
    monkeypatch.setattr(image, "execute", raises)
    monkeypatch.setattr(full, "_measure", raises)
    monkeypatch.setattr(full, "measure_batch", raises)
    monkeypatch.setattr(ScheduleSpace, "measure", raises)
    monkeypatch.setattr(device.open_device("sim").__class__, "measure", raises)


@pytest.mark.parametrize("layer", networks.LAYERS, ids=lambda layer: layer.name)
def test_a_pick_measures_nothing_and_lowers_at_most_eight(monkeypatch, layer):
    forbid(monkeypatch)
    lowered = []
    lower = full.lower
    monkeypatch.setattr(full, "lower", lambda *args: lowered.append(args) or lower(*args))
    picked = oneshot.pick(layer.workload, PYNQ)
    assert picked.source == "network"
    assert len(lowered) == picked.lowered <= oneshot.MOST_LOWERED
    assert 0 < picked.scored <= len(picked.space.table())
    assert picked.program.insns.shape[0] > 3
    assert picked.index == picked.space.index_of(picked.schedule)


def test_a_pick_is_the_first_legal_one_of_the_ranking_and_always_the_same():
    layer = networks.LAYERS[1].workload
    picked, again = oneshot.pick(layer, PYNQ), oneshot.pick(layer, PYNQ)
    assert picked == again
    network = oneshot.predictor_of(None)
    ranking = oneshot.rank(picked.space, network)
    order = ranking.best(300)
    legal = order[picked.space.validity(order) == Reason.VALID]
    assert picked.index == legal[0]
    scores = network.score(picked.space, order)
    assert (np.diff(scores.cycles) >= 0).all()
    assert (scores.p_valid >= oneshot.TRUSTED).all()
    assert picked.predicted_cycles == pytest.approx(scores.cycles[order == picked.index][0])


def test_distrust_of_everything_falls_back_to_the_closed_form(monkeypatch):
    forbid(monkeypatch)
    picked = oneshot.pick(networks.SMALL, PYNQ, networks.random_network(trusting=-1e3))
    assert picked.source == "fallback"
    space = picked.space
    table = space.table()
    legal = table[space.validity(table) == Reason.VALID]
    assert space.estimate(np.array([picked.index]))[0] == space.estimate(legal).min()


def test_where_nothing_is_trusted_what_is_least_distrusted_comes_first():
    def scores(*p_valid: float) -> Scores:
        one = np.ones(len(p_valid), dtype=np.float32)
        return Scores(np.array(p_valid, dtype=np.float32), np.arange(len(p_valid), 0, -1) * 0.1, one, 100.0 * one)

    assert oneshot.best_of(scores(0.95, 0.91, 0.89), 3).tolist() == [1, 0]
    assert oneshot.best_of(scores(0.30, 0.28, 0.26), 3).tolist() == [1, 0]
    assert oneshot.best_of(scores(1e-4, 1e-5), 2).tolist() == []
    assert oneshot.best_of(scores(), 2).tolist() == []


def test_trust_in_everything_still_gives_a_legal_program():
    picked = oneshot.pick(networks.SMALL, PYNQ, networks.random_network(trusting=1e3))
    assert picked.space.validity(np.array([picked.index]))[0] == Reason.VALID


def test_lowerings_stop_at_eight(monkeypatch):
    tried = []

    def lower(workload, accelerator, values):
        tried.append(values)
        raise InvalidSchedule(Reason.UOP_OVERFLOW)

    monkeypatch.setattr(full, "lower", lower)
    with pytest.raises(InvalidSchedule):
        oneshot.pick(networks.SMALL, PYNQ)
    # Eight of the network's, and the fallback, whose failure is not hidden.
    assert len(tried) == oneshot.MOST_LOWERED + 1


def test_verify_times_the_best_and_says_so():
    layer = networks.LAYERS[1].workload
    plain, verified = oneshot.pick(layer, PYNQ), oneshot.pick(layer, PYNQ, verify=40)
    assert verified.source == "verified"
    cycles = plain.space.measure(np.array([plain.index, verified.index])).cycles
    assert 0 < cycles[1] <= cycles[0]


def test_no_legal_schedule_is_an_error(monkeypatch):
    monkeypatch.setattr(full, "validity", lambda *args: np.full(len(args[2]), Reason.SRAM_OVERFLOW, dtype=np.uint8))
    with pytest.raises(InvalidSchedule, match="no legal schedule"):
        oneshot.pick(networks.SMALL, PYNQ)


def test_score_gives_what_the_large_network_says():
    space = ScheduleSpace(networks.SMALL, PYNQ)
    indices = space.table()[:50]
    network = oneshot.predictor_of(None)
    assert np.array_equal(oneshot.score(space, indices).p_valid, network.score(space, indices, "main").p_valid)


def test_the_shipped_network_knows_validity():
    space = ScheduleSpace(networks.SMALL, PYNQ)
    sample = space.sample(np.random.default_rng(0), 2000)
    truth = space.validity(sample) == Reason.VALID
    right = (oneshot.score(space, sample).p_valid >= 0.5) == truth
    # Far above what calling all of them the same would give.
    assert right.mean() > 0.95 > max(truth.mean(), 1 - truth.mean())
