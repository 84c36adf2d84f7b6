// libcuda.so.1: memory, its pools, and copies.
#include <cstdlib>
#include <cstring>

#include "api.h"
#include "memory.h"
#include "report.h"
#include "settings.h"

namespace emulated {
namespace {

struct Operation {
  explicit Operation(void *stream) { begin_operation(stream_of(stream)); }
};

int copy(Kind kind, const char *name, uint64_t to, uint64_t from, size_t bytes, void *stream) {
  EMULATED_ENTER;
  Operation operation(stream);
  count(kind, "", bytes);
  if (!bytes) return success;
  if (kind != Kind::upload) {
    if (!use(name, from, bytes, false)) return invalid_value;
    if (kind == Kind::read_back) check_written(name, from, bytes);
  }
  if (kind != Kind::read_back && !use(name, to, bytes, true)) return invalid_value;
  memmove(reinterpret_cast<void *>(to), reinterpret_cast<void *>(from), bytes);
  // The program's memory is not pinned: the call then waits until it is written.
  if (kind == Kind::read_back) host_waits_for_stream(stream_of(stream));
  return success;
}

uint64_t address(const void *pointer) { return reinterpret_cast<uint64_t>(pointer); }

char pool;  // its address is the handle
uint64_t release_threshold;

// Of CUmemPool_attribute.
enum { attribute_release_threshold = 4, attribute_reserved = 5, attribute_reserved_high = 6, attribute_used = 7, attribute_used_high = 8 };

}  // namespace
}  // namespace emulated

using namespace emulated;

EMULATED_API int cuMemGetInfo_v2(size_t *free, size_t *total) {
  EMULATED_ENTER;
  *free = free_bytes(), *total = settings().memory;
  return success;
}

EMULATED_API int cuMemAllocAsync(uint64_t *at, size_t bytes, void *stream) {
  EMULATED_ENTER;
  Operation operation(stream);
  count(Kind::allocation, "", bytes);
  switch (allocate(*at, bytes)) {
    case Allocated::ok: return success;
    case Allocated::empty: return settings().pools ? success : invalid_value;
    default: return out_of_memory;
  }
}
EMULATED_API int cuMemFreeAsync(uint64_t at, void *stream) {
  EMULATED_ENTER;
  Operation operation(stream);
  count(Kind::release, "", 0);
  if (!at && settings().pools) return success;  // of no bytes
  return release(at) ? success : invalid_value;
}
EMULATED_API int cuMemAlloc_v2(uint64_t *at, size_t bytes) { return cuMemAllocAsync(at, bytes, nullptr); }
EMULATED_API int cuMemFree_v2(uint64_t at) { return cuMemFreeAsync(at, nullptr); }
EMULATED_API int cuMemHostAlloc(void **at, size_t bytes, unsigned) { return *at = malloc(bytes), *at ? context_error() : out_of_memory; }
EMULATED_API int cuMemFreeHost(void *at) { return free(at), context_error(); }

EMULATED_API int cuDeviceGetDefaultMemPool(void **handle, int) { return settings().pools ? (*handle = &pool, success) : not_supported; }
EMULATED_API int cuDeviceGetMemPool(void **handle, int device) { return cuDeviceGetDefaultMemPool(handle, device); }
EMULATED_API int cuMemPoolTrimTo(void *, size_t) { return context_error(); }
EMULATED_API int cuMemPoolSetAttribute(void *, int attribute, const uint64_t *value) {
  EMULATED_ENTER;
  switch (attribute) {
    case attribute_release_threshold: release_threshold = *value; return success;
    case attribute_reserved_high:
    case attribute_used_high:
      if (*value) return invalid_value;
      reset_peak();
      return success;
    default: return attribute >= 1 && attribute <= 3 ? success : invalid_value;  // how memory is used again
  }
}
EMULATED_API int cuMemPoolGetAttribute(void *, int attribute, uint64_t *value) {
  EMULATED_ENTER;
  switch (attribute) {
    case attribute_release_threshold: *value = release_threshold; return success;
    case attribute_reserved:
    case attribute_used: *value = memory_in_use().bytes; return success;
    case attribute_reserved_high:
    case attribute_used_high: *value = memory_in_use().peak; return success;
    default: return invalid_value;
  }
}

EMULATED_API int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
  return copy(Kind::upload, "upload", to, address(from), bytes, stream);
}
EMULATED_API int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
  return copy(Kind::read_back, "read-back", address(to), from, bytes, stream);
}
EMULATED_API int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream) {
  return copy(Kind::device_copy, "copy", to, from, bytes, stream);
}
EMULATED_API int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t bytes) { return cuMemcpyHtoDAsync_v2(to, from, bytes, nullptr); }
EMULATED_API int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes) { return cuMemcpyDtoHAsync_v2(to, from, bytes, nullptr); }
EMULATED_API int cuMemcpyDtoD_v2(uint64_t to, uint64_t from, size_t bytes) { return cuMemcpyDtoDAsync_v2(to, from, bytes, nullptr); }
EMULATED_API int cuMemsetD8Async(uint64_t at, unsigned char value, size_t bytes, void *stream) {
  EMULATED_ENTER;
  Operation operation(stream);
  count(Kind::memset, "", bytes);
  if (!bytes) return success;
  if (!use("memset", at, bytes, true)) return invalid_value;
  memset(reinterpret_cast<void *>(at), value, bytes);
  return success;
}
EMULATED_API int cuMemsetD8_v2(uint64_t at, unsigned char value, size_t bytes) { return cuMemsetD8Async(at, value, bytes, nullptr); }
