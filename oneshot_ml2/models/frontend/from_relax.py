"""TVM Relax functions into float graphs."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models.ir import WHOLE, Graph, Value
from oneshot_ml2.models.ops.importing import static
from oneshot_ml2.models.ops.reading import Reader
from oneshot_ml2.models.ops.registry import ops
from oneshot_ml2.models.simplify import simplify

SUPPORTED = sorted({name.split(".")[-1] for op in ops().values() if op.proposed for name in op.relax})
INPUTS = "only float32 inputs are supported, and int64 ones as indices of embeddings"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of PyTorch and TVM on their own internals."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def from_relax(
    module: Any,
    name: str,
    names: Mapping[str, list[tuple[str, str]]],
    supported: Sequence[str],
    output_names: Sequence[str] = (),
    labels: Sequence[str] = (),
) -> Graph:
    """The ``main`` function of a Relax module.

    ``names``: operator -> (layer's name, tensor's name), in order; ``supported``: what errors propose; ``labels``: what
    each binding is called in the model.
    """
    if "main" not in [variable.name_hint for variable in module.get_global_vars()]:
        raise ModelError("the model has no main function")
    function = module["main"]
    reader = Reader(supported)
    inputs = []
    for parameter in function.params:
        shape = static(parameter.ty, f"input {parameter.name!r}")
        kind = str(parameter.ty.dtype)
        if kind not in ("float32", "int64", "int32"):
            raise ModelError(f"input {parameter.name!r} is {kind}; {INPUTS}")
        if kind != "float32":
            reader.whole.add(parameter.name)
        inputs.append(parameter.name)
        reader.inputs.append(parameter.name)
        reader.env[parameter] = parameter.name
        reader.values[parameter.name] = Value(parameter.name, shape)
    bindings = [binding for block in function.body.blocks for binding in block.bindings]
    for binding, label in zip(bindings, labels or [""] * len(bindings), strict=True):
        op = getattr(getattr(binding.value, "op", None), "name", type(binding.value).__name__)
        reader.where = label or f"operator {op.split('.')[-1]}"
        reader.bind(binding.var, binding.value)
    reader.where = "an output of the model"
    result = reader.operand(function.body.body)
    outputs = result if isinstance(result, tuple) else (result,)
    for output in outputs:
        if output not in reader.values:
            raise ModelError("an output of the model does not depend on its inputs; remove it from the model")
    if len(output_names) != len(outputs):
        output_names = [f"output_{index}" for index in range(len(outputs))] if len(outputs) > 1 else ["output"]
    for name in reader.inputs:
        if name in reader.whole and reader.values[name].limit is None:
            reader.values[name] = replace(reader.values[name], limit=WHOLE)
    graph = Graph(
        name, tuple(inputs), tuple(outputs), tuple(reader.nodes), reader.values, reader.constants,
        output_names=tuple(output_names),
    )  # fmt: skip
    return simplify(graph, names)
