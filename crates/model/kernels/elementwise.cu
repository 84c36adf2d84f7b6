// Activations, SwiGLU and dropout, forward and backward. A block takes 1024 consecutive elements, four a thread.
#include "activation.cuh"
#include "dropout.cuh"

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

}  // namespace

#define ACTIVATION(NAME, TYPE)                                                                                  \
    extern "C" __global__ void NAME##_forward(const float *x, float *y, unsigned long long n) {                 \
        each(n, [=](unsigned long long i) { y[i] = TYPE::value(x[i]); });                                       \
    }                                                                                                           \
    extern "C" __global__ void NAME##_backward(const float *x, const float *dy, float *dx, unsigned long long n) { \
        each(n, [=](unsigned long long i) { dx[i] = dy[i] * TYPE::derivative(x[i]); });                         \
    }

ACTIVATION(gelu, Gelu)
ACTIVATION(gelu_new, GeluNew)
ACTIVATION(relu2, Relu2)

// `silu(gate) * up` of rows of gates and what they gate, `x (n / h, 2 h)` to `y (n / h, h)`.
extern "C" __global__ void swiglu_forward(const float *x, float *y, unsigned long long n, unsigned h) {
    each(n, [=](unsigned long long i) {
        const float *row = x + i / h * 2 * h;
        const float gate = row[i % h], up = row[h + i % h];
        y[i] = gate * sigmoid(gate) * up;
    });
}

// `dy (n / h, h)` to `dx (n / h, 2 h)`.
extern "C" __global__ void swiglu_backward(const float *x, const float *dy, float *dx, unsigned long long n, unsigned h) {
    each(n, [=](unsigned long long i) {
        const unsigned long long row = i / h * 2 * h, column = i % h;
        const float gate = x[row + column], up = x[row + h + column], s = sigmoid(gate);
        dx[row + column] = dy[i] * up * (s + gate * s * (1.0f - s));
        dx[row + h + column] = dy[i] * gate * s;
    });
}

// `y = x * mask`, the mask that of `dropout` from its first element on. The backward pass is the same, of `dy`.
extern "C" __global__ void dropout(const float *x, float *y, unsigned long long n, unsigned key0, unsigned key1, unsigned word2,
                                   unsigned word3, unsigned threshold, float scale) {
    const Dropout dropout = {key0, key1, word2, word3, threshold, scale};
    // The 1024 elements of a block lie within one block of the hash.
    const unsigned long long first = (unsigned long long)blockIdx.x * blockDim.x * EACH;
    const HashPolynomial polynomial = hash_polynomial(dropout, first >> HASH_BLOCK_BITS);
    each(n, [=](unsigned long long i) {
        const unsigned in_block = (unsigned)i & ((1u << HASH_BLOCK_BITS) - 1);
        y[i] = is_kept(dropout, polynomial, in_block) ? x[i] * scale : 0.0f;
    });
}
