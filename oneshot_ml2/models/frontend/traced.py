"""The workloads of a PyTorch module, layer by layer, traced at fixed shapes: for lists of workloads to tune and trace.

Nothing is quantized here: every layer has the same nominal shift. Whole models are imported by `importer`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import operator
from collections import Counter
from typing import TYPE_CHECKING, Any

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.models.zoo import build, check_name, example_input
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.batch_matmul import BatchMatmul
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.conv2d_transpose import Conv2dTranspose
from oneshot_ml2.workload.dense import Dense
from oneshot_ml2.workload.epilogue import Epilogue
from oneshot_ml2.workload.lists import Layer

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.fx import GraphModule, Node

# Requantization of every traced layer: the shift of 8 of TVM's template (docs/hardware.md), int8 residuals 4 bits up.
SHIFT, RESIDUAL_SHIFT = 8, 4


def trace(name: str, size: int = 224, batch: int = 1, *, merge: bool = True) -> list[Layer]:
    """The convolutions, dense layers and matrix products of a model, in order of execution.

    ``size`` and ``batch`` as of :func:`example_input`. With ``merge``, equal workloads become one layer under the first
    one's name, with their ``count``.

    Raises:
        OneShotError: no such model, or a size that does not suit it.
    """
    check_name(name)
    import torch

    example = example_input(name, size, batch, "meta")
    with torch.device("meta"):
        module = build(name)
    return trace_module(module, example, merge=merge)


def trace_module(module: nn.Module, example: tuple[int, ...] | Tensor, *, merge: bool = True) -> list[Layer]:
    """The convolutions, dense layers and products of activations of a module, with the epilogues that its graph gives.

    ``example`` is an input, or the shape of a float32 one.

    What follows a layer and uses nothing else is fused into it: batch normalisation (its scale into the weights, the
    rest a bias), an addition whose other operand is computed earlier (a residual), a ReLU (clip 0..127). Without a
    ReLU the result saturates at int8. The module must be traceable by torch.fx, on any device; nothing is computed
    if that is ``meta``.

    Raises:
        OneShotError: not traceable, the input does not fit it, or a layer that is not supported.
    """
    import torch
    from torch import fx
    from torch.fx.passes.shape_prop import ShapeProp

    parameter = next(module.parameters(), None)
    device = None if parameter is None else parameter.device
    image = example if isinstance(example, torch.Tensor) else torch.empty(example, device=device)
    module.eval()
    try:
        graph = fx.symbolic_trace(module)
        # torch prints the traceback of what it raises again, with the whole node in its message.
        with torch.inference_mode(), contextlib.redirect_stderr(io.StringIO()):
            ShapeProp(graph).propagate(image)
    except Exception as error:
        reason = str(error.__cause__ or error).strip().split("\n")[0]
        shape = tuple(image.shape)
        raise OneShotError(f"{type(module).__name__} cannot be traced for input {shape}: {reason}") from error
    order = {node: index for index, node in enumerate(graph.graph.nodes)}
    layers = []
    for node in graph.graph.nodes:
        target = graph.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(target, (torch.nn.Conv2d, torch.nn.ConvTranspose2d, torch.nn.Linear)):
            epilogue = _epilogue(graph, node, target.bias is not None, order)
            layers.append(Layer(str(node.target), _workload(node, target, epilogue)))
        elif node.target in (operator.matmul, torch.matmul, torch.bmm, "matmul", "bmm") and node.op != "call_module":
            layers.append(_product(node))
        elif isinstance(target, torch.nn.MultiheadAttention) or "dot_product_attention" in str(node.target):
            raise OneShotError(
                f"{node.name}: layers alone are found in attention that is written with matmul and softmax; compile "
                "the whole model (oneshot-ml2 compile, or oneshot_ml2.compile)"
            )
    if not merge:
        return layers
    counts = Counter(layer.workload for layer in layers)
    first = {layer.workload: layer for layer in reversed(layers)}
    return [
        dataclasses.replace(layer, count=counts[layer.workload]) for layer in layers if first[layer.workload] is layer
    ]


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(node.meta["tensor_meta"].shape)


def _epilogue(graph: GraphModule, node: Node, bias: bool, order: dict[Node, int]) -> Epilogue:
    """Follow the only user of ``node`` as long as it can be fused."""
    import torch
    from torch import nn

    adds = (operator.add, operator.iadd, torch.add, "add", "add_")
    relus = (torch.relu, nn.functional.relu, nn.functional.relu6, "relu", "relu_")
    residual_shift = None
    low = -128
    while len(node.users) == 1:
        user = next(iter(node.users))
        module = graph.get_submodule(str(user.target)) if user.op == "call_module" else None
        if isinstance(module, nn.BatchNorm2d) and residual_shift is None:
            bias = True
        elif isinstance(module, (nn.ReLU, nn.ReLU6)) or user.target in relus:
            low = 0
            break
        elif user.target in adds and residual_shift is None:
            others = [arg for arg in user.all_input_nodes if arg is not node]
            # The last operand computed takes the sum; only then is the other one in memory.
            if len(others) != 1 or order[others[0]] > order[node] or _shape(others[0]) != _shape(node):
                break
            residual_shift = RESIDUAL_SHIFT
        elif not isinstance(module, (nn.Identity, nn.Dropout)):
            break
        node = user
    return Epilogue(bias=bias, residual_shift=residual_shift, shift=SHIFT, clip=(low, 127))


def _product(node: Node) -> Layer:
    """A product of two activations, with as many pairs as their leading axes have; its result saturates at int8."""
    left, right = (_shape(arg) for arg in node.args[:2])
    path = [str(entry[0]) for entry in (node.meta.get("nn_module_stack") or {}).values()]
    pairs = math.prod(_shape(node)[:-2])
    workload = BatchMatmul(pairs, left[-2], left[-1], right[-1], Epilogue(shift=SHIFT, clip=(-128, 127)))
    return Layer(".".join([*path[-1:], str(node.name)]), workload)


def _workload(node: Node, module: nn.Conv2d | nn.ConvTranspose2d | nn.Linear, epilogue: Epilogue) -> Workload:
    from torch import nn

    shape = _shape(node.args[0])
    if isinstance(module, nn.Linear):
        rows = 1
        for size in shape[:-1]:
            rows *= size
        return Dense(rows, module.in_features, module.out_features, epilogue)
    if module.padding_mode != "zeros":
        raise OneShotError(f"{node.target}: convolutions that pad with {module.padding_mode!r} are not supported")
    if isinstance(module.padding, str):
        raise OneShotError(f"{node.target}: padding {module.padding!r} is not supported; give it in numbers")
    n, c, h, w = shape
    r, s = module.kernel_size
    k, stride, pads = module.out_channels, module.stride, module.padding
    if isinstance(module, nn.ConvTranspose2d):
        if module.groups != 1 or module.dilation != (1, 1):
            raise OneShotError(f"{node.target}: transposed convolutions with groups or dilation are not supported")
        return Conv2dTranspose(n, c, h, w, k, r, s, stride, pads, module.output_padding, epilogue)
    return Conv2d(n, c, h, w, k, r, s, stride, pads, module.dilation, epilogue, module.groups)
