"""The control port: what passes between the datapath and whoever decides what TCP does (the *decider*).

Three streams of messages: **up** to the decider, **release** and **emit** from it. A message is one or more units of 64
bytes, the header says how many; a unit is four beats of 16 bytes, and no field crosses a beat. Little-endian, but for
what is copied from or to a frame: addresses, options and frame bytes, whose first byte on the wire stands lowest.
Bytes and bits that are not named are 0.

Sequence numbers, ports and all other numbers are numbers, not bytes of a frame. `time` counts units of
2^`TIME_SHIFT` cycles of `now`, modulo 2^32. The timestamp that the device puts into segments counts units of
2^`TIMESTAMP_SHIFT` cycles, behind the flow's `timestamp_offset`.

Frames of an EMIT are built from the flow's entry and the message: own Ethernet address as source, IPv4 without options,
with "don't fragment" and an identification that counts the order's frames from 0, or IPv6 without extension headers;
TCP with the timestamps option (NOP NOP in front) if it is asked for, then the given options; lengths and checksums
filled in; payload cut at `mss` bytes. Frames shorter than 60 bytes are left for the MAC to pad, as all others.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

from nic_model.contract.counters import Counter
from nic_model.contract.descriptors import Field, Layout

UNIT_BYTES = 64
BEAT_BYTES = 16

CONTROL_VERSION = 1
"""`version` of every message."""

NO_FLOW = 0xFFFF
"""`flow` of what belongs to no flow."""

NO_LISTENER = 0xFFFF
"""`listener` of a frame that matched none."""

TIME_SHIFT = 7
"""`time` is `now` above this bit: 0.82 us at 156.25 MHz."""

TIMESTAMP_SHIFT = 18
"""TCP's timestamps are `now` above this bit, and the flow's offset: 1.68 ms at 156.25 MHz, in the range of 1 ms to 1 s
that RFC 7323 §5.4 wants for clocks of 3.8 kHz to 262 MHz."""

TICK_SHIFT = 17
"""A TICK is due whenever this bit of `now` changes while ControlEnable.FLOWS is set: every 0.84 ms at 156.25 MHz."""

HEADER_PREFIX_BYTES = 128
"""First bytes of a frame that an UNKNOWN carries, and header bytes that a RAW may have."""

MAX_EMIT_PIECES = 8
MAX_EMIT_OPTION_BYTES = 40
MAX_SACK_BLOCKS = 4
CELL_BYTES = 256
"""A received frame for the port takes whole cells of so many bytes, from its first byte on."""

FLOW_PLACES = 2
"""Places in the flow table for each flow that it promises, so that four to a bucket are enough: where a flow may stand
is as for a flow rule among FLOW_PLACES * FLOWS (`flow_rule_places`), by the hash of `contract.flow_hash`. FLOW_ADD
takes a place in the emptier of the two buckets that has one free, and no flow with the same fingerprint; of the first
table if both have as many. DEVICE_RESET takes out all flows and listeners."""

LISTENERS_PER_BUCKET = 4
"""Places for listeners whose ports have the same `listener_bucket`: a further one finds none."""

MAX_HANDLES = 1 << 12
MAX_FLOWS = 1 << 14
MAX_SEGMENT_MERGE = 127
"""Segments that one SEGMENT may stand for."""


class ControlType(IntEnum):
    """`type` of a message."""

    SEGMENT = 0x01
    """Up: a TCP segment of a flow that is in the table; both checksums are right."""
    UNKNOWN = 0x02
    """Up: a frame for the decider that is no segment of a flow in the table."""
    OP = 0x03
    """Up: a socket operation that the application posted."""
    DONE = 0x04
    """Up: an order is carried out, or refused."""
    TICK = 0x05
    """Up: time passes (TICK_SHIFT), or credits come back."""

    PLACE = 0x10
    """Release: write a part of a handle's payload to registered memory."""
    DROP = 0x11
    """Release: forget a handle's frame."""
    PASS = 0x12
    """Release: give a handle's whole frame to a channel, as a frame that was received."""
    FLOW_ADD = 0x13
    FLOW_SET = 0x14
    """Release: replace what FLOW_ADD said of a flow's headers, the second unit; the key stays."""
    FLOW_DEL = 0x15
    LISTEN_ADD = 0x16
    """Release: TCP segments without a flow to this local address (all zeros: to any) and port are for the decider."""
    LISTEN_DEL = 0x17
    COMPLETE = 0x18
    """Release: write the completion of a socket operation."""

    EMIT = 0x20
    """Emit: send a segment of a flow, or several."""
    RAW = 0x21
    """Emit: send one frame whose header the decider wrote."""


UP_TYPES = (ControlType.SEGMENT, ControlType.UNKNOWN, ControlType.OP, ControlType.DONE, ControlType.TICK)
RELEASE_TYPES = (
    ControlType.PLACE, ControlType.DROP, ControlType.PASS, ControlType.FLOW_ADD, ControlType.FLOW_SET,
    ControlType.FLOW_DEL, ControlType.LISTEN_ADD, ControlType.LISTEN_DEL, ControlType.COMPLETE)
EMIT_TYPES = (ControlType.EMIT, ControlType.RAW)

ALWAYS_DONE = (ControlType.FLOW_ADD, ControlType.FLOW_SET, ControlType.FLOW_DEL, ControlType.LISTEN_ADD,
               ControlType.LISTEN_DEL)
"""Orders that are answered by a DONE whether it is asked for or not."""


class UpFlag(IntFlag):
    """`flags` of SEGMENT and UNKNOWN."""

    TIMESTAMPS = 1 << 0
    """`ts_value` and `ts_echo` hold TCP's timestamps option."""
    RAW_OPTIONS = 1 << 1
    """The second unit of a SEGMENT is SEGMENT_OPTIONS: the options are none of the shapes that the device knows, and
    neither timestamps nor SACK blocks were taken from them."""
    IPV6 = 1 << 2
    VLAN = 1 << 3
    """An 802.1Q tag stands in the frame."""


class OrderFlag(IntFlag):
    """`flags` of an order."""

    DONE = 1 << 0
    """Answer by a DONE with this tag. A failure is always answered."""
    FENCE = 1 << 1
    """EMIT, RAW: wait until all PLACEs of the flow that were given before have their bus responses."""
    LAST = 1 << 2
    """PLACE: the handle ends with it, whatever its status. EMIT: there is no frame; its DONE tells that all EMITs of
    the flow that were given before are over, so that a FLOW_DEL refuses none of them."""
    TIMESTAMP = 1 << 3
    """EMIT: put the timestamps option in front of all others."""
    IPV6 = 1 << 4
    """FLOW_ADD, LISTEN_ADD, COMPLETE: addresses of 16 bytes, otherwise 4 and zeros. RAW: as SendFlag.IPV6."""
    VLAN = 1 << 5
    """FLOW_ADD, FLOW_SET: frames carry an 802.1Q tag with `vlan_tci`."""
    IPV4_CHECKSUM = 1 << 6
    """RAW: compute the IPv4 header checksum; its field must hold 0."""
    L4_CHECKSUM = 1 << 7
    """RAW: sum from l4_offset to the end, into checksum_offset, seeded as for SEND_FRAME."""


class DoneStatus(IntEnum):
    """`status` of a DONE."""

    OK = 0
    KEY = 1
    """The key was refused: gone, another channel's, without the right, or a byte beyond its end."""
    BUS = 2
    """The host bus answered with an error."""
    STALE = 3
    """The flow is not in the table in this generation."""
    FULL = 4
    """FLOW_ADD, LISTEN_ADD: no place is free where this key may stand."""
    BAD = 5
    """The order breaks a rule: a handle that is not held, or held for another flow; a flow or listener that is there
    already; lengths or pieces that do not fit; a channel that does not run."""


class UnknownReason(IntEnum):
    """`reason` of an UNKNOWN: why the frame is no SEGMENT. The first that holds."""

    NOT_TCP = 1
    """ARP, ICMP and whatever else, and TCP that is a fragment."""
    CHECKSUM = 2
    """TCP with a wrong checksum, or a header that is cut off."""
    SYN = 3
    """A SYN, with or without ACK, that has no flow."""
    NO_FLOW = 4
    """Any other segment without a flow."""


class ControlEnable(IntFlag):
    """`CONTROL_ENABLE`: which received frames go to the control port; all others go to channels."""

    FLOWS = 1 << 0
    """Segments of flows in the table, and TCP to a listener."""
    REST = 1 << 1
    """With FLOWS: all others that the filter lets in, too, as UNKNOWN."""


_HEADER = {
    "type": Field(0, 8, "a ControlType"),
    "units": Field(8, 4, "units of 64 bytes of this message, with this one"),
    "version": Field(12, 4, "CONTROL_VERSION"),
    "flow": Field(16, 16, "number of the flow; NO_FLOW if there is none. LISTEN_ADD, LISTEN_DEL: the listener's"),
    "generation": Field(32, 8, "the flow's"),
    "tag": Field(40, 16, "orders: returned in the DONE; 0 in others"),
    "flags": Field(56, 8, "UpFlag or OrderFlag bits"),
}

_UP = (
    ("emit_credits", 15, 8, "EMITs and RAWs that have left the emit queue since the last message up"),
    ("time", 32, 32, "when the message was made"),
)


def _unit(name: str, *fields: tuple[str, int, int, str], units: int = 1) -> Layout:
    """Units without a header. Fields as (name, byte offset, width in bits, meaning)."""
    return _checked(Layout(name, UNIT_BYTES * units, {n: Field(8 * at, width, meaning)
                                                      for n, at, width, meaning in fields}))


def _message(name: str, *fields: tuple[str, int, int, str], units: int = 1) -> Layout:
    """The units of a message that are always there, with its header."""
    return _checked(Layout(name, UNIT_BYTES * units, {
        **_HEADER, **{n: Field(8 * at, width, meaning) for n, at, width, meaning in fields}}))


def _checked(layout: Layout) -> Layout:
    beat_bits = 8 * BEAT_BYTES
    for name, field in layout.fields.items():
        if field.width <= beat_bits and field.offset // beat_bits != (field.offset + field.width - 1) // beat_bits:
            raise ValueError(f"{layout.name}.{name} crosses a beat")
    return layout


CONTROL_HEADER = _checked(Layout("control header", 8, _HEADER))
"""What every message begins with."""

_SEGMENT = (
    ("handle", 8, 12, "of the frame in the payload cells"),
    ("length", 10, 20, "payload bytes; UNKNOWN that is no TCP: of the whole frame"),
    ("payload_offset", 13, 8, "of the payload's first byte in the frame; UNKNOWN that is no TCP: 0"),
    ("segments", 14, 7, "segments that were merged into this one, 1 if none were"),
    ("sequence", 16, 32, "sequence number"),
    ("acknowledgement", 20, 32, "acknowledgement number"),
    ("window", 24, 16, "window, not scaled"),
    ("urgent", 26, 16, "urgent pointer"),
    ("tcp_flags", 28, 9, "TCP's flags, FIN lowest"),
    ("ecn", 30, 2, "the IP header's ECN field"),
    ("sack_blocks", 31, 3, "SACK blocks in SEGMENT_SACK, the second unit, 0 to 4; without any it is not there"),
    ("ts_value", 36, 32, "TSval, with UpFlag.TIMESTAMPS"),
    ("ts_echo", 40, 32, "TSecr, with UpFlag.TIMESTAMPS"),
    ("option_bytes", 44, 8, "bytes of TCP options, 0 to 40"),
    ("mss", 48, 16, "of several segments: payload bytes of each but the last"),
    ("frame_bytes", 50, 16, "of the frame, without FCS"),
    *_UP,
)

SEGMENT = _message("segment", *_SEGMENT)
"""Options of these shapes are decoded, NOP NOP in front of each: none; timestamps; SACK of 1 to 4 blocks; timestamps,
then SACK of 1 to 3 blocks."""

SEGMENT_SACK = _unit(
    "segment SACK",
    *((f"{edge}_{n}", 8 * n + at, 32, f"SACK block {n}: {meaning}") for n in range(MAX_SACK_BLOCKS)
      for edge, at, meaning in (("left", 0, "its first sequence number"), ("right", 4, "the one behind its last"))),
)

SEGMENT_OPTIONS = _unit("segment options", ("options", 0, 8 * MAX_EMIT_OPTION_BYTES, "the options' bytes"))
"""Second unit of a SEGMENT with UpFlag.RAW_OPTIONS."""

UNKNOWN = _message(
    "unknown", *_SEGMENT,
    ("remote_address", 64, 128, "source address; 0 if it is no IP"),
    ("local_address", 80, 128, "destination address; 0 if it is no IP"),
    ("remote_port", 96, 16, "source port; 0 if it is no TCP"),
    ("local_port", 98, 16, "destination port; 0 if it is no TCP"),
    ("listener", 100, 16, "that the segment is for; NO_LISTENER if it is for none"),
    ("reason", 102, 8, "an UnknownReason"),
    ("info", 104, 16, "RxInfo bits"),
    ("frame", 128, 8 * HEADER_PREFIX_BYTES, "the frame's first bytes; zeros behind a shorter frame's end"),
    units=4,
)

OP = _message(
    "op",
    ("channel", 8, 8, "where it was posted"),
    ("operation", 9, 8, "an Opcode: SOCKET_CONNECT to SOCKET_OPTION"),
    ("socket", 10, 16, "as the descriptor has it"),
    ("job", 12, 16, "the descriptor's tag"),
    ("socket_flags", 14, 8, "SocketFlag bits"),
    ("offset", 16, 40, "of the piece; byte offset inside the key's memory"),
    ("key", 21, 24, "of the piece"),
    ("length", 24, 32, "bytes of the piece; 0 if there is none"),
    ("consumed", 28, 32, "as the descriptor has it"),
    *_UP,
)
"""A descriptor with inline bytes has a second unit: SOCKET_PARAMETERS, as they stand in the descriptor."""

DONE = _message(
    "done",
    ("status", 8, 8, "a DoneStatus"),
    ("order", 9, 8, "`type` of the order that is answered"),
    ("length", 10, 24, "PLACE: bytes written; EMIT, RAW: payload bytes read"),
    *_UP,
)

TICK = _message("tick", *_UP, ("epoch", 36, 32, "`now` above bit 38: what `time` does not hold"))

PLACE = _message(
    "place",
    ("handle", 8, 12, "of the segment"),
    ("skip", 10, 20, "payload bytes in front of the part"),
    ("length", 13, 20, "bytes of the part, at least 1"),
    ("offset", 16, 40, "where it goes: byte offset inside the key's memory"),
    ("key", 21, 24, "memory key with the WRITE right, of the flow's channel"),
)

DROP = _message("drop", ("handle", 8, 12, "of the frame"))

PASS = _message("pass", ("handle", 8, 12, "of the frame"), ("channel", 10, 8, "where it goes"))

FLOW = _message(
    "flow",
    ("remote_port", 8, 16, "the peer's port"),
    ("local_port", 10, 16, "own port"),
    ("channel", 12, 8, "that owns the keys of the flow's orders"),
    ("remote_address", 16, 128, "the peer's address"),
    ("local_address", 32, 128, "own address"),
    ("next_hop", 64, 48, "Ethernet address that frames go to, first byte lowest"),
    ("vlan_tci", 70, 16, "802.1Q tag control, with OrderFlag.VLAN"),
    ("mss", 72, 16, "largest payload towards the peer: for a TCP engine in the port, EMITs bring their own"),
    ("hop_limit", 74, 8, "IPv4's TTL, IPv6's hop limit"),
    ("traffic_class", 75, 8, "DSCP in bits 7:2, 0 below: each EMIT brings its ECN bits"),
    ("flow_label", 76, 20, "IPv6's"),
    ("send_scale", 79, 4, "window scale of the peer's windows, for a TCP engine in the port"),
    ("timestamp_offset", 80, 32, "added to the device's timestamp clock"),
    ("receive_scale", 84, 4, "window scale of own windows, for a TCP engine in the port"),
    units=2,
)
"""FLOW_ADD and FLOW_SET."""

FLOW_DEL = _message("flow delete")

LISTEN = _message(
    "listen",
    ("local_port", 10, 16, "own port"),
    ("local_address", 32, 128, "own address; 0: any of that version of IP"),
)
"""LISTEN_ADD."""

LISTEN_DEL = _message("listen delete")

COMPLETE = _message(
    "complete",
    ("channel", 8, 8, "whose ring"),
    ("status", 9, 8, "a SocketStatus"),
    ("job", 10, 16, "as the OP had it"),
    ("length", 12, 32, "bytes moved"),
    ("result", 16, 128, "as in the completion"),
    ("remote_port", 32, 16, "ACCEPT, CONNECT: the peer's port"),
    ("local_port", 34, 16, "ACCEPT, CONNECT, LISTEN: own port"),
    ("socket", 36, 16, "ACCEPT, CONNECT, LISTEN: the new socket; others: the OP's"),
)

PIECE_IN_BEAT = (("offset", 0, 40, "byte offset inside the key's memory"), ("key", 5, 24, "memory key"),
                 ("length", 8, 24, "bytes, at least 1"))
"""A piece in a beat of a message: as `PIECE` in host memory."""


def _pieces(first: int, at: int, count: int) -> tuple[tuple[str, int, int, str], ...]:
    return tuple((f"{name}_{first + n}", at + BEAT_BYTES * n + byte, width, f"piece {first + n}: {meaning}")
                 for n in range(count) for name, byte, width, meaning in PIECE_IN_BEAT)


EMIT = _message(
    "emit",
    ("length", 8, 24, "payload bytes, of all pieces; 0 to 2^20"),
    ("pieces", 11, 4, "pieces of memory, 0 to 8"),
    ("window", 12, 16, "window field"),
    ("mss", 14, 14, "payload bytes of a frame at most, if there is payload: MIN_MSS and more"),
    ("sequence", 16, 32, "of the first frame"),
    ("acknowledgement", 20, 32, "acknowledgement number"),
    ("ts_echo", 24, 32, "TSecr, with OrderFlag.TIMESTAMP"),
    ("tcp_flags", 28, 9, "TCP's flags; PSH and FIN on the last frame only, CWR on the first only"),
    ("ecn", 30, 2, "the IP header's ECN field"),
    ("option_words", 31, 4, "4-byte words of options in EMIT_OPTIONS, the next unit; without any it is not there"),
    *_pieces(0, 32, 2),
)
"""Then EMIT_OPTIONS if there are option words, EMIT_PIECES for pieces 2 to 5 and again for 6 and 7 if there are any."""

EMIT_OPTIONS = _unit("emit options", ("options", 0, 8 * MAX_EMIT_OPTION_BYTES, "behind the timestamps option, if that"
                                      " is asked for; whole words, filled up by the decider"))

EMIT_PIECES = _unit("emit pieces", *_pieces(0, 0, 4))
"""Pieces 2 to 5, or 6 and 7, of an EMIT, as pieces 0 to 3."""

RAW = _message(
    "raw",
    ("header_bytes", 8, 8, "bytes of the frame in RAW_FRAME, the further units, 14 to 128"),
    ("l3_offset", 9, 8, "as in a submission descriptor"),
    ("l4_offset", 10, 8, "as in a submission descriptor"),
    ("checksum_offset", 11, 8, "as in a submission descriptor"),
    ("length", 12, 24, "payload bytes behind the header; 0: none, and no piece"),
    ("channel", 15, 8, "that owns the piece's key"),
    ("offset_0", 16, 40, "of the payload: byte offset inside the key's memory"),
    ("key_0", 21, 24, "of the payload: memory key"),
)

RAW_FRAME = _unit("raw frame", ("bytes", 0, 8 * UNIT_BYTES, "64 of the frame's first bytes"))
"""One unit behind RAW for each 64 header bytes."""

LAYOUT_OF: dict[ControlType, Layout] = {
    ControlType.SEGMENT: SEGMENT, ControlType.UNKNOWN: UNKNOWN, ControlType.OP: OP, ControlType.DONE: DONE,
    ControlType.TICK: TICK, ControlType.PLACE: PLACE, ControlType.DROP: DROP, ControlType.PASS: PASS,
    ControlType.FLOW_ADD: FLOW, ControlType.FLOW_SET: FLOW, ControlType.FLOW_DEL: FLOW_DEL,
    ControlType.LISTEN_ADD: LISTEN, ControlType.LISTEN_DEL: LISTEN_DEL, ControlType.COMPLETE: COMPLETE,
    ControlType.EMIT: EMIT, ControlType.RAW: RAW,
}
"""Layout of the units of each message that are always there."""

MAX_UNITS = 4
"""Of the longest message: an EMIT with options and eight pieces has 4, an UNKNOWN has 4."""

CONTROL_LAYOUTS = (
    SEGMENT, SEGMENT_SACK, SEGMENT_OPTIONS, UNKNOWN, OP, DONE, TICK, PLACE, DROP, PASS, FLOW, FLOW_DEL, LISTEN,
    LISTEN_DEL, COMPLETE, EMIT, EMIT_OPTIONS, EMIT_PIECES, RAW, RAW_FRAME)


CONTROL_COUNTERS: tuple[Counter, ...] = (
    Counter("control_segments", "messages", "SEGMENTs made"),
    Counter("control_unknown", "messages", "UNKNOWNs made"),
    Counter("control_bytes", "bytes", "of the frames of both, without FCS"),
    Counter("control_no_cell", "frames", "dropped: for the control port, but no payload cells are free"),
    Counter("control_no_handle", "frames", "dropped: likewise, but no handle is free"),
    Counter("control_no_slot", "frames", "dropped: likewise, but there is no room for the message"),
    Counter("control_placed", "bytes", "written by PLACEs"),
    Counter("control_drops", "handles", "ended by DROP"),
    Counter("control_passes", "handles", "ended by PASS; then the frame counts as any other that was received"),
    Counter("control_emits", "orders", "EMITs and RAWs carried out; their frames are among tx_frames"),
    Counter("control_ops", "messages", "OPs made"),
    Counter("control_completes", "orders", "COMPLETEs carried out"),
    Counter("control_stale", "orders", "refused: STALE"),
    Counter("control_refused", "orders", "refused or failed for another reason"),
)
"""Counters of a device with a control port, at the addresses behind those of `COUNTERS`. For a snapshot with nothing in
flight: `rx_frames_in` counts all frames; those that are for the port and find room are not among the `rx_` counters of
where frames end, unless they are passed."""


RULES: tuple[str, ...] = (
    "The decider picks flow numbers below FLOWS, densely. An order with a generation that is not the flow's is refused:"
    " DONE with STALE, counted. After the DONE of a FLOW_DEL no message up names that generation.",
    "SEGMENTs of one flow come in the order of arrival. Within release, and within emit, orders of one flow run in the"
    " order in which they were given. Between the two streams, and across flows, there is no order but by FENCE and"
    " DONE: the DONE of a FLOW_ADD comes before the first order that names the flow.",
    "Frames are dropped at admission only: cells, handle and the message's slot are reserved together, or the frame is"
    " dropped and counted. Nothing that was offered is withdrawn. OP and DONE wait for a slot of their own and are"
    " never dropped: an OP stays in its ring, an order that will be answered is not taken. A TICK that finds no slot is"
    " left out; the next one tells the time.",
    "An EMIT or RAW needs a credit: the decider begins with `emit_credits` of them, and gets them back by"
    " `emit_credits` of the messages up. If half of them are owed and no other message is due, a TICK brings them. One"
    " without payload waits behind one frame with payload at most. One with FENCE waits aside, so that other flows"
    " pass, until the PLACEs of its flow that were given before have their bus responses.",
    "Each handle ends exactly once: by a PLACE with LAST, by PASS or by DROP. Several PLACEs may share one. A PLACE"
    " with LAST ends it whatever its status. A handle outlives its flow: DROP and PASS do not look at the generation.",
    "A window is promised only against memory that cannot be withdrawn: the socket's eager ring, placed by position"
    " modulo its size, and receives with WAIT_ALL. A receive completes short only if nothing out of order lies in it.",
    "The DONE of a PLACE comes after its bus response; that of an EMIT when its bytes have been read. An EMIT or RAW"
    " that is refused sends nothing of the frame that fails, nor of those behind it. COMPLETE waits for the flow's"
    " earlier PLACEs and does not look at the generation; its DONE says OK when the entry has its place in the ring of"
    " a channel that runs, and will be written there, and does not wait for that write. A bus error on a PLACE that was"
    " acknowledged, or on a retransmission's read, is for the decider to abort the connection.",
    "A send is completed when it is acknowledged and no EMIT that reads it is under way. Deregistration of a key waits"
    " for the EMITs and PLACEs that passed its check.",
    "The decider has no other input, and no clock but `time` and TICK, which comes whenever bit 17 of `now` changes"
    " while ControlEnable.FLOWS is set: a recorded log of the three streams replays.",
)
"""What both sides keep, numbered from 1."""


def listener_bucket(port: int, listeners: int) -> int:
    """Where a listener to a port may stand, in a device of `listeners` places."""
    bits = max(2, listeners // LISTENERS_PER_BUCKET).bit_length() - 1
    return (port ^ port >> bits) & (1 << bits) - 1


def units_of(header: int) -> int:
    """Units of the message whose first 8 bytes are the number `header`."""
    field = _HEADER["units"]
    return header >> field.offset & (1 << field.width) - 1


def pack_message(kind: ControlType, further: bytes = b"", **fields: int) -> bytes:
    """A message of its fields, and of the units behind those that are always there, filled up with zeros.

    Raises ValueError for a field that there is not, or does not fit.
    """
    layout = LAYOUT_OF[kind]
    units = -(-(layout.size_bytes + len(further)) // UNIT_BYTES)
    if units > MAX_UNITS:
        raise ValueError(f"{layout.name} of {units} units: {MAX_UNITS} are the most")
    message = layout.pack(type=kind, units=units, version=CONTROL_VERSION, **fields) + further
    return message.ljust(units * UNIT_BYTES, b"\0")


def unpack_message(message: bytes) -> tuple[ControlType, dict[str, int], bytes]:
    """Type, fields, and the units behind those that are always there.

    Raises ValueError for what is no message: another version, an unknown type, a length that is not what it says.
    """
    header = CONTROL_HEADER.unpack(message[: CONTROL_HEADER.size_bytes].ljust(CONTROL_HEADER.size_bytes, b"\0"))
    if header["version"] != CONTROL_VERSION:
        raise ValueError(f"a control message has version {CONTROL_VERSION}, not {header['version']}")
    kind = ControlType(header["type"])
    layout = LAYOUT_OF[kind]
    if len(message) != header["units"] * UNIT_BYTES or len(message) < layout.size_bytes:
        raise ValueError(f"{layout.name} says that it has {header['units']} units, and has {len(message)} bytes")
    return kind, layout.unpack(message[: layout.size_bytes]), message[layout.size_bytes :]
