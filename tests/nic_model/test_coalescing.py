"""The model's coalescing against Linux's rules, and the way back to the segments."""

from __future__ import annotations

import random

import pytest

from nic_model.aggregates import resegment
from nic_model.coalescing import Coalescer
from nic_model.contract import (
    CompletionKind,
    OperationMask,
    RxInfo,
    Status,
    channel_register,
    register,
)
from nic_model.receive_parser import parse_received
from tests.gro import DEVIATIONS, LinuxGro, Segment, Streams
from tests.nic_model.test_device import ALL_OPERATIONS, BASE, DATA, Bench

FAR = 1 << 31
OWN = bytes.fromhex("020000000001")


def events_of(segments: list[Segment], **settings: int) -> list[tuple[object, ...]]:
    """What the model makes of segments, as the reference tells it."""
    coalescer = Coalescer(16)
    coalescer.ticks = FAR
    coalescer.limit_bytes = settings.get("limit_bytes", 0xFFFF)
    events: list[tuple[object, ...]] = []
    for number, segment in enumerate(segments):
        frame = segment.frame()
        verdict = coalescer.judge(frame, parse_received(frame).info, 0, may_open=True)
        events += [("end", aggregate.receive) for aggregate in verdict.ended]
        if verdict.aggregate is None:
            events.append(("alone", number))
        elif verdict.opens:
            verdict.aggregate.receive = number
            events.append(("open", number))
        else:
            first = verdict.aggregate.receive
            events += [("append", number, first), *([("end", first)] if verdict.is_last else [])]
    return events


@pytest.mark.parametrize("seed", range(6))
def test_random_streams_against_linux(seed: int) -> None:
    streams = Streams(random.Random(seed), 20, deviation=0.15)
    segments = [streams.segment() for _ in range(2500)]
    linux = LinuxGro()
    for segment in segments:
        linux.receive(segment)
    assert min(streams.tried.values()) > 0
    for n, (expected, got) in enumerate(zip(linux.events, events_of(segments), strict=True)):
        assert got == expected, f"seed {seed}, event {n}: {segments[int(str(expected[1]))]}"


def coalescing_bench(ticks: int = FAR, log2: int = 10) -> Bench:
    bench = Bench(log2=log2, operations=ALL_OPERATIONS | OperationMask.COALESCE)
    for name, value in (("MAC_ADDRESS_LO", int.from_bytes(OWN[:4], "little")),
                        ("MAC_ADDRESS_HI", int.from_bytes(OWN[4:], "little")), ("COALESCE_TICKS", ticks)):
        bench.device.write_register(register(name), value)
    return bench


def take_receives(bench: Bench, length: int) -> list[tuple[dict[str, int], bytes, list[int]]]:
    """All receives that were told: head completion, bytes, buffers; buffer n lies at n * `length`."""
    receives = []
    while bench.has_completion():
        head = bench.completion()
        assert head["kind"] == CompletionKind.RECEIVE
        parts = [head]
        for _ in range(head["more"]):
            parts.append(bench.completion())
            assert parts[-1]["kind"] == CompletionKind.RECEIVE_MORE
        data = b"".join(bytes(bench.memory[DATA - BASE + part["tag"] * length :][: part["length"]]) for part in parts)
        receives.append((head, data, [part["tag"] for part in parts]))
    return receives


@pytest.mark.parametrize("seed", range(4))
def test_delivered_aggregates_give_the_frames_back(seed: int) -> None:
    """Through the device, into buffers of 150 bytes: each receive, cut again, is the frames that came."""
    rng = random.Random(seed)
    streams = Streams(rng, 8, deviation=0.1, sizes=(20, 60, 61))
    bench = coalescing_bench(log2=6)
    length = 150
    sent: list[bytes] = []
    got: list[bytes] = []
    groups = 0
    free = list(range(60))
    for _ in range(400):
        while free:
            number = free.pop()
            bench.post(length=length, offset=number * length, buffer_id=number)
        frame = streams.segment().frame()
        sent.append(frame)
        bench.device.receive(frame, now_cycles=1)
        for head, data, buffers in take_receives(bench, length):
            free += buffers
            got += resegment(data, head["segments"], head["mss"], RxInfo(head["info"]))
            groups += head["segments"] > 1
    bench.device.write_register(register("DRAIN"), 1)
    for head, data, _ in take_receives(bench, length):
        assert head["status"] == Status.OK
        got += resegment(data, head["segments"], head["mss"], RxInfo(head["info"]))
        groups += head["segments"] > 1
    counters = bench.counters()
    assert groups > 20
    assert counters["rx_aggregates"] == groups
    assert counters["rx_no_buffer"] == 0
    assert sorted(got) == sorted(sent)
    assert len(sent) - counters["rx_coalesced"] < len(sent)


def test_age_and_its_deadline() -> None:
    bench = coalescing_bench(ticks=1000)
    for number in range(4):
        bench.post(buffer_id=number, offset=2048 * number)
    bench.device.receive(Segment(1, payload=bytes(50)).frame(), now_cycles=100)
    bench.device.receive(Segment(2, payload=bytes(50)).frame(), now_cycles=300)
    bench.device.receive(Segment(1, seq=50, ident=1, payload=bytes(50)).frame(), now_cycles=700)
    assert bench.device.next_deadline() == 1100
    bench.device.advance(1099)
    assert not bench.has_completion()
    bench.device.advance(1100)
    done = bench.completion()
    assert (done["segments"], done["mss"], done["length"], done["timestamp"]) == (2, 50, 154, 100)
    assert bench.device.next_deadline() == 1300
    bench.set("COALESCE_TICKS", 0)
    done = bench.completion()
    assert (done["segments"], done["mss"]) == (1, 0)
    assert bench.device.next_deadline() is None


def test_a_missing_buffer_ends_the_aggregate() -> None:
    bench = coalescing_bench()
    bench.post(length=130, buffer_id=0)
    frames = [Segment(1, seq=50 * n, ident=n, payload=bytes([n]) * 50).frame() for n in range(4)]
    bench.device.receive(frames[0])
    bench.device.receive(frames[1])  # no room in the buffer, and none posted
    assert bench.completion()["segments"] == 1
    assert bench.counters()["rx_no_buffer"] == 1
    bench.post(length=2048, buffer_id=1, offset=2048)
    bench.device.receive(frames[2])
    bench.device.receive(frames[3])
    bench.device.write_register(register("DRAIN"), 1)
    done = bench.completion()
    assert (done["segments"], done["mss"], done["tag"]) == (2, 50, 1)
    data = bytes(bench.memory[DATA - BASE + 2048 :][: done["length"]])
    assert resegment(data, 2, 50, RxInfo(done["info"])) == frames[2:]


def test_a_failed_write_is_the_status_of_the_aggregate() -> None:
    bench = coalescing_bench()
    bench.post(length=100, buffer_id=0)
    bench.post(length=2048, buffer_id=1, offset=4096)
    bench.broken.add(DATA + 4096)
    for n in range(3):
        bench.device.receive(Segment(1, seq=50 * n, ident=n, payload=bytes(50)).frame())
    bench.device.write_register(register("DRAIN"), 1)
    head, more = bench.completion(), bench.completion()
    assert (head["status"], head["length"], head["segments"], head["more"]) == (Status.BUS_ERROR, 0, 0, 1)
    assert (more["kind"], more["tag"], more["length"]) == (CompletionKind.RECEIVE_MORE, 1, 0)


def test_a_reset_tells_the_others() -> None:
    bench = coalescing_bench()
    bench.post()
    bench.device.receive(Segment(1, payload=bytes(50)).frame())
    bench.device.write_register(channel_register("CHANNEL_CONTROL", 1), 0)  # that is IDLE: nothing happens
    assert not bench.has_completion()
    bench.enable(1)
    bench.rx, bench.cq = 1, 0
    bench.device.write_register(channel_register("CHANNEL_CONTROL", 1), 0)
    assert bench.completion()["segments"] == 1


def test_every_deviation_is_tried() -> None:
    assert len(DEVIATIONS) > 25
