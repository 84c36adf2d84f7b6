// Decoding with matrices in bf16.
extern __shared__ float shared[];
#include "decode.cuh"

DECODE_KERNELS(bf16, __nv_bfloat16)
