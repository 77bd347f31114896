"""Channels that are scaled before quantization: the function stays, and int8 loses little."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from graph_models import example, needs
from hypothesis import given, settings
from hypothesis import strategies as st

from oneshot_ml2.models import execute
from oneshot_ml2.models.ir import Graph, Node, Value
from oneshot_ml2.models.quantize.channels import FIXED, channels_of
from oneshot_ml2.models.quantize.equalize import Equalized, equalized
from oneshot_ml2.models.quantize.observe import observed
from oneshot_ml2.models.quantize.qdq import calibrated
from oneshot_ml2.models.quantize.quantize import quantize
from oneshot_ml2.models.quantize.steps import NO_STEPS, Steps

needs("tvm")

CONV = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilation": (1, 1), "groups": 1}
SHAPE = (1, 16, 8, 8)


class Net:
    """A float graph, operator by operator."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Node] = []
        self.values = {"x": Value("x", SHAPE)}
        self.constants: dict[str, Any] = {}

    def add(self, op: str, *inputs: str, shape: tuple[int, ...] | None = None, **attrs: Any) -> str:
        name = f"{op}{len(self.nodes)}"
        shape = self.values[inputs[0]].shape if shape is None else shape
        self.nodes.append(Node(name, op, inputs, name, attrs))
        self.values[name] = Value(name, shape)
        return name

    def constant(self, array: Any) -> str:
        name = f"constant{len(self.constants)}"
        self.constants[name] = np.asarray(array, np.float32)
        return name

    def conv(self, x: str, outputs: int, groups: int = 1, scale: Any = 1.0, columns: Any = 1.0) -> str:
        """3x3, its rows times ``scale`` (K,), its columns times ``columns`` (C,)."""
        n, c, h, w = self.values[x].shape
        weight = self.rng.standard_normal((outputs, c // groups, 3, 3)) * (2 * groups / 9 / c) ** 0.5
        weight *= np.broadcast_to(scale, (outputs,))[:, None, None, None]
        weight *= np.broadcast_to(columns, (weight.shape[1],))[None, :, None, None]
        bias = self.rng.standard_normal(outputs) * 0.1 * scale
        names = self.constant(weight), self.constant(bias)
        return self.add("conv2d", x, *names, shape=(n, outputs, h, w), **(CONV | {"groups": groups}))

    def dense(self, x: str, outputs: int) -> str:
        inputs = self.values[x].shape[-1]
        names = (
            self.constant(self.rng.standard_normal((outputs, inputs)) / inputs**0.5),
            self.constant(np.zeros(outputs)),
        )
        return self.add("dense", x, *names, shape=(*self.values[x].shape[:-1], outputs))

    def graph(self, *outputs: str) -> Graph:
        return Graph(
            "g", ("x",), outputs, tuple(self.nodes), self.values, self.constants,
            output_names=tuple(f"y{i}" for i in range(len(outputs))),
        )  # fmt: skip


def rewritten(graph: Graph, samples: list[dict[str, Any]]) -> Equalized:
    quantized = calibrated(graph, dict.fromkeys(graph.values, 0))
    channels = channels_of(graph, quantized)
    seen = observed(graph, samples, lambda text: None, channels.ids)
    return equalized(graph, channels, seen, quantized)


def samples_of(graph: Graph, count: int = 4, seed: int = 1) -> list[dict[str, Any]]:
    return [{"x": example(graph.shape("x"), seed + index)} for index in range(count)]


def error(graph: Graph, steps: Steps, number: int = 0) -> float:
    """Of an output of the integer graph, on inputs that it was not calibrated on."""
    found = quantize(graph, np.concatenate([sample["x"] for sample in samples_of(graph)]), steps=steps)
    apart = size = 0.0
    for sample in samples_of(graph, 4, 50):
        want = list(execute.execute(graph, sample).values())[number]
        got = list(execute.execute(found.graph, sample).values())[number]
        apart, size = apart + float(np.square(got - want).sum()), size + float(np.square(want).sum())
    return (apart / size) ** 0.5


def separable(bound: float = np.inf) -> Graph:
    """Depthwise, ReLU, layer, as a folded batch normalization leaves them: channels of ranges 0.01 to 10."""
    net, ranges = Net(), np.geomspace(0.01, 10, 16)
    x = net.conv("x", 16, 16, ranges)
    x = net.add("relu", x) if bound == np.inf else net.add("clip", x, low=0.0, high=bound)
    return net.graph(net.conv(x, 16, columns=1 / ranges))


def mixed(seed: int) -> Graph:
    """Everything that factors go through: sums, parts, pools, moves, both kinds of matrix products."""
    net = Net(seed)
    spread = np.exp(net.rng.standard_normal(16) * 1.5)
    a = net.add("relu", net.conv("x", 16, scale=spread))
    b = net.add("relu", net.add("add", net.conv(a, 16, columns=1 / spread, scale=spread), a))
    c = net.add("clip", net.conv(b, 8, 2), low=0.0, high=0.7)
    pool = {"size": (2, 2), "strides": (2, 2), "pads": (0, 0, 0, 0), "dilation": (1, 1)}
    parts = [net.add("max_pool2d", name, shape=(1, n, 4, 4), **pool) for name, n in ((b, 16), (c, 8))]
    joined = net.add("concat", *parts, shape=(1, 24, 4, 4), axis=1)
    kept = net.add("slice", joined, shape=(1, 20, 4, 4), parts=((0, 1, 1), (0, 20, 1), (0, 4, 1), (0, 4, 1)))
    d = net.add("silu", net.conv(kept, 12))
    line = net.add("reshape", net.conv(d, 6), shape=(1, 96))
    tokens = net.add("permute", net.add("reshape", kept, shape=(1, 20, 16)), shape=(1, 16, 20), axes=(0, 2, 1))
    heads = net.add("reshape", net.dense(tokens, 20), shape=(1, 16, 4, 5))
    heads = net.add("reshape", net.add("permute", heads, shape=(1, 4, 16, 5), axes=(0, 2, 1, 3)), shape=(4, 16, 5))
    product = net.add("batch_matmul", heads, heads, shape=(4, 16, 16))
    return net.graph(net.dense(line, 7), product, joined)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10000))
def test_the_function_stays(seed: int) -> None:
    graph = mixed(seed)
    samples = samples_of(graph)
    way = rewritten(graph, samples)
    assert len(way.affine.factors) > 5
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    want = execute.execute(graph, samples[0], before.__setitem__)
    got = execute.execute(way.graph, samples[0], after.__setitem__)
    for a, b in zip(got.values(), want.values(), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())
    for name, factor in way.affine.factors.items():
        original = way.affine.originals.get(name, name)
        expected = np.asarray(before[original], np.float64)
        if name in way.affine.borders:
            expected = np.pad(expected, ((0, 0), (0, 0), (1, 1), (1, 1)))
        expected = expected * factor + way.affine.offset(name)
        # Sums of 144 products in float32 may cancel; half a step of int8 is 40 times as much.
        np.testing.assert_allclose(after[name], expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_what_is_scaled_together() -> None:
    net = Net()
    a = net.conv("x", 16)
    total = net.add("add", net.add("relu", a), net.conv("x", 16))
    joined = net.add("concat", total, net.conv("x", 4), shape=(1, 20, 8, 8), axis=1)
    line = net.add("reshape", joined, shape=(1, 20 * 64))
    product = net.add("batch_matmul", *[net.add("reshape", "x", shape=(4, 16, 16))] * 2, shape=(4, 16, 16))
    graph = net.graph(net.conv(joined, 4), net.dense(line, 3), product)
    ids = channels_of(graph, set(graph.values)).ids
    assert ids[a].shape == (1, 16, 1, 1) and len(np.unique(ids[a])) == 16
    np.testing.assert_array_equal(ids[total], ids[a])
    np.testing.assert_array_equal(ids[joined][:, :16], ids[a])
    assert not set(ids[joined][:, 16:].reshape(-1)) & set(ids[a].reshape(-1))
    np.testing.assert_array_equal(ids[line], np.repeat(ids[joined].reshape(1, -1), 64, 1))
    # Products of activations keep both operands; the input is one of them.
    assert (ids["x"] == FIXED).all() and (ids[product] == FIXED).all()


@pytest.mark.parametrize("bound", [np.inf, 6.0])
def test_channels_of_unequal_ranges(bound: float) -> None:
    graph = separable(bound)
    assert error(graph, NO_STEPS) > 0.3
    assert error(graph, Steps()) < 0.04


def test_parts_of_a_concatenation_keep_their_scales() -> None:
    """Boxes and scores: with one scale for both, the scores were all lost."""
    net = Net()
    boxes, scores = net.conv("x", 4, scale=300.0), net.conv("x", 16)
    cut = [((0, 1, 1), span, (0, 8, 1), (0, 8, 1)) for span in ((0, 4, 1), (4, 20, 1))]
    joined = net.add("concat", boxes, scores, shape=(1, 20, 8, 8), axis=1)
    graph = net.graph(joined)
    parts = [net.add("slice", joined, shape=(1, part[1][1] - part[1][0], 8, 8), parts=part) for part in cut]
    assert error(net.graph(*parts), NO_STEPS, 1) > 0.9
    for steps in (Steps(equalize=False), Steps()):
        found = quantize(graph, np.concatenate([sample["x"] for sample in samples_of(graph)]), steps=steps)
        sample = samples_of(graph, 1, 50)[0]
        (want,), (got,) = (execute.execute(of, sample).values() for of in (graph, found.graph))
        for part in (slice(0, 4), slice(4, 20)):
            assert np.linalg.norm(got[:, part] - want[:, part]) < 0.04 * np.linalg.norm(want[:, part])


def test_a_channel_that_is_never_seen_is_not_blown_up() -> None:
    net = Net()
    scale = np.r_[np.ones(15), 0.0]
    graph = net.graph(net.conv(net.add("relu", net.conv("x", 16, scale=scale)), 16))
    way = rewritten(graph, samples_of(graph))
    assert all(np.isfinite(factor).all() and (factor > 0).all() for factor in way.affine.factors.values())
    assert error(graph, Steps()) < 0.04


def test_ranges_hold_for_inputs_that_no_channel_was_fitted_to() -> None:
    """Samples whose channels differ in size: the ranges that four show clipped a third of all others' away."""
    net, rng = Net(), np.random.default_rng(1)
    x = "x"
    for _ in range(3):
        x = net.add("relu", net.conv(x, 16))
    graph = net.graph(net.conv(x, 16))
    shape = (36, *graph.shape("x")[1:])
    drawn = (np.exp(rng.standard_normal((*shape[:2], 1, 1))) * rng.standard_normal(shape)).astype(np.float32)
    found = quantize(graph, drawn[:4]).graph
    apart = size = 0.0
    for sample in drawn[4:]:
        ((want,), (got,)) = (execute.execute(of, {"x": sample[None]}).values() for of in (graph, found))
        apart, size = apart + float(np.square(got - want).sum()), size + float(np.square(want).sum())
    assert (apart / size) ** 0.5 < 0.25


def test_the_result_of_a_layer_is_moved_for_float_operators() -> None:
    """Channels around 20 that reach 5 to both sides: what is around 0 fills int8."""
    net = Net()
    y = net.conv("x", 16)
    net.constants[net.nodes[-1].inputs[2]] += 20
    graph = net.graph(y)
    assert error(graph, Steps()) < 0.7 * error(graph, Steps(offsets=False))


def padded(activation: str) -> Graph:
    """What a float operator makes, read by layers that pad it."""
    net = Net()
    made = net.add(activation, net.conv("x", 16, scale=np.geomspace(2, 20, 16)))
    return net.graph(net.add("add", net.conv(made, 16), net.conv(made, 16, 16)))


def test_what_the_host_makes_is_moved_where_layers_pad_it(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = padded("silu")
    # Of so small images zeros around them are a sixth of all products.
    assert not rewritten(graph, samples_of(graph)).affine.borders
    monkeypatch.setattr("oneshot_ml2.models.quantize.borders._BUDGET", 0.5)
    samples = np.concatenate([sample["x"] for sample in samples_of(graph)])
    moved, scaled = (
        next(error for error in quantize(graph, samples, steps=steps).errors if error.name == "silu1.scaled.quantize")
        for steps in (Steps(), Steps(offsets=False))
    )
    assert moved.alone is not None and scaled.alone is not None
    assert moved.alone < 0.9 * scaled.alone and moved.rms < scaled.rms
    way = rewritten(graph, samples_of(graph))
    assert way.affine.borders == {"silu1.scaled": (1, 1, 1, 1)}
    layers = [node for node in way.graph.nodes if node.op == "conv2d"]
    assert [node.attrs["pads"] for node in layers] == [(1, 1, 1, 1), (0, 0, 0, 0), (0, 0, 0, 0)]
    (sample,) = samples_of(graph, 1)
    (want,), (got,) = (execute.execute(of, sample).values() for of in (graph, way.graph))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_what_lies_around_zero_is_not_moved_to_pad_it() -> None:
    # Its middle is at 0, so a copy with a border would bring nothing.
    assert not rewritten(padded("tanh"), samples_of(padded("tanh"))).affine.borders


def test_ranges_of_what_ends_below_zero_grow_upwards() -> None:
    """What a SiLU makes: samples differ much in how far it goes up, and never by how far down."""
    net = Net()
    image = net.add("reshape", net.add("silu", "x"), shape=(64, 16))
    graph = net.graph(net.dense(image, 16))
    samples = [{"x": sample["x"] * 2.0**index} for index, sample in enumerate(samples_of(graph))]
    way = rewritten(graph, samples)
    (name,) = (name for name, original in way.affine.originals.items() if original == image)
    low, high = ((end - way.affine.offset(name)) / way.affine.factor(name) for end in (-1.0, 1.0))
    made: dict[str, Any] = {}
    execute.execute(graph, samples[-1], made.__setitem__)
    # About the middle, ranges that hold what is half as high again would end as far below 0 as a quarter of that.
    assert (high > made[image].max()).mean() > 0.5
    assert np.median(low / high) > -0.1


def test_a_moved_relu_has_all_of_int8() -> None:
    net = Net()
    made = net.add("relu", net.dense(net.add("reshape", "x", shape=(64, 16)), 16))
    graph = net.graph(net.dense(made, 16))
    samples = np.concatenate([sample["x"] for sample in samples_of(graph)])
    found = quantize(graph, samples).graph
    assert found.values[made].exponent == -7
    (sample,) = samples_of(graph, 1)
    values: dict[str, Any] = {}
    execute.execute(found, sample, values.__setitem__)
    assert values[made].min() == -128 and values[made].max() > 32


@pytest.mark.parametrize(("count", "moved"), [(4, False), (64, True)])
def test_channels_are_moved_only_if_calibration_shows_where_they_are(count: int, moved: bool) -> None:
    """Four elements of a channel say little of its middle; ranges around it clipped what other samples hold."""
    net = Net()
    net.values["x"] = Value("x", (1, 16))
    graph = net.graph(net.dense(net.add("tanh", "x"), 8))
    way = rewritten(graph, [{"x": 1 + example((1, 16), seed)} for seed in range(count)])
    assert bool(way.affine.offsets) == moved


def test_layers_of_one_weight_share_its_integers() -> None:
    net = Net()
    x = net.dense("x", 8)
    weight, bias = net.nodes[-1].inputs[1:]
    graph = net.graph(net.add("dense", net.add("tanh", x), weight, bias, shape=SHAPE))
    found = quantize(graph, np.stack([example(SHAPE[1:], seed) for seed in range(4)])).graph
    first, second = (node.arrays["weight"] for node in found.nodes if node.op == "int_dense")
    assert first is second


@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize(
    ("spoiled", "kept"),
    [((), "also moved"), ((True,), "0 of them also moved"), ((True, False), ""), ((False,), "also moved")],
)
def test_rewriting_is_kept_only_if_it_loses_less(
    fitted: bool, spoiled: tuple[bool, ...], kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is judged on samples that it does not come from: one that is ``fitted`` to these, and right on no others, is
    dropped like one that is wrong on all.
    """
    graph = mixed(0)
    samples = np.concatenate([sample["x"] for sample in samples_of(graph)])

    def made(graph: Graph, channels: Any, seen: Any, quantized: Any, offsets: bool, still: Any) -> Equalized:
        way = equalized(graph, channels, seen, quantized, offsets, still)
        if offsets not in spoiled or (fitted and len(seen.drawn["x"]) == len(samples)):
            return way
        constants = {
            name: array * np.float32(1.5) if name.endswith(".weight") else array
            for name, array in way.graph.constants.items()
        }
        return dataclasses.replace(way, graph=dataclasses.replace(way.graph, constants=constants))

    monkeypatch.setattr("oneshot_ml2.models.quantize.ways.equalized", made)
    lines = [line for line in quantize(graph, samples).changes if "tensors are scaled" in line]
    assert len(lines) == (kept != "") and all(kept in line for line in lines)
    assert all(("0 of them" in line) == ("0 of them" in kept) for line in lines)
