// Decoding: one new position of each of a few rows. A matrix is read once for up to four rows, in f32 or 16 bits; everything
// else, sums too, is f32. What a row gets is the same bits in whatever batch it is: no sum's order depends on the number of rows.
//
// A source for each type of matrices includes this, behind the declaration of the shared memory: `extern __shared__ float shared[]`.
#pragma once
#include "activation.cuh"
#include "row_stats.cuh"
#include "vectors.cuh"

namespace {

// What is done with the input rows of a product: `ops/kernels/decode.rs` has the same numbers.
enum InputNorm : unsigned { NO_NORM, LAYER_NORM, RMS_NORM };

// What is done with the sums of a product.
enum Epilogue : unsigned { NO_EPILOGUE, GELU, GELU_NEW, RELU2, SWIGLU };

// The input rows of a product, `x (rows, n_in)`, with a norm over each: its kind, weight `(n_in)` and bias `(n_in)` or null.
struct Input {
    const float *x, *norm_weight, *norm_bias;
    unsigned norm, rows, n_in;
    float eps;

    // Floats from one staged row to the next: rows begin at 16 bytes.
    __device__ __forceinline__ unsigned stride() const { return (n_in + 3) / 4 * 4; }

    // Brings `ROWS` rows from `first` on into shared memory, normed; those beyond the last are zeros. A norm is one warp's.
    template <int ROWS>
    __device__ __forceinline__ void stage(float *staged, unsigned first) const {
        for (unsigned r = 0; r < ROWS; r++)
            for (unsigned i = threadIdx.x; i < n_in; i += blockDim.x)
                staged[r * stride() + i] = first + r < rows ? x[(unsigned long long)(first + r) * n_in + i] : 0.0f;
        __syncthreads();
        if (norm == NO_NORM) return;
        const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        if (warp < ROWS) {
            float *row = staged + warp * stride();
            const Stats s = norm == RMS_NORM ? row_stats<true>(row, n_in, lane, eps) : row_stats<false>(row, n_in, lane, eps);
            // No lane changes an element before all have summed it: the sum of a warp is a barrier of its lanes. Which product
            // and sum become one is not left to the compiler, which could decide otherwise for another number of rows.
            for (unsigned i = lane; i < n_in; i += 32) {
                const float z = __fmul_rn(row[i] - s.mean, s.rstd);
                row[i] = norm_bias ? fmaf(z, norm_weight[i], norm_bias[i]) : __fmul_rn(z, norm_weight[i]);
            }
        }
        __syncthreads();
    }
};

// The columns of the matrix that a block of a product takes.
constexpr unsigned COLS = 8;

// The sum over the threads of a block of `x`, of which `LANES` neighbours have the same, in every thread: a tree in the warp, and then
// the order of warps. `of_warps (WARPS)` is shared, and used once.
template <unsigned LANES, unsigned WARPS>
__device__ __forceinline__ float block_sum(float x, float *of_warps) {
#pragma unroll
    for (unsigned other = LANES; other < 32; other *= 2) x = __fadd_rn(x, __shfl_xor_sync(0xffffffffu, x, other));
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (unsigned i = 0; i < WARPS; i++) sum = __fadd_rn(sum, of_warps[i]);
    return sum;
}

// `y = residual + epilogue(norm(x) w + bias)` for `w (n_in, parts n_out)`, `bias (parts n_out)` or null, `residual (rows, n_out)`
// or null, `y (rows, n_out)`; two parts, gates and what they gate, for SwiGLU.
//
// A block takes some columns of `ROWS` rows, in two parts half of them of each. `LANES` threads share a row of the matrix, of which
// the block reads `STEP` at a time. A thread needs few inputs, and has them in registers; a norm is a sum over all threads. The sums
// of the threads are added in a tree in the warp, and then in the order of warps. Which product and sum become one is not left to the
// compiler, which could decide otherwise for another number of rows.
template <unsigned THREADS, class T, int VEC, int ROWS>
__device__ __forceinline__ void product(const Input &input, const T *w, const float *bias, const float *residual, float *y,
                                        unsigned n_out, unsigned epilogue) {
    constexpr unsigned LANES = COLS / VEC, STEP = THREADS / LANES, WARPS = THREADS / 32;
    // Loads of a thread that are under way at a time.
    constexpr int LOADS = VEC == 1 ? 4 : 6;
    __shared__ __align__(16) float of_warps[2][ROWS][WARPS], sums[WARPS][ROWS * COLS];
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, n_in = input.n_in, first_row = blockIdx.x * ROWS;
    // A block's columns of each part, and the outputs that these are.
    const unsigned parts = epilogue == SWIGLU ? 2 : 1, cols = COLS / parts, first_out = blockIdx.y * cols;
    const unsigned mine = threadIdx.x % LANES * VEC, from = threadIdx.x / LANES;
    const unsigned out_of_lane = first_out + mine % cols, stride = parts * n_out;
    const T *const column = w + mine / cols * n_out + out_of_lane;

    float xs[LOADS][ROWS], norm_weights[LOADS], norm_biases[LOADS], weights[LOADS][VEC];
    // Of the rows of the matrix `k`, `k + STEP`, ..: the inputs, and what norms them; 0 beyond the ends.
    const auto read_inputs = [&](unsigned k) {
#pragma unroll
        for (int i = 0; i < LOADS; i++) {
            const unsigned at = k + i * STEP;
#pragma unroll
            for (int r = 0; r < ROWS; r++)
                xs[i][r] = at < n_in && first_row + r < input.rows ? input.x[(unsigned long long)(first_row + r) * n_in + at] : 0.0f;
            if (input.norm != NO_NORM) {
                norm_weights[i] = at < n_in ? __ldg(input.norm_weight + at) : 0.0f;
                norm_biases[i] = at < n_in && input.norm_bias ? __ldg(input.norm_bias + at) : 0.0f;
            }
        }
    };
    const auto read_weights = [&](unsigned k) {
#pragma unroll
        for (int i = 0; i < LOADS; i++) {
            const unsigned at = k + i * STEP;
            if (at < n_in && out_of_lane < n_out) {
                load<VEC>(weights[i], column + (unsigned long long)at * stride);
            } else {
#pragma unroll
                for (int v = 0; v < VEC; v++) weights[i][v] = 0.0f;
            }
        }
    };
    read_inputs(from);
    // What the outputs of this block need, of the thread that will have one.
    const unsigned r_out = threadIdx.x / cols, out = first_out + threadIdx.x % cols;
    const bool writes = r_out < ROWS && first_row + r_out < input.rows && out < n_out;
    const unsigned long long y_at = (unsigned long long)(first_row + r_out) * n_out + out;
    float add = 0.0f, gated_add = 0.0f, before = 0.0f;
    if (writes) {
        if (bias) add = bias[out];
        if (bias && parts > 1) gated_add = bias[n_out + out];
        if (residual) before = residual[y_at];
    }
    read_weights(from);

    // The statistics of each row.
    float mean[ROWS] = {}, rstd[ROWS];
    if (input.norm != NO_NORM) {
        // `f(sum, r, x)` over this thread's inputs, those in registers first.
        const auto each = [&](auto f) {
#pragma unroll
            for (int i = 0; i < LOADS; i++)
#pragma unroll
                for (int r = 0; r < ROWS; r++)
                    if (from + i * STEP < n_in) f(r, xs[i][r]);
            for (unsigned k = from + LOADS * STEP; k < n_in; k += STEP)
#pragma unroll
                for (int r = 0; r < ROWS; r++)
                    f(r, first_row + r < input.rows ? input.x[(unsigned long long)(first_row + r) * n_in + k] : 0.0f);
        };
        if (input.norm == LAYER_NORM) {
            float sum[ROWS] = {};
            each([&](int r, float x) { sum[r] = __fadd_rn(sum[r], x); });
#pragma unroll
            for (int r = 0; r < ROWS; r++) mean[r] = block_sum<LANES, WARPS>(sum[r], of_warps[0][r]) / n_in;
        }
        float squares[ROWS] = {};
        each([&](int r, float x) { squares[r] = fmaf(x - mean[r], x - mean[r], squares[r]); });
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            rstd[r] = 1.0f / sqrtf(__fadd_rn(block_sum<LANES, WARPS>(squares[r], of_warps[1][r]) / n_in, input.eps));
    }

    float partial[ROWS][VEC] = {};
    for (unsigned k = from; k < n_in; k += LOADS * STEP) {
        if (k > from) {
            read_inputs(k);
            read_weights(k);
        }
#pragma unroll
        for (int i = 0; i < LOADS; i++) {
            if (k + i * STEP >= n_in) continue;
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                float x = xs[i][r];
                if (input.norm != NO_NORM) x = fmaf(__fmul_rn(x - mean[r], rstd[r]), norm_weights[i], norm_biases[i]);
#pragma unroll
                for (int v = 0; v < VEC; v++) partial[r][v] = fmaf(x, weights[i][v], partial[r][v]);
            }
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int v = 0; v < VEC; v++) {
#pragma unroll
            for (unsigned other = LANES; other < 32; other *= 2)
                partial[r][v] = __fadd_rn(partial[r][v], __shfl_xor_sync(0xffffffffu, partial[r][v], other));
            if (lane < LANES) sums[warp][r * COLS + lane * VEC + v] = partial[r][v];
        }
    __syncthreads();
    if (!writes) return;
    const auto total = [&](unsigned part) {
        float sum = 0.0f;
#pragma unroll
        for (unsigned k = 0; k < WARPS; k++) sum = __fadd_rn(sum, sums[k][r_out * COLS + part * cols + threadIdx.x % cols]);
        return sum;
    };
    float value = __fadd_rn(total(0), add);
    if (epilogue == GELU) value = Gelu::value(value);
    if (epilogue == GELU_NEW) value = GeluNew::value(value);
    if (epilogue == RELU2) value = Relu2::value(value);
    if (epilogue == SWIGLU) value = value * sigmoid(value) * __fadd_rn(total(1), gated_add);
    y[y_at] = __fadd_rn(before, value);
}

// The threads of a block of `logits`, the outputs that a warp computes at a time, and those of a block.
constexpr unsigned HEAD_THREADS = 256, EACH = 4, HEAD_COLS = 64;

// `y = norm(x) w^T`, capped as `cap tanh(y / cap)` unless the cap is 0, for `w (n_out, n_in)`, `y (rows, n_out)`. A warp takes
// `EACH` rows of the matrix at a time.
template <class T, int VEC, int ROWS>
__device__ __forceinline__ void logits(const Input &input, const T *w, float *y, unsigned n_out, float cap) {
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, n_in = input.n_in;
    const unsigned first_row = blockIdx.x * ROWS;
    input.stage<ROWS>(shared, first_row);  // (ROWS, n_in)
    for (unsigned done = warp * EACH; done < HEAD_COLS; done += HEAD_THREADS / 32 * EACH) {
        const unsigned out = blockIdx.y * HEAD_COLS + done;
        if (out >= n_out) return;
        float sums[ROWS][EACH] = {};
#pragma unroll 2
        for (unsigned k = lane * VEC; k < n_in; k += 32 * VEC) {
            float weights[EACH][VEC];
#pragma unroll
            for (int e = 0; e < EACH; e++) load<VEC>(weights[e], w + (unsigned long long)min(out + e, n_out - 1) * n_in + k);
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
#pragma unroll
                for (int v = 0; v < VEC; v++) {
                    const float x = shared[r * input.stride() + k + v];
#pragma unroll
                    for (int e = 0; e < EACH; e++) sums[r][e] = fmaf(x, weights[e][v], sums[r][e]);
                }
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int e = 0; e < EACH; e++) {
                const float sum = warp_sum(sums[r][e]);
                if (lane == r * EACH + e && first_row + r < input.rows && out + e < n_out)
                    y[(unsigned long long)(first_row + r) * n_out + out + e] = cap > 0.0f ? cap * tanhf(sum / cap) : sum;
            }
    }
}

}  // namespace

#define INPUT                                                                                                     \
    const float *x, const float *norm_weight, const float *norm_bias, unsigned norm, unsigned rows, unsigned n_in, \
        float eps
#define PRODUCT(NAME, THREADS, T, VEC, ROWS)                                                                         \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
        NAME(INPUT, const T *w, const float *bias, const float *residual, float *y, unsigned n_out, unsigned epilogue) { \
        product<THREADS, T, VEC, ROWS>({x, norm_weight, norm_bias, norm, rows, n_in, eps}, w, bias, residual, y, n_out,  \
                                       epilogue);                                                                    \
    }
#define LOGITS(NAME, T, VEC, ROWS)                                                                                   \
    extern "C" __global__ void __launch_bounds__(HEAD_THREADS, ROWS == 1 ? 6 : 3)                                     \
        NAME(INPUT, const T *w, float *y, unsigned n_out, float cap) {                                               \
        logits<T, VEC, ROWS>({x, norm_weight, norm_bias, norm, rows, n_in, eps}, w, y, n_out, cap);                  \
    }
// The embeddings of tokens, rows of `table (V, c)`, and of their position, row `position` of `positions` or null: `y (n / c, c)`.
#define EMBED(NAME, T)                                                                                               \
    extern "C" __global__ void NAME(const unsigned *tokens, const T *table, const float *positions, float *y,        \
                                    unsigned long long n, unsigned c, unsigned position) {                           \
        const unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x;                      \
        if (i >= n) return;                                                                                          \
        float element[1];                                                                                            \
        load<1>(element, table + (unsigned long long)tokens[i / c] * c + i % c);                                     \
        y[i] = positions ? element[0] + positions[(unsigned long long)position * c + i % c] : element[0];            \
    }
// In the names: the type of the matrix, `_any` where the inner dimension is no multiple of four, `_deep` where it is large, `_rows`
// for more than one row.
#define DECODE_KERNELS(TYPE, T)                             \
    PRODUCT(decode_product_##TYPE, 256, T, 4, 1)            \
    PRODUCT(decode_product_##TYPE##_rows, 256, T, 4, 4)     \
    PRODUCT(decode_product_##TYPE##_any, 256, T, 1, 1)      \
    PRODUCT(decode_product_##TYPE##_any_rows, 256, T, 1, 4) \
    PRODUCT(decode_product_##TYPE##_deep, 512, T, 4, 1)     \
    PRODUCT(decode_product_##TYPE##_deep_rows, 512, T, 4, 4) \
    LOGITS(decode_logits_##TYPE, T, 4, 1)                   \
    LOGITS(decode_logits_##TYPE##_rows, T, 4, 4)            \
    LOGITS(decode_logits_##TYPE##_any, T, 1, 1)             \
    LOGITS(decode_logits_##TYPE##_any_rows, T, 1, 4)        \
    EMBED(decode_embed_##TYPE, T)
