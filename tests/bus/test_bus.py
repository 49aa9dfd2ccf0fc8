"""The device under third-party bus models (cocotbext-axi), on both simulators."""

from __future__ import annotations

from pathlib import Path

import pytest
from cocotb_tools.check_results import get_results

from cosim import builds, simulators
from nic_model.contract import CONFIGS

LIMIT_S = 100

CASES = {"registers_by_axi_lite": 1, "exchange": 2}
"""cocotb test -> its seed."""


TARGETS = {"verilator": builds.AMBA_VERILATOR, "icarus": builds.AMBA_ICARUS}


@pytest.mark.parametrize("simulator", TARGETS)
@pytest.mark.parametrize("case", CASES)
def test_bus(case: str, simulator: str, tmp_path: Path) -> None:
    target = TARGETS[simulator]
    folder = builds.build(CONFIGS["tiny"], target)
    environment = {"MEMNIC_TEST_SEED": str(CASES[case]), "COCOTB_TEST_FILTER": f"{case}$"}
    process = simulators.start(folder, target, simulator, "tests.bus.bench", environment=environment,
                               run_folder=tmp_path)
    try:
        process.wait(timeout=LIMIT_S)
    finally:
        simulators.stop(process)
    log = (tmp_path / "simulator.log").read_text()
    assert (tmp_path / "results.xml").is_file(), log
    assert get_results(tmp_path / "results.xml") == (1, 0), log
