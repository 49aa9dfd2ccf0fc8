"""What waits to be sent, by channel: rings of jobs, of their pieces and of their inline rows."""

from amaranth.hdl import Assert, Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from nic_model.contract import SUBMISSION_SLOT_BYTES, NicConfig
from rtl.interfaces import LENGTH_BITS, Strobe, TxJob, TxPiece, queue_slots, tx_row
from rtl.primitives import Ram, SmallRam

StoredPiece = data.StructLayout({"address": 64, "length": LENGTH_BITS})


def job_index_bits(config: NicConfig) -> int:
    """Bits of a job's place in its channel's ring: each slot may be a job."""
    return exact_log2(queue_slots(config))


def piece_index_bits(config: NicConfig) -> int:
    """Bits of a piece's place in its channel's ring: a slot names two pieces at most."""
    return exact_log2(2 * queue_slots(config))


def row_index_bits(config: NicConfig) -> int:
    """Bits of an inline row's place in its channel's ring: a slot holds so many, or each descriptor with an inline slot
    has a head's slot too, so that half a row for each slot is enough."""
    return exact_log2(queue_slots(config) * SUBMISSION_SLOT_BYTES // config.host_bytes)


def stored_job(config: NicConfig) -> data.StructLayout:
    """A job as it waits: without its channel, but with the places of its first piece and its first inline row."""
    fields = {name: shape for name, shape in TxJob.members.items() if name != "channel"}
    return data.StructLayout({**fields, "first_piece": piece_index_bits(config), "first_row": row_index_bits(config)})


class TxQueues(wiring.Component):
    """The rings.

    Enters: inline rows, pieces and jobs, a descriptor's rows and pieces before (or with) its job. Leaves: `arrived`,
    and what is read. The transmit front sees to it that all fits, so nothing waits here. Reads take one cycle.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device.

    Members
    -------
    job, stored_row, stored_piece : strobes, what is to be kept.
    arrived, arrived_channel : a bit for each channel, 1 for a cycle when it got a job, and its number.
    read_job, read_piece, read_row : 1 to read; `job_at`, `piece_at`, `row_at`: channel below, place in its ring above;
        `job_data`, `piece_data`, `row_data` one cycle later.
    active : see `rtl.interfaces`.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        self.channel_bits = exact_log2(config.channels)
        super().__init__({
            "job": In(Strobe(TxJob)), "stored_row": In(Strobe(tx_row(config))), "stored_piece": In(Strobe(TxPiece)),
            "arrived": Out(config.channels), "arrived_channel": Out(self.channel_bits),
            "read_job": In(1), "job_at": In(self.channel_bits + job_index_bits(config)),
            "job_data": Out(stored_job(config)),
            "read_piece": In(1), "piece_at": In(self.channel_bits + piece_index_bits(config)),
            "piece_data": Out(StoredPiece),
            "read_row": In(1), "row_at": In(self.channel_bits + row_index_bits(config)),
            "row_data": Out(8 * config.host_bytes),
            "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        channels = self.config.channels
        job, piece, row = self.job.payload, self.stored_piece.payload, self.stored_row.payload
        job_channel = job.channel[:self.channel_bits]

        # Behind the last job of each channel, and behind the last piece and row of those jobs.
        ends = {}
        for name, bits in (("job", job_index_bits(self.config)), ("piece", piece_index_bits(self.config)),
                           ("row", row_index_bits(self.config))):
            m.submodules[f"{name}_ends"] = ends[name] = SmallRam(shape=bits, depth=channels)
            m.d.comb += [
                ends[name].write_en.eq(self.job.valid), ends[name].write_addr.eq(job_channel),
                ends[name].read_addr.eq(job_channel),
            ]
        m.d.comb += ends["job"].write_data.eq(ends["job"].read_data + 1)

        # The rings of pieces and rows. Those of the descriptor that is being stored are counted until its job comes.
        for name, strobe, channel, value, at, read, result in (
            ("piece", self.stored_piece, piece.channel, Cat(piece.address, piece.length), self.piece_at,
             self.read_piece, self.piece_data),
            ("row", self.stored_row, row.channel, row.data, self.row_at, self.read_row, self.row_data),
        ):
            bits = len(ends[name].read_data)
            m.submodules[f"{name}s"] = ring = Ram(shape=len(value), depth=channels << bits)
            count, count_now = Signal(bits, name=f"{name}_count"), Signal(bits, name=f"{name}_count_now")
            m.d.comb += [
                count_now.eq(count + strobe.valid),
                ring.write_en.eq(strobe.valid), ring.write_data.eq(value),
                ring.write_addr.eq(Cat(channel[:self.channel_bits], (ends[name].read_data + count)[:bits])),
                ring.read_en.eq(read), ring.read_addr.eq(at),
                ends[name].write_data.eq(ends[name].read_data + count_now),
            ]
            m.d.comb += (result.as_value() if isinstance(result, data.View) else result).eq(ring.read_data)
            with m.If(strobe.valid | self.job.valid):
                m.d.sync += count.eq(Mux(self.job.valid, 0, count_now))
            m.d.sync += Assert(~strobe.valid | (channel == job.channel), f"a {name} of another channel than its job")

        # The ring of jobs.
        kept = stored_job(self.config)
        m.submodules.jobs = jobs = Ram(shape=kept, depth=channels << job_index_bits(self.config))
        stored = data.View(kept, jobs.write_data)
        m.d.comb += [
            jobs.write_en.eq(self.job.valid), jobs.write_addr.eq(Cat(job_channel, ends["job"].read_data)),
            *(stored[name].eq(job[name]) for name in TxJob.members if name != "channel"),
            stored.first_piece.eq(ends["piece"].read_data), stored.first_row.eq(ends["row"].read_data),
            jobs.read_en.eq(self.read_job), jobs.read_addr.eq(self.job_at),
            self.job_data.as_value().eq(jobs.read_data),
            self.arrived.eq(Mux(self.job.valid, 1 << job_channel, 0)), self.arrived_channel.eq(job_channel),
            self.active.eq(self.job.valid | self.stored_piece.valid | self.stored_row.valid | self.read_job
                           | self.read_piece | self.read_row),
        ]
        return m
