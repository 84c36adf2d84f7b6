// The cut among candidates: the shortest prefix of their order whose mass suffices.
#pragma once
#include "block.cuh"

// What `select` needs in shared memory.
struct Selection {
    Sums<256> masses;  // of the candidates with each digit
    u64 of_warps[WARPS], before;
    unsigned digit;
};

// The last of the shortest prefix of `n` candidates, by falling order, whose masses sum to at least `target`, which is from 1 to the
// mass of all. `mass(candidate)` may be 0. A radix search, by digits of 8 bits that differ among the candidates.
template <class Mass>
__device__ __forceinline__ u64 select(const u64 *candidates, unsigned n, u64 target, Mass mass, Selection &shared) {
    const u64 first = candidates[0];
    u64 differing = 0;
#pragma unroll 1
    for (unsigned i = threadIdx.x; i < n; i += THREADS) differing |= candidates[i] ^ first;
    differing = block_reduce(differing, shared.of_warps, [](u64 a, u64 b) { return a | b; });

    u64 prefix = 0;
#pragma unroll 1
    for (int shift = 56; shift >= 0; shift -= 8) {
        if ((differing >> shift & 255) == 0) {
            prefix = prefix << 8 | (first >> shift & 255);
            continue;
        }
        if (threadIdx.x < 256) shared.masses.clear(threadIdx.x);
        __syncthreads();
#pragma unroll 1
        for (unsigned i = threadIdx.x; i < n; i += THREADS) {
            const u64 candidate = candidates[i];
            if (shift == 56 || candidate >> (shift + 8) == prefix)
                shared.masses.add(candidate >> shift & 255, mass(candidate));
        }
        __syncthreads();
        const unsigned digit = 255 - threadIdx.x;
        const u64 here = threadIdx.x < 256 ? shared.masses.at(digit) : 0;
        const u64 before = block_prefix_sum(here, shared.of_warps).before;
        if (before < target && target <= before + here) {
            shared.digit = digit;
            shared.before = before;
        }
        __syncthreads();
        target -= shared.before;
        prefix = prefix << 8 | shared.digit;
    }
    return prefix;
}
