// The statistics of a row that a norm is made of.
#pragma once
#include "reduce.cuh"

struct Stats {
    float mean, rstd;
};

// Of the `c` elements of a row, by one warp. An RMSNorm is a layer norm whose mean is taken to be 0.
template <bool RMS>
__device__ __forceinline__ Stats row_stats(const float *x, unsigned c, unsigned lane, float eps) {
    float mean = 0.0f;
    if (!RMS) {
        for (unsigned i = lane; i < c; i += 32) mean += x[i];
        mean = warp_sum(mean) / c;
    }
    float squares = 0.0f;
    for (unsigned i = lane; i < c; i += 32) {
        const float centred = x[i] - mean;
        squares = fmaf(centred, centred, squares);
    }
    return {mean, 1.0f / sqrtf(warp_sum(squares) / c + eps)};
}
