"""Simulated time bound to a clock that the test moves: never ahead, behind for good, asleep when nothing happens."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator

import pytest

from cosim.tap.real_time import LONGEST_WAIT_PS, REST_PS, SHORTEST_WAIT_PS, SLICE_PS, RealClock, RealTime
from host_driver.runtime import Kernel

MS = 1_000_000_000
"""In picoseconds."""


class MovedClock(RealClock):
    """Real time that moves by what is waited, and by `work_ns` for each look: how slow the simulation is."""

    def __init__(self) -> None:
        self.ns = 0
        self.work_ns = 0
        self.waits: list[int] = []
        self.arrivals: list[tuple[int, socket.socket, bytes]] = []
        """(time, file, frame) of what the kernel will send."""

    def now_ns(self) -> int:
        self.ns += self.work_ns
        return self.ns

    def wait(self, files: Iterable[int], duration_ns: int) -> None:
        self.waits.append(duration_ns)
        until = self.ns + duration_ns
        if self.arrivals and self.arrivals[0][0] <= until:
            at, sender, frame = self.arrivals.pop(0)
            self.ns = max(self.ns, at)
            sender.send(frame)
        else:
            self.ns = until


class Net:
    def __init__(self) -> None:
        self.kernel, self.clock = Kernel(), MovedClock()
        self.real_time = RealTime(self.kernel, clock=self.clock)
        self.outside, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.file = inside.detach()
        os.set_blocking(self.file, False)
        self.arrived: list[tuple[int, int, bytes]] = []
        self.send = self.real_time.add(self.file, self._take)
        self.real_time.start()

    def _take(self, frame: bytes) -> None:
        self.arrived.append((self.kernel.now, self.clock.ns * 1000, frame))

    def run_for(self, simulated_ps: int) -> None:
        self.kernel.run_until(self.kernel.now + simulated_ps)


@pytest.fixture
def net() -> Iterator[Net]:
    made = Net()
    yield made
    os.close(made.file)
    made.outside.close()


def test_a_quick_simulation_waits_for_real_time_while_frames_move(net: Net) -> None:
    for number in range(100):
        net.kernel.call_at(number * MS, lambda: net.send(b"frame"))
    while net.kernel.now < 100 * MS:
        net.run_for(SLICE_PS)
        assert net.kernel.now - net.clock.ns * 1000 <= SHORTEST_WAIT_PS + 2 * SLICE_PS
    assert net.outside.recv(100) == b"frame"


def test_a_slow_simulation_falls_behind_for_good_and_does_not_hurry_afterwards(net: Net) -> None:
    net.kernel.call_at(0, lambda: net.send(b"frame"))
    net.clock.work_ns = 500_000  # five times as long as a slice
    net.run_for(REST_PS - SLICE_PS)
    behind_ps = net.clock.ns * 1000 - net.kernel.now
    assert behind_ps > 4 * REST_PS
    assert net.real_time.behind_ps > behind_ps // 2
    net.clock.work_ns = 0
    began_ps, began_ns = net.kernel.now, net.clock.ns
    while net.kernel.now < began_ps + 300 * MS:
        net.run_for(SLICE_PS)
    # 300 ms of simulated time took as much of real time: nothing was made up for.
    assert (net.clock.ns - began_ns) * 1000 >= 300 * MS - SHORTEST_WAIT_PS - LONGEST_WAIT_PS


def test_at_rest_it_sleeps_until_the_next_deadline_and_no_longer(net: Net) -> None:
    fired: list[tuple[int, int]] = []
    net.kernel.call_at(200 * MS + 7, lambda: fired.append((net.kernel.now, net.clock.ns * 1000)))
    net.run_for(250 * MS)
    (simulated_ps, real_ps), = fired
    assert simulated_ps == 200 * MS + 7
    assert real_ps >= 200 * MS - SHORTEST_WAIT_PS
    # Behind the rest of 2 ms in slices there were some long waits, and behind the deadline the same.
    assert len(net.clock.waits) < 20


def test_the_ticks_of_a_clock_do_not_keep_it_awake_and_what_follows_one_does(net: Net) -> None:
    moved = 0

    def tick() -> None:
        net.kernel.call_at(net.kernel.now + MS, tick)

    def act() -> None:
        nonlocal moved
        moved += 1

    net.real_time.activity = lambda: moved
    tick()
    net.run_for(5 * MS)
    before = len(net.clock.waits)
    net.run_for(100 * MS)
    assert len(net.clock.waits) - before <= 102, "a wait for each tick, and no slices of 100 us"
    net.kernel.call_at(net.kernel.now + 1, act)
    net.run_for(MS // 10)
    before = len(net.clock.waits)
    net.run_for(MS)
    assert len(net.clock.waits) - before <= 1, "slices, in which time goes on"


def test_a_frame_ends_the_sleep_and_finds_both_clocks_at_one_place(net: Net) -> None:
    net.clock.arrivals.append((33_000_000, net.outside, b"knock"))
    net.run_for(100 * MS)
    (simulated_ps, real_ps, frame), = net.arrived
    assert frame == b"knock"
    assert abs(simulated_ps - 33 * MS) <= SHORTEST_WAIT_PS
    assert real_ps >= 33 * MS


def test_a_file_that_takes_nothing_is_counted(net: Net) -> None:
    while net.real_time.unsent_frames == 0:
        net.send(bytes(1000))
    assert len(net.outside.recv(2000)) == 1000


def test_stopped_it_ticks_no_more(net: Net) -> None:
    net.real_time.stop()
    net.run_for(100 * MS)
    assert net.kernel.next_time() is None
