"""Recurrent layers of a fixed length, step by step: products for the VTA, gates for the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models.ops.base import Array, Expr, Op

if TYPE_CHECKING:
    from oneshot_ml2.models.ops.importing import OnnxNode

# Of ONNX's: the gates of one step, in the order of its weights; and its activations, if a node names none.
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_ACTIVATIONS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
_FUNCTIONS = {"Sigmoid": "sigmoid", "Tanh": "tanh", "Relu": "nn.relu"}


@dataclass(frozen=True)
class _Direction:
    """One direction of a layer.

    ``inner``, ``outer``: the biases of what the step reads and of its last state, (gates * hidden,); ``recurrent``:
    the weight of the last state, transposed; ``peepholes``: of an LSTM, on its cell; ``functions``: the activations;
    ``hidden``: the size of the state; ``linear_first``: a GRU's ``linear_before_reset``.
    """

    node: OnnxNode
    inner: Array
    outer: Array
    recurrent: Array
    peepholes: Array | None
    functions: tuple[Callable[[Expr], Expr], ...]
    hidden: int
    linear_first: bool

    def gate(self, x: Expr, index: int, count: int = 1) -> Expr:
        """Some of the gates that lie side by side in ``x``."""
        begin = index * self.hidden
        return self.node.emit(self.node.op.strided_slice(x, [1], [begin], [begin + count * self.hidden]))

    def of_state(self, state: Expr, begin: int, end: int, bias: bool = False) -> Expr:
        """The products of a state with the weights of some gates."""
        node, part = self.node, slice(begin * self.hidden, end * self.hidden)
        product = node.emit(node.op.matmul(state, node.constant(np.ascontiguousarray(self.recurrent[:, part]))))
        return node.emit(node.op.add(product, node.constant(self.outer[part]))) if bias else product

    def lstm(self, x: Expr, state: Expr, cell: Expr) -> tuple[Expr, Expr]:
        node, (f, g, h) = self.node, self.functions
        emit, op = node.emit, node.op
        gates = emit(op.add(self.of_state(state, 0, 4), x))
        parts = [self.gate(gates, index) for index in range(4)]
        peep = [None] * 3 if self.peepholes is None else np.split(self.peepholes, 3)

        def seen(index: int, which: int, looks: Expr) -> Expr:
            if peep[which] is None:
                return parts[index]
            return emit(op.add(parts[index], emit(op.multiply(looks, node.constant(peep[which])))))

        # ONNX's order of the gates: input, output, forget, cell.
        entry, forget = f(seen(0, 0, cell)), f(seen(2, 2, cell))
        cell = emit(op.add(emit(op.multiply(forget, cell)), emit(op.multiply(entry, g(parts[3])))))
        return emit(op.multiply(f(seen(1, 1, cell)), h(cell))), cell

    def gru(self, x: Expr, state: Expr, cell: Expr) -> tuple[Expr, Expr]:
        node, (f, g) = self.node, self.functions
        emit, op = node.emit, node.op
        if self.linear_first:
            products = self.of_state(state, 0, 3, bias=True)
            gates = emit(op.add(self.gate(products, 0, 2), self.gate(x, 0, 2)))
        else:
            gates = emit(op.add(self.of_state(state, 0, 2), self.gate(x, 0, 2)))
        update, reset = f(self.gate(gates, 0)), f(self.gate(gates, 1))
        if self.linear_first:
            hidden = emit(op.multiply(reset, self.gate(products, 2)))
        else:
            hidden = self.of_state(emit(op.multiply(reset, state)), 2, 3)
        new = g(emit(op.add(hidden, self.gate(x, 2))))
        # (1 - z) * new + z * state, with one product.
        kept = emit(op.multiply(update, emit(op.subtract(state, new))))
        return emit(op.add(new, kept)), cell

    def rnn(self, x: Expr, state: Expr, cell: Expr) -> tuple[Expr, Expr]:
        node = self.node
        return self.functions[0](node.emit(node.op.add(self.of_state(state, 0, 1), x))), cell


def _functions(node: OnnxNode, kind: str, directions: int) -> list[tuple[Callable[[Expr], Expr], ...]]:
    """The activations of each direction."""
    default = _ACTIVATIONS[kind]
    names = [name.decode() for name in node.attribute("activations", ())] or list(default) * directions
    unknown = sorted({name for name in names if name.capitalize() not in _FUNCTIONS})
    if unknown:
        raise ModelError(f"has the activation {unknown[0]}; supported: {', '.join(_FUNCTIONS)}")

    def applied(name: str) -> Callable[[Expr], Expr]:
        op: Any = node.op
        for part in _FUNCTIONS[name.capitalize()].split("."):
            op = getattr(op, part)
        return lambda x: node.emit(op(x))

    return [tuple(applied(name) for name in names[i * len(default) :][: len(default)]) for i in range(directions)]


def _check(node: OnnxNode, steps: int) -> None:
    """Refuse what changes the sums, and lengths that differ."""
    if node.attribute("clip", None) is not None or node.attribute("input_forget", 0):
        raise ModelError("with clip or input_forget is not supported; export the layer without")
    lengths = node.array(4)
    if lengths is not None and np.any(lengths != steps):
        raise ModelError(f"has sequences of other lengths than its {steps} steps; only full ones are supported")


def _import(kind: str) -> Any:
    def make(node: OnnxNode) -> Expr:
        op, emit = node.op, node.emit
        layout, x = bool(node.attribute("layout", 0)), node.input(0)
        if layout:
            x = emit(op.permute_dims(x, [1, 0, 2]))
        steps, batch, size = node.shape(x)
        _check(node, steps)
        weight, recurrent = node.array(1), node.array(2)
        assert weight is not None and recurrent is not None
        directions, hidden = weight.shape[0], recurrent.shape[-1]
        gates = _GATES[kind]
        given = node.array(3)
        bias = np.zeros((directions, 2 * gates * hidden), np.float32) if given is None else given
        peepholes = node.array(7) if kind == "LSTM" else None
        order = node.text("direction", "forward")
        functions = _functions(node, kind, directions)
        rows = emit(op.reshape(x, (steps * batch, size)))
        results = []
        for way in range(directions):
            inner, outer = np.split(bias[way], 2)
            linear_first = kind == "GRU" and bool(node.attribute("linear_before_reset", 0))
            # Both biases go into the sum of all steps at once, but of a GRU whose reset acts on the second.
            kept = np.concatenate([outer[: 2 * hidden], 0 * outer[2 * hidden :]]) if linear_first else outer
            direction = _Direction(
                node, inner + kept, outer - kept, np.ascontiguousarray(recurrent[way].T),
                None if peepholes is None else peepholes[way], functions[way], hidden, linear_first,
            )  # fmt: skip
            product = emit(op.matmul(rows, node.constant(np.ascontiguousarray(weight[way].T))))
            sums = emit(op.add(product, node.constant(direction.inner)))
            gathered = emit(op.reshape(sums, (steps, batch, gates * hidden)))
            state, cell = (_initial(node, index, way, batch, hidden, layout) for index in (5, 6))
            backwards = order == "reverse" or way == 1
            made: list[Expr] = []
            for step in range(steps - 1, -1, -1) if backwards else range(steps):
                line = emit(op.take(gathered, node.constant(step, "int64"), 0))
                state, cell = getattr(direction, kind.lower())(line, state, cell)
                made.append(state)
            results.append((made[::-1] if backwards else made, state, cell))
        return _outputs(node, kind, results, layout)

    return make


def _initial(node: OnnxNode, index: int, way: int, batch: int, hidden: int, layout: bool) -> Expr:
    """The first state or cell of a direction."""
    given = node.input(index)
    if given is None or node.shape(given)[-1] != hidden or len(node.shape(given)) != 3:
        return node.constant(np.zeros((batch, hidden)))
    return node.emit(node.op.take(given, node.constant(way, "int64"), 1 if layout else 0))


def _outputs(node: OnnxNode, kind: str, results: list[tuple[list[Expr], Expr, Expr]], layout: bool) -> Expr:
    """All states (steps, directions, batch, hidden), the last ones, and of an LSTM the last cells."""
    op, emit = node.op, node.emit
    steps = [emit(op.stack([made[step] for made, _, _ in results], 0)) for step in range(len(results[0][0]))]
    _, states, cells = zip(*results, strict=True)
    parts = [emit(op.stack(list(part), 0)) for part in (steps, states, cells)]
    if layout:
        turns = ([2, 0, 1, 3], [1, 0, 2], [1, 0, 2])
        parts = [emit(op.permute_dims(x, turn)) for x, turn in zip(parts, turns, strict=True)]
    return node.relax.Tuple(parts if kind == "LSTM" else parts[:2])


OPS = tuple(Op(kind.lower(), onnx=(kind,), onnx_import={kind: _import(kind)}) for kind in _GATES)
