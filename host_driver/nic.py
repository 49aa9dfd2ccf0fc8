"""The device as the system's driver sees it: asked for what it has, never assumed.

Control path only: probe, channels, memory keys, address and filter, steering, moderation, counters. What moves frames
is `channel`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from host_driver.account import Account
from host_driver.channel import PUSHED_INLINE_BYTES, Channel
from host_driver.flow_rules import FlowRule, FlowRuleError, choose_place
from host_driver.port import Port
from nic_model.contract import (
    CHANNEL_STATUS,
    COUNTERS_BASE,
    DEFAULT_HASH_TYPES,
    KEY_COMMIT,
    KEY_GENERATION_BITS,
    MAGIC,
    MAX_COALESCED_BYTES,
    MAX_FRAME_BYTES,
    MAX_TX_WEIGHT,
    MICROSOFT_RSS_KEY,
    MIN_TX_WEIGHT,
    RSS_CONTROL,
    RSS_INDIRECTION_ENTRIES,
    RSS_KEY_BYTES,
    TX_BYTE_TIME_FRACTION_BITS,
    VERSION,
    ChannelCommand,
    ChannelError,
    ChannelState,
    Feature,
    HashType,
    KeyRight,
    OperationMask,
    PauseControl,
    RxFilter,
    channel_register,
    indirection_register,
    key_register,
    key_words,
    make_key,
    register,
    steering_register,
    vector_register,
)
from nic_model.contract.config import counters_of

PS_PER_S = 10**12
US_PER_S = 10**6

MIN_BYTE_TIME = 50
"""Of TX_BYTE_TIME: where rounding it makes 1 % of difference."""

RESET_POLL_PS = 1_000_000
"""Wait between two looks at a reset or a drain: 1 us."""


class DeviceError(RuntimeError):
    """The device is not what it should be, or refused what it was told; the text says which register said so."""


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a device said of itself."""

    features: Feature
    clock_hz: int
    channels: int
    vectors: int
    keys: int
    max_ring_log2: int
    flow_rules: int


@dataclass(frozen=True, slots=True)
class MemoryKey:
    """Memory that the device may use: `value` is what a descriptor names."""

    value: int
    index: int
    address: int
    length_bytes: int
    rights: KeyRight
    owner: int


class Nic:
    """A probed device; made by `Nic.probe`. Attributes: `port`, `capabilities`."""

    def __init__(self, port: Port, capabilities: Capabilities) -> None:
        self.port = port
        self.capabilities = capabilities
        self._generations = [0] * capabilities.keys
        self._free_keys = list(range(capabilities.keys - 1, -1, -1))
        self._channels: dict[int, Channel] = {}
        self._rss_key: bytes | None = None
        """None: whatever a driver before this one left."""
        self._flow_rules: dict[int, FlowRule] = {}

    @classmethod
    async def probe(cls, port: Port) -> Nic:
        """Read what the device is, and reset it. Raises DeviceError if it is no such device, or too new a one."""
        magic = await port.read32(register("ID"))
        if magic != MAGIC:
            raise DeviceError(f"ID reads {magic:#010x}, not {MAGIC:#010x}: no memnic device there")
        version = await port.read32(register("VERSION"))
        if version >> 16 != VERSION >> 16:
            raise DeviceError(f"the device speaks contract version {version >> 16}, this driver {VERSION >> 16}")
        sizes = {name: await port.read32(register(name))
                 for name in ("FEATURES", "CLOCK_HZ", "CHANNELS", "VECTORS", "KEYS", "MAX_RING_LOG2")}
        flow_rules = await port.read32(steering_register("FLOW_RULES"))  # a device without them reads 0
        nic = cls(port, Capabilities(
            features=Feature(sizes["FEATURES"]), clock_hz=sizes["CLOCK_HZ"], channels=sizes["CHANNELS"],
            vectors=sizes["VECTORS"], keys=sizes["KEYS"], max_ring_log2=sizes["MAX_RING_LOG2"],
            flow_rules=flow_rules))
        await nic._write_and_wait(register("DEVICE_RESET"))
        # A reset takes the flow rules out, and leaves this as the last driver wrote it.
        port.write32(steering_register("RSS_CONTROL"), RSS_CONTROL.pack_word(types=DEFAULT_HASH_TYPES))
        return nic

    async def _write_and_wait(self, address: int) -> None:
        """Start what a register starts by writing 1, and wait until it reads 0."""
        self.port.write32(address, 1)
        while await self.port.read32(address):
            await self.port.sleep(RESET_POLL_PS)

    # ------------------------------------------------------------------------------------------ channels

    async def open_channel(self, number: int, *, operations: OperationMask, vector: int, tx_log2: int = 8,
                           rx_log2: int = 8, push_bytes: int = PUSHED_INLINE_BYTES) -> Channel:
        """Make the rings of a channel and enable it.

        `tx_log2` counts submission slots, `rx_log2` buffers; for `push_bytes` see `Channel`. Raises ValueError for a
        channel, vector or size that the device does not have, or a channel that is open; DeviceError if the device
        refuses.
        """
        limits = self.capabilities
        if not 0 <= number < limits.channels or number in self._channels:
            raise ValueError(f"channel {number} is open already, or not one of the device's {limits.channels}")
        if not 0 <= vector < limits.vectors:
            raise ValueError(f"vector {vector} is not one of the device's {limits.vectors}")
        if max(tx_log2, rx_log2) > limits.max_ring_log2:
            raise ValueError(f"rings of 2^{tx_log2} and 2^{rx_log2} entries: the device has 2^{limits.max_ring_log2} "
                             "at most")
        channel = Channel(self.port, number, vector, tx_log2=tx_log2, rx_log2=rx_log2,
                          push_bytes=push_bytes if Feature.PUSH in limits.features else 0)
        self._write_channel(number, "CHANNEL_OPERATIONS", operations)
        self._write_channel(number, "CHANNEL_VECTOR", vector)
        for name, ring in (("TX", channel.submissions), ("RX", channel.buffers), ("CQ", channel.completed)):
            self._write_channel(number, f"{name}_BASE_LO", ring.address & 0xFFFF_FFFF)
            self._write_channel(number, f"{name}_BASE_HI", ring.address >> 32)
            self._write_channel(number, f"{name}_LOG2", ring.log2)
        # The device must not take the zeros that stand for "no completion yet" from before they were written.
        self.port.wmb()
        self._write_channel(number, "CHANNEL_CONTROL", ChannelCommand.ENABLE)
        state, error = await self.channel_status(number)
        if state is not ChannelState.RUNNING:
            self._write_channel(number, "CHANNEL_CONTROL", ChannelCommand.RESET)
            channel.release()
            raise DeviceError(f"channel {number} does not run: {state.name}, {error.name}")
        self._channels[number] = channel
        return channel

    async def close_channel(self, channel: Channel) -> list[object]:
        """Reset a channel, wait until the device writes nothing more, and free its rings.

        Returns the handles of the sends and buffers that never came back.
        """
        self._write_channel(channel.number, "CHANNEL_CONTROL", ChannelCommand.RESET)
        while (await self.channel_status(channel.number))[0] is not ChannelState.IDLE:
            await self.port.sleep(RESET_POLL_PS)
        del self._channels[channel.number]
        return channel.release()

    async def channel_status(self, number: int) -> tuple[ChannelState, ChannelError]:
        """What the device says of a channel."""
        status = CHANNEL_STATUS.unpack_word(await self.port.read32(channel_register("CHANNEL_STATUS", number)))
        return ChannelState(status["state"]), ChannelError(status["error"])

    async def take_channel_errors(self) -> dict[int, ChannelError]:
        """Channels that stopped with an error since the last call, and why; the error vector falls."""
        stopped = {}
        for half, name in enumerate(("ERROR_CHANNELS_LO", "ERROR_CHANNELS_HI")):
            bits = await self.port.read32(register(name))
            if bits:
                self.port.write32(register(name), bits)
            for bit in range(32):
                if bits >> bit & 1:
                    number = 32 * half + bit
                    stopped[number] = (await self.channel_status(number))[1]
        return stopped

    def _write_channel(self, number: int, name: str, value: int) -> None:
        self.port.write32(channel_register(name, number), value)

    # ------------------------------------------------------------------------------------------ memory keys

    @property
    def keys_in_use(self) -> int:
        """Entries of the device's table that somebody has."""
        return self.capabilities.keys - len(self._free_keys)

    def register_memory(self, address: int, length_bytes: int, rights: KeyRight, owner: int,
                        account: Account) -> MemoryKey:
        """Let the device use [address, address + length_bytes) for channel `owner`.

        Raises ValueError for a range outside host memory, MemoryError when all keys are taken.
        """
        self.port.memory.view(address, length_bytes)
        if not self._free_keys:
            raise MemoryError(f"all {self.capabilities.keys} memory keys of the device are taken")
        index = self._free_keys.pop()
        generation = self._generations[index]
        account.charge("driver", "register_memory")
        for name, value in (
            ("KEY_ADDRESS_LO", address & 0xFFFF_FFFF),
            ("KEY_ADDRESS_HI", address >> 32),
            ("KEY_LENGTH_LO", length_bytes & 0xFFFF_FFFF),
            ("KEY_LENGTH_HI", length_bytes >> 32),
            ("KEY_COMMIT", KEY_COMMIT.pack_word(generation=generation, rights=rights, owner=owner, valid=1)),
        ):
            self.port.write32(key_register(name, index), value)
        return MemoryKey(make_key(index, generation), index, address, length_bytes, rights, owner)

    async def deregister_memory(self, key: MemoryKey) -> None:
        """Take memory back. On return no access that the key allowed is under way, and its value is stale."""
        self.port.write32(key_register("KEY_COMMIT", key.index), 0)
        await self._write_and_wait(register("DRAIN"))
        # The next holder of this entry gets another generation, so that a descriptor with the old key is refused.
        self._generations[key.index] = (self._generations[key.index] + 1) % (1 << KEY_GENERATION_BITS)
        self._free_keys.insert(0, key.index)

    # ------------------------------------------------------------------------------------------ receiving

    def set_mac_address(self, address: bytes) -> None:
        """The device's own address: 6 bytes. Raises ValueError for another length."""
        if len(address) != 6:
            raise ValueError(f"a MAC address has 6 bytes, not {len(address)}")
        self.port.write32(register("MAC_ADDRESS_LO"), int.from_bytes(address[:4], "little"))
        self.port.write32(register("MAC_ADDRESS_HI"), int.from_bytes(address[4:], "little"))

    def set_filter(self, rx_filter: RxFilter) -> None:
        """Which frames are let in beside those for the own address."""
        self.port.write32(register("RX_FILTER"), rx_filter)

    def enable_receive(self, enabled: bool) -> None:
        """Take frames from the MAC, or drop them uncounted."""
        self.port.write32(register("RX_ENABLE"), int(enabled))

    # ------------------------------------------------------------------------------------------ steering

    def set_rss(self, *, enabled: bool = True, key: bytes | None = None, indirection: Sequence[int] | None = None,
                types: Iterable[HashType] | None = None) -> None:
        """Spread received frames over channels by their Toeplitz hash, as `ethtool -X` and `-N rx-flow-hash` do.

        `key` is 40 bytes; without it the key stays, at first Microsoft's. `indirection` has the channel of each of 128
        parts of the hash's range, or a number of them that divides 128 and is repeated; without it the table stays, at
        first all 0. `types` are what may be hashed; None: addresses and, of TCP, ports. Frames without a hash go to
        channel 0, and those that a flow rule matches do not care.

        A new key moves the flow rules too. To be called while receiving is off, if the key or a table in use changes:
        a frame that arrives meanwhile meets parts of both. Raises ValueError for what the device cannot do,
        FlowRuleError if the rules find no place under the new key, and DeviceError without the feature; then nothing
        has changed.
        """
        self._require(Feature.RSS)
        entries: list[int] = []
        if indirection is not None:
            entries = list(indirection)
            if not entries or RSS_INDIRECTION_ENTRIES % len(entries):
                raise ValueError("indirection must have a number of entries that divides "
                                 f"{RSS_INDIRECTION_ENTRIES}, not {len(entries)}")
            for channel in entries:
                self._check_channel(channel)
            entries *= RSS_INDIRECTION_ENTRIES // len(entries)
        if key is not None:
            self._set_rss_key(key)
        elif enabled:
            self._sure_key()
        for number, channel in enumerate(entries):
            self.port.write32(indirection_register(number), channel)
        allowed = DEFAULT_HASH_TYPES if types is None else sum(1 << hash_type for hash_type in set(types))
        self.port.write32(steering_register("RSS_CONTROL"), RSS_CONTROL.pack_word(enable=int(enabled), types=allowed))

    def _set_rss_key(self, key: bytes) -> None:
        if len(key) != RSS_KEY_BYTES:
            raise ValueError(f"an RSS key has {RSS_KEY_BYTES} bytes, not {len(key)}")
        rules: dict[int, FlowRule] = {}
        for rule in self._flow_rules.values():
            rules[choose_place(rule, rules, key=key, size=self.capabilities.flow_rules)] = rule
        for place in self._flow_rules:
            self.port.write32(steering_register("FLOW_RULE_PLACE"), place)
        self._write_rss_key(key)
        self._flow_rules = rules
        for place in rules:
            self._write_flow_rule(place)

    def _write_rss_key(self, key: bytes) -> None:
        for number, word in enumerate(key_words(key)):
            self.port.write32(steering_register(f"RSS_KEY_{number}"), word)
        self._rss_key = key

    def _sure_key(self) -> bytes:
        """The key that the device has."""
        if self._rss_key is None:
            self._write_rss_key(MICROSOFT_RSS_KEY)
        return self._rss_key or MICROSOFT_RSS_KEY

    def add_flow_rule(self, rule: FlowRule) -> None:
        """Let the device give frames of a flow to the rule's channel, whatever RSS says; as `ethtool -N` does.

        Counts from the next frame on. Raises FlowRuleError for a flow that has a rule, and where the device has no
        place for it; ValueError for a channel that the device does not have; DeviceError without the feature.
        """
        self._require(Feature.FLOW_RULES)
        self._check_channel(rule.channel)
        if any(rule.identity == other.identity for other in self._flow_rules.values()):
            raise FlowRuleError(f"there is a rule for this flow already: {rule}")
        try:
            place = choose_place(rule, self._flow_rules, key=self._sure_key(), size=self.capabilities.flow_rules)
        except FlowRuleError as error:
            raise FlowRuleError(f"the device has no place for {rule}: {error}; it has {len(self._flow_rules)} rules in "
                                f"{self.capabilities.flow_rules} places") from None
        self._flow_rules[place] = rule
        self._write_flow_rule(place)

    def remove_flow_rule(self, rule: FlowRule) -> None:
        """Take a rule out. Raises FlowRuleError if it is not there."""
        for place, other in self._flow_rules.items():
            if other == rule:
                self.port.write32(steering_register("FLOW_RULE_PLACE"), place)
                del self._flow_rules[place]
                return
        raise FlowRuleError(f"there is no such rule: {rule}")

    @property
    def flow_rules(self) -> list[FlowRule]:
        """The rules that the device has."""
        return list(self._flow_rules.values())

    def _write_flow_rule(self, place: int) -> None:
        rule = self._flow_rules[place]
        self.port.write32(steering_register("FLOW_RULE_PLACE"), place)
        for number, word in enumerate(rule.key_words()):
            self.port.write32(steering_register(f"FLOW_RULE_KEY_{number}"), word)
        self.port.write32(steering_register("FLOW_RULE_COMMIT"), rule.commit_word(self._sure_key()))

    def _require(self, feature: Feature) -> None:
        if feature not in self.capabilities.features:
            raise DeviceError(f"the device has no {feature.name}")

    def _check_channel(self, channel: int) -> None:
        if not 0 <= channel < self.capabilities.channels:
            raise ValueError(f"channel {channel} is not one of the device's {self.capabilities.channels}")

    # ------------------------------------------------------------------------------------------ flow control

    def set_pause(self, *, rx: bool, tx: bool, quanta: int = 0xFFFF, high_bytes: int | None = None,
                  low_bytes: int | None = None) -> None:
        """Flow control by pause frames (IEEE 802.3x), named as `ethtool -A` does.

        `rx`: the peer's pause frames stop transmit. `tx`: the peer is told to stop for `quanta` times 512 bits while
        the device's receive buffer holds `high_bytes` or more, and to go on when it holds less than `low_bytes`; None
        leaves a mark as it is. Raises DeviceError if the device has no pause frames, ValueError for a time or marks
        that cannot be.
        """
        if Feature.PAUSE not in self.capabilities.features:
            raise DeviceError("FEATURES has no PAUSE: the device neither honours nor sends pause frames")
        if not 0 < quanta <= 0xFFFF:
            raise ValueError(f"a pause is 1 to 65,535 quanta, not {quanta}")
        marks = {"PAUSE_HIGH": high_bytes, "PAUSE_LOW": low_bytes}
        for name, mark in marks.items():
            if mark is not None and not 0 < mark < 1 << 32:
                raise ValueError(f"{name} is a positive 32-bit number of bytes, not {mark}")
        if high_bytes is not None and low_bytes is not None and low_bytes > high_bytes:
            raise ValueError(f"the peer goes on below {low_bytes} bytes, more than the {high_bytes} at which it stops")
        control = PauseControl.HONOUR * rx | PauseControl.SEND * tx
        for name, value in (("PAUSE_QUANTA", quanta), *marks.items(), ("PAUSE_CONTROL", control)):
            if value is not None:
                self.port.write32(register(name), value)

    # ------------------------------------------------------------------------------------------ interrupts

    def set_moderation(self, vector: int, *, rx_usecs: float, rx_frames: int, tx_usecs: float, tx_frames: int) -> None:
        """How long, and for how many completions, the vector's interrupt may wait; named as ethtool does."""
        for name, value in (
            ("VECTOR_RX_TICKS", self._ticks(rx_usecs)),
            ("VECTOR_RX_FRAMES", rx_frames),
            ("VECTOR_TX_TICKS", self._ticks(tx_usecs)),
            ("VECTOR_TX_FRAMES", tx_frames),
        ):
            self.port.write32(vector_register(name, vector), value)

    def set_rx_moderation(self, vector: int, *, usecs: float, frames: int) -> None:
        """The receive half of `set_moderation`; the other stays as it is."""
        self.port.write32(vector_register("VECTOR_RX_TICKS", vector), self._ticks(usecs))
        self.port.write32(vector_register("VECTOR_RX_FRAMES", vector), frames)

    def set_tx_moderation(self, vector: int, *, usecs: float, frames: int) -> None:
        """The send half of `set_moderation`."""
        self.port.write32(vector_register("VECTOR_TX_TICKS", vector), self._ticks(usecs))
        self.port.write32(vector_register("VECTOR_TX_FRAMES", vector), frames)
    def set_coalescing(self, usecs: float, max_bytes: int = MAX_COALESCED_BYTES) -> None:
        """Let the device merge TCP segments of channels that may (`OperationMask.COALESCE`): each aggregate is told at
        the latest so long after its first segment, and is no longer IP packet than `max_bytes`. 0 usecs: no
        merging. Raises DeviceError if the device cannot."""
        if usecs and not self.capabilities.features & Feature.COALESCE:
            raise DeviceError("the device does not have COALESCE")
        self.port.write32(register("COALESCE_BYTES"), max_bytes)
        self.port.write32(register("COALESCE_TICKS"), max(1, self._ticks(usecs)) if usecs else 0)

    def _ticks(self, usecs: float) -> int:
        return round(usecs * self.capabilities.clock_hz / US_PER_S)

    # ------------------------------------------------------------------------------------------ shares of the wire

    def set_tx_weight(self, channel: int, weight_bytes: int) -> None:
        """Let a channel send so many bytes in each round of deficit round robin; 0 for all channels: frames in turn.

        Raises ValueError for a channel that the device does not have, or a weight that is neither 0 nor one that it
        keeps.
        """
        self._check_channel(channel)
        if weight_bytes != 0 and not MIN_TX_WEIGHT <= weight_bytes <= MAX_TX_WEIGHT:
            raise ValueError(f"a weight is 0, or {MIN_TX_WEIGHT} to {MAX_TX_WEIGHT} bytes, not {weight_bytes}")
        self._write_channel(channel, "TX_WEIGHT", weight_bytes)

    def set_tx_rate(self, channel: int, bits_per_second: float, burst_bytes: int = 2 * MAX_FRAME_BYTES) -> None:
        """Limit what a channel sends (bytes of frames, without FCS): to a rate, and after a pause to a burst of so many
        bytes and less than a frame more; 0 bits a second: no limit.

        The burst also makes up for waiting: with less than a frame or two the rate is not reached. The rate is kept
        within 1 % from 20 kbit/s on the `default` device to 64 bytes a cycle. Raises ValueError for a channel that the
        device does not have, and for a rate or a burst beyond its registers.
        """
        self._check_channel(channel)
        if not bits_per_second >= 0 or burst_bytes < 0:
            raise ValueError(
                f"rate and burst must not be negative, not {bits_per_second} bit/s and {burst_bytes} bytes")
        byte_time = burst = 0
        if bits_per_second:
            cycles = 8 * self.capabilities.clock_hz / bits_per_second
            byte_time, burst = round(cycles * (1 << TX_BYTE_TIME_FRACTION_BITS)), round(cycles * burst_bytes)
            if not MIN_BYTE_TIME <= byte_time < 1 << 32:
                least, most = (8 * self.capabilities.clock_hz * (1 << TX_BYTE_TIME_FRACTION_BITS) / limit
                               for limit in ((1 << 32) - 1, MIN_BYTE_TIME))
                raise ValueError(
                    f"a rate is 0, or {least:.0f} to {most:.0f} bit/s for this device, not {bits_per_second}")
            if burst >= 1 << 32:
                raise ValueError(f"a burst of {burst_bytes} bytes at {bits_per_second} bit/s takes {burst} cycles, and"
                                 f" the device counts to {(1 << 32) - 1}")
        self._write_channel(channel, "TX_BURST", burst)
        self._write_channel(channel, "TX_BYTE_TIME", byte_time)

    def mask(self, vector: int, masked: bool) -> None:
        """Hold a vector's line low, or let it show."""
        self.port.write32(vector_register("VECTOR_MASK", vector), int(masked))

    # ------------------------------------------------------------------------------------------ figures

    async def read_counters(self) -> dict[str, int]:
        """All counters of the device, those of its control port too, at one instant."""
        await self._write_and_wait(register("SNAPSHOT"))
        counters = {}
        for number, counter in enumerate(counters_of(self.capabilities.features)):
            low = await self.port.read32(COUNTERS_BASE + 8 * number)
            high = await self.port.read32(COUNTERS_BASE + 8 * number + 4)
            counters[counter.name] = low | high << 32
        return counters

    async def read_now_ps(self) -> int:
        """The device's clock, in picoseconds since its reset."""
        low = await self.port.read32(register("NOW_LO"))
        high = await self.port.read32(register("NOW_HI"))
        return self.cycles_to_ps(low | high << 32)

    def cycles_to_ps(self, cycles: int) -> int:
        """A count of the device's clock, such as a timestamp, in picoseconds."""
        return cycles * PS_PER_S // self.capabilities.clock_hz
