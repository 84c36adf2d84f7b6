// Masks of tiles of scores for attention_bf16.cu, where lane 4 g + i of a warp has rows g and g + 8, and of every eight columns 2 i and
// 2 i + 1: the causal one, and those of dropout.
#pragma once
#include "dropout.cuh"

constexpr unsigned THREADS = 128, ROWS = 64;

// Sets scores of a warp's queries with later keys to minus infinity. Row `r` of the warp is a query `ahead + r` after the tile's first
// key.
template <int N>
__device__ __forceinline__ void hide_later_keys(float (&s)[N][4], int ahead, unsigned lane) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int last = ahead + 8 * half + (int)(lane / 4) - (int)(lane % 4 * 2);
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int e = 0; e < 2; e++)
                if (8 * n + e > last) s[n][2 * half + e] = -INFINITY;
    }
}

// The same where rows are keys, and the tile's first query is `ahead` after the key of the warp's first row.
template <int N>
__device__ __forceinline__ void hide_earlier_queries(float (&s)[N][4], int ahead, unsigned lane) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int first = 8 * half + (int)(lane / 4) - (int)(lane % 4 * 2) - ahead;
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int e = 0; e < 2; e++)
                if (8 * n + e < first) s[n][2 * half + e] = -INFINITY;
    }
}

// Masks of dropout are bits in shared memory, which the threads of a block compute together: 16 elements of a row at a time, since the
// hash costs least for neighbours. There are two of each, that one can be prepared while the other is read; a barrier of the block comes
// between.

// A block of the hash and its polynomial.
struct KnownBlock {
    unsigned long long block;
    HashPolynomial polynomial;
};

// The dropout masks of two tiles of 64 queries and BC keys, a bit for each element, and what each thread knows of the hash.
template <int BC>
struct QueryMasks {
    alignas(4) unsigned short kept[2][ROWS][BC / 16];
    KnownBlock known[THREADS];

    __device__ __forceinline__ void begin() { known[threadIdx.x].block = ~0ull; }

    // Mask `which`, of the queries that begin with row `first_row` of all rows of scores, and keys from `first_key` on.
    __device__ __forceinline__ void prepare(unsigned which, const Dropout &dropout, unsigned long long first_row, unsigned t, unsigned first_key) {
        constexpr unsigned RUNS = BC / 16 * ROWS / THREADS;
        const unsigned row = threadIdx.x % ROWS;
        KnownBlock &mine = known[threadIdx.x];
#pragma unroll 1
        for (unsigned run = threadIdx.x / ROWS * RUNS; run < (threadIdx.x / ROWS + 1) * RUNS; run++) {
            const unsigned long long first = (first_row + row) * t + first_key + 16 * run, block = first >> HASH_BLOCK_BITS;
            if (mine.block != block) mine = {block, hash_polynomial(dropout, block)};
            kept[which][row][run] = kept_run(dropout, mine.polynomial, (unsigned)first & (HASH_BLOCK - 1),
                                             [&] { return hash_polynomial(dropout, block + 1); });
        }
    }

    // Sets what is dropped of a warp's tile to 0.
    __device__ __forceinline__ void apply(float (&x)[BC / 8][4], unsigned which, unsigned warp_row, unsigned lane) const {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const unsigned short(&row)[BC / 16] = kept[which][warp_row + 8 * half + lane / 4];
#pragma unroll
            for (int n = 0; n < BC / 8; n += 4) {
                const unsigned bits = *reinterpret_cast<const unsigned *>(&row[n / 2]) >> lane % 4 * 2;
#pragma unroll
                for (int i = 0; i < 4; i++)
#pragma unroll
                    for (int e = 0; e < 2; e++)
                        if (!(bits >> (8 * i + e) & 1)) x[n + i][2 * half + e] = 0.0f;
            }
        }
    }
};

// The dropout masks of two tiles of BC queries and 64 keys, a bit for each element, and the polynomials of two tiles of queries: of the
// hash's blocks of the block's first key and the next one, which 64 keys may reach.
template <int BC>
struct KeyMasks {
    alignas(4) unsigned short kept[2][ROWS / 16][BC];
    HashPolynomial polynomials[2][2][BC];

    // Polynomials `which`, for the queries that begin with row `first_row` of all rows of scores, and keys from `first_key` on.
    __device__ __forceinline__ void prepare_polynomials(unsigned which, const Dropout &dropout, unsigned long long first_row, unsigned t,
                                                        unsigned first_key) {
        const unsigned query = threadIdx.x % BC, next = threadIdx.x / BC;
        const unsigned long long first = (first_row + query) * t + first_key;
        if (next == 0 || (next == 1 && ((unsigned)first & (HASH_BLOCK - 1)) + ROWS > HASH_BLOCK))
            polynomials[which][next][query] = hash_polynomial(dropout, (first >> HASH_BLOCK_BITS) + next);
    }

    // Mask `which`, from the polynomials that all threads have prepared.
    __device__ __forceinline__ void prepare(unsigned which, const Dropout &dropout, unsigned long long first_row, unsigned t, unsigned first_key) {
        static_assert(ROWS / 16 * BC == THREADS, "each thread has a run");
        const unsigned query = threadIdx.x % BC, run = threadIdx.x / BC;
        const unsigned begin = ((unsigned)((first_row + query) * t + first_key) & (HASH_BLOCK - 1)) + 16 * run;
        kept[which][run][query] = kept_run(dropout, polynomials[which][begin >> HASH_BLOCK_BITS][query], begin & (HASH_BLOCK - 1),
                                           [&] { return polynomials[which][1][query]; });
    }

    // Sets what is dropped of a warp's tile, whose rows are keys, to 0.
    __device__ __forceinline__ void apply(float (&x)[BC / 8][4], unsigned which, unsigned warp_row, unsigned lane) const {
#pragma unroll
        for (int n = 0; n < BC / 8; n++) {
            const unsigned bits = *reinterpret_cast<const unsigned *>(&kept[which][warp_row / 16][8 * n + lane % 4 * 2]) >> lane / 4;
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (!(bits >> 8 * i & 1)) x[n][i % 2 * 2 + i / 2] = 0.0f;
        }
    }
};
