// The cross-entropy of rows of logits, and its gradient in their place. A block takes a row, of which a thread has 16 bytes at a time
// where rows begin at 16 bytes.
#include "element.cuh"
#include "reduce.cuh"

namespace {

constexpr unsigned THREADS = 256;

// The maximum and the sum of a value of each thread over the block, in every thread.
__device__ __forceinline__ float block_max(float x, float *scratch) {
    x = warp_max(x);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    float all = scratch[0];
    for (unsigned k = 1; k < THREADS / 32; k++) all = fmaxf(all, scratch[k]);
    __syncthreads();
    return all;
}

__device__ __forceinline__ float block_sum(float x, float *scratch) {
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    float all = scratch[0];
    for (unsigned k = 1; k < THREADS / 32; k++) all += scratch[k];
    __syncthreads();
    return all;
}

__device__ __forceinline__ float capped(float x, float cap) { return cap > 0.0f ? cap * tanhf(x / cap) : x; }

// Of values in 16 bits, the exponential of the processor's own power of two is exact enough, and a third of the instructions.
template <class T>
__device__ __forceinline__ float exponential(float x) {
    if constexpr (sizeof(T) == 4) return expf(x);
    return exp2f(x * 1.44269504f);
}

// `N` elements of a row beside each other: with `N` above 1, 16 bytes and one access.
template <class T, int N>
struct Elements {
    T x[N];

    __device__ __forceinline__ void load(const T *from) {
        if constexpr (N == 1) x[0] = *from;
        else *reinterpret_cast<uint4 *>(x) = *reinterpret_cast<const uint4 *>(from);
    }
    __device__ __forceinline__ void store(T *to) const {
        if constexpr (N == 1) *to = x[0];
        else *reinterpret_cast<uint4 *>(to) = *reinterpret_cast<const uint4 *>(x);
    }
};

// Elements of 16 bytes.
template <class T>
constexpr int WIDE = 16 / sizeof(T);

// The maximum of the `v` logits of a row, capped, and the sum of the exponentials of what they are below it, over the elements of a
// thread. A NaN comes through by the sum.
template <class T, int N>
__device__ __forceinline__ void max_and_sum(const T *logits, unsigned v, float cap, float &max, float &sum) {
    max = -INFINITY, sum = 0.0f;
    for (unsigned i = threadIdx.x * N; i < v; i += THREADS * N) {
        alignas(16) Elements<T, N> elements;
        elements.load(logits + i);
        float x[N], most = max;
        bool nan = false;
#pragma unroll
        for (int k = 0; k < N; k++) {
            x[k] = i + k < v ? capped(to_float(elements.x[k]), cap) : -INFINITY;
            most = fmaxf(most, x[k]);
            nan |= x[k] != x[k];
        }
        if (most > max) {
            sum *= exponential<T>(max - most);
            max = most;
        }
        if (nan) sum = NAN;
        if (max == -INFINITY) continue;  // no difference of infinities
#pragma unroll
        for (int k = 0; k < N; k++) sum += exponential<T>(x[k] - max);
    }
}

// The logits of rows whose `targets (n)` are below `v` to `losses (n)` and `log_sums (n)`, the logarithms of the sums of their
// exponentials. They are the first `v` of the `row` elements of each row. A `cap` of 0 is none.
template <class T>
__device__ __forceinline__ void forward(const T *logits, const unsigned *targets, float *losses, float *log_sums, unsigned v, unsigned row,
                                        float cap) {
    __shared__ float scratch[THREADS / 32];
    const unsigned n = blockIdx.x;
    logits += (unsigned long long)n * row;
    float most, sum;
    if (row % WIDE<T> == 0) max_and_sum<T, WIDE<T>>(logits, v, cap, most, sum);
    else max_and_sum<T, 1>(logits, v, cap, most, sum);
    const float max = block_max(most, scratch);
    // A thread without logits has summed nothing.
    sum = block_sum(most == -INFINITY ? sum : sum * exponential<T>(most - max), scratch);
    if (threadIdx.x == 0) {
        const float log_sum = logf(sum);
        log_sums[n] = max + log_sum;
        losses[n] = log_sum - (capped(to_float(logits[targets[n]]), cap) - max);
    }
}

template <class T, int N>
__device__ __forceinline__ void gradient(T *logits, unsigned target, float log_sum, float d_loss, unsigned v, unsigned row, float cap) {
    for (unsigned i = threadIdx.x * N; i < row; i += THREADS * N) {
        alignas(16) Elements<T, N> elements;
        elements.load(logits + i);
#pragma unroll
        for (int k = 0; k < N; k++) {
            const float x = capped(to_float(elements.x[k]), cap);
            float d = (exponential<T>(x - log_sum) - (i + k == target ? 1.0f : 0.0f)) * d_loss;
            if (cap > 0.0f) d *= 1.0f - (x / cap) * (x / cap);
            elements.x[k] = from_float<T>(i + k < v ? d : 0.0f);
        }
        elements.store(logits + i);
    }
}

// Overwrites the logits, as above, with their gradient, `(p - 1 at the target) d_losses`, times the derivative of the cap, and what is
// behind them in a row with zeros.
template <class T>
__device__ __forceinline__ void backward(T *logits, const unsigned *targets, const float *log_sums, const float *d_losses, unsigned v,
                                         unsigned row, float cap) {
    const unsigned n = blockIdx.x;
    logits += (unsigned long long)n * row;
    if (row % WIDE<T> == 0) gradient<T, WIDE<T>>(logits, targets[n], log_sums[n], d_losses[n], v, row, cap);
    else gradient<T, 1>(logits, targets[n], log_sums[n], d_losses[n], v, row, cap);
}

}  // namespace

#define CROSS_ENTROPY(T)                                                                                                           \
    extern "C" __global__ void cross_entropy_forward_##T(const T *logits, const unsigned *targets, float *losses, float *log_sums, \
                                                         unsigned v, unsigned row, float cap) {                                    \
        forward(logits, targets, losses, log_sums, v, row, cap);                                                                   \
    }                                                                                                                              \
    extern "C" __global__ void cross_entropy_backward_##T(T *logits, const unsigned *targets, const float *log_sums,               \
                                                          const float *d_losses, unsigned v, unsigned row, float cap) {            \
        backward(logits, targets, log_sums, d_losses, v, row, cap);                                                                \
    }

CROSS_ENTROPY(float)
CROSS_ENTROPY(bf16)
CROSS_ENTROPY(f16)
