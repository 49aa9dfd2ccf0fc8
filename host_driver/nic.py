"""The device as the system's driver sees it: asked for what it has, never assumed.

Control path only: probe, channels, memory keys, address and filter, moderation, counters. What moves frames is
`channel`.
"""

from __future__ import annotations

from dataclasses import dataclass

from host_driver.account import Account
from host_driver.channel import PUSHED_INLINE_BYTES, Channel
from host_driver.port import Port
from nic_model.contract import (
    CHANNEL_STATUS,
    COUNTERS,
    COUNTERS_BASE,
    KEY_COMMIT,
    KEY_GENERATION_BITS,
    MAGIC,
    VERSION,
    ChannelCommand,
    ChannelError,
    ChannelState,
    Feature,
    KeyRight,
    OperationMask,
    RxFilter,
    channel_register,
    key_register,
    make_key,
    register,
    vector_register,
)

PS_PER_S = 10**12
US_PER_S = 10**6

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
        nic = cls(port, Capabilities(
            features=Feature(sizes["FEATURES"]), clock_hz=sizes["CLOCK_HZ"], channels=sizes["CHANNELS"],
            vectors=sizes["VECTORS"], keys=sizes["KEYS"], max_ring_log2=sizes["MAX_RING_LOG2"]))
        await nic._write_and_wait(register("DEVICE_RESET"))
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

    def _ticks(self, usecs: float) -> int:
        return round(usecs * self.capabilities.clock_hz / US_PER_S)

    def mask(self, vector: int, masked: bool) -> None:
        """Hold a vector's line low, or let it show."""
        self.port.write32(vector_register("VECTOR_MASK", vector), int(masked))

    # ------------------------------------------------------------------------------------------ figures

    async def read_counters(self) -> dict[str, int]:
        """All counters of the device, at one instant."""
        await self._write_and_wait(register("SNAPSHOT"))
        counters = {}
        for number, counter in enumerate(COUNTERS):
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
