"""What tests of several areas share: fixtures, and the order of the files."""

from __future__ import annotations

import gc
import os
from collections import Counter
from pathlib import Path

import pytest

from cosim import builds
from nic_model.contract import CONFIGS

FIRST = ("device/test_engines.py", "rtl/test_receive.py", "rtl/test_fetch.py", "device/test_offloaded.py",
         "cosim/test_timed_model.py",
         "cosim/test_commands.py", "rtl/test_transmit_back.py", "rtl/test_parser.py", "rtl/test_pause.py",
         "tap/test_kernel_as_client.py", "tap/test_command.py", "rtl/test_coalescer.py")
"""Files that take longest, below this folder; begun first, so that at the end no core waits for another. While one
builds the first file's simulators, the other is busy with files that need none."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put `FIRST` first, then what has most tests."""
    here, tests = Path(__file__).parent, Counter(item.path for item in items)

    def place(item: pytest.Item) -> tuple[int, int]:
        name = item.path.relative_to(here).as_posix() if item.path.is_relative_to(here) else ""
        return FIRST.index(name) if name in FIRST else len(FIRST), -tests[item.path]

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """An elaborated device is a million small objects, all of which live as long as its test: to look through what is
    there every 700 of them, as Python does by itself, takes a seventh of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(scope="session")
def tiny_compiled() -> Path:
    """The `tiny` device for the compiled engine, built once for all tests, in the cache that everybody uses."""
    os.environ.setdefault("MEMNIC_CACHE", str(builds.cache_folder()))
    return builds.build(CONFIGS["tiny"], builds.LIBRARY)
