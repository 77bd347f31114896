"""What closed forms need of the spatial tiles of a schedule, once for all schedules that cut them alike."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.parts import part
from oneshot_ml2.spaces.full.axes import (
    FAR,
    col_loop,
    cut_axes,
    load_step,
    most_tiles,
    recurrence,
    row_loop,
    tap_items,
)
from oneshot_ml2.spaces.full.knobs import FOLDS, PAD_LOAD, ceil_div
from oneshot_ml2.spaces.full.pooling import all_lines, pooled, rows_first, tile_lines
from oneshot_ml2.spaces.full.shapes import input_is_compact, moves_apart

# Spatial tiles of equal geometry are a class; further ones are counted with the last.
CLASSES = 16
# Narrowest steps that are told apart by how soon their accumulators recur; the last stands for wider ones.
NARROW = 16
# Spatial tiles of an image beyond which a geometry is not looked at: no program can have as many.
_MOST_PLACES = 1 << 20
_RECORDS = 1024

# Of the spatial tiles of one (tile_h, tile_w, pad) of an image: how many; GEMMs of a step of all, of the first and of
# the last tile, where taps share them and where every tap is one (``taps``); outputs that taps meet (``work``);
# inputs loaded, and pads loaded with them; tiles whose inputs one instruction moves (``compact``), and others; inputs
# of a channel of the largest tile; rows and columns of the last; tiles that read inputs; rows of a channel of all
# that are not compact, and compact ones that are no whole plane; classes, and of each its tiles and its micro-ops a
# kernel for each fold but for the channels; and `axes.recurrence` by fold, several channels or one, and narrowest
# step. Of max pooling ``groups`` are GEMMs and passes, ``work`` is maxima (`pooling.Pooled`), and there are ``slots``
# of a channel, ``passes_last`` of the last tile, and ``resets``; of a class GEMMs (``space_uops``), how many micro-ops
# each has if there are as many channels (``row_uops``), and passes (``column_uops``).
GEOMETRY = np.dtype(
    [
        (name, np.int64)
        for name in (
            "tiles", "groups", "groups_first", "groups_last", "taps", "taps_first", "taps_last", "work", "work_first",
            "work_last", "loaded", "loaded_first", "compact", "compact_first", "spread", "max_plane", "last_h",
            "last_w", "real", "classes", "spread_rows", "compact_apart", "pads", "slots", "slots_first", "slots_last",
            "passes_last", "resets",
        )
    ]
    + [(name, np.int64, (CLASSES,)) for name in ("class_tiles", "space_uops", "row_uops", "column_uops")]
    + [("recurrence", np.int64, (FOLDS * 2 * NARROW,))]
)  # fmt: skip
# Records of `GEOMETRY`, and the tags that tell which.
Geometries: TypeAlias = tuple[NDArray[Any], NDArray[np.int64]]


def geometry_table() -> Geometries:
    """Geometry records and their tags, none yet: for schedules of one nest, and one thread."""
    return np.zeros(_RECORDS, dtype=GEOMETRY), np.full(_RECORDS, -1, dtype=np.int64)


@part()
def spatial_tag(nest, schedule):  # type: ignore[no-untyped-def]
    """A number that tells apart how schedules of a nest cut their spatial tiles."""
    return (schedule.tile_h * (nest.ow + 1) + schedule.tile_w) * 2 + schedule.pad


@part()
def geometry_of(nest, schedule, records, tags):  # type: ignore[no-untyped-def]
    """The geometry of a schedule's spatial tiles, made where it is not in the hash table yet."""
    tag = spatial_tag(nest, schedule)
    slot = (tag * 2654435761 >> 8) & (_RECORDS - 1)
    while tags[slot] >= 0 and tags[slot] != tag:
        slot = (slot + 1) & (_RECORDS - 1)
    if tags[slot] < 0:
        tags[slot] = tag
        _measure(nest, schedule, records[slot])
    return records[slot]


@part()
def _measure(nest, schedule, geometry):  # type: ignore[no-untyped-def]
    """Fill in a geometry, which is all zeros, of the spatial tiles of a schedule, for one batch block.

    Of more tiles than any program can have none is looked at: one that no SRAM holds stands for them.
    """
    n_h, n_w = ceil_div(nest.oh, schedule.tile_h), ceil_div(nest.ow, schedule.tile_w)
    if n_h > most_tiles(nest.kh) or n_w > most_tiles(nest.kw) or n_h * n_w > _MOST_PLACES:
        geometry.tiles = geometry.last_h = geometry.last_w = 1
        geometry.max_plane = nest.inp_depth + 1
        return
    rows, row_taps, cols, col_taps, step = cut_axes(nest, schedule)
    geometry.tiles = n_h * n_w
    first_row, first_col, last_row, last_col = rows[0], cols[0], rows[n_h - 1], cols[n_w - 1]
    geometry.groups_first, geometry.groups_last = first_row.groups * first_col.groups, last_row.groups * last_col.groups
    geometry.taps_first = first_row.touching * first_col.touching
    geometry.taps_last = last_row.touching * last_col.touching
    geometry.work_first, geometry.work_last = first_row.met * first_col.met, last_row.met * last_col.met
    geometry.last_h, geometry.last_w = last_row.outputs, last_col.outputs
    row_groups, row_touching, row_met, row_most = _totals(rows)
    col_groups, col_touching, col_met, col_most = _totals(cols)
    geometry.groups, geometry.taps = row_groups * col_groups, row_touching * col_touching
    geometry.work, geometry.max_plane = row_met * col_met, row_most * col_most
    _count_loads(nest, schedule, rows, cols, step, geometry)
    if nest.pool:
        for i in range(FOLDS * 2 * NARROW):
            geometry.recurrence[i] = FAR
        _count_pool(nest, schedule, rows, cols, geometry)
        return
    _count_classes(rows, cols, geometry)
    row_items, col_items = tap_items(rows, row_taps), tap_items(cols, col_taps)
    for i in range(FOLDS * 2 * NARROW):
        fold, several, co = i // (2 * NARROW), (i // NARROW) % 2, i % NARROW
        geometry.recurrence[i] = recurrence(fold, co + 1, 1 + several, row_items, col_items)


@part()
def _totals(tiles):  # type: ignore[no-untyped-def]
    """Groups, touching taps and met outputs of all tiles of an axis, and the most inputs that one holds."""
    groups = touching = met = most = np.int64(0)
    for i in range(len(tiles)):
        groups += tiles[i].groups
        touching += tiles[i].touching
        met += tiles[i].met
        most = max(most, tiles[i].held)
    return groups, touching, met, most


@part()
def _count_loads(nest, schedule, rows, cols, step, geometry):  # type: ignore[no-untyped-def]
    """Inputs and instructions that load them, of a channel."""
    for i in range(len(rows)):
        for j in range(len(cols)):
            row, col = rows[i], cols[j]
            if row.held == 0 or col.held == 0:
                continue
            pads_h = row.before + row.after if schedule.pad == PAD_LOAD else np.int64(0)
            pads_w = col.before + col.after if schedule.pad == PAD_LOAD else np.int64(0)
            compact = input_is_compact(nest, row.held, col.held, pads_h + pads_w, step)
            elements = max(row.held - pads_h, 0) * max(col.held - pads_w, 0)
            geometry.real += 1
            geometry.loaded += elements
            geometry.pads += row.held * col.held - elements if pads_h + pads_w > 0 else 0
            if compact:
                geometry.compact += 1
                geometry.compact_apart += row.held < nest.ih or col.held < nest.iw
            else:
                geometry.spread += 1
                geometry.spread_rows += 1 if moves_apart(nest) and col.held == nest.iw else row.held - pads_h
            if i == 0 and j == 0:
                geometry.loaded_first, geometry.compact_first = elements, compact


@part()
def _alike(tiles):  # type: ignore[no-untyped-def]
    """How many tiles of an axis each one stands for, int64 (n,)."""
    many = np.zeros(len(tiles), dtype=np.int64)
    for i in range(len(tiles)):
        many[tiles[i].alike] += 1
    return many


@part()
def _count_pool(nest, schedule, rows, cols, geometry):  # type: ignore[no-untyped-def]
    """What the tiles of a pool take, and classes of them with the micro-ops of each."""
    down, across = row_loop(nest), col_loop(nest)
    step, by_rows = load_step(nest.kh, nest.sh, schedule.pad), rows_first(nest, schedule)
    row_many, col_many = _alike(rows), _alike(cols)
    total = pooled(all_lines(down, rows, row_many, step), all_lines(across, cols, col_many, np.int64(1)), by_rows)
    first = pooled(tile_lines(down, rows[0], step), tile_lines(across, cols[0], np.int64(1)), by_rows)
    row, col = rows[len(rows) - 1], cols[len(cols) - 1]
    last = pooled(tile_lines(down, row, step), tile_lines(across, col, np.int64(1)), by_rows)
    geometry.groups, geometry.groups_first = total.gemms + total.passes, first.gemms + first.passes
    geometry.groups_last, geometry.passes_last = last.gemms + last.passes, last.passes
    geometry.work, geometry.work_first, geometry.work_last = total.maxima, first.maxima, last.maxima
    geometry.slots, geometry.slots_first, geometry.slots_last = total.slots, first.slots, last.slots
    geometry.resets = total.resets
    for i in range(len(rows)):
        for j in range(len(cols)):
            if row_many[i] == 0 or col_many[j] == 0:
                continue
            one = pooled(tile_lines(down, rows[i], step), tile_lines(across, cols[j], np.int64(1)), by_rows)
            k = min(geometry.classes, CLASSES - 1)
            geometry.classes = k + 1
            geometry.class_tiles[k] += row_many[i] * col_many[j]
            geometry.space_uops[k] += one.gemms
            geometry.row_uops[k] = min(rows[i].outputs, cols[j].outputs)
            geometry.column_uops[k] += one.passes


@part()
def _count_classes(rows, cols, geometry):  # type: ignore[no-untyped-def]
    """Classes of tiles and the micro-ops of each."""
    row_many, col_many = _alike(rows), _alike(cols)
    for i in range(len(rows)):
        for j in range(len(cols)):
            if row_many[i] == 0 or col_many[j] == 0:
                continue
            row, col = rows[i], cols[j]
            k = min(geometry.classes, CLASSES - 1)
            geometry.classes = k + 1
            geometry.class_tiles[k] += row_many[i] * col_many[j]
            geometry.space_uops[k] += row.touching * col.touching
            geometry.row_uops[k] += row.single * col.touching + (row.touching - row.single) * col.met
            geometry.column_uops[k] += row.met * col.met
