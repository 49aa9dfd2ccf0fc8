"""The port over the device model: back-pressure of the MAC, deadlines in picoseconds, latency of reads."""

from __future__ import annotations

import pytest

from cosim.engines.model import DEFAULT_READ_LATENCY_PS, ModelPort
from cosim.memory import HostMemory
from host_driver.account import NullAccount
from host_driver.channel import Channel
from host_driver.nic import Nic
from host_driver.rings import Descriptor, Piece
from host_driver.runtime import Future, Kernel
from nic_model.contract import (
    CONFIGS,
    KeyRight,
    Opcode,
    OperationMask,
    doorbell,
    register,
)

NOBODY = NullAccount()
CONFIG = CONFIGS["tiny"]
OWN = bytes.fromhex("020000000001")


class GatedMac:
    """A MAC whose room the test decides."""

    def __init__(self) -> None:
        self.room = 0
        self.frames: list[bytes] = []
        self.deliver = lambda frame, bad: None
        self.on_room = lambda: None

    def has_room(self) -> bool:
        return self.room > 0

    def transmit(self, frame: bytes) -> None:
        self.room -= 1
        self.frames.append(frame)


class Setup:
    """A port with channel 0 open on vector 0, and a receive buffer posted."""

    def __init__(self) -> None:
        self.kernel = Kernel()
        self.mac = GatedMac()
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
    setup.channel.ring_doorbell(NOBODY)
    assert setup.mac.frames == []
    for room in (1, 3, 100):
        setup.mac.room = room
        setup.mac.on_room()
        assert setup.mac.frames == frames[: len(setup.mac.frames)]
    assert setup.mac.frames == frames


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
    setup.mac.deliver(OWN + bytes(60), False)
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
    setup.port.write_block(push, bytes(64))  # without Feature.PUSH it has no effect
    assert setup.mac.frames == []
    for address, length in ((push, 60), (push + 4, 64), (register("DRAIN"), 64)):
        with pytest.raises(ValueError, match="64 aligned bytes"):
            setup.port.write_block(address, bytes(length))


def test_bus_traffic_is_counted() -> None:
    setup = Setup()
    setup.mac.room = 1
    reads, writes = setup.port.dma_read_bytes, setup.port.dma_write_bytes
    setup.channel.submit(Descriptor(Opcode.SEND_FRAME, bytes(60)), None)
    setup.channel.ring_doorbell(NOBODY)
    assert (setup.port.dma_read_bytes - reads, setup.port.dma_write_bytes - writes) == (96, 32)
    setup.mac.deliver(OWN + bytes(94), False)
    assert (setup.port.dma_read_bytes - reads, setup.port.dma_write_bytes - writes) == (112, 164)
