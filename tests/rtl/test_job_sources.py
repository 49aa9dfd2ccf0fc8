# amaranth: UnusedElaboratable=no
"""Jobs of two sources before one issue: each is issued once, in its source's order, with its own pieces and rows."""

import itertools
import random
from dataclasses import dataclass

import pytest
from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from nic_model.contract import NicConfig, Status
from rtl.descriptor import JobIssue
from rtl.interfaces import Strobe, TxJob, TxPiece, tx_row
from rtl.job_sources import SOURCES, JobSources, issue_streams
from tests.rtl.harness import Bench, idle

SEED = 7_907
CONFIG = NicConfig(name="test", mac_bytes=8, host_bytes=16, channels=4, vectors=4, keys=64, flows=16)


class SharedIssue(wiring.Component):
    """The sources, and the issue behind them."""

    def __init__(self):
        self.sources, self.issue = JobSources(CONFIG), JobIssue(CONFIG)
        super().__init__({
            **{f"{name}_{n}": In(stream.Signature(shape)) for n in range(SOURCES)
               for name, shape in issue_streams(CONFIG).items()},
            "job": Out(Strobe(TxJob)), "stored_row": Out(Strobe(tx_row(CONFIG))), "stored_piece": Out(Strobe(TxPiece)),
            "of": Out(1), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.sources, m.submodules.issue = self.sources, self.issue
        for n in range(SOURCES):
            for name in issue_streams(CONFIG):
                connect(m, flipped(getattr(self, f"{name}_{n}")), getattr(self.sources, f"{name}_{n}"))
        connect(m, self.sources.checked, self.issue.i)
        for name in ("verdict", "piece", "row"):
            connect(m, getattr(self.sources, name), getattr(self.issue, name))
        for name in ("job", "stored_row", "stored_piece"):
            connect(m, getattr(self.issue, name), flipped(getattr(self, name)))
        m.d.comb += [
            self.sources.done.eq(self.issue.done), self.of.eq(self.sources.of),
            self.active.eq(self.sources.active | self.issue.active),
        ]
        return m


@dataclass
class Job:
    """A job of a source."""

    source: int
    number: int
    rows: int
    pieces: int
    key_status: int = Status.OK
    broken: bool = False

    @property
    def status(self) -> int:
        return self.key_status if self.pieces else Status.OK

    def mark(self, place: int) -> int:
        """What tells its pieces and rows from all others."""
        return self.source << 32 | self.number << 8 | place


@pytest.mark.parametrize("stall", [0.0, 0.4])
def test_each_job_is_issued_once_with_its_own_pieces_and_rows(stall: float) -> None:
    rng, dut = random.Random(SEED), SharedIssue()
    bench = Bench(dut, seed=SEED)
    jobs = [[Job(source, number, rng.choice((0, 1, 4, 5)), rng.choice((0, 0, 1, 3)),
                 rng.choice((Status.OK, Status.OK, Status.KEY_BOUNDS)), broken=source == 0 and rng.random() < stall / 4)
             for number in range(40)] for source in range(SOURCES)]
    for source in range(SOURCES):
        mine = jobs[source]

        def give(name, payloads, source=source):
            bench.source(getattr(dut, f"{name}_{source}"), payloads, stall=stall)
        give("checked", [{
            "job": dict.fromkeys(TxJob.members, 0) | {"channel": source, "tag": job.number},
            "broken": job.broken, "has_pieces": job.pieces != 0, "has_inline": job.rows != 0} for job in mine])
        give("verdict", [{"status": int(job.key_status)} for job in mine if job.pieces])
        give("piece", [{"address": job.mark(n), "length": n + 1, "last": n == job.pieces - 1}
                       for job in mine for n in range(job.pieces)])
        give("row", [{"data": job.mark(n), "last": n == job.rows - 1} for job in mine for n in range(job.rows)])

    issued: list[tuple[int, int, int, list[int], list[int]]] = []
    rows: list[int] = []
    pieces: list[int] = []

    async def collect(ctx):
        async for _, _, job, tag, status, of, row, row_data, piece, address, channel in ctx.tick().sample(
                dut.job.valid, dut.job.payload.tag, dut.job.payload.status, dut.of, dut.stored_row.valid,
                dut.stored_row.payload.data, dut.stored_piece.valid, dut.stored_piece.payload.address,
                dut.job.payload.channel):
            if row:
                rows.append(row_data)
            if piece:
                pieces.append(address)
            if job:
                assert of == channel
                issued.append((channel, tag, status, list(rows), list(pieces)))
                rows.clear()
                pieces.clear()
    bench.background(collect)
    wanted = [[(job.source, job.number, int(job.status),
                [job.mark(n) for n in range(job.rows)] if job.status == Status.OK else [],
                [job.mark(n) for n in range(job.pieces)] if job.status == Status.OK else [])
               for job in mine if not job.broken] for mine in jobs]

    async def until_all_are_issued(ctx):
        while len(issued) < sum(len(mine) for mine in wanted):
            await ctx.tick()
        await idle(ctx, 20)
    bench.add(until_all_are_issued)
    bench.run()
    for source in range(SOURCES):
        assert [found for found in issued if found[0] == source] == wanted[source], f"seed {SEED}"
    if not stall:  # both wait all the time: neither is passed over twice
        turns = [len(list(run)) for _, run in itertools.groupby(found[0] for found in issued[:60])]
        assert max(turns) <= 2
