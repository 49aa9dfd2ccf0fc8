"""Options that several commands have, and how the numbers in them are read."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from cosim.errors import InputError
from cosim.impairments import BothWays, Impairments

DECIMAL = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
TIMES = {"PS": 1, "NS": 10**3, "US": 10**6, "MS": 10**9, "S": 10**12}
BINARY = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}

_WAYS = "both ways, or from and to the device, such as 1%:0"

LossOption = Annotated[str | None, typer.Option("--loss", help=f"frames that the wire loses: {_WAYS}")]
DuplicateOption = Annotated[str | None, typer.Option("--duplicate", help="frames that arrive twice: as --loss")]
CorruptOption = Annotated[str | None, typer.Option("--corrupt", help="IP packets with a flipped bit: as --loss")]
ReorderOption = Annotated[str | None, typer.Option("--reorder", help="frames that come 1 ms late: as --loss")]
DelayOption = Annotated[str | None, typer.Option("--delay", help="time that is added, such as 10ms, or 10ms:0")]
BottleneckOption = Annotated[str | None, typer.Option(
    "--bottleneck", help="bits a second that pass, such as 10M, behind a queue of 256 KB; or 10M:1M")]


def parse_quantity(option: str, text: str, units: dict[str, int], least: int = 1) -> int:
    """A number with a unit of `units`, such as 256K or 2.5G. Raises InputError, naming the option."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([A-Z]*)", text.strip().upper())
    value = round(float(match[1]) * units[match[2]]) if match and match[2] in units else -1
    if value < least:
        names = [unit if units is not TIMES else unit.lower() for unit in units if unit]
        raise InputError(f"{option} must be a positive number{' with' if '' not in units else ', with'} "
                         f"{', '.join(names[:-1])} or {names[-1]} behind it{'' if '' not in units else ' if need be'}, "
                         f"not {text!r}")
    return value


def parse_impairments(*, loss: str | None, duplicate: str | None, corrupt: str | None, reorder: str | None,
                      delay: str | None, bottleneck: str | None, seed: int) -> BothWays | None:
    """What the options of these names ask for; None if all are None. Raises InputError, naming the option."""
    if not any((loss, duplicate, corrupt, reorder, delay, bottleneck)):
        return None
    texts = {"--loss": loss, "--duplicate": duplicate, "--corrupt": corrupt, "--reorder": reorder, "--delay": delay,
             "--bottleneck": bottleneck}
    outbound, inbound = {}, {}
    for option, text in texts.items():
        first, colon, second = (text or "0").partition(":")
        outbound[option], inbound[option] = first, second if colon else first
    return BothWays(outbound=_one_way(outbound), inbound=_one_way(inbound), seed=seed)


def _one_way(texts: dict[str, str]) -> Impairments:
    def quantity(option: str, units: dict[str, int]) -> int:
        return 0 if texts[option] == "0" else parse_quantity(option, texts[option], units)

    def share(option: str) -> float:
        return parse_share(option, texts[option])

    return Impairments(loss=share("--loss"), duplicate=share("--duplicate"), corrupt=share("--corrupt"),
                       reorder=share("--reorder"), delay_ps=quantity("--delay", TIMES),
                       bit_rate=quantity("--bottleneck", DECIMAL) or None)


def parse_share(option: str, text: str) -> float:
    """A share such as 1% or 0.01. Raises InputError, naming the option."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+) *(%?)", text.strip())
    share = float(match[1]) / (100 if match[2] else 1) if match else -1.0
    if not 0 <= share <= 1:
        raise InputError(f"{option} must be a share from 0 to 100%, such as 1% or 0.01, not {text!r}")
    return share
