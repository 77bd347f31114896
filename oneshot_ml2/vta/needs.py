"""What a program needs of a device, so that a board that gets something wrong is given none that needs it."""

from __future__ import annotations

import numpy as np

from oneshot_ml2.common.kernels import njit
from oneshot_ml2.common.parts import part
from oneshot_ml2.vta import tokens
from oneshot_ml2.vta.board import MOST_TOKENS, NEEDS, Board
from oneshot_ml2.vta.program import AluOp, Flag, Insns, Memory, Opcode

_BIT = {name: np.int64(1 << bit) for bit, name in enumerate(NEEDS)}
_DONE_ANY, _LOAD_UOP = _BIT["done_any"], _BIT["load_uop"]
_ACC, _ACC_STRIDES = _BIT["load_acc"], _BIT["load_acc_strides"]
_INP, _INP_STRIDES = _BIT["load_inp"], _BIT["load_inp_strides"]
_INP_PADS, _INP_BOTH = _BIT["load_inp_pads"], _BIT["load_inp_pads_strides"]
_WGT, _WGT_STRIDES = _BIT["load_wgt"], _BIT["load_wgt_strides"]
_STORE, _STORE_STRIDES = _BIT["store"], _BIT["store_strides"]
_GEMM, _RESET = _BIT["gemm"], _BIT["gemm_reset"]
_OUTER = np.array([_BIT[f"gemm_outer_{name}"] for name in ("acc", "inp", "wgt")])
_INNER = np.array([_BIT[f"gemm_inner_{name}"] for name in ("acc", "inp", "wgt")])
_ALU_OUTER = np.array([_BIT["alu_outer_dst"], _BIT["alu_outer_src"]])
_ALU_INNER = np.array([_BIT["alu_inner_dst"], _BIT["alu_inner_src"]])
# By operation: MIN, MAX, ADD, SHR.
_OF_IMMEDIATE = np.array([_BIT[f"{name}_imm"] for name in ("min", "max", "add", "shr")])
_OF_TENSOR = np.array([_BIT[f"{name}_tensor"] for name in ("min", "max", "add", "shr")])
_SHIFT_LEFT = _BIT["shl_imm"]
# By `tokens.QUEUES`.
_TOKENS = np.array([_BIT[f"tokens_{a}_{b}"] for a, _, b in (queue.split("-") for queue in tokens.QUEUES)])


@part()
def _of_move(insn):  # type: ignore[no-untyped-def]
    """What a LOAD or STORE needs that moves something."""
    apart = insn.y > 1 and insn.stride != insn.x
    if insn.op == Opcode.STORE:
        return _STORE | (_STORE_STRIDES if apart else 0)
    if insn.mem == Memory.UOP:
        return _LOAD_UOP
    if insn.mem == Memory.WGT:
        return _WGT | (_WGT_STRIDES if apart else 0)
    if insn.mem != Memory.INP:
        return _ACC | (_ACC_STRIDES if apart else 0)
    pads = insn.top + insn.bottom + insn.left + insn.right > 0
    found = _INP | (_INP_STRIDES if apart else 0) | (_INP_PADS if pads else 0)
    return found | (_INP_BOTH if apart and pads else 0)


@part()
def _of_loops(insn):  # type: ignore[no-untyped-def]
    """What a GEMM or an ALU operation needs; factors of loops of one iteration move nothing."""
    outer, inner = insn.iter_out > 1, insn.iter_in > 1
    found = np.int64(0)
    if insn.op == Opcode.GEMM:
        found |= _RESET if insn.reset else _GEMM
        found |= _OUTER[0] if outer and insn.dst_out else 0
        found |= _INNER[0] if inner and insn.dst_in else 0
        if not insn.reset:
            found |= _OUTER[1] if outer and insn.src_out else 0
            found |= _OUTER[2] if outer and insn.wgt_out else 0
            found |= _INNER[1] if inner and insn.src_in else 0
            found |= _INNER[2] if inner and insn.wgt_in else 0
        return found
    found |= _ALU_OUTER[0] if outer and insn.dst_out else 0
    found |= _ALU_INNER[0] if inner and insn.dst_in else 0
    if not insn.use_imm:
        # With an immediate the source is the destination.
        found |= _ALU_OUTER[1] if outer and insn.src_out else 0
        found |= _ALU_INNER[1] if inner and insn.src_in else 0
    elif insn.alu_op == AluOp.SHR and insn.imm < 0:
        return found | _SHIFT_LEFT
    return found | (_OF_IMMEDIATE[insn.alu_op] if insn.use_imm else _OF_TENSOR[insn.alu_op])


@part()
def _of_tokens(insn):  # type: ignore[no-untyped-def]
    module, found = tokens.module_of(insn), np.int64(0)
    if insn.flags & Flag.PUSH_PREV and tokens.PUSHES_PREV[module] >= 0:
        found |= _TOKENS[tokens.PUSHES_PREV[module]]
    if insn.flags & Flag.PUSH_NEXT and tokens.PUSHES_NEXT[module] >= 0:
        found |= _TOKENS[tokens.PUSHES_NEXT[module]]
    return found


@njit(cache=True, nogil=True)
def needs(insns):  # type: ignore[no-untyped-def]
    """The bits of what instructions (n,) need, by `board.NEEDS`."""
    found = np.int64(0)
    if len(insns) and tokens.module_of(insns[0]) != tokens.COMPUTES:
        found |= _DONE_ANY
    for i in range(len(insns)):
        insn = insns[i]
        found |= _of_tokens(insn)
        if insn.op == Opcode.GEMM or insn.op == Opcode.ALU:
            found |= _of_loops(insn)
        elif (insn.op == Opcode.LOAD or insn.op == Opcode.STORE) and insn.x > 0:
            found |= _of_move(insn)
    return found


@part()
def _step(insn, module, counts):  # type: ignore[no-untyped-def]
    """Take an instruction's tokens and push its own; False where some are not there."""
    prev, after = tokens.POPS_PREV[module], tokens.POPS_NEXT[module]
    for flag, queue in ((Flag.POP_PREV, prev), (Flag.POP_NEXT, after)):
        if insn.flags & flag and queue >= 0 and counts[queue] == 0:
            return False
    tokens.move(insn, counts)
    return True


@njit(cache=True, nogil=True)
def _peak(insns, queue, order, sizes):  # type: ignore[no-untyped-def]
    """The most tokens that one queue can hold: the others run ahead of who takes them, as far as they can."""
    taker = tokens.LOADS if queue == 1 else tokens.STORES if queue == 2 else tokens.COMPUTES
    counts, heads, most = np.zeros(4, np.int64), np.zeros(3, np.int64), np.int64(0)
    while True:
        moved = True
        while moved:
            moved = False
            for module in range(3):
                while module != taker and heads[module] < sizes[module]:
                    if not _step(insns[order[module, heads[module]]], module, counts):
                        break
                    heads[module] += 1
                    moved = True
        most = max(most, counts[queue])
        if heads[taker] == sizes[taker] or not _step(insns[order[taker, heads[taker]]], taker, counts):
            return most
        heads[taker] += 1


@njit(cache=True, nogil=True)
def most_tokens(insns):  # type: ignore[no-untyped-def]
    """The most tokens that any queue can hold while instructions (n,) run, whatever each takes."""
    order, sizes = np.empty((3, len(insns)), np.int64), np.zeros(3, np.int64)
    for i in range(len(insns)):
        module = tokens.module_of(insns[i])
        order[module, sizes[module]] = i
        sizes[module] += 1
    most = np.int64(0)
    for queue in range(4):
        most = max(most, _peak(insns, queue, order, sizes))
    return most


def allows(board: Board, insns: Insns) -> bool:
    """Whether a board can run a program's instructions (n,), as far as `Board.restricts` goes."""
    if board.mask and needs(insns) & board.mask:
        return False
    return board.tokens >= MOST_TOKENS or most_tokens(insns) <= board.tokens


def names(insns: Insns) -> tuple[str, ...]:
    """Those of `board.NEEDS` that instructions (n,) need."""
    found = int(needs(np.ascontiguousarray(insns)))
    return tuple(name for bit, name in enumerate(NEEDS) if found >> bit & 1)
