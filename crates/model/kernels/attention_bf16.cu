// Causal self-attention of values in bfloat16 on tensor cores, forward and backward, in tiles as attention.cu has them; sums,
// softmax and the logarithms of its sums are in float.
//
// A block has four warps. A warp has 16 rows of a tile of scores, all its columns, and the same rows of the outputs. Of what a block
// goes over, the next tile is copied while the products of this one run.
#include "attention.cuh"
#include "attention_masks.cuh"
#include "mma.cuh"

namespace {

constexpr float LOG2_E = 1.44269504f;

// A tile `(COUNT, HS)` of the positions from `first` on of `(T, columns)` at `from`, with zeros beyond the last position or channel;
// neighbouring threads have neighbouring channels. Rows of heads of a multiple of eight channels are aligned, and copied beside what
// else the thread does.
template <int COUNT, int HS>
__device__ __forceinline__ void load_rows(bf16 *tile, const bf16 *from, unsigned columns, unsigned first, const Shape &shape) {
    constexpr unsigned EIGHTS = HS / 8;
    static_assert(THREADS % EIGHTS == 0 && COUNT * EIGHTS % THREADS == 0, "each thread copies as many rows of the same channels");
    const unsigned d = threadIdx.x % EIGHTS * 8;
    if (shape.head_size % 8 == 0) {
        // What is not there is not read, wherever it would lie.
        const bf16 *at = from + (unsigned long long)(first + threadIdx.x / EIGHTS) * columns + d;
#pragma unroll
        for (unsigned r = 0; r < COUNT; r += THREADS / EIGHTS) {
            const unsigned row = r + threadIdx.x / EIGHTS;
            cp_async_16(tile + row * STRIDE<HS> + d, at, first + row < shape.t && d < shape.head_size);
            at += (unsigned long long)(THREADS / EIGHTS) * columns;
        }
        return;
    }
#pragma unroll 1
    for (unsigned r = threadIdx.x / EIGHTS; r < COUNT; r += THREADS / EIGHTS) {
        const bf16 *at = from + (unsigned long long)(first + r) * columns + d;
#pragma unroll 1
        for (unsigned k = 0; k < 8; k++)
            tile[r * STRIDE<HS> + d + k] = first + r < shape.t && d + k < shape.head_size ? at[k] : __ushort_as_bfloat16(0);
    }
}

// Over the four lanes that share a row.
__device__ __forceinline__ float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

__device__ __forceinline__ float row_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// Writes the 16 rows of a warp times `scale` to rows of `(T, columns)` from position `first` on, by way of `tile`, rows of shared memory
// that no other warp reads or writes any more.
template <int HS>
__device__ __forceinline__ void store(bf16 *to, unsigned columns, unsigned first, const float (&o)[HS / 8][4], const float (&scale)[2],
                                      const Shape &shape, bf16 *tile, unsigned lane) {
    __syncwarp();
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int n = 0; n < HS / 8; n++) {
            bf16 *at = tile + (8 * half + lane / 4) * STRIDE<HS> + 8 * n + lane % 4 * 2;
            *reinterpret_cast<unsigned *>(at) = pair_of(o[n][2 * half] * scale[half], o[n][2 * half + 1] * scale[half]);
        }
    __syncwarp();
    constexpr unsigned EIGHTS = HS / 8;
    const unsigned d = lane % EIGHTS * 8;
#pragma unroll
    for (unsigned r = 0; r < 16; r += 32 / EIGHTS) {
        const unsigned row = r + lane / EIGHTS;
        if (first + row >= shape.t) continue;
        const bf16 *from = tile + row * STRIDE<HS> + d;
        bf16 *at = to + (unsigned long long)(first + row) * columns + d;
        if (shape.head_size % 8 == 0) {
            if (d < shape.head_size) *reinterpret_cast<uint4 *>(at) = *reinterpret_cast<const uint4 *>(from);
        } else {
#pragma unroll 1
            for (unsigned k = 0; k < 8 && d + k < shape.head_size; k++) at[k] = from[k];
        }
    }
}

// A block takes 64 queries of a head, and goes over tiles of BC keys. `y (B, T, nh hs)`, `log_sums (B nh, T)`.
template <int HS, int BC>
__device__ __forceinline__ void forward(const bf16 *qkv, bf16 *y, float *log_sums, const Shape &shape, float scale, const Dropout &dropout) {
    constexpr int TILE = BC * STRIDE<HS>;
    extern __shared__ uint4 shared[];
    bf16 *q = reinterpret_cast<bf16 *>(shared);  // (64, HS)
    bf16 *tiles = q + ROWS * STRIDE<HS>;         // (2, 2, BC, HS): this tile and the next, of keys and of values
    __shared__ QueryMasks<BC> masks;

    const unsigned lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16;
    // The last queries have the most keys, so they begin first.
    const unsigned first_query = (gridDim.y - 1 - blockIdx.y) * ROWS, warp_query = first_query + warp_row;
    const unsigned b = blockIdx.x / shape.n_head, h = blockIdx.x % shape.n_head, columns = shape.columns();
    const unsigned kv = h / (shape.n_head / shape.n_kv_head), channels = shape.n_head * shape.head_size;
    const unsigned long long row0 = (unsigned long long)b * shape.t, head_row0 = (unsigned long long)blockIdx.x * shape.t;
    const bf16 *keys = qkv + row0 * columns + (shape.n_head + kv) * shape.head_size, *values = keys + shape.n_kv_head * shape.head_size;
    const bool drops = dropout.threshold > 0;
    const auto load = [&](unsigned first_key, unsigned which) {
        bf16 *to = tiles + which * 2 * TILE;
        load_rows<BC, HS>(to, keys, columns, first_key, shape);
        load_rows<BC, HS>(to + TILE, values, columns, first_key, shape);
        cp_async_commit();
        if (drops) masks.prepare(which, dropout, head_row0 + first_query, shape.t, first_key);
    };

    if (drops) masks.begin();
    load_rows<ROWS, HS>(q, qkv + row0 * columns + h * shape.head_size, columns, first_query, shape);
    cp_async_commit();
    load(0, 0);
    cp_async_wait<1>();
    __syncthreads();
    const LeftRows<HS, true> queries(q + warp_row * STRIDE<HS>, lane);
    // Exponentials are powers of two of the scores times this.
    const float scale2 = scale * LOG2_E;
    float o[HS / 8][4] = {}, max[2] = {-INFINITY, -INFINITY}, sum[2] = {};
    const unsigned end = min(first_query + ROWS, shape.t);
    for (unsigned first_key = 0, which = 0; first_key < end; first_key += BC, which ^= 1) {
        cp_async_wait<0>();
        __syncthreads();
        if (first_key + BC < end) load(first_key + BC, which ^ 1);
        if (first_key >= warp_query + 16) continue;
        const bf16 *k = tiles + which * 2 * TILE, *v = k + TILE;
        float s[BC / 8][4];
        scores<BC>(s, queries, k, lane);
        if (first_key + BC - 1 > warp_query) hide_later_keys(s, (int)(warp_query - first_key), lane);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float most[2] = {max[half], max[half]};
#pragma unroll
            for (int n = 0; n < BC / 8; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) most[e] = fmaxf(most[e], s[n][2 * half + e]);
            // Every row has seen its first key, so its maximum is finite, for finite scores. A NaN comes through by the sum.
            const float now = row_max(fmaxf(most[0], most[1])), shrink = exp2_approx((max[half] - now) * scale2), shift = now * scale2;
            max[half] = now;
            float part[2] = {0.0f, 0.0f};
#pragma unroll
            for (int n = 0; n < BC / 8; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float &x = s[n][2 * half + e];
                    x = exp2_approx(fmaf(x, scale2, -shift));
                    part[e] += x;
                }
            // Of the lane's columns alone until the end.
            sum[half] = fmaf(sum[half], shrink, part[0] + part[1]);
#pragma unroll
            for (int n = 0; n < HS / 8; n++) o[n][2 * half] *= shrink, o[n][2 * half + 1] *= shrink;
        }
        if (drops) masks.apply(s, which, warp_row, lane);
        accumulate<HS, BC>(o, s, v, lane);
    }
    float factors[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const float all = row_sum(sum[half]);
        factors[half] = dropout.scale / all;
        const unsigned query = warp_query + 8 * half + lane / 4;
        if (lane % 4 == 0 && query < shape.t) log_sums[head_row0 + query] = fmaf(max[half], scale, logf(all));
    }
    store<HS>(y + row0 * channels + h * shape.head_size, channels, warp_query, o, factors, shape, q + warp_row * STRIDE<HS>, lane);
}

// The sums of the products of `a` and `b (T, columns)` over the channels of 16 positions from `first` on, into `sums`.
template <int HS>
__device__ __forceinline__ void row_products(float *sums, const bf16 *a, const bf16 *b, unsigned columns, unsigned first,
                                             const Shape &shape, unsigned lane) {
    constexpr unsigned EIGHTS = HS / 8;
    const unsigned d = lane % EIGHTS * 8;
#pragma unroll
    for (unsigned r = 0; r < 16; r += 32 / EIGHTS) {
        const unsigned row = r + lane / EIGHTS;
        const unsigned long long at = (unsigned long long)(first + row) * columns + d;
        float sum = 0.0f;
        if (first + row < shape.t) {
            if (shape.head_size % 8 == 0) {
                if (d < shape.head_size) {
                    const uint4 x = *reinterpret_cast<const uint4 *>(a + at), y = *reinterpret_cast<const uint4 *>(b + at);
                    const unsigned xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
                    for (int k = 0; k < 4; k++) {
                        // A bfloat16 is the upper half of a float.
                        sum = fmaf(__uint_as_float(xs[k] << 16), __uint_as_float(ys[k] << 16), sum);
                        sum = fmaf(__uint_as_float(xs[k] & 0xffff0000u), __uint_as_float(ys[k] & 0xffff0000u), sum);
                    }
                }
            } else {
#pragma unroll 1
                for (unsigned k = 0; k < 8 && d + k < shape.head_size; k++) sum = fmaf(to_float(a[at + k]), to_float(b[at + k]), sum);
            }
        }
#pragma unroll
        for (unsigned other = EIGHTS / 2; other > 0; other /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, other);
        if (d == 0) sums[row] = sum;
    }
}

// As `backward_queries` of attention.cu: `dQ`, and `d_sums (B nh, T)`. A block takes 64 queries of a head. HELD keeps these and the
// gradients of their outputs in registers.
template <int HS, int BC, bool HELD>
__device__ __forceinline__ void backward_queries(const bf16 *qkv, const bf16 *y, const bf16 *dy, const float *log_sums, bf16 *d_qkv,
                                                 float *d_sums, const Shape &shape, float scale, const Dropout &dropout) {
    constexpr int TILE = BC * STRIDE<HS>;
    extern __shared__ uint4 shared[];
    bf16 *q = reinterpret_cast<bf16 *>(shared);  // (64, HS)
    bf16 *d_out = q + ROWS * STRIDE<HS>;         // (64, HS)
    bf16 *tiles = d_out + ROWS * STRIDE<HS>;     // (2, 2, BC, HS): this tile and the next, of keys and of values
    __shared__ float row_d[ROWS];
    __shared__ QueryMasks<BC> masks;

    const unsigned lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16;
    const unsigned first_query = (gridDim.y - 1 - blockIdx.y) * ROWS, warp_query = first_query + warp_row;
    const unsigned b = blockIdx.x / shape.n_head, h = blockIdx.x % shape.n_head, columns = shape.columns();
    const unsigned kv = h / (shape.n_head / shape.n_kv_head), channels = shape.n_head * shape.head_size;
    const unsigned long long row0 = (unsigned long long)b * shape.t, head_row0 = (unsigned long long)blockIdx.x * shape.t;
    const bf16 *keys = qkv + row0 * columns + (shape.n_head + kv) * shape.head_size, *values = keys + shape.n_kv_head * shape.head_size;
    const bf16 *ys = y + row0 * channels + h * shape.head_size, *dys = dy + row0 * channels + h * shape.head_size;
    const bool drops = dropout.threshold > 0;
    const auto load = [&](unsigned first_key, unsigned which) {
        bf16 *to = tiles + which * 2 * TILE;
        load_rows<BC, HS>(to, keys, columns, first_key, shape);
        load_rows<BC, HS>(to + TILE, values, columns, first_key, shape);
        cp_async_commit();
        if (drops) masks.prepare(which, dropout, head_row0 + first_query, shape.t, first_key);
    };

    if (drops) masks.begin();
    load_rows<ROWS, HS>(q, qkv + row0 * columns + h * shape.head_size, columns, first_query, shape);
    load_rows<ROWS, HS>(d_out, dys, channels, first_query, shape);
    cp_async_commit();
    load(0, 0);
    row_products<HS>(row_d + warp_row, ys, dys, channels, warp_query, shape, lane);
    cp_async_wait<1>();
    __syncthreads();
    float d_sum[2], log2_sum[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const unsigned row = 8 * half + lane / 4, query = warp_query + row;
        d_sum[half] = row_d[warp_row + row];
        // Beyond the last query all values are zeros, and so is what they add up to.
        log2_sum[half] = query < shape.t ? log_sums[head_row0 + query] * LOG2_E : 0.0f;
        if (lane % 4 == 0 && query < shape.t) d_sums[head_row0 + query] = d_sum[half];
    }
    const LeftRows<HS, HELD> queries(q + warp_row * STRIDE<HS>, lane), d_outs(d_out + warp_row * STRIDE<HS>, lane);
    const float scale2 = scale * LOG2_E;
    float dq[HS / 8][4] = {};
    const unsigned end = min(first_query + ROWS, shape.t);
    for (unsigned first_key = 0, which = 0; first_key < end; first_key += BC, which ^= 1) {
        cp_async_wait<0>();
        __syncthreads();
        if (first_key + BC < end) load(first_key + BC, which ^ 1);
        if (first_key >= warp_query + 16) continue;
        const bf16 *k = tiles + which * 2 * TILE, *v = k + TILE;
        float s[BC / 8][4], dp[BC / 8][4];
        scores<BC>(s, queries, k, lane);
        scores<BC>(dp, d_outs, v, lane);
        if (first_key + BC - 1 > warp_query) hide_later_keys(s, (int)(warp_query - first_key), lane);
        if (drops) masks.apply(dp, which, warp_row, lane);
#pragma unroll
        for (int n = 0; n < BC / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const float p = exp2_approx(fmaf(s[n][e], scale2, -log2_sum[e / 2]));
                s[n][e] = p * fmaf(dp[n][e], dropout.scale, -d_sum[e / 2]);
            }
        accumulate<HS, BC>(dq, s, k, lane);
    }
    const float scales[2] = {scale, scale};
    store<HS>(d_qkv + row0 * columns + h * shape.head_size, columns, warp_query, dq, scales, shape, q + warp_row * STRIDE<HS>, lane);
}

// As `backward_keys` of attention.cu: `dK` and `dV`. A block takes 64 keys of a head of keys and values; rows of scores are keys. HELD
// keeps these and their values in registers.
template <int HS, int BC, bool HELD>
__device__ __forceinline__ void backward_keys(const bf16 *qkv, const bf16 *dy, const float *log_sums, const float *d_sums, bf16 *d_qkv,
                                              const Shape &shape, float scale, const Dropout &dropout) {
    constexpr int TILE = BC * STRIDE<HS>;
    static_assert(ROWS % BC == 0 && THREADS >= 2 * BC, "tiles of queries begin at the block's first key; a thread copies one sum");
    extern __shared__ uint4 shared[];
    bf16 *k = reinterpret_cast<bf16 *>(shared);  // (64, HS)
    bf16 *v = k + ROWS * STRIDE<HS>;             // (64, HS)
    bf16 *tiles = v + ROWS * STRIDE<HS>;         // (2, 2, BC, HS): this tile and the next, of queries and of gradients of outputs
    alignas(8) __shared__ float sums[2][2][BC];  // of both tiles, logarithms of sums and `d_sums`
    __shared__ KeyMasks<BC> masks;

    const unsigned lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16;
    const unsigned first_key = blockIdx.y * ROWS, warp_key = first_key + warp_row;
    const unsigned b = blockIdx.x / shape.n_kv_head, kv = blockIdx.x % shape.n_kv_head, group = shape.n_head / shape.n_kv_head;
    const unsigned columns = shape.columns(), channels = shape.n_head * shape.head_size;
    const unsigned long long row0 = (unsigned long long)b * shape.t;
    const unsigned key_column = (shape.n_head + kv) * shape.head_size, value_column = key_column + shape.n_kv_head * shape.head_size;
    const bool drops = dropout.threshold > 0;
    // A tile of queries of a head; the next one of the group of heads. Queries before the first key see none of these keys.
    struct Queries {
        unsigned h, first;
    };
    const auto exist = [&](const Queries &at) { return at.h < (kv + 1) * group; };
    const auto after = [&](const Queries &at) { return at.first + BC < shape.t ? Queries{at.h, at.first + BC} : Queries{at.h + 1, first_key}; };
    const auto first_row = [&](const Queries &at) { return ((unsigned long long)b * shape.n_head + at.h) * shape.t + at.first; };
    const auto load = [&](const Queries &at, unsigned which) {
        bf16 *to = tiles + which * 2 * TILE;
        load_rows<BC, HS>(to, qkv + row0 * columns + at.h * shape.head_size, columns, at.first, shape);
        load_rows<BC, HS>(to + TILE, dy + row0 * channels + at.h * shape.head_size, channels, at.first, shape);
        const unsigned column = threadIdx.x % BC, second = threadIdx.x / BC;
        if (second < 2)
            cp_async_4(&sums[which][second][column], (second ? d_sums : log_sums) + first_row(at) + column, at.first + column < shape.t);
        cp_async_commit();
    };
    // The mask of one tile, whose polynomials are there, and the polynomials of the next one.
    const auto prepare = [&](const Queries &at, unsigned which) {
        if (exist(at)) masks.prepare(which, dropout, first_row(at), shape.t, first_key);
        if (exist(after(at))) masks.prepare_polynomials(which ^ 1, dropout, first_row(after(at)), shape.t, first_key);
    };

    Queries next = {kv * group, first_key};
    load_rows<ROWS, HS>(k, qkv + row0 * columns + key_column, columns, first_key, shape);
    load_rows<ROWS, HS>(v, qkv + row0 * columns + value_column, columns, first_key, shape);
    cp_async_commit();
    load(next, 0);
    if (drops) masks.prepare_polynomials(0, dropout, first_row(next), shape.t, first_key);
    cp_async_wait<1>();
    __syncthreads();
    if (drops) prepare(next, 0);
    const LeftRows<HS, HELD> keys(k + warp_row * STRIDE<HS>, lane), values(v + warp_row * STRIDE<HS>, lane);
    const float scale2 = scale * LOG2_E;
    float dk[HS / 8][4] = {}, dv[HS / 8][4] = {};
    for (unsigned which = 0; exist(next); which ^= 1) {
        const unsigned first_query = next.first;
        cp_async_wait<0>();
        __syncthreads();
        next = after(next);
        if (exist(next)) load(next, which ^ 1);
        if (drops) prepare(next, which ^ 1);
        if (first_query + BC <= warp_key) continue;
        const bf16 *q = tiles + which * 2 * TILE, *d_out = q + TILE;
        float s[BC / 8][4], dp[BC / 8][4];
        scores<BC>(s, keys, q, lane);
        scores<BC>(dp, values, d_out, lane);
        if (first_query < warp_key + 15) hide_earlier_queries(s, (int)(first_query - warp_key), lane);
#pragma unroll
        for (int n = 0; n < BC / 8; n++) {
            const float2 log_sum = *reinterpret_cast<const float2 *>(&sums[which][0][8 * n + lane % 4 * 2]);
            const float log2_sum[2] = {log_sum.x * LOG2_E, log_sum.y * LOG2_E};
#pragma unroll
            for (int e = 0; e < 4; e++) s[n][e] = exp2_approx(fmaf(s[n][e], scale2, -log2_sum[e % 2]));
        }
        if (drops) masks.apply(dp, which, warp_row, lane);
#pragma unroll
        for (int n = 0; n < BC / 8; n++) {
            const float2 d_sum = *reinterpret_cast<const float2 *>(&sums[which][1][8 * n + lane % 4 * 2]);
            const float d[2] = {d_sum.x, d_sum.y};
#pragma unroll
            for (int e = 0; e < 4; e++) dp[n][e] = s[n][e] * fmaf(dp[n][e], dropout.scale, -d[e % 2]);
        }
        if (drops) masks.apply(s, which, warp_row, lane);
        accumulate<HS, BC>(dv, s, d_out, lane);
        accumulate<HS, BC>(dk, dp, q, lane);
    }
    const float of_keys[2] = {scale, scale}, of_values[2] = {dropout.scale, dropout.scale};
    store<HS>(d_qkv + row0 * columns + key_column, columns, warp_key, dk, of_keys, shape, k + warp_row * STRIDE<HS>, lane);
    store<HS>(d_qkv + row0 * columns + value_column, columns, warp_key, dv, of_values, shape, v + warp_row * STRIDE<HS>, lane);
}

}  // namespace

// HS is the largest head size of the kernels, FC and BC the keys (queries, for gradients of keys) of a tile, forward and backward; the
// host (src/ops/kernels/attention.rs) has the same table. BLOCKS of each kernel are to fit a multiprocessor, by registers.
#define ATTENTION(HS, FC, BC, HELD, FORWARD_BLOCKS, BACKWARD_BLOCKS)                                                                \
    extern "C" __global__ void __launch_bounds__(128, FORWARD_BLOCKS)                                                               \
    attention_bf16_forward_##HS(const bf16 *qkv, bf16 *y, float *log_sums, unsigned t, unsigned n_head, unsigned n_kv_head,         \
                                unsigned head_size, float scale, unsigned key0, unsigned key1, unsigned word2, unsigned word3,      \
                                unsigned threshold, float keep_scale) {                                                             \
        forward<HS, FC>(qkv, y, log_sums, {t, n_head, n_kv_head, head_size}, scale,                                                 \
                        {key0, key1, word2, word3, threshold, keep_scale});                                                         \
    }                                                                                                                               \
    extern "C" __global__ void __launch_bounds__(128, BACKWARD_BLOCKS)                                                              \
    attention_bf16_backward_queries_##HS(const bf16 *qkv, const bf16 *y, const bf16 *dy, const float *log_sums, bf16 *d_qkv,        \
                                         float *d_sums, unsigned t, unsigned n_head, unsigned n_kv_head, unsigned head_size,        \
                                         float scale, unsigned key0, unsigned key1, unsigned word2, unsigned word3,                 \
                                         unsigned threshold, float keep_scale) {                                                    \
        backward_queries<HS, BC, HELD>(qkv, y, dy, log_sums, d_qkv, d_sums, {t, n_head, n_kv_head, head_size}, scale,               \
                                       {key0, key1, word2, word3, threshold, keep_scale});                                          \
    }                                                                                                                               \
    extern "C" __global__ void __launch_bounds__(128, BACKWARD_BLOCKS)                                                              \
    attention_bf16_backward_keys_##HS(const bf16 *qkv, const bf16 *dy, const float *log_sums, const float *d_sums, bf16 *d_qkv,     \
                                      unsigned t, unsigned n_head, unsigned n_kv_head, unsigned head_size, float scale,             \
                                      unsigned key0, unsigned key1, unsigned word2, unsigned word3, unsigned threshold,             \
                                      float keep_scale) {                                                                           \
        backward_keys<HS, BC, HELD>(qkv, dy, log_sums, d_sums, d_qkv, {t, n_head, n_kv_head, head_size}, scale,                     \
                                    {key0, key1, word2, word3, threshold, keep_scale});                                             \
    }

ATTENTION(64, 64, 32, true, 4, 3)
ATTENTION(128, 32, 32, false, 2, 2)
