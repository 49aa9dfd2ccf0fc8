"""A network interface: channel 0's raw frames bound to a TCP stack of the host.

Receive, in packet order: what `host_driver.notifier` does when the device has something, completion ring, the softirq's
queue, `Stack.receive`, and at once `Stack.transmit`, since an arriving acknowledgement is what mostly lets segments go.
Send: segments of the stack wait in the transmit queue until the ring has room; each becomes a segmented send, a frame
with its checksums inserted by the device, or a copy in a packet buffer, as the offloads allow.

Each piece of work is charged to the account of whom it is done for: interrupt, softirq, or the process that called.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from host_driver.account import Account
from host_driver.channel import Channel
from host_driver.dim import Moderation
from host_driver.multiprocessor import Multiprocessor, SharedWork
from host_driver.nic import DeviceError, Nic
from host_driver.notification import Interrupts, Napi, Notification, Polling, SoftTimers
from host_driver.notifier import notifier
from host_driver.packet_buffers import PacketBuffer, PacketBuffers
from host_driver.placement import Flow, Placement, flow_between
from host_driver.rings import Completion, Descriptor, Piece
from host_driver.runtime import Task, Timer
from host_driver.softirq import PerProcessor, Softirq, WaitingFrame
from host_driver.tcp.buffers import Chunk
from host_driver.tcp.connection import Connection
from host_driver.tcp.frames import OutFrame, OutSegment
from host_driver.tcp.links import IpAddress, OwnAddress
from host_driver.tcp.profile import Profile
from host_driver.tcp.stack import Stack
from nic_model.aggregates import as_one_packet
from nic_model.contract import (
    MAX_DESCRIPTOR_SLOTS,
    MIN_MSS,
    RAW_CHANNEL,
    Feature,
    KeyRight,
    Opcode,
    OperationMask,
    RxFilter,
    RxInfo,
    SendFlag,
    Status,
    register,
    slots_needed,
)
from nic_model.contract.protocols import (
    ETHERNET_HEADER_BYTES,
    IPV4_TOTAL_LENGTH_OFFSET,
    IPV6_PAYLOAD_LENGTH_OFFSET,
    VLAN_TAG_BYTES,
)
from nic_model.segmentation import segment as cut_into_segments

LARGEST_SEND_BYTES = 0xFFFF - 120
"""Payload of the largest segmented send: 64 KB less the largest IP and TCP headers."""

BUFFER_GRANULE_BYTES = 2048
TX_PACKET_BUFFERS = 256


@dataclass(frozen=True, kw_only=True)
class Offloads:
    """What the device does instead of the host. Raises ValueError for segmentation or coalescing without checksums."""

    rx_checksum: bool = False
    tx_checksum: bool = False
    segmentation: bool = False
    coalescing_usecs: float = 0
    """Received TCP segments are merged, and held for so long at most; 0: they are not."""

    def __post_init__(self) -> None:
        if self.coalescing_usecs and not self.rx_checksum:
            raise ValueError("coalescing by the device needs rx_checksum too: only it has seen each segment's checksum")
        if self.segmentation and not self.tx_checksum:
            raise ValueError("segmentation by the device needs tx_checksum too: it writes new checksums")

    @property
    def needed_features(self) -> Feature:
        """What a device must have for them."""
        needed = Feature(0)
        if self.rx_checksum:
            needed |= Feature.RX_CHECKSUM
        if self.tx_checksum:
            needed |= Feature.TX_CHECKSUM
        if self.segmentation:
            needed |= Feature.SEGMENTATION_IPV4 | Feature.SEGMENTATION_IPV6
        if self.coalescing_usecs:
            needed |= Feature.COALESCE
        return needed


class CurrentAccount:
    """The account of the context that runs the stack at this moment. The stack charges it; nobody settles it."""

    def __init__(self, initial: Account) -> None:
        self.target = initial

    def charge(self, category: str, item: str, count: int = 1) -> None:
        """Charge whoever runs."""
        self.target.charge(category, item, count)

    async def settle(self) -> None:
        """Wait on behalf of whoever runs."""
        await self.target.settle()


class _Fence:
    """Calls back when the last of several sends has been read by the device."""

    __slots__ = ("_callback", "_readers")

    def __init__(self, readers: int, callback: Callable[[], None]) -> None:
        self._readers = readers
        self._callback = callback

    def passed(self) -> None:
        """One of the sends is over."""
        self._readers -= 1
        if self._readers == 0:
            self._callback()


class _Outgoing:
    """A segment of the stack on its way: in the transmit queue, or on the ring reading registered memory."""

    __slots__ = ("_fences", "copies", "segment")

    def __init__(self, segment: OutSegment | OutFrame) -> None:
        self.segment = segment
        self.copies: deque[bytes] | None = None
        """Frames that are left to send, if the segment is sent from packet buffers."""
        self._fences: list[_Fence] = []

    def reads(self, connection: Connection, chunk: Chunk) -> bool:
        """Whether any of its bytes lie in `chunk`, sent by `connection`."""
        return isinstance(self.segment, OutSegment) and self.segment.connection is connection and any(
            piece.key == chunk.key and piece.offset < chunk.offset + len(chunk)
            and chunk.offset < piece.offset + len(piece) for piece in self.segment.payload)

    def add_fence(self, fence: _Fence) -> None:
        """Tell it when this send is over."""
        self._fences.append(fence)

    def over(self) -> None:
        """Its payload will not be read any more."""
        fences, self._fences = self._fences, []
        for fence in fences:
            fence.passed()


class NetworkInterface:
    """One interface with its stack; made by `NetworkInterface.open`.

    Attributes: `nic`, `channel`, `stack`, `account` (whoever runs the stack), and counts: `send_errors`,
    `receive_errors` (error completions), `backlog_drops` (frames that found the softirq's queue full), `interrupts`;
    `placement`, where connections have processors of their own.
    """

    def __init__(self, nic: Nic, channel: Channel, stack: Stack, account: CurrentAccount, *, offloads: Offloads,
                 notification: Notification, interrupt_account: Account, softirqs: PerProcessor,
                 background_account: Account | None, multiprocessor: Multiprocessor | None, mtu: int) -> None:
        self.nic = nic
        self.channel = channel
        self.stack = stack
        self.account = account
        self.multiprocessor = multiprocessor
        self.send_errors = 0
        self.receive_errors = 0
        self.backlog_drops = 0
        self.interrupts = 0
        self._port = nic.port
        self._offloads = offloads
        self.interrupt_account = interrupt_account
        self.softirqs = softirqs.softirqs()
        self._current_softirq = softirqs.current
        servers = self.softirqs[:-1] if softirqs.policy is not None else self.softirqs
        self.placement = Placement(servers, softirqs.policy, self._is_open) if softirqs.by_connection else None
        self.background_account = background_account
        self._shared_work = self._work_by_account()
        self._notifier = notifier(notification, self)
        frame_bytes = mtu + ETHERNET_HEADER_BYTES + VLAN_TAG_BYTES
        buffer_bytes = -(-frame_bytes // BUFFER_GRANULE_BYTES) * BUFFER_GRANULE_BYTES
        self._rx_buffers = PacketBuffers(nic, channel.number, channel.buffers.entries, buffer_bytes, KeyRight.WRITE)
        self._tx_buffers = PacketBuffers(nic, channel.number, TX_PACKET_BUFFERS, buffer_bytes, KeyRight.READ)
        self._timer: Timer | None = None
        self._timer_due = False
        self._transmit_queue: deque[_Outgoing] = deque()
        self._on_ring: set[_Outgoing] = set()
        self._tasks: list[Task[Any]] = []

    @classmethod
    async def open(cls, nic: Nic, *, mac: bytes, ip: OwnAddress | Sequence[OwnAddress], profile: Profile,
                   rng: random.Random, interrupt_account: Account,
                   softirq_account: Account | PerProcessor, gateways: Sequence[IpAddress | str] = (),
                   offloads: Offloads | None = None, notification: Notification | None = None,
                   background_account: Account | None = None, mtu: int = 1500,
                   multiprocessor: Multiprocessor | None = None,
                   vector: int = 0, tx_log2: int = 9, rx_log2: int = 8) -> NetworkInterface:
        """Bring the interface up. The default is no offload, and an interrupt for each frame; `background_account` is
        of the process that goes on for a softirq that took too long, where there is one. `softirq_account` may have one
        for each processor: then what interrupts leave to them is served by all of them at a time. `multiprocessor`:
        what a kernel for several processors costs; None: it is for one.

        Raises DeviceError if the device lacks an offload, ValueError as `Nic.open_channel` and for several softirqs
        that are told in a way that has one.
        """
        offloads = offloads or Offloads()
        missing = offloads.needed_features & ~nic.capabilities.features
        if missing:
            raise DeviceError(f"the device does not have {missing.name}, which {offloads} needs")
        operations = OperationMask.SEND_FRAME | OperationMask.SEND_SEGMENTED | OperationMask.RECEIVE_RAW
        if offloads.coalescing_usecs:
            operations |= OperationMask.COALESCE
            nic.set_coalescing(offloads.coalescing_usecs)
        channel = await nic.open_channel(RAW_CHANNEL, operations=operations, vector=vector, tx_log2=tx_log2,
                                         rx_log2=rx_log2)
        softirqs = softirq_account if isinstance(softirq_account, PerProcessor) else PerProcessor.one(softirq_account)
        single = isinstance(notification, SoftTimers) or (
            isinstance(notification, Polling | Napi) and not softirqs.by_connection)
        if len(softirqs.accounts) > 1 and single:
            raise ValueError(f"{type(notification).__name__} has one softirq, not {len(softirqs.accounts)}")
        account = CurrentAccount(softirqs.accounts[0])
        stack = Stack(mac=mac, ip=ip, gateways=gateways, profile=profile, mtu=mtu, account=account, rng=rng,
                      max_segment_bytes=LARGEST_SEND_BYTES if offloads.segmentation else None)
        interface = cls(nic, channel, stack, account, offloads=offloads,
                        notification=notification or Interrupts(), interrupt_account=interrupt_account,
                        softirqs=softirqs, background_account=background_account,
                        multiprocessor=multiprocessor, mtu=mtu)
        nic.set_mac_address(mac)
        nic.set_filter(RxFilter.BROADCAST | (RxFilter.MULTICAST if stack.has_ipv6 else RxFilter(0)))
        interface._start()
        nic.enable_receive(True)
        return interface

    def _start(self) -> None:
        while self._rx_buffers.free:
            self._post(self._rx_buffers.free.pop())
        self.channel.ring_doorbell(self.softirqs[0].account)
        self._notifier.start()
        loops = [(self._watch_errors(), "device errors"), *self._notifier.loops()]
        self._tasks = [self._port.kernel.spawn(loop, name) for loop, name in loops]

    async def close(self) -> None:
        """Take the interface down: no frame is taken or sent any more, and all its memory is given back."""
        for task in self._tasks:
            task.cancel()
        if self._timer is not None:
            self._timer.cancel()
        self.nic.enable_receive(False)
        self.nic.mask(self.channel.vector, True)
        for handle in await self.nic.close_channel(self.channel):
            if isinstance(handle, _Outgoing):
                handle.over()
        for outgoing in self._transmit_queue:
            outgoing.over()
        self._transmit_queue.clear()
        await self._rx_buffers.release()
        await self._tx_buffers.release()

    # ------------------------------------------------------------------------------------------ being told

    @property
    def left_over(self) -> dict[str, int]:
        """What an interface at rest has none of, by name: frames and sends under way, buffers that somebody holds."""
        return {"backlog": sum(softirq.waiting for softirq in self.softirqs),
                "transmit_queue": len(self._transmit_queue),
                "sends_on_ring": self.channel.sends_in_flight,
                "transmit_buffers": TX_PACKET_BUFFERS - len(self._tx_buffers.free),
                "receive_buffers": len(self._rx_buffers.free)}

    @property
    def moderation(self) -> dict[str, Moderation]:
        """What adaptive moderation decided on, by "rx" and "tx"; without those that do not adapt."""
        return self._notifier.moderation

    async def _watch_errors(self) -> None:
        """Ends the run when a channel stops: the driver gave it something that no working driver gives."""
        self._port.write32(register("ERROR_MASK"), 0)
        await self._port.interrupt(self.nic.capabilities.vectors)
        stopped = await self.nic.take_channel_errors()
        raise DeviceError("; ".join(f"channel {n} stopped: {error.name}" for n, error in stopped.items()))

    @property
    def current_softirq(self) -> Softirq:
        """Of the processor that took the last interrupt."""
        return self.softirqs[self._current_softirq()]

    def take_completions(self, account: Account, most_received: int | None = None,
                         softirq: Softirq | None = None) -> int:
        """Empty the completion ring, up to so many received frames (None: all); how many there were.

        They go to the backlog, their buffers back to the device. `softirq`: the bottom half of the processor that does
        so; None: of the one that took the last interrupt.
        """
        received, softirq = 0, softirq or self.current_softirq
        for completion, handle, more in self.channel.completions():
            if isinstance(handle, _Outgoing):
                account.charge("driver", "transmit_reclaim")
                self._on_ring.discard(handle)
                self.send_errors += completion.status is not Status.OK
                self.account.target = account
                handle.over()
                self._notifier.count_sent(completion.length)
            elif isinstance(handle, _SentBuffer):
                account.charge("driver", "transmit_reclaim")
                self.send_errors += completion.status is not Status.OK
                self._tx_buffers.free.append(handle.buffer)
                self._notifier.count_sent(completion.length)
            else:
                account.charge("driver", "receive_frame")
                parts = [(completion, handle), *((c, h) for c, h, _ in more)]
                self._take_frame(parts, softirq, account)
                self._notifier.count_received(sum(part.length for part, _ in parts))
                received += 1
                if received == most_received:
                    break
        self.channel.ring_doorbell(account)
        if softirq.backlog or self._transmit_queue:
            softirq.pending.set()
        return received

    def _take_frame(self, parts: list[tuple[Completion, PacketBuffer]], softirq: Softirq, account: Account) -> None:
        head = parts[0][0]
        if head.status is not Status.OK:
            self.receive_errors += 1
        else:
            # Stands for handing the buffer up and posting a fresh one: no copy is charged.
            received = b"".join(buffer.view[: part.length] for part, buffer in parts)
            frame = as_one_packet(received, head.segments, head.info)
            merged_bytes = head.mss if head.segments > 1 else 0
            self._leave(WaitingFrame(frame, self._checksum_verdict(head.info), merged_bytes), softirq, account)
        for _, buffer in parts:
            self._post(buffer)

    def _leave(self, frame: WaitingFrame, own: Softirq, account: Account) -> None:
        """Leave a frame to the bottom half that carries its connection, which may be another processor's."""
        number = None if self.placement is None else self.placement.of_frame(frame.data)
        softirq = own if self.placement is None else self.softirqs[-1 if number is None else number]
        if softirq.is_full:
            self.backlog_drops += 1
            return
        softirq.backlog.append(frame)
        if softirq is not own:
            account.charge("softirq", "hand_over")
            softirq.tell(account)

    def _is_open(self, flow: Flow) -> bool:
        return self.stack.has_connection(*flow)

    def server_of(self, connection: Connection) -> Softirq | None:
        """The bottom half of the dedicated processor that has a connection; None: the host's processors have it."""
        if self.placement is None:
            return None
        number = self.placement.of_flow(flow_between(connection))
        return None if number is None else self.softirqs[number]

    def _post(self, buffer: PacketBuffer) -> None:
        self.channel.post(buffer.piece, buffer.number, buffer)

    def _checksum_verdict(self, info: RxInfo) -> bool | None:
        """What the device says of a frame's checksums; None: the software must see for itself."""
        if not self._offloads.rx_checksum:
            return None
        if info & RxInfo.CHECKSUM_BAD:
            return False
        return True if info & RxInfo.L4_CHECKSUM_OK else None

    # ------------------------------------------------------------------------------------------ softirq

    async def run_softirq(self, softirq: Softirq, account: Account | None = None) -> None:
        """Run timers that are due, carry the backlog to the stack, and send what waited for room on the ring.

        On behalf of `account`, if it is not the softirq's own.
        """
        account = account or softirq.account
        softirq.pending.clear()
        softirq.is_running = True
        try:
            await self._run_softirq(softirq, account)
        finally:
            softirq.is_running = False

    async def _run_softirq(self, softirq: Softirq, account: Account) -> None:
        if self._timer_due:
            self._timer_due = False
            self.account.target = account
            self.stack.poll(self._port.now())
        while softirq.waiting:
            # Frames and sends in turn, so that neither waits for the other's end.
            if softirq.backlog:
                await self._carry(softirq.backlog.popleft(), account)
            if softirq.jobs:
                account.charge("tcp_send", "queue_take")
                self.account.target = account
                await softirq.jobs.popleft()(account)
        await self.push(account)

    async def _carry(self, waiting: WaitingFrame, account: Account) -> None:
        """Bring a received frame to TCP."""
        frame, checksum_ok, merged_bytes = waiting
        account.charge("softirq", "packet")
        if self.multiprocessor is not None:
            self.multiprocessor.receive(account, self._work(self.multiprocessor, account))
        self.account.target = account
        self.stack.receive(frame, self._port.now(), checksum_ok=checksum_ok, merged_bytes=merged_bytes)
        await self.push(account)

    def _work_by_account(self) -> dict[Account, SharedWork]:
        """Among whom the work of each bottom half is shared."""
        if self.multiprocessor is None:
            return {}
        works = self.multiprocessor.bottom_halves
        if len(works) != len(self.softirqs):
            raise ValueError(f"multiprocessor must have {len(self.softirqs)} bottom halves, not {len(works)}")
        found = {softirq.account: work for softirq, work in zip(self.softirqs, works, strict=True)}
        if self.background_account is not None:
            found[self.background_account] = works[0]
        return found

    def _work(self, multiprocessor: Multiprocessor, account: Account) -> SharedWork:
        return self._shared_work.get(account, multiprocessor.processes)

    def _set_timer(self) -> None:
        """Let the softirq run the stack's timers when the next one is due."""
        deadline = self.stack.next_deadline()
        if self._timer is not None:
            if self._timer.time == deadline:
                return
            self._timer.cancel()
            self._timer = None
        if deadline is not None:
            self._timer = self._port.kernel.call_at(deadline, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        self._timer_due = True
        self.softirqs[self._current_softirq()].pending.set()

    # ------------------------------------------------------------------------------------------ sending

    async def push(self, account: Account) -> None:
        """Send all that the stack may send now, on behalf of `account`; to be called after whatever changed it.

        A segment is on the ring after the processor had the time for TCP's work on it.
        """
        self.account.target = account
        handed_down = [_Outgoing(segment) for segment in self.stack.transmit(self._port.now())]
        self._transmit_queue.extend(handed_down)
        self._set_timer()
        if handed_down:
            if self.multiprocessor is not None:
                self.multiprocessor.send(account, self._work(self.multiprocessor, account), len(handed_down))
            await account.settle()
        self._drain_transmit_queue(account)
        await account.settle()

    def when_unread(self, connection: Connection, chunk: Chunk, callback: Callable[[], None]) -> None:
        """Call back when no send of `connection` in the queue or on the ring reads `chunk`'s memory; maybe at once."""
        readers = [out for out in (*self._transmit_queue, *self._on_ring) if out.reads(connection, chunk)]
        if not readers:
            callback()
            return
        fence = _Fence(len(readers), callback)
        for reader in readers:
            reader.add_fence(fence)

    def _drain_transmit_queue(self, account: Account) -> None:
        """Put segments on the ring as long as there is room, and tell the device once."""
        self.account.target = account
        queue = self._transmit_queue
        while queue and self._submit(queue[0], account):
            queue.popleft()
        self.channel.ring_doorbell(account)

    def _submit(self, outgoing: _Outgoing, account: Account) -> bool:
        """Put a segment on the ring; False when there is no room for it now."""
        segment = outgoing.segment
        if isinstance(segment, OutFrame) or outgoing.copies is not None:
            return self._submit_copies(outgoing, account)
        pieces = self._pieces_to_read(segment)
        if pieces is None:
            return self._submit_copies(outgoing, account)
        if self.channel.submissions.free < MAX_DESCRIPTOR_SLOTS:
            return False
        account.charge("driver", "transmit_frame")
        self.channel.submit(_described(segment, pieces), outgoing)
        self._on_ring.add(outgoing)
        return True

    def _pieces_to_read(self, segment: OutSegment) -> list[Piece] | None:
        """What the device reads to send a segment without a copy; None if it cannot."""
        if not self._offloads.tx_checksum or any(chunk.key is None for chunk in segment.payload):
            return None
        if segment.payload_bytes > segment.mss and not (self._offloads.segmentation and segment.mss >= MIN_MSS):
            return None
        if slots_needed(len(segment.header), len(segment.payload)) > MAX_DESCRIPTOR_SLOTS:
            return None
        return [Piece(*chunk.piece()) for chunk in segment.payload]

    def _submit_copies(self, outgoing: _Outgoing, account: Account) -> bool:
        """Send a segment from packet buffers, headers and all: one frame, or several if it is larger than the MSS."""
        if outgoing.copies is None:
            outgoing.copies = self._copy(outgoing.segment, account)
            outgoing.over()
        buffers, copies = self._tx_buffers.free, outgoing.copies
        while copies and buffers and self.channel.submissions.free:
            frame, buffer = copies.popleft(), buffers.pop()
            buffer.view[: len(frame)] = frame
            account.charge("driver", "transmit_frame")
            self.channel.submit(Descriptor(Opcode.SEND_FRAME, pieces=[buffer.first(len(frame))]), _SentBuffer(buffer))
        return not copies

    @staticmethod
    def _copy(segment: OutSegment | OutFrame, account: Account) -> deque[bytes]:
        """Frames of a segment, the checksums folded into the copy as Linux does it."""
        if isinstance(segment, OutFrame):
            return deque([segment.frame()])
        frames = [segment.frame()] if segment.payload_bytes <= segment.mss else _software_segments(segment)
        if segment.payload_bytes:
            account.charge("copy", "retransmit_byte", segment.payload_bytes)
            account.charge("tcp_send", "buffer", len(frames))
        return deque(frames)


@dataclass(frozen=True, slots=True)
class _SentBuffer:
    """Handle of a send from a packet buffer."""

    buffer: PacketBuffer


def _described(segment: OutSegment, pieces: list[Piece]) -> Descriptor:
    """The send that makes frames of a segment without a copy."""
    if segment.payload_bytes > segment.mss:
        flags = SendFlag.IPV6 if segment.ipv6 else SendFlag(0)
        return _with_offsets(segment, Opcode.SEND_SEGMENTED, _template(segment), pieces, flags, segment.mss)
    flags = SendFlag.L4_CHECKSUM if segment.ipv6 else SendFlag.L4_CHECKSUM | SendFlag.IPV4_CHECKSUM
    header = segment.seeded_header(with_length=True)
    return _with_offsets(segment, Opcode.SEND_FRAME, header, pieces, flags, 0)


def _with_offsets(segment: OutSegment, opcode: Opcode, inline: bytes, pieces: list[Piece], flags: SendFlag,
                  mss: int) -> Descriptor:
    return Descriptor(opcode, inline, pieces, flags, mss, segment.l3_offset, segment.l4_offset,
                      segment.checksum_offset)


def _template(segment: OutSegment) -> bytes:
    """The header as a segmented send wants it: no lengths, and the checksum's seed without one."""
    header = bytearray(segment.seeded_header(with_length=False))
    length_at = segment.l3_offset + (IPV6_PAYLOAD_LENGTH_OFFSET if segment.ipv6 else IPV4_TOTAL_LENGTH_OFFSET)
    header[length_at : length_at + 2] = bytes(2)
    return bytes(header)


def _software_segments(segment: OutSegment) -> list[bytes]:
    """Frames of a large segment, cut in software: for payload that the device cannot read where it lies."""
    flags = SendFlag.L4_CHECKSUM | (SendFlag.IPV6 if segment.ipv6 else SendFlag.IPV4_CHECKSUM)
    head = {"mss": segment.mss, "flags": int(flags), "l3_offset": segment.l3_offset, "l4_offset": segment.l4_offset,
            "checksum_offset": segment.checksum_offset}
    payload = b"".join(chunk.view() for chunk in segment.payload)
    return list(cut_into_segments(_template(segment), head, payload))
