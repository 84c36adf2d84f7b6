#include "shared_memory.h"

#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <unordered_map>

#include "memory.h"
#include "report.h"

namespace emulated {
namespace {

constexpr size_t page = 4096, most_bytes = 228 << 10;
constexpr unsigned char zone_byte = 0xab;
constexpr size_t max_filled_per_block = 16 << 10;

struct Range {
  void *start;
  size_t bytes;
};

// What lies between the end of the memory and a page that cannot be touched.
unsigned slack(unsigned bytes) { return static_cast<unsigned>((page - bytes % page) % page); }
// The part of it that is looked at after each block.
unsigned watched(unsigned bytes) { return std::min(slack(bytes), 256u); }

// Shared memory of a fixed extent is thread-local to the host: so each module has all of it in one place, which the dynamic
// linker knows.
Range static_shared(const Kernel &kernel) {
  static thread_local std::unordered_map<const Kernel *, Range> known;
  auto found = known.find(&kernel);
  if (found != known.end()) return found->second;
  struct Search {
    const char *within;
    Range range;
  } search{static_cast<const char *>(kernel.static_shared()), {nullptr, 0}};
  dl_iterate_phdr(
      [](dl_phdr_info *module, size_t, void *data) {
        auto &s = *static_cast<Search *>(data);
        auto *start = static_cast<char *>(module->dlpi_tls_data);
        for (int i = 0; i < module->dlpi_phnum; i++) {
          auto &header = module->dlpi_phdr[i];
          if (header.p_type == PT_TLS && start && s.within >= start && s.within < start + header.p_memsz)
            s.range = {start, header.p_memsz};
        }
        return s.range.bytes ? 1 : 0;
      },
      &search);
  return known[&kernel] = search.range;
}

}  // namespace
}  // namespace emulated

alignas(emulated::page) unsigned char emulated_dynamic_shared[emulated::most_bytes + emulated::page];

namespace emulated {

void set_dynamic_shared(unsigned bytes) {
  static unsigned now = most_bytes;
  if (bytes == now) return;
  now = bytes;
  unsigned end = bytes + slack(bytes);
  if (mprotect(emulated_dynamic_shared, most_bytes, PROT_READ | PROT_WRITE) ||
      mprotect(emulated_dynamic_shared + end, most_bytes + page - end, PROT_NONE)) {
    perror("emulated device: shared memory");
    abort();
  }
  memset(emulated_dynamic_shared + bytes, zone_byte, slack(bytes));
}

void forget_shared(const Kernel &kernel, unsigned bytes, bool first_block) {
  poison(emulated_dynamic_shared, bytes);
  Range fixed = static_shared(kernel);
  if (first_block || fixed.bytes <= max_filled_per_block) poison(fixed.start, fixed.bytes);
}

void check_shared(const Kernel &kernel, unsigned bytes) {
  auto *end = emulated_dynamic_shared + bytes;
  if (std::all_of(end, end + watched(bytes), [](unsigned char byte) { return byte == zone_byte; })) return;
  complain(std::string(kernel.name) + ": wrote beyond its " + std::to_string(bytes) + " bytes of dynamic shared memory");
  memset(end, zone_byte, slack(bytes));
}

}  // namespace emulated
