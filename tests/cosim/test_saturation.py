"""A host whose only processor for processes has no time left for a second: nobody starves, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from cosim.capture_reader import read_frames
from cosim.control_port import device_config
from cosim.engines.base import DeviceCounts, SystemResult
from cosim.engines.model import ModelPort
from cosim.experiment import SERVER_MAC, Experiment
from cosim.impairments import BothWays, Impairments
from cosim.machine import load_application, load_machine
from cosim.notification import with_notification
from cosim.systems import SYSTEMS
from cosim.workload import synthetic
from nic_model.contract.protocols import TcpFlags
from nic_model.packets import parse_frame
from tests.cosim.test_experiment import nothing, spec

SECOND_PS = 10**12
REQUESTS = 240
CYCLES_A_REQUEST = 1_200_000
"""4 ms of computing for each, so that a second needs few requests."""


def repeated_by_peers(path: Path) -> int:
    """Segments with data, SYN or FIN that a peer sent again: its timer, or duplicate acknowledgements, made it."""
    seen, repeated = set(), 0
    for captured in read_frames(path):
        frame = parse_frame(captured.data)
        tcp = frame.tcp
        if frame.ethernet.source == SERVER_MAC or tcp is None:
            continue
        if not frame.payload and not tcp.flags & (TcpFlags.SYN | TcpFlags.FIN):
            continue
        key = (bytes(frame.ethernet.source), tcp.source_port, tcp.sequence, tcp.flags, len(frame.payload))
        repeated += key in seen
        seen.add(key)
    assert len(seen) > 2 * REQUESTS
    return repeated


def busy_share(result: SystemResult, until_ps: int) -> float:
    """Of the one processor, from the start of the load on."""
    ends_ps = [0, *(min(interval.until_ps, until_ps) for interval in result.over_time)]
    return sum(interval.processors[0].busy * (end_ps - start_ps) for interval, start_ps, end_ps
               in zip(result.over_time, ends_ps[:-1], ends_ps[1:], strict=True)) / until_ps


def at_full_load(name: str, notification: str, path: Path, loss: float = 0.0) -> tuple[
        SystemResult, ModelPort, Experiment]:
    """A run of a system with one processor for processes, which computes 4 ms for each request."""
    # A dedicated one stands beside it.
    dedicated = SYSTEMS[name].dedicated
    machine = msgspec.structs.replace(load_machine("p2-300-smp2"),
                                      processors=1 + (dedicated.processors if dedicated is not None else 0))
    apache = load_application("apache")
    busy = msgspec.structs.replace(apache, request=msgspec.structs.replace(apache.request, cycles=CYCLES_A_REQUEST))
    lossy, on_device = Impairments(loss=loss), SYSTEMS[name].is_on_device
    run = spec(with_notification(SYSTEMS[name], notification), synthetic(REQUESTS).requests, machine=machine,
               application=busy, capture_path=str(path), clients=16, seed=3,
               impairments=BothWays(outbound=lossy, inbound=lossy, seed=3) if loss else None)
    with Experiment(run, nothing) as experiment:
        config = device_config("tiny", control_port=on_device)
        port = ModelPort(config, experiment.kernel, experiment.memory, experiment.wire)
        experiment.attach(port, lambda: DeviceCounts(dma_read_bytes=0, dma_write_bytes=0, interrupts=port.interrupts))
        if on_device:
            experiment.attach_firmware(port.control, config.port_facts)
        assert experiment.kernel.run_while(lambda: not experiment.done), experiment.stall_report()
        result = experiment.result()
    assert result.requests == REQUESTS
    assert result.duration_ps > SECOND_PS
    assert busy_share(result, SECOND_PS) > 0.99
    return result, port, experiment


@pytest.mark.parametrize(("name", "notification", "loss"), [
    ("nic-dumb", "moderated", 0.0), ("nic-dumb", "each", 0.005), ("nic-tso", "napi", 0.0),
    ("nic-tso", "soft:100us", 0.0), ("ded1", "moderated", 0.0), ("ded1-send", "poll:50us", 0.0)])
def test_a_second_at_full_load_starves_no_peer_and_loses_no_completion(name: str, notification: str, loss: float,
                                                                       tmp_path: Path) -> None:
    path = tmp_path / "wire.pcapng"
    result, port, experiment = at_full_load(name, notification, path, loss)
    counters, counts = port.device.counters, experiment.processors.counts
    assert counters["completions"] == counts["driver", "receive_frame"] + counts["driver", "transmit_reclaim"] > 3000
    assert counters["tx_sends"] == counts["driver", "transmit_frame"] == counts["driver", "transmit_reclaim"]
    assert counters["rx_no_buffer"] == counters["rx_errors"] == counters["tx_errors"] == 0
    if loss:
        # Peers' timers did their work: all was served.
        assert result.inbound is not None
        assert result.inbound.lost > 0
    else:
        # A peer sends again only if the host let its timer expire.
        assert repeated_by_peers(path) == 0


@pytest.mark.parametrize("notification", ["moderated", "napi"])
def test_nor_does_it_where_the_device_does_tcp(notification: str, tmp_path: Path) -> None:
    path = tmp_path / "wire.pcapng"
    _, port, experiment = at_full_load("nic-tcp", notification, path)
    counters, counts = port.device.counters, experiment.processors.counts
    # Accept, receive, send and close of each; each process has a further accept under way, and one more listens.
    assert counters["completions"] == counts["driver", "transmit_reclaim"] >= 4 * REQUESTS
    waiting = counts["driver", "transmit_frame"] - counts["driver", "transmit_reclaim"]
    assert 1 <= waiting <= 10
    assert counters["rx_no_buffer"] == counters["rx_errors"] == counters["tx_errors"] == 0
    # The device answers its peers whatever the host does.
    assert repeated_by_peers(path) == 0
