"""Which frames the control port takes: from the parser on, against dictionaries of flows and listeners."""

import random
from ipaddress import ip_address

from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from nic_model.contract import NicConfig, RxFilter, register
from nic_model.contract.control import NO_LISTENER, ControlEnable, ControlType, unpack_message
from rtl.control_admission import ControlAdmission
from rtl.flow_table import FlowOrder, FlowStatus
from rtl.interfaces import RegisterWrite, Strobe
from rtl.listen_table import ListenOrder, ListenStatus
from rtl.mac_rx import rx_row
from rtl.parser import Parser
from tests.rtl import rx_frames
from tests.rtl.harness import Bench, idle, until
from tests.rtl.rx_frames import ICMP, IP, OWN_BYTES, TCP, UDP, IPv6, data, ether

CONFIG = NicConfig(name="test", flows=16, control_slots=16, listeners=16)
FEW_CELLS = NicConfig(name="few cells", flows=16, control_cells=36, control_slots=32, listeners=16)
FLOW_MEMBERS = ("flow_order", "flow_done", "listen_order", "listen_done", "order", "cell", "ended", "o", "held", "now",
                "rest", "taken")


class Path(wiring.Component):
    """Parser and admission, as they stand in the receive path."""

    def __init__(self, config):
        self.config = config
        self.admission = ControlAdmission(config)
        members = self.admission.signature.members
        super().__init__({
            "row": In(Strobe(rx_row(config))), "write": In(Strobe(RegisterWrite)), "active": Out(1),
            **{name: members[name] for name in FLOW_MEMBERS},
            **{name: member for name, member in members.items() if name.startswith("count_")},
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.parser = parser = Parser(self.config)
        m.submodules.admission = admission = self.admission
        connect(m, flipped(self.row), parser.row)
        connect(m, parser.parsed, admission.row)
        connect(m, parser.flow, admission.flow)
        for block in (parser, admission):
            connect(m, flipped(self.write), block.write)
        for name, member in admission.signature.members.items():
            if name not in FLOW_MEMBERS and not name.startswith("count_"):
                continue
            if member.is_signature:
                if member.flow == In:
                    connect(m, flipped(getattr(self, name)), getattr(admission, name))
                else:
                    connect(m, getattr(admission, name), flipped(getattr(self, name)))
            elif member.flow == In:
                m.d.comb += getattr(admission, name).eq(getattr(self, name))
            else:
                m.d.comb += getattr(self, name).eq(getattr(admission, name))
        m.d.comb += self.active.eq(parser.active | admission.active)
        return m


def tcp(source, sport, local, dport, payload=b"", **fields):
    version = IPv6 if ":" in source else IP
    header = TCP(sport=sport, dport=dport, flags="A", **fields)
    return bytes(ether() / version(src=source, dst=local) / header / payload)


class Device:
    """The path with what it should do."""

    def __init__(self, config=CONFIG, *, seed=0, stall=0.0):
        self.dut = Path(config)
        self.bench = Bench(self.dut, seed=seed)
        self.beats, self.expected, self.rest, self.passed = [], [], [], []
        self.enable = ControlEnable(0)
        self.flows, self.listeners = {}, {}
        self.ordered = []
        self.counted = {name: [] for name in ("no_slot", "no_handle", "no_cell", "segments", "unknown", "bytes")}
        self.bench.sink(self.dut.o, self.beats, stall=stall)
        self.bench.strobes(self.dut.rest, self.rest)
        for name, seen in self.counted.items():
            self.bench.strobes(getattr(self.dut, f"count_{name}"), seen)

    def count(self, name):
        return sum(strobe["amount"] for strobe in self.counted[name])

    async def write(self, ctx, name, value):
        await self.bench.strobe(ctx, self.dut.write, {"address": register(name), "data": value})
        if name == "CONTROL_ENABLE":
            self.enable = ControlEnable(value)

    async def start(self, ctx, enable):
        await self.write(ctx, "MAC_ADDRESS_LO", int.from_bytes(OWN_BYTES[:4], "little"))
        await self.write(ctx, "MAC_ADDRESS_HI", int.from_bytes(OWN_BYTES[4:], "little"))
        await self.write(ctx, "RX_FILTER", RxFilter.BROADCAST)
        await self.write(ctx, "CONTROL_ENABLE", enable)

    async def add_flow(self, ctx, number, key):
        source, sport, local, dport = key
        packed = (ip_address(source).packed + ip_address(local).packed + sport.to_bytes(2, "big")
                  + dport.to_bytes(2, "big"))
        words = [int.from_bytes(packed[at:at + 4], "big") for at in range(0, len(packed), 4)]
        await self.bench.send(ctx, self.dut.flow_order, {
            "order": FlowOrder.ADD, "flow": number, "generation": 100 + number, "channel": 1,
            "key": {**{f"word_{n}": word for n, word in enumerate(words)}, "ipv6": int(len(packed) > 12)}})
        ctx.set(self.dut.flow_done.ready, 1)
        (done,) = await until(ctx, self.dut.flow_done.valid, self.dut.flow_done.payload)
        ctx.set(self.dut.flow_done.ready, 0)
        assert done.status == FlowStatus.OK
        self.flows[key] = number

    async def add_listener(self, ctx, number, local, dport, ipv6=False):
        address = int.from_bytes(ip_address(local).packed, "little") if local else 0
        key = {"address": address, "port": dport, "ipv6": int(ipv6)}
        await self.bench.send(ctx, self.dut.listen_order, {"order": ListenOrder.ADD, "listener": number, "key": key})
        ctx.set(self.dut.listen_done.ready, 1)
        (done,) = await until(ctx, self.dut.listen_done.valid, self.dut.listen_done.payload)
        ctx.set(self.dut.listen_done.ready, 0)
        assert done.status == ListenStatus.OK
        self.listeners[local, dport, ipv6] = number

    async def frame(self, ctx, frame, key=None, *, good=True, bad=False):
        """A frame as the MAC gives it, a row in two cycles; `key` if it is TCP with a right header."""
        for at in range(0, len(frame), 16):
            piece, last = frame[at:at + 16], at + 16 >= len(frame)
            await self.bench.strobe(ctx, self.dut.row, {
                "data": int.from_bytes(piece, "little"), "count": len(piece), "first": int(at == 0), "last": int(last),
                "bad": int(bad and last), "time": 7})
            await ctx.tick()
        flow = self.flows.get(key) if good else None
        listener = None
        if good and key is not None and flow is None:
            ipv6 = ":" in key[2]
            listener = self.listeners.get((key[2], key[3], ipv6), self.listeners.get(("", key[3], ipv6)))
        taken = not bad and self.enable & ControlEnable.FLOWS and (
            flow is not None or listener is not None or self.enable & ControlEnable.REST)
        self.expected.append((frame, flow, listener, bool(taken)))
        return taken

    def messages(self):
        found, message = [], b""
        for beat in self.beats:
            message += beat["data"].to_bytes(16, "little")
            if beat["last"]:
                found.append(unpack_message(message)[:2])
                message = b""
        return found

    def run(self, main, **limits):
        self.bench.add(main)
        self.bench.run(**limits)
        assert self.bench.idle_cycles > 0
        # The rest of the receive path sees all frames, and drops those that were taken.
        lasts = [row for row in self.rest if row["last"]]
        assert [(row["length"], bool(row["passes"])) for row in lasts] == [
            (len(frame), not taken) for frame, _, _, taken in self.expected]
        content = b"".join(row["data"].to_bytes(16, "little")[:row["count"]] for row in self.rest)
        assert content == b"".join(frame for frame, *_ in self.expected)


def test_flows_listeners_and_the_rest():
    device = Device()
    here4, here6 = ("10.0.0.1", 1000, "10.0.0.2", 80), ("fd00::1", 1000, "fd00::2", 80)

    async def main(ctx):
        await device.start(ctx, ControlEnable.FLOWS)
        await device.add_flow(ctx, 3, here4)
        await device.add_flow(ctx, 4, here6)
        await device.add_listener(ctx, 2, "10.0.0.2", 443)
        await device.add_listener(ctx, 9, "", 8080, ipv6=True)
        for enable in (ControlEnable.FLOWS, ControlEnable.FLOWS | ControlEnable.REST, ControlEnable(0)):
            await device.write(ctx, "CONTROL_ENABLE", enable)
            for key in (here4, here6, ("10.0.0.1", 1001, "10.0.0.2", 80), ("10.0.0.9", 1, "10.0.0.2", 443),
                        ("fd00::9", 1, "fd00::7", 8080), ("10.0.0.9", 1, "10.0.0.2", 8080)):
                await device.frame(ctx, tcp(*key, data(20)), key)
            # Of the flow, but no segment that may be believed; and none at all.
            await device.frame(ctx, rx_frames.flipped(tcp(*here4, data(20)), 60), here4, good=False)
            await device.frame(ctx, tcp(*here4, data(20)), here4, bad=True)
            await device.frame(ctx, bytes(ether() / IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=1000, dport=80)))
            await device.frame(ctx, bytes(ether() / IP(src="10.0.0.1", dst="10.0.0.2") / ICMP()))
            await idle(ctx, 150)

    device.run(main)
    found = [(kind, fields["flow"] if kind == ControlType.SEGMENT else fields["listener"])
             for kind, fields in device.messages()]
    segment, unknown = ControlType.SEGMENT, ControlType.UNKNOWN
    both = [(segment, 3), (segment, 4)]
    assert found == [
        *both, (unknown, 2), (unknown, 9),
        *both, (unknown, NO_LISTENER), (unknown, 2), (unknown, 9), *[(unknown, NO_LISTENER)] * 4]
    assert {fields["generation"] for kind, fields in device.messages() if kind == segment} == {103, 104}
    assert device.count("segments") == 4
    assert device.count("unknown") == 9


def test_random_segments_at_line_rate():
    # One frame behind the other, without a gap; of the flows' frames each makes its message.
    seed = 1
    rng = random.Random(seed)
    device = Device(seed=seed)
    keys = [(f"10.0.0.{rng.randrange(256)}", rng.randrange(65536), "10.0.0.2", 80) for _ in range(8)]
    keys += [(f"fd00::{n:x}", rng.randrange(65536), "fd00::2", 80) for n in range(1, 9)]

    async def main(ctx):
        await device.start(ctx, ControlEnable.FLOWS)
        for number, key in enumerate(rng.sample(keys, 10)):
            await device.add_flow(ctx, number, key)
        for _ in range(40):
            key = rng.choice(keys)
            await device.frame(ctx, tcp(*key, rng.randbytes(rng.choice((0, 0, 0, 6, 200)))).ljust(60, b"\0"), key)
            await idle(ctx, rng.choice((0, 0, 0, 1, 9)))
        await idle(ctx, 100)

    device.run(main)
    taken = [(len(frame), flow) for frame, flow, _, taken in device.expected if taken]
    assert [(fields["frame_bytes"], fields["flow"]) for _, fields in device.messages()] == taken
    assert len(taken) > 15, f"seed {seed}"


def run_short_of(name, config, *, size, fit, more, stall):
    """More frames than there is room for; nothing is given back."""
    device = Device(config, stall=stall)
    key = ("10.0.0.1", 1000, "10.0.0.2", 80)

    async def main(ctx):
        await device.start(ctx, ControlEnable.FLOWS)
        await device.add_flow(ctx, 3, key)
        for _ in range(fit + more):
            await device.frame(ctx, tcp(*key, data(size)), key)
        await idle(ctx, 60)

    device.run(main)
    assert sum(device.count(other) for other in ("no_slot", "no_handle", "no_cell")) == device.count(name)
    return device.count(name)


def test_no_slot_is_counted():
    # Three messages have left their slots: one stands at the port, one is told, one is made.
    slots = CONFIG.control_slots // 2
    assert run_short_of("no_slot", CONFIG, size=6, fit=slots + 3, more=2, stall=1.0) == 2


def test_no_cell_is_counted():
    assert run_short_of("no_cell", FEW_CELLS, size=220, fit=18, more=2, stall=0.0) == 2


def test_no_handle_is_counted():
    few = NicConfig(name="few handles", flows=16, control_handles=16, listeners=16)
    assert run_short_of("no_handle", few, size=6, fit=16, more=2, stall=0.0) == 2
