"""ONNX models through TVM's importer, with a memory of which ONNX node each binding of the Relax function comes from.

TVM's names of operators mean nothing to who has an ONNX file: errors tell the node instead.
"""

from __future__ import annotations

import contextlib
import gc
import io
import re
import traceback
from collections.abc import Sequence
from typing import Any

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models.host import quiet_stderr, whole_tvm
from oneshot_ml2.models.ops.importing import OnnxNode
from oneshot_ml2.models.ops.registry import onnx_imports

# TVM's names in its own messages, e.g. `relax.nn.conv2d`, `R.Tensor`.
_RELAX = re.compile(r"\b(?:relax|R|tirx?)\.[A-Za-z_][\w.]*")


def label(node: Any) -> str:
    """An ONNX node for people: its operator, and its name, or what it computes if it has none."""
    domain = f"{node.domain}." if node.domain not in ("", "ai.onnx") else ""
    name = f"node {node.name!r}" if node.name else f"the node of {next(iter(node.output), '')!r}"
    return f"operator {domain}{node.op_type} ({name})"


def plain(message: str, instead: str = "the operator") -> str:
    """A message without Relax's names."""
    return _RELAX.sub(instead, message)


def not_supported(where: str, supported: Sequence[str]) -> ModelError:
    """The error of an operator that there is no way to compile; ``supported``: those that there are."""
    how = " with these attributes and operands" if where.split()[1] in supported else ""
    return ModelError(
        f"{where} is not supported{how}; replace it by supported ones in the model (docs/models.md lists them), or "
        "compile the part of the model without it"
    )


def import_nodes(model: Any, supported: Sequence[str]) -> tuple[Any, list[str]]:
    """The Relax module of an ONNX model, and for each binding of its main function the label of its node.

    Raises:
        ModelError: TVM cannot import a node; says which, and if it does not know its operator, those ``supported``.
    """
    with whole_tvm():
        from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter

    nodes = list(model.graph.node)
    for node in nodes:
        if any(attribute.g.node or attribute.graphs for attribute in node.attribute):
            raise not_supported(label(node), supported)
    made: list[tuple[Any, str]] = []

    class Importer(ONNXGraphImporter):  # type: ignore[misc]
        begun = 0

        def _check_for_unsupported_ops(self, graph: Any) -> None:
            """Left to the conversion of each, where it is known which node it is."""

        def _parse_attr(self, attributes: Any) -> Any:
            # The first that TVM does with a node.
            self.begun += 1
            return super()._parse_attr(attributes)

        def _convert_operator(self, name: str, inputs: Any, attributes: Any, opset: int) -> Any:
            node = nodes[self.begun - 1]
            own = onnx_imports().get(name) if node.domain in ("", "ai.onnx") else None
            if own is None:
                result = super()._convert_operator(name, inputs, attributes, opset)
            else:
                result = self.bb.normalize(own(OnnxNode(self.bb, list(inputs), attributes, opset, len(node.output))))
            made.append((result, label(node)))
            return result

    importer = Importer({}, "float32")
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    try:
        # TVM prints the operands of what fails.
        with contextlib.redirect_stdout(io.StringIO()):
            module = importer.from_onnx(model.graph, opset)
    except Exception as error:
        where = label(nodes[importer.begun - 1]) if importer.begun else "the model"
        # TVM complains natively of what it has begun, when that goes.
        with quiet_stderr():
            traceback.clear_frames(error.__traceback__)
            del importer
            made.clear()
            gc.collect()
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
        if isinstance(error, NotImplementedError) and lines[0].startswith("Operator "):
            raise not_supported(where, supported) from error
        if isinstance(error, ModelError):
            raise ModelError(f"{where} {error}") from error
        known = isinstance(error, (ValueError, NotImplementedError))
        why = _inconsistent(model) or (lines[0] if known else f"{type(error).__name__}: {lines[0]}")
        raise ModelError(f"{where} cannot be imported by TVM: {plain(why)[:300]}") from error
    return module, _owners(module["main"], made)


def _inconsistent(model: Any) -> str:
    """What ONNX's own inference finds wrong with the shapes of a model, naming the node; empty: nothing."""
    import onnx

    try:
        onnx.shape_inference.infer_shapes(model, strict_mode=True)
    except Exception as error:
        return next(iter(str(error).strip().splitlines()), "")
    return ""


def _owners(function: Any, made: Sequence[tuple[Any, str]]) -> list[str]:
    """The label of each binding: what a node's import gave, and before it what only that reads."""
    from tvm import relax

    owner: dict[Any, str] = {}
    for result, of in made:
        for part in result.fields if isinstance(result, relax.Tuple) else (result,):
            owner.setdefault(part, of)
    bindings = [binding for block in function.body.blocks for binding in block.bindings]
    labels: list[str] = []
    reader: dict[Any, str] = {}
    for binding in reversed(bindings):
        of = owner.get(binding.value) or owner.get(binding.var) or reader.get(binding.var, "")
        labels.append(of)
        for variable in relax.analysis.free_vars(binding.value):
            reader.setdefault(variable, of)
    return labels[::-1]
