"""What the device knows of each offloaded connection to build the headers of its segments."""

# Ref: RFC 9293 §3.1 (pseudo-header); RFC 8200 §8.1; RFC 1071 §2

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from nic_model.contract.control import CONTROL_HEADER, FLOW
from nic_model.contract.protocols import IpProtocol
from rtl.interfaces import CHANNEL_BITS
from rtl.primitives import Ram, SkidBuffer

# An offloaded connection as its segments show it, fields as in FLOW_ADD: addresses with their first byte lowest, those
# of IPv4 with zeros behind. `valid`: orders for the connection are obeyed, if they have its generation.
FlowEntry = data.StructLayout({
    "valid": 1, "generation": CONTROL_HEADER.fields["generation"].width, "channel": CHANNEL_BITS,
    "ipv6": 1, "tagged": 1,
    **{name: FLOW.fields[name].width for name in (
        "remote_port", "local_port", "remote_address", "local_address", "next_hop", "vlan_tci", "hop_limit",
        "traffic_class", "flow_label", "timestamp_offset")},
})

# As it is stored: with the sum over the pseudo-header but its length, 16 bits.
StoredFlow = data.StructLayout({"entry": FlowEntry, "pseudo_sum": 16})

KEY_FIELDS = ("remote_port", "local_port", "remote_address", "local_address", "ipv6", "channel")
"""What a FLOW_SET leaves as it is."""

FLOW_BITS = CONTROL_HEADER.fields["flow"].width

FlowWrite = data.StructLayout({"flow": FLOW_BITS, "entry": FlowEntry})


class FlowEntries(wiring.Component):
    """The table of flow entries.

    Enters: entries to be stored, also those that are no longer valid; numbers of flows that are looked up. Leaves: the
    entry of each lookup, in order, with the sum over the addresses and the protocol of its pseudo-header. A lookup
    gives the entry as it was before or after a write, never a mixture. A number beyond the table is stored nowhere and
    found not valid. After a reset no entry is valid, and nothing enters until all are cleared, an entry a cycle.

    A lookup takes 2 cycles, one enters in each cycle in which nothing is stored. A write takes 20 cycles: the sum is
    made a word a cycle.

    Parameters
    ----------
    flows : int
        Entries, a power of two of at least 2.

    Members
    -------
    write : stream of entries; one is stored when it is taken. `keeps_key` beside it: addresses, ports, version of IP
        and channel stay as they are stored.
    flow, entry : streams, what is looked up and what was found.
    active : see `rtl.interfaces`.
    """

    WORDS = 16
    """16-bit words of both addresses."""

    def __init__(self, *, flows: int):
        if not isinstance(flows, int) or flows < 2 or flows & (flows - 1):
            raise ValueError(f"flows must be a power of two of at least 2, not {flows!r}")
        self.flows = flows
        super().__init__({
            "write": In(stream.Signature(FlowWrite)), "keeps_key": In(1),
            "flow": In(stream.Signature(FLOW_BITS)), "entry": Out(stream.Signature(StoredFlow)), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        index_bits = exact_log2(self.flows)
        m.submodules.table = table = Ram(shape=StoredFlow, depth=self.flows)
        stored = Signal(StoredFlow)
        stores, clears, clear_index = Signal(), Signal(init=1), Signal(index_bits)

        # Write: the sum first. RFC 1071 §2: one's complement sums may be made in any order.
        word = Signal(range(self.WORDS + 2))
        total = Signal(17, init=IpProtocol.TCP)  # with a carry that is still to be added
        written = self.write.payload
        addresses = written.entry.local_address, written.entry.remote_address
        half = self.WORDS // 2
        at = word[:exact_log2(half)]
        bytes_ = Mux(word >= half, addresses[1].word_select(at, 16), addresses[0].word_select(at, 16))
        term = Cat(bytes_[8:], bytes_[:8])
        sums, in_table, reads_old, may_read = Signal(), Signal(), Signal(), Signal()
        old = data.View(StoredFlow, table.read_data)
        m.d.comb += [
            sums.eq(self.write.valid & ~stores & ~clears),
            in_table.eq((written.flow >> index_bits) == 0),
            self.write.ready.eq(stores),
            table.write_en.eq((stores & in_table) | clears),
            table.write_addr.eq(Mux(clears, clear_index, written.flow)),
            stored.entry.eq(written.entry), stored.pseudo_sum.eq(total),
            reads_old.eq(sums & (word == self.WORDS + 1) & self.keeps_key & may_read),
            table.write_data.eq(Mux(clears, 0, stored.as_value())),
        ]
        with m.If(self.keeps_key):
            m.d.comb += [
                stored.pseudo_sum.eq(old.pseudo_sum), *(stored.entry[name].eq(old.entry[name]) for name in KEY_FIELDS),
            ]
        with m.If(clears):
            m.d.sync += [clear_index.eq(clear_index + 1), clears.eq(~clear_index.all())]
        m.d.sync += stores.eq(0)
        with m.If(sums):
            # "the carry is added": twice at the end, since the last may make another one
            with m.If(word < self.WORDS):
                m.d.sync += [word.eq(word + 1), total.eq(total[:16] + term + total[16])]
            with m.Elif(word == self.WORDS):
                m.d.sync += [word.eq(word + 1), total.eq(total[:16] + total[16])]
            with m.Elif(~self.keeps_key | may_read):
                m.d.sync += [total.eq(total[:16] + total[16]), stores.eq(1)]
        with m.If(stores | ~self.write.valid):
            m.d.sync += [word.eq(0), total.eq(Const(IpProtocol.TCP, 17))]

        # Lookup: the RAM's word comes into a register before anything looks at it.
        m.submodules.output = output = SkidBuffer(shape=StoredFlow)
        wiring.connect(m, output.o, wiring.flipped(self.entry))
        looking, found, outside = Signal(), Signal(), Signal()
        free = Signal()
        m.d.comb += [
            free.eq(~found | output.i.ready),
            may_read.eq(free),
            # what was read for a write stands until it is stored
            self.flow.ready.eq(free & ~table.write_en & ~reads_old), looking.eq(self.flow.valid & self.flow.ready),
            table.read_en.eq(looking | reads_old),
            table.read_addr.eq(Mux(reads_old, written.flow, self.flow.payload)),
            output.i.valid.eq(found), output.i.payload.eq(table.read_data),
        ]
        with m.If(outside):
            m.d.comb += output.i.payload.entry.valid.eq(0)
        with m.If(free):
            m.d.sync += found.eq(looking)
        with m.If(looking):
            m.d.sync += outside.eq((self.flow.payload >> index_bits) != 0)
        m.d.comb += self.active.eq(
            clears | sums | stores | looking | (found & output.i.ready) | output.active
            | (~self.write.valid & (word != 0)))
        return m
