// The compiled engine: Verilator's model of the wrapper, and the loop round it.
#include "Vwrapper.h"
#include "transactors.h"
#include "verilated.h"
#if VM_TRACE_FST
#include "verilated_fst_c.h"
using Trace = VerilatedFstC;
#elif VM_TRACE_VCD
#include "verilated_vcd_c.h"
using Trace = VerilatedVcdC;
#endif

#include <chrono>

#if MEMNIC_EACH_EDGE
#include "Vwrapper___024root.h"
void Vwrapper___024root___eval(Vwrapper___024root*);
#endif

namespace memnic {

extern Transactors* transactors;

namespace {

std::string fatal;  // what Verilator could not do
struct Fatal {};

// Which part of a run a wave shows. Laid out as `Window` in cosim/engines/compiled.py.
struct Window {
  int64_t from_ps;  // -1: not by time
  int64_t frame;    // the n-th frame that crossed the MAC, from 1; 0: not by frames
  int64_t error;    // the first completion that tells of an error
  int64_t length_ps;
  int64_t jump;
};

class Engine {
 public:
  Engine() {
#if VM_TRACE
    context_.traceEverOn(true);
#endif
    model_ = std::make_unique<Vwrapper>(&context_);
  }
  ~Engine() { close_wave(); }
  bool dumped() const { return dumped_; }
  Engine(const Engine&) = delete;

  // A wave in the file of `path`, from the first edge at which its beginning has come, for `length_ps`. Without
  // `jump` no time is jumped over in it.
  int open_wave(const char* path, const Window& window) {
#if VM_TRACE
    wave_ = std::make_unique<Trace>();
    model_->trace(wave_.get(), 99);
    try {
      wave_->open(path);
    } catch (const Fatal&) {
      wave_.release();
      return 0;
    }
    if (!wave_->isOpen()) return 0;
    window_ = window;
    if (window.from_ps >= 0) transactors->attention = edge_from(window.from_ps);
    transactors->jump_on = window.jump;
    return 1;
#else
    return 0;
#endif
  }

  void close_wave() {
#if VM_TRACE
    if (!wave_) return;
    try {
      wave_->close();
      wave_.reset();
    } catch (const Fatal&) {
      wave_.release();  // it would try to write again
    }
    dumping_ = false;
    transactors->jump_here = true;
#endif
  }

  // Run edges until the host must be called, `budget` at most.
  void run(int64_t budget) {
    for (; budget > 0; --budget) {
      try {
        edge();
      } catch (const Fatal&) {
        transactors->status.stop |= STOP_FATAL;
#if VM_TRACE
        wave_.release();  // it would try to write again
#endif
      }
      if (transactors->stop()) {
        transactors->count();
        return;
      }
    }
    transactors->status.stop |= STOP_BUDGET;
    transactors->status.now_ps = time_of(std::max<Edge>(transactors->edge(), 0));
    transactors->count();
  }

  // What each tick gives to the device, kept for a replay.
  void record(int64_t edges) {
    recorded_.clear();
    recorded_.reserve(edges);
    recording_ = edges;
  }

  // Give the device again what was recorded, `times` over, without transactors. Nanoseconds that it took.
  int64_t replay(int64_t times) {
    replaying_ = true;
    model_ = std::make_unique<Vwrapper>(&context_);
    begun_ = false;
    const auto begin = std::chrono::steady_clock::now();
    for (int64_t time = 0; time < times; ++time) {
      for (at_ = 0; at_ < recorded_.size(); ++at_) clock();
    }
    replaying_ = false;
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - begin).count();
  }

  void tick(const uint32_t* outputs, uint32_t* inputs) {
    if (replaying_) {
      std::memcpy(inputs, &recorded_[at_], sizeof(Inputs));
      return;
    }
    Inputs& in = *reinterpret_cast<Inputs*>(inputs);
    transactors->tick(*reinterpret_cast<const Outputs*>(outputs), in);
    if (recording_ > 0) {
      recorded_.push_back(in);
      --recording_;
    }
  }

 private:
  // One edge. Where both of the clock's are one (see rtl/verilog.py), one call does; and Verilator's own, which looks after
  // threads and messages that are not there, may be passed by when it has set up the model.
  void clock() {
#if MEMNIC_EACH_EDGE
    model_->clk = !model_->clk;
    if (begun_) {
      Vwrapper___024root___eval(model_->rootp);
    } else {
      model_->eval();
      begun_ = true;
    }
#else
    model_->clk = 1;
    model_->eval();
    model_->clk = 0;
    model_->eval();
#endif
  }

  void edge() {
#if VM_TRACE
    if (wave_) {
      traced_edge();
      return;
    }
#endif
    clock();
  }

#if VM_TRACE
  void traced_edge() {
    model_->clk = 1;
    model_->eval();
    const Edge edge = transactors->edge();
    const Ps now = time_of(edge);
    if (!dumping_ && edge >= 0 && begins(now)) {
      dumping_ = dumped_ = true;
      end_ = now + std::min(window_.length_ps, INT64_MAX / 2);
      transactors->jump_here = window_.jump;
    }
    if (dumping_) wave_->dump(static_cast<uint64_t>(now));
    model_->clk = 0;
    model_->eval();
    if (dumping_) wave_->dump(static_cast<uint64_t>(now + time_of(1) / 2));
    if (dumping_ && now >= end_) close_wave();
  }

  bool begins(Ps now) const {
    const Status& status = transactors->status;
    return (window_.from_ps >= 0 && now >= window_.from_ps) ||
           (window_.frame > 0 && transactors->mac.frames_sent + transactors->mac.frames_received >= window_.frame) ||
           (window_.error && status.error_completions > 0);
  }
#endif

  VerilatedContext context_;
  std::unique_ptr<Vwrapper> model_;
  bool begun_ = false;
  std::vector<Inputs> recorded_;
  int64_t recording_ = 0;
  size_t at_ = 0;
  bool replaying_ = false;
  bool dumped_ = false;  // whether the wave's beginning has come
#if VM_TRACE
  std::unique_ptr<Trace> wave_;
  Window window_{};
  bool dumping_ = false;
  Ps end_ = 0;
#endif
};

Engine* engine = nullptr;

}  // namespace
}  // namespace memnic

using namespace memnic;

// Verilator's own would end the process, and with it all results. What was being done is given up at once: after a failed
// write a wave's buffer may not be written to again.
void vl_fatal(const char*, int, const char*, const char* message) {
  fatal = message;
  throw Fatal();
}

extern "C" {

void memnic_tick(const uint32_t* outputs, uint32_t* inputs) { engine->tick(outputs, inputs); }

void memnic_start() {
  delete engine;
  fatal.clear();
  engine = new Engine;
}

void memnic_stop() {
  delete engine;
  engine = nullptr;
}

void memnic_run(int64_t budget) { engine->run(budget); }

void memnic_record(int64_t edges) { engine->record(edges); }
int64_t memnic_replay(int64_t times) { return engine->replay(times); }

int memnic_open_wave(const char* path, const Window* window) { return engine->open_wave(path, *window); }

// Close the wave. Returns whether its beginning had come.
int memnic_close_wave() {
  engine->close_wave();
  return engine->dumped();
}

// What Verilator could not do; empty if nothing.
const char* memnic_fatal() { return fatal.c_str(); }

}  // extern "C"
