"""What the compiled functions of the timing model share: parameters, the state of a run, and what is recorded of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.kernels import njit
from oneshot_ml2.common.parts import part
from oneshot_ml2.vta.hls_keys import RATES
from oneshot_ml2.vta.program import Memory, element_bytes
from oneshot_ml2.vta.writing import fill

if TYPE_CHECKING:
    from oneshot_ml2.vta.accelerator import Accelerator

# Later than all events.
NEVER = 1 << 60
# Clients of the read port, in order of priority.
CLIENTS = ("fetch", "UOP", "INP", "WGT", "ACC")
FETCH_CLIENT = 0
# By memory id: UOP, WGT, INP, ACC.
CLIENT_OF_MEMORY = np.array((1, 3, 2, 4))
# Bursts that may be outstanding, and how many of the latest are kept.
TAGS = 16
KEPT = 32


def _record(*names: str) -> list[tuple[str, type[np.int64]]]:
    return [(name, np.int64) for name in names]


# The fields of `PARAMETERS` that are of the HLS design.
HLS_RATES = tuple(f"hls_{name}" for name in RATES)
# What the timing of an accelerator depends on, a record that compiled code gets a pointer to: the logarithm of the
# bus's bytes, beats of the longest burst, the memory's latency in cycles, instructions in a module's queue, the mask of
# a count of micro-ops, beats of a row of the OUT SRAM (at least 1), and whether an OUT element takes more than a beat;
# element bytes; and beats of the SRAMs of tensors whose elements take more than one, else 0. Last, whether the design
# is HLS, and then what its time is made of, in 1/TICKS cycles.
PARAMETERS = np.dtype(
    (
        np.record,
        _record(
            "log_bus", "burst", "latency", "queue", "uop_mask", "store_row", "store_narrow",
            "uop_bytes", "wgt_bytes", "inp_bytes", "acc_bytes", "out_bytes",
            "uop_beats", "wgt_beats", "inp_beats", "acc_beats", "hls", *HLS_RATES,
        ),
    )
)  # fmt: skip
Parameters: TypeAlias = np.record


def params(accelerator: Accelerator) -> Parameters:
    """The `PARAMETERS` of an accelerator."""
    a, sizes = accelerator, element_bytes(accelerator)
    p: np.record = np.zeros(1, PARAMETERS)[0]
    p.log_bus, p.burst, p.latency = a.bus_bytes.bit_length() - 1, a.burst_beats, a.memory_latency
    p.queue, p.uop_mask = a.instruction_queue, (2 << a.isa_uop_bits) - 1
    p.store_row, p.store_narrow = max(1, a.block // a.bus_bytes), sizes[Memory.OUT] > a.bus_bytes
    p.out_bytes = sizes[Memory.OUT]
    depths = {Memory.UOP: a.uop_depth, Memory.WGT: a.wgt_depth, Memory.INP: a.inp_depth, Memory.ACC: a.acc_depth}
    for memory, depth in depths.items():
        name, size = memory.name.lower(), sizes[memory]
        p[f"{name}_bytes"], p[f"{name}_beats"] = size, depth * size // a.bus_bytes if size > a.bus_bytes else 0
    if a.hls is not None:
        p.hls = 1
        for name in RATES:
            p[f"hls_{name}"] = getattr(a.hls, name)
    return p


# A read burst in the order of the channel: its client, its instruction (of a fetch the first one, -1 if it has ended),
# when it could be sent, was sent, was taken by the memory, and its beats, on the channel in the cycles after that.
BURST = np.dtype(_record("client", "insn", "asked", "sent", "taken", "beats"))
# A module: its queue's ring; its next event, 2 * cycle for "done before this cycle" or 2 * cycle + 1 for "starts in
# this cycle"; when its instruction started, or -1; its execution cycles so far.
_MODULE = _record("head", "tail", "held", "event", "started", "busy")
# A place of a queue: an instruction, and the cycle in which it entered.
PLACE = np.dtype(_record("insn", "entered"))
# Fetch: instructions read and given out; the cycle from which the chunk can be; the cycles in which the
# latest two instructions entered their queues; instructions in the two-entry pipe of a wide bus, and when its entries
# were filled; the module whose queue is full, or -1; whether to ask for a chunk, from which cycle, and to give out.
_FETCH = _record(
    "read", "given", "base", "entered", "entered_before", "piped", "pipe_even", "pipe_odd", "blocked",
    "asks", "command", "gives",
)  # fmt: skip
# The read channel: bursts sent, and those whose last beat is past; the last sending; when the memory took the latest
# burst, and is free for the next one.
_CHANNEL = _record("sent", "passed", "last_send", "taken", "free")
# A read client: element bytes and SRAM beats of its memory, as of `PARAMETERS`; its instruction, of a chunk the first
# one; the first cycle in which its command may
# be sent; the bus words [word, end) left of its row, rows left,
# address, stride and bytes of a row; its module; cycles from the last beat to the last execution cycle.
# A command that a load which ended early leaves in the slot: its beats (0: none), and when the next one may be sent.
# The pad writer, if ``padded``: its next cycle, and cycles of work left: zero rows above, zeros beside the data, data
# rows to skip, zero rows below.
# Of a narrow client whose counter of outstanding beats may go wrong (else ``capacity`` 0): the counter's capacity, the
# beats of this load, those counted before it, sent so far, bursts; the cycle of its last command; whether it counts.
_CLIENT = _record(
    "size", "beats", "insn", "eligible", "word", "end", "rows", "address", "stride", "bytes",
    "module", "delay", "orphan", "waiting",
    "padded", "pad_next", "above", "beside", "skipped", "below",
    "capacity", "total", "base", "sent", "bursts", "fill", "live",
)  # fmt: skip
# A burst of a narrow client: on the channel in cycles [start + 1, end], and the client's beats up to its end.
_BEATS = _record("start", "end", "sum")
# Cycles of compute's instructions, and what the memory port carries.
_WORK = _record("gemm", "alu", "read_beats", "write_beats", "write_bursts")


# All that changes in a run but the queues. ``tokens``: by `tokens.QUEUES`; ``kept``, ``last_beats``: rings.
# ``burst``: where the latest one goes if it is not recorded.
MACHINE = np.dtype(
    [
        ("fetch", _FETCH),
        ("modules", _MODULE, (3,)),
        ("tokens", np.int64, (4,)),
        ("clients", _CLIENT, (len(CLIENTS),)),
        ("kept", _BEATS, (len(CLIENTS), KEPT)),
        ("channel", _CHANNEL),
        ("last_beats", np.int64, (KEPT,)),
        ("work", _WORK),
        ("burst", BURST),
    ]
)


class Recording(NamedTuple):
    """What is recorded of a run, as far as the arrays reach.

    Attributes:
        trace: int64 (n, 2) for every instruction's execution cycles [start, done), -1 where it did not start or end
            before FINISH; or int64 (0, 2).
        queued: int64 (m,) for the cycle in which each of the first m instructions entered its queue, -1 if it did not.
        bursts: `BURST` (m,) for the first m read bursts.
    """

    trace: NDArray[np.int64]
    queued: NDArray[np.int64]
    bursts: NDArray[np.void]


class Counters(NamedTuple):
    """Execution cycles of the modules; of compute's those of GEMMs and of ALU instructions; beats and bursts."""

    load: int
    compute: int
    store: int
    gemm: int
    alu: int
    read_beats: int
    write_beats: int
    read_bursts: int
    write_bursts: int


@njit(cache=True, nogil=True, forceinline=True)
def nothing():  # type: ignore[no-untyped-def]
    """A `Recording` of nothing."""
    return Recording(np.empty((0, 2), np.int64), np.empty(0, np.int64), np.empty(0, BURST))


@part()
def start(machine, p):  # type: ignore[no-untyped-def]
    """Bring a machine of zeros to the state before the first cycle."""
    fetch, channel, clients = machine.fetch, machine.channel, machine.clients
    fetch.entered = fetch.entered_before = fetch.pipe_even = fetch.pipe_odd = fetch.blocked = channel.last_send = -1
    channel.taken = -NEVER
    fill(machine.last_beats, -1)
    for m in range(3):
        machine.modules[m].event, machine.modules[m].started = NEVER, -1
    for c in range(len(CLIENTS)):
        client = clients[c]
        client.eligible, client.waiting, client.module = NEVER, NEVER, -1
    clients[1].size, clients[1].beats = p.uop_bytes, p.uop_beats
    clients[2].size, clients[2].beats = p.inp_bytes, p.inp_beats
    clients[3].size, clients[3].beats = p.wgt_bytes, p.wgt_beats
    clients[4].size, clients[4].beats = p.acc_bytes, p.acc_beats
