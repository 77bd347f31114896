"""Gradient-boosted trees (xgboost) as the tuners use them, and the features of knobs that they see.

One thread and fixed seeds: the same data gives the same trees, which resuming a run relies on.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.network.forest import Forest
from oneshot_ml2.tuning.base import Domain
from oneshot_ml2.vta.facts import NAMES

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

    def forest(self) -> Forest:
        """The trees as arrays, which predict as :meth:`predict` does from a margin of 0."""
        return Forest.of_nodes([json.loads(tree) for tree in self.booster.get_dump(dump_format="json")])


# Logarithms of counts, which may be 0, and of shares are taken of so much more.
_LEAST_COUNT = 1e-3

# What costs are put on: hidden features, and three sums of cycles made of them.
_COSTED = (
    "gemm_operations", "reset_operations", "alu_immediate_operations", "alu_tensor_operations", "instructions", "noops",
    "gemms", "resets", "alus", "uop_requests", "wgt_requests", "inp_requests", "out_requests", "read_beats",
    "write_beats", "read_bursts", "write_bursts", "load_to_compute", "compute_to_load", "compute_to_store",
    "store_to_compute", "head_bytes", "tail_bytes", "uop_loads", "wgt_loads", "inp_loads", "stores", "pad_elements",
    "path_cycles", "path_loads", "path_computes", "path_stores", "path_compute_loads", "path_requests", "path_bursts",
)  # fmt: skip
# Cycles of a GEMM or ALU instruction beside its operations (docs/hardware.md, Time).
_START_AND_END = 6


@dataclass(frozen=True)
class Costs:
    """A linear model of cycles: what is counted in a program, each at a cost of 0 or more, learnt from trials.

    Counted are hidden features, compute's own cycles, and the larger of these, of the read port's and of the write
    port's: what a program takes whose modules overlap. Few trials are enough, as every count can only add time.

    Attributes:
        weights: float64 (columns,), cycles.
    """

    weights: NDArray[np.float64]

    @classmethod
    def fit(cls, counts: NDArray[np.float64], log_cycles: NDArray[np.float64]) -> Costs:
        """Costs of hidden features (n, h) with the least squared relative errors of log cycles (n,)."""
        from scipy.optimize import nnls

        shares = _costed(counts) / np.exp(log_cycles)[:, None]
        scale = shares.mean(axis=0) + 1e-12
        weights, _ = nnls(shares / scale, np.ones(len(shares)), maxiter=1000)
        return cls(weights / scale)

    def log_cycles(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Log cycles (n,) of hidden features (n, h)."""
        return np.log(np.maximum(_costed(counts) @ self.weights, 1.0))


def _costed(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """What costs are put on, float64 (n, columns), of hidden features (n, h)."""
    of = {name: counts[:, place] for place, name in enumerate(NAMES)}
    operations = of["gemm_operations"] + of["reset_operations"] + of["alu_immediate_operations"]
    compute = operations + 2 * of["alu_tensor_operations"] + _START_AND_END * (of["gemms"] + of["resets"] + of["alus"])
    ports = np.maximum(compute, of["read_beats"])
    return np.column_stack([*(of[name] for name in _COSTED), compute, ports, np.maximum(ports, of["write_beats"])])


def fit(
    features: Features,
    labels: NDArray[np.float64],
    objective: str,
    margin: NDArray[np.float64] | None = None,
    rounds: int = 100,
    seed: int = 0,
    weights: NDArray[np.float64] | None = None,
    **settings: Any,
) -> Trees:
    """Trees for labels (n,) of features (n, f).

    Args:
        objective: xgboost's, e.g. ``reg:squarederror``, or ``multi:softprob`` with ``num_class`` among the settings.
        margin: predictions (n,) or (n, classes) to improve on; none: start from the labels' mean.
        weights: of the rows, (n,); none: all alike.
        settings: of xgboost, over the defaults here.
    """
    import xgboost

    given: dict[str, Any] = {"max_depth": 5, "eta": 0.15, "lambda": 1.0, "min_child_weight": 1.0} | settings
    given |= {"objective": objective, "nthread": 1, "seed": seed, "tree_method": "hist", "verbosity": 0}
    data = xgboost.DMatrix(features, labels, weight=weights, base_margin=margin, nthread=1)
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

    The knobs' values; of every tile knob the number of tiles, whether it is odd, and how full the last one is; the
    logarithm of every product of tile sizes; and of what an analysis of the loop nest counts: bytes, instructions,
    micro-ops, what the SRAMs hold, in the space ``full`` also the cycles of computing and of storing by themselves. How
    these add up, what memory costs, and what is allowed are for the trials to tell.
    """
    values = domain.values(positions).astype(np.float64)
    columns = [values]
    tiles = [j for j, knob in enumerate(domain.space.knobs) if knob.name.startswith("tile_") and len(knob.values) > 1]
    for j in tiles:
        extent = max(domain.space.knobs[j].values)
        count = np.ceil(extent / values[:, [j]])
        columns += [count, count % 2, ((extent - 1) % values[:, [j]] + 1) / values[:, [j]]]
    logs = np.log2(values[:, tiles])
    for size in range(2, len(tiles) + 1):
        for chosen in itertools.combinations(range(len(tiles)), size):
            columns.append(logs[:, list(chosen)].sum(axis=1, keepdims=True))
    known = domain.space.record.features
    counted = known.candidates_at(domain.space, domain.indices[positions]).summary[:, known.COUNTED]
    columns.append(np.log2(np.maximum(counted, 0.0) + _LEAST_COUNT))
    return np.concatenate(columns, axis=1).astype(np.float32)
