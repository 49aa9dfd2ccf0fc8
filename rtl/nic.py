# amaranth: UnusedElaboratable=no
"""The device: this file is the block diagram. It creates the blocks and connects them, in packet order."""

from amaranth.hdl import Cat, Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from nic_model.contract import COUNTERS, NicConfig
from rtl.axi_lite import AxiLiteSlave
from rtl.channels import Channels
from rtl.completion import Completion
from rtl.counters import Counters
from rtl.dma_read import DmaRead
from rtl.dma_write import DmaWrite
from rtl.doorbells import Axi4Slave, Doorbells
from rtl.events import Events
from rtl.fetch import TransmitFetch
from rtl.interfaces import AxiReadMaster, AxiWriteMaster, mac_beat
from rtl.keys import KeyTable
from rtl.pause import PauseTransmit
from rtl.primitives import EarliestDeadline, SkidBuffer
from rtl.receive import Receive
from rtl.registers import Registers
from rtl.transmit_back import TransmitBack
from rtl.tx_scheduler import TransmitScheduler


class Nic(wiring.Component):
    """A SmartNIC with segmentation offload: AXI on the host's side, AXI-Stream on the MAC's.

    Parameters
    ----------
    config : NicConfig
        Sizes, from the contract.

    Members
    -------
    s_axil : AXI4-Lite slave, registers.
    s_axi : AXI4 slave as wide as the host bus, doorbell pages.
    m_axi_read, m_axi_write : the two halves of one AXI4 master, DMA.
    m_axis_tx, s_axis_rx : frames to and from the MAC, without FCS.
    irq : one line per vector, level; the highest is the error vector.
    now : cycle count that all time inside is measured by; a plain counter on an FPGA.
    quiet : nothing changes, whatever time passes, until an input changes or `next_deadline` comes.
    pause_active : no frame begins at `m_axis_tx`, since the peer's pause frame wants it so.
    pause_request : the receive buffer is above its mark; for a MAC that sends pause frames by itself.
    error_completion : a completion that says anything but OK begins its way to memory; nothing depends on it.
    next_deadline, deadline_valid : the next cycle count at which something happens by itself, if any.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        self.dma_read = DmaRead(config)
        self.dma_write = DmaWrite(config)
        super().__init__({
            "s_axil": In(AxiLiteSlave()),
            "s_axi": In(Axi4Slave(config)),
            "m_axi_read": Out(AxiReadMaster(config, self.dma_read.id_bits)),
            "m_axi_write": Out(AxiWriteMaster(config, self.dma_write.id_bits)),
            "m_axis_tx": Out(stream.Signature(mac_beat(config))),
            "s_axis_rx": In(stream.Signature(mac_beat(config))),
            "irq": Out(config.vectors + 1),
            "now": In(64),
            "quiet": Out(1),
            "pause_active": Out(1),
            "pause_request": Out(1),
            "error_completion": Out(1),
            "next_deadline": Out(64),
            "deadline_valid": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config

        m.submodules.registers = registers = Registers(config)
        m.submodules.doorbells = doorbells = Doorbells(config)
        m.submodules.channels = channels = Channels(config)
        m.submodules.keys = keys = KeyTable(config)
        m.submodules.fetch = fetch = TransmitFetch(config)
        m.submodules.scheduler = scheduler = TransmitScheduler(config)
        m.submodules.dma_read = dma_read = self.dma_read
        m.submodules.transmit = transmit = TransmitBack(config)
        m.submodules.pause = pause = PauseTransmit(config)
        m.submodules.receive = receive = Receive(config)
        m.submodules.dma_write = dma_write = self.dma_write
        m.submodules.completion = completion = Completion(config)
        m.submodules.events = events = Events(config)
        m.submodules.counters = counters = Counters(config)
        m.submodules.deadlines = deadlines = EarliestDeadline(count=4)
        links = []

        def link(source, sink):
            """Connect two streams through a stage that registers both directions, so that no path crosses a block."""
            stage = SkidBuffer(shape=source.payload.shape())
            begin = next(f"{name}_{port}" for name, block in blocks.items() for port in block.signature.members
                         if getattr(block, port) is source)
            m.submodules[f"link_{begin}"] = stage
            links.append(stage)
            connect(m, source, stage.i)
            connect(m, stage.o, sink)

        blocks = {"registers": registers, "doorbells": doorbells, "channels": channels, "keys": keys, "fetch": fetch,
                  "scheduler": scheduler, "dma_read": dma_read, "transmit": transmit, "pause": pause,
                  "receive": receive,
                  "dma_write": dma_write, "completion": completion, "events": events, "counters": counters}

        # The host's registers and doorbells.
        connect(m, flipped(self.s_axil), registers.axil)
        connect(m, flipped(self.s_axi), doorbells.axi)
        for block in (channels, keys, fetch, scheduler, pause, receive, completion, events, counters):
            connect(m, registers.write, block.write)
        for name, owner in (("events", events), ("counters", counters), ("channels", channels)):
            connect(m, getattr(registers, f"read_{name}"), owner.read)
            connect(m, owner.value, getattr(registers, f"value_{name}"))
        connect(m, doorbells.tx, fetch.doorbell)
        connect(m, doorbells.push_write, fetch.push_write)
        connect(m, fetch.push_free, doorbells.push_free)
        link(doorbells.rx, receive.doorbell)
        link(doorbells.arm, events.arm)

        # The life of a channel.
        for block in (registers, fetch, receive, completion, events):
            connect(m, channels.start, block.start)
        connect(m, channels.stop, events.stop)
        m.d.comb += [block.running.eq(channels.running) for block in (fetch, scheduler, receive, completion, events)]
        m.d.comb += [block.drain_request.eq(channels.drain_request) for block in (fetch, receive)]
        m.d.comb += [
            channels.drain_done_tx.eq(fetch.drain_done),
            channels.drain_done_rx.eq(receive.drain_done),
        ]
        link(fetch.fault, channels.fault_fetch)
        link(receive.fault, channels.fault_receive)
        link(completion.fault, channels.fault_completion)

        # Transmit: descriptor, keys, scheduler, payload, segments, MAC.
        connect(m, fetch.descriptor_cmd, dma_read.cmd_descriptor)
        connect(m, dma_read.beat_descriptor, fetch.descriptor_beat)
        link(fetch.key_request, keys.request_0)
        connect(m, keys.answer_0, fetch.key_answer)
        for port in ("job", "stored_row", "stored_piece"):
            connect(m, getattr(fetch, port), getattr(scheduler, port))
        connect(m, scheduler.freed, fetch.freed)
        link(scheduler.payload_cmd, dma_read.cmd_payload)
        link(dma_read.beat_payload, transmit.payload)
        link(scheduler.slice, transmit.slice)
        connect(m, scheduler.inline, transmit.inline)
        connect(m, transmit.begun, scheduler.begun)
        connect(m, transmit.dropped, scheduler.dropped)
        connect(m, transmit.mac, pause.i)
        connect(m, pause.o, flipped(self.m_axis_tx))
        link(transmit.done, completion.tx)

        # Receive: MAC, buffers, keys, host memory.
        connect(m, flipped(self.s_axis_rx), receive.mac)
        connect(m, receive.pause, pause.pause)
        m.d.comb += [
            pause.fill.eq(receive.fill),
            self.pause_active.eq(pause.pause_active), self.pause_request.eq(pause.pause_request),
        ]
        link(receive.ring_cmd, dma_read.cmd_receive)
        connect(m, dma_read.beat_receive, receive.ring_beat)
        link(receive.key_request, keys.request_1)
        link(keys.answer_1, receive.key_answer)
        link(receive.write_cmd, dma_write.cmd_receive)
        connect(m, receive.write_row, dma_write.row_receive)
        connect(m, dma_write.done_receive, receive.write_done)
        connect(m, receive.done, completion.rx)

        # Completions and interrupts.
        link(completion.write_cmd, dma_write.cmd_completion)
        connect(m, completion.write_row, dma_write.row_completion)
        connect(m, dma_write.done_completion, completion.write_done)
        connect(m, completion.retired, events.retired)
        m.d.comb += [
            fetch.tx_retired.eq(completion.tx_retired), fetch.tx_retired_epoch.eq(completion.tx_retired_epoch),
            receive.rx_retired.eq(completion.rx_retired),
        ]
        m.d.comb += [
            events.error_irq.eq(channels.error_irq),
            self.irq.eq(Cat(events.irq, channels.error_irq)),
            self.error_completion.eq(completion.error),
            self.next_deadline.eq(deadlines.next_deadline),
            self.deadline_valid.eq(deadlines.deadline_valid),
        ]
        for entry, block in zip(deadlines.i, (events, scheduler, pause, receive), strict=True):
            m.d.comb += [entry.valid.eq(block.deadline_valid), entry.payload.eq(block.next_deadline)]

        # The bus, and what is counted and reported on the way.
        connect(m, dma_read.axi, flipped(self.m_axi_read))
        connect(m, dma_write.axi, flipped(self.m_axi_write))
        connect(m, fetch.index, registers.index_tx)
        connect(m, receive.index, registers.index_rx)
        connect(m, completion.index, registers.index_cq)
        for counter in COUNTERS:
            port = f"count_{counter.name}"
            owners = [b for b in (transmit, pause, receive, completion, events) if hasattr(b, port)]
            if len(owners) != 1:
                raise RuntimeError(f"counter {counter.name} must have one owner, not {len(owners)}")
            connect(m, getattr(owners[0], port), getattr(counters, port))

        m.d.comb += [block.now.eq(self.now) for block in (registers, scheduler, transmit, pause, receive, events)]
        m.d.comb += self.quiet.eq(~Cat(block.active for block in (*blocks.values(), *links)).any())
        return m
