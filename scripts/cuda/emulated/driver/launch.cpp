#include "launch.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <unordered_map>
#include <vector>

#include "memory.h"
#include "report.h"
#include "settings.h"
#include "shared_memory.h"
#include "shuffle.h"

namespace emulated {
namespace {

// Registered while libraries are loaded, before anything else of this file may have been set up.
std::unordered_map<std::string, Function> &functions() {
  static auto &all = *new std::unordered_map<std::string, Function>;
  return all;
}

// Addresses in memory are looked for in tables of up to so many bytes.
constexpr size_t max_table = 64 << 10;

bool fits(Dim d, Dim most) { return d.x && d.y && d.z && d.x <= most.x && d.y <= most.y && d.z <= most.z; }

template <class T>
void arrange(std::vector<T> &order, size_t n) {
  order.resize(n);
  std::iota(order.begin(), order.end(), 0);
  if (settings().order == Order::reverse) std::reverse(order.begin(), order.end());
  if (settings().order == Order::random) shuffle(order);
}

// The index of each thread of a block of this size.
const Dim *thread_indices(Dim size) {
  static std::vector<Dim> indices;
  static Dim of{};
  if (memcmp(&of, &size, sizeof of) != 0) {
    of = size;
    indices.clear();
    for (unsigned z = 0; z < size.z; z++)
      for (unsigned y = 0; y < size.y; y++)
        for (unsigned x = 0; x < size.x; x++) indices.push_back({x, y, z});
  }
  return indices.data();
}

}  // namespace

Function *find_function(const std::string &name) {
  auto found = functions().find(name);
  return found == functions().end() ? nullptr : &found->second;
}

bool is_possible(const Function &function, const Launch &l) {
  bool grid = fits(l.grid, {0x7fffffff, 65535, 65535}), block = fits(l.block, {1024, 1024, 64});
  if (grid && block && uint64_t{l.block.x} * l.block.y * l.block.z <= max_threads && l.dynamic_shared <= function.max_dynamic_shared)
    return true;
  char text[200];
  snprintf(text, sizeof text, ": no GPU takes a grid of (%u, %u, %u) blocks of (%u, %u, %u) threads with %u bytes of shared memory",
           l.grid.x, l.grid.y, l.grid.z, l.block.x, l.block.y, l.block.z, l.dynamic_shared);
  complain(function.kernel->name + std::string(text) +
           (l.dynamic_shared > function.max_dynamic_shared ? ", for which it was not prepared" : ""));
  return false;
}

bool use_arguments(const Kernel &kernel, void **arguments) {
  for (unsigned i = 0; i < kernel.parameters; i++) {
    const Parameter &parameter = kernel.parameter[i];
    if (!parameter.pointer) {
      if (parameter.holds_addresses) use_addresses(kernel.name, arguments[i], parameter.size);
      continue;
    }
    uint64_t address;
    memcpy(&address, arguments[i], sizeof address);
    if (!address) continue;
    if (!use(kernel.name, address, 0, !parameter.read_only)) return false;
    size_t bytes = parameter.holds_addresses ? reach(address) : 0;
    if (bytes <= max_table) use_addresses(kernel.name, reinterpret_cast<void *>(address), bytes);
  }
  return true;
}

Fault run(const Kernel &kernel, const Launch &launch) {
  static std::vector<uint32_t> blocks;
  static std::vector<uint16_t> threads;
  Block block{};
  block.grid = launch.grid, block.size = launch.block;
  block.threads = launch.block.x * launch.block.y * launch.block.z;
  arrange(blocks, size_t{launch.grid.x} * launch.grid.y * launch.grid.z);
  arrange(threads, block.threads);
  block.order = threads.data();
  block.thread_index = thread_indices(launch.block);
  block.arguments = launch.arguments;
  set_dynamic_shared(launch.dynamic_shared);
  bool first = true;
  for (uint32_t b : blocks) {
    forget_shared(kernel, launch.dynamic_shared, first);
    first = false;
    block.index = {b % launch.grid.x, b / launch.grid.x % launch.grid.y, b / launch.grid.x / launch.grid.y};
    std::string what;
    Fault fault = run_block(kernel, block, what);
    if (fault != Fault::none) {
      complain(what);
      return fault;
    }
    check_shared(kernel, launch.dynamic_shared);
  }
  for (unsigned i = 0; i < kernel.parameters; i++) {
    if (!kernel.parameter[i].pointer || kernel.parameter[i].read_only) continue;
    uint64_t address;
    memcpy(&address, launch.arguments[i], sizeof address);
    if (address) check_beside(kernel.name, address);
  }
  return Fault::none;
}

}  // namespace emulated

void emulated_register(const emulated::Kernel *kernel) {
  if (!emulated::functions().emplace(kernel->name, emulated::Function{kernel, emulated::default_dynamic_shared}).second)
    emulated::complain(std::string("two kernels are named ") + kernel->name);
}
