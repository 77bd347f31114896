"""Products of a softmax take its rows at length one: the same function, and flat rows survive int8."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from graph_models import example

from oneshot_ml2.models import execute
from oneshot_ml2.models.ir import Graph, Node, Value
from oneshot_ml2.models.quantize.quantize import quantize
from oneshot_ml2.models.quantize.steps import ALL_STEPS
from oneshot_ml2.models.quantize.unit_rows import unit_rows

HEADS, ROWS, COLUMNS, WIDTH = 2, 16, 128, 16


def attention(axis: int = 3) -> Graph:
    """A softmax whose rows are flat to peaked, and its product with values: of ``x`` (scores) and ``v``."""
    values = {
        "x": Value("x", (1, HEADS, ROWS, COLUMNS)),
        "v": Value("v", (HEADS, WIDTH, COLUMNS)),
        "p": Value("p", (1, HEADS, ROWS, COLUMNS)),
        "q": Value("q", (HEADS, ROWS, COLUMNS)),
        "y": Value("y", (HEADS, ROWS, WIDTH)),
    }
    nodes = (
        Node("p", "softmax", ("x",), "p", {"axis": axis}),
        Node("q", "reshape", ("p",), "q"),
        Node("y", "batch_matmul", ("q", "v"), "y"),
    )
    return Graph("attention", ("x", "v"), ("y",), nodes, values, {}, output_names=("y",))


def samples() -> list[dict[str, Any]]:
    spread = np.geomspace(0.1, 8, ROWS, dtype=np.float32)[:, None]
    return [
        {"x": example((1, HEADS, ROWS, COLUMNS), seed) * spread, "v": example((HEADS, WIDTH, COLUMNS), seed + 50)}
        for seed in range(3)
    ]


def test_the_function_stays() -> None:
    graph = attention()
    rewritten = unit_rows(graph)
    for sample in samples():
        values: dict[str, Any] = {}
        found = execute.execute(rewritten, sample, values.__setitem__)["y"]
        np.testing.assert_allclose(found, execute.execute(graph, sample)["y"], rtol=1e-4, atol=1e-6)
        product = next(node for node in rewritten.nodes if node.op == "batch_matmul")
        np.testing.assert_allclose(np.linalg.norm(values[product.inputs[0]], axis=-1), 1, rtol=1e-5)


def test_flat_rows_survive() -> None:
    graph, given = attention(), samples()
    calibration = {name: np.concatenate([sample[name] for sample in given[:2]]) for name in graph.inputs}
    want = execute.execute(graph, given[2])["y"]

    def error(rows: bool) -> float:
        integer = quantize(graph, calibration, steps=dataclasses.replace(ALL_STEPS, rows=rows)).graph
        (got,) = execute.execute(integer, given[2]).values()
        # By row: flat ones make small sums, which are as much worth as others.
        return float(np.sqrt((np.square(got - want).sum(-1) / np.square(want).sum(-1)).mean()))

    assert error(True) < 0.05
    assert error(False) > 2 * error(True)


def test_other_products_stay() -> None:
    """Rows of something else, or a softmax along another axis."""
    graph = attention(axis=1)
    assert unit_rows(graph) is graph
    plain = dataclasses.replace(graph, nodes=(Node("p", "exp", ("x",), "p"), *graph.nodes[1:]))
    assert unit_rows(plain) is plain
