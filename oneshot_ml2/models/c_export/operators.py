"""Operators of the host as calls of the C runtime (``c/runtime/om_ops.h``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models.c_export.tensors import Tensors
from oneshot_ml2.models.ir import Node
from oneshot_ml2.models.ops.pooling import counts
from oneshot_ml2.models.ops.registry import is_integer, op_of


@dataclass(frozen=True)
class Call:
    """A node about to be written: ``out`` and ``args``: the numbers of its tensors."""

    node: Node
    tensors: Tensors
    out: int
    args: tuple[int, ...]

    def shape(self, index: int) -> tuple[int, ...]:
        """Of an operand."""
        return self.tensors.tensors[self.args[index]].shape

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.tensors.tensors[self.out].shape

    @property
    def attrs(self) -> Any:
        return self.node.attrs

    def constant(self, content: Any, kind: Any) -> int:
        return self.tensors.constant(np.asarray(content, dtype=kind))

    def array(self, name: str, kind: Any) -> int:
        """One of the node's own arrays."""
        return self.constant(self.node.arrays[name], kind)

    def fitted(self, number: int) -> int:
        """An operand without axes of extent 1 in front that the result does not have."""
        shape, rank = self.tensors.tensors[number].shape, len(self.out_shape)
        return self.tensors.view(number, shape[len(shape) - rank :]) if len(shape) > rank else number


Lines: TypeAlias = "list[str]"
Emit: TypeAlias = Callable[[Call], Lines]


# C text ----------------------------------------------------------------------------------------
def real(number: float) -> str:
    """A float of C, exactly."""
    single = np.float32(number)
    if np.isinf(single):
        return "HUGE_VALF" if single > 0 else "-HUGE_VALF"
    return f"{float(single).hex()}f"


def _numbers(values: Iterable[int]) -> str:
    """A constant array; C has none without elements."""
    return f"(const int32_t[]){{{', '.join(map(str, values)) or '0'}}}"


def _call(name: str, *arguments: int | str) -> str:
    """Tensors by their numbers, everything else as it stands."""
    texts = (f"t + {argument}" if isinstance(argument, int) else argument for argument in arguments)
    return f"om_{name}({', '.join(texts)});"


def _window(attrs: Any, size: Sequence[int], groups: int = 1) -> str:
    top, _, left, _ = attrs["pads"]
    parts = [size, attrs["strides"], attrs.get("dilation", (1, 1))]
    pairs = ", ".join(f"{{{a}, {b}}}" for a, b in parts)
    return f"&(const struct om_window){{{pairs}, {top}, {left}, {groups}}}"


def _rounding(attrs: Any, shift: int = 0) -> str:
    low, high = attrs["clip"]
    residual = attrs.get("residual_shift") or 0
    return f"&(const struct om_rounding){{{shift}, {low}, {high}, {int(bool(attrs['half_even']))}, {residual}}}"


def _mask(axes: Iterable[int], rank: int) -> str:
    return f"{sum(1 << axis for axis in {axis % rank for axis in axes})}u"


# Groups of operators ---------------------------------------------------------------------------
def _plain(name: str) -> Emit:
    """Operands that are broadcast, and no attributes."""
    return lambda call: [_call(name, call.out, *map(call.fitted, call.args))]


def _reduced(name: str) -> Emit:
    return lambda call: [_call(name, call.out, call.args[0], _mask(call.attrs["axes"], len(call.shape(0))))]


def _along(name: str, *more: str) -> Emit:
    """Along the attribute ``axis``; ``more``: truth values."""

    def emit(call: Call) -> Lines:
        axis = call.attrs["axis"] % len(call.shape(0))
        truths = (str(int(bool(call.attrs[key]))) for key in more)
        return [_call(name, call.out, *call.args, str(axis), *truths)]

    return emit


def _clip(call: Call) -> Lines:
    return [_call("clip", call.out, call.args[0], real(call.attrs["low"]), real(call.attrs["high"]))]


# Moves -----------------------------------------------------------------------------------------
def _steps(shape: Sequence[int]) -> list[int]:
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _strided(call: Call, offset: int, steps: Iterable[int]) -> Lines:
    return [_call("strided", call.out, call.args[0], str(offset), _numbers(steps))]


def _permute(call: Call) -> Lines:
    steps = _steps(call.shape(0))
    return _strided(call, 0, (steps[axis] for axis in call.attrs["axes"]))


def _slice(call: Call) -> Lines:
    steps, parts = _steps(call.shape(0)), call.attrs["parts"]
    offset = sum(part[0] * step for part, step in zip(parts, steps, strict=True))
    return _strided(call, offset, (part[2] * step for part, step in zip(parts, steps, strict=True)))


def _broadcast(call: Call) -> Lines:
    shape, rank = call.shape(0), len(call.out_shape)
    steps = [step if extent > 1 else 0 for extent, step in zip(shape, _steps(shape))]
    return _strided(call, 0, [0] * (rank - len(shape)) + steps)


def _concat(call: Call) -> Lines:
    axis, begin, lines = call.attrs["axis"] % len(call.out_shape), 0, []
    for index, number in enumerate(call.args):
        lines.append(_call("concat", call.out, number, str(axis), str(begin)))
        begin += call.shape(index)[axis]
    return lines


def _pad(call: Call) -> Lines:
    before = _numbers(pair[0] for pair in call.attrs["width"])
    return [_call("pad", call.out, call.args[0], before, real(call.attrs.get("value", 0.0)))]


def _gather(call: Call) -> Lines:
    places = call.constant(call.attrs["places"], np.int32)
    return [_call("gather", call.out, call.args[0], places, str(call.attrs["axis"] % len(call.shape(0))))]


# Normalizations --------------------------------------------------------------------------------
def _scaled(call: Call, factors: Sequence[int]) -> Lines:
    """The result times a factor, plus another one."""
    names = ("multiply", "add")
    return [_call(name, call.out, call.out, call.fitted(one)) for name, one in zip(names, factors)]


def _normalized(centred: int) -> Emit:
    def emit(call: Call) -> Lines:
        mask, epsilon = _mask(call.attrs["axes"], len(call.out_shape)), real(call.attrs["epsilon"])
        return [_call("normalize", call.out, call.args[0], mask, epsilon, str(centred)), *_scaled(call, call.args[1:])]

    return emit


def _group_norm(call: Call) -> Lines:
    shape, view = call.out_shape, call.tensors.view
    groups = (shape[0], call.attrs["groups"], math.prod(shape[1:]) // call.attrs["groups"])
    column = (shape[1], *(1,) * (len(shape) - 2))
    head = _call(
        "normalize", view(call.out, groups), view(call.args[0], groups), "4u", real(call.attrs["epsilon"]), "1"
    )
    return [head, *_scaled(call, [view(one, column) for one in call.args[1:]])]


# Sums of products ------------------------------------------------------------------------------
def _matmul(turned: int) -> Emit:
    def emit(call: Call) -> Lines:
        if len(call.out_shape) < 2 or min(len(call.shape(0)), len(call.shape(1))) < 2:
            raise ModelError(f"{call.node.name} multiplies vectors; C has products of matrices only")
        product = _call("matmul", call.out, call.args[0], call.args[1], str(turned))
        return [product, *(_call("add", call.out, call.out, call.fitted(bias)) for bias in call.args[2:])]

    return emit


def _int_matmul(call: Call) -> Lines:
    own = "weight" in call.node.arrays
    weight = call.array("weight", np.int8) if own else call.args[1]
    residual: int | str = call.args[1] if call.attrs["residual_shift"] is not None else "NULL"
    rounding = _rounding(call.attrs, call.attrs["shift"])
    return [_call("int_matmul", call.out, call.args[0], weight, call.array("bias", np.int32), residual, rounding)]


def _convolution(name: str) -> Emit:
    def emit(call: Call) -> Lines:
        window = _window(call.attrs, call.shape(1)[2:], call.attrs.get("groups", 1))
        lines = [_call(name, call.out, call.args[0], call.args[1], window)]
        column = (call.out_shape[1], 1, 1)
        return lines + [_call("add", call.out, call.out, call.tensors.view(bias, column)) for bias in call.args[2:]]

    return emit


def _int_convolution(name: str) -> Emit:
    def emit(call: Call) -> Lines:
        weight = call.array("weight", np.int8)
        window = _window(call.attrs, call.node.arrays["weight"].shape[2:], call.attrs.get("groups", 1))
        residual: int | str = call.args[1] if call.attrs["residual_shift"] is not None else "NULL"
        rounding = _rounding(call.attrs, call.attrs["shift"])
        return [_call(name, call.out, call.args[0], weight, call.array("bias", np.int32), residual, window, rounding)]

    return emit


# Pools -----------------------------------------------------------------------------------------
def _max_pool(call: Call) -> Lines:
    small = call.tensors.tensors[call.out].item == 1
    return [_call("max_pool2d_int8" if small else "max_pool2d", call.out, call.args[0], _sized(call))]


def _sized(call: Call) -> str:
    return _window(call.attrs, call.attrs["size"])


def _divisors(call: Call, kind: Any) -> int:
    return call.constant(counts(call.shape(0), call.attrs, call.out_shape), kind)


def _avg_pool(call: Call) -> Lines:
    return [_call("avg_pool2d", call.out, call.args[0], _divisors(call, np.float32), _sized(call))]


def _int_avg_pool(call: Call) -> Lines:
    left, rounding = str(call.attrs["left"]), _rounding(call.attrs)
    divisors = _divisors(call, np.int32)
    return [_call("int_avg_pool2d", call.out, call.args[0], divisors, left, _sized(call), rounding)]


def _resample(call: Call) -> Lines:
    sources, weights = (
        call.constant(call.attrs[name], kind) for name, kind in (("sources", np.int32), ("weights", np.float32))
    )
    return [_call("resample", call.out, call.args[0], sources, weights, str(call.attrs["axis"] % len(call.out_shape)))]


# Scales ----------------------------------------------------------------------------------------
def _to(name: str) -> Emit:
    return lambda call: [_call(name, call.out, call.args[0], str(call.attrs["exponent"]))]


def _requantize(call: Call) -> Lines:
    return [_call("requantize", call.out, call.args[0], str(call.attrs["left"]), _rounding(call.attrs))]


def _int_add(call: Call) -> Lines:
    lefts = map(str, call.attrs["left"])
    return [_call("int_add", call.out, *call.args, *lefts, _rounding(call.attrs, call.attrs["shift"]))]


_PLAIN = (
    "relu", "abs", "sign", "floor", "ceil", "round", "trunc", "sqrt", "rsqrt", "square", "exp", "log", "sin", "cos",
    "tan", "atan", "tanh", "sigmoid", "gelu", "gelu_tanh", "silu", "softplus", "erf", "logical_not", "isnan", "isinf",
    "add", "subtract", "multiply", "divide", "power", "floor_mod", "mod", "floor_divide", "maximum", "minimum",
    "prelu", "equal", "not_equal", "less", "less_equal", "greater", "greater_equal", "logical_and", "logical_or",
    "logical_xor", "select", "adaptive_avg_pool2d",
)  # fmt: skip
_REDUCTIONS = ("reduce_sum", "reduce_prod", "reduce_max", "reduce_min", "mean", "variance", "std")

# Operator -> its calls; integers' forms are called ``int_`` and that.
EMITTERS: dict[str, Emit] = {
    **{name: _plain(name) for name in _PLAIN},
    **{name: _reduced(name) for name in _REDUCTIONS},
    **{name: _along(name) for name in ("softmax", "log_softmax", "argmax", "argmin", "take", "take_along")},
    **{name: _along(name, "largest") for name in ("topk_values", "topk_indices")},
    "cumsum": _along("cumsum", "exclusive"),
    "clip": _clip,
    # Another shape of the same memory.
    "reshape": lambda call: [],
    "permute": _permute,
    "slice": _slice,
    "broadcast": _broadcast,
    "concat": _concat,
    "pad": _pad,
    "pad_value": _pad,
    "gather": _gather,
    "layer_norm": _normalized(1),
    "rms_norm": _normalized(0),
    "group_norm": _group_norm,
    "matmul": _matmul(0),
    "dense": _matmul(1),
    "batch_matmul": _matmul(1),
    "int_dense": _int_matmul,
    "int_batch_matmul": _int_matmul,
    "conv2d": _convolution("conv2d"),
    "conv2d_transpose": _convolution("conv2d_transpose"),
    "int_conv2d": _int_convolution("int_conv2d"),
    "int_conv2d_transpose": _int_convolution("int_conv2d_transpose"),
    "max_pool2d": _max_pool,
    "avg_pool2d": _avg_pool,
    "int_avg_pool2d": _int_avg_pool,
    "int_patches": lambda call: [_call("patches", call.out, call.args[0], _sized(call))],
    "resample": _resample,
    "int_to_int8": _to("to_int8"),
    "int_to_float": _to("to_float"),
    "int_requantize": _requantize,
    "int_add": _int_add,
}


def form(node: Node) -> str:
    """What `EMITTERS` has a node by."""
    name = op_of(node.op).name
    return f"int_{name}" if is_integer(node) else name


def check_operators(nodes: Iterable[Node]) -> None:
    """Raise ModelError, which names them all, if nodes have operators that are not there in C."""
    missing: dict[str, list[str]] = {}
    for node in nodes:
        if form(node) not in EMITTERS:
            missing.setdefault(form(node), []).append(node.name)
    if missing:
        listed = ", ".join(f"{name} ({', '.join(nodes)})" for name, nodes in missing.items())
        raise ModelError(f"the host computes what is not there in C: {listed}; run the model with oneshot-ml2 run")
