// The host's side of the AXI4 master: reads and writes of the device meet host memory when the bus has carried them.
#pragma once
#include "bus.h"
#include "host_memory.h"
#include "ring.h"
#include "said.h"

#include <array>
#include <queue>
#include <string>
#include <vector>

namespace memnic {

constexpr uint64_t ALL_LANES = ~UINT64_C(0) >> (64 - HOST_BYTES);
constexpr uint32_t RESP_OKAY = 0, RESP_SLVERR = 2;

// A burst that reached memory, for who watches. Laid out as `_BURST` in cosim/engines/library.py.
struct BurstRecord {
  int64_t time_ps;
  uint64_t address;
  int64_t is_write;
};

class HostBus {
 public:
  HostBus(const BusSettings& settings, HostMemory memory) : bus(settings), memory_(memory) {}

  Bus bus;
  Judge judge = nullptr;
  bool watched = false;
  std::vector<BurstRecord> bursts;  // while `watched`
  int64_t read_bytes = 0, write_bytes = 0;
  int64_t reads = 0, most_reads = 0;  // in flight
  std::string error;

  // Take what the device offers, in the cycle before `edge`. Returns whether anything moved.
  bool take(Edge edge, const Outputs& out) {
    if (!(out.flags & (M_AXI_AR_VALID | M_AXI_AW_VALID | M_AXI_W_VALID))) return false;
    moved_at_ = edge;
    if (out.flags & M_AXI_AR_VALID) {
      const int64_t beats = out.m_axi_ar.len + 1, length = beats * HOST_BYTES;
      if (length > static_cast<int64_t>(BURST_BYTES)) error = "the device reads a burst longer than it may";
      read_bytes += length;
      most_reads = std::max(most_reads, ++reads);
      asked_.push({bus.read_due(edge, length), sequence_++, out.m_axi_ar.addr, out.m_axi_ar.id,
                   static_cast<uint32_t>(beats)});
      due_ = std::min(due_, asked_.top().due);
    }
    if (out.flags & M_AXI_AW_VALID) addresses_.add() = {out.m_axi_aw.addr, out.m_axi_aw.id};
    if (out.flags & M_AXI_W_VALID) add_beat(out);
    while (!addresses_.empty() && sent_ + open_ < written_.size()) send(edge);
    return true;
  }

  // Let what is due reach memory, and offer answers to the device.
  void drive(Edge edge, const Outputs& out, Inputs& in) {
    if (edge >= due_) arrive(edge);
    if (!in.m_axi_r.valid || out.flags & M_AXI_R_READY) drive_read(in);
    if (!in.m_axi_b.valid || out.flags & M_AXI_B_READY) {
      in.m_axi_b.valid = !ready_.empty();
      if (!ready_.empty()) {
        in.m_axi_b.id = ready_.front().id;
        in.m_axi_b.resp = ready_.front().resp;
        ready_.pop();
      }
    }
  }

  // The edge at which something happens next by itself.
  Edge next() const {
    return answers_.empty() && ready_.empty() ? due_ : 0;
  }

  // When an access of the device was last seen to move.
  Edge moved_at() const { return moved_at_; }

  // The edge since which an access of the device waits while none moves on.
  Edge waits_since() const {
    const bool waits = reads || !written_.empty() || !responses_.empty() || !addresses_.empty();
    return waits ? moved_at_ : NEVER;
  }

  // What is under way, in words.
  void report(Said& said) const {
    if (reads) said.push_back(count(reads, "DMA read") + " without an answer of host memory");
    if (!answers_.empty()) said.push_back("data of " + count(answers_.size(), "DMA read") + " on the way to the device");
    if (sent_) said.push_back(count(sent_, "DMA write") + " on the way to host memory");
    if (const size_t back = responses_.size() + ready_.size()) {
      said.push_back(count(back, "write response") + " on the way to the device");
    }
    if (!addresses_.empty()) said.push_back(count(addresses_.size(), "DMA write") + " without its last data");
    if (written_.size() > sent_ && addresses_.empty()) said.push_back("data of a DMA write without its address");
  }

 private:
  struct Asked {
    Edge due;
    int64_t sequence;
    uint64_t address;
    uint32_t id, beats;
    bool operator>(const Asked& other) const {
      return due != other.due ? due > other.due : sequence > other.sequence;
    }
  };
  struct Answer {
    uint32_t id, beats, resp, at;
    std::array<uint8_t, BURST_BYTES> data;
  };
  struct Address {
    uint64_t address;
    uint32_t id;
  };
  struct Beat {
    uint8_t data[HOST_BYTES];
    uint64_t strobes;
  };
  struct Written {
    Edge due;
    uint64_t address;
    uint32_t id;
    int64_t length;
    std::vector<Beat> beats;
  };
  struct Response {
    Edge due;
    uint32_t id, resp;
  };

  // A beat of the burst that is open, or of a new one.
  void add_beat(const Outputs& out) {
    if (!open_) {
      Written& burst = written_.add();
      burst.length = 0;
      burst.beats.clear();
    }
    Written& burst = written_.back();
    Beat& beat = burst.beats.emplace_back();
    std::memcpy(beat.data, out.m_axi_w.data, HOST_BYTES);
    beat.strobes = out.m_axi_w.strb;
    burst.length += beat.strobes == ALL_LANES ? HOST_BYTES : __builtin_popcountll(beat.strobes);
    open_ = !out.m_axi_w.last;
  }

  // The oldest burst that has no address yet gets the oldest address, and goes on its way to memory.
  void send(Edge edge) {
    Written& burst = written_[sent_++];
    write_bytes += burst.length;
    burst.due = bus.write_arrives(edge, burst.length);
    burst.address = addresses_.front().address;
    burst.id = addresses_.front().id;
    addresses_.pop();
    due_ = std::min(due_, written_.front().due);
  }

  // What is due by now reaches memory, or comes back from it.
  [[gnu::noinline]] void arrive(Edge edge) {
    while (!asked_.empty() && asked_.top().due <= edge) {
      const Asked& ask = asked_.top();
      Answer& answer = answers_.add();
      const size_t length = size_t{ask.beats} * HOST_BYTES;
      answer.id = ask.id;
      answer.beats = ask.beats;
      answer.at = 0;
      answer.resp = fails(edge, ask.address, false) || !memory_.contains(ask.address, length) ? RESP_SLVERR : RESP_OKAY;
      if (answer.resp == RESP_OKAY) {
        std::memcpy(answer.data.data(), memory_.at(ask.address), length);
      } else {
        answer.data.fill(0);
      }
      --reads;
      asked_.pop();
      moved_at_ = edge;
    }
    while (sent_ && written_.front().due <= edge) {
      store(edge, written_.front());
      written_.pop();
      --sent_;
      moved_at_ = edge;
    }
    while (!responses_.empty() && responses_.front().due <= edge) {
      ready_.add() = responses_.front();
      responses_.pop();
      moved_at_ = edge;
    }
    due_ = NEVER;
    if (!asked_.empty()) due_ = asked_.top().due;
    if (sent_) due_ = std::min(due_, written_.front().due);
    if (!responses_.empty()) due_ = std::min(due_, responses_.front().due);
  }

  void store(Edge edge, const Written& burst) {
    bool good = !fails(edge, burst.address, true);
    const uint64_t row = burst.address / HOST_BYTES * HOST_BYTES;
    for (size_t index = 0; good && index < burst.beats.size(); ++index) {
      const Beat& beat = burst.beats[index];
      if (beat.strobes == ALL_LANES) {
        good = memory_.contains(row + index * HOST_BYTES, HOST_BYTES);
        if (good) memory_.write(row + index * HOST_BYTES, beat.data, HOST_BYTES);
        continue;
      }
      if (!beat.strobes) continue;
      const unsigned first = __builtin_ctzll(beat.strobes), last = 63 - __builtin_clzll(beat.strobes);
      const uint64_t address = row + index * HOST_BYTES + first;
      good = memory_.contains(address, last - first + 1);  // a device's strobes are one run
      if (good) memory_.write(address, beat.data + first, last - first + 1);
    }
    responses_.add() = {edge + bus.settings().write_latency_cycles, burst.id, good ? RESP_OKAY : RESP_SLVERR};
  }

  bool fails(Edge edge, uint64_t address, bool is_write) {
    if (watched) bursts.push_back({time_of(edge), address, is_write});
    return judge && judge(time_of(edge), address, is_write);
  }

  void drive_read(Inputs& in) {
    in.m_axi_r.valid = !answers_.empty();
    if (answers_.empty()) return;
    const size_t chosen = bus.settings().interleave && answers_.size() > 1 ? bus.random.below(answers_.size()) : 0;
    Answer& answer = answers_[chosen];
    std::memcpy(in.m_axi_r.data, answer.data.data() + answer.at * HOST_BYTES, HOST_BYTES);
    in.m_axi_r.id = answer.id;
    in.m_axi_r.resp = answer.resp;
    in.m_axi_r.last = ++answer.at == answer.beats;
    if (answer.at == answer.beats) answers_.erase(chosen);
  }

  HostMemory memory_;
  int64_t sequence_ = 0;
  std::priority_queue<Asked, std::vector<Asked>, std::greater<Asked>> asked_;
  Ring<Answer> answers_;
  Ring<Address> addresses_;  // without their last data
  Ring<Written> written_;    // the oldest `sent_` of them on their way to memory; the last is `open_` until its last beat
  size_t sent_ = 0;
  bool open_ = false;
  Ring<Response> responses_, ready_;
  Edge due_ = NEVER;  // when the next thing reaches memory or comes back
  Edge moved_at_ = 0;
};

}  // namespace memnic
