"""The received rows on their way from the receive buffer to the port, cycle by cycle.

They decide when a full receive buffer has room again, to the cycle: so while it is more than half full, and only then,
they are followed. `rtl/rx_deliver.py`, `rx_buffer.py`, `align.py`, `dma_write.py`.
"""

from __future__ import annotations

from typing import Any

from nic_model.timing.rules import BURST, NEVER, rows_between, rule, step

PARTS = 256
"""Places for parts of frames between match and port."""

TOKENS_IN_FLIGHT, OVER_TO_DECIDE = 35, 4
"""Parts of frames between `RxDeliver`'s decision and the bus's response to their last burst: 34 in a FIFO, one before
it. And from that response to the decision on another."""

ORDERS, PORT_BURSTS = 8192, 512
GIVEN, GONE, NOTHING = range(3)
"""Kinds of orders: rows that are written, rows that are dropped, the end of an aggregate."""

DECIDED_TO_WRITE = 13
"""Cycles from `RxDeliver`'s decision on an order to the first beat of its rows at the port: its register, the order
that is taken, the buffer's memory and output, `Aligner` 4, `StreamFifo` 3, `DmaWrite`'s output and its handshake."""

FRAME_TO_WRITE = DECIDED_TO_WRITE + 9
"""From a frame's turn at the coalescer, if nothing waits: 3 until the rings give it its buffer, 6 until the key table
has answered and `RxDeliver` decides."""

ROW_TO_WRITE = FRAME_TO_WRITE + 5
"""From a frame's last row in the receive buffer: its entry, and the FIFO of entries. `rtl.mac_rx` and `rtl.parser` have
the cycles before that, which depend on the widths."""

TAKEN_TO_PORT = 2
"""The last two of these: from a row that leaves `StreamFifo` to its beat."""

ROWS_SETTLE = 100
"""Cycles after which the rows that are followed are where they are, all registers being empty at first."""

ROWS_KNOWN = 7
"""Cycles by which the rows are followed later than what happens, since a burst is granted so much before it is
written."""

ROW_HEADS = 16384
"""Cycles of which it is kept how far the receive buffer was read: longer than a frame takes from a MAC that is ten
times slower than the device."""

LINK_ROOM = 2
"""Commands between `RxDeliver` and `DmaWrite`: a `SkidBuffer`."""


@step
def order_rows(s: Any, q: Any, edge: int, kind: int, rows: int, drops: int, reads: int, swallows: int, at: int,
               length: int) -> int:
    """What the receive buffer is to do with its next rows, behind what it was told before. Returns its number. `edge`:
    when its first burst could be written if nothing were in its way; `rows` that are done with then, `drops` of which
    go before all others, `reads` of rows, which go to `length` bytes at `at`; `swallows`: the first of these fills no
    row by itself."""
    order = q.orders[s.order_tail & ORDERS - 1]
    order.edge = edge - DECIDED_TO_WRITE
    order.over = NEVER
    order.kind = kind
    order.rows = rows
    order.drops = drops
    order.reads = reads
    order.swallows = swallows
    order.at = at
    order.length = length
    s.order_tail += 1
    return int(s.order_tail - 1)


@step
def orders_done(s: Any, q: Any, number: int) -> None:
    """All up to an order is written."""
    while s.order_head <= number:
        s.rows_done += q.orders[s.order_head & ORDERS - 1].rows
        s.order_head += 1
    s.part_rows = 0


@step
def note_burst(s: Any, q: Any, first: int, last: int, room: int, receives: int) -> None:
    """A burst has the write port from one edge to another; it could not have had it before `room`."""
    burst = q.port_bursts[s.port_tail & PORT_BURSTS - 1]
    burst.first = first
    burst.last = last
    burst.room = room
    burst.receives = receives
    s.port_tail += 1


@rule
def follow_rows(p: Any, s: Any, q: Any, now: int) -> None:
    """Follow all rows from an edge on. Those that are on their way to the port count as if they were in the buffer: it
    is half full, so they will have left it when it is full."""
    s.row_follows = 1
    s.row_settled = NEVER
    s.row_settles = now + ROWS_SETTLE
    s.row_now = s.row_begins = now - TAKEN_TO_PORT  # then the first row of the next burst leaves at the earliest
    s.row_head = s.rows_done
    s.row_order = s.row_taken = s.row_cut = s.order_head
    s.row_over = max(0, s.order_head - TOKENS_IN_FLIGHT - 1)
    s.row_tokens = 0
    for number in range(s.row_over, s.order_head):
        s.row_tokens += q.orders[number & ORDERS - 1].kind != GONE
    s.row_left = s.row_shares = s.row_spills = s.row_swallows = s.row_dropping = s.row_cut_left = s.row_cutting = 0
    s.row_valid = s.row_command = s.row_link = s.row_burst = s.row_claimed = s.row_granted = 0
    s.row_waiting = s.row_out = s.row_spill = s.row_stage1 = s.row_stage2 = s.row_stage3 = s.row_stage4 = 0
    s.row_stored = s.row_fetched = s.row_given = s.row_owed = s.row_unclaimed = s.row_counts = 0
    s.row_port = s.row_grant = s.port_tail
    if s.part_rows > 0:
        # an order that is half written
        order = q.orders[s.order_head & ORDERS - 1]
        part = q.parts[s.parts_head & PARTS - 1]
        s.row_order += 1
        s.row_taken += 1
        s.row_cut += 1
        # the row that leaves with the next was read with the one before
        read = s.part_rows + order.swallows
        s.row_head += min(read + order.drops, order.rows)
        s.row_left = max(0, order.reads - read)
        s.row_spills = rows_between(order.at, order.length, p.host_log2) > order.reads - order.swallows
        s.row_shares = order.reads + order.drops > order.rows
        s.row_cut_at = part.at
        s.row_cut_left = part.left
        s.row_cutting = part.left > 0
    q.row_heads[s.row_now & ROW_HEADS - 1] = s.row_head


@step
def _row_leaves(s: Any, q: Any, now: int) -> int:
    """Whether the port takes a row in a cycle."""
    while s.row_port < s.port_tail:
        burst = q.port_bursts[s.row_port & PORT_BURSTS - 1]
        if burst.receives and now <= burst.last - TAKEN_TO_PORT:
            if now >= burst.first - TAKEN_TO_PORT:
                s.row_owed += 1
            break
        s.row_port += 1
    if s.row_given and s.row_owed > 0:
        s.row_owed -= 1
        return 1
    return 0


@step
def _row_grant(s: Any, q: Any, now: int) -> int:
    """Whether the next burst of received rows is granted in a cycle: a cycle before its first row leaves at the latest,
    and while no more than one burst waits for the port."""
    while s.row_grant < s.port_tail:
        burst = q.port_bursts[s.row_grant & PORT_BURSTS - 1]
        latest = burst.first - TAKEN_TO_PORT - 1
        if burst.receives:
            if not s.row_burst or not s.row_claimed:
                return 0
            free = q.port_bursts[s.row_grant - 2 & PORT_BURSTS - 1].last - TAKEN_TO_PORT
            if now < latest and (now <= max(free, s.row_granted) or now < burst.room - TAKEN_TO_PORT - 1):
                return 0
            s.row_granted = now
            s.row_grant += 1
            return 1
        s.row_granted = max(s.row_granted, latest)
        s.row_grant += 1
    return 0


@rule
def move_rows(p: Any, s: Any, q: Any) -> None:
    """One cycle: what each register does, then all of them."""
    now = s.row_now
    leaves, grants = _row_leaves(s, q, now), _row_grant(s, q, now)
    # the rows' FIFO, and what of it a burst has claimed
    advances = s.row_fetched and (leaves or not s.row_given)
    fetches = int(s.row_stored > 0 and (advances or not s.row_fetched))
    has_room = s.row_stored < p.rows_buffered
    enters = int(s.row_stage4 and has_room)
    claims = s.row_burst > 0 and not s.row_claimed and s.row_unclaimed > 0
    # the aligner, all stages at once; the buffer's output, its memory and the order that it follows
    moves = has_room or not s.row_stage4
    takes = s.row_out > 0 and moves and not s.row_spill
    steps = s.row_waiting > 0 and (takes or not s.row_out)
    reads = s.row_left > 0 and not s.row_dropping and (steps or not s.row_waiting)
    ends = reads and s.row_left == 1
    ordered = s.row_valid and not s.row_dropping and (ends or s.row_left == 0)
    # the order that is decided on, and its command's way to the bursts
    while s.row_over < s.row_order:
        order = q.orders[s.row_over & ORDERS - 1]
        if order.kind == GIVEN and order.over + OVER_TO_DECIDE > now:
            break
        s.row_tokens -= order.kind != GONE
        s.row_over += 1
    decides = (s.row_order < s.order_tail and not s.row_valid and not s.row_command
               and s.row_tokens < TOKENS_IN_FLIGHT and q.orders[s.row_order & ORDERS - 1].edge <= now)
    sends = int(s.row_command and s.row_link < LINK_ROOM)
    cuts = int(s.row_link > 0 and not s.row_cutting)
    free = grants or not s.row_burst

    s.row_unclaimed += enters - s.row_counts
    s.row_counts = s.row_burst if claims else 0
    s.row_claimed = claims or (s.row_claimed and not grants)
    s.row_stored += enters - fetches
    s.row_given = advances or (s.row_given and not leaves)
    s.row_fetched = fetches or (s.row_fetched and not advances)
    if moves:
        s.row_stage4, s.row_stage3, s.row_stage2 = s.row_stage3, s.row_stage2, s.row_stage1
        s.row_stage1 = (s.row_out > 0 and s.row_out != SWALLOWED) or s.row_spill
        s.row_spill = takes and s.row_out == SPILLS
    if steps:
        s.row_out = s.row_waiting
    elif takes:
        s.row_out = 0
    if reads:
        s.row_waiting = SPILLS if ends and s.row_spills else SWALLOWED if s.row_swallows else 1
        s.row_swallows = 0
        s.row_left -= 1
        s.row_head += not (ends and s.row_shares)
    elif steps:
        s.row_waiting = 0
    s.row_head += s.row_dropping
    s.row_dropping = 0
    if cuts:
        while q.orders[s.row_cut & ORDERS - 1].kind != GIVEN:
            s.row_cut += 1
        s.row_cut_at = q.orders[s.row_cut & ORDERS - 1].at
        s.row_cut_left = q.orders[s.row_cut & ORDERS - 1].length
        s.row_cut += 1
    if free:
        s.row_burst = 0
        if cuts or s.row_cutting:
            length = min(s.row_cut_left, BURST - (s.row_cut_at & BURST - 1))
            s.row_burst = rows_between(s.row_cut_at, length, p.host_log2)
            s.row_cut_at += length
            s.row_cut_left -= length
    s.row_cutting = s.row_cut_left > 0
    s.row_link += sends - cuts
    s.row_command = s.row_command and not sends
    s.row_valid = s.row_valid and not ordered
    if ordered:
        while q.orders[s.row_taken & ORDERS - 1].kind == NOTHING:
            s.row_taken += 1
        order = q.orders[s.row_taken & ORDERS - 1]
        s.row_taken += 1
        s.row_left = order.reads
        s.row_shares = order.reads + order.drops > order.rows
        s.row_swallows = order.swallows
        s.row_spills = rows_between(order.at, order.length, p.host_log2) > order.reads - order.swallows
        s.row_dropping = order.rows if order.kind == GONE else order.drops
    if decides:
        kind = q.orders[s.row_order & ORDERS - 1].kind
        q.orders[s.row_order & ORDERS - 1].decided = now
        s.row_valid = kind != NOTHING
        s.row_command = kind == GIVEN
        s.row_tokens += kind != GONE
        s.row_order += 1
    if s.row_settles == now:
        s.row_settled = s.row_order
    s.row_now += 1
    q.row_heads[s.row_now & ROW_HEADS - 1] = s.row_head


SPILLS, SWALLOWED = 2, 3
"""A row whose bytes spread over two in the host's lanes, of which the second has nothing behind it; and one that leaves
room in the row where it begins, so that it goes with the next."""
