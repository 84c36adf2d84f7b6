// Instructions that CUDA C++ has as inline PTX alone: those for tensor cores, with the lanes' shares as the PTX manual lays them out,
// asynchronous copies, and the approximate power of two. A kernel includes this in the place of its inline PTX where TINYGPT_EMULATED
// is defined.
#pragma once
#include <vector>

#include "cuda_bf16.h"
#include "cuda_fp16.h"

namespace emulated {

// What a lane brings to mma.m16n8k16: A (16 x 16), B (16 x 8), C and D (16 x 8).
struct MmaLane {
  const unsigned *a, *b;
  const float *c;
  float *d;
};

// The two numbers of a register.
template <class Format>
inline void unpack(unsigned bits, float &low, float &high) {
  low = Format::to_float(static_cast<uint16_t>(bits));
  high = Format::to_float(static_cast<uint16_t>(bits >> 16));
}

template <class Format>
inline void mma_m16n8k16(void *const brought[warp_size]) {
  float a[16][16], b[16][8];
  for (unsigned i = 0; i < warp_size; i++) {
    if (!brought[i]) emulated_trap("mma without all lanes of the warp");
    auto &lane = *static_cast<MmaLane *>(brought[i]);
    unsigned group = i / 4, pair = i % 4 * 2;
    for (unsigned r = 0; r < 4; r++) {
      float *to = &a[group + r % 2 * 8][pair + r / 2 * 8];
      unpack<Format>(lane.a[r], to[0], to[1]);
    }
    for (unsigned r = 0; r < 2; r++) unpack<Format>(lane.b[r], b[pair + r * 8][group], b[pair + r * 8 + 1][group]);
  }
  for (unsigned i = 0; i < warp_size; i++) {
    auto &lane = *static_cast<MmaLane *>(brought[i]);
    for (unsigned e = 0; e < 4; e++) {
      unsigned row = i / 4 + e / 2 * 8, column = i % 4 * 2 + e % 2;
      double sum = lane.c[e];
      for (unsigned k = 0; k < 16; k++) sum += static_cast<double>(a[row][k]) * b[k][column];
      lane.d[e] = static_cast<float>(sum);
    }
  }
}

// What a lane brings to ldmatrix.x4: the address of a row of 8 numbers of 16 bits, of matrix `lane / 8`.
struct LdMatrixLane {
  const void *row;
  unsigned *d;
};

template <bool transposed>
inline void ldmatrix(void *const brought[warp_size]) {
  uint16_t matrix[4][8][8];
  for (unsigned i = 0; i < warp_size; i++) {
    if (!brought[i]) emulated_trap("ldmatrix without all lanes of the warp");
    const void *row = static_cast<LdMatrixLane *>(brought[i])->row;
    if (reinterpret_cast<uintptr_t>(row) % 16) emulated_trap("ldmatrix of a row that is not aligned to 16 bytes");
    std::memcpy(matrix[i / 8][i % 8], row, 16);
  }
  for (unsigned i = 0; i < warp_size; i++)
    for (unsigned m = 0; m < 4; m++) {
      unsigned row = i / 4, pair = i % 4 * 2;
      unsigned low = transposed ? matrix[m][pair][row] : matrix[m][row][pair];
      unsigned high = transposed ? matrix[m][pair + 1][row] : matrix[m][row][pair + 1];
      static_cast<LdMatrixLane *>(brought[i])->d[m] = high << 16 | low;
    }
}

// The asynchronous copies that a thread has begun. What they write is NaN until the thread has waited for their group, and then what
// the source holds by that time, which shows a kernel that reads too early, and one that overwrites what it still copies from.
struct AsyncCopies {
  struct Copy {
    void *to;
    const void *from;
    unsigned bytes, read;  // those beyond `read` become zeros
  };
  Dim block;
  std::vector<std::vector<Copy>> groups;  // the last one is not committed
};

// Of the thread that runs. A block that ends leaves copies behind if it does not wait for them. (What is thread-local is shared memory.)
inline AsyncCopies &async_copies() {
  static std::vector<AsyncCopies> of_threads(max_threads);
  AsyncCopies &mine = of_threads[emulated_block->current];
  const Dim at = emulated_block->index;
  if (mine.block.x != at.x || mine.block.y != at.y || mine.block.z != at.z || mine.groups.empty()) {
    mine.block = at;
    mine.groups.assign(1, {});
  }
  return mine;
}

inline void cp_async(void *to, const void *from, unsigned bytes, bool there) {
  if (reinterpret_cast<uintptr_t>(to) % bytes || reinterpret_cast<uintptr_t>(from) % bytes)
    emulated_trap("cp.async of addresses that are not aligned to its bytes");
  std::memset(to, 0xff, bytes);
  async_copies().groups.back().push_back({to, from, bytes, there ? bytes : 0});
}

}  // namespace emulated

// mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32
inline void mma_m16n8k16_bf16(float d[4], const unsigned a[4], const unsigned b[2], const float c[4]) {
  emulated::MmaLane lane{a, b, c, d};
  emulated::rendezvous(~0u, emulated::mma_m16n8k16<emulated::BFloat16Format>, &lane);
}

// mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32
inline void mma_m16n8k16_f16(float d[4], const unsigned a[4], const unsigned b[2], const float c[4]) {
  emulated::MmaLane lane{a, b, c, d};
  emulated::rendezvous(~0u, emulated::mma_m16n8k16<emulated::HalfFormat>, &lane);
}

// ldmatrix.sync.aligned.m8n8.x4.shared.b16, and with .trans
inline void ldmatrix_x4(unsigned d[4], const void *row) {
  emulated::LdMatrixLane lane{row, d};
  emulated::rendezvous(~0u, emulated::ldmatrix<false>, &lane);
}
inline void ldmatrix_x4_trans(unsigned d[4], const void *row) {
  emulated::LdMatrixLane lane{row, d};
  emulated::rendezvous(~0u, emulated::ldmatrix<true>, &lane);
}

// cp.async.cg.shared.global of 16 bytes, cp.async.ca.shared.global of 4, with a source of none where it is not `there`
inline void cp_async_16(void *to, const void *from, bool there) { emulated::cp_async(to, from, 16, there); }
inline void cp_async_4(void *to, const void *from, bool there) { emulated::cp_async(to, from, 4, there); }

// cp.async.commit_group
inline void cp_async_commit() { emulated::async_copies().groups.emplace_back(); }

// cp.async.wait_group N
template <int N>
inline void cp_async_wait() {
  auto &groups = emulated::async_copies().groups;
  while (groups.size() > N + 1) {
    for (const auto &copy : groups.front()) {
      std::memcpy(copy.to, copy.from, copy.read);
      std::memset(static_cast<char *>(copy.to) + copy.read, 0, copy.bytes - copy.read);
    }
    groups.erase(groups.begin());
  }
}

// ex2.approx.ftz.f32
inline float exp2_approx(float x) {
  const float y = exp2f(x);
  return y < std::numeric_limits<float>::min() ? 0.0f : y;
}
