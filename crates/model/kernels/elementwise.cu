// Activations and SwiGLU, with the bias before them or without, dropout, residual sums and biases, forward and backward. A block takes
// 2048 consecutive elements, eight a thread; where it sums gradients of a bias, 32 columns of some rows.
#include "activation.cuh"
#include "dropout.cuh"
#include "element.cuh"
#include "reduce.cuh"
#include "vectors.cuh"

namespace {

constexpr int EACH = 8;

// A number of elements that is known to the compiler.
template <int N>
struct Width {
    static constexpr int value = N;
};

// Calls `f(Width, i)` for this thread's eight of `n` elements in the block of elements `block`: for all at once, or for one at a time
// at the end, and where it is not given that eights are `whole`.
template <class F>
__device__ __forceinline__ void each(unsigned long long n, unsigned long long block, bool whole, F f) {
    const unsigned long long first = (block * blockDim.x + threadIdx.x) * EACH;
    if (whole && first + EACH <= n) {
        f(Width<EACH>(), first);
    } else {
        for (unsigned long long i = first; i < first + EACH && i < n; i++) f(Width<1>(), i);
    }
}

// Whether eights from these addresses on can be loaded at once; null can.
template <class... P>
__device__ __forceinline__ bool aligned(const P *...addresses) {
    return ((reinterpret_cast<unsigned long long>(addresses) | ...) & 15) == 0;
}

// Eights of `x (n / c, c)` from element `i` on, with the bias `(c)` of their columns, which may be null.
template <int N, class T>
__device__ __forceinline__ void load_biased(float (&to)[N], const T *x, const float *bias, unsigned long long i, unsigned c) {
    load<N>(to, x + i);
    if (bias) {
        float add[N];
        load<N>(add, bias + i % c);
#pragma unroll
        for (int k = 0; k < N; k++) to[k] += add[k];
    }
}

// `f(x + bias)` of each element of `x (n / c, c)`.
template <class T, class F>
__device__ __forceinline__ void map(const T *x, const float *bias, T *y, unsigned long long n, unsigned c, F f) {
    each(n, blockIdx.x, aligned(x, bias, y) && (!bias || c % EACH == 0), [=](auto width, unsigned long long i) {
        float z[width.value];
        load_biased(z, x, bias, i, c);
#pragma unroll
        for (int k = 0; k < width.value; k++) z[k] = f(z[k]);
        store(y + i, z);
    });
}

// The gradient of `x`, from that of its activation by `A`.
template <class A, class T>
__device__ __forceinline__ void backward(const T *x, const T *dy, T *dx, unsigned long long n) {
    each(n, blockIdx.x, aligned(x, dy, dx), [=](auto width, unsigned long long i) {
        float z[width.value], d[width.value];
        load(z, x + i);
        load(d, dy + i);
#pragma unroll
        for (int k = 0; k < width.value; k++) d[k] *= A::derivative(z[k]);
        store(dx + i, d);
    });
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
    each(n, blockIdx.x, aligned(x, bias, y) && h % EACH == 0, [=](auto width, unsigned long long i) {
        const unsigned long long at = i / h * 2 * h + i % h;
        float gate[width.value], up[width.value];
        load_biased(gate, x, bias, at, 2 * h);
        load_biased(up, x, bias, at + h, 2 * h);
#pragma unroll
        for (int k = 0; k < width.value; k++) gate[k] = Gated(gate[k], up[k]).value;
        store(y + i, gate);
    });
}

// `dy (n / h, h)` to `dx (n / h, 2 h)`.
template <class T>
__device__ __forceinline__ void swiglu_backward(const T *x, const T *dy, T *dx, unsigned long long n, unsigned h) {
    each(n, blockIdx.x, aligned(x, dy, dx) && h % EACH == 0, [=](auto width, unsigned long long i) {
        const unsigned long long at = i / h * 2 * h + i % h;
        float gate[width.value], up[width.value], d[width.value];
        load(gate, x + at);
        load(up, x + at + h);
        load(d, dy + i);
#pragma unroll
        for (int k = 0; k < width.value; k++) {
            const Gated gated(gate[k], up[k]);
            gate[k] = d[k] * gated.by_gate;
            up[k] = d[k] * gated.by_up;
        }
        store(dx + at, gate);
        store(dx + at + h, up);
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
    // The 2048 elements of a block lie within one block of the hash.
    const unsigned long long first = (unsigned long long)blockIdx.x * blockDim.x * EACH;
    const HashPolynomial polynomial = hash_polynomial(dropout, first >> HASH_BLOCK_BITS);
    each(n, blockIdx.x, aligned(x, before, y), [=](auto width, unsigned long long i) {
        float z[width.value], sum[width.value] = {};
        load(z, x + i);
        if (before) load(sum, before + i);
#pragma unroll
        for (int k = 0; k < width.value; k++) sum[k] += masked(dropout, polynomial, z[k], i + k);
        store(y + i, sum);
    });
}

// The embeddings of tokens, `tokens (n / c)`, rows of `table (V, c)`, and of their positions, rows of `positions (>= t, c)` or null,
// times the mask of `dropout`: `y (n / c, c)`. Every `t` tokens begin at the first position.
__device__ __forceinline__ void embed_tokens(const unsigned *tokens, const float *table, const float *positions, float *y,
                                      unsigned long long n, unsigned c, unsigned t, const Dropout &dropout) {
    const unsigned long long first = (unsigned long long)blockIdx.x * blockDim.x * EACH;
    const HashPolynomial polynomial = hash_polynomial(dropout, first >> HASH_BLOCK_BITS);
    each(n, blockIdx.x, aligned(table, positions, y) && c % EACH == 0, [=](auto width, unsigned long long i) {
        const unsigned long long row = i / c, column = i % c;
        float z[width.value], position[width.value] = {};
        load(z, table + (unsigned long long)tokens[row] * c + column);
        if (positions) load(position, positions + row % t * c + column);
#pragma unroll
        for (int k = 0; k < width.value; k++) z[k] = masked(dropout, polynomial, z[k] + position[k], i + k);
        store(y + i, z);
    });
}

// Matrices in one launch, rounded to `T`. A row of `table` is a matrix: the address of its floats, the first block, its elements, and
// the place of the first in `y`; a block has 2048 elements of one matrix.
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
    T *const to = y + matrix[3];
    each(matrix[2], blockIdx.x - matrix[1], aligned(x, to), [=](auto width, unsigned long long i) {
        float z[width.value];
        load(z, x + i);
        store(to + i, z);
    });
}

}  // namespace

// Without a bias the backward pass has no sums, any elements are a block's, and the columns, which SwiGLU has to know, do not matter.
#define ACTIVATION(NAME, TYPE, T)                                                                                          \
    extern "C" __global__ void NAME##_forward_##T(const T *x, const float *bias, T *y, unsigned long long n, unsigned c) { \
        map(x, bias, y, n, c, [](float z) { return TYPE::value(z); });                                                     \
    }                                                                                                                      \
    extern "C" __global__ void NAME##_backward_##T(const T *x, const T *dy, T *dx, unsigned long long n, unsigned) {       \
        backward<TYPE>(x, dy, dx, n);                                                                                      \
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
        map(x, bias, y, n, c, [](float z) { return z; });                                                                   \
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

extern "C" __global__ void embed(const unsigned *tokens, const float *table, const float *positions, float *y, unsigned long long n,
                                 unsigned c, unsigned t, unsigned key0, unsigned key1, unsigned word2, unsigned word3,
                                 unsigned threshold, float scale) {
    embed_tokens(tokens, table, positions, y, n, c, t, {key0, key1, word2, word3, threshold, scale});
}

// The gradient of rows of positions `y (n)` from that of the sums `dy (b, m)`, `m <= n`: sums over `b` in order, and zeros behind them.
extern "C" __global__ void sum_batch(const float *dy, float *y, unsigned long long n, unsigned long long m, unsigned b) {
    const unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float sum = 0.0f;
    if (i < m) {
#pragma unroll 16
        for (unsigned k = 0; k < b; k++) sum += __ldg(dy + k * m + i);
    }
    y[i] = sum;
}
