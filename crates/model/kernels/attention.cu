// Causal self-attention in f32, forward and backward, in tiles: nothing of size T x T is ever in memory (Dao et al., 2022,
// "FlashAttention").
//
// `qkv (B, T, (nh + 2 nkv) hs)` has the queries of all heads, their keys and their values side by side; `nh / nkv` heads of queries
// share a head of keys and values. Dropout's masks are those of elements of `(B, nh, T, T)`.
//
// A block has 256 threads, 16 x 16: thread (ty, tx) has rows `ty + 16 i` of a tile of scores and columns `tx + 16 j`; of a tile of
// outputs it has the same rows and channels `tx + 16 j`. So a row of scores belongs to 16 neighbouring lanes.
#include "attention.cuh"
#include "reduce.cuh"

namespace {

// The polynomials of the dropout masks of a tile: its row `r` has those of two blocks of the hash, that of its first column and the
// next. 64 columns do not reach a third.
struct TileMask {
    HashPolynomial (*polynomials)[2];
    Dropout dropout;
    unsigned long long head;  // b * nh + h
    unsigned t;

    __device__ __forceinline__ unsigned long long element(unsigned query, unsigned key) const {
        return (head * t + query) * t + key;
    }

    // For queries `query ..` (as many as `rows`) and keys from `key` on.
    __device__ __forceinline__ void prepare(unsigned query, unsigned key, unsigned rows) const {
        for (unsigned i = threadIdx.x; i < 2 * rows; i += blockDim.x)
            polynomials[i / 2][i % 2] = hash_polynomial(dropout, (element(query + i / 2, key) >> HASH_BLOCK_BITS) + i % 2);
    }

    // Whether the score of row `row` of the tile and `key` is kept, for a tile whose first query and key are these.
    __device__ __forceinline__ bool kept(unsigned row, unsigned first_query, unsigned first_key, unsigned key) const {
        const unsigned long long first = element(first_query + row, first_key), at = element(first_query + row, key);
        const unsigned block = (unsigned)((at >> HASH_BLOCK_BITS) - (first >> HASH_BLOCK_BITS));
        return is_kept(dropout, polynomials[row][block], (unsigned)at & (HASH_BLOCK - 1));
    }
};

// The most rows that a tile has queries.
constexpr unsigned MASK_ROWS = 64;

constexpr unsigned SIDE = 16, THREADS = SIDE * SIDE;

// Rows of a tile are padded by four floats, so that reads of 16 rows at one column meet different banks.
template <int COLS>
constexpr int STRIDE = COLS + 4;

// Loads rows `first ..` of `(T, columns)` at `from`, `head_size` channels each, times `scale`, into a tile of `ROWS` rows; what is
// beyond the last row or channel is zero.
template <int ROWS, int HS>
__device__ __forceinline__ void load(float *tile, const float *from, unsigned columns, unsigned first, const Shape &shape, float scale) {
    for (unsigned i = threadIdx.x; i < ROWS * HS; i += THREADS) {
        const unsigned row = i / HS, d = i % HS, position = first + row;
        const bool there = position < shape.t && d < shape.head_size;
        tile[row * STRIDE<HS> + d] = there ? from[(unsigned long long)position * columns + d] * scale : 0.0f;
    }
}

// `s[i][j] = a[row i] . b[row j]` for the thread's rows of both tiles.
template <int RA, int RB, int HS>
__device__ __forceinline__ void products(float (&s)[RA][RB], const float *a, const float *b, unsigned ty, unsigned tx) {
#pragma unroll
    for (int i = 0; i < RA; i++)
#pragma unroll
        for (int j = 0; j < RB; j++) s[i][j] = 0.0f;
#pragma unroll 1
    for (int d = 0; d < HS; d += 4) {
        float4 x[RA], y[RB];
#pragma unroll
        for (int i = 0; i < RA; i++) x[i] = *reinterpret_cast<const float4 *>(&a[(ty + SIDE * i) * STRIDE<HS> + d]);
#pragma unroll
        for (int j = 0; j < RB; j++) y[j] = *reinterpret_cast<const float4 *>(&b[(tx + SIDE * j) * STRIDE<HS> + d]);
#pragma unroll
        for (int i = 0; i < RA; i++)
#pragma unroll
            for (int j = 0; j < RB; j++) {
                s[i][j] += x[i].x * y[j].x;
                s[i][j] += x[i].y * y[j].y;
                s[i][j] += x[i].z * y[j].z;
                s[i][j] += x[i].w * y[j].w;
            }
    }
}

// `o[i][c] += sum over k of p[row i][k] b[k][channel c]`, `p (.., K)`, `b (K, HS)`.
template <int RA, int K, int HS>
__device__ __forceinline__ void accumulate(float (&o)[RA][HS / SIDE], const float *p, const float *b, unsigned ty, unsigned tx) {
#pragma unroll 1
    for (int k = 0; k < K; k += 4) {
        float4 x[RA];
#pragma unroll
        for (int i = 0; i < RA; i++) x[i] = *reinterpret_cast<const float4 *>(&p[(ty + SIDE * i) * STRIDE<K> + k]);
#pragma unroll
        for (int c = 0; c < HS / SIDE; c++) {
            const float *column = &b[k * STRIDE<HS> + tx + SIDE * c];
            const float y0 = column[0], y1 = column[STRIDE<HS>], y2 = column[2 * STRIDE<HS>], y3 = column[3 * STRIDE<HS>];
#pragma unroll
            for (int i = 0; i < RA; i++) {
                o[i][c] += x[i].x * y0;
                o[i][c] += x[i].y * y1;
                o[i][c] += x[i].z * y2;
                o[i][c] += x[i].w * y3;
            }
        }
    }
}

// Over the 16 lanes that share a row.
__device__ __forceinline__ float row_max(float x) {
    for (int lane = SIDE / 2; lane > 0; lane /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lane));
    return x;
}

__device__ __forceinline__ float row_sum(float x) {
    for (int lane = SIDE / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
    return x;
}

// A block takes BR queries of a head. `y (B, T, nh hs)`; `log_sums (B nh, T)`, the logarithms of the sums of a row's exponentials.
template <int HS, int BR, int BC>
__device__ __forceinline__ void forward(const float *qkv, float *y, float *log_sums, const Shape &shape, float scale, const Dropout &dropout) {
    constexpr int RQ = BR / SIDE, RK = BC / SIDE;
    extern __shared__ float4 shared[];
    float *q = reinterpret_cast<float *>(shared);  // (BR, HS)
    float *k = q + BR * STRIDE<HS>;              // (BC, HS)
    float *v = k + BC * STRIDE<HS>;              // (BC, HS)
    float *p = v + BC * STRIDE<HS>;              // (BR, BC)
    __shared__ HashPolynomial polynomials[MASK_ROWS][2];

    const unsigned tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
    // The last queries have the most keys, so they begin first.
    const unsigned first_query = (gridDim.y - 1 - blockIdx.y) * BR;
    const unsigned b = blockIdx.x / shape.n_head, h = blockIdx.x % shape.n_head, columns = shape.columns();
    const unsigned kv = h / (shape.n_head / shape.n_kv_head);
    const float *row0 = qkv + (unsigned long long)b * shape.t * columns;
    const float *keys = row0 + (shape.n_head + kv) * shape.head_size, *values = keys + shape.n_kv_head * shape.head_size;
    const TileMask mask = {polynomials, dropout, blockIdx.x, shape.t};
    const bool drops = dropout.threshold > 0;

    load<BR, HS>(q, row0 + h * shape.head_size, columns, first_query, shape, scale);
    float o[RQ][HS / SIDE], max[RQ], sum[RQ];
#pragma unroll
    for (int i = 0; i < RQ; i++) {
        max[i] = -INFINITY;
        sum[i] = 0.0f;
#pragma unroll
        for (int c = 0; c < HS / SIDE; c++) o[i][c] = 0.0f;
    }
    for (unsigned first_key = 0; first_key < first_query + BR && first_key < shape.t; first_key += BC) {
        __syncthreads();
        load<BC, HS>(k, keys, columns, first_key, shape, 1.0f);
        load<BC, HS>(v, values, columns, first_key, shape, dropout.scale);
        if (drops) mask.prepare(first_query, first_key, BR);
        __syncthreads();
        float s[RQ][RK];
        products<RQ, RK, HS>(s, q, k, ty, tx);
#pragma unroll
        for (int i = 0; i < RQ; i++) {
            const unsigned row = ty + SIDE * i, query = first_query + row;
            float now = max[i];
#pragma unroll
            for (int j = 0; j < RK; j++) {
                const unsigned key = first_key + tx + SIDE * j;
                if (key > query || key >= shape.t) s[i][j] = -INFINITY;
                now = fmaxf(now, s[i][j]);
            }
            // Every row has seen its first key, so its maximum is finite, for finite scores. A NaN comes through by the sum.
            now = row_max(now);
            const float shrink = expf(max[i] - now);
            max[i] = now;
            float part = 0.0f;
#pragma unroll
            for (int j = 0; j < RK; j++) {
                const unsigned key = first_key + tx + SIDE * j;
                const float e = expf(s[i][j] - now);
                part += e;
                const bool kept = !drops || key > query || query >= shape.t || mask.kept(row, first_query, first_key, key);
                p[row * STRIDE<BC> + tx + SIDE * j] = kept ? e : 0.0f;
            }
            sum[i] = sum[i] * shrink + row_sum(part);
#pragma unroll
            for (int c = 0; c < HS / SIDE; c++) o[i][c] *= shrink;
        }
        __syncthreads();
        accumulate<RQ, BC, HS>(o, p, v, ty, tx);
    }
#pragma unroll
    for (int i = 0; i < RQ; i++) {
        const unsigned query = first_query + ty + SIDE * i;
        if (query >= shape.t) continue;
        float *out = y + ((unsigned long long)b * shape.t + query) * shape.n_head * shape.head_size + h * shape.head_size;
#pragma unroll
        for (int c = 0; c < HS / SIDE; c++)
            if (tx + SIDE * c < shape.head_size) out[tx + SIDE * c] = o[i][c] / sum[i];
        if (tx == 0) log_sums[(unsigned long long)blockIdx.x * shape.t + query] = max[i] + logf(sum[i]);
    }
}

// With `M` the mask of dropout and `*` by element, `O = (P * M) V`, `P = softmax(Q K^T)`: `dP = (dO V^T) * M` and `dS = P * (dP - D)`,
// where `D`, the sums of the rows of `dP * P`, are those of `dO * O`. This kernel gives `dQ = dS K`, and `d_sums (B nh, T)`, which
// is D. A block takes BR queries of a head.
template <int HS, int BR, int BC>
__device__ __forceinline__ void backward_queries(const float *qkv, const float *y, const float *dy, const float *log_sums, float *d_qkv,
                                                 float *d_sums, const Shape &shape, float scale, const Dropout &dropout) {
    constexpr int RQ = BR / SIDE, RK = BC / SIDE;
    extern __shared__ float4 shared[];
    float *q = reinterpret_cast<float *>(shared);  // (BR, HS)
    float *d_out = q + BR * STRIDE<HS>;          // (BR, HS)
    float *k = d_out + BR * STRIDE<HS>;          // (BC, HS)
    float *v = k + BC * STRIDE<HS>;              // (BC, HS)
    float *ds = v + BC * STRIDE<HS>;             // (BR, BC)
    __shared__ HashPolynomial polynomials[MASK_ROWS][2];
    __shared__ float row_d[BR];

    const unsigned tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
    const unsigned first_query = (gridDim.y - 1 - blockIdx.y) * BR;
    const unsigned b = blockIdx.x / shape.n_head, h = blockIdx.x % shape.n_head, columns = shape.columns();
    const unsigned kv = h / (shape.n_head / shape.n_kv_head), channels = shape.n_head * shape.head_size;
    const unsigned long long row0 = (unsigned long long)b * shape.t;
    const float *keys = qkv + row0 * columns + (shape.n_head + kv) * shape.head_size, *values = keys + shape.n_kv_head * shape.head_size;
    const TileMask mask = {polynomials, dropout, blockIdx.x, shape.t};
    const bool drops = dropout.threshold > 0;

    load<BR, HS>(q, qkv + row0 * columns + h * shape.head_size, columns, first_query, shape, scale);
    load<BR, HS>(d_out, dy + row0 * channels + h * shape.head_size, channels, first_query, shape, 1.0f);
    for (unsigned row = threadIdx.x / 32; row < BR; row += THREADS / 32) {
        const unsigned query = first_query + row;
        float sum = 0.0f;
        if (query < shape.t) {
            const unsigned long long at = (row0 + query) * channels + h * shape.head_size;
            for (unsigned d = threadIdx.x % 32; d < shape.head_size; d += 32) sum += dy[at + d] * y[at + d];
        }
        sum = warp_sum(sum);
        if (threadIdx.x % 32 == 0) {
            row_d[row] = sum;
            if (query < shape.t) d_sums[(unsigned long long)blockIdx.x * shape.t + query] = sum;
        }
    }
    float dq[RQ][HS / SIDE];
#pragma unroll
    for (int i = 0; i < RQ; i++)
#pragma unroll
        for (int c = 0; c < HS / SIDE; c++) dq[i][c] = 0.0f;
    for (unsigned first_key = 0; first_key < first_query + BR && first_key < shape.t; first_key += BC) {
        __syncthreads();
        load<BC, HS>(k, keys, columns, first_key, shape, 1.0f);
        load<BC, HS>(v, values, columns, first_key, shape, dropout.scale);
        if (drops) mask.prepare(first_query, first_key, BR);
        __syncthreads();
        float s[RQ][RK], dp[RQ][RK];
        products<RQ, RK, HS>(s, q, k, ty, tx);
        products<RQ, RK, HS>(dp, d_out, v, ty, tx);
#pragma unroll
        for (int i = 0; i < RQ; i++) {
            const unsigned row = ty + SIDE * i, query = first_query + row;
            const float log_sum = query < shape.t ? log_sums[(unsigned long long)blockIdx.x * shape.t + query] : 0.0f;
#pragma unroll
            for (int j = 0; j < RK; j++) {
                const unsigned key = first_key + tx + SIDE * j;
                float d = 0.0f;
                if (key <= query && query < shape.t) {
                    const bool kept = !drops || mask.kept(row, first_query, first_key, key);
                    d = expf(s[i][j] - log_sum) * ((kept ? dp[i][j] : 0.0f) - row_d[row]);
                }
                ds[row * STRIDE<BC> + tx + SIDE * j] = d;
            }
        }
        __syncthreads();
        accumulate<RQ, BC, HS>(dq, ds, k, ty, tx);
    }
#pragma unroll
    for (int i = 0; i < RQ; i++) {
        const unsigned query = first_query + ty + SIDE * i;
        if (query >= shape.t) continue;
        float *out = d_qkv + (row0 + query) * columns + h * shape.head_size;
#pragma unroll
        for (int c = 0; c < HS / SIDE; c++)
            if (tx + SIDE * c < shape.head_size) out[tx + SIDE * c] = dq[i][c] * scale;
    }
}

// The rest of the backward pass: `dK = dS^T Q` and `dV = (P * M)^T dO`. A block takes BR keys of a head of keys and values, and goes
// over the queries of all heads that share it. Its tiles of scores are transposed: rows are keys.
template <int HS, int BR, int BC>
__device__ __forceinline__ void backward_keys(const float *qkv, const float *dy, const float *log_sums, const float *d_sums, float *d_qkv,
                                              const Shape &shape, float scale, const Dropout &dropout) {
    constexpr int RK = BR / SIDE, RQ = BC / SIDE;
    extern __shared__ float4 shared[];
    float *k = reinterpret_cast<float *>(shared);  // (BR, HS)
    float *v = k + BR * STRIDE<HS>;              // (BR, HS)
    float *q = v + BR * STRIDE<HS>;              // (BC, HS)
    float *d_out = q + BC * STRIDE<HS>;          // (BC, HS)
    float *p = d_out + BC * STRIDE<HS>;          // (BR, BC)
    float *ds = p + BR * STRIDE<BC>;             // (BR, BC)
    __shared__ HashPolynomial polynomials[MASK_ROWS][2];

    const unsigned tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
    const unsigned first_key = blockIdx.y * BR;
    const unsigned b = blockIdx.x / shape.n_kv_head, kv = blockIdx.x % shape.n_kv_head, group = shape.n_head / shape.n_kv_head;
    const unsigned columns = shape.columns(), channels = shape.n_head * shape.head_size;
    const unsigned long long row0 = (unsigned long long)b * shape.t;
    const unsigned key_column = (shape.n_head + kv) * shape.head_size, value_column = key_column + shape.n_kv_head * shape.head_size;
    const bool drops = dropout.threshold > 0;

    load<BR, HS>(k, qkv + row0 * columns + key_column, columns, first_key, shape, 1.0f);
    load<BR, HS>(v, qkv + row0 * columns + value_column, columns, first_key, shape, dropout.scale);
    float dk[RK][HS / SIDE], dv[RK][HS / SIDE];
#pragma unroll
    for (int i = 0; i < RK; i++)
#pragma unroll
        for (int c = 0; c < HS / SIDE; c++) dk[i][c] = dv[i][c] = 0.0f;
    for (unsigned h = kv * group; h < (kv + 1) * group; h++) {
        const unsigned long long head = (unsigned long long)b * shape.n_head + h;
        const TileMask mask = {polynomials, dropout, head, shape.t};
        // Queries before the first key see none of these keys.
        for (unsigned first_query = first_key / BC * BC; first_query < shape.t; first_query += BC) {
            __syncthreads();
            load<BC, HS>(q, qkv + row0 * columns + h * shape.head_size, columns, first_query, shape, scale);
            load<BC, HS>(d_out, dy + row0 * channels + h * shape.head_size, channels, first_query, shape, 1.0f);
            if (drops) mask.prepare(first_query, first_key, BC);
            __syncthreads();
            float s[RK][RQ], dp[RK][RQ];
            products<RK, RQ, HS>(s, k, q, ty, tx);
            products<RK, RQ, HS>(dp, v, d_out, ty, tx);
#pragma unroll
            for (int j = 0; j < RQ; j++) {
                const unsigned column = tx + SIDE * j, query = first_query + column;
                const bool there = query < shape.t;
                const float log_sum = there ? log_sums[head * shape.t + query] : 0.0f;
                const float d_sum = there ? d_sums[head * shape.t + query] : 0.0f;
#pragma unroll
                for (int i = 0; i < RK; i++) {
                    const unsigned row = ty + SIDE * i, key = first_key + row;
                    float e = 0.0f, d = 0.0f;
                    if (there && key <= query) {
                        const bool kept = !drops || mask.kept(column, first_query, first_key, key);
                        e = expf(s[i][j] - log_sum);
                        d = e * ((kept ? dp[i][j] : 0.0f) - d_sum);
                        if (!kept) e = 0.0f;
                    }
                    p[row * STRIDE<BC> + column] = e;
                    ds[row * STRIDE<BC> + column] = d;
                }
            }
            __syncthreads();
            accumulate<RK, BC, HS>(dv, p, d_out, ty, tx);
            accumulate<RK, BC, HS>(dk, ds, q, ty, tx);
        }
    }
#pragma unroll
    for (int i = 0; i < RK; i++) {
        const unsigned key = first_key + ty + SIDE * i;
        if (key >= shape.t) continue;
        float *row = d_qkv + (row0 + key) * columns;
#pragma unroll
        for (int c = 0; c < HS / SIDE; c++) {
            const unsigned d = tx + SIDE * c;
            if (d >= shape.head_size) continue;
            row[key_column + d] = dk[i][c];
            row[value_column + d] = dv[i][c] * dropout.scale;
        }
    }
}

}  // namespace

// HS is the largest head size of the kernels, FR x FC the tile of the forward pass and BR x BC that of the backward pass; the host
// (src/ops/kernels/attention.rs) has the same table.
#define ATTENTION(HS, FR, FC, BR, BC)                                                                                              \
    extern "C" __global__ void __launch_bounds__(256)                                                                              \
    attention_forward_##HS(const float *qkv, float *y, float *log_sums, unsigned t, unsigned n_head, unsigned n_kv_head,           \
                           unsigned head_size, float scale, unsigned key0, unsigned key1, unsigned word2, unsigned word3,          \
                           unsigned threshold, float keep_scale) {                                                                 \
        forward<HS, FR, FC>(qkv, y, log_sums, {t, n_head, n_kv_head, head_size}, scale,                                            \
                            {key0, key1, word2, word3, threshold, keep_scale});                                                    \
    }                                                                                                                              \
    extern "C" __global__ void __launch_bounds__(256)                                                                              \
    attention_backward_queries_##HS(const float *qkv, const float *y, const float *dy, const float *log_sums, float *d_qkv,        \
                                    float *d_sums, unsigned t, unsigned n_head, unsigned n_kv_head, unsigned head_size,            \
                                    float scale, unsigned key0, unsigned key1, unsigned word2, unsigned word3,                     \
                                    unsigned threshold, float keep_scale) {                                                        \
        backward_queries<HS, BR, BC>(qkv, y, dy, log_sums, d_qkv, d_sums, {t, n_head, n_kv_head, head_size}, scale,                \
                                     {key0, key1, word2, word3, threshold, keep_scale});                                           \
    }                                                                                                                              \
    extern "C" __global__ void __launch_bounds__(256)                                                                              \
    attention_backward_keys_##HS(const float *qkv, const float *dy, const float *log_sums, const float *d_sums, float *d_qkv,      \
                                 unsigned t, unsigned n_head, unsigned n_kv_head, unsigned head_size, float scale,                 \
                                 unsigned key0, unsigned key1, unsigned word2, unsigned word3, unsigned threshold,                 \
                                 float keep_scale) {                                                                               \
        backward_keys<HS, BR, BC>(qkv, dy, log_sums, d_sums, d_qkv, {t, n_head, n_kv_head, head_size}, scale,                      \
                                  {key0, key1, word2, word3, threshold, keep_scale});                                              \
    }

ATTENTION(32, 64, 64, 64, 32)
ATTENTION(64, 64, 64, 64, 32)
ATTENTION(128, 64, 32, 32, 32)
