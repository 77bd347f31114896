"""How far picks are from what the networks predict of them, by picks of validation tasks, which are timed.

What is learnt goes into the model card, and every later pick's prediction and spread follow from it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from oneshot_ml2.common.errors import CorpusError
from oneshot_ml2.corpus.plan import Plan, Task
from oneshot_ml2.network import picking
from oneshot_ml2.network.errors_of_picks import KEY, PickErrors
from oneshot_ml2.network.predictor import Predictor
from oneshot_ml2.training.data import split
from oneshot_ml2.training.settings import Settings
from oneshot_ml2.vta.reasons import InvalidSchedule

# Shares of the gap that may count as a deviation of picks far outside of all that was trained on.
REACHES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5)
# The shares of a normal distribution within one and two standard deviations, and how far from each a fit may be.
_SHARES, _FAR = (0.6827, 0.9545), (0.05, 0.03)
# Scales that a fit tries, at most.
_SCALES = 512


def validation_tasks(plans: Sequence[Plan], card: dict[str, Any], most: int) -> list[Task]:
    """At most ``most`` of the tasks that a training on the plans' corpora did not train on: half of them on seen
    accelerators, half on unseen ones, each half evenly spread.

    ``card``: of the weights, which say by what settings they were trained.

    Raises:
        CorpusError: plans of other corpora: they give another split than the card says.
    """
    tasks = [task for plan in plans for task in plan.drawn]
    known = {field.name for field in fields(Settings)}
    settings = Settings(**{name: value for name, value in card.get("settings", {}).items() if name in known})
    parts = split([workload.shape_key for workload, _ in tasks], [chip for _, chip in tasks], settings)
    wanted = {name: count for name, count in card.get("split", {}).items() if name in parts}
    found = {name: len(part) for name, part in parts.items()}
    if wanted != found:
        raise CorpusError(f"these plans split into {found}, the card says {wanted}; give the plans it was trained on")
    halves = (parts["workload"], np.concatenate([parts["both"], parts["accelerator"]]))
    places = [half[np.unique(np.linspace(0, len(half) - 1, most // 2).astype(int))] for half in halves if len(half)]
    return [tasks[i] for i in np.concatenate(places)]


def observe(tasks: Sequence[Task], network: Predictor) -> NDArray[np.float64]:
    """Of the picks of tasks log(T / predicted), spread and gap as the networks say them, float64 (picks, 3)."""
    bare = replace(network, card={key: value for key, value in network.card.items() if key != KEY})
    rows = []
    for workload, chip in tqdm(tasks, desc="picks", unit="task", disable=None):
        try:
            made = picking.pick(workload, chip, bare)
        except InvalidSchedule:
            continue
        index = np.array([made.index])
        cycles = float(made.space.measure(index).cycles[0])
        given = bare.features.candidates_at(made.space, index)
        gap = picking.by_both(made.space, bare, given).gap
        rows.append((np.log(cycles / made.predicted_cycles), made.spread, float(gap[0])))
    return np.array(rows).reshape(-1, 3)


def fit(errors: NDArray[np.float64], reaches: Sequence[float] = (0.0,)) -> PickErrors:
    """What `observe` gave (n, 3), as figures: the shifts by least squares, each pick weighted by its spread; and the
    scale, and the one of ``reaches``, that bring the shares within one and two standard deviations nearest to those of
    a normal distribution.

    Raises:
        CorpusError: fewer picks than figures.
    """
    if len(errors) <= len(fields(PickErrors)):
        raise CorpusError(f"{len(errors)} picks are too few to learn from; give more tasks")
    away, spread, gap = errors.T
    terms = np.stack([np.ones(len(spread)), gap / spread], axis=1)
    shift, lean = np.linalg.lstsq(terms, away / spread, rcond=None)[0]
    rest = np.abs(away - shift * spread - lean * gap)

    def far(scale: float, reach: float) -> float:
        within = [np.mean(rest <= many * np.hypot(scale * spread, reach * gap)) for many in (1, 2)]
        return float(np.max(np.abs(np.array(within) - _SHARES) / _FAR))

    scales = np.quantile(rest / spread, np.linspace(0.0, 1.0, min(len(rest), _SCALES)), method="nearest")
    scale, reach = min(itertools.product(scales, reaches), key=lambda given: far(*given))
    return PickErrors(*(round(float(figure), 4) for figure in (shift, lean, scale, reach)))
