"""What the device counts, in the order of the counters' addresses.

Each is 64 bits wide, at `COUNTERS_BASE + 8 * index`, and shows the value of the last snapshot. Names follow
ethtool's and Linux's `rtnl_link_stats64` where those have one. For a snapshot with nothing in flight:
`rx_frames_in = rx_frames + rx_filtered + rx_bad_frames + rx_no_buffer + rx_oversize + rx_fifo_full + rx_errors`.
"""

from __future__ import annotations

from typing import NamedTuple


class Counter(NamedTuple):
    """One counter: its name, its unit and what makes it count."""

    name: str
    unit: str
    meaning: str


COUNTERS: tuple[Counter, ...] = (
    Counter("tx_frames", "frames", "sent to the MAC"),
    Counter("tx_bytes", "bytes", "of those frames, without FCS"),
    Counter("tx_sends", "descriptors", "finished without error"),
    Counter("tx_errors", "descriptors", "finished with an error status"),
    Counter("rx_frames_in", "frames", "whole frames seen at the MAC while RX_ENABLE is 1"),
    Counter("rx_frames", "frames", "delivered to host memory"),
    Counter("rx_bytes", "bytes", "of those frames, without FCS"),
    Counter("rx_filtered", "frames", "dropped: not for this address"),
    Counter("rx_bad_frames", "frames", "dropped: the MAC flagged them bad, or shorter than 14 bytes"),
    Counter("rx_oversize", "frames", "dropped: longer than 9,014 bytes, or than the next 32 posted buffers together"),
    Counter("rx_fifo_full", "frames", "dropped: no room in the receive FIFO"),
    Counter("rx_no_buffer", "frames", "dropped: too few buffers, or the channel does not run or may not receive"),
    Counter("rx_errors", "frames", "dropped: a key was refused, or a write failed (error completion)"),
    Counter("rx_checksum_errors", "frames", "delivered with CHECKSUM_BAD"),
    Counter("rx_steered_rule", "frames", "let in whose channel a flow rule gave, delivered or not"),
    Counter("rx_steered_rss", "frames", "let in whose channel the indirection table gave, delivered or not"),
    Counter("completions", "completions", "written"),
    Counter("rx_aggregates", "receives", "of more than one frame, told by completions"),
    Counter("rx_coalesced", "frames", "that became part of a receive behind its first frame"),
    Counter("interrupts", "interrupts", "VECTOR_FIRED of all vectors, and times the error line rose"),
    Counter("tx_pause", "frames", "pause frames sent; not among tx_frames"),
    Counter("rx_pause", "frames", "pause frames received, honoured or not; not among rx_frames_in"),
)
