"""What layers lose alone, what that costs the outputs, and the advice: by known values, and by a known fault."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graph_models import example, needs, small_net

from oneshot_ml2.models import execute, operators
from oneshot_ml2.models.frontend import from_torch
from oneshot_ml2.models.ir import Graph
from oneshot_ml2.models.quantize import alone, quantize
from oneshot_ml2.models.quantize.quantize import Quantized
from oneshot_ml2.models.quantize.scales import int8
from oneshot_ml2.models.quantize.steps import Steps

needs("tvm")

# Tensors keep the values that they have in the model.
PLAIN = Steps(floats=False, equalize=False, bias=False)


def quantized(net: Any, shape: tuple[int, ...]) -> tuple[Graph, Quantized]:
    import torch

    graph = from_torch.import_torch(net.eval(), (torch.zeros(shape),))
    return graph, quantize.quantize(graph, example(shape, 1), steps=PLAIN)


def chain(weight: float = 1.0, bias: float = 0.0) -> Any:
    """Two pointwise convolutions; channel 3 of what is between them is as much larger."""
    import torch
    from torch import nn

    with torch.random.fork_rng():
        torch.manual_seed(5)
        net = nn.Sequential(nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1))
    with torch.no_grad():
        net[0].weight[3] *= weight
        net[0].bias[3] += bias
        net[1].weight[:, 3] /= weight
    return net


def test_a_layer_alone_takes_exact_operands() -> None:
    graph, found = quantized(small_net(), (1, 3, 12, 12))
    tensors: dict[str, Any] = {}
    execute.execute(graph, found.sample, lambda name, array: tensors.__setitem__(name, array))
    seen: dict[str, Any] = {}
    alone.run_alone(found.graph, found.sample, tensors, seen.__setitem__)
    values, checked = found.graph.values, 0
    for node in found.graph.nodes:
        if node.output not in seen or not all(name in tensors for name in node.inputs):
            continue
        operands = []
        for name in node.inputs:
            exponent = values[name].exponent
            operands.append(tensors[name] if exponent is None else int8(tensors[name], exponent))
        assert np.array_equal(seen[node.output], operators.compute(node, operands, values[node.output].shape))
        checked += 1
    assert checked >= 3
    errors = {error.name: error for error in found.errors}
    for name, array in seen.items():
        known = alone.known_as(name, tensors)
        assert known is not None
        exponent = values[name].exponent
        own = alone.relative(np.ldexp(array.astype(np.float64), exponent), tensors[known].reshape(array.shape))
        assert errors[found.graph.producers()[name].name].alone == pytest.approx(own, rel=1e-5)


def test_the_first_layer_has_no_errors_before_it() -> None:
    _, found = quantized(chain(), (1, 16, 8, 8))
    first, last = (next(error for error in found.errors if error.name == name) for name in ("0", "1"))
    assert first.alone == pytest.approx(first.rms, rel=1e-5)
    assert last.alone is not None and 0 < last.alone < last.rms


def test_the_last_layer_costs_what_it_loses() -> None:
    """Its result is the output; what the one before loses goes through it."""
    _, found = quantized(chain(), (1, 16, 8, 8))
    last = next(hurt for hurt in found.hurt if hurt.layer == "1")
    assert last.outputs == pytest.approx(last.alone, rel=1e-5)
    assert [hurt.outputs for hurt in found.hurt] == sorted((hurt.outputs for hurt in found.hurt), reverse=True)
    assert len(found.hurt) <= alone.SHOWN


def test_a_wide_channel_is_named() -> None:
    _, found = quantized(chain(weight=64), (1, 16, 8, 8))
    hurt = {of.layer: of for of in found.hurt}
    assert hurt["0"].advice.startswith("channel 3 of its result reaches ")
    assert "divide that channel by about" in hurt["0"].advice and "(equalization)" in hurt["0"].advice
    assert {of.layer for of in found.hurt[:2]} == {"0", "1"} and found.hurt[1].outputs > 0.02
    assert hurt["1"].advice.startswith("channel 3 of its operand reaches ")
    assert "so the weights that read it are small beside the others, and round away" in hurt["1"].advice


@pytest.mark.parametrize(
    ("array", "exponent", "says"),
    [
        (np.r_[np.full(999, 0.01), 4.0].reshape(1, 1, 10, 100), -5, "x has few large values (up to 4, root mean"),
        (np.r_[np.full(990, 0.3), np.full(10, 2.0)].reshape(1, 1, 10, 100), -7, "of which the scale 2**-7 clips 1.00%"),
        (np.linspace(-1, 1, 1024).reshape(1, 4, 16, 16), -7, "x is rounded to the scale 2**-7 (largest 1,"),
        (
            np.stack([np.full((8, 8), of) for of in (0.1, 0.1, 6.4)])[None], -4,
            "channel 2 of x reaches 6.4, the median channel 0.1, and the scale 2**-4 serves both: divide that channel "
            "by about 64",
        ),
    ],
)  # fmt: skip
def test_advice_on_a_tensor(array: Any, exponent: int, says: str) -> None:
    assert says in alone._tensor_advice("x", array.astype(np.float32), exponent)


def test_advice_on_a_weight() -> None:
    weight = np.ones((8, 4, 1, 1), np.float32)
    assert "its weight is rounded (largest 1, its channels alike)" in alone._weight_advice(weight)
    weight[:, 2] = 16
    assert alone._weight_advice(weight).startswith("input channel 2 of its weight reaches 16, the median channel 1,")
    weight[5] *= 100
    assert alone._weight_advice(weight).startswith("output channel 5 of its weight reaches 1.6e+03")


def test_masks_of_the_least_numbers() -> None:
    """They are the same on both sides, and more than squares can hold."""
    lowest = np.finfo(np.float32).min
    assert alone.relative(np.array([lowest, 1.5]), np.array([lowest, 1.0])) == 0.5
    assert (alone.relative(np.zeros(2), np.zeros(2)), alone.relative(np.ones(2), np.zeros(2))) == (0.0, 1.0)
