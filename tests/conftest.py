"""Fixtures that tests of several areas share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cosim import builds
from nic_model.contract import CONFIGS


@pytest.fixture(scope="session")
def tiny_compiled() -> Path:
    """The `tiny` device for the compiled engine, built once for all tests, in the cache that everybody uses."""
    os.environ.setdefault("MEMNIC_CACHE", str(builds.cache_folder()))
    return builds.build(CONFIGS["tiny"], builds.LIBRARY)
