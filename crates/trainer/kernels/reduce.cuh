// Sums over the threads of a warp and of a block, in a fixed order.
#pragma once

// The sum of `x` over the 32 lanes, in every lane.
__device__ __forceinline__ float warp_sum(float x) {
    for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
    return x;
}

// The sum of `x` over a block's threads, in every thread. A kernel calls it once.
template <unsigned THREADS>
__device__ __forceinline__ float block_sum(float x) {
    __shared__ float sums[THREADS / 32];
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = sums[0];
    for (unsigned k = 1; k < THREADS / 32; k++) sum += sums[k];
    return sum;
}
