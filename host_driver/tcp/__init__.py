"""The software TCP: of the host systems, of the simulated clients, later of the device's firmware.

Pure: no clock, no bus, no coroutines. Time, in integer picoseconds, and frames go in; segments, deadlines and events
come out. Read it in this order:

- `profile`: the constants of an implementation (RFC, a current Linux, Linux 2.4);
- `buffers`: what is kept: chunks to send, bytes received, in and out of order;
- `rtt`: how long an answer takes, and when to stop waiting for it;
- `congestion` and `cubic`: how much may be in flight;
- `recovery`, and behind it `fast_recovery` without SACK, or with it `sack_recovery` over `sack`, `rack` and `prr`: what
  is lost, and how fast it may be sent again;
- `sender` with `persist`, and `receiver`: the two halves of a connection;
- `liveness`: whether the peer is still there;
- `connection`: the state machine of RFC 9293 over these;
- `frames`: what leaves a stack;
- `links`, `neighbours`, `icmp`, `icmp_errors`: own addresses, routes, who is where on the link, echoes and errors;
- `listener` and `syn_cookies`: handshakes, and those of which nothing is kept;
- `stack`: ports, timers of many connections, frames in and out.
"""

from host_driver.tcp.buffers import Chunk
from host_driver.tcp.connection import Connection
from host_driver.tcp.frames import OutFrame, OutSegment
from host_driver.tcp.listener import Listener
from host_driver.tcp.profile import LINUX, LINUX24, PROFILES, RFC, Ecn, Nagle, Profile
from host_driver.tcp.stack import Stack
from host_driver.tcp.states import Endpoint, State

__all__ = [
    "LINUX",
    "LINUX24",
    "PROFILES",
    "RFC",
    "Chunk",
    "Connection",
    "Ecn",
    "Endpoint",
    "Listener",
    "Nagle",
    "OutFrame",
    "OutSegment",
    "Profile",
    "Stack",
    "State",
]
