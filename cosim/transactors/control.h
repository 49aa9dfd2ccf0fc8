// The decider's side of the control port: messages of the two streams down, and of the one up. A device without flows has
// none of this.
#pragma once
#include "edges.h"
#include "said.h"

#include <cstring>
#include <deque>
#include <string>
#include <vector>

namespace memnic {

#if MEMNIC_CONTROL_PORT

// A stream of messages into the device: a beat in each cycle in which it takes one.
class MessagesDown {
 public:
  // A message of whole beats, from the edge behind `now` on.
  void give(Edge due, const uint8_t* data, uint32_t length) {
    Message& message = messages_.emplace_back();
    message.due = due;
    message.data.assign(data, data + length);
  }

  // Offer the next beat. `taken`: the device is ready. Returns whether one left.
  template <typename Beat>
  bool step(Edge edge, bool ready, Beat& beat) {
    const bool moves = beat.valid && ready;
    if (beat.valid && !moves) return false;
    beat.valid = 0;
    if (messages_.empty() || messages_.front().due > edge) return moves;
    const Message& message = messages_.front();
    std::memcpy(beat.data, message.data.data() + sent_, HOST_BYTES);
    sent_ += HOST_BYTES;
    beat.valid = 1;
    beat.last = sent_ == message.data.size();
    if (beat.last) {
      messages_.pop_front();
      sent_ = 0;
    }
    return moves;
  }

  Edge next() const { return messages_.empty() ? NEVER : messages_.front().due; }
  size_t waiting() const { return messages_.size(); }

 private:
  struct Message {
    Edge due;
    std::vector<uint8_t> data;
  };

  std::deque<Message> messages_;
  size_t sent_ = 0;
};

// Messages that the device tells, `ROOM` of which may wait for the decider.
class Control {
 public:
  static constexpr size_t ROOM = 8;

  MessagesDown release, emit;
  std::vector<uint32_t> lengths;  // of messages that the host has not been handed
  std::vector<uint8_t> bytes;     // of those, one behind the other

  // The decider has taken so many of those that it was handed.
  void taken(uint32_t messages) { held_ -= messages; }

  // One edge. Returns whether anything moved.
  bool step(Edge edge, const Outputs& out, Inputs& in) {
    bool moved = release.step(edge, out.flags & S_AXIS_RELEASE_READY, in.s_axis_release);
    moved |= emit.step(edge, out.flags & S_AXIS_EMIT_READY, in.s_axis_emit);
    if ((out.flags & M_AXIS_UP_VALID) && (in.ready & M_AXIS_UP_TAKEN)) {
      moved = true;
      bytes.insert(bytes.end(), out.m_axis_up.data, out.m_axis_up.data + HOST_BYTES);
      entered_ += HOST_BYTES;
      if (out.m_axis_up.last) {
        lengths.push_back(entered_);
        entered_ = 0;
        ++held_;
      }
    }
    in.ready = entered_ || held_ < ROOM ? in.ready | M_AXIS_UP_TAKEN : in.ready & ~M_AXIS_UP_TAKEN;
    return moved;
  }

  bool has_told() const { return !lengths.empty(); }
  bool offers(const Inputs& in) const { return in.s_axis_release.valid | in.s_axis_emit.valid; }
  Edge next() const { return std::min(release.next(), emit.next()); }

  // Hand over what has come: whole messages only. The bytes stay until the next time.
  const uint8_t* hand_over() {
    handed_.assign(bytes.begin(), bytes.end() - entered_);
    bytes.erase(bytes.begin(), bytes.end() - entered_);
    lengths.clear();
    return handed_.data();
  }

  // What is under way, in words.
  void report(Said& said) const {
    if (held_ >= ROOM) said.push_back("the decider has not taken " + count(held_, "message"));
    const size_t down = release.waiting() + emit.waiting();
    if (down) said.push_back(count(down, "order") + " of the control port on the way to the device");
  }

 private:
  std::vector<uint8_t> handed_;
  uint32_t entered_ = 0;  // bytes of the message that is coming
  size_t held_ = 0;
};

#else

class Control {
 public:
  bool step(Edge, const Outputs&, Inputs&) { return false; }
  bool has_told() const { return false; }
  bool offers(const Inputs&) const { return false; }
  Edge next() const { return NEVER; }
  void report(Said&) const {}
};

#endif

}  // namespace memnic
