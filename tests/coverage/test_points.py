"""Reading and adding what Verilator counts; what is taken out of the Verilog before."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.coverage.covered import plain, prepare
from tests.coverage.points import Point, Sum, parse, share

BRANCH = ("C '\1f\2/x/top.v\1l\00210\1n\0023\1t\2line\1page\2v_line/simulation_top.nic.keys\1o\2if\1S\00210-12,15"
          "\1h\2TOP.w.top.nic.keys'")
BIT = "C '\1f\2/x/top.v\1l\0029\1n\0023\1t\2toggle\1page\2v_toggle/simulation_top.nic\1o\2a[3]:0->1\1h\2TOP.w.top.nic'"


def test_points_are_read() -> None:
    assert parse(f"{BRANCH} 7") == (Point("line", "TOP.w.top.nic.keys", "simulation_top.nic.keys", 10,
                                          (10, 11, 12, 15), "if"), 7)
    point, count = parse(f"{BIT} 0")
    assert (point.kind, point.what, point.lines, count) == ("toggle", "a[3]:0->1", (), 0)
    with pytest.raises(ValueError, match="no coverage point"):
        parse("# SystemC::Coverage-3")


def test_runs_are_added(tmp_path: Path) -> None:
    total, path = Sum(), tmp_path / "run.dat"
    for branch, bit in ((0, 2), (5, 0)):
        path.write_text(f"# SystemC::Coverage-3\n{BRANCH} {branch}\n{BIT} {bit}\n")
        total.add(path)
    total.write(path)
    again = Sum()
    again.add(path)
    assert [count for _, count in again.points()] == [count for _, count in total.points()] == [5, 2]
    path.write_text(f"{BIT} 1\n")
    with pytest.raises(ValueError, match="1 points, where 2 were before"):
        total.add(path)


def test_shares() -> None:
    points = [parse(f"{BRANCH} {count}") for count in (1, 0, 3)] + [parse(f"{BIT} 0")]
    assert share(points, "line")[:] == (2, 3)
    assert share(points, "toggle").percent == 0
    assert share([], "line").percent == 100


def test_only_the_design_is_left_in_the_verilog() -> None:
    text = r'''module \simulation_top.nic.keys (clk);
  (* src = "/x/rtl/keys.py:12" *)
  reg [3:0] \$signal ;
  (* src = "/x/rtl/keys.py:13" *)
  wire [3:0] o__payload;
  wire \o__payload.last ;
  (* src = "/x/rtl/keys.py:12" *)
  always @(posedge clk)
    \$signal  <= \$44 ;
  assign \o__payload.last  = o__payload[3];
  always @* begin
    if (\$auto$verilog_backend.cc:2355:dump_module$163 ) begin end
    (* full_case = 32'd1 *)
    if (o__payload[1]) begin
      \$44  = 4'h1;
    end
  end
endmodule
'''
    made = prepare(text)
    assert len(made.verilog.splitlines()) == len(text.splitlines()), "lines must keep their numbers"
    assert made.sources == {"simulation_top.nic.keys:_signal": "/x/rtl/keys.py:12",
                            "simulation_top.nic.keys:o__payload": "/x/rtl/keys.py:13",
                            "simulation_top.nic.keys:_44": "/x/rtl/keys.py:12"}
    for gone in ("(*", "last", "verilog_backend"):
        assert gone not in made.verilog
    assert "_44  = 4'h1;" in made.verilog
    assert plain(r"\$44") == "_44"
