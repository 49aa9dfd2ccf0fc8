// The tick for a simulator that calls it by DPI, such as Verilator under cocotb: the wrapper's import.
#include "transactors.h"

namespace memnic {
extern Transactors* transactors;

static Inputs held;  // what the device was given last: `inputs` is a place for one call
}  // namespace memnic

extern "C" void memnic_tick(const uint32_t* outputs, uint32_t* inputs) {
  using namespace memnic;
  if (!transactors) {  // the host has not begun
    std::memset(inputs, 0, sizeof(Inputs));
    return;
  }
  transactors->tick(*reinterpret_cast<const Outputs*>(outputs), held);
  std::memcpy(inputs, &held, sizeof held);
  if (transactors->stop()) transactors->count();
}
