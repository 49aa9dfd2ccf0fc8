"""What the timing rules need to know of a device: sizes, and cycles that are measured on the RTL."""

from __future__ import annotations

from dataclasses import dataclass, fields

from nic_model.contract import NicConfig


@dataclass(frozen=True, kw_only=True)
class StageTiming:
    """Cycles, in packet order. Each is a latency (from one event to the next, when nothing is in the way) or an interval
    (from one to the next of its kind, when everything waits for this stage)."""

    register_write: int
    """`AxiLiteSlave`, `Registers`: from one posted register write to the next."""
    register_read: int
    """The same: a read at the device's port, until it answers."""
    bell_write: int
    """`Doorbells`: from one posted doorbell to the next."""
    bell_to_port: int
    """The same: from the write's time to its last beat at the device's port."""

    bell_to_fetch: int
    """`Doorbells`, `FetchScheduler`, `DmaRead`: from a doorbell's beat to the read of its slots."""
    fetch_interval: int
    """`FetchScheduler`: from one fetch to the next."""
    fetch_overhead: int
    """`DescriptorCutter`: cycles that a fetch costs beside its slots."""
    refetch: int
    """`DescriptorCutter`, `FetchScheduler`: from a descriptor that was cut off to the read that asks for it again."""
    land_to_stream: int
    """`DmaRead`: from a burst's last beat on the bus to its first beat out."""
    slot_cycles: int
    """`SlotReader`: a slot's beats, or 1."""
    slot_to_job: int
    """`DescriptorParser`, `PieceTranslator`, `KeyTable`, `DescriptorCheck`, `JobIssue`: from a descriptor's last slot to
    its job."""
    job_interval: int
    """`JobIssue` and before it: from one job of one slot to the next."""

    job_to_decision: int
    """`TxQueues`, `FrameScheduler`: from a job to the decision on its first frame."""
    decision_interval: int
    """`FrameScheduler`: from one decision to the next."""
    piece_first: int
    """`PieceWalker`: cycles of a piece that no frame has used."""
    piece_further: int
    """The same, of one that was begun by another frame."""
    decision_to_read: int
    """`PieceWalker`, `DmaRead`: from a decision to its first read."""
    decision_to_rows: int
    """`SliceIssue`, `Segmenter`: from a decision to the first row of its template."""
    freed_to_fetch: int
    """`TransmitScheduler`, `FetchScheduler`: from a job's last read to the fetch of a channel that waited for its room."""
    freed_before_fetch: int
    """The same: so much sooner than that fetch, a job's room still counts for another that is being prepared."""
    slot_to_read: int
    """`DmaReadClient`: from a landing slot that comes free to the next read."""
    begun_to_decision: int
    """`MacTx`, `FrameScheduler`: from a frame's first beat to a decision that waited for it."""

    stream_to_sum: int
    """`Segmenter`, `Aligner`, `Checksum`: from a frame's last beat of payload to its sum, if the frame wants checksums."""
    plain_to_sum: int
    """The same, if it does not."""
    header_overhead: int
    """`HeaderWriter`: cycles of a frame beside its operations."""
    template_cycles: int
    """The same: cycles that a new template of a segmented send costs."""
    header_to_frame: int
    """`HeaderWriter`, `Framer`, `MacTx`: from the last operation on a header to the frame's first beat."""
    whole_to_frame: int
    """The same, of a frame whose header needs no operation."""
    sent_to_done: int
    """`MacTx`, `Completion`: from a send's last beat to its completion's way."""

    completion_to_write: int
    """`Completion`, `DmaWrite`: from there to the write's first beat."""
    completion_interval: int
    """`Completion`: from one entry to the next."""
    burst_interval: int
    """`DmaWrite`: from one write's first beat to the next, of one beat."""
    response_to_retired: int
    """`DmaWrite`, `Completion`: from the bus's response to the completion's index."""
    retired_to_irq: int
    """`Events`: from there to the interrupt line."""
    event_interval: int
    """`Events`: from one completion to the next."""
    deadline_to_irq: int
    """`Events`: from the deadline of moderation to the interrupt line."""

    arrived_to_match: int
    """`MacRx`, `Parser`, `RxBuffer`, `Coalescer`, `RxRings`: from a frame's last beat to its search for a buffer."""
    match_interval: int
    """`RxRings`: from one frame to the next."""
    match_further: int
    """The same: cycles for each further buffer."""
    match_to_write: int
    """`RxDeliver`, `KeyTable`, `DmaWrite`: from there to the write's first beat."""
    deliver_interval: int
    """`RxDeliver`: from one part of a frame to the next."""
    response_to_done: int
    """`DmaWrite`, `RxDeliver`, `RxGather`: from the bus's response to the completion's way."""
    post_to_fetch: int
    """`Doorbells`, `RxRings`, `DmaRead`: from a doorbell to the read of receive slots."""
    prefetch_interval: int
    """`RxRings`: from one fetch to the next."""
    slots_to_match: int
    """`DmaRead`, `RxRings`: from fetched slots on the bus to a frame that may have them."""
    row_to_write: int
    """`RxBuffer`, `Aligner`, `DmaWrite`: from a row that leaves the receive buffer to the write's beat."""

    @classmethod
    def names(cls) -> list[str]:
        """All of them, in packet order."""
        return [field.name for field in fields(cls)]


@dataclass(frozen=True, kw_only=True)
class DeviceModel:
    """A device as the timed model has it: sizes that the RTL could be built with, and others."""

    config: NicConfig
    timing: StageTiming
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
    frames_ready: int
    """Frames with their headers written, at most."""
    commands_ahead: int
    """Frames that are decided and whose reads are not all asked for."""
    segmenters: int = 1
    """Segmenters and header writers that work side by side."""
