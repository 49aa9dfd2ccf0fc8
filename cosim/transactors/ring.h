// A queue in an array. What has left it is used again, with the memory that it owns; the array only ever grows, so that
// few queues stay in the cache.
#pragma once
#include <cstddef>
#include <utility>
#include <vector>

namespace memnic {

template <typename Item>
class Ring {
 public:
  bool empty() const { return first_ == end_; }
  size_t size() const { return end_ - first_; }

  Item& operator[](size_t index) { return items_[(first_ + index) & (items_.size() - 1)]; }
  const Item& operator[](size_t index) const { return items_[(first_ + index) & (items_.size() - 1)]; }
  Item& front() { return (*this)[0]; }
  const Item& front() const { return (*this)[0]; }
  Item& back() { return (*this)[size() - 1]; }

  // One more at the end, as an earlier one has left it.
  Item& add() {
    if (size() == items_.size()) grow();
    ++end_;
    return back();
  }

  void pop() { ++first_; }

  void erase(size_t index) {
    for (; index; --index) std::swap((*this)[index], (*this)[index - 1]);
    pop();
  }

 private:
  void grow() {
    std::vector<Item> more(items_.empty() ? 2 : 2 * items_.size());  // a power of two
    const size_t count = size();
    for (size_t index = 0; index < count; ++index) more[index] = std::move((*this)[index]);
    items_ = std::move(more);
    first_ = 0;
    end_ = count;
  }

  std::vector<Item> items_;
  size_t first_ = 0, end_ = 0;  // counted without end
};

}  // namespace memnic
