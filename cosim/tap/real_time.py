"""Simulated time bound to real time, and the files (TAP interfaces) whose frames come and go in real time.

The rule: simulated time is never ahead of real time, but for a millisecond. Where the simulation is quicker it waits;
where it is slower it falls behind for good, and never makes up for it. So no timer of the simulated side is early by
the kernel's clock: a retransmission time-out of 200 ms takes 200 ms of the kernel's at least, whose answers it waits
for. The kernel, for its part, sees a peer that is slow and consistent: its round-trip times grow with the simulation's
slowness, and so do its time-outs.

While frames move, a tick comes each `SLICE_PS` of simulated time: it takes the frames that the kernel has sent, and
waits if the simulation is ahead. When nothing has moved for `REST_PS` the device is at rest too (no bus access and no
moderation takes so long), so the tick waits *before* time moves, until a frame comes or the host has something to do:
an idle simulation costs nothing, and a frame that comes finds both clocks at the same place.
"""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Callable, Iterable

from host_driver.runtime import Kernel
from nic_model.contract import MAX_FRAME_BYTES

SLICE_PS = 100_000_000
"""Simulated time between two looks while frames move: 100 us, a fraction of any TCP timer."""

REST_PS = 2_000_000_000
"""2 ms: ten times the longest moderation of the shipped machines."""

SHORTEST_WAIT_PS = 1_000_000_000
"""Simulated time may be ahead by 1 ms: shorter waits cost more than they are worth."""

LONGEST_WAIT_PS = 50_000_000_000
"""50 ms: so that an interrupt from the keyboard is heard under a simulator, too."""

_FRAMES_AT_ONCE = 256
_PS_PER_NS = 1000
_NS_PER_S = 1_000_000_000


class RealClock:
    """The computer's clock."""

    def now_ns(self) -> int:
        """Since some beginning."""
        return time.monotonic_ns()

    def wait(self, files: Iterable[int], duration_ns: int) -> None:
        """Return when a file can be read, or after so long."""
        select.select(list(files), (), (), duration_ns / _NS_PER_S)


class RealTime:
    """Binds a kernel's clock to real time. `add` files before `start`.

    Parameters: `kernel`; `looked`, called with each tick; `clock`, which tells real time. Attributes: `behind_ps`, what
    simulated time has fallen behind so far; `unsent_frames`, that an interface which is down did not take; `activity`,
    of a simulation in which something is always due: a number that changes when it is more than a clock's ticking.
    """

    def __init__(self, kernel: Kernel, looked: Callable[[], None] | None = None,
                 clock: RealClock | None = None) -> None:
        self.behind_ps = 0
        self.unsent_frames = 0
        self.activity: Callable[[], int] | None = None
        self._kernel = kernel
        self._looked = looked
        self._clock = clock or RealClock()
        self._files: dict[int, Callable[[bytes], None]] = {}
        self._real_ns = 0
        self._simulated_ps = 0
        self._moved_ps = 0
        """When something moved last."""
        self._activity = 0
        self._stopped = False

    def add(self, file: int, arrived: Callable[[bytes], None]) -> Callable[[bytes], None]:
        """Frames that come from a file go to `arrived`; the result sends one."""
        self._files[file] = arrived

        def send(frame: bytes) -> None:
            self._moved_ps = self._kernel.now
            try:
                os.write(file, frame)
            except OSError as error:
                if error.errno not in (errno.EIO, errno.ENETDOWN, errno.EAGAIN):
                    raise
                self.unsent_frames += 1

        return send

    def start(self) -> None:
        """Both clocks run from now on."""
        self._real_ns, self._simulated_ps = self._clock.now_ns(), self._kernel.now
        self._moved_ps = self._kernel.now
        self._kernel.call_soon(self._tick)

    def stop(self) -> None:
        """Let the clocks part."""
        self._stopped = True

    def _tick(self) -> None:
        kernel = self._kernel
        if self._stopped:
            return
        self._read()
        self._note_activity()
        if self._looked is not None:
            self._looked()
        ahead_ps = self._ahead_ps()
        if ahead_ps < 0:
            self.behind_ps -= ahead_ps
            self._simulated_ps += ahead_ps
            ahead_ps = 0
        if kernel.now - self._moved_ps < REST_PS:
            if ahead_ps > SHORTEST_WAIT_PS:
                self._clock.wait(self._files, ahead_ps // _PS_PER_NS)
            kernel.call_at(kernel.now + SLICE_PS, self._tick)
            return
        due = kernel.next_time()
        longest_ps = LONGEST_WAIT_PS if due is None else min(due - kernel.now, LONGEST_WAIT_PS)
        self._clock.wait(self._files, (ahead_ps + longest_ps) // _PS_PER_NS)
        passed_ps = min(max(-self._ahead_ps(), 1), longest_ps)
        if self.activity is None and due is not None and kernel.now + passed_ps >= due:
            # The host acts, and the device after it.
            self._moved_ps = due
        kernel.call_at(kernel.now + passed_ps, self._tick)

    def _note_activity(self) -> None:
        if self.activity is not None and (activity := self.activity()) != self._activity:
            self._activity = activity
            self._moved_ps = self._kernel.now

    def _ahead_ps(self) -> int:
        """Simulated time less real time."""
        real_ps = (self._clock.now_ns() - self._real_ns) * _PS_PER_NS
        return self._kernel.now - self._simulated_ps - real_ps

    def _read(self) -> None:
        """Take what has come, of each file a number of frames at most."""
        for file, arrived in self._files.items():
            for _ in range(_FRAMES_AT_ONCE):
                try:
                    frame = os.read(file, MAX_FRAME_BYTES + 64)
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno in (errno.EIO, errno.ENETDOWN):
                        break
                    raise
                self._moved_ps = self._kernel.now
                arrived(frame)
