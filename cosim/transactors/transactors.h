// All that surrounds the device: bus, registers, MAC, interrupt lines. Knows no simulator: whoever has one calls `tick`
// at each rising edge, and looks at `stop`.
//
// In the call at edge n, `out` is what the device showed in the cycle before it, and `in` becomes what the device sees
// in the cycle behind it. Times are those of edges. The host acts at a time when all edges up to it have run; what
// it does takes effect at the first edge after.
#pragma once
#include "control.h"
#include "host_bus.h"
#include "mac.h"
#include "registers.h"
#include "trace.h"

#include <cstring>
#include <memory>
#include <string>
#include <vector>

namespace memnic {

// Why the host is called. Laid out as `Stop` in cosim/engines/library.py.
enum Stop : uint32_t {
  STOP_INTERRUPT = 1,  // a line is high that the host waits for
  STOP_READ = 2,       // a register read has come back
  STOP_FRAMES = 4,     // frames that a peer could answer by now
  STOP_LIMIT = 8,      // the time that the host waits for; all edges up to it have run
  STOP_DEAD = 16,      // nothing will ever happen
  STOP_STUCK = 32,     // something is under way, but has not moved for too long
  STOP_BROKEN = 64,    // the device broke a rule: see `error`
  STOP_BUDGET = 128,   // so many edges have run in this call
  STOP_MESSAGE = 512,  // a message of the control port is there
  STOP_FATAL = 256,    // the simulator itself cannot go on, for example because its wave cannot be written
};

// Laid out as `Status` in cosim/engines/library.py.
struct Status {
  int64_t now_ps;
  int64_t next_ps;  // of the first edge behind it
  int64_t edge;
  int64_t cycles;  // edges that ran
  uint64_t irq;
  uint32_t error_irq;
  uint32_t stop;
  int64_t interrupts;  // times that a line rose
  int64_t dma_read_bytes, dma_write_bytes;
  int64_t reads_in_flight, most_reads_in_flight;
  int64_t frames_sent, frames_received;
  int64_t error_completions;
  int64_t frames_waiting, reads_waiting, bursts_waiting, rises_waiting;
};

// A line that rose, for who watches. Laid out as `_RISE` in cosim/engines/library.py.
struct Rise {
  int64_t time_ps;
  int64_t line;
};

struct ReadValue {
  int64_t ticket;
  int64_t value;
};

constexpr int RESET_EDGES = 4;

class Transactors {
 public:
  Transactors(const BusSettings& bus, const MacSettings& mac, HostMemory memory, int64_t stuck_cycles)
      : host(bus, memory), mac(mac), stuck_cycles_(stuck_cycles) {}

  HostBus host;
  Mac mac;
  Registers registers;
  Control control;
  Trace trace;
  std::vector<ReadValue> values;
  std::vector<Rise> rises;  // while the host bus is watched
  Status status{};

  std::vector<uint32_t> probes;  // what the device said of itself before it stops for good

  bool jump = true;
  bool jump_here = true;    // false while a wave is taken without jumps
  Edge attention = NEVER;   // an edge that no jump may leave out, where such a wave begins
  bool jump_on = true;      // `jump_here` from there on

  void wake_on(uint64_t lines, bool error) {
    wake_lines_ = lines;
    wake_error_ = error;
  }
  void set_limit(Ps limit) {
    limit_ = limit;
    limit_edge_ = edge_at(limit);
  }

  void write(Ps now, uint32_t address, const void* data, uint32_t length) {
    registers.write(edge_at(now) + host.bus.settings().mmio_write_cycles, address, data, length);
  }
  void read(Ps now, uint32_t address, int64_t ticket) {
    registers.read(edge_at(now) + host.bus.settings().mmio_read_cycles / 2, address, ticket);
  }

  // One edge. `in` still is what it was behind the last one. `stop()` says afterwards whether the host must be called.
  void tick(const Outputs& out, Inputs& in) {
    ++status.cycles;
    if (asked_) {
      tell(in);
    } else if (reset_ <= RESET_EDGES) {
      reset_step(in);
    } else {
      work(out, in);
    }
  }

  uint32_t stop() const { return status.stop; }
  void clear_stop() { status.stop = 0; }
  Edge edge() const { return edge_; }

  // What the device's edge has brought for the host, counted in `status`.
  void count() {
    status.next_ps = time_of(edge_at(status.now_ps) + 1);
    status.dma_read_bytes = host.read_bytes;
    status.dma_write_bytes = host.write_bytes;
    status.reads_in_flight = host.reads;
    status.most_reads_in_flight = host.most_reads;
    status.frames_sent = mac.frames_sent;
    status.frames_received = mac.frames_received;
    status.frames_waiting = static_cast<int64_t>(mac.frames.size());
    status.reads_waiting = static_cast<int64_t>(values.size());
    status.bursts_waiting = static_cast<int64_t>(host.bursts.size());
    status.rises_waiting = static_cast<int64_t>(rises.size());
  }

  // What is under way, in words.
  std::string report() const {
    Said said;
    if (!host.error.empty()) said.push_back(host.error);
    registers.report(said);
    host.report(said);
    mac.report(said);
    control.report(said);
    std::string text;
    for (const std::string& part : said) text += (text.empty() ? "" : "; ") + part;
    return text;
  }

 private:
  static constexpr uint32_t FOR_GOOD = STOP_DEAD | STOP_STUCK | STOP_BROKEN;

  // When the probes have come, the host may know that nothing goes on: the device takes them at the edge behind the
  // request, and shows them at the next.
  void tell(Inputs& in) {
    if (in.asked) {
      in.asked = 0;
      return;
    }
    status.stop |= asked_;
    asked_ = 0;
    in.wake ^= 1;
  }

  // The edge that ends the reset is number 0.
  void reset_step(Inputs& in) {
    if (!reset_) std::memset(&in, 0, sizeof in);
    in.rst = reset_ < RESET_EDGES;
    in.jump = reset_ == RESET_EDGES;
    in.ready = M_AXI_AR_TAKEN | M_AXI_AW_TAKEN | M_AXI_W_TAKEN | S_AXIL_B_TAKEN | S_AXIL_R_TAKEN | S_AXI_B_TAKEN;
    ++reset_;
    edge_ = -1;
    next_edge_ = 0;
  }

  void work(const Outputs& out, Inputs& in) {
    const Edge edge = edge_ = next_edge_;
    next_edge_ = edge + 1;
    in.jump = 0;
    if (edge >= attention) {
      attention = NEVER;
      jump_here = jump_on;
    }
    if (trace.on) trace.look(edge, out, in);
    uint32_t stop = show_interrupts(edge, out);
    if (out.flags & ERROR_COMPLETION) ++status.error_completions;

    const bool offered = (out.flags & QUIET) && offers(in);  // of interest only then
    const uint32_t ready = in.ready;
    bool moved = taken(out, in) | host.take(edge, out);
    const int64_t read_cycles = host.bus.settings().mmio_read_cycles;
    moved |= registers.step(edge, out, in, read_cycles - read_cycles / 2);
    host.drive(edge, out, in);
    moved |= mac.sink(edge, out, in);
    moved |= mac.source(edge, out, in);
    moved |= control.step(edge, out, in);
    if (control.has_told()) stop |= STOP_MESSAGE;
    while (!registers.answered.empty() && registers.answered.front().due <= edge) {
      values.push_back({registers.answered.front().ticket, registers.answered.front().value});
      registers.answered.pop_front();
      stop |= STOP_READ;
    }
    if (mac.report_by() <= edge) stop |= STOP_FRAMES;
    if (!host.error.empty()) stop |= STOP_BROKEN;

    const bool quiet = (out.flags & QUIET) && !offered && !offers(in) && !registers.busy() && in.ready == ready;
    still_cycles_ = moved || quiet || mac.drains(edge) ? 0 : still_cycles_ + 1;
    if (quiet) {
      if (!stop) stop = wait(edge, out, in);
    } else if (edge >= limit_edge_) {
      stop |= STOP_LIMIT;
    }
    const Edge still = edge - std::min(host.moved_at(), mac.held_since());  // at most: it may be that nothing waits
    if (still_cycles_ > stuck_cycles_ || (still > stuck_cycles_ && edge >= stuck_at())) stop |= STOP_STUCK;
    status.edge = edge;
    if (stop) {
      status.now_ps = stop == STOP_LIMIT ? std::max(limit_, time_of(edge)) : time_of(edge);
      if (stop & FOR_GOOD) {
        asked_ = stop;
        in.asked = 1;
      } else {
        status.stop |= stop;
        in.wake ^= 1;
      }
    }
  }

  // The edge at which the device will have waited for too long for host memory or the MAC.
  Edge stuck_at() const {
    const Edge since = std::min(host.waits_since(), mac.held_since());
    return since >= NEVER ? NEVER : since + stuck_cycles_ + 1;
  }

  // The device does nothing by itself: how far may time go? Returns a reason to stop here, or jumps.
  uint32_t wait(Edge edge, const Outputs& out, Inputs& in) {
    Edge next = std::min({registers.next(), host.next(), mac.next(!(in.ready & M_AXIS_TX_TAKEN)), control.next()});
    if (out.flags & DEADLINE_VALID) next = std::min(next, static_cast<Edge>(out.next_deadline));
    if (next >= NEVER && limit_edge_ >= NEVER) return STOP_DEAD;
    next = std::min(next, stuck_at());
    const bool jumps = jump && jump_here;
    if (next > limit_edge_ && (jumps || edge >= limit_edge_)) return STOP_LIMIT;
    next = std::min(next, attention);
    if (!jumps || next <= edge + 1) return 0;
    in.jump = 1;
    in.jump_to = static_cast<uint64_t>(next);
    next_edge_ = next;
    return 0;
  }

  bool offers(const Inputs& in) const {
    return control.offers(in) | in.s_axil_aw.valid | in.s_axil_w.valid | in.s_axil_ar.valid | in.s_axi_aw.valid | in.s_axi_w.valid |
           in.m_axi_r.valid | in.m_axi_b.valid | in.s_axis_rx.valid;
  }

  // Whether the device takes something of what is offered.
  bool taken(const Outputs& out, const Inputs& in) const {
    const auto moves = [&](uint32_t valid, uint32_t ready) { return valid && (out.flags & ready); };
    if (moves(in.s_axis_rx.valid, S_AXIS_RX_READY) || moves(in.m_axi_r.valid, M_AXI_R_READY) ||
        moves(in.m_axi_b.valid, M_AXI_B_READY)) {
      return true;
    }
#if MEMNIC_CONTROL_PORT
    if (moves(in.s_axis_release.valid, S_AXIS_RELEASE_READY) || moves(in.s_axis_emit.valid, S_AXIS_EMIT_READY)) {
      return true;
    }
#endif
    return registers.busy() &&  // otherwise it offers nothing
           (moves(in.s_axil_aw.valid, S_AXIL_AW_READY) || moves(in.s_axil_w.valid, S_AXIL_W_READY) ||
            moves(in.s_axil_ar.valid, S_AXIL_AR_READY) || moves(in.s_axi_aw.valid, S_AXI_AW_READY) ||
            moves(in.s_axi_w.valid, S_AXI_W_READY));
  }

  uint32_t show_interrupts(Edge edge, const Outputs& out) {
    const uint64_t irq = out.irq;
    const uint32_t error = (out.flags & ERROR_IRQ) != 0;
    if (!(irq | error | status.irq | status.error_irq)) return 0;
    if (irq != status.irq || error != status.error_irq) {
      uint64_t risen = irq & ~status.irq;
      status.interrupts += __builtin_popcountll(risen) + (error & ~status.error_irq);
      if (host.watched) {
        for (; risen; risen &= risen - 1) rises.push_back({time_of(edge), __builtin_ctzll(risen)});
        if (error & ~status.error_irq) rises.push_back({time_of(edge), VECTORS});
      }
      status.irq = irq;
      status.error_irq = error;
    }
    return (irq & wake_lines_) || (error && wake_error_) ? STOP_INTERRUPT : 0;
  }

  int reset_ = 0;
  Edge edge_ = -1, next_edge_ = 0;
  Ps limit_ = 0;
  Edge limit_edge_ = 0;
  uint64_t wake_lines_ = 0;
  bool wake_error_ = false;
  Edge stuck_cycles_, still_cycles_ = 0;
  uint32_t asked_ = 0;  // why the device was asked
};

}  // namespace memnic
