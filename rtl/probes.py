"""What can be asked about a running device, by name: which blocks are at work, the state of each FSM, and each stream
that waits for its taker.

Nothing of this is in the device. A simulation that wants to know takes `Probes.value` of the very signals that a device
was elaborated to, and `Probes.document` beside it, which says what the bits mean.
"""

from functools import cache
from typing import NamedTuple

from amaranth.hdl import Cat, Fragment, Signal
from amaranth.hdl._ast import Assign, SignalDict
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

from nic_model.contract import NicConfig
from rtl.nic import Nic

STREAM_MEMBERS = {"payload", "valid", "ready"}


class Worker(NamedTuple):
    """A block that says whether it is at work: its path and that signal."""

    name: str
    active: Signal


class Machine(NamedTuple):
    """An FSM: its path and name, its states by their code, the state that it begins in, and the signal."""

    name: str
    states: tuple[str, ...]
    first: str
    state: Signal


class Stream(NamedTuple):
    """A stream where it begins: path and port of its source, who takes it, and its handshake."""

    name: str
    taker: str
    valid: Signal
    ready: Signal


class Probes(NamedTuple):
    """All workers, FSMs and streams of a device, in the order in which it elaborates them."""

    workers: list[Worker]
    machines: list[Machine]
    streams: list[Stream]

    @property
    def value(self):
        """From the lowest bit: one for each worker, all states, and one for each stream, which offers something that
        nobody takes."""
        return Cat(*(worker.active for worker in self.workers), *(machine.state for machine in self.machines),
                   *(stream.valid & ~stream.ready for stream in self.streams))

    @property
    def document(self):
        """What the bits of `value` mean, as JSON can hold it."""
        return {
            "workers": [worker.name for worker in self.workers],
            "machines": [{"name": machine.name, "width": len(machine.state), "states": list(machine.states),
                          "first": machine.first} for machine in self.machines],
            "streams": [{"name": stream.name, "taker": stream.taker} for stream in self.streams],
        }


def find_probes(fragment: Fragment) -> Probes:
    """The probes of an elaborated device."""
    blocks = list(_walk(fragment, ()))
    workers, machines = [], []
    for path, block in blocks:
        workers += [Worker(".".join(path), component.active) for component in block.origins or ()
                    if isinstance(component, wiring.Component) and "active" in component.signature.members]
        for name, fsm in block.generated.items():
            if not len(fsm.state):
                continue
            states = tuple(sorted(fsm.encoding, key=fsm.encoding.get))
            machines.append(Machine(_machine_name(path, name), states, states[fsm.state.init], fsm.state))

    sources, takers = [], SignalDict()
    for path, block in blocks:
        for component in block.origins or ():
            if not isinstance(component, wiring.Component):
                continue
            for port, stream, leaves in _streams(component.signature.members, component):
                if not (isinstance(stream.valid, Signal) and isinstance(stream.ready, Signal)):
                    continue  # one that never waits
                if leaves:
                    sources.append((path, port, stream))
                if leaves and not path:
                    takers[stream.ready] = f"port {port}"
                elif path and not leaves:
                    takers[stream.ready] = ".".join(path)

    # Who is wired to whom, through the ports of the blocks between them.
    drivers = SignalDict()
    for _path, block in blocks:
        for statement in block.statements.get("comb", ()):
            if isinstance(statement, Assign) and all(isinstance(end, Signal) for end in (statement.lhs, statement.rhs)):
                drivers[statement.lhs] = statement.rhs
    valids = SignalDict((stream.valid, None) for _path, _port, stream in sources)
    streams = []
    for path, port, stream in sources:
        if stream.valid in drivers and drivers[stream.valid] in valids:
            continue  # it begins further inside
        taker, ready = ".".join(path[:-1]), stream.ready
        while ready in drivers:
            ready = drivers[ready]
            taker = takers.get(ready, taker)
        name = ".".join(path if port == "o" else (*path, port))
        streams.append(Stream(name, taker, stream.valid, stream.ready))
    return Probes(workers, machines, streams)


@cache
def probes_document(config: NicConfig):
    """What the probes of a device of this configuration mean: see `Probes.document`."""
    return find_probes(Fragment.get(Nic(config), None)).document


def probes_width(document) -> int:
    """Bits of the probes' vector."""
    states = sum(machine["width"] for machine in document["machines"])
    return len(document["workers"]) + states + len(document["streams"])


def _walk(fragment, path):
    """(path, fragment) of a block and all below it."""
    yield path, fragment
    for index, (inner, name, _src_loc) in enumerate(fragment.subfragments):
        yield from _walk(inner, (*path, name or f"unnamed_{index}"))


def _machine_name(path, name):
    """Where an FSM is, and which it is, unless it is called as its block."""
    name = name.removesuffix("_state")
    return ".".join(path if path and path[-1] == name else (*path, name))


def _streams(members, interface, prefix=""):
    """(port, stream, whether it leaves) of all streams among an interface's members."""
    for name, member in members.items():
        if member.is_signature:
            for index, inner in _elements(getattr(interface, name), member.dimensions):
                port, inner_members = f"{prefix}{name}{index}", member.signature.members
                if set(inner_members) == STREAM_MEMBERS:
                    yield port, inner, inner_members["valid"].flow == Out
                else:
                    yield from _streams(inner_members, inner, f"{port}_")


def _elements(value, dimensions):
    """(index as text, element) of a member, which may be an array."""
    if not dimensions:
        yield "", value
        return
    for index in range(dimensions[0]):
        for inner, element in _elements(value[index], dimensions[1:]):
            yield f"_{index}{inner}", element
