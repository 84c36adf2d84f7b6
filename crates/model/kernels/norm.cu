// Layer norm and RMSNorm over rows, forward and backward: `y = (x - mean) / sqrt(var + eps) * w + b`, and
// `y = x / sqrt(mean(x^2) + eps) * w`. A warp takes a row; it reads the row once from memory, and again from the cache.
#include "element.cuh"
#include "row_stats.cuh"

namespace {

// `x (n, c)`, `w (c)`, `b (c)` or null, `y (n, c)`.
template <bool RMS, class T>
__device__ __forceinline__ void forward(const float *x, const float *w, const float *b, T *y, unsigned n, unsigned c, float eps) {
    const unsigned lane = threadIdx.x % 32;
    const unsigned long long row = (unsigned long long)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= n) return;
    x += row * c;
    y += row * c;
    const Stats s = row_stats<RMS>(x, c, lane, eps);
    for (unsigned i = lane; i < c; i += 32) {
        const float z = (x[i] - s.mean) * s.rstd * w[i];
        y[i] = from_float<T>(b ? z + b[i] : z);
    }
}

// With `g = dy w` and `z` the normed row: `dx = rstd (g - mean(g) - z mean(g z))`, plus `before (n, c)`, the gradient that `x` has
// from its other readers, where there is one. A block takes `rows` rows. It leaves the sums of their `dy z`, the gradient of the
// weight, in its row of `sums_out (blocks, c)`, and with `bias` behind it that of `dy`: `(blocks, 2 c)`.
template <bool RMS, class T>
__device__ __forceinline__ void backward(const float *x, const float *w, const T *dy, const float *before, float *dx,
                                         float *sums_out, unsigned n, unsigned c, unsigned rows, unsigned bias, float eps) {
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
        for (unsigned i = lane; i < c; i += 32) {
            const float z = (xr[i] - s.mean) * s.rstd, g = to_float(dyr[i]) * w[i];
            const float d = (g - mean_g - z * mean_gz) * s.rstd;
            dx[row * c + i] = before ? before[row * c + i] + d : d;
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

#define NORM(NAME, RMS, T)                                                                                                         \
    extern "C" __global__ void NAME##_forward_##T(const float *x, const float *w, const float *b, T *y, unsigned n, unsigned c,   \
                                                  float eps) {                                                                    \
        forward<RMS>(x, w, b, y, n, c, eps);                                                                                      \
    }                                                                                                                             \
    extern "C" __global__ void NAME##_backward_##T(const float *x, const float *w, const T *dy, const float *before, float *dx,   \
                                                   float *sums, unsigned n, unsigned c, unsigned rows, unsigned bias, float eps) { \
        backward<RMS>(x, w, dy, before, dx, sums, n, c, rows, bias, eps);                                                         \
    }

NORM(layer_norm, false, float)
NORM(layer_norm, false, bf16)
NORM(rms_norm, true, float)
NORM(rms_norm, true, bf16)

// Sums of the columns of `x (n, c)`: block (j, i) takes 32 columns of the `rows` rows from `j rows` on, each of its 8 warps every
// eighth row, and writes row j of `y (parts, c)`.
template <class T>
__device__ __forceinline__ void sum_rows(const T *x, float *y, unsigned n, unsigned c, unsigned rows) {
    __shared__ float sums[8][32];
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, column = blockIdx.y * 32 + lane;
    const unsigned long long first = (unsigned long long)blockIdx.x * rows;
    float sum = 0.0f;
    if (column < c)
        for (unsigned long long row = first + warp; row < first + rows && row < n; row += 8) sum += to_float(x[row * c + column]);
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && column < c) {
        for (unsigned k = 1; k < 8; k++) sum += sums[k][lane];
        y[(unsigned long long)blockIdx.x * c + column] = sum;
    }
}

extern "C" __global__ void sum_rows_float(const float *x, float *y, unsigned n, unsigned c, unsigned rows) { sum_rows(x, y, n, c, rows); }
extern "C" __global__ void sum_rows_bf16(const bf16 *x, float *y, unsigned n, unsigned c, unsigned rows) { sum_rows(x, y, n, c, rows); }
