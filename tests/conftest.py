"""Fixtures that tests of several areas share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cosim import simulators
from nic_model.contract import CONFIGS


@pytest.fixture(scope="session")
def tiny_on_verilator() -> Path:
    """The `tiny` device built for Verilator, once for all tests, in the cache that everybody uses."""
    os.environ.setdefault("MEMNIC_CACHE", str(simulators.cache_folder()))
    return simulators.build(CONFIGS["tiny"], "verilator")
