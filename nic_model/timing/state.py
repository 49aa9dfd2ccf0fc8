"""The records that the timing rules work on: what never changes, numbers that do, queues and tables."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from nic_model.contract import LARGEST_RING_LOG2, MAX_CHANNELS, MAX_DESCRIPTOR_SLOTS
from nic_model.contract.config import BURST_BYTES
from nic_model.timing import receive_rows, rules, stages
from nic_model.timing.parameters import DeviceModel, Queues, StageTiming

DESCRIPTORS = 1 << LARGEST_RING_LOG2
"""Of a channel, that its ring may hold."""


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


_SIZES = (
    "channels mac_bytes host_bytes mac_log2 host_log2 byte_ps byte_rest clock_hz period_ps period_rest slot_cycles "
    "entry_rows buffer_bytes payload_reads "
    "bytes_ahead tx_rows rx_rows least_fetch slices read_latency write_latency fractions_per_byte duplex "
    "overhead_fractions max_payload max_read_request tags reorder bit_rate fifo_bytes frame_overhead_bytes "
    "min_frame_bytes sink_cycles_100 source_cycles_100 source_gap beat_to_row keep_delay descriptors piece_places "
    "traced asks"
)

P_LAYOUT = np.dtype([(name, np.int64) for name in (*StageTiming.names(), *Queues.names(), *_SIZES.split())])


def parameters(model: DeviceModel, bus: BusModel, mac: MacModel, *, buffer_bytes: int = 2048, traced: bool = False,
               asks: bool = False) -> np.ndarray:
    """The record `p`; an array of one. `buffer_bytes`: of a receive buffer, unless it is asked for. `traced`: reads and
    jobs come out too; `asks`: the host says which buffers a frame gets."""
    config = model.config
    values: dict[str, int] = {name: getattr(model.timing, name) for name in StageTiming.names()}
    values |= {
        "channels": config.channels, "mac_bytes": config.mac_bytes, "host_bytes": config.host_bytes,
        "mac_log2": config.mac_bytes.bit_length() - 1, "host_log2": config.host_bytes.bit_length() - 1,
        "clock_hz": config.clock_hz, "period_ps": rules.PS_PER_S // config.clock_hz,
        "period_rest": rules.PS_PER_S % config.clock_hz,
        "slot_cycles": -(-rules.SLOT_BYTES // config.host_bytes),
        "entry_rows": -(-rules.COMPLETION_BYTES // config.host_bytes), "buffer_bytes": buffer_bytes,
        "payload_reads": config.payload_reads, "bytes_ahead": config.payload_reads * BURST_BYTES,
        "tx_rows": config.tx_buffer_bytes // config.host_bytes, "rx_rows": config.rx_buffer_bytes // config.host_bytes,
        "least_fetch": max(MAX_DESCRIPTOR_SLOTS, model.queue_slots // 4),
        "slices": max(64, 1 << (config.payload_reads + config.payload_reads // 8).bit_length()),
        "read_latency": bus.read_latency_cycles, "write_latency": bus.write_latency_cycles,
        "fractions_per_byte": bus.fractions_per_byte, "duplex": int(bus.duplex),
        "overhead_fractions": bus.tlp_overhead_bytes * bus.fractions_per_byte,
        "max_payload": bus.max_payload_bytes, "max_read_request": bus.max_read_request_bytes, "tags": bus.tags,
        "reorder": bus.reorder_cycles,
        "bit_rate": mac.bit_rate, "byte_ps": 8 * rules.PS_PER_S // mac.bit_rate,
        "byte_rest": 8 * rules.PS_PER_S % mac.bit_rate, "fifo_bytes": mac.fifo_bytes,
        "frame_overhead_bytes": mac.overhead_bytes,
        "min_frame_bytes": mac.min_frame_bytes, "sink_cycles_100": -(-10_000 // mac.sink_percent),
        "source_cycles_100": -(-10_000 // mac.source_percent), "source_gap": mac.source_gap_cycles,
        "beat_to_row": model.timing.arrived_to_write - receive_rows.ROW_TO_WRITE,
        "keep_delay": model.timing.arrived_to_write - receive_rows.FRAME_TO_WRITE,
        "descriptors": 1 << config.max_ring_log2,
        # two to a slot, of those in the rings and of those that the device has taken out of them
        "piece_places": min(stages.PIECES, 4 * config.channels << config.max_ring_log2),
        "traced": int(traced), "asks": int(asks),
    }
    values |= {name: getattr(model, name) for name in Queues.names()}
    found = np.zeros(1, P_LAYOUT)
    for name, value in values.items():
        found[name] = value
    return found


_NUMBERS = (
    "out_count next_at bus_up bus_down tag_head tags_used r_last w_first w_last w_last_before w_was_completion "
    "granted_last granted_receive at_fetch at_cut at_decide "
    "at_read at_complete at_arrive at_match at_prefetch at_write at_slots at_land on_way asked_for slots_fetch "
    "slots_burst fetch_free fetch_last fetch_head fetch_tail d_ar_last d_out_free d_bursts d_streamed cutting "
    "cut_fetch cut_burst cut_slot cut_left cut_channel cut_end cut_stale cut_free job_last arrival_head "
    "arrival_tail command_head command_tail frames_decided freed_head freed_tail decide_free rest_edge decide_last "
    "has_job ahead gone_ahead begun_head begun_tail walk_free reading read_left frame_edge run_last read_first "
    "e_head e_tail stream_free template_end p_ar_last p_bursts piece piece_at piece_left rows_head rows_in rows_out "
    "frame_tail mac_last fifo_head fifo_tail fifo_bytes wire_free_ps tx_head tx_tail rx_head rx_tail "
    "complete_free completion_ready "
    "token_was_tx batch_tail completion_writes source_free in_head in_tail wait_head "
    "wait_tail match_free parts_head parts_tail parts_up parts_read rows_left rows_to_leave "
    "match_waits part_began write_ready "
    "gathered starved_channel prefetch_free prefetch_last "
    "r_out_free r_bursts r_streamed row_ready row_first receive_writes asked answered answer_buffers answer_parts "
    "answer_tells answer_edge answer_skip answer_merges answer_appends match_ends gather_free piece_tail entered "
    "arrived waits port_tail "
    "rows_kept kept_at rows_missed missed_at rows_done part_rows order_head order_tail row_follows row_settles "
    "row_settled row_begins row_now "
    "row_head row_order row_taken row_cut row_cut_at row_cut_left row_cutting row_valid row_command row_link row_burst "
    "row_claimed row_counts row_unclaimed row_grant row_granted row_port row_owed row_left row_shares row_spills "
    "row_swallows row_dropping row_waiting row_out row_spill row_stage1 row_stage2 row_stage3 row_stage4 row_stored "
    "row_fetched row_given row_over row_tokens part_over decide_why"
)

S_LAYOUT = np.dtype([(name, np.int64) for name in _NUMBERS.split()] + [("random", np.uint64)])


def numbers(bus: BusModel) -> np.ndarray:
    """The record `s`, of a device at rest; an array of one."""
    record = np.zeros(1, S_LAYOUT)
    for name in _NUMBERS.split():
        if name.startswith("at_") or name == "next_at":
            record[name] = rules.NEVER
    record["random"] = bus.seed
    record["answer_edge"] = -1
    record["row_settled"] = rules.NEVER
    record["decide_why"] = rules.DECIDE_JOB
    for name in ("r_last", "w_first", "w_last", "w_last_before", "granted_last", "granted_receive", "d_ar_last",
                 "p_ar_last", "mac_last", "job_last", "part_began", "gathered", "gather_free", "kept_at", "missed_at"):
        record[name] = -1000
    return record


INPUT = np.dtype([(name, np.int64) for name in (
    "edge", "kind", "channel", "length", "mss", "inline", "sums", "address", "slots")])
"""One send, or one frame that arrives. `edge`: of the doorbell's beat at the device's port, or when the frame stands
before it; they do not fall. Sends of one channel at one edge share a doorbell. `length`: bytes of payload, or of the
frame.
`mss`: 0 for a frame. `inline`: bytes in the descriptor. `sums`: checksums that are put in, 2 for each segmented send.
`address`: of the payload, modulo 4096. `slots`: of the descriptor."""


_NUMBERS_OF: tuple[tuple[str, int | tuple[int, ...], str], ...] = (
    ("channels", MAX_CHANNELS,
     "posted producer asked consumed freed freeing pending starved under_way ring_slots parsed decided jobs "
     "offset number cq_index rx_posted rx_asked rx_used rx_want starved_at"),
    ("fetches", stages.FETCHES_KEPT, "channel index count issued bursts"),
    ("fetch_bursts", (stages.FETCHES_KEPT, 16), "at out slots"),
    ("freed_slots", stages.FREED, "edge channel slots"),
    ("slot_bursts", stages.ENTRIES, "rows slot fetch burst landed"),
    ("descriptors", (MAX_CHANNELS, DESCRIPTORS),
     "slots inline payload mss sums ipv6 complete piece pieces number"),
    ("pieces", stages.PIECES, "address length"),
    ("arrivals", stages.ARRIVALS, "edge channel"),
    ("commands", stages.COMMANDS, "channel place offset count first last number edge"),
    ("payload_bursts", stages.ENTRIES, "command rows slot in_last first ends landed"),
    ("begun", stages.BEGUN, "edge bytes"),
    ("frames", stages.FRAMES, "first last header rows"),
    ("fifo", stages.FIFO, "edge length"),
    ("tx_tokens", stages.TOKENS, "edge channel token writes"),
    ("rx_tokens", stages.TOKENS, "edge channel token"),
    ("incoming", stages.INCOMING, "edge channel length number"),
    ("matching", stages.INCOMING, "edge channel length number rows"),
    ("answers", 64, "at length"),
    ("buffer_bursts", stages.ENTRIES, "rows slot channel first count landed"),
    ("parts", receive_rows.PARTS, "edge at left begun last order end over channel number done tells late kind"),
    ("under_way_reads", 256, "due order rows client entry"),
    ("orders", receive_rows.ORDERS, "edge over kind rows drops reads swallows at length decided"),
    ("port_bursts", receive_rows.PORT_BURSTS, "first last room receives"),
)
"""Queues and tables of records: their size, by their index or modulo it, and what stands in each."""

_COLUMNS: tuple[tuple[str, int | tuple[int, ...]], ...] = (
    ("out", (rules.OUTS, 6)), ("tag_free", stages.TAGS_THAT_BIND), ("header_free", 16),
    ("d_release", stages.RELEASES), ("p_release", stages.RELEASES), ("r_release", stages.RELEASES),
    ("cw_release", stages.RELEASES), ("rw_release", stages.RELEASES), ("batch_token", stages.TOKENS),
    ("rx_landed", (MAX_CHANNELS, stages.RX_LANDED)), ("rx_shows", (MAX_CHANNELS, stages.RX_LANDED)),
    ("row_heads", receive_rows.ROW_HEADS), ("cw_first", stages.RELEASES),
    ("waited", len(rules.WAITS)), ("worked", len(rules.BUSY)),
)


def _fields() -> list[tuple[Any, ...]]:
    """Behind each table a cache line of nothing: otherwise entries of one number would all fall into the same few
    lines."""
    found: list[tuple[Any, ...]] = []
    for name, size, names in _NUMBERS_OF:
        record = np.dtype((np.record, [(field, np.int64) for field in names.split()]))
        found += [(name, record, size), (f"{name}_gap", np.int64, 8)]
    for name, size in _COLUMNS:
        found += [(name, np.int64, size), (f"{name}_gap", np.int64, 8)]
    return found


RECORDS = tuple(name for name, _, _ in _NUMBERS_OF)
"""The tables of records."""

Q_LAYOUT = np.dtype(_fields())
"""One layout for all devices: so what numba has compiled for one is good for all."""


def queues(model: DeviceModel) -> np.ndarray:
    """The record `q`, empty; an array of one."""
    found = np.zeros(1, Q_LAYOUT)
    for name in ("pending", "rx_want"):
        found["channels"][name] = rules.NEVER
    found["channels"]["starved_at"] = -1
    for name in ("d_release", "p_release", "r_release", "cw_release", "cw_first", "rw_release"):
        found[name] = -1000
    found["channels"]["ring_slots"] = 1 << model.config.max_ring_log2
    return found
