"""`memnic tap`: the simulated server, and the Linux kernel as its peer."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

from cosim.engines.base import Interrupted
from cosim.errors import InputError
from cosim.machine import Machine, load_application, load_machine
from cosim.options import (
    DECIMAL,
    BottleneckOption,
    CorruptOption,
    DelayOption,
    DuplicateOption,
    LossOption,
    ReorderOption,
    parse_impairments,
    parse_quantity,
)
from cosim.systems import SYSTEMS, System, select_systems
from cosim.tap.bench import PEER_ADDRESSES, PEER_MAC, SERVER_ADDRESSES, TapResult, TapSpec
from cosim.tap.engines import ENGINES, prepare, run
from cosim.tap.namespace import Namespace, check_rights
from cosim.tap.real_server import RealServer, files_below
from cosim.tap.replay import read_recording
from cosim.tap.report import TapProgress, print_result
from host_driver.tcp import PROFILES
from nic_model.contract import CONFIGS

APIS = {"memnet": "nic-tso", "sockets": "nic-dumb"}
"""--api -> the system with that interface."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("tap")(tap)


def tap(
    port: Annotated[int, typer.Option(help="that the server listens on")] = 8080,
    root: Annotated[Path, typer.Option(help="folder whose files are served")] = Path("."),
    client: Annotated[bool, typer.Option("--client", help="the other way: the simulated host fetches each file below "
                                         "--root from a real server in the namespace: nginx if it is there, else "
                                         "Python's http.server; then the command ends")] = False,
    replay: Annotated[Path | None, typer.Option(
        help="a capture (pcap or pcapng) plays the clients, without namespace and TAP: its connections to --port, or "
             "to the port of most; then the command ends")] = None,
    api: Annotated[str | None, typer.Option(
        help=f"what the server uses: {' or '.join(APIS)}; without --systems memnet")] = None,
    systems: Annotated[str | None, typer.Option(
        help="the system that serves, instead of --api: a name as `memnic systems` shows it, or a TOML file, with TCP "
             f"on the host or on the device; default: {' or '.join(APIS.values())}, by --api")] = None,
    profile: Annotated[str, typer.Option(help=f"of the simulated TCP: {', '.join(PROFILES)}")] = "linux",
    engine: Annotated[str, typer.Option(help=f"what the device runs on: {', '.join(ENGINES)}")] = "compiled",
    device: Annotated[str, typer.Option(help=f"size of the device: {', '.join(CONFIGS)}")] = "default",
    machine: Annotated[str, typer.Option(help="name of a shipped machine, or a TOML file")] = "p2-300-smp2",
    application: Annotated[str, typer.Option(help="name of a shipped application, or a TOML file")] = "apache",
    link_rate: Annotated[str | None, typer.Option(help="bits a second, such as 1G; default: the machine's")] = None,
    loss: LossOption = None,
    duplicate: DuplicateOption = None,
    corrupt: CorruptOption = None,
    reorder: ReorderOption = None,
    delay: DelayOption = None,
    bottleneck: BottleneckOption = None,
    capture: Annotated[Path | None, typer.Option(help="keep what crossed the device's link, as pcapng")] = None,
    requests: Annotated[int | None, typer.Option(help="end when so many requests were served")] = None,
    name: Annotated[str | None, typer.Option(help="of the network namespace; default: memnic- and a number")] = None,
    seed: Annotated[int, typer.Option(help="of sequence numbers and of what the wire does")] = 1,
    json: Annotated[bool, typer.Option("--json", help="print the result as JSON instead of a table")] = False,
) -> int:
    """Let the Linux kernel fetch files from the simulated server, through the RTL, by a TAP interface in a network
    namespace of its own. Needs root. Ctrl-C ends it, and removes the namespace."""
    for option, value, choices in (("--api", api, APIS), ("--engine", engine, ENGINES),
                                   ("--profile", profile, PROFILES), ("--device", device, CONFIGS)):
        if value is not None and value not in choices:
            raise InputError(f"{option} must be one of {', '.join(choices)}, not {value!r}")
    if not 0 < port < 1 << 16:
        raise InputError(f"--port must be 1 to 65535, not {port}")
    if requests is not None and requests < 1:
        raise InputError(f"--requests must be at least 1, not {requests}")
    if not root.is_dir():
        raise InputError(f"--root: no folder {root}")
    if capture is not None and not capture.absolute().parent.is_dir():
        raise InputError(f"--capture: no folder {capture.parent}")
    if client and replay is not None:
        raise InputError("--client and --replay exclude each other")
    paths = files_below(root) if client else []
    if replay is not None:
        read_recording(replay, port)
    chosen_machine = load_machine(machine)
    system = _system(systems, api, chosen_machine)
    if replay is None:
        check_rights()
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    namespace_name = name or f"memnic-{os.getpid()}"
    spec = TapSpec(
        namespace=namespace_name, root=str(root.absolute()), port=port, paths=paths, requests=requests,
        replay=None if replay is None else str(replay.absolute()),
        system=system, machine=chosen_machine, application=load_application(application), profile=profile,
        device=device, seed=seed, capture_path=None if capture is None else str(capture.absolute()),
        link_bit_rate=(chosen_machine.link_bit_rate if link_rate is None
                       else parse_quantity("--link-rate", link_rate, DECIMAL)),
        impairments=parse_impairments(loss=loss, duplicate=duplicate, corrupt=corrupt, reorder=reorder, delay=delay,
                                      bottleneck=bottleneck, seed=seed))
    prepare(engine, spec, lambda what: errors.print(f"memnic: {what}", markup=False))
    result: TapResult | None = None
    with _ended_by_terminate():
        try:
            with ExitStack() as around:
                greeting = ""
                if replay is None:
                    namespace = around.enter_context(Namespace(namespace_name))
                    namespace.add_tap(PEER_MAC, *PEER_ADDRESSES)
                    if client:
                        around.enter_context(RealServer(namespace, root.absolute(), port))
                    else:
                        greeting = _how(namespace_name, port)
                progress = around.enter_context(TapProgress(errors, greeting))
                result = run(engine, spec, progress.update)
        except Interrupted as stop:
            result = stop.partial
        except KeyboardInterrupt:
            errors.print("memnic: interrupted before the server was up", markup=False)
    if result is None:
        return 0
    if json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(result), indent=2).decode() + "\n")
    else:
        print_result(Console(width=None if sys.stdout.isatty() else 120, highlight=False), result)
    return int(any(file.problem for file in result.fetched))


def _system(names: str | None, api: str | None, machine: Machine) -> System:
    """The one that serves. Raises InputError for one that cannot."""
    if names is None:
        return SYSTEMS[APIS[api or "memnet"]]
    if api is not None:
        raise InputError("--api and --systems exclude each other: a system has its own")
    chosen = select_systems(names)
    if len(chosen) > 1:
        raise InputError(f"--systems must be one system here, not {', '.join(system.name for system in chosen)}")
    (system,) = chosen
    if system.dedicated is not None or system.node is not None:
        raise InputError(f"--systems {system.name}: its TCP is on dedicated processors or on nodes; here it must be on "
                         "the host or on the device")
    placed = system.placed_on(machine)
    if (placed.processors, placed.interrupts_on, placed.processes_on) != (machine.processors, None, None):
        raise InputError(f"--systems {system.name}: it uses some of the machine's processors, and all are used here")
    if system.is_on_device and machine.device_processor is None:
        raise InputError(f"--systems {system.name}: it does TCP on a device processor, and machine {machine.name} has "
                         "no table `device_processor`")
    return system


def _how(name: str, port: int) -> str:
    """How the server is reached."""
    ipv4, ipv6 = SERVER_ADDRESSES
    return (f"memnic: serving in the network namespace {name}; Ctrl-C ends it. Try:\n"
            f"  ip netns exec {name} curl http://{ipv4.ip}:{port}/\n"
            f"  ip netns exec {name} curl -g 'http://[{ipv6.ip}]:{port}/'")


@contextmanager
def _ended_by_terminate() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does, so that the namespace is removed; and SIGINT where the shell ignores it for
    commands in the background."""
    def interrupt(_number: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
