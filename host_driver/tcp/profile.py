"""What differs between implementations of TCP: constants, in picoseconds and bytes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

US = 1_000_000
MS = 1_000 * US
SECOND = 1_000 * MS


class Nagle(Enum):
    """When a segment that is not full waits for acknowledgements."""

    OFF = "never (TCP_NODELAY)"
    RFC896 = "while any sent data is unacknowledged"
    MINSHALL = "while an earlier segment that was not full is unacknowledged"


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Constants of one implementation."""

    name: str
    initial_window_segments: int | None = None
    """Initial congestion window; None: 2 to 4 segments by their size (RFC 5681 §3.1)."""
    initial_rto_ps: int = SECOND
    min_rto_ps: int = SECOND
    max_rto_ps: int = 60 * SECOND
    granularity_ps: int = MS
    """Clock granularity G of RFC 6298."""
    max_retransmissions: int = 15
    """Timeouts of one segment before the connection is given up (R2 of RFC 9293 §3.8.3); also unanswered probes."""
    max_syn_retransmissions: int = 5
    delayed_ack_ps: int = 200 * MS
    quick_acks: int = 0
    """First data segments acknowledged at once, until data goes out in answer."""
    delay_fin_ack: bool = False
    """Whether the acknowledgement of a FIN may wait for the own FIN like that of data."""
    time_wait_ps: int = 240 * SECOND
    """2 MSL."""
    window_scale: int | None = None
    """Shift that is offered for the own window, 0 to 14; None: no window scaling."""
    receive_buffer_bytes: int = 65535
    send_buffer_bytes: int = 65536
    nagle: Nagle = Nagle.RFC896
    min_persist_ps: int = SECOND
    max_persist_ps: int = 60 * SECOND
    limited_transmit: bool = True
    """RFC 3042: a new segment for each of the first two duplicate acknowledgements."""
    keep_alive_idle_ps: int = 7200 * SECOND
    """RFC 9293 §3.8.4: "the time interval since the last received packet", if the user asks for keep-alive."""
    keep_alive_interval_ps: int = 75 * SECOND
    keep_alive_probes: int = 9
    """Unanswered keep-alive probes before the connection is given up."""
    fin_wait_2_ps: int = 60 * SECOND
    """How long a connection that its user released waits for the peer's FIN."""
    soft_errors_end_open: bool = False
    """RFC 5461 §4.1: an ICMP error that may pass ends a connection that is being opened, not only a hard one."""
    stretch_acks: bool = False
    """Segments that the device merged are acknowledged once, not every second of them."""
    challenge_ack_ps: int = SECOND // 2
    """Least time between two answers to segments without data that are not acceptable (RFC 5961 §7)."""

    def __post_init__(self) -> None:
        if self.window_scale is not None and not 0 <= self.window_scale <= 14:
            raise ValueError(f"profile {self.name!r}: window_scale must be 0 to 14 or None, not {self.window_scale!r}")
        if self.receive_buffer_bytes < 1:
            raise ValueError(f"profile {self.name!r}: receive_buffer_bytes must be positive")


RFC = Profile(name="rfc", window_scale=3, receive_buffer_bytes=1 << 18, send_buffer_bytes=1 << 18)
"""What the standards ask for, with a window for fast links. RFC 9293's MSL is 2 minutes."""

LINUX24 = Profile(
    name="linux24",
    initial_window_segments=2,
    initial_rto_ps=3 * SECOND,  # TCP_TIMEOUT_INIT
    min_rto_ps=200 * MS,  # TCP_RTO_MIN
    max_rto_ps=120 * SECOND,  # TCP_RTO_MAX
    granularity_ps=10 * MS,  # a jiffy
    delayed_ack_ps=40 * MS,  # TCP_DELACK_MIN
    quick_acks=2,  # rcv_wnd / (2 * rcv_mss) of the first window, 5,840 bytes
    delay_fin_ack=True,  # tcp_fin enters pingpong mode
    time_wait_ps=60 * SECOND,  # TCP_TIMEWAIT_LEN
    nagle=Nagle.MINSHALL,
    min_persist_ps=200 * MS,
    limited_transmit=False,
    soft_errors_end_open=True,  # tcp_v4_err
    stretch_acks=True,
)
"""Linux 2.4, as the servers of its day ran it."""

PROFILES: dict[str, Profile] = {p.name: p for p in (RFC, LINUX24)}
