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

from oneshot_ml2.devices import registry
from oneshot_ml2.network import picking
from oneshot_ml2.network.predictor import Scores
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


def test_a_pick_is_the_first_legal_one_of_the_ranking_and_always_the_same():
    layer = networks.LAYERS[1].workload
    picked, again = picking.pick(layer, PYNQ), picking.pick(layer, PYNQ)
    assert picked == again
    network = picking.predictor_of(None)
    ranking = picking.rank(picked.space, network)
    order = ranking.best(300)
    legal = order[picked.space.validity(order) == Reason.VALID]
    assert picked.index == legal[0]
    scores = network.score(picked.space, order)
    assert (np.diff(scores.cycles) >= 0).all()
    assert (scores.p_valid >= picking.TRUSTED).all()
    assert picked.predicted_cycles == pytest.approx(scores.cycles[order == picked.index][0])


def test_distrust_of_everything_falls_back_to_the_closed_form(monkeypatch):
    forbid(monkeypatch)
    picked = picking.pick(networks.SMALL, PYNQ, networks.random_network(trusting=-1e3))
    assert picked.source == "fallback"
    space = picked.space
    table = space.table()
    legal = table[space.validity(table) == Reason.VALID]
    assert space.estimate(np.array([picked.index]))[0] == space.estimate(legal).min()


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
