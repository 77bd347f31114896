"""Boosted trees as arrays: what corrects a prediction is data in a weights file, and needs no library to be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Rows at once, so that what is made of them stays small.
_CHUNK = 1 << 12
_DEEPEST = 8


@dataclass(frozen=True)
class Forest:
    """Complete binary trees of one depth, whose leaves add up; a row goes left where its feature is below a threshold.

    ``feature``: int64 (trees, nodes), ``threshold``: float32, the same; the children of node i are 2 i + 1 and 2 i + 2;
    ``leaf``: float32 (trees, nodes + 1).
    """

    feature: NDArray[np.int64]
    threshold: NDArray[np.float32]
    leaf: NDArray[np.float32]

    @classmethod
    def of_nodes(cls, trees: list[Mapping[str, Any]]) -> Forest:
        """Of trees as xgboost tells them in JSON: nodes with ``split``, ``split_condition``, ``yes``, ``no`` and
        ``children``, or a ``leaf``; features are called f0, f1, ..."""
        depth = max((_depth(tree) for tree in trees), default=0)
        nodes = (1 << depth) - 1
        feature = np.zeros((len(trees), nodes), dtype=np.int64)
        threshold = np.zeros((len(trees), nodes), dtype=np.float32)
        leaf = np.zeros((len(trees), nodes + 1), dtype=np.float32)
        for row, tree in enumerate(trees):
            waiting: list[tuple[int, Mapping[str, Any]]] = [(0, tree)]
            while waiting:
                place, node = waiting.pop()
                if place >= nodes:
                    leaf[row, place - nodes] = node["leaf"]
                elif "leaf" in node:
                    waiting += [(2 * place + 1, node), (2 * place + 2, node)]
                else:
                    feature[row, place] = int(node["split"].removeprefix("f"))
                    threshold[row, place] = node["split_condition"]
                    children = {child["nodeid"]: child for child in node["children"]}
                    waiting += [(2 * place + 1, children[node["yes"]]), (2 * place + 2, children[node["no"]])]
        return cls(feature, threshold, leaf)

    def predict(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums of leaves, float64 (n,), of rows (n, features)."""
        found = np.zeros(len(rows))
        trees, depth = np.arange(len(self.leaf)), self.leaf.shape[1].bit_length() - 1
        for begin in range(0, len(rows), _CHUNK):
            x = rows[begin : begin + _CHUNK].astype(np.float32)
            every, node = np.arange(len(x))[:, None], np.zeros((len(x), len(trees)), dtype=np.int64)
            for _ in range(depth):
                right = x[every, self.feature[trees, node]] >= self.threshold[trees, node]
                node = 2 * node + 1 + right
            found[begin : begin + _CHUNK] = self.leaf[trees, node - self.feature.shape[1]].sum(axis=1, dtype=np.float64)
        return found

    def to_tensors(self) -> dict[str, NDArray[np.float32]]:
        """As they stand in a weights file."""
        return {"feature": self.feature.astype(np.float32), "threshold": self.threshold, "leaf": self.leaf}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray[Any]], features: int) -> Forest:
        """The inverse of :meth:`to_tensors`, for rows of so many features.

        Raises:
            ValueError: no trees of one depth, or of other features.
        """
        if set(tensors) != {"feature", "threshold", "leaf"}:
            raise ValueError("a forest has features, thresholds and leaves")
        feature, threshold, leaf = (tensors[name] for name in ("feature", "threshold", "leaf"))
        if leaf.ndim != 2 or leaf.shape[1] not in [1 << depth for depth in range(_DEEPEST + 1)]:
            raise ValueError("leaves of a tree that is not complete")
        shape = (len(leaf), leaf.shape[1] - 1)
        if feature.shape != shape or threshold.shape != shape:
            raise ValueError("nodes that do not fit their leaves")
        if not all(np.isfinite(tensor).all() for tensor in (feature, threshold, leaf)):
            raise ValueError("a forest of values that are not finite")
        if (feature < 0).any() or (feature >= features).any() or (feature != np.floor(feature)).any():
            raise ValueError("a forest of features that there are not")
        return cls(feature.astype(np.int64), threshold.astype(np.float32), leaf.astype(np.float32))


def _depth(node: Mapping[str, Any]) -> int:
    return 0 if "leaf" in node else 1 + max(_depth(child) for child in node["children"])
