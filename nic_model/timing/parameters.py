"""What the timing rules need to know of a device: sizes, and cycles that are measured on the RTL."""

from __future__ import annotations

from dataclasses import dataclass, fields

from nic_model.contract import NicConfig


@dataclass(frozen=True, kw_only=True)
class StageTiming:
    """Cycles, in packet order: from one event at the device's ports to the next when nothing is in the way, or between
    two of a kind when everything waits for one stage (`..._interval`). A few are negative: then a stage is ahead of the
    event that it is counted from."""

    register_write: int
    """`AxiLiteSlave`, `Registers`: from one posted register write to the next."""
    register_read: int
    """The same: a read, from the device's port and back."""
    bell_write: int
    """`Doorbells`: from one posted doorbell to the next."""
    bell_to_port: int
    """The same: from the end of the write's way to its last beat at the device's port."""

    bell_to_fetch: int
    """`Doorbells`, `FetchScheduler`, `DmaRead`: from a doorbell's beat to the read of its slots."""
    fetch_interval: int
    """`FetchScheduler`: from one channel's fetch to the next one's."""
    fetch_overhead: int
    """`DescriptorCutter`: cycles that a fetch costs beside its slots."""
    refetch: int
    """`DescriptorCutter`, `FetchScheduler`: from a descriptor that was cut off to the read that asks for it again."""
    slot_to_read: int
    """`DmaReadClient`: from the last beat of the burst that leaves a landing slot to the read that takes it."""
    slot_to_payload: int
    """`DmaRead`, `SlotReader` ... `JobIssue`, `FrameScheduler`, `PieceWalker`: from a descriptor's last slot on the bus
    to the read of its payload."""
    push_to_payload: int
    """`PushCollector`, `FetchScheduler`, `PushReader` ... `PieceWalker`: from a pushed descriptor's last beat to the
    same, or to where it would be."""
    busy_to_payload: int
    """`FrameScheduler`: cycles more, if it was at work when the job came."""
    job_interval: int
    """`JobIssue` and those before it: from one job of one slot to the next."""

    decision_interval: int
    """`FrameScheduler`: from one frame to the next."""
    piece_first: int
    """`PieceWalker`: cycles of a piece that no frame has used."""
    piece_further: int
    """The same, of one that was begun by another frame."""
    decision_to_rows: int
    """`SliceIssue`, `Segmenter`: from a frame's first read to the rows of its template."""
    freed_to_fetch: int
    """`TransmitScheduler`, `FetchScheduler`: from a job's last read to the fetch of a channel that waited for its
    room."""
    freed_before_fetch: int
    """The same: so much sooner than that fetch, a job's room still counts for another that is being prepared."""
    begun_to_payload: int
    """`MacTx`, `FrameScheduler`: from a frame's first beat to the read of a frame that waited for it."""

    sum_cycles: int
    """`Checksum`: cycles until a frame's sums are made, if it wants any."""
    header_overhead: int
    """`HeaderWriter`: cycles of a frame beside its operations."""
    template_cycles: int
    """The same: cycles that a new template of a segmented send costs."""
    header_to_frame: int
    """`Segmenter` ... `MacTx`: from a frame's last data on the bus to its first beat, beside the operations on its
    header."""
    plain_to_frame: int
    """The same, of a frame whose header needs no operation."""

    sent_to_write: int
    """`MacTx`, `Completion`, `DmaWrite`: from a send's last beat to its completion's first."""
    burst_interval: int
    """`DmaWrite`: from one burst's first beat to the next one's, of one beat."""
    response_to_irq: int
    """`DmaWrite`, `Completion`, `Events`: from the bus's response to a completion to the interrupt line."""
    deadline_to_irq: int
    """`Completion`, `Events`: from the bus's response to the interrupt line, beside the time that moderation waits."""

    arm_to_irq: int
    """`Doorbells`, `Events`: from an arm's beat to the interrupt line, if something came meanwhile."""

    arrived_to_write: int
    """`MacRx`, `Parser`, `RxBuffer`, `Coalescer`, `RxRings`, `RxDeliver`, `DmaWrite`: from a frame's last beat to the
    first that is written of it."""
    coalesce_open: int
    """`Coalescer`: cycles more of a segment that opens an aggregate."""
    coalesce_append: int
    """The same: of one that goes behind another."""
    match_interval: int
    """`RxRings`: from one frame to the next."""
    match_further: int
    """The same: cycles for each further buffer."""
    response_to_write: int
    """`DmaWrite`, `RxDeliver`, `RxGather`, `Completion`: from the bus's last response to a frame to its completion's
    first beat."""
    response_to_room: int
    """`DmaWrite`: from a burst's response to the earliest first beat of a burst that waits for its place."""
    gather_interval: int
    """`RxGather`: from one buffer of a frame to the next."""
    post_to_fetch: int
    """`Doorbells`, `RxRings`, `DmaRead`: from a doorbell's beat to the read of receive slots."""
    used_to_fetch: int
    """`RxRings`, `DmaRead`: from a frame's last beat to the read of slots that its buffer makes room for."""
    prefetch_interval: int
    """`RxRings`: from one fetch of receive slots to the next."""
    slots_to_write: int
    """`DmaRead`, `RxRings` ... `DmaWrite`: from a receive slot on the bus to the first beat of a frame that waited for
    it."""

    @classmethod
    def names(cls) -> list[str]:
        """All of them, in packet order."""
        return [field.name for field in fields(cls)]


@dataclass(frozen=True, kw_only=True)
class Queues:
    """Sizes of what lies between stages."""

    queue_slots: int
    """Submission slots of a channel between their fetch and the end of what they ask for."""
    channel_fetches: int
    """Fetches of a channel that may be under way."""
    descriptor_reads: int
    receive_reads: int
    """DMA reads in flight, beside those of payload."""
    prefetch_slots: int
    """Receive slots that are fetched ahead for a channel."""
    receive_writes: int
    completion_writes: int
    """DMA writes in flight."""
    rows_buffered: int
    """Received rows that wait for the bus."""
    coalesce_ways: int
    """Open aggregates that are searched in a cycle."""
    frames_ready: int
    """Frames with their headers written, at most."""
    commands_ahead: int
    """Frames that are decided and whose reads are not all asked for."""
    segmenters: int = 1
    """Segmenters and header writers that work side by side."""

    @classmethod
    def names(cls) -> list[str]:
        """All of them."""
        return [field.name for field in fields(Queues)]


@dataclass(frozen=True, kw_only=True)
class DeviceModel(Queues):
    """A device as the timed model has it: sizes that the RTL could be built with, and others."""

    config: NicConfig
    timing: StageTiming
