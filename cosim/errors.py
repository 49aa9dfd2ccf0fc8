"""What the user gave cannot be used."""

from __future__ import annotations


class InputError(ValueError):
    """Input that cannot be used: one line that says what, where, and what would be right. The command exits with 2."""


class MachineError(InputError):
    """A machine or application file with an unknown, missing or impossible field: names file and field."""


class SystemFileError(InputError):
    """A system file with an unknown, missing or impossible field: names file and field."""


class WorkloadError(InputError):
    """A log that cannot be read, or that has no request in it."""


class ToolError(RuntimeError):
    """A tool that memnic calls is missing, or failed: says which, and what it said."""
