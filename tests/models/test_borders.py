"""Which borders the host puts around images, and what these cost."""

from __future__ import annotations

import numpy as np
import pytest
from graph_models import needs
from test_equalize import Net

from oneshot_ml2.models.quantize.borders import affordable, border_of
from oneshot_ml2.models.quantize.channels import channels_of
from oneshot_ml2.models.quantize.qdq import calibrated

needs("tvm")


def net(sizes: tuple[int, ...]) -> tuple[Net, list[str]]:
    """Layers that pad what a float operator makes of images of such sizes; a product, which costs the most."""
    made, values = Net(), []
    for size in sizes:
        shape = (1, 16, size, size)
        # Nothing is computed, so where it comes from does not matter.
        values.append(made.add("silu", "x", shape=shape))
        made.conv(values[-1], 16)
    made.dense(made.add("reshape", "x", shape=(64, 16)), 1024)
    return made, values


@pytest.mark.parametrize(
    ("budget", "sizes"), [(0.0, ()), (0.003, ()), (0.01, (8,)), (0.02, (16, 8)), (0.03, (32, 8)), (1.0, (32, 16, 8))]
)
def test_the_cheapest_borders_fit_the_budget(
    budget: float, sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oneshot_ml2.models.quantize.borders._BUDGET", budget)
    made, values = net((8, 32, 16))
    graph = made.graph(*(node.output for node in made.nodes if node.op in ("conv2d", "dense")))
    channels = channels_of(graph, calibrated(graph, dict.fromkeys(graph.values, 0)))
    layers = [node for node in graph.nodes if node.op in ("conv2d", "dense")]
    moved, borders = affordable(graph, channels, layers, dict.fromkeys(values))
    assert set(moved) == set(borders) and all(border == (1, 1, 1, 1) for border in borders.values())
    # An image of n by n has (3n - 2)^2 products of the 9 n^2 with elements of it; the other layer has 4096 of blocks.
    zeros = {name: 9 * n**2 - (3 * n - 2) ** 2 for name, n in zip(values, (8, 32, 16), strict=True)}
    total = sum(9 * n**2 for n in (8, 32, 16)) + 64 * 1024 * 16 / 16**2
    assert sum(zeros[name] for name in borders) <= budget * total
    # Relative to its layer, that of the largest image costs least; what is left of the budget goes to what fits it.
    assert list(borders) == [dict(zip((8, 32, 16), values, strict=True))[size] for size in sizes]


def test_readers_of_one_border() -> None:
    made, (value,) = net((8,))
    first = next(node for node in made.nodes if node.op == "conv2d")
    assert border_of([first, first]) == (1, 1, 1, 1)
    assert border_of([]) == (0, 0, 0, 0)
    assert border_of([first, next(node for node in made.nodes if node.op == "dense")]) is None
    assert border_of([next(node for node in made.nodes if node.output == value)]) is None
    assert np.prod(made.values[value].shape) == 1024
