"""System files: what is shipped, what a user writes, and the one line that a bad file gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from cosim import cli
from cosim.errors import InputError, SystemFileError
from cosim.machine import load_machine
from cosim.systems import SYSTEMS, load_system, select_systems, system_file

DEDICATED = """\
description = "mine"
api = "memnet"

[runs_on]
bottom_half = "dedicated"
receive = "dedicated"
send = "dedicated"
transmit = "dedicated"

[dedicated]
processors = 2

[device]
rx_checksum = true
tx_checksum = true

[notification]
by = "polling"
period_us = 20
"""


def written(tmp_path: Path, text: str, name: str = "mine.toml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_every_file_of_the_folder_is_a_named_system_and_each_is_read_back() -> None:
    assert {path.stem for path in system_file("x").parent.glob("*.toml")} == set(SYSTEMS)
    for name, system in SYSTEMS.items():
        assert system.name == name
        assert system == load_system(system_file(name))


def test_a_users_system_stands_beside_named_ones(tmp_path: Path) -> None:
    path = written(tmp_path, DEDICATED)
    mine, dumb = select_systems(f"{path}, nic-dumb,{path}")
    assert (mine.name, dumb.name) == ("mine", "nic-dumb")
    assert mine.placed_on(load_machine("xeon-550-smp4")).interrupts_on == (2, 3)
    assert mine.placed_on(load_machine("xeon-550-smp4")).processes_on == (0, 1)
    with pytest.raises(InputError, match=r"^system mine needs 3 processors at least, 2 for TCP and one for processes, "
                                         r"and p2-300-smp2 has 2$"):
        mine.placed_on(load_machine("p2-300-smp2"))


@pytest.mark.parametrize(("old", "new", "said"), [
    ('api = "memnet"\n', "", "Object missing required field `api`"),
    ('api = "memnet"', 'api = "pigeons"', "Invalid enum value 'pigeons' - at `$.api`"),
    ('"mine"', '" "', "`description` must say in a line what the system is"),
    ('api = "memnet"', 'api = "memnet"\ncosts = 1', "Object contains unknown field `costs`"),
    ('api = "memnet"', 'api = "memnet"\nname = "../mine"', "`name` must be of letters, digits"),
    ('api = "memnet"', 'api = "memnet"\nprocessors = 0', "`processors` must be at least 1, not 0"),
    ('api = "memnet"', 'api = "memnet"\ninterrupts_on = [1]', "`interrupts_on` and `dedicated` exclude each other"),
    ('api = "memnet"', 'api = "memnet"\nprocesses_on = []', "`processes_on` must name a processor"),
    ('api = "memnet"', 'api = "sockets"', '`runs_on.send` is "dedicated", which needs an application that sends'),
    ('receive = "dedicated"', 'receive = "host"', "`runs_on.receive` must be where `runs_on.bottom_half` is (ded"),
    ('transmit = "dedicated"', 'transmit = "host"', "`runs_on.transmit` must be where `runs_on.send` is (dedicated)"),
    ('receive = "dedicated"', 'receive = "moon"', "Invalid enum value 'moon' - at `$.runs_on.receive`"),
    ("[dedicated]\nprocessors = 2", "", '`runs_on.bottom_half` is "dedicated", which needs a table `dedicated`'),
    ("processors = 2", "processors = 0", "`dedicated.processors` must be at least 1, not 0"),
    ("tx_checksum = true", "segmentation = true", "`device.segmentation` needs `device.tx_checksum`"),
    ("rx_checksum = true", "coalescing_usecs = 5", "`device.coalescing_usecs` needs `device.rx_checksum`"),
    ("period_us = 20", "", "`notification.period_us` must be a time of at least 0.001 for polling, not 0"),
    ('"polling"', '"interrupt"', "`notification.period_us` is for polling and soft_timers, not for interrupt"),
    ('"polling"', '"soft_timers"', "`notification.by` cannot be soft_timers on several dedicated processors"),
    ("period_us = 20", "period_us = 20\nweight = 3", "`notification.weight` is for napi, not for polling"),
    ("[device]", "[policy]\noffload_below = 0\n[device]", "`policy.offload_below` must be at least 1, not 0"),
    ("[device]", "[device", "no valid TOML"),
])
def test_a_bad_system_file_is_one_line_with_file_field_and_what_would_be_right(tmp_path: Path, old: str, new: str,
                                                                               said: str) -> None:
    assert old in DEDICATED
    path = written(tmp_path, DEDICATED.replace(old, new, 1))
    with pytest.raises(SystemFileError) as caught:
        load_system(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_dedicated_processors_that_nothing_runs_on_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, 'description = "x"\napi = "sockets"\n[dedicated]\nprocessors = 1\n')
    with pytest.raises(SystemFileError, match="`dedicated` needs parts in `runs_on`"):
        load_system(path)


@pytest.mark.parametrize(("arguments", "said"), [
    (["systems", "none"], "no system 'none': choose from uniproc, smp"),
    (["systems", "none.toml"], "none.toml: No such file or directory"),
    (["run", "--systems", "none.toml"], "none.toml: No such file or directory"),
    (["run", "--systems", ""], "no system named: choose from uniproc"),
    (["run", "--systems", "{tmp}/nic-dumb.toml,nic-dumb"], "two systems are named nic-dumb"),
    (["run", "--systems", "{tmp}/nic-dumb.toml"], "system nic-dumb needs 3 processors at least"),
    (["run", "--systems", "{tmp}/nic-dumb.toml", "--interrupts-on", "1"], "--interrupts-on: nic-dumb has processors"),
    (["run", "--systems", "uniproc", "--processes-on", "1"], "system uniproc: `processes_on` must be some of the"),
])
def test_a_system_that_cannot_run_is_one_line_and_exit_code_2(arguments: list[str], said: str, tmp_path: Path,
                                                              capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path, DEDICATED, "nic-dumb.toml")
    filled = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    out = ["--out", str(tmp_path / "out"), "--engine", "model"] if filled[0] == "run" else []
    assert cli.run([*filled, *out]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.count("\n") == 1


def test_systems_are_listed_with_what_runs_where_and_shown_with_their_file(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["systems"]) == 0
    listed = capsys.readouterr().out
    assert all(f"| {name} " in listed for name in SYSTEMS)
    assert cli.run(["systems", "nic-tso"]) == 0
    assert system_file("nic-tso").read_text() in capsys.readouterr().out
    path = written(tmp_path, DEDICATED)
    assert cli.run(["systems", str(path)]) == 0
    shown = capsys.readouterr().out
    assert DEDICATED in shown
    row = next(line for line in shown.splitlines() if "| mine" in line)
    assert [cell.strip() for cell in row.split("|")[1:-1]] == [
        "mine", *["dedicated"] * 4, "all but 2", "polling, 20 us", "sums", "MemNet"]
