"""Device files: what a device is built of, and how many cycles its stages take, as TOML.

`memnic characterize` writes those of the RTL; a user changes a copy to explore a device that is not built.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from cosim.errors import InputError
from nic_model.contract import MAX_FRAME_BYTES, NicConfig
from nic_model.contract.config import CONTROL_SIZES
from nic_model.timing.parameters import DeviceModel, Queues, StageTiming

DEVICES = Path(__file__).with_name("devices")

MOST_CYCLES = 100_000
"""Of a stage: more is a mistake."""


class DeviceFileError(InputError):
    """A device file with an unknown, missing or impossible field: names file, field and reason."""


class Figure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A number of cycles, and how it was measured."""

    cycles: int
    measured: str


class Measured(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """On which RTL."""

    device: str
    """Its configuration, as its fields differ from the contract's defaults."""
    rtl: str
    """Hash of the sources of RTL and contract."""


class DeviceFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All of a file."""

    name: str
    description: str
    sizes: dict[str, int]
    """Fields of `nic_model.contract.NicConfig`."""
    queues: dict[str, int]
    """By the names of `nic_model.timing.parameters.Queues`."""
    timing: dict[str, Figure]
    """By the names of `nic_model.timing.parameters.StageTiming`."""
    measured: Measured | None = None

    def model(self, where: str) -> DeviceModel:
        """The device. Raises DeviceFileError, naming `where`, for what cannot be."""
        return _model(self, where)


# The timed model has no control port.
_SIZES = tuple(field.name for field in dataclasses.fields(NicConfig) if field.name not in ("name", *CONTROL_SIZES))


def load_device(name_or_path: str) -> DeviceModel:
    """The device of a shipped name or of a TOML file. Raises DeviceFileError, naming file, field and reason."""
    path = find(name_or_path)
    return read(path).model(str(path))


def find(name_or_path: str) -> Path:
    """The file of a shipped name, or of a path."""
    path = DEVICES / f"{name_or_path}.toml"
    if "/" not in name_or_path and not name_or_path.endswith(".toml"):
        if not path.is_file():
            raise DeviceFileError(f"no device {name_or_path!r}: give a TOML file, or one of {', '.join(shipped())}")
        return path
    return Path(name_or_path)


def is_device_file(name_or_path: str) -> bool:
    """Whether it is a path of a device file, and not a name."""
    return name_or_path.endswith(".toml")


def shipped() -> list[str]:
    """Names of the files that come with memnic."""
    return sorted(path.stem for path in DEVICES.glob("*.toml"))


def read(path: Path) -> DeviceFile:
    """A device file, its fields checked for being there. Raises DeviceFileError."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DeviceFileError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DeviceFileError(f"{path}: no valid TOML: {error}") from error
    for table, wanted in (("sizes", _SIZES), ("queues", Queues.names()), ("timing", StageTiming.names())):
        if isinstance(raw.get(table), dict):
            _check_table(path, table, raw[table], wanted)
    try:
        return msgspec.convert(raw, DeviceFile)
    except msgspec.ValidationError as error:
        raise DeviceFileError(f"{path}: {error}") from error


def _check_table(path: Path, table: str, values: dict[str, Any], wanted: Sequence[str]) -> None:
    """All names, no others, and numbers: msgspec would not say which entry of a table is wrong."""
    for name, value in values.items():
        if name not in wanted:
            raise DeviceFileError(f"{path}: unknown field `{table}.{name}`")
        number, field = (value.get("cycles"), f"{name}.cycles") if isinstance(value, dict) else (value, name)
        if type(number) is not int:
            raise DeviceFileError(f"{path}: `{table}.{field}` must be a whole number, not {number!r}")
    for name in wanted:
        if name not in values:
            raise DeviceFileError(f"{path}: missing field `{table}.{name}`")


def _model(file: DeviceFile, where: str) -> DeviceModel:
    def refuse(field: str, value: object, wanted: str) -> None:
        raise DeviceFileError(f"{where}: `{field}` must be {wanted}, not {value}")

    try:
        config = NicConfig(name=file.name, **file.sizes)
    except ValueError as error:
        raise DeviceFileError(f"{where}: {error}") from error
    for name, figure in file.timing.items():
        if not -MOST_CYCLES <= figure.cycles <= MOST_CYCLES:
            refuse(f"timing.{name}.cycles", figure.cycles, f"a number of cycles, {MOST_CYCLES} at most")
        if figure.cycles < (name.endswith("_interval")) and name not in _MAY_LEAD:
            refuse(f"timing.{name}.cycles", figure.cycles, "at least 1" if name.endswith("_interval") else "at least 0")
    least = {"queue_slots": 32, "prefetch_slots": 32}
    most = {"queue_slots": 4096, "prefetch_slots": 256, "segmenters": 16, "channel_fetches": 16, "commands_ahead": 128,
            "frames_ready": 128, "descriptor_reads": 128, "receive_reads": 128, "receive_writes": 128,
            "completion_writes": 128, "rows_buffered": 4096, "coalesce_ways": 64}
    for field in Queues.names():
        value = file.queues[field]
        if not least.get(field, 1) <= value <= most[field]:
            refuse(f"queues.{field}", value, f"{least.get(field, 1)} to {most[field]}")
    if config.tx_buffer_bytes < MAX_FRAME_BYTES:
        refuse("sizes.tx_buffer_bytes", config.tx_buffer_bytes, f"at least {MAX_FRAME_BYTES}")
    return DeviceModel(config=config, timing=StageTiming(**{n: f.cycles for n, f in file.timing.items()}),
                       **file.queues)


_MAY_LEAD = ("decision_to_rows", "freed_before_fetch")
"""Figures that may be negative: see `StageTiming`."""


def write(path: Path, file: DeviceFile) -> None:
    """Write a device file, in packet order. Raises OSError."""
    lines = [
        "# Written by `memnic characterize`. Each figure has how it was measured; `memnic characterize --check` says",
        "# which have moved. For a device that is not built, change a copy.",
        "", f"name = {_quoted(file.name)}", f"description = {_quoted(file.description)}", "", "[sizes]",
    ]
    lines += [f"{name} = {file.sizes[name]}" for name in _SIZES]
    lines += ["", "[queues]"]
    lines += [f"{name} = {file.queues[name]}" for name in Queues.names()]
    lines += ["", "[timing]"]
    lines += [f"{name} = {{ cycles = {file.timing[name].cycles}, measured = {_quoted(file.timing[name].measured)} }}"
              for name in StageTiming.names()]
    if file.measured is not None:
        lines += ["", "[measured]", f"device = {_quoted(file.measured.device)}", f"rtl = {_quoted(file.measured.rtl)}"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def sizes_of(config: NicConfig) -> dict[str, int]:
    """The table `sizes` of a configuration."""
    values: dict[str, Any] = dataclasses.asdict(config)
    return {name: values[name] for name in _SIZES}
