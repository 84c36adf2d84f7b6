// What the kernels are told of the rules and of each row, what they keep of a row in memory, and the logits, weights and order of
// its tokens. `crates/sampler/src/device/fused.rs` has the other side of these layouts.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "block.cuh"

// Logits of a row that a block takes at once, and those of them that a thread takes.
constexpr unsigned PER_THREAD = 4, TILE = PER_THREAD * THREADS;
// Bins of a row's logits, by their distance from the largest.
constexpr unsigned BINS = 2 * THREADS;
// No token, no bin, not yet.
constexpr unsigned NONE = 0xffffffffu;
// The weight of the largest logit, 2^40, and a distance at which weights are 0: exp(-28) 2^40 < 1.
constexpr float MAX_WEIGHT = 1099511627776.0f, DEEPEST = 28.0f;
// A fraction of 1.
constexpr u64 ONE = 1ull << 55;

// The rules, which all rows of a call share.
struct Rules {
    double repetition, frequency, presence;
    u64 top_p;     // of 2^55; ONE is off
    u64 adaptive;  // a row is greedy where the weights sum to at most this; 0 is off
    unsigned top_k;  // 0 is off
    unsigned rows, vocab, blocks;  // blocks of a row
    unsigned type, unused;
};

// The type of the logits.
enum Type : unsigned { F32, BF16, F16 };

// A row of logits: `(V,)`, at an offset of a tensor.
struct Logits {
    const void *tensor;
    u64 offset;

    __device__ __forceinline__ float at(unsigned type, unsigned token) const {
        const u64 i = offset + token;
        if (type == F32) return ((const float *)tensor)[i];
        return type == BF16 ? __bfloat162float(((const __nv_bfloat16 *)tensor)[i]) : __half2float(((const __half *)tensor)[i]);
    }
};

// A row: what it is told, and what the kernels find. Their first values come with it.
struct Row {
    u64 uniform;  // of 2^55
    u64 best;     // the first of the largest logits (`order_of`), 0 for none
    // `find_bins`: the weight of the bins before `p_bins`, and of those before `k_bin`, which is all where nothing is cut by count.
    u64 before_p, before_k;
    float inverse_temperature, min_distance;
    unsigned is_greedy;
    unsigned lowest;  // the key of the smallest finite logit
    unsigned first_nan, first_infinity;
    unsigned finished[3];  // blocks, of each kernel
    unsigned patches, patches_end;
    // Bins before `p_bins` are kept whole, all of them where that is NONE. Tokens of those up to `p_bins_end`, and of `k_bin`, are
    // candidates; `k_left` of the latter are kept by top-k.
    unsigned p_bins, p_bins_end, k_bin, k_left;
    unsigned candidates;
};

// A bias of a token, and how often it is in the history. Those of a row are by token; of one token, the first has the count.
struct Patch {
    unsigned token, count;
    float bias;
};

static_assert(sizeof(Rules) == 64 && sizeof(Row) == 96 && sizeof(Patch) == 12, "as fused.rs has them");

// The upload: rules, rows, patches.
__device__ __forceinline__ Row *row_of(Rules *rules, unsigned row) { return (Row *)(rules + 1) + row; }
__device__ __forceinline__ const Patch *patches_of(Rules *rules) { return (const Patch *)row_of(rules, rules->rows); }

__device__ __forceinline__ bool searches(const Rules *rules) { return rules->top_k > 0 || rules->top_p < ONE; }
__device__ __forceinline__ unsigned tiles_of(const Rules *rules) { return (rules->vocab + TILE - 1) / TILE; }

// Memory of a row: the weight of each tile and, where it is searched, weight and count of each bin, and the candidates.
struct Memory {
    u64 *tile_weights, *bin_weights, *candidates;
    unsigned *bin_counts;
};

__device__ __forceinline__ Memory memory_of(const Rules *rules, u64 *memory, unsigned row) {
    const u64 tiles = tiles_of(rules);
    if (!searches(rules)) return {memory + row * tiles, nullptr, nullptr, nullptr};
    memory += row * (tiles + BINS + BINS / 2 + rules->vocab);
    return {memory, memory + tiles, memory + tiles + BINS + BINS / 2, (unsigned *)(memory + tiles + BINS)};
}

// The logit after penalties and biases: f64, rounded once, then f32. No product may be fused with a difference.
__device__ __forceinline__ float patched(float x, const Rules *rules, const Patch *patch, const Patch *end) {
    if (patch->count > 0 && fabsf(x) <= 3.402823466e38f) {
        const double wide = x, repeated = x > 0.0f ? wide / rules->repetition : __dmul_rn(wide, rules->repetition);
        x = (float)(repeated - __dmul_rn(rules->frequency, patch->count) - rules->presence);
    }
#pragma unroll 1
    for (const Patch *bias = patch; bias < end && bias->token == patch->token; bias++) x += bias->bias;
    return x;
}

// The first of the patches of a row that is not below a token.
__device__ __forceinline__ unsigned first_patch(const Patch *patches, unsigned begin, unsigned end, unsigned token) {
    while (begin < end) {
        const unsigned middle = begin + (end - begin) / 2;
        if (patches[middle].token < token)
            begin = middle + 1;
        else
            end = middle;
    }
    return begin;
}

// The logits of a tile after penalties, -inf beyond the vocabulary.
__device__ __forceinline__ void load_tile(float *tile, const Logits &logits, Rules *rules, const Row *row, unsigned index) {
    const unsigned first = index * TILE, type = rules->type;
    __syncthreads();
    for (unsigned n = 0; n < PER_THREAD; n++) {
        const unsigned i = n * THREADS + threadIdx.x;
        tile[i] = first + i < rules->vocab ? logits.at(type, first + i) : -INFINITY;
    }
    __syncthreads();
    if (row->patches == row->patches_end) return;
    const Patch *patches = patches_of(rules);
    const unsigned begin = first_patch(patches, row->patches, row->patches_end, first);
    const unsigned end = first_patch(patches, begin, row->patches_end, first + TILE);
#pragma unroll 1
    for (unsigned i = begin + threadIdx.x; i < end; i += THREADS)
        if (i == begin || patches[i - 1].token != patches[i].token) {
            float *x = &tile[patches[i].token - first];
            *x = patched(*x, rules, patches + i, patches + end);
        }
    __syncthreads();
}

// Rises with the logit; equal for 0 and -0.
__device__ __forceinline__ unsigned key_of(float x) {
    const unsigned bits = __float_as_uint(x + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float logit_of(unsigned key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// Falls in the order in which tokens are kept: by falling logit, of equal ones the first. No two tokens share one.
__device__ __forceinline__ u64 order_of(float x, unsigned token) { return (u64)key_of(x) << 32 | (unsigned)~token; }
__device__ __forceinline__ float logit_of(u64 order) { return logit_of((unsigned)(order >> 32)); }
__device__ __forceinline__ unsigned token_of(u64 order) { return ~(unsigned)order; }

// The weights and bins of a row whose largest logit is known. Every step rises with the logit or is constant.
struct Scale {
    float largest, inverse_temperature, bins_per_unit, min_distance;

    __device__ __forceinline__ explicit Scale(const Row *row)
        : largest(logit_of(row->best)), inverse_temperature(row->inverse_temperature), min_distance(row->min_distance) {
        const float span = fminf((largest - logit_of(row->lowest)) * inverse_temperature, DEEPEST);
        bins_per_unit = span > 0.0f ? fminf((float)BINS / span, 3e38f) : 0.0f;
    }

    // At most 0.
    __device__ __forceinline__ float exponent(float x) const { return (x - largest) * inverse_temperature; }
    // Whether tokens of this exponent may weigh anything. A NaN does not: an infinite distance by an inverse temperature of 0.
    __device__ __forceinline__ bool has_weight(float exponent) const { return exponent >= -DEEPEST; }
    __device__ __forceinline__ u64 weight(float exponent) const { return (u64)(expf(exponent) * MAX_WEIGHT); }
    __device__ __forceinline__ unsigned bin(float exponent) const { return min((unsigned)(-exponent * bins_per_unit), BINS - 1); }
    __device__ __forceinline__ bool reaches_min_p(float x) const { return x - largest >= min_distance; }
};

// floor(total * fraction) less at most 10, as `fraction.rs` has it: the sum of the products with limbs of 5 bits, each shifted.
__device__ __forceinline__ u64 fraction_of(u64 total, u64 fraction) {
    u64 sum = 0;
#pragma unroll 1
    for (unsigned shift = 5; shift <= 55; shift += 5) {
        const u64 limb = fraction >> (55 - shift) & 31;
        // floor(limb * total / 2^shift), without the product, which may not fit.
        sum += limb * (total >> shift) + (limb * (total & ((1ull << shift) - 1)) >> shift);
    }
    return sum;
}
