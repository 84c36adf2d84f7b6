// Layer norm and RMSNorm over rows, forward and backward: `y = (x - mean) / sqrt(var + eps) * w + b`, and
// `y = x / sqrt(mean(x^2) + eps) * w`, alone or with the residual sum before it. A warp takes a row; it reads the row once from
// memory, and again from the cache.
#include "dropout.cuh"
#include "element.cuh"
#include "row_stats.cuh"

namespace {

// `x (n, c)`, `w (c)`, `b (c)` or null, `y (n, c)`. With a `branch (n, c)` the norm is that of `x + branch * mask`, the mask that of
// `dropout`, which is written to `sum (n, c)`.
template <bool RMS, class T>
__device__ __forceinline__ void forward(const float *x, const T *branch, float *sum, const float *w, const float *b, T *y, unsigned n,
                                        unsigned c, float eps, const Dropout &dropout) {
    const unsigned lane = threadIdx.x % 32;
    const unsigned long long row = (unsigned long long)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, first = row * c;
    if (row >= n) return;
    x += first;
    y += first;
    if (branch) {
        // A lane reads again what it wrote, and nothing else.
        RowMask mask(dropout);
        for (unsigned i = lane; i < c; i += 32) sum[first + i] = x[i] + mask.apply(to_float(branch[first + i]), first + i);
        x = sum + first;
    }
    const Stats s = row_stats<RMS>(x, c, lane, eps);
    for (unsigned i = lane; i < c; i += 32) {
        const float z = (x[i] - s.mean) * s.rstd * w[i];
        y[i] = from_float<T>(b ? z + b[i] : z);
    }
}

// With `g = dy w` and `z` the normed row: `dx = rstd (g - mean(g) - z mean(g z))`, plus `before (n, c)`, the gradient that `x` has
// from its other readers, where there is one. Where `x` is a residual sum, `d_branch (n, c)`, if it is not null, gets the gradient of
// the branch, `dx` times the mask of `dropout`. A block takes `rows` rows. It leaves the sums of their `dy z`, the gradient of the
// weight, in its row of `sums_out (blocks, c)`, and with `bias` behind it that of `dy`: `(blocks, 2 c)`.
template <bool RMS, class T>
__device__ __forceinline__ void backward(const float *x, const float *w, const T *dy, const float *before, float *dx, T *d_branch,
                                         float *sums_out, unsigned n, unsigned c, unsigned rows, unsigned bias, float eps,
                                         const Dropout &dropout) {
    extern __shared__ float sums[];  // (warps, c), with a bias (warps, 2 c)
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, width = bias ? 2 * c : c;
    // A lane has columns of its own, so that no two write the same place.
    float *dw = sums + warp * width, *db = dw + c;
    for (unsigned i = lane; i < c; i += 32) {
        dw[i] = 0.0f;
        if (bias) db[i] = 0.0f;
    }
    const unsigned long long first = (unsigned long long)blockIdx.x * rows;
    for (unsigned long long row = first + warp; row < first + rows && row < n; row += warps) {
        const float *xr = x + row * c;
        const T *dyr = dy + row * c;
        const Stats s = row_stats<RMS>(xr, c, lane, eps);
        float g_sum = 0.0f, gz_sum = 0.0f;
        for (unsigned i = lane; i < c; i += 32) {
            const float z = (xr[i] - s.mean) * s.rstd, d = to_float(dyr[i]), g = d * w[i];
            g_sum += g;
            gz_sum += g * z;
            dw[i] += d * z;
            if (bias) db[i] += d;
        }
        const float mean_g = RMS ? 0.0f : warp_sum(g_sum) / c;
        const float mean_gz = warp_sum(gz_sum) / c;
        RowMask mask(dropout);
        for (unsigned i = lane; i < c; i += 32) {
            const unsigned long long at = row * c + i;
            const float z = (xr[i] - s.mean) * s.rstd, g = to_float(dyr[i]) * w[i];
            const float of_norm = (g - mean_g - z * mean_gz) * s.rstd, d = before ? before[at] + of_norm : of_norm;
            dx[at] = d;
            if (d_branch) d_branch[at] = from_float<T>(mask.apply(d, at));
        }
    }
    __syncthreads();
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        float sum = 0.0f;
        for (unsigned k = 0; k < warps; k++) sum += sums[k * width + i];
        sums_out[(unsigned long long)blockIdx.x * width + i] = sum;
    }
}

}  // namespace

#define DROPOUT_ARGS unsigned key0, unsigned key1, unsigned word2, unsigned word3, unsigned threshold, float scale
#define NORM(NAME, RMS, T)                                                                                                      \
    extern "C" __global__ void NAME##_forward_##T(const float *x, const T *branch, float *sum, const float *w, const float *b,  \
                                                  T *y, unsigned n, unsigned c, float eps, DROPOUT_ARGS) {                      \
        forward<RMS>(x, branch, sum, w, b, y, n, c, eps, {key0, key1, word2, word3, threshold, scale});                         \
    }                                                                                                                           \
    extern "C" __global__ void NAME##_backward_##T(const float *x, const float *w, const T *dy, const float *before, float *dx, \
                                                   T *d_branch, float *sums, unsigned n, unsigned c, unsigned rows,             \
                                                   unsigned bias, float eps, DROPOUT_ARGS) {                                    \
        backward<RMS>(x, w, dy, before, dx, d_branch, sums, n, c, rows, bias, eps,                                              \
                      {key0, key1, word2, word3, threshold, scale});                                                            \
    }

NORM(layer_norm, false, float)
NORM(layer_norm, false, bf16)
NORM(layer_norm, false, f16)
NORM(rms_norm, true, float)
NORM(rms_norm, true, bf16)
NORM(rms_norm, true, f16)

// Sums of the columns of `x (n, c)`: block (j, i) takes 32 columns of the `rows` rows from `j rows` on, each of its 8 warps every
// eighth row, and writes row j of `y (parts, c)`.
template <class T>
__device__ __forceinline__ void sum_rows(const T *x, float *y, unsigned n, unsigned c, unsigned rows) {
    __shared__ float scratch[8][32];
    const unsigned warp = threadIdx.x / 32, column = blockIdx.y * 32 + threadIdx.x % 32;
    const unsigned long long first = (unsigned long long)blockIdx.x * rows;
    float sum = 0.0f;
    if (column < c)
        for (unsigned long long row = first + warp; row < first + rows && row < n; row += 8) sum += to_float(x[row * c + column]);
    sum = sum_over_warps(sum, scratch);
    if (warp == 0 && column < c) y[(unsigned long long)blockIdx.x * c + column] = sum;
}

#define SUM_ROWS(T)                                                                                           \
    extern "C" __global__ void sum_rows_##T(const T *x, float *y, unsigned n, unsigned c, unsigned rows) {    \
        sum_rows(x, y, n, c, rows);                                                                           \
    }

SUM_ROWS(float)
SUM_ROWS(bf16)
SUM_ROWS(f16)
