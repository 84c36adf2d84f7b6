// Barriers of a block and exchanges between the lanes of a warp.
#pragma once

namespace emulated {

// Other threads run while this one waits: what says which thread runs is put back.
inline int barrier(unsigned line, bool predicate) {
  Dim self = threadIdx;
  unsigned count = emulated_block_barrier(line, predicate);
  threadIdx = self;
  return static_cast<int>(count);
}

inline void rendezvous(unsigned mask, Combine combine, void *mine) {
  Dim self = threadIdx;
  emulated_warp_rendezvous(mask, combine, mine);
  threadIdx = self;
}

inline unsigned lane() { return emulated_block->current % warp_size; }

// What a lane brings to a shuffle, and gets.
struct Shuffled {
  uint64_t value, result;
  unsigned from;
  bool found;
};

inline void shuffle_lanes(void *const brought[warp_size]) {
  for (unsigned i = 0; i < warp_size; i++) {
    auto *mine = static_cast<Shuffled *>(brought[i]);
    if (!mine) continue;
    auto *other = static_cast<Shuffled *>(brought[mine->from]);
    mine->found = other;
    if (other) mine->result = other->value;
  }
}

// A shuffle from a lane of the same part, of `width` lanes, of the warp; where there is none, the lane's own value.
template <class T>
inline T shuffle_from(unsigned mask, T value, int from, bool there) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most 64 bits");
  Shuffled mine{0, 0, there ? static_cast<unsigned>(from) : lane(), false};
  std::memcpy(&mine.value, &value, sizeof value);
  rendezvous(mask, shuffle_lanes, &mine);
  if (!mine.found) emulated_trap("a shuffle reads a lane that does not take part");
  std::memcpy(&value, &mine.result, sizeof value);
  return value;
}

struct Vote {
  bool mine;
  unsigned lanes;
};

inline void count_votes(void *const brought[warp_size]) {
  unsigned lanes = 0;
  for (unsigned i = 0; i < warp_size; i++)
    if (brought[i] && static_cast<Vote *>(brought[i])->mine) lanes |= 1u << i;
  for (unsigned i = 0; i < warp_size; i++)
    if (brought[i]) static_cast<Vote *>(brought[i])->lanes = lanes;
}

inline void only_wait(void *const[warp_size]) {}

}  // namespace emulated

#define __syncthreads() ((void)emulated::barrier(__LINE__, false))
#define __syncthreads_count(predicate) emulated::barrier(__LINE__, predicate)
#define __syncthreads_or(predicate) (emulated::barrier(__LINE__, predicate) != 0)
#define __syncthreads_and(predicate) (emulated::barrier(__LINE__, !(predicate)) == 0)

inline void __syncwarp(unsigned mask = ~0u) {
  char nothing;
  emulated::rendezvous(mask, emulated::only_wait, &nothing);
}

template <class T>
inline T __shfl_sync(unsigned mask, T value, int from, int width = 32) {
  int start = static_cast<int>(emulated::lane()) & ~(width - 1);
  return emulated::shuffle_from(mask, value, start + (from & (width - 1)), true);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  int self = static_cast<int>(emulated::lane()), from = self ^ bits;
  // As the instruction has it: a part before the own one can be read, one behind it cannot.
  return emulated::shuffle_from(mask, value, from, from <= (self | (width - 1)));
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
  int self = static_cast<int>(emulated::lane()), from = self - static_cast<int>(by);
  return emulated::shuffle_from(mask, value, from, from >= (self & ~(width - 1)));
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
  int self = static_cast<int>(emulated::lane()), from = self + static_cast<int>(by);
  return emulated::shuffle_from(mask, value, from, from <= (self | (width - 1)));
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  emulated::Vote vote{predicate != 0, 0};
  emulated::rendezvous(mask, emulated::count_votes, &vote);
  return vote.lanes;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }

// One thread runs at a time: memory has one order.
inline void __threadfence() {}
inline void __threadfence_block() {}
