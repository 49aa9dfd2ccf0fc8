"""Transactors in C++ and in Python say the same: random numbers, the bus, the MAC; each compiled or run by itself."""

from __future__ import annotations

import ctypes
import random
import subprocess
from collections.abc import Callable
from dataclasses import replace

import pytest

from cosim import builds
from cosim.engines.bus import Bus, BusTiming, fractions_of
from cosim.engines.lean.mac import LeanMac
from cosim.engines.lean.pins import READY_SHIFT, STREAM, VALID, Edges, Inputs
from cosim.engines.library import bus_settings, mac_settings
from cosim.engines.splitmix import SplitMix
from cosim.mac import MacTiming
from nic_model.contract import CONFIGS, MAX_FRAME_BYTES
from rtl.simulation import vector_fields
from rtl.wrapper import pins_header

CONFIG = CONFIGS["tiny"]

SOURCE = r"""
#include "bus.h"
#include "mac.h"

using namespace memnic;

extern "C" {

void random_numbers(uint64_t seed, int64_t count, uint64_t* numbers) {
  SplitMix random(seed);
  for (int64_t index = 0; index < count; ++index) numbers[index] = random.next();
}

void random_below(uint64_t seed, int64_t count, const uint64_t* bounds, uint64_t* numbers) {
  SplitMix random(seed);
  for (int64_t index = 0; index < count; ++index) numbers[index] = random.below(bounds[index]);
}

// Of each burst: edge, length, and 0 for a read, 1 for a write; then when it is due. 2: somebody else has the bus, for
// so many fractions of a cycle.
void bus(const BusSettings* settings, int64_t count, const int64_t* bursts, int64_t* due) {
  Bus bus(*settings);
  for (; count--; bursts += 3) {
    if (bursts[2] == 2) bus.take(bursts[0], bursts[1]);
    *due++ = bursts[2] == 2   ? bursts[0]
             : bursts[2] == 1 ? bus.write_arrives(bursts[0], bursts[1])
                              : bus.read_due(bursts[0], bursts[1]);
  }
}

// `offers`: bit 0, the device offers a beat at this edge, if it has one; bit 1, it takes one. `shown`: what the MAC
// shows then, as the Python of the test packs it.
void mac(const MacSettings* settings, int64_t edges, const uint8_t* offers, const int64_t* sends, int64_t count,
         const int64_t* arrivals, int64_t* shown, int64_t* frames) {
  Mac mac(*settings);
  Inputs in{};
  for (; count--; arrivals += 3) {
    std::vector<uint8_t> data(arrivals[1], static_cast<uint8_t>(arrivals[1]));
    mac.deliver(arrivals[0], data.data(), static_cast<uint32_t>(data.size()), arrivals[2]);
  }
  int64_t sent = 0;
  for (Edge edge = 0; edge < edges; ++edge) {
    Outputs out{};
    const int64_t left = *sends - sent, lanes = std::min<int64_t>(left, MAC_BYTES);
    if (offers[edge] & 1 && left) {
      out.flags |= M_AXIS_TX_VALID;
      out.m_axis_tx.keep = (1u << lanes) - 1;
      out.m_axis_tx.last = lanes == left;
    }
    if (offers[edge] & 2) out.flags |= S_AXIS_RX_READY;
    const bool moved = mac.sink(edge, out, in);
    mac.source(edge, out, in);
    if (moved && (sent += lanes) == *sends) {
      ++sends;
      sent = 0;
    }
    *shown++ = (in.ready & M_AXIS_TX_TAKEN ? 1 : 0) | in.s_axis_rx.valid << 1 |
               (in.s_axis_rx.valid ? in.s_axis_rx.last << 2 | in.s_axis_rx.user << 3 |
                static_cast<int64_t>(in.s_axis_rx.keep) << 4 | static_cast<int64_t>(in.s_axis_rx.data[0]) << 12 : 0);
    *shown++ = mac.next(!(in.ready & M_AXIS_TX_TAKEN));
    *shown++ = mac.held_since();
    *shown++ = mac.drains(edge);
  }
  for (const SentFrame& frame : mac.frames) {
    std::memcpy(frames, &frame, sizeof frame);
    frames += 5;
  }
}

}
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The C++ of bus, MAC and random numbers."""
    folder = tmp_path_factory.mktemp("transactors")
    (folder / "pins.h").write_text(pins_header(CONFIG))
    (folder / "test.cpp").write_text(SOURCE)
    subprocess.run(["g++", "-std=c++17", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", f"-I{folder}",
                    f"-I{builds.TRANSACTORS}", "-o", folder / "test.so", folder / "test.cpp"], check=True)
    return ctypes.CDLL(str(folder / "test.so"))


def numbers(values: list[int], kind: type = ctypes.c_int64) -> ctypes.Array[ctypes.c_int64]:
    """A C array."""
    return (kind * len(values))(*values)  # type: ignore[no-any-return]


def test_splitmix_gives_the_published_numbers() -> None:
    # Rosetta Code, "Pseudo-random numbers/Splitmix64", for seed 1234567
    splitmix = SplitMix(1234567)
    assert [splitmix.next() for _ in range(5)] == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_random_numbers(compiled: ctypes.CDLL, seed: int) -> None:
    got = numbers([0] * 100, ctypes.c_uint64)
    compiled.random_numbers(ctypes.c_uint64(seed), ctypes.c_int64(100), got)
    splitmix = SplitMix(seed)
    assert list(got) == [splitmix.next() for _ in range(100)]

    rng = random.Random(seed)
    bounds = [rng.randrange(1, 2 ** rng.randrange(1, 33)) for _ in range(100)]
    compiled.random_below(ctypes.c_uint64(seed), ctypes.c_int64(100), numbers(bounds, ctypes.c_uint64), got)
    splitmix = SplitMix(seed)
    assert list(got) == [splitmix.below(bound) for bound in bounds]
    assert all(number < bound for number, bound in zip(got, bounds, strict=True))


SHARED = BusTiming(read_latency_cycles=80, write_latency_cycles=30, mmio_read_cycles=0, mmio_write_cycles=0,
                   bytes_per_cycle=0.73)


TAKE = 2


def _due(bus: Bus, edge: int, length: int, kind: int) -> int:
    if kind == TAKE:
        bus.take(edge, length)
        return edge
    return bus.write_arrives(edge, length) if kind else bus.read_due(edge, length)


@pytest.mark.parametrize("timing", [
    SHARED,
    replace(SHARED, bytes_per_cycle=19.7, duplex=True),
    replace(SHARED, bytes_per_cycle=19.7, duplex=True, tlp_overhead_bytes=26, max_payload_bytes=128,
            max_read_request_bytes=64, tags=5),
    replace(SHARED, bytes_per_cycle=8, tlp_overhead_bytes=10, max_payload_bytes=64, reorder_cycles=300, seed=4),
], ids=["shared", "duplex", "packets", "reordered"])
@pytest.mark.parametrize("seed", range(5))
def test_bus(compiled: ctypes.CDLL, timing: BusTiming, seed: int) -> None:
    rng, edge = random.Random(seed), 0
    bursts = []
    for _ in range(500):
        edge += rng.choice([0, 1, 2, 30, 300])
        if rng.randrange(8):
            bursts.append((edge, rng.randrange(1, 257), rng.randrange(2)))
        else:
            bursts.append((edge, fractions_of(rng.randrange(1_000_000), CONFIG.clock_hz), TAKE))
    got = numbers([0] * len(bursts))
    compiled.bus(ctypes.byref(bus_settings(timing)), ctypes.c_int64(len(bursts)),
                 numbers([value for burst in bursts for value in burst]), got)
    bus = Bus(timing)
    expected = [_due(bus, *burst) for burst in bursts]
    assert list(got) == expected, f"seed {seed}"
    assert all(due >= at for due, (at, _, _) in zip(got, bursts, strict=True))


class Wires:
    """Implements `cosim.engines.lean.pins.Pins`: outputs are read from `shows`, inputs kept in `given`."""

    def __init__(self) -> None:
        self.shows: dict[str, int] = {}
        self.given: dict[str, int] = {}

    def reader(self, name: str) -> Callable[[], int]:
        return lambda: self.shows[name]

    watcher = reader

    def writer(self, name: str) -> Callable[[int], None]:
        def write(value: int) -> None:
            self.given[name] = value

        return write


def lean_mac(timing: MacTiming, offers: list[int], sends: list[int],
             arrivals: list[tuple[int, int, int]]) -> tuple[list[int], list[int]]:
    """What C++'s `mac` does, with the MAC in Python: what it shows at each edge, and its frames."""
    wires = Wires()
    mac = LeanMac(CONFIG, Edges(CONFIG.clock_hz), wires, Inputs(wires), timing)
    for time_ps, length, bad in arrivals:
        mac.deliver(time_ps, bytes([length % 256]) * length, bool(bad))
    tx, rx = (vector_fields(CONFIG)[name] for name in ("m_axis_tx", "s_axis_rx"))
    rx_ready = 1 << STREAM["s_axis_rx"] + READY_SHIFT
    lengths, sent, shown = iter(sends), 0, []
    length = next(lengths)
    for edge, offer in enumerate(offers):
        lanes = min(length - sent, CONFIG.mac_bytes)
        flags = (VALID["m_axis_tx"] if offer & 1 and lanes else 0) | (rx_ready if offer & 2 else 0)
        wires.shows["m_axis_tx"] = ((1 << lanes) - 1) << tx["keep"][0] | (lanes == length - sent) << tx["last"][0]
        moved = mac.sink(edge, flags)
        mac.source(edge, flags)
        if moved:
            sent += lanes
            if sent == length:
                length, sent = next(lengths), 0
        word = wires.given.get("s_axis_rx", 0)
        beat = {name: word >> 1 + offset & (1 << width) - 1 for name, (offset, width) in rx.items()}
        shown += [mac.ready | (word & 1) << 1 | beat["last"] << 2 | beat["user"] << 3 | beat["keep"] << 4
                  | beat["data"] % 256 << 12, mac.next(), mac.held_since(), mac.drains(edge)]
    return shown, [value for frame in mac.frames for value in (len(frame.data), *frame[1:])]


PLAIN = MacTiming(bit_rate=10**10)


@pytest.mark.parametrize("timing", [
    PLAIN,
    replace(PLAIN, bit_rate=10**9, fifo_bytes=MAX_FRAME_BYTES + 3000, jitter_ps=3_000_000, seed=5),
    replace(PLAIN, sink_percent=37, source_percent=61, source_gap_cycles=9),
    replace(PLAIN, fifo_bytes=1 << 20, overhead_bytes=38, gap_bytes=20, min_frame_bytes=64, lookahead_ps=400_000),
], ids=["plain", "slow", "held", "odd"])
@pytest.mark.parametrize("seed", range(3))
def test_mac(compiled: ctypes.CDLL, timing: MacTiming, seed: int) -> None:
    rng = random.Random(seed)
    edges = 20_000
    busy = rng.choice([0.6, 0.9, 1.0])
    offers = [(rng.random() < busy) | (rng.random() < busy) << 1 for _ in range(edges)]
    sends = [rng.choice([1, 8, 60, 61, 1514, 2000, rng.randrange(1, 2001)]) for _ in range(400)] + [0]
    arrivals, time_ps = [], 0
    for _ in range(60):
        time_ps += rng.choice([0, 1, 6400, 500_000, 2_000_000])
        arrivals.append((time_ps, rng.choice([1, 60, 64, 1514, rng.randrange(1, 2001)]), rng.randrange(2)))
    shown, frames = numbers([0] * 4 * edges), numbers([0] * 5 * len(sends))
    compiled.mac(ctypes.byref(mac_settings(timing)), ctypes.c_int64(edges), (ctypes.c_uint8 * edges)(*offers),
                 numbers(sends), ctypes.c_int64(len(arrivals)),
                 numbers([value for arrival in arrivals for value in arrival]), shown, frames)
    expected_shown, expected_frames = lean_mac(timing, offers, sends, arrivals)
    first = next((n // 4 for n in range(4 * edges) if shown[n] != expected_shown[n]), None)
    assert first is None, f"seed {seed}, edge {first}: {shown[4 * first:4 * first + 4]}, " \
                          f"{expected_shown[4 * first:4 * first + 4]}"
    assert frames[: len(expected_frames)] == expected_frames, f"seed {seed}"
    assert len(expected_frames) > 5 * 10
    assert sum(word >> 2 & 1 for word in shown[::4]) > 10
