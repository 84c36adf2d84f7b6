// libcublas.so.13 of the emulated device: the products that candle asks for, with sums in f32, or f64 for operands of f64.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <vector>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "interface.h"

#define EMULATED_API extern "C" __attribute__((visibility("default")))

namespace {

enum Status { success = 0, not_initialized = 1, invalid_value = 7, execution_failed = 13, unsupported = 15 };
enum Type { f32 = 0, f64 = 1, f16 = 2, bf16 = 14 };
enum Compute { compute_32f = 68, fast_16f = 74, fast_16bf = 75, fast_tf32 = 77 };

struct Handle {
  void *stream;
};

struct Matrix {
  const char *at;
  Type type;
  bool transposed;  // op
  long ld;
  long long stride;  // between the matrices of a batch, in elements
};

constexpr size_t size_of(Type type) { return type == f64 ? 8 : type == f32 ? 4 : 2; }
constexpr const char *name_of(Type type) { return type == f32 ? "f32" : type == f64 ? "f64" : type == f16 ? "f16" : "bf16"; }
constexpr bool known(int type) { return type == f32 || type == f64 || type == f16 || type == bf16; }

// Numbers beside each other, as numbers of the sums.
template <class T>
void load(T *to, const char *from, Type type, long n) {
  switch (type) {
    case f64: for (long i = 0; i < n; i++) to[i] = static_cast<T>(reinterpret_cast<const double *>(from)[i]); break;
    case f32: for (long i = 0; i < n; i++) to[i] = reinterpret_cast<const float *>(from)[i]; break;
    case f16: for (long i = 0; i < n; i++) to[i] = static_cast<float>(reinterpret_cast<const __half *>(from)[i]); break;
    case bf16: for (long i = 0; i < n; i++) to[i] = static_cast<float>(reinterpret_cast<const __nv_bfloat16 *>(from)[i]); break;
  }
}

template <class T>
void store(char *to, Type type, const T *from, long n) {
  switch (type) {
    case f64: for (long i = 0; i < n; i++) reinterpret_cast<double *>(to)[i] = from[i]; break;
    case f32: for (long i = 0; i < n; i++) reinterpret_cast<float *>(to)[i] = static_cast<float>(from[i]); break;
    case f16: for (long i = 0; i < n; i++) reinterpret_cast<__half *>(to)[i] = static_cast<float>(from[i]); break;
    case bf16: for (long i = 0; i < n; i++) reinterpret_cast<__nv_bfloat16 *>(to)[i] = static_cast<float>(from[i]); break;
  }
}

// What a tensor core takes of an f32 in TF32: 10 bits behind the first.
void round_to_tf32(float *values, long n) {
  for (long i = 0; i < n; i++) {
    uint32_t bits = emulated::bit_cast<uint32_t>(values[i]);
    if (values[i] == values[i]) values[i] = emulated::bit_cast<float>((bits + 0xfff + (bits >> 13 & 1)) & ~0x1fffu);
  }
}
void round_to_tf32(double *, long) {}

template <class T>
struct Product {
  static constexpr long lanes = 32 / sizeof(T);
  static constexpr long tile_m = 2 * lanes, tile_n = 6;  // sums in 12 registers
  static constexpr long block_k = 512;                   // of a panel, which then stays in the cache
  typedef T Vector __attribute__((vector_size(32), aligned(sizeof(T)), may_alias));

  long m, n, k;
  Matrix a, b;
  bool tf32, backwards;  // from the last element of each sum on
  std::vector<T> sums;   // (n, m)

  // `count` rows of X from `row` on, elements `first` to `first + depth` of each: to[p * width + r], zero beyond the last row.
  // X is op(A), or op(B) transposed: its rows lie beside each other, or the elements of a row do.
  void pack(T *to, const Matrix &x, bool rows_beside, long row, long count, long width, long first, long depth) {
    if (count < width) std::fill_n(to, width * depth, T{0});
    if (rows_beside) {
      for (long p = 0; p < depth; p++) load(to + p * width, element(x, row + (first + p) * x.ld), x.type, count);
    } else {
      T line[block_k];
      for (long r = 0; r < count; r++) {
        load(line, element(x, first + (row + r) * x.ld), x.type, depth);
        for (long p = 0; p < depth; p++) to[p * width + r] = line[p];
      }
    }
    if (tf32) round_to_tf32(to, width * depth);
    if (!backwards) return;
    for (long p = 0; p < depth / 2; p++) std::swap_ranges(to + p * width, to + (p + 1) * width, to + (depth - 1 - p) * width);
  }

  static const char *element(const Matrix &x, long index) { return x.at + index * static_cast<long>(size_of(x.type)); }

  // A tile of sums, tile_m x tile_n, of `depth` products more each.
  void tile(const T *panel_a, const T *panel_b, long depth, long row, long column) {
    Vector sum[tile_n][2] = {};
    for (long p = 0; p < depth; p++) {
      auto *va = reinterpret_cast<const Vector *>(panel_a + p * tile_m);
      for (long j = 0; j < tile_n; j++) {
        T factor = panel_b[p * tile_n + j];
        sum[j][0] += va[0] * factor;
        sum[j][1] += va[1] * factor;
      }
    }
    for (long j = 0; j < std::min(tile_n, n - column); j++)
      for (long i = 0; i < std::min(tile_m, m - row); i++) sums[(column + j) * m + row + i] += sum[j][i / lanes][i % lanes];
  }

  void tiled() {
    static std::vector<T> panels_a, panels_b;
    long across_m = (m + tile_m - 1) / tile_m, across_n = (n + tile_n - 1) / tile_n, blocks = (k + block_k - 1) / block_k;
    panels_a.resize(across_m * tile_m * block_k);
    panels_b.resize(across_n * tile_n * block_k);
    for (long block = 0; block < blocks; block++) {
      long first = (backwards ? blocks - 1 - block : block) * block_k, depth = std::min(block_k, k - first);
      for (long i = 0; i < across_m; i++)
        pack(&panels_a[i * tile_m * depth], a, !a.transposed, i * tile_m, std::min(tile_m, m - i * tile_m), tile_m, first, depth);
      for (long j = 0; j < across_n; j++)
        pack(&panels_b[j * tile_n * depth], b, b.transposed, j * tile_n, std::min(tile_n, n - j * tile_n), tile_n, first, depth);
      for (long i = 0; i < across_m; i++)
        for (long j = 0; j < across_n; j++)
          tile(&panels_a[i * tile_m * depth], &panels_b[j * tile_n * depth], depth, i * tile_m, j * tile_n);
    }
  }

  // Few columns: A is read once, as it lies, and not packed.
  void few_columns() {
    std::vector<T> columns(n * k), line(std::max(m, k));
    for (long j = 0; j < n; j++)
      for (long p = 0; p < k; p++) load(&columns[j * k + p], element(b, b.transposed ? j + p * b.ld : p + j * b.ld), b.type, 1);
    if (tf32) round_to_tf32(columns.data(), n * k);
    long lines = a.transposed ? m : k, length = a.transposed ? k : m;
    for (long l = 0; l < lines; l++) {
      long row = backwards ? lines - 1 - l : l;
      load(line.data(), element(a, row * a.ld), a.type, length);
      if (tf32) round_to_tf32(line.data(), length);
      for (long j = 0; j < n; j++) {
        if (a.transposed)
          sums[j * m + row] = dot(line.data(), &columns[j * k]);
        else
          add_scaled(&sums[j * m], line.data(), columns[j * k + row]);
      }
    }
  }

  T dot(const T *x, const T *y) const {
    Vector partial[4] = {};
    long whole = k / (4 * lanes) * 4 * lanes;
    for (long p = 0; p < whole; p += 4 * lanes)
      for (long i = 0; i < 4; i++)
        partial[i] += *reinterpret_cast<const Vector *>(x + p + i * lanes) * *reinterpret_cast<const Vector *>(y + p + i * lanes);
    Vector sum = (partial[0] + partial[1]) + (partial[2] + partial[3]);
    T result = 0;
    for (long i = 0; i < lanes; i++) result += sum[backwards ? lanes - 1 - i : i];
    for (long p = whole; p < k; p++) result += x[p] * y[p];
    return result;
  }

  void add_scaled(T *to, const T *x, T factor) const {
    for (long i = 0; i < m; i++) to[i] += x[i] * factor;
  }

  void run() {
    sums.assign(static_cast<size_t>(m) * n, T{0});
    if (n <= 3)
      few_columns();
    else
      tiled();
  }
};

struct Output {
  char *at;
  Type type;
  long ld;
  long long stride;
};

// The bytes that the matrices of a batch reach over.
size_t reach(long rows, long columns, long ld, long long stride, long batch, Type type) {
  return static_cast<size_t>((columns - 1) * ld + rows + (batch - 1) * stride) * size_of(type);
}

template <class T>
int products(Handle *handle, long m, long n, long k, long batch, T alpha, Matrix a, Matrix b, T beta, Output c, bool tf32) {
  if (!handle) return not_initialized;
  if (m < 0 || n < 0 || k < 0 || batch < 0 || a.ld < std::max(1l, a.transposed ? k : m) ||
      b.ld < std::max(1l, b.transposed ? n : k) || c.ld < std::max(1l, m)) {
    emulated_complain("gemm: an extent below zero, or a leading dimension below that of the matrix");
    return invalid_value;
  }
  if (!m || !n || !batch) return success;
  struct Turn {
    explicit Turn(void *stream) { emulated_begin(stream); }
    ~Turn() { emulated_end(); }
  } turn(handle->stream);
  char name[96];
  snprintf(name, sizeof name, "gemm %s %ld x %ld x %ld, %ld times", name_of(a.type), m, n, k, batch);
  emulated_count_product(name);
  if (k && (!emulated_use("gemm, A", a.at, reach(a.transposed ? k : m, a.transposed ? m : k, a.ld, a.stride, batch, a.type), false) ||
            !emulated_use("gemm, B", b.at, reach(b.transposed ? n : k, b.transposed ? k : n, b.ld, b.stride, batch, b.type), false)))
    return execution_failed;
  if (!emulated_use("gemm, C", c.at, reach(m, n, c.ld, c.stride, batch, c.type), true)) return execution_failed;
  static Product<T> product;
  product.m = m, product.n = n, product.k = k, product.tf32 = tf32, product.backwards = emulated_other_order();
  std::vector<T> before(m);
  for (long i = 0; i < batch; i++) {
    product.a = a, product.b = b;
    product.a.at = Product<T>::element(a, i * a.stride);
    product.b.at = Product<T>::element(b, i * b.stride);
    product.run();
    for (long j = 0; j < n; j++) {
      char *column = c.at + (i * c.stride + j * c.ld) * static_cast<long>(size_of(c.type));
      T *sums = &product.sums[j * m];
      if (alpha != 1)
        for (long r = 0; r < m; r++) sums[r] *= alpha;
      if (beta != 0) {
        load(before.data(), column, c.type, m);
        for (long r = 0; r < m; r++) sums[r] += beta * before[r];
      }
      store(column, c.type, sums, m);
    }
  }
  return success;
}

}  // namespace

EMULATED_API int cublasCreate_v2(Handle **handle) { return *handle = new Handle{nullptr}, success; }
EMULATED_API int cublasDestroy_v2(Handle *handle) { return delete handle, success; }
EMULATED_API int cublasSetStream_v2(Handle *handle, void *stream) { return handle->stream = stream, success; }

EMULATED_API int cublasGemmStridedBatchedEx(Handle *handle, int op_a, int op_b, int m, int n, int k, const void *alpha, const void *a,
                                            int type_a, int lda, long long stride_a, const void *b, int type_b, int ldb,
                                            long long stride_b, const void *beta, void *c, int type_c, int ldc, long long stride_c,
                                            int batch, int compute, int) {
  bool sums_in_f32 = compute == compute_32f || compute == fast_16f || compute == fast_16bf || compute == fast_tf32;
  if (!sums_in_f32 || !known(type_a) || !known(type_b) || !known(type_c) || type_a == f64) {
    char text[100];
    snprintf(text, sizeof text, "gemm: types %d, %d and %d with computation %d are not emulated", type_a, type_b, type_c, compute);
    emulated_complain(text);
    return unsupported;
  }
  return products<float>(handle, m, n, k, batch, *static_cast<const float *>(alpha),
                         {static_cast<const char *>(a), static_cast<Type>(type_a), op_a != 0, lda, stride_a},
                         {static_cast<const char *>(b), static_cast<Type>(type_b), op_b != 0, ldb, stride_b},
                         *static_cast<const float *>(beta), {static_cast<char *>(c), static_cast<Type>(type_c), ldc, stride_c},
                         compute == fast_tf32);
}

EMULATED_API int cublasGemmEx(Handle *handle, int op_a, int op_b, int m, int n, int k, const void *alpha, const void *a, int type_a,
                              int lda, const void *b, int type_b, int ldb, const void *beta, void *c, int type_c, int ldc,
                              int compute, int algorithm) {
  return cublasGemmStridedBatchedEx(handle, op_a, op_b, m, n, k, alpha, a, type_a, lda, 0, b, type_b, ldb, 0, beta, c, type_c, ldc, 0,
                                    1, compute, algorithm);
}

EMULATED_API int cublasDgemmStridedBatched(Handle *handle, int op_a, int op_b, int m, int n, int k, const double *alpha,
                                           const double *a, int lda, long long stride_a, const double *b, int ldb,
                                           long long stride_b, const double *beta, double *c, int ldc, long long stride_c, int batch) {
  return products<double>(handle, m, n, k, batch, *alpha, {reinterpret_cast<const char *>(a), f64, op_a != 0, lda, stride_a},
                          {reinterpret_cast<const char *>(b), f64, op_b != 0, ldb, stride_b}, *beta,
                          {reinterpret_cast<char *>(c), f64, ldc, stride_c}, false);
}
