"""Gradient-boosted trees (xgboost) as the tuners use them, and the features of knobs that they see.

One thread and fixed seeds: the same data gives the same trees, which resuming a run relies on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.tuner import Domain

Features = NDArray[np.float32]


@dataclass(frozen=True)
class Trees:
    """A fitted model."""

    booster: Any

    def predict(self, features: Features, margin: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Margins (n,) of features (n, f), of classes (n, classes): the prediction before any link function.

        ``margin``: what the trees were told to start from for these rows.
        """
        import xgboost

        data = xgboost.DMatrix(features, base_margin=margin, nthread=1)
        return np.asarray(self.booster.predict(data, output_margin=True), dtype=np.float64)


def fit(
    features: Features,
    labels: NDArray[np.float64],
    objective: str,
    margin: NDArray[np.float64] | None = None,
    rounds: int = 100,
    seed: int = 0,
    **settings: float,
) -> Trees:
    """Trees for labels (n,) of features (n, f).

    Args:
        objective: xgboost's, e.g. ``reg:squarederror``, or ``multi:softprob`` with ``num_class`` among the settings.
        margin: predictions (n,) or (n, classes) to improve on; none: start from the labels' mean.
        settings: of xgboost, over the defaults here.
    """
    import xgboost

    given: dict[str, Any] = {"max_depth": 5, "eta": 0.15, "lambda": 1.0, "min_child_weight": 1.0} | settings
    given |= {"objective": objective, "nthread": 1, "seed": seed, "tree_method": "hist", "verbosity": 0}
    data = xgboost.DMatrix(features, labels, base_margin=margin, nthread=1)
    return Trees(xgboost.train(given, data, num_boost_round=rounds))


def fit_until(
    features: Features,
    labels: NDArray[np.float64],
    settings: dict[str, Any],
    metric: Callable[[NDArray[np.float64], NDArray[np.float64]], float],
    rounds: int,
    patience: int,
    seed: int,
) -> Trees:
    """Trees of one ranking group, grown until ``metric`` (predictions, labels) of the training data has not risen for
    ``patience`` rounds."""
    import xgboost

    data = xgboost.DMatrix(features, labels, nthread=1)
    data.set_group([len(labels)])
    given = settings | {"nthread": 1, "seed": seed, "verbosity": 0, "disable_default_eval_metric": True}
    booster = xgboost.train(
        given,
        data,
        num_boost_round=rounds,
        evals=[(data, "tr")],
        custom_metric=lambda predicted, matrix: ("metric", metric(predicted, matrix.get_label())),
        callbacks=[
            xgboost.callback.EarlyStopping(rounds=patience, metric_name="metric", data_name="tr", maximize=True)
        ],
        verbose_eval=False,
    )
    return Trees(booster)


def knob_features(domain: Domain, positions: NDArray[np.int64]) -> Features:
    """The knobs' values as they are, float32 (n, knobs): AutoTVM's features of kind ``knob``."""
    return domain.values(positions).astype(np.float32)


def visible_features(domain: Domain, positions: NDArray[np.int64]) -> Features:
    """What can be seen of a schedule without lowering it, float32 (n, f).

    The knobs' values; of every tile knob the number of tiles and how full the last one is; and the logarithm of every
    product of tile sizes, to which what buffers hold is proportional. Nothing of the accelerator is in it.
    """
    values = domain.values(positions).astype(np.float64)
    columns = [values]
    tiles = [j for j, knob in enumerate(domain.space.knobs) if knob.name.startswith("tile_") and len(knob.values) > 1]
    for j in tiles:
        extent = max(domain.space.knobs[j].values)
        columns += [np.ceil(extent / values[:, [j]]), ((extent - 1) % values[:, [j]] + 1) / values[:, [j]]]
    logs = np.log2(values[:, tiles])
    for size in range(2, len(tiles) + 1):
        for chosen in itertools.combinations(range(len(tiles)), size):
            columns.append(logs[:, list(chosen)].sum(axis=1, keepdims=True))
    return np.concatenate(columns, axis=1).astype(np.float32)
