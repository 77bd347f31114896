"""XGBoost's trees, as TenSet trains them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.reading import parse_json
from oneshot_ml2.training.peers.base import PeerKind
from oneshot_ml2.training.peers.inputs import ALL

if TYPE_CHECKING:
    from oneshot_ml2.training.peers.base import Progress, Rows, Settings


@dataclass(frozen=True)
class Trees:
    """XGBoost's trees as a `Peer`."""

    booster: Any

    def score(self, features: NDArray[np.float32], own: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.booster.inplace_predict(features).astype(np.float32)

    def content(self) -> bytes:
        """The trees as JSON."""
        return bytes(self.booster.save_raw("json"))


def train(rows: Rows, s: Settings, progress: Progress) -> Trees:
    """As TenSet's xgb_model.py: squared error of throughput over the task's best, weighted by it."""
    import xgboost

    label = rows.speed.astype(np.float32)
    table = xgboost.QuantileDMatrix(rows.features, label, weight=label)
    parameters = {
        "objective": "reg:squarederror",
        "tree_method": "hist",
        "max_depth": s.xgboost_depth,
        "eta": s.xgboost_rate,
        "gamma": 0.003,
        "min_child_weight": 2,
        "seed": s.seed,
    }
    booster = xgboost.train(parameters, table, num_boost_round=s.xgboost_rounds)
    progress.report(f"xgboost: {s.xgboost_rounds} rounds")
    return Trees(booster)


def load(path: Path) -> Trees:
    import xgboost

    content = path.read_bytes()
    # XGBoost's own parser ends the process on some broken texts.
    parse_json(content, "its trees")
    booster = xgboost.Booster()
    try:
        booster.load_model(bytearray(content))
    except xgboost.core.XGBoostError as error:
        raise ValueError(str(error)) from error
    if booster.num_features() != ALL:
        raise ValueError("of other features")
    return Trees(booster)


XGBOOST = PeerKind("xgboost", "XGBoost", "trees.json", train, Trees.content, load)
