// Decoding with matrices in f16.
extern __shared__ float shared[];
#include "decode.cuh"

DECODE_KERNELS(f16, __half)
