"""Time as the firmware knows it: what the messages up say."""

from __future__ import annotations

from nic_model.contract.control import TIME_SHIFT, TIMESTAMP_SHIFT

PS_PER_SECOND = 10**12
_TIME_BITS = 32
_HALF = 1 << _TIME_BITS - 1


class PortClock:
    """Picoseconds out of the `time` of messages, which is modulo 2^32. Attributes: `now`; `timestamp_tick_ps`, the
    period of the timestamps that the device puts into segments."""

    def __init__(self, clock_hz: int) -> None:
        self.timestamp_tick_ps = round((PS_PER_SECOND << TIMESTAMP_SHIFT) / clock_hz)
        self.now = 0
        self._units = 0

    def advance(self, time: int, epoch: int | None = None) -> None:
        """A message was made at `time`; a TICK also says how often that had wrapped. Time does not go back."""
        if epoch is not None:
            units = epoch << _TIME_BITS | time
        else:
            ahead = (time - self._units + _HALF) % (1 << _TIME_BITS) - _HALF
            units = self._units + ahead
        self._units = max(self._units, units)
        # A whole number of timestamp ticks is a whole number of units, so that both clocks always show the same.
        self.now = self._units * self.timestamp_tick_ps >> TIMESTAMP_SHIFT - TIME_SHIFT
