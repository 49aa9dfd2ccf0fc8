"""Finding neighbours by ARP and neighbour discovery, routes, and echoes: dialogues, judged by scapy."""

from __future__ import annotations

import random
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from host_driver.tcp import RFC, Chunk, Stack
from host_driver.tcp.neighbours import MAX_NEIGHBOURS, Reachability
from host_driver.tcp.profile import SECOND
from tests.tcp.dialogue import PLAIN, Recorder

OWN, PEER, OTHER, ROUTER = (f"02:00:00:00:00:{n:02x}" for n in (1, 2, 3, 4))
BROADCAST, ZERO = "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"
IP4, PEER4, IP6, PEER6 = "10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"


class Link:
    """A stack with an address of each kind on a link where everybody is scripted."""

    def __init__(self, *ip: str, **options: Any) -> None:
        self.now = 0
        self.stack = Stack(mac=bytes.fromhex(OWN.replace(":", "")), ip=ip or (f"{IP4}/24", f"{IP6}/64"), profile=PLAIN,
                           account=Recorder(), rng=random.Random(1), **options)

    def hear(self, packet: Packet) -> None:
        self.stack.receive(bytes(packet), self.now)

    def said(self) -> list[Packet]:
        """What leaves now; each frame is as scapy would have built it."""
        found = []
        for out in self.stack.transmit(self.now):
            packet = Ether(out.frame())
            fresh = packet.copy()
            for layer, field in ((IP, "chksum"), (TCP, "chksum"), (ICMP, "chksum"), (ICMPv6ND_NA, "cksum"),
                                 (ICMPv6ND_NS, "cksum"), (ICMPv6EchoReply, "cksum")):
                if layer in fresh:
                    delattr(fresh[layer], field)
            assert bytes(fresh) == out.frame()
            found.append(packet)
        return found

    def one(self) -> Packet:
        (packet,) = self.said()
        return packet

    def wait(self) -> int:
        """Go to the next deadline; how long that took."""
        deadline = self.stack.next_deadline()
        assert deadline is not None
        waited = deadline - self.now
        self.now = deadline
        self.stack.poll(self.now)
        return waited

    def state(self, ip: str) -> Reachability:
        from ipaddress import ip_address
        return self.stack.neighbours.state_of(ip_address(ip).packed)


def arp_reply(mac: str = PEER, ip: str = PEER4, to: str = OWN) -> Packet:
    return Ether(src=mac, dst=to) / ARP(op="is-at", hwsrc=mac, psrc=ip, hwdst=OWN, pdst=IP4)


def advertisement(mac: str = PEER, *, solicited: int = 1, override: int = 1, to: str = IP6) -> Packet:
    return (Ether(src=mac, dst=OWN if to == IP6 else "33:33:00:00:00:01") / IPv6(src=PEER6, dst=to, hlim=255)
            / ICMPv6ND_NA(tgt=PEER6, R=0, S=solicited, O=override) / ICMPv6NDOptDstLLAddr(lladdr=mac))


def syn(ip: str = PEER4, mac: str = PEER) -> Packet:
    network = IPv6(src=ip, dst=IP6) if ":" in ip else IP(src=ip, dst=IP4)
    return Ether(src=mac, dst=OWN) / network / TCP(sport=4000, dport=80, flags="S", seq=100)


def test_connect_asks_by_arp_and_sends_its_syn_when_answered() -> None:
    link = Link()
    link.stack.connect(PEER4, 80, 0)
    request = link.one()
    assert (request.dst, request[ARP].op, request[ARP].psrc, request[ARP].pdst, request[ARP].hwdst) == (
        BROADCAST, 1, IP4, PEER4, ZERO)
    link.hear(arp_reply())
    packet = link.one()
    assert (packet.dst, packet.src, packet[IP].dst, str(packet[TCP].flags)) == (PEER, OWN, PEER4, "S")
    assert link.state(PEER4) is Reachability.REACHABLE


def test_connections_that_open_together_wait_together() -> None:
    """None of the SYNs is dropped, which would cost its connection a second."""
    link = Link()
    for _ in range(50):
        link.stack.connect(PEER4, 80, 0)
    link.one()
    link.hear(arp_reply())
    assert [str(packet[TCP].flags) for packet in link.said()] == ["S"] * 50


def test_connect_asks_by_neighbour_discovery() -> None:
    link = Link()
    link.stack.connect(PEER6, 80, 0)
    request = link.one()
    assert (request.dst, request[IPv6].dst, request[IPv6].hlim) == ("33:33:ff:00:00:02", "ff02::1:ff00:2", 255)
    assert (request[ICMPv6ND_NS].tgt, request[ICMPv6NDOptSrcLLAddr].lladdr) == (PEER6, OWN)
    link.hear(advertisement())
    packet = link.one()
    assert (packet.dst, packet[IPv6].dst, str(packet[TCP].flags)) == (PEER, PEER6, "S")


@pytest.mark.parametrize("ip", [PEER4, PEER6])
def test_nobody_answers(ip: str) -> None:
    """RFC 4861 §7.2.2: MAX_MULTICAST_SOLICIT, RETRANS_TIMER apart; then the packets are given up."""
    link = Link()
    link.stack.connect(ip, 80, 0)
    asked = []
    while link.now < 3 * SECOND:
        asked += [link.now for p in link.said() if ARP in p or ICMPv6ND_NS in p]
        link.wait()
    assert asked == [0, SECOND, 2 * SECOND]
    assert link.stack.neighbours.dropped == 2  # the SYN, and the SYN again after a second
    assert len(link.said()) == 1  # the SYN's second retransmission, just now, asks anew


def test_requests_are_answered_and_learned_from() -> None:
    """RFC 826."""
    link = Link()
    link.hear(Ether(src=PEER, dst=BROADCAST) / ARP(op="who-has", hwsrc=PEER, psrc=PEER4, pdst=IP4))
    reply = link.one()
    assert (reply.dst, reply[ARP].op, reply[ARP].hwsrc, reply[ARP].psrc, reply[ARP].hwdst, reply[ARP].pdst) == (
        PEER, 2, OWN, IP4, PEER, PEER4)
    link.stack.connect(PEER4, 80, 0)
    assert str(link.one()[TCP].flags) == "S"
    link.hear(Ether(src=PEER, dst=BROADCAST) / ARP(op="who-has", hwsrc=PEER, psrc="10.0.0.9", pdst="10.0.0.7"))
    assert link.said() == []
    assert link.state("10.0.0.9") is Reachability.UNKNOWN
    link.hear(Ether(src=PEER, dst=BROADCAST) / ARP(op="who-has", hwsrc=PEER, psrc="0.0.0.0", pdst=IP4))  # a probe
    assert link.one()[ARP].op == 2
    assert link.state("0.0.0.0") is Reachability.UNKNOWN


@pytest.mark.parametrize("source", [PEER6, "fe80::2"])
def test_solicitations_are_answered_and_learned_from(source: str) -> None:
    """RFC 4861 §7.2.3, §7.2.4; a peer may ask with its link-local address."""
    link = Link()
    link.hear(Ether(src=PEER, dst="33:33:ff:00:00:01") / IPv6(src=source, dst="ff02::1:ff00:1", hlim=255)
              / ICMPv6ND_NS(tgt=IP6) / ICMPv6NDOptSrcLLAddr(lladdr=PEER))
    answer = link.one()
    assert (answer.dst, answer[IPv6].src, answer[IPv6].dst, answer[IPv6].hlim) == (PEER, IP6, source, 255)
    found = answer[ICMPv6ND_NA]
    assert (found.tgt, found.R, found.S, found.O, answer[ICMPv6NDOptDstLLAddr].lladdr) == (IP6, 0, 1, 1, OWN)
    assert link.state(source) is Reachability.STALE


def test_solicitation_without_an_address_is_answered_after_asking() -> None:
    link = Link()
    link.hear(Ether(src=PEER, dst=OWN) / IPv6(src=PEER6, dst=IP6, hlim=255) / ICMPv6ND_NS(tgt=IP6))
    assert link.one()[ICMPv6ND_NS].tgt == PEER6
    link.hear(advertisement())
    answer = link.one()
    assert (answer.dst, answer[ICMPv6ND_NA].tgt) == (PEER, IP6)


def test_duplicate_address_detection_is_answered_to_all() -> None:
    link = Link()
    link.hear(Ether(src=PEER, dst="33:33:ff:00:00:01") / IPv6(src="::", dst="ff02::1:ff00:1", hlim=255)
              / ICMPv6ND_NS(tgt=IP6))
    answer = link.one()
    assert (answer.dst, answer[IPv6].dst, answer[ICMPv6ND_NA].S) == ("33:33:00:00:00:01", "ff02::1", 0)


def test_solicitations_that_are_not_valid_are_ignored() -> None:
    """RFC 4861 §7.1.1: hop limit, checksum, source, option length, target."""
    link = Link()
    right = (Ether(src=PEER, dst="33:33:ff:00:00:01") / IPv6(src=PEER6, dst="ff02::1:ff00:1", hlim=255)
             / ICMPv6ND_NS(tgt=IP6) / ICMPv6NDOptSrcLLAddr(lladdr=PEER))
    for change in ({"hlim": 64}, {"src": "::"}):
        wrong = right.copy()
        for field, value in change.items():
            setattr(wrong[IPv6], field, value)
        link.hear(wrong)
    for change in ({"cksum": 1}, {"code": 1}, {"tgt": "ff02::1"}, {"tgt": "fd00::9"}):
        wrong = right.copy()
        for field, value in change.items():
            setattr(wrong[ICMPv6ND_NS], field, value)
        link.hear(wrong)
    wrong = right.copy()
    wrong[ICMPv6NDOptSrcLLAddr].len = 0
    link.hear(wrong)
    assert link.said() == []
    link.hear(right)
    assert ICMPv6ND_NA in link.one()


def reached(link: Link) -> Any:
    """A connection to PEER4, established."""
    connection = link.stack.connect(PEER4, 80, link.now)
    link.said()
    link.hear(arp_reply())
    first = link.one()[TCP]
    link.hear(Ether(src=PEER, dst=OWN) / IP(src=PEER4, dst=IP4)
              / TCP(sport=80, dport=first.sport, flags="SA", seq=1, ack=first.seq + 1))
    assert str(link.one()[TCP].flags) == "A"
    return connection


def test_old_entry_is_used_and_asked_again_behind_its_back() -> None:
    """RFC 4861 §7.3.3: REACHABLE_TIME, DELAY_FIRST_PROBE_TIME, then unicast probes."""
    link = Link()
    c = reached(link)
    link.now += 31 * SECOND
    c.send(Chunk(b"x"))
    assert link.one()[TCP].payload.load == b"x"
    assert link.state(PEER4) is Reachability.DELAY
    while link.state(PEER4) is Reachability.DELAY:
        link.wait()
        packets = link.said()
    assert link.now == 36 * SECOND
    assert [(p.dst, p[ARP].op) for p in packets if ARP in p] == [(PEER, 1)]
    link.hear(arp_reply())
    assert link.state(PEER4) is Reachability.REACHABLE


def test_progress_of_tcp_shows_that_the_neighbour_is_there() -> None:
    """RFC 4861 §7.3.1: no probe while acknowledgements come."""
    link = Link()
    c = reached(link)
    for _ in range(5):
        link.now += 20 * SECOND
        c.send(Chunk(b"x"))
        data = link.one()[TCP]
        link.hear(Ether(src=PEER, dst=OWN) / IP(src=PEER4, dst=IP4)
                  / TCP(sport=80, dport=data.sport, flags="A", seq=2, ack=data.seq + 1))
    assert link.stack.next_deadline() is None
    link.now += 40 * SECOND
    c.send(Chunk(b"x"))
    data = link.one()[TCP]
    assert link.state(PEER4) is Reachability.DELAY
    link.now += SECOND // 2
    link.hear(Ether(src=PEER, dst=OWN) / IP(src=PEER4, dst=IP4)
              / TCP(sport=80, dport=data.sport, flags="A", seq=2, ack=data.seq + 1))
    link.wait()
    assert link.said() == []
    assert link.state(PEER4) is Reachability.REACHABLE


def test_neighbour_that_vanishes_is_asked_for_anew() -> None:
    link = Link()
    c = reached(link)
    link.now += 31 * SECOND
    c.send(Chunk(b"x"))
    probes = [p.dst for p in link.said() if ARP in p]
    while BROADCAST not in probes:
        link.wait()
        probes += [p.dst for p in link.said() if ARP in p]
    assert probes == [PEER] * 3 + [BROADCAST]
    link.hear(arp_reply(OTHER))
    link.wait()
    assert [p.dst for p in link.said() if TCP in p] == [OTHER]


def test_retransmissions_make_a_neighbour_doubtful() -> None:
    """RFC 9293 §3.8.3: at R1, negative advice to the IP layer, which asks before the entry is old."""
    link = Link()
    c = reached(link)
    c.send(Chunk(b"x"))
    asked_at = None
    while asked_at is None:
        if any(ARP in p for p in link.said()):
            asked_at = link.now
            break
        link.wait()
    assert c.sender.retransmissions == 3
    assert asked_at < 30 * SECOND, "sooner than by its age"


def test_announcements_move_an_address() -> None:
    """A gratuitous ARP and an unsolicited advertisement change what is known, and make nothing known."""
    link = Link()
    gratuitous = Ether(src=OTHER, dst=BROADCAST) / ARP(op="who-has", hwsrc=OTHER, psrc=PEER4, pdst=PEER4)
    link.hear(gratuitous)
    link.hear(advertisement(solicited=0, to="ff02::1"))
    assert (link.state(PEER4), link.state(PEER6)) == (Reachability.UNKNOWN, Reachability.UNKNOWN)
    c = reached(link)
    link.hear(gratuitous)
    assert link.state(PEER4) is Reachability.STALE
    c.send(Chunk(b"x"))
    assert link.one().dst == OTHER


def test_override_flag_of_advertisements() -> None:
    """RFC 4861 §7.2.5."""
    link = Link()
    link.stack.connect(PEER6, 80, 0)
    link.said()
    link.hear(advertisement())
    assert link.one().dst == PEER
    link.hear(advertisement(OTHER, override=0))
    assert link.state(PEER6) is Reachability.STALE
    link.wait()
    assert link.one().dst == PEER  # the SYN again
    link.hear(advertisement(OTHER, override=1, solicited=1))
    assert link.state(PEER6) is Reachability.REACHABLE
    link.wait()
    assert link.one().dst == OTHER


def test_static_entries_win() -> None:
    link = Link()
    link.stack.add_neighbour(PEER4, bytes.fromhex(PEER.replace(":", "")))
    link.hear(arp_reply(OTHER))
    link.hear(Ether(src=OTHER, dst=BROADCAST) / ARP(op="who-has", hwsrc=OTHER, psrc=PEER4, pdst=IP4))
    link.said()
    link.stack.connect(PEER4, 80, 0)
    assert link.one().dst == PEER
    assert link.state(PEER4) is Reachability.PERMANENT


def test_announce() -> None:
    link = Link()
    link.stack.announce(0)
    arp, nd = link.said()
    assert (arp.dst, arp[ARP].op, arp[ARP].psrc, arp[ARP].pdst) == (BROADCAST, 1, IP4, IP4)
    assert (nd.dst, nd[IPv6].dst, nd[ICMPv6ND_NA].S, nd[ICMPv6ND_NA].tgt) == ("33:33:00:00:00:01", "ff02::1", 0, IP6)


@pytest.mark.parametrize(("remote", "gateway"), [("192.0.2.7", "10.0.0.254"), ("2001:db8::7", "fe80::4")])
def test_others_are_reached_by_the_gateway(remote: str, gateway: str) -> None:
    link = Link(gateways=[gateway])
    link.stack.connect(remote, 80, 0)
    request = link.one()
    if ARP in request:
        assert request[ARP].pdst == gateway
        link.hear(arp_reply(ROUTER, gateway))
    else:
        assert request[ICMPv6ND_NS].tgt == gateway
        link.hear(Ether(src=ROUTER, dst=OWN) / IPv6(src=gateway, dst=IP6, hlim=255)
                  / ICMPv6ND_NA(tgt=gateway, R=1, S=1, O=1) / ICMPv6NDOptDstLLAddr(lladdr=ROUTER))
    packet = link.one()
    assert (packet.dst, (packet.getlayer(IP) or packet[IPv6]).dst) == (ROUTER, remote)


def test_no_gateway() -> None:
    link = Link()
    link.stack.listen(80, 4)
    link.hear(syn("192.0.2.7"))
    assert link.said() == []
    assert link.stack.counters.no_route == 1
    with pytest.raises(ValueError, match=r"no route to 192\.0\.2\.7"):
        link.stack.connect("192.0.2.7", 80, 0)


def test_both_kinds_on_one_port() -> None:
    link = Link()
    listener = link.stack.listen(80, 4)
    for ip, arrives in ((PEER4, arp_reply()), (PEER6, advertisement())):
        link.hear(syn(ip))
        link.said()
        link.hear(arrives)
        answer = link.one()
        assert (answer.dst, str(answer[TCP].flags)) == (PEER, "SA")
        network = IPv6(src=ip, dst=IP6) if ":" in ip else IP(src=ip, dst=IP4)
        link.hear(Ether(src=PEER, dst=OWN) / network
                  / TCP(sport=4000, dport=80, flags="A", seq=101, ack=answer[TCP].seq + 1))
        connection = listener.accept()
        assert connection is not None
        assert str(connection.remote.ip) == ip
        assert connection.mss == (1220 if ":" in ip else 536)


@pytest.mark.parametrize(("ip", "gateways"), [((IP4, "10.0.0.9"), ()), ((), ()), ((IP4,), (PEER6,))])
def test_addresses_that_do_not_fit(ip: tuple[str, ...], gateways: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="stack"):
        Stack(mac=bytes(6), ip=ip, profile=RFC, account=Recorder(), rng=random.Random(1), gateways=gateways)


def test_echo() -> None:
    """RFC 1122 §3.2.2.6: the data comes back whole."""
    link = Link()
    link.stack.add_neighbour(PEER4, bytes.fromhex(PEER.replace(":", "")))
    link.stack.add_neighbour(PEER6, bytes.fromhex(PEER.replace(":", "")))
    data = bytes(range(57))
    ether = Ether(src=PEER, dst=OWN)
    link.hear(ether / IP(src=PEER4, dst=IP4) / ICMP(id=7, seq=9) / data)
    reply = link.one()
    assert (reply.dst, reply[IP].src, reply[IP].dst) == (PEER, IP4, PEER4)
    assert (reply[ICMP].type, reply[ICMP].id, reply[ICMP].seq, reply[ICMP].payload.load) == (0, 7, 9, data)
    link.hear(ether / IPv6(src=PEER6, dst=IP6) / ICMPv6EchoRequest(id=7, seq=9, data=data))
    reply = link.one()
    assert (reply[IPv6].src, reply[IPv6].dst) == (IP6, PEER6)
    assert (reply[ICMPv6EchoReply].id, reply[ICMPv6EchoReply].seq, reply[ICMPv6EchoReply].data) == (7, 9, data)
    assert link.stack.icmp.echoes == 2
    link.hear(ether / IP(src=PEER4, dst=IP4) / ICMP(id=7, seq=9, chksum=1) / data)
    assert link.said() == []
    assert link.stack.counters.malformed == 1


def test_table_is_bounded() -> None:
    """A flood from many addresses makes no memory grow, and static entries stay."""
    link = Link("10.0.0.1")
    link.stack.add_neighbour(PEER4, bytes.fromhex(PEER.replace(":", "")))
    link.stack.listen(80, 4)
    for number in range(MAX_NEIGHBOURS + 200):
        link.hear(syn(f"10.1.{number >> 8}.{number & 255}"))
        link.stack.transmit(link.now)
    assert len(link.stack.neighbours._neighbours) == MAX_NEIGHBOURS
    assert link.state(PEER4) is Reachability.PERMANENT


def test_garbage_is_dropped() -> None:
    """Frames of ours with random damage: nothing is raised."""
    rng = random.Random(5)
    link = Link()
    good = [bytes(arp_reply()), bytes(advertisement()), bytes(syn()), bytes(syn(PEER6)),
            bytes(Ether(src=PEER, dst=OWN) / IPv6(src=PEER6, dst=IP6, hlim=255) / ICMPv6ND_NS(tgt=IP6)
                  / ICMPv6NDOptSrcLLAddr(lladdr=PEER))]
    for _ in range(3000):
        frame = bytearray(rng.choice(good))
        for _ in range(rng.randrange(1, 4)):
            frame[rng.randrange(12, len(frame))] = rng.randrange(256)
        link.stack.receive(bytes(frame[: rng.randrange(10, len(frame) + 1)]), 0)
        link.stack.transmit(0)
    assert link.stack.counters.malformed > 100
