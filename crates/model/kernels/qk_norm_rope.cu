// QK-norm and rotary positions, forward and backward, each alone or one behind the other: so queries and keys are read and written
// once for both.
//
// `x (B, T, (nh + 2 nkv) hs)` has the queries of all heads, their keys and their values side by side. A warp takes one head of one
// position: it norms and rotates queries and keys, and copies values. Channel `c` is rotated with channel `c + half`, where `half`
// is `hs / 2`; a lane has such pairs of its own, in all loops the same.
#include "element.cuh"
#include "reduce.cuh"

namespace {

// The heads, and where they are: `n` heads of all positions, and the number of the first position of each sequence of `t`.
struct Shape {
    unsigned long long n;
    unsigned t, past, n_head, n_kv_head, head_size;
};

// The weights `(hs)` of the norms of queries and of keys, null without; the cosines and sines `(block_size, hs / 2)`, null without.
struct Factors {
    const float *q_norm, *k_norm, *cosines, *sines;
};

// What is done with head `i` of all.
struct Head {
    const float *norm, *cosines, *sines;  // its weights; the row of its position; null without
    bool is_value;

    __device__ __forceinline__ Head(unsigned long long i, const Shape &s, const Factors &f) {
        const unsigned heads = s.n_head + 2 * s.n_kv_head, head = (unsigned)(i % heads);
        const unsigned long long position = s.past + i / heads % s.t;
        is_value = head >= s.n_head + s.n_kv_head;
        norm = head < s.n_head ? f.q_norm : f.k_norm;
        cosines = f.cosines ? f.cosines + position * (s.head_size / 2) : nullptr;
        sines = f.sines ? f.sines + position * (s.head_size / 2) : nullptr;
    }
};

// Two channels of a head; the second of the last pair of an odd number is not there, and counts as 0.
struct Pair {
    float a, b;
};

template <class T>
__device__ __forceinline__ Pair load(const T *head, unsigned c, unsigned half, unsigned head_size) {
    return {to_float(head[c]), c + half < head_size ? to_float(head[c + half]) : 0.0f};
}

template <class T>
__device__ __forceinline__ void store(T *head, unsigned c, unsigned half, unsigned head_size, Pair p) {
    head[c] = from_float<T>(p.a);
    if (c + half < head_size) head[c + half] = from_float<T>(p.b);
}

// The pair turned by the angle of this cosine and sine.
__device__ __forceinline__ Pair turned(Pair p, float cosine, float sine) {
    return {p.a * cosine - p.b * sine, p.b * cosine + p.a * sine};
}

template <class T>
__device__ __forceinline__ void copy(const T *from, T *to, unsigned head_size, unsigned lane) {
    for (unsigned c = lane; c < head_size; c += 32) to[c] = from[c];
}

// The reciprocal root mean square of a head, by one warp.
template <class T>
__device__ __forceinline__ float reciprocal_rms(const T *head, unsigned head_size, unsigned lane, float eps) {
    float squares = 0.0f;
    for (unsigned c = lane; c < head_size; c += 32) {
        const float x = to_float(head[c]);
        squares = fmaf(x, x, squares);
    }
    return 1.0f / sqrtf(warp_sum(squares) / head_size + eps);
}

// `y`, of the shape of `x`.
template <class T>
__device__ __forceinline__ void forward(const T *x, T *y, const Factors &factors, const Shape &s, float eps) {
    const unsigned lane = threadIdx.x % 32, half = (s.head_size + 1) / 2;
    const unsigned long long i = (unsigned long long)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (i >= s.n) return;
    const Head head(i, s, factors);
    x += i * s.head_size;
    y += i * s.head_size;
    if (head.is_value) {
        copy(x, y, s.head_size, lane);
        return;
    }
    const float rrms = head.norm ? reciprocal_rms(x, s.head_size, lane, eps) : 1.0f;
    for (unsigned c = lane; c < half; c += 32) {
        Pair p = load(x, c, half, s.head_size);
        if (head.norm) {
            const Pair w = load(head.norm, c, half, s.head_size);
            p = {p.a * rrms * w.a, p.b * rrms * w.b};
        }
        if (head.cosines) p = turned(p, head.cosines[c], head.sines[c]);
        store(y, c, half, s.head_size, p);
    }
}

// `dx` from `dy`: the inverse rotation, and then, with `d` its result, `g = d w` and `z` the normed head,
// `dx = rrms (g - z mean(g z))`. A block takes `per_block` heads. With norms it leaves the sums of `d z` of its queries and of its
// keys, the gradients of the weights, in its row of `sums_out (blocks, 2 hs)`; without, `x` and `sums_out` are null.
template <class T>
__device__ __forceinline__ void backward(const T *x, const T *dy, T *dx, float *sums_out, const Factors &factors, const Shape &s,
                                         unsigned per_block, float eps) {
    extern __shared__ float sums[];  // (warps, 2 hs), with norms
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const unsigned hs = s.head_size, half = (hs + 1) / 2;
    float *of_warp = sums + warp * 2 * hs;
    if (factors.q_norm)
        for (unsigned c = lane; c < half; c += 32) {
            store(of_warp, c, half, hs, {0.0f, 0.0f});
            store(of_warp + hs, c, half, hs, {0.0f, 0.0f});
        }
    const unsigned long long first = (unsigned long long)blockIdx.x * per_block;
    for (unsigned long long i = first + warp; i < first + per_block && i < s.n; i += warps) {
        const Head head(i, s, factors);
        const T *dy_head = dy + i * hs;
        T *dx_head = dx + i * hs;
        if (head.is_value) {
            copy(dy_head, dx_head, hs, lane);
            continue;
        }
        // The gradient of what was rotated.
        auto turned_back = [&](unsigned c) {
            const Pair d = load(dy_head, c, half, hs);
            return head.cosines ? turned(d, head.cosines[c], -head.sines[c]) : d;
        };
        if (!head.norm) {
            for (unsigned c = lane; c < half; c += 32) store(dx_head, c, half, hs, turned_back(c));
            continue;
        }
        const T *x_head = x + i * hs;
        float *dw = head.norm == factors.q_norm ? of_warp : of_warp + hs;
        const float rrms = reciprocal_rms(x_head, hs, lane, eps);
        float gz_sum = 0.0f;
        for (unsigned c = lane; c < half; c += 32) {
            const Pair d = turned_back(c), p = load(x_head, c, half, hs), w = load(head.norm, c, half, hs);
            const Pair z = {p.a * rrms, p.b * rrms}, sum = load(dw, c, half, hs);
            store(dw, c, half, hs, {sum.a + d.a * z.a, sum.b + d.b * z.b});
            gz_sum += d.a * w.a * z.a + d.b * w.b * z.b;
        }
        const float mean_gz = warp_sum(gz_sum) / hs;
        for (unsigned c = lane; c < half; c += 32) {
            const Pair d = turned_back(c), p = load(x_head, c, half, hs), w = load(head.norm, c, half, hs);
            const Pair z = {p.a * rrms, p.b * rrms};
            store(dx_head, c, half, hs, {(d.a * w.a - z.a * mean_gz) * rrms, (d.b * w.b - z.b * mean_gz) * rrms});
        }
    }
    if (!factors.q_norm) return;
    __syncthreads();
    for (unsigned c = threadIdx.x; c < 2 * hs; c += blockDim.x) {
        float sum = 0.0f;
        for (unsigned k = 0; k < warps; k++) sum += sums[k * 2 * hs + c];
        sums_out[(unsigned long long)blockIdx.x * 2 * hs + c] = sum;
    }
}

}  // namespace

#define QK_NORM_ROPE(T)                                                                                                            \
    extern "C" __global__ void qk_norm_rope_forward_##T(const T *x, T *y, const float *q_norm, const float *k_norm,                \
                                                        const float *cosines, const float *sines, unsigned long long n,            \
                                                        unsigned t, unsigned past, unsigned n_head, unsigned n_kv_head,            \
                                                        unsigned head_size, float eps) {                                           \
        forward(x, y, {q_norm, k_norm, cosines, sines}, {n, t, past, n_head, n_kv_head, head_size}, eps);                          \
    }                                                                                                                              \
    extern "C" __global__ void qk_norm_rope_backward_##T(const T *x, const T *dy, T *dx, float *sums, const float *q_norm,         \
                                                         const float *k_norm, const float *cosines, const float *sines,            \
                                                         unsigned long long n, unsigned t, unsigned past, unsigned n_head,         \
                                                         unsigned n_kv_head, unsigned head_size, float eps, unsigned per_block) {  \
        backward(x, dy, dx, sums, {q_norm, k_norm, cosines, sines}, {n, t, past, n_head, n_kv_head, head_size}, per_block, eps);   \
    }

QK_NORM_ROPE(float)
QK_NORM_ROPE(bf16)
QK_NORM_ROPE(f16)
