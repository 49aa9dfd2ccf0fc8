"""Selective acknowledgement: what a receiver reports, and what a sender makes of it.

`SackReport` is the receiver's: which blocks behind the gap it has, the most recent first, and what came twice.
`Scoreboard` is the sender's: every segment that is sent and not acknowledged, in order.
Positions are unwrapped sequence numbers.
"""

# Ref: RFC 2018 §3, §4, §8; RFC 2883 §4; RFC 6675 §3, §4

from __future__ import annotations

from bisect import bisect_right
from collections import deque

Block = tuple[int, int]
"""First position, and the one behind the last."""


class SackReport:
    """The blocks that an acknowledgement reports."""

    __slots__ = ("_blocks", "_duplicate", "has_news")

    def __init__(self) -> None:
        self.has_news = False
        """Whether there is something to report."""
        self._blocks: list[Block] = []  # disjoint, the most recently changed first
        self._duplicate: Block | None = None

    def on_late(self, start: int, end: int) -> None:
        """Bytes arrived behind a gap."""
        # RFC 2883 §4 (3): what of the segment is a duplicate makes the D-SACK block; of several parts the first
        duplicates = [(max(start, s), min(end, e)) for s, e in self._blocks if s < end and start < e]
        if duplicates:
            self._duplicate = min(duplicates)
        # RFC 2018 §4: "The first SACK block (i.e., the one immediately following the kind and length fields in the
        # option) MUST specify the contiguous block of data containing the segment which triggered this ACK"
        others = []
        for block in self._blocks:
            if block[0] <= end and start <= block[1]:
                start, end = min(start, block[0]), max(end, block[1])
            else:
                others.append(block)
        self._blocks = [(start, end), *others]
        self.has_news = True

    def on_duplicate(self, start: int, end: int) -> None:
        """Bytes arrived that had been acknowledged."""
        self._duplicate = start, end
        self.has_news = True

    def on_advance(self, rcv_nxt: int) -> None:
        """All before `rcv_nxt` arrived."""
        self._blocks = [block for block in self._blocks if block[1] > rcv_nxt]
        self.has_news = bool(self._blocks) or self._duplicate is not None

    def count(self, limit: int) -> int:
        """How many blocks `take` would give."""
        return min(len(self._blocks) + (self._duplicate is not None), limit)

    def take(self, limit: int) -> list[Block]:
        """The blocks for an acknowledgement that leaves now, at most `limit`."""
        blocks = self._blocks[:limit]
        duplicate = self._duplicate
        if duplicate is None:
            return blocks
        # RFC 2883 §4 (2): "Each duplicate contiguous sequence of data received is reported in at most one D-SACK block"
        self._duplicate = None
        self.has_news = bool(self._blocks)
        # §4 (4): "If the D-SACK block reports a duplicate contiguous sequence from a (possibly larger) block of data in
        # the receiver's data queue above the cumulative acknowledgement, then the second SACK block in that SACK option
        # should specify that (possibly larger) block of data." `on_late` has put it in front.
        return [duplicate, *blocks[: limit - 1]]


class Sent:
    """One segment as it was sent last: a range of positions, a FIN's included."""

    __slots__ = ("end", "is_again", "is_lost", "is_sacked", "order", "sent_at", "start")

    def __init__(self, start: int, end: int, sent_at: int, order: int, is_again: bool) -> None:
        self.start = start
        self.end = end
        self.sent_at = sent_at
        self.order = order
        """Counts transmissions: segments that leave at the same time are told apart by it."""
        self.is_again = is_again
        """Sent more than once, so that an acknowledgement may mean any of the transmissions."""
        self.is_sacked = False
        self.is_lost = False
        """Taken for lost, and not sent again since."""

    def __repr__(self) -> str:
        marks = "again " * self.is_again + "sacked " * self.is_sacked + "lost " * self.is_lost
        return f"<{self.start}..{self.end} {marks}at {self.sent_at}>"


class Scoreboard:
    """RFC 6675's: which of the outstanding bytes arrived, which are lost, which are in flight."""

    __slots__ = ("_by_time", "_transmissions", "lost_bytes", "sacked_bytes", "segments")

    def __init__(self) -> None:
        self.segments: list[Sent] = []
        """Ascending and without holes; the first begins at SND.UNA."""
        self.sacked_bytes = 0
        self.lost_bytes = 0
        self._transmissions = 0
        # what may be found lost, by its number of transmission; kept up only as long as somebody asks for it
        self._by_time: deque[tuple[int, Sent]] | None = None

    @property
    def in_flight(self) -> int:
        """RFC 6675's pipe, "an estimate of the number of octets outstanding in the network"."""
        segments = self.segments
        if not segments:
            return 0
        return segments[-1].end - segments[0].start - self.sacked_bytes - self.lost_bytes

    def on_sent(self, start: int, end: int, now: int, is_again: bool) -> None:
        """A segment leaves: behind all others, or (a part of) one that did before."""
        segments = self.segments
        self._transmissions += 1
        if not segments or start >= segments[-1].end:
            segment = Sent(start, end, now, self._transmissions, is_again)
            segments.append(segment)
            if self._by_time is not None:
                self._by_time.append((self._transmissions, segment))
            return
        first = self._cut(start)
        for segment in segments[first : self._cut(end)]:
            if segment.is_lost:
                segment.is_lost = False
                self.lost_bytes -= segment.end - segment.start
            segment.sent_at = now
            segment.order = self._transmissions
            segment.is_again = True
            if self._by_time is not None:
                self._by_time.append((self._transmissions, segment))

    def acknowledge(self, ack: int) -> list[Sent]:
        """Forget all before `ack`; returns those segments of it that had not been reported to have arrived."""
        segments = self.segments
        count = 0
        for segment in segments:
            if segment.end > ack:
                if segment.start < ack:
                    count = self._cut(ack)
                break
            count += 1
        done = segments[:count]
        del segments[:count]
        if not self.sacked_bytes and not self.lost_bytes:
            self._by_time = None
            return done
        for segment in done:
            length = segment.end - segment.start
            if segment.is_sacked:
                self.sacked_bytes -= length
            elif segment.is_lost:
                self.lost_bytes -= length
        return [segment for segment in done if not segment.is_sacked]

    def select(self, blocks: list[Block]) -> list[Sent]:
        """Mark what `blocks` report; returns what is news."""
        segments = self.segments
        news = []
        for start, end in blocks:
            if not segments or end <= segments[0].start:
                continue
            first = self._cut(max(start, segments[0].start))
            for segment in segments[first : self._cut(min(end, segments[-1].end))]:
                if not segment.is_sacked:
                    length = segment.end - segment.start
                    segment.is_sacked = True
                    self.sacked_bytes += length
                    if segment.is_lost:
                        segment.is_lost = False
                        self.lost_bytes -= length
                    news.append(segment)
        return news

    def lose(self, segment: Sent) -> None:
        """Take a segment for lost that is neither that nor known to have arrived."""
        segment.is_lost = True
        self.lost_bytes += segment.end - segment.start

    def by_time(self) -> deque[tuple[int, Sent]]:
        """What is neither lost nor known to have arrived, in the order in which it was sent, each with `Sent.order`.

        There are more entries than that: those of earlier transmissions, and of what was lost or arrived since. Whoever
        comes across them at the front takes them away.
        """
        if self._by_time is None:
            waiting = [segment for segment in self.segments if not segment.is_sacked and not segment.is_lost]
            waiting.sort(key=lambda segment: segment.order)  # stable: parts of one transmission stay in order
            self._by_time = deque((segment.order, segment) for segment in waiting)
        return self._by_time

    def first_lost(self) -> Sent | None:
        """The lost segment with the lowest position."""
        if self.lost_bytes:
            for segment in self.segments:
                if segment.is_lost:
                    return segment
        return None

    def forget_sacks(self) -> None:
        """The receiver threw away what it had reported."""
        for segment in self.segments:
            segment.is_sacked = False
        self.sacked_bytes = 0
        self._by_time = None

    def forget_losses(self) -> None:
        """What was taken for lost is on its way."""
        for segment in self.segments:
            segment.is_lost = False
        self.lost_bytes = 0
        self._by_time = None

    def _cut(self, position: int) -> int:
        """Index of the segment that begins at `position`; one that contains it is cut in two."""
        segments = self.segments
        index = bisect_right(segments, position, key=lambda segment: segment.start) - 1
        if index < 0:
            return 0
        segment = segments[index]
        if segment.start == position:
            return index
        if segment.end > position:
            rest = Sent(position, segment.end, segment.sent_at, segment.order, segment.is_again)
            rest.is_sacked, rest.is_lost = segment.is_sacked, segment.is_lost
            segment.end = position
            segments.insert(index + 1, rest)
            self._by_time = None
        return index + 1
