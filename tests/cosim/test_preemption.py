"""A process that waits for packets beside one that never sleeps: what it waits for a processor, by the machine file."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from cosim.errors import MachineError
from cosim.machine import load_machine, shipped
from cosim.world import World
from host_driver.kernel_sockets import KernelSockets
from host_driver.memnet import MemNet
from tests.host_driver.worlds import MS, PORT, connected

QUESTIONS = 8
NEVER_US = 10**9


def latencies_ps(machine: str) -> list[int]:
    """How long a client waits for each byte to come back, one in 30 to 50 ms, beside a program that only computes."""
    world, rng = World(machine=machine, seed=5), random.Random(5)
    found: list[int] = []

    async def compute(memnet: MemNet) -> None:
        while True:
            memnet.account.charge("user", "memnet_call", 100)
            await memnet.account.settle()

    async def answer(memnet: MemNet) -> None:
        sockets = KernelSockets(world.server.interface, memnet.account)
        socket = await sockets.accept(sockets.listen(PORT))
        while data := await socket.read(1):
            await socket.write(data)
        await socket.close()

    async def ask(memnet: MemNet) -> None:
        socket = await connected(memnet, world)
        region = await memnet.register_mem(64)
        for number in range(QUESTIONS):
            await world.kernel.sleep(rng.randrange(30 * MS, 50 * MS))
            asked_ps = world.kernel.now
            region.view[0] = number
            await memnet.sync_send(socket, region, 0, 1)
            assert await memnet.sync_recv(socket, region, 1, 1) == 1
            assert region.view[1] == number
            found.append(world.kernel.now - asked_ps)
        await memnet.close(socket)

    world.start(world.server, compute, "computes", background=True)
    world.start(world.server, answer, "answers")
    world.start(world.client, ask, "client")
    world.run()
    return found


def like(tmp_path: Path, machine: str, margin_us: int) -> str:
    """One processor of a machine, where a process that wakes needs so much less time than the other."""
    path = tmp_path / "machine.toml"
    path.write_text(f'like = "{machine}"\nprocessors = 1\n[wakeup_preemption]\nprocess_us = {margin_us}\n'
                    f'thread_us = {margin_us}\ncredit_us = 60_000\nsource = "test"\n')
    return str(path)


def test_a_packet_is_answered_at_once_where_its_process_preempts_and_after_a_time_slice_where_not(
        tmp_path: Path) -> None:
    quantum_ps = load_machine("p2-300-smp2").quantum_us * 10**6
    preempts = latencies_ps(like(tmp_path, "p2-300-smp2", 20_000))
    waits = latencies_ps(like(tmp_path, "p2-300-smp2", NEVER_US))
    assert len(preempts) == len(waits) == QUESTIONS
    assert max(preempts) < MS
    # What is left of a quantum at a random moment.
    assert 0.3 * quantum_ps < sum(waits) / len(waits) < 0.7 * quantum_ps
    assert 0.7 * quantum_ps < max(waits) < 1.1 * quantum_ps


@pytest.mark.parametrize("machine", shipped("machines"))
def test_every_machine_says_what_its_scheduler_does(machine: str) -> None:
    preemption = load_machine(machine).wakeup_preemption
    assert preemption is not None
    assert 0 < preemption.thread_us <= preemption.process_us < preemption.credit_us


def test_a_negative_margin_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"`wakeup_preemption.process_us` must be at least 0, not -1"):
        load_machine(like(tmp_path, "p2-300-smp2", -1))
