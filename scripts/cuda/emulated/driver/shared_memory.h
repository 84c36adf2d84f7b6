// The shared memory of the block that runs.
#pragma once
#include "interface.h"

namespace emulated {

constexpr unsigned default_dynamic_shared = 48 << 10, most_dynamic_shared = 227 << 10;

// Says how many bytes the blocks of a launch have of it, next to memory of a fixed extent.
void set_dynamic_shared(unsigned bytes);
// Fills shared memory with what no kernel may rely on: at the first block of a launch all of it, at the others all but large arrays
// of a fixed extent, since that would take longer than the block.
void forget_shared(const Kernel &kernel, unsigned bytes, bool first_block);
// Complains if the kernel wrote a little beyond it. Further away there is a page that cannot be touched.
void check_shared(const Kernel &kernel, unsigned bytes);

}  // namespace emulated
