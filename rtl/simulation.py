# amaranth: UnusedElaboratable=no
"""The device as a simulator sees it: few wide ports, so that a test bench touches few handles in a cycle.

All `valid` and `ready` that leave the device, `quiet` and other single bits stand in one word, `flags`; each stream's
payload is one vector. `now` is a counter here, and can be set ahead to jump over idle time.
"""

from amaranth.hdl import Cat, Fragment, Module, Mux, Shape, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from nic_model.contract import NicConfig
from rtl.nic import Nic
from rtl.primitives import SkidBuffer
from rtl.probes import find_probes, probes_document, probes_width

OUTPUTS = ("m_axi_ar", "m_axi_aw", "m_axi_w", "m_axis_tx", "s_axil_b", "s_axil_r", "s_axi_b")
"""Streams that leave any device: bit n of `flags` is the valid of the n-th, bit n of `ready` its ready."""

INPUTS = ("s_axil_aw", "s_axil_w", "s_axil_ar", "s_axi_aw", "s_axi_w", "m_axi_r", "m_axi_b", "s_axis_rx")
"""Streams that enter: lowest bit of each vector is valid, the payload above it; their ready bits follow in `flags`."""

PORT_OUTPUTS, PORT_INPUTS = ("m_axis_up",), ("s_axis_release", "s_axis_emit")
"""Those of a control port. Their bits of `flags` stand behind all others, that of `ready` too."""

LANE_ENABLES = {"m_axi_w": "strb", "m_axis_tx": "keep"}
"""Of streams that leave: the field with a bit for each byte of `data`."""

MARKS = ("quiet", "deadline_valid", "error_irq", "error_completion")
"""Single bits of the device, in `flags` behind those of the streams."""

FLAGS = (*(f"{name}_valid" for name in OUTPUTS), *(f"{name}_ready" for name in INPUTS), *MARKS)
"""Names of the bits of `flags` of any device, from the lowest."""


def outputs(config: NicConfig) -> tuple[str, ...]:
    """All streams that leave this device, in the order of the bits of `ready`."""
    return OUTPUTS + (PORT_OUTPUTS if config.flows else ())


def inputs(config: NicConfig) -> tuple[str, ...]:
    """All streams that enter it."""
    return INPUTS + (PORT_INPUTS if config.flows else ())


def flag_names(config: NicConfig) -> tuple[str, ...]:
    """Names of the bits of its `flags`, from the lowest."""
    if not config.flows:
        return FLAGS
    return (*FLAGS, *(f"{name}_valid" for name in PORT_OUTPUTS), *(f"{name}_ready" for name in PORT_INPUTS))


def streams(nic):
    """Name -> stream of the device's ports, by the names that the Verilog has."""
    return {
        "m_axi_ar": nic.m_axi_read.ar, "m_axi_r": nic.m_axi_read.r,
        "m_axi_aw": nic.m_axi_write.aw, "m_axi_w": nic.m_axi_write.w, "m_axi_b": nic.m_axi_write.b,
        "m_axis_tx": nic.m_axis_tx, "s_axis_rx": nic.s_axis_rx,
        "s_axil_aw": nic.s_axil.aw, "s_axil_w": nic.s_axil.w, "s_axil_b": nic.s_axil.b,
        "s_axil_ar": nic.s_axil.ar, "s_axil_r": nic.s_axil.r,
        "s_axi_aw": nic.s_axi.aw, "s_axi_w": nic.s_axi.w, "s_axi_b": nic.s_axi.b,
        "s_axi_ar": nic.s_axi.ar, "s_axi_r": nic.s_axi.r,
        **({name: getattr(nic, name) for name in (*PORT_OUTPUTS, *PORT_INPUTS)}
           if nic.config.flows else {}),
    }


def vector_fields(config: NicConfig):
    """Name of a stream -> field -> (offset, width) in bits within its payload."""
    return {name: {field: (shape.offset, shape.width) for field, shape in port.payload.shape()}
            for name, port in streams(Nic(config)).items()}


def port_widths(config: NicConfig):
    """Name of a port of `SimulationTop` -> its width in bits."""
    return {name: Shape.cast(member.shape).width for name, member in SimulationTop(config).signature.members.items()}


class SimulationTop(wiring.Component):
    """The device and its clock for simulation.

    Parameters
    ----------
    config : NicConfig
    registered : bool
        Inputs pass a register first: what a test bench sets in one cycle, the device sees in the next. So a bench that
        acts between two edges behaves as one that acts on an edge.
    probed : bool
        With `asked` and `probes`; see `rtl.probes`.

    Members
    -------
    flags : a bit for each of `flag_names`.
    irq : interrupt lines of the vectors; the error line is among the flags.
    ready : a ready bit for each of `outputs`.
    <output name>, <input name> : payload vectors.
    jump, jump_to : at an edge with `jump`, `now` becomes `jump_to` instead of one more.
    asked, probes : what `rtl.probes.probes_document` explains, of the last cycle with `asked`.
    """

    def __init__(self, config: NicConfig, *, registered: bool = False, probed: bool = False):
        self.config = config
        self.registered = registered
        self.probed = probed
        self.nic = Nic(config)
        found = streams(self.nic)
        members = {name: Out(Value.cast(found[name].payload).shape().width) for name in outputs(config)}
        members |= {name: In(Value.cast(found[name].payload).shape().width + 1) for name in inputs(config)}
        if probed:
            members |= {"asked": In(1), "probes": Out(probes_width(probes_document(config)))}
        super().__init__({
            **members, "flags": Out(len(flag_names(config))), "irq": Out(config.vectors),
            "ready": In(len(outputs(config))), "jump": In(1), "jump_to": In(64),
            "now": Out(64), "next_deadline": Out(64),
        })

    def elaborate(self, platform):
        m = Module()
        nic = self.nic
        m.submodules.nic = inside = Fragment.get(nic, platform)
        if self.probed:
            # Only when asked, so that it costs nothing else.
            with m.If(self.asked):
                m.d.sync += self.probes.eq(find_probes(inside).value)
        found = streams(nic)
        ready, jump, jump_to = (self._input(m, name) for name in ("ready", "jump", "jump_to"))
        now = Signal(64)
        m.d.sync += now.eq(Mux(jump, jump_to, now + 1))
        m.d.comb += [nic.now.eq(now), self.now.eq(now), self.next_deadline.eq(nic.next_deadline)]
        for index, name in enumerate(outputs(self.config)):
            m.d.comb += [getattr(self, name).eq(found[name].payload), found[name].ready.eq(ready[index])]
            # Lanes that do not count may be anything, unknown in a simulator with four values; a test bench sees 0.
            payload, enable = found[name].payload, LANE_ENABLES.get(name)
            if enable is not None:
                offset, lanes = payload.shape()["data"].offset, len(payload[enable])
                counting = Cat(Mux(payload[enable][lane], payload.data[8 * lane:8 * lane + 8], 0)
                               for lane in range(lanes))
                # mostly all of them do: a compiled simulator then looks at none
                m.d.comb += getattr(self, name)[offset:offset + 8 * lanes].eq(
                    counting if self.registered else Mux(payload[enable].all(), payload.data, counting))
        readies, busy = {}, []
        for name in inputs(self.config):
            vector, port = self._input(m, name), found[name]
            entry = stream.Signature(port.payload.shape()).create(path=(name,))
            m.d.comb += [entry.valid.eq(vector[0]), Value.cast(entry.payload).eq(vector[1:])]
            if name.startswith("s_axi"):
                # A slave may wait for valid before it is ready; a test bench wants to know beforehand.
                m.submodules[f"skid_{name}"] = skid = SkidBuffer(shape=port.payload.shape())
                wiring.connect(m, entry, skid.i)
                wiring.connect(m, skid.o, port)
                busy.append(skid.active)
            else:
                m.d.comb += [port.valid.eq(entry.valid), port.payload.eq(entry.payload), entry.ready.eq(port.ready)]
            readies[f"{name}_ready"] = entry.ready
        m.d.comb += [found["s_axi_ar"].valid.eq(0), found["s_axi_r"].ready.eq(1)]
        marks = {"quiet": nic.quiet & ~Cat(busy).any(), "deadline_valid": nic.deadline_valid,
                 "error_irq": nic.irq[-1], "error_completion": nic.error_completion}
        bits = {f"{name}_valid": found[name].valid for name in outputs(self.config)} | readies | marks
        m.d.comb += [
            self.flags.eq(Cat(bits[name] for name in flag_names(self.config))),
            self.irq.eq(nic.irq[:-1]),
        ]
        return m

    def _input(self, m, name):
        """An input, or the register behind it."""
        port = getattr(self, name)
        if not self.registered:
            return port
        # What a bench sets in reset counts in the cycle behind it, as if there were no register.
        held = Signal(len(port), name=f"held_{name}", reset_less=True)
        m.d.sync += held.eq(port)
        return held
