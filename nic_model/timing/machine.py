"""A device's stages with their state, for Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import numba
import numpy as np

from nic_model.timing import entering, rules, stages, state
from nic_model.timing.parameters import DeviceModel
from nic_model.timing.state import BusModel, MacModel


def is_plain() -> bool:
    """Whether the rules are not compiled (NUMBA_DISABLE_JIT)."""
    return bool(getattr(numba.config, "DISABLE_JIT", 0))


class Machine:
    """The stages of one device; all it does is call the rules.

    What enters goes through `ring_bell`, `arrive` and so on, each at an edge that is not before the last `advance`;
    what comes out, by `advance` and `taken`. Attributes: `p`, `s`, `q`, the records; `numbers` and `tables`, views of
    what Python looks at, by name.

    Parameters: the device, the host bus and the MAC; `buffer_bytes`, `traced` and `asks` as `state.parameters` has
    them; `specialised`, rules compiled for this device alone (`nic_model.timing.specialised`; without numba, as ever).
    """

    def __init__(self, model: DeviceModel, bus: BusModel, mac: MacModel, *, buffer_bytes: int = 2048,
                 traced: bool = False, asks: bool = False, specialised: bool = False) -> None:
        self._arrays = (state.parameters(model, bus, mac, buffer_bytes=buffer_bytes, traced=traced, asks=asks),
                        state.numbers(bus), state.queues(model))
        self.p, self.s, self.q = (array.view(np.recarray)[0] for array in self._arrays)
        _, s, q = self._arrays
        # what Python looks at often, as views: a record's own attributes are slow
        self._out, self._out_count = q["out"][0], s["out_count"].data
        self.numbers = {name: s[name] for name in state.S_LAYOUT.names or ()}
        self.tables = {name: {field: q[name][0][field] for field in q[name].dtype.names or ()}
                       for name in state.RECORDS}
        self._next_at = s["next_at"].data
        self._plain = is_plain()
        self._records: tuple[Any, ...]
        self._functions: Mapping[str, Callable[..., int]]
        if is_plain():
            self._records = self.p, self.s, self.q
            self._functions = {name: getattr(stages, name, None) or getattr(entering, name) for name in (
                "advance", "ring_bell", "push", "post_buffers", "arrive", "close_receive", "put_send", "put_piece",
                "feed")}
        elif specialised:
            from nic_model.timing.specialised import specialise

            self._records = tuple(array.ctypes.data for array in self._arrays)
            self._functions = specialise(self.p)
        else:
            from nic_model.timing.compiled import FUNCTIONS

            self._records = tuple(array.ctypes.data for array in self._arrays)
            self._functions = FUNCTIONS
        self._advance = self._functions["advance"]

    def call(self, name: str, *numbers: int) -> int:
        """Call a rule of `stages` or `entering`."""
        found = self._functions[name](*self._records, *numbers)
        if self._plain:
            self._next_at[0] = stages.next_edge(self.s)
        return found

    def advance(self, until: int) -> bool:
        """Let all stages act up to an edge; False: take what has come out, or answer what is asked, and go on."""
        return bool(self._advance(*self._records, until))

    def feed(self, rows: np.ndarray, at: int) -> int:
        """Let rows of `state.INPUT` enter, as `entering.feed` says."""
        if self._plain:
            return int(self._functions["feed"](*self._records, rows.view(np.recarray), len(rows), at))
        return int(self._functions["feed"](*self._records, rows.ctypes.data, len(rows), at))

    def next_edge(self) -> int:
        """When something happens by itself; `rules.NEVER`: not until something enters."""
        return self._next_at[0]

    def taken(self) -> list[list[int]]:
        """What has come out since the last time."""
        count = self._out_count[0]
        if not count:
            return []
        self._out_count[0] = 0
        return cast(list[list[int]], self._out[:count].tolist())

    def shares(self) -> tuple[dict[tuple[str, str], int], dict[str, int]]:
        """Cycles that each has waited for another, as `rules.WAITS` names them, and that each stage has worked. They
        are counted if the machine is `traced`."""
        waited, worked = self.q.waited.tolist(), self.q.worked.tolist()
        return dict(zip(rules.WAITS, waited, strict=True)), dict(zip(rules.BUSY, worked, strict=True))

    def taken_rows(self) -> np.ndarray:
        """The same as an array of rows, which hold until the machine goes on."""
        found = self._out[:self._out_count[0]]
        self._out_count[0] = 0
        return found
