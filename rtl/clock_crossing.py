# amaranth: UnusedElaboratable=no
"""The MAC's border between two clocks: frames cross whole, through asynchronous FIFOs.

For hardware and Amaranth's simulator: the fast simulator knows one clock only (`rtl.netlist`), so the compiled engine
and cocotb run the device without this border.
"""

# Ref: C. E. Cummings, "Simulation and Synthesis Techniques for Asynchronous FIFO Design", SNUG 2002

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from nic_model.contract import MAX_FRAME_BYTES, NicConfig
from rtl.interfaces import mac_beat

DEVICE, MAC = "sync", "mac"
"""The two clock domains."""

CROSSING_BYTES = 16384
"""Of each direction's FIFO: a longest frame and more, since a frame is whole before it goes on."""

SYNCHRONIZER_ATTRIBUTES = {"ASYNC_REG": "TRUE", "keep": "true"}
"""Vivado places such registers side by side, and no tool merges them or moves logic between them."""

OWED_BITS = 16


def gray(binary):
    """Gray code of a Value: neighbours differ in one bit, also where it wraps."""
    return binary ^ (binary >> 1)


def binary(m, code, name):
    """What a Gray code stands for. Combinational."""
    found = Signal(len(code), name=name)
    m.d.comb += found.eq(Cat(code[bit:].xor() for bit in range(len(code))))
    return found


class Synchronizer(wiring.Component):
    """A count as Gray code, through two registers in a row, into another clock's domain.

    Parameters
    ----------
    width : int
    source, target : str
        Clock domains.
    modelled : bool
        For simulation: a bit that changes may arrive an edge of the target late, as after a metastable first register,
        where `late` says so. What has arrived does not go back.

    Members
    -------
    i : a register of `source` that changes by one at a time.
    o : the same, 1 edge of `source` and 2 of `target` later, or 3.
    late : with `modelled`.
    """

    def __init__(self, *, width, source, target, modelled=False):
        self.width, self.source, self.target, self.modelled = width, source, target, modelled
        super().__init__({"i": In(width), "o": Out(width), **({"late": In(width)} if modelled else {})})

    def elaborate(self, platform):
        m = Module()
        # The names are those that `constraints` gives.
        code = Signal(self.width, name="code", attrs={"keep": "true"})
        first = Signal(self.width, name="first", attrs=SYNCHRONIZER_ATTRIBUTES)
        second = Signal(self.width, name="second", attrs=SYNCHRONIZER_ATTRIBUTES)
        sampled = code
        m.d[self.source] += code.eq(gray(self.i))
        if self.modelled:
            # A bit is in doubt in the source's cycle in which it changed.
            before = Signal(self.width)
            m.d[self.source] += before.eq(code)
            sampled = code ^ ((code ^ before) & ~(first ^ before) & self.late)
        m.d[self.target] += [first.eq(sampled), second.eq(first)]
        m.d.comb += self.o.eq(binary(m, second, "decoded"))
        return m


class FrameCrossing(wiring.Component):
    """Frames from one clock's domain to another's, each given on when it is whole.

    Enters: `i`, beats of frames, in `source`. Leaves: `o`, the same frames in `target`, a beat in each cycle from the
    first to the last, whatever the clocks' ratio. Latency from a frame's last beat to its first: 1 cycle of `source`,
    and 4 of `target`, or 5. Throughput one beat a cycle of the slower clock.

    Where `i` can wait (`drops` False) it does, and a frame must fit. Where it cannot, `i.ready` is always 1, and a
    frame that finds no room is dropped whole; in its place goes a beat with `last` and `user`: a frame that came bad.
    If not even that finds room it goes later, so that the device counts each; of 65,535 such at most.

    Both domains are to be reset together, for 4 cycles of the slower clock; that cuts off frames under way.

    Parameters
    ----------
    config : NicConfig
        `mac_bytes` is used.
    source, target : str
        Clock domains.
    drops : bool
    modelled : bool
        See `Synchronizer`.
    depth : int or None
        Beats, a power of two; None for `CROSSING_BYTES`.

    Attributes
    ----------
    frames, heads : Synchronizer
        Of the count of whole frames, and of the count of beats that were read.
    """

    def __init__(self, *, config: NicConfig, source: str, target: str, drops: bool, modelled: bool = False,
                 depth: int | None = None):
        self.config, self.source, self.target, self.drops = config, source, target, drops
        self.depth = CROSSING_BYTES // config.mac_bytes if depth is None else depth
        if self.depth < 4 or self.depth & (self.depth - 1):
            raise ValueError(f"depth must be a power of two of at least 4, not {depth!r}")
        if not drops and depth is None:
            assert CROSSING_BYTES >= MAX_FRAME_BYTES
        bits = exact_log2(self.depth) + 1
        self.frames = Synchronizer(width=bits, source=source, target=target, modelled=modelled)
        self.heads = Synchronizer(width=bits, source=target, target=source, modelled=modelled)
        beat = mac_beat(config)
        super().__init__({"i": In(stream.Signature(beat)), "o": Out(stream.Signature(beat))})

    def elaborate(self, platform):
        m = Module()
        beat = mac_beat(self.config)
        m.submodules.frames, m.submodules.heads = frames, heads = self.frames, self.heads
        m.submodules.beats = beats = memory.Memory(shape=beat.size, depth=self.depth, init=[])
        write, read = beats.write_port(domain=self.source), beats.read_port(domain=self.target)
        self._take_in(m, m.d[self.source], write, frames, heads)
        self._give_out(m, m.d[self.target], read, frames, heads)
        return m

    def _take_in(self, m, d, write, frames, heads):
        """The side of `i`."""
        bits = self.frames.width
        i = self.i
        tail, begun = Signal(bits), Signal(bits)  # where the next beat goes; where the frame under way began
        head, used = Signal(bits), Signal(bits)
        count = Signal(bits)
        has_room, stores, ends = Signal(), Signal(), Signal()
        payload = Signal(mac_beat(self.config))
        d += head.eq(heads.o)
        m.d.comb += [
            used.eq(tail - head), has_room.eq(~used[-1]), frames.i.eq(count),
            write.en.eq(stores), write.addr.eq(tail[:-1]), write.data.eq(payload), payload.eq(i.payload),
        ]
        if self.drops:
            # The frame under way lost a beat; frames that are owed a mark.
            inside, lost, loses, marks = Signal(), Signal(), Signal(), Signal()
            owed, more = Signal(OWED_BITS), Signal()
            has_room_at_begin, used_at_begin = Signal(), Signal(bits)
            m.d.comb += [
                i.ready.eq(1),
                used_at_begin.eq(begun - head), has_room_at_begin.eq(~used_at_begin[-1]),
                loses.eq(i.valid & (lost | ~has_room)),
                more.eq(loses & i.payload.last),
                # A mark takes a cycle in which no beat is stored, and stands between frames.
                marks.eq((owed.any() | more) & has_room_at_begin & Mux(i.valid, loses, ~inside | lost)),
                stores.eq((i.valid & ~loses) | marks), ends.eq((i.valid & i.payload.last & ~loses) | marks),
            ]
            with m.If(marks):
                m.d.comb += [payload.keep.eq(1), payload.last.eq(1), payload.user.eq(1), write.addr.eq(begun[:-1])]
            with m.If(i.valid):
                d += [inside.eq(~i.payload.last), lost.eq(loses & ~i.payload.last)]
            with m.If(more & ~marks & ~owed.all()):
                d += owed.eq(owed + 1)
            with m.Elif(marks & ~more):
                d += owed.eq(owed - 1)
            with m.If(marks):
                d += [tail.eq(begun + 1), begun.eq(begun + 1)]
            with m.Elif(loses):
                d += tail.eq(begun)
            with m.Elif(stores):
                d += tail.eq(tail + 1)
                with m.If(ends):
                    d += begun.eq(tail + 1)
        else:
            m.d.comb += [i.ready.eq(has_room), stores.eq(i.valid & i.ready), ends.eq(stores & i.payload.last)]
            with m.If(stores):
                d += tail.eq(tail + 1)
        with m.If(ends):
            d += count.eq(count + 1)

    def _give_out(self, m, d, read, frames, heads):
        """The side of `o`. The word at `head` is read in each cycle; it counts when its frame is known to be whole, and
        was written some cycles before."""
        bits = self.frames.width
        o = self.o
        head, next_head = Signal(bits), Signal(bits)
        there, taken = Signal(bits), Signal(bits)
        inside, present, advance = Signal(), Signal(), Signal()
        word = Signal(mac_beat(self.config))
        m.d.comb += [
            word.eq(read.data), read.en.eq(1), read.addr.eq(next_head[:-1]), next_head.eq(head + advance),
            present.eq(inside | (there != taken)), advance.eq(present & (~o.valid | o.ready)),
            heads.i.eq(head),
        ]
        d += [there.eq(frames.o), head.eq(next_head)]
        with m.If(advance):
            d += [Value.cast(o.payload).eq(word), o.valid.eq(1), inside.eq(~word.last)]
            with m.If(word.last):
                d += taken.eq(taken + 1)
        with m.Elif(o.ready):
            d += o.valid.eq(0)


class MacClockCrossing(wiring.Component):
    """Both directions: the device's streams on its clock, the MAC's on `mac_clk`.

    Frames to the MAC wait until they are whole, so that none is cut off for want of a beat; frames from the MAC that
    find no room come as bad ones. See `FrameCrossing`. Timestamps and `pause_active` are of the device's side.

    Parameters
    ----------
    config : NicConfig
    modelled : bool
        See `Synchronizer`.
    depth : int or None
        See `FrameCrossing`.

    Members
    -------
    tx, rx : the device's side: frames to send, frames received (`ready` is to be 1 always).
    m_axis_tx, s_axis_rx : the MAC's side.
    """

    def __init__(self, config: NicConfig, *, modelled: bool = False, depth: int | None = None):
        self.config = config
        self.tx_crossing = FrameCrossing(config=config, source=DEVICE, target=MAC, drops=False, modelled=modelled,
                                         depth=depth)
        self.rx_crossing = FrameCrossing(config=config, source=MAC, target=DEVICE, drops=True, modelled=modelled,
                                         depth=depth)
        beats = stream.Signature(mac_beat(config))
        super().__init__({"tx": In(beats), "m_axis_tx": Out(beats), "s_axis_rx": In(beats), "rx": Out(beats)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.tx_crossing, m.submodules.rx_crossing = tx, rx = self.tx_crossing, self.rx_crossing
        wiring.connect(m, wiring.flipped(self.tx), tx.i)
        wiring.connect(m, tx.o, wiring.flipped(self.m_axis_tx))
        wiring.connect(m, wiring.flipped(self.s_axis_rx), rx.i)
        wiring.connect(m, rx.o, wiring.flipped(self.rx))
        return m


def constraints(config: NicConfig, *, mac_clock_hz: int) -> dict[str, str]:
    """Timing constraints of a device with its MAC on `mac_clk`, by file ending: "xdc" (Vivado), "sdc" (others), "lpf"
    (ECP5: nextpnr and Diamond)."""
    periods = {"clk": 1e9 / config.clock_hz, "mac_clk": 1e9 / mac_clock_hz}
    clocks = "".join(f"create_clock -name {name} -period {period:.3f} [get_ports {name}]\n"
                     for name, period in periods.items())
    # A Gray code is right if its bits' delays differ by less than the time between two of its changes.
    limits = "".join(
        f"set_max_delay -datapath_only {periods[source]:.3f} "
        f"-from [get_cells -hierarchical -filter {{NAME =~ *{direction}_crossing/{synchronizer}/code_reg*}}] "
        f"-to [get_cells -hierarchical -filter {{NAME =~ *{direction}_crossing/{synchronizer}/first_reg*}}]\n"
        for direction, source, target in (("tx", "clk", "mac_clk"), ("rx", "mac_clk", "clk"))
        for synchronizer, source in (("frames", source), ("heads", target)))
    head = f"MAC border of memnic's device {config.name!r}; written by `memnic verilog`"
    return {
        "xdc": f"# {head}\n{clocks}{limits}",
        "sdc": f"# {head}. The paths between the clocks are Gray codes into two registers each, and memory that\n"
               f"# was written long before it is read; keep their skew below {min(periods.values()):.3f} ns.\n{clocks}"
               "set_clock_groups -asynchronous -group [get_clocks clk] -group [get_clocks mac_clk]\n",
        "lpf": f"# {head}\n" + "".join(f'FREQUENCY PORT "{name}" {1e3 / period:.6f} MHZ;\n'
                                      for name, period in periods.items()),
    }
