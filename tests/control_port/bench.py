"""The bench that any decider must pass: a device's model, a decider under a judge, peers on a wire that may lose, delay
and reorder frames, and an application that posts socket operations and looks at every byte.

Time goes on in steps. The decider answers each message when its time has come; `lag_steps` makes it late.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address

from host_driver.account import NullAccount
from host_driver.tcp import LINUX, Chunk, Connection, Profile, Stack, State
from nic_model.contract import (
    DOORBELL_BASE,
    ChannelCommand,
    KeyRight,
    NicConfig,
    Opcode,
    OperationMask,
    RxFilter,
    channel_register,
    doorbell,
    key_register,
    make_key,
    register,
)
from nic_model.contract.config import PortFacts
from nic_model.contract.control import EMIT_TYPES, ControlEnable
from nic_model.contract.sockets import (
    EAGER_RESULT,
    SOCKET_COMPLETION,
    SOCKET_HEAD,
    SOCKET_PARAMETERS,
    SocketFlag,
    SocketStatus,
)
from nic_model.control_log import Decider, PortLog, replay
from nic_model.device import Device
from tests.control_port.judge import Judge

BASE, SIZE = 0x2_0000_0000, 1 << 22
RING_LOG2 = 8
TX, RX, CQ = BASE, BASE + 0x8000, BASE + 0x9000
DATA, DATA_BYTES = BASE + 0x10_0000, 3 << 20
KEY = make_key(1, 77)
CHANNEL = 1
"""The two highest of the four are the control port's own."""
OWN_MAC, PEER_MAC = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
OWN_IP, PEER_IP = "10.0.0.1", "10.0.0.2"
OWN_IPV6, PEER_IPV6 = "fd00::1", "fd00::2"
PORT = 80
STEP_CYCLES = 15_625
STEP_PS = 100_000_000
"""100 us at 156.25 MHz."""

NO_FLAGS = SocketFlag(0)

MakeDecider = Callable[[PortFacts, bytes, str], Decider]
"""Makes a decider for a device, which has this Ethernet and IP address."""


@dataclass
class Wire:
    """What happens to frames, each way."""

    loss: float = 0
    reorder: float = 0
    duplicate: float = 0
    delay_steps: int = 1


@dataclass
class Bench:
    """One device with its decider. Attributes: `log`, `judge`; `peer`, a stack at the other end."""

    make: MakeDecider
    seed: int = 1
    wire: Wire = field(default_factory=Wire)
    lag_steps: int = 0
    ring_bytes: int = 2048
    peer_profile: Profile = LINUX
    flows: int = 16
    listeners: int = 4
    ipv6: bool = False

    def __post_init__(self) -> None:
        self.random = random.Random(f"bench {self.seed}")
        self.own_ip, self.peer_ip = (OWN_IPV6, PEER_IPV6) if self.ipv6 else (OWN_IP, PEER_IP)
        self.config = NicConfig(name="bench", channels=4, vectors=2, keys=16, flows=self.flows,
                                listeners=self.listeners, emit_credits=8)
        self.memory = bytearray(SIZE)
        self.broken: set[int] = set()
        self.device = Device(self.config, self._read, self._write)
        assert self.device.control is not None
        self.port = self.device.control
        self.facts = self.config.port_facts
        self.decider = self.make(self.facts, OWN_MAC, self.own_ip)
        self.judge = Judge(self.facts)
        self.log = PortLog(self.facts)
        self.step = 0
        self._late: deque[tuple[int, bytes]] = deque()
        self._on_wire: list[tuple[int, int, bool, bytes]] = []
        self._sequence = 0
        self._tx = self._cq = 0
        self._over: dict[int, Callable[[dict[str, int]], None]] = {}
        self._next_job = 0
        self._free = DATA
        self.peer = Stack(mac=PEER_MAC, ip=self.peer_ip, profile=self.peer_profile, account=NullAccount(),
                          rng=random.Random(f"peer {self.seed}"))
        self.peer.add_neighbour(self.own_ip, OWN_MAC)
        self._open_device()

    def _open_device(self) -> None:
        for name, value in (("MAC_ADDRESS_LO", int.from_bytes(OWN_MAC[:4], "little")), ("RX_ENABLE", 1),
                            ("MAC_ADDRESS_HI", int.from_bytes(OWN_MAC[4:], "little")),
                            ("RX_FILTER", RxFilter.BROADCAST | RxFilter.MULTICAST),
                            ("CONTROL_ENABLE", ControlEnable.FLOWS | ControlEnable.REST)):
            self.device.write_register(register(name), int(value))
        for name, value in (("CHANNEL_OPERATIONS", OperationMask.SOCKET), ("TX_BASE_LO", TX & 0xFFFF_FFFF),
                            ("TX_BASE_HI", TX >> 32), ("TX_LOG2", RING_LOG2), ("RX_BASE_LO", RX & 0xFFFF_FFFF),
                            ("RX_BASE_HI", RX >> 32), ("RX_LOG2", 4), ("CQ_BASE_LO", CQ & 0xFFFF_FFFF),
                            ("CQ_BASE_HI", CQ >> 32), ("CQ_LOG2", RING_LOG2 + 1),
                            ("CHANNEL_CONTROL", ChannelCommand.ENABLE)):
            self.device.write_register(channel_register(name, CHANNEL), int(value))
        for name, value in (("KEY_ADDRESS_LO", DATA & 0xFFFF_FFFF), ("KEY_ADDRESS_HI", DATA >> 32),
                            ("KEY_LENGTH_LO", DATA_BYTES), ("KEY_LENGTH_HI", 0),
                            ("KEY_COMMIT", 77 | (KeyRight.READ | KeyRight.WRITE) << 12 | CHANNEL << 16 | 1 << 31)):
            self.device.write_register(key_register(name, 1), int(value))

    def _read(self, address: int, length: int) -> bytes | None:
        if any(address <= bad < address + length for bad in self.broken):
            return None
        return bytes(self.memory[address - BASE : address - BASE + length])

    def _write(self, address: int, data: bytes) -> bool:
        if any(address <= bad < address + len(data) for bad in self.broken):
            return False
        self.memory[address - BASE : address - BASE + len(data)] = data
        return True

    # ------------------------------------------------------------------------------------------ the host's memory

    def allocate(self, length: int) -> int:
        """Offset inside the key's memory of bytes that nobody has."""
        self._free += length
        assert self._free <= DATA + DATA_BYTES, "the bench has no memory left"
        return self._free - length - DATA

    def view(self, offset: int, length: int) -> memoryview:
        """Those bytes."""
        return memoryview(self.memory)[DATA - BASE + offset :][:length]

    # ------------------------------------------------------------------------------------------ operations

    def post(self, opcode: Opcode, over: Callable[[dict[str, int]], None], parameters: bytes = b"",
             more: bool = False, **fields: int) -> None:
        """Put an operation on the ring; `over` gets its completion's fields. `more`: the next is of the same job."""
        job = self._next_job
        if not more:
            self._next_job = job + 1 & 0xFFFF
        self._over[job] = over
        slots = SOCKET_HEAD.pack(opcode=opcode, slots=1 + len(parameters) // 32, tag=job, inline_bytes=len(parameters),
                                 pieces=int("length" in fields), **{"key": KEY, **fields}) + parameters
        for at in range(0, len(slots), 32):
            place = TX - BASE + 32 * (self._tx % (1 << RING_LOG2))
            self.memory[place : place + 32] = slots[at : at + 32]
            self._tx += 1
        if not more:
            self.device.write_doorbell(CHANNEL, doorbell("TX_DOORBELL", 0) - DOORBELL_BASE,
                                       (self._tx & 0xFFFF).to_bytes(4, "little"))

    def _take_completions(self) -> None:
        entries = 1 << RING_LOG2 + 1
        while True:
            place = CQ - BASE + 32 * (self._cq % entries)
            entry = bytes(self.memory[place : place + 32])
            if entry[31] & 1 == self._cq // entries & 1:
                return
            self._cq += 1
            fields = SOCKET_COMPLETION.unpack(entry)
            self._over.pop(fields["tag"])(fields)

    # ------------------------------------------------------------------------------------------ time

    def run(self, until: Callable[[], bool], steps: int = 100_000) -> None:
        """Let time pass until something holds. Raises AssertionError if that takes too long."""
        last = self.step + steps
        while not until():
            assert self.step < last, f"seed {self.seed}: still waiting after {steps} steps"
            self.tick()

    def settle(self, steps: int = 50) -> None:
        """Let some steps pass."""
        for _ in range(steps):
            self.tick()

    def tick(self) -> None:
        """One step."""
        self.step += 1
        now = self.step * STEP_PS
        self.device.advance(self.step * STEP_CYCLES)
        self._deliver(now)
        self._decide()
        self._take_completions()
        deadline = self.peer.next_deadline()
        if deadline is not None and deadline <= now:
            self.peer.poll(now)
        for segment in self.peer.transmit(now):
            self._send(True, segment.frame())
        for frame in self.device.sent:
            self._send(False, frame)
        self.device.sent.clear()

    def _send(self, to_device: bool, frame: bytes) -> None:
        wire, rng = self.wire, self.random
        copies = 0 if rng.random() < wire.loss else 2 if rng.random() < wire.duplicate else 1
        for _ in range(copies):
            late = rng.randrange(1, 8) if rng.random() < wire.reorder else 0
            self._sequence += 1
            self._on_wire.append((self.step + wire.delay_steps + late, self._sequence, to_device, frame))

    def _deliver(self, now: int) -> None:
        due = sorted(entry for entry in self._on_wire if entry[0] <= self.step)
        self._on_wire = [entry for entry in self._on_wire if entry[0] > self.step]
        for _, _, to_device, frame in due:
            if to_device:
                self.device.receive(frame.ljust(60, b"\0"), now_cycles=self.step * STEP_CYCLES)
            else:
                self.peer.receive(frame, now)

    def _decide(self) -> None:
        while (message := self.port.take()) is not None:
            due = self.step + (self.random.randrange(self.lag_steps + 1) if self.lag_steps else 0)
            self._late.append((max(due, self._late[-1][0] if self._late else 0), message))
            while self._late and self._late[0][0] <= self.step:
                self._answer(self._late.popleft()[1])
        while self._late and self._late[0][0] <= self.step:
            self._answer(self._late.popleft()[1])

    def _answer(self, message: bytes) -> None:
        self.log.add(True, message)
        self.judge.up(message)
        for order in self.decider.on_message(message):
            self.log.add(False, order)
            self.judge.order(order)
            (self.port.emit if order[0] in {int(kind) for kind in EMIT_TYPES} else self.port.release)(order)

    def peer_has_closed(self, socket: Socket) -> bool:
        """Whether the other end of a socket sends no more."""
        states = [c.state for c in self.peer.connections if c.local.port == socket.remote_port]
        return not states or states[0] not in (State.ESTABLISHED, State.SYN_SENT)

    # ------------------------------------------------------------------------------------------ the end

    def check_end(self, *, open_jobs: int = 0) -> None:
        """Nothing is left over, no order was refused, and the log replays."""
        self.judge.end(open_jobs=open_jobs)
        assert self.port.handles_held == 0
        assert self.port.waiting == 0
        difference = replay(self.log, self.make(self.facts, OWN_MAC, self.own_ip))
        assert difference is None, f"rule 9: {difference}"


class Listening:
    """A listening socket of the application's, which accepts and hands on."""

    def __init__(self, bench: Bench, on_socket: Callable[[Socket], None], rings: int = 8, accepts: int = 4) -> None:
        self.bench = bench
        self.number: int | None = None
        self._on_socket = on_socket
        self._pool = bench.allocate(rings * bench.ring_bytes)
        parameters = SOCKET_PARAMETERS.pack(local_port=PORT, backlog=32, ring_bytes=bench.ring_bytes,
                                            ip_version=6 if bench.ipv6 else 4)
        bench.post(Opcode.SOCKET_LISTEN, self._listened, parameters, offset=self._pool,
                   length=rings * bench.ring_bytes)
        self._accepts = accepts
        bench.run(lambda: self.number is not None)

    def _listened(self, fields: dict[str, int]) -> None:
        assert fields["status"] == SocketStatus.OK
        assert fields["local_port"] == PORT
        self.number = fields["socket"]
        for _ in range(self._accepts):
            self._accept()

    def _accept(self) -> None:
        self.bench.post(Opcode.SOCKET_ACCEPT, self._accepted, socket=self.number or 0)

    def _accepted(self, fields: dict[str, int]) -> None:
        if fields["status"] != SocketStatus.OK:
            return
        assert fields["result"] == int.from_bytes(ip_address(self.bench.peer_ip).packed, "little")
        self._accept()
        self._on_socket(Socket(self.bench, fields["socket"], fields["length"], fields["remote_port"]))

    def close(self) -> None:
        """Listen no more."""
        self.bench.post(Opcode.SOCKET_CLOSE, lambda _fields: None, socket=self.number or 0)


class Socket:
    """A connection of the application's."""

    def __init__(self, bench: Bench, number: int, ring: int, remote_port: int) -> None:
        self.bench = bench
        self.number = number
        self.remote_port = remote_port
        self.received = bytearray()
        self.ended = False
        self.status: SocketStatus | None = None
        self.closed = False
        self.sent_bytes = 0
        self.sends = 0
        self.receives = 0
        self.eager_bytes = 0
        self._ring = ring
        self._consumed = 0

    def send(self, data: bytes, parts: int = 1) -> None:
        """Send from fresh memory, which is scribbled on as soon as the send is over."""
        cuts = sorted(self.bench.random.sample(range(1, len(data)), parts - 1)) if len(data) > parts else []
        pieces = [(self.bench.allocate(end - start), start, end) for start, end in zip([0, *cuts], [*cuts, len(data)],
                                                                                     strict=True)]

        def over(fields: dict[str, int]) -> None:
            self.sends -= 1
            if fields["status"] == SocketStatus.OK:
                assert fields["length"] == len(data)
                self.sent_bytes += len(data)
            else:
                self.status = SocketStatus(fields["status"])
            for offset, start, end in pieces:
                self.bench.view(offset, end - start)[:] = b"\xee" * (end - start)

        self.sends += 1
        for number, (offset, start, end) in enumerate(pieces):
            self.bench.view(offset, end - start)[:] = data[start:end]
            is_last = number == len(pieces) - 1
            self.bench.post(Opcode.SOCKET_SEND, over, socket=self.number, offset=offset, length=end - start,
                            more=not is_last, flags=NO_FLAGS if is_last else SocketFlag.MORE,
                            consumed=self._consumed)

    def receive(self, length: int, *, wait_all: bool = False) -> None:
        """Post a receive of fresh memory."""
        offset = self.bench.allocate(length)

        def over(fields: dict[str, int]) -> None:
            self.receives -= 1
            count = fields["length"]
            if fields["status"] != SocketStatus.OK:
                self.status = SocketStatus(fields["status"])
                return
            if not count:
                self.ended = True
                return
            assert not wait_all or count == length or self.bench.peer_has_closed(self)
            eager = EAGER_RESULT.unpack(fields["result"].to_bytes(16, "little"))
            data = bytearray(self.bench.view(offset, count))
            for n in range(eager["bytes"]):
                at = (eager["position"] + n) % self.bench.ring_bytes
                data[n] = self.bench.view(self._ring + at, 1)[0]
            self._consumed = self._consumed + eager["bytes"] & 0xFFFF_FFFF
            self.eager_bytes += eager["bytes"]
            self.received += data

        self.receives += 1
        self.bench.post(Opcode.SOCKET_RECEIVE, over, socket=self.number, offset=offset, length=length,
                        flags=SocketFlag.WAIT_ALL if wait_all else NO_FLAGS, consumed=self._consumed)

    def shutdown(self) -> None:
        """Send no more."""
        self.bench.post(Opcode.SOCKET_SHUTDOWN, lambda _fields: None, socket=self.number, flags=SocketFlag.END_SEND)

    def close(self, flags: SocketFlag = NO_FLAGS) -> None:
        """Close it."""
        def over(_fields: dict[str, int]) -> None:
            self.closed = True

        self.bench.post(Opcode.SOCKET_CLOSE, over, socket=self.number, flags=flags)


class Peer:
    """A client on the bench's stack: sends all of `data`, closes its half, and keeps what comes."""

    def __init__(self, bench: Bench, data: bytes, *, closes: bool = True) -> None:
        self.bench = bench
        self.received = bytearray()
        self.connection: Connection = bench.peer.connect(bench.own_ip, PORT, bench.step * STEP_PS)
        self._data = memoryview(data)
        self._closes = closes
        self.connection.on_event = lambda _connection: self.pump()

    def pump(self) -> None:
        """Go on as far as the connection allows."""
        connection = self.connection
        while connection.established and len(self._data) and connection.send_space:
            part = self._data[: min(connection.send_space, 3000)]
            connection.send(Chunk(bytes(part)))
            self._data = self._data[len(part) :]
        if connection.established and not len(self._data) and self._closes:
            connection.close(self.bench.step * STEP_PS)
        if connection.recv_available:
            self.received += connection.recv(1 << 20)

    @property
    def is_over(self) -> bool:
        """Whether both halves are closed."""
        return self.connection.state in (State.TIME_WAIT, State.CLOSED)
