// Sums over the threads of a warp, in a fixed order.
#pragma once

// The sum of `x` over the 32 lanes, in every lane.
__device__ __forceinline__ float warp_sum(float x) {
    for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
    return x;
}
