"""`memnic bench rtl`: its limits by hand, what it measures on `tiny`, and the table of floors."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import scapy.layers.inet
import scapy.layers.l2

from cosim import benches, builds, cli
from cosim.benches import BenchOptions, cycles, floors, limits, rtl
from cosim.benches.floors import Floor, Floors, worse
from cosim.benches.rows import Row, row
from cosim.commands import bench
from cosim.engines.library import PortEvent, PortEventKind
from cosim.errors import InputError
from host_driver.nic import Nic
from nic_model.contract import CONFIGS, Feature, NicConfig

TINY = CONFIGS["tiny"]


def device(mac_bytes: int, payload_reads: int = 32) -> NicConfig:
    return NicConfig(name="some", mac_bytes=mac_bytes, payload_reads=payload_reads)


# ---------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize(("mac_bytes", "mss", "by_hand"), [
    # 44 frames of 1,514 bytes and one of 54 + 1,296.
    (8, 1460, 44 * 190 + 169), (64, 1460, 44 * 24 + 22),
    # 122 frames of 590 bytes and one of 54 + 144.
    (8, 536, 122 * 74 + 25), (64, 536, 122 * 10 + 4),
    # No short frame behind them.
    (16, 1024, 64 * 68)])
def test_beats_of_a_segmented_send(mac_bytes: int, mss: int, by_hand: int) -> None:
    assert limits.segmented_beats(device(mac_bytes), 65536, mss) == by_hand


@pytest.mark.parametrize(("mac_bytes", "payload_reads", "mss", "by_hand"), [
    (8, 32, 1460, 100),
    # 256 reads of 256 bytes, 8 at a time, each 250 cycles and 16 beats: 8,512 cycles, and 8,529 beats to the MAC.
    (8, 8, 1460, 100),
    # The same with beats of 32 bytes: 256 / 8 * (250 + 8) = 8,256 cycles for 44 * 95 + 85 = 4,265 beats.
    (16, 8, 1460, 100 * 4265 / 8256),
    # 65,536 bytes and 3 slots of 32, in beats of 64: 1,025.5; 1,078 beats to the MAC; 256 / 96 * 254 = 677 cycles.
    (64, 96, 1460, 100),
    # 256 / 32 * 254 = 2,032 cycles.
    (64, 32, 1460, 100 * 1078 / 2032)])
def test_share_of_cycles_that_can_send(mac_bytes: int, payload_reads: int, mss: int, by_hand: float) -> None:
    found = limits.transmit_percent(device(mac_bytes, payload_reads), send_bytes=65536, mss=mss, latency_cycles=250)
    assert found == pytest.approx(by_hand)


@pytest.mark.parametrize(("mac_bytes", "by_hand"), [
    # 190 beats; 95 and 2 of the completion written.
    (8, 100),
    # 24 beats; 24 and half a beat written.
    (64, 100 * 24 / 24.5)])
def test_share_of_cycles_that_can_receive(mac_bytes: int, by_hand: float) -> None:
    assert limits.receive_percent(device(mac_bytes), frame_bytes=1514) == pytest.approx(by_hand)


@pytest.mark.parametrize(("mac_bytes", "payload_reads", "by_hand"), [
    # 8 beats at the MAC; 4 + 3 read; 4 + 4 written; 254 cycles over 32 reads: 7.94.
    (8, 32, 8.0),
    # 254 cycles over 16 reads.
    (8, 16, 254 / 16),
    # 1 beat at the MAC; 1 + 0.75 read; 1 + 1 written; 251 cycles over 96 reads: 2.61.
    (64, 96, 251 / 96), (64, 128, 2.0)])
def test_cycles_for_a_small_frame_each_way(mac_bytes: int, payload_reads: int, by_hand: float) -> None:
    found = limits.duplex_cycles(device(mac_bytes, payload_reads), frame_bytes=60, latency_cycles=250)
    assert found == pytest.approx(by_hand)


def test_cycles_that_latencies_cannot_be_below() -> None:
    assert [limits.doorbell_cycles(device(width)) for width in (8, 16)] == [4, 3]
    assert [limits.receive_cycles(device(width)) for width in (8, 16)] == [3, 2]
    assert limits.push_cycles(TINY) == 1


# ---------------------------------------------------------------------------------------------- the device


def rows_of(width: int) -> list[Row]:
    config = rtl.DEVICES[width]
    return rtl.measure_device(config, rtl.build(config), Floors.read().of(width))


@pytest.fixture(scope="module")
def narrow(tiny_compiled: Path) -> list[Row]:
    """What the 64-bit device reaches, whose library other tests need too."""
    return rows_of(64)


@pytest.fixture(scope="module")
def wide() -> list[Row]:
    """What the 512-bit device reaches, which its buses limit most."""
    return rows_of(512)


@pytest.mark.parametrize("device", ["narrow", "wide"])
def test_no_figure_is_worse_than_its_floor(device: str, request: pytest.FixtureRequest) -> None:
    assert worse(request.getfixturevalue(device)) == []


@pytest.mark.parametrize("device", ["narrow", "wide"])
def test_every_figure_lies_within_its_limit(device: str, request: pytest.FixtureRequest) -> None:
    measured: list[Row] = request.getfixturevalue(device)
    assert len({r.key for r in measured}) == len(measured) > 8
    for r in measured:
        if r.value is None:
            assert r.note.startswith("not measured: ")
            continue
        assert r.limit is not None
        assert r.share is not None
        # What the device's FIFO takes at first, and no more, can be over what the bus carries.
        assert 0 < r.share <= 100.2, r


def test_two_runs_count_the_same_cycles(tiny_compiled: Path, narrow: list[Row]) -> None:
    [figure] = [f for f in rtl.figures(TINY) if f.key == "small_transmit_3"]
    library = tiny_compiled / "obj" / builds.LIBRARY_NAME
    found = [variant.value(cycles.run(TINY, library, timing, variant.load))
             for timing in cycles.BUSES.values() for variant in figure.variants]
    assert max(found) == next(r.value for r in narrow if r.key == "small_transmit_3")


def test_the_trace_of_a_frame_each_way_has_what_crosses_the_ports(tiny_compiled: Path) -> None:
    async def load(rig: cycles.Rig) -> list[list[PortEvent]]:
        _, receiver = await cycles._receiver(rig)
        rig.library.trace(on=True)
        for length in (60, 1514):
            rig.deliver(cycles._frame(length), rig.after(1))
        await rig.sleep(2000)
        rig.library.trace(on=False)
        events = rig.library.take_trace()
        rig.deliver(cycles._frame(60), rig.after(1))
        await rig.sleep(2000)
        assert len(list(receiver.completions())) == 3
        return [events, rig.library.take_trace()]

    events, later = cycles.run(TINY, tiny_compiled / "obj" / builds.LIBRARY_NAME, cycles.BUSES["in order"], load)
    assert later == []
    of = {kind: [event for event in events if event.kind is kind] for kind in PortEventKind}
    first, second = of[PortEventKind.ARRIVE]
    assert [event.number for event in of[PortEventKind.ARRIVED]] == [8, 190]
    assert [event.edge for event in of[PortEventKind.ARRIVED]] == [first.edge + 7, second.edge + 189]
    assert second.edge == first.edge + 8
    # 60 bytes are one burst, 1,514 six of at most 256; and a completion each.
    assert len(of[PortEventKind.WRITE]) == len(of[PortEventKind.WRITTEN]) == 1 + 6 + 2
    assert len({event.number for event in of[PortEventKind.WRITE]}) == 9
    for write, answer in zip(of[PortEventKind.WRITE], of[PortEventKind.WRITTEN], strict=True):
        assert answer.edge - write.edge >= cycles.WRITE_LATENCY_CYCLES
    assert of[PortEventKind.SEND] == of[PortEventKind.SENT] == []


def test_a_figure_whose_load_fails_says_why_and_keeps_its_floor(
        tiny_compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def load(rig: cycles.Rig) -> float:
        raise cycles.LoadFailed("the cat sat on the ring")

    figure = rtl.Figure("cat", "a cat", "cats", ">=", 1.0, 1.0, [rtl.Variant("", load, float)])
    monkeypatch.setattr(rtl, "figures", lambda config: [figure])
    [failed] = rtl.measure_device(TINY, tiny_compiled / "obj" / builds.LIBRARY_NAME, {})
    assert failed.value is None
    assert failed.note.startswith("failed: task 'load' at ")
    assert failed.note.endswith("LoadFailed: the cat sat on the ring")
    assert worse([failed]) == [f"64-bit: a cat: {failed.note}"]
    assert Floors({"64-bit": {"cat": Floor(3)}}).renewed([failed]).of(64) == {"cat": Floor(3)}


def test_round_trips_are_told_apart_by_their_ids() -> None:
    read, data = PortEventKind.READ, PortEventKind.DATA
    events = [PortEvent(10, read, 1, 0x100), PortEvent(12, read, 2, 0x200), PortEvent(262, data, 2, 0),
              PortEvent(263, data, 1, 1), PortEvent(264, data, 2, 1), PortEvent(270, read, 1, 0x300),
              PortEvent(275, data, 1, 1)]
    assert cycles._round_trips(events) == [(0x200, 250), (0x100, 253), (0x300, 5)]


def test_frames_are_received_by_several_channels_where_the_driver_can_spread_them(
        tiny_compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []
    monkeypatch.setattr(Nic, "set_rss", lambda nic, indirection: asked.append(indirection), raising=False)

    async def load(rig: cycles.Rig) -> cycles.Duplex:
        return await cycles.duplex_cycles(rig, frame_bytes=60, senders=2, receivers=4, period=20.0)

    library = tiny_compiled / "obj" / builds.LIBRARY_NAME
    found = cycles.run(TINY, library, cycles.BUSES["in order"], load)
    assert asked == [[0, 1, 2, 3]]
    assert found.receive == 20.0


def test_frames_are_whole_and_of_many_flows() -> None:
    frames = {cycles._frame(60, flow) for flow in range(cycles.FLOWS)}
    assert len(frames) == cycles.FLOWS
    parsed = [scapy.layers.l2.Ether(frame) for frame in frames]
    assert {frame["IP"].len for frame in parsed} == {46}
    assert len({frame["TCP"].dport for frame in parsed}) == cycles.FLOWS


def test_a_pushed_descriptor_stands_in_its_blocks() -> None:
    a, b, c = (bytes([letter]) * 32 for letter in (1, 2, 3))
    zeros = bytes(32)
    assert cycles._blocks(0, [a, b, c]) == [(0, a + b), (64, c + zeros)]
    assert cycles._blocks(3, [a, b, c]) == [(64, zeros + a), (128, b + c)]
    assert cycles._blocks(0x10000 - 1, [a, b]) == [(1024 - 64, zeros + a), (0, b + zeros)]


def test_widths_have_buses_as_wide_as_the_issue_of_figures_wants() -> None:
    assert {width: 8 * config.host_bytes for width, config in rtl.DEVICES.items()} == {
        64: 128, 128: 256, 256: 512, 512: 512}
    assert tuple(rtl.DEVICES) == bench.WIDTHS


def test_what_the_device_lacks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pushes = Feature.PUSH in TINY.features
    [figure] = [f for f in rtl.figures(TINY) if f.key == "push"]
    assert bool(figure.variants) is pushes
    monkeypatch.setattr(NicConfig, "features", property(lambda config: Feature(0)))
    [figure] = [f for f in rtl.figures(TINY) if f.key == "push"]
    assert (list(figure.variants), figure.missing.partition(":")[0]) == ([], "not measured")


def test_the_time_left_follows_how_long_things_take() -> None:
    now = [0.0]
    said: list[str] = []
    progress = rtl.Progress({64: TINY}, said.append, lambda: now[0])
    whole = progress._left_s
    progress.begins("first", 2.0)
    now[0] = 4.0  # twice as long as thought
    progress.begins("second", 1.0)
    assert said == [f"first (about {whole:.0f} s left)", f"second (about {2 * (whole - 2):.0f} s left)"]


# ---------------------------------------------------------------------------------------------- floors


def some(value: float | None, sense: str, floor: float | None = None, key: str = "cat", bar: float = 9.0) -> Row:
    return row(f"64-bit: a {key}", value, "cats", sense, bar, "" if value else "no cats", floor=floor, group="64-bit",
               key=key)


def test_worse_than_a_floor() -> None:
    rows = [some(9.5, ">=", 9.4), some(9.3, ">=", 9.4), some(50, "<=", 50), some(51, "<=", 50.5), some(1, "<="),
            some(None, "<="), some(None, "<=", 3)]
    assert worse(rows) == [
        "64-bit: a cat: 9.3 cats, and its floor is 9.4", "64-bit: a cat: 51 cats, and its floor is 50.5",
        "64-bit: a cat: no floor; `memnic bench rtl --write-floors` makes one",
        "64-bit: a cat: no cats, and its floor is 3 cats"]


def test_floors_are_written_and_read_back_and_keep_reasons_until_the_bar_is_reached(tmp_path: Path) -> None:
    path = tmp_path / "floors.toml"
    before = Floors({"64-bit": {"cat": Floor(1, "it \"sleeps\""), "dog": Floor(1, "he eats"), "cow": Floor(1)},
                     "128-bit": {"cat": Floor(7)}})
    before.renewed([some(8.0, ">="), some(8.0, "<=", key="dog"), some(None, ">=", key="cow")]).write(path)
    read = Floors.read(path)
    assert read.of(64) == {"cat": Floor(7.92, "it \"sleeps\""), "dog": Floor(8.08)}
    assert read.of(128) == {"cat": Floor(7)}
    assert read.of(256) == {}
    assert path.read_text().startswith("# What each figure of `memnic bench rtl`")


def test_a_bad_table_of_floors_is_named(tmp_path: Path) -> None:
    path = tmp_path / "floors.toml"
    assert Floors.read(path).of(64) == {}
    for text in ("[x", '["64-bit".cat]\nceiling = 3\n', '["64-bit"]\ncat = 3\n'):
        path.write_text(text)
        with pytest.raises(InputError, match=r"floors\.toml: "):
            Floors.read(path)


def test_the_tables_floors_are_those_of_figures() -> None:
    table = Floors.read()
    for width, config in rtl.DEVICES.items():
        keys = {figure.key for figure in rtl.figures(config) if figure.variants}
        assert set(table.of(width)) == keys, f"{width}-bit: memnic bench rtl --write-floors"


def test_a_reason_stands_beside_a_figure_that_misses_its_bar(tiny_compiled: Path) -> None:
    found: dict[tuple[rtl.Load, str], float] = {}

    async def load(rig: cycles.Rig) -> float:
        return 0.0

    figure = rtl.Figure("cat", "a cat", "cats", ">=", 9.0, 10.0, [rtl.Variant("thin", load, float)])
    for order, value in zip(cycles.BUSES, (8.0, 8.5), strict=True):
        found[load, order] = value
    made = rtl._row(64, figure, found, Floor(7.9, "it sleeps"))
    assert (made.value, made.floor, made.share) == (8.0, 7.9, 80.0)
    assert made.note == "it sleeps; thin, in order: 8; thin, out of order: 8.5"
    assert "sleeps" not in rtl._row(64, figure._replace(bar=8.0), found, Floor(7.9, "it sleeps")).note


# ---------------------------------------------------------------------------------------------- the command


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Sequence[Row]], Path]:
    """Rows that the bench gives; returns the file of floors."""
    def give(rows: Sequence[Row]) -> Path:
        monkeypatch.setattr(bench, "measure", lambda name, options: list(rows))
        path = tmp_path / "floors.toml"
        monkeypatch.setattr(floors.Floors.write, "__defaults__", (path,))
        monkeypatch.setattr(floors.Floors.read.__func__, "__defaults__", (path,))  # type: ignore[attr-defined]
        return path
    return give


def test_a_figure_below_its_floor_fails_the_command(counted: Callable[[Sequence[Row]], Path],
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    counted([some(9.0, ">=", 9.4), some(10.0, ">=", 9.4)])
    assert cli.run(["bench", "rtl"]) == 0
    assert cli.run(["bench", "rtl", "--floors"]) == 1
    out = capsys.readouterr()
    assert out.err == ("memnic: 1 of 2 figures are worse than their floors:\n"
                       "  64-bit: a cat: 9 cats, and its floor is 9.4\n")


def test_new_floors_are_written(counted: Callable[[Sequence[Row]], Path]) -> None:
    path = counted([some(9.0, ">=")])
    assert cli.run(["bench", "rtl", "--write-floors"]) == 0
    assert Floors.read(path).of(64) == {"cat": Floor(8.91)}


def test_limits_are_shown(counted: Callable[[Sequence[Row]], Path], capsys: pytest.CaptureFixture[str]) -> None:
    counted([row("a cat", 4.0, "cats", "<=", 5, limit=3.0), row("a dog", None, "dogs", "<=", 5, "none", limit=2.0)])
    assert cli.run(["bench", "rtl"]) == 0
    out = capsys.readouterr().out
    assert "share of it" in out
    assert "75.0 %" in out
    assert cli.run(["bench", "rtl", "--json"]) == 0
    assert [r["limit"] for r in json.loads(capsys.readouterr().out)] == [3.0, 2.0]


@pytest.mark.parametrize(("arguments", "message"), [
    (["engine", "--floors"], "--floors is for `memnic bench rtl`"),
    (["--width", "64"], "--width is for `memnic bench rtl or accuracy`"),
    (["engine", "--write-floors"], "--write-floors is for `memnic bench rtl`"),
    (["rtl", "--width", "96"], "--width must be one of 64, 128, 256, 512, not 96")])
def test_bad_use_is_told(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bench", *arguments]) == 2
    assert capsys.readouterr().err == f"memnic: {message}\n"


def test_only_the_widths_that_are_asked_for_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    monkeypatch.setattr(rtl, "build", lambda config: built.append(config.name) or Path())
    monkeypatch.setattr(rtl, "measure_device", lambda config, *_: [])
    benches.measure("rtl", BenchOptions(log=None, say=lambda what: None, widths=(256, 64)))
    assert built == ["bench-256", "tiny"]


def test_a_library_that_is_there_is_taken(tiny_compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rtl.build(TINY) == tiny_compiled / "obj" / builds.LIBRARY_NAME
    asked: list[builds.Target] = []
    monkeypatch.setattr(builds, "build", lambda config, target: asked.append(target) or Path())
    rtl.build(replace(TINY, clock_hz=123_456_789))
    assert asked == [builds.COUNTING]
