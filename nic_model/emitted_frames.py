"""Frames of the control port's EMIT and RAW: headers from the flow's entry, or as the decider wrote them."""

# Ref: RFC 791 §3.1; RFC 8200 §3; RFC 9293 §3.1; RFC 7323 §3.2

from __future__ import annotations

from collections.abc import Iterator, Mapping

from nic_model.checksum import checksum_seed
from nic_model.contract import MAX_FRAME_BYTES, MAX_SEGMENTED_BYTES, MIN_MSS, SendFlag
from nic_model.contract.control import (
    EMIT_OPTIONS,
    EMIT_PIECES,
    MAX_EMIT_OPTION_BYTES,
    MAX_EMIT_PIECES,
    OrderFlag,
)
from nic_model.contract.protocols import (
    ETHERNET_HEADER_BYTES,
    IPV4_HEADER_BYTES,
    IPV6_HEADER_BYTES,
    TCP_CHECKSUM_OFFSET,
    TCP_HEADER_BYTES,
    VLAN_TAG_BYTES,
    EtherType,
    IpProtocol,
)
from nic_model.flow_table import Flow
from nic_model.packets import TIMESTAMPS_BYTES, EthernetHeader, pack_ipv4, pack_ipv6, pack_tcp, pack_timestamps
from nic_model.seqnum import MASK
from nic_model.submission import Piece

_PIECES_OF_A_UNIT = 4
_WORD_BYTES = 4


def emit_pieces(fields: Mapping[str, int], further: bytes) -> list[Piece] | None:
    """The pieces of an EMIT; None if it is none: too many, empty ones, or not as long as it says."""
    count = fields["pieces"]
    if count > MAX_EMIT_PIECES:
        return None
    found = [fields]
    at = EMIT_OPTIONS.size_bytes if fields["option_words"] else 0
    for first in range(2, count, _PIECES_OF_A_UNIT):
        unit = further[at + (first - 2) // _PIECES_OF_A_UNIT * EMIT_PIECES.size_bytes :][: EMIT_PIECES.size_bytes]
        if len(unit) < EMIT_PIECES.size_bytes:
            return None
        found.append(EMIT_PIECES.unpack(unit))
    places = [(0, 0), (0, 1), *((1 + n // _PIECES_OF_A_UNIT, n % _PIECES_OF_A_UNIT)
                                for n in range(MAX_EMIT_PIECES - 2))][:count]
    pieces = [Piece(found[unit][f"key_{n}"], found[unit][f"offset_{n}"], found[unit][f"length_{n}"])
              for unit, n in places]
    fits = all(piece.length_bytes for piece in pieces) and sum(p.length_bytes for p in pieces) == fields["length"]
    return pieces if fits else None


def emit_options(fields: Mapping[str, int], further: bytes) -> bytes | None:
    """The options that an EMIT brings; None if they are too many or not there."""
    option_bytes = _WORD_BYTES * fields["option_words"]
    stamps = TIMESTAMPS_BYTES if fields["flags"] & OrderFlag.TIMESTAMP else 0
    if option_bytes + stamps > MAX_EMIT_OPTION_BYTES or len(further) < option_bytes:
        return None
    return further[:option_bytes]


def emit_fits(fields: Mapping[str, int], flow: Flow, options: bytes) -> bool:
    """Whether an EMIT's lengths are such that its frames can be made."""
    if not fields["length"]:
        return True
    stamps = TIMESTAMPS_BYTES if fields["flags"] & OrderFlag.TIMESTAMP else 0
    ip_bytes = IPV6_HEADER_BYTES if len(flow.key.local_address) == 16 else IPV4_HEADER_BYTES
    header_bytes = ETHERNET_HEADER_BYTES + (VLAN_TAG_BYTES if flow.header["vlan"] else 0) + ip_bytes
    header_bytes += TCP_HEADER_BYTES + stamps + len(options)
    return (fields["length"] <= MAX_SEGMENTED_BYTES and fields["mss"] >= MIN_MSS
            and header_bytes + fields["mss"] <= MAX_FRAME_BYTES)


def emit_template(fields: Mapping[str, int], flow: Flow, options: bytes, own_mac: bytes,
                  ts_value: int) -> tuple[bytes, dict[str, int]]:
    """The header in front of the first frame's payload, and a submission head for `segmentation.segment`."""
    key, header = flow.key, flow.header
    ipv6 = len(key.local_address) == 16
    traffic_class = header["traffic_class"] & 0xFC | fields["ecn"]
    ethernet = EthernetHeader(
        header["next_hop"].to_bytes(6, "little"), own_mac, EtherType.IPV6 if ipv6 else EtherType.IPV4,
        header["vlan_tci"] if header["vlan"] else None).pack()
    if ipv6:
        ip = pack_ipv6(key.local_address, key.remote_address, IpProtocol.TCP, 0, header["hop_limit"], traffic_class,
                       header["flow_label"])
    else:
        ip = pack_ipv4(key.local_address, key.remote_address, IpProtocol.TCP, 0, 0, header["hop_limit"],
                       traffic_class=traffic_class)
    if fields["flags"] & OrderFlag.TIMESTAMP:
        options = pack_timestamps(ts_value & MASK, fields["ts_echo"]) + options
    tcp_flags = fields["tcp_flags"]
    tcp = bytearray(pack_tcp(
        key.local_port, key.remote_port, fields["sequence"], fields["acknowledgement"], tcp_flags & 0xFF,
        fields["window"], options, checksum_seed(key.local_address, key.remote_address, IpProtocol.TCP, None)))
    tcp[12] |= tcp_flags >> 8
    l3_offset = len(ethernet)
    l4_offset = l3_offset + len(ip)
    flags = SendFlag.L4_CHECKSUM | (SendFlag.IPV6 if ipv6 else SendFlag.IPV4_CHECKSUM)
    head = {"flags": int(flags), "mss": fields["mss"] or 1, "l3_offset": l3_offset, "l4_offset": l4_offset,
            "checksum_offset": l4_offset + TCP_CHECKSUM_OFFSET}
    return ethernet + ip + bytes(tcp), head


def whole_frames(frames: Iterator[bytes], template_bytes: int, payload_bytes: int) -> Iterator[bytes]:
    """Those of an order's frames for which all payload could be read: `payload_bytes` of it."""
    sent = 0
    for frame in frames:
        sent += len(frame) - template_bytes
        if sent > payload_bytes:
            return
        yield frame
