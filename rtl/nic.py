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
from rtl.primitives import SkidBuffer
from rtl.receive import Receive
from rtl.registers import Registers
from rtl.transmit_back import TransmitBack


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
        m.submodules.dma_read = dma_read = self.dma_read
        m.submodules.transmit = transmit = TransmitBack(config)
        m.submodules.receive = receive = Receive(config)
        m.submodules.dma_write = dma_write = self.dma_write
        m.submodules.completion = completion = Completion(config)
        m.submodules.events = events = Events(config)
        m.submodules.counters = counters = Counters(config)
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
                  "dma_read": dma_read, "transmit": transmit, "receive": receive, "dma_write": dma_write,
                  "completion": completion, "events": events, "counters": counters}

        # The host's registers and doorbells.
        connect(m, flipped(self.s_axil), registers.axil)
        connect(m, flipped(self.s_axi), doorbells.axi)
        for block in (channels, keys, fetch, receive, completion, events, counters):
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
        m.d.comb += [block.running.eq(channels.running) for block in (fetch, receive, completion, events)]
        m.d.comb += [block.drain_request.eq(channels.drain_request) for block in (fetch, receive)]
        m.d.comb += [
            channels.drain_done_tx.eq(fetch.drain_done),
            channels.drain_done_rx.eq(receive.drain_done),
        ]
        link(fetch.fault, channels.fault_fetch)
        link(receive.fault, channels.fault_receive)
        link(completion.fault, channels.fault_completion)

        # Transmit: descriptor, keys, payload, segments, MAC.
        link(fetch.descriptor_cmd, dma_read.cmd_descriptor)
        connect(m, dma_read.beat_descriptor, fetch.descriptor_beat)
        link(fetch.key_request, keys.request_0)
        link(keys.answer_0, fetch.key_answer)
        link(fetch.payload_cmd, dma_read.cmd_payload)
        link(dma_read.beat_payload, transmit.payload)
        link(fetch.job, transmit.job)
        connect(m, fetch.inline, transmit.inline)
        connect(m, transmit.mac, flipped(self.m_axis_tx))
        link(transmit.done, completion.tx)

        # Receive: MAC, buffers, keys, host memory.
        connect(m, flipped(self.s_axis_rx), receive.mac)
        link(receive.ring_cmd, dma_read.cmd_receive)
        connect(m, dma_read.beat_receive, receive.ring_beat)
        link(receive.key_request, keys.request_1)
        link(keys.answer_1, receive.key_answer)
        link(receive.write_cmd, dma_write.cmd_receive)
        connect(m, receive.write_row, dma_write.row_receive)
        link(dma_write.done_receive, receive.write_done)
        link(receive.done, completion.rx)

        # Completions and interrupts.
        link(completion.write_cmd, dma_write.cmd_completion)
        connect(m, completion.write_row, dma_write.row_completion)
        link(dma_write.done_completion, completion.write_done)
        connect(m, completion.retired, events.retired)
        m.d.comb += [fetch.tx_retired.eq(completion.tx_retired), receive.rx_retired.eq(completion.rx_retired)]
        m.d.comb += [
            events.error_irq.eq(channels.error_irq),
            self.irq.eq(Cat(events.irq, channels.error_irq)),
            self.error_completion.eq(completion.error),
            self.next_deadline.eq(events.next_deadline),
            self.deadline_valid.eq(events.deadline_valid),
        ]

        # The bus, and what is counted and reported on the way.
        connect(m, dma_read.axi, flipped(self.m_axi_read))
        connect(m, dma_write.axi, flipped(self.m_axi_write))
        connect(m, fetch.index, registers.index_tx)
        connect(m, receive.index, registers.index_rx)
        connect(m, completion.index, registers.index_cq)
        for counter in COUNTERS:
            port = f"count_{counter.name}"
            owners = [b for b in (transmit, receive, completion, events) if hasattr(b, port)]
            if len(owners) != 1:
                raise RuntimeError(f"counter {counter.name} must have one owner, not {len(owners)}")
            connect(m, getattr(owners[0], port), getattr(counters, port))

        m.d.comb += [block.now.eq(self.now) for block in (registers, transmit, receive, events)]
        m.d.comb += self.quiet.eq(~Cat(block.active for block in (*blocks.values(), *links)).any())
        return m
