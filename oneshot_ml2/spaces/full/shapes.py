"""The rectangles of memory instructions: how many move a block of a tensor, and of which sizes and strides."""

from __future__ import annotations

from oneshot_ml2.common.parts import part
from oneshot_ml2.vta.nest import MAX_SIZE


@part()
def moves_apart(nest) -> bool:  # type: ignore[no-untyped-def]
    """Whether every channel is moved by itself: of 1x1 kernels on images whose planes no 16-bit stride steps over.

    Such images could be one row (`nest.is_one_row`) but for their size. Those of other kernels that are as large have
    tiles of one channel only.
    """
    steps = nest.kh * nest.kw * nest.sh * nest.sw * nest.th * nest.tw
    return bool(nest.minor == 0 and steps == 1 and nest.ih * nest.iw > MAX_SIZE)


@part()
def input_is_compact(nest, size_h, size_w, pads, step):  # type: ignore[no-untyped-def]
    """Whether one instruction moves all channels of an input chunk; else each channel takes one."""
    if nest.minor:
        return True
    return not moves_apart(nest) and pads == 0 and (size_h == 1 or (size_w == nest.iw and step == 1))


@part()
def input_shape(nest, nci, size_h, size_w, pads_h, pads_w, step):  # type: ignore[no-untyped-def]
    """(instructions, y, x, stride) that load a chunk of ``nci`` channels of a spatial tile, which is not empty."""
    if nest.minor:
        return (1, 1, nci * size_w, 0) if nci == nest.ci else (1, size_w, nci, nest.ci)
    plane = nest.ih * nest.iw
    if input_is_compact(nest, size_h, size_w, pads_h + pads_w, step):
        if size_w == nest.iw and size_h == nest.ih:
            return 1, 1, nci * plane, 0
        return 1, nci, size_h * size_w, plane
    if moves_apart(nest) and size_w == nest.iw:
        return nci, 1, size_h * size_w, 0
    return nci, size_h - pads_h, size_w - pads_w, nest.iw * step


@part()
def weight_shape(nest, nci, mco):  # type: ignore[no-untyped-def]
    """(y, x, stride) of the LOAD of ``nci`` input channels of the weights of ``mco`` output channels."""
    if nest.pool:
        # The identity serves all.
        return 1, 1, 0
    taps = nest.kh * nest.kw
    width = nci * taps
    if nci == nest.ci and mco * width <= MAX_SIZE:
        return 1, mco * width, 0
    return mco, width, nest.ci * taps


@part()
def output_shape(nest, nc, nh, nw):  # type: ignore[no-untyped-def]
    """(instructions, y, x, stride) that move a block of an output-shaped tensor; of several, each moves a channel."""
    if nest.minor:
        return (1, 1, nc * nw, 0) if nc == nest.co else (1, nw, nc, nest.co)
    plane = nest.oh * nest.ow
    if moves_apart(nest) and nw == nest.ow:
        return nc, 1, nh * nw, 0
    if not moves_apart(nest) and (nw == nest.ow or nh == 1):
        return (1, 1, nc * plane, 0) if nh * nw == plane else (1, nc, nh * nw, plane)
    return nc, nh, nw, nest.ow


@part()
def bias_shape(nest, nco, nh, nw):  # type: ignore[no-untyped-def]
    """(instructions, y, x) that repeat the biases of a tile over its accumulators."""
    return (1, nw, nco) if nest.minor else (nco, nh * nw, 1)


@part()
def beats_of_acc(nest):  # type: ignore[no-untyped-def]
    """Beats of an element of ACC, at least one."""
    return max(nest.acc_bytes // nest.bus, 1)


@part()
def field_fits(y, x, stride, sram):  # type: ignore[no-untyped-def]
    """Whether a memory instruction's sizes and SRAM index fit its fields of 16 bits."""
    return y <= MAX_SIZE and x <= MAX_SIZE and (y == 1 or stride <= MAX_SIZE) and sram <= MAX_SIZE


@part()
def fields_surely_fit(nest):  # type: ignore[no-untyped-def]
    """Whether no memory instruction of any schedule that fits the SRAMs can overflow a field."""
    most = max(nest.inp_depth, nest.wgt_depth, nest.acc_depth, nest.ih * nest.iw * nest.sh, nest.oh * nest.ow)
    return max(most, nest.ci * nest.kh * nest.kw, nest.out_blocks) <= MAX_SIZE
