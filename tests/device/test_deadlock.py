"""What a run says that cannot go on: tasks, rings, queues of bus and MAC, FSMs and streams of the device, by name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from amaranth.hdl import Fragment

from cosim.engines.base import RunError
from cosim.engines.bench import Bench
from cosim.engines.bus import Bus
from cosim.engines.compiled import CompiledDevice
from cosim.engines.stall import ProbeNames, register_name, with_register_names
from cosim.engines.transactor_port import STUCK_CYCLES as DEFAULT_STUCK_CYCLES
from cosim.engines.transactor_port import TransactorPort
from cosim.memory import HostMemory
from host_driver.account import NullAccount
from host_driver.channel import Channel
from host_driver.nic import Nic
from host_driver.rings import Descriptor, Piece
from host_driver.runtime import Kernel, Queue
from nic_model.contract import (
    CONFIGS,
    COUNTERS_BASE,
    KeyRight,
    Opcode,
    OperationMask,
    channel_register,
    doorbell,
    key_register,
    register,
    vector_register,
)
from rtl.nic import Nic as NicRtl
from rtl.probes import Probes, find_probes
from tests.device.rig import FAST, US, RecordingMac

NOBODY = NullAccount()
FRAME_BYTES = 1000
STUCK_CYCLES = 5000
NEVER_CYCLES = 1 << 40
"""Of a bus: two simulated hours."""

Scenario = Callable[["Stall"], Coroutine[Any, None, None]]


class Stall:
    """A `tiny` device, a scenario that gets stuck over it, and what the run said."""

    def __init__(self, *, fifo_bytes: int = 27_100, stuck_cycles: int = STUCK_CYCLES) -> None:
        self.config = CONFIGS["tiny"]
        self.kernel = Kernel()
        self.memory = HostMemory(1 << 20)
        self.mac = RecordingMac(self.kernel, 0, fifo_bytes=fifo_bytes)
        self.bus = Bus(FAST)
        self._stuck_cycles = stuck_cycles

    def says(self, scenario: Scenario, *, jump: bool = True) -> str:
        """The message of the run, which must fail."""
        with CompiledDevice(self.config) as device:
            self.port = TransactorPort(device.library, self.config, self.kernel, self.memory, self.mac, self.bus,
                                       self._stuck_cycles)
            self.kernel.spawn(scenario(self), "scenario")
            with pytest.raises(RunError) as failed:
                device.run(self.port, cast(Bench, self), jump=jump)
        return str(failed.value)

    def finished(self) -> bool:
        """A scenario that gets to its end fails the test."""
        return not self.kernel.tasks

    # -- what scenarios use

    async def open(self) -> tuple[Nic, Channel]:
        """The driver's channel 1."""
        nic = await Nic.probe(self.port)
        return nic, await nic.open_channel(1, operations=OperationMask.SEND_FRAME, vector=0, tx_log2=4, rx_log2=4)

    def send(self, nic: Nic, channel: Channel, frames: int) -> None:
        """Submit frames, and ring."""
        data = self.memory.allocate(FRAME_BYTES, 4096)
        key = nic.register_memory(data, FRAME_BYTES, KeyRight.READ, channel.number, NOBODY)
        for _ in range(frames):
            channel.submit(Descriptor(Opcode.SEND_FRAME, bytes(14), (Piece(key.value, 0, FRAME_BYTES),)), None)
        channel.ring_doorbell(NOBODY)

    def lose_reads(self) -> None:
        """Host memory answers no more."""
        self.bus.timing = replace(FAST, read_latency_cycles=NEVER_CYCLES)
        self.port.set_bus_timing()


async def lost_reads(stall: Stall) -> None:
    nic, channel = await stall.open()
    stall.lose_reads()
    stall.send(nic, channel, 3)
    channel.arm(NOBODY)
    await stall.port.interrupt(0)


async def lost_reads_while_polling(stall: Stall) -> None:
    nic, channel = await stall.open()
    stall.lose_reads()
    stall.send(nic, channel, 1)
    while not list(channel.completions()):
        await stall.port.read32(register("NOW_LO"))
        await stall.port.sleep(US)


async def full_mac(stall: Stall) -> None:
    nic, channel = await stall.open()
    stall.send(nic, channel, 6)
    channel.arm(NOBODY)
    await stall.port.interrupt(0)


async def full_mac_while_polling(stall: Stall) -> None:
    nic, channel = await stall.open()
    stall.send(nic, channel, 6)
    while not list(channel.completions()):
        await stall.port.sleep(US)


async def lost_interrupt(stall: Stall) -> None:
    _nic, channel = await stall.open()
    channel.post(Piece(0, 0, 64), 0, None)
    stall.kernel.spawn(wait_for(Queue("requests of client 3")), "server")
    await stall.port.interrupt(2)


async def wait_for(queue: Queue[None]) -> None:
    await queue.get()


async def busy_device(stall: Stall) -> None:
    stall.port.write32(register("SNAPSHOT"), 1)
    await stall.port.interrupt(2)


def parts(said: str) -> list[str]:
    """What a message says behind its time."""
    return said.partition(" ps: ")[2].split("; ")


@pytest.mark.usefixtures("tiny_compiled")
class TestReport:
    @pytest.mark.parametrize("jump", [True, False], ids=["jump", "walk"])
    def test_a_bus_that_never_answers(self, jump: bool) -> None:
        said = Stall().says(lost_reads, jump=jump)
        assert said.startswith("nothing has moved for 5,000 idle cycles, though something is under way at ")
        for part in ("scenario waits for interrupt of vector 0",
                     "channel 1 has 3 sends on the submission ring without completion, nothing on the completion ring",
                     "1 DMA read without an answer of host memory", "fetch.cutter is in SLOTS"):
            assert part in parts(said), said

    def test_the_same_when_the_driver_keeps_asking(self) -> None:
        said = Stall().says(lost_reads_while_polling)
        assert said.startswith("nothing has moved for 5,000 idle cycles")
        assert "1 DMA read without an answer of host memory" in parts(said), said

    def test_it_stops_at_the_same_time_with_and_without_jumps(self) -> None:
        assert Stall().says(lost_reads) == Stall().says(lost_reads, jump=False)

    def test_a_mac_that_takes_nothing(self) -> None:
        said = Stall(fifo_bytes=0).says(full_mac)
        assert said.startswith("nothing will ever happen again at ")
        for part in ("scenario waits for interrupt of vector 0",
                     "channel 1 has 6 sends on the submission ring without completion, nothing on the completion ring",
                     "the MAC does not take a frame of the device",
                     "transmit.framer.leaving waits for transmit.mac_tx to take it",
                     "transmit.mac_tx.mac waits for pause to take it", "pause waits for port m_axis_tx to take it"):
            assert part in parts(said), said

    def test_a_mac_that_takes_nothing_under_a_driver_that_polls(self) -> None:
        said = Stall(fifo_bytes=0).says(full_mac_while_polling)
        assert said.startswith("nothing has moved for 5,000 idle cycles")
        assert "the MAC does not take a frame of the device" in parts(said), said

    def test_an_interrupt_that_nobody_raises(self) -> None:
        said = Stall().says(lost_interrupt)
        assert said.startswith("nothing will ever happen again at ")
        # Of a device that rests nothing is said.
        assert parts(said) == [
            "scenario waits for interrupt of vector 2", "server waits for requests of client 3",
            "channel 1 has 1 empty buffer on the receive ring, the last before its doorbell, "
            "nothing on the completion ring"]

    def test_a_device_that_never_rests(self) -> None:
        # A snapshot of the counters keeps it busy without its ports for a while.
        said = Stall(stuck_cycles=10).says(busy_device)
        assert said.startswith("nothing has moved for 10 idle cycles")
        assert {"counters is at work", "counters.round is in Walk"} < set(parts(said)), said

    def test_a_device_that_is_busy_for_less_goes_on(self) -> None:
        assert Stall(stuck_cycles=300).says(busy_device).startswith("nothing will ever happen again")

    def test_a_closed_channel_is_not_in_it(self) -> None:
        async def scenario(stall: Stall) -> None:
            nic, channel = await stall.open()
            channel.post(Piece(0, 0, 64), 0, None)
            await nic.close_channel(channel)
            await stall.port.interrupt(1)

        assert "channel" not in Stall().says(scenario)


def test_the_readme_states_after_how_many_cycles() -> None:
    assert f"{DEFAULT_STUCK_CYCLES:,} idle cycles" in (Path(__file__).parents[2] / "README.md").read_text()


# ---------------------------------------------------------------------------------------------- probes


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def device(request: pytest.FixtureRequest) -> tuple[Fragment, Probes]:
    fragment = Fragment.get(NicRtl(CONFIGS[request.param]), None)
    return fragment, find_probes(fragment)


def fsms(fragment: Fragment) -> list[Any]:
    """All of a fragment and below."""
    return [*fragment.generated.values(), *(fsm for inner, *_ in fragment.subfragments for fsm in fsms(inner))]


def modules(fragment: Fragment) -> set[str]:
    """Of `rtl`, those whose components a device has."""
    own = {type(component).__module__ for component in fragment.origins or ()}
    return {name for name in own.union(*(modules(inner) for inner, *_ in fragment.subfragments))
            if name.startswith("rtl.")}


def test_every_fsm_is_probed(device: tuple[Fragment, Probes]) -> None:
    fragment, probes = device
    # `Module.FSM` in the sources of its blocks; one that is used in two blocks is there twice
    written = sum(Path(str(sys.modules[name].__file__)).read_text().count("with m.FSM(") for name in modules(fragment))
    assert len(probes.machines) >= written > 10
    assert {id(machine.state) for machine in probes.machines} == {id(fsm.state) for fsm in fsms(fragment)}
    for machine in probes.machines:
        assert machine.first == machine.states[machine.state.init]
        assert len(set(machine.states)) == len(machine.states) > 1


def test_names_are_unique(device: tuple[Fragment, Probes]) -> None:
    _fragment, probes = device
    for kind in (probes.workers, probes.machines, probes.streams):
        names = [probe.name for probe in cast(list[Any], kind)]
        assert sorted(set(names)) == sorted(names)


def test_streams_know_who_takes_them(device: tuple[Fragment, Probes]) -> None:
    _fragment, probes = device
    takers = {stream.name: stream.taker for stream in probes.streams}
    assert takers["scheduler.walker.cmd"] == "link_scheduler_payload_cmd"
    assert takers["link_scheduler_payload_cmd"] == "dma_read.payload.cutter"
    assert takers["transmit.mac_tx.mac"] == "pause"
    assert takers["pause"] == "port m_axis_tx"
    assert takers["registers.accesses.request"] == "registers"
    assert all(takers.values())


def test_bits_become_words() -> None:
    probes = find_probes(Fragment.get(NicRtl(CONFIGS["tiny"]), None))
    names = [worker.name for worker in probes.workers]
    meaning = msgspec.convert(probes.document, ProbeNames)
    rest = value = 0
    at = len(probes.workers)
    for machine in probes.machines:
        rest |= machine.state.init << at
        value |= (machine.states.index("STORE") if machine.name == "fetch.issue" else machine.state.init) << at
        at += len(machine.state)
    assert meaning.waiting(rest) == []
    last = probes.streams[-1]
    value |= 1 << names.index("events") | 1 << names.index("fetch") | 1 << names.index("fetch.rows")
    assert meaning.waiting(value | 1 << meaning.width - 1) == [
        "fetch.rows is at work", "events is at work",
        "fetch.issue is in STORE", f"{last.name} waits for {last.taker} to take it"]
    assert meaning.width == len(probes.value)


@pytest.mark.parametrize(("address", "name"), [
    (register("NOW_LO"), "NOW_LO"), (vector_register("VECTOR_MASK", 3), "VECTOR_MASK of vector 3"),
    (channel_register("TX_LOG2", 2), "TX_LOG2 of channel 2"), (key_register("KEY_COMMIT", 63), "KEY_COMMIT of key 63"),
    (doorbell("CQ_ARM", 1), "CQ_ARM of channel 1"), (0x3FC, "0x3fc"),
    (COUNTERS_BASE + 4, "of counter tx_frames, upper half"),
])
def test_addresses_have_names(address: int, name: str) -> None:
    assert register_name(address) == name
    assert with_register_names(f"read of register {address:#x}, twice") == f"read of register {name}, twice"
