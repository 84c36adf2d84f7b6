// Memory of the device: allocations, with what lies beside them watched.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "report.h"

namespace emulated {

enum class Allocated { ok, empty, out_of_memory };

Allocated allocate(uint64_t &address, size_t size);
// False, with a complaint, if nothing was allocated there.
bool release(uint64_t address);

// Whether `bytes` at `address` lie in one allocation, for an operation of this name; if not, complains. Complains as well of reads of
// what was never written and of streams without an order.
bool use(const char *operation, uint64_t address, size_t bytes, bool write);
// Complains if bytes that are read still hold what fresh memory is filled with.
void check_written(const char *operation, uint64_t address, size_t bytes);
// Marks as used the allocations whose addresses are among these bytes.
void use_addresses(const char *operation, const void *words, size_t bytes);
// The bytes from `address` to the end of its allocation; 0 if it is in none.
size_t reach(uint64_t address);
// Complains if an operation wrote beside the allocation at `address`.
void check_beside(const char *operation, uint64_t address);
void check_beside_all();
// Where an address is, for a message: within or near which allocation.
std::string describe(uint64_t address);

// Fills memory with what is a NaN in each type of floats, and neither an index nor a small number.
void poison(void *at, size_t bytes);

size_t free_bytes();
MemoryInUse memory_in_use();
// From now on the peak is that of what comes.
void reset_peak();

}  // namespace emulated
