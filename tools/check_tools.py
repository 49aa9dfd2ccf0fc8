"""Looks for what `make setup` cannot install itself. Prints one line for each missing thing, with what to install.

Runs before there is an environment: the standard library only.
"""

import ctypes
import ctypes.util
import importlib.util
import shutil
import sys
import sysconfig
from pathlib import Path


def missing():
    """One line for each thing that is not there."""
    if sys.version_info[:2] < (3, 11):  # noqa: UP036 (what `make setup` is run with may be older)
        yield f"Python 3.11 is needed, this is {sys.version.split()[0]}: install python3.11, or set PYTHON=..."
        return
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        yield "Python's venv is missing: install python3-venv"
    if not has_shared_libpython(version):
        yield f"libpython{version} is missing, which cocotb embeds: install libpython{version}"
    for program, package in (("g++", "g++"), ("make", "make"), ("perl", "perl")):
        if shutil.which(program) is None:
            yield f"{program} is missing: install {package}"


def has_shared_libpython(version):
    """Whether this Python's shared library can be loaded."""
    names = {sysconfig.get_config_var("INSTSONAME"), f"libpython{version}.so.1.0",
             ctypes.util.find_library(f"python{version}")}
    folders = ["", *filter(None, (sysconfig.get_config_var("LIBDIR"), str(Path(sys.base_prefix) / "lib")))]
    for name in filter(None, names):
        for folder in folders:
            try:
                ctypes.CDLL(str(Path(folder) / name) if folder else name)
            except OSError:
                continue
            return True
    return False


if __name__ == "__main__":
    lines = list(missing())
    for line in lines:
        sys.stderr.write(f"memnic setup: {line}\n")
    sys.exit(2 if lines else 0)
