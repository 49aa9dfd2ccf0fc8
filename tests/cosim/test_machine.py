"""Machine and application files: what is shipped, and the one line that a bad file gets."""

from __future__ import annotations

import textwrap
from pathlib import Path

import msgspec
import pytest

import cosim
from cosim.engines import compiled
from cosim.engines.base import RunError
from cosim.engines.bench import bus_timing, scripted
from cosim.engines.bus import BusTiming
from cosim.errors import MachineError
from cosim.machine import APPLICATION_ITEMS, Fault, load_application, load_machine, prices_ps, shipped
from cosim.systems import SYSTEMS
from cosim.workload import synthetic
from host_driver.account import ITEMS
from nic_model.contract import CONFIGS
from tests.cosim.test_experiment import nothing, spec

SHIPPED = Path(cosim.__file__).parent / "machines" / "p2-300-smp2.toml"


def edited(tmp_path: Path, old: str, new: str) -> str:
    text = SHIPPED.read_text()
    assert old in text
    path = tmp_path / "edited.toml"
    path.write_text(text.replace(old, new, 1))
    return str(path)


@pytest.mark.parametrize("name", shipped("machines"))
def test_shipped_machine_prices_every_item_and_names_its_sources(name: str) -> None:
    machine = load_machine(name)
    priced = {(category, item) for category, items in machine.costs.items() for item in items}
    assert priced | set(APPLICATION_ITEMS) == {(c, i) for c, items in ITEMS.items() for i in items}
    assert all(cost.source for items in machine.costs.values() for cost in items.values())
    assert machine.bus.source
    assert machine.moderation.source


@pytest.mark.parametrize("name", shipped("machines"))
def test_shipped_machine_waits_for_a_register_as_long_as_its_bus_takes(name: str) -> None:
    machine = load_machine(name)
    assert machine.costs["driver"]["mmio_read"].cycles == machine.bus.mmio_read_ns * machine.clock_hz / 10**9


def test_prices_are_whole_picoseconds_of_the_clock() -> None:
    prices = prices_ps(load_machine("p2-300-smp2"), load_application("apache"))
    assert prices["interrupt", "entry"] == 10_000_000  # 3,000 cycles at 300 MHz are 10 us
    assert prices["copy", "user_to_kernel_byte"] == 9667
    assert prices["user", "request"] == 400_000_000


def test_a_sent_packet_costs_what_the_paper_leads_to() -> None:
    """7,800 cycles from TCP to the ring on one processor, and 600 + 3,700 more on two."""
    costs = load_machine("p2-300-smp2").costs
    sent = [costs["tcp_send"]["segment"], costs["ip"]["send"], costs["driver"]["transmit_frame"]]
    assert sum(cost.cycles for cost in sent) == 7_800
    for category in ("tcp_send", "softirq"):
        assert (costs[category]["smp_lock"].cycles, costs[category]["smp_packet"].cycles) == (600, 3_700)


@pytest.mark.parametrize(("old", "new", "field"), [
    ("clock_hz = 300_000_000", "", "`clock_hz`"),
    ("clock_hz = 300_000_000", "clock_hz = 0", "`clock_hz` must be at least 1, not 0"),
    ("clock_hz = 300_000_000", "clock_hz = 1\ncolour = 2", "`colour`"),
    ("mmio_read_ns = 800", "mmio_read_ns = -1", "`bus.mmio_read_ns` must be at least 0, not -1"),
    ("mmio_read_ns = 800", 'mmio_read_ns = "x"', "$.bus.mmio_read_ns"),
    ("mmio_read_ns = 800", "mmio_read_ns = 800\ntags = 0", "`bus.tags` must be at least 1, not 0"),
    ("mmio_read_ns = 800", "mmio_read_ns = 800\nreorder_ns = -1", "`bus.reorder_ns` must be at least 0, not -1"),
    ("mmio_read_ns = 800", "mmio_read_ns = 800\nmax_payload_bytes = 0", "`bus.max_payload_bytes` must be at least 1"),
    ("[moderation]", '[[bus.faults]]\ndirection = "up"\nfirst = 1\n[moderation]', "$.bus.faults[0].direction"),
    ("[moderation]", '[[bus.faults]]\ndirection = "read"\nfirst = 0\n[moderation]',
     "`bus.faults[0].first` must be at least 1, not 0"),
    ("rx_usecs = 60", "", "`rx_usecs` - at `$.moderation`"),
    ('interrupt_routing = "rotate"', 'interrupt_routing = "all"', "$.interrupt_routing"),
    ("batch = { cycles = 300,", "batch = { cycles = -300,", "`costs.poll.batch.cycles` must be at least 0"),
    ("batch = { cycles = 300,", "batch = { cycles = nan,", "`costs.poll.batch.cycles` must be at least 0"),
    ("batch = { cycles = 300,", "batch = {", "`cycles` in `costs.poll.batch`"),
    ("batch = {", "bunch = {", "unknown field `costs.poll.bunch`"),
    ("receive = {", "transmit = {", "unknown field `costs.ip.transmit`"),
    ("[costs.poll]\nbatch", "[costs.driver.x]\ny", "`costs.driver.x`"),
    ("[costs.context_switch]\nswitch", "[costs.context_switch]\nother", "unknown field `costs.context_switch.other`"),
    ("name =", "name ==", "no valid TOML"),
])
def test_bad_machine_file_is_one_line_with_file_and_field(tmp_path: Path, old: str, new: str, field: str) -> None:
    path = edited(tmp_path, old, new)
    with pytest.raises(MachineError) as caught:
        load_machine(path)
    assert path in str(caught.value)
    assert field in str(caught.value)
    assert "\n" not in str(caught.value)


PCIE = """duplex = true
tlp_overhead_bytes = 24
max_payload_bytes = 256
max_read_request_bytes = 512
tags = 32
reorder_ns = 100
interleave = true
mmio_read_ns = 800"""


def test_a_bus_like_pcie_reaches_the_transactors_in_cycles(tmp_path: Path) -> None:
    machine = load_machine(edited(tmp_path, "mmio_read_ns = 800", PCIE))
    timing = bus_timing(machine, CONFIGS["tiny"], seed=5)
    # At 156.25 MHz a cycle is 6.4 ns; latencies round up.
    assert timing == BusTiming(
        read_latency_cycles=79, write_latency_cycles=32, mmio_read_cycles=125, mmio_write_cycles=32,
        bytes_per_cycle=114 / 156.25, duplex=True, tlp_overhead_bytes=24, max_payload_bytes=256,
        max_read_request_bytes=512, tags=32, reorder_cycles=16, interleave=True, seed=5)


def test_scripted_faults_count_each_direction_by_itself() -> None:
    judge = scripted([Fault(direction="read", first=2, count=2), Fault(direction="write", first=1)])
    assert judge is not None
    assert [judge(0, False) for _ in range(5)] == [False, True, True, False, False]
    assert [judge(0, True) for _ in range(3)] == [True, False, False]
    assert scripted([]) is None


def test_a_scripted_fault_meets_the_device(tiny_compiled: Path) -> None:
    machine = load_machine("p2-300-smp2")
    # The first read of all is of posted buffers.
    faulty = msgspec.structs.replace(machine, bus=msgspec.structs.replace(
        machine.bus, faults=[Fault(direction="read", first=1)]))
    with pytest.raises(RunError, match=r"at \d+ ps raised DeviceError: channel 0 stopped: \w+"):
        compiled.run(spec(SYSTEMS["nic-tso"], synthetic(1).requests, machine=faulty), nothing)


def test_a_machine_like_another_says_only_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('like = "p2-300-smp2"\nname = "mine"\nprocessors = 3\n[bus]\nmmio_read_ns = 900\n'
                    '[costs.poll]\nbatch = { cycles = 7, source = "mine" }\n')
    mine, other = load_machine(str(path)), load_machine("p2-300-smp2")
    assert (mine.name, mine.processors, mine.bus.mmio_read_ns) == ("mine", 3, 900)
    assert (mine.costs["poll"]["batch"].cycles, mine.costs["poll"]["batch"].source) == (7, "mine")
    assert msgspec.structs.replace(mine.bus, mmio_read_ns=other.bus.mmio_read_ns) == other.bus
    assert mine.costs["poll"]["bus_wait"] == other.costs["poll"]["bus_wait"]
    assert {**mine.costs, "poll": {}} == {**other.costs, "poll": {}}


def test_the_documents_example_is_a_machine(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "processors.md").read_text(encoding="utf-8")
    path = tmp_path / "mine.toml"
    path.write_text(textwrap.dedent(text[text.index("    like = ") : text.index("## What is not there")]))
    assert load_machine(str(path)).costs["interrupt"]["entry"].cycles == 9_000


@pytest.mark.parametrize(("text", "said"), [
    ("like = 3", "`like` must be the name of a machine"), ('like = "cray"', "`like`: no machine 'cray'"),
    ('like = "p2-300-via"', "is itself like another machine"),
    ('like = "p2-300-smp2"\n[costs.poll]\nbunch = { cycles = 7, source = "" }', "unknown field `costs.poll.bunch`"),
    ('like = "p2-300-smp2"\n[costs.poll]\nbatch = { cycles = 7 }', "`source` in `costs.poll.batch`"),
    ('like = "p2-300-smp2"\n[bus]\ncolour = 1', "`colour`"),
])
def test_a_bad_likeness_is_one_line_with_its_file(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(MachineError) as caught:
        load_machine(str(path))
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_cost_is_named(tmp_path: Path) -> None:
    text = "".join(line for line in SHIPPED.read_text().splitlines(keepends=True) if not line.startswith("wake ="))
    path = tmp_path / "machine.toml"
    path.write_text(text)
    with pytest.raises(MachineError, match=r"machine\.toml: missing `costs\.context_switch\.wake`"):
        load_machine(str(path))


def test_unknown_names_list_what_there_is() -> None:
    with pytest.raises(MachineError, match=r"no machine 'cray'.*p2-300-smp2"):
        load_machine("cray")
    with pytest.raises(MachineError, match=r"no application 'iis'.*apache, simple"):
        load_application("iis")
    with pytest.raises(MachineError, match=r"nowhere/m\.toml: No such file"):
        load_machine("nowhere/m.toml")


def test_application_without_processes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "app.toml"
    path.write_text('name = "a"\ndescription = "b"\nprocesses = 0\n'
                    'request = { cycles = 1, source = "s" }\nconnection = { cycles = 1, source = "s" }\n')
    with pytest.raises(MachineError, match=r"app\.toml: `processes` must be at least 1"):
        load_application(str(path))
