// What Python calls: the C functions of cosim/engines/library.py, for one device in this process.
#include "probes.h"
#include "transactors.h"

#include <memory>

namespace memnic {

Transactors* transactors = nullptr;

}  // namespace memnic

using namespace memnic;

extern "C" {

// Make the transactors of a new device; those of an earlier one are gone.
void memnic_open(const BusSettings* bus, const MacSettings* mac, uint64_t base, uint64_t size, uint8_t* read_from,
                 uint8_t* write_to, int64_t stuck_cycles) {
  delete transactors;
  transactors = new Transactors(*bus, *mac, HostMemory(base, size, read_from, write_to), stuck_cycles);
}

void memnic_close() {
  delete transactors;
  transactors = nullptr;
}

Status* memnic_status() { return &transactors->status; }

void memnic_set_bus(const BusSettings* bus) { transactors->host.bus.set(*bus); }

void memnic_watch(Judge judge, int watched) {
  transactors->host.judge = judge;
  transactors->host.watched = watched;
}

void memnic_write(int64_t now_ps, uint32_t address, const void* data, uint32_t length) {
  transactors->write(now_ps, address, data, length);
}

void memnic_read(int64_t now_ps, uint32_t address, int64_t ticket) { transactors->read(now_ps, address, ticket); }

// A poll of the host has the bus for a time in fractions of a cycle, from the first edge after `now_ps` on.
void memnic_take_bus(int64_t now_ps, int64_t fractions) {
  transactors->host.bus.take(edge_at(now_ps) + 1, fractions);
}

// Frames for the device: of each its time, length and bad flag; their bytes one behind the other. Times do not fall.
void memnic_deliver(int64_t count, const int64_t* frames, const uint8_t* bytes) {
  for (int64_t index = 0; index < count; ++index, frames += 3) {
    transactors->mac.deliver(frames[0], bytes, static_cast<uint32_t>(frames[1]), frames[2]);
    bytes += frames[1];
  }
}

#if MEMNIC_CONTROL_PORT
// An order of the decider, whole messages of it: to the emit stream, or to release.
void memnic_order(int64_t now_ps, int emit, const uint8_t* data, uint32_t length) {
  MessagesDown& stream = emit ? transactors->control.emit : transactors->control.release;
  stream.give(edge_at(now_ps) + 1, data, length);
}

// How many messages have come up that were not handed over, and their lengths.
uint32_t memnic_told() { return static_cast<uint32_t>(transactors->control.lengths.size()); }

// Hand them over: their lengths, and their bytes, one behind the other, which stay until the next call.
const uint8_t* memnic_hear(uint32_t* lengths) {
  std::copy(transactors->control.lengths.begin(), transactors->control.lengths.end(), lengths);
  return transactors->control.hand_over();
}

// The decider has room for so many more.
void memnic_heard(uint32_t messages) { transactors->control.taken(messages); }
#endif

// Before the device goes on: what the host waits for.
void memnic_expect(int64_t limit_ps, uint64_t lines, int error) {
  transactors->set_limit(limit_ps);
  transactors->wake_on(lines, error);
  transactors->clear_stop();
}

void memnic_jump(int jump, int jump_here) {
  transactors->jump = jump;
  transactors->jump_here = jump_here;
}

// Hand over what has come, and forget it. Counts are in the status. Returns the frames' bytes, one frame behind the
// other, which stay until the next call.
const uint8_t* memnic_take(SentFrame* frames, ReadValue* values, BurstRecord* bursts, Rise* rises) {
  Mac& mac = transactors->mac;
  std::copy(mac.frames.begin(), mac.frames.end(), frames);
  const uint8_t* bytes = mac.report();
  std::copy(transactors->values.begin(), transactors->values.end(), values);
  transactors->values.clear();
  std::copy(transactors->host.bursts.begin(), transactors->host.bursts.end(), bursts);
  transactors->host.bursts.clear();
  std::copy(transactors->rises.begin(), transactors->rises.end(), rises);
  transactors->rises.clear();
  transactors->count();
  return bytes;
}

// What crosses the device's ports: kept from now on, or no longer.
void memnic_trace(int on) { transactors->trace.on = on; }

int64_t memnic_traced() { return static_cast<int64_t>(transactors->trace.events.size()); }

// Hand over what has been kept, and forget it.
void memnic_take_trace(PortEvent* events) {
  std::copy(transactors->trace.events.begin(), transactors->trace.events.end(), events);
  transactors->trace.events.clear();
}

// What is under way, in words; at most `size` bytes with the 0 behind them.
void memnic_report(char* text, int64_t size) {
  std::snprintf(text, size, "%s", transactors->report().c_str());
}

// By DPI: what the wrapper's device shows of itself, when it was asked.
void memnic_probe(const uint32_t* probes) { transactors->probes.assign(probes, probes + PROBE_WORDS); }

// The same for Python, where it is kept: none if the device was never asked.
const uint32_t* memnic_probes() { return transactors->probes.empty() ? nullptr : transactors->probes.data(); }

// What their bits mean: see rtl/probes.py.
const char* memnic_probe_names() { return PROBE_NAMES; }

}  // extern "C"
