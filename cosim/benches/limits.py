"""What a device of given widths can reach at best, by arithmetic: for `memnic bench rtl`.

Counted is what must cross a port whatever the device does inside: beats of the MAC's streams, beats of host data with
the ring entries that belong to them, and reads in flight over the bus's latency. A port moves one beat a cycle. Entries
are counted as if they always came in full beats (fetched and written in batches), so a limit is never too low.
"""

from __future__ import annotations

from fractions import Fraction

from nic_model.contract import (
    COMPLETION_BYTES,
    RECEIVE_SLOT_BYTES,
    SUBMISSION_SLOT_BYTES,
    NicConfig,
    slots_needed,
)
from nic_model.contract.config import BURST_BYTES
from nic_model.contract.protocols import ETHERNET_HEADER_BYTES, IPV4_HEADER_BYTES, TCP_HEADER_BYTES

HEADER_BYTES = ETHERNET_HEADER_BYTES + IPV4_HEADER_BYTES + TCP_HEADER_BYTES


def beats(length_bytes: int, width_bytes: int) -> int:
    """Beats that so many bytes take from a beat's first lane on."""
    return -(-length_bytes // width_bytes)


def segmented_beats(config: NicConfig, send_bytes: int, mss: int) -> int:
    """MAC beats of a segmented send over IPv4: each frame has its header and begins a beat."""
    full, rest = divmod(send_bytes, mss)
    frames = full * beats(HEADER_BYTES + mss, config.mac_bytes)
    return frames + (beats(HEADER_BYTES + rest, config.mac_bytes) if rest else 0)


def transmit_percent(config: NicConfig, *, send_bytes: int, mss: int, latency_cycles: int) -> float:
    """Share of cycles in which the MAC's stream moves a beat while segmented sends of one piece follow each other.

    A send takes the most of: its MAC beats M; its beats of read data, `send_bytes` and a descriptor of
    `slots_needed(54, 1)` slots over the bus's width; its completion's beats, likewise; and the reads' time,
    `send_bytes` / 256 reads of which `payload_reads` fly for `latency_cycles` and their last beat. The share is M over
    that.
    """
    mac = segmented_beats(config, send_bytes, mss)
    descriptor = slots_needed(HEADER_BYTES, 1) * SUBMISSION_SLOT_BYTES
    reads = Fraction(send_bytes + descriptor, config.host_bytes)
    writes = Fraction(COMPLETION_BYTES, config.host_bytes)
    flight = (Fraction(beats(send_bytes, BURST_BYTES), config.payload_reads)
              * (latency_cycles + beats(BURST_BYTES, config.host_bytes)))
    return float(100 * mac / max(Fraction(mac), reads, writes, flight))


def receive_percent(config: NicConfig, *, frame_bytes: int) -> float:
    """Share of cycles in which a beat is accepted while frames arrive without a pause, into buffers of whole beats.

    A frame takes the most of: its MAC beats M; its beats of written data, ceil(`frame_bytes` / bus width), and its
    completion of 32 bytes; and its receive slot of 16 bytes, read. The share is M over that.
    """
    mac = beats(frame_bytes, config.mac_bytes)
    writes = beats(frame_bytes, config.host_bytes) + Fraction(COMPLETION_BYTES, config.host_bytes)
    reads = Fraction(RECEIVE_SLOT_BYTES, config.host_bytes)
    return float(100 * mac / max(Fraction(mac), writes, reads))


def duplex_cycles(config: NicConfig, *, frame_bytes: int, latency_cycles: int) -> float:
    """Cycles for a frame of one piece sent, with a completion, and one received, both ways together.

    The most of: the MAC beats of one; read data: the frame, its slot of 32 bytes and a receive slot of 16; written
    data: the frame and two completions of 32 bytes; and the payload's reads in flight: its data come
    `latency_cycles` and its own beats after they were asked for, and `payload_reads` frames fly at a time (a frame of
    at most 256 bytes is one read).
    """
    data = beats(frame_bytes, config.host_bytes)
    reads = data + Fraction(SUBMISSION_SLOT_BYTES + RECEIVE_SLOT_BYTES, config.host_bytes)
    writes = data + Fraction(2 * COMPLETION_BYTES, config.host_bytes)
    flight = Fraction(beats(frame_bytes, BURST_BYTES) * (latency_cycles + data), config.payload_reads)
    return float(max(Fraction(beats(frame_bytes, config.mac_bytes)), reads, writes, flight))


def push_cycles(config: NicConfig) -> int:
    """From the last beat of a pushed descriptor to the frame's first beat: the cycle in which it is known."""
    return 1


def doorbell_cycles(config: NicConfig) -> int:
    """From a doorbell to the first beat of a frame of one piece, without the two reads' round trips to their first
    beats: a cycle behind each of doorbell, slot and payload, and the slot's beats behind its first."""
    return 3 + beats(SUBMISSION_SLOT_BYTES, config.host_bytes) - 1


def receive_cycles(config: NicConfig) -> int:
    """From a frame's last beat to its completion's, without the frame's own host beats and its write response: a cycle
    behind the last beat, one behind the response, and the completion's beats behind its first."""
    return 2 + beats(COMPLETION_BYTES, config.host_bytes) - 1
