# amaranth: UnusedElaboratable=no
"""AXI4-Lite registers against the contract's table, address by address."""

import random
from itertools import pairwise

import pytest

from nic_model.contract import (
    CHANNEL_STRIDE,
    CHANNELS_BASE,
    CONFIGS,
    COUNTERS,
    COUNTERS_BASE,
    INDIRECTION_BASE,
    INDIRECTION_STRIDE,
    KEY_STRIDE,
    KEYS_BASE,
    MAGIC,
    REGISTER_SPACE_BYTES,
    REGISTERS,
    RSS_INDIRECTION_ENTRIES,
    STEERING_BASE,
    STEERING_STRIDE,
    VECTOR_STRIDE,
    VECTORS_BASE,
    Access,
    channel_register,
    indirection_register,
    key_register,
    register,
    steering_register,
    vector_register,
)
from nic_model.contract.registers import Block
from rtl.registers import OWNERS, WRITE_SPACING_CYCLES, Registers
from tests.rtl.harness import Bench, idle, until

TINY = CONFIGS["tiny"]
OKAY, SLVERR = 0, 2
LIVE = [name for names in OWNERS.values() for name in names]


class AxiLiteHost:
    """Drives the AXI4-Lite port of a block under `bench`."""

    def __init__(self, bench, axil, *, stall=0.0):
        self.bench, self.axil, self.stall = bench, axil, stall

    async def write(self, ctx, address, value, strobes=0xF):
        """Returns the response. Address and data come in the same cycle."""
        axil = self.axil
        ctx.set(axil.aw.payload.addr, address)
        ctx.set(axil.w.payload, {"data": value, "strb": strobes})
        ctx.set(axil.aw.valid, 1)
        ctx.set(axil.w.valid, 1)
        await until(ctx, axil.aw.ready & axil.w.ready)
        ctx.set(axil.aw.valid, 0)
        ctx.set(axil.w.valid, 0)
        response = await self._answer(ctx, axil.b)
        return response.resp

    async def read(self, ctx, address):
        """Returns the value; the response must be OKAY."""
        await self.bench.send(ctx, self.axil.ar, {"addr": address})
        response = await self._answer(ctx, self.axil.r)
        assert response.resp == OKAY
        return response.data

    async def _answer(self, ctx, channel):
        while self.bench.rng.random() < self.stall:
            await ctx.tick()
        ctx.set(channel.ready, 1)
        payload, = await until(ctx, channel.valid, channel.payload)
        ctx.set(channel.ready, 0)
        return payload


def owners_answer(bench, dut, reads, *, latency=3):
    """Each owner answers a read with the complement of its address, some cycles later."""
    for owner in OWNERS:
        asked = getattr(dut, f"read_{owner}")
        answer = getattr(dut, f"value_{owner}")

        async def serve(ctx, owner=owner, asked=asked, answer=answer):
            while True:
                payload, = await until(ctx, asked.valid, asked.payload)
                reads.append((owner, payload.address))
                await idle(ctx, bench.rng.randrange(latency + 1))
                await bench.strobe(ctx, answer, {"data": ~payload.address & 0xFFFF_FFFF})
        bench.background(serve)


def contract_addresses(config):
    """Every address that has a register, with the register; built from the contract's address functions."""
    found = {}
    for r in REGISTERS.values():
        if r.block is Block.GLOBAL:
            found[register(r.name)] = r
        elif r.block is Block.VECTOR:
            found |= {vector_register(r.name, v): r for v in range(config.vectors)}
        elif r.block is Block.CHANNEL:
            found |= {channel_register(r.name, c): r for c in range(config.channels)}
        elif r.block is Block.STEERING:
            found[steering_register(r.name)] = r
        elif r.block is Block.INDIRECTION:
            found |= {indirection_register(n): r for n in range(RSS_INDIRECTION_ENTRIES)}
        elif r.block is Block.KEY:
            found |= {key_register(r.name, k): r for k in range(config.keys)}
    return found


def expected_reset_value(config, r, address):
    if r.name in LIVE:
        return ~address & 0xFFFF_FFFF
    if r.access is Access.WO:
        return 0
    return int(getattr(config, r.reset)) if isinstance(r.reset, str) else r.reset


@pytest.mark.parametrize("name", ["tiny", "wide"])
def test_reset_values(name):
    config = CONFIGS[name]
    dut = Registers(config)
    bench = Bench(dut, seed=1)
    host = AxiLiteHost(bench, dut.axil)
    reads = []
    owners_answer(bench, dut, reads)
    addresses = contract_addresses(config)
    picked = [a for a, r in addresses.items() if r.block in (Block.GLOBAL, Block.STEERING)]
    for base, stride, count in ((STEERING_BASE, STEERING_STRIDE, 1),
                                (INDIRECTION_BASE, INDIRECTION_STRIDE, RSS_INDIRECTION_ENTRIES),
                                (VECTORS_BASE, VECTOR_STRIDE, config.vectors),
                                (CHANNELS_BASE, CHANNEL_STRIDE, config.channels), (KEYS_BASE, KEY_STRIDE, config.keys)):
        picked += [a for index in (0, count - 1) for a in range(base + stride * index, base + stride * (index + 1), 4)]
        picked.append(base + stride * count)  # the first address behind the block has nothing
    # The counters' owner is asked up to the next power of two; behind the last counter it has 0 (`test_counters`).
    behind_counters = COUNTERS_BASE + (8 << (len(COUNTERS) - 1).bit_length())
    picked += [COUNTERS_BASE, COUNTERS_BASE + 8 * len(COUNTERS) - 4, behind_counters, 0x7C, 0x80,
               0x3000, REGISTER_SPACE_BYTES - 4]

    async def check(ctx):
        for address in picked:
            r = addresses.get(address)
            expected = 0 if r is None else expected_reset_value(config, r, address)
            if COUNTERS_BASE <= address < COUNTERS_BASE + 8 * len(COUNTERS):
                expected = ~address & 0xFFFF_FFFF
            assert await host.read(ctx, address % REGISTER_SPACE_BYTES) == expected, hex(address)
        assert await host.read(ctx, register("ID")) == MAGIC
        assert await host.read(ctx, vector_register("VECTOR_MASK", 1)) == 1
    bench.add(check)
    bench.run()
    assert {owner for owner, _ in reads} == set(OWNERS)


@pytest.mark.parametrize("seed", range(3))
def test_random_accesses(seed):
    rng = random.Random(seed)
    dut = Registers(TINY)
    bench = Bench(dut, seed=seed)
    host = AxiLiteHost(bench, dut.axil, stall=0.3)
    reads, strobes = [], []
    owners_answer(bench, dut, reads)
    bench.strobes(dut.write, strobes, with_cycle=True)
    addresses = contract_addresses(TINY)
    shadowed = {a for a, r in addresses.items() if r.access is Access.RW and r.name not in LIVE}
    by_access = {access: [a for a, r in addresses.items() if r.access is access] for access in Access}
    written, expected_strobes = {}, []

    async def check(ctx):
        for _ in range(300):
            mapped = by_access[rng.choice([*Access, Access.RW, Access.RW])]
            pick = rng.choice([mapped, [4 * rng.randrange(REGISTER_SPACE_BYTES // 4)]])
            address, value = rng.choice(pick), rng.getrandbits(32)
            r = addresses.get(address)
            # the word's address counts, not the byte in it
            offered = address + rng.randrange(4)
            if rng.random() < 0.5:
                lanes = rng.choice([0xF, 0xF, 0xF, rng.randrange(15)])
                response = await host.write(ctx, offered, value, lanes)
                assert response == (OKAY if lanes == 0xF else SLVERR)
                if lanes == 0xF and r is not None and r.access is not Access.RO:
                    expected_strobes.append({"address": address, "data": value})
                    if address in shadowed:
                        written[address] = value
                assert [s for _, s in strobes] == expected_strobes  # the response comes after the strobe
            elif r is None or r.name not in ("NOW_LO", "NOW_HI"):
                found = await host.read(ctx, offered)
                if COUNTERS_BASE <= address < COUNTERS_BASE + 8 * len(COUNTERS):
                    assert found == ~address & 0xFFFF_FFFF
                else:
                    reset = 0 if r is None else expected_reset_value(TINY, r, address)
                    assert found == written.get(address, reset), hex(address)
            await idle(ctx, rng.choice([0, 0, 3]))
    bench.add(check)
    bench.run()
    assert len(strobes) > 40
    assert len(written) > 10
    assert bench.idle_cycles > 100
    cycles = [cycle for cycle, _ in strobes]
    assert min(b - a for a, b in pairwise(cycles)) >= WRITE_SPACING_CYCLES


def test_reads_do_not_overtake_writes():
    """The read's address is accepted while the write's data is still to come: the read shows the new value."""
    dut = Registers(TINY)
    bench = Bench(dut, seed=5)
    axil, address = dut.axil, register("RX_FILTER")

    async def check(ctx):
        ctx.set(axil.b.ready, 1)
        for value, order in ((0x1234, "aw"), (0x5678, "w"), (0x9ABC, "both")):
            if order != "w":
                await bench.send(ctx, axil.aw, {"addr": address})
            if order != "aw":
                await bench.send(ctx, axil.w, {"data": value, "strb": 0xF})
            await bench.send(ctx, axil.ar, {"addr": address})
            await idle(ctx, 12 if order != "both" else 0)
            if order == "w":
                await bench.send(ctx, axil.aw, {"addr": address})
            elif order == "aw":
                await bench.send(ctx, axil.w, {"data": value, "strb": 0xF})
            ctx.set(axil.r.ready, 1)
            payload, = await until(ctx, axil.r.valid, axil.r.payload)
            ctx.set(axil.r.ready, 0)
            assert payload.data == value, order
    bench.add(check)
    bench.run()


def test_read_waits_for_two_writes_ahead():
    """One write held inside and one waiting on the bus when the read comes: both are done first."""
    dut = Registers(TINY)
    bench = Bench(dut, seed=6)
    axil, address = dut.axil, register("MAC_ADDRESS_LO")
    writes = 4
    bench.source(axil.aw, [{"addr": address}] * writes)
    bench.source(axil.w, [{"data": n + 1, "strb": 0xF} for n in range(writes)])
    answers, values = [], []
    bench.sink(axil.b, answers)
    bench.sink(axil.r, values)

    async def check(ctx):
        await idle(ctx, 4)
        await bench.send(ctx, axil.ar, {"addr": address})
        while len(answers) < writes or not values:
            await ctx.tick()
    bench.add(check)
    bench.run()
    assert [v["data"] for v in values] == [2]
    assert answers == [{"resp": OKAY}] * writes


def test_now_halves_belong_together():
    dut = Registers(TINY)
    bench = Bench(dut)
    host = AxiLiteHost(bench, dut.axil)

    async def check(ctx):
        for before, after in ((0x1_FFFF_FFFF, 0x2_0000_0000), (0xDEAD_BEEF_0000_0001, 0)):
            ctx.set(dut.now, before)
            low = await host.read(ctx, register("NOW_LO"))
            ctx.set(dut.now, after)
            assert low | await host.read(ctx, register("NOW_HI")) << 32 == before
    bench.add(check)
    bench.run()


@pytest.mark.parametrize("seed", range(2))
def test_index_registers(seed):
    """Reports of three rings at random, starts between them."""
    rng = random.Random(seed)
    dut = Registers(TINY)
    bench = Bench(dut, seed=seed)
    host = AxiLiteHost(bench, dut.axil)
    ports = {"TX_INDEX": dut.index_tx, "RX_INDEX": dut.index_rx, "CQ_INDEX": dut.index_cq}
    shown = {(name, c): 0 for name in ports for c in range(TINY.channels)}

    async def check(ctx):
        for turn in range(40):
            start = rng.randrange(TINY.channels) if rng.random() < 0.3 else None
            for step in range(6):
                if start is not None:
                    ctx.set(dut.start.payload.channel, start)
                ctx.set(dut.start.valid, start is not None and step == 1)
                if start is not None and step == 1:
                    shown.update({(name, start): 0 for name in ports})
                for name, port in ports.items():
                    channel, index = rng.randrange(TINY.channels), rng.getrandbits(16)
                    reports = rng.random() < 0.7 and not (start == channel and step <= 1)
                    ctx.set(port.valid, reports)
                    ctx.set(port.payload, {"channel": channel, "index": index})
                    if reports:
                        shown[name, channel] = index
                await ctx.tick()
            for port in ports.values():
                ctx.set(port.valid, 0)
            for name, channel in rng.sample(sorted(shown), 3) if turn < 39 else sorted(shown):
                assert await host.read(ctx, channel_register(name, channel)) == shown[name, channel]
    bench.add(check)
    bench.run()


def test_a_read_waits_until_a_start_is_stored():
    """Reports of another channel in every cycle hold up the zero of the channel that starts, and the read with it."""
    dut = Registers(TINY)
    bench = Bench(dut)
    host = AxiLiteHost(bench, dut.axil)
    busy_cycles = 40

    async def check(ctx):
        await bench.strobe(ctx, dut.index_tx, {"channel": 1, "index": 0x1234})
        ctx.set(dut.index_tx.payload, {"channel": 0, "index": 7})
        ctx.set(dut.index_tx.valid, 1)
        await bench.strobe(ctx, dut.start, {"channel": 1})
        assert await host.read(ctx, channel_register("TX_INDEX", 1)) == 0
        assert bench.cycle > busy_cycles
        assert await host.read(ctx, channel_register("TX_INDEX", 0)) == 7

    async def quiet_at_last(ctx):
        await idle(ctx, busy_cycles)
        ctx.set(dut.index_tx.valid, 0)
    bench.add(check)
    bench.add(quiet_at_last)
    bench.run()
