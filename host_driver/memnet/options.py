"""Socket options: those of the usual API that mean something here, with the values that they take."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

from host_driver.errors import OptionRefused

MAX_BUFFER_BYTES = 1 << 30
"""The largest window that RFC 7323 can express."""


class Linger(NamedTuple):
    """Value of SO_LINGER. What `close` does with bytes that are not acknowledged."""

    is_on: bool
    """Off: `close` returns at once, and the bytes are sent behind its back."""
    seconds: float
    """On: `close` waits so long for them, then drops the connection; 0: drops it at once, with a reset."""


class Option(Enum):
    """An option; its value is its name in the usual API."""

    SO_REUSEADDR = "SO_REUSEADDR"
    TCP_NODELAY = "TCP_NODELAY"
    SO_KEEPALIVE = "SO_KEEPALIVE"
    TCP_KEEPIDLE = "TCP_KEEPIDLE"
    TCP_KEEPINTVL = "TCP_KEEPINTVL"
    TCP_KEEPCNT = "TCP_KEEPCNT"
    TCP_USER_TIMEOUT = "TCP_USER_TIMEOUT"
    SO_SNDBUF = "SO_SNDBUF"
    SO_RCVBUF = "SO_RCVBUF"
    SO_LINGER = "SO_LINGER"


def _switch(value: Any) -> bool:
    if value not in (0, 1):
        raise ValueError("0 or 1")
    return bool(value)


def _number(least: int, most: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"a whole number from {least:,} to {most:,}")
        return value
    return check


def _linger(value: Any) -> Linger:
    try:
        is_on, seconds = value
    except TypeError:
        raise ValueError("a pair: on or off, and seconds") from None
    if is_on not in (0, 1) or not isinstance(seconds, (int, float)) or not 0 <= seconds < float("inf"):
        raise ValueError("a pair: on or off, and seconds")
    return Linger(bool(is_on), seconds)


_VALUES: dict[Option, tuple[Callable[[Any], Any], Any]] = {
    Option.SO_REUSEADDR: (_switch, False),
    Option.TCP_NODELAY: (_switch, False),
    Option.SO_KEEPALIVE: (_switch, False),
    Option.TCP_KEEPIDLE: (_number(1, 32767), 7200),
    Option.TCP_KEEPINTVL: (_number(1, 32767), 75),
    Option.TCP_KEEPCNT: (_number(1, 127), 9),
    Option.TCP_USER_TIMEOUT: (_number(0, 1 << 31), 0),
    Option.SO_SNDBUF: (_number(1, MAX_BUFFER_BYTES), None),
    Option.SO_RCVBUF: (_number(1, MAX_BUFFER_BYTES), None),
    Option.SO_LINGER: (_linger, Linger(False, 0)),
}
"""Option -> what checks its value, and the value before it is set; None: what the TCP's profile says."""


def find_option(name: Option | str) -> Option:
    """An option by its name. Raises OptionRefused for one that means nothing here."""
    try:
        return Option(name)
    except ValueError:
        raise OptionRefused(f"option {name!r} means nothing here; there are {', '.join(o.value for o in Option)}"
                            ) from None


def checked_value(option: Option, value: Any) -> Any:
    """The value as the option keeps it. Raises OptionRefused for one that it cannot have."""
    try:
        return _VALUES[option][0](value)
    except ValueError as error:
        raise OptionRefused(f"option {option.value} takes {error}, not {value!r}") from None


def default_value(option: Option) -> Any:
    """The value that an option has before it is set."""
    return _VALUES[option][1]
