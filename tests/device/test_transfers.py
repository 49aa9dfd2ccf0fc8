"""The driver's transfers over the RTL, as `tests/host_driver` has them over the model; reads in flight."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from cosim.engines.base import RunError
from nic_model.contract import CONFIGS
from tests.device.rig import FAR, FAST, RigSpec, on_model, on_rtl

CASES = [
    {"api": api, "length": length, "notification": notification, "version": version, "offloads": offloads}
    for (api, offloads), length, notification, version in itertools.product(
        [("sockets", False), ("sockets", True), ("memnet", True)], [1, 100_000], ["interrupts", "moderated", "polling"],
        [4, 6])
    if version == 4 or notification == "moderated"
] + [
    {"api": "sockets", "length": 100_000, "notification": "moderated", "version": version, "offloads": True,
     "coalescing_usecs": 20} for version in (4, 6)
] + [
    {"api": api, "length": length, "notification": "napi", "version": 4, "offloads": api == "memnet"}
    for length, api in itertools.product([1, 100_000], ["sockets", "memnet"])
]


@pytest.mark.parametrize("device", ["model", "rtl-fast", "rtl-far", "rtl-posted"])
def test_transfers(tiny_compiled: Path, device: str) -> None:
    """Sockets and MemNet, one byte and many, by interrupts and by polling."""
    cases = CASES if device in ("model", "rtl-fast") else CASES[::2]
    spec = RigSpec(scenario="tests.device.transfers:run_transfers", arguments=cases, posted=device == "rtl-posted",
                   timing=FAR if device == "rtl-far" else FAST, limit_ps=10**14)
    wrong = on_model(spec) if device == "model" else on_rtl(spec)
    assert [(case, error) for case, error in zip(spec.arguments, wrong, strict=True) if error] == []


def test_missing_barrier_is_seen(tiny_compiled: Path) -> None:
    with pytest.raises(RunError, match="TRUNCATED_DESCRIPTOR"):
        on_rtl(RigSpec(scenario="tests.device.transfers:without_barriers", posted=True))


def test_reads_in_flight_at_a_far_bus(tiny_compiled: Path) -> None:
    """32 payload reads at 250 cycles of latency, whose data come out of order."""
    assert FAR.read_latency_cycles == 250
    found = on_rtl(RigSpec(scenario="tests.device.transfers:reads_in_flight", timing=FAR))
    assert found["good"]
    assert not found["in_order"]
    assert found["reads"] > 200
    assert found["most"] == CONFIGS["tiny"].payload_reads == 32
