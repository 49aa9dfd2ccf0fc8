"""When the device does what: timing rules, stage by stage, and the kernel that runs them over columns.

What numba compiles is kept in `$MEMNIC_CACHE`, or `memnic` below the user's cache folder, in a folder of these sources'
hash: numba itself looks at no other file than the one that a function stands in.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numba


def _cache_folder() -> Path:
    given = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("MEMNIC_CACHE")
    base = Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memnic"
    found = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        found.update(path.read_bytes())
    return base / f"numba-{found.hexdigest()[:16]}"


numba.config.CACHE_DIR = str(_cache_folder())  # type: ignore[attr-defined]
