"""The Toeplitz hash of a flow, some words a cycle."""

# Ref: Microsoft, "RSS Hashing Functions" (Windows drivers documentation)

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from nic_model.contract import FLOW_KEY_WORDS, REGISTERS, RSS_KEY_BYTES, NicConfig, steering_register
from rtl.header_fields import Flow
from rtl.interfaces import RegisterWrite, Strobe
from rtl.primitives import SmallRam

WORD_BITS = 32

WORDS_PER_CYCLE = {8: 3, 16: 3, 32: 5, 64: 9}
"""By the MAC's width in bytes: the shortest frame that has a hash (IPv4 without anything: 34 bytes) takes as many beats
as a hash takes cycles, or more. So no frame ever waits for another's hash. With 8 bytes 2 words would do, but each
frame would wait 2 cycles longer."""

_IPV4_PORTS, _IPV6_PORTS = 2, FLOW_KEY_WORDS - 1
"""The word that has the ports."""

# `addresses`: hash of the addresses alone; `ports`: what the ports change in it; `flow`: the hash of both.
Hashes = data.StructLayout({"addresses": WORD_BITS, "ports": WORD_BITS, "flow": WORD_BITS})


def hash_steps(config: NicConfig) -> int:
    """Cycles in which words of a flow are hashed."""
    return -(-FLOW_KEY_WORDS // WORDS_PER_CYCLE[config.mac_bytes])


def hash_latency(config: NicConfig) -> int:
    """Cycles from a flow to its hashes."""
    return hash_steps(config) + 2


class Toeplitz(wiring.Component):
    """Hashes the words of a flow with the key of the RSS_KEY registers.

    Enters: `flow`, at most one in `hash_steps` cycles. Leaves: `hashes`, right in the cycle `hash_latency` cycles
    behind the flow's; with one flow after the other, in no later one.

    The hash is linear: of each bit that is 1 it adds 32 bits of the key, modulo 2. So the words may be taken in any
    groups, and the part of the ports may be kept apart.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device; `mac_bytes` is used.

    Members
    -------
    write : register writes. While the key is written, a hash may be made of parts of both keys.
    flow : what is hashed.
    hashes : see above.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        super().__init__({
            "write": In(Strobe(RegisterWrite)), "flow": In(Strobe(Flow)), "hashes": Out(Hashes), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        steps, words = hash_steps(self.config), WORDS_PER_CYCLE[self.config.mac_bytes]
        flow = self.flow.payload

        # The words that are left, and the step that the next ones take part in.
        rest, ipv6 = Signal(WORD_BITS * words * steps), Signal()
        step, working = Signal(range(max(steps, 2))), Signal()
        next_step, steps_on = Signal.like(step), Signal()
        m.d.comb += [
            next_step.eq(Mux(self.flow.valid, 0, step + 1)), steps_on.eq(self.flow.valid | working),
        ]
        with m.If(steps_on):
            m.d.sync += [step.eq(next_step), working.eq(self.flow.valid | (step != steps - 1))]
        with m.If(self.flow.valid):
            m.d.sync += [rest.eq(Cat(flow[f"word_{n}"] for n in range(FLOW_KEY_WORDS))), ipv6.eq(flow.ipv6)]
        with m.Elif(working):
            m.d.sync += rest.eq(rest >> WORD_BITS * words)

        # Each word's part.
        key, sets_key = self._key(m, next_step, steps_on, steps, words)
        parts = [Signal(WORD_BITS, name=f"part_{n}") for n in range(words)]
        has_ports = Signal(words)
        parted, is_first = Signal(), Signal()
        m.d.sync += parted.eq(working)
        with m.If(working):
            m.d.sync += is_first.eq(step == 0)
            for n, part in enumerate(parts):
                word = rest.word_select(n, WORD_BITS)
                pair = Cat(key[n + 1], key[n])  # the most significant bit of `pair` is the key's first
                # Bit i of the word adds the key's 32 bits from there on; bit n of the sum is what they all add to it.
                m.d.sync += part.eq(Cat((word & pair[n + 1:n + 1 + WORD_BITS]).xor() for n in range(WORD_BITS)))
                places = [(version, at // words) for version, at in ((0, _IPV4_PORTS), (1, _IPV6_PORTS))
                          if at % words == n]
                m.d.sync += has_ports[n].eq(Cat((step == at) & (ipv6 == version) for version, at in places).any()
                                            if places else 0)

        # Their sums.
        hashes = self.hashes
        of_addresses = _xor_all([part & ~has_ports[n].replicate(WORD_BITS) for n, part in enumerate(parts)])
        of_ports = _xor_all([part & has_ports[n].replicate(WORD_BITS) for n, part in enumerate(parts)])
        with m.If(parted):
            m.d.sync += [
                hashes.addresses.eq(Mux(is_first, 0, hashes.addresses) ^ of_addresses),
                hashes.ports.eq(Mux(is_first, 0, hashes.ports) ^ of_ports),
                hashes.flow.eq(Mux(is_first, 0, hashes.flow) ^ _xor_all(parts)),
            ]
        m.d.comb += self.active.eq(self.flow.valid | working | parted | sets_key)
        return m

    def _key(self, m, step, steps_on, steps, words):
        """The key's words that the next step needs, one more than it hashes, in registers: from memories, each of which
        has the words that stand at its place in some step. They hold the difference from the reset value, so that an
        empty memory holds Microsoft's key."""
        write = self.write.payload
        sets = []
        found = []
        for place in range(words + 1):
            m.submodules[f"key_{place}"] = memory = SmallRam(shape=WORD_BITS, depth=max(steps, 2))
            reset = Signal(WORD_BITS, name=f"key_{place}_reset")
            m.d.comb += memory.read_addr.eq(step)
            stores = []
            for at in range(steps):
                number = at * words + place
                if number >= RSS_KEY_BYTES // 4:
                    continue
                name = f"RSS_KEY_{number}"
                default = _swapped(Const(REGISTERS[name].reset, WORD_BITS))
                with m.If(step == at):
                    m.d.comb += reset.eq(default)
                here = self.write.valid & (write.address == steering_register(name))
                with m.If(here):
                    m.d.comb += [memory.write_addr.eq(at), memory.write_data.eq(_swapped(write.data) ^ default)]
                stores.append(here)
            m.d.comb += memory.write_en.eq(Cat(stores).any())
            sets += stores
            found.append(Signal(WORD_BITS, name=f"key_{place}_word"))
            with m.If(steps_on):
                m.d.sync += found[place].eq(memory.read_data ^ reset)
        return found, Cat(sets).any()


def _swapped(word):
    """Four bytes in the other order: registers have the key's first byte lowest, here it is the highest."""
    return Cat(word[at:at + 8] for at in range(WORD_BITS - 8, -1, -8))


def _xor_all(terms):
    """Their sum modulo 2, as a balanced tree."""
    terms = list(terms)
    while len(terms) > 1:
        terms = [terms[n] ^ terms[n + 1] if n + 1 < len(terms) else terms[n] for n in range(0, len(terms), 2)]
    return terms[0]
