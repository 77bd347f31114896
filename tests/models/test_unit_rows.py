"""Rows that the host makes go into int8 at one size: the same function, and flat rows and small tokens survive."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
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


def row_error(graph: Graph, calibration: Any, sample: dict[str, Any], rows: bool) -> float:
    """What a quantized model loses of each row, relative: small ones are as much worth as others."""
    (want,) = execute.execute(graph, sample).values()
    integer = quantize(graph, calibration, steps=dataclasses.replace(ALL_STEPS, rows=rows)).graph
    (got,) = execute.execute(integer, sample).values()
    return float(np.sqrt((np.square(got - want).sum(-1) / np.square(want).sum(-1)).mean()))


def test_flat_rows_survive() -> None:
    graph, given = attention(), samples()
    calibration = {name: np.concatenate([sample[name] for sample in given[:2]]) for name in graph.inputs}
    error = row_error(graph, calibration, given[2], True)
    assert error < 0.05
    assert row_error(graph, calibration, given[2], False) > 2 * error


def test_other_products_stay() -> None:
    """Rows of something else, or a softmax along another axis."""
    graph = attention(axis=1)
    assert unit_rows(graph) is graph
    plain = dataclasses.replace(graph, nodes=(Node("p", "exp", ("x",), "p"), *graph.nodes[1:]))
    assert unit_rows(plain) is plain


def feed_forward(op: str = "gelu") -> Graph:
    """What a transformer has between two normalizations: two layers and a sum."""
    rng = np.random.default_rng(0)
    shapes = {"x": WIDTH, "n": WIDTH, "wide": 64, "active": 64, "narrow": WIDTH, "y": WIDTH, "z": WIDTH}
    values = {name: Value(name, (1, ROWS, width)) for name, width in shapes.items()}
    constants = {
        "w1": rng.standard_normal((64, WIDTH)) / 4,
        "w2": rng.standard_normal((WIDTH, 64)) / 8, "b2": rng.standard_normal(WIDTH) / 99,
    }  # fmt: skip
    nodes = (
        Node("n", "tanh", ("x",), "n"),
        Node("wide", "dense", ("n", "w1"), "wide"),
        Node("active", op, ("wide",), "active"),
        Node("narrow", "dense", ("active", "w2", "b2"), "narrow"),
        Node("y", "add", ("narrow", "x"), "y"),
        Node("z", "tanh", ("y",), "z"),
    )
    own = {name: array.astype(np.float32) for name, array in constants.items()}
    return Graph("feed forward", ("x",), ("z",), nodes, values, own, output_names=("y",))


def tokens(largest: float, zero: bool = False) -> list[dict[str, Any]]:
    """Rows alike but one, which is small or as large as the others."""
    size = np.full((ROWS, 1), 0.02, np.float32)
    size[0], size[1] = largest, size[1] * (not zero)
    return [{"x": example((1, ROWS, WIDTH), seed) * size} for seed in range(4)]


@pytest.mark.parametrize("zero", [False, True])
def test_layers_of_uneven_tokens_stay_what_they_are(zero: bool) -> None:
    graph, given = feed_forward(), tokens(5.0, zero)
    rewritten = unit_rows(graph)
    unit = {node.name: node for node in rewritten.nodes if node.op == "dense"}
    assert [name for name, node in unit.items() if node.output.endswith(".unit")] == ["wide", "narrow"]
    for sample in given:
        values: dict[str, Any] = {}
        found = execute.execute(rewritten, sample, values.__setitem__)["z"]
        np.testing.assert_allclose(found, execute.execute(graph, sample)["z"], rtol=1e-4, atol=1e-5)
        for node in unit.values():
            sizes = np.abs(values[node.inputs[0]]).max(-1).ravel()
            np.testing.assert_allclose(sizes, np.where(np.arange(ROWS) == 1, not zero, 1.0), rtol=1e-5)


def test_rows_that_the_vta_makes_stay_there() -> None:
    """With sizes the host would have to make them."""
    names = [node.name for node in unit_rows(feed_forward("relu")).nodes if node.output.endswith(".unit")]
    assert names == []


def test_small_tokens_survive_beside_a_large_one() -> None:
    graph, given = feed_forward(), tokens(5.0)
    calibration = np.concatenate([sample["x"] for sample in given[:3]])
    error = row_error(graph, calibration, given[3], True)
    assert error < 0.1
    assert row_error(graph, calibration, given[3], False) > 3 * error


def test_rows_of_a_softmax_that_a_layer_reads_too() -> None:
    graph = attention()
    values = {**graph.values, "z": Value("z", (1, HEADS, ROWS, 4))}
    weight = np.random.default_rng(0).standard_normal((4, COLUMNS)).astype(np.float32)
    nodes = (*graph.nodes, Node("z", "dense", ("p", "w"), "z"))
    graph = dataclasses.replace(graph, nodes=nodes, values=values, constants={"w": weight}, outputs=("y", "z"))
    sample, rewritten = samples()[0], unit_rows(graph)
    made = [node.output for node in rewritten.nodes]
    assert len(set(made)) == len(made) and sum(name.endswith(".unit") for name in made) == 2
    for found, want in zip(execute.execute(rewritten, sample).values(), execute.execute(graph, sample).values()):
        np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


def test_rows_of_an_input_that_is_turned_stay_float_until_they_are_of_one_size() -> None:
    """An input of quiet and loud rows, turned before a layer, as that of a recurrent layer with its batch first."""
    graph = feed_forward("tanh")
    values = {**graph.values, "x": Value("x", (ROWS, 1, WIDTH))}
    nodes = (
        Node("n", "permute", ("x",), "n", {"axes": (1, 0, 2)}),
        *(node for node in graph.nodes[1:] if node.name != "y"),
    )
    nodes = tuple(dataclasses.replace(node, inputs=("narrow",)) if node.name == "z" else node for node in nodes)
    graph = dataclasses.replace(graph, nodes=nodes, values=values)
    assert [node.name for node in unit_rows(graph).nodes if node.output.endswith(".unit")] == ["wide", "narrow"]
    given = [{"x": sample["x"].transpose(1, 0, 2) * 9} for sample in tokens(5.0)]
    integer = quantize(graph, np.concatenate([sample["x"] for sample in given[:3]])).graph
    turned = next(node for node in integer.nodes if node.op == "permute")
    assert integer.values[turned.output].exponent is None
    assert row_error(graph, np.concatenate([sample["x"] for sample in given[:3]]), given[3], True) < 0.05


def test_rows_that_are_bounded_before_a_logarithm() -> None:
    """As a spectrogram's: what bounds a layer's result from below is the host's, too, and so is a sum of squares."""
    rng = np.random.default_rng(1)
    values = {name: Value(name, (1, ROWS, WIDTH)) for name in ("x", "s", "t", "p")}
    values |= {name: Value(name, (1, ROWS, 8)) for name in ("mel", "floor", "y")}
    nodes = (
        Node("s", "square", ("x",), "s"),
        Node("t", "square", ("x",), "t"),
        Node("p", "add", ("s", "t"), "p"),
        Node("mel", "dense", ("p", "w"), "mel"),
        Node("floor", "clip", ("mel",), "floor", {"low": 1e-9, "high": float("inf")}),
        Node("y", "log", ("floor",), "y"),
    )
    weight = rng.uniform(0, 1, (8, WIDTH)).astype(np.float32)
    graph = Graph("mel", ("x",), ("y",), nodes, values, {"w": weight}, output_names=("y",))
    assert [node.name for node in unit_rows(graph).nodes if node.output.endswith(".unit")] == ["mel"]
    given = tokens(5.0)
    error = row_error(graph, np.concatenate([sample["x"] for sample in given[:3]]), given[3], True)
    assert error < 0.02
    assert row_error(graph, np.concatenate([sample["x"] for sample in given[:3]]), given[3], False) > 5 * error


TAPS, WINDOWS = 16, 24


def windows(stride: int = 8, pads: tuple[int, ...] = (0, 0, 0, 0), op: str = "square", tall: bool = False) -> Graph:
    """Two convolutions of windows of one signal, and what float operators make of them: its power."""
    rng = np.random.default_rng(2)
    length = (WINDOWS - 1) * stride + TAPS - sum(pads)

    def form(channels: int, size: int) -> tuple[int, int, int, int]:
        return (1, channels, size, 1) if tall else (1, channels, 1, size)

    attrs = {"strides": (stride, stride), "pads": pads, "dilation": (1, 1), "groups": 1}
    values = {name: Value(name, form(4, WINDOWS)) for name in ("c", "s", "cc", "ss", "y")}
    values |= {name: Value(name, form(1, length)) for name in ("x", "again")}
    constants = {name: rng.standard_normal((4, *form(1, TAPS)[1:])).astype(np.float32) for name in ("v", "w")}
    constants["b"] = rng.standard_normal(4).astype(np.float32) / 9
    nodes = (
        Node("c", "conv2d", ("x", "v", "b"), "c", attrs),
        Node("again", "reshape", ("x",), "again"),
        Node("s", "conv2d", ("again", "w"), "s", attrs),
        Node("cc", op, ("c",), "cc"),
        Node("ss", op, ("s",), "ss"),
        Node("y", "subtract", ("cc", "ss"), "y"),
    )
    return Graph("windows", ("x",), ("y",), nodes, values, constants, output_names=("y",))


def signals(graph: Graph) -> list[dict[str, Any]]:
    """Loud at the start, quiet then."""
    shape = graph.shape("x")
    fading = np.geomspace(1, 1e-3, max(shape), dtype=np.float32).reshape(shape)
    return [{"x": example(shape, seed) * fading} for seed in range(4)]


@pytest.mark.parametrize("tall", [False, True])
@pytest.mark.parametrize(("pads", "stride"), [((0, 0, 0, 0), 8), ((0, 0, 3, 5), 5), ((0, 0, 0, 0), 16), ((0,) * 4, 20)])
def test_windows_of_a_signal_stay_what_they_are(pads: tuple[int, ...], stride: int, tall: bool) -> None:
    graph = windows(stride, pads=(*pads[2:], *pads[:2]) if tall else pads, tall=tall)
    rewritten = unit_rows(graph)
    # Both share the windows, and nothing is left that nobody reads.
    assert all(rewritten.users()[node.output] or node.output in rewritten.outputs for node in rewritten.nodes)
    assert sum(node.op == "concat" for node in rewritten.nodes) == (TAPS > stride)
    assert sum(node.output.endswith(".unit") for node in rewritten.nodes) == 2
    for sample in signals(graph):
        (found,), (want,) = (execute.execute(of, sample).values() for of in (rewritten, graph))
        np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-6)


def test_quiet_windows_survive() -> None:
    graph = dataclasses.replace(windows(), outputs=("cc", "ss"), output_names=("cc", "ss"))
    given = signals(graph)
    calibration = np.concatenate([sample["x"] for sample in given[:3]])

    def quiet(rows: bool) -> float:
        integer = quantize(graph, calibration, steps=dataclasses.replace(ALL_STEPS, rows=rows)).graph
        own, want = (list(execute.execute(of, given[3]).values())[1][..., -8:] for of in (integer, graph))
        return float(np.linalg.norm(own - want) / np.linalg.norm(want))

    assert quiet(True) < 0.05
    assert quiet(False) > 0.3


def test_windows_that_stay() -> None:
    """Those that overlap a lot, and those whose result the VTA reads."""
    graph = windows(stride=1)
    assert unit_rows(graph) is graph
    graph = windows()
    size = {"size": (1, 2), "strides": (1, 2), "pads": (0,) * 4, "dilation": (1, 1)}
    nodes = (graph.nodes[0], Node("cc", "relu", ("c",), "cc"), Node("y", "max_pool2d", ("cc",), "y", size))
    values = {**graph.values, "y": Value("y", (1, 4, 1, WINDOWS // 2))}
    graph = dataclasses.replace(graph, nodes=nodes, values=values)
    assert unit_rows(graph) is graph
