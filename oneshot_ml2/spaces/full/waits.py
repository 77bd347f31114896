"""A guess of a `full` schedule's cycles on the RTL that knows what its modules wait for, in closed form.

`totals` says what a program consists of. Here stands who waits for whom, of the mechanisms of `vta.timing.chisel`:

- A LOAD pays the memory's latency unless another client's burst waits in the memory's queue. 16 bursts may be
  outstanding, so rows of one beat drain that queue, and the latency is paid anew for every 16 of them.
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
    BIAS_ADD,
    BIAS_GEMM,
    BIAS_LOAD,
    HEAD_DOUBLING,
    INP_MODE,
    SET,
    STREAM,
    WGT_MODE,
    ceil_div,
    outer_is_co,
)
from oneshot_ml2.spaces.full.shapes import bias_shape, output_shape
from oneshot_ml2.spaces.full.tiles import channel_tiles, pieces
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
# Cycles of a LOAD beside latency and beats, and of a chunk of instructions that comes without a latency.
_LOAD, _CHUNK = 7.0, 14.0
# Longer than all windows.
_EVER = 1e18


class _Loads(NamedTuple):
    """LOADs of a chunk: cycles of all, how many they are, rows, beats and cycles of the data of one, and latencies
    among these; float64."""

    cycles: float
    insns: float
    rows: float
    beats: float
    data: float
    dry: float


class _Tile(NamedTuple):
    """Means over the output tiles; float64.

    ``chunks``: steps; ``step``, ``gemms``: cycles and GEMMs of a step; ``end``, ``end_insns``: the same of what comes
    before and after the steps; ``stores``, ``store_insns``: of all its STOREs; ``exposed``: cycles that compute waits
    for them; ``biases``, ``bias_data``, ``bias_bursts``: LOADs of biases, cycles of the data and bursts of one;
    ``bias_beats``: beats of all of them; ``residual``, ``residual_insns``: of the LOADs of a residual.
    """

    chunks: float
    step: float
    gemms: float
    end: float
    end_insns: float
    stores: float
    store_insns: float
    exposed: float
    biases: float
    bias_data: float
    bias_bursts: float
    bias_beats: float
    residual: float
    residual_insns: float


class _Fetch(NamedTuple):
    """Instructions of a chunk, its beats, and cycles from the command until all are there; float64."""

    insns: float
    beats: float
    cycles: float


class _Windows(NamedTuple):
    """How long compute is busy while a group may load, at a tile's start and within it: by the queue, by the rings of
    streamed operands, and, where a tile loads a set of its own, by the set before; float64. ``second``: that of a
    tile's second group, by both. ``single``: a streamed operand has one buffer."""

    queue_start: float
    queue_within: float
    second: float
    ring_start: float
    ring_within: float
    refill: float
    single: bool
    single_set: bool


class _Waited(NamedTuple):
    """Of all groups: cycles of loading; LOADs of inputs, of weights and others; how long compute waits; float64."""

    loading: float
    inp_insns: float
    wgt_insns: float
    others: float
    waits: float


def waits_of(waits: NDArray[np.float64]) -> NDArray[Any]:
    """Waits (n, len(WAITS)) as records (n,) of these fields: the same memory, which is contiguous."""
    return waits.view(_ROW)[:, 0]


@part()
def _stream(nest, rows, beats):  # type: ignore[no-untyped-def]
    """Cycles that the data of a LOAD take, a burst is sent every second cycle; and latencies among them."""
    share = _singles(nest, beats / rows)
    single = rows * share
    # Each burst of one beat leaves the queue one burst shorter, as nothing is sent beside a last beat.
    dry = np.floor(max(single - 1.0, 0.0) / TAGS) * max(nest.latency + 2.0 - TAGS, 0.0) * min(share, 1.0)
    return single + beats + dry, dry


@part()
def _singles(nest, beats):  # type: ignore[no-untyped-def]
    """How many bursts of one beat a row of so many beats has, that starts where a burst may."""
    if nest.burst == 1:
        return beats
    return max(0.0, 1.0 - abs(beats % nest.burst - 1.0))


@part()
def _waits(beats, bursts):  # type: ignore[no-untyped-def]
    """Whether some of the bursts of a LOAD are in the memory's queue when another LOAD begins, that asked before them:
    not what is short, nor bursts of one beat, beside which nothing is sent."""
    return beats >= 2.0 * bursts and beats * (1.0 - 1.0 / bursts) >= _LOAD - 1.0


@part()
def _loads(nest, insns, rows, beats):  # type: ignore[no-untyped-def]
    """`_Loads` of so many instructions, rows and beats in all."""
    rows = max(rows, insns)
    beats = max(beats, rows)
    data, dry = _stream(nest, rows / insns, beats / insns)
    return _Loads(insns * (nest.latency + _LOAD + data), insns, rows / insns, beats / insns, data, dry)


@part()
def _smaller(nest, loads, share):  # type: ignore[no-untyped-def]
    """`_Loads` of a chunk of a ``share`` of the channels."""
    insns = min(loads.insns, max(1.0, loads.insns * share))
    share *= loads.insns / max(insns, 1e-9)
    data = loads.data * share
    return _Loads(insns * (nest.latency + _LOAD + data), insns, loads.rows * share, loads.beats * share, data, loads.dry)


@part()
def _input_loads(nest, schedule, geometry, loads, whole, tiles, sp_tiles):  # type: ignore[no-untyped-def]
    """`_Loads` of a chunk of inputs."""
    chunks = float(tiles)
    if not nest.depthwise:
        chunks = float(whole * (tiles if INP_MODE[schedule.dataflow] == STREAM else sp_tiles * nest.groups))
    channels = min(schedule.tile_co, nest.co) if nest.depthwise else schedule.tile_ci
    real = max(geometry.real, 1)
    if nest.minor:
        rows = 1.0 if schedule.tile_ci >= nest.ci else geometry.loaded / real
    else:
        apart = geometry.compact - geometry.compact_apart
        rows = ((geometry.spread_rows + geometry.compact_apart) * channels + apart) / real
    beats = loads.inp_elements * nest.inp_bytes / nest.bus / chunks
    return _loads(nest, max(loads.inp_insns / chunks, 1e-9), rows, beats)


@part()
def _weight_loads(nest, schedule, loads, whole, co_tiles, sp_tiles):  # type: ignore[no-untyped-def]
    """`_Loads` of a chunk of weights; of a pool none."""
    if nest.pool:
        return _Loads(0.0, 0.0, 1.0, 1.0, 0.0, 0.0)
    chunks = float(whole * co_tiles * (sp_tiles if WGT_MODE[schedule.dataflow] == STREAM else 1))
    rows = 1.0 if whole == 1 else float(min(schedule.tile_co, nest.co))
    return _loads(nest, 1.0, rows, loads.wgt_beats / chunks)


@part()
def _store_time(nest, insns, rows, elements):  # type: ignore[no-untyped-def]
    """Cycles of STOREs of so many rows and elements."""
    beats = max(np.ceil(elements * nest.inp_bytes / nest.bus / rows), 1.0)
    bursts = max(1.0, beats / nest.burst)
    row = beats + 4.0 * bursts
    if nest.inp_bytes > nest.bus:
        row = beats + beats / max(nest.block // nest.bus, 1) + 3.0 * bursts
    return rows * row + 2.0 * insns


@part()
def _biases(nest, schedule, area):  # type: ignore[no-untyped-def]
    """Of the biases of a tile of ``area`` outputs: (cycles beyond `totals`', LOADs, cycles of the data and bursts of
    one, beats of all)."""
    if nest.bias == 0 or schedule.bias != BIAS_LOAD:
        return 0.0, 0.0, 0.0, 0.0, 0.0
    tco = min(schedule.tile_co, nest.co)
    insns = bias_shape(nest, tco, schedule.tile_h, schedule.tile_w)[0]
    beats = max(nest.acc_bytes // nest.bus, 1)
    rows, data = area / insns / (tco if nest.minor else 1), area * beats / insns
    # What the rows take, which may be of one beat and drain the memory's queue, in place of what `totals` counts.
    own, dry = _stream(nest, rows, data)
    cycles = insns * (nest.latency + 1.0 + own) - area * (beats if nest.minor else max(beats, 2))
    bursts = rows * np.ceil(data / rows / nest.burst)
    if dry > 0.0 or not _waits(data, bursts):
        bursts = 0.0
    return cycles, float(insns), own, bursts, area * beats


@part()
def _tile(nest, schedule, reduction, compute, gemm, tiles, outputs):  # type: ignore[no-untyped-def]
    """The `_Tile` of a schedule; ``gemm``: cycles of all its GEMMs."""
    tco, area, steps = min(schedule.tile_co, nest.co), outputs / float(tiles), float(reduction.steps)
    stages, stage_cycles = stage_passes(nest)
    chunks = float(reduction.whole)
    if tiles > 1:
        first = tapered_chunks(schedule, nest.ci, reduction.whole) + reduction.parts - 1
        chunks = (reduction.steps - first) / float(tiles - 1)
    # Where every tile waits for its stores, each is cut into pieces.
    pc, ph, pw = tco, schedule.tile_h, schedule.tile_w
    if schedule.acc_buffers == 1:
        pc, ph, pw = pieces(nest, tco, ph, pw, schedule.drain)
    cuts = ceil_div(tco, pc) * ceil_div(schedule.tile_h, ph) * ceil_div(schedule.tile_w, pw)
    insns, rows, _, _ = output_shape(nest, pc, ph, pw)
    bias, biases, bias_data, bias_bursts, bias_beats = _biases(nest, schedule, area)
    end = (compute - gemm - 8.0) / tiles + 7.0 * stages * (cuts - 1) + bias
    end_insns = 1.0 + stages * cuts + (nest.pre_shift >= 0) + nest.residual + max(biases - 1.0, 0.0)
    end_insns += nest.bias and schedule.bias != BIAS_LOAD
    stores = _store_time(nest, insns * cuts, float(insns * rows * cuts), area)
    exposed = 0.0
    if schedule.acc_buffers == 1:
        exposed = max(stores / cuts, stores - stage_cycles * area * (1.0 - 1.0 / cuts)) + 4.0
    elif insns > nest.queue:
        exposed = (insns - nest.queue) * stores / insns
    residual, residual_insns = 0.0, 0.0
    if nest.residual:
        many, rows, _, _ = output_shape(nest, tco, schedule.tile_h, schedule.tile_w)
        residual_insns = float(many)
        residual = _loads(nest, residual_insns, float(many * rows), area * nest.inp_bytes / nest.bus).cycles
    return _Tile(
        chunks, gemm / steps, reduction.gemms / steps, end, end_insns, stores, float(insns * cuts), exposed, biases,
        bias_data, bias_bursts, bias_beats, residual, residual_insns,
    )  # fmt: skip


@part()
def _fetch(nest):  # type: ignore[no-untyped-def]
    """The `_Fetch` of an accelerator."""
    if nest.bus > 8:
        beats = np.ceil(16.0 * nest.burst / nest.bus)
        return _Fetch(float(nest.burst), beats, nest.latency + 8.0 + beats)
    insns = float(max(nest.burst // 2, 1))
    return _Fetch(insns, 2.0 * insns, nest.latency + 6.0 + 2.0 * insns)


@part()
def _windows(nest, schedule, tile, fetch, inner, read):  # type: ignore[no-untyped-def]
    """The `_Windows` of a schedule; ``inner``: tiles of the inner loop; ``read``: share of a step after which its
    operands have been read."""
    queue, last, pool = float(nest.queue), tile.end + tile.exposed, nest.pool != 0
    inp_mode, wgt_mode = INP_MODE[schedule.dataflow], WGT_MODE[schedule.dataflow]
    of_gemm = tile.step / max(tile.gemms, 1e-9)
    queue_within = min(tile.step, queue * of_gemm)
    # The last before a tile's first step are the LOADs of its biases.
    waiting = tile.biases * (nest.latency + 1.0 + tile.bias_data)
    if queue <= tile.biases:
        queue_start = waiting * queue / tile.biases
    elif queue <= tile.end_insns:
        queue_start = waiting + (last - waiting) * (queue - tile.biases) / (tile.end_insns - tile.biases)
    else:
        queue_start = last + (queue - tile.end_insns) * of_gemm
        insns = tile.end_insns + tile.chunks * tile.gemms
        queue_start = max(queue_start, queue / insns * (tile.chunks * tile.step + last))
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
        ring_start, ring_within = last + (1.0 - read) * tile.step, (1.0 - read) * tile.step
    refill = _EVER
    if inp_mode == SET or (wgt_mode == SET and not pool):
        refill = inner * (tile.chunks * tile.step + last)
    single_set = (inp_mode == SET and schedule.inp_buffers == 1) or (
        wgt_mode == SET and schedule.wgt_buffers == 1 and not pool
    )
    if single_set:
        # A chunk is loaded when that of the tile before has been read.
        refill = (tile.chunks - 1.0) * tile.step + last
    return _Windows(queue_start, queue_within, second, ring_start, ring_within, refill, single, single_set)


@part()
def _taken(mode, outer_first, inner_first):  # type: ignore[no-untyped-def]
    """Whether tiles load an operand: those of the first turn of the outer loop, and those that are first in theirs."""
    if mode == STREAM:
        return True
    return bool(outer_first) if mode == ALL else bool(inner_first)


@part()
def _bias_latency(nest, tile, insns, each, last, follows):  # type: ignore[no-untyped-def]
    """How long the LOADs of a tile's biases wait for their data; ``insns``: LOADs that may begin when the last step of
    the tile before has been read, of ``each`` so many cycles beside the latency, and so many beats of the last burst.

    The first waits as long as what is in flight by then; a further one, as long as there are LOADs left, for the data
    of the next that found the biases' bursts in the queue; ``follows``: such a one is still there.
    """
    alone, other = nest.latency + _LOAD, tile.end + tile.exposed - tile.biases * (nest.latency + 1.0 + tile.bias_data)
    before = np.floor((max(other, 0.0) + last + _LOAD) / (alone + each))
    if before >= insns:
        return tile.biases * alone
    left = insns - before - 1.0
    # While another LOAD has bursts to send, those of biases wait: at most 15 are in the queue when it ends.
    more = min(max(np.ceil(tile.bias_bursts / (TAGS - 1.0)) - 1.0, 0.0), left)
    first = (before + 1.0) * (alone + each) - other + more * each
    # Where it waits longer than compute is busy, it is LOADs that tiles wait for.
    first = min(first, max(alone, tile.chunks * tile.step + other))
    behind = min(tile.biases - 1.0, left - more) if tile.bias_bursts > 0.0 and follows else 0.0
    return first + behind * each + (tile.biases - 1.0 - behind) * alone


@part()
def _tile_waits(nest, tile, windows, inputs, weights, loads_inp, loads_wgt, streams, refills, each):  # type: ignore[no-untyped-def]
    """How long compute waits in a tile for what is loaded for it; ``streams``: the tiles before it load, too;
    ``refills``: it loads a set of its own, ``each``: as every tile does. Below 0 where biases are there earlier than `_Tile` says."""
    group = loads_inp * inputs.cycles + loads_wgt * weights.cycles
    insns = loads_inp * inputs.insns + loads_wgt * weights.insns
    alone, one = nest.latency + _LOAD, tile.chunks < 1.5
    last, early, linked, first = tile.end + tile.exposed, 0.0, 0.0, group + one * tile.residual
    if tile.biases > 0.0 and insns > 0.0:
        data, bias = group - insns * alone, tile.biases * tile.bias_data
        loads = insns + one * tile.residual_insns
        # While biases wait, as all others come first, 15 of their bursts are in the queue when another LOAD ends.
        linked = tile.biases * np.ceil(tile.bias_bursts / (TAGS - 1.0))
        other = tile.chunks * tile.step + last - tile.biases * (nest.latency + 1.0) - bias
        dry = loads_inp * inputs.dry + loads_wgt * weights.dry
        if streams or each:
            burst = min(inputs.beats / inputs.rows if loads_inp else weights.beats / weights.rows, float(nest.burst))
            of = inputs if loads_inp and (inputs.insns > 1.5 or not loads_wgt) else weights
            follows = _waits(of.beats, of.rows * np.ceil(of.beats / of.rows / nest.burst))
            early = tile.biases * alone - _bias_latency(nest, tile, insns, data / insns, burst, follows)
            room = tile.end_insns + tile.chunks * tile.gemms <= nest.queue
            if one and room and not (windows.single or (refills and windows.single_set)) and dry == 0.0:
                held = (tile.biases - 1.0) * (data / insns + tile.bias_data)
                if tile.biases <= loads <= linked and other + held <= data - burst:
                    # LOADs and biases keep the memory's queue filled for each other.
                    both = data + bias + tile.residual - tile.residual_insns * alone
                    return both - tile.chunks * tile.step - last
        linked = min(linked, (loads if one or windows.single else 2.0 * loads) - 1.0)
        # One port carries both.
        first += tile.bias_beats - min(linked, loads) * nest.latency
    start = min(windows.queue_start, tile.step + last) if streams else windows.queue_start
    within = min(windows.queue_within, tile.step)
    if streams:
        start, within = min(start, windows.ring_start), min(within, windows.ring_within)
    if refills:
        start, within = min(start, windows.refill), min(within, windows.refill)
    start -= early
    if one:
        return max(0.0, first - start) - early
    rest, slack = tile.chunks - 1.0, first - start
    if not streams and group > 0.0:
        exposed = first + rest * (group - tile.step) + tile.residual - start
        return max(max(0.0, first - start), exposed) - early
    waits = max(0.0, slack)
    # The second group may begin when the tile before has been read, if the first is there.
    group_two = group - max(linked - insns, 0.0) * nest.latency + (rest < 1.5) * tile.residual
    ahead = max(windows.second - early - tile.step, 0.0) if streams and not windows.single else 0.0
    two = max(0.0, max(slack, -ahead) + group_two - waits - (tile.step if ahead > 0.0 else within))
    waits += min(rest, 1.0) * two
    waits += max(rest - (2.0 if rest >= 1.5 else 1.0), 0.0) * max(0.0, group - within)
    if rest >= 1.5:
        waits += max(0.0, group + tile.residual - within)
    return waits - early


@part()
def _in_chunks(tile, chunks):  # type: ignore[no-untyped-def]
    """The tile in so many steps."""
    share = tile.chunks / chunks
    return _Tile(
        chunks, tile.step * share, tile.gemms * share, tile.end, tile.end_insns, tile.stores, tile.store_insns,
        tile.exposed, tile.biases, tile.bias_data, tile.bias_bursts, tile.bias_beats, tile.residual,
        tile.residual_insns,
    )  # fmt: skip


@part()
def _ends(schedule, ci, tapered, whole):  # type: ignore[no-untyped-def]
    """Channels of the first and the last chunk of a tile that is reduced as the head says; the mean if all are alike."""
    if schedule.head != HEAD_DOUBLING or tapered < 2:
        return ci / tapered, ci / tapered
    before, size = 0, 1
    for _ in range(tapered - 1):
        before += size
        size = min(2 * size, schedule.tile_ci)
    return 1.0, float(ci - before)


@part()
def _all_waits(nest, schedule, tile, fetch, whole_inp, whole_wgt, read, whole, parts, co_tiles, sp_tiles):  # type: ignore[no-untyped-def]
    """The `_Waited` of all tiles: of the very first one, of those that load one operand or both, and of others;
    ``whole_inp``, ``whole_wgt``: `_Loads` of a chunk of those tiles that are not reduced as the head says; ``read``:
    see `_windows`."""
    inp_mode, wgt_mode = INP_MODE[schedule.dataflow], WGT_MODE[schedule.dataflow]
    outer, inner = (co_tiles, sp_tiles) if outer_is_co(schedule.dataflow) else (sp_tiles, co_tiles)
    # Groups have inputs of their own.
    outer_firsts, inner_firsts = (nest.groups, 1) if outer_is_co(schedule.dataflow) else (1, nest.groups)
    if nest.depthwise:
        outer_firsts, inner_firsts = 1, 1
    always = inp_mode == STREAM or (wgt_mode == STREAM and not nest.pool)
    tapered = tapered_chunks(schedule, nest.ci, whole)
    first_steps = tapered + parts - 1
    # The first group of the first tile is the opening's; each step hides the loads of the next one, the last none.
    after = max(first_steps - 1, 1)
    first = _in_chunks(tile, float(first_steps))
    first_channels, last_channels = _ends(schedule, nest.ci, tapered, whole)
    step = first.step * first_steps * (1.0 - last_channels / nest.ci) / after
    windows = _windows(nest, schedule, first, fetch, inner / inner_firsts, read)
    window = min(windows.queue_within, step)
    if always:
        window = min(window, windows.ring_within * step / first.step)
    # The identity and the constants of GEMMs that add are loaded with its last group.
    others = float(nest.residual)
    loading = others * (nest.latency + _LOAD + nest.wgt_bytes / nest.bus)
    if nest.bias and schedule.bias == BIAS_GEMM:
        others += 2.0
        loading += 2.0 * (nest.latency + _LOAD) + nest.out_blocks * nest.wgt_bytes / nest.bus
    inputs = _smaller(nest, whole_inp, whole / first_steps)
    weights = _smaller(nest, whole_wgt, whole / first_steps)
    group = inputs.cycles + weights.cycles
    mean = group * (1.0 + (1.0 - first_channels * first_steps / nest.ci) / after)
    waits = (first_steps - 1) * max(0.0, mean - window) + tile.residual + loading
    loading += group * first_steps + tile.residual
    inp_insns, wgt_insns = inputs.insns * first_steps, weights.insns * first_steps
    others += tile.residual_insns
    for kind in range(4):
        outer_first, inner_first = kind < 2, kind % 2 == 0
        many = float(outer_firsts if outer_first else outer - outer_firsts)
        many *= inner_firsts if inner_first else inner - inner_firsts
        # Without the very first tile.
        many -= kind == 0
        if many <= 0.0:
            continue
        loads_inp, loads_wgt = _taken(inp_mode, outer_first, inner_first), _taken(wgt_mode, outer_first, inner_first)
        # As `tiles.is_tapered` says; of many groups it is the first one alone.
        first_co = (outer_first if outer_is_co(schedule.dataflow) else inner_first) and outer_firsts * inner_firsts == 1
        tapers = (nest.minor and inp_mode != STREAM) or (wgt_mode != STREAM and first_co)
        tile = _in_chunks(tile, float(tapered if tapers else whole))
        windows = _windows(nest, schedule, tile, fetch, inner / inner_firsts, read)
        inputs = _smaller(nest, whole_inp, whole / tile.chunks)
        weights = _smaller(nest, whole_wgt, whole / tile.chunks)
        group = loads_inp * inputs.cycles + loads_wgt * weights.cycles
        if group + tile.residual <= 0.0:
            continue
        loading += many * (tile.chunks * group + tile.residual)
        inp_insns += many * tile.chunks * loads_inp * inputs.insns
        wgt_insns += many * tile.chunks * loads_wgt * weights.insns
        others += many * tile.residual_insns
        streams, each = always or outer_first, inner == inner_firsts
        waits += many * _tile_waits(
            nest, tile, windows, inputs, weights, loads_inp, loads_wgt, streams, inner_first, each
        )
    return _Waited(loading, inp_insns, wgt_insns, others, waits)


@part()
def _opening(nest, schedule, geometry, reduction, tile, fetch, uops, start, more):  # type: ignore[no-untyped-def]
    """Cycles from the first instruction until compute has the first operands; ``start``: of compute before them;
    ``more``: whether there are more instructions than a chunk."""
    channels = min(schedule.tile_co, nest.co) if nest.depthwise else reduction.first_chunk
    beats = geometry.loaded_first * channels * nest.inp_bytes / nest.bus
    insns = 1.0 if geometry.compact_first else float(channels)
    # What is fetched meanwhile keeps the memory's queue from running empty.
    others = (uops * 4.0 + 16.0 * fetch.insns * more) / nest.bus
    loads = insns * (nest.latency + _LOAD) + beats - nest.latency * min(insns, others / (beats / insns + _LOAD))
    weights = 0.0 if nest.pool else float(reduction.part * reduction.first_chunk * nest.kh * nest.kw)
    weights = weights * nest.wgt_bytes / nest.bus
    loads += nest.latency + _LOAD + weights
    port = nest.latency + _LOAD + uops * 4.0 / nest.bus + tile.bias_beats + beats + weights
    own = nest.latency + _LOAD + uops * 4.0 / nest.bus + start + tile.biases * (nest.latency + 1.0 + tile.bias_data)
    if nest.bias and schedule.bias == BIAS_ADD:
        own += nest.latency + _LOAD
    return max(loads, max(own, port))


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
    tile = _tile(nest, schedule, reduction, compute, gemm, tiles, outputs)
    fetch = _fetch(nest)
    inputs = _input_loads(nest, schedule, geometry, loads, reduction.whole, tiles, sp_tiles)
    weights = _weight_loads(nest, schedule, loads, reduction.whole, co_tiles, sp_tiles)
    waited = _all_waits(
        nest, schedule, tile, fetch, inputs, weights, read, reduction.whole, reduction.parts, co_tiles, sp_tiles
    )

    ahead = min(float(start), tile.end)
    before = min(ahead + tile.biases * (nest.latency + 1.0 + tile.bias_data), tile.end)
    computes = reduction.gemms + tiles * tile.end_insns
    stores = tiles * tile.store_insns
    loadings = waited.inp_insns + waited.wgt_insns + waited.others
    insns = computes + loadings + stores + 3.0
    if nest.pool:
        insns += geometry.resets * nest.nb * co_tiles - tiles
    opening = _opening(nest, schedule, geometry, reduction, tile, fetch, uops, ahead, insns > fetch.insns)
    busy = gemm + 8.0 + tile.end * tiles
    exposed = tile.exposed * (tiles - 1)
    beats = loads.inp_beats + loads.wgt_beats + tile.bias_beats * tiles
    middle = max(busy - before + waited.waits + exposed, max(tiles * tile.stores, beats - opening))
    # A program may be shorter than a chunk.
    first = fetch.cycles - fetch.beats * max(1.0 - insns / fetch.insns, 0.0)
    guess = first + opening + middle + store_cycles(nest, drain.last, 1) + 3.0

    # As many instructions as the queues hold are ahead of what is executed.
    room = nest.queue * insns / max(computes, max(loadings, stores))
    late = max(0.0, fetch.cycles - min(fetch.insns, room) * guess / insns)
    # While data stream in, chunks come without a latency, until the queues are full.
    each, most = _CHUNK + fetch.beats, room / fetch.insns
    groups = max(waited.inp_insns / max(inputs.insns, 1e-9), max(waited.wgt_insns, 1.0))
    data = waited.inp_insns * inputs.beats + waited.wgt_insns * weights.beats + tiles * tile.bias_beats
    free = groups * min(data / groups / each, most)
    chunks = np.ceil(insns / fetch.insns)
    row.fetch_waits = max(chunks - 1.0 - free, 0.0) * late
    # Those of one beat empty the memory's queue.
    drained = groups * np.floor(min(free, chunks - 1.0) / groups * _singles(nest, fetch.beats) / TAGS)
    row.fetch_waits += drained * max(nest.latency + 2.0 - TAGS, 0.0)
    row.waiting = guess + row.fetch_waits
    row.computing, row.loading, row.storing, row.fetching = (
        busy,
        waited.loading,
        tiles * tile.stores,
        chunks * fetch.cycles,
    )
    row.opening, row.load_waits, row.store_waits = opening, waited.waits, exposed


@njit(cache=True, nogil=True)
def waits_into(nest, batch, uops, out, records, tags):  # type: ignore[no-untyped-def]
    """Waits of canonical schedules (n,) with their micro-ops, float64 (n,), into `waits_of` them; with a
    `geometry_table`."""
    for n in range(len(batch)):
        _wait(nest, batch[n], geometry_of(nest, batch[n], records, tags), uops[n], out[n])
