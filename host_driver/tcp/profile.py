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


class Ecn(Enum):
    """Whether explicit congestion notification is agreed on (RFC 3168)."""

    OFF = "never"
    ACCEPT = "if the peer asks for it"
    REQUEST = "asked for, and agreed to"


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
    """The same of a SYN."""
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
    syn_cookies: bool = True
    """A listener without room for another handshake answers with a cookie (RFC 4987), instead of not at all."""
    soft_errors_end_open: bool = False
    """RFC 5461 §4.1: an ICMP error that may pass ends a connection that is being opened, not only a hard one."""
    stretch_acks: bool = False
    """Segments that the device merged are acknowledged once, not every second of them."""
    congestion_control: str = "newreno"
    """Name of an algorithm: a key of `sender.CONGESTION_CONTROLS`."""
    slow_start_limit: int | None = 1
    """Segments by which one acknowledgement may let the window grow in slow start (RFC 5681 §3.1: 1; RFC 3465's L);
    None: by all that it acknowledges."""
    sack: bool = False
    """Selective acknowledgements (RFC 2018), with D-SACK, and if the peer has them too, RACK-TLP and PRR."""
    timestamps: bool = False
    """RFC 7323's, with PAWS."""
    timestamp_tick_ps: int = MS
    """RFC 7323 §5.4: the timestamp clock's period lies "in the range 1 ms to 1 sec per tick"."""
    ecn: Ecn = Ecn.OFF
    challenge_ack_ps: int = SECOND // 2
    """Least time between two answers to segments without data that are not acceptable (RFC 5961 §7)."""

    def __post_init__(self) -> None:
        if self.window_scale is not None and not 0 <= self.window_scale <= 14:
            raise ValueError(f"profile {self.name!r}: window_scale must be 0 to 14 or None, not {self.window_scale!r}")
        if self.receive_buffer_bytes < 1:
            raise ValueError(f"profile {self.name!r}: receive_buffer_bytes must be positive")


RFC = Profile(
    name="rfc", max_syn_retransmissions=7, window_scale=3, receive_buffer_bytes=1 << 18, send_buffer_bytes=1 << 18,
    sack=True, timestamps=True, ecn=Ecn.REQUEST)
"""What the standards ask for, with a window for fast links. RFC 9293's MSL is 2 minutes; its §3.8.3 has R2 "for a SYN
segment [...] be set large enough to provide retransmission of the segment for at least 3 minutes"."""

LINUX = Profile(
    name="linux",
    initial_window_segments=10,  # TCP_INIT_CWND
    initial_rto_ps=SECOND,  # TCP_TIMEOUT_INIT
    min_rto_ps=200 * MS,  # TCP_RTO_MIN
    max_rto_ps=120 * SECOND,  # TCP_RTO_MAX
    granularity_ps=200 * MS,  # tcp_rtt_estimator: the variance counts as TCP_RTO_MIN at least
    max_syn_retransmissions=6,  # net.ipv4.tcp_syn_retries
    delayed_ack_ps=40 * MS,  # TCP_DELACK_MIN
    quick_acks=16,  # TCP_MAX_QUICKACKS
    delay_fin_ack=True,  # tcp_fin enters pingpong mode
    time_wait_ps=60 * SECOND,  # TCP_TIMEWAIT_LEN
    window_scale=7,  # tcp_select_initial_window, for the largest buffer of net.ipv4.tcp_rmem
    receive_buffer_bytes=6 << 20,
    send_buffer_bytes=4 << 20,  # net.ipv4.tcp_wmem
    nagle=Nagle.MINSHALL,
    min_persist_ps=200 * MS,
    max_persist_ps=120 * SECOND,
    congestion_control="cubic",
    slow_start_limit=None,  # tcp_slow_start grows by all that was acknowledged
    sack=True,
    timestamps=True,
    ecn=Ecn.ACCEPT,  # net.ipv4.tcp_ecn = 2
    soft_errors_end_open=True,  # tcp_v4_err
    stretch_acks=True,  # a segment that GRO made is acknowledged once
)
"""A current Linux (6.x) with the settings that it comes with. Its buffers grow with their use; here they are as large
as they may become from the start."""

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
    syn_cookies=False,  # net.ipv4.tcp_syncookies = 0
    soft_errors_end_open=True,  # tcp_v4_err
    stretch_acks=True,
)
"""Linux 2.4, as the servers of its day ran it; without SACK and timestamps, which it had."""

PROFILES: dict[str, Profile] = {p.name: p for p in (RFC, LINUX, LINUX24)}
