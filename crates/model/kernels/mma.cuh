// Products of bfloat16 matrices on tensor cores, and copies into shared memory that run beside them.
//
// Products are mma.m16n8k16: of a tile of 16 x 8 sums, lane 4 g + i has those of rows g and g + 8 and columns 2 i and 2 i + 1. The sums
// of two such tiles side by side are the left operand of the next product without leaving their lanes.
#pragma once
#include "element.cuh"

#ifdef TINYGPT_EMULATED
#include "ptx_instructions.h"
#else
// d = a b + c, in float, of bfloat16 (16 x 16) and (16 x 8).
__device__ __forceinline__ void mma_m16n8k16_bf16(float d[4], const unsigned a[4], const unsigned b[2], const float c[4]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};\n"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

__device__ __forceinline__ unsigned shared_address(const void *at) { return (unsigned)__cvta_generic_to_shared(at); }

// Four matrices of 8 x 8 elements of 16 bits, lane l bringing row l % 8 of matrix l / 8: register m has, of matrix m, elements 2 i and
// 2 i + 1 of row g, or of column g where the matrices are taken transposed.
__device__ __forceinline__ void ldmatrix_x4(unsigned d[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(shared_address(row)));
}
__device__ __forceinline__ void ldmatrix_x4_trans(unsigned d[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(shared_address(row)));
}

// Begins to copy 16 or 4 bytes to shared memory, or zeros where `there` is false. They are there once the thread has waited for them.
__device__ __forceinline__ void cp_async_16(void *to, const void *from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(to)), "l"(from), "r"(there ? 16 : 0) : "memory");
}
__device__ __forceinline__ void cp_async_4(void *to, const void *from, bool there) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(shared_address(to)), "l"(from), "r"(there ? 4 : 0) : "memory");
}
// Makes a group of the copies that the thread has begun since the last one.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Waits for all groups of the thread but the last N.
template <int N>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory");
}

// 2^x to 22 bits; what is less than a normal number is 0.
__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
}
#endif

// Rows of a tile are padded by eight elements, so that 8 rows at one column lie in different banks.
template <int COLS>
constexpr int STRIDE = COLS + 8;

__device__ __forceinline__ unsigned pair_of(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const unsigned *>(&pair);
}

// The left operand of products: the 16 rows of a warp from `tile` on, of K columns. HELD keeps them in registers.
template <int K, bool HELD>
struct LeftRows {
    const bf16 *lane_row;
    unsigned held[HELD ? K / 16 : 1][4];

    __device__ __forceinline__ LeftRows(const bf16 *tile, unsigned lane) : lane_row(tile + lane % 16 * STRIDE<K> + lane / 16 * 8) {
        if (HELD)
#pragma unroll
            for (int k = 0; k < K / 16; k++) ldmatrix_x4(held[k], lane_row + 16 * k);
    }
};

// `s = a b^T` for the rows of a warp and the N rows of `b (N, K)`.
template <int N, int K, bool HELD>
__device__ __forceinline__ void scores(float (&s)[N / 8][4], const LeftRows<K, HELD> &a, const bf16 *b, unsigned lane) {
    const bf16 *lane_row = b + (lane % 8 + lane / 16 * 8) * STRIDE<K> + lane / 8 % 2 * 8;
#pragma unroll
    for (int n = 0; n < N / 8; n++) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.0f;
#pragma unroll
    for (int k = 0; k < K / 16; k++) {
        unsigned loaded[4];
        if (!HELD) ldmatrix_x4(loaded, a.lane_row + 16 * k);
        const unsigned *x = HELD ? a.held[HELD ? k : 0] : loaded;
#pragma unroll
        for (int n = 0; n < N / 8; n += 2) {
            unsigned y[4];
            ldmatrix_x4(y, lane_row + 8 * n * STRIDE<K> + 16 * k);
            mma_m16n8k16_bf16(s[n], x, y, s[n]);
            mma_m16n8k16_bf16(s[n + 1], x, y + 2, s[n + 1]);
        }
    }
}

// `o += s b` for scores of K columns, rounded, and `b (K, N)`.
template <int N, int K>
__device__ __forceinline__ void accumulate(float (&o)[N / 8][4], const float (&s)[K / 8][4], const bf16 *b, unsigned lane) {
    const bf16 *lane_row = b + lane % 16 * STRIDE<N> + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < K / 8; k += 2) {
        const float(&l)[4] = s[k], (&r)[4] = s[k + 1];
        const unsigned x[4] = {pair_of(l[0], l[1]), pair_of(l[2], l[3]), pair_of(r[0], r[1]), pair_of(r[2], r[3])};
#pragma unroll
        for (int n = 0; n < N / 8; n += 2) {
            unsigned y[4];
            ldmatrix_x4_trans(y, lane_row + 8 * k * STRIDE<N> + 8 * n);
            mma_m16n8k16_bf16(o[n], x, y, o[n]);
            mma_m16n8k16_bf16(o[n + 1], x, y + 2, o[n + 1]);
        }
    }
}
