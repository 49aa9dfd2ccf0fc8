"""Where software reports the work it does, so that a processor model can charge it.

Driver, MemNet and TCP know what they did, not what it costs: they report (category, item, count) to the
account that was handed to them. The machine file prices each item. The list of items here is the one
definition; the machine file must price all of them.
"""

from __future__ import annotations

from typing import Protocol

ITEMS: dict[str, dict[str, str]] = {
    "user": {
        "request": "the application's own work for a request",
        "connection": "the application's own work for a connection",
        "memnet_call": "a MemNet library call that stays in user space",
    },
    "syscall": {
        "fork": "a process forked",
        "accept": "an accept call",
        "read": "a read call on a socket, without its copy",
        "write": "a write or send call on a socket, without copies and TCP",
        "close": "a close call",
        "connect": "a connect call",
        "smp_connection": "line bouncing, lock waits and migration for a connection that all processors of the machine"
                          " share the work on",
    },
    "copy": {
        "user_to_kernel_byte": "a byte copied from the application into kernel buffers",
        "retransmit_byte": "a byte copied into the packet kept for retransmission",
        "kernel_to_user_byte": "a byte copied from kernel buffers to the application",
    },
    "tcp_send": {
        "segment": "a data segment handed down by TCP, however large",
        "buffer": "a network buffer allocated and filled in",
        "control": "a SYN, SYN-ACK, ACK, FIN or RST without payload, sent",
        "checksum_byte": "a byte summed in software for sending",
        "smp_lock": "locked instructions for a segment or control packet handed to the driver, in a kernel for several"
                    " processors",
        "smp_packet": "line bouncing, lock waits and migration for such a packet, however large, that all processors of"
                      " the machine share the work on",
        "queue_put": "a send put on the queue in shared memory to a dedicated processor",
        "queue_take": "a send taken from that queue",
    },
    "tcp_recv": {
        "syn": "an arriving SYN",
        "established": "the segment that completes a handshake",
        "ack": "an arriving acknowledgement without data",
        "data_segment": "an arriving segment with data",
        "fin": "an arriving FIN",
        "rst": "an arriving RST",
        "checksum_byte": "a byte summed in software for receiving",
    },
    "ip": {
        "receive": "a packet through IP input",
        "send": "a packet through IP output",
    },
    "driver": {
        "receive_frame": "a received frame taken from the ring, its buffer replaced",
        "transmit_frame": "a frame or large send put on the ring",
        "transmit_reclaim": "a finished send taken from the completion ring",
        "mmio_write": "a posted register or doorbell write",
        "block_write": "a 64-byte write-combined block of a pushed descriptor",
        "mmio_read": "a register read, which stalls the processor",
        "register_memory": "a memory key written",
    },
    "interrupt": {
        "entry": "an interrupt taken: entry, handler dispatch, exit and the cache pollution it leaves",
        "signal": "an interrupt sent to another processor, which has an entry of its own",
    },
    "softirq": {
        "run": "a bottom half started",
        "packet": "a packet carried from the driver's queue to the protocol",
        "smp_lock": "locked instructions for a received packet, in a kernel for several processors",
        "smp_packet": "line bouncing, lock waits and migration for a received packet that all processors of the machine"
                      " share the work on",
        "hand_over": "a received packet put into the queue of another processor's bottom half",
    },
    "context_switch": {
        "switch": "a processor given to another process",
        "thread_switch": "a processor given to another thread of the same process, instead of a switch",
        "wake": "a sleeping process made runnable",
    },
    "poll": {
        "batch": "a look at a completion ring by polling",
        "bus_wait": "a processor that used the bus waited for another's poll; booked by the processor model",
    },
    "san": {},
    "file_system": {
        "open": "a cached file looked up",
        "read_byte": "a byte copied from the file cache to the application",
    },
}
"""Category -> item -> what one unit of it is."""


FIRMWARE_ITEMS: dict[tuple[str, str], str] = {
    ("firmware", "message"): "a message taken from the control port and told apart",
    ("firmware", "order_unit"): "64 bytes of an order written to the control port",
    ("firmware", "operation"): "a socket operation taken apart",
    ("firmware", "completion"): "a completion made",
    ("firmware", "timer"): "timers looked at when one is due",
    **{("tcp_recv", item): ITEMS["tcp_recv"][item] for item in ("syn", "established", "ack", "data_segment", "fin",
                                                              "rst")},
    ("tcp_send", "segment"): ITEMS["tcp_send"]["segment"],
    ("tcp_send", "control"): ITEMS["tcp_send"]["control"],
    ("ip", "receive"): ITEMS["ip"]["receive"],
    ("ip", "send"): ITEMS["ip"]["send"],
}
"""(category, item) -> what one unit of it is: work of TCP's firmware on a device processor, which its own table of the
machine file prices."""


class Account(Protocol):
    """Takes reports of work. Must be cheap: it is called several times a packet."""

    def charge(self, category: str, item: str, count: int = 1) -> None:
        """`count` units of `item` were done. Raises KeyError for an item that `ITEMS` does not list."""

    async def settle(self) -> None:
        """Wait until the processor had the time for all that was charged so far."""


class NullAccount:
    """An account of somebody whose processor time does not matter, such as a simulated client."""

    def charge(self, category: str, item: str, count: int = 1) -> None:
        """Forget it."""

    async def settle(self) -> None:
        """Return at once."""
