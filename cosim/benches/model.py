"""How fast the timed model is: `memnic bench model`.

Time is that of one processor; the best of some repetitions counts, since machines are shared.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator

import numpy as np

from cosim.benches import BenchOptions
from cosim.benches.rows import Row, row
from cosim.mac import PS_PER_S, MacTiming
from cosim.timing.cases import Case, Send, Sender
from cosim.timing.characterize import bus
from cosim.timing.device_file import load_device
from cosim.timing.observed import on_model
from nic_model.timing.kernel import Kernel, frames, sends
from nic_model.timing.parameters import DeviceModel

LARGE_BYTES, SMALL_BYTES = 1514, 60
MEAN_WIRE_BYTES = (LARGE_BYTES + SMALL_BYTES) / 2 + 24

DEVICE = "bench-128"
"""At 156.25 MHz its MAC takes 20 Gb/s, so that 10 Gb/s of wire are what limits."""

LINK = MacTiming(bit_rate=10_000_000_000, lookahead_ps=PS_PER_S)
FAST = MacTiming(bit_rate=PS_PER_S, lookahead_ps=PS_PER_S)

KERNEL_FRAMES = 400_000
FEW_FRAMES, MANY_FRAMES = 500, 3_500
"""Of the device with bytes: what more frames take longer counts, without memory's and driver's start."""
BLOCK = 16_384
DOORBELL_LOG2 = 6
"""Of the frames that one doorbell tells of."""
REPETITIONS = 10
GROWTH = 4


def mix(count: int) -> Iterator[np.ndarray]:
    """Sends of large and small frames in turn, in blocks."""
    for begin in range(0, count, BLOCK):
        number = np.arange(begin, min(count, begin + BLOCK))
        yield sends(1000, 1 + (number >> DOORBELL_LOG2 & 1), np.where(number & 1, LARGE_BYTES, SMALL_BYTES))


def kernel_seconds(model: DeviceModel, mac: MacTiming, count: int) -> tuple[float, int]:
    """(seconds that the kernel takes for so many frames, edge at which the last has left)."""
    kernel = Kernel(model, bus(), mac, specialised=True)
    begin, sent, last = time.process_time(), 0, 0
    for events in kernel.run(mix(count)):
        found = frames(events)
        sent += len(found)
        if len(found):
            last = int(found[-1, 3])
    seconds = time.process_time() - begin
    if sent != count:
        raise RuntimeError(f"{sent} of {count} frames were sent")
    return seconds, last


def bytes_seconds(model: DeviceModel, count: int) -> float:
    """Seconds that the event-driven device takes for so many frames, with driver and host memory."""
    each = tuple(Send(payload=size, offset=64 * (number % 64)) for number in range(count // 2)
                 for size in (LARGE_BYTES, SMALL_BYTES))
    case = Case(name="speed", bus=bus(), mac=FAST, senders=(Sender(channel=1, sends=each, bells=((100, len(each)),)),))
    begin = time.process_time()
    found = on_model(model, case)
    seconds = time.process_time() - begin
    if len(found.frames) != len(each):
        raise RuntimeError(f"{len(found.frames)} of {len(each)} frames were sent")
    return seconds


def _best(measure: Callable[[], float]) -> float:
    return min(measure() for _ in range(REPETITIONS))


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(options: BenchOptions) -> list[Row]:
    """All rows; what numba must compile is compiled before."""
    model = load_device(DEVICE)
    options.say("compiling")
    kernel_seconds(model, LINK, 1000)
    bytes_seconds(model, 100)
    options.say("kernel")
    kernel = _best(lambda: kernel_seconds(model, FAST, KERNEL_FRAMES)[0])
    small = _peak_bytes()
    options.say("kernel, longer")
    longer = _best(lambda: kernel_seconds(model, FAST, GROWTH * KERNEL_FRAMES)[0])
    large = _peak_bytes()
    options.say("a second of 10 Gb/s traffic")
    rate = LINK.bit_rate / 8 / MEAN_WIRE_BYTES
    second = _best(lambda: kernel_seconds(model, LINK, int(rate))[0])
    _, last = kernel_seconds(model, LINK, int(rate))
    options.say("with bytes")
    with_bytes = _best(lambda: bytes_seconds(model, MANY_FRAMES)) - _best(lambda: bytes_seconds(model, FEW_FRAMES))
    mixed = f"{LARGE_BYTES:,}-byte and {SMALL_BYTES}-byte frames"
    return [
        row(f"kernel, {mixed}", KERNEL_FRAMES / kernel, "frames/s", ">=", 5_000_000),
        row(f"event-driven with bytes, driver and host memory, {mixed}", (MANY_FRAMES - FEW_FRAMES) / with_bytes,
            "frames/s", ">=", 20_000),
        row("kernel, a second of 10 Gb/s traffic", second, "s", "<=", 1.0,
            f"{int(rate):,} frames in {last / model.config.clock_hz:.3f} s of the device's time"),
        row(f"kernel, time of {GROWTH} times as many frames, for each of them", longer / kernel / GROWTH, "times", "<=",
            1.1),
        row(f"kernel, memory of {GROWTH} times as many frames", large / small, "times", "<=", 1.05,
            f"{small / 1e6:.0f} and {large / 1e6:.0f} MB"),
    ]
