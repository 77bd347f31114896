"""Trees as arrays predict as the library that fitted them, and damaged ones are refused."""

from __future__ import annotations

import numpy as np
import pytest

from oneshot_ml2.network.forest import Forest
from oneshot_ml2.tuning import trees


@pytest.fixture(scope="module")
def fitted() -> tuple[trees.Trees, np.ndarray]:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 5)).astype(np.float32)
    labels = np.where(rows[:, 1] > 0.3, rows[:, 4], -1.0) + 0.1 * rows[:, 0]
    model = trees.fit(rows, labels.astype(np.float64), "reg:squarederror", np.zeros(300), 30, max_depth=4)
    return model, rows


def test_arrays_predict_as_the_library_does(fitted: tuple[trees.Trees, np.ndarray]) -> None:
    model, rows = fitted
    # Also where a value is a threshold.
    ties = np.repeat(model.forest().threshold[:4, :1], 5, axis=1)
    for some in (rows, ties, rows[:0]):
        expected = model.predict(some.astype(np.float32), np.zeros(len(some))) if len(some) else np.zeros(0)
        assert np.allclose(model.forest().predict(some.astype(np.float64)), expected, atol=1e-5)


def test_trees_of_unequal_depth_are_filled_up() -> None:
    stump = {"nodeid": 0, "leaf": 0.5}
    split = {
        "nodeid": 0, "split": "f2", "split_condition": 1.5, "yes": 1, "no": 2, "missing": 1,
        "children": [{"nodeid": 1, "leaf": -1.0}, {"nodeid": 2, "leaf": 2.0}],
    }  # fmt: skip
    forest = Forest.of_nodes([stump, split])
    rows = np.array([[0.0, 0.0, 1.4], [0.0, 0.0, 1.5]])
    assert forest.predict(rows).tolist() == [-0.5, 2.5]
    assert Forest.of_nodes([stump]).predict(rows).tolist() == [0.5, 0.5]


def test_tensors_are_the_forest(fitted: tuple[trees.Trees, np.ndarray]) -> None:
    model, rows = fitted
    tensors = model.forest().to_tensors()
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float32)}
    again = Forest.from_tensors(tensors, 5)
    assert np.array_equal(again.predict(rows.astype(np.float64)), model.forest().predict(rows.astype(np.float64)))


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("leaf", lambda t: t[:, :-1], "not complete"),
        ("leaf", lambda t: t[:-1], "do not fit"),
        ("threshold", lambda t: t * np.nan, "not finite"),
        ("feature", lambda t: t + 5, "features that there are not"),
        ("feature", lambda t: t - 0.5, "features that there are not"),
        ("other", lambda t: t, "has features, thresholds and leaves"),
    ],
)
def test_damaged_forests_are_refused(fitted: tuple[trees.Trees, np.ndarray], name: str, change, says: str) -> None:
    tensors = fitted[0].forest().to_tensors()
    damaged = tensors | {name: change(tensors.get(name, np.zeros((1, 1), np.float32)))}
    with pytest.raises(ValueError, match=says):
        Forest.from_tensors(damaged, 5)
