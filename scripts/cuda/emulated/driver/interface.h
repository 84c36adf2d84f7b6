// What the driver of the emulated device shares with the kernels that it runs and with cuBLAS. The driver implements it.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emulated {

struct Dim {
  unsigned x, y, z;
};

// An argument of a kernel, as the kernel's signature tells.
struct Parameter {
  unsigned size;
  bool pointer;          // to memory of the device
  bool read_only;        // a pointer to const
  bool holds_addresses;  // it, or what it points to, may hold addresses of other allocations
};

constexpr unsigned warp_size = 32, max_threads = 1024, max_warps = max_threads / warp_size;

// The block that runs. Its threads take turns: each runs until it ends or waits.
struct Block {
  Dim grid, size, index;
  unsigned threads;         // of the block
  unsigned started;         // of these
  const uint16_t *order;    // in which they start
  const Dim *thread_index;  // of each
  void **arguments;
  unsigned current;         // the thread that runs
  unsigned waiting;         // threads that wait at a barrier of the block or of a warp
  unsigned ended;
  uint32_t ended_lanes[max_warps];
};

// What a kernel's module tells of the kernel. `run` runs one thread after another from `started` on until none is left; where
// one waits, the driver calls it anew on another stack, for those that have not started.
struct Kernel {
  const char *name;
  unsigned parameters;
  const Parameter *parameter;
  void (*run)(Block &);
  void *(*static_shared)();  // an address within the module's shared memory without extent, on this host thread
};

// A rendezvous of lanes: the last one to arrive computes for all. `lane[i]` is what lane i brought, null if it is not among them.
using Combine = void (*)(void *const lane[warp_size]);

}  // namespace emulated

#pragma GCC visibility push(default)
extern "C" {
void emulated_register(const emulated::Kernel *kernel);

// For a thread of a kernel:
// __syncthreads at this line of the source; the number of threads that came with a true predicate.
unsigned emulated_block_barrier(unsigned line, bool predicate);
// Waits for all lanes of `mask` that still run, which have to come with the same `combine`.
void emulated_warp_rendezvous(uint32_t mask, emulated::Combine combine, void *mine);
void emulated_thread_ended();
[[noreturn]] void emulated_trap(const char *why);
// Shared memory whose extent the launch says: every `extern __shared__` array.
extern unsigned char emulated_dynamic_shared[];

// For a library: an operation of its own between `begin` and `end`, on a stream.
void emulated_begin(void *stream);
void emulated_end();
void emulated_count_product(const char *name);
// Whether `bytes` at `address` are memory of the device; if not, says so.
bool emulated_use(const char *operation, const void *address, size_t bytes, bool write);
void emulated_complain(const char *what);
// Whether sums are to be taken in another order than the usual.
bool emulated_other_order();
}
#pragma GCC visibility pop
