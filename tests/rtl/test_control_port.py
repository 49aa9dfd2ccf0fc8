# amaranth: UnusedElaboratable=no
"""Both sides of the control port together: a flow's life as its decider sees it, from FLOW_ADD to the last STALE."""

import logging
from dataclasses import replace
from ipaddress import ip_address

from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)
from scapy.layers.inet import IP, TCP  # noqa: E402
from scapy.layers.l2 import Ether  # noqa: E402

from nic_model.contract import NicConfig, RxFilter, Status, register  # noqa: E402
from nic_model.contract.control import (  # noqa: E402
    ControlEnable,
    ControlType,
    DoneStatus,
    OrderFlag,
    pack_message,
    unpack_message,
)
from rtl.control_port import ControlPort  # noqa: E402
from rtl.control_receive import ControlReceive  # noqa: E402
from rtl.descriptor import JobIssue  # noqa: E402
from rtl.interfaces import Strobe, mac_beat  # noqa: E402
from rtl.mac_rx import rx_row  # noqa: E402
from rtl.parser import Parser  # noqa: E402
from rtl.transmit_back import TransmitBack  # noqa: E402
from rtl.tx_scheduler import TransmitScheduler  # noqa: E402
from tests.rtl.harness import Bench, idle, plain  # noqa: E402
from tests.rtl.test_emit import KEY, KEY_BASE, NOW, OWN_MAC, V4, V6, Flow, Order, memory  # noqa: E402

CONFIG = NicConfig(name="test", flows=16, channels=4, vectors=4, keys=64, control_cells=40, control_slots=32,
                   listeners=16, emit_credits=8)
PORT_STREAMS = {"release": "release", "emit": "emit", "up": "up", "emit_key_request": "key_request",
                "emit_key_answer": "key_answer"}
RECEIVE_STREAMS = ("key_request", "key_answer", "write_cmd", "write_row", "write_done", "socket",
                   "socket_taken")


class Path(wiring.Component):
    """The port between parser and transmit path, without channels."""

    def __init__(self):
        self.port, self.receive = ControlPort(CONFIG), ControlReceive(CONFIG)
        port, receive = self.port.signature.members, self.receive.signature.members
        self.scheduler, self.back = TransmitScheduler(CONFIG), TransmitBack(CONFIG)
        super().__init__({
            "row": In(Strobe(rx_row(CONFIG))), "write": port["write"], "now": In(64),
            **{ours: port[theirs] for ours, theirs in PORT_STREAMS.items()},
            **{name: receive[name] for name in RECEIVE_STREAMS},
            "cmd": self.scheduler.signature.members["payload_cmd"], "payload": self.back.signature.members["payload"],
            "mac": Out(stream.Signature(mac_beat(CONFIG))),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.parser = parser = Parser(CONFIG)
        m.submodules.port, m.submodules.receive = port, receive = self.port, self.receive
        m.submodules.issue = issue = JobIssue(CONFIG)
        m.submodules.scheduler, m.submodules.back = scheduler, back = self.scheduler, self.back
        connect(m, flipped(self.row), parser.row)
        connect(m, parser.parsed, receive.row)
        connect(m, parser.flow, receive.flow)
        for block in (parser, receive, port):
            connect(m, flipped(self.write), block.write)
        for ours, theirs in (*((name, getattr(port, inside)) for name, inside in PORT_STREAMS.items()),
                             *((name, getattr(receive, name)) for name in RECEIVE_STREAMS)):
            ends = flipped(getattr(self, ours)), theirs
            connect(m, *(ends if self.signature.members[ours].flow == In else ends[::-1]))
        connect(m, port.receive_release, receive.release)
        connect(m, receive.up, port.receive_up)
        connect(m, receive.entry, port.entry)
        connect(m, receive.place_over, port.place_over)
        m.d.comb += port.keeps_key.eq(receive.keeps_key)
        connect(m, port.checked, issue.i)
        for name in ("verdict", "piece", "row"):
            connect(m, getattr(port, name), getattr(issue, name))
        for name in ("job", "stored_row", "stored_piece"):
            connect(m, getattr(issue, name), getattr(scheduler, name))
        connect(m, scheduler.payload_cmd, flipped(self.cmd))
        connect(m, flipped(self.payload), back.payload)
        connect(m, scheduler.slice, back.slice)
        for ours, theirs in ((scheduler.inline, back.inline), (back.begun, scheduler.begun),
                             (back.dropped, scheduler.dropped), (back.done, port.done), (scheduler.freed, port.freed)):
            connect(m, ours, theirs)
        connect(m, back.mac, flipped(self.mac))
        m.d.comb += [
            scheduler.running.eq(~0), *(block.now.eq(self.now) for block in (port, receive, scheduler, back)),
        ]
        return m


class Decider:
    """Who sits at the port, and the memory and the wire."""

    def __init__(self):
        self.dut = dut = Path()
        self.bench = Bench(dut)
        self.width = CONFIG.host_bytes
        self.frames: list[bytes] = []
        self.messages: list[tuple[ControlType, dict, bytes]] = []
        self.beats, self.written, self.rows = [], [], []
        self.writes_may_end = True
        self.bench.sink(dut.up, self.beats)
        self.bench.sink(dut.write_cmd, self.written)
        self.bench.sink(dut.write_row, self.rows)
        for requests, answers in ((dut.key_request, dut.key_answer), (dut.emit_key_request, dut.emit_key_answer)):
            self.bench.background(self._keys(requests, answers))
        for testbench in (self._end_writes, self._read, self._wire):
            self.bench.background(testbench)

    def _keys(self, requests, answers):
        asked: list[dict] = []
        self.bench.sink(requests, asked)

        async def answer(ctx):
            while True:
                while not asked:
                    await ctx.tick()
                request = asked.pop(0)
                status = Status.OK if request["key"] == KEY else Status.KEY_INVALID
                await self.bench.send(ctx, answers, {"status": int(status), "address": KEY_BASE + request["offset"]})
        return answer

    async def _end_writes(self, ctx):
        ended = 0
        while True:
            while ended == len(self.written) or not self.writes_may_end:
                await ctx.tick()
            ended += 1
            await self.bench.send(ctx, self.dut.write_done, {"error": 0})

    async def _read(self, ctx):
        commands: list[dict] = []
        ctx.set(self.dut.cmd.ready, 1)
        while True:
            _, _, valid, command = await ctx.tick().sample(self.dut.cmd.valid, self.dut.cmd.payload)
            if not valid:
                continue
            ctx.set(self.dut.cmd.ready, 0)
            commands.append(plain(command))
            at = commands[-1]["address"]
            end = at + commands[-1]["length"]
            while at < end:
                start = at % self.width
                count = min(self.width - start, end - at)
                await self.bench.send(ctx, self.dut.payload, {
                    "data": int.from_bytes(bytes(start) + memory(at - KEY_BASE, count), "little"), "start": start,
                    "count": count, "last": at + count == end, "error": 0})
                at += count
            ctx.set(self.dut.cmd.ready, 1)

    async def _wire(self, ctx):
        current = b""
        ctx.set(self.dut.mac.ready, 1)
        async for _, _, valid, word in ctx.tick().sample(self.dut.mac.valid, self.dut.mac.payload):
            if valid:
                beat = plain(word)
                current += beat["data"].to_bytes(CONFIG.mac_bytes, "little")[:beat["keep"].bit_count()]
                if beat["last"]:
                    self.frames.append(current)
                    current = b""

    # ---------------------------------------------------------------------------------------------- what it does

    async def start(self, ctx):
        own = bytes.fromhex(OWN_MAC.replace(":", ""))
        ctx.set(self.dut.now, NOW)
        for name, value in (("MAC_ADDRESS_LO", int.from_bytes(own[:4], "little")),
                            ("MAC_ADDRESS_HI", int.from_bytes(own[4:], "little")),
                            ("RX_FILTER", RxFilter.BROADCAST), ("CONTROL_ENABLE", ControlEnable.FLOWS)):
            await self.bench.strobe(ctx, self.dut.write, {"address": register(name), "data": int(value)})

    async def give(self, ctx, port, message: bytes) -> None:
        for at in range(0, len(message), self.width):
            await self.bench.send(ctx, port, {"data": int.from_bytes(message[at:at + self.width], "little"), "last": 0})

    async def release(self, ctx, kind: ControlType, **fields: int) -> None:
        await self.give(ctx, self.dut.release, pack_message(kind, b"", **fields))

    async def emit(self, ctx, order: Order, flags: int = 0) -> None:
        message = bytearray(order.message())
        message[7] |= flags
        await self.give(ctx, self.dut.emit, bytes(message))

    async def receive(self, ctx, frame: bytes) -> None:
        for at in range(0, len(frame), self.width):
            piece = frame[at:at + self.width]
            await self.bench.strobe(ctx, self.dut.row, {
                "data": int.from_bytes(piece, "little"), "count": len(piece), "first": at == 0,
                "last": at + self.width >= len(frame), "time": 7})
            await ctx.tick()

    async def up(self, ctx) -> tuple[ControlType, dict]:
        """The next message up."""
        while not any(beat["last"] for beat in self.beats):
            await ctx.tick()
        message = b""
        while True:
            beat = self.beats.pop(0)
            message += beat["data"].to_bytes(self.width, "little")
            if beat["last"]:
                self.messages.append(unpack_message(message))
                return self.messages[-1][:2]

    async def done(self, ctx, status: DoneStatus = DoneStatus.OK) -> dict:
        kind, fields = await self.up(ctx)
        assert (kind, fields["status"]) == (ControlType.DONE, status)
        return fields

    async def sends(self, ctx, order: Order, flags: int = 0) -> None:
        """An order whose frames leave."""
        before = len(self.frames)
        await self.emit(ctx, order, flags)
        await self.done(ctx)
        assert self.frames[before:] == order.frames(NOW)


def flow_fields(flow: Flow, **changed: int) -> dict:
    """FLOW_ADD's, FLOW_SET's."""
    return {
        "flow": flow.number, "generation": flow.generation, "channel": flow.channel,
        "remote_port": flow.peer_port, "local_port": flow.own_port,
        "remote_address": int.from_bytes(ip_address(flow.peer).packed, "little"),
        "local_address": int.from_bytes(ip_address(flow.own).packed, "little"),
        "next_hop": int.from_bytes(bytes.fromhex(flow.next_hop.replace(":", "")), "little"),
        "vlan_tci": flow.vlan_tci or 0, "hop_limit": flow.hop_limit, "traffic_class": flow.traffic_class,
        "flow_label": flow.flow_label, "timestamp_offset": flow.timestamp_offset,
        "flags": OrderFlag.IPV6 * flow.ipv6 | OrderFlag.VLAN * (flow.vlan_tci is not None), **changed}


def test_a_flows_life() -> None:
    decider = Decider()

    async def life(ctx):
        await decider.start(ctx)
        for flow in (V4, V6):
            await decider.release(ctx, ControlType.FLOW_ADD, **flow_fields(flow))
            await decider.done(ctx)
            await decider.sends(ctx, Order(flow, pieces=[(5, 200)], mss=100, timestamps=7))

        # FLOW_SET changes what stands in its second unit, and nothing else.
        moved = replace(V4, next_hop="02:aa:bb:cc:dd:ee", hop_limit=9, vlan_tci=77, traffic_class=4)
        await decider.release(ctx, ControlType.FLOW_SET, **flow_fields(
            moved, remote_port=1, local_port=2, remote_address=3, local_address=4, channel=0))
        await decider.done(ctx)
        await decider.sends(ctx, Order(moved, pieces=[(0, 10)]))

        # A segment comes; its payload is placed, and its acknowledgement waits until the bus has answered.
        frame = Ether(dst=OWN_MAC, src=V4.next_hop) / IP(src=V4.peer, dst=V4.own) / TCP(
            sport=V4.peer_port, dport=V4.own_port, flags="A", seq=1) / bytes(range(100))
        await decider.receive(ctx, bytes(frame))
        kind, segment = await decider.up(ctx)
        assert (kind, segment["flow"], segment["length"]) == (ControlType.SEGMENT, V4.number, 100)
        decider.writes_may_end = False
        place = {"flow": V4.number, "generation": V4.generation, "key": KEY}
        await decider.release(ctx, ControlType.PLACE, **place, handle=segment["handle"], length=100, offset=64,
                              flags=OrderFlag.LAST)
        sent = len(decider.frames)
        acknowledges, behind = Order(moved, sequence=5), Order(moved, sequence=6)
        await decider.emit(ctx, acknowledges, OrderFlag.FENCE)
        await decider.emit(ctx, behind)
        await decider.sends(ctx, Order(V6, sequence=99))
        await idle(ctx, 150)
        assert decider.written
        assert len(decider.frames) == sent + 1
        decider.writes_may_end = True
        await decider.done(ctx)
        await decider.done(ctx)
        assert decider.frames[sent + 1:] == [*acknowledges.frames(NOW), *behind.frames(NOW)]

        # A PLACE that is refused holds nobody up for ever.
        await decider.release(ctx, ControlType.PLACE, **place, handle=segment["handle"], length=1)
        await decider.emit(ctx, Order(moved, sequence=7), OrderFlag.FENCE)
        answers = [await decider.up(ctx) for _ in range(2)]
        assert {(fields["order"], fields["status"]) for _, fields in answers} == {
            (ControlType.PLACE, DoneStatus.BAD), (ControlType.EMIT, DoneStatus.OK)}

        # The end: all that was given is over, then nothing is obeyed any more.
        await decider.emit(ctx, Order(moved, pieces=[(0, 300)], mss=100))
        await decider.emit(ctx, Order(moved, last=True))
        await decider.done(ctx)
        await decider.done(ctx)
        assert len(decider.frames) == sent + 7
        await decider.release(ctx, ControlType.FLOW_DEL, flow=V4.number, generation=V4.generation)
        await decider.done(ctx)
        await decider.emit(ctx, Order(moved, pieces=[(0, 300)]))
        await decider.done(ctx, DoneStatus.STALE)
        await decider.sends(ctx, Order(V6))
        await idle(ctx, 50)
        assert len(decider.frames) == sent + 8
    decider.bench.add(life)
    decider.bench.run(max_cycles=6_000)
    orders = 11
    back = sum(fields["emit_credits"] for _, fields, _ in decider.messages)
    assert orders - CONFIG.emit_credits // 2 < back <= orders
