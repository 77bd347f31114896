"""The shapes of an ONNX model's inputs: what users give, and what follows without them."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.common.names import unknown


def fix_shapes(model: Any, shapes: Mapping[str, Sequence[int]], file: str) -> list[str]:
    """Make every input's shape fixed, in place; a free batch becomes 1.

    Args:
        shapes: of inputs by name; a dimension that has a name is the same wherever that stands.
        file: what messages call the model.

    Returns:
        A line for each input whose batch became 1.

    Raises:
        ModelError: no such input, a shape that contradicts the model's or another one, or dimensions that stay free.
    """
    inputs = {entry.name: entry for entry in model.graph.input}
    sizes: dict[str, int] = {}
    for dim in (dim for entry in inputs.values() for dim in entry.type.tensor_type.shape.dim):
        # What Paddle's exporter calls every free dimension is no name that two of them share.
        if dim.dim_param and not dim.dim_param.strip("?"):
            dim.ClearField("dim_param")
    for name, shape in shapes.items():
        if name not in inputs:
            raise ModelError(f"{file}: {unknown('input', name, inputs)}")
        _give(inputs[name], shape, sizes)
    for entry in inputs.values():
        if not entry.type.tensor_type.HasField("shape"):
            raise ModelError(
                f"{file}: input {entry.name!r} has no shape, not even a number of dimensions; give it, for "
                f"example --shape {shlex.quote(entry.name)}=1,3,224,224"
            )
        for dim in _free(entry):
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]
    notes = _batches(inputs.values())
    if any(_free(entry) for entry in inputs.values()):
        raise ModelError(f"{file}: {_asked(inputs.values(), file)}")
    # What was inferred with the free ones is inferred anew.
    del model.graph.value_info[:]
    for entry in model.graph.output:
        entry.type.tensor_type.ClearField("shape")
    return notes


def _free(entry: Any) -> list[Any]:
    """The dimensions of an input that are not fixed."""
    return [dim for dim in entry.type.tensor_type.shape.dim if dim.dim_value <= 0]


def _give(entry: Any, shape: Sequence[int], sizes: dict[str, int]) -> None:
    """Set an input's shape to a given one, and note in ``sizes`` what its names stand for."""
    given = ",".join(str(size) for size in shape)
    if not shape or any(size < 1 for size in shape):
        raise ModelError(f"shape {given or '()'} of input {entry.name!r} is none; allowed: numbers above 0")
    tensor = entry.type.tensor_type
    if not tensor.HasField("shape"):
        for _ in shape:
            tensor.shape.dim.add()
    if len(shape) != len(tensor.shape.dim):
        raise ModelError(f"shape {given} of input {entry.name!r} has {len(shape)} axes; the model's {_form(entry)}")
    for dim, size in zip(tensor.shape.dim, shape, strict=True):
        wanted = dim.dim_value if dim.dim_value > 0 else sizes.get(dim.dim_param, size)
        if size != wanted:
            what = f"its {dim.dim_param} is {wanted} elsewhere" if dim.dim_param else f"the model's is {_form(entry)}"
            raise ModelError(f"shape {given} of input {entry.name!r} does not fit: {what}")
        if dim.dim_param:
            sizes[dim.dim_param] = size
        dim.dim_value = size


def _form(entry: Any) -> str:
    """An input's shape, with the names of its free dimensions: ``(N, 3, ?, ?)``."""
    dims = entry.type.tensor_type.shape.dim
    return f"({', '.join(str(dim.dim_value) if dim.dim_value > 0 else dim.dim_param or '?' for dim in dims)})"


def _batches(inputs: Any) -> list[str]:
    """Fix free first dimensions at 1, and say so; one whose name stands elsewhere than first is no batch."""
    inner = {dim.dim_param for entry in inputs for dim in list(entry.type.tensor_type.shape.dim)[1:] if dim.dim_param}
    notes = []
    for entry in inputs:
        first = next(iter(entry.type.tensor_type.shape.dim), None)
        if first is not None and first.dim_value <= 0 and first.dim_param not in inner:
            before = _form(entry)
            first.dim_value = 1
            notes.append(f"the batch of input {entry.name!r} {before} is free, and was fixed at 1")
    return notes


def _asked(inputs: Any, file: str) -> str:
    """What is free, and the options that fix it."""
    free, options = [], []
    unnamed = Counter[str]()
    for entry in inputs:
        dims = entry.type.tensor_type.shape.dim
        axes = [axis for axis, dim in enumerate(dims) if dim.dim_value <= 0]
        if not axes:
            continue
        which = f"dimension{'s' if len(axes) > 1 else ''} {' and '.join(str(axis) for axis in axes)}"
        free.append(f"{which} of input {entry.name!r} {_form(entry)}")
        sizes = []
        for dim in dims:
            unnamed["N"] += dim.dim_value <= 0 and not dim.dim_param
            named = dim.dim_param or f"N{unnamed['N']}"
            sizes.append(str(dim.dim_value) if dim.dim_value > 0 else "".join(filter(str.isalnum, named)).upper())
        options.append(f"--shape {shlex.quote(entry.name)}={','.join(sizes)}")
    verb = "is" if len(free) == 1 and "dimensions" not in free[0] else "are"
    command = f"oneshot-ml2 compile {shlex.quote(file)} {' '.join(options)}"
    return f"{' and '.join(free)} {verb} free; give sizes in place of the names in: {command}"
