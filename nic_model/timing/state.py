"""The records that the timing rules work on: what never changes, numbers that do, queues and tables."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np

from nic_model.contract import MAX_DESCRIPTOR_SLOTS
from nic_model.contract.config import BURST_BYTES
from nic_model.timing import stages
from nic_model.timing.parameters import DeviceModel, StageTiming

OUTS = 1 << 14
"""Places for what comes out between two calls."""


class BusModel(Protocol):
    """The host bus in cycles of the device's clock: `cosim.engines.bus.BusTiming` says what each is."""

    @property
    def read_latency_cycles(self) -> int: ...
    @property
    def write_latency_cycles(self) -> int: ...
    @property
    def fractions_per_byte(self) -> int: ...
    @property
    def duplex(self) -> bool: ...
    @property
    def tlp_overhead_bytes(self) -> int: ...
    @property
    def max_payload_bytes(self) -> int: ...
    @property
    def max_read_request_bytes(self) -> int: ...
    @property
    def tags(self) -> int: ...
    @property
    def reorder_cycles(self) -> int: ...
    @property
    def seed(self) -> int: ...


class MacModel(Protocol):
    """The MAC and its link: `cosim.mac.MacTiming` says what each is."""

    @property
    def bit_rate(self) -> int: ...
    @property
    def fifo_bytes(self) -> int: ...
    @property
    def overhead_bytes(self) -> int: ...
    @property
    def min_frame_bytes(self) -> int: ...
    @property
    def sink_percent(self) -> int: ...
    @property
    def source_percent(self) -> int: ...
    @property
    def source_gap_cycles(self) -> int: ...


def parameters(model: DeviceModel, bus: BusModel, mac: MacModel, *, traced: bool = False, asks: bool = False) -> Any:
    """The record `p`. `traced`: reads and jobs come out too; `asks`: the host says which buffers a frame gets."""
    config = model.config
    values: dict[str, int] = {name: getattr(model.timing, name) for name in StageTiming.names()}
    values |= {
        "channels": config.channels, "mac_bytes": config.mac_bytes, "host_bytes": config.host_bytes,
        "clock_hz": config.clock_hz, "period_ps": stages.PS_PER_S // config.clock_hz,
        "period_rest": stages.PS_PER_S % config.clock_hz,
        "slot_cycles": -(-stages.SLOT_BYTES // config.host_bytes),
        "payload_reads": config.payload_reads, "bytes_ahead": config.payload_reads * BURST_BYTES,
        "tx_rows": config.tx_buffer_bytes // config.host_bytes, "rx_rows": config.rx_buffer_bytes // config.host_bytes,
        "least_fetch": max(MAX_DESCRIPTOR_SLOTS, model.queue_slots // 4),
        "slices": max(64, 1 << (config.payload_reads + config.payload_reads // 8).bit_length()),
        "read_latency": bus.read_latency_cycles, "write_latency": bus.write_latency_cycles,
        "fractions_per_byte": bus.fractions_per_byte, "duplex": int(bus.duplex),
        "overhead_fractions": bus.tlp_overhead_bytes * bus.fractions_per_byte,
        "max_payload": bus.max_payload_bytes, "max_read_request": bus.max_read_request_bytes, "tags": bus.tags,
        "reorder": bus.reorder_cycles,
        "bit_rate": mac.bit_rate, "fifo_bytes": mac.fifo_bytes, "frame_overhead_bytes": mac.overhead_bytes,
        "min_frame_bytes": mac.min_frame_bytes, "sink_cycles_100": -(-10_000 // mac.sink_percent),
        "source_cycles_100": -(-10_000 // mac.source_percent), "source_gap": mac.source_gap_cycles,
        "traced": int(traced), "asks": int(asks),
    }
    for name in ("queue_slots", "channel_fetches", "descriptor_reads", "receive_reads", "prefetch_slots",
                 "receive_writes", "completion_writes", "frames_ready", "segmenters", "commands_ahead"):
        values[name] = getattr(model, name)
    record = np.zeros(1, np.dtype([(name, np.int64) for name in values])).view(np.recarray)[0]
    for name, value in values.items():
        record[name] = value
    return record


_NUMBERS = (
    "out_count", "bus_up", "bus_down", "tag_head", "tags_used", "r_last", "w_first", "w_last", "w_was_completion",
    "at_fetch", "at_cut", "at_decide", "at_read", "at_complete", "at_arrive", "at_match", "at_prefetch", "at_write", "at_slots", "slots_fetch", "slots_burst",
    "fetch_free", "fetch_last", "fetch_head", "fetch_tail", "d_ar_last", "d_out_free", "d_bursts",
    "cutting", "cut_fetch", "cut_burst", "cut_slot", "cut_left", "cut_channel", "cut_end", "cut_stale", "cut_free",
    "job_last", "arrival_head", "arrival_tail", "command_head", "command_tail", "frames_decided",
    "freed_head", "freed_tail", "decide_free", "rest_edge", "decide_last", "has_job", "ahead", "gone_ahead", "begun_head", "begun_tail", "walk_free",
    "reading", "read_left", "frame_edge", "run_beats", "run_last", "stream_free", "template_end", "p_ar_last",
    "p_bursts", "piece", "piece_at", "piece_left", "rows_head", "rows_in", "rows_out", "frame_tail", "mac_last",
    "fifo_head", "fifo_tail", "fifo_bytes", "wire_free_ps",
    "tx_head", "tx_tail", "rx_head", "rx_tail", "complete_free", "token_was_tx", "batch_tail", "completion_writes",
    "event_last", "source_free", "in_head", "in_tail", "kept_head", "kept_tail", "rx_rows", "wait_head", "wait_tail",
    "match_free", "parts_head", "parts_tail", "parts_done", "part_done", "waits_for_slot", "prefetch_free",
    "prefetch_last", "r_out_free", "r_bursts", "rows_free", "deliver_last", "receive_writes",
    "asked", "answered", "answer_buffers", "answer_parts", "answer_tells",
)


def numbers(bus: BusModel) -> Any:
    """The record `s`, of a device at rest."""
    layout = [(name, np.int64) for name in _NUMBERS] + [("random", np.uint64)]
    record = np.zeros(1, np.dtype(layout)).view(np.recarray)[0]
    for name in _NUMBERS:
        if name.startswith("at_"):
            record[name] = stages.NEVER
    record["random"] = bus.seed
    for name in ("r_last", "w_first", "w_last", "d_ar_last", "p_ar_last", "mac_last", "job_last", "deliver_last"):
        record[name] = -1000
    return record


class Queues(NamedTuple):
    """`q`: queues and tables, by their index or modulo their size."""

    out: np.ndarray
    tag_free: np.ndarray
    producer: np.ndarray
    asked: np.ndarray
    consumed: np.ndarray
    freed: np.ndarray
    freeing: np.ndarray
    fr_edge: np.ndarray
    fr_channel: np.ndarray
    fr_slots: np.ndarray
    pending: np.ndarray
    starved: np.ndarray
    under_way: np.ndarray
    ring_slots: np.ndarray
    f_channel: np.ndarray
    f_index: np.ndarray
    f_count: np.ndarray
    f_issued: np.ndarray
    f_bursts: np.ndarray
    f_burst_at: np.ndarray
    f_burst_out: np.ndarray
    f_burst_slots: np.ndarray
    d_release: np.ndarray
    parsed: np.ndarray
    decided: np.ndarray
    jobs: np.ndarray
    offset: np.ndarray
    number: np.ndarray
    d_slots: np.ndarray
    d_inline: np.ndarray
    d_payload: np.ndarray
    d_mss: np.ndarray
    d_sums: np.ndarray
    d_ipv6: np.ndarray
    d_complete: np.ndarray
    d_piece: np.ndarray
    d_pieces: np.ndarray
    d_number: np.ndarray
    d_job: np.ndarray
    piece_address: np.ndarray
    piece_length: np.ndarray
    a_edge: np.ndarray
    a_channel: np.ndarray
    b_edge: np.ndarray
    b_bytes: np.ndarray
    c_channel: np.ndarray
    c_place: np.ndarray
    c_offset: np.ndarray
    c_count: np.ndarray
    c_first: np.ndarray
    c_last: np.ndarray
    c_number: np.ndarray
    c_edge: np.ndarray
    p_release: np.ndarray
    t_first: np.ndarray
    t_last: np.ndarray
    t_header: np.ndarray
    t_rows: np.ndarray
    header_free: np.ndarray
    fifo_edge: np.ndarray
    fifo_length: np.ndarray
    tx_edge: np.ndarray
    tx_channel: np.ndarray
    tx_token: np.ndarray
    tx_writes: np.ndarray
    rx_edge: np.ndarray
    rx_channel: np.ndarray
    rx_token: np.ndarray
    batch_token: np.ndarray
    cq_index: np.ndarray
    cw_release: np.ndarray
    i_edge: np.ndarray
    i_channel: np.ndarray
    i_length: np.ndarray
    i_number: np.ndarray
    k_rows: np.ndarray
    k_begin: np.ndarray
    k_end: np.ndarray
    m_edge: np.ndarray
    m_channel: np.ndarray
    m_length: np.ndarray
    m_number: np.ndarray
    m_kept: np.ndarray
    rx_posted: np.ndarray
    rx_asked: np.ndarray
    rx_used: np.ndarray
    rx_want: np.ndarray
    rx_landed: np.ndarray
    r_release: np.ndarray
    w_edge: np.ndarray
    w_at: np.ndarray
    w_left: np.ndarray
    w_begun: np.ndarray
    w_last: np.ndarray
    w_kept: np.ndarray
    w_channel: np.ndarray
    w_number: np.ndarray
    w_done: np.ndarray
    w_tells: np.ndarray
    rw_release: np.ndarray
    answer_at: np.ndarray
    answer_length: np.ndarray


def queues(model: DeviceModel, *, descriptors: int, pieces: int) -> Queues:
    """Empty ones. `descriptors` of each channel and `pieces` of all may wait at a time."""
    channels = model.config.channels
    sizes: dict[str, int | tuple[int, ...]] = {
        "out": (OUTS, 6), "tag_free": stages.TAGS_THAT_BIND,
        "f_burst_at": (stages.FETCHES_KEPT, 16), "f_burst_out": (stages.FETCHES_KEPT, 16), "f_burst_slots": (stages.FETCHES_KEPT, 16),
        "d_release": model.descriptor_reads, "p_release": model.config.payload_reads, "r_release": model.receive_reads,
        "cw_release": model.completion_writes, "rw_release": model.receive_writes, "header_free": model.segmenters,
        "batch_token": stages.TOKENS, "rx_landed": (channels, stages.RX_LANDED),
        "answer_at": 64, "answer_length": 64, "piece_address": pieces, "piece_length": pieces,
    }
    by_prefix = {"f_": stages.FETCHES_KEPT, "d_": (channels, descriptors), "a_": stages.ARRIVALS, "b_": stages.BEGUN,
                 "c_": stages.COMMANDS, "t_": stages.FRAMES, "fifo_": stages.FIFO, "tx_": stages.TOKENS,
                 "i_": stages.INCOMING, "k_": stages.INCOMING, "m_": stages.INCOMING, "w_": stages.PARTS, "fr_": stages.FREED}
    for name in ("rx_edge", "rx_channel", "rx_token"):
        sizes[name] = stages.TOKENS
    arrays = {}
    for name in Queues._fields:
        prefix = name.partition("_")[0] + "_"
        size = sizes.get(name, by_prefix.get(prefix, channels))
        arrays[name] = np.zeros(size, np.int64)
    for name in ("pending", "rx_want"):
        arrays[name][:] = stages.NEVER
    for name in ("d_release", "p_release", "r_release", "cw_release", "rw_release"):
        arrays[name][:] = -1000
    arrays["ring_slots"][:] = 1 << 12
    return Queues(**arrays)
