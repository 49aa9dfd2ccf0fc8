"""Codes that hardware and software exchange, and the limits that both keep."""

from __future__ import annotations

from enum import IntEnum, IntFlag

MAX_DESCRIPTOR_SLOTS = 16
"""Submission slots that one descriptor may take."""

MAX_INLINE_BYTES = 128
"""Bytes of header template, or of a whole small frame, that a descriptor may carry inline."""

MAX_PIECES = 31
"""Pieces of host memory a descriptor may name: one in its first slot, two in each further one."""

MAX_FRAME_BYTES = 9014
"""Longest frame either way, without FCS: a 9,000-byte MTU and an Ethernet header."""

MAX_FRAME_BUFFERS = 32
"""Posted buffers that one received frame may take."""

MAX_AGGREGATE_BUFFERS = 2 * MAX_FRAME_BUFFERS
"""Posted buffers that a coalesced receive may take: it ends when it has more than half of them and a further segment
comes."""

MAX_COALESCED_BYTES = 0xFFFF
"""Longest IP packet that a coalesced receive may be: what IPv4's total length can say."""

MAX_SEGMENTED_BYTES = 1 << 20
"""Longest payload of one segmented send (1 MiB)."""

MAX_PIECE_BYTES = MAX_SEGMENTED_BYTES
"""Longest piece: a payload of the greatest length may be one piece."""

VLAN_INLINE_BYTES = range(12, 125)
"""Inline bytes of a descriptor with VLAN_INSERT: the addresses at least, and room for the tag."""

VLAN_MAX_OFFSET = 250
"""Largest offset of a checksum's bounds with VLAN_INSERT."""

MIN_MSS = 32
"""Smallest segment size that a segmented send may ask for."""

MAX_CHANNELS = 64
"""Channels that the register map and the error bits have room for."""

RAW_CHANNEL = 0
"""The channel that unmatched frames go to."""

RING_ALIGNMENT_BYTES = 4096
"""What the bus address of a ring is a multiple of."""

SMALLEST_RING_LOG2 = 4
"""log2 of the entries of the smallest submission or receive ring."""

LARGEST_RING_LOG2 = 15
"""log2 of the entries of the largest submission or receive ring that any device may have: half the range of an index,
so that full and empty differ."""

LARGEST_CQ_LOG2 = LARGEST_RING_LOG2 + 1
"""log2 of the entries of the largest completion ring: as large as both other rings together."""

INDEX_BITS = 16
"""Width of the free-running indices of all rings."""

MIN_TX_WEIGHT = 1024
"""A smaller TX_WEIGHT acts as this, but 0: so a longest frame is never more than 9 rounds away."""

MAX_TX_WEIGHT = 0xFFFF
"""A larger TX_WEIGHT acts as this."""

DEFAULT_TX_WEIGHT = 1536
"""What a TX_WEIGHT of 0 acts as beside others."""

TX_BYTE_TIME_FRACTION_BITS = 16
"""Bits of TX_BYTE_TIME behind the point: its unit is 2^-16 cycles."""

MAX_MODERATION_FRAMES = 0xFFFF
"""VECTOR_RX_FRAMES and VECTOR_TX_FRAMES above this act as this."""

PARSED_BYTES = 128
"""Bytes of a frame in which an IPv6 extension header and what follows it must begin to be known."""


class Opcode(IntEnum):
    """Operation of a submission descriptor. Socket operations need a control port (Feature.SOCKETS)."""

    SEND_FRAME = 0x01
    """Send inline bytes followed by the pieces as one frame."""
    SEND_SEGMENTED = 0x02
    """Send the pieces as TCP segments of at most `mss` bytes behind the inline header template."""

    SOCKET_CONNECT = 0x10
    SOCKET_LISTEN = 0x11
    SOCKET_ACCEPT = 0x12
    SOCKET_SEND = 0x13
    SOCKET_RECEIVE = 0x14
    SOCKET_SHUTDOWN = 0x15
    SOCKET_CLOSE = 0x16
    SOCKET_OPTION = 0x17


class OperationMask(IntFlag):
    """What a channel may do: its `CHANNEL_OPERATIONS` register, set by the system, not by the process."""

    SEND_FRAME = 1 << 0
    """Raw frames: privileged, since the sender writes every header byte."""
    SEND_SEGMENTED = 1 << 1
    RECEIVE_RAW = 1 << 2
    """May be the target of steered and unmatched frames."""
    SOCKET = 1 << 3
    """The socket operations."""
    COALESCE = 1 << 8
    """Its TCP segments are coalesced, if COALESCE_TICKS is not 0. Without it no segment opens an aggregate."""


class SendFlag(IntFlag):
    """`flags` of a submission descriptor."""

    COMPLETE = 1 << 0
    """Write a completion when the last frame has left. An error is always completed."""
    IPV4_CHECKSUM = 1 << 1
    """Compute the IPv4 header checksum over [l3_offset, l4_offset); its field must hold 0."""
    L4_CHECKSUM = 1 << 2
    """Sum [l4_offset, end), and store the complement at checksum_offset. The field must be seeded with the
    folded, uncomplemented pseudo-header sum: with the L4 length for SEND_FRAME, without it for SEND_SEGMENTED.
    For SEND_FRAME this is generic (Linux's CHECKSUM_PARTIAL): any protocol with a 16-bit Internet checksum, the field
    seeded with what it says, 0 where there is no pseudo-header."""
    UDP = 1 << 3
    """A checksum of 0 is sent as 0xffff (RFC 768)."""
    IPV6 = 1 << 4
    """SEND_SEGMENTED: update IPv6 payload length instead of IPv4 total length, identification and checksum."""
    TIMESTAMP = 1 << 5
    """Stamp the completion with `now` at the MAC's first beat of the last frame."""
    VLAN_INSERT = 1 << 6
    """Insert an 802.1Q tag with `vlan_tci` behind the addresses (Feature.VLAN). All else in the descriptor is as
    without it: offsets, inline bytes and lengths do not count the tag, but the longest frame does. The addresses must
    be inline: 12 to 124 inline bytes; and no offset that a checksum asks for may be above 250. A tag that is there
    already becomes the inner one."""


class CompletionKind(IntEnum):
    """`kind` of a completion."""

    SEND = 1
    RECEIVE = 2
    """One frame, or several that were coalesced: what there is of them in the first buffer, and all that is said of the
    whole. `more` completions of kind RECEIVE_MORE follow it without another one between."""
    RECEIVE_MORE = 3
    """A further buffer of the same receive."""
    SOCKET = 4
    """A socket operation: the entry is a SOCKET_COMPLETION. As an event it is a receive."""


class Status(IntEnum):
    """`status` of a completion."""

    OK = 0
    BAD_OPCODE = 1
    """The device does not know the operation, or does not have it."""
    BAD_DESCRIPTOR = 2
    """Slots, inline bytes, pieces, offsets or lengths do not fit each other or the limits."""
    NOT_PERMITTED = 3
    """The channel's operation mask forbids it."""
    KEY_INVALID = 4
    """No such key, or its generation has gone."""
    KEY_OWNER = 5
    """The key belongs to another channel."""
    KEY_RIGHTS = 6
    """The key does not allow this direction."""
    KEY_BOUNDS = 7
    """A byte of the piece lies beyond the key's end."""
    BUS_ERROR = 8
    """The host bus answered a read or a write with an error."""


class RxInfo(IntFlag):
    """`info` of a receive completion: what the parser found."""

    IPV4 = 1 << 0
    IPV6 = 1 << 1
    TCP = 1 << 2
    UDP = 1 << 3
    L3_CHECKSUM_OK = 1 << 4
    """IPv4 header checksum verified and right."""
    L4_CHECKSUM_OK = 1 << 5
    """TCP or UDP checksum verified and right (a UDP checksum of 0 over IPv4 was not there, and counts as right)."""
    CHECKSUM_BAD = 1 << 6
    """A checksum was verified and is wrong; the frame is delivered, the software decides."""
    VLAN = 1 << 7
    """The frame carries an 802.1Q tag (left in the data)."""
    FRAGMENT = 1 << 8
    """An IPv4 fragment or IPv6 fragment header: L4 not verified."""
    RAW_SUM = 1 << 9
    """No L4 checksum was verified, and the completion's `checksum` is the frame's raw sum."""
    FIXED_ID = 1 << 13
    """Of a receive of several segments: all have the IPv4 identification of the first; otherwise each has the next."""
    PSH = 1 << 14
    """Of a receive of several segments: the last had PSH, which is not set in the header that stands before them."""
    FIN = 1 << 15
    """Likewise FIN."""


class HashType(IntEnum):
    """What a frame's Toeplitz hash covers, as RSS has it. Bit n of the `types` of RSS_CONTROL allows number n; a TCP or
    UDP packet whose own type is not allowed gets that of its addresses."""

    NONE = 0
    """No hash: no IP, or no type that is allowed."""
    IPV4 = 1
    """Source and destination address."""
    TCP_IPV4 = 2
    """Addresses, source and destination port. Fragments have no ports."""
    UDP_IPV4 = 3
    IPV6 = 4
    TCP_IPV6 = 5
    UDP_IPV6 = 6


class KeyRight(IntFlag):
    """Rights of a memory key, seen from the device."""

    READ = 1 << 0
    WRITE = 1 << 1


class ChannelCommand(IntEnum):
    """Values written to `CHANNEL_CONTROL`."""

    RESET = 0
    """Stop fetching, finish the frame under way, drain, then IDLE. Clears the channel's error code, but not its bit in
    ERROR_CHANNELS. Nothing to do for an IDLE channel."""
    ENABLE = 1
    """Take the ring registers and CHANNEL_VECTOR as they stand, set all indices to 0, and run. Counts for an IDLE
    channel only, otherwise it is ignored. Rings that do not fit make it ERROR with RING_CONFIG; then nothing was
    taken."""


class ChannelState(IntEnum):
    """`state` of `CHANNEL_STATUS`."""

    IDLE = 0
    RUNNING = 1
    DRAINING = 2
    ERROR = 3


class ChannelError(IntEnum):
    """`error` of `CHANNEL_STATUS`: why a channel stopped, or would not start. Each sets its ERROR_CHANNELS bit."""

    NONE = 0
    RING_CONFIG = 1
    """A size that is no power of two in range, an unaligned base, or a completion ring smaller than both others."""
    DOORBELL_OVERRUN = 2
    """A doorbell advanced beyond the ring's size."""
    TRUNCATED_DESCRIPTOR = 3
    """The producer index ends in the middle of a descriptor, or a descriptor claims 0 or more than 16 slots."""
    FETCH_BUS_ERROR = 4
    """A ring entry could not be read."""
    COMPLETION_BUS_ERROR = 5
    """A completion could not be written."""
    RESERVED = 6
    """The channel is the control port's: where FEATURES has SOCKETS, the two highest are not the host's."""


class RxFilter(IntFlag):
    """`RX_FILTER`: which frames are let in. The own address always is."""

    PROMISCUOUS = 1 << 0
    BROADCAST = 1 << 1
    MULTICAST = 1 << 2


class PauseControl(IntFlag):
    """`PAUSE_CONTROL`: which pause frames count, as `ethtool -A` names them from this side."""

    HONOUR = 1 << 0
    """ethtool's `rx`: a received one stops transmit between frames."""
    SEND = 1 << 1
    """ethtool's `tx`: the peer is told to stop while the receive buffer is full."""


class Feature(IntFlag):
    """`FEATURES`: what this device has."""

    SEGMENTATION_IPV4 = 1 << 0
    SEGMENTATION_IPV6 = 1 << 1
    TX_CHECKSUM = 1 << 2
    RX_CHECKSUM = 1 << 3
    TIMESTAMP = 1 << 4
    PUSH = 1 << 5
    """Pushed descriptors are used; without it they are ignored and fetched from the ring."""
    RSS = 1 << 6
    COALESCE = 1 << 7
    VLAN = 1 << 8
    """SendFlag.VLAN_INSERT is obeyed; without it, it is ignored."""
    SOCKETS = 1 << 9
    """There is a control port, and socket operations go to whoever sits at it."""
    PAGE_LISTS = 1 << 10
    """Reserved: keys that cover lists of pages."""
    FLOW_RULES = 1 << 11
    PAUSE = 1 << 12
    """Pause frames (IEEE 802.3x) are honoured and sent."""
