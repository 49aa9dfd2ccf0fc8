"""Socket operations in host memory: descriptors that go to whoever sits at the control port, and their completions."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from nic_model.contract.descriptors import Field, Layout


class SocketFlag(IntFlag):
    """`flags` of a socket operation."""

    PUSH = 1 << 0
    """SEND: the last byte's segment has PSH."""
    FIN = 1 << 1
    """SEND: the last byte of the stream."""
    MORE = 1 << 2
    """SEND, RECEIVE: the next descriptor of this channel is a further part of the same job; only the last part is
    completed."""
    WAIT_ALL = 1 << 3
    """RECEIVE: complete only when full, or at the stream's end. Its memory counts for the window."""
    END_RECEIVE = 1 << 4
    """SHUTDOWN: receive no more."""
    END_SEND = 1 << 5
    """SHUTDOWN: send no more, behind all sends taken."""
    ABORT = 1 << 6
    """CLOSE: reset the connection."""


class SocketStatus(IntEnum):
    """`status` of a socket operation's completion."""

    OK = 0
    REFUSED = 0x20
    """The peer refused the connection."""
    RESET = 0x21
    """The peer reset the connection."""
    TIMED_OUT = 0x22
    UNREACHABLE = 0x23
    CLOSED = 0x24
    """The socket was closed here, or there is no such socket."""
    IN_USE = 0x25
    """The address is taken."""
    NO_ROOM = 0x26
    """No flow, no socket or no eager ring is left."""
    INVALID = 0x27
    """The operation means nothing for this socket, or its parameters do not."""
    MEMORY = 0x28
    """A key of the job was refused, or the bus failed on its memory: the connection is aborted."""
    ABORTED = 0x29
    """The connection was aborted here."""


SOCKET_HEAD = Layout("socket submission", 32, {
    "opcode": Field(0, 8, "an Opcode, SOCKET_CONNECT to SOCKET_OPTION"),
    "slots": Field(8, 8, "submission slots of this descriptor: 1, or 3 with parameters"),
    "flags": Field(16, 16, "SocketFlag bits"),
    "tag": Field(32, 16, "the job's number, returned in the completion"),
    "socket": Field(48, 16, "the socket; 0 for CONNECT and LISTEN"),
    "inline_bytes": Field(64, 8, "0, or 64: SOCKET_PARAMETERS stand in the next two slots"),
    "pieces": Field(96, 8, "0 or 1"),
    "offset": Field(128, 40, "piece: byte offset inside the key's memory"),
    "key": Field(168, 24, "piece: memory key of this channel"),
    "length": Field(192, 32, "piece: bytes"),
    "consumed": Field(224, 32, "bytes of the socket's eager ring that the host has read since the connection began"),
})
"""First slot of a socket operation's descriptor, all of it but for CONNECT, LISTEN and SOCKET_OPTION. The slots are the
device's until TX_INDEX passes them; it writes one completion of kind SOCKET for each job, in any order. The piece is
the memory to send or to fill; for CONNECT the socket's eager ring; for LISTEN a pool of them for the connections that
come, each `ring_bytes` long. A descriptor that the device refuses by itself, with a `Status`, is completed as a send
is, with kind SEND."""

SOCKET_PARAMETERS = Layout("socket parameters", 64, {
    "remote_address": Field(0, 128, "CONNECT: the peer's; first byte lowest"),
    "local_address": Field(128, 128, "own address; 0: the device's choice, or any"),
    "remote_port": Field(256, 16, "CONNECT"),
    "local_port": Field(272, 16, "own port; 0: the device's choice"),
    "backlog": Field(288, 16, "LISTEN: connections that may wait to be accepted"),
    "ip_version": Field(304, 8, "4 or 6; LISTEN: 0 for both"),
    "option": Field(312, 8, "SOCKET_OPTION: a SocketOption"),
    "value": Field(320, 64, "SOCKET_OPTION: its value"),
    "ring_bytes": Field(384, 32, "size of an eager ring, a power of two"),
})

SOCKET_COMPLETION = Layout("socket completion", 32, {
    "kind": Field(0, 8, "CompletionKind.SOCKET"),
    "status": Field(8, 8, "a SocketStatus"),
    "tag": Field(16, 16, "the job's"),
    "length": Field(32, 32, "bytes moved; RECEIVE: 0 at the end of the stream"),
    "result": Field(64, 128, "ACCEPT, CONNECT: the peer's address, LISTEN: the own; RECEIVE: EAGER_RESULT"),
    "remote_port": Field(192, 16, "ACCEPT, CONNECT: the peer's port"),
    "local_port": Field(208, 16, "ACCEPT, CONNECT, LISTEN: own port"),
    "socket": Field(224, 16, "ACCEPT, CONNECT, LISTEN: the new socket; others: the descriptor's"),
    "phase": Field(248, 1, "as in every completion"),
})

EAGER_RESULT = Layout("eager result", 16, {
    "bytes": Field(0, 32, "first bytes of the receive that lie in the eager ring, for the host to copy; the others are"
                   " where they belong"),
    "position": Field(32, 32, "of the first of them in the ring, modulo its size"),
})
"""`result` of a RECEIVE."""


class SocketOption(IntEnum):
    """`option` of SOCKET_OPTION."""

    NO_DELAY = 1
    """1: Nagle's algorithm is off."""
    KEEP_ALIVE = 2
    """1: on."""
    USER_TIMEOUT_MS = 3
    """0: none."""
