// The host's side of the AXI4 master: reads and writes of the device meet host memory when the bus has carried them.
#pragma once
#include "bus.h"
#include "host_memory.h"
#include "said.h"

#include <array>
#include <deque>
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
    if (out.flags & M_AXI_AR_VALID) {
      const int64_t beats = out.m_axi_ar.len + 1, length = beats * HOST_BYTES;
      if (length > static_cast<int64_t>(BURST_BYTES)) error = "the device reads a burst longer than it may";
      read_bytes += length;
      most_reads = std::max(most_reads, ++reads);
      asked_.push({bus.read_due(edge, length), sequence_++, out.m_axi_ar.addr, out.m_axi_ar.id,
                   static_cast<uint32_t>(beats)});
    }
    if (out.flags & M_AXI_AW_VALID) addresses_.push_back({out.m_axi_aw.addr, out.m_axi_aw.id});
    if (out.flags & M_AXI_W_VALID) {
      Beat& beat = beats_.emplace_back();
      std::memcpy(beat.data, out.m_axi_w.data, HOST_BYTES);
      beat.strobes = out.m_axi_w.strb;
      beat.last = out.m_axi_w.last;
    }
    while (!addresses_.empty() && !beats_.empty()) match(edge);
    const bool moved = out.flags & (M_AXI_AR_VALID | M_AXI_AW_VALID | M_AXI_W_VALID);
    if (moved) moved_at_ = edge;
    return moved;
  }

  // Let what is due reach memory, and offer answers to the device.
  void drive(Edge edge, const Outputs& out, Inputs& in) {
    while (!asked_.empty() && asked_.top().due <= edge) {
      const Asked& ask = asked_.top();
      Answer& answer = answers_.emplace_back();
      const size_t length = size_t{ask.beats} * HOST_BYTES;
      answer.id = ask.id;
      answer.beats = ask.beats;
      answer.resp = fails(edge, ask.address, false) || !memory_.contains(ask.address, length) ? RESP_SLVERR : RESP_OKAY;
      if (answer.resp == RESP_OKAY) std::memcpy(answer.data.data(), memory_.at(ask.address), length);
      --reads;
      asked_.pop();
      moved_at_ = edge;
    }
    while (!written_.empty() && written_.front().due <= edge) {
      store(edge, written_.front());
      written_.pop_front();
      moved_at_ = edge;
    }
    while (!responses_.empty() && responses_.front().due <= edge) {
      ready_.push_back(responses_.front());
      responses_.pop_front();
      moved_at_ = edge;
    }
    if (!in.m_axi_r.valid || out.flags & M_AXI_R_READY) drive_read(in);
    if (!in.m_axi_b.valid || out.flags & M_AXI_B_READY) {
      in.m_axi_b.valid = !ready_.empty();
      if (!ready_.empty()) {
        in.m_axi_b.id = ready_.front().id;
        in.m_axi_b.resp = ready_.front().resp;
        ready_.pop_front();
      }
    }
  }

  // The edge at which something happens next by itself.
  Edge next() const {
    Edge edge = NEVER;
    if (!answers_.empty() || !ready_.empty()) return 0;
    if (!asked_.empty()) edge = std::min(edge, asked_.top().due);
    if (!written_.empty()) edge = std::min(edge, written_.front().due);
    if (!responses_.empty()) edge = std::min(edge, responses_.front().due);
    return edge;
  }

  // The edge since which an access of the device waits while none moves on.
  Edge waits_since() const {
    const bool waits = reads || !written_.empty() || !responses_.empty() || !addresses_.empty() || !open_.empty();
    return waits ? moved_at_ : NEVER;
  }

  // What is under way, in words.
  void report(Said& said) const {
    if (reads) said.push_back(count(reads, "DMA read") + " without an answer of host memory");
    if (!answers_.empty()) said.push_back("data of " + count(answers_.size(), "DMA read") + " on the way to the device");
    if (!written_.empty()) said.push_back(count(written_.size(), "DMA write") + " on the way to host memory");
    if (const size_t back = responses_.size() + ready_.size()) {
      said.push_back(count(back, "write response") + " on the way to the device");
    }
    if (!addresses_.empty()) said.push_back(count(addresses_.size(), "DMA write") + " without its last data");
    if (!open_.empty() && addresses_.empty()) said.push_back("data of a DMA write without its address");
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
    uint32_t id, beats, resp, at = 0;
    std::array<uint8_t, BURST_BYTES> data{};
  };
  struct Address {
    uint64_t address;
    uint32_t id;
  };
  struct Beat {
    uint8_t data[HOST_BYTES];
    uint64_t strobes;
    bool last;
  };
  struct Written {
    Edge due;
    uint64_t address;
    uint32_t id;
    std::vector<Beat> beats;
  };
  struct Response {
    Edge due;
    uint32_t id, resp;
  };

  // Pair the oldest beat with the oldest address; a whole burst goes on its way to memory.
  void match(Edge edge) {
    if (open_.capacity() == 0) open_.reserve(BURST_BYTES / HOST_BYTES + 1);
    open_.push_back(beats_.front());
    beats_.pop_front();
    if (!open_.back().last) return;
    int64_t length = 0;
    for (const Beat& beat : open_) {
      length += beat.strobes == ALL_LANES ? HOST_BYTES : __builtin_popcountll(beat.strobes);
    }
    write_bytes += length;
    written_.push_back({bus.write_arrives(edge, length), addresses_.front().address, addresses_.front().id,
                        std::move(open_)});
    open_.clear();
    addresses_.pop_front();
  }

  void store(Edge edge, const Written& burst) {
    bool good = !fails(edge, burst.address, true);
    const uint64_t row = burst.address / HOST_BYTES * HOST_BYTES;
    for (size_t index = 0; good && index < burst.beats.size(); ++index) {
      const Beat& beat = burst.beats[index];
      if (!beat.strobes) continue;
      const unsigned first = __builtin_ctzll(beat.strobes), last = 63 - __builtin_clzll(beat.strobes);
      const uint64_t address = row + index * HOST_BYTES + first;
      good = memory_.contains(address, last - first + 1);  // a device's strobes are one run
      if (good) memory_.write(address, beat.data + first, last - first + 1);
    }
    responses_.push_back({edge + bus.settings().write_latency_cycles, burst.id, good ? RESP_OKAY : RESP_SLVERR});
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
    if (answer.at == answer.beats) answers_.erase(answers_.begin() + chosen);
  }

  HostMemory memory_;
  int64_t sequence_ = 0;
  std::priority_queue<Asked, std::vector<Asked>, std::greater<Asked>> asked_;
  std::deque<Answer> answers_;
  std::deque<Address> addresses_;
  std::deque<Beat> beats_;
  std::vector<Beat> open_;
  std::deque<Written> written_;
  std::deque<Response> responses_, ready_;
  Edge moved_at_ = 0;
};

}  // namespace memnic
