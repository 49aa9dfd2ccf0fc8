# amaranth: UnusedElaboratable=no
"""The device: this file is the block diagram. It creates the blocks and connects them, in packet order."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from nic_model.contract import NicConfig
from rtl.axi_lite import AxiLiteSlave
from rtl.channels import Channels
from rtl.completion import Completion
from rtl.control_messages import message_beat
from rtl.control_port import ControlPort
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
    m_axis_up, s_axis_release, s_axis_emit : of a device with flows, the streams of its control port.
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
            **({"m_axis_up": Out(stream.Signature(message_beat(config))),
                "s_axis_release": In(stream.Signature(message_beat(config))),
                "s_axis_emit": In(stream.Signature(message_beat(config)))} if config.flows else {}),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config

        m.submodules.registers = registers = Registers(config)
        m.submodules.doorbells = doorbells = Doorbells(config)
        m.submodules.channels = channels = Channels(config)
        m.submodules.keys = keys = KeyTable(config, clients=4 if config.flows else 2)
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
        m.submodules.deadlines = deadlines = EarliestDeadline(count=5 if config.flows else 4)
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
        if config.flows:
            m.submodules.control = blocks["control"] = ControlPort(config)

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
        # the control port's queues always run
        m.d.comb += [scheduler.running[queue].eq(1) for queue in config.port_queues]
        m.d.comb += [block.drain_request.eq(channels.drain_request) for block in (fetch, receive)]
        sent, received = fetch.drain_done, receive.drain_done
        if config.flows:
            control = blocks["control"]
            m.d.comb += [block.drain_request.eq(channels.drain_request) for block in (completion, control)]
            sent, received = sent & control.drain_done, received & completion.drain_done
        m.d.comb += [
            channels.drain_done_tx.eq(sent),
            channels.drain_done_rx.eq(received),
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
        if config.flows:
            self._connect_control_port(m, blocks, link)
        else:
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
        timed = [events, scheduler, pause, receive, *([blocks["control"]] if config.flows else [])]
        for entry, block in zip(deadlines.i, timed, strict=True):
            m.d.comb += [entry.valid.eq(block.deadline_valid), entry.payload.eq(block.next_deadline)]

        # The bus, and what is counted and reported on the way.
        connect(m, dma_read.axi, flipped(self.m_axi_read))
        connect(m, dma_write.axi, flipped(self.m_axi_write))
        connect(m, fetch.index, registers.index_tx)
        connect(m, receive.index, registers.index_rx)
        connect(m, completion.index, registers.index_cq)
        for counter in config.counters:
            port = f"count_{counter.name}"
            strobes = [getattr(block, port) for block in blocks.values()
                       if block is not counters and hasattr(block, port)]
            if not strobes:
                raise RuntimeError(f"counter {counter.name} has no owner")
            if len(strobes) == 1:
                connect(m, strobes[0], getattr(counters, port))
            else:
                m.d.comb += [
                    getattr(counters, port).valid.eq(Cat(strobe.valid for strobe in strobes).any()),
                    getattr(counters, port).payload.amount.eq(sum(
                        Mux(strobe.valid, strobe.payload.amount, 0) for strobe in strobes)),
                ]

        m.d.comb += [block.now.eq(self.now) for block in (registers, *timed, transmit)]
        m.d.comb += self.quiet.eq(~Cat(block.active for block in (*blocks.values(), *links)).any())
        return m

    def _connect_control_port(self, m, blocks, link):
        """Join the control port to the paths of both directions, and to the device's own ports."""
        control, receive, fetch, keys, dma_write, transmit, completion = (blocks[name] for name in (
            "control", "receive", "fetch", "keys", "dma_write", "transmit", "completion"))

        # Its streams.
        for name in ("release", "emit"):
            m.submodules[f"skid_{name}"] = skid = SkidBuffer(shape=message_beat(self.config))
            blocks[f"skid_{name}"] = skid
            connect(m, flipped(getattr(self, f"s_axis_{name}")), skid.i)
            connect(m, skid.o, getattr(control, name))
        connect(m, control.up, flipped(self.m_axis_up))
        connect(m, blocks["registers"].write, control.write)

        # Receive: frames to the decider, what it orders about them, and what the send side learns of flows.
        connect(m, control.receive_release, receive.control_release)
        connect(m, receive.control_up, control.receive_up)
        connect(m, receive.control_entry, control.entry)
        connect(m, receive.control_place_over, control.place_over)
        m.d.comb += control.keeps_key.eq(receive.control_keeps_key)
        connect(m, receive.control_socket, completion.socket)
        connect(m, completion.socket_taken, receive.control_socket_taken)
        link(receive.control_key_request, keys.request_2)
        link(keys.answer_2, receive.control_key_answer)
        link(receive.control_write_cmd, dma_write.cmd_place)
        connect(m, receive.control_write_row, dma_write.row_place)
        connect(m, dma_write.done_place, receive.control_write_done)

        # Send: orders are a second source of jobs, and their reports are the control port's.
        link(control.key_request, keys.request_3)
        connect(m, keys.answer_3, control.key_answer)
        for name in ("checked", "verdict", "piece", "row"):
            connect(m, getattr(control, name), getattr(fetch, f"emit_{name}"))
        connect(m, blocks["scheduler"].freed, control.freed)
        link(blocks["scheduler"].operation, control.operation)
        m.d.comb += fetch.clearing.eq(blocks["scheduler"].clearing)
        m.submodules.link_transmit_done = reports = SkidBuffer(shape=transmit.done.payload.shape())
        blocks["link_transmit_done"] = reports
        is_order = Signal()
        m.d.comb += [
            is_order.eq(Cat(transmit.done.payload.channel == queue for queue in self.config.port_queues).any()),
            control.done.valid.eq(transmit.done.valid & is_order),
            reports.i.valid.eq(transmit.done.valid & ~is_order),
            transmit.done.ready.eq(Mux(is_order, control.done.ready, reports.i.ready)),
            *(sink.payload.eq(transmit.done.payload) for sink in (control.done, reports.i)),
        ]
        connect(m, reports.o, completion.tx)
