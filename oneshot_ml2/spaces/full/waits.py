"""A guess of a `full` schedule's cycles on the RTL that knows what its modules wait for, in closed form.

`totals` says what a program consists of. Here stands who waits for whom, of the mechanisms of `vta.timing.chisel`:

- A LOAD pays the memory's latency unless another client's burst waits in the memory's queue: LOADs of biases, which
  come last, and other LOADs may spare each other that, or keep the queue filled for good.
- Instructions are fetched in order, a burst at a time, and the next burst is asked for when the last instruction has
  entered its module's queue. A queue that is full stops all: LOADs of the next step cannot start before compute has
  only as many instructions left as its queue holds, however many buffers there are.
- What has one buffer is loaded when it has been read; an output tile without a second one is started when it is stored.

Groups of LOADs that follow each other alike are counted at once, by the means of a step and of a tile's end: compute
waits for a group as long as it takes beyond its *window*, the time that compute is busy while the group may load.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.kernels import njit
from oneshot_ml2.common.parts import part
from oneshot_ml2.spaces.full.geometry import geometry_of
from oneshot_ml2.spaces.full.knobs import (
    ALL,
    BIAS_GEMM,
    HEAD_DOUBLING,
    INP_MODE,
    SET,
    STREAM,
    WGT_MODE,
    outer_is_co,
)
from oneshot_ml2.spaces.full.shapes import beats_of_acc
from oneshot_ml2.spaces.full.tile_times import (
    LOAD,
    bias_add,
    bias_time,
    in_chunks,
    input_loads,
    is_waiting,
    links,
    singles,
    smaller,
    tile_of,
    weight_loads,
)
from oneshot_ml2.spaces.full.tiles import channel_tiles, last_channels
from oneshot_ml2.spaces.full.totals import (
    compute_of,
    drain_of,
    loads_of,
    reduction_of,
    stage_passes,
    store_cycles,
    tapered_chunks,
)
from oneshot_ml2.vta.timing.records import TAGS

# Columns of what `waits_into` fills in, cycles: the guess; busy times of compute, of loads with their latencies, and of
# stores; of fetching all instructions; until the first operands are there; compute's waits for loads and for stores;
# what fetching delays beyond these.
WAITS = (
    "waiting",
    "computing",
    "loading",
    "storing",
    "fetching",
    "opening",
    "load_waits",
    "store_waits",
    "fetch_waits",
)
_ROW = np.dtype([(name, np.float64) for name in WAITS])
# Longer than all windows.
_EVER = 1e18


class _Fetch(NamedTuple):
    """Instructions of a chunk, its beats, and cycles from the command until all are there; ``every``: cycles from one
    command to the next when no queue is full, ``own`` of these when the memory is busy; float64."""

    insns: float
    beats: float
    cycles: float
    every: float
    own: float


class _Group(NamedTuple):
    """LOADs for a step: cycles of all, how many they are, their cycles without latencies, beats of the last burst of
    the first; ``last``: cycles of the last one's data but its last burst, in the tile of the fewest channels;
    ``last_corner``: the same at a corner of the image; whether one's bursts are in the memory's queue when another LOAD
    begins, and whether the queue runs empty while they last; float64 and bool."""

    cycles: float
    insns: float
    data: float
    burst: float
    last: float
    last_corner: float
    is_waiting: bool
    is_dry: bool


class _Biased(NamedTuple):
    """What LOADs and those of biases do to each other in a tile: how much less biases wait than `Tile` says; LOADs that
    pay no latency, as bursts of biases wait in the memory's queue; whether both keep that queue filled, and whether
    they do so at a corner of the image, too; float64 and bool."""

    early: float
    linked: float
    filled: bool
    everywhere: bool


class _Corner(NamedTuple):
    """How tiles differ: the most work of one, and the inputs of that at a corner of the image, as shares of the means;
    and the share of tiles that lie at a border; float64."""

    work: float
    inputs: float
    border: float


class _Windows(NamedTuple):
    """How long compute is busy while a group may load, at a tile's start and within it: by the queue, by the rings of
    streamed operands, and, where a tile loads a set of its own, by the set before; float64. ``second``: that of a
    tile's second group, by both. ``residual``: that of a tile's residual. ``single``, ``single_set``: a streamed
    operand, a set has one buffer."""

    queue_start: float
    queue_within: float
    second: float
    ring_start: float
    ring_within: float
    refill: float
    residual: float
    single: bool
    single_set: bool


class _Waited(NamedTuple):
    """Of all groups: cycles of loading; LOADs of inputs, of weights and others; how long compute waits; how much longer
    than it tiles are stored, one while the next one is computed; how long instructions are waited for; float64."""

    loading: float
    inp_insns: float
    wgt_insns: float
    others: float
    waits: float
    stored: float
    fetched: float


class _Count(NamedTuple):
    """Instructions of a tile, and the most of them that are one module's; float64."""

    insns: float
    most: float


class _Turn(NamedTuple):
    """Of the tiles of the first turn of the outer loop, or of all others: cycles, and of storing them while others are
    computed; instructions, and chunks of these that come without a latency; the `_Count` of a tile; float64."""

    cycles: float
    stores: float
    insns: float
    free: float
    tile: _Count


def waits_of(waits: NDArray[np.float64]) -> NDArray[Any]:
    """Waits (n, len(WAITS)) as records (n,) of these fields: the same memory, which is contiguous."""
    return waits.view(_ROW)[:, 0]


@part()
def _fetch(nest):  # type: ignore[no-untyped-def]
    """The `_Fetch` of an accelerator."""
    if nest.bus > 8:
        beats = np.ceil(16.0 * nest.burst / nest.bus)
        # The next one is asked for when all have gone through a pipe of two.
        own = nest.burst + beats + 8.0
        return _Fetch(float(nest.burst), beats, nest.latency + 8.0 + beats, nest.latency + own, own)
    insns = float(max(nest.burst // 2, 1))
    own = 3.0 * insns + 5.0
    return _Fetch(insns, 2.0 * insns, nest.latency + 6.0 + 2.0 * insns, nest.latency + own, own)


@part()
def _windows(nest, schedule, tile, fetch, inner, read):  # type: ignore[no-untyped-def]
    """The `_Windows` of a schedule; ``inner``: tiles of the inner loop; ``read``: share of a step after which its
    operands have been read."""
    queue, last, pool = float(nest.queue), tile.end + tile.exposed, nest.pool != 0
    inp_mode, wgt_mode = INP_MODE[schedule.dataflow], WGT_MODE[schedule.dataflow]
    of_gemm = tile.step / max(tile.gemms, 1e-9)
    queue_within = min(tile.step, queue * of_gemm)
    # The last before a tile's first step are the LOADs of its biases.
    waiting = bias_time(nest, tile)
    if queue <= tile.biases:
        queue_start = waiting * queue / tile.biases
    elif queue <= tile.end_insns:
        queue_start = waiting + (last - waiting) * (queue - tile.biases) / (tile.end_insns - tile.biases)
    elif queue <= tile.end_insns + tile.chunks * tile.gemms:
        queue_start = last + (queue - tile.end_insns) * of_gemm
    else:
        queue_start = queue / (tile.end_insns + tile.chunks * tile.gemms) * (tile.chunks * tile.step + last)
    if tile.store_insns > queue and schedule.acc_buffers > 1:
        # Instructions behind the STOREs come with a fetch of their own.
        queue_start = min(queue_start, queue * tile.stores / tile.store_insns - nest.latency - fetch.beats)
    second = queue_within
    if queue > tile.gemms:
        second = tile.step + last * min((queue - tile.gemms) / tile.end_insns, 1.0)
    ring_start, ring_within = _EVER, _EVER
    if inp_mode == STREAM or (wgt_mode == STREAM and not pool):
        ring_start, ring_within = tile.step + last, tile.step
    single = (inp_mode == STREAM and schedule.inp_buffers == 1) or (
        wgt_mode == STREAM and schedule.wgt_buffers == 1 and not pool
    )
    if single:
        second = queue_within
        ring_start, ring_within = last - tile.held + (1.0 - read) * tile.step, (1.0 - read) * tile.step
    refill = _EVER
    if inp_mode == SET or (wgt_mode == SET and not pool):
        # The set before it was there with its last step.
        refill = inner * (tile.chunks * tile.step + last) - (tile.chunks - 1.0) * tile.step
    single_set = (inp_mode == SET and schedule.inp_buffers == 1) or (
        wgt_mode == SET and schedule.wgt_buffers == 1 and not pool
    )
    if single_set:
        # A chunk is loaded when that of the tile before has been read.
        refill = (tile.chunks - 1.0) * tile.step + last - (tile.chunks < 2.0) * tile.held
    # It takes turns in the buffers of inputs, whatever these do.
    residual = tile.chunks * tile.step + last
    if schedule.inp_buffers == 1:
        residual -= tile.step + tile.held
    return _Windows(queue_start, queue_within, second, ring_start, ring_within, refill, residual, single, single_set)


@part()
def _taken(mode, outer_first, inner_first):  # type: ignore[no-untyped-def]
    """Whether tiles load an operand: those of the first turn of the outer loop, and those that are first in theirs."""
    if mode == STREAM:
        return True
    return bool(outer_first) if mode == ALL else bool(inner_first)


@part()
def _corner(nest, schedule, geometry):  # type: ignore[no-untyped-def]
    """The `_Corner` of a schedule."""
    tiles = float(geometry.tiles)
    columns = np.ceil(nest.ow / schedule.tile_w)
    inputs = min(geometry.loaded_first * float(geometry.real) / max(geometry.loaded, 1), 1.0)
    most = schedule.tile_h * schedule.tile_w * nest.kh * nest.kw / float(nest.th * nest.tw)
    work = max(most * tiles / max(geometry.work, 1), 1.0)
    return _Corner(work, inputs, min(2.0 * min(columns, tiles / columns) / tiles, 1.0))


@part()
def _group(nest, inputs, weights, loads_inp, loads_wgt, narrow, corner):  # type: ignore[no-untyped-def]
    """The `_Group` of one or both operands; ``narrow``: the fewest channels of a tile, as a share of others'."""
    cycles = loads_inp * inputs.cycles + loads_wgt * weights.cycles
    insns = loads_inp * inputs.insns + loads_wgt * weights.insns
    if insns == 0.0:
        return _Group(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, False, False)
    with_weights = loads_wgt and weights.insns > 0.0
    first = inputs if loads_inp else weights
    second = weights if with_weights and inputs.insns <= 1.5 else first
    burst = min(first.beats / first.rows, float(nest.burst))
    last, last_corner = inputs.data - burst, inputs.data * corner.inputs - burst
    if with_weights:
        last = last_corner = weights.data * narrow - min(weights.beats * narrow / weights.rows, float(nest.burst))
    waiting = is_waiting(second.beats, second.bursts)
    dry = loads_inp * inputs.dry + loads_wgt * weights.dry > 0.0
    return _Group(cycles, insns, cycles - insns * (nest.latency + LOAD), burst, last, last_corner, waiting, dry)


@part()
def _bias_latency(nest, tile, group, loads, data, other):  # type: ignore[no-untyped-def]
    """How long the LOADs of a tile's biases wait for their data; ``loads``, ``data``: how many others there are, cycles
    of the data of one; ``other``: what compute does before the biases since the group may begin.

    The first waits as long as what is in flight by then; a further one, as long as there are LOADs left, for the data
    of the next that found the biases' bursts in the queue.
    """
    alone = nest.latency + LOAD
    before = np.floor((max(other, 0.0) + group.burst + LOAD - 2.0) / (alone + data))
    if before >= loads:
        return tile.biases * alone
    left = loads - before - 1.0
    # While another LOAD has bursts to send, those of biases wait: at most 15 are in the queue when it ends.
    ends = max(np.ceil(tile.bias_bursts / (TAGS - 1.0)), 1.0)
    more = min(ends - 1.0, left)
    first = (before + 1.0) * (alone + data) - other + more * data
    if tile.biases * ends <= loads:
        # Where it waits longer than compute is busy, it is LOADs that tiles wait for; unless biases do not keep up.
        first = min(first, max(alone, tile.chunks * tile.step + other))
    behind = 0.0
    if tile.bias_bursts > 0.0 and group.is_waiting:
        behind = min(tile.biases - 1.0, np.ceil((left - more) / ends))
    return first + behind * min(ends, left) * data + (tile.biases - 1.0 - behind) * alone


@part()
def _biased(nest, tile, fetch, windows, group, corner, each, refills):  # type: ignore[no-untyped-def]
    """The `_Biased` of a tile; ``each``: every tile loads; ``refills``: it loads a set of its own."""
    if tile.biases == 0.0 or group.insns == 0.0:
        return _Biased(0.0, 0.0, False, False)
    alone, one = nest.latency + LOAD, tile.chunks < 2.0
    loads = group.insns + one * tile.residual_insns
    other = tile.end + tile.exposed - bias_time(nest, tile)
    # While biases wait, as all others come first, their bursts are in the queue when another LOAD ends.
    linked = tile.biases * links(tile.bias_beats / tile.biases, tile.bias_bursts)
    early, filled, everywhere = 0.0, False, False
    if each:
        data = (group.data + one * (tile.residual - tile.residual_insns * alone)) / loads
        since = other - tile.held
        if not (windows.single or (refills and windows.single_set)):
            # With two buffers the group may begin when the last step does, if it is not two tiles ahead: where the very
            # first biases are long enough for two groups to be there before that tile is.
            apart = tile.step + other + _bias_latency(nest, tile, group, loads, data, since)
            if linked < 2.0 * loads or group.cycles - (loads - 1.0) * nest.latency > apart:
                since = other + tile.step + tile.biases * tile.bias_data
        early = tile.biases * alone - _bias_latency(nest, tile, group, loads, data, since)
        # The next LOAD is in its queue while biases are waited for.
        room = tile.end_insns + tile.chunks * tile.gemms < nest.queue
        if one and room and not (windows.single or (refills and windows.single_set) or group.is_dry):
            busy = other + (tile.biases - 1.0) * (group.data / group.insns + tile.bias_data)
            # Chunks of instructions come between.
            insns = tile.end_insns + tile.gemms + tile.store_insns + loads
            busy += fetch.beats * np.ceil(insns / fetch.insns)
            # Each end of a LOAD has bursts of biases, none are left, and the next are there while the last one lasts.
            filled = linked == np.rint(loads) and tile.step + busy <= group.last + LOAD
            everywhere = tile.step * corner.work + busy <= group.last_corner + LOAD
    linked = min(linked, (loads if one or windows.single else 2.0 * loads) - 1.0)
    return _Biased(early, linked, filled, everywhere)


@part()
def _tile_waits(nest, tile, fetch, windows, group, corner, streams, refills, each):  # type: ignore[no-untyped-def]
    """How long compute waits in a tile for a `_Group` for each step; ``streams``: the tiles before it load, too;
    ``refills``: it loads a set of its own, ``each``: as every tile does. Below 0 where biases are there earlier than
    `Tile` says. And whether LOADs and biases keep the memory's queue filled."""
    last, one = tile.end + tile.exposed, tile.chunks < 2.0
    biased = _biased(nest, tile, fetch, windows, group, corner, streams or each, refills)
    if biased.filled:
        both = group.data + tile.biases * tile.bias_data + tile.residual
        both += nest.latency * corner.border * (not biased.everywhere)
        return both - tile.residual_insns * (nest.latency + LOAD) - tile.step - last, True
    if group.insns == 0.0 and tile.residual_insns == 0.0:
        return 0.0, False
    if group.insns == 0.0:
        # Only a residual, which its own buffers and the queue hold up.
        window = min(windows.residual, windows.queue_start + (tile.chunks - 1.0) * windows.queue_within)
        return max(0.0, tile.residual - window), False
    first = group.cycles + one * tile.residual
    if tile.biases > 0.0 and group.insns > 0.0:
        # One port carries both.
        first += tile.bias_beats - min(biased.linked, group.insns + one * tile.residual_insns) * nest.latency
    start = min(windows.queue_start, tile.step + last) if streams else windows.queue_start
    within = min(windows.queue_within, tile.step)
    if streams:
        start, within = min(start, windows.ring_start), min(within, windows.ring_within)
    if refills:
        start, within = min(start, windows.refill), min(within, windows.refill)
    if one and tile.residual_insns > 0.0:
        # A group begins when all that it overwrites has been read.
        start = min(start, windows.residual)
    rest, slack = tile.chunks - 1.0, first - (start - biased.early)
    waits = max(0.0, slack)
    if one:
        return waits - biased.early, False
    if not streams and group.cycles > 0.0:
        return max(waits, slack + rest * (group.cycles - tile.step) + tile.residual) - biased.early, False
    # The second group may begin when the tile before has been read, if the first is there.
    second = group.cycles - max(biased.linked - group.insns, 0.0) * nest.latency + (rest == 1.0) * tile.residual
    ahead = max(windows.second - biased.early - tile.step, 0.0) if streams and not windows.single else 0.0
    waits += max(0.0, max(slack, -ahead) + second - waits - (tile.step if ahead > 0.0 else within))
    if rest > 1.0:
        waits += (rest - 2.0) * max(0.0, group.cycles - within) + max(0.0, group.cycles + tile.residual - within)
    return waits - biased.early, False


@part()
def _ends(schedule, ci, tapered, steps):  # type: ignore[no-untyped-def]
    """Channels of the first and the last chunk of a tile that is reduced as the head says; if all steps are alike,
    theirs."""
    if schedule.head != HEAD_DOUBLING or tapered < 2:
        return ci / steps, ci / steps
    before, size = 0, 1
    for _ in range(tapered - 1):
        before += size
        size = min(2 * size, schedule.tile_ci)
    return 1.0, float(ci - before)


@part()
def _first_waits(nest, schedule, tile, windows, inputs, weights, tapered, always):  # type: ignore[no-untyped-def]
    """Waits of the very first tile behind its first group, which is the opening's; ``inputs``, ``weights``: the means
    of its chunks and of its steps; ``always``: operands are streamed.

    Each step hides the loads of the next one, and the last none.
    """
    after = max(tile.chunks - 1.0, 1.0)
    first, last = _ends(schedule, nest.ci, tapered, tile.chunks)
    hidden = tile.chunks * (1.0 - last / nest.ci) / after
    # The parts of a first chunk share its inputs.
    group = (inputs.cycles * (tapered - 1.0) / after + weights.cycles) * (
        1.0 + (1.0 - first * tile.chunks / nest.ci) / after
    )
    window = min(windows.queue_within, tile.step * hidden)
    if always:
        window = min(window, windows.ring_within * hidden)
    return (tile.chunks - 1.0) * max(0.0, group - window) + tile.residual


@part()
def _count(tile, loads):  # type: ignore[no-untyped-def]
    """The `_Count` of a tile of so many LOADs."""
    computes = tile.end_insns + tile.chunks * tile.gemms
    return _Count(computes + tile.store_insns + loads, max(computes, max(tile.store_insns, loads)))


@part()
def _free(nest, fetch, beats, rows):  # type: ignore[no-untyped-def]
    """Chunks of instructions that come while the ``beats`` of a LOAD do, each behind its bursts that are in the
    memory's queue: at most 15."""
    row = max(beats / max(rows, 1.0), 1.0)
    queued = min((TAGS - 1.0) * row / np.ceil(row / nest.burst), 0.5 * beats)
    return beats / (fetch.own + queued)


@part()
def _free_of_biases(nest, schedule, tile, fetch):  # type: ignore[no-untyped-def]
    """`_free` of a LOAD of biases."""
    if tile.biases == 0.0:
        return 0.0
    rows = tile.bias_beats / beats_of_acc(nest)
    if nest.minor:
        rows /= min(schedule.tile_co, nest.co)
    return _free(nest, fetch, tile.bias_beats / tile.biases, rows / tile.biases)


@part()
def _free_chunks(nest, tile, fetch, count, inputs, weights, inp_insns, wgt_insns, biased):  # type: ignore[no-untyped-def]
    """Chunks that come while the data of a tile do, until the queues are full, of so many LOADs of inputs and of
    weights; ``biased``: while those of a LOAD of biases do."""
    most = nest.queue * count.insns / count.most / fetch.insns
    free = tile.biases * min(biased, most)
    if inp_insns > 0.0:
        free += inp_insns * min(_free(nest, fetch, inputs.beats, inputs.rows), most)
    if wgt_insns > 0.0:
        free += wgt_insns * min(_free(nest, fetch, weights.beats, weights.rows), most)
    return min(free, tile.chunks * most)


@part()
def _fetch_waits(nest, fetch, turn):  # type: ignore[no-untyped-def]
    """How long the instructions of a `_Turn` are waited for."""
    if turn.insns <= 0.0:
        return 0.0
    chunks = turn.insns / fetch.insns
    paid = max(chunks - turn.free, 0.0)
    # As many instructions as the queues hold are ahead of what is executed.
    ahead = min(turn.insns / max(paid, 1e-9), nest.queue * turn.tile.insns / turn.tile.most)
    waits = paid * max(fetch.every - ahead * turn.cycles / turn.insns, 0.0)
    # Those of one beat empty the memory's queue.
    dry = min(turn.free, chunks) * singles(nest, fetch.beats, nest.burst) / TAGS
    return waits + np.floor(dry) * max(nest.latency + 2.0 - TAGS, 0.0)


@part()
def _constants(nest, schedule):  # type: ignore[no-untyped-def]
    """(LOADs, their cycles) of the identity and the constants of GEMMs that add, with the last group of a tile."""
    insns = float(nest.residual)
    cycles = insns * (nest.latency + LOAD + nest.wgt_bytes / nest.bus)
    if nest.bias and schedule.bias == BIAS_GEMM:
        insns += 2.0
        cycles += 2.0 * (nest.latency + LOAD) + nest.out_blocks * nest.wgt_bytes / nest.bus
    return insns, cycles


@part()
def _all_waits(nest, schedule, tile, fetch, whole_inp, whole_wgt, read, whole, parts, co_tiles, sp_tiles, tail, corner):  # type: ignore[no-untyped-def]
    """The `_Waited` of all tiles: of the very first one, of those that load one operand or both, and of others;
    ``whole_inp``, ``whole_wgt``: `Loads` of a chunk of tiles that are not reduced as the head says; ``read``: see
    `_windows`; ``tail``: cycles of the last STORE; ``corner``: the `_Corner`."""
    inp_mode, wgt_mode, by_co = INP_MODE[schedule.dataflow], WGT_MODE[schedule.dataflow], outer_is_co(schedule.dataflow)
    outer, inner = (co_tiles, sp_tiles) if by_co else (sp_tiles, co_tiles)
    # Groups have inputs of their own.
    groups = 1 if nest.depthwise else nest.groups
    outer_firsts, inner_firsts = (groups, 1) if by_co else (1, groups)
    always = inp_mode == STREAM or (wgt_mode == STREAM and not nest.pool)
    narrow = last_channels(nest, schedule) / min(schedule.tile_co, nest.co)
    tapered = tapered_chunks(schedule, nest.ci, whole)
    tile = in_chunks(tile, float(tapered + parts - 1))
    windows = _windows(nest, schedule, tile, fetch, inner / inner_firsts, read)
    inputs, weights = smaller(nest, whole_inp, whole / float(tapered)), smaller(nest, whole_wgt, whole / tile.chunks)
    others, loading = _constants(nest, schedule)
    waits = _first_waits(nest, schedule, tile, windows, inputs, weights, tapered, always) + loading
    loading += inputs.cycles * tapered + weights.cycles * tile.chunks + tile.residual
    inp_insns, wgt_insns = inputs.insns * tapered, weights.insns * tile.chunks
    others += tile.residual_insns
    count = _count(tile, inp_insns + wgt_insns + others)
    biased = _free_of_biases(nest, schedule, tile, fetch)
    free = _free_chunks(nest, tile, fetch, count, inputs, weights, inp_insns, wgt_insns, biased)
    cycles = tile.chunks * tile.step + tile.end + waits + nest.latency
    turn = _Turn(cycles, cycles, max(count.insns - fetch.insns, 0.0), free, count)
    stored, fetched, kept = 0.0, 0.0, tile.stores * (schedule.acc_buffers > 1)
    for kind in range(4):
        outer_first, inner_first = kind < 2, kind % 2 == 0
        if kind == 2:
            # Within a turn of the outer loop long and short tiles make up for each other.
            stored, fetched = max(turn.stores - turn.cycles, 0.0), _fetch_waits(nest, fetch, turn)
            turn = _Turn(0.0, 0.0, 0.0, 0.0, count)
        turns = outer_firsts if outer_first else outer - outer_firsts
        # Without the very first tile.
        many = float(turns * (inner_firsts if inner_first else inner - inner_firsts)) - (kind == 0)
        if many <= 0.0:
            continue
        loads_inp, loads_wgt = _taken(inp_mode, outer_first, inner_first), _taken(wgt_mode, outer_first, inner_first)
        # As `tiles.is_tapered` says; of many groups it is the first one alone.
        tapers = (nest.minor and inp_mode != STREAM) or (
            wgt_mode != STREAM and (outer_first if by_co else inner_first) and groups == 1
        )
        tile = in_chunks(tile, float(tapered if tapers else whole))
        inputs, weights = smaller(nest, whole_inp, whole / tile.chunks), smaller(nest, whole_wgt, whole / tile.chunks)
        group = _group(nest, inputs, weights, loads_inp, loads_wgt, narrow, corner)
        of_inp, of_wgt = tile.chunks * loads_inp * inputs.insns, tile.chunks * loads_wgt * weights.insns
        count = _count(tile, of_inp + of_wgt + tile.residual_insns)
        free = _free_chunks(nest, tile, fetch, count, inputs, weights, of_inp, of_wgt, biased)
        inp_insns, wgt_insns = inp_insns + many * of_inp, wgt_insns + many * of_wgt
        others += many * tile.residual_insns
        loading += many * (tile.chunks * group.cycles + tile.residual)
        windows = _windows(nest, schedule, tile, fetch, inner / inner_firsts, read)
        waited, filled = _tile_waits(
            nest, tile, fetch, windows, group, corner, always or outer_first, inner_first, inner == inner_firsts
        )
        # Whatever empties the memory's queue, it is filled anew at the price of a latency.
        again = (1.0 if not windows.single_set else float(inner_firsts) * many / max(inner - inner_firsts, 1)) * filled
        waited = many * waited + again * nest.latency
        waits += waited
        turn = _Turn(
            turn.cycles + many * (tile.chunks * tile.step + tile.end + tile.exposed) + waited,
            turn.stores + many * kept,
            turn.insns + many * count.insns,
            turn.free + many * free,
            count,
        )
    # The last tile is stored, too, when all before it have been.
    kept = max(kept - tail, 0.0) if co_tiles * sp_tiles > 1 else 0.0
    stored += max(turn.stores + kept - turn.cycles, 0.0)
    fetched += _fetch_waits(nest, fetch, turn)
    return _Waited(loading, inp_insns, wgt_insns, others, waits, stored, fetched)


@part()
def _opening(nest, schedule, geometry, reduction, tile, fetch, uops, start, more):  # type: ignore[no-untyped-def]
    """Cycles from the first instruction until compute has the first operands, and how many more LOADs pay no latency,
    as biases wait in the memory's queue; ``start``: of compute before them; ``more``: instructions beyond a chunk."""
    alone = nest.latency + LOAD
    channels = min(schedule.tile_co, nest.co) if nest.depthwise else reduction.first_chunk
    beats = geometry.loaded_first * channels * nest.inp_bytes / nest.bus
    insns = 1.0 if geometry.compact_first else float(channels)
    uop_beats, added = uops * 4.0 / nest.bus, bias_add(nest, schedule)
    # What compute loads behind its micro-ops, and whether its bursts are in the memory's queue when a LOAD ends.
    behind, behind_beats = tile.biases, tile.bias_beats
    bursts = tile.bias_bursts
    if added > 0.0:
        behind, behind_beats, bursts = 1.0, added, np.ceil(added / nest.burst)
    linked = behind * links(behind_beats / max(behind, 1.0), bursts) * (beats / insns >= LOAD)
    # What is fetched meanwhile keeps the memory's queue from running empty, also the next chunk of instructions, behind
    # a first LOAD of few bursts.
    bursts = np.ceil(beats / insns / nest.burst)
    chunk = min(16.0 * more / nest.bus, fetch.beats)
    if (
        more > 0.0
        and fetch.insns <= nest.queue
        and 2.0 * bursts <= min(fetch.insns, 2.0 * TAGS)
        and chunk >= LOAD - 1.0
    ):
        linked += 1.0
    spared = min(insns, linked + (uop_beats + chunk) / (beats / insns + LOAD))
    weights = 0.0 if nest.pool else float(reduction.part * reduction.first_chunk * nest.kh * nest.kw)
    weights = weights * nest.wgt_bytes / nest.bus
    loads = insns * alone + beats - nest.latency * spared + alone + weights
    port = alone + uop_beats + behind_beats + beats + weights + chunk
    own = alone + uop_beats + start + bias_time(nest, tile) + added
    if added > 0.0:
        own += alone
    if linked > 0.0:
        own -= nest.latency * min(behind, 1.0 + spared)
    return max(loads, max(own, port)), max(linked - spared, 0.0)


@part()
def _met(nest, fetch, waited, inputs, weights, chunks, cycles):  # type: ignore[no-untyped-def]
    """How much longer than so many ``cycles`` LOADs take that follow each other, as chunks of instructions come between
    them.

    What is asked for behind a LOAD's bursts is there while the next one waits for its latency; behind its last one, it
    delays the next one.
    """
    insns = max(waited.inp_insns + waited.wgt_insns, 1.0)
    beats = waited.inp_insns * inputs.beats + waited.wgt_insns * weights.beats
    rows = waited.inp_insns * inputs.rows + waited.wgt_insns * weights.rows
    burst = min(beats / max(rows, 1.0), float(nest.burst)) + LOAD - 2.0
    within, behind = max(fetch.beats - nest.latency - LOAD + 1.0, 0.0), max(fetch.beats - 0.5 * burst, 0.0)
    every = max(nest.latency + LOAD + beats / insns, burst)
    delay = within + (behind - within) * burst / every
    return min(max(waited.loading + chunks * delay - cycles, 0.0), chunks * delay)


@part()
def _wait(nest, schedule, geometry, uops, row):  # type: ignore[no-untyped-def]
    """Fill in the waits of one schedule, a `_ROW`; ``uops``: its micro-ops."""
    co_tiles, sp_tiles = channel_tiles(nest, schedule), nest.nb * geometry.tiles
    tiles, outputs = co_tiles * sp_tiles, nest.nb * nest.oh * nest.ow * nest.out_blocks
    drain = drain_of(nest, schedule, geometry)
    reduction = reduction_of(nest, schedule, geometry, co_tiles, sp_tiles, drain.cuts)
    loads = loads_of(nest, schedule, geometry, reduction, co_tiles, sp_tiles, outputs)
    all_cuts = tiles - 1 + drain.cuts
    compute, start = compute_of(nest, schedule, geometry, reduction.gemms, tiles, co_tiles, outputs, all_cuts)
    gemm, read = nest.nb * geometry.work * nest.ci * nest.out_blocks + 7.0 * reduction.gemms, 1.0
    if nest.pool:
        gemm += nest.nb * (geometry.work + geometry.slots) * nest.out_blocks
        # Inputs are copied to slots; what follows are maxima of these.
        read = 1.0 - 2.0 * nest.nb * geometry.work * nest.out_blocks / gemm
    tile = tile_of(nest, schedule, reduction, compute, gemm, tiles, outputs)
    fetch = _fetch(nest)
    inputs = input_loads(nest, schedule, geometry, loads, reduction.whole, tiles, sp_tiles)
    weights = weight_loads(nest, schedule, loads, reduction.whole, co_tiles, sp_tiles)
    tail = store_cycles(nest, drain.last, 1)
    waited = _all_waits(
        nest, schedule, tile, fetch, inputs, weights, read, reduction.whole, reduction.parts, co_tiles, sp_tiles, tail,
        _corner(nest, schedule, geometry),
    )  # fmt: skip

    ahead = min(float(start), tile.end)
    before = min(ahead + bias_time(nest, tile), tile.end)
    computes = reduction.gemms + tiles * tile.end_insns
    stores = tiles * tile.store_insns
    loadings = waited.inp_insns + waited.wgt_insns + waited.others
    insns = computes + loadings + stores + 3.0
    if nest.pool:
        insns += geometry.resets * nest.nb * co_tiles - tiles
    more = max(insns - fetch.insns, 0.0)
    opening, spared = _opening(nest, schedule, geometry, reduction, tile, fetch, uops, ahead, more)
    spared = min(spared, waited.others / tiles) * (tile.chunks < 2.0) * nest.latency
    busy = gemm + 8.0 + tile.end * tiles
    exposed = tile.exposed * (tiles - 1)
    beats = loads.inp_beats + loads.wgt_beats + tile.bias_beats * tiles
    # The last tile is stored from its first piece on.
    stages, stage_cycles = stage_passes(nest)
    last = last_channels(nest, schedule) * geometry.last_h * geometry.last_w
    drained = tile.stores * last * tiles / outputs - tail - 7.0 * stages * (drain.cuts - 1)
    stored = max(waited.stored, drained - stage_cycles * last * (1.0 - 1.0 / drain.cuts))
    middle = max(busy - before + waited.waits - spared + exposed + stored, beats - opening)
    chunks = np.ceil(insns / fetch.insns)
    middle += _met(nest, fetch, waited, inputs, weights, chunks - 1.0, opening + middle)
    # A program may be shorter than a chunk.
    first = fetch.cycles - fetch.beats * max(1.0 - insns / fetch.insns, 0.0)
    guess = first + opening + middle + tail + 3.0

    row.fetch_waits = waited.fetched
    row.waiting = guess + row.fetch_waits
    # Biases that are there earlier are less of compute's time.
    row.computing, row.loading = max(busy + min(waited.waits, 0.0), 0.0), waited.loading
    row.storing, row.fetching = tiles * tile.stores, chunks * fetch.cycles
    row.opening, row.load_waits, row.store_waits = opening, max(waited.waits, 0.0), exposed + stored


@njit(cache=True, nogil=True)
def waits_into(nest, batch, uops, out, records, tags):  # type: ignore[no-untyped-def]
    """Waits of canonical schedules (n,) with their micro-ops, float64 (n,), into `waits_of` them; with a
    `geometry_table`."""
    for n in range(len(batch)):
        _wait(nest, batch[n], geometry_of(nest, batch[n], records, tags), uops[n], out[n])
