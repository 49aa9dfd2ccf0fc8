"""Stopping a simulator under cocotb."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cosim import simulators


def test_stopping_ends_the_whole_process_group(tmp_path: Path) -> None:
    code = "import subprocess, sys, time; subprocess.Popen(['sleep', '600']); print('up', flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               start_new_session=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"up\n"
        simulators.stop(process)
        # the pipe ends when the last process that has it is gone
        assert process.stdout.read() == b""
    assert process.poll() is not None
