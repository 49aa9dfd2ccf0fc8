// The compiled engine: Verilator's model of the wrapper, and the loop round it.
#include "Vwrapper.h"
#include "transactors.h"
#include "verilated.h"
#if VM_TRACE_FST
#include "verilated_fst_c.h"
using WaveFile = VerilatedFstC;
#elif VM_TRACE_VCD
#include "verilated_vcd_c.h"
using WaveFile = VerilatedVcdC;
#endif

#include <chrono>

#if MEMNIC_DIRECT
#include "Vwrapper___024root.h"
// The device's one process: all that Verilator calls at an edge, see `_check_one_process` in cosim/builds.py.
void Vwrapper___024root___nba_sequent__TOP__0(Vwrapper___024root*);
extern "C" void memnic_probe(const uint32_t* probes);
#endif

namespace memnic {

extern Transactors* transactors;

namespace {

Inputs held;        // what the device was given last, where its wrapper hands in no place that lasts
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
    begin();
  }
  ~Engine() { close_wave(); }
  bool dumped() const { return dumped_; }
  Engine(const Engine&) = delete;

  // A wave in the file of `path`, from the first edge at which its beginning has come, for `length_ps`. Without
  // `jump` no time is jumped over in it.
  int open_wave(const char* path, const Window& window) {
#if VM_TRACE
    wave_ = std::make_unique<WaveFile>();
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
    begin();
    const auto begin = std::chrono::steady_clock::now();
    for (int64_t time = 0; time < times; ++time) {
      for (at_ = 0; at_ < recorded_.size(); ++at_) clock();
    }
    replaying_ = false;
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - begin).count();
  }

  void tick(const Outputs& out, Inputs& in) {
    if (replaying_) {
      in = recorded_[at_];
      return;
    }
    transactors->tick(out, in);
    if (recording_ > 0) {
      recorded_.push_back(in);
      --recording_;
    }
  }

 private:
  void begin() {
    model_ = std::make_unique<Vwrapper>(&context_);
#if MEMNIC_DIRECT
    model_->eval();  // sets it up, without an edge
    answered_ = false;
#endif
  }

  // One edge. Where the device is one process with all that crosses its border in two structs (see rtl/gated.py), that is
  // called directly: then there is no clock to look for, and nothing to copy. The wrapper calls `tick` by itself.
  void clock() {
#if MEMNIC_DIRECT
    Vwrapper___024root* const root = model_->rootp;
    Vwrapper___024root___nba_sequent__TOP__0(root);
    const uint32_t* const outputs = root->outputs.m_storage;
    Inputs& in = *reinterpret_cast<Inputs*>(root->inputs.m_storage);
    if (answered_) memnic_probe(outputs + sizeof(Outputs) / sizeof *outputs);
    answered_ = in.asked;
    tick(*reinterpret_cast<const Outputs*>(outputs), in);
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
  bool answered_ = false;  // whether the device has taken the probes
  std::vector<Inputs> recorded_;
  int64_t recording_ = 0;
  size_t at_ = 0;
  bool replaying_ = false;
  bool dumped_ = false;  // whether the wave's beginning has come
#if VM_TRACE
  std::unique_ptr<WaveFile> wave_;
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

void memnic_tick(const uint32_t* outputs, uint32_t* inputs) {
  engine->tick(*reinterpret_cast<const Outputs*>(outputs), held);
  std::memcpy(inputs, &held, sizeof held);
}

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
