"""No DMA address lies outside of the entry that its key names."""

from __future__ import annotations

from pathlib import Path

import pytest
from amaranth.hdl import Cat, Const, Signal

from nic_model.contract import KEY_COMMIT, KEY_INDEX_BITS, KEYS_BASE, REGISTERS, KeyRight, NicConfig, Status
from rtl.keys import KeyTable
from tests.formal.claims import Claims
from tests.formal.prover import Proof, cases, check

CONFIG = NicConfig(name="proof", channels=4, vectors=1, keys=16)
ENTRY_BITS = 4


def inside_the_entry(claims: Claims, block: KeyTable) -> None:
    """An answer with OK: the piece lies inside the entry as it was last committed before the answer, or was before that
    commit; the entry is valid, of the key's generation, the channel's own, and has the right. Shown for one client, one
    question at a time, and any one entry; commits of it may come at any time."""
    m = claims.m
    index = claims.constant(ENTRY_BITS, "index")
    write = block.write.payload
    offset, at = write.address[:5], Signal(ENTRY_BITS)
    m.d.comb += at.eq(write.address[5:5 + ENTRY_BITS])
    claims.given(write.address[5 + ENTRY_BITS:] == KEYS_BASE >> 5 + ENTRY_BITS, block.write.valid)

    # Narrowed: of addresses and lengths only a few bits, low ones and those from which sums carry into the upper half.
    claims.given(write.data[6:30] == 0, block.write.valid & (offset != REGISTERS["KEY_COMMIT"].offset))
    claims.given((block.request_0.payload.offset[6:30] == 0) & (block.request_0.payload.length[6:] == 0))

    # The table as the contract describes it: words are kept, the commit stores them.
    words = {name: Signal(32, name=name) for name in
             ("KEY_ADDRESS_LO", "KEY_ADDRESS_HI", "KEY_LENGTH_LO", "KEY_LENGTH_HI")}
    for name, word in words.items():
        with m.If(block.write.valid & (offset == REGISTERS[name].offset)):
            m.d.sync += word.eq(write.data)
    commits = block.write.valid & (offset == REGISTERS["KEY_COMMIT"].offset) & (at == index)
    # The entry now, and what it was at any time since the question was asked: here, one commit back.
    entries = []
    fields = {name: Signal(f.width, name=f"now_{name}") for name, f in KEY_COMMIT.fields.items()}
    base, length = Signal(64, name="now_base"), Signal(40, name="now_length")
    before = {name: Signal(s.shape(), name=f"before_{name}") for name, s in
              (*fields.items(), ("base", base), ("length", length))}
    with m.If(commits):
        m.d.sync += [signal.eq(write.data[KEY_COMMIT.fields[name].offset:][:KEY_COMMIT.fields[name].width])
                     for name, signal in fields.items()]
        m.d.sync += [base.eq(Cat(words["KEY_ADDRESS_LO"], words["KEY_ADDRESS_HI"])),
                     length.eq(Cat(words["KEY_LENGTH_LO"], words["KEY_LENGTH_HI"])[:40])]
        m.d.sync += [before[name].eq(signal) for name, signal in fields.items()]
        m.d.sync += [before["base"].eq(base), before["length"].eq(length)]
    entries = [{**fields, "base": base, "length": length}, before]

    # One question at a time, about this entry.
    request, answer = block.request_0, block.answer_0
    asked = Signal.like(request.payload, name="asked")
    waiting, has_asked, commits_since = Signal(), Signal(), Signal(2)
    claims.stream(request, given=True)
    claims.given(~block.request_1.valid)
    claims.given(~waiting & ~has_asked, request.valid)
    claims.given(request.payload.key[:KEY_INDEX_BITS] == index, request.valid)
    with m.If(request.valid & request.ready):
        m.d.sync += [asked.eq(request.payload), waiting.eq(1), has_asked.eq(1), commits_since.eq(0)]
    with m.Elif(commits):
        m.d.sync += commits_since.eq(commits_since + 1)
    with m.If(answer.valid & answer.ready):
        m.d.sync += waiting.eq(0)
    # A commit shows in the table two cycles after its write, so one just before the question may or may not count.
    recently = claims.past(commits) | claims.past(claims.past(commits))
    claims.given(~recently, request.valid & request.ready)
    claims.given(~commits, commits_since != 0)

    def allows(entry):
        right = (entry["rights"] & Const(int(KeyRight.READ), 2)).any()
        write_right = (entry["rights"] & Const(int(KeyRight.WRITE), 2)).any()
        return Cat(
            entry["valid"], entry["generation"] == asked.key[KEY_INDEX_BITS:], entry["owner"] == asked.channel,
            (asked.write & write_right) | (~asked.write & right),
            asked.offset + asked.length <= entry["length"],
            answer.payload.address == (entry["base"] + asked.offset)[:64],
        ).all()

    is_ok = answer.valid & waiting & (answer.payload.status == Status.OK)
    claims.holds(allows(entries[0]) | ((commits_since != 0) & allows(entries[1])), is_ok)
    claims.holds(waiting, answer.valid)
    claims.stream(answer)
    claims.reached(is_ok & (asked.length > 1))


PROOFS = [
    Proof("an address lies inside its key's entry", lambda: KeyTable(CONFIG), inside_the_entry, depth=9,
          cover=9, arrays=True, long=True),
]


@pytest.mark.parametrize("proof", cases(PROOFS))
def test_keys(proof: Proof, tmp_path: Path) -> None:
    check(proof, tmp_path)
