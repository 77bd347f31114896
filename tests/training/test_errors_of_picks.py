from __future__ import annotations

import dataclasses
from pathlib import Path

import networks
import numpy as np
import pytest

from oneshot_ml2.common import resources
from oneshot_ml2.common.errors import CorpusError
from oneshot_ml2.corpus.plan import read_plan
from oneshot_ml2.network import picking
from oneshot_ml2.network.errors_of_picks import PickErrors
from oneshot_ml2.network.predictor import Scores
from oneshot_ml2.training import errors_of_picks
from oneshot_ml2.training.data import split
from oneshot_ml2.training.settings import Settings
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.workload.conv2d import Conv2d

PYNQ = Accelerator.load("pynq")
PLANS = Path(__file__).parent.parent.parent / "datasets" / "plans"


def drawn(n: int, tails: bool = False) -> np.ndarray:
    """Errors of 0.5 spreads and a fifth of the gap, and of a deviation of 1.5 spreads."""
    rng = np.random.default_rng(3)
    spread, gap = rng.uniform(0.002, 0.05, n), rng.uniform(0, 0.1, n)
    noise = rng.standard_t(4, n) / 2**0.5 if tails else rng.normal(size=n)
    return np.stack([0.5 * spread + 0.2 * gap + 1.5 * spread * noise, spread, gap], axis=1)


def test_a_fit_finds_what_the_errors_were_drawn_from():
    found = errors_of_picks.fit(drawn(20_000))
    assert (found.shift, found.lean, found.scale) == (
        pytest.approx(0.5, abs=0.05),
        pytest.approx(0.2, abs=0.02),
        pytest.approx(1.5, abs=0.05),
    )


def test_corrected_predictions_are_calibrated_even_where_errors_have_tails():
    errors = drawn(4000, tails=True)
    away, spread, gap = errors.T
    assert (away > 0).mean() > 0.65 and (np.abs(away) <= spread).mean() < 0.55
    one = np.ones(len(errors), dtype=np.float32)
    scores = Scores(one, one, spread.astype(np.float32), 100.0 * one.astype(np.float64))
    known = errors_of_picks.fit(errors[:2000])
    made = known.corrected(scores, gap, outside=False)
    off = away - (np.log(made.cycles) - np.log(scores.cycles))
    within = [(np.abs(off) <= k * made.spread)[2000:].mean() for k in (1, 2)]
    assert abs(within[0] - 0.68) < 0.05 and abs(within[1] - 0.95) < 0.03 and 0.4 < (off[2000:] > 0).mean() < 0.6
    wide = known.corrected(scores, gap, outside=True)
    assert np.array_equal(wide.cycles, made.cycles) and np.allclose(wide.spread, np.hypot(made.spread, gap), rtol=1e-5)


def test_a_gap_that_is_a_deviation_of_its_own_is_found():
    rng = np.random.default_rng(4)
    _, spread, gap = drawn(3000).T
    errors = np.stack([np.hypot(1.2 * spread, 0.5 * gap) * rng.normal(size=len(gap)), spread, gap], axis=1)
    assert errors_of_picks.fit(errors).reach == 0.0
    found = errors_of_picks.fit(errors, errors_of_picks.REACHES)
    assert 0.3 <= found.reach <= 0.7 and found.scale == pytest.approx(1.2, abs=0.5)
    one = np.ones(len(errors), dtype=np.float32)
    scores = Scores(one, one, spread.astype(np.float32), 100.0 * one.astype(np.float64))
    made = found.corrected(scores, gap, outside=False)
    off = np.abs(errors[:, 0] - (np.log(made.cycles) - np.log(scores.cycles)))
    assert abs((off <= made.spread).mean() - 0.68) < 0.05 and abs((off <= 2 * made.spread).mean() - 0.95) < 0.03


def test_nothing_is_learnt_of_too_few_picks():
    with pytest.raises(CorpusError, match="too few"):
        errors_of_picks.fit(drawn(3))


def test_picks_are_observed_as_the_networks_predict_them():
    shipped = picking.load_pretrained("default@1")
    known = dataclasses.replace(shipped, card=shipped.card | {"picks": {"shift": 9.0}})
    # The second has no legal schedule.
    (row,) = errors_of_picks.observe([(networks.SMALL, PYNQ), (Conv2d(1, 16, 33, 33, 16, 33, 33), PYNQ)], known)
    picked = picking.pick(networks.SMALL, PYNQ, shipped)
    index = np.array([picked.index])
    cycles = picked.space.measure(index).cycles[0]
    one, other = (shipped.score(picked.space, index, name) for name in ("main", "scan"))
    assert row == pytest.approx([np.log(cycles / one.cycles[0]), one.spread[0], one.gap(other)[0]], abs=1e-6)


def test_the_shipped_card_s_figures_are_of_tasks_kept_out_of_training():
    card = picking.load_pretrained("default@1").card
    plans = [read_plan(PLANS / f"{name}.toml") for name in ("train", "operators", "more")]
    tasks = errors_of_picks.validation_tasks(plans, card, 40)
    assert len(tasks) == 40
    chips = {chip for _, chip in tasks}
    assert chips <= {
        Accelerator.load(path, warn=False) for path in resources.find("accelerators", "train").glob("*.json")
    }
    with pytest.raises(CorpusError, match="the card says"):
        errors_of_picks.validation_tasks(plans[:2], card, 40)
    for learnt in (card, picking.predictor_of(None).card):
        known = PickErrors.of(learnt)
        assert 0 < known.shift < 2 and 0.5 < known.scale < 3 and learnt["picks"]["tasks"] > 200


def test_a_split_does_not_depend_on_the_order_of_an_accelerators_further_keys():
    # A corpus keeps them in order; files and presets have them in any.
    chips = [
        dataclasses.replace(PYNQ, memory_latency=i + 1, extra=(("TARGET", '"sim"'), ("HW_VER", '"1"')))
        for i in range(20)
    ]
    chips[::2] = [dataclasses.replace(chip, extra=()) for chip in chips[::2]]
    read = [dataclasses.replace(chip, extra=tuple(sorted(chip.extra))) for chip in chips]
    settings = Settings(held_accelerators=7)
    for one, other in zip(
        split([0] * 20, chips, settings).values(), split([0] * 20, read, settings).values(), strict=True
    ):
        assert np.array_equal(one, other)
