"""Peers that send garbage with right checksums: nothing is raised, others go on, and all comes to rest."""

from __future__ import annotations

import random
from ipaddress import ip_address

import pytest

from host_driver.account import NullAccount
from host_driver.tcp import PROFILES, Chunk, Profile, Stack, State
from host_driver.tcp.profile import MS, SECOND
from nic_model.checksum import checksum_seed, internet_checksum
from nic_model.contract.protocols import IpProtocol
from nic_model.icmp import IcmpMessage
from nic_model.packets import EthernetHeader, TcpOptions, pack_ipv4, pack_ipv6, pack_tcp

OWN_MAC, GOOD_MAC, EVIL_MAC = (bytes([2, 0, 0, 0, 0, n]) for n in (1, 2, 3))
ADDRESSES = {False: ("10.0.0.1", "10.0.0.2", "10.0.0.3"), True: ("fd00::1", "fd00::2", "fd00::3")}
SEGMENTS = 1500


class Evil:
    """Sends whatever comes to its mind, near what the stack's connections expect so that much of it counts."""

    def __init__(self, stack: Stack, rng: random.Random, *, ipv6: bool) -> None:
        self.stack = stack
        self.rng = rng
        self.ipv6 = ipv6
        self.own, _, self.evil = (ip_address(a).packed for a in ADDRESSES[ipv6])
        self.heard: list[bytes] = []

    def frame(self) -> bytes:
        """The next one."""
        rng = self.rng
        if self.heard and rng.random() < 0.15:
            return self._ip(*self._icmp())
        theirs = [c for c in self.stack.connections if c.remote.ip.packed == self.evil]
        if theirs and rng.random() < 0.8:
            c = rng.choice(theirs)
            ports = c.remote.port, c.local.port
            sequence = c.receiver.rcv_nxt + rng.choice([0, 0, 0, -1, 1, 1460, rng.randrange(-70000, 70000)])
            ack = c.sender.snd_nxt + rng.choice([0, 0, 0, -1, 1, -1000, rng.randrange(-70000, 70000)])
        else:
            ports = rng.randrange(1000, 1020), 80
            sequence, ack = rng.randrange(1 << 32), rng.randrange(1 << 32)
        flags = rng.choice([0x02, 0x10, 0x10, 0x18, 0x11, 0x12, 0x30, 0x04, 0x14, rng.randrange(256)])
        options = TcpOptions(
            mss=rng.choice([None, 0, 1, 536, 1460, 65535]), window_scale=rng.choice([None, 0, 7, 255]),
            sack_permitted=rng.random() < 0.5,
            timestamps=rng.choice([None, (rng.randrange(1 << 32), rng.randrange(1 << 32))])).pack()
        if rng.random() < 0.2:
            options = rng.randbytes(4 * rng.randrange(11))
        payload = rng.randbytes(rng.choice([0, 0, 1, 100, 1460]))
        tcp = pack_tcp(*ports, sequence % (1 << 32), ack % (1 << 32), flags, rng.choice([0, 1, 500, 65535]), options,
                       urgent=rng.choice([0, 5, 65535])) + payload
        seed = checksum_seed(self.evil, self.own, IpProtocol.TCP, len(tcp))
        return self._ip(IpProtocol.TCP, tcp[:16] + internet_checksum(tcp, seed).to_bytes(2, "big") + tcp[18:])

    def _icmp(self) -> tuple[int, bytes]:
        rng = self.rng
        quote = rng.choice(self.heard)[14 : 14 + rng.choice([20, 28, 48, 100])]
        message = IcmpMessage(rng.choice([1, 2, 3, 3, 4, 11, 12, 8, 128, 135, 136, rng.randrange(256)]),
                              rng.choice([0, 1, 2, 3, 4, 5]), rng.choice([0, 68, 600, 1300, rng.randrange(1 << 32)]),
                              quote)
        if self.ipv6:
            return IpProtocol.ICMPV6, message.pack((self.evil, self.own))
        return IpProtocol.ICMP, message.pack()

    def _ip(self, protocol: int, packet: bytes) -> bytes:
        if self.ipv6:
            return (EthernetHeader(OWN_MAC, EVIL_MAC, 0x86DD).pack()
                    + pack_ipv6(self.evil, self.own, protocol, len(packet), 255) + packet)
        ip = pack_ipv4(self.evil, self.own, protocol, 20 + len(packet))
        ip = ip[:10] + internet_checksum(ip).to_bytes(2, "big") + ip[12:]
        return EthernetHeader(OWN_MAC, EVIL_MAC, 0x0800).pack() + ip + packet


@pytest.mark.parametrize("ipv6", [False, True])
@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
@pytest.mark.parametrize("seed", range(3))
def test_garbage_beside_a_good_peer(profile: Profile, ipv6: bool, seed: int) -> None:
    rng = random.Random(f"{seed} {profile.name} {ipv6}")
    own_ip, good_ip, evil_ip = ADDRESSES[ipv6]
    stack = Stack(mac=OWN_MAC, ip=own_ip, profile=profile, account=NullAccount(), rng=random.Random(seed))
    good = Stack(mac=GOOD_MAC, ip=good_ip, profile=profile, account=NullAccount(), rng=random.Random(seed + 1))
    stack.add_neighbour(good_ip, GOOD_MAC)
    stack.add_neighbour(evil_ip, EVIL_MAC)
    good.add_neighbour(own_ip, OWN_MAC)
    evil = Evil(stack, rng, ipv6=ipv6)
    listener = stack.listen(80, 20)
    now = 0
    client = good.connect(own_ip, 80, now)
    data = rng.randbytes(200_000)
    answer = bytearray()
    sent, accepted, turns, server = 0, [], 0, None
    while len(answer) < len(data) or turns < SEGMENTS:
        turns += 1
        assert turns < 20 * SEGMENTS
        now += 2 * MS
        stack.receive(evil.frame(), now)
        while client.writable and sent < len(data):
            sent += client.send(Chunk(data[sent : sent + 1000]))
        while (connection := listener.accept()) is not None:
            accepted.append(connection)
            if connection.remote.ip == ip_address(good_ip):
                server = connection
        if server is not None and server.recv_available and server.writable:
            server.send(Chunk(server.recv(1000)))
        for connection in accepted:
            if connection is not server and rng.random() < 0.02 and connection.state is not State.CLOSED:
                if connection.writable:
                    connection.send(Chunk(bytes(3000)), urgent=rng.random() < 0.3)
                else:
                    rng.choice([connection.close, connection.release, connection.abort])(now)
        answer += client.recv(1 << 20)
        for one, other in ((stack, good), (good, stack)):
            one.poll(now)
            for out in one.transmit(now):
                frame = out.frame()
                if frame[:6] == EVIL_MAC:
                    evil.heard = [*evil.heard[-20:], frame]
                else:
                    other.receive(frame, now)
    assert bytes(answer) == data
    assert client.retransmitted_segments == 0, "the good peer is not disturbed"
    assert stack.counters.malformed > 10
    assert len(accepted) > 1 or profile.name == "linux24"
    listener.close(now)
    for connection in accepted:
        connection.release(now)
    client.close(now)
    for _ in range(10_000):
        for one, other in ((stack, good), (good, stack)):
            one.poll(now)
            for out in one.transmit(now):
                if out.frame()[:6] != EVIL_MAC:
                    other.receive(out.frame(), now)
        if stack.has_output or good.has_output:
            continue
        times = [t for t in (stack.next_deadline(), good.next_deadline()) if t is not None]
        if not times:
            break
        now = max(now + 1, min(times))
    assert stack.connections == []
    assert now < 10_000 * SECOND
