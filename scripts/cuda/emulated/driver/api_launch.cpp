// libcuda.so.1: modules, functions and launches.
#include <cstdio>
#include <cstring>
#include <ctime>

#include "api.h"
#include "launch.h"
#include "report.h"
#include "settings.h"
#include "shared_memory.h"

namespace emulated {
namespace {

// A module's PTX, or nothing where the program was built without (see fake-nvcc). It is asked for the names of its kernels alone.
struct Module {
  std::string ptx;
  bool has(const std::string &name) const { return ptx.empty() || ptx.find(".entry " + name + "(") != ptx.npos; }
};

// Of CUfunction_attribute.
enum { attribute_max_threads = 0, attribute_max_dynamic_shared = 8, attribute_carveout = 9 };

uint64_t now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<uint64_t>(t.tv_sec) * 1000000000 + static_cast<uint64_t>(t.tv_nsec);
}

// The code that the calls after a kernel with this fault get.
Result code(Fault fault) {
  switch (fault) {
    case Fault::illegal_address: return illegal_address;
    case Fault::assertion: return assertion_failed;
    case Fault::launch_failed: return launch_failure;
    default: return success;
  }
}

}  // namespace
}  // namespace emulated

using namespace emulated;

EMULATED_API int cuModuleLoadData(Module **module, const char *text) {
  EMULATED_ENTER;
  count(Kind::module, "", 0);
  *module = new Module{strstr(text, ".entry ") ? text : ""};
  return success;
}
EMULATED_API int cuModuleUnload(Module *module) { return delete module, context_error(); }

EMULATED_API int cuModuleGetFunction(Function **function, const Module *module, const char *name) {
  EMULATED_ENTER;
  *function = module->has(name) ? find_function(name) : nullptr;
  if (*function) return success;
  complain("no kernel is named " + std::string(name) + (module->has(name) ? "" : " in its module"));
  return not_found;
}

EMULATED_API int cuFuncSetAttribute(Function *function, int attribute, int value) {
  EMULATED_ENTER;
  if (attribute == attribute_carveout) return success;  // a hint
  if (attribute != attribute_max_dynamic_shared || value < 0 || value > static_cast<int>(most_dynamic_shared)) return invalid_value;
  function->max_dynamic_shared = static_cast<unsigned>(value);
  return success;
}
EMULATED_API int cuFuncGetAttribute(int *value, int attribute, const Function *function) {
  EMULATED_ENTER;
  switch (attribute) {
    case attribute_max_threads: *value = max_threads; return success;
    case attribute_max_dynamic_shared: *value = static_cast<int>(function->max_dynamic_shared); return success;
    default: return not_supported;  // what only a compiler for the device knows
  }
}

EMULATED_API int cuLaunchKernel(Function *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                                unsigned block_y, unsigned block_z, unsigned shared, void *stream, void **arguments, void **) {
  EMULATED_ENTER;
  begin_operation(stream_of(stream));
  const Kernel &kernel = *function->kernel;
  Launch launch{{grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared, arguments};
  count(Kind::launch, kernel.name, 0);
  char text[120];
  snprintf(text, sizeof text, "grid %u %u %u block %u %u %u shared %u", grid_x, grid_y, grid_z, block_x, block_y, block_z, shared);
  trace_detail(text);
  if (!is_possible(*function, launch)) return invalid_value;
  // From here on a fault shows at the next call, as on a GPU.
  static uint64_t launches;
  if (++launches == settings().failing_launch || !use_arguments(kernel, arguments)) return context_error() = illegal_address, success;
  catch_faults();
  uint64_t start = now();
  context_error() = code(run(kernel, launch));
  add_time(Kind::launch, kernel.name, now() - start);
  return success;
}
