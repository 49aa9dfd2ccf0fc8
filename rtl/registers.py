"""The registers: what software writes becomes a strobe to all blocks, what it reads comes from here or the owner."""

from enum import Enum

from amaranth.hdl import Assert, Cat, Const, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import ceil_log2, exact_log2

from nic_model.contract import (
    CHANNEL_STRIDE,
    CHANNELS_BASE,
    COUNTERS_BASE,
    INDIRECTION_BASE,
    INDIRECTION_STRIDE,
    KEY_STRIDE,
    KEYS_BASE,
    REGISTERS,
    RSS_INDIRECTION_ENTRIES,
    STEERING_BASE,
    STEERING_STRIDE,
    VECTOR_STRIDE,
    VECTORS_BASE,
    Access,
    NicConfig,
)
from nic_model.contract.registers import Block
from rtl.axi_lite import AxiLiteAccesses, AxiLiteSlave
from rtl.interfaces import (
    CHANNEL_BITS,
    INDEX_BITS,
    ChannelNumber,
    IndexReport,
    RegisterRead,
    RegisterValue,
    RegisterWrite,
    Strobe,
)
from rtl.primitives import Ram, SmallRam

OWNERS = {
    "events": ("VECTOR_FIRED", "VECTOR_RX_EVENTS", "VECTOR_TX_EVENTS"),
    "counters": ("SNAPSHOT",),
    "channels": ("CHANNEL_STATUS", "DRAIN", "DEVICE_RESET", "ERROR_CHANNELS_LO", "ERROR_CHANNELS_HI"),
}
"""Blocks that answer reads of registers, and which; `counters` answers for the counters' addresses too."""

WRITE_SPACING_CYCLES = 6
"""Least distance of two `write` strobes; a block may take so long over one."""

INDEX_REGISTERS = {"tx": "TX_INDEX", "rx": "RX_INDEX", "cq": "CQ_INDEX"}


class _Source(Enum):
    """Where the value of a read comes from."""

    NOTHING = 0
    CONSTANT = 1
    SHADOW = 2
    NOW_LO = 3
    NOW_HI = 4
    INDEX_TX = 5
    INDEX_RX = 6
    INDEX_CQ = 7
    EVENTS = 8
    COUNTERS = 9
    CHANNELS = 10


_SOURCES = {
    **{name: _Source[owner.upper()] for owner, names in OWNERS.items() for name in names},
    **{name: _Source[f"INDEX_{ring.upper()}"] for ring, name in INDEX_REGISTERS.items()},
    "NOW_LO": _Source.NOW_LO,
    "NOW_HI": _Source.NOW_HI,
}
_BY_ACCESS = {Access.RO: _Source.CONSTANT, Access.RW: _Source.SHADOW, Access.WO: _Source.NOTHING}


class IndexTable(wiring.Component):
    """The last reported ring index of each channel.

    Enters: `report`; `start`, which sets a channel's index to 0. Leaves: `index` of `channel`, in the same cycle,
    right while `busy` is 0. A report is stored at once, a start in the first cycle without a report, so between two
    starts there must be one (starts come from register writes, several cycles apart; no block reports in each cycle).

    Parameters
    ----------
    channels : int
        A power of two.
    """

    def __init__(self, *, channels):
        self.channels = channels
        super().__init__({
            "report": In(Strobe(IndexReport)), "start": In(Strobe(ChannelNumber)),
            "channel": In(CHANNEL_BITS), "index": Out(INDEX_BITS), "busy": Out(1), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.table = table = SmallRam(shape=INDEX_BITS, depth=self.channels)
        report = self.report
        starting, started = Signal(), Signal(CHANNEL_BITS)
        m.d.comb += [
            table.read_addr.eq(self.channel), self.index.eq(table.read_data),
            self.busy.eq(starting), self.active.eq(starting | self.start.valid | report.valid),
            table.write_en.eq(report.valid | starting),
        ]
        with m.If(report.valid):
            m.d.comb += [table.write_addr.eq(report.payload.channel), table.write_data.eq(report.payload.index)]
        with m.Else():
            m.d.comb += table.write_addr.eq(started)

        with m.If(self.start.valid):
            m.d.sync += [starting.eq(1), started.eq(self.start.payload.channel)]
            m.d.sync += Assert(~starting | ~report.valid, "a channel starts before the last start could be stored")
        with m.Elif(~report.valid | (report.payload.channel == started)):
            m.d.sync += starting.eq(0)
        return m


class Registers(wiring.Component):
    """The AXI4-Lite registers, decoded from the contract.

    Enters: AXI4-Lite; `now`; index reports; answers of the owners. Leaves: a `write` strobe for each write to a
    register that takes writes, at least `WRITE_SPACING_CYCLES` apart, with a word-aligned address; read strobes to the
    owners; AXI4-Lite.

    A write answers OKAY, one to a read-only or unmapped address too, which does nothing; with partial strobes it gives
    SLVERR and does nothing. The bus response comes after the strobe. A read of a write-only or unmapped address gives
    0; of a register that software writes, what it wrote last (its reset value before; it lies in block RAM, so `rst`
    does not bring the reset value back). Accesses keep their order: see `AxiLiteAccesses`. Latency from request to
    response on the bus: 6 cycles for a write or a constant, 8 for what was written; the owner's time is added to 6.

    Parameters
    ----------
    config : NicConfig
        Sizes.

    Members
    -------
    axil : AXI4-Lite slave.
    write : strobe of RegisterWrite.
    read_events, read_counters, read_channels : strobes of RegisterRead to the owners of `OWNERS`.
    value_events, value_counters, value_channels : strobes of RegisterValue, one answer for each read.
    index_tx, index_rx, index_cq : strobes of IndexReport.
    start : strobe of ChannelNumber; the channel's three indices become 0.
    now : cycle count.
    active : see `rtl.interfaces`.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        super().__init__({
            "axil": In(AxiLiteSlave()),
            "write": Out(Strobe(RegisterWrite)),
            **{f"read_{owner}": Out(Strobe(RegisterRead)) for owner in OWNERS},
            **{f"value_{owner}": In(Strobe(RegisterValue)) for owner in OWNERS},
            **{f"index_{ring}": In(Strobe(IndexReport)) for ring in INDEX_REGISTERS},
            "start": In(Strobe(ChannelNumber)),
            "now": In(64),
            "active": Out(1),
        })

    def _blocks(self):
        """(block, base, stride, count): the repeated blocks of registers."""
        config = self.config
        last = max(r.offset for r in REGISTERS.values() if r.block is Block.GLOBAL)
        return (
            (Block.GLOBAL, 0, 1 << ceil_log2(last + 4), 1),
            (Block.STEERING, STEERING_BASE, STEERING_STRIDE, 1),
            (Block.INDIRECTION, INDIRECTION_BASE, INDIRECTION_STRIDE, RSS_INDIRECTION_ENTRIES),
            (Block.VECTOR, VECTORS_BASE, VECTOR_STRIDE, config.vectors),
            (Block.CHANNEL, CHANNELS_BASE, CHANNEL_STRIDE, config.channels),
            (Block.KEY, KEYS_BASE, KEY_STRIDE, config.keys),
        )

    def _shadow_bases(self):
        """Block -> first word in the shadow memory, and the memory's depth. Largest first, so that each block is
        aligned to its size and a word's address is two fields side by side."""
        sizes = {block: stride // 4 * count for block, _, stride, count in self._blocks() if block is not Block.KEY}
        bases, depth = {}, 0
        for block in sorted(sizes, key=lambda b: -sizes[b]):
            bases[block], depth = depth, depth + sizes[block]
        return bases, depth

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.accesses = accesses = AxiLiteAccesses()
        connect(m, flipped(self.axil), accesses.axil)
        request, answer = accesses.request, accesses.answer
        address = request.payload.address

        tables = {ring: IndexTable(channels=config.channels) for ring in INDEX_REGISTERS}
        for ring, table in tables.items():
            m.submodules[f"index_{ring}"] = table
            connect(m, flipped(getattr(self, f"index_{ring}")), table.report)
            connect(m, flipped(self.start), table.start)
            m.d.comb += table.channel.eq(address[exact_log2(CHANNEL_STRIDE):])

        shadow_bases, shadow_depth = self._shadow_bases()
        # what is stored is the difference from the reset value, so that an empty memory shows reset values
        m.submodules.shadow = shadow = Ram(shape=32, depth=shadow_depth)
        reset, constant = Signal(32), Signal(32)
        source = Signal(_Source)
        takes_write = Signal()
        shadow_address = Signal(range(shadow_depth))

        moves = Signal()
        value, refused = Signal(32), Signal()
        held_now_hi = Signal(32)
        owners = [(getattr(self, f"read_{owner}"), getattr(self, f"value_{owner}")) for owner in OWNERS]
        strobing = Cat(self.write.valid, *(read.valid for read, _ in owners)).any()
        m.d.comb += self.active.eq(
            accesses.active | moves | strobing | Cat(table.active for table in tables.values()).any())
        m.d.sync += [self.write.valid.eq(0), *(read.valid.eq(0) for read, _ in owners)]

        def here(base, size):
            assert base % size == 0, "a block of registers must be aligned to its size"
            return address >> exact_log2(size) == base // size

        def decode():
            m.d.comb += moves.eq(1)
            m.d.sync += [source.eq(_Source.NOTHING), takes_write.eq(0), reset.eq(0)]
            for block, base, stride, count in self._blocks():
                with m.If(here(base, stride * count)):
                    if block in shadow_bases:
                        word = address[2:exact_log2(stride * count)]
                        m.d.sync += shadow_address.eq(shadow_bases[block] | word)
                    with m.Switch(address[2:exact_log2(stride)]):
                        for register in REGISTERS.values():
                            if register.block is block:
                                with m.Case(register.offset // 4):
                                    decode_register(register)
            counters = len(config.counters)
            with m.If(here(COUNTERS_BASE, 1 << ceil_log2(8 * counters))
                      & (address[2:ceil_log2(8 * counters)] < 2 * counters)):
                m.d.sync += source.eq(_Source.COUNTERS)

        def decode_register(register):
            found = _SOURCES.get(register.name) or _BY_ACCESS[register.access]
            m.d.sync += [source.eq(found), takes_write.eq(register.access is not Access.RO)]
            shown = register.reset if isinstance(register.reset, int) else int(getattr(config, register.reset))
            if found is _Source.CONSTANT:
                m.d.sync += constant.eq(shown)
            elif shown and found is _Source.SHADOW:
                m.d.sync += reset.eq(shown)

        def store():
            m.d.sync += refused.eq(~request.payload.strobes.all())
            with m.If(takes_write & request.payload.strobes.all()):
                m.d.sync += [
                    self.write.valid.eq(1), self.write.payload.data.eq(request.payload.data),
                    self.write.payload.address.eq(Cat(Const(0, 2), address[2:])),
                ]
                m.d.comb += shadow.write_en.eq(source == _Source.SHADOW)

        def ask(read):
            m.d.sync += [read.valid.eq(1), read.payload.address.eq(Cat(Const(0, 2), address[2:]))]

        m.d.comb += [
            shadow.write_addr.eq(shadow_address), shadow.read_addr.eq(shadow_address),
            shadow.write_data.eq(request.payload.data ^ reset),
            answer.payload.data.eq(value), answer.payload.error.eq(refused),
        ]
        with m.FSM(name="registers"):
            with m.State("Idle"):
                with m.If(request.valid):
                    decode()
                    m.next = "Decoded"
            with m.State("Decoded"):
                m.d.comb += moves.eq(1)
                m.d.sync += [value.eq(0), refused.eq(0)]
                m.next = "Answer"
                with m.If(request.payload.write):
                    store()
                with m.Else():
                    with m.Switch(source):
                        with m.Case(_Source.CONSTANT):
                            m.d.sync += value.eq(constant)
                        with m.Case(_Source.SHADOW):
                            m.d.comb += shadow.read_en.eq(1)
                            m.next = "Shadow"
                        with m.Case(_Source.NOW_LO):
                            m.d.sync += [value.eq(self.now[:32]), held_now_hi.eq(self.now[32:])]
                        with m.Case(_Source.NOW_HI):
                            m.d.sync += value.eq(held_now_hi)
                        for ring, table in tables.items():
                            with m.Case(_Source[f"INDEX_{ring.upper()}"]):
                                m.d.sync += value.eq(table.index)
                                with m.If(table.busy):
                                    m.next = "Decoded"
                        for owner, (read, _) in zip(OWNERS, owners, strict=True):
                            with m.Case(_Source[owner.upper()]):
                                ask(read)
                                m.next = "Owner"
            with m.State("Shadow"):
                m.d.comb += moves.eq(1)
                m.d.sync += value.eq(shadow.read_data)
                m.next = "Difference"
            with m.State("Difference"):
                m.d.comb += moves.eq(1)
                m.d.sync += value.eq(value ^ reset)
                m.next = "Answer"
            with m.State("Owner"):
                for _, found in owners:
                    with m.If(found.valid):
                        m.d.comb += moves.eq(1)
                        m.d.sync += value.eq(found.payload.data)
                        m.next = "Answer"
            with m.State("Answer"):
                m.d.comb += [moves.eq(1), answer.valid.eq(1), request.ready.eq(1)]
                with m.If(answer.ready):
                    m.next = "Idle"
        return m
