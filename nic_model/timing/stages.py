"""The timing rules of the device, stage by stage, in packet order.

One statement for two users: the event-driven device (`nic_model.timed_device`) calls them with what it reads from host
memory, the kernel (`nic_model.timing.kernel`) with columns of lengths. All are plain functions over three records: `p`,
what never changes (sizes, cycles, bus, MAC); `s`, numbers that do; `q`, queues and tables. Numba compiles them; without
it they are the same functions, slow.

Time is an edge of the device's clock. A stage is a *process* that acts at `s.at_...`; whoever is earliest acts, so that
all that share the bus come to it in the order of time. What needs no bus is computed at once, ahead of time:

    start = max(it arrives + latency, the stage is free, there is a credit)

A frame, a burst or a descriptor is one step, never a beat.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nic_model.timing.receive_rows import (
    DECIDED_TO_WRITE,
    GIVEN,
    GONE,
    NOTHING,
    ORDERS,
    OVER_TO_DECIDE,
    PARTS,
    PORT_BURSTS,
    ROW_HEADS,
    ROWS_KNOWN,
    TOKENS_IN_FLIGHT,
    follow_rows,
    move_rows,
    note_burst,
    order_rows,
    orders_done,
)
from nic_model.timing.rules import (
    BATCH_BYTES,
    BUFFERS,
    BURST,
    COMPLETED,
    COMPLETION_BYTES,
    DECIDE_AHEAD,
    DECIDE_FRAMES,
    DECIDE_JOB,
    DECIDE_READS,
    DECIDING,
    DROPPED,
    FETCH_ROOM,
    FETCH_SLOTS,
    FIFO_FULL,
    FRACTION_BITS,
    FRAME,
    HEADER_LEAVES,
    HEADER_SUMS,
    JOB,
    LEAVING,
    MAC_HEADER,
    MAC_WIRE,
    MATCHED,
    MAX_FRAME_BYTES,
    NEVER,
    NO_BUFFER,
    OUT_ROOM,
    OUTS,
    PAYLOAD,
    PS_PER_S,
    READ,
    READ_SLOT,
    RX_FETCH_SLOTS,
    RX_SLOT_BYTES,
    SLOT_BYTES,
    SLOTS,
    STREAM_DATA,
    STREAM_ROOM,
    STREAMING,
    WRITING,
    beats,
    edge_from,
    paced,
    parts,
    put,
    rows_between,
    rule,
    step,
    time_of,
    wait,
    work,
)

# ---------------------------------------------------------------------------------------------- the host bus
# As cosim/transactors/bus.h has it.


@rule
def below(s: Any, n: int) -> int:
    """A number from 0 to n - 1: SplitMix64."""
    s.random = s.random + np.uint64(0x9E3779B97F4A7C15)
    z = s.random
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return int(((z >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32))


@step
def moved(p: Any, length: int) -> int:
    """Fractions of a cycle that a burst keeps the bus."""
    return length * p.fractions_per_byte + (
        max(1, parts(length, p.max_payload)) * p.overhead_fractions if p.overhead_fractions else 0)


@step
def read_due(p: Any, s: Any, q: Any, edge: int, length: int) -> int:
    """Edge at which a read's data may reach the device, without what a bus out of order adds."""
    requests = 0
    if p.overhead_fractions or p.tags < TAGS_THAT_BIND:
        requests = max(1, parts(length, p.max_read_request))
    start = edge << FRACTION_BITS
    if p.tags < TAGS_THAT_BIND:
        for _ in range(requests):
            if s.tags_used >= p.tags:
                start = max(start, q.tag_free[s.tag_head & TAGS_THAT_BIND - 1])
                s.tag_head += 1
                s.tags_used -= 1
    if p.duplex:
        start = max(start, s.bus_up) + requests * p.overhead_fractions
        s.bus_up = start
        free = max(start + (p.read_latency << FRACTION_BITS), s.bus_down) + moved(p, length)
        s.bus_down = free
    else:
        free = max(start + (p.read_latency << FRACTION_BITS), s.bus_up) + moved(p, length)
        s.bus_up = free
    if p.tags < TAGS_THAT_BIND:
        for _ in range(requests):
            q.tag_free[(s.tag_head + s.tags_used) & TAGS_THAT_BIND - 1] = free
            s.tags_used += 1
            if s.tags_used > p.tags:
                s.tag_head += 1
                s.tags_used -= 1
    return free >> FRACTION_BITS


TAGS_THAT_BIND = 1024
"""More reads than the device ever has in flight."""


@step
def read(p: Any, s: Any, q: Any, edge: int, rows: int, client: int, entry: int) -> int:
    """A burst is asked for at an edge: the edge of its last beat on the bus, if that is known by now. On a bus out of
    order it is not; then `land` says it to the entry of the client's queue."""
    if p.traced:
        put(s, q, READ, edge, client, 0, 0, 0)
    due = read_due(p, s, q, edge, rows * p.host_bytes)
    if p.reorder == 0:
        s.r_last = max(due, s.r_last) + rows
        return s.r_last
    place = s.on_way
    burst = q.under_way_reads[place]
    burst.due = due + below(s, p.reorder + 1)
    burst.order = s.asked_for
    burst.rows = rows
    burst.client = client
    burst.entry = entry
    s.on_way += 1
    s.asked_for += 1
    s.at_land = min(s.at_land, max(burst.due, s.r_last))
    return NEVER


@rule
def land(p: Any, s: Any, q: Any) -> None:
    """Of all data that are due, the earliest take the bus."""
    earliest = q.under_way_reads[0]
    for place in range(1, s.on_way):
        other = q.under_way_reads[place]
        if other.due < earliest.due or (other.due == earliest.due and other.order < earliest.order):
            earliest = other
    client, entry = earliest.client, earliest.entry
    s.r_last = max(earliest.due, s.r_last) + earliest.rows
    s.on_way -= 1
    last = q.under_way_reads[s.on_way]
    earliest.due = last.due
    earliest.order = last.order
    earliest.rows = last.rows
    earliest.client = last.client
    earliest.entry = last.entry
    s.at_land = NEVER
    for place in range(s.on_way):
        s.at_land = min(s.at_land, max(q.under_way_reads[place].due, s.r_last))
    if client == PAYLOAD:
        q.payload_bursts[entry & ENTRIES - 1].landed = s.r_last
        stream_payload(p, s, q)
    elif client == SLOTS:
        q.slot_bursts[entry & ENTRIES - 1].landed = s.r_last
        stream_slots(p, s, q)
    else:
        q.buffer_bursts[entry & ENTRIES - 1].landed = s.r_last
        stream_buffers(p, s, q)


ENTRIES = 1024
RELEASES = 256


@step
def write(p: Any, s: Any, edge: int, length: int) -> int:
    """A burst's last beat has left at an edge: when it stands in memory."""
    s.bus_up = max(edge << FRACTION_BITS, s.bus_up) + moved(p, length)
    return s.bus_up >> FRACTION_BITS


# ---------------------------------------------------------------------------------------------- doorbell, fetch
# rtl/doorbells.py, rtl/fetch.py::FetchScheduler


@rule
def ring_bell(p: Any, s: Any, q: Any, edge: int, channel: int, slots: int) -> None:
    """A doorbell's beat at an edge tells of so many more slots."""
    q.channels[channel].producer += slots
    pend(p, s, q, channel, edge + p.bell_to_fetch)


@rule
def push(p: Any, s: Any, q: Any, edge: int, channel: int, slots: int) -> None:
    """A descriptor of so many slots was pushed, its last beat at an edge: it needs no fetch. Whoever calls sees to it
    that its channel has nothing else in its ring."""
    own = q.channels[channel]
    place = own.parsed & p.descriptors - 1
    own.producer += slots
    own.asked += slots
    own.consumed += slots
    _make_job(p, s, q, channel, place, edge + p.push_to_payload - p.slot_to_payload)
    own.parsed += 1


@rule
def pend(p: Any, s: Any, q: Any, channel: int, edge: int) -> None:
    """A channel has something to fetch from an edge on."""
    own = q.channels[channel]
    own.pending = min(own.pending, edge)
    if own.under_way < p.channel_fetches:
        s.at_fetch = min(s.at_fetch, max(edge, s.fetch_free))


@rule
def plan_fetch(p: Any, s: Any, q: Any) -> None:
    """When the next fetch is asked for."""
    earliest = NEVER
    for channel in range(p.channels):
        if q.channels[channel].under_way < p.channel_fetches:
            earliest = min(earliest, q.channels[channel].pending)
    s.at_fetch = NEVER if earliest == NEVER else max(earliest, s.fetch_free)


@rule
def fetch(p: Any, s: Any, q: Any) -> None:
    """Ask for the slots of the next channel that has work: as many as there are, and room for."""
    now = s.at_fetch
    chosen = -1
    for turn in range(1, p.channels + 1):
        channel = (s.fetch_last + turn) & p.channels - 1
        own = q.channels[channel]
        if own.pending <= now and own.under_way < p.channel_fetches:
            chosen = channel
            break
    if chosen < 0 or s.fetch_tail - s.fetch_head >= FETCHES_KEPT:
        s.fetch_free = now + 1
        plan_fetch(p, s, q)
        return
    channel = chosen
    s.fetch_last = channel
    count_freed(p, s, q, now)
    available = own.producer - own.asked
    room = p.queue_slots - (own.asked - own.freed)
    wanted = min(available, FETCH_SLOTS)
    own.pending = NEVER
    s.fetch_free = now + p.fetch_interval
    if available <= 0:
        pass
    elif room < p.least_fetch and room < wanted:
        own.starved_at = now
        _starve(p, s, q, channel)
    else:
        count = min(room, wanted)
        if available > count:
            own.pending = now + p.fetch_interval
        _cut_bursts(p, s, q, now, channel, count)
        if own.starved_at >= 0:
            wait(p, q, FETCH_ROOM, now - own.starved_at)
            own.starved_at = -1
        own.asked += count
        own.under_way += 1
    plan_fetch(p, s, q)


@rule
def _starve(p: Any, s: Any, q: Any, channel: int) -> None:
    """A channel waits for room; that which is already on its way may be enough."""
    own = q.channels[channel]
    most = own.asked - (p.queue_slots - p.least_fetch) - own.freed
    for number in range(s.freed_head, s.freed_tail):
        if q.freed_slots[number & FREED - 1].channel == channel:
            most -= q.freed_slots[number & FREED - 1].slots
            if most <= 0:
                own.pending = q.freed_slots[number & FREED - 1].edge
                return
    own.starved = 1


@rule
def _cut_bursts(p: Any, s: Any, q: Any, now: int, channel: int, count: int) -> None:
    """The bursts of a fetch."""
    own = q.channels[channel]
    place = s.fetch_tail & FETCHES_KEPT - 1
    q.fetches[place].channel = channel
    q.fetches[place].index = own.asked
    q.fetches[place].count = count
    q.fetches[place].issued = now
    index, left, number = own.asked & own.ring_slots - 1, count, 0
    while left > 0:
        at = index * SLOT_BYTES
        here = min(min(left, (BURST - (at & BURST - 1)) // SLOT_BYTES), own.ring_slots - index)
        q.fetch_bursts[place, number].at = at
        q.fetch_bursts[place, number].slots = here
        q.fetch_bursts[place, number].out = NEVER
        number += 1
        left -= here
        index = (index + here) & own.ring_slots - 1
    q.fetches[place].bursts = number
    s.fetch_tail += 1
    if s.at_slots == NEVER:
        s.at_slots = now


@rule
def read_slots(p: Any, s: Any, q: Any, horizon: int) -> None:
    """Ask for bursts of the oldest fetch, as far as there are landing slots and nobody else comes first. They stream
    out in order."""
    while s.slots_fetch < s.fetch_tail:
        place = s.slots_fetch & FETCHES_KEPT - 1
        while s.slots_burst < q.fetches[place].bursts:
            here = q.fetch_bursts[place, s.slots_burst].slots
            rows = rows_between(q.fetch_bursts[place, s.slots_burst].at, here * SLOT_BYTES, p.host_log2)
            slot = s.d_bursts & RELEASES - 1
            release = q.d_release[s.d_bursts - p.descriptor_reads & RELEASES - 1]
            edge = max(max(q.fetches[place].issued, s.d_ar_last + 1), release + p.slot_to_read)
            if edge > horizon:
                s.at_slots = edge if edge < NEVER else NEVER
                return
            s.d_ar_last = edge
            q.d_release[slot] = NEVER
            entry = s.d_bursts & ENTRIES - 1
            q.slot_bursts[entry].rows = rows
            q.slot_bursts[entry].slot = slot
            q.slot_bursts[entry].fetch = place
            q.slot_bursts[entry].burst = s.slots_burst
            q.slot_bursts[entry].landed = read(p, s, q, edge, rows, SLOTS, s.d_bursts)
            s.d_bursts += 1
            s.slots_burst += 1
            stream_slots(p, s, q)
            horizon = min(horizon, next_edge(s))
        s.slots_burst = 0
        s.slots_fetch += 1
    s.at_slots = NEVER


@rule
def stream_slots(p: Any, s: Any, q: Any) -> None:
    """Bursts of slots that have landed stream out, in order."""
    while s.d_streamed < s.d_bursts and q.slot_bursts[s.d_streamed & ENTRIES - 1].landed < NEVER:
        entry = s.d_streamed & ENTRIES - 1
        out = max(q.slot_bursts[entry].landed, s.d_out_free)
        s.d_out_free = out + q.slot_bursts[entry].rows
        q.d_release[q.slot_bursts[entry].slot] = s.d_out_free - 1
        q.fetch_bursts[q.slot_bursts[entry].fetch, q.slot_bursts[entry].burst].out = out
        s.d_streamed += 1
        if s.at_cut == NEVER:
            s.at_cut = out
    if s.at_slots == NEVER and s.slots_fetch < s.fetch_tail:
        release = q.d_release[s.d_bursts - p.descriptor_reads & RELEASES - 1]
        if release < NEVER:
            s.at_slots = max(q.fetches[s.slots_fetch & FETCHES_KEPT - 1].issued, release + p.slot_to_read)


FETCHES_KEPT = 16


# ---------------------------------------------------------------------------------------------- slots to jobs
# rtl/descriptor.py


@step
def _slot_out(p: Any, s: Any, q: Any) -> int:
    """When the cutter may have the next slot of its fetch."""
    return q.fetch_bursts[s.cut_fetch & FETCHES_KEPT - 1, s.cut_burst].out + (s.cut_slot + 1) * p.slot_cycles - 1


@step
def _take_slot(s: Any, q: Any) -> None:
    s.cut_slot += 1
    s.cut_left -= 1
    if s.cut_slot == q.fetch_bursts[s.cut_fetch & FETCHES_KEPT - 1, s.cut_burst].slots:
        s.cut_slot = 0
        s.cut_burst += 1
        if s.cut_burst == q.fetches[s.cut_fetch & FETCHES_KEPT - 1].bursts and s.cut_left > 0:
            s.cut_fetch += 1
            s.cut_burst = 0


@step
def _slots_are_asked(s: Any, q: Any, slots: int) -> int:
    """Whether the bursts of the next slots have been asked for."""
    fetch, burst, at = s.cut_fetch, s.cut_burst, s.cut_slot
    while True:
        place = fetch & FETCHES_KEPT - 1
        if q.fetch_bursts[place, burst].out >= NEVER:
            return 0
        slots -= q.fetch_bursts[place, burst].slots - at
        if slots <= 0:
            return 1
        at = 0
        burst += 1
        if burst == q.fetches[place].bursts:
            fetch += 1
            burst = 0


@rule
def cut(p: Any, s: Any, q: Any) -> None:
    """Take the next descriptor off the slots of the oldest fetch, if it is whole, and make a job of it.

    What a fetch cuts off goes on into the next, if that has been asked for by then and follows directly; else it is
    fetched again."""
    now = s.at_cut
    if not s.cutting:
        if s.fetch_tail == s.fetch_head:
            s.at_cut = NEVER
            return
        place = s.fetch_head & FETCHES_KEPT - 1
        s.cutting = 1
        s.cut_fetch = s.fetch_head
        s.cut_burst = s.cut_slot = 0
        s.cut_left = q.fetches[place].count
        s.cut_channel = q.fetches[place].channel
        s.cut_end = q.fetches[place].index + q.fetches[place].count
        s.cut_stale = q.channels[s.cut_channel].consumed != q.fetches[place].index
    channel = s.cut_channel
    own = q.channels[channel]
    if _slot_out(p, s, q) >= NEVER:
        s.at_cut = NEVER
        return
    if s.cut_stale:
        last = q.fetch_bursts[s.cut_fetch & FETCHES_KEPT - 1, q.fetches[s.cut_fetch & FETCHES_KEPT - 1].bursts - 1].out
        if last >= NEVER:
            s.at_cut = NEVER
            return
        ready = max(last, s.cut_free + s.cut_left)
        if now < ready:
            s.at_cut = ready
            return
        _end_fetch(p, s, q, now)
        s.cutting = 0
        s.fetch_head += 1
        s.cut_free = now + 2
        s.at_cut = max(now + 2, s.cut_free) if s.fetch_tail != s.fetch_head else NEVER
        return
    place = own.parsed & p.descriptors - 1
    slots = q.descriptors[channel, place].slots
    edge = max(_slot_out(p, s, q), s.cut_free)
    if now < edge:
        s.at_cut = edge
        return
    if slots > s.cut_left:
        if now < edge + 2:
            s.at_cut = edge + 2
            return
        following = s.fetch_head + 1
        if (following < s.fetch_tail and q.fetches[following & FETCHES_KEPT - 1].channel == channel
                and q.fetches[following & FETCHES_KEPT - 1].index == s.cut_end):
            _end_fetch(p, s, q, now)
            s.fetch_head += 1
            s.cut_left += q.fetches[following & FETCHES_KEPT - 1].count
            s.cut_end += q.fetches[following & FETCHES_KEPT - 1].count
            s.cut_free = now + 1
        else:
            own.asked = own.consumed
            pend(p, s, q, channel, now + s.cut_left + p.refetch)
            _end_fetch(p, s, q, now + s.cut_left)
            s.cutting = 0
            s.fetch_head += 1
            s.cut_free = now + s.cut_left + 2
            s.at_cut = s.cut_free if s.fetch_tail != s.fetch_head else NEVER
            return
    if _slots_are_asked(s, q, slots) == 0:
        s.at_cut = NEVER
        return
    first = True
    for _ in range(slots):
        ready = _slot_out(p, s, q)
        edge = max(ready, s.cut_free) if first else max(ready, edge + 1)
        first = False
        _take_slot(s, q)
    _make_job(p, s, q, channel, place, edge)
    own.consumed += slots
    own.parsed += 1
    if channel == s.waits - 1:
        s.waits = 0
    s.cut_free = edge + 1
    if s.cut_left == 0:
        _end_fetch(p, s, q, edge + 1)
        s.cutting = 0
        s.fetch_head += 1
        s.cut_free = edge + p.fetch_overhead
        s.at_cut = s.cut_free if s.fetch_tail != s.fetch_head else NEVER
    else:
        ready = _slot_out(p, s, q)
        s.at_cut = NEVER if ready >= NEVER else max(s.cut_free, ready)


@rule
def _end_fetch(p: Any, s: Any, q: Any, edge: int) -> None:
    """A fetch is over: its channel may have another."""
    own = q.channels[s.cut_channel]
    own.under_way -= 1
    if own.pending != NEVER:
        own.pending = max(own.pending, edge + p.refetch)
        plan_fetch(p, s, q)


@rule
def _make_job(p: Any, s: Any, q: Any, channel: int, place: int, edge: int) -> None:
    """A descriptor's last slot was taken: the keys of its pieces are looked up, then it is a job."""
    descriptor = q.descriptors[channel, place]
    inline_rows = beats(descriptor.inline, p.host_log2)
    work = max(max(inline_rows, descriptor.pieces) - 1 + p.job_interval, descriptor.slots * p.slot_cycles)
    job = max(edge + p.slot_to_payload + max(0, descriptor.pieces - 1), s.job_last + work)
    s.job_last = job
    arrival = q.arrivals[s.arrival_tail & ARRIVALS - 1]
    arrival.edge = job
    arrival.channel = channel
    s.arrival_tail += 1
    if p.traced:
        put(s, q, JOB, channel, q.channels[channel].parsed, job, 0, 0)
    plan_decision(p, s, q)


ARRIVALS = 4096
PIECES = 1 << 20
"""Of all sends, at most."""


# ---------------------------------------------------------------------------------------------- which frame is next
# rtl/tx_scheduler.py::FrameScheduler, PieceWalker


@rule
def plan_decision(p: Any, s: Any, q: Any) -> None:
    """When the next frame is decided on."""
    if s.command_tail - s.command_head >= p.commands_ahead:
        s.at_decide = NEVER
        s.decide_why = DECIDE_READS
        return
    at = s.decide_free
    if s.frames_decided >= p.slices:
        # so many frames are between here and the end of their headers at most
        if s.frames_decided - p.slices >= s.frame_tail:
            s.at_decide = NEVER
            s.decide_why = DECIDE_FRAMES
            return
        at = max(at, q.frames[(s.frames_decided - p.slices) & FRAMES - 1].header)
        if at > s.decide_free:
            s.decide_why = DECIDE_FRAMES
    if s.has_job == 0:
        if s.arrival_head == s.arrival_tail:
            s.at_decide = NEVER
            s.decide_why = DECIDE_JOB
            return
        seen = _seen(p, s, q)
        if seen > at:
            at = seen
            s.decide_why = DECIDE_JOB
    if s.ahead - s.gone_ahead >= p.bytes_ahead:
        s.decide_why = DECIDE_AHEAD
        # wait for frames that begin to leave
        missing, head = s.ahead - s.gone_ahead - p.bytes_ahead, s.begun_head
        while missing >= 0 and head < s.begun_tail:
            missing -= q.begun[head & BEGUN - 1].bytes
            at = max(at, q.begun[head & BEGUN - 1].edge + p.begun_to_payload)
            head += 1
        if missing >= 0:
            s.at_decide = NEVER
            return
    s.at_decide = at


BEGUN = 4096


@step
def _seen(p: Any, s: Any, q: Any) -> int:
    """When the next job may be decided on: one that comes while nothing else is to be done takes a shorter way."""
    edge = q.arrivals[s.arrival_head & ARRIVALS - 1].edge
    return edge if s.has_job == 0 and edge >= s.rest_edge else edge + p.busy_to_payload


@rule
def decide(p: Any, s: Any, q: Any) -> None:
    """Decide on one frame: channels with jobs take turns."""
    now = s.at_decide
    while s.arrival_head < s.arrival_tail and _seen(p, s, q) <= now:
        channel = q.arrivals[s.arrival_head & ARRIVALS - 1].channel
        own = q.channels[channel]
        if own.jobs == 0:
            s.has_job += 1
        own.jobs += 1
        s.arrival_head += 1
    while s.begun_head < s.begun_tail and q.begun[s.begun_head & BEGUN - 1].edge + p.begun_to_payload <= now:
        s.gone_ahead += q.begun[s.begun_head & BEGUN - 1].bytes
        s.begun_head += 1
    if s.ahead - s.gone_ahead >= p.bytes_ahead or s.has_job == 0:
        plan_decision(p, s, q)
        return
    for turn in range(1, p.channels + 1):
        channel = (s.decide_last + turn) & p.channels - 1
        own = q.channels[channel]
        if own.jobs > 0:
            break
    s.decide_last = channel
    place = own.decided & p.descriptors - 1
    job = q.descriptors[channel, place]
    offset, payload = own.offset, job.payload
    left = payload - offset
    count = min(job.mss, left) if job.mss > 0 else left
    last = offset + count >= payload
    # the walker asks for the pieces that the frame touches
    begun, walk = 0, 0
    if payload > 0:
        begun, walk = _walk(p, q, channel, place, offset, count)
    # and beside it the rows of a job's template are read, one a cycle
    rows = beats(job.inline, p.host_log2) if offset == 0 else 0
    late = max(0, rows - p.piece_first)
    walk = max(walk, rows)
    frame = q.commands[s.command_tail & COMMANDS - 1]
    walked = max(now, s.walk_free) + walk
    frame.channel = channel
    frame.place = place
    frame.offset = offset
    frame.count = count
    frame.first = offset == 0
    frame.last = last
    frame.number = own.number
    frame.edge = max(now, s.walk_free) + (p.piece_further - p.piece_first) * begun
    if s.frames_decided > 0:
        wait(p, q, s.decide_why, now - s.decide_free)
    work(p, q, DECIDING, max(p.decision_interval, walked - now))
    s.walk_free = walked
    s.command_tail += 1
    s.frames_decided += 1
    s.ahead += job.inline + count
    s.decide_free = max(now + p.decision_interval, walked)
    if last:
        own.offset = 0
        own.number = 0
        own.decided += 1
        own.jobs -= 1
        if own.jobs == 0:
            s.has_job -= 1
        if s.has_job == 0:
            # at rest, a job is measured at once
            s.decide_free = max(now + p.decision_interval - 1, walked)
            s.rest_edge = now + p.decision_interval - 1
        free_slots(p, s, q, channel, job.slots, now + p.freed_to_fetch + late)
    else:
        own.offset += count
        own.number += 1
    if s.at_read == NEVER:
        s.at_read = frame.edge
    plan_decision(p, s, q)


COMMANDS = 512


@step
def _walk(p: Any, q: Any, channel: int, place: int, offset: int, count: int) -> tuple[int, int]:
    """Whether a frame begins within a piece, and the cycles that its pieces take."""
    begun, cycles, begin = 0, 0, 0
    piece = q.descriptors[channel, place].piece
    for _ in range(q.descriptors[channel, place].pieces):
        length = q.pieces[piece & p.piece_places - 1].length
        if begin + length > offset:
            if begin < offset:
                begun = 1
            cycles += p.piece_further if begin < offset else p.piece_first
        begin += length
        piece += 1
        if begin >= offset + count:
            break
    return begun, cycles


@step
def free_slots(p: Any, s: Any, q: Any, channel: int, slots: int, edge: int) -> None:
    """Submission slots of a job need no room any more from an edge on; a channel may have waited for it."""
    own = q.channels[channel]
    place = s.freed_tail & FREED - 1
    free = q.freed_slots[place]
    free.edge = edge
    free.channel = channel
    free.slots = slots
    s.freed_tail += 1
    own.freeing += slots
    if own.starved and own.asked - own.freed - own.freeing <= p.queue_slots - p.least_fetch:
        own.starved = 0
        own.pending = min(own.pending, edge)
        plan_fetch(p, s, q)


FREED = 8192


@rule
def count_freed(p: Any, s: Any, q: Any, edge: int) -> None:
    """Slots that whoever asks at an edge knows to be free."""
    while s.freed_head < s.freed_tail and q.freed_slots[s.freed_head & FREED - 1].edge <= edge + p.freed_before_fetch:
        place = s.freed_head & FREED - 1
        q.channels[q.freed_slots[place].channel].freed += q.freed_slots[place].slots
        q.channels[q.freed_slots[place].channel].freeing -= q.freed_slots[place].slots
        s.freed_head += 1


# ---------------------------------------------------------------------------------------------- payload
# rtl/dma_read.py


@rule
def read_payload(p: Any, s: Any, q: Any, horizon: int) -> None:
    """Ask for bursts of the oldest decided frame, as far as there are landing slots and nobody else comes first."""
    while s.command_head < s.command_tail:
        command = s.command_head & COMMANDS - 1
        channel, place = q.commands[command].channel, q.commands[command].place
        if not s.reading:
            s.reading = 1
            s.read_left = q.commands[command].count
            s.frame_edge = q.commands[command].edge
            s.read_first = 1
            _find_piece(p, s, q, channel, place, q.commands[command].offset)
            if s.read_left == 0:
                _put_entry(s, q, command, 0, 0, 0, 0)
                stream_payload(p, s, q)
        while s.read_left > 0:
            slot = s.p_bursts & RELEASES - 1
            release = q.p_release[s.p_bursts - p.payload_reads & RELEASES - 1]
            edge = max(max(s.frame_edge, s.p_ar_last + 1), release + p.slot_to_read)
            if edge > horizon:
                s.at_read = edge if edge < NEVER else NEVER
                return
            at = s.piece_at
            length = min(min(s.read_left, s.piece_left), BURST - (at & BURST - 1))
            rows = rows_between(at, length, p.host_log2)
            wait(p, q, READ_SLOT, edge - max(s.frame_edge, s.p_ar_last + 1))
            s.p_ar_last = edge
            q.p_release[slot] = NEVER
            # bytes in the last row, which may be the first
            in_last = length if rows == 1 else (at + length - 1 & p.host_bytes - 1) + 1
            s.read_left -= length
            _put_entry(s, q, command, rows, slot, in_last, NEVER)
            q.payload_bursts[s.e_tail - 1 & ENTRIES - 1].landed = read(p, s, q, edge, rows, PAYLOAD, s.e_tail - 1)
            s.p_bursts += 1
            s.piece_at += length
            s.piece_left -= length
            if s.piece_left == 0 and s.read_left > 0:
                s.piece += 1
                s.frame_edge += p.piece_first
                s.piece_at = q.pieces[s.piece & p.piece_places - 1].address
                s.piece_left = q.pieces[s.piece & p.piece_places - 1].length
            if s.read_left == 0 or q.p_release[s.p_bursts - p.payload_reads & RELEASES - 1] == NEVER:
                stream_payload(p, s, q)
            horizon = min(horizon, s.at_land)
        s.reading = 0
        if s.command_tail - s.command_head == p.commands_ahead:
            # whoever is behind it moves up in the same cycles
            s.decide_free = max(s.decide_free, s.p_ar_last)
        s.command_head += 1
        plan_decision(p, s, q)
        horizon = min(horizon, next_edge(s))
        if s.command_head < s.command_tail:
            following = q.commands[s.command_head & COMMANDS - 1].edge
            if following > horizon or s.out_count + OUT_ROOM > OUTS:
                s.at_read = following
                return
    s.at_read = NEVER


@step
def _put_entry(s: Any, q: Any, command: int, rows: int, slot: int, in_last: int, landed: int) -> None:
    """A burst of a frame joins the queue of those that stream out in order; of a frame without payload, nothing."""
    entry = s.e_tail & ENTRIES - 1
    burst = q.payload_bursts[entry]
    burst.command = command
    burst.rows = rows
    burst.slot = slot
    burst.in_last = in_last
    burst.first = s.read_first
    burst.ends = s.read_left == 0
    burst.landed = landed
    s.read_first = 0
    s.e_tail += 1


@rule
def stream_payload(p: Any, s: Any, q: Any) -> None:
    """Bursts of payload that have landed stream out in order, each frame's behind the rows of its template."""
    while s.e_head < s.e_tail and q.payload_bursts[s.e_head & ENTRIES - 1].landed < NEVER:
        entry = s.e_head & ENTRIES - 1
        burst = q.payload_bursts[entry]
        command = burst.command
        frame = q.commands[command]
        channel, place = frame.channel, frame.place
        out = s.stream_free
        if burst.first:
            s.template_end = frame.edge
            if frame.first and q.descriptors[channel, place].inline > 0:
                rows = beats(q.descriptors[channel, place].inline, p.host_log2)
                s.stream_free = max(s.stream_free, frame.edge + p.decision_to_rows) + rows
                s.template_end = s.stream_free
            out = s.stream_free
            if burst.rows > 0:
                out = max(out, _room_for_frame(p, s, q, channel, place, frame.count))
                wait(p, q, STREAM_ROOM, out - max(s.stream_free, burst.landed))
        if burst.rows > 0:
            if s.e_head > 0:
                wait(p, q, STREAM_DATA, burst.landed - out)
            work(p, q, STREAMING, burst.rows)
            out = max(out, burst.landed)
            s.stream_free = out + burst.rows
            q.p_release[burst.slot] = s.stream_free - 1
        s.run_last = burst.in_last
        s.e_head += 1
        if burst.ends:
            finish_frame(p, s, q, command)
            plan_decision(p, s, q)
    if s.at_read == NEVER and s.reading and s.read_left > 0:
        release = q.p_release[s.p_bursts - p.payload_reads & RELEASES - 1]
        if release < NEVER:
            s.at_read = max(max(s.frame_edge, s.p_ar_last + 1), release + p.slot_to_read)


@step
def _find_piece(p: Any, s: Any, q: Any, channel: int, place: int, offset: int) -> None:
    """Where a frame's payload begins."""
    s.piece = q.descriptors[channel, place].piece
    s.piece_left = 0
    s.piece_at = 0
    if q.descriptors[channel, place].pieces == 0:
        return
    while offset >= q.pieces[s.piece & p.piece_places - 1].length:
        offset -= q.pieces[s.piece & p.piece_places - 1].length
        s.piece += 1
    s.piece_at = q.pieces[s.piece & p.piece_places - 1].address + offset
    s.piece_left = q.pieces[s.piece & p.piece_places - 1].length - offset


@step
def _room_for_frame(p: Any, s: Any, q: Any, channel: int, place: int, count: int) -> int:
    """When the transmit buffer has room for a frame's rows, and the sums of those before it have been taken."""
    rows = rows_between(q.descriptors[channel, place].inline, count, p.host_log2)
    at = 0
    while s.rows_head < s.frame_tail and s.rows_in + rows - s.rows_out > p.tx_rows - 4:
        number = s.rows_head & FRAMES - 1
        s.rows_out += q.frames[number].rows
        at = max(at, q.frames[number].last)
        s.rows_head += 1
    s.rows_in += rows
    if s.frame_tail >= RUNS:
        at = max(at, q.frames[(s.frame_tail - RUNS) & FRAMES - 1].header)
    return at


RUNS = 32
FRAMES = 256


# ---------------------------------------------------------------------------------------------- segments, MAC
# rtl/segmenter.py, align.py, checksum.py, headers.py, framer.py, mac_tx.py


@step
def header_operations(p: Any, q: Any, channel: int, place: int) -> int:
    """Operations on a frame's header, one a cycle: rows of the template, words that differ, checksums."""
    job = q.descriptors[channel, place]
    operations = max(1, beats(job.inline, p.host_log2)) + job.sums
    if job.mss > 0:
        operations += 4 if job.ipv6 else 5
    return operations


@step
def finish_frame(p: Any, s: Any, q: Any, command: int) -> None:
    """All of a frame's payload is on its way: when its header is written, and when it goes to the MAC."""
    frame = q.commands[command]
    channel, place = frame.channel, frame.place
    job = q.descriptors[channel, place]
    count, inline = frame.count, job.inline
    number = s.frame_tail & FRAMES - 1
    sent = q.frames[number]
    segmented, sums = job.mss > 0, job.sums
    length = inline + count

    # its sum is made as its beats pass
    if count > 0:
        spills = (inline + count - s.run_last & p.host_bytes - 1) + s.run_last > p.host_bytes
        summed = s.stream_free - 1 + spills
        if spills:
            s.stream_free += 1
    else:
        summed = s.template_end

    if segmented or sums > 0:
        summed += p.sum_cycles

    # one header after the other; room for it; a new template is taken apart before
    lane = s.frame_tail % p.segmenters if p.segmenters > 1 else 0
    free = q.header_free[lane]
    if segmented and frame.first:
        free = max(free, s.template_end) + p.template_cycles
    start = max(free, summed)
    if s.frame_tail >= p.frames_ready:
        start = max(start, q.frames[(s.frame_tail - p.frames_ready) & FRAMES - 1].last)
    operations = header_operations(p, q, channel, place)
    if s.frame_tail >= p.segmenters:
        wait(p, q, HEADER_SUMS, summed - free)
    wait(p, q, HEADER_LEAVES, start - max(free, summed))
    work(p, q, WRITING, p.header_overhead + operations)
    q.header_free[lane] = start + p.header_overhead + operations
    whole = inline == 0 and sums == 0
    ready = start + (p.plain_to_frame if whole else p.header_overhead + operations + p.header_to_frame)

    # the MAC
    first = enter_mac(p, s, q, max(ready, s.mac_last + 1))
    last = first + paced(beats(length, p.mac_log2), p.sink_cycles_100) - 1
    if s.frame_tail > 0:
        wait(p, q, MAC_HEADER, ready - s.mac_last - 1)
    wait(p, q, MAC_WIRE, first - max(ready, s.mac_last + 1))
    work(p, q, LEAVING, last - first + 1)
    if length > 0:
        leave_mac(p, s, q, last, length)
    s.mac_last = last
    sent.first = first
    sent.last = last
    sent.header = start
    sent.rows = rows_between(inline, count, p.host_log2) if count > 0 else 0
    s.frame_tail += 1
    q.begun[s.begun_tail & BEGUN - 1].edge = first
    q.begun[s.begun_tail & BEGUN - 1].bytes = length
    s.begun_tail += 1
    put(s, q, FRAME, channel, job.number, first, last, frame.number)
    if frame.last:
        token = s.tx_tail & TOKENS - 1
        told = q.tx_tokens[token]
        told.edge = last + p.sent_to_write
        told.channel = channel
        told.token = job.number
        told.writes = job.complete
        s.tx_tail += 1
        plan_completion(p, s, q)


@step
def enter_mac(p: Any, s: Any, q: Any, edge: int) -> int:
    """The first edge at which the MAC takes a frame's first beat: its FIFO has room for one of any length."""
    while s.fifo_head < s.fifo_tail and q.fifo[s.fifo_head & FIFO - 1].edge < edge:
        s.fifo_bytes -= q.fifo[s.fifo_head & FIFO - 1].length
        s.fifo_head += 1
    while s.fifo_head < s.fifo_tail and s.fifo_bytes + MAX_FRAME_BYTES > p.fifo_bytes:
        edge = max(edge, q.fifo[s.fifo_head & FIFO - 1].edge + 1)
        s.fifo_bytes -= q.fifo[s.fifo_head & FIFO - 1].length
        s.fifo_head += 1
    return edge


FIFO = 4096


@step
def leave_mac(p: Any, s: Any, q: Any, edge: int, length: int) -> None:
    """A whole frame has entered the MAC's FIFO, which drains at the wire's rate."""
    padded = max(length, p.min_frame_bytes)
    start = max(time_of(p, edge), s.wire_free_ps)
    length = padded + p.frame_overhead_bytes
    bits = length * 8
    if p.byte_rest == 0:
        s.wire_free_ps = start + length * p.byte_ps
    else:  # in two parts, or the product would not fit
        s.wire_free_ps = (start + bits // p.bit_rate * PS_PER_S
                          + (bits % p.bit_rate * PS_PER_S + p.bit_rate - 1) // p.bit_rate)
    q.fifo[s.fifo_tail & FIFO - 1].edge = edge_from(p, s.wire_free_ps)
    q.fifo[s.fifo_tail & FIFO - 1].length = padded
    s.fifo_tail += 1
    s.fifo_bytes += padded


# ---------------------------------------------------------------------------------------------- completion
# rtl/completion.py, rtl/dma_write.py

TOKENS = 8192


@step
def port_free(p: Any, s: Any) -> int:
    """When the write engine may begin another burst."""
    return max(s.w_last + 1, s.w_first + p.burst_interval)


@step
def take_port(s: Any, first: int, rows: int, ready: int, receives: int) -> None:
    """A burst that was ready at an edge has the write port from another on."""
    if s.in_tail > 0:  # or there is no choice
        s.granted_last = min(granted(s, ready, receives), first)
        if receives:
            s.granted_receive = s.granted_last
    s.w_last_before = s.w_last
    s.w_first = first
    s.w_last = first + rows - 1
    s.w_was_completion = 1 - receives


@rule
def plan_completion(p: Any, s: Any, q: Any) -> None:
    """When the next completion may be written."""
    at = NEVER
    if s.tx_head < s.tx_tail:
        at = q.tx_tokens[s.tx_head & TOKENS - 1].edge
    if s.rx_head < s.rx_tail:
        at = min(at, q.rx_tokens[s.rx_head & TOKENS - 1].edge)
    if at == NEVER:
        s.at_complete = NEVER
    else:
        s.completion_ready = max(at, s.complete_free)
        s.at_complete = max(s.completion_ready, port_free(p, s))


@step
def _next_is_tx(s: Any, q: Any, edge: int) -> bool:
    """Of sends and receives, who came first; in turn, if both wait."""
    if s.rx_head == s.rx_tail:
        return True
    if s.tx_head == s.tx_tail:
        return False
    tx, rx = q.tx_tokens[s.tx_head & TOKENS - 1].edge, q.rx_tokens[s.rx_head & TOKENS - 1].edge
    if max(tx, rx) <= edge:
        return s.token_was_tx == 0
    return tx <= rx


@rule
def complete(p: Any, s: Any, q: Any) -> None:
    """Write the next completion, and with it those of its ring that have come close behind."""
    now = s.at_complete
    room = q.cw_release[s.completion_writes - p.completion_writes & RELEASES - 1] + p.response_to_room
    if max(port_free(p, s), room) > now:
        s.at_complete = max(port_free(p, s), room)
        return
    entries, sent, channel = 0, s.complete_free, -1
    first_token = s.batch_tail
    while entries < BATCH_BYTES // COMPLETION_BYTES and (s.tx_head < s.tx_tail or s.rx_head < s.rx_tail):
        from_tx = _next_is_tx(s, q, max(sent, now))
        token = (s.tx_head if from_tx else s.rx_head) & TOKENS - 1
        if from_tx:
            one = q.tx_tokens[token]
            edge, its, writes, number = one.edge, one.channel, one.writes, one.token
        else:
            other = q.rx_tokens[token]
            edge, its, writes, number = other.edge, other.channel, 1, other.token | RECEIVE
        if not writes:
            if entries > 0:
                break
            s.tx_head += 1
            s.token_was_tx = 1
            s.complete_free = max(s.complete_free, edge) + 1
            put(s, q, COMPLETED, its, -1 - number, edge, edge, edge)
            plan_completion(p, s, q)
            return
        if entries == 0:
            sent = max(sent, edge)
        elif (its != channel or edge > sent + 1
              or q.channels[channel].cq_index % (BATCH_BYTES // COMPLETION_BYTES) == 0):
            break
        else:
            sent = max(sent + p.entry_rows, edge)
        if from_tx:
            s.tx_head += 1
        else:
            s.rx_head += 1
        s.token_was_tx = from_tx
        channel = its
        q.batch_token[s.batch_tail & TOKENS - 1] = number
        s.batch_tail += 1
        q.channels[channel].cq_index += 1
        entries += 1
    begin = q.channels[channel].cq_index - entries
    rows = rows_between(begin * COMPLETION_BYTES, entries * COMPLETION_BYTES, p.host_log2)
    first = max(now, sent)
    take_port(s, first, rows, max(s.completion_ready, sent), 0)
    if s.in_tail > 0:
        note_burst(s, q, first, s.w_last, 0, 0)
    stored = write(p, s, s.w_last, entries * COMPLETION_BYTES)
    response = stored + p.write_latency + 1
    q.cw_release[s.completion_writes & RELEASES - 1] = response
    q.cw_first[s.completion_writes & RELEASES - 1] = first
    s.completion_writes += 1
    # the next entry may be made while this one waits for the port, if there is a place for its command
    s.complete_free = max(sent + p.entry_rows, q.cw_first[s.completion_writes - COMMANDS_WAIT & RELEASES - 1])
    for number in range(entries):
        put(s, q, COMPLETED, channel, q.batch_token[(first_token + number) & TOKENS - 1], s.w_last, stored,
            response + p.response_to_irq)
    plan_completion(p, s, q)


COMMANDS_WAIT = 5
"""Completions' commands between `Completion` and the port: one in its register, two in a `SkidBuffer`, two in
`BurstCutter`."""

RECEIVE = 1 << 40
"""Marks the token of a receive."""


# ---------------------------------------------------------------------------------------------- receive
# rtl/mac_rx.py, parser.py, rx_buffer.py


@rule
def arrive(p: Any, s: Any, q: Any, edge: int, channel: int, length: int, number: int) -> int:
    """A frame stands before the device from an edge on: the edge of its first beat. It takes a beat a cycle."""
    first = max(edge, s.source_free) + 1
    last = first + paced(beats(length, p.mac_log2), p.source_cycles_100) - 1
    s.source_free = last + p.source_gap
    place = s.in_tail & INCOMING - 1
    frame = q.incoming[place]
    frame.edge = last
    frame.channel = channel
    frame.length = length
    frame.number = number
    s.in_tail += 1
    if s.at_arrive == NEVER:
        s.at_arrive = last + p.keep_delay
    return first


INCOMING = 8192


@rule
def keep_frame(p: Any, s: Any, q: Any) -> None:
    """A frame is kept if all its rows found room. Acts when it is known what moves rows until then."""
    frame = q.incoming[s.in_head & INCOMING - 1]
    now, last, rows = s.at_arrive, frame.edge + p.beat_to_row, beats(frame.length, p.host_log2)
    s.in_head += 1
    s.at_arrive = q.incoming[s.in_head & INCOMING - 1].edge + p.keep_delay if s.in_head < s.in_tail else NEVER
    stored = rows
    if s.rows_kept + s.rows_missed + rows - s.rows_done >= p.rx_rows >> 1:
        stored = _rows_stored(p, s, q, now, last, frame.length, rows)
    else:
        s.row_follows = 0
        s.row_settled = NEVER
    if stored < rows or frame.channel < 0:
        s.rows_missed, s.missed_at = stored, last
        if frame.channel >= 0:
            put(s, q, DROPPED, frame.number, frame.edge, FIFO_FULL, 0, 0)
        return
    s.rows_missed = 0
    s.rows_kept += rows
    s.kept_at = last
    waiting = q.matching[s.wait_tail & INCOMING - 1]
    waiting.edge = now
    waiting.channel = frame.channel
    waiting.length = frame.length
    waiting.number = frame.number
    waiting.rows = rows
    s.wait_tail += 1
    plan_match(p, s, q)


@rule
def _rows_stored(p: Any, s: Any, q: Any, now: int, last: int, length: int, rows: int) -> int:
    """Rows that find room, of a frame whose last row comes to the receive buffer in a cycle. A row has room if two were
    free a cycle before; one that came in that cycle was not counted then, and those of a frame that was dropped in it
    still were."""
    first = last - paced(beats(length, p.mac_log2), p.source_cycles_100)
    between = p.host_bytes // p.mac_bytes
    if not s.row_follows or s.port_tail - s.row_port > PORT_BURSTS // 2:
        follow_rows(p, s, q, now)
    before = s.kept_at
    for row in range(rows):
        cycle = min(last, first + paced(between * (row + 1), p.source_cycles_100))
        while s.row_now < cycle - 1:
            move_rows(p, s, q)
        seen = s.rows_kept + row
        if before == cycle - 1:
            seen -= 1
        if row == 0 and s.missed_at == cycle - 1:
            seen += s.rows_missed
        kept = max(s.row_begins, s.row_now - ROW_HEADS + 1)
        if seen - q.row_heads[max(cycle - 1, kept) & ROW_HEADS - 1] > p.rx_rows - 2:
            return row
        before = cycle
    return rows


# rtl/rx_rings.py: the matching side


@rule
def plan_match(p: Any, s: Any, q: Any) -> None:
    """When the next frame looks for a buffer."""
    if s.wait_head == s.wait_tail:
        s.at_match = NEVER
    elif s.order_tail - PARTS_ASKED >= s.row_settled:
        s.at_match = max(q.matching[s.wait_head & INCOMING - 1].edge, s.match_free)
        if s.order_tail - PARTS_ASKED >= s.row_order:
            s.at_match = max(s.at_match, s.row_now + ROWS_KNOWN)
            s.match_waits = s.at_match > s.w_last + ROWS_REST
            if s.match_waits:
                s.at_match = NEVER  # nothing moves until the port takes another row
    elif s.parts_tail - s.parts_up >= PARTS_AHEAD or s.parts_tail - s.parts_read >= PARTS_UNREAD:
        s.at_match = NEVER
        s.match_waits = 1
    else:
        s.at_match = max(q.matching[s.wait_head & INCOMING - 1].edge, s.match_free)
        if s.parts_tail >= PARTS_NOT_OVER:
            over = q.parts[s.parts_tail - PARTS_NOT_OVER & PARTS - 1].over
            s.at_match = max(s.at_match, over + OVER_TO_MATCH) if over < NEVER else NEVER


PARTS_NOT_OVER, OVER_TO_MATCH = TOKENS_IN_FLIGHT + 11, OVER_TO_DECIDE
"""Likewise between match and response."""

PARTS_AHEAD, PARTS_UNREAD = 15, 13
"""Parts of frames between match and port: one behind `RxRings`, 10 in `RxDeliver`'s FIFO, 4 commands between it and the
burst that is up next. And between match and the last row that has left the receive buffer: those 11, and 2 orders."""

ROWS_REST = 50
"""Cycles after which all rows stand still if the port takes none."""

PARTS_ASKED, DECIDED_TO_MATCH = 11, 2
"""Parts between match and `RxDeliver`'s decision, as above; and from a decision back to the edge of the match that it
makes room for: the rings give a buffer a cycle behind it, and 3 behind that edge."""

SEEN_BEHIND, WOKEN_BEHIND = 2, 4
"""A slot that lands so much later than a frame's turn would be is not seen at its first look any more; then the frame
is matched so much later at least: `RxRings`'s states LOOK, KEEP and JUDGE, and READ, WAIT, LOOK_AGAIN and READ between
them."""


@rule
def match(p: Any, s: Any, q: Any) -> bool:
    """Give the oldest frame its buffers, or drop it. True: the host must say which they are."""
    now = s.at_match
    if s.order_tail - PARTS_ASKED >= s.row_settled:
        asked = s.order_tail - PARTS_ASKED
        while asked >= s.row_order and s.row_now + ROWS_KNOWN <= now:
            move_rows(p, s, q)
        if asked >= s.row_order:
            plan_match(p, s, q)
            return False
        now = max(q.matching[s.wait_head & INCOMING - 1].edge, s.match_free)
        now = max(now, q.orders[asked & ORDERS - 1].decided - DECIDED_TO_MATCH)
    wait = s.wait_head & INCOMING - 1
    waiting = q.matching[wait]
    ahead = p.arrived_to_write - p.keep_delay
    channel = waiting.channel
    own = q.channels[channel]
    needed = 1 if waiting.length <= p.buffer_bytes else parts(waiting.length, p.buffer_bytes)
    if p.asks:
        if not s.answered:
            return True
        needed = s.answer_buffers
        # what the coalescer takes to find the frame's place
        waiting.edge = max(waiting.edge, s.answer_edge)
        s.answered = 0
        now = max(now, waiting.edge)
    s.match_ends = now
    if needed < 0 or own.rx_posted - own.rx_used < needed:
        put(s, q, DROPPED, waiting.number, now, NO_BUFFER, 0, 0)
        order_rows(s, q, now + ahead, GONE, waiting.rows, 0, 0, 0, 0, 0)
        s.match_free = now + p.match_interval
        s.wait_head += 1
        plan_match(p, s, q)
        return False
    if own.rx_asked - own.rx_used < needed:
        # a slot that is not yet fetched: whoever fetches it wakes this
        s.answered = p.asks
        s.at_match = NEVER
        return False
    if needed > 0:
        landed = q.rx_landed[channel, (own.rx_used + needed - 1) & RX_LANDED - 1]
        if landed > now + SEEN_BEHIND:
            s.answered = p.asks
            s.at_match = max(landed, now + WOKEN_BEHIND) if landed < NEVER else NEVER
            return False
    parts_now = s.answer_parts if p.asks else needed
    left = waiting.length
    edge = now
    if needed > 1 and not s.answer_appends:
        edge += needed * p.match_further - 1  # all are looked at, then read again
    if needed > 0:
        shows = edge - p.keep_delay + p.used_to_fetch
        for _ in range(needed):
            q.rx_shows[channel, own.rx_used & RX_LANDED - 1] = shows
            own.rx_used += 1
        own.rx_want = min(own.rx_want, shows)
        plan_prefetch(p, s, q)
    put(s, q, MATCHED, waiting.number, edge - p.keep_delay, channel, 0, 0)
    begin = s.answer_skip
    merges = (p.asks and s.answer_merges) or parts_now > 1
    for part in range(parts_now):
        place = s.parts_tail & PARTS - 1
        at = q.answers[part].at if p.asks else 0
        length = q.answers[part].length if p.asks else min(left, p.buffer_bytes)
        left -= p.buffer_bytes
        last = part == parts_now - 1
        # a row that a part leaves off in is read again for the next
        reads, drops = rows_between(begin, length, p.host_log2), begin >> p.host_log2
        begin &= p.host_bytes - 1
        swallows = int(reads > 1 and begin > at & p.host_bytes - 1)
        begin += length
        rows = waiting.rows if last else drops + (begin >> p.host_log2)
        begin &= p.host_bytes - 1
        waiting.rows -= rows
        q.parts[place].late = swallows + (drops > 0)
        q.parts[place].edge = edge + ahead + q.parts[place].late
        q.parts[place].kind = MERGED if merges else ALONE
        q.parts[place].at = at
        q.parts[place].left = length
        q.parts[place].begun = 0
        q.parts[place].over = NEVER
        q.parts[place].last = last
        q.parts[place].order = order_rows(s, q, edge + ahead, GIVEN, rows, drops, reads, swallows, at, length)
        s.rows_to_leave += rows_between(at, length, p.host_log2)
        q.parts[place].end = s.rows_to_leave
        q.parts[place].channel = channel
        q.parts[place].number = waiting.number
        q.parts[place].done = 0
        q.parts[place].tells = s.answer_tells if p.asks else needed
        s.parts_tail += 1
        s.match_ends = edge
        edge += p.match_interval
    s.match_free = max(now + p.match_interval, edge)
    s.wait_head += 1
    if s.at_write == NEVER:
        plan_write(p, s, q)
    plan_match(p, s, q)
    return False


# rtl/rx_rings.py: the fetching side

RX_LANDED = 512


@rule
def post_buffers(p: Any, s: Any, q: Any, edge: int, channel: int, count: int) -> None:
    """A doorbell's beat at an edge tells of so many more buffers."""
    own = q.channels[channel]
    own.rx_posted += count
    own.rx_want = min(own.rx_want, edge + p.post_to_fetch)
    plan_prefetch(p, s, q)


@rule
def plan_prefetch(p: Any, s: Any, q: Any) -> None:
    """When receive slots are asked for next."""
    earliest = NEVER
    for channel in range(p.channels):
        earliest = min(earliest, q.channels[channel].rx_want)
    s.at_prefetch = NEVER if earliest == NEVER else max(earliest, s.prefetch_free)


PICKED = 2
"""`RxRings` looks at the indices so many cycles after it has picked a channel: what is used in the last of them counts,
and lets it be picked again."""


@rule
def prefetch(p: Any, s: Any, q: Any) -> None:
    """Ask for a burst of receive slots for the next channel that has room for all that it may bring."""
    now = s.at_prefetch
    channel = 0
    for turn in range(1, p.channels + 1):
        channel = (s.prefetch_last + turn) & p.channels - 1
        own = q.channels[channel]
        if own.rx_want <= now:
            break
    s.prefetch_last = channel
    own.rx_want = NEVER
    s.prefetch_free = now + p.prefetch_interval - 1
    asked = own.rx_asked
    available = own.rx_posted - asked
    used = own.rx_used
    while used > 0 and q.rx_shows[channel, used - 1 & RX_LANDED - 1] > now + PICKED:
        used -= 1  # it will show when its time comes
        own.rx_want = q.rx_shows[channel, used & RX_LANDED - 1]
    if used > 0 and q.rx_shows[channel, used - 1 & RX_LANDED - 1] == now + PICKED:
        own.rx_want = now + PICKED
    if available > 0 and asked - used <= p.prefetch_slots - RX_FETCH_SLOTS:
        count = min(available, RX_FETCH_SLOTS - asked % RX_FETCH_SLOTS)
        rows = rows_between(asked * RX_SLOT_BYTES, count * RX_SLOT_BYTES, p.host_log2)
        slot = s.r_bursts & RELEASES - 1
        edge = max(now, q.r_release[s.r_bursts - p.receive_reads & RELEASES - 1] + p.slot_to_read)
        if edge >= NEVER:
            # no place for what comes: when one is free, `stream_buffers` says so
            s.starved_channel = channel + 1
            plan_prefetch(p, s, q)
            return
        q.r_release[slot] = NEVER
        entry = s.r_bursts & ENTRIES - 1
        burst = q.buffer_bursts[entry]
        burst.rows = rows
        burst.slot = slot
        burst.channel = channel
        burst.first = asked
        burst.count = count
        for number in range(count):
            q.rx_landed[channel, (asked + number) & RX_LANDED - 1] = NEVER
        burst.landed = read(p, s, q, edge, rows, BUFFERS, s.r_bursts)
        s.r_bursts += 1
        s.prefetch_free += 1
        own.rx_asked += count
        if available > count:
            own.rx_want = min(own.rx_want, now + p.prefetch_interval)
        stream_buffers(p, s, q)
    plan_prefetch(p, s, q)


@rule
def stream_buffers(p: Any, s: Any, q: Any) -> None:
    """Bursts of receive slots that have landed stream out, in order; a frame may wait for one."""
    while s.r_streamed < s.r_bursts and q.buffer_bursts[s.r_streamed & ENTRIES - 1].landed < NEVER:
        entry = s.r_streamed & ENTRIES - 1
        burst = q.buffer_bursts[entry]
        out = max(burst.landed, s.r_out_free)
        s.r_out_free = out + burst.rows
        q.r_release[burst.slot] = s.r_out_free - 1
        channel = burst.channel
        for number in range(burst.count):
            q.rx_landed[channel, (burst.first + number) & RX_LANDED - 1] = (
                out + (number * RX_SLOT_BYTES >> p.host_log2) + p.slots_to_write - p.arrived_to_write + p.keep_delay)
        s.r_streamed += 1
        if s.at_match == NEVER:
            plan_match(p, s, q)
        if s.starved_channel:
            q.channels[s.starved_channel - 1].rx_want = min(q.channels[s.starved_channel - 1].rx_want, s.r_out_free)
            s.starved_channel = 0
            plan_prefetch(p, s, q)


# rtl/rx_deliver.py, rtl/dma_write.py


PART_CYCLES = 2
"""From one part of a frame to the next at least: `RxDeliver` takes a part in 2 cycles."""


@rule
def plan_write(p: Any, s: Any, q: Any) -> None:
    """When the next burst of a received frame is written."""
    if s.parts_head == s.parts_tail:
        s.at_write = NEVER
        return
    place = s.parts_head & PARTS - 1
    if q.parts[place].kind == CLOSE:
        # nothing is written
        s.write_ready = s.at_write = max(q.parts[place].edge, s.part_began)
        return
    s.write_ready = q.rw_release[s.receive_writes - p.receive_writes & RELEASES - 1] + p.response_to_room
    s.row_first = s.row_ready
    if not q.parts[place].begun:
        s.row_first = max(max(q.parts[place].edge, s.part_began + PART_CYCLES), s.row_ready + q.parts[place].late)
        over = q.parts[s.parts_head - TOKENS_IN_FLIGHT & PARTS - 1].over
        s.row_first = max(s.row_first, over + OVER_TO_DECIDE + DECIDED_TO_WRITE)
    s.write_ready = max(s.write_ready, s.row_first)
    s.at_write = max(granted(s, s.write_ready, 1), port_free(p, s))


@rule
def write_burst(p: Any, s: Any, q: Any) -> None:
    """Write a burst of the oldest part of a frame; with its last one the part's end is known."""
    now = s.at_write
    place = s.parts_head & PARTS - 1
    part = q.parts[place]
    at, left = part.at, part.left
    if port_free(p, s) > now and part.kind != CLOSE:
        plan_write(p, s, q)
        return
    if not part.begun and part.kind != CLOSE:
        part.begun = 1
        s.part_began = s.row_first
    length = min(left, BURST - (at & BURST - 1))
    if length > 0:
        rows = rows_between(at, length, p.host_log2)
        take_port(s, now, rows, s.write_ready, 1)
        # the next row is there a cycle behind the last, or was before, if they had to wait
        s.row_ready = max(s.row_first + rows, s.w_last + 1 - p.rows_buffered)
        s.part_rows += rows
        s.rows_left += rows
        note_burst(s, q, now, s.w_last, s.write_ready, 1)
        stored = write(p, s, s.w_last, length)
        response = stored + p.write_latency + 1
        q.rw_release[s.receive_writes & RELEASES - 1] = response
        s.receive_writes += 1
        part.done = max(part.done, response)
    part.at = at + length
    part.left = left - length
    if left == length:
        part.over = gather(p, s, q, part)
        q.orders[part.order & ORDERS - 1].over = part.over
        s.parts_head += 1
        orders_done(s, q, part.order)
    _let_match(p, s, q, now)
    plan_write(p, s, q)


@step
def _let_match(p: Any, s: Any, q: Any, now: int) -> None:
    """A burst has the port from an edge on: parts behind it move up, and the next frame may be matched."""
    free = now if s.parts_tail - s.parts_up >= PARTS_AHEAD else 0
    unread = s.parts_tail - s.parts_read >= PARTS_UNREAD
    s.parts_up = s.parts_head
    if s.parts_head < s.parts_tail:
        part = q.parts[s.parts_head & PARTS - 1]
        s.parts_up += (part.at & BURST - 1) + part.left <= BURST
    ahead = s.rows_left - (s.w_last - now + 1) + p.rows_buffered + ROWS_BEHIND
    while s.parts_read < s.parts_tail:
        row = q.parts[s.parts_read & PARTS - 1].end - ahead
        if row > s.w_last - now + 1:
            break
        s.parts_read += 1
        if unread and s.parts_tail - s.parts_read < PARTS_UNREAD:
            unread = False
            free = max(free, now + max(0, row - 1))
    if s.match_waits and (s.order_tail - PARTS_ASKED >= s.row_settled or (
            s.parts_tail - s.parts_up < PARTS_AHEAD and s.parts_tail - s.parts_read < PARTS_UNREAD)):
        s.match_waits = 0
        if s.order_tail - PARTS_ASKED < s.row_settled:
            s.match_free = max(s.match_free, free)
        plan_match(p, s, q)


ROWS_BEHIND = 8
"""Rows in registers between the receive buffer and the port, beside those in the FIFO: the buffer's memory and output,
`Aligner` 4, `StreamFifo` 2."""


@rule
def close_receive(p: Any, s: Any, q: Any, edge: int, channel: int, number: int, tells: int) -> None:
    """An aggregate ends: so many completions, behind all that was matched before."""
    place = s.parts_tail & PARTS - 1
    part = q.parts[place]
    part.edge = edge
    part.at = 0
    part.left = 0
    part.begun = 0
    part.last = 1
    part.order = order_rows(s, q, edge, NOTHING, 0, 0, 0, 0, 0, 0)
    part.late = 0
    part.kind = CLOSE
    part.end = s.rows_to_leave
    part.over = NEVER
    part.channel = channel
    part.number = number
    part.done = edge + CLOSED_TO_OVER
    part.tells = tells
    s.parts_tail += 1
    if s.at_write == NEVER:
        plan_write(p, s, q)


CLOSED_TO_OVER = -DECIDED_TO_WRITE + 2
"""From the edge of an aggregate's end to its turn in `RxDeliver`, counted as if the bus answered: the decision, its
register, and the FIFO of tokens."""


# rtl/rx_gather.py

ALONE, MERGED, CLOSE = range(3)
"""Kinds of parts: a frame in one buffer; another part of a frame, or of an aggregate; an aggregate's end."""

GATHER_CYCLES, GATHER_MERGED, READ_MERGED, READ_CLOSED = 2, 3, 5, 3
"""Cycles of `RxGather`: from one receive that is told of to the next at least; of a part that is kept; from a part that
closes to its first buffer, later than one that is alone; from an aggregate's end likewise."""


@rule
def gather(p: Any, s: Any, q: Any, part: Any) -> int:
    """The bus has answered a part: what is told of, one buffer after the other. Returns when its token is over."""
    over = max(part.done, s.gather_free)
    s.gather_free = over + 1
    if part.kind == MERGED:
        s.gather_free = over + GATHER_MERGED
    told = over + p.response_to_write
    if part.last and part.tells > 0:
        if part.kind != ALONE:
            told += READ_MERGED if part.kind == MERGED else READ_CLOSED
        for _ in range(part.tells):
            tell_receive(p, s, q, part.channel, part.number, told)
            s.gather_free = max(s.gather_free, s.gathered - p.response_to_write + 1)
            told = s.gathered + p.gather_interval
    return int(over)


@rule
def tell_receive(p: Any, s: Any, q: Any, channel: int, number: int, edge: int) -> None:
    """`RxGather` tells of a buffer at an edge at the earliest: `Completion` may write its entry."""
    token = s.rx_tail & TOKENS - 1
    told = q.rx_tokens[token]
    s.gathered = max(edge, s.gathered + GATHER_CYCLES)
    told.edge = s.gathered
    told.channel = channel
    told.token = number
    s.rx_tail += 1
    plan_completion(p, s, q)


# ---------------------------------------------------------------------------------------------- who acts next


@rule
def next_edge(s: Any) -> int:
    """When something happens by itself; NEVER: not until something enters."""
    transmit = min(min(s.at_fetch, s.at_slots), min(min(s.at_cut, s.at_decide), s.at_read))
    receive = min(min(s.at_arrive, s.at_match), min(s.at_prefetch, s.at_write))
    return min(min(transmit, receive), min(s.at_land, s.at_complete))


GRANTED_BEHIND, CLAIMED_BEHIND = 2, 2
"""`DmaWrite` grants a burst, at the earliest, so many cycles before its first beat could be if the burst two before it
had its last: two wait for the port. A client's rows are claimed for its next burst so long behind the last grant."""


@step
def granted(s: Any, ready: int, receives: int) -> int:
    """When a burst that is ready is granted, counted as if its first beat followed at once."""
    if receives:
        ready = max(ready, s.granted_receive + CLAIMED_BEHIND)
    return max(max(s.granted_last + 1, s.w_last_before + GRANTED_BEHIND), ready)


@step
def _write_is_first(s: Any) -> bool:
    """Whether a burst of a received frame goes before a completion that could be written at the same edge: who asks
    when the choice is made, and in turn if both."""
    receive, completion = granted(s, s.write_ready, 1), granted(s, s.completion_ready, 0)
    if receive != completion:
        return bool(receive < completion)
    return bool(s.w_was_completion)


@rule
def advance(p: Any, s: Any, q: Any, until: int) -> bool:
    """Let all stages act whose time comes up to an edge. False: there is no room for what comes out, or, for a host
    that is asked, something has come out, or it is asked which buffers a frame has (`s.asked`). True also when
    the ring that is waited for has room (`s.waits`: its channel counted from 1, 0 when it has). For a host that is
    asked, no stage acts behind the edge at which it sees the first of what has come out."""
    s.asked = 0
    told = 0
    while True:
        at = next_edge(s)
        s.next_at = at
        if s.out_count + OUT_ROOM > OUTS:
            return False
        if p.asks and s.out_count > 0:
            while told < s.out_count:
                until = min(until, q.out[told][4])
                told += 1
            if at > until:
                return False
        if at > until or at == NEVER:
            return True
        if s.at_write == at and (s.at_complete > at or _write_is_first(s)):
            write_burst(p, s, q)
        elif s.at_complete == at:
            complete(p, s, q)
        elif s.at_match == at:
            if match(p, s, q):
                s.asked = 1
                return False
        elif s.at_arrive == at:
            keep_frame(p, s, q)
        elif s.at_land == at:
            land(p, s, q)
        elif s.at_prefetch == at:
            prefetch(p, s, q)
        elif s.at_decide == at:
            decide(p, s, q)
        elif s.at_cut == at:
            waits = s.waits
            cut(p, s, q)
            if s.waits != waits:
                return True
        elif s.at_fetch == at:
            fetch(p, s, q)
        elif s.at_slots == at:
            s.at_slots = NEVER
            horizon = min(next_edge(s), until)
            read_slots(p, s, q, max(at, horizon))
        else:
            s.at_read = NEVER
            horizon = min(next_edge(s), until)
            read_payload(p, s, q, max(at, horizon))
