"""What host and TCP server node say to each other on a VI.

The host sends requests, small messages; data it writes straight into the socket's send ring at the node, with 32 bits
of immediate data that tell how much. The node answers in two lanes: what a socket sends and is asked to do is carried
out, and answered, in order; receives in an order of their own. An answer is 32 bits of immediate data, behind the
received bytes if there are any, which are written straight into the application's memory; or a message, where there is
more to say. Credit, for bytes of the ring and for messages, goes back by remote writes into the host's control region,
which nobody is told of; a host that has run out of it says so, with what it has seen, and is told of more.
"""

from __future__ import annotations

import json
import struct
from enum import IntEnum
from typing import Any, NamedTuple

from host_driver.errors import (
    AddressInUse,
    BadSocket,
    ConnectionRefused,
    ConnectionTimedOut,
    NetworkError,
    OptionRefused,
    PeerReset,
    SocketClosed,
)

MESSAGE_BYTES = 512
"""Buffer of a message."""

WINDOW = 16
"""Messages of a VI that may be under way to the node, which posts one receive more, for a want of credit."""

HOST_RECEIVES = 16
"""Receives that the host posts on a VI. It posts each again when it is used up, whoever sleeps."""

CREDIT_BYTES = 32
"""What the node writes of the host's control region: `Word.SENT` and `Word.TAKEN`."""

MAX_LENGTH_BYTES = (1 << 24) - 1
"""What a length in immediate data can be."""


class Call(IntEnum):
    """What a request asks for."""

    LISTEN = 1
    STOP_LISTENING = 2
    ACCEPT = 3
    CONNECT = 4
    RECEIVE = 5
    SHUTDOWN = 6
    CLOSE = 7
    ABORT = 8
    SET_OPTIONS = 9
    REST = 10
    """Is a closed connection at rest?"""
    DROP = 11
    """Abort a closed one."""
    WANT_CREDIT = 12
    """The host waits for credit. Not answered; it is told of the next."""


class Lane(IntEnum):
    """Answers of a lane come in the order of what they answer."""

    CALLS = 0
    """Sends and requests,"""
    RECEIVES = 1
    """but receives."""
    CREDIT = 2
    """No answer: the words of the control region were written, of a host that waits for it; or a send failed that was
    not to be confirmed."""


class Answered(IntEnum):
    """How a request went."""

    OK = 0
    FAILED = 1
    CLOSED = 2
    RESET = 3
    REFUSED = 4
    TIMED_OUT = 5
    ADDRESS_IN_USE = 6
    OPTION_REFUSED = 7
    BAD_SOCKET = 8


_ERRORS: dict[Answered, type[NetworkError]] = {
    Answered.CLOSED: SocketClosed, Answered.RESET: PeerReset, Answered.REFUSED: ConnectionRefused,
    Answered.TIMED_OUT: ConnectionTimedOut, Answered.ADDRESS_IN_USE: AddressInUse,
    Answered.OPTION_REFUSED: OptionRefused, Answered.BAD_SOCKET: BadSocket,
}


_TEXTS = {
    Answered.FAILED: "the TCP server failed", Answered.CLOSED: "the connection is closed",
    Answered.RESET: "the peer or the TCP server reset the connection", Answered.REFUSED: "nobody listens there",
    Answered.TIMED_OUT: "the peer does not answer", Answered.ADDRESS_IN_USE: "the TCP server has the port in use",
    Answered.OPTION_REFUSED: "the TCP server cannot give an option",
    Answered.BAD_SOCKET: "the TCP server's socket is not in a state for it",
}


def answered_with(error: NetworkError) -> Answered:
    """How an error is told."""
    return next((answer for answer, kind in _ERRORS.items() if isinstance(error, kind)), Answered.FAILED)


def error_of(answer: Answered, doing: str) -> NetworkError:
    """The error that was told, of what was being done."""
    return _ERRORS.get(answer, NetworkError)(f"{doing}: {_TEXTS[answer]}")


class Request(NamedTuple):
    """A request. What the fields mean depends on the call."""

    call: Call
    number: int = 0
    """A port (LISTEN, STOP_LISTENING, ACCEPT, CONNECT), directions (SHUTDOWN), a connection (ABORT, REST, DROP)."""
    length: int = 0
    """Bytes that fit (RECEIVE), the backlog (LISTEN), bytes freed that the host has seen (WANT_CREDIT)."""
    address: int = 0
    """Where received bytes go (RECEIVE), messages taken that the host has seen (WANT_CREDIT),"""
    handle: int = 0
    """and of which registered memory."""
    more: dict[str, Any] = {}
    """Address, own port (CONNECT), options (CONNECT, SET_OPTIONS)."""


_HEAD = struct.Struct("<BxxxIQQI")


def format_request(request: Request) -> bytes:
    """As it is sent."""
    head = _HEAD.pack(request.call, request.number, request.length, request.address, request.handle)
    return head + (json.dumps(request.more).encode() if request.more else b"")


def parse_request(data: bytes) -> Request:
    """As it was before it was sent."""
    call, number, length, address, handle = _HEAD.unpack_from(data)
    tail = data[_HEAD.size :]
    return Request(Call(call), number, length, address, handle, json.loads(tail) if tail else {})


class Opened(NamedTuple):
    """A connection, as ACCEPT and CONNECT are answered."""

    number: int
    """Of the connection at its node."""
    local: tuple[str, int]
    remote: tuple[str, int]


def format_opened(opened: Opened) -> bytes:
    """As it is sent."""
    return json.dumps(opened).encode()


def parse_opened(data: bytes) -> Opened:
    """As it was."""
    number, (local_ip, local_port), (remote_ip, remote_port) = json.loads(data)
    return Opened(number, (local_ip, local_port), (remote_ip, remote_port))


class Welcome(NamedTuple):
    """What a node says to a VI that it accepts."""

    ring_handle: int
    ring_address: int
    ring_bytes: int
    """The socket's send ring."""


_WELCOME = struct.Struct("<IQI")


def format_welcome(welcome: Welcome) -> bytes:
    """As it is sent."""
    return _WELCOME.pack(*welcome)


def parse_welcome(data: bytes) -> Welcome:
    """As it was."""
    return Welcome(*_WELCOME.unpack(data))


class Control(NamedTuple):
    """What a host says when it asks for a VI: where its control region is."""

    handle: int
    address: int


_CONTROL = struct.Struct("<IQ")


def format_control(control: Control) -> bytes:
    """As it is sent."""
    return _CONTROL.pack(*control)


def parse_control(data: bytes) -> Control:
    """As it was."""
    return Control(*_CONTROL.unpack(data))


# ---------------------------------------------------------------------------------------------- immediate data

_CONFIRM = 1 << 31


def data_immediate(length_bytes: int, *, is_confirmed: bool) -> int:
    """Of bytes written into the send ring. `is_confirmed`: to be answered when TCP has them."""
    return length_bytes | (_CONFIRM if is_confirmed else 0)


def parse_data_immediate(value: int) -> tuple[int, bool]:
    """(bytes, whether to answer)."""
    return value & MAX_LENGTH_BYTES, bool(value & _CONFIRM)


class Answer(NamedTuple):
    """An answer; `message` if it came as one."""

    lane: Lane
    answered: Answered
    value: int
    message: bytes = b""


def answer_immediate(lane: Lane, answered: Answered, value: int = 0) -> int:
    """Immediate data of an answer."""
    return lane << 30 | answered << 24 | value


def parse_answer(value: int, message: bytes) -> Answer:
    """What it said."""
    return Answer(Lane(value >> 30), Answered(value >> 24 & 0x3F), value & MAX_LENGTH_BYTES, message)
