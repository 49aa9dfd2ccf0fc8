"""TCP on the device: firmware that sits at the control port and decides, by port messages alone.

The software TCP of `host_driver.tcp` over another world: segments come without their payload, which the firmware has
placed in host memory by a message, and segments leave as orders that name registered memory. It has no other input than
the messages up, no timer, and no clock but the time in them. Read it in this order:

- `clock`: time out of messages;
- `references`: payload and chunks that are somewhere else;
- `placing`: where received bytes go, eager ring or posted receives, and what windows may be promised;
- `orders`: what leaves in answer to a message, credits, and what waits for a flow's entry;
- `flows`: numbers and generations of flows;
- `offload_stack`: the stack, whose output is orders;
- `jobs` and `offload_sockets`: what the application posted, and when it is done;
- `firmware`: messages in, orders out;
- `shards`: which device processor a message is for, where there are several.
"""

from host_driver.firmware.firmware import Firmware, FirmwareCounters

__all__ = ["Firmware", "FirmwareCounters"]
