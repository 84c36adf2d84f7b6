// What the kernels of attention share: shapes, and dropout masks of tiles of scores.
#pragma once
#include "dropout.cuh"

// Of a batch of sequences.
struct Shape {
    unsigned t, n_head, n_kv_head, head_size;

    __device__ __forceinline__ unsigned columns() const { return (n_head + 2 * n_kv_head) * head_size; }
};

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
static constexpr unsigned MASK_ROWS = 64;
