"""Two sources of jobs in front of one `rtl.descriptor.JobIssue`: descriptors, and orders of the control port."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from nic_model.contract import NicConfig
from rtl.descriptor import BusPiece, Checked, KeyVerdict
from rtl.interfaces import row
from rtl.primitives import StreamArbiter

SOURCES = 2


def issue_streams(config: NicConfig) -> dict[str, data.Layout]:
    """What `JobIssue` takes: name of the stream and shape of its payload."""
    return {"checked": Checked, "verdict": KeyVerdict, "piece": BusPiece, "row": row(config)}


class JobSources(wiring.Component):
    """Lets the jobs of two sources through, in turn, each with all that belongs to it.

    Enters: of each source checked jobs, the verdicts of their keys, their pieces and their rows, as `JobIssue` takes
    them. Leaves: the same of whichever source's job is at work; `of` says which. A job's verdict, pieces and rows pass
    while it is at work, and those of the other source wait. Latency 2 cycles for a job, none for the others; a job in
    as many cycles as `JobIssue` takes for it.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device; `host_bytes` is used.

    Members
    -------
    checked_0, verdict_0, piece_0, row_0, checked_1 .. : the sources.
    checked, verdict, piece, row : what leaves.
    done : 1 for a cycle when `JobIssue` is done with the job at work.
    of : the source of that job.
    active : see `rtl.interfaces`.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        shapes = issue_streams(config)
        super().__init__({
            **{f"{name}_{n}": In(stream.Signature(shape)) for n in range(SOURCES) for name, shape in shapes.items()},
            **{name: Out(stream.Signature(shape)) for name, shape in shapes.items()},
            "done": In(1), "of": Out(range(SOURCES)), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.arbiter = arbiter = StreamArbiter(shape=Checked, count=SOURCES)
        for n in range(SOURCES):
            connect(m, flipped(getattr(self, f"checked_{n}")), arbiter.i[n])

        # A job is offered when the one before it is done with: until then its source is the other streams' too.
        busy, source, takes = Signal(), Signal(range(SOURCES)), Signal()
        m.d.comb += [
            self.checked.valid.eq(arbiter.o.valid & ~busy), self.checked.payload.eq(arbiter.o.payload),
            arbiter.o.ready.eq(self.checked.ready & ~busy), takes.eq(self.checked.valid & self.checked.ready),
            self.of.eq(source),
        ]
        with m.If(takes):
            m.d.sync += [busy.eq(1), source.eq(arbiter.source)]
        with m.Elif(self.done):
            m.d.sync += busy.eq(0)
        for name in ("verdict", "piece", "row"):
            out, sources = getattr(self, name), [getattr(self, f"{name}_{n}") for n in range(SOURCES)]
            m.d.comb += [
                out.valid.eq(busy & Mux(source, sources[1].valid, sources[0].valid)),
                out.payload.eq(Mux(source, sources[1].payload, sources[0].payload)),
                *(stream_.ready.eq(busy & (source == n) & out.ready) for n, stream_ in enumerate(sources)),
            ]
        m.d.comb += self.active.eq(arbiter.active | takes | self.done)
        return m
