"""What an impaired path does to frames, how often, and that the same seed does it again."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter

import pytest

from cosim.errors import InputError
from cosim.impairments import BothWays, Impairments, Path
from cosim.mac import MacTiming, TransmitFifo
from cosim.options import parse_impairments, parse_share
from cosim.wire import Wire
from host_driver.runtime import Kernel

MS = 10**9
DEVICE, PEER = bytes([2, 0, 0, 0, 0, 1]), bytes([2, 0, 0, 0, 0, 2])
IPV4, ARP = b"\x08\x00", b"\x08\x06"


def frame(number: int, ethertype: bytes = IPV4, length: int = 100) -> bytes:
    """Each differs from each other in many bits, so that none becomes another by a flip."""
    return (DEVICE + PEER + ethertype + random.Random(number).randbytes(16)).ljust(length, b"\x55")


def through(settings: Impairments, frames: int, seed: int = 7) -> tuple[Path, list[tuple[int, bytes]]]:
    path = Path(settings, random.Random(seed))
    return path, [out for number in range(frames) for out in path.through(number * MS, frame(number))]


def test_a_path_without_impairments_changes_nothing() -> None:
    path, out = through(Impairments(), 50)
    assert out == [(number * MS, frame(number)) for number in range(50)]
    assert path.counts.entered == 50


@pytest.mark.parametrize("what", ["loss", "duplicate", "corrupt", "reorder"])
def test_each_impairment_happens_as_often_as_asked_and_is_counted(what: str) -> None:
    frames, share = 20_000, 0.05
    path, out = through(Impairments(**{what: share}), frames)
    counts = {"loss": path.counts.lost, "duplicate": path.counts.duplicated, "corrupt": path.counts.corrupted,
              "reorder": path.counts.reordered}
    happened = counts.pop(what)
    assert set(counts.values()) == {0}
    # 5 % of 20,000 is 1,000, and five standard deviations are 5 * sqrt(20,000 * 0.05 * 0.95) = 154.
    assert abs(happened - 1000) < 154
    sent = {frame(number): number * MS for number in range(frames)}
    seen = Counter(data for _, data in out)
    found = {"loss": sum(data not in seen for data in sent), "duplicate": sum(times == 2 for times in seen.values()),
             "corrupt": sum(data not in sent for data in seen),
             "reorder": sum(sent.get(data) not in (None, time) for time, data in out)}
    assert found.pop(what) == happened
    if what == "corrupt":
        assert found.pop("loss") == happened  # the frame as it was does not arrive
    assert set(found.values()) <= {0}


def test_a_frame_that_comes_late_is_overtaken() -> None:
    path = Path(Impairments(reorder=0.3, reorder_ps=5 * MS), random.Random(1))
    arrivals = sorted((time, number) for number in range(100) for time, _ in path.through(number * MS, frame(number)))
    assert any(later < earlier for (_, earlier), (_, later) in itertools.pairwise(arrivals))


def test_damage_is_one_bit_of_a_packet_and_never_of_an_address_or_of_arp() -> None:
    path = Path(Impairments(corrupt=1), random.Random(2))
    for number in range(500):
        (_, damaged), = path.through(0, frame(number))
        changed = int.from_bytes(damaged, "big") ^ int.from_bytes(frame(number), "big")
        assert changed.bit_count() == 1
        assert damaged[:14] == frame(number)[:14]
    assert path.through(0, frame(1, ARP)) == [(0, frame(1, ARP))]
    assert path.counts.corrupted == 500


def test_a_bottleneck_spreads_frames_and_drops_what_its_queue_does_not_hold() -> None:
    # 100 bytes and 24 of the wire at 1 Mbit/s: 992 us a frame.
    path = Path(Impairments(bit_rate=1_000_000, queue_bytes=5 * 124, delay_ps=3 * MS), random.Random(3))
    out = [time for number in range(10) for time, _ in path.through(0, frame(number))]
    assert out == [3 * MS + 992_000_000 * turn for turn in range(1, 6)]
    assert path.counts.overflowed == 5
    assert len(path.through(10 * MS, frame(11))) == 1


def test_a_setting_does_not_shift_what_another_one_hits() -> None:
    _, alone = through(Impairments(loss=0.2), 1000)
    _, together = through(Impairments(loss=0.2, duplicate=0.5, reorder=0.5), 1000)
    assert {data for _, data in alone} == {data for _, data in together}


def test_directions_differ_and_the_same_seed_does_the_same_again() -> None:
    def lost(*, outbound: bool, seed: int) -> list[int]:
        ways = BothWays(outbound=Impairments(loss=0.3), inbound=Impairments(loss=0.3), seed=seed)
        path = ways.path(outbound=outbound)
        return [number for number in range(100) if not path.through(0, frame(number))]

    assert lost(outbound=True, seed=1) == lost(outbound=True, seed=1)
    assert len({tuple(lost(outbound=way, seed=seed)) for way in (False, True) for seed in (1, 2)}) == 4


def test_the_wire_is_impaired_in_each_direction_by_itself() -> None:
    kernel = Kernel()
    wire = Wire(kernel, bit_rate=10**9, impairments=BothWays(outbound=Impairments(loss=1),
                                                            inbound=Impairments(duplicate=1, delay_ps=MS)))
    seen: list[tuple[int, str]] = []
    wire.deliver = lambda data, bad, time: seen.append((time, "device"))
    peer = wire.attach(PEER, lambda data: seen.append((kernel.now, "peer")))
    fifo = TransmitFifo(MacTiming(bit_rate=10**9))
    wire.transmitted([fifo.push(PEER + DEVICE + IPV4 + bytes(60), 0)])
    peer.transmit(frame(1))
    kernel.run_until(10 * MS)
    assert [who for _, who in seen] == ["device", "device"]
    assert seen[0][0] > MS
    assert wire.outbound is not None
    assert wire.inbound is not None
    assert (wire.outbound.counts.lost, wire.inbound.counts.duplicated) == (1, 1)


def test_options_name_both_ways_or_each() -> None:
    none = dict.fromkeys(("loss", "duplicate", "corrupt", "reorder", "delay", "bottleneck"))
    assert parse_impairments(**none, seed=1) is None
    both = parse_impairments(**{**none, "loss": "1%", "delay": "10ms:0", "bottleneck": "0:5M"}, seed=3)
    assert both == BothWays(outbound=Impairments(loss=0.01, delay_ps=10 * MS),
                            inbound=Impairments(loss=0.01, bit_rate=5_000_000), seed=3)


@pytest.mark.parametrize("text", ["101%", "-1", "a", "1%%", "1:2", ""])
def test_a_share_that_is_none_is_refused_by_its_option(text: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"--loss must be a share from 0 to 100%, such as 1% or 0.01, not "
                                                   f"{text!r}")):
        parse_share("--loss", text)
