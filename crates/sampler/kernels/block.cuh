// Sums and reductions over the threads of a block, 64-bit sums in shared memory, and the last block of a row.
#pragma once

typedef unsigned long long u64;

constexpr unsigned THREADS = 512, WARPS = THREADS / 32;

// The result of `op` over the threads of the block, in every thread. `op` is associative and commutative.
template <class T, class Op>
__device__ __forceinline__ T block_reduce(T x, T *of_warps, Op op) {
    for (unsigned d = 1; d < 32; d *= 2) x = op(x, __shfl_xor_sync(0xffffffffu, x, d));
    __syncthreads();
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = x;
    __syncthreads();
    x = of_warps[0];
#pragma unroll 5
    for (unsigned w = 1; w < WARPS; w++) x = op(x, of_warps[w]);
    return x;
}

struct Prefix {
    u64 before, total;  // the sum over the threads before this one, and over all
};

__device__ __forceinline__ Prefix block_prefix_sum(u64 x, u64 *of_warps) {
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    // `sum` is over the aligned group of `d` lanes that has this lane; its neighbour is before it where the lane has the bit `d`.
    Prefix p = {0, 0};
    u64 sum = x;
    for (unsigned d = 1; d < 32; d *= 2) {
        const u64 neighbour = __shfl_xor_sync(0xffffffffu, sum, d);
        if (lane & d) p.before += neighbour;
        sum += neighbour;
    }
    __syncthreads();
    if (lane == 0) of_warps[warp] = sum;
    __syncthreads();
#pragma unroll 4
    for (unsigned w = 0; w < WARPS; w++) {
        if (w < warp) p.before += of_warps[w];
        p.total += of_warps[w];
    }
    return p;
}

// 64-bit sums in shared memory, as halves: processors add 32 bits there in one instruction, and 64 bits in a loop that contention
// makes long. Every order of the additions gives the same sums.
template <unsigned N>
struct Sums {
    unsigned low[N], high[N];

    __device__ __forceinline__ void clear(unsigned i) { low[i] = high[i] = 0; }
    __device__ __forceinline__ u64 at(unsigned i) const { return (u64)high[i] << 32 | low[i]; }
    __device__ __forceinline__ void add(unsigned i, u64 x) {
        const unsigned x_low = (unsigned)x, before = atomicAdd(&low[i], x_low);
        const unsigned carry = before + x_low < before, x_high = (unsigned)(x >> 32) + carry;
        if (x_high) atomicAdd(&high[i], x_high);
    }
};

// Whether this is the last of a row's blocks to get here, which then sees in memory all that the others have written.
__device__ __forceinline__ bool is_last_block(unsigned *finished, unsigned blocks, bool *is_last) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        *is_last = atomicAdd(finished, 1u) == blocks - 1;
        __threadfence();
    }
    __syncthreads();
    return *is_last;
}
