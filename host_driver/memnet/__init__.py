"""MemNet: send and receive straight from and to registered memory, synchronously or as jobs (`docs/memnet.md`).

One `MemNet` for each process. Memory is registered once; a job names bytes of it, which must be left alone until it is
done. In the order of a send, the files are:

- `api`: the calls, over `sockets`, `options`, `regions` and `jobs`; `checking` finds buffers touched too soon;
- `order` and `grants`: whose turn it is to send on a socket, and the capabilities that let others do so;
- `channels`, `credits`, `application_end`, `worker`: what a socket owns on its way to the TCP server, both its ends,
  and their flow control; `eager_accept` accepts ahead, a worker receives ahead;
- `server` and `provider`: the TCP server, and what carries its operations out below (`host_driver.host_tcp`);
- `application`: a process with a MemNet, and what becomes of all it had when it ends.
"""

from host_driver.memnet.api import MemNet
from host_driver.memnet.application import Application, Outcome
from host_driver.memnet.channels import AdmissionPolicy, AdmitByLoad, ChannelSettings, Load, pool_bytes
from host_driver.memnet.counters import MemNetCounters
from host_driver.memnet.grants import Capability
from host_driver.memnet.jobs import Job
from host_driver.memnet.options import Linger, Option
from host_driver.memnet.provider import Direction, Done, Provider, Range, Transfer
from host_driver.memnet.regions import MemoryRegion, Part
from host_driver.memnet.server import TcpServer
from host_driver.memnet.sockets import MemNetSocket

__all__ = [
    "AdmissionPolicy",
    "AdmitByLoad",
    "Application",
    "Capability",
    "ChannelSettings",
    "Direction",
    "Done",
    "Job",
    "Linger",
    "Load",
    "MemNet",
    "MemNetCounters",
    "MemNetSocket",
    "MemoryRegion",
    "Option",
    "Outcome",
    "Part",
    "Provider",
    "Range",
    "TcpServer",
    "Transfer",
    "pool_bytes",
]
