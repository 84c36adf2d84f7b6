// Layer norm and RMSNorm over rows, forward and backward: `y = (x - mean) / sqrt(var + eps) * w + b`, and
// `y = x / sqrt(mean(x^2) + eps) * w`, alone or with the residual sum before it. A warp takes a row. Up to 1024 channels, in fours,
// it holds the row in registers; others it reads once from memory, and again from the cache.
#include "dropout.cuh"
#include "element.cuh"
#include "row_stats.cuh"
#include "vectors.cuh"

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

// A row of `c` channels in the registers of a warp: a lane has `FOURS` times four channels, those from `column(k)` on, of which none
// or all are within the row. Beyond it are zeros.
template <int FOURS>
struct Row {
    float x[FOURS][4];

    static __device__ __forceinline__ unsigned column(int k) { return (k * 32 + threadIdx.x % 32) * 4; }

    template <class T>
    __device__ __forceinline__ void load(const T *from, unsigned c) {
#pragma unroll
        for (int k = 0; k < FOURS; k++) {
            Packed<4, T> four;
            four.clear();
            if (column(k) < c) four.load(from + column(k));
            four.get(x[k]);
        }
    }

    // [`row_stats`].
    __device__ __forceinline__ Stats stats(bool rms, unsigned c, float eps) const {
        float mean = 0.0f;
        if (!rms) {
#pragma unroll
            for (int k = 0; k < FOURS; k++) mean += (x[k][0] + x[k][1]) + (x[k][2] + x[k][3]);
            mean = warp_sum(mean) / c;
        }
        float squares = 0.0f;
#pragma unroll
        for (int k = 0; k < FOURS; k++)
            if (column(k) < c)
#pragma unroll
                for (int i = 0; i < 4; i++) squares = fmaf(x[k][i] - mean, x[k][i] - mean, squares);
        return {mean, 1.0f / sqrtf(warp_sum(squares) / c + eps)};
    }
};

// [`forward`] of rows in registers.
template <int FOURS, class T>
__device__ __forceinline__ void forward_held(bool rms, const float *x, const T *branch, float *sum, const float *w, const float *b,
                                             T *y, unsigned n, unsigned c, float eps, const Dropout &dropout) {
    const unsigned long long row = (unsigned long long)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, first = row * c;
    if (row >= n) return;
    Row<FOURS> held;
    held.load(x + first, c);
    if (branch) {
        Row<FOURS> added;
        added.load(branch + first, c);
        RowMask mask(dropout);
#pragma unroll
        for (int k = 0; k < FOURS; k++) {
            const unsigned long long at = first + held.column(k);
            if (held.column(k) >= c) continue;
            mask.enter(at);
#pragma unroll
            for (int i = 0; i < 4; i++) held.x[k][i] += mask.of(added.x[k][i], at + i);
            store<4>(sum + at, held.x[k]);
        }
    }
    const Stats s = held.stats(rms, c, eps);
#pragma unroll
    for (int k = 0; k < FOURS; k++) {
        const unsigned column = held.column(k);
        if (column >= c) continue;
        float weight[4], bias[4] = {}, z[4];
        load<4>(weight, w + column);
        if (b) load<4>(bias, b + column);
#pragma unroll
        for (int i = 0; i < 4; i++) z[i] = fmaf((held.x[k][i] - s.mean) * s.rstd, weight[i], bias[i]);
        store<4>(y + first + column, z);
    }
}

// The warps of a block of [`backward_held`].
constexpr unsigned HELD_WARPS = 8;

// [`backward`] of rows in registers. A lane has columns of its own in every row, and adds up their sums in registers; at the end
// those of the block's warps are added in order.
template <int FOURS, class T>
__device__ __forceinline__ void backward_held(bool rms, const float *x, const float *w, const T *dy, const float *before, float *dx,
                                              T *d_branch, float *sums_out, unsigned n, unsigned c, unsigned rows, unsigned bias,
                                              float eps, const Dropout &dropout) {
    __shared__ __align__(16) float sums[2][HELD_WARPS][128];
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float dw[FOURS][4] = {}, db[FOURS][4] = {};
    RowMask mask(dropout);
    const unsigned long long begin = (unsigned long long)blockIdx.x * rows;
    for (unsigned long long row = begin + warp; row < begin + rows && row < n; row += HELD_WARPS) {
        const unsigned long long first = row * c;
        // All of a row is on its way at once: `x`, which becomes `z`, the gradient as it is in memory, and what is added to `dx`.
        Row<FOURS> z, other;
        Packed<4, T> d[FOURS];
        z.load(x + first, c);
#pragma unroll
        for (int k = 0; k < FOURS; k++) {
            d[k].clear();
            if (z.column(k) < c) d[k].load(dy + first + z.column(k));
        }
        if (before) {
            other.load(before + first, c);
        } else {
#pragma unroll
            for (int k = 0; k < FOURS; k++)
#pragma unroll
                for (int i = 0; i < 4; i++) other.x[k][i] = 0.0f;
        }
        const Stats s = z.stats(rms, c, eps);
        float g_sum = 0.0f, gz_sum = 0.0f;
#pragma unroll
        for (int k = 0; k < FOURS; k++) {
            if (z.column(k) >= c) continue;
            float weight[4], gradient[4];
            load<4>(weight, w + z.column(k));
            d[k].get(gradient);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                z.x[k][i] = (z.x[k][i] - s.mean) * s.rstd;
                const float g = gradient[i] * weight[i];
                g_sum += g;
                gz_sum = fmaf(g, z.x[k][i], gz_sum);
                dw[k][i] = fmaf(gradient[i], z.x[k][i], dw[k][i]);
                db[k][i] += gradient[i];
            }
        }
        const float mean_g = rms ? 0.0f : warp_sum(g_sum) / c;
        const float mean_gz = warp_sum(gz_sum) / c;
#pragma unroll
        for (int k = 0; k < FOURS; k++) {
            const unsigned column = z.column(k);
            if (column >= c) continue;
            float weight[4], gradient[4];
            load<4>(weight, w + column);
            d[k].get(gradient);
            const unsigned long long at = first + column;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float g = gradient[i] * weight[i];
                other.x[k][i] += (g - mean_g - z.x[k][i] * mean_gz) * s.rstd;
            }
            store<4>(dx + at, other.x[k]);
            if (!d_branch) continue;
            mask.enter(at);
#pragma unroll
            for (int i = 0; i < 4; i++) other.x[k][i] = mask.of(other.x[k][i], at + i);
            store<4>(d_branch + at, other.x[k]);
        }
    }

    float *const of_block = sums_out + (unsigned long long)blockIdx.x * (bias ? 2 * c : c);
#pragma unroll
    for (int k = 0; k < FOURS; k++) {
        store<4>(&sums[0][warp][4 * lane], dw[k]);
        store<4>(&sums[1][warp][4 * lane], db[k]);
        __syncthreads();
        for (unsigned i = threadIdx.x; i < 256; i += 32 * HELD_WARPS) {
            const unsigned which = i / 128, column = k * 128 + i % 128;
            if (column < c && which <= bias) {
                float sum = 0.0f;
                for (unsigned of = 0; of < HELD_WARPS; of++) sum += sums[which][of][i % 128];
                of_block[which * c + column] = sum;
            }
        }
        __syncthreads();
    }
}

}  // namespace

#define DROPOUT_ARGS unsigned key0, unsigned key1, unsigned word2, unsigned word3, unsigned threshold, float scale
#define DROPOUT {key0, key1, word2, word3, threshold, scale}
#define FORWARD_ARGS(T)                                                                                                    \
    const float *x, const T *branch, float *sum, const float *w, const float *b, T *y, unsigned n, unsigned c, float eps,  \
        DROPOUT_ARGS
#define BACKWARD_ARGS(T)                                                                                                   \
    const float *x, const float *w, const T *dy, const float *before, float *dx, T *d_branch, float *sums, unsigned n,     \
        unsigned c, unsigned rows, unsigned bias, float eps, DROPOUT_ARGS

// For rows of any number of channels.
#define NORM(NAME, RMS, T)                                                                   \
    extern "C" __global__ void NAME##_forward_##T(FORWARD_ARGS(T)) {                         \
        forward<RMS>(x, branch, sum, w, b, y, n, c, eps, DROPOUT);                           \
    }                                                                                        \
    extern "C" __global__ void NAME##_backward_##T(BACKWARD_ARGS(T)) {                       \
        backward<RMS>(x, w, dy, before, dx, d_branch, sums, n, c, rows, bias, eps, DROPOUT); \
    }

// For rows whose channels are fours, at most so many a lane: layer norm, and where `rms` is 1, RMSNorm.
#define HELD(T, FOURS)                                                                                                     \
    extern "C" __global__ void norm_forward_##T##_##FOURS(FORWARD_ARGS(T), unsigned rms) {                                 \
        forward_held<FOURS>(rms, x, branch, sum, w, b, y, n, c, eps, DROPOUT);                                             \
    }                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(32 * HELD_WARPS)                                                          \
        norm_backward_##T##_##FOURS(BACKWARD_ARGS(T), unsigned rms) {                                                      \
        backward_held<FOURS>(rms, x, w, dy, before, dx, d_branch, sums, n, c, rows, bias, eps, DROPOUT);                   \
    }
#define HELD_SIZES(T) HELD(T, 3) HELD(T, 6) HELD(T, 8)

NORM(layer_norm, false, float)
NORM(layer_norm, false, bf16)
NORM(layer_norm, false, f16)
NORM(rms_norm, true, float)
NORM(rms_norm, true, bf16)
NORM(rms_norm, true, f16)
HELD_SIZES(float)
HELD_SIZES(bf16)
HELD_SIZES(f16)

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
