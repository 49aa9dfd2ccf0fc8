"""Which of several device processors a message is for: one connection's always the same."""

from __future__ import annotations

from hashlib import blake2s

from nic_model.contract.control import CONTROL_HEADER, LAYOUT_OF, NO_FLOW, OP, UNKNOWN, ControlType

_TYPE, _FLOW = CONTROL_HEADER.fields["type"], CONTROL_HEADER.fields["flow"]
_SOCKET = OP.fields["socket"]


def shard_of_key(remote_address: int, local_address: int, remote_port: int, local_port: int, shards: int) -> int:
    """The processor of a connection, by a hash of its 4-tuple. Addresses as UNKNOWN has them."""
    if shards == 1:
        return 0
    data = b"".join((remote_address.to_bytes(16, "little"), local_address.to_bytes(16, "little"),
                     remote_port.to_bytes(2, "little"), local_port.to_bytes(2, "little")))
    return int.from_bytes(blake2s(data, digest_size=4).digest(), "little") % shards


def shard_of_message(message: bytes, shards: int) -> int:
    """The processor of a message up. Flows and sockets have numbers that leave their processor's remainder."""
    if shards == 1:
        return 0
    kind = message[_TYPE.offset // 8]
    if kind == ControlType.UNKNOWN:
        fields = UNKNOWN.unpack(message[: LAYOUT_OF[ControlType.UNKNOWN].size_bytes])
        return shard_of_key(fields["remote_address"], fields["local_address"], fields["remote_port"],
                            fields["local_port"], shards)
    if kind == ControlType.OP:
        return int.from_bytes(message[_SOCKET.offset // 8 :][:2], "little") % shards
    flow = int.from_bytes(message[_FLOW.offset // 8 :][:2], "little")
    return 0 if flow == NO_FLOW else flow % shards
