#include "shuffle.h"

#include "settings.h"

namespace emulated {

unsigned random_below(unsigned n) {
  static uint64_t state = settings().seed;
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<unsigned>((state >> 32) * n >> 32);
}

}  // namespace emulated
