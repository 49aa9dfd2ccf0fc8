"""What a device could reach, and which stage keeps it from more: `memnic device roofline` and `memnic device sweep`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import msgspec

from cosim.benches import limits
from cosim.engines.bus import BusTiming
from cosim.mac import PS_PER_S, MacTiming
from cosim.timing.cases import Case, Send, Sender
from cosim.timing.device_file import DeviceFile, DeviceFileError, Figure
from cosim.timing.observed import Observed, on_rules
from nic_model.contract import SUBMISSION_SLOT_BYTES, slots_needed
from nic_model.contract.config import BURST_BYTES
from nic_model.timing.parameters import DeviceModel, StageTiming

SEND_BYTES, SENDS = 1 << 16, 8
SMALL_SENDS = 1000
WARM_SHARE = 0.25

MAC = MacTiming(bit_rate=1 << 40, lookahead_ps=PS_PER_S)


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is sent, by one channel, as fast as it goes."""

    payload: int
    mss: int

    @property
    def frame_bytes(self) -> int:
        """Of a full frame."""
        return limits.HEADER_BYTES + self.mss if self.mss else self.payload

    @property
    def sends(self) -> tuple[Send, ...]:
        """All of them; frames lie where a driver's buffers would."""
        if self.mss:
            return tuple(Send(payload=self.payload, mss=self.mss) for _ in range(SENDS))
        return tuple(Send(payload=self.payload, offset=64 * (number % 512)) for number in range(SMALL_SENDS))


@dataclass(frozen=True, kw_only=True)
class Reached:
    """What a device does with a load."""

    gbit_per_s: float
    frames_per_s: float
    cycles_a_frame: float
    latency_cycles: int
    """Of the first frame, from its doorbell."""
    waits: dict[tuple[str, str], float]
    """(who, for whom) -> share of the time, from the first frame to the last, in which somebody waits. Those that wait
    one behind the other wait at the same time."""
    works: dict[str, float]
    """Stage -> share of the time in which it works."""


def case_of(load: Load, timing: BusTiming) -> Case:
    """A load as a case."""
    sends = load.sends
    return Case(name="load", bus=timing, mac=MAC, senders=(
        Sender(channel=1, sends=sends, bells=((0, len(sends)),)),))


def reached(model: DeviceModel, load: Load, timing: BusTiming) -> Reached:
    """What the model reaches, without its start."""
    return _measured(model, load, on_rules(model, case_of(load, timing)))


def _measured(model: DeviceModel, load: Load, found: Observed) -> Reached:
    first = int(len(found.frames) * WARM_SHARE)
    frames = len(found.frames) - first - 1
    cycles = (found.frames[-1][1] - found.frames[first][1]) / frames
    sent = sum(send.payload for send in load.sends) + (limits.HEADER_BYTES * len(found.frames) if load.mss else 0)
    clock = model.config.clock_hz
    whole = found.frames[-1][1] - found.frames[0][0] + 1
    return Reached(
        waits={names: waited / whole for names, waited in found.waited.items()},
        works={name: worked / whole for name, worked in found.worked.items()},
        gbit_per_s=8 * sent / len(found.frames) / cycles * clock / 1e9, frames_per_s=clock / cycles,
                   cycles_a_frame=cycles, latency_cycles=found.frames[0][0])


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What one thing alone would allow."""

    what: str
    cycles_a_frame: float
    words: str


def bounds(model: DeviceModel, load: Load, timing: BusTiming) -> list[Bound]:
    """What arithmetic allows, tightest first."""
    config, stages = model.config, model.timing
    frames = -(-load.payload // load.mss) if load.mss else 1
    sent = load.payload + frames * limits.HEADER_BYTES if load.mss else load.payload
    inline = limits.HEADER_BYTES if load.mss else 0
    slots = slots_needed(inline, 1)
    mac = (limits.segmented_beats(config, load.payload, load.mss) if load.mss
           else limits.beats(load.payload, config.mac_bytes))
    reads = Fraction(load.payload + slots * SUBMISSION_SLOT_BYTES, config.host_bytes)
    bursts = frames * limits.beats(min(load.mss or load.payload, load.payload), BURST_BYTES)
    flight = timing.read_latency_cycles + limits.beats(min(BURST_BYTES, load.payload), config.host_bytes)
    operations = limits.beats(inline, config.host_bytes) + 7 if load.mss else 1
    ahead = config.payload_reads * BURST_BYTES
    moved = (load.payload + slots * SUBMISSION_SLOT_BYTES) / timing.bytes_per_cycle
    found = [
        Bound(what="MAC", cycles_a_frame=mac / frames, words=f"beats of {8 * config.mac_bytes} bits"),
        Bound(what="host bus, beats", cycles_a_frame=float(reads / frames),
              words=f"payload and descriptors, {8 * config.host_bytes} bits a cycle"),
        Bound(what="host bus, bandwidth", cycles_a_frame=moved / frames,
              words=f"{timing.bytes_per_cycle:.4g} bytes a cycle"),
        Bound(what="reads in flight", cycles_a_frame=bursts * flight / config.payload_reads / frames,
              words=f"{config.payload_reads} reads of up to {BURST_BYTES} bytes, each {flight} cycles on its way"),
        Bound(what="bytes ahead", cycles_a_frame=sent / frames * flight / ahead,
              words=f"{ahead:,} bytes are decided ahead of the wire"),
        Bound(what="FrameScheduler", cycles_a_frame=float(stages.decision_interval),
              words=f"a decision in {stages.decision_interval} cycles"),
        Bound(what="HeaderWriter", cycles_a_frame=(operations + stages.header_overhead) / model.segmenters,
              words=f"{operations} operations on a header"
                    + (f", {model.segmenters} side by side" if model.segmenters > 1 else "")),
        Bound(what="descriptor fetch", cycles_a_frame=slots * (timing.read_latency_cycles + stages.slot_to_payload)
              / (model.queue_slots - 16) / frames,
              words=f"{model.queue_slots} slots of a channel between their fetch and their end"),
        Bound(what="JobIssue", cycles_a_frame=max(stages.job_interval,
              slots * limits.beats(SUBMISSION_SLOT_BYTES, config.host_bytes)) / frames,
              words=f"a descriptor of {slots} slots"),
    ]
    return sorted(found, key=lambda bound: -bound.cycles_a_frame)


def bottleneck(found: list[Bound], got: Reached) -> str:
    """Who keeps the device from more, in words."""
    first, second = found[0], found[1]
    share = 100 * first.cycles_a_frame / got.cycles_a_frame
    if share >= 97:
        return f"{first.what} is always busy: {first.words}; next is {second.what}"
    (who, whom), longest = max(got.waits.items(), key=lambda entry: entry[1])
    return (f"nothing is always busy: {first.what} is for {share:.0f} % of the time ({first.words}), "
            f"{second.what} for {100 * second.cycles_a_frame / got.cycles_a_frame:.0f} %; "
            f"for {100 * min(1.0, longest):.0f} % {who} waits for {whom}")


# ---------------------------------------------------------------------------------------------- sweeps


def parameters_of(file: DeviceFile) -> dict[str, int]:
    """All that may be varied: `sizes.payload_reads`, `queues.queue_slots`, `timing.refetch` and so on."""
    found = {f"sizes.{name}": value for name, value in file.sizes.items()}
    found |= {f"queues.{name}": value for name, value in file.queues.items()}
    return found | {f"timing.{name}": file.timing[name].cycles for name in StageTiming.names()}


def varied(file: DeviceFile, parameter: str, value: int) -> DeviceFile:
    """A device file with another value. Raises DeviceFileError for a parameter that there is not."""
    table, _, name = parameter.partition(".")
    if parameter not in parameters_of(file):
        raise DeviceFileError(f"no parameter {parameter!r}: choose from {', '.join(parameters_of(file))}")
    if table == "sizes":
        return msgspec.structs.replace(file, sizes={**file.sizes, name: value})
    if table == "queues":
        return msgspec.structs.replace(file, queues={**file.queues, name: value})
    figure = Figure(value, f"varied from {file.timing[name].cycles}")
    return msgspec.structs.replace(file, timing={**file.timing, name: figure})


def sweep(file: DeviceFile, parameter: str, values: list[int], load: Load, timing: BusTiming,
          say: Callable[[str], None] = lambda what: None) -> Iterator[tuple[int, DeviceModel, Reached]]:
    """(value, device, what it reaches) for each value."""
    for value in values:
        say(f"{parameter} = {value}")
        model = varied(file, parameter, value).model(f"{file.name} with {parameter} = {value}")
        yield value, model, reached(model, load, timing)
