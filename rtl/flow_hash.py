"""The hash by which connections are found: CRC-32C over the words of a flow, some of them in one step."""

# Ref: RFC 3720 §12.1 (CRC-32C, polynomial 0x1EDC6F41)

from functools import lru_cache

from amaranth.hdl import Cat, Value

WORD_BITS = 32

POLYNOMIAL = 0x1EDC6F41


def crc_of_word(crc: int, word: int) -> int:
    """The CRC behind one more 32-bit word, its bit 31 first; nothing reflected, no preset, no final complement."""
    crc ^= word
    for _ in range(WORD_BITS):
        crc = (crc << 1 ^ (POLYNOMIAL if crc >> WORD_BITS - 1 else 0)) & (1 << WORD_BITS) - 1
    return crc


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
