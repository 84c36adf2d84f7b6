// Sums over the threads of a warp and of a block, in a fixed order.
#pragma once

// The sum of `x` over the 32 lanes, in every lane.
__device__ __forceinline__ float warp_sum(float x) {
    for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
    return x;
}

// The sum of a lane's `x` over the eight warps of a block, in the first of them.
__device__ __forceinline__ float sum_over_warps(float x, float (&scratch)[8][32]) {
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    scratch[warp][lane] = x;
    __syncthreads();
    if (warp == 0)
        for (unsigned k = 1; k < 8; k++) x += scratch[k][lane];
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
    for (int lane = 16; lane > 0; lane /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lane));
    return x;
}
