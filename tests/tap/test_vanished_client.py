"""A client that asks for something and is never heard of again: what it had comes back, in simulated time."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from cosim.engines.model import ModelPort
from cosim.machine import load_application, load_machine
from cosim.systems import SYSTEMS
from cosim.tap.bench import PEER_MAC, TapBench, TapSpec
from tests.tap.test_replay import BODY, REQUEST, Recording, wrpcap

MINUTE_PS = 60 * 10**12


# The clock of the device ticks through all of the 40 minutes.
@pytest.mark.parametrize("system", ["nic-tso", "nic-dumb", pytest.param("nic-tcp", marks=pytest.mark.long)])
def test_in_the_middle_of_an_answer(tmp_path: Path, system: str) -> None:
    (tmp_path / "file").write_bytes(BODY * 40)
    vanished, other = Recording(client_port=50_000), Recording(client_port=50_001)
    vanished.handshake()
    vanished.client("PA", 1, 1, REQUEST)
    other.handshake()  # and says nothing at all
    wrpcap(str(tmp_path / "in.pcap"), [*vanished.packets, *other.packets])
    spec = TapSpec(namespace="", root=str(tmp_path), port=80, replay=str(tmp_path / "in.pcap"), system=SYSTEMS[system],
                   machine=load_machine("p2-300-smp2"), application=load_application("apache"), profile="linux",
                   device="tiny", link_bit_rate=10**9)
    with TapBench(spec, lambda _status: None) as bench:
        port = ModelPort(bench.config, bench.kernel, bench.memory, bench.mac)
        bench.start(port)
        # Two SYNs were answered, and the answer has begun.
        assert bench.kernel.run_while(lambda: bench.mac.frames_from_device < 6)
        bench.mac.attach(PEER_MAC, lambda _frame: None)  # from now on nobody hears the server, nor answers
        bench.kernel.run_until(bench.kernel.now + MINUTE_PS // 60)
        begun = bench.outcome(port)
        bench.kernel.run_until(bench.kernel.now + 40 * MINUTE_PS)
        result = bench.outcome(port)
    assert begun.server.open_connections == 2
    assert sum(begun.connections.values()) == 2
    assert result.connections == {}
    assert result.server.open_connections == 0
    assert result.server.connections == 2
    # Who sends by MemNet waits for the end; a socket's kernel has taken all, so that its server waits for the client.
    ends = (result.server.failed_connections, result.server.idle_connections_closed)
    assert ends == ((0, 2) if system == "nic-dumb" else (1, 1))
    assert not any(cast(dict[str, int], result.left_over).values())
