// The processor's side of registers and doorbell pages: one access after the other, in program order.
#pragma once
#include "edges.h"
#include "said.h"

#include <array>
#include <cstring>
#include <deque>
#include <string>

namespace memnic {

constexpr uint32_t BLOCK_BYTES = 64;  // of a write-combined burst

class Registers {
 public:
  struct Read {
    Edge due;
    int64_t ticket;
    uint32_t value;
  };

  std::deque<Read> answered;  // on their way back to the processor, in order

  void write(Edge due, uint32_t address, const void* data, uint32_t length) {
    Operation& operation = operations_.emplace_back();
    operation.due = due;
    operation.address = address;
    operation.length = length;
    std::memcpy(operation.data.data(), data, length);
  }

  void read(Edge due, uint32_t address, int64_t ticket) {
    Operation& operation = operations_.emplace_back();
    operation.due = due;
    operation.address = address;
    operation.ticket = ticket;
  }

  // Follow the access under way, and begin the next one. `back_cycles`: from the device's answer to the processor.
  // Returns whether anything moved.
  bool step(Edge edge, const Outputs& out, Inputs& in, int64_t back_cycles) {
    bool moved = false;
    if (busy_) moved = follow(edge, out, in, back_cycles);
    if (!busy_ && !operations_.empty() && operations_.front().due <= edge) {
      start(in);
      moved = true;
    }
    return moved;
  }

  bool busy() const { return busy_; }

  Edge next() const {
    Edge edge = operations_.empty() ? NEVER : operations_.front().due;
    return answered.empty() ? edge : std::min(edge, answered.front().due);
  }

  // What is under way, in words.
  void report(Said& said) const {
    if (busy_) {
      char text[80];
      std::snprintf(text, sizeof text, "the device has not answered a %s of register %#x",
                    current_.ticket >= 0 ? "read" : "write", current_.address);
      said.push_back(text);
    }
    if (!operations_.empty()) said.push_back(count(operations_.size(), "register access") + " on the way to the device");
  }

 private:
  struct Operation {
    Edge due;
    uint32_t address, length = 0;
    int64_t ticket = -1;  // of a read
    std::array<uint8_t, BLOCK_BYTES> data{};
  };

  void start(Inputs& in) {
    current_ = operations_.front();
    operations_.pop_front();
    busy_ = true;
    if (current_.ticket >= 0) {
      in.s_axil_ar.valid = 1;
      in.s_axil_ar.addr = current_.address;
    } else if (current_.address < DOORBELL_BASE) {
      in.s_axil_aw.valid = in.s_axil_w.valid = 1;
      in.s_axil_aw.addr = current_.address;
      std::memcpy(&in.s_axil_w.data, current_.data.data(), 4);
      in.s_axil_w.strb = 0xF;
    } else {
      const uint32_t beats = current_.length > HOST_BYTES ? current_.length / HOST_BYTES : 1;
      in.s_axi_aw.valid = 1;
      in.s_axi_aw.id = 0;
      in.s_axi_aw.addr = current_.address - DOORBELL_BASE;
      in.s_axi_aw.len = beats - 1;
      in.s_axi_aw.size = __builtin_ctz(current_.length < HOST_BYTES ? current_.length : HOST_BYTES);
      in.s_axi_aw.burst = 1;  // INCR
      sent_ = 0;
      beat(in);
    }
  }

  // Offer the next beat of a doorbell write.
  void beat(Inputs& in) {
    const uint32_t lane = (current_.address + sent_) % HOST_BYTES;
    const uint32_t count = std::min<uint32_t>(current_.length - sent_, HOST_BYTES - lane);
    std::memset(in.s_axi_w.data, 0, HOST_BYTES);
    std::memcpy(in.s_axi_w.data + lane, current_.data.data() + sent_, count);
    in.s_axi_w.strb = (count == 64 ? ~UINT64_C(0) : (UINT64_C(1) << count) - 1) << lane;
    sent_ += count;
    in.s_axi_w.last = sent_ == current_.length;
    in.s_axi_w.valid = 1;
  }

  bool follow(Edge edge, const Outputs& out, Inputs& in, int64_t back_cycles) {
    bool moved = false;
    const auto taken = [&](uint32_t& valid, uint32_t ready) {
      const bool leaves = valid && (out.flags & ready);
      if (leaves) valid = 0;
      moved |= leaves;
      return leaves;
    };
    taken(in.s_axil_ar.valid, S_AXIL_AR_READY);
    taken(in.s_axil_aw.valid, S_AXIL_AW_READY);
    taken(in.s_axil_w.valid, S_AXIL_W_READY);
    taken(in.s_axi_aw.valid, S_AXI_AW_READY);
    if (taken(in.s_axi_w.valid, S_AXI_W_READY) && sent_ < current_.length) beat(in);
    if (out.flags & (S_AXIL_B_VALID | S_AXI_B_VALID)) {
      busy_ = false;
    } else if (out.flags & S_AXIL_R_VALID) {
      answered.push_back({edge + back_cycles, current_.ticket, out.s_axil_r.data});
      busy_ = false;
    }
    return moved || !busy_;
  }

  std::deque<Operation> operations_;
  Operation current_{};
  bool busy_ = false;
  uint32_t sent_ = 0;
};

}  // namespace memnic
