"""The firmware on the bench that any decider must pass: every byte, every rule, over good and bad wires."""

from __future__ import annotations

import io
import logging
import random
from functools import partial

import pytest

from host_driver.firmware import Firmware
from host_driver.tcp import LINUX, LINUX24, RFC, Chunk, Profile, State
from nic_model.contract import Opcode
from nic_model.contract.config import PortFacts
from nic_model.contract.control import ControlType, listener_bucket
from nic_model.contract.sockets import SOCKET_PARAMETERS, SocketFlag, SocketStatus
from nic_model.control_log import Decider, PortLog, replay
from tests.control_port.bench import (
    DATA,
    OWN_IP,
    OWN_IPV6,
    OWN_MAC,
    PEER_IP,
    PEER_MAC,
    Bench,
    Listening,
    Peer,
    Socket,
    Wire,
)

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)
from scapy.layers.inet import ICMP, IP, TCP  # noqa: E402
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6  # noqa: E402
from scapy.layers.l2 import Ether  # noqa: E402


def firmware(profile: Profile = LINUX) -> object:
    def make(facts: PortFacts, mac: bytes, ip: str) -> Decider:
        return Firmware(facts, mac=mac, ip=ip, profile=profile, seed="on the bench")
    return make


def bench(profile: Profile = LINUX, **settings: object) -> Bench:
    return Bench(firmware(profile), **settings)  # type: ignore[arg-type]


def accept_one(b: Bench, data: bytes = b"", *, closes: bool = True) -> tuple[Socket, Peer, Listening]:
    """A connection that a peer opened, and its two ends."""
    sockets: list[Socket] = []
    listening = Listening(b, sockets.append)
    peer = Peer(b, data, closes=closes)
    b.run(lambda: bool(sockets), 20_000)
    return sockets[0], peer, listening


def finish(b: Bench, socket: Socket, listening: Listening) -> None:
    """Both ends close, and nothing is left."""
    socket.close()
    b.run(lambda: socket.closed, 60_000)
    listening.close()
    b.settle(20 + 10 * b.lag_steps)
    b.check_end()


def test_a_request_and_its_answer() -> None:
    b = bench()
    socket, peer, listening = accept_one(b, b"request")
    socket.receive(100)
    b.run(lambda: bool(socket.received))
    answer = random.Random(1).randbytes(30_000)
    socket.send(answer)
    b.run(lambda: socket.sent_bytes == len(answer))
    assert bytes(socket.received) == b"request"
    assert bytes(peer.received) == answer
    finish(b, socket, listening)
    assert peer.is_over
    orders = b.judge.orders
    assert orders[ControlType.FLOW_ADD] == orders[ControlType.FLOW_DEL] == 1
    assert b.judge.fences > 0
    assert b.port.flows == 0
    assert b.port.counters["control_stale"] == b.port.counters["control_refused"] == 0


def test_receives_that_are_posted_first_need_no_copy() -> None:
    b = bench()
    socket, _, listening = accept_one(b, closes=False)
    data = random.Random(2).randbytes(1200)
    for _ in range(3):
        socket.receive(400, wait_all=True)
    b.settle()
    peer_connection = b.peer.connections[0]
    peer_connection.send(Chunk(data))
    b.run(lambda: len(socket.received) == len(data))
    assert bytes(socket.received) == data
    assert socket.eager_bytes == 0
    finish(b, socket, listening)


def test_bytes_that_nobody_asked_for_wait_in_the_ring_and_no_window_is_promised_beyond_it() -> None:
    b = bench(ring_bytes=2048)
    data = random.Random(3).randbytes(50_000)
    socket, peer, listening = accept_one(b, data)
    b.settle(3000)
    assert peer.connection.acked_bytes <= 2048, "the window is the ring"
    while len(socket.received) < len(data):
        socket.receive(700)
        b.run(lambda: socket.receives == 0)
    assert bytes(socket.received) == data
    assert 0 < socket.eager_bytes <= len(data)
    finish(b, socket, listening)


def test_a_large_receive_opens_the_window_beyond_the_ring() -> None:
    b = bench(ring_bytes=1024)
    data = random.Random(4).randbytes(40_000)
    socket, _, listening = accept_one(b, data)
    socket.receive(len(data), wait_all=True)
    steps = b.step
    b.run(lambda: bool(socket.received))
    assert bytes(socket.received) == data
    assert socket.eager_bytes <= 1024
    assert b.step - steps < 400
    finish(b, socket, listening)


@pytest.mark.parametrize("profile", [LINUX, LINUX24, RFC], ids=lambda p: p.name)
@pytest.mark.parametrize("wire", [Wire(), Wire(loss=0.03, reorder=0.1, duplicate=0.02, delay_steps=3)],
                         ids=["good", "bad"])
def test_many_connections_both_ways(profile: Profile, wire: Wire) -> None:
    for seed in (1, 2):
        b = bench(profile, seed=seed, wire=wire, lag_steps=2, peer_profile=profile)
        carry_both_ways(b, random.Random(f"connections {seed}"), connections=4)


def test_over_ipv6() -> None:
    b = bench(ipv6=True, wire=Wire(loss=0.02, reorder=0.05))
    carry_both_ways(b, random.Random(8), connections=3)


def carry_both_ways(b: Bench, rng: random.Random, connections: int) -> None:
    """Random bytes both ways on some connections, in random receives and sends; every byte, and nothing left."""
    sockets: list[Socket] = []
    listening = Listening(b, sockets.append)
    peers = {p.connection.local.port: (p, data) for p, data in (
        (Peer(b, data), data) for data in (rng.randbytes(rng.randrange(1, 6000)) for _ in range(connections)))}
    b.run(lambda: len(sockets) == connections)
    answers = {socket.number: rng.randbytes(rng.randrange(1, 20_000)) for socket in sockets}
    for socket in sockets:
        socket.send(answers[socket.number], parts=rng.randrange(1, 5))
    begun = b.step
    while not all(socket.ended for socket in sockets):
        for socket in sockets:
            if not socket.receives and not socket.ended and rng.random() < 0.5:
                socket.receive(rng.randrange(1, 1500), wait_all=rng.random() < 0.3)
        b.settle(rng.randrange(1, 30))
        assert b.step < begun + 300_000, f"seed {b.seed}"
    b.run(lambda: not any(socket.sends for socket in sockets), 200_000)
    b.run(lambda: all(len(peers[s.remote_port][0].received) == len(answers[s.number]) for s in sockets), 100_000)
    for socket in sockets:
        peer, sent = peers[socket.remote_port]
        assert bytes(socket.received) == sent, f"seed {b.seed}"
        assert bytes(peer.received) == answers[socket.number], f"seed {b.seed}"
        socket.close()
    b.run(lambda: all(socket.closed for socket in sockets), 200_000)
    listening.close()
    b.settle(20 + 10 * b.lag_steps)
    b.check_end()


def test_four_gaps_and_more_are_placed_as_they_come() -> None:
    b = bench(ring_bytes=16384)
    socket, peer, listening = accept_one(b, closes=False)
    data = random.Random(6).randbytes(1448 * 10)
    b.settle(20)
    peer.connection.send(Chunk(data))
    b.tick()
    waiting = [entry for entry in b._on_wire if entry[2]]
    assert len(waiting) >= 10
    b._on_wire = [(b.step + 1, entry[1], True, entry[3]) for entry in waiting[1::2]]
    b.settle(3)
    assert b.port.counters["control_placed"] >= 5 * 1448, "behind five gaps, and in memory"
    b._on_wire += [(b.step + 1, entry[1], True, entry[3]) for entry in waiting[::2]]
    while len(socket.received) < len(data):
        socket.receive(4000)
        b.run(lambda: socket.receives == 0)
    assert bytes(socket.received) == data
    finish(b, socket, listening)


@pytest.mark.parametrize("profile", [LINUX, LINUX24], ids=lambda p: p.name)
def test_a_ring_of_more_than_64_kb_is_promised_if_windows_are_scaled(profile: Profile) -> None:
    b = bench(profile, ring_bytes=1 << 18)
    data = random.Random(7).randbytes(400_000)
    socket, peer, listening = accept_one(b, data)
    largest = 0
    for _ in range(500):
        b.tick()
        largest = max(largest, peer.connection.sender.snd_wnd)
    if profile.window_scale is None:
        assert largest == 0xFFFF
    else:
        assert 1 << 17 < largest <= 1 << 18
    # Each end keeps back what is less than a segment.
    assert (1 << 18) - 2 * 1460 <= peer.connection.acked_bytes <= 1 << 18
    while len(socket.received) < len(data):
        socket.receive(90_000)
        b.run(lambda: socket.receives == 0)
    assert bytes(socket.received) == data
    finish(b, socket, listening)


@pytest.mark.parametrize("beyond", [1, 2, 3, 4, 5, 7])
def test_the_rest_of_a_full_receive_that_no_scaled_window_can_say(beyond: int) -> None:
    b = bench(ring_bytes=1 << 18)
    data = random.Random(8).randbytes(300_000)
    socket, peer, listening = accept_one(b, data)
    b.settle(500)
    assert peer.connection.acked_bytes >= (1 << 18) - 1460, "the ring is as good as full"
    socket.receive((1 << 18) + beyond, wait_all=True)
    b.judge.slack = 3  # a window counts units of four bytes
    windows: list[int] = []
    to_wire = b._send

    def watch(to_device: bool, frame: bytes) -> None:
        if not to_device and socket.receives:
            windows.append(int(IP(frame[14:])[TCP].window))
        to_wire(to_device, frame)

    b._send = watch  # type: ignore[method-assign]
    b.run(lambda: socket.receives == 0)
    assert windows
    assert 0 not in windows, "a peer that sends nothing into a closed window would never send the rest"
    assert bytes(socket.received) == data[: (1 << 18) + beyond]
    while len(socket.received) < len(data):
        socket.receive(90_000)
        b.run(lambda: socket.receives == 0)
    assert bytes(socket.received) == data
    finish(b, socket, listening)


def of(b: Bench) -> Firmware:
    assert isinstance(b.decider, Firmware)
    return b.decider


def syn(b: Bench, port: int) -> bytes:
    """A SYN from an address that nobody has."""
    frame = (Ether(src=PEER_MAC, dst=OWN_MAC) / IP(src="10.0.0.77", dst=OWN_IP)
             / TCP(sport=port, dport=80, flags="S", seq=port, options=[("MSS", 1460)]))
    return bytes(frame)


def test_a_flood_of_syns_takes_no_rings_and_others_come_by_cookies() -> None:
    b = bench()
    sockets: list[Socket] = []
    listening = Listening(b, sockets.append, rings=2)
    for port in range(200):
        b.device.receive(syn(b, 1024 + port), now_cycles=b.step * 15_625)
        b.tick()
    firmware = of(b)
    (listener,) = (firmware.stack.listener(80),)
    assert listener is not None
    assert listener.half_open == 32, "as many as the backlog"
    assert firmware.stack.counters.cookies_sent == 200 - 32
    assert firmware.left_over["rings"] == 0
    peer = Peer(b, b"by cookie")
    b.run(lambda: len(sockets) == 1)
    assert firmware.stack.counters.cookies_accepted == 1
    assert firmware.left_over["rings"] == 1
    sockets[0].receive(100)
    b.run(lambda: bool(sockets[0].received))
    assert bytes(sockets[0].received) == b"by cookie"
    sockets[0].close()
    b.run(lambda: sockets[0].closed and peer.is_over)
    listening.close()
    b.settle()
    b.check_end()
    assert {name: count for name, count in firmware.left_over.items() if count} == {}


@pytest.mark.parametrize("flood", [0, 40], ids=["", "by cookie"])
def test_a_handshake_that_finds_no_ring_ends_when_one_is_free(flood: int) -> None:
    b = bench()
    sockets: list[Socket] = []
    listening = Listening(b, sockets.append, rings=1)
    for port in range(flood):
        b.device.receive(syn(b, 1024 + port), now_cycles=b.step * 15_625)
        b.tick()
    # Both SYNs find the ring free; one handshake ends first, and the other waits.
    peers = [Peer(b, b"one"), Peer(b, b"two")]
    b.run(lambda: len(sockets) == 1)
    b.settle(100)
    assert len(sockets) == 1
    assert of(b).stack.no_ring > 0
    sockets[0].receive(100)
    b.run(lambda: bool(sockets[0].received))
    sockets[0].close()
    b.run(lambda: len(sockets) == 2, 60_000)
    sockets[1].receive(100)
    b.run(lambda: bool(sockets[1].received))
    assert {bytes(socket.received) for socket in sockets} == {b"one", b"two"}
    assert of(b).stack.counters.cookies_accepted == (2 if flood else 0)
    sockets[1].close()
    b.run(lambda: all(socket.closed for socket in sockets) and all(peer.is_over for peer in peers), 60_000)
    listening.close()
    b.settle()
    b.check_end()


@pytest.mark.parametrize("quote_bytes", [28, 548, 1232], ids=["least", "576 bytes in all", "1280 bytes in all"])
@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
def test_a_path_with_a_small_mtu_is_learned_from_errors_of_any_length(quote_bytes: int, ipv6: bool) -> None:
    b = bench(ipv6=ipv6)
    socket, peer, listening = accept_one(b, closes=False)
    b.settle(20)
    mtu, too_large = 1400, 0
    to_wire = b._send

    def router(to_device: bool, frame: bytes) -> None:
        nonlocal too_large
        if to_device or len(frame) - 14 <= mtu:
            to_wire(to_device, frame)
            return
        too_large += 1
        quoted = frame[14 : 14 + quote_bytes + (20 if ipv6 else 0)]
        error = (IPv6(src="fd00::9", dst=OWN_IPV6) / ICMPv6PacketTooBig(mtu=mtu) if ipv6
                 else IP(src="10.0.0.9", dst=OWN_IP) / ICMP(type=3, code=4, nexthopmtu=mtu))
        to_wire(True, bytes(Ether(src=PEER_MAC, dst=OWN_MAC) / error / quoted))

    b._send = router  # type: ignore[method-assign]
    data = random.Random(9).randbytes(100_000)
    socket.send(data)
    b.run(lambda: socket.sent_bytes == len(data), 2000)
    assert bytes(peer.received) == data
    assert 0 < too_large <= 10, "those of the first window"
    assert of(b).stack.icmp.errors == too_large
    peer.connection.close(b.step * 100_000_000)
    finish(b, socket, listening)


def test_a_ping_that_is_not_seen_whole_is_dropped_and_a_short_one_answered() -> None:
    b = bench()
    peer = Peer(b, b"")
    b.run(lambda: peer.connection.state is State.CLOSED)  # so that the peer is known
    seen: list[bytes] = []
    for length in (56, 1000):
        ping = Ether(src=PEER_MAC, dst=OWN_MAC) / IP(src=PEER_IP, dst=OWN_IP) / ICMP(id=7) / bytes(length)
        b.device.receive(bytes(ping), now_cycles=b.step * 15_625)
        b._decide()
        seen += b.device.sent
        b.device.sent.clear()
    (answer,) = seen
    assert Ether(answer)[ICMP].type == 0
    assert bytes(Ether(answer)[ICMP].payload)[:56] == bytes(56)
    assert of(b).counters.not_seen_whole == 1
    b.check_end()


def test_a_reset_fails_all_jobs() -> None:
    b = bench()
    socket, peer, listening = accept_one(b, closes=False)
    b.settle(20)
    socket.send(bytes(100_000))
    socket.receive(10)
    peer.connection.abort(b.step * 100_000_000)
    b.run(lambda: not socket.sends and not socket.receives)
    assert socket.status is SocketStatus.RESET
    finish(b, socket, listening)


def test_an_abort_resets_the_peer() -> None:
    b = bench()
    socket, peer, listening = accept_one(b, closes=False)
    b.settle(20)
    socket.send(bytes(100_000))
    socket.close(SocketFlag.ABORT)
    b.run(lambda: socket.closed and peer.connection.state is State.CLOSED)
    assert isinstance(peer.connection.error, ConnectionResetError)
    listening.close()
    b.settle(20 + 10 * b.lag_steps)
    b.check_end()


def test_a_port_that_nobody_listens_on_is_refused() -> None:
    b = bench()
    peer = Peer(b, b"")
    b.run(lambda: peer.connection.state is State.CLOSED)
    assert isinstance(peer.connection.error, ConnectionRefusedError)
    b.check_end()


def test_memory_that_fails_aborts_the_connection_and_says_so() -> None:
    b = bench()
    socket, peer, listening = accept_one(b, closes=False)
    b.settle(20)
    b.broken = {DATA + b._free - DATA + 500}
    socket.send(bytes(4000))
    b.run(lambda: not socket.sends)
    assert socket.status is SocketStatus.MEMORY
    b.run(lambda: peer.connection.state is State.CLOSED)
    finish(b, socket, listening)


def test_a_full_flow_table_refuses_and_goes_on() -> None:
    b = bench(flows=16)
    sockets: list[Socket] = []
    listening = Listening(b, sockets.append, rings=24)
    peers = [Peer(b, b"", closes=False) for _ in range(20)]
    b.run(lambda: len(sockets) == 20, 60_000)
    refused = [p for p in peers if p.connection.state is State.CLOSED]
    assert len(refused) == 20 - b.port.flows >= 4
    for socket in sockets:
        socket.receive(10)
    b.settle()
    assert [socket.status for socket in sockets].count(SocketStatus.NO_ROOM) == len(refused)
    for socket in sockets:
        socket.close()
    for peer in peers:
        if peer.connection.state is not State.CLOSED:
            peer.connection.close(b.step * 100_000_000)
    b.run(lambda: all(s.closed for s in sockets), 60_000)
    listening.close()
    b.settle(20 + 10 * b.lag_steps)
    b.check_end()


@pytest.mark.parametrize(("listeners", "ports"), [
    (4, list(range(82, 94, 2))), (16, [port for port in range(81, 200) if listener_bucket(port, 16) == 1][:6])],
    ids=["all", "one bucket"])
def test_a_listener_for_which_the_device_has_no_place(listeners: int, ports: list[int]) -> None:
    b = bench(listeners=listeners)
    pool = b.allocate(512)
    answers: dict[int, int] = {}

    def answered(port: int, fields: dict[str, int]) -> None:
        answers[port] = fields["status"]

    for port in ports:
        b.post(Opcode.SOCKET_LISTEN, partial(answered, port),
               SOCKET_PARAMETERS.pack(local_port=port, backlog=1, ring_bytes=512), offset=pool, length=512)
    b.run(lambda: len(answers) == 6)
    assert [answers[port] for port in ports] == [SocketStatus.OK] * 4 + [SocketStatus.NO_ROOM] * 2
    refused = Peer(b, b"")  # to a port that nobody listens on
    b.run(lambda: refused.connection.state is State.CLOSED)
    b.check_end()


def test_a_log_is_kept_in_a_file_and_replays_and_another_decider_is_found_out() -> None:
    b = bench()
    socket, _, listening = accept_one(b, b"request")
    socket.receive(100)
    socket.send(b"answer")
    b.settle(100)
    finish(b, socket, listening)
    file = io.StringIO()
    b.log.write(file)
    file.seek(0)
    log = PortLog.read(file)
    assert log == b.log
    assert replay(log, Firmware(log.facts, mac=OWN_MAC, ip=OWN_IP, seed="on the bench")) is None
    other = replay(log, Firmware(log.facts, mac=OWN_MAC, ip=OWN_IP, seed="another secret"))
    assert other is not None
    assert " instead of " in other
    shorter = PortLog(log.facts, [entry for entry in log.entries if entry.is_up or entry.message[0] != 0x18])
    assert "COMPLETE" in (replay(shorter, Firmware(log.facts, mac=OWN_MAC, ip=OWN_IP, seed="on the bench")) or "")


@pytest.mark.parametrize(("text", "said"), [
    ("", "line 1: no log"), ("{}\n", "line 1: no log"),
    ('{"clock_hz": 1, "flows": 1, "listeners": 1, "emit_credits": 1}\n< 77\n', "line 2: "),
    ('{"clock_hz": 1, "flows": 1, "listeners": 1, "emit_credits": 1}\n> 0511\n', "line 2: TICK goes the other way"),
])
def test_what_is_no_log(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PortLog.read(io.StringIO(text))
