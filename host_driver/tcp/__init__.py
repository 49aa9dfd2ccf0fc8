"""The software TCP: of the host systems, of the simulated clients, later of the device's firmware.

Pure: no clock, no bus, no coroutines. Time, in integer picoseconds, and frames go in; segments, deadlines and events
come out. Read it in this order:

- `profile`: the constants of an implementation (RFC, Linux 2.4);
- `buffers`: what is kept: chunks to send, bytes received, in and out of order;
- `rtt` and `congestion`: when to send again, how much may be in flight;
- `sender` and `receiver`: the two halves of a connection;
- `connection`: the state machine of RFC 9293 over these;
- `links`, `neighbours`, `icmp`, `icmp_errors`: own addresses, routes, who is where on the link, echoes and errors;
- `stack`: ports, timers of many connections, frames in and out.
"""

from host_driver.tcp.buffers import Chunk
from host_driver.tcp.connection import Connection
from host_driver.tcp.links import OutFrame
from host_driver.tcp.profile import LINUX24, PROFILES, RFC, Nagle, Profile
from host_driver.tcp.stack import Listener, OutSegment, Stack
from host_driver.tcp.states import Endpoint, State

__all__ = [
    "LINUX24",
    "PROFILES",
    "RFC",
    "Chunk",
    "Connection",
    "Endpoint",
    "Listener",
    "Nagle",
    "OutFrame",
    "OutSegment",
    "Profile",
    "Stack",
    "State",
]
