"""Logs of a control port: all messages of its three streams, in order, as a file; and a decider run again on one.

The first line is JSON: what the decider is told of the device. Then one message a line: `<` and a message up, `>` and
an order, each in hexadecimal without the zeros at its end. A decider has no other input, so that the same log makes it
give the same orders; that is the oracle of a later one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from enum import IntFlag
from typing import NamedTuple, Protocol, TextIO

from nic_model.contract.config import PortFacts
from nic_model.contract.control import (
    CONTROL_HEADER,
    UNIT_BYTES,
    UP_TYPES,
    OrderFlag,
    UpFlag,
    units_of,
    unpack_message,
)


class Decider(Protocol):
    """Whoever sits at the port."""

    def on_message(self, message: bytes) -> list[bytes]:
        """The orders that a message up makes it give, in order, of both streams."""


class Entry(NamedTuple):
    """One message of a log."""

    is_up: bool
    message: bytes


@dataclass
class PortLog:
    """A log under way, or read. Attributes: `facts`; `entries`."""

    facts: PortFacts
    entries: list[Entry] = field(default_factory=list)

    def add(self, is_up: bool, message: bytes) -> None:
        """A message passed the port."""
        self.entries.append(Entry(is_up, message))

    def write(self, file: TextIO) -> None:
        """The whole log as text."""
        file.write(json.dumps(asdict(self.facts)) + "\n")
        for entry in self.entries:
            file.write(f"{'<' if entry.is_up else '>'} {entry.message.rstrip(bytes(1)).hex()}\n")

    @classmethod
    def read(cls, file: TextIO) -> PortLog:
        """A log that `write` wrote. Raises ValueError, with the line, for anything else."""
        try:
            facts = PortFacts(**json.loads(file.readline()))
        except (ValueError, TypeError) as error:
            raise ValueError(f"line 1: no log of a control port: {error}") from error
        log = cls(facts)
        for number, line in enumerate(file, 2):
            mark, _, digits = line.strip().partition(" ")
            try:
                message = bytes.fromhex(digits)
                begin = int.from_bytes(message[: CONTROL_HEADER.size_bytes], "little")
                message = message.ljust(UNIT_BYTES * units_of(begin), b"\0")
                kind, _, _ = unpack_message(message)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
            if mark != ("<" if kind in UP_TYPES else ">"):
                raise ValueError(f"line {number}: {kind.name} goes the other way")
            log.add(mark == "<", message)
        return log


def replay(log: PortLog, decider: Decider) -> str | None:
    """Run a decider on the messages up of a log: where it first gives other orders than the log has, or None.

    All that matters is what it gives between one message up and the next: their order there, too.
    """
    given: list[bytes] = []
    at = 0
    for number, entry in enumerate([*log.entries, Entry(True, b"")]):
        if not entry.is_up:
            at += 1
            if at > len(given):
                return f"message {number}: the log has {describe(entry.message)}, and the decider gave no order"
            if given[at - 1] != entry.message:
                return f"message {number}: {describe(given[at - 1])} instead of {describe(entry.message)}"
            continue
        if at < len(given):
            return f"message {number}: {describe(given[at])}, which the log does not have"
        if entry.message:
            given, at = decider.on_message(entry.message), 0
    return None


def describe(message: bytes) -> str:
    """A message as one line: its type, and all fields that are not 0."""
    kind, fields, further = unpack_message(message)
    flags: IntFlag = (UpFlag if kind in UP_TYPES else OrderFlag)(fields["flags"])
    shown = {name: value for name, value in fields.items()
             if value and name not in ("type", "units", "version", "flags", "frame")}
    in_hexadecimal = {"key", "key_0", "key_1", "tcp_flags", "remote_address", "local_address", "next_hop", "result"}
    text = " ".join([kind.name, *(f"{name}={value:#x}" if name in in_hexadecimal else f"{name}={value}"
                                  for name, value in shown.items())])
    if flags:
        text += f" {'|'.join(flag.name or '' for flag in flags)}"
    return text + (f" + {further.rstrip(bytes(1)).hex()}" if further.rstrip(bytes(1)) else "")


def describe_all(entries: Iterable[Entry]) -> Iterator[str]:
    """A log as text for people."""
    for entry in entries:
        yield ("<  " if entry.is_up else " > ") + describe(entry.message)
