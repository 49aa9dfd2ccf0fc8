"""The driver's control path over the device model: probe, channels, keys, filter, moderation, counters."""

from __future__ import annotations

import pytest

from host_driver.account import NullAccount
from host_driver.channel import Channel
from host_driver.nic import DeviceError, Nic
from host_driver.rings import Descriptor, Piece
from nic_model.contract import (
    CONFIGS,
    ChannelError,
    ChannelState,
    KeyRight,
    Opcode,
    OperationMask,
    RxFilter,
    Status,
    channel_register,
    doorbell,
    register,
    vector_register,
)
from tests.host_driver.bench import HOST_MAC, Bench

NOBODY = NullAccount()
OPERATIONS = OperationMask.SEND_FRAME | OperationMask.RECEIVE_RAW


async def opened(bench: Bench, number: int = 0) -> tuple[Nic, Channel]:
    nic = await Nic.probe(bench.port)
    return nic, await nic.open_channel(number, operations=OPERATIONS, vector=1, tx_log2=4, rx_log2=4)


@pytest.mark.parametrize("name", ["tiny", "default", "wide"])
def test_probe_asks_the_device(name: str) -> None:
    bench = Bench(config=name)
    nic = bench.run(Nic.probe(bench.port))
    config = CONFIGS[name]
    assert nic.capabilities.channels == config.channels
    assert nic.capabilities.vectors == config.vectors
    assert nic.capabilities.keys == config.keys
    assert nic.capabilities.clock_hz == config.clock_hz
    assert nic.capabilities.features == config.features


def test_probe_refuses_another_device() -> None:
    bench = Bench()
    bench.model.device._globals["VERSION"] = 0x2_0000
    with pytest.raises(DeviceError, match="contract version 2"):
        bench.run(Nic.probe(bench.port))
    bench.model.device._globals["ID"] = 0xFFFF_FFFF
    with pytest.raises(DeviceError, match="no memnic device"):
        bench.run(Nic.probe(bench.port))


def test_channel_arguments() -> None:
    bench = Bench()

    async def run() -> None:
        nic, channel = await opened(bench)
        for number, vector, log2 in ((0, 0, 4), (4, 0, 4), (1, 4, 4), (1, 0, 13)):
            with pytest.raises(ValueError, match=r"channel|vector|rings"):
                await nic.open_channel(number, operations=OPERATIONS, vector=vector, tx_log2=log2, rx_log2=4)
        assert await nic.channel_status(0) == (ChannelState.RUNNING, ChannelError.NONE)
        assert await nic.close_channel(channel) == []
        assert await nic.channel_status(0) == (ChannelState.IDLE, ChannelError.NONE)
        assert (await nic.open_channel(0, operations=OPERATIONS, vector=0)).number == 0

    bench.run(run())


def test_send_and_completion_by_handle() -> None:
    bench = Bench(barriers=True)

    async def run() -> None:
        nic, channel = await opened(bench)
        address = bench.port.memory.allocate(256)
        bench.port.memory.view(address, 256)[:] = bytes(range(256))
        key = nic.register_memory(address, 256, KeyRight.READ, 0, NOBODY)
        for round_number in range(30):
            sends = [Descriptor(Opcode.SEND_FRAME, b"\x02" * 14, [Piece(key.value, n, 60)]) for n in range(5)]
            for number, descriptor in enumerate(sends):
                assert channel.has_room(descriptor)
                channel.submit(descriptor, (round_number, number))
            assert not list(channel.completions())
            channel.ring_doorbell(NOBODY)
            await bench.kernel.sleep(10**6)
            finished = list(channel.completions())
            assert [f.handle for f in finished] == [(round_number, n) for n in range(5)]
            assert all(f.completion.status is Status.OK and f.completion.length == 60 for f in finished)
            assert channel.sends_in_flight == 0
        await bench.kernel.sleep(10**9)
        assert bench.wire.frames[3] == b"\x02" * 14 + bytes(range(3, 63))
        assert len(bench.wire.frames) == 150

    bench.run(run())


def test_one_doorbell_for_many_sends_and_none_for_nothing() -> None:
    bench = Bench()

    async def run() -> None:
        _nic, channel = await opened(bench)
        for _ in range(4):
            channel.submit(Descriptor(Opcode.SEND_FRAME, bytes(60)), None)
        for _ in range(3):
            channel.ring_doorbell(bench.process)
        assert bench.process.counts["driver", "mmio_write"] == 1

    bench.run(run())


def pushes_of(bench: Bench, channel: Channel, sends: list[Descriptor]) -> list[tuple[int, bytes]]:
    """Submit sends and ring; the blocks that are written (offset in the window, bytes)."""
    blocks: list[tuple[int, bytes]] = []
    write = bench.port.write_block

    def keep(address: int, data: bytes) -> None:
        blocks.append((address - doorbell("PUSH", channel.number), bytes(data)))
        write(address, data)

    bench.port.write_block = keep  # type: ignore[method-assign]
    for number, send in enumerate(sends):
        channel.submit(send, number)
    channel.ring_doorbell(bench.process)
    bench.port.write_block = write  # type: ignore[method-assign]
    return blocks


def test_a_short_send_alone_on_the_ring_is_pushed() -> None:
    """Its slots as they stand in the ring, zeros beside them, wherever it lies in ring and window."""
    bench = Bench(barriers=True)

    async def run() -> None:
        _nic, channel = await opened(bench)
        index = 0
        for round_number in range(40):
            inline = bytes([round_number]) * (14 + 5 * round_number % 115)
            send = Descriptor(Opcode.SEND_FRAME, inline)
            blocks = pushes_of(bench, channel, [send])
            image = bytearray(1024)
            for offset, data in blocks:
                assert not any(image[offset : offset + 64])
                image[offset : offset + 64] = data
            slots = [channel.submissions.waiting(index)[32 * n : 32 * n + 32] for n in range(send.slots)]
            for number, slot in enumerate(slots):
                place = (index + number) % 32 * 32
                assert image[place : place + 32] == slot
                image[place : place + 32] = bytes(32)
            assert not any(image)
            index += send.slots
            await bench.kernel.sleep(10**9)
            assert [f.handle for f in channel.completions()] == [0]
            assert bench.wire.frames[-1] == inline
        assert channel.pushed == len(bench.wire.frames) == 40
        assert bench.process.counts["driver", "block_write"] > 40
        assert bench.process.counts["driver", "mmio_write"] == 40, "the doorbell follows"

    bench.run(run())


def test_what_is_not_pushed() -> None:
    """Several sends, one with pieces, one that is long, one behind another; and none at all if it is switched off."""
    bench = Bench()

    async def run() -> None:
        nic, channel = await opened(bench)
        address = bench.port.memory.allocate(256)
        key = nic.register_memory(address, 256, KeyRight.READ, 0, NOBODY)
        short = Descriptor(Opcode.SEND_FRAME, bytes(60))
        channel.push_bytes = 60
        for sends in ([short, short], [Descriptor(Opcode.SEND_FRAME, bytes(14), [Piece(key.value, 0, 60)])],
                      [Descriptor(Opcode.SEND_FRAME, bytes(61))]):
            assert pushes_of(bench, channel, sends) == []
            await bench.kernel.sleep(10**9)
            list(channel.completions())
        assert len(pushes_of(bench, channel, [short])) == 2
        assert pushes_of(bench, channel, [short]) == [], "the first has not come back"
        await bench.kernel.sleep(10**9)
        list(channel.completions())
        channel.push_bytes = 0
        assert pushes_of(bench, channel, [short]) == []
        assert channel.pushed == 1

    bench.run(run())


def test_receive_buffers_come_back_with_their_handles() -> None:
    bench = Bench(barriers=True)

    async def run() -> None:
        nic, channel = await opened(bench)
        address = bench.port.memory.allocate(4096)
        key = nic.register_memory(address, 4096, KeyRight.WRITE, 0, NOBODY)
        nic.set_mac_address(HOST_MAC)
        nic.enable_receive(True)
        channel.post(Piece(key.value, 2048, 2048), 9, "nine")
        with pytest.raises(ValueError, match="buffer 9"):
            channel.post(Piece(key.value, 0, 2048), 9, "again")
        channel.ring_doorbell(NOBODY)
        await bench.kernel.sleep(10**6)
        bench.wire.deliver(HOST_MAC + b"hello, host!", False, bench.kernel.now)
        ((completion, handle, more),) = channel.completions()
        assert more == ()
        assert (handle, completion.length) == ("nine", 18)
        assert bench.port.memory.view(address + 2048, 18) == HOST_MAC + b"hello, host!"
        channel.post(Piece(key.value, 0, 2048), 9, "nine again")
        assert await nic.close_channel(channel) == ["nine again"]

    bench.run(run())


def test_stale_key_is_refused() -> None:
    bench = Bench()

    async def run() -> None:
        nic, channel = await opened(bench)
        address = bench.port.memory.allocate(256)
        statuses = []
        for _ in range(3):
            key = nic.register_memory(address, 256, KeyRight.READ, 0, NOBODY)
            await nic.deregister_memory(key)
            channel.submit(Descriptor(Opcode.SEND_FRAME, pieces=[Piece(key.value, 0, 60)]), None)
            channel.ring_doorbell(NOBODY)
            statuses += [f.completion.status for f in channel.completions()]
        assert statuses == [Status.KEY_INVALID] * 3

    bench.run(run())


def test_entry_of_a_key_gets_a_new_generation_and_all_may_be_taken() -> None:
    bench = Bench()

    async def run() -> None:
        nic, _channel = await opened(bench)
        address = bench.port.memory.allocate(64)
        keys = [nic.register_memory(address, 64, KeyRight.READ, 0, NOBODY) for _ in range(64)]
        assert len({k.value for k in keys}) == 64
        with pytest.raises(MemoryError, match="all 64 memory keys"):
            nic.register_memory(address, 64, KeyRight.READ, 0, NOBODY)
        await nic.deregister_memory(keys[5])
        again = nic.register_memory(address, 64, KeyRight.READ, 0, NOBODY)
        assert again.index == keys[5].index
        assert again.value != keys[5].value
        with pytest.raises(ValueError, match="outside host memory"):
            nic.register_memory(address, 1 << 30, KeyRight.READ, 0, NOBODY)

    bench.run(run())


def test_channel_error_is_told_once() -> None:
    bench = Bench()

    async def run() -> None:
        nic, _channel = await opened(bench, 2)
        bench.port.write32(register("ERROR_MASK"), 0)
        bench.port.write32(doorbell("TX_DOORBELL", 2), 1000)
        await bench.port.interrupt(nic.capabilities.vectors)
        assert await nic.take_channel_errors() == {2: ChannelError.DOORBELL_OVERRUN}
        assert await nic.take_channel_errors() == {}

    bench.run(run())


def test_filter_moderation_and_counters() -> None:
    bench = Bench()

    async def run() -> None:
        nic, _channel = await opened(bench)
        nic.set_mac_address(HOST_MAC)
        with pytest.raises(ValueError, match="6 bytes"):
            nic.set_mac_address(b"12345")
        nic.enable_receive(True)
        bench.wire.deliver(b"\xff" * 60, False, bench.kernel.now)
        nic.set_filter(RxFilter.BROADCAST)
        bench.wire.deliver(b"\xff" * 60, False, bench.kernel.now)
        counters = await nic.read_counters()
        assert {n: v for n, v in counters.items() if v} == {
            "rx_frames_in": 2, "rx_filtered": 1, "rx_no_buffer": 1}
        nic.set_moderation(1, rx_usecs=60, rx_frames=15, tx_usecs=200, tx_frames=35)
        read = [await bench.port.read32(vector_register(f"VECTOR_{n}", 1))
                for n in ("RX_TICKS", "RX_FRAMES", "TX_TICKS", "TX_FRAMES")]
        assert read == [9375, 15, 31250, 35]
        nic.set_tx_weight(2, 4096)
        assert await bench.port.read32(channel_register("TX_WEIGHT", 2)) == 4096
        hz = nic.capabilities.clock_hz
        for rate in (20_000, 10**6, 123_456_789, 10**9, 10**10):
            nic.set_tx_rate(2, rate, 20_000 if rate > 10**6 else 100)
            byte_time = await bench.port.read32(channel_register("TX_BYTE_TIME", 2))
            burst = await bench.port.read32(channel_register("TX_BURST", 2))
            assert abs(8 * hz * 65536 / byte_time / rate - 1) < 0.01
            assert abs(burst * rate / 8 / hz / (20_000 if rate > 10**6 else 100) - 1) < 0.01
        nic.set_tx_rate(2, 0)
        assert await bench.port.read32(channel_register("TX_BYTE_TIME", 2)) == 0
        for wrong in (lambda: nic.set_tx_weight(2, 1000), lambda: nic.set_tx_weight(2, 1 << 16),
                      lambda: nic.set_tx_weight(nic.capabilities.channels, 2000), lambda: nic.set_tx_rate(2, 1),
                      lambda: nic.set_tx_rate(2, 10**14), lambda: nic.set_tx_rate(2, -1),
                      lambda: nic.set_tx_rate(-1, 0),
                      lambda: nic.set_tx_rate(2, 10**6, 1 << 30)):
            with pytest.raises(ValueError, match=r"channel|weight|rate|burst"):
                wrong()
        before = await nic.read_now_ps()
        await bench.port.sleep(10**9)
        assert abs(await nic.read_now_ps() - before - 10**9) < 10**7

    bench.run(run())
