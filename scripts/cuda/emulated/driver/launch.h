// Launches of kernels: what a GPU would refuse, and the blocks of a grid in their order.
#pragma once
#include <string>

#include "interface.h"
#include "threads.h"

namespace emulated {

// A kernel as the program sees it.
struct Function {
  const Kernel *kernel;
  unsigned max_dynamic_shared;  // bytes; as on a GPU, more than 48 KiB have to be asked for
};

struct Launch {
  Dim grid, block;
  unsigned dynamic_shared;
  void **arguments;
};

// The kernel of this name, or null.
Function *find_function(const std::string &name);

// Whether a GPU takes it; if not, complains.
bool is_possible(const Function &function, const Launch &launch);
// Whether each argument that is an address is one of the device; if not, complains. Marks the memory as used.
bool use_arguments(const Kernel &kernel, void **arguments);
// Runs it. A fault has been complained of.
Fault run(const Kernel &kernel, const Launch &launch);

}  // namespace emulated
