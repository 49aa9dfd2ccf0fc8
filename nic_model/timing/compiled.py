"""The timing rules as functions that Python may call at little cost: the records go as addresses.

(A call of a function that numba has compiled looks up the type of each record that it is given, which for records of so
many fields takes longer than the work.) Importing this compiles, or finds what was compiled before.
"""

from __future__ import annotations

from typing import Any

import numba
from numba import carray, cfunc, types

from nic_model.timing import entering, rules, stages, state

_P, _S, _Q = (types.CPointer(numba.from_dtype(layout)) for layout in (state.P_LAYOUT, state.S_LAYOUT, state.Q_LAYOUT))
_ROWS = types.CPointer(numba.from_dtype(state.INPUT))
_INT = types.int64


@rules.rule
def _look(s: Any) -> int:
    """Note when something happens next."""
    carray(s, 1)[0].next_at = stages.next_edge(carray(s, 1)[0])
    return 0


@cfunc(_INT(_P, _S, _Q, _INT), cache=True)
def _advance(p: Any, s: Any, q: Any, until: int) -> int:
    return int(stages.advance(carray(p, 1)[0], carray(s, 1)[0], carray(q, 1)[0], until))


@cfunc(_INT(_P, _S, _Q, _INT, _INT, _INT), cache=True)
def _ring_bell(p: Any, s: Any, q: Any, edge: int, channel: int, slots: int) -> int:
    stages.ring_bell(carray(p, 1)[0], carray(s, 1)[0], carray(q, 1)[0], edge, channel, slots)
    return _look(s)


@cfunc(_INT(_P, _S, _Q, _INT, _INT, _INT), cache=True)
def _push(p: Any, s: Any, q: Any, edge: int, channel: int, slots: int) -> int:
    stages.push(carray(p, 1)[0], carray(s, 1)[0], carray(q, 1)[0], edge, channel, slots)
    return _look(s)


@cfunc(_INT(_P, _S, _Q, _INT, _INT, _INT), cache=True)
def _post_buffers(p: Any, s: Any, q: Any, edge: int, channel: int, count: int) -> int:
    stages.post_buffers(carray(p, 1)[0], carray(s, 1)[0], carray(q, 1)[0], edge, channel, count)
    return _look(s)


@cfunc(_INT(_P, _S, _Q, _INT, _INT, _INT, _INT), cache=True)
def _arrive(p: Any, s: Any, q: Any, edge: int, channel: int, length: int, number: int) -> int:
    first = int(stages.arrive(carray(p, 1)[0], carray(s, 1)[0], carray(q, 1)[0], edge, channel, length, number))
    _look(s)
    return first


@cfunc(_INT(_P, _S, _Q, _INT, _INT, _INT, _INT), cache=True)
def _close_receive(p: Any, s: Any, q: Any, edge: int, channel: int, number: int, tells: int) -> int:
    stages.close_receive(carray(p, 1)[0], carray(s, 1)[0], carray(q, 1)[0], edge, channel, number, tells)
    return _look(s)


@cfunc(_INT(_P, _S, _Q, _INT, _INT, _INT, _INT, _INT, _INT, _INT), cache=True)
def _put_send(p: Any, s: Any, q: Any, channel: int, payload: int, mss: int, inline: int, sums: int, slots: int,
              complete: int) -> int:
    return int(entering.put_send(carray(p, 1)[0], carray(s, 1)[0], carray(q, 1)[0], channel, payload, mss, inline, sums,
                               slots, complete))


@cfunc(_INT(_P, _S, _Q, _INT, _INT, _INT), cache=True)
def _put_piece(p: Any, s: Any, q: Any, channel: int, address: int, length: int) -> int:
    entering.put_piece(carray(p, 1)[0], carray(s, 1)[0], carray(q, 1)[0], channel, address, length)
    return 0


@cfunc(_INT(_P, _S, _Q, _ROWS, _INT, _INT), cache=True)
def _feed(p: Any, s: Any, q: Any, rows: Any, count: int, at: int) -> int:
    return int(entering.feed(carray(p, 1)[0], carray(s, 1)[0], carray(q, 1)[0], carray(rows, count), count, at))


FUNCTIONS = {
    "advance": _advance.ctypes, "ring_bell": _ring_bell.ctypes, "push": _push.ctypes,
    "post_buffers": _post_buffers.ctypes, "arrive": _arrive.ctypes, "close_receive": _close_receive.ctypes,
    "put_send": _put_send.ctypes, "put_piece": _put_piece.ctypes, "feed": _feed.ctypes,
}
"""Name -> function of the addresses of `p`, `s`, `q` and numbers."""
