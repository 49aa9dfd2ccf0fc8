"""Which connection a received segment belongs to: an exact match of addresses and ports."""

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import ceil_log2, exact_log2

from nic_model.contract import FLOW_KEY_WORDS, register
from nic_model.contract.flow_hash import WORD_BITS
from rtl.flow_hash import crc_step
from rtl.interfaces import CHANNEL_BITS, RegisterWrite, Strobe
from rtl.primitives import Ram, SmallRam
from rtl.small_fifo import SmallFifo

TABLES = 2
SLOTS_PER_BUCKET = 4
FINGERPRINT_BITS = 16
FINGERPRINT_SHIFT = WORD_BITS - FINGERPRINT_BITS

IPV4_FLOW_WORDS = 3
"""Words of an IPv4 flow: two addresses, and both ports in one."""

GENERATION_BITS = 8

QUEUE_PLACES = 16
"""Keys that may be between `lookup` and `answer`."""


class FlowOrder(enum.Enum, shape=2):  # type: ignore[call-arg]
    """What an order does."""

    CHECK = 0
    """Nothing but say whether the flow has that generation, and its channel."""
    ADD = 1
    DELETE = 2


class FlowStatus(enum.Enum, shape=3):  # type: ignore[call-arg]
    """What became of an order."""

    OK = 0
    STALE = 1
    """CHECK and DELETE: no flow of that number, or of another generation."""
    IN_USE = 2
    """ADD: there is a flow of that number."""
    PRESENT = 3
    """ADD: there is a flow with that key."""
    FULL = 4
    """ADD: each of its buckets is full, or has a flow with the same fingerprint."""


def flow_key(words: int) -> data.StructLayout:
    """What is looked for, as `rtl.header_fields.Flow` has it: words behind those of an IPv4 key are 0 in one."""
    return data.StructLayout({**{f"word_{n}": WORD_BITS for n in range(words)}, "ipv6": 1})


def flow_order(flows: int, words: int = FLOW_KEY_WORDS) -> data.StructLayout:
    """An order of a table with so many flows: ADD has a key and a channel."""
    return data.StructLayout({
        "order": FlowOrder, "flow": exact_log2(flows), "generation": GENERATION_BITS, "channel": CHANNEL_BITS,
        "key": flow_key(words),
    })


# What became of an order; after a CHECK or DELETE that is OK, the flow's channel.
FlowDone = data.StructLayout({"status": FlowStatus, "channel": CHANNEL_BITS})


class FlowTable(wiring.Component):
    """Finds flows by their key, and takes them in and out while lookups go on.

    Enters: `lookup`, keys, and `order`, what shall be found. Leaves: for each lookup an `answer`, in order; for each
    order a `done`.

    A key has two buckets, one in each table, by two fields of its hash (`nic_model.contract.flow_hash`), each with four
    slots of a 16-bit fingerprint, the rest of the hash, and the flow's number. In a bucket no two slots have one
    fingerprint, so each bucket gives one candidate at most; then the whole key of both is compared. A flow goes into
    the emptier of its buckets that has not its fingerprint, is written once, and never moves.

        queue -> hash, some words a cycle -> buckets -> fingerprints -> candidates -> keys -> compare -> answer

    An IPv6 key takes `ipv6_steps` cycles in the hash, an IPv4 key `ipv4_steps`; nothing behind that ever waits. So if
    each lookup comes as many cycles behind the one before as it takes itself, its answer comes within `latency`. An ADD
    passes the same way when the queue is empty: that is in the bound. An order takes up to `latency` + 10 cycles and is
    done before the next one is taken: it writes when no lookup reads there. A lookup at the time of an ADD or DELETE
    counts it or does not. At the `done` of a DELETE every answer that found the flow is at `answer`, or has left.

    DEVICE_RESET takes out all flows, a row a cycle; meanwhile nothing is found, and orders wait.

    Parameters
    ----------
    flows : int
        Flows at most, a power of two, at least 2.
    buckets : int
        Of each table, a power of two, at least 2. There are `8 * buckets` slots; filled to the half they practically
        always have room for one more.
    words : int
        32-bit words of an IPv6 key.
    ipv4_words : int
        Of an IPv4 key.
    words_per_cycle : int
        Hashed in a cycle.
    copies : int
        Of the keys: with 1 a lookup reads two keys one after the other, so one may come in 2 cycles, with 2 in each.

    Members
    -------
    write : register writes, for DEVICE_RESET.
    lookup : strobe of a key.
    answer : whether there is such a flow, and then its number, generation and channel.
    order, done : of `flow_order` and `FlowDone`.

    Attributes
    ----------
    ipv4_steps, ipv6_steps, latency : cycles, see above.
    """

    def __init__(self, *, flows, buckets, words=FLOW_KEY_WORDS, ipv4_words=IPV4_FLOW_WORDS, words_per_cycle=2,
                 copies=1):
        for name, value, least in (("flows", flows, 2), ("buckets", buckets, 2)):
            if not isinstance(value, int) or value < least or value & (value - 1):
                raise ValueError(f"{name} must be a power of two of at least {least}, not {value!r}")
        if buckets > 1 << FINGERPRINT_SHIFT // TABLES:
            raise ValueError(f"buckets must be at most {1 << FINGERPRINT_SHIFT // TABLES}, not {buckets!r}")
        if copies not in (1, 2):
            raise ValueError(f"copies must be 1 or 2, not {copies!r}")
        self.flows, self.buckets, self.copies = flows, buckets, copies
        self.words, self.ipv4_words, self.words_per_cycle = words, ipv4_words, words_per_cycle
        self.ipv4_steps, self.ipv6_steps = (
            max(-(-count // words_per_cycle), TABLES // copies) for count in (ipv4_words, words))
        # From the lookup to its first step 1, from the last to the hash 2, the stages of `_probe`, then `answer`; and
        # before it in the queue one key, an ADD's.
        self.latency = 9 + 2 * self.ipv6_steps + TABLES // copies
        key = flow_key(words)
        number = exact_log2(flows)
        super().__init__({
            "write": In(Strobe(RegisterWrite)),
            "lookup": In(Strobe(key)),
            "answer": Out(stream.Signature(data.StructLayout(
                {"found": 1, "flow": number, "generation": GENERATION_BITS}))),
            "order": In(stream.Signature(flow_order(flows, words))), "done": Out(stream.Signature(FlowDone)),
            "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        key, number_bits, bucket_bits = flow_key(self.words), exact_log2(self.flows), exact_log2(self.buckets)
        self._place = data.StructLayout(
            {"slot": exact_log2(SLOTS_PER_BUCKET), "bucket": bucket_bits, "table": exact_log2(TABLES)})
        self._slot = data.StructLayout({"valid": 1, "fingerprint": FINGERPRINT_BITS, "flow": number_bits})
        self._entry = data.StructLayout({"key": key, "generation": GENERATION_BITS})
        self._state = data.StructLayout(
            {"valid": 1, "generation": GENERATION_BITS, "channel": CHANNEL_BITS, "place": self._place})

        # What an order does in the pipeline: `injects` sends its key through; while `clearing` nothing is found.
        self._injects, self._injected, self._clearing = Signal(), Signal(), Signal()
        self._writes_slot, self._slot_place, self._slot_word = Signal(), Signal(self._place), Signal(self._slot)
        self._writes_entry, self._entry_flow, self._entry_word = (
            Signal(), Signal(number_bits), Signal(self._entry))
        self._clear_row = Signal(ceil_log2(max(self.flows, self.buckets)))

        queue_moves, hashed, is_order, flow_hash = self._hash(m)
        probe = self._probe(m, hashed, is_order, flow_hash)
        order_moves = self._take_orders(m, probe)
        m.d.comb += self.active.eq(
            queue_moves | probe["busy"] | order_moves | (self.answer.valid & self.answer.ready))
        return m

    def _hash(self, m):
        """The queue of keys, and the hash of the one at its head. Returns: it moves; a hash is there, whether it is an
        order's, and the hash, for one cycle."""
        count = self.words_per_cycle
        m.submodules.queue = queue = SmallRam(shape=flow_key(self.words), depth=QUEUE_PLACES)
        m.submodules.comparands = self._comparands = SmallRam(shape=flow_key(self.words), depth=QUEUE_PLACES)
        m.submodules.kinds = kinds = SmallRam(shape=1, depth=QUEUE_PLACES)
        head, tail = Signal(exact_log2(QUEUE_PLACES), name="head"), Signal(exact_log2(QUEUE_PLACES), name="tail")
        waiting = Signal(range(QUEUE_PLACES + 1), name="keys_waiting")
        step = Signal(range(max(self.ipv6_steps, 2)), name="step")
        enters, takes, is_last = Signal(), Signal(), Signal()
        m.d.comb += [
            self._injected.eq(self._injects & ~self.lookup.valid & (waiting == 0)),
            enters.eq(self.lookup.valid | self._injected),
        ]
        key = Mux(self.lookup.valid, Value.cast(self.lookup.payload), Value.cast(self.order.payload.key))
        for memory, word in ((queue, key), (self._comparands, key), (kinds, ~self.lookup.valid)):
            m.d.comb += [memory.write_en.eq(enters), memory.write_addr.eq(tail), memory.write_data.eq(word)]
        with m.If(enters):
            m.d.sync += tail.eq(tail + 1)
        m.d.sync += waiting.eq(waiting + enters - (takes & is_last))
        self.invariants = [
            (waiting <= QUEUE_PLACES, "more lookups than there is room for"),
            ((tail - head)[:len(head)] == waiting[:len(head)], "keys do not stand between head and tail"),
        ]

        # The words of this step, those of a whole key at the end of its steps, zeros before them.
        at_head = data.View(flow_key(self.words), queue.read_data)
        steps = Mux(at_head.ipv6, self.ipv6_steps, self.ipv4_steps)
        m.d.comb += [
            queue.read_addr.eq(head), kinds.read_addr.eq(head), takes.eq(waiting != 0), is_last.eq(step == steps - 1),
        ]
        taken = [Signal(WORD_BITS, name=f"taken_{n}") for n in range(count)]
        taken_valid, taken_first, taken_last, taken_order = (
            Signal(name=f"taken_{name}") for name in ("valid", "first", "last", "order"))
        m.d.sync += taken_valid.eq(takes)
        with m.If(takes):
            m.d.sync += [step.eq(Mux(is_last, 0, step + 1)), taken_first.eq(step == 0), taken_last.eq(is_last),
                         taken_order.eq(kinds.read_data), head.eq(head + is_last)]
            for n, word in enumerate(taken):
                of_version = []
                for words, in_all in ((self.ipv4_words, self.ipv4_steps), (self.words, self.ipv6_steps)):
                    numbers = [at * count + n - (in_all * count - words) for at in range(in_all)]
                    of_version.append(Array(at_head[f"word_{number}"] if number >= 0 else 0 for number in numbers)[step]
                                      if in_all > 1 else at_head[f"word_{numbers[0]}"] if numbers[0] >= 0 else 0)
                m.d.sync += word.eq(Mux(at_head.ipv6, of_version[1], of_version[0]))

        flow_hash = Signal(WORD_BITS, name="flow_hash")
        hashed, is_order = Signal(name="hashed"), Signal(name="hashed_order")
        m.d.sync += hashed.eq(taken_valid & taken_last)
        with m.If(taken_valid):
            m.d.sync += [flow_hash.eq(crc_step(Mux(taken_first, 0, flow_hash), taken)), is_order.eq(taken_order)]
        return enters | takes | taken_valid | hashed, hashed, is_order, flow_hash

    def _probe(self, m, hashed, is_order, flow_hash):
        """From a hash to its answer. Stages: 0 the buckets are read, 1 in registers, 2 fingerprints compared,
        3 candidates chosen, 4 keys read, 5 in a register, 6 compared by words, 7 as wholes; with one copy of the keys
        the second table's candidate comes a cycle later."""
        spread = TABLES // self.copies - 1  # cycles by which the second table's key comes later
        end = 8 + spread
        valid = [hashed, *(Signal(name=f"probe_{n}") for n in range(1, end + 1))]
        order = [is_order, *(Signal(name=f"probe_order_{n}") for n in range(1, end + 1))]
        for n in range(1, end + 1):
            m.d.sync += [valid[n].eq(valid[n - 1]), order[n].eq(order[n - 1] & valid[n - 1])]
        bucket_bits = exact_log2(self.buckets)
        field = FINGERPRINT_SHIFT // TABLES

        # 0, 1: the slots of both buckets. Nothing is read while all are cleared, or from a word that is being written.
        slot_free, fingerprint_1, blank = Signal(), Signal(FINGERPRINT_BITS), Signal(2)
        m.d.comb += slot_free.eq(~hashed)
        buckets_1 = [Signal(bucket_bits, name=f"bucket_{table}_1") for table in range(TABLES)]
        of_hash = [flow_hash[field * table:][:bucket_bits] for table in range(TABLES)]
        with m.If(valid[0]):
            m.d.sync += [fingerprint_1.eq(flow_hash[FINGERPRINT_SHIFT:]), blank[0].eq(self._clearing),
                         *(bucket.eq(read) for bucket, read in zip(buckets_1, of_hash, strict=True))]
        rows = [[Signal(self._slot, name=f"slot_{table}_{slot}") for slot in range(SLOTS_PER_BUCKET)]
                for table in range(TABLES)]
        fingerprint_2 = Signal(FINGERPRINT_BITS)
        buckets_2 = [Signal(bucket_bits, name=f"bucket_{table}_2") for table in range(TABLES)]
        with m.If(valid[1]):
            m.d.sync += [fingerprint_2.eq(fingerprint_1), blank[1].eq(blank[0] | self._clearing),
                         *(later.eq(earlier) for earlier, later in zip(buckets_1, buckets_2, strict=True))]
        for table in range(TABLES):
            for slot in range(SLOTS_PER_BUCKET):
                m.submodules[f"slots_{table}_{slot}"] = memory = Ram(shape=self._slot, depth=self.buckets)
                here = (self._slot_place.slot == slot) & (self._slot_place.table == table)
                m.d.comb += [
                    memory.read_en.eq(hashed & ~self._clearing),
                    memory.read_addr.eq(of_hash[table]),
                    memory.write_en.eq(self._clearing | (self._writes_slot & slot_free & here)),
                    memory.write_addr.eq(Mux(self._clearing, self._clear_row, self._slot_place.bucket)),
                    memory.write_data.eq(Value.cast(self._slot_word)),
                ]
                with m.If(valid[1]):
                    m.d.sync += Value.cast(rows[table][slot]).eq(memory.read_data)

        # 2: fingerprints; and for an ADD, which slots are free.
        matches = [Signal(SLOTS_PER_BUCKET, name=f"matches_{table}") for table in range(TABLES)]
        frees = [Signal(SLOTS_PER_BUCKET, name=f"frees_{table}") for table in range(TABLES)]
        numbers_3 = [[Signal(exact_log2(self.flows), name=f"number_{table}_{slot}") for slot in range(SLOTS_PER_BUCKET)]
                     for table in range(TABLES)]
        fingerprint_3 = Signal(FINGERPRINT_BITS)
        buckets_3 = [Signal(bucket_bits, name=f"bucket_{table}_3") for table in range(TABLES)]
        with m.If(valid[2]):
            m.d.sync += [fingerprint_3.eq(fingerprint_2),
                         *(later.eq(earlier) for earlier, later in zip(buckets_2, buckets_3, strict=True))]
            for table in range(TABLES):
                for slot, row in enumerate(rows[table]):
                    m.d.sync += [
                        matches[table][slot].eq(row.valid & ~blank[1] & (row.fingerprint == fingerprint_2)),
                        frees[table][slot].eq(~row.valid), numbers_3[table][slot].eq(row.flow),
                    ]

        # 3: candidates.
        candidates = [Signal(exact_log2(self.flows), name=f"candidate_{table}") for table in range(TABLES)]
        has = [Signal(name=f"has_candidate_{table}") for table in range(TABLES)]
        with m.If(valid[3]):
            for table in range(TABLES):
                only = [number & match.replicate(len(number))
                        for number, match in zip(numbers_3[table], matches[table], strict=True)]
                m.d.sync += [candidates[table].eq(only[0] | only[1] | only[2] | only[3]),
                             has[table].eq(matches[table].any())]

        # 4 to 7: the keys.
        reading = Signal()
        m.d.comb += reading.eq(Cat(valid[4:5 + spread]).any())
        entry_free = ~reading
        memories = []
        for copy in range(self.copies):
            m.submodules[f"entries_{copy}"] = memory = Ram(shape=self._entry, depth=self.flows)
            memories.append(memory)
            m.d.comb += [
                memory.write_en.eq(self._writes_entry & entry_free), memory.write_addr.eq(self._entry_flow),
                memory.write_data.eq(Value.cast(self._entry_word)),
            ]
        if self.copies == 1:
            m.d.comb += [memories[0].read_en.eq(reading),
                         memories[0].read_addr.eq(Mux(valid[4], candidates[0], candidates[1]))]
        else:
            m.d.comb += [assignment for memory, candidate in zip(memories, candidates, strict=True)
                         for assignment in (memory.read_en.eq(reading), memory.read_addr.eq(candidate))]
        # The key that was looked for, in a register beside the entry.
        looked_for = Signal(flow_key(self.words), name="looked_for")
        compared = Signal(exact_log2(QUEUE_PLACES), name="compared")
        m.d.comb += self._comparands.read_addr.eq(compared)
        with m.If(valid[5]):
            m.d.sync += [Value.cast(looked_for).eq(self._comparands.read_data), compared.eq(compared + 1)]

        hits, found = [], []
        for table in range(TABLES):
            late = spread * table
            entry = Signal(self._entry, name=f"entry_{table}")
            of_candidate = {4: (candidates[table], has[table])}
            # With one copy the second candidate is looked up a cycle later, when the next may already stand there.
            for n in range(4, 8 + late):
                number, there = of_candidate[n]
                kept, kept_there = Signal.like(number, name=f"candidate_{table}_{n + 1}"), Signal(
                    name=f"has_candidate_{table}_{n + 1}")
                with m.If(valid[n]):
                    m.d.sync += [kept.eq(number), kept_there.eq(there)]
                of_candidate[n + 1] = kept, kept_there
            with m.If(valid[5 + late]):
                m.d.sync += Value.cast(entry).eq(memories[table % self.copies].read_data)
            equal, generation_7 = Signal(self.words + 1, name=f"equal_{table}"), Signal(
                GENERATION_BITS, name=f"generation_{table}_7")
            with m.If(valid[6 + late]):
                m.d.sync += [
                    equal.eq(Cat(*(entry.key[f"word_{n}"] == looked_for[f"word_{n}"] for n in range(self.words)),
                                 entry.key.ipv6 == looked_for.ipv6)),
                    generation_7.eq(entry.generation),
                ]
            hit, generation = Signal(name=f"hit_{table}"), Signal(GENERATION_BITS, name=f"generation_{table}_8")
            with m.If(valid[7 + late]):
                m.d.sync += [hit.eq(equal.all() & of_candidate[7 + late][1]), generation.eq(generation_7)]
            number = of_candidate[8 + late][0]
            for n in range(8 + late, end):
                later_hit, later_number, later_generation = (
                    Signal.like(signal, name=f"{name}_{table}_{n + 1}")
                    for name, signal in (("hit", hit), ("found", number), ("found_generation", generation)))
                with m.If(valid[n]):
                    m.d.sync += [later_hit.eq(hit), later_number.eq(number), later_generation.eq(generation)]
                hit, number, generation = later_hit, later_number, later_generation
            hits.append(hit)
            found.append((number, generation))

        m.submodules.answers = answers = SmallFifo(shape=self.answer.payload.shape(), depth=QUEUE_PLACES)
        answer = answers.i.payload
        m.d.comb += [
            answers.i.valid.eq(valid[end] & ~order[end]), answer.found.eq(Cat(hits).any()),
            answer.flow.eq(Mux(hits[1], found[1][0], found[0][0])),
            answer.generation.eq(Mux(hits[1], found[1][1], found[0][1])),
        ]
        connect(m, answers.o, flipped(self.answer))
        self.invariants += [
            (~answers.i.valid | answers.i.ready, "an answer finds no room"),
            (~Cat(hits).all(), "a key was found twice"),
        ]
        return {
            "busy": Cat(valid).any() | answers.active, "slot_free": slot_free, "entry_free": entry_free,
            "order_3": valid[3] & order[3], "matches": matches, "frees": frees, "buckets": buckets_3,
            "fingerprint": fingerprint_3, "order_end": valid[end] & order[end], "present": Cat(hits).any(),
            "stages": end,
        }

    def _take_orders(self, m, probe):
        """One order after the other."""
        order, done = self.order.payload, self.done.payload
        m.submodules.states = states = Ram(shape=self._state, depth=self.flows)
        state, new_state = Signal(self._state, name="state"), Signal(self._state, name="new_state")
        resets, must_clear = Signal(), Signal()
        m.d.comb += resets.eq(
            self.write.valid & (self.write.payload.address == register("DEVICE_RESET")) & self.write.payload.data[0])
        with m.If(resets):
            m.d.sync += must_clear.eq(1)

        # An ADD's place: the emptier bucket that has not the fingerprint.
        place, has_place, fingerprint = Signal(self._place, name="place"), Signal(), Signal(FINGERPRINT_BITS)
        room = [Signal(range(SLOTS_PER_BUCKET + 1), name=f"room_{table}") for table in range(TABLES)]
        first = [Signal(exact_log2(SLOTS_PER_BUCKET), name=f"first_free_{table}") for table in range(TABLES)]
        buckets = [Signal(exact_log2(self.buckets), name=f"add_bucket_{table}") for table in range(TABLES)]
        with m.If(probe["order_3"]):
            m.d.sync += fingerprint.eq(probe["fingerprint"])
            for table in range(TABLES):
                frees = probe["frees"][table]
                m.d.sync += [
                    room[table].eq(Mux(probe["matches"][table].any(), 0, sum(frees))),
                    buckets[table].eq(probe["buckets"][table]),
                ]
                for slot in reversed(range(SLOTS_PER_BUCKET)):
                    with m.If(frees[slot]):
                        m.d.sync += first[table].eq(slot)
        takes_second = room[1] > room[0]
        m.d.comb += [
            place.table.eq(takes_second), place.bucket.eq(Mux(takes_second, buckets[1], buckets[0])),
            place.slot.eq(Mux(takes_second, first[1], first[0])), has_place.eq(Cat(*room).any()),
        ]

        m.d.comb += [
            self._entry_flow.eq(order.flow), self._entry_word.key.eq(order.key),
            self._entry_word.generation.eq(order.generation),
            states.read_addr.eq(order.flow),
        ]
        drain = Signal(range(probe["stages"] + 2), name="drain")
        moves, tells, status = Signal(), Signal(), Signal(FlowStatus)
        is_flow = Signal()
        m.d.comb += is_flow.eq(state.valid & (state.generation == order.generation))
        with m.If(self.done.valid & self.done.ready):
            m.d.sync += self.done.valid.eq(0)
        with m.If(tells):
            m.d.comb += self.order.ready.eq(1)
            m.d.sync += [self.done.valid.eq(1), done.status.eq(status), done.channel.eq(state.channel)]

        def tell(found_status):
            m.d.comb += [tells.eq(1), status.eq(found_status)]
            m.next = "IDLE"

        with m.FSM(name="order_state"):
            with m.State("IDLE"):
                with m.If(must_clear):
                    m.d.comb += moves.eq(1)
                    m.d.sync += [must_clear.eq(resets), self._clear_row.eq(0), self._clearing.eq(1),
                                 Value.cast(self._slot_word).eq(0)]
                    m.next = "CLEAR"
                with m.Elif(self.order.valid & ~self.done.valid):
                    m.d.comb += [moves.eq(1), states.read_en.eq(1)]
                    m.next = "READ"
            with m.State("CLEAR"):
                m.d.comb += [moves.eq(1), states.write_en.eq(1), states.write_addr.eq(self._clear_row)]
                m.d.sync += self._clear_row.eq(self._clear_row + 1)
                with m.If(self._clear_row.all()):
                    m.d.sync += self._clearing.eq(0)
                    m.next = "IDLE"
            with m.State("READ"):
                m.d.comb += moves.eq(1)
                m.d.sync += Value.cast(state).eq(states.read_data)
                m.next = "JUDGE"
            with m.State("JUDGE"):
                m.d.comb += moves.eq(1)
                with m.Switch(order.order):
                    with m.Case(FlowOrder.ADD):
                        m.next = "INJECT"
                        with m.If(state.valid):
                            tell(FlowStatus.IN_USE)
                    with m.Default():
                        with m.If(~is_flow):
                            tell(FlowStatus.STALE)
                        with m.Elif(order.order == FlowOrder.CHECK):
                            tell(FlowStatus.OK)
                        with m.Else():
                            m.d.sync += [self._slot_place.eq(state.place), Value.cast(self._slot_word).eq(0),
                                         Value.cast(new_state).eq(0)]
                            m.next = "SLOT"
            # ADD: is the key there, and is there a place?
            with m.State("INJECT"):
                m.d.comb += [moves.eq(1), self._injects.eq(1)]
                with m.If(self._injected):
                    m.next = "FIND"
            with m.State("FIND"):
                m.d.sync += [
                    self._slot_place.eq(place), self._slot_word.valid.eq(1), self._slot_word.flow.eq(order.flow),
                    self._slot_word.fingerprint.eq(fingerprint),
                    new_state.valid.eq(1), new_state.generation.eq(order.generation),
                    new_state.channel.eq(order.channel), new_state.place.eq(place),
                ]
                with m.If(probe["order_end"]):
                    m.next = "ENTRY"
                    with m.If(probe["present"]):
                        tell(FlowStatus.PRESENT)
                    with m.Elif(~has_place):
                        tell(FlowStatus.FULL)
            with m.State("ENTRY"):
                m.d.comb += [moves.eq(probe["entry_free"]), self._writes_entry.eq(1)]
                with m.If(probe["entry_free"]):
                    m.next = "SLOT"
            # The slot is what is found: written behind the entry, cleared before the entry may be used again.
            with m.State("SLOT"):
                m.d.comb += [moves.eq(probe["slot_free"]), self._writes_slot.eq(1)]
                with m.If(probe["slot_free"]):
                    m.d.sync += drain.eq(probe["stages"] + 1)
                    m.next = "STORE"
                    with m.If(order.order == FlowOrder.DELETE):
                        m.next = "DRAIN"
            with m.State("DRAIN"):
                m.d.comb += moves.eq(1)
                m.d.sync += drain.eq(drain - 1)
                with m.If(drain == 0):
                    m.next = "STORE"
            with m.State("STORE"):
                m.d.comb += [moves.eq(1), states.write_en.eq(1), states.write_addr.eq(order.flow),
                             states.write_data.eq(Value.cast(new_state))]
                tell(FlowStatus.OK)
        return moves | resets | tells | (self.done.valid & self.done.ready)
