"""What the device does in how many cycles: `memnic bench rtl`. Cycles are counted: any machine gives the same figures.

Each figure is measured with host memory that answers in order and out of order, and where it says so by one channel and
by several; the worst is the figure, and its note has all.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from cosim import builds
from cosim.benches import BenchOptions, cycles, limits
from cosim.benches.floors import Floor, Floors
from cosim.benches.rows import FAILED, Row, row
from cosim.engines.base import RunError
from host_driver.runtime import TaskFailed
from nic_model.contract import CONFIGS, Feature, NicConfig

DEVICES = {
    64: CONFIGS["tiny"],
    128: NicConfig(name="bench-128", mac_bytes=16, channels=4, vectors=4, keys=64),
    256: NicConfig(name="bench-256", mac_bytes=32, channels=4, vectors=4, keys=64, payload_reads=64,
                   tx_buffer_bytes=32768, rx_buffer_bytes=32768),
    512: NicConfig(name="bench-512", mac_bytes=64, channels=4, vectors=4, keys=64, payload_reads=96,
                   tx_buffer_bytes=65536, rx_buffer_bytes=65536),
}
"""Bits of the MAC's streams -> a device, with the buffers of the named one of its width, and reads in flight for the
bench's latency. Channels and keys, which cost no cycles, are few: that keeps builds short."""

assert all(config.mac_bytes * 8 == width for width, config in DEVICES.items())

MSS, SMALL_MSS = 1460, 536
SEVERAL, ALL = 3, 4
"""Channels that send, and that receive, at a time: those from 1 on, and those from 0 on."""

BUILD_S, RUN_S = 60.0, 0.4
"""About what a build and a load take: for the time left."""

SHARE, CYCLES, FRAME = "% of cycles", "cycles", "cycles a frame"
AT_LEAST, AT_MOST = ">=", "<="

Load = Callable[[cycles.Rig], Awaitable[Any]]


class Variant(NamedTuple):
    """One way to measure a figure."""

    name: str
    """Beside that of the order of reads; may be empty."""
    load: Load
    value: Callable[[Any], float]
    """Of what the load returns."""
    note: Callable[[Any], str] = lambda found: ""


class Figure(NamedTuple):
    """One row. Without variants it is not measured, and `missing` says why."""

    key: str
    """In the table of floors."""
    words: str
    unit: str
    sense: str
    bar: float
    limit: float
    """What a device of these widths could reach at best: see `cosim.benches.limits`."""
    variants: Sequence[Variant]
    missing: str = ""


def figures(config: NicConfig) -> list[Figure]:
    """All figures of a device."""
    return [*_transmit(config), *_receive(config), *_duplex(config), *_latencies(config)]


def _transmit(config: NicConfig) -> Iterator[Figure]:
    for mss, bar in ((MSS, 98.0), (SMALL_MSS, 95.0)):
        variants = [Variant(_channels(count), partial(cycles.transmit_share, mss=mss, channels=count), float)
                    for count in (1, SEVERAL)]
        limit = limits.transmit_percent(config, send_bytes=cycles.SEND_BYTES, mss=mss,
                                        latency_cycles=cycles.READ_LATENCY_CYCLES)
        yield Figure(f"transmit_{mss}", f"transmit, 64 KB sends, MSS {mss:,}", SHARE, AT_LEAST, bar, limit, variants)


def _receive(config: NicConfig) -> Iterator[Figure]:
    length = cycles.LARGE_FRAME_BYTES
    variant = Variant("", partial(cycles.receive_share, frame_bytes=length), lambda found: found.percent,
                      lambda found: f"{found.dropped} of {found.arrived} frames dropped" if found.dropped else "")
    yield Figure(f"receive_{length}", f"receive, {length:,}-byte frames without a pause", SHARE,
                 AT_LEAST, 95.0 if config.mac_bytes == 64 else 98.0,
                 limits.receive_percent(config, frame_bytes=length), [variant])


DUPLEX_BARS = {8: 10.5, 64: 4.0}
"""MAC width in bytes -> cycles a frame; other widths have no bar."""


def _duplex(config: NicConfig) -> Iterator[Figure]:
    """At the bar's rate, and as fast as frames may come: then receive drops what it cannot take."""
    length = cycles.SMALL_FRAME_BYTES
    bar = DUPLEX_BARS.get(config.mac_bytes)
    if bar is None:
        return
    limit = limits.duplex_cycles(config, frame_bytes=length, latency_cycles=cycles.READ_LATENCY_CYCLES)
    words = f"{length}-byte frames both ways"
    fastest = float(limits.beats(length, config.mac_bytes))
    # One channel receives; where frames can be spread, several do in another row.
    receiving = (1, ALL) if Feature.RSS in config.features else (1,)
    for key, rate, period in (("", f"arriving every {bar:g} cycles", bar),
                              ("_flooded", "arriving without a pause", fastest)):
        loads = {(sends, receives): partial(cycles.duplex_cycles, frame_bytes=length, senders=sends, receivers=receives,
                                            period=period)
                 for sends in (1, SEVERAL) for receives in receiving}
        for sends in (1, SEVERAL):
            yield Figure(f"small_transmit_{sends}{key}", f"{words}, {rate}: transmit by {_channels(sends)}", FRAME,
                         AT_MOST, bar, limit,
                         [Variant(f"receive by {_channels(receives)}", loads[sends, receives],
                                  lambda found: found.transmit) for receives in receiving])
        for receives in receiving:
            yield Figure(f"small_receive_{receives}{key}", f"{words}, {rate}: receive by {_channels(receives)}", FRAME,
                         AT_MOST, bar, max(limit, period),
                         [Variant(f"transmit by {_channels(sends)}", loads[sends, receives],
                                  lambda found: found.receive) for sends in (1, SEVERAL)])


def _latencies(config: NicConfig) -> Iterator[Figure]:
    small = cycles.SMALL_FRAME_BYTES
    pushes = Feature.PUSH in config.features
    yield Figure(
        "push", f"pushed descriptor, {small} bytes inline: burst's last beat to MAC's first", CYCLES, AT_MOST, 40.0,
        limits.push_cycles(config),
        [Variant("", partial(cycles.push_latency, frame_bytes=small), max)] if pushes else [],
        "" if pushes else "not measured: this device has no pushed descriptors (Feature.PUSH)")
    yield Figure(
        "doorbell", f"doorbell to MAC's first beat, {small}-byte frame, less two DMA round trips", CYCLES, AT_MOST,
        60.0, limits.doorbell_cycles(config), [Variant("", partial(cycles.doorbell_latency, frame_bytes=small), max)])
    for length in (small, cycles.LARGE_FRAME_BYTES):
        yield Figure(
            f"receive_latency_{length}",
            f"last beat received to completion's, {length:,}-byte frame, less its host beats and response", CYCLES,
            AT_MOST, 60.0, limits.receive_cycles(config),
            [Variant("", partial(cycles.receive_latency, frame_bytes=length), max)])


def _channels(count: int) -> str:
    return "1 channel" if count == 1 else f"{count} channels"


# ---------------------------------------------------------------------------------------------- measuring


def measure(options: BenchOptions) -> list[Row]:
    """The rows of all widths that are asked for."""
    floors = Floors.read()
    chosen = {width: DEVICES[width] for width in options.widths or DEVICES}
    progress = Progress(chosen, options.say)
    rows = []
    for width, config in chosen.items():
        progress.begins(f"{width}-bit device: building", _build_cost(config))
        rows += measure_device(config, build(config), floors.of(width), progress.begins)
    return rows


def build(config: NicConfig) -> Path:
    """The library of a device: the engine's own where it is built already, otherwise one that is built sooner."""
    target = builds.LIBRARY if builds.is_built(config, builds.LIBRARY) else builds.COUNTING
    return builds.build(config, target) / "obj" / builds.LIBRARY_NAME


def measure_device(config: NicConfig, library: Path, floors: Mapping[str, Floor],
                   begins: Callable[[str, float], None] = lambda what, cost: None) -> list[Row]:
    """The rows of one device. `begins(what, seconds)` is told of each figure, and about how long it takes.

    A figure one of whose loads fails is not measured; its row says why.
    """
    width = 8 * config.mac_bytes
    found: dict[tuple[Load, str], Any] = {}
    rows = []
    for figure in figures(config):
        begins(f"{width}-bit device: {figure.words}", _cost(figure))
        try:
            for variant in figure.variants:
                for order, timing in cycles.BUSES.items():
                    if (variant.load, order) not in found:
                        found[variant.load, order] = cycles.run(config, library, timing, variant.load)
        except (TaskFailed, RunError) as error:
            figure = figure._replace(variants=(), missing=f"{FAILED}{error}")
        rows.append(_row(width, figure, found, floors.get(figure.key)))
    return rows


def _row(width: int, figure: Figure, found: Mapping[tuple[Load, str], Any], floor: Floor | None) -> Row:
    values = {}
    notes = []
    for variant in figure.variants:
        for order in cycles.BUSES:
            result = found[variant.load, order]
            values[", ".join(filter(None, [variant.name, order]))] = variant.value(result)
            notes.append(variant.note(result))
    value = None if not values else (min if figure.sense == AT_LEAST else max)(values.values())
    shown = {name: f"{v:.4g}" for name, v in values.items()}
    spread = "; ".join(f"{name}: {v}" for name, v in shown.items()) if len(set(shown.values())) > 1 else ""
    measured = row(f"{width}-bit: {figure.words}", value, figure.unit, figure.sense, figure.bar)
    reason = floor.reason if floor is not None and value is not None and not measured.reached else ""
    note = "; ".join(dict.fromkeys(filter(None, [figure.missing, reason, spread, *notes])))
    return row(measured.figure, value, figure.unit, figure.sense, figure.bar, note, limit=figure.limit,
               floor=None if floor is None else floor.value, key=figure.key, group=f"{width}-bit")


# ---------------------------------------------------------------------------------------------- time left


def _build_cost(config: NicConfig) -> float:
    """About the seconds of its build."""
    return 0.0 if any(builds.is_built(config, target) for target in (builds.LIBRARY, builds.COUNTING)) else BUILD_S


def _cost(figure: Figure) -> float:
    return RUN_S * len(figure.variants) * len(cycles.BUSES)


class Progress:
    """Says what begins, and how long all that is left will take: what was thought, times how wrong that was so far."""

    def __init__(self, devices: Mapping[int, NicConfig], say: Callable[[str], None],
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._left_s = sum(_build_cost(config) + sum(map(_cost, figures(config))) for config in devices.values())
        self._say = say
        self._clock = clock
        self._begin_s = clock()
        self._done_s = 0.0
        self._under_way_s = 0.0

    def begins(self, what: str, cost_s: float) -> None:
        """Something begins that should take so long; what began before is over."""
        self._done_s += self._under_way_s
        self._left_s -= self._under_way_s
        self._under_way_s = cost_s
        wrong = (self._clock() - self._begin_s) / self._done_s if self._done_s else 1.0
        left_s = max(0.0, self._left_s * wrong)
        left = f"{left_s:.0f} s" if left_s < 100 else f"{left_s / 60:.0f} min"
        self._say(f"{what} (about {left} left)")
