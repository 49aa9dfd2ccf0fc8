"""Files that the servers of these tests serve."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

SIZES = {"empty": 0, "byte": 1, "segment": 1460, "16K": 16 << 10, "1M": 1 << 20, "20M": 20 << 20}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The largest files are for the long tests where TCP is on the device; the host's stay."""
    for item in items:
        params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        if params.get("name") == "20M" and params.get("tap") == "nic-tcp":
            item.add_marker(pytest.mark.long)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of each size, random bytes of a fixed seed."""
    folder = tmp_path_factory.mktemp("root")
    rng = random.Random(6)
    for name, size in SIZES.items():
        (folder / name).write_bytes(rng.randbytes(size))
    (folder / "folder").mkdir()
    (folder / "folder" / "a file.txt").write_text("with a blank in its name\n")
    return folder
