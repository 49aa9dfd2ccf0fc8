// The MAC: frames from the device enter a FIFO that drains at the wire's rate; frames for it arrive whole.
#pragma once
#include "splitmix.h"
#include "edges.h"
#include "said.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

namespace memnic {

// Laid out as `MacSettings` in cosim/engines/library.py; what each means: cosim/mac.py.
struct MacSettings {
  int64_t bit_rate;
  int64_t overhead_bytes;
  int64_t gap_bytes;
  int64_t min_frame_bytes;
  int64_t max_frame_bytes;
  int64_t fifo_bytes;
  int64_t jitter_ps;
  int64_t lookahead_ps;
  int64_t sink_percent;
  int64_t source_percent;
  int64_t source_gap_cycles;
  uint64_t seed;
};

constexpr uint64_t ALL_KEPT = ~UINT64_C(0) >> (64 - MAC_BYTES);

// A frame that the device sent. Laid out as `_SENT_FRAME` in cosim/engines/library.py.
struct SentFrame {
  int64_t length;
  int64_t taken_ps;  // its last beat
  int64_t start_ps;  // its first bit on the wire
  int64_t end_ps;    // its last bit
  int64_t free_ps;   // the end of the gap behind it
};

class Mac {
 public:
  explicit Mac(const MacSettings& settings) : random_(settings.seed), settings_(settings) {}

  std::vector<SentFrame> frames;  // not yet handed to the host
  std::vector<uint8_t> bytes;     // of those frames, one behind the other
  int64_t frames_sent = 0, frames_received = 0;

  // A frame for the device, whose last bit arrives at `time`. Times do not fall.
  void deliver(Ps time, const uint8_t* data, uint32_t length, bool bad) {
    Arriving& frame = arriving_.emplace_back();
    frame.edge = edge_at(time) + 1;
    frame.bad = bad;
    frame.data.assign(data, data + length);
  }

  // Take a beat that the device sends, in the cycle before `edge`, and say whether the next may come.
  bool sink(Edge edge, const Outputs& out, Inputs& in) {
    const bool moves = (out.flags & M_AXIS_TX_VALID) && (in.ready & M_AXIS_TX_TAKEN);
    if (moves) {
      const uint64_t keep = out.m_axis_tx.keep;
      if (entered_ + MAC_BYTES > entering_.size()) entering_.resize(2 * entering_.size() + 4096);
      std::memcpy(entering_.data() + entered_, out.m_axis_tx.data, MAC_BYTES);  // a size that the compiler knows
      entered_ += keep == ALL_KEPT ? MAC_BYTES : __builtin_popcountll(keep);
      inside_ = !out.m_axis_tx.last;
      if (out.m_axis_tx.last) leave(edge);
    }
    bool ready = inside_ || has_room(edge);
    if (settings_.sink_percent < 100) {
      ready = ready && (out.flags & M_AXIS_TX_VALID) && (sink_credit_ += settings_.sink_percent) >= 100;
      if (ready) sink_credit_ -= 100;
    }
    in.ready = ready ? in.ready | M_AXIS_TX_TAKEN : in.ready & ~M_AXIS_TX_TAKEN;
    const bool held = (out.flags & M_AXIS_TX_VALID) && !moves && !drains(edge);
    held_since_ = held ? std::min(held_since_, edge) : NEVER;
    return moves;
  }

  // Offer a beat of what has arrived. Returns whether one left.
  bool source(Edge edge, const Outputs& out, Inputs& in) {
    const bool moves = in.s_axis_rx.valid && (out.flags & S_AXIS_RX_READY);
    if (in.s_axis_rx.valid && !moves) return false;
    in.s_axis_rx.valid = 0;
    if (arriving_.empty() || arriving_.front().edge > edge || edge < resume_) return moves;
    if ((source_credit_ += settings_.source_percent) < 100) return moves;
    source_credit_ -= 100;
    const Arriving& frame = arriving_.front();
    const size_t count = std::min<size_t>(MAC_BYTES, frame.data.size() - sent_);
    if (count == MAC_BYTES) {
      std::memcpy(in.s_axis_rx.data, frame.data.data() + sent_, MAC_BYTES);
    } else {
      std::memset(in.s_axis_rx.data, 0, MAC_BYTES);
      std::memcpy(in.s_axis_rx.data, frame.data.data() + sent_, count);
    }
    sent_ += count;
    const bool last = sent_ == frame.data.size();
    in.s_axis_rx.valid = 1;
    in.s_axis_rx.keep = count == 64 ? ~UINT64_C(0) : (UINT64_C(1) << count) - 1;
    in.s_axis_rx.last = last;
    in.s_axis_rx.user = last && frame.bad;
    if (last) {
      arriving_.pop_front();
      sent_ = 0;
      resume_ = edge + 1 + settings_.source_gap_cycles;
      ++frames_received;
    }
    return moves;
  }

  // The edge by which the host must have seen the oldest frame that it has not.
  Edge report_by() const { return frames.empty() ? NEVER : report_by_; }

  // The host sees them now; their bytes stay until the next time.
  const uint8_t* report() {
    bytes.swap(reported_);
    bytes.clear();
    frames.clear();
    return reported_.data();
  }

  // The edge at which something happens next by itself; `stalled`: the device waits for room.
  Edge next(bool stalled) const {
    Edge edge = arriving_.empty() ? NEVER : std::max(arriving_.front().edge, resume_);
    if (stalled && !leaving_.empty()) edge = std::min(edge, leaving_.front().edge);
    return std::min(edge, report_by());
  }

  // Whether frames are still leaving the FIFO.
  bool drains(Edge edge) const { return !leaving_.empty() && leaving_.back().edge > edge; }

  // The edge since which a frame waits, though none leaves before it.
  Edge held_since() const { return held_since_; }

  // What is under way, in words.
  void report(Said& said) const {
    if (held_since_ < NEVER) said.push_back("the MAC does not take a frame of the device");
    if (inside_) said.push_back("a frame that has entered the MAC in part");
    if (!leaving_.empty()) said.push_back(count(leaving_.size(), "frame") + " in the MAC's transmit FIFO");
    if (!arriving_.empty()) said.push_back(count(arriving_.size(), "frame") + " on the way to the device");
  }

 private:
  struct Arriving {
    Edge edge;
    bool bad;
    std::vector<uint8_t> data;
  };
  struct Leaving {
    Edge edge;
    int64_t length;
  };

  Ps duration(int64_t length) const { return (length * 8 * PS_PER_S + settings_.bit_rate - 1) / settings_.bit_rate; }

  bool has_room(Edge edge) {
    while (!leaving_.empty() && leaving_.front().edge <= edge) {
      queued_ -= leaving_.front().length;
      leaving_.pop_front();
    }
    return queued_ + settings_.max_frame_bytes <= settings_.fifo_bytes;
  }

  void leave(Edge edge) {
    SentFrame& frame = frames.emplace_back();
    bytes.insert(bytes.end(), entering_.begin(), entering_.begin() + entered_);
    frame.length = static_cast<int64_t>(entered_);
    entered_ = 0;
    const int64_t padded = std::max(frame.length, settings_.min_frame_bytes);
    frame.taken_ps = time_of(edge);
    frame.start_ps = std::max(frame.taken_ps, free_at_);
    frame.end_ps = frame.start_ps + duration(padded + settings_.overhead_bytes - settings_.gap_bytes);
    frame.free_ps = frame.start_ps + duration(padded + settings_.overhead_bytes);
    if (settings_.jitter_ps) frame.free_ps += random_.below(settings_.jitter_ps);
    free_at_ = frame.free_ps;
    if (frames.size() == 1) report_by_ = std::max(edge, edge_at(frame.end_ps + settings_.lookahead_ps));
    leaving_.push_back({edge_from(frame.free_ps), padded});
    queued_ += padded;
    ++frames_sent;
  }

  SplitMix random_;
  MacSettings settings_;
  std::deque<Arriving> arriving_;
  size_t sent_ = 0;
  Edge resume_ = 0;
  std::deque<Leaving> leaving_;
  std::vector<uint8_t> reported_;  // bytes that the host was shown last
  std::vector<uint8_t> entering_;  // the frame that enters, in its first `entered_` bytes
  size_t entered_ = 0;
  int64_t queued_ = 0;
  Ps free_at_ = 0;
  Edge report_by_ = NEVER, held_since_ = NEVER;
  bool inside_ = false;
  int64_t sink_credit_ = 0, source_credit_ = 0;
};

}  // namespace memnic
