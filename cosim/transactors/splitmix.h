// The random numbers of bus and MAC: SplitMix64 (Steele, Lea, Flood 2014), as in cosim/engines/splitmix.py.
#pragma once
#include <cstdint>

namespace memnic {

class SplitMix {
 public:
  explicit SplitMix(uint64_t seed) : state_(seed) {}

  uint64_t next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }

  // A number from 0 to n - 1.
  uint64_t below(uint64_t n) { return (next() >> 32) * n >> 32; }

 private:
  uint64_t state_;
};

}  // namespace memnic
