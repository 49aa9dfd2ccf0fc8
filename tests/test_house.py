"""The house: which package may import what, lint and types, and that the documents speak of what is there."""

from __future__ import annotations

import ast
import itertools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from cosim import cli
from nic_model.contract import COUNTERS, REGISTERS

ROOT = Path(__file__).parents[1]
PACKAGES = ("nic_model", "rtl", "host_driver", "cosim")
NOT_OURS = {".git", ".venv", "build", "results", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache",
            ".hypothesis"}
FORMATS_AND_ARITHMETIC = ("nic_model.aggregates", "nic_model.checksum", "nic_model.icmp", "nic_model.packets",
                          "nic_model.ring", "nic_model.segmentation", "nic_model.seqnum", "nic_model.toeplitz")

ARROWS: dict[str, tuple[str, ...]] = {
    "nic_model.contract": ("nic_model.contract",),
    "nic_model": ("nic_model", "numpy", "numba"),
    "rtl": ("rtl", "nic_model.contract", "amaranth"),
    "host_driver.runtime": (),
    "host_driver": ("host_driver", "nic_model.contract", *FORMATS_AND_ARITHMETIC),
    # find_libpython comes with cocotb
    "cosim": (*PACKAGES, "amaranth", "cocotb", "cocotb_tools", "find_libpython", "msgspec", "numpy", "rich",
              "typer"),
    "cosim.engines.axi_models": ("cosim", "host_driver", "nic_model.contract", "cocotb", "cocotbext"),
}
"""Part of the project -> what it may import beside the standard library; the longest name that fits a module counts."""


# ---------------------------------------------------------------------------------------------- imports


def within(module: str, part: str) -> bool:
    return module == part or module.startswith(part + ".")


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imports(source: str, module: str, *, is_package: bool = False) -> Iterator[str]:
    """Modules that a source imports anywhere in it; of the project's packages as deep as modules go."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".") if is_package else module.split(".")[:-1]
            base = ".".join([*parents[: len(parents) + 1 - node.level], *filter(None, [node.module])]
                            ) if node.level else str(node.module)
            for alias in node.names:
                deeper = f"{base}.{alias.name}"
                yield deeper if is_module(deeper) else base


def forbidden(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """Imports of a module's source that ARROWS does not allow."""
    part = max((part for part in ARROWS if within(module, part)), key=len)
    return [name for name in imports(source, module, is_package=is_package)
            if name.partition(".")[0] not in sys.stdlib_module_names
            and not any(within(name, allowed) for allowed in ARROWS[part])]


def sources() -> list[tuple[str, Path]]:
    """(module, path) of every file of the four packages."""
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return found


def test_imports_follow_the_arrows() -> None:
    wrong = [f"{path.relative_to(ROOT)} imports {name}" for module, path in sources()
             for name in forbidden(path.read_text(encoding="utf-8"), module, is_package=path.name == "__init__.py")]
    assert wrong == []
    assert {module.partition(".")[0] for module, _ in sources()} == set(PACKAGES)


@pytest.mark.parametrize(("module", "source", "wrong"), [
    ("nic_model.contract.codes", "import numpy", ["numpy"]),
    ("nic_model.contract.codes", "from nic_model import ring", ["nic_model.ring"]),
    ("nic_model.contract.codes", "from .. import keys", ["nic_model.keys"]),
    ("nic_model.contract.codes", "from .config import NicConfig\nimport enum", []),
    ("nic_model.device", "def f():\n    import amaranth.hdl", ["amaranth.hdl"]),
    ("rtl.events", "from nic_model.events import Vector", ["nic_model.events"]),
    ("rtl.events", "from nic_model.contract.config import BURST_BYTES\nfrom amaranth.hdl import Module", []),
    ("host_driver.nic", "from nic_model.device import Device", ["nic_model.device"]),
    ("host_driver.nic", "import cosim.memory\nfrom rtl import nic", ["cosim.memory", "rtl.nic"]),
    ("host_driver.nic", "from nic_model import ring, seqnum", []),
    ("host_driver.runtime", "from host_driver import port", ["host_driver.port"]),
    ("cosim.host", "import tests.rtl, scapy.all", ["tests.rtl", "scapy.all"]),
])
def test_a_wrong_import_is_seen(module: str, source: str, wrong: list[str]) -> None:
    assert forbidden(source, module) == wrong


# ---------------------------------------------------------------------------------------------- lint and types


@pytest.mark.parametrize("tool", [("ruff", "check", "."), ("mypy",)], ids=["ruff", "mypy"])
def test_lint_and_types_are_clean(tool: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, "-m", *tool], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


# ---------------------------------------------------------------------------------------------- files


def files() -> list[Path]:
    """Every file of the project, but for what is made or installed."""
    return [path for path in sorted(ROOT.rglob("*")) if path.is_file()
            and not any(part in NOT_OURS or part.endswith(".egg-info") for part in path.relative_to(ROOT).parts)]


# In each a letter in brackets, so that this file does not hold what it looks for.
WORKPLACE = re.compile(r"/wor[k](?![\w.-])|\.\./share[d]|/tmp/brie[f]|\bissue[ ]#?\d|helper[ ]session|issues[ ]show",
                       re.IGNORECASE)


def test_no_file_names_the_place_where_it_was_written() -> None:
    found = []
    for path in files():
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if WORKPLACE.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []
    assert WORKPLACE.search("see /wor" + "k/notes, or issu" + "e 7")
    assert not WORKPLACE.search("cosim/workload.py has an issue or 2")


def test_every_requirement_is_pinned_and_hashed_and_none_has_an_address() -> None:
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    entries = [line for line in text.replace("\\\n", " ").splitlines() if not re.match(r"\s*(#|$)", line)]
    assert len(entries) > 20
    for entry in entries:
        assert re.match(r"[A-Za-z0-9_.-]+(\[[\w,-]+\])?==\S+ ", entry), f"not pinned: {entry[:60]}"
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), f"no hash: {entry[:60]}"
    assert not re.search(r"://|--index-url|--extra-index-url|--find-links|--trusted-host| @ ", text)


def dependencies() -> list[str]:
    """Requirements of pyproject.toml, as they stand there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]


def test_every_dependency_is_locked_and_has_its_reason() -> None:
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    locked = {re.sub(r"[-_.]+", "-", name).lower()
              for name in re.findall(r"^([A-Za-z0-9_.-]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)}
    for dependency in dependencies():
        at = next(n for n, line in enumerate(lines) if line.strip().startswith(f'"{dependency}",'))
        behind = lines[at].partition(f'"{dependency}",')[2]
        assert "#" in behind or lines[at - 1].strip().startswith("#"), f"no reason beside or above {dependency!r}"
        name = re.split(r"[\[<>=~! ]", dependency)[0]
        assert re.sub(r"[-_.]+", "-", name).lower() in locked, f"{name} is not in requirements.txt: make lock"


# ---------------------------------------------------------------------------------------------- documents


README = (ROOT / "README.md").read_text(encoding="utf-8")


def command_lines(text: str) -> list[list[str]]:
    """Words behind `memnic` of each command that a document shows, on a line of its own or in backticks."""
    shown = re.findall(r"^ {4}(?:\.venv/bin/)?memnic +(.*)$", text, re.MULTILINE)
    shown += re.findall(r"`(?:\.venv/bin/)?memnic +([^`]*)`", text)
    return [re.sub(r"[\[\]]", " ", line.partition("#")[0]).split() for line in shown]


def options(words: list[str]) -> set[str]:
    """All options of a command line's command, which may be one of a group."""
    command: Any = typer.main.get_command(cli.make_app())
    for word in words:
        if not hasattr(command, "commands"):
            break
        assert word in command.commands, f"there is no command {word!r} in {' '.join(words)}"
        command = command.commands[word]
    return {"--help"} | {option for parameter in command.params
                         for option in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "docs/packet_path.md", "docs/engines.md"])
def test_commands_and_options_of_the_documents_exist(name: str) -> None:
    for words in command_lines((ROOT / name).read_text(encoding="utf-8")):
        known = options(words)
        unknown = [word for word in words[1:] if word.startswith("-") and word not in known]
        assert unknown == [], f"{name}: memnic {' '.join(words)}"


def test_readme_names_every_command_and_each_has_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    commands: Any = typer.main.get_command(cli.make_app())
    assert {words[0] for words in command_lines(README)} == set(commands.commands)
    for command in commands.commands:
        assert cli.run([command, "--help"]) == 0
        assert "--help" in capsys.readouterr().out


def test_names_on_shown_command_lines_exist() -> None:
    """Values of `--systems`, `--engine` and `--device`, and the options that stand alone in backticks."""
    from cosim.engines.registry import ENGINES
    from cosim.systems import SYSTEMS
    from nic_model.contract import CONFIGS

    known = {"--systems": set(SYSTEMS), "--engine": set(ENGINES), "--device": set(CONFIGS)}
    checked = 0
    for words in command_lines(README):
        for option, value in itertools.pairwise(words):
            if option in known and not value.endswith(".toml"):
                assert set(value.split(",")) <= known[option], f"memnic {' '.join(words)}"
                checked += 1
    assert checked
    every = set().union(*(options([command]) for command in ("run", "regs", "verilog", "synth")))
    alone = {option for token in re.findall(r"`([^`]+)`", README) for option in re.findall(r"^(--[\w-]+)", token)}
    assert alone <= every, alone - every


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {name for rule in re.findall(r"^([a-z]+(?: [a-z]+)*):", makefile, re.MULTILINE) for name in rule.split()}
    named = set(re.findall(r"\bmake ([a-z]+)\b(?= {2,}#|`)", README))
    assert {"run", "test"} <= named <= targets


MADE_BY_A_RUN = {"result.json", "wire.pcapng", "wave.vcd", "memnic.v", "access.log", "SYSTEM/wire.pcapng"}
_FILE = re.compile(r"^(?P<path>[\w.-]+(?:/[\w.-]+)*\.(?:py|md|toml|txt|vcd|json|pcapng|v|log)|[\w.-]+/[\w./-]*)"
                   r"(?:::(?P<name>[\w.]+))?$")
_CODE = re.compile(r"^[A-Za-z_][\w.]*(?:\(\))?$")


def documents() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.name)
def test_files_that_a_document_names_exist(document: Path) -> None:
    """`rtl/nic.py` must be there; of `rtl/nic.py::Nic.irq`, `Nic` and `irq` must stand in that file."""
    text = document.read_text(encoding="utf-8")
    for token in re.findall(r"`([^`\n]+)`", text):
        found = _FILE.match(token)
        if found is None or found["path"] in MADE_BY_A_RUN:
            continue
        path = ROOT / found["path"]
        assert path.exists(), f"{document.name}: no {token}"
        for word in found["name"].split(".") if found["name"] else ():
            assert re.search(rf"\b{word}\b", path.read_text(encoding="utf-8")), (
                f"{document.name}: {word!r} of {token} does not stand there")


@pytest.mark.parametrize(("name", "least"), [
    ("packet_path.md", 100), ("engines.md", 10), ("tcp.md", 10), ("processors.md", 20), ("systems.md", 20)])
def test_names_in_a_document_stand_in_the_code(name: str, least: int) -> None:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    words = set(re.findall(r"\w+", "\n".join(path.read_text(encoding="utf-8") for _, path in sources())))
    words |= set(REGISTERS) | {counter.name for counter in COUNTERS}
    tokens = [token for token in re.findall(r"`([^`\n]+)`", text) if _CODE.match(token)]
    unknown = sorted({token for token in tokens for word in re.findall(r"\w+", token) if word not in words})
    assert unknown == []
    assert len(tokens) > least
    assert len(text.splitlines()) <= 200
