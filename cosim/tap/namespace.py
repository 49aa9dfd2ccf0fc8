"""A network namespace with a TAP interface in it: made, entered and removed.

Nothing leaves it: its only interfaces are its loopback and the TAP, whose other end is this process.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import struct
import subprocess
import threading
from collections.abc import Callable
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from cosim.errors import InputError, ToolError

T = TypeVar("T")

INTERFACE = "tap0"

_TUN_DEVICE = Path("/dev/net/tun")
_FOLDER = Path("/run/netns")

# linux/sched.h, linux/if_tun.h
_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFREQ = struct.Struct("16sH22x")

TRANSMIT_QUEUE_FRAMES = 10_000
"""Between the kernel and a simulation that is slower than it."""


def why_not() -> str | None:
    """What is missing for a namespace with a TAP interface, in a few words; None if nothing is."""
    if shutil.which("ip") is None:
        return "the command ip is missing: install iproute2"
    if os.geteuid() != 0:
        return "it takes root's rights to make a network namespace and a TAP interface"
    if not _TUN_DEVICE.exists():
        return f"{_TUN_DEVICE} is missing: the kernel has no TAP interfaces (modprobe tun)"
    name = f"memnic-probe-{os.getpid()}-{threading.get_native_id()}"
    try:
        with Namespace(name) as namespace:
            os.close(namespace.open_tap())
    except (ToolError, OSError) as error:
        return str(error)
    return None


class Namespace:
    """A network namespace of its own; a context manager, whose end removes it with all that runs on its interfaces.

    Parameters: its `name`. Raises ToolError when it cannot be made.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> Namespace:
        _ip("netns", "add", self.name)
        _ip("-n", self.name, "link", "set", "lo", "up")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        _ip("netns", "delete", self.name)

    def add_tap(self, mac: bytes, *addresses: IPv4Interface | IPv6Interface, settings: dict[str, str] | None = None,
                mtu: int = 1500) -> None:
        """Make the TAP interface and bring it up. `settings`: names below /proc/sys/net and what is written there."""
        _ip("-n", self.name, "tuntap", "add", INTERFACE, "mode", "tap")
        # No solicitation of routers: there is none, and nobody should wait for one.
        quiet = {f"ipv6/conf/{INTERFACE}/router_solicitations": "0"}
        self.set({**quiet, **(settings or {})})
        _ip("-n", self.name, "link", "set", INTERFACE, "address", mac.hex(":"), "mtu", str(mtu), "txqueuelen",
            str(TRANSMIT_QUEUE_FRAMES), "up")
        for address in addresses:
            nodad = ["nodad"] if address.version == 6 else []
            _ip("-n", self.name, "address", "add", str(address), "dev", INTERFACE, *nodad)

    def set(self, settings: dict[str, str]) -> None:
        """Write kernel settings of this namespace: names below /proc/sys/net."""
        def write() -> None:
            for name, value in settings.items():
                (Path("/proc/sys/net") / name).write_text(value)

        self.inside(write)

    def open_tap(self) -> int:
        """A file descriptor whose reads and writes are whole frames of the TAP interface; it does not block.

        Makes the interface if it is not there. Raises OSError.
        """
        return open_tap(self.name)

    def inside(self, action: Callable[[], T]) -> T:
        """What `action` returns, called in the namespace."""
        return _inside(self.name, action)

    def command(self, *arguments: str) -> list[str]:
        """A command line that runs `arguments` in the namespace."""
        return ["ip", "netns", "exec", self.name, *arguments]

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[Any]:
        """Run a command in the namespace, as `subprocess.run`."""
        return subprocess.run(self.command(*arguments), check=False, **options)


def open_tap(namespace: str) -> int:
    """As `Namespace.open_tap`, of the namespace of that name: for another process than its maker."""
    def attach() -> int:
        descriptor = os.open(_TUN_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.ioctl(descriptor, _TUNSETIFF, _IFREQ.pack(INTERFACE.encode(), _IFF_TAP | _IFF_NO_PI))
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    return _inside(namespace, attach)


def _inside(name: str, action: Callable[[], T]) -> T:
    """Linux keeps the namespace by thread: one enters it, acts, and ends."""
    results: list[T] = []
    errors: list[BaseException] = []

    def enter() -> None:
        try:
            handle = os.open(_FOLDER / name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.setns(handle, _CLONE_NEWNET):
                    number = ctypes.get_errno()
                    raise OSError(number, f"cannot enter the network namespace {name}: {os.strerror(number)}")
            finally:
                os.close(handle)
            results.append(action())
        except BaseException as error:  # handed to who waits
            errors.append(error)

    thread = threading.Thread(target=enter, name=f"in {name}")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        raise ToolError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def check_rights() -> None:
    """Raises InputError when no TAP interface can be had, and says why."""
    missing: str | None = why_not()
    if missing is not None:
        raise InputError(f"memnic tap: {missing}")
