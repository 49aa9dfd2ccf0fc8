"""A receive path with a control port: what is for the port leaves it, and all else goes its way as without one."""

from nic_model.contract import NicConfig, register
from nic_model.contract.control import ControlEnable, ControlType, unpack_message
from tests.rtl.harness import idle
from tests.rtl.rx_frames import IP, TCP, data, ether
from tests.rtl.test_receive import Host, frame_of

CONFIG = NicConfig(name="control", channels=4, flows=16, listeners=4)


def test_frames_for_the_port_leave_the_path():
    host = Host(CONFIG, seed=1)
    up = []
    host.bench.sink(host.dut.control_up, up)
    segment = bytes(ether() / IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=1, dport=80, flags="A") / data(40))
    others = [frame_of(60, 1), frame_of(200, 2)]

    async def main(ctx):
        await host.open(ctx)
        await host.enable(ctx)
        for n in range(6):
            await host.post(ctx, 0x4000 + 0x400 * n, 0x400)
        await host.send(ctx, others[0])
        await host.send(ctx, segment)  # nobody sits at the port
        await host.settle(ctx, 2)
        await host.write(ctx, register("CONTROL_ENABLE"), ControlEnable.FLOWS)
        await host.send(ctx, segment)  # there is no flow
        await host.send(ctx, bytes(60))  # nor is it for this host
        await host.settle(ctx, 4)
        await host.write(ctx, register("CONTROL_ENABLE"), ControlEnable.FLOWS | ControlEnable.REST)
        for frame in (segment, others[1], bytes(60)):
            await host.send(ctx, frame)
        await idle(ctx, 300)
        await host.write(ctx, register("CONTROL_ENABLE"), 0)
        await host.send(ctx, others[1])
        await host.settle(ctx, 6)

    host.bench.add(main)
    host.bench.run(max_cycles=4000)
    delivered = [others[0], segment, segment, others[1]]
    assert [bytes(host.memory[0x4000 + 0x400 * n:][:len(frame)]) for n, frame in enumerate(delivered)] == delivered
    assert [token["length"] for token in host.done] == [len(frame) for frame in delivered]
    assert host.count("frames_in") == 8
    assert host.count("filtered") == 2  # those that went to the port are not among them
    assert host.ended == 6
    messages = b"".join(beat["data"].to_bytes(16, "little") for beat in up)
    found = [unpack_message(messages[at:at + 256])[:2] for at in range(0, len(messages), 256)]
    assert [(kind, fields["frame"].to_bytes(128, "little")[:60]) for kind, fields in found] == [
        (ControlType.UNKNOWN, frame[:60]) for frame in (segment, others[1])]
