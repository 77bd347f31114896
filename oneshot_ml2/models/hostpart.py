"""What a compiled model's host does, as a file: the steps of its integer graph, and the launches between them.

TVM's library holds the same as native code; this is what `c_export` makes C of, and what its reference executes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common import arrays
from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.common.reading import parse_json, whole_number
from oneshot_ml2.models.ir import Graph, Node, Value
from oneshot_ml2.models.layout import Segment
from oneshot_ml2.models.ops.registry import ops

_STEPS = "steps"
# What only compiling needs of a node.
_LEFT_OUT = ("workload", "reason", "unscheduled", "weight_scale")
_MOST_DIMENSIONS = 32


@dataclass(frozen=True)
class Launch:
    """A submission: its number, the values that it reads and those that it makes, in the order of its ports."""

    number: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class HostPart:
    """Steps in an order in which they can be executed, and what they work on; see `ir.Graph`."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    steps: tuple[Node | Launch, ...]
    values: Mapping[str, Value]
    constants: Mapping[str, NDArray[Any]] = field(repr=False)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The steps that the host computes."""
        return tuple(step for step in self.steps if isinstance(step, Node))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a value or constant."""
        return self.values[name].shape if name in self.values else tuple(self.constants[name].shape)


def host_part(graph: Graph, steps: Sequence[Node | Segment]) -> HostPart:
    """The host's part of an integer graph whose ``steps`` are those of `layout.arrange`."""
    made: list[Node | Launch] = []
    for step in steps:
        if isinstance(step, Node):
            made.append(step)
        else:
            number = sum(isinstance(one, Launch) for one in made)
            made.append(Launch(number, tuple(name for name, _ in step.inputs), step.outputs))
    read = {name for step in made for name in step.inputs} | set(graph.outputs)
    written = {name for step in made for name in _outputs(step)}
    values = {name: value for name, value in graph.values.items() if name in written or name in graph.inputs}
    constants = {name: array for name, array in graph.constants.items() if name in read}
    return HostPart(graph.inputs, graph.outputs, tuple(made), values, constants)


def _outputs(step: Node | Launch) -> tuple[str, ...]:
    return step.outputs if isinstance(step, Launch) else (step.output,)


# Writing ---------------------------------------------------------------------------------------
def to_bytes(part: HostPart) -> bytes:
    """The content of its file, an ``.npz``."""
    kept: dict[str, NDArray[Any]] = {}

    def array(content: NDArray[Any]) -> int:
        kept[f"a{len(kept)}"] = np.asarray(content)
        return len(kept) - 1

    def plain(value: Any) -> Any:
        """An attribute as JSON; floats in hexadecimal, as infinite ones have no other form there."""
        if isinstance(value, np.ndarray):
            return {"array": array(value)}
        if isinstance(value, (tuple, list)):
            return {"tuple": [plain(one) for one in value]}
        if isinstance(value, (float, np.floating)):
            return {"real": float(value).hex()}
        return int(value) if isinstance(value, np.integer) else value

    def step(one: Node | Launch) -> dict[str, Any]:
        if isinstance(one, Launch):
            return {"launch": one.number, "inputs": one.inputs, "outputs": one.outputs}
        return {
            "name": one.name,
            "op": one.op,
            "inputs": one.inputs,
            "output": one.output,
            "attrs": {key: plain(value) for key, value in one.attrs.items() if key not in _LEFT_OUT},
            "arrays": {key: array(content) for key, content in one.arrays.items()},
        }

    text = json.dumps(
        {
            "inputs": part.inputs,
            "outputs": part.outputs,
            "values": [[value.name, value.shape, value.exponent, value.limit] for value in part.values.values()],
            "constants": {name: array(content) for name, content in part.constants.items()},
            "steps": [step(one) for one in part.steps],
        }
    )
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{_STEPS: np.frombuffer(text.encode(), np.uint8)}, **kept)  # type: ignore[arg-type]
    return buffer.getvalue()


# Reading ---------------------------------------------------------------------------------------
def from_bytes(content: bytes, what: object) -> HostPart:
    """The host's part from the content of its file, which ``what`` names in errors.

    Raises:
        ModelError: it is damaged, or holds steps that cannot be executed.
    """
    try:
        kept = arrays.read(content)
        if not isinstance(kept, dict):
            raise ValueError("no .npz file")
        part = _part(parse_json(kept[_STEPS].tobytes(), what, ModelError), kept)
        _check(part)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise ModelError(f"{what} is damaged ({error}); compile the model again") from error
    return part


def _part(tree: Mapping[str, Any], kept: Mapping[str, NDArray[Any]]) -> HostPart:
    def attribute(value: Any) -> Any:
        if isinstance(value, dict):
            ((kind, inner),) = value.items()
            if kind == "array":
                return kept[f"a{inner}"]
            return float.fromhex(inner) if kind == "real" else tuple(attribute(one) for one in inner)
        return value

    def step(entry: Mapping[str, Any]) -> Node | Launch:
        inputs = tuple(map(str, entry["inputs"]))
        if "launch" in entry:
            return Launch(whole_number(entry["launch"], "a launch"), inputs, tuple(map(str, entry["outputs"])))
        attrs = {key: attribute(value) for key, value in entry["attrs"].items()}
        own = {key: kept[f"a{number}"] for key, number in entry["arrays"].items()}
        return Node(str(entry["name"]), str(entry["op"]), inputs, str(entry["output"]), attrs, own)

    return HostPart(
        tuple(map(str, tree["inputs"])),
        tuple(map(str, tree["outputs"])),
        tuple(step(entry) for entry in tree["steps"]),
        {entry[0]: _value(*entry) for entry in tree["values"]},
        {name: kept[f"a{number}"] for name, number in tree["constants"].items()},
    )


def _value(name: Any, shape: Any, exponent: Any, limit: Any) -> Value:
    extents = tuple(whole_number(extent, "an extent", 0, 1 << 32) for extent in shape)
    if len(extents) > _MOST_DIMENSIONS:
        raise ValueError(f"a tensor of {len(extents)} dimensions")
    power = None if exponent is None else whole_number(exponent, "an exponent", -1000, 1000)
    return Value(str(name), extents, power, None if limit is None else whole_number(limit, "a limit", 1))


def _check(part: HostPart) -> None:
    """Raise ValueError unless every step reads what is there by then."""
    known = {*part.inputs, *part.constants}
    if missing := set(part.inputs) - set(part.values):
        raise ValueError(f"nothing is said of input {min(missing)!r}")
    for step in part.steps:
        if isinstance(step, Node) and step.op.removeprefix("int_") not in ops():
            raise ValueError(f"an operator {step.op!r}")
        if missing := set(step.inputs) - known:
            raise ValueError(f"nothing makes {min(missing)!r}")
        if missing := set(_outputs(step)) - set(part.values):
            raise ValueError(f"nothing is said of {min(missing)!r}")
        known.update(_outputs(step))
    if missing := set(part.outputs) - known:
        raise ValueError(f"nothing makes {min(missing)!r}")
    if [step.number for step in part.steps if isinstance(step, Launch)] != list(
        range(sum(isinstance(step, Launch) for step in part.steps))
    ):
        raise ValueError("launches in another order")
