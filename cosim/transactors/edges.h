// Time: picoseconds outside, edges of the device's clock inside. Edge n is at n * 10^12 / CLOCK_HZ, rounded down.
#pragma once
#include "pins.h"

#include <cstdint>

namespace memnic {

using Ps = int64_t;
using Edge = int64_t;

constexpr Ps PS_PER_S = 1'000'000'000'000;
constexpr Edge NEVER = INT64_MAX / 4;

inline Ps time_of(Edge edge) { return static_cast<Ps>(static_cast<__int128>(edge) * PS_PER_S / CLOCK_HZ); }

// The last edge at or before a time.
inline Edge edge_at(Ps time) {
  if (time >= INT64_MAX / 4) return NEVER;
  return static_cast<Edge>((static_cast<__int128>(time + 1) * CLOCK_HZ + PS_PER_S - 1) / PS_PER_S) - 1;
}

// The first edge at or after a time.
inline Edge edge_from(Ps time) { return edge_at(time - 1) + 1; }

}  // namespace memnic
