"""How the largest input of every window of an axis is found in place, in few passes over the accumulators.

A window of ``kernel`` inputs begins every ``stride`` inputs. What lies ``stride`` apart is a *phase*, in which a
window is a run of neighbours. The phases of a window are joined first, then runs double: the maximum of four
neighbours is that of two pairs. Every input has a *slot*; outputs end up in the first slots, in order. A pass is
``slot[dst + i] = max(slot[dst + i], slot[src + i])`` for ascending ``i``, with ``src > dst``, so that it never reads
what it wrote. A slot outside of the image holds the nearest input of the image, which every window that reaches the
slot contains.
"""

from __future__ import annotations

import numpy as np

from oneshot_ml2.common.kernels import njit
from oneshot_ml2.common.parts import part

# A pass over slots: first destination, first source, and how many.
PASS = np.dtype([(name, np.int64) for name in ("dst", "src", "count")])
# Inputs that are put into slots: first slot, phases and how many slots lie between two, blocks, which are neighbours;
# the first input among those that are loaded, and the steps to that of the next phase and of the next block.
PART = np.dtype(
    [(name, np.int64) for name in ("slot", "phases", "pitch", "blocks", "source", "phase_step", "block_step")]
)
# Phases of as many blocks, of which no more than these few kinds are together: first phase, phases, blocks, how many of
# these in front of the image have no slot, first slot.
_GROUP = np.dtype([(name, np.int64) for name in ("phase", "phases", "blocks", "without", "slot")])
_GROUPS = 8
# Passes double what they reach, and sizes have 16 bits.
_PASSES, _PARTS = 256, 64


@njit(cache=True, nogil=True)
def cut_windows(outputs, kernel, stride, before, end, step):  # type: ignore[no-untyped-def]
    """Slots, parts and passes of the windows of ``outputs`` neighbours.

    The first window begins ``before`` places in front of the image (0: in it), which ends ``end`` places after that
    beginning; every ``step``-th input is loaded, from the first one in a window on.

    Returns:
        Slots in all; leading outputs whose slots lie outside of the image; `PART` (n,) that fill all slots, and `PASS`
        (m,) in their order, neither across the last output's slot.
    """
    if outputs == 1:
        # One window: no two share anything.
        stride = kernel
    reach = min((outputs - 1) * stride + kernel, end)
    whole, rest = kernel // stride, kernel % stride
    main = rest if whole > 0 else np.int64(0)
    most = (reach + stride - 1) // stride
    blocks = min(outputs + whole - 1, most) if main > 0 else most
    groups = np.zeros(_GROUPS, dtype=_GROUP)
    passes, parts = np.empty(_PASSES, dtype=PASS), np.empty(_PARTS, dtype=PART)
    n_groups = _group_phases(min(stride, kernel, reach), stride, reach, main, groups)
    slots = _give_slots(groups[:n_groups], stride, before, main, blocks)
    n_passes = _join_phases(groups[:n_groups], outputs, main, blocks, passes)
    n_passes = _double_runs(outputs, whole, main, blocks, groups[0], passes, n_passes)
    n_parts = _place_main(outputs, stride, main, blocks, before, reach, step, parts)
    for i in range(n_groups):
        n_parts = _place_group(groups[i], stride, before, step, parts, n_parts)
    outside = min(max((before - main + stride - 1) // stride, 0), outputs)
    return slots, outside, parts[:n_parts], passes[:n_passes]


@part()
def _group_phases(phases, stride, reach, main, groups):  # type: ignore[no-untyped-def]
    """Fill the groups of all phases but the ``main`` one; returns how many there are."""
    n = 0
    for phase in range(phases):
        if phase == main:
            continue
        blocks = (reach - phase + stride - 1) // stride
        last = groups[max(n - 1, 0)]
        if n == 0 or phase == main + 1 or last.blocks != blocks:
            groups[n].phase, groups[n].blocks = phase, blocks
            n += 1
        groups[n - 1].phases += 1
    return n


@part()
def _give_slots(groups, stride, before, main, slots):  # type: ignore[no-untyped-def]
    """Slots of groups from ``slots`` on; returns how many there are then.

    A group that nothing is joined into needs none for what lies in front of the image.
    """
    joins = len(groups) > 1 and groups[1].phase < main
    for i in range(len(groups)):
        group = groups[i]
        if group.phases == 1 and not (i == 0 and joins):
            group.without = max((before - group.phase + stride - 1) // stride, 0)
        group.slot = slots
        slots += group.phases * (group.blocks - group.without)
    return slots


@part()
def _add_pass(outputs, dst, src, count, passes, n):  # type: ignore[no-untyped-def]
    """One more pass, cut where it would cross the last output's slot; returns how many there are."""
    while count > 0:
        run = count
        if dst < outputs:
            run = min(run, outputs - dst)
        if src < outputs:
            run = min(run, outputs - src)
        passes[n].dst, passes[n].src, passes[n].count = dst, src, run
        n += 1
        dst, src, count = dst + run, src + run, count - run
    return n


@part()
def _join_phases(groups, outputs, main, blocks, passes):  # type: ignore[no-untyped-def]
    """Phases of a group into its first one, by halves; those before the main one into phase 0, the others into it."""
    n = 0
    for i in range(len(groups)):
        group = groups[i]
        left, first = group.phases, group.without
        while left > 1:
            half = (left + 1) // 2
            n = _add_pass(
                outputs, group.slot, group.slot + half * group.blocks, (left - half) * group.blocks, passes, n
            )
            left = half
        if group.phase > main:
            n = _add_pass(outputs, first, group.slot, min(group.blocks, blocks) - first, passes, n)
        elif i > 0:
            n = _add_pass(outputs, groups[0].slot + first, group.slot, group.blocks - first, passes, n)
    return n


@part()
def _double_runs(outputs, whole, main, blocks, zero, passes, n):  # type: ignore[no-untyped-def]
    """Runs of ``whole`` blocks in the main phase, and the block after them that a window only begins.

    ``zero``: the group of phase 0, where another one is the main one.
    """
    if main > 0:
        n = _add_pass(outputs, zero.without, zero.slot, blocks - zero.without, passes, n)
    length = 1
    while length < whole:
        more = min(length, whole - length)
        # A run that has reached the last block has all that there is.
        n = _add_pass(outputs, 0, more, min(outputs + whole - length - more, blocks - length), passes, n)
        length += more
    if main > 0:
        # A window begins in front of the image by less than its kernel, so this block has a slot.
        n = _add_pass(outputs, 0, zero.slot + whole - zero.without, min(outputs, zero.blocks - whole), passes, n)
    return n


@part()
def _add_part(slot, phases, pitch, blocks, source, phase_step, block_step, parts, n):  # type: ignore[no-untyped-def]
    """One more part unless it is empty; returns how many there are."""
    if blocks <= 0:
        return n
    part = parts[n]
    part.slot, part.phases, part.pitch, part.blocks = slot, phases, pitch, blocks
    part.source, part.phase_step, part.block_step = source, phase_step, block_step
    return n + 1


@part()
def _place_main(outputs, stride, main, blocks, before, reach, step, parts):  # type: ignore[no-untyped-def]
    """Parts of the main phase: in front of the image, in it, and after it; returns how many."""
    first = max((before - main + stride - 1) // stride, 0)
    after = min((reach - main + stride - 1) // stride, blocks)
    bounds = (np.int64(0), first, after, blocks)
    n = 0
    for i in range(3):
        for half in range(2):
            begin = max(bounds[i], outputs) if half else bounds[i]
            end = bounds[i + 1] if half else min(bounds[i + 1], outputs)
            place = min(max(begin * stride + main, before), reach - 1)
            block_step = stride // step if i == 1 else np.int64(0)
            n = _add_part(begin, 1, 0, end - begin, (place - before) // step, 0, block_step, parts, n)
    return n


@part()
def _place_group(group, stride, before, step, parts, n):  # type: ignore[no-untyped-def]
    """Parts of a group of phases: those whose first blocks lie in front of the image have as many there."""
    phase, end, pitch = group.phase, group.phase + group.phases, group.blocks - group.without
    while phase < end:
        first = max((before - phase + stride - 1) // stride, 0)
        alike = phase
        while alike < end and max((before - alike + stride - 1) // stride, 0) == first:
            alike += 1
        slot, outside = group.slot + (phase - group.phase) * pitch, first - group.without
        n = _add_part(slot, alike - phase, pitch, outside, 0, 0, 0, parts, n)
        source = (first * stride + phase - before) // step
        n = _add_part(slot + outside, alike - phase, pitch, pitch - outside, source, 1, stride // step, parts, n)
        phase = alike
    return n
