"""Steps of recurrent layers: which layers are some, and that they are the host's where int8 loses too much."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from graph_models import needs

from oneshot_ml2.models import execute
from oneshot_ml2.models.compile import compile as compile_model
from oneshot_ml2.models.frontend import from_torch
from oneshot_ml2.models.ir import Graph, Node, Value
from oneshot_ml2.models.quantize import quantize, recurrences
from oneshot_ml2.models.quantize.steps import NO_STEPS

needs("tvm")
torch = pytest.importorskip("torch")
STEPS, INPUTS, HIDDEN = 40, 12, 24


class Recurrent(torch.nn.Module):
    """An LSTM whose state is ``strong`` times as heavy as it is drawn, and a layer behind it."""

    def __init__(self, strong: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = torch.nn.LSTM(INPUTS, HIDDEN, batch_first=True), torch.nn.Linear(HIDDEN, 4)
        with torch.no_grad():
            self.layer.weight_hh_l0 *= strong

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.layer(x)[0])
        return found


def imported(strong: float) -> Graph:
    return from_torch.import_torch(Recurrent(strong).eval(), (torch.zeros(1, STEPS, INPUTS),))


def drawn(count: int, seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal((count, STEPS, INPUTS), dtype=np.float32)


def shared(rows: int) -> Graph:
    """Three layers of one weight, one behind the other."""
    names = ("x", "a", "b", "c")
    values = {name: Value(name, (rows, 8)) for name in names}
    weight = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    nodes = tuple(Node(made, "dense", (read, "w"), made, {}) for read, made in itertools.pairwise(names))
    return Graph("g", ("x",), ("c",), nodes, values, {"w": weight}, output_names=("c",))


def test_which_layers_are_steps() -> None:
    graph = imported(1.0)
    found = recurrences.steps(graph)
    dense = [node.output for node in graph.nodes if node.op == "dense"]
    # Neither what reads the inputs of all steps nor the head; the first state is zeros, whose product is folded.
    assert found < set(dense) and len(found) == STEPS - 1
    assert recurrences.steps(shared(1)) == {"a", "b", "c"}
    assert recurrences.steps(shared(128)) == frozenset()


def test_products_of_the_host_are_the_same() -> None:
    graph, x = imported(2.0), drawn(1, 1)
    other = recurrences.in_float(graph, recurrences.steps(graph))
    assert sum(node.op == "matmul" for node in other.nodes) == STEPS - 1
    (want,), (got,) = (execute.execute(one, {"x": x}).values() for one in (graph, other))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_they_are_the_hosts_only_where_int8_loses_too_much() -> None:
    mild = quantize.quantize(imported(1.0), drawn(8, 2))
    assert not any("recurrent" in line for line in mild.changes)
    strong = imported(8.0)
    made = quantize.quantize(strong, drawn(8, 2))
    assert any(line.startswith(f"{STEPS - 1} products of recurrent layers are the host's") for line in made.changes)
    errors = []
    for graph in (made.graph, quantize.quantize(strong, drawn(8, 2), steps=NO_STEPS).graph):
        (want,), (got,) = (execute.execute(one, {"x": drawn(1, 3)}).values() for one in (strong, graph))
        errors.append(float(np.linalg.norm(got - want) / np.linalg.norm(want)))
    assert errors[0] < 0.5 * errors[1]


def test_such_a_model_is_compiled_and_exact() -> None:
    inputs = (torch.zeros(1, STEPS, INPUTS),)
    model = compile_model(Recurrent(8.0).eval(), "pynq", example_inputs=inputs, calibration=drawn(8, 2))
    on_vta, on_host = model.macs()
    assert model.ok and on_host == (STEPS - 1) * 4 * HIDDEN**2 < on_vta + on_host
    assert model.quantized is not None and any("recurrent" in line for line in model.quantized.changes)
