"""Proportional rate reduction: during a recovery, what may leave follows what arrives."""

# Ref: RFC 6937 §3

from __future__ import annotations


class RateReduction:
    """RFC 6937's algorithm, with its slow start reduction bound (PRR-SSRB). All sizes are bytes."""

    __slots__ = ("_delivered", "_out", "_recover_fs", "mss")

    def __init__(self, mss: int) -> None:
        self.mss = mss
        self._recover_fs = 1
        self._delivered = 0
        self._out = 0

    def start(self, flight: int) -> None:
        """A recovery begins, with `flight` bytes outstanding."""
        # RFC 6937 §3: "RecoverFS = snd.nxt-snd.una"
        self._recover_fs = max(flight, 1)
        self._delivered = 0
        self._out = 0

    def on_sent(self, length: int) -> None:
        """Bytes leave, old or new."""
        # §3: "prr_out += (data sent)"
        self._out += length

    def window(self, delivered: int, in_flight: int, threshold: int) -> int:
        """The congestion window after an acknowledgement that tells of `delivered` bytes, or of losses."""
        # §3: "prr_delivered += DeliveredData"
        self._delivered += delivered
        if in_flight > threshold:
            # §3: "sndcnt = CEIL(prr_delivered * ssthresh / RecoverFS) - prr_out"
            count = -(-self._delivered * threshold // self._recover_fs) - self._out
        else:
            # §3: "limit = MAX(prr_delivered - prr_out, DeliveredData) + MSS", "sndcnt = MIN(ssthresh - pipe, limit)"
            limit = max(self._delivered - self._out, delivered) + self.mss
            count = min(threshold - in_flight, limit)
        # §3: "cwnd = pipe + sndcnt"
        return in_flight + max(count, 0)
