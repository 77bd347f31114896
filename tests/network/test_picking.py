from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import networks
import numpy as np
import pytest

from oneshot_ml2.common.errors import AcceleratorError, WeightsError
from oneshot_ml2.devices import registry
from oneshot_ml2.network import picking
from oneshot_ml2.network.calibration import LIMIT, Calibration
from oneshot_ml2.network.errors_of_picks import PickErrors
from oneshot_ml2.network.predictor import NETWORKS, Predictor, Scores, depth
from oneshot_ml2.spaces.full import features as full_features
from oneshot_ml2.spaces.full import space as full
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta import image, nest, simulator
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import ADDRESSES, INSN_BYTES
from oneshot_ml2.vta.reasons import InvalidSchedule, NoSchedule, Reason
from oneshot_ml2.vta.timing import designs
from oneshot_ml2.workload.batch_matmul import BatchMatmul
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.conv2d_transpose import Conv2dTranspose
from oneshot_ml2.workload.dense import Dense
from oneshot_ml2.workload.max_pool2d import MaxPool2d

PYNQ = Accelerator.load("pynq")


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let everything that executes or times a program raise."""

    def raises(*args: object, **rest: object) -> None:
        raise AssertionError("a pick executed or timed a candidate")

    monkeypatch.setattr(designs, "simulate", raises)
    monkeypatch.setattr(designs, "measure", raises)
    monkeypatch.setattr(simulator, "run", raises)
    monkeypatch.setattr(image, "execute", raises)
    monkeypatch.setattr(full, "_measure", raises)
    monkeypatch.setattr(full, "measure_batch", raises)
    monkeypatch.setattr(ScheduleSpace, "measure", raises)
    monkeypatch.setattr(registry.open_device("sim").__class__, "measure", raises)


@pytest.mark.parametrize("layer", networks.LAYERS, ids=lambda layer: layer.name)
def test_a_pick_measures_nothing_and_lowers_at_most_eight(monkeypatch, layer):
    forbid(monkeypatch)
    lowered = []
    lower = full.lower
    monkeypatch.setattr(full, "lower", lambda *args: lowered.append(args) or lower(*args))
    picked = picking.pick(layer.workload, PYNQ)
    assert picked.source == "network"
    assert len(lowered) == picked.lowered <= picking.MOST_LOWERED
    assert 0 < picked.scored <= len(picked.space.table())
    assert picked.program.insns.shape[0] > 3
    assert picked.index == picked.space.index_of(picked.schedule)


def test_an_accelerator_may_be_named():
    layer = networks.LAYERS[1].workload
    assert picking.pick(layer, "pynq") == picking.pick(layer, PYNQ)
    with pytest.raises(AcceleratorError, match=r"pynk.*ultra96"):
        picking.pick(layer, "pynk")


def test_a_pick_is_the_first_legal_one_of_the_ranking_and_always_the_same():
    layer = networks.LAYERS[1].workload
    picked, again = picking.pick(layer, PYNQ), picking.pick(layer, PYNQ)
    assert picked == again
    network = picking.predictor_of(None)
    ranking = picking.rank(picked.space, network)
    assert ranking.legal and (picked.space.validity(ranking.indices) == Reason.VALID).all()
    assert picked.index == ranking.best(1)[0]
    first = ranking.order[:1]
    known = PickErrors.of(network.card).corrected(ranking.scores.take(first), ranking.gap[first], outside=False)
    assert picked.predicted_cycles == pytest.approx(known.cycles[0])
    # Of two networks that know what modules wait for and a third one that does not all have a vote.
    indices, space = ranking.indices, picked.space
    (adviser,) = network.advisers
    scores = [network.score(space, indices), network.score(space, indices, "scan")]
    scores.append(picking.load_pretrained(adviser).score(space, indices))
    votes = np.mean([np.log(one.cycles) for one in scores], axis=0)
    assert np.allclose(np.log(ranking.scores.cycles), votes, atol=1e-5)
    gaps = [scores[0].gap(other) for other in scores[1:]]
    assert np.allclose(ranking.gap, np.max(gaps, axis=0), atol=1e-5)
    cautious = votes + 0.5 * np.mean([one.spread for one in scores], axis=0)
    assert np.allclose(ranking.scores.cost, np.exp(cautious), rtol=1e-4)
    assert ranking.order[0] == ranking.scores.cost.argmin()
    with pytest.raises(WeightsError, match="'advisers' is 'default@1'"):
        picking.pick(layer, PYNQ, dataclasses.replace(network, card=network.card | {"advisers": adviser}))


def test_advisers_are_told_of_a_board_what_weights_that_were_fitted_to_it_were_told():
    network, space = picking.predictor_of(None), ScheduleSpace(networks.LAYERS[1].workload, PYNQ)
    costs = np.array([0.1, 0.3, 0.0, 0.0, 0.2, 0.0])
    known = Calibration(3 * PYNQ.memory_latency, costs, np.zeros(0, LIMIT))
    fitted = dataclasses.replace(network, tensors=network.tensors | known.to_tensors())
    adviser = picking.load_pretrained(*network.advisers)
    assert adviser.told_as(network) is adviser
    legal = picking.rank(space, network).indices[:40]
    given = space.record.features.candidates_at(space, legal)
    voters = [
        fitted.judge(space, given),
        fitted.judge(space, given, "scan"),
        adviser.told_as(fitted).judge(space, given),
    ]
    votes = np.mean([np.log(one.cycles) for one in voters], axis=0)
    scores = picking.by_both(space, fitted, given).scores
    assert np.allclose(np.log(scores.cycles), votes, atol=1e-5)
    unfitted = picking.by_both(space, network, given).scores
    assert (scores.cycles > 1.1 * unfitted.cycles).all()


def test_weights_of_which_the_large_network_decides_pick_the_first_of_it_that_is_legal():
    network, layer = picking.load_pretrained("default@1"), networks.LAYERS[1].workload
    picked = picking.pick(layer, PYNQ, network)
    ranking = picking.rank(picked.space, network)
    order = ranking.best(300)
    legal = order[picked.space.validity(order) == Reason.VALID]
    assert not ranking.legal and picked.index == legal[0]
    scores = network.score(picked.space, order)
    assert (np.diff(scores.cycles) >= 0).all()
    assert (scores.p_valid >= picking.TRUSTED).all()


def biased(network: Predictor, by: tuple[float, float, float], names: tuple[str, ...] = NETWORKS) -> Predictor:
    """The network with something added to the outputs of some of `NETWORKS`."""
    tensors = dict(network.tensors)
    for name in names:
        last = f"{name}.{depth(tensors, name) - 1}.bias"
        tensors[last] = tensors[last] + np.array(by, dtype=np.float32)
    return dataclasses.replace(network, tensors=tensors)


def test_distrust_of_everything_falls_back_to_what_the_networks_rank_first(monkeypatch):
    forbid(monkeypatch)
    # What is picked by `rank_legal` distrusts no schedule that is legal.
    distrusting = biased(picking.load_pretrained("default@1"), (-1e3, 0, 0))
    picked = picking.pick(networks.SMALL, PYNQ, distrusting)
    assert picked.source == "fallback"
    space = picked.space
    table = space.table()
    legal = table[space.validity(table) == Reason.VALID]
    both = distrusting.score(space, legal).with_both(distrusting.score(space, legal, "scan"))
    assert both.cost[legal == picked.index] == pytest.approx(both.cost.min(), rel=1e-5)
    # It is far better than the closed form's choice.
    best, of_form = picked.index, int(picking.legal_by_estimate(space, 1)[0])
    monkeypatch.undo()
    cycles = space.measure(np.array([best, of_form])).cycles
    assert cycles[0] < cycles[1]


def test_legal_schedules_come_in_the_order_of_their_estimates():
    space = ScheduleSpace(networks.SMALL, PYNQ)
    table = space.table()
    legal = table[space.validity(table) == Reason.VALID]
    first = picking.legal_by_estimate(space, 40)
    assert np.array_equal(space.estimate(first), np.sort(space.estimate(legal))[:40])
    assert len(picking.legal_by_estimate(space, 1 << 30)) == len(legal)


# Queue, micro-ops, latency, bursts and blocks that no training accelerator has.
BEYOND = Accelerator(0, 4, 12, 13, 18, 12, memory_latency=60000, instruction_queue=8, burst_len_bits=6, name="beyond")


def test_outside_of_the_trained_ranges_validity_is_told_exactly_and_both_networks_judge():
    network = picking.load_pretrained("default@1")
    network = dataclasses.replace(network, card={k: v for k, v in network.card.items() if k != picking.BEYOND})
    space = ScheduleSpace(networks.SMALL, BEYOND)
    assert network.outside(space)
    ranking = picking.rank(space, network)
    assert 0 < len(ranking.indices) <= ranking.scored
    assert (space.validity(ranking.indices) == Reason.VALID).all() and (ranking.scores.p_valid == 1).all()
    # The networks call legal ones invalid there, or it would be no test.
    one, other = network.score(space, ranking.indices), network.score(space, ranking.indices, "scan")
    assert (one.p_valid < picking.TRUSTED).any()
    assert np.allclose(np.log(ranking.scores.cycles), (np.log(one.cycles) + np.log(other.cycles)) / 2)
    assert np.allclose(ranking.gap, np.abs(np.log(one.cycles) - np.log(other.cycles)), atol=1e-5)
    cautious = np.log(ranking.scores.cycles) + 0.5 * (one.spread + other.spread) / 2
    assert ranking.order[0] == cautious.argmin()
    picked = picking.pick(networks.SMALL, BEYOND, network)
    assert (picked.source, picked.index) == ("network", ranking.best(1)[0])
    # Within the ranges the large network decides alone, and so it does where the networks are asked alone.
    inside = ScheduleSpace(networks.SMALL, PYNQ)
    usual = picking.rank(inside, network)
    assert np.array_equal(usual.scores.log_ratio, network.score(inside, usual.indices).log_ratio)
    alone = picking.rank(space, network, closed_form=False)
    assert np.array_equal(alone.scores.log_ratio, network.score(space, alone.indices).log_ratio)


def test_far_outside_of_the_trained_ranges_the_weights_that_a_card_names_decide():
    wide, space = picking.load_pretrained("wide"), ScheduleSpace(networks.SMALL, BEYOND)
    assert wide.outside(space) == [] and set(wide.card["designs"]) == {"chisel", "hls"}
    picked = picking.pick(networks.SMALL, BEYOND)
    assert picked == picking.pick(networks.SMALL, BEYOND, "wide")
    assert not any("trained on" in line for line in picked.warnings)
    ranking = picking.rank_legal(space, wide)
    assert picked.index == ranking.best(1)[0] == picking.rank(space, picking.predictor_of(None)).best(1)[0]
    shipped = picking.predictor_of(None)
    assert picking.knowing(shipped, ScheduleSpace(networks.SMALL, PYNQ)) is shipped
    near = ScheduleSpace(networks.SMALL, dataclasses.replace(PYNQ, memory_latency=400))
    assert shipped.outside(near) and 0.9 < shipped.octaves_outside(near) < 1.1
    assert picking.knowing(shipped, near) is shipped
    alone = dataclasses.replace(shipped, card={k: v for k, v in shipped.card.items() if k != picking.BEYOND})
    assert picking.knowing(alone, space) is alone
    for given, message in ((1, "card's 'beyond' is 1"), ("nowhere", "nowhere")):
        with pytest.raises(WeightsError, match=message):
            picking.pick(
                networks.SMALL, BEYOND, dataclasses.replace(shipped, card=shipped.card | {picking.BEYOND: given})
            )


def test_far_outside_schedules_are_chosen_and_judged_by_what_modules_wait_for(monkeypatch):
    wide, space = picking.load_pretrained("wide"), ScheduleSpace(networks.SMALL, BEYOND)
    assert wide.seen.beside
    features = space.record.features
    every = features.without_hazards(space, features.all_candidates(space, fitting=True))
    guess = features.waiting(space, every)
    # A bound knows nothing of latencies, so its best schedules are others.
    monkeypatch.setattr(picking, "_SCANNED", 200)
    monkeypatch.setattr(picking, "_SCANNED_WAITING", 200)
    chosen, bounded = picking.promising(space, waits=True), picking.promising(space)
    assert sorted(features.waiting(space, chosen)) == sorted(guess)[:200]
    assert len(np.intersect1d(chosen.indices, bounded.indices)) < 150
    monkeypatch.undo()
    ranking = picking.rank_legal(space, wide)
    given = features.candidates_at(space, ranking.indices)
    one, other = wide.judge(space, given), wide.judge(space, given, "scan")
    waiting = features.waiting(space, given)
    mean = np.sqrt(one.cycles * other.cycles)
    votes = (one.cycles**0.7 * other.cycles**0.3) ** 0.7 * waiting**0.3
    assert np.allclose(ranking.scores.cycles, votes, rtol=1e-4)
    spread = 0.5 * (one.spread + other.spread)
    assert ranking.order[0] == (votes * np.exp(0.5 * spread)).argmin()
    away = np.abs(np.log(mean) - np.log(waiting))
    assert np.allclose(ranking.gap, np.maximum(one.gap(other), away), atol=1e-4)


def test_what_modules_wait_for_is_told_once_a_pick(monkeypatch):
    told, waits_into = [], full_features.waits.waits_into
    monkeypatch.setattr(
        full_features.waits,
        "waits_into",
        lambda nest, batch, *rest: told.append(len(batch)) or waits_into(nest, batch, *rest),
    )
    wide, space = picking.load_pretrained("wide"), ScheduleSpace(networks.SMALL, BEYOND)
    assert picking.pick(networks.SMALL, BEYOND, wide).source == "network"
    fitting = full_features.all_candidates(space, fitting=True)
    sound = full_features.without_hazards(space, fitting)
    assert sum(told) == len(sound) < len(fitting)
    reasons = space.validity(np.setdiff1d(fitting.indices, sound.indices))
    assert (reasons == Reason.ACC_HAZARD).all()


def test_networks_that_disagree_are_told():
    shipped = picking.predictor_of(None)
    # That the closed form of waiting is far off for programs of few instructions is no news to them.
    assert picking.pick(Dense(1, 16, 10), PYNQ, shipped).warnings == ()
    assert not any("two networks" in line for line in picking.pick(networks.SMALL, PYNQ, shipped).warnings)
    odd = biased(shipped, (0, 0.4, 0), ("scan",))
    picked = picking.pick(networks.SMALL, PYNQ, odd)
    (line,) = [line for line in picked.warnings if "two networks" in line]
    one, other = (odd.score(picked.space, np.array([picked.index]), name).cycles[0] for name in NETWORKS)
    assert f"differ by {max(one, other) / min(one, other) - 1:.0%} " in line


def test_predictions_of_picks_know_the_errors_of_picks():
    shipped = picking.predictor_of(None)
    bare = {key: value for key, value in shipped.card.items() if key != "picks"}
    plain = picking.pick(networks.SMALL, PYNQ, dataclasses.replace(shipped, card=bare))
    known = {"shift": 0.5, "scale": 2.0, "gap": 0.25}
    better = picking.pick(networks.SMALL, PYNQ, dataclasses.replace(shipped, card=bare | {"picks": known}))
    assert better.index == plain.index
    assert better.predicted_cycles == pytest.approx(plain.predicted_cycles * np.exp(0.5 * plain.spread), rel=1e-5)
    one, other = (shipped.score(plain.space, np.array([plain.index]), name).cycles[0] for name in NETWORKS)
    assert better.spread == pytest.approx(np.hypot(2 * plain.spread, 0.25 * np.log(one / other)), rel=1e-3)
    for wrong in ({"shift": "x"}, {"scale": float("nan")}, [1]):
        with pytest.raises(WeightsError, match="card"):
            PickErrors.of({"picks": wrong})


def test_where_nothing_is_trusted_what_is_least_distrusted_comes_first():
    def scores(*p_valid: float) -> Scores:
        one = np.ones(len(p_valid), dtype=np.float32)
        return Scores(np.array(p_valid, dtype=np.float32), np.arange(len(p_valid), 0, -1) * 0.1, one, 100.0 * one)

    assert picking.best_of(scores(0.95, 0.91, 0.89), 3).tolist() == [1, 0]
    assert picking.best_of(scores(0.30, 0.28, 0.26), 3).tolist() == [1, 0]
    assert picking.best_of(scores(1e-4, 1e-5), 2).tolist() == []
    assert picking.best_of(scores(), 2).tolist() == []


def test_trust_in_everything_still_gives_a_legal_program():
    picked = picking.pick(networks.SMALL, PYNQ, networks.random_network(trusting=1e3))
    assert picked.space.validity(np.array([picked.index]))[0] == Reason.VALID


def test_lowerings_stop_at_eight(monkeypatch):
    tried = []

    def lower(workload, accelerator, values):
        tried.append(values)
        raise InvalidSchedule(Reason.UOP_OVERFLOW)

    monkeypatch.setattr(full, "lower", lower)
    with pytest.raises(InvalidSchedule):
        picking.pick(networks.SMALL, PYNQ)
    # Eight of the network's, and the fallback, whose failure is not hidden.
    assert len(tried) == picking.MOST_LOWERED + 1


def test_verify_times_the_best_and_says_so():
    layer = networks.LAYERS[1].workload
    plain, verified = picking.pick(layer, PYNQ), picking.pick(layer, PYNQ, verify=40)
    assert verified.source == "verified"
    cycles = plain.space.measure(np.array([plain.index, verified.index])).cycles
    assert 0 < cycles[1] <= cycles[0]


def test_no_legal_schedule_is_an_error_that_counts_every_reason(monkeypatch):
    def validity(workload, accelerator, values):
        # By a knob, so that it does not depend on how the schedules are looked at.
        return np.where(values[:, 8] == 0, Reason.ACC_HAZARD, Reason.FIELD_OVERFLOW).astype(np.uint8)

    monkeypatch.setattr(full, "validity", validity)
    space = ScheduleSpace(networks.SMALL, PYNQ)
    counts = np.bincount(space.validity(space.table()), minlength=9)
    hazards, fields = int(counts[Reason.ACC_HAZARD]), int(counts[Reason.FIELD_OVERFLOW])
    assert hazards + fields == len(space.table()) and min(hazards, fields) > 0 and hazards != fields
    with pytest.raises(NoSchedule) as caught:
        picking.pick(networks.SMALL, PYNQ)
    text = str(caught.value)
    assert caught.value.reason == (Reason.ACC_HAZARD if hazards > fields else Reason.FIELD_OVERFLOW)
    assert f"no legal schedule for {networks.SMALL} on pynq: of {hazards + fields:,} schedules " in text
    assert f"{hazards:,} acc_hazard" in text and f"{fields:,} field_overflow" in text
    assert "what helps: " in text and "sram_overflow" not in text and "\n" not in text


def test_a_kernel_that_no_sram_holds_says_so():
    with pytest.raises(NoSchedule, match=r"of ([\d,]+) schedules \1 sram_overflow; what helps: larger SRAMs") as caught:
        picking.pick(Conv2d(1, 16, 33, 33, 16, 33, 33), PYNQ)
    assert caught.value.reason == Reason.SRAM_OVERFLOW


MOST = 1 << 20
# Each takes more than 2^32 bytes, some more than int64 counts.
UNREACHABLE = [
    Conv2d(1, 16, 4096, 4096, 256, 3, 3, padding=1),
    Conv2d(1, 16, 4096, 4096, 256, 1, 1),
    Conv2d(1, 5040, 720, 720, 5040, 3, 3, padding=1),
    Conv2d(MOST, 16, 14, 14, 16, 3, 3, padding=1),
    Conv2d(1, 16, MOST, MOST, 16, 3, 3, padding=1),
    Conv2d(MOST, MOST, MOST, MOST, MOST, MOST, MOST, padding=MOST - 1),
    Conv2d(1, MOST, 128, 128, MOST, 3, 3, padding=1, groups=MOST),
    Conv2d(1, 16, 1, 1, 16, MOST, MOST, padding=MOST - 1),
    Conv2dTranspose(1, 16, 4096, 4096, 64, 3, 3, 2),
    MaxPool2d(1, MOST, 64, 64, 2, 2),
    Dense(1, MOST, MOST),
    Dense(MOST, MOST, MOST),
    BatchMatmul(MOST, MOST, MOST, MOST),
    BatchMatmul(4096, 4096, 64, 4096),
]


@pytest.mark.parametrize("layer", UNREACHABLE, ids=str)
def test_what_32_bits_cannot_address_is_refused_at_once(layer):
    began = time.process_time()
    with pytest.raises(NoSchedule) as caught:
        picking.pick(layer, PYNQ)
    text = str(caught.value)
    assert str(layer) in text and "32-bit addresses reach 4,294,967,296" in text and "\n" not in text
    assert caught.value.reason == Reason.FIELD_OVERFLOW
    with pytest.raises(NoSchedule, match="32-bit"):
        len(ScheduleSpace(layer, PYNQ))
    assert time.process_time() - began < 3


@pytest.mark.parametrize(
    "layer",
    [
        Conv2d(1, 16, MOST, 1, 16, MOST, 1),
        MaxPool2d(1, 16, MOST, 1, 1 << 19, 1),
        Conv2dTranspose(1, 16, 4, 1, 16, MOST, 1),
    ],
    ids=str,
)
def test_a_kernel_of_more_taps_a_side_than_micro_ops_is_refused(layer):
    with pytest.raises(NoSchedule, match="1 taps, and a program has 2,048 micro-ops") as caught:
        picking.pick(layer, PYNQ)
    assert caught.value.reason == Reason.UOP_OVERFLOW


def test_a_program_that_ends_beyond_the_addresses_is_refused_too():
    # Its tensors alone leave 512 KiB.
    with pytest.raises(NoSchedule, match="tensors and program take") as caught:
        picking.pick(MaxPool2d(1, 256, 8191, 1024, 1, 1), PYNQ)
    needed = int(re.search("take ([0-9,]+) bytes", str(caught.value)).group(1).replace(",", ""))
    assert needed - nest.MAX_INSNS * INSN_BYTES < ADDRESSES < needed


HUGE = [
    Conv2d(1, 16, MOST, 1, 16, 3, 1, padding=(1, 0)),
    Conv2d(1, 16, 1, MOST, 16, 1, 3, padding=(0, 1)),
    Conv2d(1, 16, 4096, 4096, 16, 3, 3, padding=1),
    Conv2d(1, 16, 14, 14, 16, 3, 3, padding=1 << 19, dilation=1 << 19),
    Conv2d(1, 16, MOST, 1, 16, 2, 1, dilation=(1 << 19, 1)),
    Conv2d(1, 16, 1, 65535, 16, 1, 1023),
    Conv2d(1, 16, 1, 500, 16, 1, 1000, padding=(0, 999)),
    Conv2d(1, MOST, 1, 1, 16, 1, 1),
    Conv2d(65536, 16, 4, 4, 16, 3, 3, padding=1),
    Conv2dTranspose(1, 16, MOST, 1, 16, 3, 1, (2, 1)),
    MaxPool2d(1, 16, 4096, 4096, 2, 2),
    MaxPool2d(1, 16, MOST, 2, 3, 2, 1, padding=(1, 0)),
    Dense(MOST, 16, 16),
    Dense(4096, 4096, 4096),
    BatchMatmul(1 << 16, 4, 16, 16),
]


@pytest.mark.slow
def test_huge_layers_are_picked_or_refused_soon_and_in_little_memory():
    # In a process of its own, whose peak of memory is that of the picks.
    code = (
        "import resource, sys, time, test_oneshot as t\n"
        "t.oneshot.pick(t.networks.SMALL, t.PYNQ)\n"
        "for layer in t.HUGE:\n"
        "    began = time.process_time()\n"
        "    try:\n"
        "        pick = t.oneshot.pick(layer, t.PYNQ)\n"
        "        legal = pick.space.validity(t.np.array([pick.index]))[0] == t.Reason.VALID\n"
        "        print(layer, pick.source, legal)\n"
        "        assert legal\n"
        "    except t.NoSchedule as error:\n"
        "        print(error)\n"
        "    assert time.process_time() - began < 10, layer\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert peak < 2 << 20, peak\n"
    )
    here = Path(__file__).parent.parent
    paths = [str(here), str(here.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == len(HUGE)


def test_models_share_the_picks_of_equal_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second model of a process picks only what the first one has not, by the same weights for the same VTA."""
    asked: list[object] = []
    real = picking.pick
    monkeypatch.setattr(picking, "pick", lambda workload, *rest: asked.append(workload) or real(workload, *rest))
    first, second = networks.LAYERS[0].workload, networks.LAYERS[1].workload
    before = picking.pick_all([first, first], PYNQ)
    after = picking.pick_all([second, first], PYNQ)
    assert asked == [first, second]
    assert after[first] is before[first]
    picking.pick_all([first], Accelerator.load("b8"))
    picking.pick_all([first], PYNQ, dataclasses.replace(picking.predictor_of(None)))
    assert asked == [first, second, first, first]


def test_score_gives_what_the_large_network_says():
    space = ScheduleSpace(networks.SMALL, PYNQ)
    indices = space.table()[:50]
    network = picking.predictor_of(None)
    assert np.array_equal(picking.score(space, indices).p_valid, network.score(space, indices, "main").p_valid)


def test_the_shipped_network_knows_validity():
    space = ScheduleSpace(networks.SMALL, PYNQ)
    sample = space.sample(np.random.default_rng(0), 2000)
    truth = space.validity(sample) == Reason.VALID
    right = (picking.score(space, sample).p_valid >= 0.5) == truth
    # Far above what calling all of them the same would give.
    assert right.mean() > 0.95 > max(truth.mean(), 1 - truth.mean())
