"""The receive side of the control port, from the parser to host memory, against `nic_model.control_port`: the same
frames and orders, the same messages and the same memory."""

import random
from collections import deque
from ipaddress import ip_address

import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from nic_model.contract import NicConfig, RxFilter, RxInfo, Status, register
from nic_model.contract.control import (
    ControlEnable,
    ControlType,
    DoneStatus,
    OrderFlag,
    pack_message,
    unpack_message,
)
from nic_model.control_port import ControlPort
from nic_model.receive_parser import parse_received
from rtl.control_receive import ControlReceive
from rtl.interfaces import Strobe
from rtl.mac_rx import rx_row
from rtl.parser import Parser
from tests.rtl.harness import Bench, lead_out
from tests.rtl.rx_frames import IP, OWN_BYTES, TCP, IPv6, data, ether

CONFIG = NicConfig(name="test", flows=16, control_cells=40, control_slots=32, listeners=16)
MEMORY_BYTES = 1 << 14
GUARD = 0xA5
GOOD_KEY, BAD_KEY, BROKEN_BUS = 0x111, 0x222, 0x3F00
CHANNEL = 3
COUNTERS = ("segments", "unknown", "bytes", "placed", "drops", "passes", "stale", "refused")


class Path(wiring.Component):
    """Parser and control port, as they stand in the receive path."""

    def __init__(self, config):
        self.config = config
        self.control = ControlReceive(config)
        self._members = {name: member for name, member in self.control.signature.members.items()
                         if name not in ("row", "flow", "write", "active")}
        super().__init__({"row": In(Strobe(rx_row(config))), "write": self.control.signature.members["write"],
                          "active": Out(1), **self._members})

    def elaborate(self, platform):
        m = Module()
        m.submodules.parser = parser = Parser(self.config)
        m.submodules.control = control = self.control
        connect(m, flipped(self.row), parser.row)
        connect(m, parser.parsed, control.row)
        connect(m, parser.flow, control.flow)
        for block in (parser, control):
            connect(m, flipped(self.write), block.write)
        lead_out(m, self, control, self._members)
        m.d.comb += self.active.eq(parser.active | control.active)
        return m


class Keys:
    """What the model asks of a key table."""

    def check(self, channel, key, offset, length, right):
        good = channel == CHANNEL and key == GOOD_KEY and offset + length <= MEMORY_BYTES
        return (Status.OK if good else Status.KEY_INVALID), offset


class Datapath:
    """What the model asks of the device around it."""

    now_cycles = 0

    def __init__(self):
        self.memory = bytearray([GUARD]) * MEMORY_BYTES
        self.passed = []

    def give_frame(self, channel, frame, parsed, arrived_cycles):
        checksum = parsed.raw_sum if RxInfo.RAW_SUM in parsed.info else 0
        self.passed.append((frame, {"channel": channel, "length": len(frame), "info": parsed.info,
                                    "checksum": checksum, "time": arrived_cycles}))

    def memory_write(self, address, content):
        if address >= BROKEN_BUS:
            return False
        self.memory[address:address + len(content)] = content
        return True


class Pair:
    """The block and the model. What is done is done to both."""

    def __init__(self, *, seed=0, stall=0.0):
        self.dut = dut = Path(CONFIG)
        self.bench = bench = Bench(dut, seed=seed)
        self.width = CONFIG.host_bytes
        self.datapath = Datapath()
        self.model = ControlPort(CONFIG, self.datapath, Keys())
        self.memory = bytearray([GUARD]) * MEMORY_BYTES
        self.beats, self.requests, self.commands, self.rows, self.entries = [], [], [], [], []
        self.over: list[int] = []
        """Flows of PLACEs that have found their end."""
        self.passed, self.passed_rows = [], []
        self.up, self.expected, self.handles = [], [], {}
        self._answers, self._write_dones = deque(), deque()
        for stream, taken in ((dut.up, self.beats), (dut.key_request, self.requests), (dut.write_cmd, self.commands),
                              (dut.write_row, self.rows), (dut.entry, self.entries), (dut.place_over, self.over),
                              (dut.passed, self.passed), (dut.passed_row, self.passed_rows)):
            bench.sink(stream, taken, stall=stall if stream is dut.up else 0.0)
        for stream, queue in ((dut.key_answer, self._answers), (dut.write_done, self._write_dones)):
            bench.feed(stream, queue)
        bench.background(self._bus)
        self._seen = {name: [] for name in COUNTERS}
        for name, seen in self._seen.items():
            bench.strobes(getattr(dut, f"count_control_{name}"), seen)
        self._message, self._taken = b"", 0

    async def _bus(self, ctx):
        asked = written = first_row = 0
        while True:
            await ctx.tick()
            for request in self.requests[asked:]:
                status, address = Keys().check(request["channel"], request["key"], request["offset"],
                                               request["length"], None)
                self._answers.append((self.bench.cycle + 4, {"status": status, "address": address}))
                asked += 1
            while written < len(self.commands):
                at = self.commands[written]["address"]
                end = at + self.commands[written]["length"]
                rows = (end - 1) // self.width - at // self.width + 1
                if first_row + rows > len(self.rows):
                    break
                content = b"".join(row["data"].to_bytes(self.width, "little")
                                   for row in self.rows[first_row:first_row + rows])
                if at < BROKEN_BUS:
                    self.memory[at:end] = content[at % self.width:][:end - at]
                self._write_dones.append((self.bench.cycle + 12, {"error": int(at >= BROKEN_BUS)}))
                first_row += rows
                written += 1

    # ---------------------------------------------------------------------------------------------- to both

    async def start(self, ctx, enable=ControlEnable.FLOWS):
        for name, value in (("MAC_ADDRESS_LO", int.from_bytes(OWN_BYTES[:4], "little")),
                            ("MAC_ADDRESS_HI", int.from_bytes(OWN_BYTES[4:], "little")),
                            ("RX_FILTER", RxFilter.BROADCAST), ("CONTROL_ENABLE", enable)):
            await self.bench.strobe(ctx, self.dut.write, {"address": register(name), "data": value})
        self.model.enabled = enable

    async def frame(self, ctx, frame):
        """A frame, as the MAC gives it. Returns whether the port takes it."""
        self.datapath.now_cycles += 1
        for at in range(0, len(frame), self.width):
            piece, last = frame[at:at + self.width], at + self.width >= len(frame)
            await self.bench.strobe(ctx, self.dut.row, {
                "data": int.from_bytes(piece, "little"), "count": len(piece), "first": int(at == 0), "last": int(last),
                "time": self.datapath.now_cycles})
            await ctx.tick()
        return self.model.admit(frame, parse_received(frame))

    async def give(self, ctx, kind, *, handle=None, further=b"", **fields):
        """An order; `handle` is the model's, and means the block's of the same frame."""
        theirs = {} if handle is None else {"handle": handle}
        ours = {} if handle is None else {"handle": self.handles.get(handle, handle)}
        message = pack_message(kind, further, **fields, **ours)
        self.model.release(pack_message(kind, further, **fields, **theirs))
        for at in range(0, len(message), self.width):
            await self.bench.send(ctx, self.dut.release, {
                "data": int.from_bytes(message[at:at + self.width], "little"), "last": 0})

    async def settle(self, ctx):
        """Until both have said what they have to say; the latest messages."""
        quiet = 0
        while quiet < 8:
            _, _, active, offers = await ctx.tick().sample(self.dut.active, self.dut.up.valid)
            quiet = 0 if active or offers or self._answers or self._write_dones else quiet + 1
        ours, theirs = [], []
        for beat in self.beats[self._taken:]:
            self._message += beat["data"].to_bytes(self.width, "little")
            if beat["last"]:
                ours.append(unpack_message(self._message))
                self._message = b""
        self._taken = len(self.beats)
        while (message := self.model.take()) is not None:
            theirs.append(unpack_message(message))
        for (_, our, _), (_, their, _) in zip(ours, theirs, strict=False):
            if "handle" in their and "frame_bytes" in their:
                self.handles[their["handle"]] = our["handle"]
        assert not self._message
        assert [comparable(*m) for m in ours] == [comparable(*m) for m in theirs]
        self.up += theirs
        return theirs

    def run(self, main, **limits):
        self.bench.add(main)
        self.bench.run(**limits)
        assert self.up
        assert self.memory == self.datapath.memory
        content, frames = b"", []
        for row in self.passed_rows:
            content += row["data"].to_bytes(self.width, "little")
            if row["last"]:
                frames.append(content)
                content = b""
        assert not content
        assert [(frame[:told["length"]], told) for frame, told in zip(frames, self.passed, strict=True)
                ] == self.datapath.passed
        assert [-(-told["length"] // self.width) for told in self.passed] == [
            len(frame) // self.width for frame in frames]
        for name, seen in self._seen.items():
            assert sum(strobe["amount"] for strobe in seen) == self.model.counters[f"control_{name}"], name
        assert self.bench.idle_cycles > 0


def comparable(kind, fields, further):
    """A message without what differs between the device and its model: handles' numbers and time."""
    return kind, {name: value for name, value in fields.items() if name not in ("handle", "time")}, further


def tcp(flow, payload=b"", **fields):
    """A segment of a flow's peer."""
    remote, sport, local, dport = flow
    version = IPv6 if ":" in remote else IP
    header = TCP(sport=sport, dport=dport, flags=fields.pop("flags", "A"), **fields)
    return bytes(ether() / version(src=remote, dst=local) / header / payload).ljust(60, b"\0")


def flow_fields(flow, *, channel=CHANNEL):
    """FLOW_ADD's."""
    remote, sport, local, dport = flow
    return {"remote_port": sport, "local_port": dport, "channel": channel,
            "remote_address": int.from_bytes(ip_address(remote).packed, "little"),
            "local_address": int.from_bytes(ip_address(local).packed, "little"),
            "flags": OrderFlag.IPV6 if ":" in remote else 0, "next_hop": 0x0605_0403_0201, "hop_limit": 64,
            "vlan_tci": 0x123, "traffic_class": 0x28, "flow_label": 0xABCDE, "timestamp_offset": 0x1234_5678}


FLOW4, FLOW6 = ("10.0.0.1", 1000, "10.0.0.2", 80), ("fd00::1", 1000, "fd00::2", 80)


def test_life_of_a_flow():
    pair = Pair()

    async def main(ctx):
        await pair.start(ctx)
        for number, flow in ((3, FLOW4), (4, FLOW6)):
            await pair.give(ctx, ControlType.FLOW_ADD, flow=number, generation=9, tag=number, **flow_fields(flow))
            (done,) = await pair.settle(ctx)
            assert (done[1]["status"], done[1]["tag"]) == (DoneStatus.OK, number)
        for number, flow in ((3, FLOW4), (4, FLOW6)):
            payload = data(500, seed=number)
            await pair.frame(ctx, tcp(flow, payload))
            ((kind, fields, _),) = await pair.settle(ctx)
            assert (kind, fields["flow"], fields["length"]) == (ControlType.SEGMENT, number, 500)
            handle = fields["handle"]
            # In three parts, as if it straddled buffers; then nothing of it is left.
            for skip, length, offset, flags in ((0, 100, 13, 0), (100, 300, 0x1001, OrderFlag.DONE),
                                                (400, 100, 0x800, OrderFlag.LAST | OrderFlag.DONE)):
                await pair.give(ctx, ControlType.PLACE, handle=handle, flow=number, generation=9, skip=skip,
                                length=length, key=GOOD_KEY, offset=offset, flags=flags, tag=skip)
                await pair.settle(ctx)
                assert pair.memory[offset:offset + length] == payload[skip:skip + length]
            await pair.give(ctx, ControlType.DROP, handle=handle, tag=77)
            ((_, done, _),) = await pair.settle(ctx)
            assert done["status"] == DoneStatus.BAD
        await pair.give(ctx, ControlType.FLOW_DEL, flow=3, generation=9, tag=5)
        await pair.settle(ctx)
        await pair.frame(ctx, tcp(FLOW4, b"x"))
        await pair.frame(ctx, tcp(FLOW6, b"x"))
        await pair.settle(ctx)

    pair.run(main)
    assert [entry["entry"]["valid"] for entry in pair.entries] == [1, 1, 0]
    entry = pair.entries[0]["entry"]
    wanted = flow_fields(FLOW4)
    assert {name: entry[name] for name in wanted if name in entry} == {
        name: value for name, value in wanted.items() if name in entry}


BAD_ORDERS = {
    "another handle": ("PLACE", {"handle": 39}, DoneStatus.BAD),
    "a handle beyond all cells": ("DROP", {"handle": 4000}, DoneStatus.BAD),
    "an old generation": ("PLACE", {"generation": 8}, DoneStatus.STALE),
    "a flow that is not there": ("PLACE", {"flow": 7}, DoneStatus.STALE),
    "a flow beyond the table": ("PLACE", {"flow": 16 + 3}, DoneStatus.STALE),
    "another flow": ("PLACE", {"flow": 4}, DoneStatus.BAD),
    "to pass another handle": ("PASS", {"handle": 39, "channel": 1}, DoneStatus.BAD),
    "to pass to a channel that is not there": ("PASS", {"channel": 16}, DoneStatus.BAD),
    "to pass to a channel beyond all": ("PASS", {"channel": 64 + 1}, DoneStatus.BAD),
    "no byte": ("PLACE", {"length": 0}, DoneStatus.BAD),
    "a byte too many": ("PLACE", {"length": 21}, DoneStatus.BAD),
    "a byte too far": ("PLACE", {"skip": 1}, DoneStatus.BAD),
    "a skip that would wrap": ("PLACE", {"skip": (1 << 20) - 5, "length": 10}, DoneStatus.BAD),
    "a wrong key": ("PLACE", {"key": BAD_KEY}, DoneStatus.KEY),
    "a byte beyond the key": ("PLACE", {"offset": MEMORY_BYTES - 19}, DoneStatus.KEY),
    "a broken bus": ("PLACE", {"offset": BROKEN_BUS + 5}, DoneStatus.BUS),
    "a number that is in use": ("FLOW_ADD", {"flow": 3, "remote_port": 5}, DoneStatus.BAD),
    "a key that is there": ("FLOW_ADD", {"flow": 9}, DoneStatus.BAD),
    "a flow's number beyond the table": ("FLOW_ADD", {"flow": 16, "remote_port": 5}, DoneStatus.BAD),
    "a channel that is not there": ("FLOW_ADD", {"flow": 9, "remote_port": 5, "channel": 16}, DoneStatus.BAD),
    "to set a flow that is not there": ("FLOW_SET", {"flow": 9}, DoneStatus.STALE),
    "to set a flow of an old generation": ("FLOW_SET", {"flow": 3, "generation": 8}, DoneStatus.STALE),
    "to set a flow beyond the table": ("FLOW_SET", {"flow": 99}, DoneStatus.STALE),
    "to set a flow": ("FLOW_SET", {"flow": 3}, DoneStatus.OK),
    "to delete a flow that is not there": ("FLOW_DEL", {"flow": 9}, DoneStatus.STALE),
    "to delete a flow of an old generation": ("FLOW_DEL", {"flow": 3, "generation": 8}, DoneStatus.STALE),
    "a listener": ("LISTEN_ADD", {"flow": 2, "local_port": 443}, DoneStatus.OK),
    "a listener that is in use": ("LISTEN_ADD", {"flow": 2, "local_port": 444}, DoneStatus.BAD),
    "a listener beyond the table": ("LISTEN_ADD", {"flow": 16, "local_port": 445}, DoneStatus.BAD),
    "to delete a listener": ("LISTEN_DEL", {"flow": 2}, DoneStatus.OK),
    "to delete it again": ("LISTEN_DEL", {"flow": 2}, DoneStatus.BAD),
}


def test_orders_that_break_a_rule():
    pair = Pair()
    found = {}

    async def main(ctx):
        await pair.start(ctx)
        for number, flow in ((3, FLOW4), (4, FLOW6)):
            await pair.give(ctx, ControlType.FLOW_ADD, flow=number, generation=9, **flow_fields(flow))
        await pair.settle(ctx)
        await pair.frame(ctx, tcp(FLOW4, data(20)))
        ((_, segment, _),) = await pair.settle(ctx)
        for name, (kind, changed, _) in BAD_ORDERS.items():
            kind = ControlType[kind]
            fields = {"flow": 3, "generation": 9}
            if kind == ControlType.PLACE:
                fields |= {"handle": segment["handle"], "length": 20, "key": GOOD_KEY, "offset": 0x100}
            elif kind == ControlType.PASS:
                fields |= {"handle": segment["handle"]}
            elif kind in (ControlType.FLOW_ADD, ControlType.FLOW_SET):
                fields |= flow_fields(FLOW4)
            await pair.give(ctx, kind, **{**fields, **changed})
            ((_, done, _),) = await pair.settle(ctx)
            found[name] = done["status"]
        # After all that the frame is still there.
        await pair.give(ctx, ControlType.PLACE, handle=segment["handle"], flow=3, generation=9, length=20,
                        key=GOOD_KEY, offset=0x200, flags=OrderFlag.LAST)
        await pair.settle(ctx)

    pair.run(main)
    assert found == {name: status for name, (_, _, status) in BAD_ORDERS.items()}
    assert GUARD not in (pair.memory[0x200], pair.memory[0x213])


def test_listeners_hear_of_what_has_no_flow():
    pair = Pair()

    async def main(ctx):
        await pair.start(ctx)
        await pair.give(ctx, ControlType.LISTEN_ADD, flow=5, local_port=80)
        await pair.settle(ctx)
        await pair.frame(ctx, tcp(FLOW4, flags="S", options=[("MSS", 1460), ("WScale", 7)]))
        ((kind, fields, _),) = await pair.settle(ctx)
        assert (kind, fields["listener"]) == (ControlType.UNKNOWN, 5)
        await pair.give(ctx, ControlType.DROP, handle=fields["handle"], flags=OrderFlag.DONE)
        await pair.frame(ctx, tcp(FLOW6))  # another version
        ((_, done, _),) = await pair.settle(ctx)
        assert done["status"] == DoneStatus.OK

    pair.run(main)


def test_frames_are_passed_on():
    """Whatever they are, with what the parser said of them; their handles end, of a flow that is gone too."""
    pair = Pair()
    frames = [tcp(FLOW4, data(20)), tcp(FLOW6, data(700)), bytes(ether()) + data(301), tcp(FLOW4)]

    async def main(ctx):
        await pair.start(ctx, ControlEnable.FLOWS | ControlEnable.REST)
        await pair.give(ctx, ControlType.FLOW_ADD, flow=3, generation=9, **flow_fields(FLOW4))
        await pair.settle(ctx)
        handles = []
        for frame in frames:
            await pair.frame(ctx, frame)
            ((_, fields, _),) = await pair.settle(ctx)
            handles.append(fields["handle"])
        await pair.give(ctx, ControlType.FLOW_DEL, flow=3, generation=9)
        await pair.settle(ctx)
        for n, handle in enumerate(handles):
            await pair.give(ctx, ControlType.PASS, handle=handle, channel=n, tag=n, flags=OrderFlag.DONE)
        dones = await pair.settle(ctx)
        assert [(done["tag"], done["status"], done["length"]) for _, done, _ in dones] == [
            (n, DoneStatus.OK, 0) for n in range(len(frames))]
        await pair.give(ctx, ControlType.PASS, handle=handles[2], channel=1)
        ((_, done, _),) = await pair.settle(ctx)
        assert done["status"] == DoneStatus.BAD

    pair.run(main)
    assert len(pair.passed) == len(frames)


@pytest.mark.parametrize(("seed", "stall"), [(2, 0.5)])
def test_random_frames_and_orders(seed, stall):
    rng = random.Random(seed)
    pair = Pair(seed=seed, stall=stall)
    flows = [(f"10.0.0.{n}", 1000 + n, "10.0.0.2", 80) for n in range(4)] + [
        (f"fd00::{n}", 1000 + n, "fd00::2", 80) for n in range(4)]
    held = []  # model's handle, flow, generation, payload bytes
    kinds = set()

    async def main(ctx):
        await pair.start(ctx)
        generations = dict.fromkeys(range(8), 0)
        for _ in range(14):
            number = rng.randrange(8)
            for _ in range(rng.randrange(1, 5)):
                what = rng.choice(("frame", "frame", "frame", "place", "place", "drop", "pass", "add", "delete"))
                if what == "frame":
                    await pair.frame(ctx, tcp(rng.choice(flows), rng.randbytes(rng.choice((0, 1, 6, 300)))))
                elif what == "add":
                    generations[number] = (generations[number] + 1) % 256
                    await pair.give(ctx, ControlType.FLOW_ADD, flow=number, generation=generations[number],
                                    **flow_fields(flows[number]))
                elif what == "delete" and rng.random() < 0.5:
                    await pair.give(ctx, ControlType.FLOW_DEL, flow=number, generation=generations[number])
                elif what == "drop" and held:
                    await pair.give(ctx, ControlType.DROP, handle=held.pop(rng.randrange(len(held)))[0],
                                    flags=rng.choice((0, OrderFlag.DONE)))
                elif what == "pass" and held:
                    channel = rng.choice((0, 1, 5, 15, 16))
                    at = rng.randrange(len(held))
                    await pair.give(ctx, ControlType.PASS, handle=held[at][0], channel=channel,
                                    flags=rng.choice((0, OrderFlag.DONE)))
                    if channel < CONFIG.channels:
                        del held[at]
                elif what == "place" and held:
                    at = rng.randrange(len(held))
                    handle, flow, generation, size = held[at]
                    skip = rng.randrange(max(size, 1))
                    last = rng.random() < 0.5
                    await pair.give(
                        ctx, ControlType.PLACE, handle=handle, flow=flow, generation=generation, skip=skip,
                        length=rng.randint(0, size - skip), key=rng.choice((GOOD_KEY,) * 9 + (BAD_KEY,)),
                        offset=rng.randrange(BROKEN_BUS - 300),
                        flags=(OrderFlag.LAST if last else 0) | rng.choice((0, OrderFlag.DONE)))
                    if last:
                        del held[at]
                if what in ("frame", "delete", "add"):
                    for kind, fields, _ in await pair.settle(ctx):
                        kinds.add((kind, fields.get("status")))
                        if kind == ControlType.SEGMENT:
                            held.append((fields["handle"], fields["flow"], fields["generation"], fields["length"]))
            for kind, fields, _ in await pair.settle(ctx):
                kinds.add((kind, fields.get("status")))
        for handle, *_ in held:
            await pair.give(ctx, ControlType.DROP, handle=handle)
        await pair.settle(ctx)

    pair.run(main, max_cycles=40_000)
    assert {(ControlType.SEGMENT, None), (ControlType.DONE, DoneStatus.OK)} <= kinds, f"seed {seed}"
    assert pair.passed, f"seed {seed}"
