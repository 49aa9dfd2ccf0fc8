"""The table of memory keys: every piece of host memory passes it before a burst is made for it."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from nic_model.contract import (
    KEY_COMMIT,
    KEY_GENERATION_BITS,
    KEY_INDEX_BITS,
    KEY_STRIDE,
    KEYS_BASE,
    REGISTERS,
    KeyRight,
    NicConfig,
    Status,
)
from rtl.interfaces import KeyAnswer, KeyRequest, RegisterWrite, Strobe
from rtl.primitives import Ram, StreamArbiter
from rtl.small_fifo import BypassFifo

ANSWERS_PER_CLIENT = 8
"""Places for answers of each client: as many lookups as it may have under way."""

LENGTH_BITS = 40
OWNER_BITS = KEY_COMMIT.fields["owner"].width

# One word of the table. The upper four fields are those of KEY_COMMIT.
KeyEntry = data.StructLayout({
    "address": 64, "length": LENGTH_BITS, **{name: field.width for name, field in KEY_COMMIT.fields.items()},
})


class KeyTable(wiring.Component):
    """Answers whether a piece of host memory may be used, and where it lies on the bus.

    Enters: writes to the KEY_ registers, and requests of each client. Leaves: an answer to each request, in order for
    each client. An answer's `status` is OK, KEY_INVALID, KEY_OWNER, KEY_RIGHTS or KEY_BOUNDS, the first that applies;
    its `address` is that of the piece's first byte, and means nothing with another status than OK.

    Latency 5 cycles from a request to its answer (6 after a commit or another client's request); one request a cycle
    in all. A client that does not take its answers holds up nobody else. A lookup gives the entry as it was before or
    after a KEY_COMMIT of the same moment, never a mixture.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device; `keys` is used.
    clients : int
        Ports for requests, at least 1.

    Members
    -------
    write : register writes.
    request_0, answer_0, request_1 ... : the clients.
    """

    def __init__(self, config: NicConfig, *, clients: int = 2):
        if not isinstance(clients, int) or clients < 1:
            raise ValueError(f"clients must be a positive integer, not {clients!r}")
        self.config, self.clients = config, clients
        members = {}
        for n in range(clients):
            members[f"request_{n}"] = In(stream.Signature(KeyRequest))
            members[f"answer_{n}"] = Out(stream.Signature(KeyAnswer))
        super().__init__({"write": In(Strobe(RegisterWrite)), **members, "active": Out(1)})

    def elaborate(self, platform):
        m = Module()
        index_bits = exact_log2(self.config.keys)
        m.submodules.table = table = Ram(shape=KeyEntry, depth=self.config.keys)
        commits = self._stage_writes(m, table)

        # Admission: a request enters when there is a place for its answer.
        m.submodules.arbiter = arbiter = StreamArbiter(shape=KeyRequest, count=self.clients)
        answers = []
        moves = Signal(2 * self.clients)
        for n in range(self.clients):
            request, answer = getattr(self, f"request_{n}"), getattr(self, f"answer_{n}")
            m.submodules[f"answers_{n}"] = fifo = BypassFifo(shape=KeyAnswer, depth=ANSWERS_PER_CLIENT)
            answers.append(fifo)
            wiring.connect(m, fifo.o, wiring.flipped(answer))
            under_way = Signal(range(ANSWERS_PER_CLIENT + 1), name=f"under_way_{n}")
            has_place, enters, leaves = (Signal(name=f"{name}_{n}") for name in ("has_place", "enters", "leaves"))
            m.d.comb += [
                has_place.eq(under_way != ANSWERS_PER_CLIENT),
                arbiter.i[n].valid.eq(request.valid & has_place),
                arbiter.i[n].payload.eq(request.payload),
                request.ready.eq(arbiter.i[n].ready & has_place),
                enters.eq(request.valid & request.ready),
                leaves.eq(answer.valid & answer.ready),
                moves[2 * n:2 * n + 2].eq(Cat(enters, leaves)),
            ]
            m.d.sync += under_way.eq(under_way + enters - leaves)

        # Lookup: not in a commit's cycle, so that a word is never read while it is written.
        asked = arbiter.o.payload
        looking = Signal()
        key_index = asked.key[:KEY_INDEX_BITS]
        m.d.comb += [
            arbiter.o.ready.eq(~commits),
            looking.eq(arbiter.o.valid & ~commits),
            table.read_en.eq(looking), table.read_addr.eq(key_index[:index_bits]),
        ]

        # The entry comes into a register, beside what was asked.
        class Asked(data.Struct):
            source: range(max(self.clients, 2))
            channel: OWNER_BITS
            generation: KEY_GENERATION_BITS
            write: 1
            outside: 1
            offset: LENGTH_BITS
            end: LENGTH_BITS + 1

        first, second = Signal(Asked), Signal(Asked)
        entry = Signal(KeyEntry)
        first_valid, second_valid = Signal(), Signal()
        m.d.sync += first_valid.eq(looking)
        with m.If(looking):
            m.d.sync += [
                first.source.eq(arbiter.source), first.channel.eq(asked.channel),
                first.generation.eq(asked.key[KEY_INDEX_BITS:]), first.write.eq(asked.write),
                first.outside.eq(key_index[index_bits:].any()),
                first.offset.eq(asked.offset), first.end.eq(asked.offset + asked.length),
            ]
        m.d.sync += second_valid.eq(first_valid)
        with m.If(first_valid):
            m.d.sync += [entry.eq(table.read_data), second.eq(first)]

        # All compares at once, and the lower half of the address.
        class Judged(data.Struct):
            source: range(max(self.clients, 2))
            invalid: 1
            not_owner: 1
            no_right: 1
            beyond: 1
            low: 33
            high: 32
            offset_high: LENGTH_BITS - 32

        judged, judged_valid = Signal(Judged), Signal()
        rights = Mux(second.write, entry.rights & KeyRight.WRITE, entry.rights & KeyRight.READ)
        m.d.sync += judged_valid.eq(second_valid)
        with m.If(second_valid):
            m.d.sync += [
                judged.source.eq(second.source),
                judged.invalid.eq(second.outside | ~entry.valid | (entry.generation != second.generation)),
                judged.not_owner.eq(entry.owner != second.channel),
                judged.no_right.eq(~rights.any()),
                judged.beyond.eq(second.end > entry.length),
                judged.low.eq(entry.address[:32] + second.offset[:32]),
                judged.high.eq(entry.address[32:]), judged.offset_high.eq(second.offset[32:]),
            ]

        status = Signal(Status)
        with m.If(judged.invalid):
            m.d.comb += status.eq(Status.KEY_INVALID)
        with m.Elif(judged.not_owner):
            m.d.comb += status.eq(Status.KEY_OWNER)
        with m.Elif(judged.no_right):
            m.d.comb += status.eq(Status.KEY_RIGHTS)
        with m.Elif(judged.beyond):
            m.d.comb += status.eq(Status.KEY_BOUNDS)
        high = Signal(32)
        m.d.comb += high.eq(judged.high + judged.offset_high + judged.low[32])
        for n, fifo in enumerate(answers):
            m.d.comb += [
                fifo.i.valid.eq(judged_valid & (judged.source == n)),
                fifo.i.payload.status.eq(status),
                fifo.i.payload.address.eq(Cat(judged.low[:32], high)),
            ]
        m.d.comb += self.active.eq(
            self.write.valid | commits | moves.any() | arbiter.active | first_valid | second_valid | judged_valid)
        return m

    def _stage_writes(self, m, table):
        """Keep the words of an entry, store it when KEY_COMMIT is written. Returns the cycle in which it is stored."""
        address, value = self.write.payload.address, self.write.payload.data
        offset_bits = exact_log2(KEY_STRIDE)
        entry, commits = Signal(KeyEntry), Signal()
        entry_index = Signal(len(address) - offset_bits)
        in_table = Signal()
        # KEYS_BASE is the upper half of the address map, so its one bit tells a table entry
        entry_number = address[offset_bits:] & ((KEYS_BASE >> offset_bits) - 1)
        m.d.comb += in_table.eq((address >= KEYS_BASE) & (entry_number < self.config.keys))
        m.d.sync += commits.eq(0)
        with m.If(self.write.valid & in_table):
            with m.Switch(address[:offset_bits]):
                with m.Case(REGISTERS["KEY_ADDRESS_LO"].offset):
                    m.d.sync += entry.address[:32].eq(value)
                with m.Case(REGISTERS["KEY_ADDRESS_HI"].offset):
                    m.d.sync += entry.address[32:].eq(value)
                with m.Case(REGISTERS["KEY_LENGTH_LO"].offset):
                    m.d.sync += entry.length[:32].eq(value)
                with m.Case(REGISTERS["KEY_LENGTH_HI"].offset):
                    m.d.sync += entry.length[32:].eq(value)
                with m.Case(REGISTERS["KEY_COMMIT"].offset):
                    m.d.sync += [
                        *(entry[name].eq(value[field.offset:field.offset + field.width])
                          for name, field in KEY_COMMIT.fields.items()),
                        entry_index.eq(entry_number), commits.eq(1),
                    ]
        m.d.comb += [
            table.write_en.eq(commits), table.write_addr.eq(entry_index), table.write_data.eq(entry),
        ]
        return commits
