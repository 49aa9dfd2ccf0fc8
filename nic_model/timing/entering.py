"""What enters the stages from columns: descriptors into their rings, doorbells, frames. Rules as those of `stages`."""

from __future__ import annotations

from typing import Any

from nic_model.timing import rules, stages
from nic_model.timing.rules import rule, step

SEND, ARRIVE = 0, 1
"""Kinds of rows of `nic_model.timing.state.INPUT`."""


@step
def put_send(p: Any, s: Any, q: Any, channel: int, payload: int, mss: int, inline: int, sums: int, slots: int,
             complete: int) -> int:
    """A descriptor stands in its channel's ring; its pieces are added by `put_piece`. Returns its number."""
    number = q.channels[channel].posted
    descriptor = q.descriptors[channel, number & p.descriptors - 1]
    descriptor.slots = slots
    descriptor.inline = inline
    descriptor.payload = payload
    descriptor.mss = mss
    descriptor.sums = sums
    descriptor.ipv6 = 0
    descriptor.complete = complete
    descriptor.piece = s.piece_tail
    descriptor.pieces = 0
    descriptor.number = number
    q.channels[channel].posted = number + 1
    return int(number)


@step
def put_piece(p: Any, s: Any, q: Any, channel: int, address: int, length: int) -> None:
    """A piece of the descriptor that was put last."""
    q.descriptors[channel, q.channels[channel].posted - 1 & p.descriptors - 1].pieces += 1
    piece = q.pieces[s.piece_tail & p.piece_places - 1]
    piece.address = address
    piece.length = length
    s.piece_tail += 1


@rule
def feed(p: Any, s: Any, q: Any, rows: Any, count: int, at: int) -> int:
    """Let rows enter from number `at` on, until there is no room for what comes out, or no row any more; returns the
    number of the next row. A send whose ring is full waits until it is not; -1: it never will be."""
    while at < count:
        first = rows[at]
        edge = max(first.edge, s.entered)
        if not stages.advance(p, s, q, edge - 1):
            return at
        channel = first.channel
        if first.kind == ARRIVE:
            q.channels[channel].rx_posted += 1
            stages.arrive(p, s, q, edge, channel, first.length, s.arrived)
            s.arrived += 1
            s.entered = edge
            at += 1
            continue
        room = q.channels[channel].ring_slots + q.channels[channel].consumed - q.channels[channel].producer
        slots = 0
        while at < count:
            row = rows[at]
            if row.kind != SEND or row.channel != channel or row.edge > edge or slots + row.slots > room:
                break
            put_send(p, s, q, channel, row.length, row.mss, row.inline, row.sums, row.slots, 1)
            if row.length > 0:
                put_piece(p, s, q, channel, row.address, row.length)
            slots += row.slots
            at += 1
        if slots > 0:
            s.entered = edge
            stages.ring_bell(p, s, q, edge, channel, slots)
            continue
        s.waits = 1 + channel
        goes_on = stages.advance(p, s, q, rules.NEVER - 1)
        if s.waits:
            s.waits = 0
            return -1 if goes_on else at
        s.entered = max(s.entered, s.next_at + 1)
    return at
