// Attention of one new position of each row to the cached ones and itself, in one launch: the norms and the rotation of its query
// and key, the writing of its key and value, and the attention, split over positions (Dao et al., 2023, "Flash-Decoding for
// long-context inference").
#include "row_stats.cuh"

namespace {

// The positions of a split, a thread each, and the most channels of a head.
constexpr unsigned THREADS = 128, SPLIT = THREADS, HEAD_SIZE = 128, WARPS = THREADS / 32;

// The threads that compute a score, and the scores that a block computes at a time.
constexpr unsigned SHARERS = 8, SLOTS = THREADS / SHARERS;

// `VEC` consecutive numbers; four are one load.
template <int VEC>
__device__ __forceinline__ void load(float (&to)[VEC], const float *from) {
    if constexpr (VEC == 4) {
        const float4 x = *reinterpret_cast<const float4 *>(from);
        to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
    } else {
        to[0] = *from;
    }
}

__device__ __forceinline__ float block_max(float x, float *of_warps) {
    x = warp_max(x);
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = x;
    __syncthreads();
    for (unsigned i = 0; i < WARPS; i++) x = fmaxf(x, of_warps[i]);
    __syncthreads();
    return x;
}

__device__ __forceinline__ float block_sum(float x, float *of_warps) {
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0.0f;
    for (unsigned i = 0; i < WARPS; i++) sum += of_warps[i];
    __syncthreads();
    return sum;
}

// A query or key: RMSNorm with a weight `(hs)`, if there is one. One warp's.
__device__ __forceinline__ void norm_head(float *x, const float *weight, unsigned hs, unsigned lane, float eps) {
    if (!weight) return;
    const Stats s = row_stats<true>(x, hs, lane, eps);
    for (unsigned i = lane; i < hs; i += 32) x[i] = x[i] * s.rstd * weight[i];
}

// Rotates channels `i` and `i + hs / 2`, for the thread's `i`, by the angles whose cosines and sines are given, `(hs / 2)`.
__device__ __forceinline__ void rotate(float *x, const float *cosines, const float *sines, unsigned i, unsigned pairs) {
    const float low = x[i], high = x[pairs + i], c = cosines[i], s = sines[i];
    x[i] = low * c - high * s;
    x[pairs + i] = high * c + low * s;
}

template <int VEC>
__device__ __forceinline__ void attention(const float *qkv, const float *q_norm, const float *k_norm, const float *cosines,
                                          const float *sines, float *keys, float *values, float *partials, unsigned *arrived,
                                          float *y, unsigned n_kv_head, unsigned hs, unsigned block_size, unsigned past,
                                          float scale, float eps) {
    __shared__ __align__(16) float query[HEAD_SIZE], key[HEAD_SIZE], outputs[THREADS * VEC];
    __shared__ float scores[SPLIT], of_warps[WARPS];
    __shared__ bool last;
    const unsigned tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
    const unsigned split = blockIdx.x, splits = gridDim.x, head = blockIdx.y, n_head = gridDim.y;
    const unsigned long long row = blockIdx.z;
    const unsigned group = n_head / n_kv_head, kv_head = head / group;
    const float *const new_query = qkv + row * (n_head + 2 * n_kv_head) * hs + head * hs;
    const float *const new_key = qkv + (row * (n_head + 2 * n_kv_head) + n_head + kv_head) * hs;
    const float *const new_value = new_key + n_kv_head * hs;
    keys += (row * n_kv_head + kv_head) * block_size * hs;
    values += (row * n_kv_head + kv_head) * block_size * hs;

    for (unsigned i = tid; i < hs; i += THREADS) {
        query[i] = new_query[i];
        key[i] = new_key[i];
    }
    __syncthreads();
    if (warp == 0) norm_head(query, q_norm, hs, lane, eps);
    if (warp == 1) norm_head(key, k_norm, hs, lane, eps);
    __syncthreads();
    if (cosines) {
        const unsigned pairs = hs / 2;
        if (tid < pairs) {
            rotate(query, cosines + past * pairs, sines + past * pairs, tid, pairs);
        } else if (tid < 2 * pairs) {
            rotate(key, cosines + past * pairs, sines + past * pairs, tid - pairs, pairs);
        }
        __syncthreads();
    }
    // Heads that share a key and a value write them once. Nothing reads them here: each block has its own.
    if (split == splits - 1 && head % group == 0) {
        for (unsigned i = tid; i < hs; i += THREADS) {
            keys[(unsigned long long)past * hs + i] = key[i];
            values[(unsigned long long)past * hs + i] = new_value[i];
        }
    }

    // Scores of the split's positions.
    const unsigned first = split * SPLIT, n = min(SPLIT, past + 1 - first);
    const unsigned sharer = tid % SHARERS;
#pragma unroll 4
    for (unsigned i = tid / SHARERS; i < SPLIT; i += SLOTS) {
        const float *const k = first + i < past ? keys + (unsigned long long)(first + i) * hs : key;
        float score = 0.0f;
        if (i < n) {
            for (unsigned d = sharer * VEC; d < hs; d += SHARERS * VEC) {
                float a[VEC], b[VEC];
                load<VEC>(a, query + d);
                load<VEC>(b, k + d);
#pragma unroll
                for (int v = 0; v < VEC; v++) score = fmaf(a[v], b[v], score);
            }
        }
#pragma unroll
        for (unsigned other = SHARERS / 2; other > 0; other /= 2) score += __shfl_xor_sync(0xffffffffu, score, other);
        if (sharer == 0) scores[i] = score * scale;
    }
    __syncthreads();
    const float maximum = block_max(tid < n ? scores[tid] : -INFINITY, of_warps);
    const float weight = tid < n ? expf(scores[tid] - maximum) : 0.0f;
    scores[tid] = weight;
    const float sum = block_sum(weight, of_warps);  // a barrier too

    // Weighted values: threads that have the same channels take turns at the positions.
    const unsigned sharing = hs / VEC, turns = THREADS / sharing, turn = tid / sharing, d = tid % sharing * VEC;
    if (turn < turns) {
        float output[VEC] = {};
#pragma unroll 4
        for (unsigned i = turn; i < n; i += turns) {
            float value[VEC];
            load<VEC>(value, (first + i < past ? values + (unsigned long long)(first + i) * hs : new_value) + d);
#pragma unroll
            for (int v = 0; v < VEC; v++) output[v] = fmaf(scores[i], value[v], output[v]);
        }
#pragma unroll
        for (int v = 0; v < VEC; v++) outputs[turn * hs + d + v] = output[v];
    }
    __syncthreads();
    float output = 0.0f;
    if (tid < hs)
        for (unsigned i = 0; i < turns; i++) output += outputs[i * hs + tid];
    float *const to = y + (row * n_head + head) * hs;
    if (splits == 1) {
        if (tid < hs) to[tid] = output / sum;
        return;
    }

    // Each split leaves its maximum, its sum and its outputs. The block that comes last adds them up, in the order of splits.
    const unsigned width = 2 + hs;
    partials += (row * n_head + head) * splits * width;
    if (tid < hs) partials[split * width + 2 + tid] = output;
    if (tid == 0) {
        partials[split * width] = maximum;
        partials[split * width + 1] = sum;
    }
    __threadfence();
    __syncthreads();
    if (tid == 0) last = atomicAdd(&arrived[row * n_head + head], 1u) == splits - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
    if (tid == 0) arrived[row * n_head + head] = 0;
    float largest = -INFINITY;
    for (unsigned i = 0; i < splits; i++) largest = fmaxf(largest, __ldcg(&partials[i * width]));
    float total = 0.0f, merged = 0.0f;
    for (unsigned i = 0; i < splits; i++) {
        const float factor = expf(__ldcg(&partials[i * width]) - largest);
        total = fmaf(factor, __ldcg(&partials[i * width + 1]), total);
        if (tid < hs) merged = fmaf(factor, __ldcg(&partials[i * width + 2 + tid]), merged);
    }
    if (tid < hs) to[tid] = merged / total;
}

}  // namespace

// Blocks `(splits, n_head, rows)`, a split for every 128 positions of `past + 1`.
//
// `qkv (rows, (nh + 2 nkv) hs)` of the new position; `q_norm`, `k_norm (hs)` or null; `cosines`, `sines (block_size, hs / 2)` or
// null; `keys`, `values (rows, nkv, block_size, hs)`, whose first `past` positions are there and of which the next is written;
// `partials (rows, nh, splits, 2 + hs)`; `arrived (rows, nh)`, zeros before and after; `y (rows, nh hs)`.
#define ATTENTION(NAME, VEC)                                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                                   \
        NAME(const float *qkv, const float *q_norm, const float *k_norm, const float *cosines, const float *sines, float *keys, \
             float *values, float *partials, unsigned *arrived, float *y, unsigned n_kv_head, unsigned hs,                  \
             unsigned block_size, unsigned past, float scale, float eps) {                                                  \
        attention<VEC>(qkv, q_norm, k_norm, cosines, sines, keys, values, partials, arrived, y, n_kv_head, hs, block_size, past, \
                       scale, eps);                                                                                         \
    }

// For head sizes that are multiples of four, and for any.
ATTENTION(decode_attention, 4)
ATTENTION(decode_attention_any, 1)
