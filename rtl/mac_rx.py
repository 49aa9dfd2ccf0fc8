"""Where frames come in: beats of the MAC's stream become rows as wide as the host bus."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from nic_model.contract import NicConfig, register
from rtl.interfaces import TIME_BITS, RegisterWrite, Strobe, lane_bits, mac_beat


def rx_row(config: NicConfig) -> data.StructLayout:
    """A row of a frame, lane 0 its first byte; all rows but the last are full. `count` of the last is 0 only if the
    MAC ended the frame with an empty beat. `bad` goes with `last`, `time` with `first`: `now` at the first beat."""
    return data.StructLayout({
        "data": 8 * config.host_bytes, "count": lane_bits(config) + 1, "first": 1, "last": 1, "bad": 1,
        "time": TIME_BITS,
    })


class MacRx(wiring.Component):
    """Takes beats from the MAC and gives rows of the host bus's width; stamps each frame.

    Enters: `mac`, a beat in each cycle if need be, for a MAC cannot wait. Leaves: `row`, 2 cycles after its last beat.
    A frame whose first beat meets RX_ENABLE 0 leaves nothing.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device; `mac_bytes` and `host_bytes` are used.

    Members
    -------
    mac : frames; `ready` is always 1.
    drop, damaged : of the beat in the first register, see `rtl.pause.PauseReceive`: its frame leaves no row; if it is
        damaged, only a last row that is bad.
    write : register writes, for RX_ENABLE.
    now : cycle count.
    row : rows of `rx_row`.
    begins, skipped : see `rtl.arrivals.Arrivals`.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        super().__init__({
            "mac": In(stream.Signature(mac_beat(config))), "drop": In(1), "damaged": In(1),
            "write": In(Strobe(RegisterWrite)),
            "now": In(TIME_BITS),
            "row": Out(Strobe(rx_row(config))),
            "begins": Out(1), "skipped": Out(Strobe(TIME_BITS)),
            "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        mac_bytes = self.config.mac_bytes
        beats_per_row = self.config.host_bytes // mac_bytes
        m.d.comb += self.mac.ready.eq(1)

        enabled, sets_enabled = Signal(), Signal()
        m.d.comb += sets_enabled.eq(self.write.valid & (self.write.payload.address == register("RX_ENABLE")))
        with m.If(sets_enabled):
            m.d.sync += enabled.eq(self.write.payload.data[0])

        # Beats of frames that are taken, with the time of the first.
        inside, is_taken, taken = Signal(), Signal(), Signal()
        beat, beat_valid, beat_first = Signal(mac_beat(self.config)), Signal(), Signal()
        beat_time = Signal(TIME_BITS)
        m.d.comb += taken.eq(self.mac.valid & Mux(inside, is_taken, enabled))
        m.d.sync += beat_valid.eq(taken)
        with m.If(self.mac.valid):
            m.d.sync += inside.eq(~self.mac.payload.last)
            with m.If(~inside):
                m.d.sync += is_taken.eq(enabled)
        with m.If(taken):
            m.d.sync += [beat.eq(self.mac.payload), beat_first.eq(~inside)]
            with m.If(~inside):
                m.d.sync += beat_time.eq(self.now)

        # Beats side by side in a row.
        place = Signal(range(max(beats_per_row, 2)))
        row = self.row.payload
        ends_row, is_told = Signal(), Signal()
        m.d.comb += [
            ends_row.eq(beat.last | (place == beats_per_row - 1)),
            is_told.eq(~self.drop | (beat.last & self.damaged)),
        ]
        m.d.sync += self.row.valid.eq(beat_valid & ends_row & is_told)
        m.d.comb += [
            self.begins.eq(taken & ~inside),
            self.skipped.valid.eq(beat_valid & beat.last & ~is_told), self.skipped.payload.eq(beat_time),
        ]
        with m.If(beat_valid):
            m.d.sync += [
                place.eq(Mux(ends_row, 0, place + 1)),
                row.count.eq(place * mac_bytes + contiguous_ones(m, beat.keep)),
                row.last.eq(beat.last), row.bad.eq(beat.user | self.drop),
            ]
            for lane in range(beats_per_row):
                with m.If(place == lane):
                    m.d.sync += row.data.word_select(lane, 8 * mac_bytes).eq(beat.data)
            with m.If(place == 0):
                m.d.sync += [row.first.eq(beat_first), row.time.eq(beat_time)]
            with m.If(self.drop):
                m.d.sync += row.first.eq(1)  # the only row of its frame
        m.d.comb += self.active.eq(self.mac.valid | beat_valid | self.row.valid | sets_enabled)
        return m


def contiguous_ones(m, keep):
    """Number of ones in `keep`, all of which stand below all zeros. Combinational."""
    count = Signal(ceil_log2(len(keep) + 1), name="contiguous")
    ends = [keep[n] & ~keep[n + 1] for n in range(len(keep) - 1)]
    partial = Cat(Cat(end for n, end in enumerate(ends, start=1) if n >> bit & 1).any() for bit in range(len(count)))
    m.d.comb += count.eq(Mux(keep[-1], len(keep), partial))
    return count
