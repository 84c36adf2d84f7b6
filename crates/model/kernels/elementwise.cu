// Activations and SwiGLU, with the bias before them or without, dropout, residual sums and biases, forward and backward. A block takes
// 1024 consecutive elements, four a thread; where it sums gradients of a bias, 32 columns of some rows.
#include "activation.cuh"
#include "dropout.cuh"
#include "element.cuh"
#include "reduce.cuh"

namespace {

constexpr unsigned EACH = 4;

// Calls `f(i)` for this thread's elements of `n`.
template <class F>
__device__ __forceinline__ void each(unsigned long long n, F f) {
    const unsigned long long first = (unsigned long long)blockIdx.x * blockDim.x * EACH + threadIdx.x;
#pragma unroll
    for (unsigned k = 0; k < EACH; k++) {
        const unsigned long long i = first + k * blockDim.x;
        if (i < n) f(i);
    }
}

// Element `i` of `x (n / c, c)` with the bias `(c)` of its column, which may be null.
template <class T>
__device__ __forceinline__ float biased(const T *x, const float *bias, unsigned long long i, unsigned c) {
    return bias ? to_float(x[i]) + bias[i % c] : to_float(x[i]);
}

// Calls `f(row, column, sum)` for the 32 columns of `(n, c)` that are this block's in y, each warp of eight for every eighth of the
// `rows` rows that are its in x. What `f` adds to the `N` sums is added up by columns, in a fixed order, to `sums (blocks, N, c)`.
template <unsigned N, class F>
__device__ __forceinline__ void each_with_sums(float *sums, unsigned n, unsigned c, unsigned rows, F f) {
    __shared__ float scratch[N][8][32];
    const unsigned warp = threadIdx.x / 32, column = blockIdx.y * 32 + threadIdx.x % 32;
    const unsigned long long first = (unsigned long long)blockIdx.x * rows;
    float sum[N] = {};
    if (column < c)
        for (unsigned long long row = first + warp; row < first + rows && row < n; row += 8) f(row, column, sum);
#pragma unroll
    for (unsigned k = 0; k < N; k++) {
        const float all = sum_over_warps(sum[k], scratch[k]);
        if (warp == 0 && column < c) sums[((unsigned long long)blockIdx.x * N + k) * c + column] = all;
    }
}

// The gradient of `x (n, c)`, `dx`, from that of its activation by `A` with a bias `(c)`; the sums of its columns, in f32 before they
// are rounded, are the gradient of the bias.
template <class A, class T>
__device__ __forceinline__ void bias_backward(const T *x, const float *bias, const T *dy, T *dx, float *sums, unsigned n, unsigned c,
                                              unsigned rows) {
    each_with_sums<1>(sums, n, c, rows, [=](unsigned long long row, unsigned column, float *sum) {
        const unsigned long long i = row * c + column;
        const float d = to_float(dy[i]) * A::derivative(to_float(x[i]) + bias[column]);
        dx[i] = from_float<T>(d);
        sum[0] += d;
    });
}

// `silu(gate) * up` and its derivatives.
struct Gated {
    float value, by_gate, by_up;
    __device__ __forceinline__ Gated(float gate, float up) {
        const float s = sigmoid(gate);
        by_up = gate * s;
        value = by_up * up;
        by_gate = up * (s + by_up * (1.0f - s));
    }
};

// Of rows of gates and what they gate, `x (n / h, 2 h)` with a bias `(2 h)` or null, to `y (n / h, h)`.
template <class T>
__device__ __forceinline__ void swiglu_forward(const T *x, const float *bias, T *y, unsigned long long n, unsigned h) {
    each(n, [=](unsigned long long i) {
        const unsigned long long gate = i / h * 2 * h + i % h;
        y[i] = from_float<T>(Gated(biased(x, bias, gate, 2 * h), biased(x, bias, gate + h, 2 * h)).value);
    });
}

// `dy (n / h, h)` to `dx (n / h, 2 h)`.
template <class T>
__device__ __forceinline__ void swiglu_backward(const T *x, const T *dy, T *dx, unsigned long long n, unsigned h) {
    each(n, [=](unsigned long long i) {
        const unsigned long long gate = i / h * 2 * h + i % h;
        const Gated gated(to_float(x[gate]), to_float(x[gate + h]));
        dx[gate] = from_float<T>(to_float(dy[i]) * gated.by_gate);
        dx[gate + h] = from_float<T>(to_float(dy[i]) * gated.by_up);
    });
}

// [`bias_backward`] of SwiGLU: `x (n, 2 h)`, `bias (2 h)`, `dy (n, h)`.
template <class T>
__device__ __forceinline__ void swiglu_bias_backward(const T *x, const float *bias, const T *dy, T *dx, float *sums, unsigned n,
                                                     unsigned h, unsigned rows) {
    each_with_sums<2>(sums, n, h, rows, [=](unsigned long long row, unsigned column, float *sum) {
        const unsigned long long gate = row * 2 * h + column;
        const Gated gated(to_float(x[gate]) + bias[column], to_float(x[gate + h]) + bias[h + column]);
        const float d = to_float(dy[row * h + column]), d_gate = d * gated.by_gate, d_up = d * gated.by_up;
        dx[gate] = from_float<T>(d_gate);
        dx[gate + h] = from_float<T>(d_up);
        sum[0] += d_gate;
        sum[1] += d_up;
    });
}

// `y = before + x * mask`, the mask that of `dropout` from its first element on (none where its threshold is 0), without `before`
// where it is null. The gradient of `x` is the same of `dy`, without a sum.
template <class X, class Y>
__device__ __forceinline__ void masked_sum(const X *x, const float *before, Y *y, unsigned long long n, const Dropout &dropout) {
    // The 1024 elements of a block lie within one block of the hash.
    const unsigned long long first = (unsigned long long)blockIdx.x * blockDim.x * EACH;
    const HashPolynomial polynomial = hash_polynomial(dropout, first >> HASH_BLOCK_BITS);
    each(n, [=](unsigned long long i) {
        const float value = masked(dropout, polynomial, to_float(x[i]), i);
        y[i] = from_float<Y>(before ? before[i] + value : value);
    });
}

// Matrices in one launch, rounded to `T`. A row of `table` is a matrix: the address of its floats, the first block, its elements, and
// the place of the first in `y`; a block has 1024 elements of one matrix.
template <class T>
__device__ __forceinline__ void round_matrices(const unsigned long long *table, unsigned matrices, T *y) {
    unsigned low = 0, high = matrices;
    while (high - low > 1) {
        const unsigned middle = (low + high) / 2;
        if (table[4 * middle + 1] <= blockIdx.x) low = middle;
        else high = middle;
    }
    const unsigned long long *matrix = table + 4 * low;
    const float *x = reinterpret_cast<const float *>(matrix[0]);
    const unsigned long long first = (blockIdx.x - matrix[1]) * blockDim.x * EACH + threadIdx.x;
#pragma unroll
    for (unsigned k = 0; k < EACH; k++) {
        const unsigned long long i = first + k * blockDim.x;
        if (i < matrix[2]) y[matrix[3] + i] = from_float<T>(x[i]);
    }
}

}  // namespace

// Without a bias the backward pass has no sums, any elements are a block's, and the columns, which SwiGLU has to know, do not matter.
#define ACTIVATION(NAME, TYPE, T)                                                                                          \
    extern "C" __global__ void NAME##_forward_##T(const T *x, const float *bias, T *y, unsigned long long n, unsigned c) { \
        each(n, [=](unsigned long long i) { y[i] = from_float<T>(TYPE::value(biased(x, bias, i, c))); });                  \
    }                                                                                                                      \
    extern "C" __global__ void NAME##_backward_##T(const T *x, const T *dy, T *dx, unsigned long long n, unsigned) {       \
        each(n, [=](unsigned long long i) { dx[i] = from_float<T>(to_float(dy[i]) * TYPE::derivative(to_float(x[i]))); }); \
    }                                                                                                                      \
    extern "C" __global__ void NAME##_bias_backward_##T(const T *x, const float *bias, const T *dy, T *dx, float *sums,    \
                                                        unsigned n, unsigned c, unsigned rows) {                           \
        bias_backward<TYPE>(x, bias, dy, dx, sums, n, c, rows);                                                            \
    }

#define MASKED_SUM(NAME, X, Y)                                                                                         \
    extern "C" __global__ void NAME(const X *x, const float *before, Y *y, unsigned long long n, unsigned key0,        \
                                    unsigned key1, unsigned word2, unsigned word3, unsigned threshold, float scale) {  \
        masked_sum(x, before, y, n, {key0, key1, word2, word3, threshold, scale});                                     \
    }

// The last is `x (n / c, c)` plus `bias (c)`.
#define ELEMENTWISE(T)                                                                                                      \
    ACTIVATION(gelu, Gelu, T)                                                                                               \
    ACTIVATION(gelu_new, GeluNew, T)                                                                                        \
    ACTIVATION(relu2, Relu2, T)                                                                                             \
    extern "C" __global__ void swiglu_forward_##T(const T *x, const float *bias, T *y, unsigned long long n, unsigned h) {  \
        swiglu_forward(x, bias, y, n, h);                                                                                   \
    }                                                                                                                       \
    extern "C" __global__ void swiglu_backward_##T(const T *x, const T *dy, T *dx, unsigned long long n, unsigned h) {      \
        swiglu_backward(x, dy, dx, n, h);                                                                                   \
    }                                                                                                                       \
    extern "C" __global__ void swiglu_bias_backward_##T(const T *x, const float *bias, const T *dy, T *dx, float *sums,     \
                                                        unsigned n, unsigned h, unsigned rows) {                            \
        swiglu_bias_backward(x, bias, dy, dx, sums, n, h, rows);                                                            \
    }                                                                                                                       \
    extern "C" __global__ void add_bias_##T(const T *x, const float *bias, T *y, unsigned long long n, unsigned c) {        \
        each(n, [=](unsigned long long i) { y[i] = from_float<T>(biased(x, bias, i, c)); });                                \
    }

ELEMENTWISE(float)
ELEMENTWISE(bf16)
ELEMENTWISE(f16)
MASKED_SUM(masked_sum_float_float, float, float)
MASKED_SUM(masked_sum_bf16_float, bf16, float)
MASKED_SUM(masked_sum_float_bf16, float, bf16)
MASKED_SUM(masked_sum_f16_float, f16, float)
MASKED_SUM(masked_sum_float_f16, float, f16)

extern "C" __global__ void round_matrices_bf16(const unsigned long long *table, unsigned matrices, bf16 *y) {
    round_matrices(table, matrices, y);
}
extern "C" __global__ void round_matrices_f16(const unsigned long long *table, unsigned matrices, f16 *y) {
    round_matrices(table, matrices, y);
}
