// Decoding with matrices in f32.
extern __shared__ float shared[];
#include "decode.cuh"

DECODE_KERNELS(f32, float)
