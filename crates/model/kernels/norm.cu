// Layer norm and RMSNorm over rows, forward and backward: `y = (x - mean) / sqrt(var + eps) * w`, and `x / sqrt(mean(x^2) + eps) * w`.
// A warp takes a row. A row is read once from memory and again from the cache.
#include "reduce.cuh"

namespace {

struct Stats {
    float mean, rstd;
};

// Of the `c` elements of a row. An RMSNorm is a layer norm whose mean is taken to be 0.
template <bool RMS>
__device__ __forceinline__ Stats row_stats(const float *x, unsigned c, unsigned lane, float eps) {
    float mean = 0.0f;
    if (!RMS) {
        for (unsigned i = lane; i < c; i += 32) mean += x[i];
        mean = warp_sum(mean) / c;
    }
    float squares = 0.0f;
    for (unsigned i = lane; i < c; i += 32) {
        const float centred = x[i] - mean;
        squares += centred * centred;
    }
    return {mean, 1.0f / sqrtf(warp_sum(squares) / c + eps)};
}

template <bool RMS>
__device__ __forceinline__ void forward(const float *x, const float *w, float *y, unsigned n, unsigned c, float eps) {
    const unsigned lane = threadIdx.x % 32;
    const unsigned long long row = (unsigned long long)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= n) return;
    x += row * c;
    y += row * c;
    const Stats s = row_stats<RMS>(x, c, lane, eps);
    for (unsigned i = lane; i < c; i += 32) y[i] = (x[i] - s.mean) * s.rstd * w[i];
}

// With `g = dy w` and `z` the normed row: `dx = rstd (g - mean(g) - z mean(g z))`, plus `also`, the gradient that `x` has from its
// other readers, if there is one. A block takes `rows` rows and leaves the sum of their `dy z` in a row of `dw_parts (blocks, C)`.
template <bool RMS>
__device__ __forceinline__ void backward(const float *x, const float *w, const float *dy, const float *also, float *dx,
                                         float *dw_parts, unsigned n, unsigned c, unsigned rows, float eps) {
    extern __shared__ float sums[];  // (warps, C)
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    float *dw = sums + warp * c;
    for (unsigned i = lane; i < c; i += 32) dw[i] = 0.0f;
    const unsigned long long first = (unsigned long long)blockIdx.x * rows;
    for (unsigned long long row = first + warp; row < first + rows && row < n; row += warps) {
        const float *xr = x + row * c, *dyr = dy + row * c;
        const Stats s = row_stats<RMS>(xr, c, lane, eps);
        float g_sum = 0.0f, gz_sum = 0.0f;
        for (unsigned i = lane; i < c; i += 32) {
            const float z = (xr[i] - s.mean) * s.rstd, g = dyr[i] * w[i];
            g_sum += g;
            gz_sum += g * z;
            dw[i] += dyr[i] * z;
        }
        const float mean_g = RMS ? 0.0f : warp_sum(g_sum) / c;
        const float mean_gz = warp_sum(gz_sum) / c;
        for (unsigned i = lane; i < c; i += 32) {
            const float z = (xr[i] - s.mean) * s.rstd, g = dyr[i] * w[i];
            const float d = (g - mean_g - z * mean_gz) * s.rstd;
            dx[row * c + i] = also ? also[row * c + i] + d : d;
        }
    }
    __syncthreads();
    for (unsigned i = threadIdx.x; i < c; i += blockDim.x) {
        float sum = 0.0f;
        for (unsigned k = 0; k < warps; k++) sum += sums[k * c + i];
        dw_parts[(unsigned long long)blockIdx.x * c + i] = sum;
    }
}

}  // namespace

#define NORM(NAME, RMS)                                                                                                       \
    extern "C" __global__ void NAME##_forward(const float *x, const float *w, float *y, unsigned n, unsigned c, float eps) { \
        forward<RMS>(x, w, y, n, c, eps);                                                                                     \
    }                                                                                                                         \
    extern "C" __global__ void NAME##_backward(const float *x, const float *w, const float *dy, const float *also, float *dx, \
                                               float *dw_parts, unsigned n, unsigned c, unsigned rows, float eps) {           \
        backward<RMS>(x, w, dy, also, dx, dw_parts, n, c, rows, eps);                                                         \
    }

NORM(layer_norm, false)
NORM(rms_norm, true)

// Sums the columns of `x (n, c)`: a warp for 32 columns would read 128 bytes at a time; here a block of 8 warps takes 32 columns,
// each warp every eighth row.
extern "C" __global__ void sum_rows(const float *x, float *y, unsigned n, unsigned c) {
    __shared__ float sums[8][32];
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, column = blockIdx.x * 32 + lane;
    float sum = 0.0f;
    if (column < c)
        for (unsigned row = warp; row < n; row += 8) sum += x[(unsigned long long)row * c + column];
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && column < c) {
        for (unsigned k = 1; k < 8; k++) sum += sums[k][lane];
        y[column] = sum;
    }
}
