// What happened on the device: counts of all that it was asked for, and complaints.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace emulated {

enum class Kind {
  launch, product, upload, read_back, device_copy, memset, allocation, release, event, event_record, wait, module, kinds
};

// One more operation. `name` tells launches and products apart.
void count(Kind kind, const std::string &name, size_t bytes);
void add_time(Kind kind, const std::string &name, uint64_t nanoseconds);
// A line of the trace that belongs to the operation before it.
void trace_detail(const std::string &text);

// What a GPU would refuse, or leaves to chance. Said once for each text; with EMULATED_STRICT it ends the program.
void complain(const std::string &what);
// What is right on some devices only.
void remark(const std::string &what);

struct MemoryInUse {
  size_t peak, bytes, allocations;
};
// Writes what EMULATED_COUNTS and EMULATED_SUMMARY ask for.
void report(const MemoryInUse &memory, size_t host_threads);

}  // namespace emulated
