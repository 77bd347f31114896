"""TVM Relax functions into float graphs."""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models.frontend.origins import Imported, together
from oneshot_ml2.models.ir import WHOLE, Graph, Value
from oneshot_ml2.models.ops.importing import static
from oneshot_ml2.models.ops.reading import Reader
from oneshot_ml2.models.ops.registry import ops, readers
from oneshot_ml2.models.simplify import simplify

SUPPORTED = sorted({name.split(".")[-1] for op in ops().values() if op.proposed for name in op.relax})
INPUTS = "only float32 inputs are supported, whole numbers (int64, int32) and truth values"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of PyTorch and TVM on their own internals."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def from_relax(
    imported: Imported,
    name: str,
    names: Mapping[str, list[tuple[str, str]]],
    supported: Sequence[str],
    output_names: Sequence[str] = (),
) -> Graph:
    """The ``main`` function of a Relax module.

    Args:
        names: operator -> (layer's name, tensor's name), in order.
        supported: the operators that errors propose.

    Raises:
        ModelError: says of all that cannot be read at once.
    """
    graph = _read(imported, name, supported, output_names)
    # TVM's copy of the weights, which cycles hold, goes before folding makes another one.
    del imported
    gc.collect()
    return simplify(graph, names)


def _read(imported: Imported, name: str, supported: Sequence[str], output_names: Sequence[str]) -> Graph:
    """The ``main`` function as it is."""
    module, labels = imported.module, imported.labels
    if "main" not in [variable.name_hint for variable in module.get_global_vars()]:
        raise ModelError("the model has no main function")
    function = module["main"]
    reader = Reader(supported)
    for parameter in function.params:
        shape = static(parameter.ty, f"input {parameter.name!r}")
        kind = str(parameter.ty.dtype)
        if kind not in ("float32", "int64", "int32", "bool"):
            raise ModelError(f"input {parameter.name!r} is {kind}; {INPUTS}")
        if kind != "float32":
            reader.whole.add(parameter.name)
        reader.inputs.append(parameter.name)
        reader.env[parameter] = parameter.name
        # Truth values are 0 and 1.
        reader.values[parameter.name] = Value(parameter.name, shape, limit=2 if kind == "bool" else None)
    bindings = [binding for block in function.body.blocks for binding in block.bindings]
    _read_all(reader, bindings, labels or [""] * len(bindings), imported)
    reader.where = "an output of the model"
    result = reader.operand(function.body.body)
    outputs = result if isinstance(result, tuple) else (result,)
    for output in outputs:
        if output not in reader.values:
            raise ModelError("an output of the model does not depend on its inputs; remove it from the model")
    if len(output_names) != len(outputs):
        output_names = [f"output_{index}" for index in range(len(outputs))] if len(outputs) > 1 else ["output"]
    for entry in reader.inputs:
        if entry in reader.whole and reader.values[entry].limit is None:
            reader.values[entry] = replace(reader.values[entry], limit=WHOLE)
    return Graph(
        name, tuple(reader.inputs), tuple(outputs), tuple(reader.nodes), reader.values, reader.constants,
        output_names=tuple(output_names),
    )  # fmt: skip


def _read_all(reader: Reader, bindings: Sequence[Any], labels: Sequence[str], imported: Imported) -> None:
    """Read all bindings; where one cannot be, go on with a value in its place, to say of all that cannot.

    Raises:
        ModelError: names all of them.
    """
    from tvm import relax

    refused, lost = list(imported.refused), set(imported.stand_ins)
    for variable in lost:
        reader.env[variable] = _stand_in(reader, variable)
    for binding, label in zip(bindings, labels, strict=True):
        op = getattr(getattr(binding.value, "op", None), "name", type(binding.value).__name__)
        reader.where = label or f"operator {op.split('.')[-1]}"
        follows = not lost.isdisjoint(relax.analysis.free_vars(binding.value))
        try:
            reader.bind(binding.var, binding.value)
            if follows:
                lost.add(binding.var)
        except Exception as error:
            # What follows from what is missing may be none of its own.
            if not follows or (isinstance(binding.value, relax.Call) and op not in readers()):
                if not isinstance(error, ModelError):
                    raise
                refused.append(error)
            lost.add(binding.var)
            try:
                reader.env[binding.var] = _stand_in(reader, binding.var)
            except ModelError:
                # Without a shape there is no going on.
                break
    if refused:
        raise together(refused) from refused[0]


def _stand_in(reader: Reader, variable: Any) -> Any:
    """The name of a value, or a tuple of names, in place of one that could not be read."""

    def value(kind: Any) -> str:
        name = f"missing_{len(reader.values)}"
        reader.values[name] = Value(name, static(kind, reader.where))
        return name

    fields = getattr(variable.ty, "fields", None)
    return value(variable.ty) if fields is None else tuple(value(kind) for kind in fields)
