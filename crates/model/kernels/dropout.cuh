// Dropout masks as functions of the element's number, as `MaskSource::Hash` of src/dropout.rs defines them.
#pragma once

// Of a seed, a step and a site: the key and the upper half of the counters of Philox; `p` as a multiple of 1/65521; 1/(1 - p).
struct Dropout {
    unsigned key0, key1, word2, word3, threshold;
    float scale;
};

// The coefficients of the polynomial of a block of 16384 elements.
struct HashPolynomial {
    unsigned c0, c1, c2;
};

static constexpr unsigned HASH_PRIME = 65521, HASH_BLOCK_BITS = 14, HASH_BLOCK = 1u << HASH_BLOCK_BITS;

// Philox4x32-10 of the block's number (Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3").
__device__ __forceinline__ HashPolynomial hash_polynomial(const Dropout &dropout, unsigned long long block) {
    unsigned a = (unsigned)block, b = (unsigned)(block >> 32), c = dropout.word2, d = dropout.word3;
    unsigned k0 = dropout.key0, k1 = dropout.key1;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const unsigned high0 = __umulhi(0xD2511F53u, a), low0 = 0xD2511F53u * a;
        const unsigned high1 = __umulhi(0xCD9E8D57u, c), low1 = 0xCD9E8D57u * c;
        a = high1 ^ b ^ k0;
        b = low1;
        c = high0 ^ d ^ k1;
        d = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {a % HASH_PRIME, b % HASH_PRIME, c % HASH_PRIME};
}

// Whether the element `x` of the polynomial's block is kept.
__device__ __forceinline__ bool is_kept(const Dropout &dropout, const HashPolynomial &p, unsigned x) {
    const unsigned linear = (p.c2 * x + p.c1) % HASH_PRIME;
    return (linear * x + p.c0) % HASH_PRIME >= dropout.threshold;
}

// Whether each of the 16 elements from `x` of the polynomial's block on is kept, in as many bits; `next` is called for the polynomial
// of the next block, should they reach it. One by one they would cost four times as much.
//
// The polynomial goes on by its differences, which are added modulo 2^32 as multiples of 65551. Since 65551 * 65521 is 2^32 - 225, the
// multiple of a remainder is what it should be less 225 for each 65521 that it went round: at most 225 times, for values and first
// differences of less than 65521 and second ones of less than twice that. Beginning with 225 * 225 more, of which all that is left
// is less than 65551, sums compare as the remainders do.
template <class Next>
__device__ __forceinline__ unsigned kept_run(const Dropout &dropout, const HashPolynomial &p, unsigned x, Next next) {
    constexpr unsigned UNIT = 65551;
    unsigned kept = 0;
    if (x + 16 > HASH_BLOCK) {
        const HashPolynomial after = next();
#pragma unroll 1
        for (unsigned i = 0; i < 16; i++) {
            const bool within = x + i < HASH_BLOCK;
            if (is_kept(dropout, within ? p : after, (x + i) & (HASH_BLOCK - 1))) kept |= 1u << i;
        }
        return kept;
    }
    const unsigned linear = (p.c2 * x + p.c1) % HASH_PRIME;
    unsigned value = (linear * x + p.c0) % HASH_PRIME * UNIT + 225 * 225;
    unsigned difference = (linear + p.c2 * (x + 1)) % HASH_PRIME * UNIT;
    const unsigned second = 2 * p.c2 * UNIT, least = dropout.threshold * UNIT;
#pragma unroll
    for (unsigned i = 0; i < 16; i++) {
        if (value >= least) kept |= 1u << i;
        value += difference;
        difference += second;
    }
    return kept;
}

// `x`, the element `i` of what is dropped, times its mask (none where the threshold is 0), with the polynomial of its block. What is
// dropped is 0, a NaN too.
__device__ __forceinline__ float masked(const Dropout &dropout, const HashPolynomial &p, float x, unsigned long long i) {
    const unsigned in_block = (unsigned)i & (HASH_BLOCK - 1);
    return dropout.threshold == 0 || is_kept(dropout, p, in_block) ? x * dropout.scale : 0.0f;
}

// The masks of elements that a thread takes in ascending order: the polynomial of a block is computed where the thread enters it.
struct RowMask {
    const Dropout &dropout;
    unsigned long long block = ~0ull;
    HashPolynomial polynomial = {};

    __device__ __forceinline__ explicit RowMask(const Dropout &dropout) : dropout(dropout) {}

    // Goes to the block of element `i`.
    __device__ __forceinline__ void enter(unsigned long long i) {
        if (dropout.threshold != 0 && i >> HASH_BLOCK_BITS != block) {
            block = i >> HASH_BLOCK_BITS;
            polynomial = hash_polynomial(dropout, block);
        }
    }

    // `x`, an element of the block that was entered, times its mask.
    __device__ __forceinline__ float of(float x, unsigned long long i) const { return masked(dropout, polynomial, x, i); }

    __device__ __forceinline__ float apply(float x, unsigned long long i) {
        enter(i);
        return of(x, i);
    }
};
