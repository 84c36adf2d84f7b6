// The threads of a block, which take turns on one thread of the host, each on a stack of its own from where it first waits.
#pragma once
#include <cstdint>
#include <string>

#include "interface.h"

namespace emulated {

enum class Fault { none, illegal_address, assertion, launch_failed };

// Runs the threads of a block to their end. A fault is described in `what`, with kernel, block and thread; what the threads had
// begun is then left as it is.
Fault run_block(const Kernel &kernel, Block &block, std::string &what);

// Has faults of the processor in a kernel end that kernel instead of the program. Once for each thread of the host.
void catch_faults();

}  // namespace emulated
