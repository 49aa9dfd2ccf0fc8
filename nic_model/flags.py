"""Bits of descriptors and channels as plain numbers, for what is done for each frame.

`&` of a number and a member of an IntFlag makes a member, which takes as long as a dozen other operations.
"""

from __future__ import annotations

from nic_model.contract import OperationMask, SendFlag

COMPLETE, TIMESTAMP, VLAN_INSERT = int(SendFlag.COMPLETE), int(SendFlag.TIMESTAMP), int(SendFlag.VLAN_INSERT)
IPV4_CHECKSUM, L4_CHECKSUM = int(SendFlag.IPV4_CHECKSUM), int(SendFlag.L4_CHECKSUM)
IPV6, UDP = int(SendFlag.IPV6), int(SendFlag.UDP)
RECEIVE_RAW, COALESCE = int(OperationMask.RECEIVE_RAW), int(OperationMask.COALESCE)
