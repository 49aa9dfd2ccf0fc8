"""A pytest plugin: the compiled engine runs the device that counts, and what it counted is added up."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cosim.engines.base import Wave
from cosim.engines.compiled import CompiledDevice
from nic_model.contract import NicConfig
from tests.coverage.covered import build
from tests.coverage.points import Sum

SUM = "MEMNIC_COVERAGE"
"""Environment variable with the file that the sum is written to."""


@pytest.fixture(scope="session", autouse=True)
def counted() -> Iterator[None]:
    """While tests run, `CompiledDevice` of `tiny` is the counting one, unless a wave or a library is asked for."""
    total, library = Sum(), build().library
    patch = pytest.MonkeyPatch()
    begin, end = CompiledDevice.__init__, CompiledDevice.__exit__

    def __init__(self: CompiledDevice, config: NicConfig, wave: Wave | None = None, path: Path | None = None) -> None:
        counts = config.name == "tiny" and wave is None and path is None
        begin(self, config, wave, library if counts else path)
        self.counts = counts  # type: ignore[attr-defined]

    def __exit__(self: CompiledDevice, *error: Any) -> None:
        if self.counts:  # type: ignore[attr-defined]
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "coverage.dat"
                self._raw.memnic_write_coverage(str(path).encode())
                total.add(path)
        end(self, *error)

    patch.setattr(CompiledDevice, "__init__", __init__)
    patch.setattr(CompiledDevice, "__exit__", __exit__)
    yield
    patch.undo()
    if total.runs:
        total.write(Path(os.environ[SUM]))
