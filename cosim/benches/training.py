"""Shows a library of the compiled engine what it will mostly do, so that the compiler may learn from it.

Called by `cosim.builds` in a process of its own: the profile is written when that ends.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from cosim.benches.traffic import TrafficBench, TrafficSpec
from cosim.builds import TRAINED
from cosim.engines.compiled import CompiledDevice
from cosim.engines.transactor_port import TransactorPort
from nic_model.contract import NicConfig

CYCLES = 100_000


def train() -> None:
    """Traffic at full rate both ways over the library that the command line names."""
    config = msgspec.json.decode(os.environ[TRAINED], type=NicConfig)
    bench = TrafficBench(TrafficSpec(device=config.name, cycles=CYCLES), config)
    with bench, CompiledDevice(config, path=Path(sys.argv[1])) as device:
        port = TransactorPort(device.library, config, bench.kernel, bench.memory, bench.mac, bench.bus)
        bench.start(port)
        device.run(port, bench, jump=True)
