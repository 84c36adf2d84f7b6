// nvcuda::wmma for tiles of 16 x 16 x 16, operands of 16 bits, and sums in f32.
#pragma once
#include "cuda_bf16.h"
#include "cuda_fp16.h"

namespace nvcuda::wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
enum layout_t { mem_row_major, mem_col_major };

// A lane's share of a tile: 8 numbers of a row. Which ones a lane of a GPU has is not said either.
template <class Use, int M, int N, int K, class T, class Layout = void>
struct fragment {
  static_assert(M == 16 && N == 16 && K == 16, "only tiles of 16 x 16 x 16 are emulated");
  static constexpr int num_elements = 8;
  using element_type = T;
  T x[num_elements];
};

namespace detail {

inline int row() { return static_cast<int>(emulated::lane()) / 2; }
inline int first_column() { return static_cast<int>(emulated::lane()) % 2 * 8; }

template <class Fragment, class T>
void load(Fragment &f, const T *from, unsigned ld, bool by_rows) {
  if (reinterpret_cast<uintptr_t>(from) % 32 || ld * sizeof(T) % 16) emulated_trap("wmma: a tile that is not aligned to 32 bytes, or its rows to 16");
  for (int e = 0; e < 8; e++) f.x[e] = by_rows ? from[row() * ld + first_column() + e] : from[(first_column() + e) * ld + row()];
  __syncwarp();
}

struct Lane {
  const void *a, *b;
  const float *c;
  float *d;
};

template <class T>
void multiply(void *const brought[emulated::warp_size]) {
  float a[16][16], b[16][16];
  for (int i = 0; i < 32; i++) {
    if (!brought[i]) emulated_trap("wmma: mma_sync without all lanes of the warp");
    auto &lane = *static_cast<Lane *>(brought[i]);
    for (int e = 0; e < 8; e++) {
      a[i / 2][i % 2 * 8 + e] = static_cast<const T *>(lane.a)[e];
      b[i / 2][i % 2 * 8 + e] = static_cast<const T *>(lane.b)[e];
    }
  }
  for (int i = 0; i < 32; i++) {
    auto &lane = *static_cast<Lane *>(brought[i]);
    for (int e = 0; e < 8; e++) {
      double sum = lane.c[e];
      for (int k = 0; k < 16; k++) sum += static_cast<double>(a[i / 2][k]) * b[k][i % 2 * 8 + e];
      lane.d[e] = static_cast<float>(sum);
    }
  }
}

}  // namespace detail

template <class Use, int M, int N, int K, class T, class Layout>
void fill_fragment(fragment<Use, M, N, K, T, Layout> &f, T value) {
  for (T &x : f.x) x = value;
}

template <class Use, int M, int N, int K, class T, class Layout>
void load_matrix_sync(fragment<Use, M, N, K, T, Layout> &f, const T *from, unsigned ld) {
  detail::load(f, from, ld, std::is_same_v<Layout, row_major>);
}

template <int M, int N, int K, class T>
void load_matrix_sync(fragment<accumulator, M, N, K, T> &f, const T *from, unsigned ld, layout_t layout) {
  detail::load(f, from, ld, layout == mem_row_major);
}

template <int M, int N, int K, class T>
void store_matrix_sync(T *to, const fragment<accumulator, M, N, K, T> &f, unsigned ld, layout_t layout) {
  for (int e = 0; e < 8; e++) {
    int row = detail::row(), column = detail::first_column() + e;
    to[layout == mem_row_major ? row * ld + column : column * ld + row] = f.x[e];
  }
  __syncwarp();
}

template <class T, class LayoutA, class LayoutB>
void mma_sync(fragment<accumulator, 16, 16, 16, float> &d, const fragment<matrix_a, 16, 16, 16, T, LayoutA> &a,
              const fragment<matrix_b, 16, 16, 16, T, LayoutB> &b, const fragment<accumulator, 16, 16, 16, float> &c) {
  // C may be D: its numbers are read before the lanes that come after write theirs, each its own.
  detail::Lane lane{a.x, b.x, c.x, d.x};
  emulated::rendezvous(~0u, detail::multiply<T>, &lane);
}

}  // namespace nvcuda::wmma
