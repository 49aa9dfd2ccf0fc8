"""`make mutation`: how many mutants of each block the suite kills, and which survive.

Each mutant runs in a process of its own, case after case, until one finds it: by a wrong result, by a run that cannot
go on or takes too long, by a crash. What is known is kept in `build/mutation`, so that an interrupted run goes on where
it was: killed stays killed while the RTL is the same; who survived runs again when the tests have changed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import resource
import selectors
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import msgspec

from cosim.benches.cycles import LoadFailed
from cosim.engines.base import RunError
from host_driver.nic import DeviceError
from host_driver.runtime import TaskFailed
from tests.device.rig import CaseFailed
from tests.explanations import Explanations
from tests.mutation.cases import Case, all_cases
from tests.mutation.mutants import BLOCKS, ROOT, SELECTOR, Mutant, build

KEPT = ROOT / "build" / "mutation"
EXPLAINED = Path(__file__).parent / "survivors.toml"

LEAST_PERCENT, LEAST_MUTANTS = 90, 50
"""Of each block, of those that may do something else than the device."""

PROCESSOR_S = 180
"""Of all cases of a mutant, ten times what they need. Cycles end what hangs; this is for what loops outside of
simulated time."""


class Verdict(NamedTuple):
    """What came of a mutant."""

    mutant: int
    killed_by: str
    """Case and what it found; empty for a survivor."""
    tests: str
    """Digest of the tests that it ran."""


def tests_key() -> str:
    """Changes with the tests."""
    digest = hashlib.sha256()
    for path in sorted([*(ROOT / "tests" / "device").glob("*.py"), *Path(__file__).parent.glob("*.py"),
                        *(ROOT / "nic_model").rglob("*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def judge(cases: list[Case], library: Path) -> str:
    """In the mutant's process: the first case that finds it, and what."""
    for case in cases:
        try:
            case.check(library)
        except (AssertionError, CaseFailed, DeviceError, RunError, TaskFailed, LoadFailed, ArithmeticError,
                LookupError, ValueError) as error:
            said = str(error) or traceback.format_exception_only(error)[0]
            return f"{case.name}: {type(error).__name__}: {said.splitlines()[0][:200] if said.strip() else ''}"
    return ""


class Child(NamedTuple):
    """A process with a mutant."""

    mutant: int
    pid: int
    pipe: int


def start(mutant: int, cases: list[Case], library: Path) -> Child:
    """Fork a process that writes into a pipe what `judge` says."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.close(reader)
            os.environ[SELECTOR] = str(mutant)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_S, PROCESSOR_S + 5))
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                said = judge(cases, library)
            os.write(writer, b"=" + said.encode())
            status = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writer)
    return Child(mutant, pid, reader)


def finish(child: Child) -> str:
    """What killed it, once its pipe can be read. Raises RuntimeError for what is no mutant's fault."""
    said = b""
    while part := os.read(child.pipe, 1 << 16):
        said += part
    os.close(child.pipe)
    _, status = os.waitpid(child.pid, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
        return f"processor time: not done after {PROCESSOR_S} s"
    if os.WIFSIGNALED(status):
        return f"crash: {signal.Signals(os.WTERMSIG(status)).name}"
    if not said.startswith(b"="):
        raise RuntimeError(f"mutant {child.mutant}: the tests themselves failed, and not the device; see above")
    return said[1:].decode()


def learn(cases: list[Case], library: Path) -> None:
    """All cases over the device as it is."""
    os.environ[SELECTOR] = "0"
    for number, case in enumerate(cases, 1):
        began = time.monotonic()
        case.learn(library)
        print(f"  {number} of {len(cases)}: {case.name}, {time.monotonic() - began:.1f} s", flush=True)


def decide(todo: list[Mutant], cases: list[Case], library: Path, jobs: int, log: Path, key: str) -> dict[int, Verdict]:
    """Run mutants, most deadly cases of their block first, and append what comes of each to the log."""
    verdicts: dict[int, Verdict] = {}
    kills: dict[str, Counter[str]] = {block: Counter() for block in BLOCKS}
    running: dict[int, Child] = {}
    blocks = {mutant.number: mutant.block for mutant in todo}
    place = {mutant.number: [each.number for each in todo if each.block == mutant.block].index(mutant.number)
             for mutant in todo}
    # One of each block in turn, so that half of a run says something of all.
    waiting = sorted(todo, key=lambda mutant: -place[mutant.number])
    began = time.monotonic()
    with selectors.DefaultSelector() as selector, log.open("a") as kept:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    mutant = waiting.pop()
                    block, way = kills[mutant.block], BLOCKS[mutant.block].way
                    mine = sorted((case for case in cases if case.judges(way)), key=lambda case: -block[case.name])
                    child = start(mutant.number, mine, library)
                    running[child.pipe] = child
                    selector.register(child.pipe, selectors.EVENT_READ)
                ready = [event.fd for event, _ in selector.select(1.0)]
                for child in list(running.values()):
                    if child.pipe not in ready:
                        continue
                    selector.unregister(child.pipe)
                    del running[child.pipe]
                    killed_by = finish(child)
                    kills[blocks[child.mutant]][killed_by.partition(":")[0]] += 1
                    verdicts[child.mutant] = Verdict(child.mutant, killed_by, key)
                    kept.write(msgspec.json.encode(verdicts[child.mutant]).decode() + "\n")
                    kept.flush()
                    left = (time.monotonic() - began) / len(verdicts) * (len(todo) - len(verdicts))
                    print(f"  {len(verdicts)} of {len(todo)}, {left / 60:.0f} min left: {blocks[child.mutant]} "
                          f"{child.mutant}: {killed_by[:100] or 'survives'}", flush=True)
        finally:
            for child in running.values():
                os.kill(child.pid, signal.SIGKILL)
                os.waitpid(child.pid, 0)
    return verdicts


def tell(mutants: list[Mutant], verdicts: dict[int, Verdict]) -> bool:
    """Print the table and the survivors; whether the bar is reached."""
    explanations = Explanations(EXPLAINED)

    def same(mutant: Mutant) -> bool:
        found = explanations.find(mutant.block, mutant.statement, mutant.change)
        return found is not None and found.same and not verdicts[mutant.number].killed_by

    print(f"\n{'block':12} mutants    same  killed  % of those that differ")
    good = True
    for block in BLOCKS:
        mine = [mutant for mutant in mutants if mutant.block == block and mutant.number in verdicts]
        killed = sum(bool(verdicts[mutant.number].killed_by) for mutant in mine)
        alike = sum(same(mutant) for mutant in mine)
        differ = len(mine) - alike
        percent = 100 * killed / differ if differ else 0.0
        good &= percent >= LEAST_PERCENT and differ >= LEAST_MUTANTS
        print(f"{block:12} {len(mine):7} {alike:7} {killed:7} {percent:7.1f}"
              f"{'' if percent >= LEAST_PERCENT else '  too few'}")
    ways = Counter(next((way for way in ("processor time", "crash") if verdict.killed_by.startswith(way)), "a case")
                   for verdict in verdicts.values() if verdict.killed_by)
    print("killed by " + ", ".join(f"{way}: {count}" for way, count in sorted(ways.items())))
    survivors = [mutant for mutant in mutants if mutant.number in verdicts and not verdicts[mutant.number].killed_by]
    for mutant in survivors:
        found = explanations.find(mutant.block, mutant.statement, mutant.change)
        why = ("Does the same. " if found.same else "") + found.why if found else ""
        print(f"\n{mutant.block} {mutant.number} survives: {mutant.change} of {mutant.cell}\n"
              f"    {mutant.source or 'no source line'}: {mutant.statement}\n"
              f"    {why or 'NOT EXPLAINED in ' + EXPLAINED.name}")
    return good


def main() -> int:
    parser = argparse.ArgumentParser(prog="make mutation", description=__doc__)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time")
    parser.add_argument("--blocks", default=",".join(BLOCKS), help="which blocks, by comma")
    parser.add_argument("--survivors", action="store_true", help="only print what is known")
    options = parser.parse_args()
    wanted = options.blocks.split(",")
    if unknown := set(wanted) - set(BLOCKS):
        parser.error(f"--blocks: {', '.join(sorted(unknown))} is none of {', '.join(BLOCKS)}")
    built, key = build(), tests_key()
    KEPT.mkdir(parents=True, exist_ok=True)
    log = KEPT / f"{built.key}.jsonl"
    verdicts: dict[int, Verdict] = {}
    if log.is_file():
        for line in log.read_text().splitlines():
            verdict = msgspec.json.decode(line, type=Verdict)
            verdicts[verdict.mutant] = verdict
    mutants = [mutant for mutant in built.mutants if mutant.block in wanted]
    todo = [mutant for mutant in mutants if mutant.number not in verdicts
            or (not verdicts[mutant.number].killed_by and verdicts[mutant.number].tests != key)]
    # Those that survived other tests come last.
    todo.sort(key=lambda mutant: mutant.number in verdicts)
    if todo and not options.survivors:
        print(f"{len(mutants)} mutants, {len(todo)} to run; first the device as it is", flush=True)
        cases = all_cases()
        learn(cases, built.library)
        verdicts |= decide(todo, cases, built.library, options.jobs, log, key)
    good = tell(mutants, {number: verdict for number, verdict in verdicts.items()
                          if number in {mutant.number for mutant in mutants}})
    return 0 if good or set(wanted) != set(BLOCKS) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\ninterrupted; run it again to go on")
        sys.exit(130)
