"""What passes between the blocks: stream payloads and the small buses, in packet order.

All are functions of the device's `NicConfig`, or plain layouts. A stream follows the rules of
`amaranth.lib.stream`: `valid` never waits for `ready`, and a payload holds still until it is taken. A strobe
(`valid` without `ready`) lasts one cycle and must be taken.

`W` below is the width of the host bus in bytes. Datapath rows are `W` bytes, lane 0 the lowest address or the
first byte on the wire.

Every block has a port `active`: it is 1 in each cycle at whose end a register of the block may change for any
reason other than `now`. While `active` is 0 and the inputs hold still, nothing changes however many cycles pass; so the
top can say `quiet`. A stalled stream, or a wait for a bus response, is therefore not active.
"""

from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out, Signature
from amaranth.utils import exact_log2

from nic_model.contract import (
    INDEX_BITS,
    MAX_CHANNELS,
    MAX_DESCRIPTOR_SLOTS,
    PIECE,
    REGISTER_SPACE_BYTES,
    NicConfig,
)
from nic_model.contract.config import BURST_BYTES
from nic_model.contract.descriptors import Layout
from nic_model.contract.sockets import SOCKET_COMPLETION

CHANNEL_BITS = exact_log2(MAX_CHANNELS)
REGISTER_BITS = exact_log2(REGISTER_SPACE_BYTES)
LENGTH_BITS = 21
SLOT_COUNT_BITS = MAX_DESCRIPTOR_SLOTS.bit_length()
TIME_BITS = 64
BURST = BURST_BYTES

PUSH_BUFFERS = 4
"""Descriptors that may be pushed at a time, of all channels together."""


def queue_slots(config: NicConfig) -> int:
    """Submission slots of a channel between their fetch and the end of what they ask for, at most. The widest bus takes
    small frames so fast that 64 would not cover the latency of host memory."""
    return 128 if config.host_bytes == 64 else 64


def lane_bits(config: NicConfig) -> int:
    """Bits of a byte lane's number."""
    return exact_log2(config.host_bytes)


def contract_view(layout: Layout) -> data.FlexibleLayout:
    """The Amaranth view of a layout of the contract."""
    return data.FlexibleLayout(8 * layout.size_bytes, {
        name: data.Field(field.width, field.offset) for name, field in layout.fields.items()
    })


class Strobe(Signature):
    """A one-cycle event with a payload and no handshake."""

    def __init__(self, shape):
        self.payload_shape = shape
        super().__init__({"valid": Out(1), "payload": Out(shape)})

    def __eq__(self, other):
        return isinstance(other, Strobe) and self.payload_shape == other.payload_shape


# Registers -> every block that keeps some of them: one strobe per 32-bit register write, at the
# contract's byte address. A block keeps what it needs in its own memory.
RegisterWrite = data.StructLayout({"address": REGISTER_BITS, "data": 32})

# Registers -> the block that owns a read-only register: one strobe per read; the block answers with one
# strobe of `RegisterValue` any number of cycles later.
RegisterRead = data.StructLayout({"address": REGISTER_BITS})
RegisterValue = data.StructLayout({"data": 32})

# A channel number, for start strobes.
ChannelNumber = data.StructLayout({"channel": CHANNEL_BITS})

# Doorbell pages -> transmit, receive and events. For events, `index` is the consumer index of CQ_ARM.
DoorbellWrite = data.StructLayout({"channel": CHANNEL_BITS, "index": INDEX_BITS})

# Doorbell pages -> transmit, in the order of the host's writes. A `pushed` one says that all slots of a descriptor
# came: it has `slots` of them in buffer `buffer`, and `index` is that of its first modulo the push window's slots.
SubmissionDoorbell = data.StructLayout({
    "channel": CHANNEL_BITS, "index": INDEX_BITS, "pushed": 1, "slots": 5, "buffer": exact_log2(PUSH_BUFFERS),
})

# Any block -> channels: this channel must stop, `code` is a ChannelError.
ChannelFault = data.StructLayout({"channel": CHANNEL_BITS, "code": 8})

# Any block -> registers: value of a read-only index register.
IndexReport = data.StructLayout({"channel": CHANNEL_BITS, "index": INDEX_BITS})

# Memory keys: a question and its answer. `write` asks for KeyRight.WRITE, else READ.
KeyRequest = data.StructLayout({
    "channel": CHANNEL_BITS, **{name: PIECE.fields[name].width for name in ("key", "offset", "length")}, "write": 1,
})
KeyAnswer = data.StructLayout({"status": 8, "address": 64})

# A client of the DMA read engine: any alignment, `length` >= 1.
ReadCommand = data.StructLayout({"address": 64, "length": LENGTH_BITS})


def read_beat(config: NicConfig) -> data.StructLayout:
    """Answer to a ReadCommand, beats in address order. Valid bytes are lanes start .. start+count-1; `start` is not 0
    only in a command's first beat. `last` marks a command's last beat. With `error` the burst failed and its
    data mean nothing; all beats come nevertheless."""
    bits = lane_bits(config)
    return data.StructLayout({"data": 8 * config.host_bytes, "start": bits, "count": bits + 1, "last": 1, "error": 1})


# A client of the DMA write engine: any alignment, `length` >= 1.
WriteCommand = data.StructLayout({"address": 64, "length": 16})
WriteDone = data.StructLayout({"error": 1})


def row(config: NicConfig) -> data.StructLayout:
    """A row of bytes. For a WriteCommand: lane = address mod W, rows from the first that the address touches to
    the last, where `last` is set; lanes outside the command are ignored."""
    return data.StructLayout({"data": 8 * config.host_bytes, "last": 1})


# A descriptor with all its checks done. `epoch`: see `rtl.fetch.DrainWatch`. `slots`: what it takes of its channel's
# submission slots between fetch and scheduler. `tagged`: an 802.1Q tag is to be inserted. Lengths and offsets are as in
# the descriptor, without that tag, up to the scheduler, which inserts it; in a `TxSlice` they count it.
TxJob = data.StructLayout({
    "channel": CHANNEL_BITS, "tag": 16, "status": 8, "ring_index": INDEX_BITS,
    "complete": 1, "timestamp": 1, "segmented": 1, "ipv6": 1,
    "ipv4_checksum": 1, "l4_checksum": 1, "udp": 1,
    "inline_bytes": 8, "l3_offset": 8, "l4_offset": 8, "checksum_offset": 8, "mss": 14,
    "payload_bytes": LENGTH_BITS, "slots": SLOT_COUNT_BITS, "epoch": 1, "tagged": 1, "vlan_tci": 16,
})

SOCKET_OPERATION = 0x80
"""`status` of a job, inside the device, that is a socket operation for who sits at the control port; no Status has this
bit. It is no frame; of its fields count `channel`, `tag`, `slots`, `epoch` and `inline_bytes`, and what
`rtl.descriptor.DescriptorCheck` says. Two pieces come with it, whose addresses are words of its slot, and the rows of
its parameters."""


def is_operation(status):
    """Whether a job's status is SOCKET_OPERATION."""
    return status[exact_log2(SOCKET_OPERATION)]


# Transmit front -> scheduler, a strobe each: what a descriptor brings, to be kept until its job is over. First the rows
# of its inline bytes (lane 0 = first byte of the frame) and its pieces, each in order, then its job; a job whose status
# is not OK has neither. There is always room: see `rtl.fetch.FetchScheduler.freed`.
TxPiece = data.StructLayout({"channel": CHANNEL_BITS, "address": 64, "length": LENGTH_BITS})


def tx_row(config: NicConfig) -> data.StructLayout:
    """A row of inline bytes on its way to the scheduler's store."""
    return data.StructLayout({"channel": CHANNEL_BITS, "data": 8 * config.host_bytes})


# Scheduler -> transmit front: submission slots of a channel whose job, pieces and inline rows are no longer stored.
FreedSlots = data.StructLayout({"channel": CHANNEL_BITS, "slots": SLOT_COUNT_BITS})

# Scheduler -> transmit back: one frame of a job. Its payload is `count` bytes from `offset` of the job's on, which come
# from the read engine; it is frame `number` of the job, the `first` or the `last` or both. With the first come the rows
# of the job's template, ceil(inline_bytes / W) on a stream of their own, which is kept until the last. A job with a
# status other than OK, or `discarded` (its channel has stopped), has one slice without rows and payload, which is its
# last.
TxSlice = data.StructLayout({
    "job": TxJob, "offset": LENGTH_BITS, "number": 16, "count": 14,
    "first": 1, "last": 1, "discarded": 1,
})

# Transmit back -> completion, in the order of the jobs' last slices. `discarded`: nothing is to be told of it.
TxDone = data.StructLayout({
    "channel": CHANNEL_BITS, "tag": 16, "status": 8, "ring_index": INDEX_BITS, "complete": 1,
    "length": LENGTH_BITS, "segments": 16, "timestamp": TIME_BITS, "epoch": 1, "discarded": 1,
})

RECEIVE_BITS = 17
"""Bits of what lies in one receive buffer at most: an aggregate of 65,535 bytes and its link header."""

# Receive -> completion, after the bus answered every write of the frame or aggregate: one for each of its buffers,
# together. The first says how many `more` follow; `further` marks those, `last` the last of all.
RxDone = data.StructLayout({
    "channel": CHANNEL_BITS, "buffer_id": 16, "status": 8, "ring_index": INDEX_BITS,
    "length": RECEIVE_BITS, "info": 16, "checksum": 16, "segments": 16, "timestamp": TIME_BITS, "mss": 14,
    "more": 8, "further": 1, "last": 1,
})

# Control port -> completion: the completion of a socket operation, its fields as the decider gave them.
SocketDone = data.StructLayout({"channel": CHANNEL_BITS, **{
    name: SOCKET_COMPLETION.fields[name].width
    for name in ("status", "tag", "length", "result", "remote_port", "local_port", "socket")}})

# Completion -> control port, one for each of these, in order: whether the channel runs, so that the entry has its place
# in the ring and is written there.
SocketTaken = data.StructLayout({"written": 1})

# Completion -> events: the bus has answered this completion's write; `index` is the CQ index behind it.
Retired = data.StructLayout({"channel": CHANNEL_BITS, "receive": 1, "index": INDEX_BITS})


def mac_beat(config: NicConfig) -> data.StructLayout:
    """AXI-Stream to and from the MAC: `keep` is contiguous from lane 0 and all ones but in the last beat.
    `user` on receive, in the last beat: the frame is bad. Unused on transmit (0)."""
    return data.StructLayout({"data": 8 * config.mac_bytes, "keep": config.mac_bytes, "last": 1, "user": 1})


# Any block -> counters: add `amount` to one counter. One strobe port per counter that the block feeds.
CountAmount = data.StructLayout({"amount": 14})


class AxiWriteMaster(Signature):
    """AXI4 write channels of the DMA master, seen from the master."""

    def __init__(self, config: NicConfig, id_bits: int):
        width = config.host_bytes
        super().__init__({
            "aw": Out(stream.Signature(data.StructLayout({"id": id_bits, "addr": 64, "len": 8}))),
            "w": Out(stream.Signature(data.StructLayout({"data": 8 * width, "strb": width, "last": 1}))),
            "b": In(stream.Signature(data.StructLayout({"id": id_bits, "resp": 2}))),
        })


class AxiReadMaster(Signature):
    """AXI4 read channels of the DMA master, seen from the master."""

    def __init__(self, config: NicConfig, id_bits: int):
        width = config.host_bytes
        super().__init__({
            "ar": Out(stream.Signature(data.StructLayout({"id": id_bits, "addr": 64, "len": 8}))),
            "r": In(stream.Signature(data.StructLayout({"id": id_bits, "data": 8 * width, "resp": 2, "last": 1}))),
        })
