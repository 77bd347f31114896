"""Where values matter that functions with flat ends read: int8 has its steps there."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from graph_models import needs
from test_equalize import Net, samples_of

from oneshot_ml2.models import execute
from oneshot_ml2.models.ir import Graph
from oneshot_ml2.models.quantize.channels import channels_of
from oneshot_ml2.models.quantize.observe import observed
from oneshot_ml2.models.quantize.qdq import calibrated
from oneshot_ml2.models.quantize.quantize import quantize
from oneshot_ml2.models.quantize.saturation import limits

needs("tvm")


def net(function: str, reads: bool = False, scale: float = 8.0) -> tuple[Graph, str]:
    """What a layer makes goes through a function to another layer; ``reads``: the model returns it itself, too."""
    made = Net()
    sums = made.conv("x", 16, scale=scale)
    if function == "hard_swish":
        three, sixth = made.constant(3.0), made.constant(1 / 6)
        gate = made.add("clip", made.add("add", sums, three), low=0.0, high=6.0)
        found = made.add("multiply", sums, made.add("multiply", gate, sixth))
    elif function == "parts":
        halves = [
            made.add("slice", sums, shape=(1, 8, 8, 8), parts=((0, 1, 1), (at, at + 8, 1), (0, 8, 1), (0, 8, 1)))
            for at in (0, 8)
        ]
        found = made.add("multiply", made.add("tanh", halves[0]), made.add("sigmoid", halves[1]))
    else:
        found = made.add(function, sums)
    last = made.conv(found, 16)
    return made.graph(last, sums) if reads else made.graph(last), sums


def found(graph: Graph) -> dict[str, Any]:
    quantized = calibrated(graph, dict.fromkeys(graph.values, 0))
    channels = channels_of(graph, quantized)
    seen = observed(graph, samples_of(graph), lambda text: None, channels.ids)
    return limits(graph, channels, seen, quantized)


@pytest.mark.parametrize(
    ("function", "low", "high"),
    [("hard_swish", -3.0, np.inf), ("sigmoid", -6.2, 6.2), ("tanh", -3.1, 3.1), ("silu", -5.5, np.inf)],
)
def test_ends_are_those_of_the_function(function: str, low: float, high: float) -> None:
    graph, sums = net(function)
    below, above = found(graph)[sums]
    # The numbers that are looked at are some tenths apart; how far silu goes on depends on how high its channel is.
    np.testing.assert_allclose(below, low, rtol=0, atol=1.5 if function == "silu" else 0.8)
    np.testing.assert_allclose(above, high, rtol=0, atol=0.8)


def test_parts_of_a_value_count_each() -> None:
    graph, sums = net("parts")
    below, above = found(graph)[sums]
    # The sigmoid of one half needs more than the tanh of the other.
    np.testing.assert_allclose(below, -6.2, rtol=0, atol=0.8)
    np.testing.assert_allclose(above, 6.2, rtol=0, atol=0.8)


@pytest.mark.parametrize("function", ["exp", "prelu", "relu", "square"])
def test_other_functions_and_readers_leave_values_as_they_are(function: str) -> None:
    made = Net()
    sums = made.conv("x", 16, scale=8.0)
    more = (made.constant(0.1),) if function == "prelu" else ()
    graph = made.graph(made.conv(made.add(function, sums, *more), 16))
    assert sums not in found(graph)
    assert not found(net("hard_swish", reads=True)[0])


def test_small_sums_have_no_ends() -> None:
    assert not found(net("sigmoid", scale=0.1)[0])


@pytest.mark.parametrize(("function", "gain"), [("hard_swish", 0.95), ("sigmoid", 0.85), ("parts", 0.8)])
def test_steps_are_finer_and_what_is_cut_off_is_no_error(
    function: str, gain: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, sums = net(function, scale=40.0)
    # What the function makes, before the layer behind it.
    graph = dataclasses.replace(graph, nodes=graph.nodes[:-1], outputs=(graph.nodes[-2].output,))
    samples = np.concatenate([sample["x"] for sample in samples_of(graph)])
    held = samples_of(graph, 4, 50)

    def judged() -> tuple[float, float]:
        result = quantize(graph, samples)
        layer = next(node.name for node in graph.nodes if node.output == sums)
        (own,) = (error.rms for error in result.errors if error.name == layer)
        pairs = [[next(iter(execute.execute(of, x).values())) for of in (result.graph, graph)] for x in held]
        return own, float(np.sqrt(np.mean([np.square(got - want).mean() for got, want in pairs])))

    own, outputs = judged()
    monkeypatch.setattr("oneshot_ml2.models.quantize.saturation.limits", lambda *given: {})
    _, before = judged()
    assert outputs < gain * before
    assert own < 0.1
