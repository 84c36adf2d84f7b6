// Causal self-attention of values in bfloat16 on tensor cores, forward and backward, in tiles as attention.cu has them; sums,
// softmax and the logarithms of its sums are in float.
//
// A block has four warps. A warp has 16 rows of a tile of scores, all its columns, and the same rows of the outputs. Products are
// mma.m16n8k16: of a tile of 16 x 8 sums, lane 4 g + i has those of rows g and g + 8 and columns 2 i and 2 i + 1. The scores of two
// such tiles side by side are the left operand of the next product without leaving their lanes.
#include "attention.cuh"
#include "element.cuh"
#include "reduce.cuh"

#ifdef TINYGPT_EMULATED
#include "mma_instructions.h"
#else
// d = a b + c, in float, of bfloat16 (16 x 16) and (16 x 8).
__device__ __forceinline__ void mma_m16n8k16_bf16(float d[4], const unsigned a[4], const unsigned b[2], const float c[4]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};\n"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}
#endif

namespace {

constexpr unsigned THREADS = 128, ROWS = 64;

// Rows of a tile are padded by eight elements, so that the reads of 8 rows at one column meet different banks.
template <int COLS>
constexpr int STRIDE = COLS + 8;

__device__ __forceinline__ unsigned pair_at(const bf16 *x) { return *reinterpret_cast<const unsigned *>(x); }

__device__ __forceinline__ unsigned pair_of(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const unsigned *>(&pair);
}

// Eight channels from `d` on of position `position` of `(T, columns)` at `from`, or zeros beyond the last position or channel, given
// to `whole(eight)` where they are one aligned load, else to `single(k, element)`.
template <class W, class S>
__device__ __forceinline__ void eight_channels(const bf16 *from, unsigned columns, unsigned position, unsigned d, const Shape &shape,
                                               W whole, S single) {
    const bf16 *at = from + (unsigned long long)position * columns + d;
    if (shape.head_size % 8 == 0) {
        const bool there = position < shape.t && d < shape.head_size;
        whole(there ? *reinterpret_cast<const uint4 *>(at) : make_uint4(0, 0, 0, 0));
        return;
    }
#pragma unroll 1
    for (unsigned k = 0; k < 8; k++)
        single(k, position < shape.t && d + k < shape.head_size ? at[k] : __ushort_as_bfloat16(0));
}

// A tile `(COUNT, HS)` of the positions from `first` on; neighbouring threads have neighbouring channels.
template <int COUNT, int HS>
__device__ __forceinline__ void load_rows(bf16 *tile, const bf16 *from, unsigned columns, unsigned first, const Shape &shape) {
    for (unsigned i = threadIdx.x; i < COUNT * (HS / 8); i += THREADS) {
        const unsigned row = i / (HS / 8), d = i % (HS / 8) * 8;
        bf16 *to = tile + row * STRIDE<HS> + d;
        eight_channels(
            from, columns, first + row, d, shape, [=](uint4 eight) { *reinterpret_cast<uint4 *>(to) = eight; },
            [=](unsigned k, bf16 x) { to[k] = x; });
    }
}

// The same transposed, `(HS, COUNT)`; neighbouring threads have neighbouring positions, so that their writes meet different banks.
template <int COUNT, int HS>
__device__ __forceinline__ void load_columns(bf16 *tile, const bf16 *from, unsigned columns, unsigned first, const Shape &shape) {
    for (unsigned i = threadIdx.x; i < COUNT * (HS / 8); i += THREADS) {
        const unsigned row = i % COUNT, d = i / COUNT * 8;
        bf16 *to = tile + d * STRIDE<COUNT> + row;
        const auto single = [=](unsigned k, bf16 x) { to[k * STRIDE<COUNT>] = x; };
        eight_channels(
            from, columns, first + row, d, shape,
            [=](uint4 eight) {
                const unsigned words[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
                for (unsigned k = 0; k < 8; k++) single(k, __ushort_as_bfloat16((unsigned short)(words[k / 2] >> 16 * (k % 2))));
            },
            single);
    }
}

// The left operand of a product: 16 rows from `tile` on, 16 columns from `k` on.
template <int COLS>
__device__ __forceinline__ void left(unsigned a[4], const bf16 *tile, unsigned k, unsigned g, unsigned i) {
    const bf16 *at = tile + g * STRIDE<COLS> + k + 2 * i;
    a[0] = pair_at(at);
    a[1] = pair_at(at + 8 * STRIDE<COLS>);
    a[2] = pair_at(at + 8);
    a[3] = pair_at(at + 8 * STRIDE<COLS> + 8);
}

// `s = a b^T` for 16 rows of `a (.., K)` and the N rows of `b (N, K)`.
template <int N, int K>
__device__ __forceinline__ void scores(float (&s)[N / 8][4], const bf16 *a, const bf16 *b, unsigned g, unsigned i) {
#pragma unroll
    for (int n = 0; n < N / 8; n++) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.0f;
#pragma unroll
    for (int k = 0; k < K; k += 16) {
        unsigned x[4];
        left<K>(x, a, k, g, i);
#pragma unroll
        for (int n = 0; n < N / 8; n++) {
            const bf16 *at = b + (8 * n + g) * STRIDE<K> + k + 2 * i;
            const unsigned y[2] = {pair_at(at), pair_at(at + 8)};
            mma_m16n8k16_bf16(s[n], x, y, s[n]);
        }
    }
}

// `o += s b` for scores of K columns, rounded, and `b` transposed, `(N, K)`.
template <int N, int K>
__device__ __forceinline__ void accumulate(float (&o)[N / 8][4], const float (&s)[K / 8][4], const bf16 *b, unsigned g, unsigned i) {
#pragma unroll
    for (int k = 0; k < K; k += 16) {
        const float(&l)[4] = s[k / 8], (&r)[4] = s[k / 8 + 1];
        const unsigned x[4] = {pair_of(l[0], l[1]), pair_of(l[2], l[3]), pair_of(r[0], r[1]), pair_of(r[2], r[3])};
#pragma unroll
        for (int n = 0; n < N / 8; n++) {
            const bf16 *at = b + (8 * n + g) * STRIDE<K> + k + 2 * i;
            const unsigned y[2] = {pair_at(at), pair_at(at + 8)};
            mma_m16n8k16_bf16(o[n], x, y, o[n]);
        }
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

// Writes 16 rows of `HS` channels times `scale` to rows of `(T, columns)` from position `first` on.
template <int HS>
__device__ __forceinline__ void store(bf16 *to, unsigned columns, unsigned first, const float (&o)[HS / 8][4], const float (&scale)[2],
                                      const Shape &shape, unsigned g, unsigned i) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const unsigned position = first + g + 8 * half;
        if (position >= shape.t) continue;
#pragma unroll
        for (int n = 0; n < HS / 8; n++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const unsigned d = 8 * n + 2 * i + e;
                if (d < shape.head_size)
                    to[(unsigned long long)position * columns + d] = __float2bfloat16_rn(o[n][2 * half + e] * scale[half]);
            }
    }
}

// A block takes 64 queries of a head, and goes over tiles of BC keys. `y (B, T, nh hs)`, `log_sums (B nh, T)`.
template <int HS, int BC>
__device__ __forceinline__ void forward(const bf16 *qkv, bf16 *y, float *log_sums, const Shape &shape, float scale, const Dropout &dropout) {
    extern __shared__ uint4 shared[];
    bf16 *q = reinterpret_cast<bf16 *>(shared);  // (64, HS)
    bf16 *k = q + ROWS * STRIDE<HS>;             // (BC, HS)
    bf16 *v = k + BC * STRIDE<HS>;               // (HS, BC), transposed
    __shared__ HashPolynomial polynomials[MASK_ROWS][2];

    const unsigned lane = threadIdx.x % 32, g = lane / 4, i = lane % 4, warp_row = threadIdx.x / 32 * 16;
    // The last queries have the most keys, so they begin first.
    const unsigned first_query = (gridDim.y - 1 - blockIdx.y) * ROWS;
    const unsigned b = blockIdx.x / shape.n_head, h = blockIdx.x % shape.n_head, columns = shape.columns();
    const unsigned kv = h / (shape.n_head / shape.n_kv_head), channels = shape.n_head * shape.head_size;
    const unsigned long long row0 = (unsigned long long)b * shape.t;
    const bf16 *keys = qkv + row0 * columns + (shape.n_head + kv) * shape.head_size, *values = keys + shape.n_kv_head * shape.head_size;
    const TileMask mask = {polynomials, dropout, blockIdx.x, shape.t};
    const bool drops = dropout.threshold > 0;

    load_rows<ROWS, HS>(q, qkv + row0 * columns + h * shape.head_size, columns, first_query, shape);
    float o[HS / 8][4], max[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
#pragma unroll
    for (int n = 0; n < HS / 8; n++) o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0.0f;
    for (unsigned first_key = 0; first_key < first_query + ROWS && first_key < shape.t; first_key += BC) {
        __syncthreads();
        load_rows<BC, HS>(k, keys, columns, first_key, shape);
        load_columns<BC, HS>(v, values, columns, first_key, shape);
        if (drops) mask.prepare(first_query, first_key, ROWS);
        __syncthreads();
        float s[BC / 8][4];
        scores<BC, HS>(s, q + warp_row * STRIDE<HS>, k, g, i);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const unsigned row = warp_row + g + 8 * half, query = first_query + row;
            float now = max[half];
#pragma unroll
            for (int n = 0; n < BC / 8; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const unsigned key = first_key + 8 * n + 2 * i + e;
                    float &x = s[n][2 * half + e];
                    x = key > query || key >= shape.t ? -INFINITY : x * scale;
                    now = fmaxf(now, x);
                }
            // Every row has seen its first key, so its maximum is finite, for finite scores. A NaN comes through by the sum.
            now = row_max(now);
            const float shrink = expf(max[half] - now);
            max[half] = now;
            float part = 0.0f;
#pragma unroll
            for (int n = 0; n < BC / 8; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const unsigned key = first_key + 8 * n + 2 * i + e;
                    float &x = s[n][2 * half + e];
                    x = expf(x - now);
                    part += x;
                    if (drops && key <= query && query < shape.t && !mask.kept(row, first_query, first_key, key)) x = 0.0f;
                }
            sum[half] = sum[half] * shrink + row_sum(part);
#pragma unroll
            for (int n = 0; n < HS / 8; n++) o[n][2 * half] *= shrink, o[n][2 * half + 1] *= shrink;
        }
        accumulate<HS, BC>(o, s, v, g, i);
    }
    const float factors[2] = {dropout.scale / sum[0], dropout.scale / sum[1]};
    store<HS>(y + row0 * channels + h * shape.head_size, channels, first_query + warp_row, o, factors, shape, g, i);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const unsigned query = first_query + warp_row + g + 8 * half;
        if (i == 0 && query < shape.t) log_sums[(unsigned long long)blockIdx.x * shape.t + query] = max[half] + logf(sum[half]);
    }
}

// As `backward_queries` of attention.cu: `dQ`, and `d_sums (B nh, T)`. A block takes 64 queries of a head.
template <int HS, int BC>
__device__ __forceinline__ void backward_queries(const bf16 *qkv, const bf16 *y, const bf16 *dy, const float *log_sums, bf16 *d_qkv,
                                                 float *d_sums, const Shape &shape, float scale, const Dropout &dropout) {
    extern __shared__ uint4 shared[];
    bf16 *q = reinterpret_cast<bf16 *>(shared);  // (64, HS)
    bf16 *d_out = q + ROWS * STRIDE<HS>;         // (64, HS)
    bf16 *k = d_out + ROWS * STRIDE<HS>;         // (BC, HS)
    bf16 *v = k + BC * STRIDE<HS>;               // (BC, HS)
    bf16 *kt = v + BC * STRIDE<HS>;              // (HS, BC), transposed
    __shared__ HashPolynomial polynomials[MASK_ROWS][2];
    __shared__ float row_d[ROWS];

    const unsigned lane = threadIdx.x % 32, g = lane / 4, i = lane % 4, warp_row = threadIdx.x / 32 * 16;
    const unsigned first_query = (gridDim.y - 1 - blockIdx.y) * ROWS;
    const unsigned b = blockIdx.x / shape.n_head, h = blockIdx.x % shape.n_head, columns = shape.columns();
    const unsigned kv = h / (shape.n_head / shape.n_kv_head), channels = shape.n_head * shape.head_size;
    const unsigned long long row0 = (unsigned long long)b * shape.t;
    const bf16 *keys = qkv + row0 * columns + (shape.n_head + kv) * shape.head_size, *values = keys + shape.n_kv_head * shape.head_size;
    const TileMask mask = {polynomials, dropout, blockIdx.x, shape.t};
    const bool drops = dropout.threshold > 0;

    load_rows<ROWS, HS>(q, qkv + row0 * columns + h * shape.head_size, columns, first_query, shape);
    load_rows<ROWS, HS>(d_out, dy + row0 * channels + h * shape.head_size, channels, first_query, shape);
    for (unsigned row = threadIdx.x / 32; row < ROWS; row += THREADS / 32) {
        const unsigned query = first_query + row;
        float sum = 0.0f;
        if (query < shape.t) {
            const unsigned long long at = (row0 + query) * channels + h * shape.head_size;
            for (unsigned d = lane; d < shape.head_size; d += 32) sum += to_float(dy[at + d]) * to_float(y[at + d]);
        }
        sum = warp_sum(sum);
        if (lane == 0) {
            row_d[row] = sum;
            if (query < shape.t) d_sums[(unsigned long long)blockIdx.x * shape.t + query] = sum;
        }
    }
    float dq[HS / 8][4];
#pragma unroll
    for (int n = 0; n < HS / 8; n++) dq[n][0] = dq[n][1] = dq[n][2] = dq[n][3] = 0.0f;
    for (unsigned first_key = 0; first_key < first_query + ROWS && first_key < shape.t; first_key += BC) {
        __syncthreads();
        load_rows<BC, HS>(k, keys, columns, first_key, shape);
        load_columns<BC, HS>(kt, keys, columns, first_key, shape);
        load_rows<BC, HS>(v, values, columns, first_key, shape);
        if (drops) mask.prepare(first_query, first_key, ROWS);
        __syncthreads();
        float s[BC / 8][4], dp[BC / 8][4];
        scores<BC, HS>(s, q + warp_row * STRIDE<HS>, k, g, i);
        scores<BC, HS>(dp, d_out + warp_row * STRIDE<HS>, v, g, i);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const unsigned row = warp_row + g + 8 * half, query = first_query + row;
            const float log_sum = query < shape.t ? log_sums[(unsigned long long)blockIdx.x * shape.t + query] : 0.0f;
#pragma unroll
            for (int n = 0; n < BC / 8; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const unsigned key = first_key + 8 * n + 2 * i + e;
                    float &x = s[n][2 * half + e], d = 0.0f;
                    if (key <= query && query < shape.t) {
                        const bool kept = !drops || mask.kept(row, first_query, first_key, key);
                        d = expf(x * scale - log_sum) * ((kept ? dp[n][2 * half + e] * dropout.scale : 0.0f) - row_d[row]);
                    }
                    x = d;
                }
        }
        accumulate<HS, BC>(dq, s, kt, g, i);
    }
    const float scales[2] = {scale, scale};
    store<HS>(d_qkv + row0 * columns + h * shape.head_size, columns, first_query + warp_row, dq, scales, shape, g, i);
}

// As `backward_keys` of attention.cu: `dK` and `dV`. A block takes 64 keys of a head of keys and values; rows of scores are keys.
template <int HS, int BC>
__device__ __forceinline__ void backward_keys(const bf16 *qkv, const bf16 *dy, const float *log_sums, const float *d_sums, bf16 *d_qkv,
                                              const Shape &shape, float scale, const Dropout &dropout) {
    extern __shared__ uint4 shared[];
    bf16 *k = reinterpret_cast<bf16 *>(shared);  // (64, HS)
    bf16 *v = k + ROWS * STRIDE<HS>;             // (64, HS)
    bf16 *q = v + ROWS * STRIDE<HS>;             // (BC, HS)
    bf16 *d_out = q + BC * STRIDE<HS>;           // (BC, HS)
    bf16 *qt = d_out + BC * STRIDE<HS>;          // (HS, BC), transposed
    bf16 *d_out_t = qt + HS * STRIDE<BC>;        // (HS, BC), transposed
    __shared__ HashPolynomial polynomials[MASK_ROWS][2];

    const unsigned lane = threadIdx.x % 32, g = lane / 4, i = lane % 4, warp_row = threadIdx.x / 32 * 16;
    const unsigned first_key = blockIdx.y * ROWS;
    const unsigned b = blockIdx.x / shape.n_kv_head, kv = blockIdx.x % shape.n_kv_head, group = shape.n_head / shape.n_kv_head;
    const unsigned columns = shape.columns(), channels = shape.n_head * shape.head_size;
    const unsigned long long row0 = (unsigned long long)b * shape.t;
    const unsigned key_column = (shape.n_head + kv) * shape.head_size, value_column = key_column + shape.n_kv_head * shape.head_size;
    const bool drops = dropout.threshold > 0;

    load_rows<ROWS, HS>(k, qkv + row0 * columns + key_column, columns, first_key, shape);
    load_rows<ROWS, HS>(v, qkv + row0 * columns + value_column, columns, first_key, shape);
    float dk[HS / 8][4], dv[HS / 8][4];
#pragma unroll
    for (int n = 0; n < HS / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) dk[n][e] = dv[n][e] = 0.0f;
    for (unsigned h = kv * group; h < (kv + 1) * group; h++) {
        const unsigned long long head = (unsigned long long)b * shape.n_head + h;
        const TileMask mask = {polynomials, dropout, head, shape.t};
        const bf16 *queries = qkv + row0 * columns + h * shape.head_size, *d_outs = dy + row0 * channels + h * shape.head_size;
        // Queries before the first key see none of these keys.
        for (unsigned first_query = first_key; first_query < shape.t; first_query += BC) {
            __syncthreads();
            load_rows<BC, HS>(q, queries, columns, first_query, shape);
            load_columns<BC, HS>(qt, queries, columns, first_query, shape);
            load_rows<BC, HS>(d_out, d_outs, channels, first_query, shape);
            load_columns<BC, HS>(d_out_t, d_outs, channels, first_query, shape);
            if (drops) mask.prepare(first_query, first_key, BC);
            __syncthreads();
            float s[BC / 8][4], dp[BC / 8][4];
            scores<BC, HS>(s, k + warp_row * STRIDE<HS>, q, g, i);
            scores<BC, HS>(dp, v + warp_row * STRIDE<HS>, d_out, g, i);
#pragma unroll
            for (int n = 0; n < BC / 8; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const unsigned column = 8 * n + 2 * i + e, query = first_query + column;
                    const bool there = query < shape.t;
                    const float log_sum = there ? log_sums[head * shape.t + query] : 0.0f;
                    const float d_sum = there ? d_sums[head * shape.t + query] : 0.0f;
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        const unsigned key = first_key + warp_row + g + 8 * half;
                        float p = 0.0f, d = 0.0f;
                        if (there && key <= query) {
                            const bool kept = !drops || mask.kept(column, first_query, first_key, key);
                            p = expf(s[n][2 * half + e] * scale - log_sum);
                            d = p * ((kept ? dp[n][2 * half + e] * dropout.scale : 0.0f) - d_sum);
                            if (!kept) p = 0.0f;
                        }
                        s[n][2 * half + e] = p;
                        dp[n][2 * half + e] = d;
                    }
                }
            accumulate<HS, BC>(dv, s, d_out_t, g, i);
            accumulate<HS, BC>(dk, dp, qt, g, i);
        }
    }
    const float of_keys[2] = {scale, scale}, of_values[2] = {dropout.scale, dropout.scale};
    store<HS>(d_qkv + row0 * columns + key_column, columns, first_key + warp_row, dk, of_keys, shape, g, i);
    store<HS>(d_qkv + row0 * columns + value_column, columns, first_key + warp_row, dv, of_values, shape, g, i);
}

}  // namespace

// HS is the largest head size of the kernels, FC and BC the keys (queries, for gradients of keys) of a tile, forward and backward; the
// host (src/ops/kernels/attention.rs) has the same table.
#define ATTENTION(HS, FC, BC)                                                                                                       \
    extern "C" __global__ void __launch_bounds__(128)                                                                               \
    attention_bf16_forward_##HS(const bf16 *qkv, bf16 *y, float *log_sums, unsigned t, unsigned n_head, unsigned n_kv_head,         \
                                unsigned head_size, float scale, unsigned key0, unsigned key1, unsigned word2, unsigned word3,      \
                                unsigned threshold, float keep_scale) {                                                             \
        forward<HS, FC>(qkv, y, log_sums, {t, n_head, n_kv_head, head_size}, scale,                                                 \
                        {key0, key1, word2, word3, threshold, keep_scale});                                                         \
    }                                                                                                                               \
    extern "C" __global__ void __launch_bounds__(128)                                                                               \
    attention_bf16_backward_queries_##HS(const bf16 *qkv, const bf16 *y, const bf16 *dy, const float *log_sums, bf16 *d_qkv,        \
                                         float *d_sums, unsigned t, unsigned n_head, unsigned n_kv_head, unsigned head_size,        \
                                         float scale, unsigned key0, unsigned key1, unsigned word2, unsigned word3,                 \
                                         unsigned threshold, float keep_scale) {                                                    \
        backward_queries<HS, BC>(qkv, y, dy, log_sums, d_qkv, d_sums, {t, n_head, n_kv_head, head_size}, scale,                     \
                                 {key0, key1, word2, word3, threshold, keep_scale});                                                \
    }                                                                                                                               \
    extern "C" __global__ void __launch_bounds__(128)                                                                               \
    attention_bf16_backward_keys_##HS(const bf16 *qkv, const bf16 *dy, const float *log_sums, const float *d_sums, bf16 *d_qkv,     \
                                      unsigned t, unsigned n_head, unsigned n_kv_head, unsigned head_size, float scale,             \
                                      unsigned key0, unsigned key1, unsigned word2, unsigned word3, unsigned threshold,             \
                                      float keep_scale) {                                                                           \
        backward_keys<HS, BC>(qkv, dy, log_sums, d_sums, d_qkv, {t, n_head, n_kv_head, head_size}, scale,                           \
                              {key0, key1, word2, word3, threshold, keep_scale});                                                   \
    }

ATTENTION(64, 64, 32)
ATTENTION(128, 32, 32)
