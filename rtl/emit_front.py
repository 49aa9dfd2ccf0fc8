"""Messages of the emit stream become what the transmit front makes of descriptors. Creates blocks and connects them."""

from amaranth.hdl import Cat, Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from nic_model.contract import NicConfig
from rtl.control_messages import MessageReader, message_beat
from rtl.descriptor import BusPiece, Checked, DescriptorCheck, KeyVerdict, PieceTranslator
from rtl.emit import EmitDecoder
from rtl.emit_dones import EmitDones
from rtl.emit_gate import EmitGate
from rtl.flow_entries import FLOW_BITS, FlowEntries, FlowWrite
from rtl.interfaces import TIME_BITS, CountAmount, FreedSlots, KeyAnswer, KeyRequest, Strobe, TxDone, row
from rtl.primitives import StreamFifo

STORED_ROW_BYTES = 256
"""Header bytes on their way: two orders' most."""


class EmitFront(wiring.Component):
    """Orders to send become jobs.

    Enters: messages of the emit stream; entries of flows; PLACEs that are given and done; the key table's answers; what
    the scheduler has no longer stored; reports of sends that are over. Leaves: for each order what
    `rtl.descriptor.JobIssue` takes, and DONEs.

    A segment without payload in 8 cycles at 16-byte rows.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device; `flows` must not be 0.

    Members
    -------
    i : beats of messages.
    flow_write, keeps_key : entries of flows, see `FlowEntries`.
    place_given, place_done, freed, left : see `EmitGate`.
    source_mac, now : own Ethernet address, first byte lowest; the device's cycle count.
    key_request, key_answer : client of the key table.
    checked, verdict, piece, row : what leaves.
    done, drain_request, drain_done : see `EmitDones`.
    o : messages up.
    count_control_emits, count_control_stale, count_control_refused : count strobes.
    active : see `rtl.interfaces`.
    """

    def __init__(self, config: NicConfig):
        if not config.flows:
            raise ValueError(f"device {config.name!r} has no control port: its flows are 0")
        self.config = config
        beat = message_beat(config)
        super().__init__({
            "i": In(stream.Signature(beat)), "flow_write": In(stream.Signature(FlowWrite)),
            "keeps_key": In(1),
            "place_given": In(stream.Signature(FLOW_BITS)), "place_done": In(stream.Signature(FLOW_BITS)),
            "source_mac": In(48), "now": In(TIME_BITS),
            "key_request": Out(stream.Signature(KeyRequest)), "key_answer": In(stream.Signature(KeyAnswer)),
            "checked": Out(stream.Signature(Checked)), "verdict": Out(stream.Signature(KeyVerdict)),
            "piece": Out(stream.Signature(BusPiece)), "row": Out(stream.Signature(row(config))),
            "freed": In(Strobe(FreedSlots)), "done": In(stream.Signature(TxDone)), "left": Out(1),
            "o": Out(stream.Signature(beat)), "drain_request": In(1), "drain_done": Out(1),
            **{f"count_control_{name}": Out(Strobe(CountAmount)) for name in ("emits", "stale", "refused")},
            "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config, queues = self.config, self.config.port_queues
        m.submodules.gate = gate = EmitGate(config, queues=queues)
        m.submodules.reader = reader = MessageReader(config)
        m.submodules.flows = flows = FlowEntries(flows=config.flows)
        m.submodules.decoder = decoder = EmitDecoder(config, queues=queues)
        m.submodules.translator = translator = PieceTranslator()
        m.submodules.rows = rows = StreamFifo(shape=row(config), depth=STORED_ROW_BYTES // config.host_bytes)
        m.submodules.check = check = DescriptorCheck()
        m.submodules.dones = dones = EmitDones(config, queues=queues)

        connect(m, flipped(self.i), gate.i)
        for name in ("place_given", "place_done"):
            connect(m, flipped(getattr(self, name)), getattr(gate, name))
        connect(m, gate.o, reader.i)
        connect(m, reader.o, decoder.i)
        connect(m, flipped(self.flow_write), flows.write)
        m.d.comb += flows.keeps_key.eq(self.keeps_key)
        connect(m, decoder.flow, flows.flow)
        connect(m, flows.entry, decoder.entry)
        m.d.comb += [decoder.source_mac.eq(self.source_mac), decoder.now.eq(self.now), dones.now.eq(self.now)]

        connect(m, decoder.piece, translator.i)
        connect(m, translator.key_request, flipped(self.key_request))
        connect(m, flipped(self.key_answer), translator.key_answer)
        connect(m, translator.piece, flipped(self.piece))
        connect(m, translator.verdict, flipped(self.verdict))
        connect(m, decoder.row, rows.i)
        connect(m, rows.o, flipped(self.row))
        connect(m, decoder.parsed, check.i)
        connect(m, check.o, flipped(self.checked))

        connect(m, decoder.record, dones.record)
        connect(m, flipped(self.freed), gate.freed)
        connect(m, flipped(self.done), dones.done)
        connect(m, dones.o, flipped(self.o))
        m.d.comb += [
            decoder.room.eq(dones.room), dones.begun.eq(decoder.begun), self.left.eq(gate.left),
            dones.drain_request.eq(self.drain_request), self.drain_done.eq(dones.drain_done),
        ]
        for name in ("emits", "stale", "refused"):
            connect(m, getattr(dones, f"count_control_{name}"), flipped(getattr(self, f"count_control_{name}")))
        m.d.comb += self.active.eq(Cat(
            block.active for block in (gate, reader, flows, decoder, translator, rows, check, dones)).any())
        return m
