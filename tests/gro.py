"""Linux's generic receive offload for TCP, written down by its rules, and streams of segments that try each of them.

Ref: Linux 6.1, net/core/gro.c, net/ipv4/af_inet.c (inet_gro_receive), net/ipv6/ip6_offload.c, net/ipv4/tcp_offload.c.
Segments are numbers here, not bytes: nothing is shared with the code that is judged.
"""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass, field, replace

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)
from scapy.layers.inet import IP, TCP, IPOption_NOP  # noqa: E402
from scapy.layers.inet6 import IPv6  # noqa: E402
from scapy.layers.l2 import Dot1Q, Ether  # noqa: E402

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << n for n in range(8))
OWN, PEER = "02:00:00:00:00:01", "02:00:00:00:00:99"


@dataclass(frozen=True)
class Segment:
    """A TCP segment."""

    flow: int
    ipv6: bool = False
    vlan: int | None = None
    seq: int = 0
    payload: bytes = b""
    ack: int = 1
    window: int = 1000
    flags: int = ACK
    options: bytes = b""
    tos: int = 0
    ttl: int = 64
    df: bool = True
    reserved: bool = False
    ident: int = 0
    label: int = 0
    urgent: int = 0
    padding: int = 0
    good: bool = True
    """Its checksum is right."""
    ip_options: int = 0
    source: str = PEER
    destination: str = OWN

    @property
    def address(self) -> tuple[object, ...]:
        """What the hash is made of."""
        return (self.flow, self.ipv6)

    @property
    def same_flow(self) -> tuple[object, ...]:
        """What must be equal for Linux to see one flow."""
        return (self.flow, self.ipv6, self.vlan, self.label if self.ipv6 else 0, self.source)

    @property
    def ip_bytes(self) -> int:
        """Length of the IP packet."""
        return (40 if self.ipv6 else 20) + 20 + len(self.options) + len(self.payload)

    def frame(self) -> bytes:
        """The frame."""
        layers = Ether(src=self.source, dst=self.destination)
        if self.vlan is not None:
            layers /= Dot1Q(vlan=self.vlan)
        if self.ipv6:
            layers /= IPv6(src=f"fd00::{self.flow + 1:x}", dst="fd00::ffff", hlim=self.ttl, tc=self.tos, fl=self.label)
        else:
            layers /= IP(src=f"10.0.{self.flow + 1}.1", dst="10.200.0.2", ttl=self.ttl, tos=self.tos, id=self.ident,
                         flags=("evil" if self.reserved else "") or ("DF" if self.df else 0),
                         options=[IPOption_NOP()] * self.ip_options)
        tcp = TCP(sport=1000 + self.flow, dport=80, seq=self.seq, ack=self.ack, window=self.window,
                  flags=self.flags, urgptr=self.urgent, dataofs=5 + len(self.options) // 4)
        raw = bytearray(bytes(layers / tcp / (self.options + self.payload)))
        if not self.good:
            raw[-1] ^= 1
        return bytes(raw) + bytes(self.padding)


@dataclass
class _Held:
    first: int
    head: Segment
    length: int
    ip_bytes: int
    count: int = 1
    atomic: bool = True
    members: list[int] = field(default_factory=list)


class LinuxGro:
    """Enters: segments. Leaves: `events`: ("alone", n), ("open", n), ("append", n, first), ("end", first)."""

    def __init__(self, contexts: int = 16, limit_bytes: int = 65535) -> None:
        self.events: list[tuple[object, ...]] = []
        self._contexts = contexts
        self._limit = limit_bytes
        self._held: list[_Held] = []
        self._number = 0

    def receive(self, skb: Segment) -> None:
        """One segment."""
        number, self._number = self._number, self._number + 1
        # Not exactly Linux: whatever has these addresses and ports ends what is open of them.
        p = next((h for h in self._held if h.head.address == skb.address), None)
        length = len(skb.payload)
        # "if (*(u8 *)iph != 0x45) goto out", a checksum that is wrong: NAPI_GRO_CB(skb)->flush
        out = bool(skb.ip_options) or not skb.good
        # iph->tot_len against skb_gro_len, frag_off but for DF; IPv6: payload_len
        flush_skb = out or bool(skb.padding) or (skb.reserved and not skb.ipv6)
        merged = False
        if p is not None:
            merged = not flush_skb and p.head.same_flow == skb.same_flow and not self._flush(p, skb, length)
        if merged:
            assert p is not None
            if p.count == 1 and not skb.ipv6 and p.atomic:
                p.atomic = skb.ident == p.head.ident
            p.count += 1
            p.length += length
            p.ip_bytes += length
            self.events.append(("append", number, p.first))
            if length < len(p.head.payload) or skb.flags & (URG | PSH | RST | SYN | FIN):
                self._end(p)
            return
        if p is not None:
            self._end(p)
        # "flush = len < mss" with mss 1, and the flags
        if flush_skb or length < 1 or skb.flags & (URG | PSH | RST | SYN | FIN):
            self.events.append(("alone", number))
            return
        if len(self._held) == self._contexts:
            self._end(self._held[0])
        self._held.append(_Held(number, skb, length, skb.ip_bytes, atomic=skb.ipv6 or skb.df))
        self.events.append(("open", number))

    def _flush(self, p: _Held, skb: Segment, length: int) -> bool:
        """Why `skb` is not merged with `p`, of the same flow."""
        head = p.head
        flush = head.ttl != skb.ttl or head.tos != skb.tos
        if not skb.ipv6:
            flush |= head.df != skb.df
            delta = skb.ident - head.ident & 0xFFFF
            if not p.atomic:
                flush |= delta != p.count & 0xFFFF
            elif p.count == 1:
                flush |= delta not in (0, 1)
            else:
                flush |= delta != 0
        flush |= bool(skb.flags & CWR)
        flush |= bool((skb.flags ^ head.flags) & ~(CWR | FIN | PSH))
        flush |= skb.window != head.window or len(skb.options) != len(head.options)
        flush |= skb.ack != head.ack or skb.options != head.options
        flush |= skb.urgent != head.urgent  # not Linux: see nic_model.coalescing
        flush |= not 1 <= length <= len(head.payload)
        flush |= (head.seq + p.length & 0xFFFF_FFFF) != skb.seq
        flush |= p.ip_bytes + length > self._limit
        return flush

    def _end(self, held: _Held) -> None:
        self._held.remove(held)
        self.events.append(("end", held.first))

    def flush(self) -> None:
        """All that is held ends, the oldest first."""
        for held in list(self._held):
            self._end(held)


DEVIATIONS = {
    "sequence gap": lambda s, r: replace(s, seq=s.seq + r.choice((1, 1460)) & 0xFFFF_FFFF),
    "repeated": lambda s, r: replace(s, seq=s.seq - len(s.payload) & 0xFFFF_FFFF),
    "acknowledgement": lambda s, r: replace(s, ack=s.ack ^ 1 << r.randrange(32)),
    "window": lambda s, r: replace(s, window=s.window ^ 1 << r.randrange(16)),
    "no payload": lambda s, r: replace(s, payload=b""),
    "longer": lambda s, r: replace(s, payload=s.payload + b"x"),
    "shorter": lambda s, r: replace(s, payload=s.payload[: max(1, len(s.payload) - r.randrange(1, 30))]),
    "one byte": lambda s, r: replace(s, payload=s.payload[:1]),
    "PSH": lambda s, r: replace(s, flags=s.flags | PSH),
    "FIN": lambda s, r: replace(s, flags=s.flags | FIN),
    "SYN": lambda s, r: replace(s, flags=s.flags | SYN),
    "RST": lambda s, r: replace(s, flags=s.flags | RST),
    "URG": lambda s, r: replace(s, flags=s.flags | URG),
    "ECE": lambda s, r: replace(s, flags=s.flags ^ ECE),
    "CWR": lambda s, r: replace(s, flags=s.flags | CWR),
    "no ACK": lambda s, r: replace(s, flags=s.flags & ~ACK),
    "type of service": lambda s, r: replace(s, tos=s.tos ^ 4),
    "congestion experienced": lambda s, r: replace(s, tos=s.tos ^ 3),
    "time to live": lambda s, r: replace(s, ttl=s.ttl - 1),
    "DF": lambda s, r: replace(s, df=not s.df),
    "reserved flag": lambda s, r: replace(s, reserved=True, df=False),
    "identification": lambda s, r: replace(s, ident=s.ident + r.choice((1, 2, 0x100, 0xFFFF)) & 0xFFFF),
    "options": lambda s, r: replace(s, options=bytes(len(s.options) - 1) + b"\1" if s.options else b"\1\1\1\1"),
    "more options": lambda s, r: replace(s, options=s.options + b"\1\1\1\1" if len(s.options) < 40 else b""),
    "urgent pointer": lambda s, r: replace(s, urgent=7),
    "padding": lambda s, r: replace(s, padding=r.choice((1, 6))),
    "wrong checksum": lambda s, r: replace(s, good=False),
    "ip options": lambda s, r: replace(s, ip_options=4 * (not s.ipv6)),
    "vlan": lambda s, r: replace(s, vlan=5 if s.vlan is None else None),
    "flow label": lambda s, r: replace(s, label=77),
    "source address": lambda s, r: replace(s, source="02:00:00:00:00:98"),
}
"""What a segment may have against it, by name."""


class Streams:
    """Segments of many flows, mostly in order, each flow of its own kind."""

    def __init__(self, rng: random.Random, flows: int, *, deviation: float = 0.1, sizes: tuple[int, ...] = (),
                 destination: str = OWN) -> None:
        self._rng = rng
        self._deviation = deviation
        self.tried: dict[str, int] = dict.fromkeys(DEVIATIONS, 0)
        self._next = []
        self._steps = []
        for flow in range(flows):
            ipv6 = rng.random() < 0.4
            size = rng.choice(sizes or (1, 7, 33, 100, 100))
            df = rng.random() < 0.6
            self._next.append(Segment(
                flow, ipv6, rng.choice((None, None, 3)), rng.choice((rng.randrange(1 << 32), (1 << 32) - 150)),
                rng.randbytes(size), rng.randrange(1 << 32), rng.randrange(1 << 16),
                options=b"\1\1" + rng.randbytes(rng.choice((2, 10, 38))) if rng.random() < 0.5 else b"",
                destination=destination, tos=rng.choice((0, 2, 8)), df=df,
                ident=rng.choice((0, 0xFFFE, rng.randrange(1 << 16)))))
            self._steps.append(1 if not df or rng.random() < 0.5 else 0)

    def segment(self) -> Segment:
        """The next one, of any flow."""
        rng = self._rng
        flow = rng.randrange(len(self._next))
        right = self._next[flow]
        sent = right
        if rng.random() < self._deviation:
            name = rng.choice(list(DEVIATIONS))
            sent = DEVIATIONS[name](right, rng)
            self.tried[name] += 1
        elif rng.random() < 0.1:
            sent = replace(right, flags=right.flags | PSH)
        self._next[flow] = replace(
            right, seq=sent.seq + len(sent.payload) & 0xFFFF_FFFF, ack=sent.ack, window=sent.window,
            ident=sent.ident + self._steps[flow] & 0xFFFF, payload=rng.randbytes(len(right.payload)))
        return sent
