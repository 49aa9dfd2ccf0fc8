// Writes what Verilator has counted in the device that runs, or ran last.
#include <verilated.h>
#include <verilated_cov.h>

extern "C" void memnic_write_coverage(const char* path) { Verilated::threadContextp()->coveragep()->write(path); }
