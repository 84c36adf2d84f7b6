// The norm of all gradients, their clipping, and AdamW, each over all parameters in one launch.
//
// A launch covers the elements of all parameters in blocks of 1024, none of which spans two parameters. `table` has a row for each
// parameter; a block finds its parameter by its own number.
#include "reduce.cuh"
#include "table.cuh"

namespace {

constexpr unsigned THREADS = 256, ELEMENTS = 1024;

// A row of the table. The host (src/engine/tensors/kernels/mod.rs) writes the same seven words.
struct Parameter {
    unsigned long long param, grad;  // addresses of floats
    unsigned long long first_block;  // of this launch
    unsigned long long elements;
    unsigned long long slot;         // its first element in flat slots
    unsigned long long decay, rate;  // the bits of floats: what it is multiplied with first, what its step is multiplied with
};

}  // namespace

// The sum of the squares of each block's gradients: `sums (blocks)`.
extern "C" __global__ void sum_of_squares(const Parameter *table, unsigned parameters, float *sums) {
    const Parameter *p = row_of(table, parameters, blockIdx.x);
    const float *grad = reinterpret_cast<const float *>(p->grad);
    const unsigned long long first = (blockIdx.x - p->first_block) * ELEMENTS;
    float sum = 0.0f;
#pragma unroll
    for (unsigned k = 0; k < ELEMENTS / THREADS; k++) {
        const unsigned long long i = first + k * THREADS + threadIdx.x;
        const float g = i < p->elements ? grad[i] : 0.0f;
        sum += g * g;
    }
    sum = block_sum<THREADS>(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// One block: the norm of the gradients times `mean`, and what they are multiplied with to be clipped to `clip` (0: not at all):
// `norm_and_factor (2)`.
extern "C" __global__ void clip_factor(const float *sums, float *norm_and_factor, unsigned blocks, float mean, float clip) {
    // In double: millions of squares are added.
    __shared__ double parts[THREADS];
    double sum = 0.0;
    for (unsigned i = threadIdx.x; i < blocks; i += THREADS) sum += sums[i];
    parts[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (unsigned k = 1; k < THREADS; k++) sum += parts[k];
    const float norm = (float)(sqrt(sum) * mean);
    norm_and_factor[0] = norm;
    norm_and_factor[1] = clip > 0.0f ? mean * fminf(1.0f, clip / norm) : mean;
}

// AdamW (Loshchilov and Hutter, 2019). `m` and `v` are flat; `rest1` is `1 - beta1`, of which a float of beta1
// has lost digits; `step_scale` is the learning rate over `1 - beta1^n`, `v_scale` 1 over
// `1 - beta2^n`.
extern "C" __global__ void adamw(const Parameter *table, unsigned parameters, const float *norm_and_factor, float *m, float *v,
                                 float beta1, float beta2, float rest1, float rest2, float eps, float step_scale, float v_scale) {
    const Parameter *p = row_of(table, parameters, blockIdx.x);
    float *param = reinterpret_cast<float *>(p->param);
    const float *grad = reinterpret_cast<const float *>(p->grad);
    const float decay = float_of(p->decay), scale = step_scale * float_of(p->rate), factor = norm_and_factor[1];
    const unsigned long long first = (blockIdx.x - p->first_block) * ELEMENTS;
#pragma unroll
    for (unsigned k = 0; k < ELEMENTS / THREADS; k++) {
        const unsigned long long i = first + k * THREADS + threadIdx.x, slot = p->slot + i;
        if (i >= p->elements) continue;
        const float g = grad[i] * factor;
        const float m_new = beta1 * m[slot] + rest1 * g, v_new = beta2 * v[slot] + rest2 * (g * g);
        m[slot] = m_new;
        v[slot] = v_new;
        param[i] = param[i] * decay - m_new / (sqrtf(v_new * v_scale) + eps) * scale;
    }
}
