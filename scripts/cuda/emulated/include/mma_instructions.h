// Instructions for tensor cores that CUDA C++ has as inline PTX alone, with the lanes' shares as the PTX manual lays them out. A
// kernel includes this in the place of its inline PTX where TINYGPT_EMULATED is defined.
#pragma once
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
