"""The port over the device model: back-pressure of the MAC, deadlines in picoseconds, latency of reads."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cosim.engines.model import DEFAULT_READ_LATENCY_PS, ModelPort
from cosim.mac import MacTiming, SentFrame
from cosim.memory import HostMemory
from host_driver.account import NullAccount
from host_driver.channel import Channel
from host_driver.nic import Nic
from host_driver.rings import Descriptor, Piece
from host_driver.runtime import Future, Kernel
from nic_model.contract import (
    CONFIGS,
    MAX_FRAME_BYTES,
    KeyRight,
    Opcode,
    OperationMask,
    doorbell,
    register,
)

US = 10**6
"""Picoseconds."""

NOBODY = NullAccount()
CONFIG = CONFIGS["tiny"]
OWN = bytes.fromhex("020000000001")


class SlowMac:
    """A MAC whose link takes a microsecond a byte, and whose FIFO has room for three short frames at most."""

    def __init__(self) -> None:
        self.timing = MacTiming(bit_rate=8_000_000, fifo_bytes=MAX_FRAME_BYTES + 2 * 60)
        self.frames: list[SentFrame] = []
        self.deliver = lambda frame, bad, time: None

    def transmitted(self, frames: Sequence[SentFrame]) -> None:
        self.frames += frames


class Setup:
    """A port with channel 0 open on vector 0, and a receive buffer posted."""

    def __init__(self) -> None:
        self.kernel = Kernel()
        self.mac = SlowMac()
        self.port = ModelPort(CONFIG, self.kernel, HostMemory(1 << 20), self.mac)
        task = self.kernel.spawn(self._open(), "open")
        self.kernel.run_until(10**9)
        self.nic, self.channel = task.result()

    async def _open(self) -> tuple[Nic, Channel]:
        nic = await Nic.probe(self.port)
        channel = await nic.open_channel(0, operations=OperationMask.SEND_FRAME | OperationMask.RECEIVE_RAW, vector=0)
        memory = self.port.memory.allocate(2048)
        key = nic.register_memory(memory, 2048, KeyRight.WRITE, 0, NOBODY)
        channel.post(Piece(key.value, 0, 2048), 0, "buffer")
        channel.ring_doorbell(NOBODY)
        nic.set_mac_address(OWN)
        nic.enable_receive(True)
        return nic, channel


def test_frames_wait_in_order_for_room() -> None:
    setup = Setup()
    frames = [bytes([n]) * 60 for n in range(10)]
    for frame in frames:
        setup.channel.submit(Descriptor(Opcode.SEND_FRAME, frame), None)
    start = setup.kernel.now
    setup.channel.ring_doorbell(NOBODY)
    assert [frame.data for frame in setup.mac.frames] == frames[:3]
    setup.kernel.run_until(start + 10**10)
    assert [frame.data for frame in setup.mac.frames] == frames
    each = (60 + 24) * US
    assert [frame.free_ps for frame in setup.mac.frames] == [start + each * (n + 1) for n in range(10)]
    assert [frame.end_ps for frame in setup.mac.frames] == [start + each * (n + 1) - 12 * US for n in range(10)]
    # The first three find room at once, each other when one has left.
    assert [frame.taken_ps for frame in setup.mac.frames] == [start] * 3 + [start + each * n for n in range(1, 8)]


@pytest.mark.parametrize("usecs", [1, 60])
def test_moderated_interrupt_comes_at_its_cycle(usecs: int) -> None:
    setup = Setup()
    setup.nic.set_moderation(0, rx_usecs=usecs, rx_frames=0, tx_usecs=0, tx_frames=0)
    setup.nic.mask(0, False)
    setup.channel.arm(NOBODY)
    came: list[int] = []
    waiting: Future[None] = setup.port.interrupt(0)
    waiting.add_callback(lambda _future: came.append(setup.kernel.now))
    start = 2 * 10**9 + 1
    setup.kernel.run_until(start)
    setup.mac.deliver(OWN + bytes(60), False, start)
    setup.kernel.run_until(start + 10**9)
    start_cycle = start * CONFIG.clock_hz // 10**12
    due_cycle = start_cycle + round(usecs * CONFIG.clock_hz / 10**6)
    assert came == [-(-due_cycle * 10**12 // CONFIG.clock_hz)]
    assert setup.port.interrupt(0).done, "a line that is high is told at once"
    assert setup.port.interrupts == 1


def test_reads_take_their_latency_and_blocks_are_checked() -> None:
    setup = Setup()
    before = setup.kernel.now
    future = setup.port.read32(register("CLOCK_HZ"))
    setup.kernel.run_until(before + DEFAULT_READ_LATENCY_PS - 1)
    assert not future.done
    setup.kernel.run_until(before + DEFAULT_READ_LATENCY_PS)
    assert future.result() == CONFIG.clock_hz
    push = doorbell("PUSH", 0)
    setup.port.write_block(push, bytes(64))  # zeros are no descriptor
    assert setup.mac.frames == []
    for address, length in ((push, 60), (push + 4, 64), (register("DRAIN"), 64)):
        with pytest.raises(ValueError, match="64 aligned bytes"):
            setup.port.write_block(address, bytes(length))


def test_bus_traffic_is_counted() -> None:
    setup = Setup()
    reads, writes = setup.port.dma_read_bytes, setup.port.dma_write_bytes
    setup.channel.submit(Descriptor(Opcode.SEND_FRAME, bytes(60)), None)
    setup.channel.ring_doorbell(NOBODY)
    assert (setup.port.dma_read_bytes - reads, setup.port.dma_write_bytes - writes) == (96, 32)
    setup.mac.deliver(OWN + bytes(94), False, setup.kernel.now)
    setup.kernel.run_until(setup.kernel.now)
    assert (setup.port.dma_read_bytes - reads, setup.port.dma_write_bytes - writes) == (112, 164)
