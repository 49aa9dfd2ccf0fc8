"""TCP on the device, as a system that is run: every byte, what it costs the host, and who does the work."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from cosim import cli
from cosim.benches.crossover import with_device_clock
from cosim.device_processor import FirmwareAccount
from cosim.engines import cocotb_engine, compiled, in_process
from cosim.engines.base import Engine, RunSpec, SystemResult
from cosim.errors import MachineError, SystemFileError
from cosim.experiment import SERVER_IP, SERVER_MAC
from cosim.impairments import BothWays, Impairments
from cosim.machine import load_application, load_machine
from cosim.peers import client_addresses
from cosim.systems import SYSTEMS, System, load_system, system_file
from cosim.workload import synthetic
from cosim.world import World
from host_driver.account import FIRMWARE_ITEMS
from host_driver.firmware import Firmware
from host_driver.memnet import MemNet
from host_driver.tcp import LINUX24
from nic_model.control_log import PortLog, replay

MACHINE = load_machine("p2-300-smp2")
CLIENTS = 8


def run(system: str | System = "nic-tcp", requests: int = 24, **changes: object) -> SystemResult:
    chosen = SYSTEMS[system] if isinstance(system, str) else system
    return in_process.run(msgspec.structs.replace(RunSpec(
        system=chosen, machine=MACHINE, application=load_application("apache"),
        requests=synthetic(requests).requests, clients=CLIENTS, link_bit_rate=10**9, device="default"), **changes),
        lambda done, simulated_ps: None)


def test_all_bytes_are_right_and_the_host_does_no_tcp() -> None:
    result = run()
    assert result.body_bytes == 24 * 16384
    assert {"tcp_send", "tcp_recv", "ip", "softirq", "syscall"} & set(result.cycles) == set()
    assert result.items["copy"]["kernel_to_user_byte"].count < 200, "requests came before they were asked for"
    (device,) = result.device_processors
    assert 0 < device.utilisation < 1
    assert device.messages > 10
    busy = sum(figure.cycles for items in result.device_items.values() for figure in items.values())
    assert device.cycles == pytest.approx(busy, rel=0.02)
    assert set(result.device_items) == {category for category, _ in FIRMWARE_ITEMS}
    tso = run("nic-tso")
    assert result.total_cycles < tso.total_cycles
    assert result.body_bytes == tso.body_bytes


def test_over_a_bad_wire_all_bytes_are_right() -> None:
    way = Impairments(loss=0.02, reorder=0.02, duplicate=0.01, delay_ps=100_000_000)
    result = run(impairments=BothWays(outbound=way, inbound=way, seed=5))
    assert result.body_bytes == 24 * 16384


def test_the_same_seed_gives_the_same_result() -> None:
    assert run(requests=8) == run(requests=8)


@pytest.mark.parametrize("processors", [2, 3])
def test_connections_are_spread_over_device_processors(processors: int) -> None:
    slow = with_device_clock(MACHINE, 40_000_000)
    system = SYSTEMS["nic-tcp"]
    device = msgspec.structs.replace(system.device, processors=processors)
    result = run(msgspec.structs.replace(system, device=device), requests=60, clients=16, machine=slow)
    assert result.body_bytes == 60 * 16384
    shares = [device.messages for device in result.device_processors]
    assert len(shares) == processors
    assert min(shares) > sum(shares) / processors / 3, "each has its part"
    assert all(device.orders > 0 and device.cycles > 0 for device in result.device_processors)
    one = run(requests=60, clients=16, machine=slow)
    assert result.requests_per_s > 1.3 * one.requests_per_s, "one was the bottleneck"


def test_offload_pays_only_above_some_clock_of_the_device() -> None:
    host = run("nic-tso", requests=40, clients=16).requests_per_s
    slow, fast = (run(requests=40, clients=16, machine=with_device_clock(MACHINE, clock_hz)).requests_per_s
                  for clock_hz in (25_000_000, 300_000_000))
    assert slow < host < fast


def test_a_port_log_is_kept_and_replays(tmp_path: Path) -> None:
    path = tmp_path / "port.log"
    run(requests=4, port_log_path=str(path))
    with path.open(encoding="ascii") as file:
        log = PortLog.read(file)
    device = MACHINE.device_processor
    assert device is not None
    firmware = Firmware(log.facts, mac=SERVER_MAC, ip=str(SERVER_IP), profile=LINUX24, seed="of 1",
                        account=FirmwareAccount(device))
    for number in range(CLIENTS):
        mac, ip = client_addresses(number)
        firmware.stack.add_neighbour(ip, mac)
    assert replay(log, firmware) is None
    assert sum(not entry.is_up for entry in log.entries) > 100


# ---------------------------------------------------------------------------------------- what a send costs the host

SENDS = 20


def host_ps_of_a_send(length: int) -> float:
    """Host processor time of an `async_send` until it is done, its completion and the waking of its process with it."""
    world = World(device="default", machine="p2-300-smp2", on_device=True, link_bit_rate=10**9)
    processors = world.server.processors
    assert processors is not None
    spent: list[int] = []

    async def serve(memnet: MemNet) -> None:
        region = await memnet.register_mem(length)
        socket = await memnet.accept(memnet.listen(7))
        await memnet.job_wait(await memnet.async_send(socket, region, 0, length))
        await world.kernel.sleep(10**9)
        before = sum(processors.booked_ps.values())
        for _ in range(SENDS):
            await memnet.job_wait(await memnet.async_send(socket, region, 0, length))
        await world.kernel.sleep(10**9)
        spent.append(sum(processors.booked_ps.values()) - before)
        await memnet.close(socket)

    async def ask(memnet: MemNet) -> int:
        await world.kernel.sleep(10**9)
        region = await memnet.register_mem(1 << 16)
        socket = await memnet.create_connection(world.server.ip, 7)
        total = 0
        while got := await memnet.sync_recv(socket, region, 0, 1 << 16):
            total += got
        return total

    world.start(world.server, serve, "server")
    client = world.start(world.client, ask, "client")
    world.run()
    assert client.result == (SENDS + 1) * length
    return spent[0] / SENDS


def test_an_async_send_of_64_kb_costs_the_host_what_one_of_1_kb_does() -> None:
    small, large = host_ps_of_a_send(1024), host_ps_of_a_send(65536)
    assert small > 1_000_000, "a descriptor, a doorbell, a completion"
    assert abs(large / small - 1) <= 0.05, f"{small} ps of 1 KB, {large} ps of 64 KB"


# ---------------------------------------------------------------------------------------- what cannot be

@pytest.mark.parametrize(("arguments", "said"), [
    (["--engine", "cocotb", "--transactors", "cocotbext-axi"],
     "system nic-tcp needs transactors for its control port, which cocotbext-axi has not: leave --transactors out"),
    (["--engine", "model", "--device", "cosim/timing/devices/default.toml"],
     "system nic-tcp needs a control port, which device files do not have: name a device instead"),
])
def test_where_there_is_no_control_port_one_line_says_so(arguments: list[str], said: str,
                                                         capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.run(["run", "--systems", "nic-dumb,nic-tcp", "--out", str(tmp_path), *arguments]) == 2
    assert capsys.readouterr().err == f"memnic: {said}\n"


def test_a_machine_without_a_device_processor(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = (Path("cosim") / "machines" / "p2-300-smp2.toml").read_text(encoding="utf-8")
    machine = tmp_path / "mine.toml"
    machine.write_text(text[: text.index("[device_processor]")], encoding="utf-8")
    assert cli.run(["run", "--systems", "nic-tcp", "--engine", "model", "--machine", str(machine), "--out",
                    str(tmp_path / "out")]) == 2
    assert "does TCP on a device processor, and machine p2-300-smp2 has no table" in capsys.readouterr().err


def test_the_command_shows_device_processors_and_a_log(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.run(["run", "--systems", "nic-tcp", "--engine", "model", "--requests", "2", "--out", str(tmp_path),
                    "--port-log"]) == 0
    assert "Device processor 0 of nic-tcp: " in capsys.readouterr().out
    assert cli.run(["port-log", str(tmp_path / "nic-tcp" / "port.log")]) == 0
    out = capsys.readouterr().out
    assert "<  SEGMENT " in out
    assert " > EMIT " in out
    assert cli.run(["port-log", str(tmp_path / "result.json")]) == 2
    assert capsys.readouterr().err.startswith(f"memnic: {tmp_path / 'result.json'}: line 1: no log of a control port")


@pytest.mark.parametrize(("old", "new", "said"), [
    ('send = "device"\ntransmit = "device"', 'send = "host"\ntransmit = "host"',
     "`runs_on.bottom_half` is \"device\", which all four parts must be, or none"),
    ('api = "memnet"', 'api = "sockets"', "`api` must be \"memnet\" for TCP on the device"),
    ("[device]", "[device]\nprocessors = 0", "`device.processors` must be at least 1, not 0"),
    ('"device"', '"host"', "`device.processors` needs all parts in `runs_on` to be \"device\""),
])
def test_systems_on_the_device_that_cannot_be(old: str, new: str, said: str, tmp_path: Path) -> None:
    text = system_file("nic-tcp").read_text(encoding="utf-8").replace(old, new)
    if "processors" not in new:
        text = text.replace("[device]", "[device]\nprocessors = 2")
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SystemFileError, match=re.escape(said)):
        load_system(path)


@pytest.mark.parametrize(("old", "new", "said"), [
    ("completion = {", "compilation = {", "unknown field `device_processor.costs.firmware.compilation`"),
    ("[device_processor.costs.ip]", "[device_processor.prices.ip]", "missing `device_processor.costs.ip.receive`"),
    ("clock_hz = 200_000_000", "clock_hz = 0", "`device_processor.clock_hz` must be at least 1, not 0"),
    ("clock_hz = 200_000_000", 'clock_hz = "fast"', "$.device_processor.clock_hz"),
])
def test_device_processors_that_cannot_be(old: str, new: str, said: str, tmp_path: Path) -> None:
    text = Path("cosim/machines/p2-300-smp2.toml").read_text(encoding="utf-8")
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(MachineError, match=re.escape(said)):
        load_machine(str(path))


# ---------------------------------------------------------------------------------------- on the RTL


def host_operations(result: SystemResult) -> dict[str, float]:
    """What the host did for each request that does not depend on time."""
    return {item: figure.count for category in ("memnet", "copy") for item, figure in
            result.items.get(category, {}).items()}


@pytest.mark.parametrize(("engine", "requests"), [
    (compiled.run, 40), pytest.param(cocotb_engine.run, 6, marks=pytest.mark.long)])
def test_the_rtl_serves_the_same(engine: Engine, requests: int) -> None:
    spec = RunSpec(system=SYSTEMS["nic-tcp"], machine=MACHINE, application=load_application("apache"),
                   requests=synthetic(requests).requests, clients=4, link_bit_rate=10**9, device="tiny")
    found, model = (run(spec, lambda done, simulated_ps: None) for run in (engine, in_process.run))
    assert found.body_bytes == model.body_bytes == requests * 16384
    assert host_operations(found) == host_operations(model)
    assert found.dma_read_bytes == pytest.approx(model.dma_read_bytes, rel=0.2)
    assert found.frames_sent == pytest.approx(model.frames_sent, rel=0.2)


def test_the_rtl_over_a_bad_wire() -> None:
    way = Impairments(loss=0.02, reorder=0.02, duplicate=0.01, delay_ps=100_000_000)
    spec = RunSpec(system=SYSTEMS["nic-tcp"], machine=MACHINE, application=load_application("apache"),
                   requests=synthetic(24).requests, clients=CLIENTS, link_bit_rate=10**9, device="tiny",
                   impairments=BothWays(outbound=way, inbound=way, seed=5))
    assert compiled.run(spec, lambda done, simulated_ps: None).body_bytes == 24 * 16384
