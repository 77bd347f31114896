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
from dataclasses import dataclass
from typing import Any

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models.frontend.onnx_file import MICROSOFT, opset_of
from oneshot_ml2.models.host import quiet_stderr, whole_tvm
from oneshot_ml2.models.ops.importing import OnnxNode
from oneshot_ml2.models.ops.registry import onnx_imports

# Operators that TVM's importer knows as onnxruntime defines them.
_OF_MICROSOFT = ("Gelu", "FastGelu", "BiasGelu", "SkipLayerNormalization", "EmbedLayerNormalization")
# A message with a label of a node in it: before, node, after.
_NODE = re.compile(r"(operator \S+) \(((?:the )?node .*?')\)(.*)", re.DOTALL)
_ADVICE = (
    "; replace it by supported ones in the model (docs/models.md lists them), or compile the part of the model "
    "without it"
)
# Nodes of one kind that an error names; the others are counted.
_SHOWN = 4
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
    return ModelError(f"{where} is not supported{how}{_ADVICE}")


def together(errors: Sequence[ModelError]) -> ModelError:
    """One error of several, those alike but for their node side by side, and what helps once."""
    groups = dict[tuple[str, str], list[str]]()
    for error in errors:
        text = str(error).removesuffix(_ADVICE)
        parts = _NODE.fullmatch(text)
        before, node, after = parts.groups() if parts else (text, "", "")
        groups.setdefault((before, after), []).append(node)
    lines = []
    for (before, after), nodes in groups.items():
        different = list(dict.fromkeys(nodes))
        more = f" and {len(different) - _SHOWN} more" if len(different) > _SHOWN else ""
        names = ", ".join(name.removeprefix("node ") for name in different[:_SHOWN])
        many = f"nodes {names}{more}" if len(different) > 1 else different[0]
        lines.append(f"{before} ({many}){after}" if many else before)
    helps = any(str(error).endswith(_ADVICE) for error in errors)
    return ModelError("; ".join(lines) + (_ADVICE if helps else ""))


@dataclass(frozen=True)
class Imported:
    """A Relax module, and for each binding of its main function the label of the node that it is from.

    ``refused``: an error for each node that could not be imported; ``stand_ins``: the variables that are free in the
    module in place of what those make.
    """

    module: Any
    labels: Sequence[str] = ()
    refused: tuple[ModelError, ...] = ()
    stand_ins: tuple[Any, ...] = ()


def import_nodes(model: Any, supported: Sequence[str]) -> Imported:
    """The Relax module of an ONNX model.

    Raises:
        ModelError: names the nodes that TVM cannot import, where the others could not even be looked at, and if it does
            not know their operators, those ``supported``.
    """
    with whole_tvm():
        from tvm import relax
        from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter

    nodes = list(model.graph.node)
    made: list[tuple[Any, str]] = []
    refused: list[ModelError] = []
    stand_ins: list[Any] = []
    # Those, and what follows from them.
    doubtful: list[Any] = []

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
            follows = any(operand is other for operand in inputs for other in doubtful)
            try:
                if not _known(node):
                    raise not_supported(label(node), supported)
                own = onnx_imports().get(name) if node.domain in ("", "ai.onnx") else None
                if own is None:
                    result = super()._convert_operator(name, inputs, attributes, opset)
                else:
                    made_of = OnnxNode(self.bb, list(inputs), attributes, opset, len(node.output))
                    result = self.bb.normalize(own(made_of))
            except Exception as error:
                refusal = _refusal(model, node, error, supported)
                # What follows from what is missing may be none of its own.
                if not follows or str(refusal) == str(not_supported(label(node), supported)):
                    refused.append(refusal)
                result = _stand_in(model, node, inputs)
                parts = result.fields if isinstance(result, relax.Tuple) else (result,)
                stand_ins.extend(parts)
                doubtful.extend(parts)
                return result
            if follows:
                doubtful.extend((result, *(result.fields if isinstance(result, relax.Tuple) else ())))
            made.append((result, label(node)))
            return result

    flow = [node for node in nodes if any(entry.g.node or entry.graphs for entry in node.attribute)]
    if flow:
        raise together([not_supported(label(node), supported) for node in flow])
    # Inputs keep the names that the file has for them.
    importer = Importer({}, "float32", sanitize=False)
    try:
        # TVM prints the operands of what fails.
        with contextlib.redirect_stdout(io.StringIO()):
            module = importer.from_onnx(model.graph, opset_of(model))
    except Exception as error:
        if not refused:
            node = nodes[importer.begun - 1] if importer.begun else None
            refused.append(_refusal(model, node, error, supported))
        del importer
        made.clear()
        forget(error)
        raise together(refused) from error
    return Imported(module, _owners(module["main"], made), tuple(refused), tuple(stand_ins))


def forget(error: Exception) -> None:
    """Free what an import had begun that raised: TVM complains natively of it when it goes."""
    with quiet_stderr():
        for raised in filter(None, (error, error.__context__)):
            traceback.clear_frames(raised.__traceback__)
        gc.collect()


def _known(node: Any) -> bool:
    """Whether TVM's importer may look at a node: it does not look at domains."""
    if node.domain in ("", "ai.onnx"):
        # It takes this for one of another domain.
        return bool(node.op_type != "Attention")
    return node.domain == MICROSOFT and node.op_type in _OF_MICROSOFT


def _refusal(model: Any, node: Any, error: Exception, supported: Sequence[str]) -> ModelError:
    """Why a node, or the model, cannot be imported, from what was raised."""
    where = "the model" if node is None else label(node)
    if isinstance(error, ModelError):
        return error if str(error).startswith(where) else ModelError(f"{where} {error}")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    if isinstance(error, NotImplementedError) and lines[0].startswith("Operator "):
        return not_supported(where, supported)
    known = isinstance(error, (ValueError, NotImplementedError))
    why = _inconsistent(model) or (lines[0] if known else f"{type(error).__name__}: {lines[0]}")
    return ModelError(f"{where} cannot be imported by TVM: {plain(why)[:300]}")


def _stand_in(model: Any, node: Any, inputs: Sequence[Any]) -> Any:
    """A variable for a node's result, or a tuple of them, of the type that ONNX infers; if it infers none, of the first
    operand's, to go on with."""
    import onnx
    from tvm import relax

    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {entry.name: entry.type.tensor_type for entry in (*inferred.value_info, *inferred.output)}
    found = []
    for name in node.output:
        kind = types.get(name)
        if kind is not None and kind.HasField("shape") and all(dim.dim_value > 0 for dim in kind.shape.dim):
            dtype = str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
            found.append(relax.Var(name, relax.TensorType([dim.dim_value for dim in kind.shape.dim], dtype)))
        else:
            found.append(relax.Var(name, next(operand for operand in inputs if operand is not None).ty))
    return found[0] if len(found) == 1 else relax.Tuple(found)


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
