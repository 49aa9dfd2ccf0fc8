"""The flow table's hash, `nic_model.contract.flow_hash`, some words in one step."""

from functools import lru_cache

from amaranth.hdl import Cat, Value

from nic_model.contract.flow_hash import WORD_BITS, crc_of_word


@lru_cache
def _taps(words: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Of each bit of the CRC behind a step of `words` words: which bits it is the sum of, as (word, bit). The CRC
    before the step counts with the first word, for it is added to that."""
    bits: list[list[tuple[int, int]]] = [[] for _ in range(WORD_BITS)]
    for word in range(words):
        for bit in range(WORD_BITS):
            crc = 0
            for n in range(words):
                crc = crc_of_word(crc, (n == word) << bit)
            for at in range(WORD_BITS):
                if crc >> at & 1:
                    bits[at].append((word, bit))
    return tuple(map(tuple, bits))


def crc_step(crc: Value, words: list[Value]) -> Value:
    """The CRC behind some more words, combinational. Words of 0 before all others change nothing."""
    words = [crc ^ words[0], *words[1:]]
    return Cat(Cat(words[word][bit] for word, bit in taps).xor() for taps in _taps(len(words)))
