"""Headers of the segments that a decider asks for: from a flow's entry and an EMIT's fields to rows of bytes."""

# Ref: IEEE 802.3 §3.2; RFC 791 §3.1; RFC 8200 §3; RFC 9293 §3.1; RFC 7323 §3.2 and appendix A; RFC 6864 §4.1

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from nic_model.contract import MAX_INLINE_BYTES, NicConfig
from nic_model.contract.control import EMIT, EMIT_OPTIONS, MAX_EMIT_OPTION_BYTES
from nic_model.contract.protocols import (
    ETHERNET_HEADER_BYTES,
    IPV4_HEADER_BYTES,
    IPV6_HEADER_BYTES,
    TCP_HEADER_BYTES,
    EtherType,
    IpProtocol,
)
from rtl.flow_entries import FlowEntry
from rtl.interfaces import row

TIMESTAMPS_BYTES = 12
"""Of the timestamps option with two NOPs in front."""

_TIMESTAMPS_HEAD = bytes([1, 1, 8, 10])
_DATA_OFFSET_BITS = 4
_DONT_FRAGMENT = 0x4000

# A header to be built. `l3_length` is what the IP header says, `seed` the pseudo-header's sum that stands in the
# checksum field, `ts_value` the timestamp. What the segmenter writes into each frame may hold anything.
HeaderOrder = data.StructLayout({
    "entry": FlowEntry,
    **{name: EMIT.fields[name].width for name in (
        "sequence", "acknowledgement", "tcp_flags", "window", "ecn", "ts_echo")},
    "options": EMIT_OPTIONS.fields["options"].width, "timestamps": 1, "ts_value": 32,
    "tcp_bytes": 6, "inline_bytes": 8, "l3_length": 16, "seed": 16,
})


def _bytes(value, count: int) -> list[Value]:
    """A number's bytes in the order of the wire."""
    whole = Const(value, 8 * count) if isinstance(value, int) else value
    return [whole[8 * n:8 * n + 8] for n in reversed(range(count))]


def _in_order(value, count: int) -> list[Value]:
    """Bytes that stand as on the wire, first one lowest."""
    return [value[8 * n:8 * n + 8] for n in range(count)]


def _traffic_class(order) -> Value:
    """DSCP of the flow, ECN of the order."""
    return Cat(order.ecn, order.entry.traffic_class[2:])


def _ethernet(order, source_mac, ether_type: int) -> list[Value]:
    return [*_in_order(order.entry.next_hop, 6), *_in_order(source_mac, 6), *_bytes(ether_type, 2)]


def _ipv4(order) -> list[Value]:
    # RFC 6864 §4.1: "Originating sources MAY set the IPv4 ID field of atomic datagrams to any value"
    identification = 0
    return [Const(0x45, 8), _traffic_class(order), *_bytes(order.l3_length, 2), *_bytes(identification, 2),
            *_bytes(_DONT_FRAGMENT, 2), order.entry.hop_limit, Const(IpProtocol.TCP, 8), *_bytes(0, 2),
            *_in_order(order.entry.local_address, 4), *_in_order(order.entry.remote_address, 4)]


def _ipv6(order) -> list[Value]:
    word = Cat(order.entry.flow_label, _traffic_class(order), Const(6, 4))
    return [*_bytes(word, 4), *_bytes(order.l3_length, 2), Const(IpProtocol.TCP, 8), order.entry.hop_limit,
            *_in_order(order.entry.local_address, 16), *_in_order(order.entry.remote_address, 16)]


def _tcp(order) -> list[Value]:
    flags = Cat(order.tcp_flags, Const(0, 16 - _DATA_OFFSET_BITS - len(order.tcp_flags)), order.tcp_bytes[2:])
    # RFC 7323 appendix A: the option stands behind two NOPs, so that its numbers are aligned
    timestamps = [*(Const(byte, 8) for byte in _TIMESTAMPS_HEAD), *_bytes(order.ts_value, 4),
                  *_bytes(order.ts_echo, 4)]
    plain = _in_order(order.options, MAX_EMIT_OPTION_BYTES)
    behind = [*timestamps, *plain[:MAX_EMIT_OPTION_BYTES - TIMESTAMPS_BYTES]]
    return [*_bytes(order.entry.local_port, 2), *_bytes(order.entry.remote_port, 2), *_bytes(order.sequence, 4),
            *_bytes(order.acknowledgement, 4), *_bytes(flags, 2), *_bytes(order.window, 2), *_bytes(order.seed, 2),
            *_bytes(0, 2),
            *(Mux(order.timestamps, with_timestamps, without)
              for with_timestamps, without in zip(behind, plain, strict=True))]


class HeaderRows(wiring.Component):
    """Builds headers.

    Enters: what a header consists of, which must stand still until it is taken, with its last row. Leaves:
    ceil(inline_bytes / W) rows, the last marked: Ethernet, IPv4 or IPv6, TCP with its options, without an 802.1Q tag.
    Behind the header's end a row holds anything. Latency 1 cycle, a row a cycle.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device; `host_bytes` is used.

    Members
    -------
    source_mac : own Ethernet address, first byte lowest.
    i, o : orders in, rows out.
    active : see `rtl.interfaces`.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        super().__init__({
            "source_mac": In(48), "i": In(stream.Signature(HeaderOrder)), "o": Out(stream.Signature(row(config))),
            "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        width, order = self.config.host_bytes, self.i.payload
        lane_bits = exact_log2(width)
        tcp = _tcp(order)
        variants = {
            0: [*_ethernet(order, self.source_mac, EtherType.IPV4), *_ipv4(order), *tcp],
            1: [*_ethernet(order, self.source_mac, EtherType.IPV6), *_ipv6(order), *tcp],
        }
        assert len(variants[0]) == ETHERNET_HEADER_BYTES + IPV4_HEADER_BYTES + TCP_HEADER_BYTES + MAX_EMIT_OPTION_BYTES
        assert len(variants[1]) - len(variants[0]) == IPV6_HEADER_BYTES - IPV4_HEADER_BYTES
        rows = Array(
            Mux(order.entry.ipv6, _row_of(variants[1], width, n), _row_of(variants[0], width, n))
            for n in range(MAX_INLINE_BYTES // width))

        number = Signal(range(max(MAX_INLINE_BYTES // width, 2)))
        free, makes, last = Signal(), Signal(), Signal()
        m.d.comb += [
            free.eq(~self.o.valid | self.o.ready), makes.eq(self.i.valid & free),
            last.eq(((order.inline_bytes - 1) >> lane_bits) == number), self.i.ready.eq(free & last),
            self.active.eq(makes | (self.o.valid & self.o.ready)),
        ]
        with m.If(free):
            m.d.sync += self.o.valid.eq(self.i.valid)
        with m.If(makes):
            m.d.sync += [
                self.o.payload.data.eq(rows[number]), self.o.payload.last.eq(last), number.eq(Mux(last, 0, number + 1)),
            ]
        return m


def _row_of(header: list[Value], width: int, number: int) -> Value:
    """A row of these bytes; zeros behind their end."""
    lanes = header[width * number:width * (number + 1)]
    return Cat(*lanes, Const(0, 8 * (width - len(lanes))))
