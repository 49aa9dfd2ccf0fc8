"""Whole runs over the model: every system serves a small log, and the capture is judged by scapy."""

from __future__ import annotations

import io
import random
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from cosim import http
from cosim.engines import in_process
from cosim.engines.base import RunError, RunSpec, Wave
from cosim.errors import InputError
from cosim.experiment import Experiment, percentile
from cosim.impairments import BothWays, Impairments
from cosim.machine import load_application, load_machine
from cosim.notification import with_notification
from cosim.report import FIGURE_1, share_percent
from cosim.systems import DEFAULT_SYSTEMS, SYSTEMS, System, Told
from cosim.workload import Request, parse_log, synthetic
from tests.cosim.captures import read_capture

LOG = """\
192.0.2.1 - - [01/Feb/2002:10:00:00 +0100] "GET /index.html HTTP/1.0" 200 2326
192.0.2.1 - - [01/Feb/2002:10:00:01 +0100] "GET /logo.gif HTTP/1.0" 200 16384
192.0.2.2 - - [01/Feb/2002:10:00:02 +0100] "HEAD /logo.gif HTTP/1.1" 200 - "-" "x"
192.0.2.2 - - [01/Feb/2002:10:00:02 +0100] "GET /logo.gif HTTP/1.1" 304 - "-" "x"
192.0.2.3 - - [01/Feb/2002:10:00:03 +0100] "GET /big.iso HTTP/1.1" 206 123457 "-" "x"
192.0.2.3 - - [01/Feb/2002:10:00:04 +0100] "GET /none HTTP/1.1" 404 209 "-" "x"
192.0.2.4 - - [01/Feb/2002:10:00:05 +0100] "GET /empty HTTP/1.1" 200 0 "-" "x"
192.0.2.4 - - [01/Feb/2002:10:00:05 +0100] "GET /one HTTP/1.1" 200 1 "-" "x"
"""


LADDER = [SYSTEMS[name] for name in DEFAULT_SYSTEMS]


def spec(system: System, requests: list[Request], **changes: object) -> RunSpec:
    fields: dict[str, object] = {
        "system": system, "machine": load_machine("p2-300-smp2"), "application": load_application("apache"),
        "requests": requests, "link_bit_rate": 10**9, "device": "tiny"}
    return RunSpec(**{**fields, **changes})  # type: ignore[arg-type]


def nothing(done: int, simulated_ps: int) -> None:
    """No progress is shown."""


@pytest.mark.parametrize("system", LADDER, ids=DEFAULT_SYSTEMS)
def test_a_small_log_is_served_and_its_capture_is_clean(system: System, tmp_path: Path) -> None:
    requests = parse_log(io.StringIO(LOG), source="log").requests
    path = tmp_path / "wire.pcapng"
    progress: list[int] = []
    result = in_process.run(spec(system, requests, capture_path=str(path), clients=3),
                            lambda done, simulated_ps: progress.append(done))
    assert progress == list(range(1, 9))
    assert result.requests == 8
    assert result.body_bytes == 2326 + 16384 + 123457 + 209 + 1
    capture = read_capture(path)
    assert capture.frames == (result.frames_sent + result.frames_received) * 8
    questions = {(flow[0], flow[1]): stream for flow, stream in capture.streams.items() if flow[3] == 80}
    answers = {(flow[2], flow[3]): stream for flow, stream in capture.streams.items() if flow[1] == 80}
    assert len(questions) == len(answers) == 8
    seen = []
    for client, question in questions.items():
        method, path_asked, _ = question.split(b"\r\n", 1)[0].decode().split(" ")
        index = int(question.split(b"X-Memnic-Request: ")[1].split(b"\r\n")[0])
        seen.append(index)
        assert (method, path_asked) == (requests[index].method, requests[index].path)
        body = answers[client].split(b"\r\n\r\n", 1)[1]
        assert body == http.content(path_asked, requests[index].body_bytes)
    assert sorted(seen) == list(range(8))


@pytest.mark.parametrize("system", LADDER, ids=DEFAULT_SYSTEMS)
def test_the_same_seed_gives_the_same_result_and_capture(system: System, tmp_path: Path) -> None:
    results = []
    for number in range(2):
        run = spec(system, synthetic(12).requests, capture_path=str(tmp_path / f"{number}.pcapng"))
        results.append(msgspec.json.encode(in_process.run(run, nothing)))
    assert results[0] == results[1]
    assert (tmp_path / "0.pcapng").read_bytes() == (tmp_path / "1.pcapng").read_bytes()
    in_process.run(spec(system, synthetic(12).requests, seed=2, capture_path=str(tmp_path / "2.pcapng")), nothing)
    assert (tmp_path / "0.pcapng").read_bytes() != (tmp_path / "2.pcapng").read_bytes()


def test_a_spec_survives_json_and_gives_the_same_result() -> None:
    run = spec(SYSTEMS["nic-tso"], synthetic(4).requests)
    again = msgspec.json.decode(msgspec.json.encode(run), type=RunSpec)
    assert again == run
    assert in_process.run(again, nothing) == in_process.run(run, nothing)


def test_cycles_are_what_the_processors_were_busy_with() -> None:
    run = spec(SYSTEMS["nic-dumb"], synthetic(30).requests)
    with Experiment(run, nothing) as experiment:
        result = in_process.run(run, nothing)
        price = experiment.processors.prices
    for category, items in result.items.items():
        assert sum(figure.cycles for figure in items.values()) == pytest.approx(result.cycles[category])
        for item, figure in items.items():
            assert figure.cycles == pytest.approx(figure.count * price[category, item] * 300e6 / 10**12)
    busy_cycles = sum(result.utilisation) * result.duration_ps * 300e6 / 10**12 / 30
    # What is charged after the last answer, such as the last FINs, is in the cycles and not in the busy share.
    assert 0.98 * result.total_cycles < busy_cycles <= result.total_cycles


@pytest.mark.parametrize("requests", [1, 30])
def test_shares_of_each_processor_add_up_over_time_and_categories(requests: int) -> None:
    result = in_process.run(spec(SYSTEMS["nic-dumb"], synthetic(requests).requests), nothing)
    assert len(result.processors) == len(result.processor_categories) == 2
    ends_ps = [0, *(interval.until_ps for interval in result.over_time)]
    assert ends_ps == sorted(set(ends_ps))
    assert ends_ps[-1] == result.duration_ps
    for number, (share, categories) in enumerate(zip(result.processors, result.processor_categories, strict=True)):
        assert share.busy + share.idle == pytest.approx(1)
        assert share.busy == pytest.approx(result.utilisation[number])
        assert share.user == pytest.approx(categories.get("user", 0))
        assert share.busy == pytest.approx(sum(categories.values()))
        user_ps = sum(interval.processors[number].user * (interval.until_ps - start_ps)
                      for start_ps, interval in zip(ends_ps[:-1], result.over_time, strict=True))
        assert user_ps == pytest.approx(share.user * result.duration_ps)


def test_the_baseline_copies_twice_and_the_offload_not_at_all() -> None:
    requests = synthetic(10).requests
    dumb, tso = (in_process.run(spec(SYSTEMS[name], requests), nothing) for name in ("nic-dumb", "nic-tso"))
    head = 16384 + 140
    for item in ("user_to_kernel_byte", "retransmit_byte"):
        assert 16384 < dumb.items["copy"][item].count < head
        assert item not in tso.items["copy"]
    assert dumb.items["tcp_send"]["segment"].count == 12
    assert tso.items["tcp_send"]["segment"].count < 8
    assert dumb.items["tcp_recv"]["checksum_byte"].count > 0
    assert "checksum_byte" not in tso.items["tcp_recv"]
    assert dumb.items["user"]["request"].count == tso.items["user"]["request"].count == 1
    assert tso.requests_per_s > dumb.requests_per_s
    assert tso.dma_read_bytes > 16384


@pytest.mark.parametrize(("name", "polls"), [("p2-300-smp2", False), ("x86-server", True)])
def test_interrupts_are_served_as_the_machines_system_does(name: str, polls: bool) -> None:
    result = in_process.run(spec(SYSTEMS["nic-tso"], synthetic(10).requests, machine=load_machine(name)), nothing)
    assert result.interrupts > 0
    assert ("poll" in result.cycles) == polls
    handler = with_notification(SYSTEMS["nic-tso"], "moderated")
    result = in_process.run(spec(handler, synthetic(10).requests, machine=load_machine(name)), nothing)
    assert "poll" not in result.cycles


@pytest.mark.parametrize("seed", [1, 2])
def test_a_dedicated_processor_that_polls_has_a_best_period(seed: int) -> None:
    """Rangarajan et al. 2002, section 4: looking too often does harm, looking too seldom cannot handle all events."""
    # Nearer clients answer while a process writes, so that less is left to the processor that polls.
    way = Impairments(delay_ps=random.Random(seed).randrange(80_000_000, 120_000_000))

    def rate(period_us: float) -> float:
        system = msgspec.structs.replace(SYSTEMS["nic-dumb"], notification=Told(by="polling", period_us=period_us),
                                         interrupts_on=(1,), processes_on=(0,))
        return in_process.run(spec(system, synthetic(40).requests, seed=seed, clients=16, impairments=BothWays(
            outbound=way, inbound=way, seed=seed)), nothing).requests_per_s

    often, well, seldom = rate(1), rate(50), rate(2000)
    assert often < 0.95 * well
    assert seldom < 0.7 * well


@pytest.mark.parametrize("interrupts_on", [None, (1, 3)])
def test_each_processor_that_takes_interrupts_has_its_bottom_half(interrupts_on: tuple[int, ...] | None) -> None:
    system = msgspec.structs.replace(SYSTEMS["nic-dumb"], interrupts_on=interrupts_on)
    run = spec(system, synthetic(40).requests, machine=load_machine("xeon-550-smp4"), clients=16)
    result = in_process.run(run, nothing)
    there = [number for number, categories in enumerate(result.processor_categories) if "softirq" in categories]
    assert there == list(interrupts_on or range(4))
    if interrupts_on is None:
        # One bottom half at a time would leave processors idle.
        assert min(result.utilisation) > 0.85


def test_the_papers_breakdown_comes_out_under_load() -> None:
    """User, interrupt and all network within 3 points of Rangarajan et al. 2002, Fig. 1, with the host saturated."""
    result = in_process.run(spec(SYSTEMS["nic-dumb"], synthetic(60).requests), nothing)
    assert min(result.utilisation) > 0.95
    shares = {row.name: share_percent(result, row.categories) - row.paper_percent for row in FIGURE_1}
    for name in ("user", "interrupts, DMA set-up included", "all network"):
        assert abs(shares[name]) <= 3, (name, shares)


@pytest.mark.parametrize("system", LADDER, ids=DEFAULT_SYSTEMS)
def test_polling_serves_as_well_and_takes_no_interrupt(system: System) -> None:
    polling = msgspec.structs.replace(system, notification=Told(by="polling", period_us=50))
    result = in_process.run(spec(polling, synthetic(6).requests, clients=2), nothing)
    assert result.items["poll"]["batch"].count > 1
    # Without a processor for it alone, the clock makes the host look.
    assert result.items["interrupt"]["entry"].count == pytest.approx(result.items["poll"]["batch"].count, rel=0.01)
    assert result.interrupts == 0
    dedicated = msgspec.structs.replace(polling, interrupts_on=(1,), processes_on=(0,))
    result = in_process.run(spec(dedicated, synthetic(6).requests, clients=2), nothing)
    assert "interrupt" not in result.cycles
    assert result.items["poll"]["bus_wait"].count > 0


@pytest.mark.parametrize("seed", range(3))
def test_random_workloads_are_served_by_both(seed: int) -> None:
    rng = random.Random(seed)
    requests = [Request(rng.choice(("GET", "GET", "HEAD")), f"/{rng.randrange(5)}", rng.choice((200, 206, 304, 404)),
                        int(2 ** rng.uniform(0, 17.5))) for _ in range(15)]
    run = {"clients": rng.choice((1, 3, 20)), "link_bit_rate": rng.choice((10**7, 10**9, 10**10)), "seed": seed}
    for system in LADDER:
        result = in_process.run(spec(system, requests, **run), nothing)
        assert result.body_bytes == sum(request.body_bytes for request in requests)


def test_a_wave_is_refused_without_rtl(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--wave"):
        in_process.run(spec(SYSTEMS["nic-dumb"], synthetic(1).requests, wave=Wave(path=str(tmp_path / "w"))), nothing)


def test_a_file_that_arrives_wrong_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    # The server's view of `cosim.http` alone: the clients still know the right content.
    wrong = {**vars(http), "content": lambda path, size_bytes: b"x" * size_bytes}
    monkeypatch.setattr("cosim.server.http", SimpleNamespace(**wrong))
    with pytest.raises(RunError, match=r"request 0 .*byte 0 of 16384 differs from the file, at \d+ ps"):
        in_process.run(spec(SYSTEMS["nic-tso"], synthetic(1).requests), nothing)


def test_nearest_rank_percentiles() -> None:
    values = list(range(1, 101))
    assert [percentile(values, p) for p in (1, 50, 99, 100)] == [1, 50, 99, 100]
    assert percentile([7], 50) == 7
    assert percentile([1, 2, 3], 50) == 2
