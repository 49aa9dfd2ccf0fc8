// When the host bus is free: what cosim/engines/bus.py says, with the same numbers.
#pragma once
#include "splitmix.h"
#include "edges.h"

#include <algorithm>
#include <deque>

namespace memnic {

// Laid out as `BusSettings` in cosim/engines/library.py.
struct BusSettings {
  int64_t read_latency_cycles;
  int64_t write_latency_cycles;
  int64_t mmio_read_cycles;
  int64_t mmio_write_cycles;
  int64_t fractions_per_byte;  // of a cycle, in 1 / 2^20
  int64_t duplex;
  int64_t tlp_overhead_bytes;
  int64_t max_payload_bytes;
  int64_t max_read_request_bytes;
  int64_t tags;
  int64_t reorder_cycles;
  int64_t interleave;
  uint64_t seed;
};

constexpr int FRACTION_BITS = 20;

class Bus {
 public:
  explicit Bus(const BusSettings& settings) : random(settings.seed), settings_(settings) {}

  const BusSettings& settings() const { return settings_; }
  void set(const BusSettings& settings) { settings_ = settings; }

  // Edge at which the first beat of a read that is asked for at `edge` may reach the device.
  Edge read_due(Edge edge, int64_t length) {
    const int64_t requests = pieces(length, settings_.max_read_request_bytes);
    int64_t start = edge << FRACTION_BITS;
    for (int64_t request = 0; request < requests; ++request) {
      if (static_cast<int64_t>(tags_.size()) >= settings_.tags) {
        start = std::max(start, tags_.front());
        tags_.pop_front();
      }
    }
    if (settings_.duplex) start = up_ = std::max(start, up_) + requests * overhead();
    int64_t& free = settings_.duplex ? down_ : up_;
    free = std::max(start + (settings_.read_latency_cycles << FRACTION_BITS), free) + moved(length);
    for (int64_t request = 0; request < requests; ++request) tags_.push_back(free);
    while (static_cast<int64_t>(tags_.size()) > settings_.tags) tags_.pop_front();
    const int64_t late = settings_.reorder_cycles ? random.below(settings_.reorder_cycles + 1) : 0;
    return (free >> FRACTION_BITS) + late;
  }

  // Edge at which a write whose last beat left at `edge` stands in host memory.
  Edge write_arrives(Edge edge, int64_t length) {
    up_ = std::max(edge << FRACTION_BITS, up_) + moved(length);
    return up_ >> FRACTION_BITS;
  }

  // From `edge` on, or as soon as it is free, something else has it for a time in fractions of a cycle, both directions.
  void take(Edge edge, int64_t fractions) {
    const int64_t start = edge << FRACTION_BITS;
    up_ = std::max(start, up_) + fractions;
    down_ = std::max(start, down_) + fractions;
  }

  SplitMix random;

 private:
  static int64_t pieces(int64_t length, int64_t most) { return std::max<int64_t>(1, (length + most - 1) / most); }
  int64_t overhead() const { return settings_.tlp_overhead_bytes * settings_.fractions_per_byte; }
  int64_t moved(int64_t length) const {
    return length * settings_.fractions_per_byte + pieces(length, settings_.max_payload_bytes) * overhead();
  }

  BusSettings settings_;
  int64_t up_ = 0, down_ = 0;  // when each direction is free; only `up_` where they share the bus
  std::deque<int64_t> tags_;   // when each read request that was asked for last is answered
};

}  // namespace memnic
