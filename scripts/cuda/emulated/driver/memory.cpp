#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <unordered_map>
#include <vector>

#include "settings.h"
#include "streams.h"

namespace emulated {
namespace {

constexpr size_t page = 4096;
constexpr size_t alignment = 256;  // of what cuMemAlloc gives
constexpr size_t zone = 256;       // bytes on each side of an allocation that nobody may change
constexpr unsigned char zone_byte = 0xab;
constexpr uint16_t poison_bits = 0xfff1;
constexpr size_t max_cached = size_t{1} << 30;

// Memory as the host gives it: [zone before][size bytes][zone after], or with guards pages that cannot be touched.
struct Allocation {
  size_t size;
  char *mapping;
  size_t mapped;
  size_t before, after;  // bytes beside that are watched
  bool written = false;
  Use last_write, last_read;
};

auto &allocations = *new std::map<uint64_t, Allocation>;
size_t in_use, peak;

// Freed memory of the host by its size: to map it anew for every allocation would cost more than most kernels.
auto &cache = *new std::unordered_map<size_t, std::vector<char *>>;
size_t cached;

char *take(size_t bytes) {
  auto &ready = cache[bytes];
  if (!ready.empty()) {
    char *mapping = ready.back();
    ready.pop_back();
    cached -= bytes;
    return mapping;
  }
  return static_cast<char *>(std::aligned_alloc(alignment, bytes));
}

void give_back(char *mapping, size_t bytes) {
  if (cached + bytes > max_cached) {
    for (auto &[size, ready] : cache)
      for (char *unused : ready) std::free(unused);
    cache.clear();
    cached = 0;
  }
  cache[bytes].push_back(mapping);
  cached += bytes;
}

size_t rounded(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

char *place(Allocation &a) {
  if (settings().guard == Guard::none) {
    a.before = a.after = zone;
    a.mapped = rounded(zone + a.size + zone, std::max(alignment, a.size / 8 / alignment * alignment));
    a.mapping = take(a.mapped);
    return a.mapping ? a.mapping + zone : nullptr;
  }
  size_t space = rounded(a.size, page);
  a.mapped = space + 2 * page;
  void *mapping = mmap(nullptr, a.mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) return nullptr;
  a.mapping = static_cast<char *>(mapping);
  if (mprotect(a.mapping + page, space, PROT_READ | PROT_WRITE)) return nullptr;
  // At the end as near as the widest access of a kernel, of 16 bytes, lets it be.
  a.before = settings().guard == Guard::end ? space - rounded(a.size, 16) : 0;
  a.after = space - a.size - a.before;
  return a.mapping + page + a.before;
}

bool untouched(const unsigned char *at, size_t bytes) {
  return std::all_of(at, at + bytes, [](unsigned char byte) { return byte == zone_byte; });
}

void check_beside(const char *by, uint64_t address, const Allocation &a) {
  auto *start = reinterpret_cast<unsigned char *>(address), *end = start + a.size;
  if (untouched(start - a.before, a.before) && untouched(end, a.after)) return;
  complain(std::string(by ? by : "an operation") + ": wrote beside an allocation of " + std::to_string(a.size) + " bytes");
  memset(start - a.before, zone_byte, a.before);  // said once
  memset(end, zone_byte, a.after);
}

std::pair<const uint64_t, Allocation> *find(uint64_t address) {
  auto next = allocations.upper_bound(address);
  if (next == allocations.begin()) return nullptr;
  auto &found = *std::prev(next);
  return address < found.first + found.second.size ? &found : nullptr;
}

void check_order(const Use &earlier, const char *what, const char *by) {
  if (is_before_current(earlier)) return;
  complain(std::string(by) + ": uses memory that " + earlier.by + " " + what + " on another stream, without an order between them");
}

void use(const char *operation, Allocation &a, bool write) {
  if (!write && !a.written) complain(std::string(operation) + ": reads memory that was never written");
  check_order(a.last_write, "wrote", operation);
  if (write) check_order(a.last_read, "read", operation);
  (write ? a.last_write : a.last_read) = current_use(operation);
  if (write) a.written = true;
}

}  // namespace

void poison(void *at, size_t bytes) {
  auto *words = static_cast<uint16_t *>(at);
  std::fill(words, words + bytes / 2, poison_bits);
  if (bytes % 2) static_cast<unsigned char *>(at)[bytes - 1] = poison_bits & 0xff;
}

Allocated allocate(uint64_t &address, size_t size) {
  address = 0;
  if (!size) {
    remark("an allocation of no bytes, which is an error on a device without memory pools (EMULATED_POOLS=0)");
    return Allocated::empty;
  }
  if (size > free_bytes()) return Allocated::out_of_memory;
  Allocation a{};
  a.size = size;
  char *start = place(a);
  if (!start) return Allocated::out_of_memory;
  memset(start - a.before, zone_byte, a.before);
  poison(start, size);
  memset(start + size, zone_byte, a.after);
  in_use += size;
  peak = std::max(peak, in_use);
  address = reinterpret_cast<uint64_t>(start);
  allocations.emplace(address, a);
  return Allocated::ok;
}

bool release(uint64_t address) {
  auto found = allocations.find(address);
  if (found == allocations.end()) {
    complain("free: nothing is allocated at this address");
    return false;
  }
  Allocation &a = found->second;
  check_order(a.last_write, "wrote", "free");
  check_order(a.last_read, "read", "free");
  check_beside(a.last_write.by, address, a);
  in_use -= a.size;
  if (settings().guard == Guard::none)
    give_back(a.mapping, a.mapped);
  else
    munmap(a.mapping, a.mapped);
  allocations.erase(found);
  return true;
}

bool use(const char *operation, uint64_t address, size_t bytes, bool write) {
  auto *found = find(address);
  if (!found) {
    complain(std::string(operation) + ": an address that is not memory of the device, or was freed");
    return false;
  }
  size_t offset = address - found->first;
  if (bytes > found->second.size - offset) {
    complain(std::string(operation) + ": " + std::to_string(bytes) + " bytes at byte " + std::to_string(offset) +
             " of an allocation of " + std::to_string(found->second.size));
    return false;
  }
  use(operation, found->second, write);
  return true;
}

void check_written(const char *operation, uint64_t address, size_t bytes) {
  // One word of 16 bits may have this value by chance, two beside each other hardly.
  auto *words = reinterpret_cast<const uint32_t *>(address);
  if (address % 4 == 0 && std::find(words, words + bytes / 4, poison_bits * 0x10001u) != words + bytes / 4)
    complain(std::string(operation) + ": reads bytes that were never written");
}

void use_addresses(const char *operation, const void *words, size_t bytes) {
  if (allocations.empty()) return;
  uint64_t first = allocations.begin()->first, last = allocations.rbegin()->first + allocations.rbegin()->second.size;
  for (size_t i = 0; i + 8 <= bytes; i += 8) {
    uint64_t word;
    memcpy(&word, static_cast<const char *>(words) + i, 8);
    if (word < first || word >= last) continue;
    if (auto *found = find(word)) use(operation, found->second, true);
  }
}

size_t reach(uint64_t address) {
  auto *found = find(address);
  return found ? found->first + found->second.size - address : 0;
}

void check_beside(const char *operation, uint64_t address) {
  if (auto *found = find(address)) check_beside(operation, found->first, found->second);
}

void check_beside_all() {
  for (auto &[address, a] : allocations) check_beside(a.last_write.by, address, a);
}

std::string describe(uint64_t address) {
  for (auto &[start, a] : allocations) {
    auto first = reinterpret_cast<uint64_t>(a.mapping);
    if (address < first || address >= first + a.mapped) continue;
    std::string size = " an allocation of " + std::to_string(a.size) + " bytes";
    if (address < start) return std::to_string(start - address) + " bytes before" + size;
    if (address >= start + a.size) return std::to_string(address - start - a.size) + " bytes beyond" + size;
    return "within" + size;
  }
  return "in no allocation";
}

size_t free_bytes() { return settings().memory - in_use; }
MemoryInUse memory_in_use() { return {peak, in_use, allocations.size()}; }
void reset_peak() { peak = in_use; }

}  // namespace emulated
