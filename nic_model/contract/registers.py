"""The device's address map: registers (AXI4-Lite) and doorbell pages (AXI4).

Registers are 32 bits wide at byte addresses below `REGISTER_SPACE_BYTES`. A register that software writes reads back
what was last written, all 32 bits of it, unless its meaning says otherwise. Doorbell pages lie from `DOORBELL_BASE` in
the driver's view; on the AXI4 slave the page of channel c starts at c * `DOORBELL_STRIDE`.

Values wider than a register are LO/HI pairs. Ring bases count from the next ENABLE, the words of a key from
KEY_COMMIT, the halves of MAC_ADDRESS each as it is written; reading NOW_LO holds NOW_HI.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from nic_model.contract.codes import HashType
from nic_model.contract.descriptors import KEY_GENERATION_BITS, SUBMISSION_SLOT_BYTES, Field, Layout
from nic_model.contract.steering import FLOW_KEY_WORDS, MICROSOFT_RSS_KEY, RSS_INDIRECTION_ENTRIES, key_words

MAGIC = 0x434E_4D4D
"""`ID` register: "MMNC" read as ASCII, lowest byte first."""

VERSION = 0x0001_0000
"""Contract version: major in the upper half, minor in the lower."""

REGISTER_SPACE_BYTES = 0x2_0000

COUNTERS_BASE = 0x0400
VECTORS_BASE = 0x0800
VECTOR_STRIDE = 0x20
STEERING_BASE = 0x2000
STEERING_STRIDE = 0x80
INDIRECTION_BASE = 0x2200
INDIRECTION_STRIDE = 4
CHANNELS_BASE = 0x4000
CHANNEL_STRIDE = 0x80
KEYS_BASE = 0x1_0000
KEY_STRIDE = 0x20
MAX_KEYS = (REGISTER_SPACE_BYTES - KEYS_BASE) // KEY_STRIDE
"""Entries of the key table that the register space has room for."""

DOORBELL_BASE = 0x10_0000
DOORBELL_STRIDE = 0x1000

PUSH_WINDOW_BYTES = 0x400
PUSH_WINDOW_SLOTS = PUSH_WINDOW_BYTES // SUBMISSION_SLOT_BYTES
"""Submission slots that the push window has places for; the slot of ring index i has place i modulo this."""
PUSH_BLOCK_BYTES = 64
"""A pushed block, and its alignment."""


CHANNEL_STATUS = Layout("channel status", 4, {
    "state": Field(0, 8, "a ChannelState"),
    "error": Field(8, 8, "a ChannelError, kept until RESET"),
})
"""Fields of the register of that name."""

KEY_COMMIT = Layout("key commit", 4, {
    "generation": Field(0, KEY_GENERATION_BITS, "the generation that a key must name"),
    "rights": Field(12, 2, "KeyRight bits"),
    "owner": Field(16, 8, "the channel that may use it"),
    "valid": Field(31, 1, "1: the entry may be used"),
})
"""Fields of the register of that name."""


RSS_CONTROL = Layout("RSS control", 4, {
    "enable": Field(0, 1, "1: frames that have a hash are spread over channels by it"),
    "types": Field(8, 8, "bit n: HashType n may be used"),
})
"""Fields of the register of that name."""

FLOW_RULE_COMMIT = Layout("flow rule commit", 4, {
    "fingerprint": Field(0, 16, "the flow's, see `flow_fingerprint`"),
    "channel": Field(16, 8, "channel that the flow goes to, modulo CHANNELS"),
    "ipv6": Field(24, 1, "1: IPv6, 0: IPv4"),
    "udp": Field(25, 1, "1: UDP, 0: TCP"),
    "valid": Field(31, 1, "1: the rule counts from now on"),
})
"""Fields of the register of that name."""


class Access(Enum):
    """How software may use a register."""

    RO = "read only"
    RW = "read and write"
    WO = "write only, reads 0"
    RW1C = "read; writing 1 clears the bit"


class Block(Enum):
    """Which repeated block a register belongs to, and so how its address is formed."""

    GLOBAL = "global"
    STEERING = "steering"
    INDIRECTION = "indirection"
    VECTOR = "vector"
    CHANNEL = "channel"
    KEY = "key"
    DOORBELL = "doorbell"


@dataclass(frozen=True)
class Register:
    """One 32-bit register. `offset` counts from the start of its block."""

    name: str
    block: Block
    offset: int
    access: Access
    reset: int | str
    """Value after reset; a string names the `NicConfig` attribute that it shows."""
    unit: str
    meaning: str


def _block(block: Block, *rows: tuple[str, int, Access, int | str, str, str]) -> list[Register]:
    return [Register(name, block, *rest) for name, *rest in rows]  # type: ignore[arg-type]


DEFAULT_HASH_TYPES = sum(1 << t for t in (HashType.IPV4, HashType.TCP_IPV4, HashType.IPV6, HashType.TCP_IPV6))
"""As Linux drivers begin: the ports of UDP count when asked for, since fragments of one datagram have none."""

_RO, _RW, _WO, _RW1C = Access.RO, Access.RW, Access.WO, Access.RW1C

_ALL = [
    *_block(
        Block.GLOBAL,
        ("ID", 0x000, _RO, MAGIC, "", "magic number"),
        ("VERSION", 0x004, _RO, VERSION, "", "contract version, major.minor as two halves"),
        ("FEATURES", 0x008, _RO, "features", "", "Feature bits"),
        ("CLOCK_HZ", 0x00C, _RO, "clock_hz", "Hz", "frequency of `now`"),
        ("CHANNELS", 0x010, _RO, "channels", "", "channels; with SOCKETS, the two highest are not the host's"),
        ("VECTORS", 0x014, _RO, "vectors", "", "interrupt vectors for channels; the error vector has this number"),
        ("KEYS", 0x018, _RO, "keys", "", "entries of the memory key table"),
        ("MAC_BYTES", 0x01C, _RO, "mac_bytes", "bytes", "width of the MAC stream"),
        ("HOST_BYTES", 0x020, _RO, "host_bytes", "bytes", "width of the host bus"),
        ("READ_TAGS", 0x024, _RO, "payload_reads", "", "payload reads in flight"),
        ("MAX_RING_LOG2", 0x028, _RO, "max_ring_log2", "", "log2 of the largest ring, in entries"),
        ("DRAIN", 0x02C, _RW, 0, "", "write 1: start; reads 1 until every DMA that began before has its response"),
        ("NOW_LO", 0x030, _RO, 0, "cycles", "`now`, lower half; reading it holds the upper"),
        ("NOW_HI", 0x034, _RO, 0, "cycles", "`now`, upper half, as held"),
        ("MAC_ADDRESS_LO", 0x038, _RW, 0, "", "own address, first four bytes on the wire, first byte lowest;"
         " both halves are to be written while RX_ENABLE is 0"),
        ("MAC_ADDRESS_HI", 0x03C, _RW, 0, "", "own address, last two bytes"),
        ("RX_FILTER", 0x040, _RW, 0, "", "RxFilter bits"),
        ("RX_ENABLE", 0x044, _RW, 0, "", "1: frames from the MAC are taken; 0: they are dropped uncounted"),
        ("SNAPSHOT", 0x048, _RW, 0, "", "write 1: copy all counters at one instant; reads 1 until done"),
        ("ERROR_CHANNELS_LO", 0x04C, _RW1C, 0, "", "channels 31:0 that stopped, or did not start, with an error;"
         " a bit stays until it is cleared here, whatever becomes of the channel"),
        ("ERROR_CHANNELS_HI", 0x050, _RW1C, 0, "", "channels 63:32, likewise"),
        ("ERROR_MASK", 0x054, _RW, 1, "", "1: the error vector stays low"),
        ("COALESCE_TICKS", 0x0C0, _RW, 0, "cycles", "an aggregate ends so long after its first segment's first beat;"
         " 0: no coalescing, and what is open ends"),
        ("COALESCE_BYTES", 0x0C4, _RW, 0xFFFF, "bytes", "no aggregate becomes a longer IP packet; above 65,535 acts as"
         " 65,535"),
        ("DEVICE_RESET", 0x058, _RW, 0, "", "write 1: reset all channels; reads 1 until all are IDLE"),
        ("PAUSE_CONTROL", 0x0A0, _RW, 0, "", "PauseControl bits"),
        ("PAUSE_QUANTA", 0x0A4, _RW, 0xFFFF, "512 bit times", "bits 15:0: pause_time of sent pause frames, sent again"
         " when half of it is over; 0: none are sent. A bit time is what one beat a cycle of the MAC stream makes it"),
        ("PAUSE_HIGH", 0x0A8, _RW, "pause_high_bytes", "bytes", "the peer is to stop while the receive buffer holds"
         " so much, in whole host bus words,"),
        ("PAUSE_LOW", 0x0AC, _RW, "pause_low_bytes", "bytes", "and until it holds less than this"),
        ("FLOWS", 0x0B0, _RO, "flows", "", "connections in the flow table of the control port; 0: there is none"),
        ("CONTROL_ENABLE", 0x0B4, _RW, 0, "", "ControlEnable bits (Feature.SOCKETS)"),
    ),
    *_block(
        Block.STEERING,
        ("RSS_CONTROL", 0x00, _RW, RSS_CONTROL.pack_word(types=DEFAULT_HASH_TYPES), "", "see its layout"),
        ("FLOW_RULES", 0x04, _RO, "flow_rules", "", "places for flow rules; see `nic_model/contract/steering.py` for"
         " where a rule may stand. DEVICE_RESET takes all rules out; none is to be written before it reads 0"),
        ("FLOW_RULE_PLACE", 0x08, _WO, 0, "", "the place that the next words are for, modulo FLOW_RULES; its rule is"
         " taken out at once"),
        ("FLOW_RULE_COMMIT", 0x0C, _WO, 0, "", "see its layout; written last"),
        *((f"FLOW_RULE_KEY_{n}", 0x10 + 4 * n, _WO, 0, "", "source address, destination address, source port,"
           " destination port, in the bytes' order on the wire, first byte lowest; 0 behind them" if n == 0 else "")
          for n in range(FLOW_KEY_WORDS)),
        *((f"RSS_KEY_{n}", 0x40 + 4 * n, _RW, word, "", "key of the Toeplitz hash, of RSS and of the flow rules'"
           " places; first byte lowest; to be written while RX_ENABLE is 0 and there is no flow rule" if n == 0 else "")
          for n, word in enumerate(key_words(MICROSOFT_RSS_KEY))),
    ),
    *_block(
        Block.INDIRECTION,
        ("RSS_INDIRECTION", 0x00, _RW, 0, "", f"channel of hashes that are i modulo {RSS_INDIRECTION_ENTRIES}, modulo"
         " CHANNELS"),
    ),
    *_block(
        Block.VECTOR,
        ("VECTOR_MASK", 0x00, _RW, 1, "", "bit 0: the line stays low; what happens meanwhile is kept"),
        ("VECTOR_RX_TICKS", 0x04, _RW, 0, "cycles", "ethtool rx-usecs: longest wait after a receive; 0: none"),
        ("VECTOR_RX_FRAMES", 0x08, _RW, 0, "frames", "ethtool rx-frames: fire at so many; 0: time alone decides;"
         " above 65,535 acts as 65,535"),
        ("VECTOR_TX_TICKS", 0x0C, _RW, 0, "cycles", "ethtool tx-usecs, as for receives"),
        ("VECTOR_TX_FRAMES", 0x10, _RW, 0, "frames", "ethtool tx-frames, as for receives"),
        ("VECTOR_FIRED", 0x14, _RO, 0, "", "times the line rose, or would have risen had it not been masked"),
        ("VECTOR_RX_EVENTS", 0x18, _RO, 0, "", "receive completions of its channels, armed or not"),
        ("VECTOR_TX_EVENTS", 0x1C, _RO, 0, "", "send completions of its channels, armed or not"),
    ),
    *_block(
        Block.CHANNEL,
        ("CHANNEL_CONTROL", 0x00, _WO, 0, "", "a ChannelCommand; another value does nothing"),
        ("CHANNEL_STATUS", 0x04, _RO, 0, "", "see its layout"),
        ("CHANNEL_OPERATIONS", 0x08, _RW, 0, "", "OperationMask bits; looked at for each descriptor"
         " and each received frame"),
        ("CHANNEL_VECTOR", 0x0C, _RW, 0, "", "interrupt vector of the completion ring, modulo VECTORS; taken"
         " by ENABLE"),
        ("TX_BASE_LO", 0x10, _RW, 0, "", "submission ring, bus address, 4 KB-aligned; ring registers are taken by"
         " ENABLE, and are to be written while the channel is IDLE only"),
        ("TX_BASE_HI", 0x14, _RW, 0, "", ""),
        ("TX_LOG2", 0x18, _RW, 0, "", "log2 of its entries (32-byte slots); 4 to MAX_RING_LOG2"),
        ("RX_BASE_LO", 0x20, _RW, 0, "", "receive ring, bus address, 4 KB-aligned"),
        ("RX_BASE_HI", 0x24, _RW, 0, "", ""),
        ("RX_LOG2", 0x28, _RW, 0, "", "log2 of its entries (16-byte slots); 4 to MAX_RING_LOG2"),
        ("CQ_BASE_LO", 0x30, _RW, 0, "", "completion ring, bus address, 4 KB-aligned"),
        ("CQ_BASE_HI", 0x34, _RW, 0, "", ""),
        ("CQ_LOG2", 0x38, _RW, 0, "", "log2 of its entries (32 bytes); at least both other rings together"),
        ("TX_INDEX", 0x40, _RO, 0, "", "submission slots fetched and parsed, free-running, 16 bits"),
        ("RX_INDEX", 0x44, _RO, 0, "", "receive slots used, free-running, 16 bits"),
        ("CQ_INDEX", 0x48, _RO, 0, "", "completions written and answered by the bus, free-running, 16 bits"),
        ("TX_WEIGHT", 0x60, _RW, 0, "bytes", "share of the wire: bytes of frames in a round of deficit round robin;"
         " 1,024 to 65,535, what lies outside acts as the nearest of them. 0 in all channels: one frame each in turn;"
         " a 0 beside others acts as 1,536"),
        ("TX_BYTE_TIME", 0x64, _RW, 0, "cycles / 65,536", "rate limit: time that each byte of a frame (without FCS)"
         " takes; 0: none. What waits for it holds up a DRAIN. A write forgets what was sent before"),
        ("TX_BURST", 0x68, _RW, 0, "cycles", "how much of the time that the rate limit leaves unused is kept; a channel"
         " may exceed it by less than a frame"),
    ),
    *_block(
        Block.KEY,
        ("KEY_ADDRESS_LO", 0x00, _WO, 0, "", "bus address of the memory's first byte"),
        ("KEY_ADDRESS_HI", 0x04, _WO, 0, "", ""),
        ("KEY_LENGTH_LO", 0x08, _WO, 0, "bytes", "length, lower 32 bits"),
        ("KEY_LENGTH_HI", 0x0C, _WO, 0, "bytes", "length, bits 39:32"),
        ("KEY_COMMIT", 0x10, _WO, 0, "", "see its layout; the write stores the whole entry"),
    ),
    *_block(
        Block.DOORBELL,
        ("TX_DOORBELL", 0x00, _WO, 0, "slots", "submission producer index, free-running modulo 2^16"),
        ("RX_DOORBELL", 0x04, _WO, 0, "slots", "receive producer index, free-running modulo 2^16"),
        ("CQ_ARM", 0x08, _WO, 0, "entries", "bits 15:0 completions consumed, modulo 2^16: arms the ring"),
        ("PUSH", 0x400, _WO, 0, "", "1 KB window of 64-byte blocks for pushed descriptors (Feature.PUSH): the slot of"
         " ring index i at 0x400 + (i mod 32) * 32, a block's other slot zeros, whole blocks in order, after the slots"
         " were written to the ring. A descriptor all of whose blocks came is taken as if its doorbell had been rung,"
         " if it is the next and the device has nothing else of this ring to do; otherwise nothing happens. TX_DOORBELL"
         " follows always, and ends what is unfinished"),
    ),
]

REGISTERS: dict[str, Register] = {r.name: r for r in _ALL}
assert len(REGISTERS) == len(_ALL), "two registers share a name"

_BASE = {
    Block.GLOBAL: (0, 0),
    Block.STEERING: (STEERING_BASE, STEERING_STRIDE),
    Block.INDIRECTION: (INDIRECTION_BASE, INDIRECTION_STRIDE),
    Block.VECTOR: (VECTORS_BASE, VECTOR_STRIDE),
    Block.CHANNEL: (CHANNELS_BASE, CHANNEL_STRIDE),
    Block.KEY: (KEYS_BASE, KEY_STRIDE),
    Block.DOORBELL: (DOORBELL_BASE, DOORBELL_STRIDE),
}


def _address(name: str, block: Block, index: int) -> int:
    found = REGISTERS.get(name)
    if found is None or found.block is not block:
        raise ValueError(f"no {block.value} register {name!r}")
    base, stride = _BASE[block]
    return base + stride * index + found.offset


def register(name: str) -> int:
    """Address of a global register, in the driver's view. Raises ValueError for an unknown name."""
    return _address(name, Block.GLOBAL, 0)


def vector_register(name: str, vector: int) -> int:
    """Address of a register of interrupt vector `vector`."""
    return _address(name, Block.VECTOR, vector)


def steering_register(name: str) -> int:
    """Address of a register of hash and flow rules."""
    return _address(name, Block.STEERING, 0)


def indirection_register(entry: int) -> int:
    """Address of an entry of the RSS indirection table."""
    return _address("RSS_INDIRECTION", Block.INDIRECTION, entry)


def channel_register(name: str, channel: int) -> int:
    """Address of a register of channel `channel`."""
    return _address(name, Block.CHANNEL, channel)


def key_register(name: str, index: int) -> int:
    """Address of a word of key table entry `index`."""
    return _address(name, Block.KEY, index)


def doorbell(name: str, channel: int) -> int:
    """Address of a doorbell on channel `channel`'s page, in the driver's view."""
    return _address(name, Block.DOORBELL, channel)
