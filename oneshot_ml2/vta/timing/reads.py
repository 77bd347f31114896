"""The read port: when bursts are sent and served, what loads write beside data, and when they end.

The channel is first-come first-served, so the cycle in which a burst is served follows from the bursts before it the
moment it is sent.
"""

from __future__ import annotations

from oneshot_ml2.common.parts import part
from oneshot_ml2.vta.timing.records import CLIENT_OF_MEMORY, CLIENTS, FETCH_CLIENT, KEPT, NEVER, TAGS


@part(forceinline=True)
def _advance(client, work, limit):  # type: ignore[no-untyped-def]
    """Let the pad writer do ``work`` cycles before cycle ``limit``; returns what is left of them."""
    done = min(work, max(limit - client.pad_next, 0))
    client.pad_next += done
    return work - done


@part(forceinline=True)
def _pad(client, first, last):  # type: ignore[no-untyped-def]
    """Let the pad writer work until cycle ``last``, where data is written in ``first``..``last``.

    Zeros need a cycle without data, skipping does not.
    """
    client.above = _advance(client, client.above, first)
    if client.above == 0:
        client.beside = _advance(client, client.beside, first)
    if client.above + client.beside == 0:
        client.skipped = _advance(client, client.skipped, last + 1)
    if client.above + client.beside + client.skipped == 0:
        client.below = _advance(client, client.below, first)
    if client.pad_next >= first and _pads_left(client) > 0:
        client.pad_next = max(client.pad_next, last + 1)


@part(forceinline=True)
def _pads_left(client):  # type: ignore[no-untyped-def]
    return client.above + client.beside + client.skipped + client.below


@part(forceinline=True)
def _counter_end(client, kept, c, pad_end):  # type: ignore[no-untyped-def]
    """First cycle at which a narrow loader's counter of outstanding beats reads 0, or NEVER if that is not known yet.

    ``kept[c]``: the client's latest bursts. A beat on the channel in cycle c is counted from c + 3 on. The counter runs
    modulo the SRAM's capacity, and counts whatever arrives, so it may read 0 early.
    """
    received = client.total % client.capacity
    if client.bursts > KEPT:
        # Bursts no longer kept were counted long ago: at most TAGS + 1 are outstanding.
        oldest = kept[c, client.bursts % KEPT]
        gone = oldest.sum - (oldest.end - oldest.start) - client.base
        if gone > received:
            received += -(-(gone - received) // client.capacity) * client.capacity
    while client.base + received <= client.sent:
        low = max(client.fill, pad_end) + 1
        high = NEVER
        target = client.base + received
        for b in range(max(0, client.bursts - KEPT), client.bursts):
            burst = kept[c, b % KEPT]
            before = burst.sum - (burst.end - burst.start)
            if received > 0 and before < target <= burst.sum:
                low = max(low, burst.start + target - before + 3)
            if before < target + 1 <= burst.sum:
                high = burst.start + target + 1 - before + 2
        if low <= high:
            return low
        received += client.capacity
    return NEVER


@part(forceinline=True)
def next_send(channel, clients, last_beats):  # type: ignore[no-untyped-def]
    """The cycle in which the next burst can be sent, NEVER without any, and how many bursts are past by then."""
    first = clients[0].eligible
    for c in range(1, len(CLIENTS)):
        first = min(first, clients[c].eligible)
    if first == NEVER:
        return first, channel.passed
    cycle = max(first, channel.last_send + 1)
    if channel.sent >= TAGS:
        cycle = max(cycle, last_beats[(channel.sent - TAGS) % KEPT] + 1)
    # No sending beside a last beat.
    passed = channel.passed
    while passed < channel.sent and last_beats[passed % KEPT] <= cycle:
        if last_beats[passed % KEPT] == cycle:
            cycle += 1
        passed += 1
    return cycle, passed


@part(forceinline=True)
def send(cycle, passed, n_insns, p, machine, modules, clients, kept, last_beats, burst):  # type: ignore[no-untyped-def]
    """Send one burst of the first client that is eligible in a cycle of `next_send`.

    ``burst``: a `BURST` record to fill.
    """
    channel, fetch = machine.channel, machine.fetch
    c = 0
    while clients[c].eligible > cycle:
        c += 1
    client = clients[c]
    lost = client.orphan
    beats = lost if lost > 0 else min(client.end - client.word, p.burst - (client.word & (p.burst - 1)))
    # The latency is paid whenever the request queue was empty.
    taken = max(cycle + 1 if cycle <= channel.taken else cycle + 1 + p.latency, channel.free)
    last = taken + beats
    burst.client, burst.insn, burst.asked = c, client.insn if lost == 0 else -1, client.eligible
    burst.sent, burst.taken, burst.beats = cycle, taken, beats
    channel.last_send, channel.passed = cycle, passed
    channel.taken, channel.free = taken, last
    last_beats[channel.sent % KEPT] = last
    channel.sent += 1
    machine.work.read_beats += beats
    more = _next_command(client, cycle, beats, p)
    if c != FETCH_CLIENT:
        _receive(client, kept, c, modules, taken, last, more, p)
    elif not more:
        wide = p.log_bus > 3
        fetch.read = min(fetch.read + (p.burst if wide else p.burst // 2), n_insns)
        fetch.base = last + (4 if wide else 2)
        fetch.gives = fetch.blocked < 0


@part(forceinline=True)
def _next_command(client, cycle, beats, p):  # type: ignore[no-untyped-def]
    """Make a client ready for the burst after one of so many beats; returns whether its load has more to ask for."""
    if client.orphan > 0:
        client.orphan = 0
        client.eligible = max(client.waiting, cycle + 2) if client.waiting < NEVER else NEVER
        client.waiting = NEVER
        return True
    more = True
    client.word += beats
    if client.word == client.end:
        client.rows -= 1
        if client.rows > 0:
            client.address += client.stride
            client.word = client.address >> p.log_bus
            client.end = (client.address + client.bytes + (1 << p.log_bus) - 1) >> p.log_bus
        else:
            more = False
    client.eligible = cycle + 2 if more else NEVER
    return more


@part(forceinline=True)
def _receive(client, kept, c, modules, taken, last, more, p):  # type: ignore[no-untyped-def]
    """Account for a burst of a load on the channel in cycles [taken + 1, last]; ``more`` follow."""
    if client.padded:
        _pad(client, taken + client.delay, last + client.delay - 1)
    if client.capacity == 0:
        if not more:
            final = last + client.delay
            if client.padded:
                final = max(final, client.pad_next + _pads_left(client))
            modules[client.module].event = 2 * (final + 1)
        return
    burst = kept[c, client.bursts % KEPT]
    client.bursts += 1
    client.sent += last - taken
    burst.start, burst.end, burst.sum = taken, last, client.sent
    if not client.live:
        return
    rest = client.end - client.word
    if more and client.rows == 1 and rest <= p.burst - (client.word & (p.burst - 1)):
        client.fill = client.eligible - 1
    if client.fill < NEVER and (not more or not client.padded or _pads_left(client) == 0):
        _end_by_counter(client, kept, c, modules, rest if more else 0)


@part(forceinline=True)
def _end_by_counter(client, kept, c, modules, rest):  # type: ignore[no-untyped-def]
    """End a narrow load if its counter reads 0; ``rest``: beats of a command that then stays in the slot."""
    pad_end = client.pad_next + _pads_left(client) - 1 if client.padded else -1
    end = _counter_end(client, kept, c, pad_end)
    if end < NEVER:
        client.live = 0
        modules[client.module].event = 2 * (end + 1)
        client.orphan = rest if rest > 0 else client.orphan


@part(forceinline=True)
def begin_load(insn, i, m, at, p, modules, clients, kept):  # type: ignore[no-untyped-def]
    """Module ``m`` starts a LOAD of at least one row, instruction ``i``, in cycle ``at``."""
    c = CLIENT_OF_MEMORY[insn.mem]
    client = clients[c]
    size, capacity = client.size, client.beats
    narrow = capacity > 0
    client.insn, client.module, client.delay = i, m, 3 if narrow else 2
    client.address, client.bytes, client.stride = insn.dram * size, insn.x * size, insn.stride * size
    client.rows = insn.y
    client.word = client.address >> p.log_bus
    client.end = (client.address + client.bytes + (1 << p.log_bus) - 1) >> p.log_bus
    sides = insn.left + insn.right
    client.padded = insn.top + insn.bottom + sides > 0
    if client.padded:
        width = insn.x + sides
        client.pad_next = at + 2 if narrow else at + 1
        client.above, client.beside, client.below = insn.top * width, insn.y * sides, insn.bottom * width
        client.skipped = insn.y if sides == 0 and insn.bottom > 0 else 0
    eligible = at + 2 + insn.top
    if client.orphan > 0:
        client.waiting = eligible
    else:
        client.eligible = eligible
    if narrow and (client.capacity > 0 or insn.y * client.bytes >= capacity << p.log_bus):
        # The counter of this load may read 0 early, or beats of an earlier one still arrive.
        _begin_counting(client, kept, c, modules, at, eligible, p)


@part(forceinline=True)
def _begin_counting(client, kept, c, modules, at, eligible, p):  # type: ignore[no-untyped-def]
    client.capacity = client.beats
    client.total = client.rows * (client.bytes >> p.log_bus)
    client.base = client.sent
    for b in range(max(0, client.bursts - KEPT), client.bursts):
        burst = kept[c, b % KEPT]
        if burst.end > at - 2:
            client.base -= burst.end - max(burst.start, at - 2)
            if client.padded:
                _pad(client, burst.start + 3, burst.end + 2)
    fits = client.rows * client.bytes < client.beats << p.log_bus
    if client.base == client.sent and client.orphan == 0 and fits:
        client.capacity = 0
        return
    client.live, client.fill = 1, NEVER
    rest = client.end - client.word
    if client.rows == 1 and client.orphan == 0 and rest <= p.burst - (client.word & (p.burst - 1)):
        client.fill = eligible - 1
        if not client.padded:
            _end_by_counter(client, kept, c, modules, rest)
