// Host memory: the buffer that Python sees, reached by bus address.
#pragma once
#include <cstdint>
#include <cstring>

namespace memnic {

// Asked once for each burst that reaches memory: whether it fails. `time` in picoseconds.
using Judge = int (*)(int64_t time, uint64_t address, int is_write);

class HostMemory {
 public:
  // `read_from` is what the device reads; `write_to` and, where it is another, `read_from` take what it writes.
  HostMemory(uint64_t base, uint64_t size, uint8_t* read_from, uint8_t* write_to)
      : base_(base), size_(size), read_from_(read_from), write_to_(write_to) {}

  bool contains(uint64_t address, uint64_t length) const {
    return address >= base_ && address - base_ <= size_ && length <= size_ - (address - base_);
  }

  const uint8_t* at(uint64_t address) const { return read_from_ + (address - base_); }

  void write(uint64_t address, const uint8_t* data, size_t length) {
    std::memcpy(write_to_ + (address - base_), data, length);
    if (read_from_ != write_to_) std::memcpy(read_from_ + (address - base_), data, length);
  }

 private:
  uint64_t base_, size_;
  uint8_t *read_from_, *write_to_;
};

}  // namespace memnic
