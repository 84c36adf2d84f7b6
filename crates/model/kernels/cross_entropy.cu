// The cross-entropy of rows of logits, and its gradient in their place. A block takes a row.
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

// The logits `(n, v)` of rows whose `targets (n)` are below `v` to `losses (n)` and `log_sums (n)`, the logarithms of the sums of
// their exponentials. A `cap` of 0 is none.
template <class T>
__device__ __forceinline__ void forward(const T *logits, const unsigned *targets, float *losses, float *log_sums, unsigned v, float cap) {
    __shared__ float scratch[THREADS / 32];
    const unsigned long long row = blockIdx.x;
    logits += row * v;
    float max = -INFINITY;
    bool nan = false;
    for (unsigned i = threadIdx.x; i < v; i += THREADS) {
        const float x = to_float(logits[i]);
        max = fmaxf(max, x);
        nan |= x != x;
    }
    max = capped(block_max(max, scratch), cap);
    float sum = nan ? NAN : 0.0f;
    for (unsigned i = threadIdx.x; i < v; i += THREADS) sum += expf(capped(to_float(logits[i]), cap) - max);
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) {
        const float log_sum = logf(sum);
        log_sums[row] = max + log_sum;
        losses[row] = log_sum - (capped(to_float(logits[targets[row]]), cap) - max);
    }
}

// Overwrites the logits with their gradient, `(p - 1 at the target) d_losses`, times the derivative of the cap.
template <class T>
__device__ __forceinline__ void backward(T *logits, const unsigned *targets, const float *log_sums, const float *d_losses, unsigned v,
                                         float cap) {
    const unsigned long long row = blockIdx.x;
    const unsigned target = targets[row];
    const float log_sum = log_sums[row], d_loss = d_losses[row];
    logits += row * v;
    for (unsigned i = threadIdx.x; i < v; i += blockDim.x) {
        const float x = capped(to_float(logits[i]), cap);
        float d = (expf(x - log_sum) - (i == target ? 1.0f : 0.0f)) * d_loss;
        if (cap > 0.0f) d *= 1.0f - (x / cap) * (x / cap);
        logits[i] = from_float<T>(d);
    }
}

}  // namespace

#define CROSS_ENTROPY(T)                                                                                                           \
    extern "C" __global__ void cross_entropy_forward_##T(const T *logits, const unsigned *targets, float *losses, float *log_sums, \
                                                         unsigned v, float cap) {                                                  \
        forward(logits, targets, losses, log_sums, v, cap);                                                                        \
    }                                                                                                                              \
    extern "C" __global__ void cross_entropy_backward_##T(T *logits, const unsigned *targets, const float *log_sums,               \
                                                          const float *d_losses, unsigned v, float cap) {                          \
        backward(logits, targets, log_sums, d_losses, v, cap);                                                                     \
    }

CROSS_ENTROPY(float)
CROSS_ENTROPY(bf16)
CROSS_ENTROPY(f16)
