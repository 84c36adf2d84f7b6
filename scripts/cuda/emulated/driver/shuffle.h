// Chance, for EMULATED_ORDER=random: the same for the same EMULATED_SEED.
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace emulated {

unsigned random_below(unsigned n);

template <class T>
void shuffle(std::vector<T> &items) {
  for (std::size_t i = items.size(); i > 1; i--) std::swap(items[i - 1], items[random_below(static_cast<unsigned>(i))]);
}

}  // namespace emulated
