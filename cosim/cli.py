"""The `memnic` command: finds the commands in `cosim.commands`, and turns errors into one line and an exit code."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from typing import Any

import typer

from cosim import commands
from cosim.engines.base import RunError
from cosim.errors import InputError, ToolError

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
"""128 + SIGINT, as a shell reports it."""

_USAGE_ERROR: Any = typer.BadParameter.__bases__[0]
"""UsageError of the click that typer uses: newer versions carry their own."""


def make_app() -> typer.Typer:
    """The application with all its commands."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

    @app.callback()
    def memnic() -> None:
        """What does a server gain when its TCP/IP work leaves the host processor?"""

    for module in sorted(module.name for module in pkgutil.iter_modules(commands.__path__)):
        importlib.import_module(f"{commands.__name__}.{module}").register(app)
    return app


def main() -> None:
    """Run the command line. Exit code 0: done; 1: failed; 2: bad input; 130: interrupted."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; an error is one line on stderr, with a failing tool's own, or the
    traceback of what a peer, an application or the driver raised."""
    try:
        code = make_app()(arguments or ["--help"], prog_name="memnic", standalone_mode=False)
    except InputError as error:
        return _fail(" ".join(str(error).splitlines()), EXIT_BAD_INPUT)
    except ToolError as error:
        return _fail(str(error), EXIT_FAILED)
    except RunError as error:
        sys.stderr.write(error.trace)
        return _fail(" ".join(str(error).split()), EXIT_FAILED)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", EXIT_INTERRUPTED)
    except _USAGE_ERROR as error:
        return _fail(" ".join(error.format_message().splitlines()), EXIT_BAD_INPUT)
    return code if isinstance(code, int) else 0


def _fail(what: str, code: int) -> int:
    print("memnic:", what, file=sys.stderr)  # noqa: T201
    return code
