"""A receive path with a control port, and `nic_model.device` beside it: what is done is done to both."""

from collections import deque

from nic_model.contract import (
    COMPLETION,
    DOORBELL_BASE,
    RECEIVE_SLOT_BYTES,
    ChannelCommand,
    CompletionKind,
    KeyRight,
    NicConfig,
    OperationMask,
    channel_register,
    doorbell,
    key_register,
    make_key,
    register,
)
from nic_model.contract.control import ControlEnable, ControlType, pack_message, unpack_message
from nic_model.device import Device
from tests.rtl.test_receive import DROPS, MEMORY_BYTES, OWN_BYTES, RING, Host

COMPLETIONS = MEMORY_BYTES
COMPLETION_RING = 1 << 13
"""Where the model's completions go, behind all that the receive path may write."""

TOKEN_FIELDS = {"buffer_id": "tag", "ring_index": "ring_index", "status": "status", "length": "length", "info": "info",
                "checksum": "checksum", "segments": "segments", "timestamp": "timestamp", "mss": "mss", "more": "more"}
"""Fields of a receive's token, and what they are in its completion."""

FURTHER_FIELDS = ("buffer_id", "ring_index", "length")
"""Those that a further buffer's have."""


def ring_of(channel: int) -> int:
    """Where a channel's receive ring lies."""
    return RING + 0x1000 * channel


def key_of(channel: int) -> int:
    """A channel's key, which covers all of memory."""
    return make_key(channel, 1)


class Twins(Host):
    """Both of them, and a host bus with a client for each of the two ways to memory. Who tests them is the decider."""

    def __init__(self, config: NicConfig, **options):
        super().__init__(config, **options)
        self.model_memory = bytearray(self.memory) + bytes(COMPLETION_RING * config.channels)
        self.model = Device(config, self._model_read, self._model_write)
        self.posted = [0] * config.channels
        self._up_beats, self._message, self._taken_up = [], b"", 0
        self._waiting = {True: deque(), False: deque()}
        """Messages of the model that the path has not sent yet; True: of frames."""
        self._control_answers, self._control_dones = deque(), deque()
        self._control_requests, self._control_commands, self._control_rows = [], [], []
        self.control_counted = {}
        dut, bench = self.dut, self.bench
        for stream, taken in ((dut.control_up, self._up_beats), (dut.control_key_request, self._control_requests),
                              (dut.control_write_cmd, self._control_commands), (dut.control_entry, []),
                              (dut.control_write_row, self._control_rows), (dut.control_place_over, [])):
            bench.sink(stream, taken)
        for stream, queue in ((dut.control_key_answer, self._control_answers),
                              (dut.control_write_done, self._control_dones)):
            bench.feed(stream, queue)
        bench.background(self._control_bus)
        for name in ("placed", "drops", "passes", "segments", "unknown", "no_slot", "no_handle", "no_cell", "stale",
                     "refused"):
            self.control_counted[name] = []
            bench.strobes(getattr(dut, f"count_control_{name}"), self.control_counted[name])

    def _model_read(self, address, length):
        return bytes(self.model_memory[address:address + length])

    def _model_write(self, address, content):
        self.model_memory[address:address + len(content)] = content
        return True

    async def _control_bus(self, ctx):
        width, rows = self.config.host_bytes, []
        while True:
            await ctx.tick()
            while self._control_requests:
                self._control_answers.append(
                    (self.bench.cycle + 4, self._answer_key(self._control_requests.pop(0))))
            while self._control_rows:
                rows.append(self._control_rows.pop(0))
                if rows[-1]["last"]:
                    command = self._control_commands.pop(0)
                    at, end = command["address"], command["address"] + command["length"]
                    raw = b"".join(row["data"].to_bytes(width, "little") for row in rows)
                    self.memory[at:end] = raw[at % width:][:command["length"]]
                    self._control_dones.append((self.bench.cycle + self.latency, {"error": 0}))
                    rows = []

    # ------------------------------------------------------------------------------------------ to both

    async def set(self, ctx, address, value):
        """Write a register."""
        self.model.write_register(address, int(value))
        await self.write(ctx, address, int(value))

    async def begin(self, ctx, channels, *, enable=ControlEnable.FLOWS, operations=OperationMask.RECEIVE_RAW):
        """Own address, the control port, and these channels, with their keys."""
        for name, value in (("MAC_ADDRESS_LO", int.from_bytes(OWN_BYTES[:4], "little")),
                            ("MAC_ADDRESS_HI", int.from_bytes(OWN_BYTES[4:], "little")),
                            ("CONTROL_ENABLE", enable), ("RX_ENABLE", 1)):
            await self.set(ctx, register(name), value)
        for channel in channels:
            for name, value in (("RX_BASE_LO", ring_of(channel)), ("RX_BASE_HI", 0), ("RX_LOG2", self.log2),
                                ("CHANNEL_OPERATIONS", operations)):
                await self.set(ctx, channel_register(name, channel), value)
            # What the receive path alone does not have.
            for name, value in (("TX_BASE_LO", 0), ("TX_LOG2", self.log2),
                                ("CQ_BASE_LO", COMPLETIONS + COMPLETION_RING * channel), ("CQ_LOG2", 8),
                                ("CHANNEL_CONTROL", ChannelCommand.ENABLE)):
                self.model.write_register(channel_register(name, channel), int(value))
            for name, value in (("KEY_ADDRESS_LO", 0), ("KEY_ADDRESS_HI", 0), ("KEY_LENGTH_LO", MEMORY_BYTES),
                                ("KEY_LENGTH_HI", 0),
                                ("KEY_COMMIT", 1 | KeyRight.WRITE << 12 | channel << 16 | 1 << 31)):
                self.model.write_register(key_register(name, channel), int(value))
            await self.start(ctx, channel)

    async def give(self, ctx, channel, address, length):
        """Post a receive buffer."""
        index = self.posted[channel]
        self.place(address, length, key=key_of(channel), base=ring_of(channel), producer=index)
        at = ring_of(channel) + index % (1 << self.log2) * RECEIVE_SLOT_BYTES
        self.model_memory[at:at + RECEIVE_SLOT_BYTES] = self.memory[at:at + RECEIVE_SLOT_BYTES]
        self.posted[channel] += 1
        self.model.write_doorbell(channel, doorbell("RX_DOORBELL", 0) - DOORBELL_BASE,
                                  self.posted[channel].to_bytes(4, "little"))
        await self.ring(ctx, channel=channel, index=self.posted[channel])

    async def frame(self, ctx, frame, *, now, gap=0.0):
        """A frame from the MAC, whose first beat comes at `now`."""
        ctx.set(self.dut.now, now)
        self.model.receive(frame, now_cycles=now)
        await self.send(ctx, frame, gap=gap)

    async def order(self, ctx, kind, *, handle=None, **fields):
        """An order of the release stream; `handle` is a pair, of the path's and of the model's."""
        ours, theirs = ({}, {}) if handle is None else ({"handle": handle[0]}, {"handle": handle[1]})
        self.model.control.release(pack_message(kind, b"", **fields, **theirs))
        message = pack_message(kind, b"", **fields, **ours)
        for at in range(0, len(message), self.config.host_bytes):
            await self.bench.send(ctx, self.dut.control_release, {
                "data": int.from_bytes(message[at:at + self.config.host_bytes], "little"), "last": 0})

    def take(self):
        """Messages that came up since the last call, in each a frame's handle as a pair."""
        messages = []
        for beat in self._up_beats[self._taken_up:]:
            self._message += beat["data"].to_bytes(self.config.host_bytes, "little")
            if beat["last"]:
                messages.append(unpack_message(self._message)[:2])
                self._message = b""
        self._taken_up = len(self._up_beats)
        found = []
        for kind, fields in messages:
            if kind in (ControlType.SEGMENT, ControlType.UNKNOWN):
                # DONEs come in the order of the orders, messages of frames in that of the frames.
                fields["handle"] = (fields["handle"], self._next_of_model(frames=True)["handle"])
            else:
                theirs = self._next_of_model(frames=False)
                assert {name: fields[name] for name in ("status", "order", "tag", "length")} == {
                    name: theirs[name] for name in ("status", "order", "tag", "length")}
            found.append((kind, fields))
        return found

    def _next_of_model(self, *, frames):
        while (message := self.model.control.take()) is not None:
            kind, fields, _ = unpack_message(message)
            self._waiting[kind in (ControlType.SEGMENT, ControlType.UNKNOWN)].append(fields)
        assert self._waiting[frames], "the model has not told of it"
        return self._waiting[frames].popleft()

    # ------------------------------------------------------------------------------------------ at the end

    def run(self, main, *, max_cycles=12_000):
        self.bench.add(main)
        self.bench.run(max_cycles=max_cycles)
        assert self.bench.idle_cycles > 0

    def compare(self):
        """Memory, completions of each channel and counters are the same."""
        assert self.memory == self.model_memory[:MEMORY_BYTES]
        for channel in range(self.config.channels):
            assert self._ours(channel) == self._theirs(channel), f"channel {channel}"
        for name in ("frames_in", "frames", "bytes", "checksum_errors", "aggregates", "coalesced", *DROPS):
            assert self.count(name) == self.model.counters[f"rx_{name}"], name
        for name, seen in self.control_counted.items():
            assert sum(strobe["amount"] for strobe in seen) == self.model.control.counters[f"control_{name}"], name
        assert self.take() == []
        assert self.model.control.take() is None
        assert self.model.control.handles_held == 0
        assert not any(self._waiting.values())

    def _ours(self, channel):
        return [{theirs: token[ours] for ours, theirs in TOKEN_FIELDS.items()
                 if not token["further"] or ours in FURTHER_FIELDS}
                for token in self.done if token["channel"] == channel]

    def _theirs(self, channel):
        found = []
        for n in range(256):
            at = COMPLETIONS + COMPLETION_RING * channel + n * COMPLETION.size_bytes
            entry = COMPLETION.unpack(bytes(self.model_memory[at:at + COMPLETION.size_bytes]))
            if not entry["phase"]:
                break
            further = entry["kind"] == CompletionKind.RECEIVE_MORE
            found.append({theirs: entry[theirs] for ours, theirs in TOKEN_FIELDS.items()
                          if not further or ours in FURTHER_FIELDS})
        return found
