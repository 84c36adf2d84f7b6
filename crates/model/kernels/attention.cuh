// What the kernels of attention in f32 and bf16 share.
#pragma once
#include "dropout.cuh"

// Of a batch of sequences.
struct Shape {
    unsigned t, n_head, n_kv_head, head_size;

    __device__ __forceinline__ unsigned columns() const { return (n_head + 2 * n_kv_head) * head_size; }
};
