// libcuda.so.1: devices, contexts, streams and events; and what a library's operations need. Everything runs when it is asked
// for, on the host thread that asks.
#include "api.h"

#include <dirent.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <map>
#include <set>
#include <string>

#include "memory.h"
#include "report.h"
#include "settings.h"

namespace emulated {

std::recursive_mutex &device_lock() {
  static auto &lock = *new std::recursive_mutex;
  return lock;
}

Result &context_error() {
  static Result error = success;
  return error;
}

bool &context_bound() {
  static thread_local bool bound;
  return bound;
}

namespace {

char context;  // its address is the handle

// Loads what build.sh put beside this library.
void load_kernels() {
  Dl_info self;
  dladdr(reinterpret_cast<void *>(load_kernels), &self);
  std::string folder = self.dli_fname;
  folder = folder.substr(0, folder.rfind('/') + 1) + "kernels";
  std::set<std::string> names;
  if (DIR *list = opendir(folder.c_str())) {
    while (dirent *entry = readdir(list)) names.insert(entry->d_name);
    closedir(list);
  }
  for (auto &name : names) {
    if (name.size() < 3 || name.compare(name.size() - 3, 3, ".so")) continue;
    // Local: the sources define functions of the same name.
    if (!dlopen((folder + "/" + name).c_str(), RTLD_NOW | RTLD_LOCAL)) complain(dlerror());
  }
}

void report_at_exit() {
  std::lock_guard<std::recursive_mutex> held(device_lock());
  check_beside_all();
  report(memory_in_use(), host_threads());
}

// Attributes of the device by their number in CUdevice_attribute: those of an H100.
const std::map<int, int> &attributes() {
  static const auto &known = *new std::map<int, int>{
      {1, 1024},         // threads of a block
      {2, 1024},         // and in each dimension
      {3, 1024},
      {4, 64},
      {5, 0x7fffffff},   // blocks of a grid, in each dimension
      {6, 65535},
      {7, 65535},
      {8, 48 << 10},     // shared memory of a block
      {9, 64 << 10},     // constant memory
      {10, 32},          // lanes of a warp
      {12, 65536},       // registers of a block
      {13, 1980000},     // clock, kHz
      {16, 132},         // multiprocessors
      {33, 0},           // bus
      {34, 0},
      {36, 2619000},     // clock of the memory, kHz
      {37, 5120},        // its width, bits
      {38, 50 << 20},    // cache
      {39, 2048},        // threads of a multiprocessor
      {41, 1},           // unified addresses
      {75, 9},           // compute capability
      {76, 0},
      {81, 228 << 10},   // shared memory of a multiprocessor
      {97, 227 << 10},   // of a block that asks for it
      {115, settings().pools},
  };
  return known;
}

}  // namespace
}  // namespace emulated

using namespace emulated;

EMULATED_API int cuInit(unsigned) {
  std::lock_guard<std::recursive_mutex> held(device_lock());
  static bool done;
  if (done) return success;
  done = true;
  settings();
  load_kernels();
  atexit(report_at_exit);
  return success;
}

EMULATED_API int cuDriverGetVersion(int *version) { return *version = 13000, success; }
EMULATED_API int cuDeviceGetCount(int *count) { return *count = 1, success; }
EMULATED_API int cuDeviceGet(int *device, int ordinal) { return ordinal ? invalid_device : (*device = 0, success); }
EMULATED_API int cuDeviceGetName(char *name, int size, int) { return snprintf(name, size, "emulated device"), success; }
EMULATED_API int cuDeviceGetUuid_v2(char *uuid, int) { return memcpy(uuid, "emulated device", 16), success; }
EMULATED_API int cuDeviceTotalMem_v2(size_t *bytes, int) { return *bytes = settings().memory, success; }

EMULATED_API int cuDeviceGetAttribute(int *value, int attribute, int) {
  std::lock_guard<std::recursive_mutex> held(device_lock());
  auto found = attributes().find(attribute);
  if (found == attributes().end()) remark("attribute " + std::to_string(attribute) + " of the device is taken for 0");
  *value = found == attributes().end() ? 0 : found->second;
  return success;
}

EMULATED_API int cuDevicePrimaryCtxRetain(void **handle, int) { return *handle = &context, success; }
EMULATED_API int cuDevicePrimaryCtxRelease_v2(int) { return success; }
EMULATED_API int cuCtxGetCurrent(void **handle) { return *handle = context_bound() ? &context : nullptr, context_error(); }
EMULATED_API int cuCtxSetCurrent(void *handle) { return context_bound() = handle, context_error(); }
EMULATED_API int cuCtxSetFlags(unsigned) { return context_error(); }
EMULATED_API int cuCtxGetDevice(int *device) { return *device = 0, context_error(); }

EMULATED_API int cuCtxSynchronize() {
  EMULATED_ENTER;
  count(Kind::wait, "context", 0);
  host_waits_for_all();
  return success;
}

EMULATED_API int cuStreamCreate(void **stream, unsigned) {
  EMULATED_ENTER;
  static uintptr_t made = 16;  // beyond the handles that have a meaning of their own
  *stream = reinterpret_cast<void *>(made++);
  return success;
}
EMULATED_API int cuStreamCreateWithPriority(void **stream, unsigned flags, int) { return cuStreamCreate(stream, flags); }
EMULATED_API int cuStreamDestroy_v2(void *) { return context_error(); }
EMULATED_API int cuStreamSynchronize(void *stream) {
  EMULATED_ENTER;
  count(Kind::wait, "stream", 0);
  host_waits_for_stream(stream_of(stream));
  return success;
}
EMULATED_API int cuStreamIsCapturing(void *, int *status) { return *status = 0, context_error(); }
EMULATED_API int cuStreamWaitEvent(void *stream, Event *event, unsigned) {
  EMULATED_ENTER;
  stream_waits(stream_of(stream), *event);
  return success;
}

namespace {
// An event with when it was recorded, for times between two.
struct TimedEvent : Event {
  timespec at{};
};
}  // namespace

EMULATED_API int cuEventCreate(TimedEvent **event, unsigned) {
  EMULATED_ENTER;
  count(Kind::event, "", 0);
  *event = new TimedEvent;
  return success;
}
EMULATED_API int cuEventDestroy_v2(TimedEvent *event) { return delete event, context_error(); }
EMULATED_API int cuEventRecord(TimedEvent *event, void *stream) {
  EMULATED_ENTER;
  count(Kind::event_record, "", 0);
  record(*event, stream_of(stream));
  clock_gettime(CLOCK_MONOTONIC, &event->at);
  return success;
}
EMULATED_API int cuEventQuery(TimedEvent *) { return context_error(); }
EMULATED_API int cuEventSynchronize(TimedEvent *event) {
  EMULATED_ENTER;
  count(Kind::wait, "event", 0);
  host_waits(*event);
  return success;
}
EMULATED_API int cuEventElapsedTime_v2(float *ms, const TimedEvent *from, const TimedEvent *to) {
  EMULATED_ENTER;
  *ms = static_cast<float>((to->at.tv_sec - from->at.tv_sec) * 1e3 + (to->at.tv_nsec - from->at.tv_nsec) / 1e6);
  return success;
}

// Names and texts of codes, as far as a program may show them.
EMULATED_API int cuGetErrorName(int code, const char **text) {
  switch (code) {
    case success: *text = "CUDA_SUCCESS"; break;
    case invalid_value: *text = "CUDA_ERROR_INVALID_VALUE"; break;
    case out_of_memory: *text = "CUDA_ERROR_OUT_OF_MEMORY"; break;
    case invalid_device: *text = "CUDA_ERROR_INVALID_DEVICE"; break;
    case invalid_context: *text = "CUDA_ERROR_INVALID_CONTEXT"; break;
    case not_found: *text = "CUDA_ERROR_NOT_FOUND"; break;
    case illegal_address: *text = "CUDA_ERROR_ILLEGAL_ADDRESS"; break;
    case assertion_failed: *text = "CUDA_ERROR_ASSERT"; break;
    case launch_failure: *text = "CUDA_ERROR_LAUNCH_FAILED"; break;
    case not_supported: *text = "CUDA_ERROR_NOT_SUPPORTED"; break;
    default: *text = "CUDA_ERROR_UNKNOWN";
  }
  return success;
}
EMULATED_API int cuGetErrorString(int code, const char **text) {
  switch (code) {
    case success: *text = "no error"; break;
    case invalid_value: *text = "invalid argument"; break;
    case out_of_memory: *text = "out of memory"; break;
    case invalid_device: *text = "invalid device ordinal"; break;
    case invalid_context: *text = "invalid device context"; break;
    case not_found: *text = "named symbol not found"; break;
    case illegal_address: *text = "an illegal memory access was encountered"; break;
    case assertion_failed: *text = "device-side assert triggered"; break;
    case launch_failure: *text = "unspecified launch failure"; break;
    case not_supported: *text = "operation not supported"; break;
    default: *text = "unknown error";
  }
  return success;
}

void emulated_begin(void *stream) {
  device_lock().lock();
  begin_operation(stream_of(stream));
}
void emulated_end() { device_lock().unlock(); }
void emulated_count_product(const char *name) { count(Kind::product, name, 0); }
bool emulated_use(const char *operation, const void *address, size_t bytes, bool write) {
  return use(operation, reinterpret_cast<uint64_t>(address), bytes, write);
}
void emulated_complain(const char *what) { complain(what); }
bool emulated_other_order() { return settings().order != Order::normal; }
