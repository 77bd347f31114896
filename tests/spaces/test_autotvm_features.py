"""Features of TVM's own space: closed forms against the programs, what tells validity, and the shipped weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import networks
import numpy as np
import pytest

from oneshot_ml2.common.errors import CorpusError, OneShotError
from oneshot_ml2.corpus import collect
from oneshot_ml2.corpus.plan import Plan
from oneshot_ml2.network import picking
from oneshot_ml2.network.predictor import Predictor
from oneshot_ml2.network.weights import load_pretrained
from oneshot_ml2.spaces.autotvm import features as autotvm_features
from oneshot_ml2.spaces.autotvm import plan
from oneshot_ml2.spaces.full import features as full_features
from oneshot_ml2.spaces.registry import space_kind
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.training import loop
from oneshot_ml2.training.data import map_features, read_data, write_features
from oneshot_ml2.training.settings import Settings
from oneshot_ml2.tuning.base import Domain, Outcomes
from oneshot_ml2.tuning.registry import make_tuner
from oneshot_ml2.vta import facts
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.hls_keys import HlsTiming
from oneshot_ml2.vta.reasons import Reason
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.epilogue import Epilogue
from oneshot_ml2.workload.lists import Layer

WORKLOADS = (
    Conv2d(1, 64, 14, 14, 64, 3, 3, padding=1),
    Conv2d(1, 64, 12, 16, 64, 1, 1, stride=2),
    Conv2d(1, 64, 9, 9, 96, 3, 3, epilogue=Epilogue(clip=None)),
    Conv2d(1, 32, 28, 28, 64, 5, 5, stride=2, padding=2),
)
SPACES = [
    ScheduleSpace(workload, Accelerator.load(chip), "autotvm")
    for workload in WORKLOADS
    for chip in ("pynq", "b8", "ultra96")
]
# Of the paper's layers, which nothing was trained on.
NAMES = [f"{space.accelerator.name} {space.workload}" for space in SPACES]
HELD_OUT = [
    ScheduleSpace(Conv2d(1, c, h, h, k, r, r, stride=2, padding=r // 2), Accelerator.load("pynq"), "autotvm")
    for c, h, k, r in ((256, 14, 512, 3), (256, 14, 512, 1))
]


def lowering(space: ScheduleSpace, most: int = 40) -> np.ndarray:
    """Some schedules that lower."""
    indices = space.table()
    indices = indices[space.validity(indices) == Reason.VALID]
    return np.random.default_rng(len(space)).choice(indices, min(most, len(indices)), replace=False)


def figures(space: ScheduleSpace, indices: np.ndarray) -> dict[str, np.ndarray]:
    totals = plan.summaries(space.workload, space.accelerator, space.values(indices))
    return dict(zip(plan.SUMMARY, totals.T, strict=True))


@pytest.mark.parametrize("space", SPACES, ids=NAMES)
def test_closed_forms_are_those_of_the_programs(space: ScheduleSpace) -> None:
    indices = lowering(space)
    names = [feature.name for feature in facts.TABLE]
    rows = np.array([facts.features(space.lower(int(index))) for index in indices])
    true, mine = dict(zip(names, rows.T, strict=True)), figures(space, indices)
    for own, theirs in (
        ("inp bytes", "inp_bytes"),
        ("wgt bytes", "wgt_bytes"),
        ("out bytes", "out_bytes"),
        ("stores", "stores"),
        ("gemms", "gemms"),
        ("uops", "uops"),
    ):
        assert np.array_equal(mine[own], true[theirs]), own
    assert np.array_equal(mine["loads"], true["inp_loads"] + true["wgt_loads"])
    assert np.array_equal(mine["gemm"], true["gemm_operations"] + 7 * mine["gemms"])
    # NOPs at the ends differ; bursts are an average over where rows may begin.
    assert np.abs(mine["instructions"] - true["instructions"]).max() <= 4
    reads = true["read_bursts"] - true["uop_loads"]
    for own, given in ((mine["out bursts"], true["write_bursts"]), (mine["inp bursts"] + mine["wgt bursts"], reads)):
        assert np.abs(np.log(own / given)).max() < 0.5
        assert np.abs(np.log(own / given)).mean() < 0.1


def test_the_estimate_is_close_and_ranks() -> None:
    for space in SPACES:
        indices = lowering(space)
        cycles, estimate = space.measure(indices).cycles, figures(space, indices)["estimate"]
        ratio = cycles / estimate
        assert ratio.min() > 0.9
        assert 1.0 <= np.median(ratio) < 1.08
        assert cycles[estimate.argmin()] <= 1.02 * cycles.min()


def test_the_features_tell_validity_exactly() -> None:
    """Which of the facts make a schedule invalid is learnt; that they suffice can be shown."""
    for space in (*SPACES, *HELD_OUT):
        indices = space.table()
        rows = np.zeros((len(indices), len(autotvm_features.SCHEDULE_FEATURES)), dtype=np.float32)
        autotvm_features.Encoder.of(space).encode(autotvm_features.candidates_at(space, indices), rows)
        column = dict(zip(autotvm_features.SCHEDULE_FEATURES, rows.T, strict=True))
        invalid = np.zeros(len(indices), dtype=bool)
        for name in (
            "input copy of three dimensions", "output copy of three dimensions", "padded copy of several planes",
            "padded copy of one row", "padded copy of one column", "rows left over", "channels left over",
            "threads both ways", "under three in turn, reduces",
        ):  # fmt: skip
            invalid |= column[name] > 0
        for name in ("inp use", "wgt use", "acc use"):
            invalid |= column[f"fits {name}"] == 0
        assert np.array_equal(~invalid, space.validity(indices) == Reason.VALID)


def test_features_are_finite_and_named_once() -> None:
    assert len(set(autotvm_features.FEATURES)) == len(autotvm_features.FEATURES)
    for space in SPACES:
        given = autotvm_features.all_candidates(space)
        rows = np.empty((len(given), len(autotvm_features.SCHEDULE_FEATURES)), dtype=np.float32)
        autotvm_features.Encoder.of(space).encode(given, rows)
        assert np.isfinite(rows).all()
        assert np.isfinite(autotvm_features.task_features(space)).all()
        fitting = autotvm_features.all_candidates(space, fitting=True)
        valid = given.indices[space.validity(given.indices) == Reason.VALID]
        assert set(valid.tolist()) <= set(fitting.indices.tolist())


def test_aliases_have_the_features_of_what_they_stand_for() -> None:
    space = ScheduleSpace(Conv2d(2, 32, 8, 8, 32, 1, 1), Accelerator.load("pynq"), "autotvm")
    indices = np.arange(len(space))
    same = (
        autotvm_features.candidates_at(space, indices),
        autotvm_features.candidates_at(space, space.canonical(indices)),
    )
    assert np.array_equal(same[0].summary, same[1].summary)


def test_other_kinds_are_refused() -> None:
    full = ScheduleSpace(WORKLOADS[0], Accelerator.load("pynq"))
    with pytest.raises(OneShotError, match="'autotvm', not of 'full'"):
        autotvm_features.task_features(full)
    network = load_pretrained("autotvm")
    for refused in (lambda: network.score(full, np.arange(3)), lambda: picking.rank(full, network)):
        with pytest.raises(OneShotError, match=r"know the schedule space 'autotvm', not 'full': .* 'default' do"):
            refused()
    with pytest.raises(OneShotError, match=r"'magic'\. There are: full, autotvm"):
        space_kind("magic")
    assert space_kind("full").features is full_features


@pytest.mark.parametrize("space", HELD_OUT, ids=["C9", "C10"])
@pytest.mark.parametrize("name", ["ml2-warm", "ml2-frozen"])
def test_the_shipped_weights_find_the_best_at_once(space: ScheduleSpace, name: str) -> None:
    """Validity is hidden: the first trial is within 1 % of the best, and the first ten are valid."""
    domain = Domain.of(space)
    truth = space.measure(domain.indices)
    best = truth.cycles[truth.cycles > 0].min()
    tuner = make_tuner(name, domain, seed=3)
    for turn in range(2):
        positions = domain.positions(tuner.propose(10))
        outcomes = Outcomes(domain.indices[positions], truth.reason[positions], truth.cycles[positions])
        if not turn:
            assert outcomes.valid.all()
            assert outcomes.cycles[0] <= 1.01 * best
        tuner.observe(outcomes)


def test_weights_are_trained_of_one_kind_of_space(tmp_path: Path) -> None:
    chips = tuple(Accelerator.load(name) for name in ("pynq", "b8", "ultra96"))
    layers = tuple(Layer(str(i), workload) for i, workload in enumerate(WORKLOADS))
    plan_of = Plan(layers, chips, tasks=12, samples=24, space="autotvm", seed=3)
    collect.collect(plan_of, tmp_path / "corpus", progress=False)
    settings = Settings(
        scan=(8,), main=(8,), epochs=2, samples_per_task=16, validity_samples=16, held_accelerators=0, held_workloads=0
    )
    write_features([tmp_path / "corpus"], settings, tmp_path / "features")
    data = map_features(tmp_path / "features")
    assert data.kind == "autotvm"
    trained = loop.train(data, settings, tmp_path / "weights")
    loaded = Predictor.load(tmp_path / "weights.safetensors")
    assert loaded.kind == trained.kind == loaded.card["space"] == "autotvm"
    indices = SPACES[0].table()
    assert np.array_equal(loaded.score(SPACES[0], indices).cycles, trained.score(SPACES[0], indices).cycles)
    networks.small_corpus(tmp_path / "full", samples=4)
    with pytest.raises(CorpusError, match="'autotvm' and 'full'; train on one kind"):
        read_data([tmp_path / "corpus", tmp_path / "full"], settings)


def test_the_features_tell_validity_on_the_hls_design() -> None:
    hls, refused = HlsTiming(acc_distance=8), 0
    version = autotvm_features.HLS_FEATURE_VERSION
    names = autotvm_features.FEATURE_SETS[version].schedule
    for space in SPACES:
        there = ScheduleSpace(space.workload, dataclasses.replace(space.accelerator, hls=hls), "autotvm")
        indices = space.table()
        rows = np.full((len(indices), len(names)), np.nan, dtype=np.float32)
        autotvm_features.Encoder.of(there, version).encode(autotvm_features.candidates_at(there, indices), rows)
        assert np.isfinite(rows).all()
        recurs = rows[:, names.index("recurs within the accumulator distance")] > 0
        # Of what the other rules allow, this one refuses the rest.
        valid = space.validity(indices) == Reason.VALID
        assert np.array_equal(there.validity(indices) == Reason.VALID, valid & ~recurs)
        refused += int((valid & recurs).sum())
        seen = autotvm_features.task_features(there, version)
        assert len(seen) == len(autotvm_features.FEATURE_SETS[version].task)
    assert refused > 0
