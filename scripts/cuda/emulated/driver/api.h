// What all functions of the driver begin with.
#pragma once
#include <mutex>

#include "streams.h"
#include "threads.h"

#define EMULATED_API extern "C" __attribute__((visibility("default")))

namespace emulated {

// Codes of CUresult.
enum Result {
  success = 0,
  invalid_value = 1,
  out_of_memory = 2,
  no_device = 100,
  invalid_device = 101,
  invalid_context = 201,
  not_found = 500,
  not_ready = 600,
  illegal_address = 700,
  assertion_failed = 710,
  launch_failure = 719,
  not_supported = 801,
};

// Held by every call: everything of the device is then the caller's.
std::recursive_mutex &device_lock();

// The error that ended the context, which every later call gives.
Result &context_error();
// Whether the calling host thread has the context.
bool &context_bound();

// The start of a function that needs a context.
#define EMULATED_ENTER                                          \
  std::lock_guard<std::recursive_mutex> held(device_lock());    \
  if (context_error() != success) return context_error();       \
  if (!context_bound()) return invalid_context

}  // namespace emulated
