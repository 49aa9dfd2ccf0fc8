// What crossed the device's ports, and at which edge: for benches that count cycles. Nothing unless it is on.
#pragma once
#include "edges.h"

#include <deque>
#include <vector>

namespace memnic {

// Laid out as `PortEventKind` in cosim/engines/library.py, which says what each is and what its number means.
enum PortEventKind : int64_t {
  EVENT_DOORBELL = 0,
  EVENT_READ = 1,
  EVENT_DATA = 2,
  EVENT_WRITE = 3,
  EVENT_WRITTEN = 4,
  EVENT_SEND = 5,
  EVENT_SENT = 6,
  EVENT_ARRIVE = 7,
  EVENT_ARRIVED = 8,
};

// Laid out as `_PORT_EVENT` in cosim/engines/library.py.
struct PortEvent {
  int64_t edge;
  int64_t kind;
  int64_t id;
  uint64_t number;
};

class Trace {
 public:
  bool on = false;
  std::vector<PortEvent> events;

  // What moves at `edge`: what the device showed in the cycle before it, and what it saw in that cycle.
  void look(Edge edge, const Outputs& out, const Inputs& in) {
    const auto keep_at = [&](Edge at, int64_t kind, int64_t id, uint64_t number) {
      events.push_back({at, kind, id, number});
    };
    const auto keep = [&](int64_t kind, int64_t id, uint64_t number) { keep_at(edge, kind, id, number); };
    if (in.s_axi_aw.valid && (out.flags & S_AXI_AW_READY)) bells_.push_back(in.s_axi_aw.addr);
    if (in.s_axi_w.valid && (out.flags & S_AXI_W_READY) && in.s_axi_w.last) ++bells_ended_;
    while (bells_ended_ && !bells_.empty()) {
      keep(EVENT_DOORBELL, 0, DOORBELL_BASE + bells_.front());
      bells_.pop_front();
      --bells_ended_;
    }
    if (out.flags & M_AXI_AR_VALID) keep(EVENT_READ, out.m_axi_ar.id, out.m_axi_ar.addr);
    if (in.m_axi_r.valid && (out.flags & M_AXI_R_READY)) keep(EVENT_DATA, in.m_axi_r.id, in.m_axi_r.last);
    if (out.flags & M_AXI_AW_VALID) addresses_.push_back({out.m_axi_aw.addr, out.m_axi_aw.id});
    if (out.flags & M_AXI_W_VALID) {
      if (!written_++) lane_ = out.m_axi_w.strb ? __builtin_ctzll(out.m_axi_w.strb) : 0;
      if (out.m_axi_w.last) {
        ended_.push_back({edge, lane_});
        written_ = 0;
      }
    }
    while (!ended_.empty() && !addresses_.empty()) {
      // the address is the bus's row, the strobes say where in it the data begin
      keep_at(ended_.front().edge, EVENT_WRITE, addresses_.front().id, addresses_.front().address + ended_.front().lane);
      ended_.pop_front();
      addresses_.pop_front();
    }
    if (in.m_axi_b.valid && (out.flags & M_AXI_B_READY)) keep(EVENT_WRITTEN, in.m_axi_b.id, in.m_axi_b.resp);
    if ((out.flags & M_AXIS_TX_VALID) && (in.ready & M_AXIS_TX_TAKEN)) {
      if (!sent_++) keep(EVENT_SEND, 0, 0);
      if (out.m_axis_tx.last) {
        keep(EVENT_SENT, 0, sent_);
        sent_ = 0;
      }
    }
    if (in.s_axis_rx.valid && (out.flags & S_AXIS_RX_READY)) {
      if (!arrived_++) keep(EVENT_ARRIVE, 0, 0);
      if (in.s_axis_rx.last) {
        keep(EVENT_ARRIVED, 0, arrived_);
        arrived_ = 0;
      }
    }
  }

 private:
  struct Address {
    uint64_t address;
    int64_t id;
  };

  std::deque<uint32_t> bells_;  // doorbell bursts whose last beat has not been taken
  int64_t bells_ended_ = 0;
  std::deque<Address> addresses_;
  struct Ended {
    Edge edge;
    uint64_t lane;
  };

  std::deque<Ended> ended_;  // bursts whose data came before their address
  uint64_t sent_ = 0, arrived_ = 0, written_ = 0, lane_ = 0;
};

}  // namespace memnic
