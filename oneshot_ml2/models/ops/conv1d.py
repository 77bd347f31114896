"""One-dimensional convolution, as a two-dimensional one of images of height 1."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from oneshot_ml2.models.ir import Graph, Node, Value
from oneshot_ml2.models.ops.base import Op
from oneshot_ml2.models.ops.conv2d import read_weight
from oneshot_ml2.models.ops.conv2d_transpose import undilated
from oneshot_ml2.models.ops.pad import padded
from oneshot_ml2.models.ops.reading import ints
from oneshot_ml2.models.ops.registry import ops

if TYPE_CHECKING:
    from oneshot_ml2.models.ops.reading import Reader

# The attribute of the reshape that takes the height away again.
_HEIGHT_ONE = "height_one"


def _read(reader: Reader, call: Any) -> str:
    (n, k, out), (x, weight), attrs = reader.static(call), reader.tensors(call), call.attrs
    if attrs.data_layout != "NCW" or attrs.kernel_layout != "OIW":
        raise reader.refused(f"in layout {attrs.data_layout} is not supported; only NCW is")
    read_weight(reader, (x, weight))
    (dilation,) = ints(attrs.dilation)
    reach = (0, (reader.shape(weight)[2] - 1) * dilation)
    x, around = padded(reader, x, (0, 0, *ints(attrs.padding)), reach)
    image = reader.reshape(x, _with_height(reader.shape(x)))
    kernel = reader.reshape(weight, _with_height(reader.shape(weight)))
    sums = reader.add(
        "conv2d", [image, kernel], (n, k, 1, out), strides=(1, *ints(attrs.strides)),
        pads=around, dilation=(1, dilation), groups=int(attrs.groups),
    )  # fmt: skip
    return reader.add("reshape", [sums], (n, k, out), **{_HEIGHT_ONE: True})


def _read_transposed(reader: Reader, call: Any) -> str:
    (n, k, out), (x, weight), attrs = reader.static(call), reader.tensors(call), call.attrs
    if attrs.data_layout != "NCW" or attrs.kernel_layout != "IOW":
        raise reader.refused(f"in layout {attrs.data_layout} is not supported; only NCW is")
    read_weight(reader, (x, weight))
    weight = undilated(reader, weight, ints(attrs.dilation))
    image = reader.reshape(x, _with_height(reader.shape(x)))
    kernel = reader.reshape(weight, _with_height(reader.shape(weight)))
    sums = reader.add(
        "conv2d_transpose", [image, kernel], (n, k, 1, out), strides=(1, *ints(attrs.strides)),
        pads=(0, 0, *ints(attrs.padding)), dilation=(1, 1), groups=int(attrs.groups),
        output_padding=(0, *ints(attrs.output_padding)),
    )  # fmt: skip
    return reader.add("reshape", [sums], (n, k, out), **{_HEIGHT_ONE: True})


def _with_height(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that broadcasts to (N, C, W), as one that broadcasts to (N, C, 1, W)."""
    *channels, width = (1,) * (3 - len(shape)) + tuple(shape)
    return (*channels, 1, width)


def _elementwise_on_images(graph: Graph) -> Graph:
    """Operators of single elements behind a one-dimensional convolution read and make images, as it does.

    A bias, a scale, a residual and a ReLU are then fused into it.
    """
    values, nodes = dict(graph.values), list[Node]()
    # What has no height -> the image that it is.
    images: dict[str, str] = {}

    def image(name: str) -> str:
        if name not in images:
            images[name] = f"{name}.image"
            values[images[name]] = Value(images[name], _with_height(graph.shape(name)))
            nodes.append(Node(images[name], "reshape", (name,), images[name]))
        return images[name]

    for node in graph.nodes:
        made = node.output
        if node.attrs.get(_HEIGHT_ONE):
            images[made] = node.inputs[0]
        elif ops()[node.op].elementwise and any(name in images for name in node.inputs):
            inputs, images[made] = tuple(image(name) for name in node.inputs), f"{made}.image"
            values[images[made]] = Value(images[made], _with_height(values[made].shape))
            nodes.append(dataclasses.replace(node, inputs=inputs, output=images[made]))
            node = Node(f"{made}.line", "reshape", (images[made],), made)
        nodes.append(node)
    return dataclasses.replace(graph, nodes=tuple(nodes), values=values) if images else graph


OPS = (
    Op(
        "conv1d",
        relax={"relax.nn.conv1d": _read},
        onnx_layers=("Conv",),
        torch_layers=("conv1d.default",),
        named="conv2d",
        rewrite=_elementwise_on_images,
    ),
    Op(
        "conv1d_transpose",
        relax={"relax.nn.conv1d_transpose": _read_transposed},
        torch_layers=("conv_transpose1d.default",),
        named="conv2d_transpose",
    ),
)
