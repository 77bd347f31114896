"""Models that were quantized elsewhere: the scales of their QDQ nodes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models import partition
from oneshot_ml2.models.ir import Graph, Node
from oneshot_ml2.models.ops.registry import ops
from oneshot_ml2.models.quantize.scales import covering_exponent, nearest_exponent
from oneshot_ml2.models.quantize.steps import ALL_STEPS, Steps

# Operators whose results lie between numbers that are known, whatever a quantizer leaves out.
_BOUNDED = ("softmax", "sigmoid")
# Those whose results lie within their operands'.
_WITHIN = (*partition.KEEP_SCALE, *partition.MOVES, "concat", "avg_pool2d")


def calibrated(
    graph: Graph, chosen: Mapping[str, int], steps: Steps = ALL_STEPS, entries: Collection[str] = ()
) -> dict[str, int]:
    """Values to quantize with their exponents, from the best ones of all values.

    Operators that only move data or pick the largest element keep the exponent. What follows from float operators only
    is quantized where a layer reads it, and where it is one of ``entries``. A ReLU's operand is not quantized apart
    from it.
    """
    heads, moves, inside = partition.HEADS, partition.KEEP_SCALE, integer_ops()
    users, producers = graph.users(), graph.producers()
    exponents: dict[str, int] = {}
    floats = only_floats_read(graph) if steps.floats else set()
    for name in graph.inputs:
        # As what a float operator makes, it stays float where only such operators read it.
        inner = any(node.op in (*inside, "add") for node in users[name])
        if graph.values[name].limit is None and inner and name not in floats:
            exponents[name] = chosen[name]
    for node in graph.nodes:
        feeds_a_layer = any(user.op in heads for user in users[node.output]) or node.output in entries
        constant = any(name in graph.constants for name in node.inputs) and node.op not in heads
        known = [name in exponents for name in node.inputs]
        if node.output in floats and node.op in ("add", "concat"):
            continue
        if node.op in moves:
            if all(known):
                exponents[node.output] = exponents[node.inputs[0]]
            elif feeds_a_layer:
                exponents[node.output] = chosen[node.output]
        elif node.op == "add" and not constant and any(known):
            # A layer can add what is quantized, too.
            for name in (*node.inputs, node.output):
                exponents.setdefault(name, chosen[name])
        elif feeds_a_layer or (node.op in inside and not constant and (node.op in heads or all(known))):
            exponents[node.output] = chosen[node.output]
    for node in graph.nodes:
        # conv2d/dense/add -> ReLU: one rounding, and one clip.
        if partition.bounds(node) is not None and single(graph, users, node.inputs[0]):
            producer = producers.get(node.inputs[0])
            if producer is not None and producer.op in (*heads, "add") and node.output in exponents:
                exponents.pop(node.inputs[0], None)
    for node in graph.nodes:
        # What only a concatenation reads takes its scale at once.
        for name in node.inputs if node.op == "concat" and node.output in exponents else ():
            producer = producers.get(name)
            if producer is not None and producer.op in (*heads, "add", "relu", "clip") and single(graph, users, name):
                exponents[name] = exponents[node.output]
    return exponents


def integer_ops() -> tuple[str, ...]:
    """Operators that compute with int8 where their operands are."""
    return (*partition.HEADS, *partition.KEEP_SCALE, *(op.name for op in ops().values() if op.scales))


def only_floats_read(graph: Graph) -> set[str]:
    """Values that no layer reads as they are: float operators do, or the model returns them.

    Of sums only those that a float operator reads, through moves or not: others may be a layer's epilogue.
    """
    users, inside = graph.users(), integer_ops()
    found, computed = set[str](), set[str]()
    makers = graph.producers()
    for name in reversed([*graph.inputs, *(node.output for node in graph.nodes)]):
        readers = users[name]
        # A constant that is no layer's bias is added in float32.
        inner = [
            user
            for user in readers
            if user.op in inside or (user.op == "add" and graph.constants.keys().isdisjoint(user.inputs))
        ]
        moves = [user for user in inner if user.op in partition.MOVES]
        if len(inner) < len(readers) or any(user.output in computed for user in moves):
            computed.add(name)
        sums = name in makers and makers[name].op == "add"
        if all(user.output in found and user.op not in partition.HEADS for user in inner):
            if not sums or name in computed or any(user.op in ("add", "concat") for user in inner):
                found.add(name)
    return found


def single(graph: Graph, users: Mapping[str, list[Node]], name: str) -> bool:
    return len(users[name]) == 1 and name not in graph.outputs


@dataclass(frozen=True)
class Grid:
    """The numbers that a quantize makes: ``(integer - zero) * scale``, of the integers from ``low`` to ``high``."""

    scale: float
    zero: int
    low: int
    high: int

    @property
    def symmetric(self) -> bool:
        return self.zero == 0 and self.low < 0

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the largest of them."""
        return (self.low - self.zero) * self.scale, (self.high - self.zero) * self.scale

    @property
    def exponent(self) -> int:
        """Of int8 with a power of two as its scale: the one nearest to the scale, or that of the range."""
        if self.symmetric:
            return nearest_exponent(self.scale)
        return covering_exponent(max(map(abs, self.bounds)))


@dataclass
class _Stripped:
    """A graph while its quantize and dequantize nodes are taken away.

    ``alias``: a value that is gone -> the one in its place; ``grids``: value -> what it is rounded to; ``tensors``:
    value -> the quantize that makes it.
    """

    graph: Graph
    kept: list[Node] = field(default_factory=list)
    alias: dict[str, str] = field(default_factory=dict)
    grids: dict[str, Grid] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.users = self.graph.users()

    def rounds(self, value: str, grid: Grid, quantize: str) -> None:
        self.grids[value], self.tensors[value], self.alias[quantize] = grid, quantize, value

    def quantize(self, node: Node, x: str) -> None:
        """Round ``x`` itself, if nothing reads it otherwise; else a copy, which is clipped if the grid says so."""
        grid = _grid(node)
        same = [user.op == "quantize" and _grid(user) == grid for user in self.users[node.inputs[0]]]
        alone = all(same) and node.inputs[0] not in self.graph.outputs
        if self.grids.get(x) == grid:
            self.alias[node.output] = x
        elif x not in self.grids and alone and not self.clips(x, grid):
            self.rounds(x, grid, node.output)
        elif x not in self.grids and alone and (twin := self.twin(x, grid)):
            self.alias[node.output] = twin
        else:
            low, high = grid.bounds
            clipped = x not in self.grids and self.clips(x, grid)
            op, attrs = ("clip", {"low": low, "high": high}) if clipped else ("identity", {})
            self.kept.append(dataclasses.replace(node, op=op, inputs=(x,), attrs=attrs))
            self.rounds(node.output, grid, node.output)

    def twin(self, x: str, grid: Grid) -> str | None:
        """The value of a clip of ``x`` to a grid that is there already."""
        copies = (node.output for node in self.kept if node.op == "clip" and node.inputs == (x,))
        return next((name for name in copies if self.grids.get(name) == grid), None)

    def clips(self, x: str, grid: Grid) -> bool:
        """Whether what is left of a grid bounds ``x``: quantizers leave a ReLU to it, and drop the operator."""
        maker = next((node for node in reversed(self.kept) if node.output == x), None)
        if grid.symmetric or maker is None or partition.bounds(maker) is not None or maker.op in _BOUNDED:
            return False
        low = grid.bounds[0]
        if maker.op in _WITHIN and all(name in self.grids for name in maker.inputs):
            return any(self.grids[name].bounds[0] < low - grid.scale for name in maker.inputs)
        return maker.op in (*partition.HEADS, "add") or low > -grid.scale

    def dequantize(self, node: Node, x: str) -> None:
        """``x`` as it is, which has to be rounded as the node says."""
        scale, zero = float(np.ravel(node.attrs["scale"])[0]), int(np.ravel(node.attrs["zero"])[0])
        grid = self.grids.get(x)
        if grid is None or (grid.scale, grid.zero) != (scale, zero):
            known = "nothing" if grid is None else f"{grid.scale:g}"
            raise ModelError(
                f"a dequantize has the scale {scale:g}, but its operand was quantized with {known}; "
                "quantize the model anew"
            )
        self.alias[node.output] = x


def _grid(node: Node) -> Grid:
    return Grid(float(node.attrs["scale"]), node.attrs["zero"], *node.attrs["range"])


def strip_qdq(graph: Graph) -> tuple[Graph, dict[str, int], list[str], dict[str, str]]:
    """A QDQ graph without quantize and dequantize nodes: (graph, exponents, changes, value -> quantize's output)."""
    work = _Stripped(graph)
    for node in graph.nodes:
        inputs = tuple(work.alias.get(name, name) for name in node.inputs)
        if node.op == "quantize":
            work.quantize(node, inputs[0])
        elif node.op == "dequantize":
            work.dequantize(node, inputs[0])
        else:
            work.kept.append(dataclasses.replace(node, inputs=inputs))
    outputs = tuple(work.alias.get(name, name) for name in graph.outputs)
    plain = dataclasses.replace(graph, nodes=tuple(work.kept), outputs=outputs)
    exponents = {name: grid.exponent for name, grid in work.grids.items()}
    changes = [*_changes(list(work.grids.values())), *_join_bounds(plain, exponents, work.tensors)]
    _spread(plain, exponents)
    return plain, exponents, changes, work.tensors


def _changes(grids: Sequence[Grid]) -> list[str]:
    """What becomes of the model's scales, as lines."""
    changes = []
    odd = [grid.scale / 2.0**grid.exponent for grid in grids if grid.symmetric and grid.scale != 2.0**grid.exponent]
    if odd:
        worst = max(abs(math.log2(ratio)) for ratio in odd)
        changes.append(
            f"{len(odd)} of {len(grids)} scales of activations are no powers of two and were rounded to the nearest "
            f"(by at most {2**worst - 1:.0%}); the layers' errors say what that costs"
        )
    others = sum(not grid.symmetric for grid in grids)
    if others:
        changes.append(
            f"{others} of {len(grids)} activations are unsigned or have zero points: their ranges were taken as "
            "calibration, for symmetric int8 with powers of two as scales; the layers' errors say what that costs"
        )
    return changes


def _join_bounds(graph: Graph, exponents: dict[str, int], tensors: dict[str, str]) -> list[str]:
    """Let layers take the scales of the ReLUs behind them; says where that changes one."""
    users, producers, changes = graph.users(), graph.producers(), []
    for node in graph.nodes:
        x = node.inputs[0] if node.inputs else ""
        producer = producers.get(x)
        if partition.bounds(node) is None or x not in exponents or node.output not in exponents:
            continue
        if producer is None or producer.op not in (*partition.HEADS, "add") or not single(graph, users, x):
            continue
        if exponents[x] != exponents[node.output]:
            changes.append(f"{producer.name} takes the scale 2**{exponents[node.output]} of the ReLU behind it")
        # With one scale, rounding and clipping before and after the ReLU are the same thing.
        del exponents[x]
        tensors.pop(x, None)
    return changes


def _spread(graph: Graph, exponents: dict[str, int]) -> None:
    """Give the moves around products, which have no scales of their own in the file, those of what they move."""
    users, producers = graph.users(), graph.producers()
    for node in graph.nodes:
        if node.op in partition.MOVES and node.inputs[0] in exponents:
            exponents.setdefault(node.output, exponents[node.inputs[0]])
    for node in reversed(graph.nodes):
        if node.op in ("reshape", "permute") and node.output in exponents:
            if single(graph, users, node.inputs[0]) and node.inputs[0] in producers:
                exponents.setdefault(node.inputs[0], exponents[node.output])
