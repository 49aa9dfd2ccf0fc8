"""`memnic run`: serve a workload once for each system, and compare."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from cosim.builds import WAVE_FORMATS
from cosim.cli import EXIT_FAILED, EXIT_INTERRUPTED
from cosim.engines.base import Engine, Interrupted, RunError, RunSpec, Wave
from cosim.engines.registry import check_engine, prepare_engine, select_engine
from cosim.errors import InputError, ToolError
from cosim.machine import Machine, load_application, load_machine
from cosim.notification import CHOICES, with_notification
from cosim.options import (
    BINARY,
    DECIMAL,
    TIMES,
    BottleneckOption,
    CorruptOption,
    DelayOption,
    DuplicateOption,
    LossOption,
    ReorderOption,
    parse_impairments,
    parse_quantity,
)
from cosim.progress import RunProgress
from cosim.report import print_report
from cosim.results import RESULT_NAME, Configuration, ResultsFolder
from cosim.systems import DEFAULT_SYSTEMS, System, select_systems
from cosim.timing.device_file import is_device_file, load_device
from cosim.workload import Workload, read_log, synthetic
from nic_model.contract import CONFIGS

DEFAULT_REQUESTS = 100
DEFAULT_SIMULATOR = "verilator"
DEFAULT_WAVE_FROM = "frame:1"
DEFAULT_WAVE_LENGTH = "1ms"
"""Some 20 MB of VCD."""
MAX_CLIENTS = 1000


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("run")(run)


def run(
    log: Annotated[Path | None, typer.Option(help="Common or Combined Log Format, also .gz; without it: the Synthetic "
                                                  "workload, 128 files of 16 KB")] = None,
    requests: Annotated[int, typer.Option(help="as many as the log has, at most")] = DEFAULT_REQUESTS,
    systems: Annotated[str, typer.Option(help="systems to compare, separated by commas: names as `memnic systems` "
                                                "lists them, or TOML files")] = ",".join(DEFAULT_SYSTEMS),
    wave: Annotated[bool, typer.Option("--wave", help="keep a waveform of each system; each of the next three "
                                                      "options does so too")] = False,
    wave_from: Annotated[str | None, typer.Option(
        help=f"where it begins: a time such as 3ms; frame:N, the N-th frame on the wire; error, the first completion "
             f"that tells of one; default {DEFAULT_WAVE_FROM}")] = None,
    wave_length: Annotated[str | None, typer.Option(
        help=f"how long it is: a time, or all; default {DEFAULT_WAVE_LENGTH}")] = None,
    wave_format: Annotated[str | None, typer.Option(
        help=f"{' or '.join(WAVE_FORMATS)}; default: vcd; FST needs liblz4-dev and zlib1g-dev")] = None,
    out: Annotated[Path, typer.Option(help="results folder; files of an earlier run are replaced")] = Path("results"),
    clients: Annotated[int, typer.Option(help="clients, each with one request at a time")] = 8,
    rate: Annotated[float | None, typer.Option(help="requests a second that are due; a client that is not free in time "
                                                    "is late; default: as many as are served")] = None,
    link_rate: Annotated[str | None, typer.Option(help="bits a second, such as 1G; default: the machine's")] = None,
    max_size: Annotated[str, typer.Option(help="sizes in the log above this are cut to it")] = "256K",
    machine: Annotated[str, typer.Option(help="name of a shipped machine, or a TOML file")] = "p2-300-smp2",
    application: Annotated[str, typer.Option(help="name of a shipped application, or a TOML file")] = "apache",
    engine: Annotated[str | None, typer.Option(help="what the device runs on; default: RTL, if there")] = None,
    simulator: Annotated[str | None, typer.Option(
        help="of the cocotb engine: verilator or icarus; default: verilator")] = None,
    transactors: Annotated[str | None, typer.Option(
        help="of the cocotb engine: cocotbext-axi, or the simulator's own, which are compiled (verilator) or lean "
             "(icarus)")] = None,
    device: Annotated[str, typer.Option(help=f"size of the device: {', '.join(CONFIGS)}; or, for --engine "
                                              "model, a device file: then the device takes its time")] = "default",
    notification: Annotated[str | None, typer.Option(
        help=f"how the host is told: {CHOICES}; default: the system's, mostly the machine's moderated interrupts"
    )] = None,
    interrupts_on: Annotated[str | None, typer.Option(
        help="processors that take interrupts, run bottom halves and poll, such as 1 or 0,2; default: the system's, "
             "mostly all")] = None,
    processes_on: Annotated[str | None, typer.Option(
        help="processors that the application's processes run on, likewise")] = None,
    adaptive: Annotated[str | None, typer.Option(
        help="rx, tx or rx,tx: directions whose interrupt moderation adapts as Linux's DIM does; default: the "
             "machine's moderation")] = None,
    loss: LossOption = None,
    duplicate: DuplicateOption = None,
    corrupt: CorruptOption = None,
    reorder: ReorderOption = None,
    delay: DelayOption = None,
    bottleneck: BottleneckOption = None,
    seed: Annotated[int, typer.Option(help="the same seed gives the same result")] = 1,
    jump: Annotated[bool | None, typer.Option(
        "--jump/--no-jump", help="jump over idle time; the result is the same; default: but in waves of the compiled "
                                "engine")] = None,
    port_log: Annotated[bool, typer.Option("--port-log", help="keep all messages of the control port, of systems with "
                                                              "TCP on the device; `memnic port-log` shows them")
                        ] = False,
    json: Annotated[bool, typer.Option("--json", help=f"print {RESULT_NAME} instead of tables")] = False,
) -> int:
    """Serve a workload over HTTP/1.0, once for each system, and print what each took."""
    _check_at_least("--requests", requests, 1)
    _check_at_least("--seed", seed, 0)
    _check_at_least("--clients", clients, 1)
    if clients > MAX_CLIENTS:
        raise InputError(f"--clients must be at most {MAX_CLIENTS}, not {clients}")
    if rate is not None and not 0 < rate < float("inf"):
        raise InputError(f"--rate must be above 0, not {rate:g}")
    chosen_machine = load_machine(machine)
    engine_name, run_engine = select_engine(engine)
    if is_device_file(device):
        if engine_name != "model":
            raise InputError(f"--device: a device file needs --engine model, not {engine_name}")
        load_device(device)
    elif device not in CONFIGS:
        raise InputError(f"no device {device!r}: choose from {', '.join(CONFIGS)}")
    if engine_name != "cocotb" and (simulator or transactors):
        raise InputError(f"--simulator and --transactors need the cocotb engine, not {engine_name}")
    check_engine(engine_name, simulator or DEFAULT_SIMULATOR, transactors)
    chosen_systems = select_systems(systems)
    _check_control_port(chosen_systems, transactors, device, chosen_machine)
    wanted_wave = None
    if wave or wave_from or wave_length or wave_format:
        wanted_wave = _wave(engine_name, wave_from, wave_length, wave_format or "vcd", jump=jump)
    configuration = Configuration(
        workload=_workload(log, requests, parse_quantity("--max-size", max_size, BINARY)),
        systems=_told(_placed(chosen_systems, chosen_machine, interrupts_on, processes_on), chosen_machine,
                      notification, adaptive),
        machine=chosen_machine,
        application=load_application(application),
        clients=clients,
        offered_rate=rate,
        link_bit_rate=(chosen_machine.link_bit_rate if link_rate is None
                       else parse_quantity("--link-rate", link_rate, DECIMAL)),
        device=device,
        engine=engine_name,
        simulator=(simulator or DEFAULT_SIMULATOR) if engine_name == "cocotb" else None,
        transactors=transactors,
        seed=seed,
        jump=jump is not False,
        impairments=parse_impairments(loss=loss, duplicate=duplicate, corrupt=corrupt, reorder=reorder, delay=delay,
                                      bottleneck=bottleneck, seed=seed),
    )
    try:
        folder = ResultsFolder(out, configuration)
    except OSError as error:
        raise InputError(f"cannot write results to {out}: {error.strerror}") from error
    code = _run_systems(configuration, folder, run_engine, wanted_wave, port_log=port_log)
    if json:
        sys.stdout.write((out / RESULT_NAME).read_text(encoding="utf-8"))
    else:
        console = Console(width=None if sys.stdout.isatty() else 160)
        print_report(console, configuration, list(folder.result.systems.values()))
        if not code:
            console.print(f"Results in {out}", highlight=False, soft_wrap=True)
    return code


def _check_control_port(systems: list[System], transactors: str | None, device: str, machine: Machine) -> None:
    """Systems with TCP on the device need a control port, and a processor for the firmware."""
    name = next((system.name for system in systems if system.is_on_device), None)
    if name is None:
        return
    if is_device_file(device):
        raise InputError(f"system {name} needs a control port, which device files do not have: name a device instead")
    if transactors == "cocotbext-axi":
        raise InputError(f"system {name} needs transactors for its control port, which cocotbext-axi has not: leave "
                         "--transactors out")
    if machine.device_processor is None:
        raise InputError(f"system {name} does TCP on a device processor, and machine {machine.name} has no table "
                         "`device_processor`")


def _check_at_least(option: str, value: int, least: int) -> None:
    if value < least:
        raise InputError(f"{option} must be at least {least}, not {value}")


def _workload(log: Path | None, requests: int, max_size_bytes: int) -> Workload:
    if log is None:
        return synthetic(requests)
    return read_log(log, limit=requests, max_size_bytes=max_size_bytes)


def _placed(systems: list[System], machine: Machine, interrupts_on: str | None,
            processes_on: str | None) -> list[System]:
    """The systems, with interrupts and processes held to some processors; as they are for None."""
    changes = {name: _processors(f"--{name.replace('_', '-')}", text, machine)
               for name, text in (("interrupts_on", interrupts_on), ("processes_on", processes_on))
               if text is not None}
    for system in systems:
        if changes and system.dedicated is not None:
            raise InputError(f"--{next(iter(changes)).replace('_', '-')}: {system.name} has processors of its own for "
                             "TCP: choose another system")
    placed = [msgspec.structs.replace(system, **changes) for system in systems]
    for system in placed:
        system.placed_on(machine)
    return placed


def _processors(option: str, text: str, machine: Machine) -> tuple[int, ...]:
    numbers = [number.strip() for number in text.split(",")]
    if not all(number.isdecimal() and int(number) < machine.processors for number in numbers):
        raise InputError(f"{option} must be some of the processors 0 to {machine.processors - 1} of {machine.name}, "
                         f"separated by commas, not {text!r}")
    return tuple(sorted({int(number) for number in numbers}))


def _told(systems: list[System], machine: Machine, notification: str | None, directions: str | None) -> list[System]:
    """The systems, told as `notification` says, and with adaptive moderation for some of "rx" and "tx"."""
    if notification is not None:
        systems = [with_notification(system, notification) for system in systems]
    if directions is None:
        return systems
    for system in systems:
        if system.told_by(machine) not in ("interrupt", "napi"):
            raise InputError(f"--adaptive needs interrupts, and {system.name} has none with --notification "
                             f"{notification}")
    wanted = {name.strip() for name in directions.split(",")}
    if not wanted <= {"rx", "tx"}:
        raise InputError(f"--adaptive must be rx, tx or rx,tx, not {directions!r}")
    return [_adaptive(system, machine, wanted) for system in systems]


def _adaptive(system: System, machine: Machine, directions: set[str]) -> System:
    told = system.notification
    moderation = msgspec.structs.replace(told.moderation or machine.moderation, adaptive_rx="rx" in directions,
                                         adaptive_tx="tx" in directions)
    return msgspec.structs.replace(system, notification=msgspec.structs.replace(told, moderation=moderation))


def _wave(engine: str, begin: str | None, length: str | None, wave_format: str, *, jump: bool | None) -> Wave:
    """Which part of the run is kept; its path comes later."""
    if wave_format not in WAVE_FORMATS:
        raise InputError(f"--wave-format must be {' or '.join(WAVE_FORMATS)}, not {wave_format!r}")
    if engine != "compiled":
        if begin or length or wave_format != "vcd":
            raise InputError(f"--wave-from, --wave-length and FST need the compiled engine, not {engine}")
        return Wave(path="", jump=jump is not False)
    begin, length = begin or DEFAULT_WAVE_FROM, length or DEFAULT_WAVE_LENGTH
    found = re.fullmatch(r"frame:([1-9]\d*)", begin)
    by_time = not found and begin != "error"
    return Wave(path="", format=wave_format, frame=int(found[1]) if found else None, error=begin == "error",
                from_ps=parse_quantity("--wave-from", begin, TIMES, least=0) if by_time else None,
                length_ps=None if length == "all" else parse_quantity("--wave-length", length, TIMES),
                jump=bool(jump))


def _run_systems(configuration: Configuration, folder: ResultsFolder, run_engine: Engine, wave: Wave | None, *,
                 port_log: bool) -> int:
    """Run each system and keep its result; the exit code. What is done when it stops early stays in the folder."""
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    system_name, started_s = "", 0.0
    plain = RunSpec(
        system=configuration.systems[0], machine=configuration.machine, application=configuration.application,
        requests=configuration.workload.requests, clients=configuration.clients,
        offered_rate=configuration.offered_rate,
        link_bit_rate=configuration.link_bit_rate, device=configuration.device, seed=configuration.seed,
        jump=configuration.jump, impairments=configuration.impairments, wave=wave,
        simulator=configuration.simulator or DEFAULT_SIMULATOR, transactors=configuration.transactors)
    try:
        prepare_engine(configuration.engine, plain, lambda what: errors.print(f"memnic: {what}", markup=False))
        with RunProgress(errors, len(configuration.workload.requests)) as progress:
            for system in configuration.systems:
                system_name = system.name
                capture, wave_path = folder.prepare(system.name)
                log_path = str(folder.port_log(system.name).absolute()) if port_log and system.is_on_device else None
                spec = msgspec.structs.replace(
                    plain, system=system, capture_path=str(capture.absolute()), port_log_path=log_path,
                    wave=wave and msgspec.structs.replace(wave, path=f"{wave_path.absolute()}.{wave.format}"))
                progress.start(system.name)
                started_s = time.monotonic()
                result = run_engine(spec, progress.update)
                folder.add(result, time.monotonic() - started_s)
        folder.finish()
    except KeyboardInterrupt as stop:
        if isinstance(stop, Interrupted) and stop.partial is not None:
            folder.add(stop.partial, time.monotonic() - started_s)
        where = f" in {system_name}" if system_name else ""
        errors.print(f"memnic: interrupted{where}; partial results are in {folder.path}", markup=False)
        return EXIT_INTERRUPTED
    except ToolError as error:
        errors.print(f"memnic: {error}", markup=False)
        return EXIT_FAILED
    except (RunError, OSError) as error:
        if isinstance(error, RunError) and error.trace:
            errors.print(error.trace.rstrip(), markup=False)
        what = " ".join(str(error).split())
        errors.print(f"memnic: {system_name}: {what}; partial results are in {folder.path}", markup=False)
        return EXIT_FAILED
    return 0
