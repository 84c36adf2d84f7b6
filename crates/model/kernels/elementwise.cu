// Activations, SwiGLU, dropout, residual sums and biases, forward and backward. A block takes 1024 consecutive elements, four a thread.
#include "activation.cuh"
#include "dropout.cuh"
#include "element.cuh"

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


// `silu(gate) * up` of rows of gates and what they gate, `x (n / h, 2 h)` to `y (n / h, h)`.
template <class T>
__device__ __forceinline__ void swiglu_forward(const T *x, T *y, unsigned long long n, unsigned h) {
    each(n, [=](unsigned long long i) {
        const T *row = x + i / h * 2 * h;
        const float gate = to_float(row[i % h]), up = to_float(row[h + i % h]);
        y[i] = from_float<T>(gate * sigmoid(gate) * up);
    });
}

// `dy (n / h, h)` to `dx (n / h, 2 h)`.
template <class T>
__device__ __forceinline__ void swiglu_backward(const T *x, const T *dy, T *dx, unsigned long long n, unsigned h) {
    each(n, [=](unsigned long long i) {
        const unsigned long long row = i / h * 2 * h, column = i % h;
        const float gate = to_float(x[row + column]), up = to_float(x[row + h + column]), s = sigmoid(gate), d = to_float(dy[i]);
        dx[row + column] = from_float<T>(d * up * (s + gate * s * (1.0f - s)));
        dx[row + h + column] = from_float<T>(d * gate * s);
    });
}

// `y = before + x * mask`, the mask that of `dropout` from its first element on (none where its threshold is 0), without `before`
// where it is null. What is dropped is 0, a NaN too. The gradient of `x` is the same of `dy`, without a sum.
template <class X, class Y>
__device__ __forceinline__ void masked_sum(const X *x, const float *before, Y *y, unsigned long long n, const Dropout &dropout) {
    // The 1024 elements of a block lie within one block of the hash.
    const unsigned long long first = (unsigned long long)blockIdx.x * blockDim.x * EACH;
    const HashPolynomial polynomial = hash_polynomial(dropout, first >> HASH_BLOCK_BITS);
    each(n, [=](unsigned long long i) {
        const unsigned in_block = (unsigned)i & ((1u << HASH_BLOCK_BITS) - 1);
        const bool kept = dropout.threshold == 0 || is_kept(dropout, polynomial, in_block);
        const float value = kept ? to_float(x[i]) * dropout.scale : 0.0f;
        y[i] = from_float<Y>(before ? before[i] + value : value);
    });
}

}  // namespace

#define ACTIVATION(NAME, TYPE, T)                                                                                      \
    extern "C" __global__ void NAME##_forward_##T(const T *x, T *y, unsigned long long n) {                            \
        each(n, [=](unsigned long long i) { y[i] = from_float<T>(TYPE::value(to_float(x[i]))); });                     \
    }                                                                                                                  \
    extern "C" __global__ void NAME##_backward_##T(const T *x, const T *dy, T *dx, unsigned long long n) {             \
        each(n, [=](unsigned long long i) { dx[i] = from_float<T>(to_float(dy[i]) * TYPE::derivative(to_float(x[i]))); }); \
    }

#define MASKED_SUM(NAME, X, Y)                                                                                         \
    extern "C" __global__ void NAME(const X *x, const float *before, Y *y, unsigned long long n, unsigned key0,        \
                                    unsigned key1, unsigned word2, unsigned word3, unsigned threshold, float scale) {  \
        masked_sum(x, before, y, n, {key0, key1, word2, word3, threshold, scale});                                     \
    }

// `x (n / c, c)` plus `bias (c)`.
#define ELEMENTWISE(T)                                                                                                 \
    ACTIVATION(gelu, Gelu, T)                                                                                          \
    ACTIVATION(gelu_new, GeluNew, T)                                                                                   \
    ACTIVATION(relu2, Relu2, T)                                                                                        \
    extern "C" __global__ void swiglu_forward_##T(const T *x, T *y, unsigned long long n, unsigned h) {                \
        swiglu_forward(x, y, n, h);                                                                                    \
    }                                                                                                                  \
    extern "C" __global__ void swiglu_backward_##T(const T *x, const T *dy, T *dx, unsigned long long n, unsigned h) { \
        swiglu_backward(x, dy, dx, n, h);                                                                              \
    }                                                                                                                  \
    extern "C" __global__ void add_bias_##T(const T *x, const float *bias, T *y, unsigned long long n, unsigned c) {   \
        each(n, [=](unsigned long long i) { y[i] = from_float<T>(to_float(x[i]) + bias[i % c]); });                    \
    }

ELEMENTWISE(float)
ELEMENTWISE(bf16)
MASKED_SUM(masked_sum_float_float, float, float)
MASKED_SUM(masked_sum_bf16_float, bf16, float)
MASKED_SUM(masked_sum_float_bf16, float, bf16)

// Matrices in one launch, rounded to bfloat16. A row of `table` is a matrix: the address of its floats, the first block, its
// elements, and the place of the first in `y`; a block has 1024 elements of one matrix.
extern "C" __global__ void round_matrices(const unsigned long long *table, unsigned matrices, bf16 *y) {
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
        if (i < matrix[2]) y[matrix[3] + i] = __float2bfloat16_rn(x[i]);
    }
}
