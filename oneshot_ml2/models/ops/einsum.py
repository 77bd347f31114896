"""Einstein's sums as matrix products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models.ops.base import Expr, Op

if TYPE_CHECKING:
    from oneshot_ml2.models.ops.importing import OnnxNode

_SPARE = "ZYXWVUTSRQPONMLKJIHGFEDCBA"


def parsed(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """A letter for every axis of each operand, and those of the result; an ellipsis gets letters of its own.

    Raises:
        ModelError: an axis is twice in an operand, or the equation does not fit the operands.
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    spare = [letter for letter in _SPARE if letter not in equation]
    terms = []
    for term, rank in zip(left.split(","), ranks, strict=True):
        hidden = rank - len(term.replace("...", ""))
        term = term.replace("...", "".join(spare[:hidden][::-1]))
        if len(term) != rank or len(set(term)) != rank:
            raise ModelError(f"has the equation {equation!r}; only terms without an axis twice are supported")
        terms.append(term)
    longest = max((rank - len(term.replace("...", "")) for term, rank in zip(left.split(","), ranks)), default=0)
    ellipsis = "".join(spare[:longest][::-1])
    if not arrow:
        letters = "".join(terms)
        right = "..." + "".join(sorted({x for x in letters if letters.count(x) == 1} - set(ellipsis)))
    return terms, right.replace("...", ellipsis)


def _import(node: OnnxNode) -> Expr:
    operands = node.inputs
    terms, result = parsed(node.text("equation", ""), [len(node.shape(x)) for x in operands])
    x, letters = operands[0], terms[0]
    for index, (other, term) in enumerate(zip(operands[1:], terms[1:], strict=True), 2):
        needed = set(result).union(*terms[index:])
        x, letters = _pair(node, (x, letters), (other, term), needed)
    x, letters = _summed(node, x, letters, set(result))
    return _ordered(node, x, letters, result)


def _pair(node: OnnxNode, first: tuple[Expr, str], second: tuple[Expr, str], needed: set[str]) -> tuple[Expr, str]:
    """The product of two operands, summed over what only they have, and its letters."""
    a, left = _summed(node, *first, needed | set(second[1]))
    b, right = _summed(node, *second, needed | set(left))
    both = [x for x in left if x in right]
    batch, inner = "".join(x for x in both if x in needed), "".join(x for x in both if x not in needed)
    rows, columns = "".join(x for x in left if x not in both), "".join(x for x in right if x not in both)
    sizes = dict(zip(left + right, (*node.shape(a), *node.shape(b)), strict=True))
    a, b = _ordered(node, a, left, batch + rows + inner), _ordered(node, b, right, batch + inner + columns)

    def shape(*groups: str) -> tuple[int, ...]:
        return (*(sizes[x] for x in batch), *(math.prod(sizes[x] for x in group) for group in groups))

    a = node.emit(node.op.reshape(a, shape(rows, inner)))
    b = node.emit(node.op.reshape(b, shape(inner, columns)))
    # Without a sum it is no product of matrices.
    product = node.emit((node.op.matmul if inner else node.op.multiply)(a, b))
    made = batch + rows + columns
    return node.emit(node.op.reshape(product, tuple(sizes[x] for x in made))), made


def _summed(node: OnnxNode, x: Expr, letters: str, needed: set[str]) -> tuple[Expr, str]:
    """An operand without the axes that nothing else needs."""
    axes = [index for index, letter in enumerate(letters) if letter not in needed]
    if not axes:
        return x, letters
    return node.emit(node.op.sum(x, axes, False)), "".join(letter for letter in letters if letter in needed)


def _ordered(node: OnnxNode, x: Expr, letters: str, wanted: str) -> Expr:
    """An operand with its axes in another order."""
    return x if letters == wanted else node.emit(node.op.permute_dims(x, [letters.index(letter) for letter in wanted]))


OPS = (Op("einsum", onnx=("Einsum",), onnx_import={"Einsum": _import}),)
